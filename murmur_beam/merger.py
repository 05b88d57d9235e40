"""What every driver does with its elements: read, buffer, merge, and return the result of each. It needs no Beam.

`MergeDoFn` drives it bundle by bundle, the worker batch by batch. Duties towards a source stay with its driver: Beam's
windows, or the acknowledgement of messages.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

from murmur_beam import forks
from murmur_beam.buffer import Batch, Buffer
from murmur_beam.config import NoDedup
from murmur_beam.deadletter import Failure, hints_of, read_letter, write_letter
from murmur_beam.errors import PermanentError, RetriesExhausted, SchemaMismatch, StoreUnavailable
from murmur_beam.extract import Extractor, RecordHints, Rejected
from murmur_beam.gc_tuning import freeze_startup_objects
from murmur_beam.metrics import Recorder
from murmur_beam.model import DeadLetter, Key, MergeResult, Message, Outcome, Record
from murmur_beam.processor import DUPLICATE, MERGED, RECORDED, RecordResult, merge_records, needs_event_id
from murmur_beam.spec import MergeSpec
from murmur_beam.state.folding import FoldingStore
from murmur_beam.state.pool import Lease
from murmur_beam.times import parse_rfc3339

T = TypeVar("T")


def message_of(letter: DeadLetter) -> Message:
    """The message that a letter of type "pubsub" holds."""
    return Message(
        letter.payload,
        dict(letter.attributes),
        letter.message_id,
        (letter.publish_time and parse_rfc3339(letter.publish_time)) or None,
        letter.ordering_key,
    )


def size_of(element: Any) -> int:
    """Size of an element in bytes, as `FlushLimits.bytes` counts it; a character of a text counts as one.

    It is 0 for anything but bytes, text, messages and dead letters.
    """
    if isinstance(element, (bytes, str)):
        return len(element)
    try:
        data = element.payload if isinstance(element, DeadLetter) else element.data
        attributes = element.attributes or {}
        return len(data or b"") + sum(map(len, attributes)) + sum(map(len, attributes.values()))
    except Exception:  # not a message; an object that looks like one may raise anything
        return 0


class RecordCounter(Recorder, Protocol):
    """A recorder that also counts whole records."""

    def count(self, name: str, n: int) -> None:
        """Count ``n`` records under ``name``: ``NAME:record_merged``, ``:record_duplicate``, ``:record_recorded``,
        ``:record_expired``."""


class Merger(Generic[T]):
    """Takes elements one by one, merges them with one write per touched row, and returns the result of each.

    Elements may be dead letters of an earlier run: of these only the failed keys are merged. Each element has a token,
    with which its driver hands the result on. A merger belongs to one thread. If the store has ``waits_for_network``,
    it has a second thread: `flush_behind` merges there while the driver goes on. In a child of a fork it is empty: its
    parent merges what was buffered or under way.

    Args:
        spec: from `murmur_beam.spec.resolve`; its stores are opened here, one for each process.
        recorder: gets the counts, in place of the recorder in the spec; those of a flush behind from its thread.
        message: makes the driver's kind of message from a dead letter that holds one.
        cancel: once it is set, from any thread, failures are not retried: the flush raises `MergeCancelled`, and its
            elements have to be delivered again.

    Raises:
        MurmurError: a store cannot be opened.
    """

    def __init__(
        self,
        spec: MergeSpec,
        recorder: RecordCounter,
        message: Callable[[DeadLetter], Any] = message_of,
        cancel: threading.Event | None = None,
    ) -> None:
        self._spec = spec
        self._recorder = recorder
        self._message = message
        self._config = config = spec.config.with_recorder(recorder)
        self._cancel = cancel
        extractor = Extractor(
            spec.extraction,
            spec.monoid,
            need_id=needs_event_id(config, spec.monoid),
            need_time=spec.window is not None or spec.monoid.needs_event_time,
        )
        self._record = extractor.record
        self._bucket_us = spec.window.granularity_us if spec.window else 0
        self._under_way: tuple[Batch[T], Future[list[RecordResult]]] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._leases: list[Lease] = []
        try:
            for store in filter(None, (spec.store, spec.cache)):
                self._leases.append(Lease(store, spec.aggregate, spec.granularity))
        except BaseException:
            self.close()
            raise
        self._store = self._leases[0].store
        self._cache = self._leases[1].store if spec.cache is not None else None
        self._waits = self._store.waits_for_network
        self._buffer: Buffer[T] = Buffer(spec.flush, self._bucket_us, config.clock.monotonic)
        self._add = self._buffer.add
        _mergers.add(self)
        freeze_startup_objects()

    def add(self, element: Any, timestamp_us: int, token: T) -> bool:
        """Buffer an element. Returns whether it is time to flush.

        Args:
            element: as the driver got it, or a dead letter that holds it.
            timestamp_us: the event time, unless a field holds it; microseconds.
            token: is returned with the result.
        """
        try:
            # Recognized by its fields: a Beam worker decodes letters from elsewhere to a type made of their schema.
            if isinstance(element, tuple) and getattr(element, "_fields", None) == DeadLetter._fields:
                element = DeadLetter(*element)
                record = self._replayed(element, timestamp_us)
            else:
                record = self._record(element, timestamp_us)
        except Rejected as rejected:
            letter = self._letter(element, Failure(rejected.stage, rejected.error, rejected.hints))
            return self._buffer.reject(letter, token, size_of(letter))
        kind = type(element)
        if kind is dict:
            return self._add(element, token, record, 0)
        return self._add(element, token, record, len(element) if kind is bytes else size_of(element))

    def flush(self) -> Iterator[tuple[T, MergeResult | DeadLetter]]:
        """Merge what is buffered; token and result of each element, after those of a flush behind.

        Everything is merged when this returns; the results are made one by one as they are taken.

        Raises:
            StoreUnavailable, SchemaMismatch: the store cannot be used as configured. That is not the fault of a record,
                so no record becomes a dead letter.
            RetriesExhausted: all tries of a record failed, and the spec says ``on_exhausted="raise"``.
            MergeCancelled: ``cancel`` is set, and not everything was merged at the first try.
        """
        batch = self._buffer.take()
        before = self._results_behind()
        return chain(before, self._results(batch, self._merge(batch.records)))

    def flush_behind(self) -> Iterator[tuple[T, MergeResult | DeadLetter]]:
        """Begin to merge what is buffered, and return the results of the flush behind before this one.

        So at most two buffers are held. If the store does not wait for a network, and if there are only dead letters to
        put out, this is `flush`.

        Raises:
            Exception: as `flush`, of the flush before.
        """
        if not self._waits or self._buffer.only_rejected:
            return self.flush()
        batch = self._buffer.take()
        before = self._results_behind()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "murmur-flush")
        self._under_way = batch, self._thread.submit(self._merge, batch.records)
        return before

    def row_keys(self, result: MergeResult) -> list[bytes]:
        """Keys of the rows that a record was appended to; none if it was not."""
        if result.outcome is not Outcome.RECORDED or not isinstance(self._store, FoldingStore):
            return []
        # Without dedup each update has a random id.
        event_id = None if isinstance(self._config.dedup, NoDedup) else result.event_id
        return self._store.row_keys([Key(entity, result.bucket) for entity in result.merged_keys], event_id)

    def clear(self) -> None:
        """Forget what is buffered or under way, because it will be delivered again."""
        self._buffer.take()
        if self._under_way is not None:
            # An element that is redelivered earlier would be merged at the same time.
            wait([self._under_way[1]])
            self._under_way = None

    def close(self) -> None:
        """Wait for a flush that is under way, then release the stores; the last user in the process closes them."""
        if self._thread is not None:
            self._thread.shutdown()
        for lease in self._leases:
            lease.release()

    def begin_again(self) -> None:
        """Begin with an empty buffer in a child of a fork, which has no such thread and whose parent does the work."""
        self._buffer.take()
        self._thread = self._under_way = None

    def _merge(self, records: Sequence[Record]) -> list[RecordResult]:
        """Merge records; the result of each.

        Raises:
            MergeCancelled: ``cancel`` was set, and not everything was merged at the first try.
        """
        if not records:
            return []
        monotonic = self._config.clock.monotonic
        started_s = monotonic()
        results = merge_records(
            self._config, self._spec.name, records, self._store, self._cache, self._spec.window, cancel=self._cancel
        )
        self._recorder.record_batch(self._spec.name, "flush", len(records), monotonic() - started_s)
        return results

    def _results_behind(self) -> Iterator[tuple[T, MergeResult | DeadLetter]]:
        """Wait for the flush behind, if one is under way; its results."""
        if self._under_way is None:
            return iter(())
        batch, merging = self._under_way
        wait([merging])
        self._under_way = None
        return self._results(batch, merging.result())

    def _results(
        self, batch: Batch[T], results: Sequence[RecordResult]
    ) -> Iterator[tuple[T, MergeResult | DeadLetter]]:
        outcomes = [outcome for outcome, _, _, _, _ in results]
        if None in outcomes:
            self._raise_outages(batch.records, results)
        left = len(outcomes)
        for outcome in Outcome:
            n = outcomes.count(outcome) if left else 0
            left -= n
            self._recorder.count(f"{self._spec.name}:record_{outcome}", n)
        # Made one by one as they are taken, so that they do not pile up for the garbage collector.
        merged = map(self._result, batch.elements, batch.records, results)
        return chain(batch.rejected, zip(batch.tokens, merged, strict=True))

    def _replayed(self, letter: DeadLetter, timestamp_us: int) -> Record:
        hints = RecordHints(letter.event_id, None, None)
        try:
            hints = hints_of(letter)
            element = self._element(letter)
        except Exception as err:
            raise Rejected("decode", hints, err) from err
        return self._record(element, timestamp_us, hints)

    def _element(self, letter: DeadLetter) -> Any:
        return read_letter(letter, self._message, unpickle=self._spec.unpickle)

    def _raise_outages(self, records: Sequence[Record], results: Sequence[RecordResult]) -> None:
        outages = self._spec.on_exhausted == "raise"
        for (event_id, _, _, _), (_, _, failed, error, attempts) in zip(records, results, strict=True):
            if isinstance(error, (StoreUnavailable, SchemaMismatch)):
                raise error
            if outages and error is not None and not isinstance(error, PermanentError):
                reason = f"{type(error).__name__}: {error}"
                raise RetriesExhausted(self._spec.name, event_id, failed, attempts, reason) from error

    def _result(self, element: Any, record: Record, result: RecordResult) -> MergeResult | DeadLetter:
        event_id, event_time_us, entities, _ = record
        outcome = result.outcome
        if outcome is not None:
            if isinstance(element, DeadLetter):
                element = self._element(element)
            bucket = event_time_us // self._bucket_us if self._bucket_us else 0
            if result is MERGED or result is RECORDED:
                merged = entities
            else:
                merged = () if result is DUPLICATE else result.merged(entities)
            return tuple.__new__(MergeResult, (element, outcome, event_id, entities, merged, bucket))
        assert result.error is not None
        hints = RecordHints(event_id, event_time_us, entities)
        return self._letter(element, Failure("merge", result.error, hints, result.failed, result.attempts))

    def _letter(self, element: Any, failure: Failure) -> DeadLetter:
        name = self._spec.name
        self._recorder.record_event(f"{name}:dead_letter")
        return write_letter(element, name, failure, int(self._spec.config.clock.now() * 1_000_000))


_mergers: weakref.WeakSet[Merger[Any]] = weakref.WeakSet()


def _in_child() -> None:
    for merger in list(_mergers):
        merger.begin_again()


forks.in_each_child(_in_child)
