"""What every driver does with its elements: read, buffer, merge, and tell what became of each. Needs no Beam.

`MergeDoFn` drives it bundle by bundle, a plain subscriber batch by batch. What either owes its source stays its own:
windows here, acknowledgements there.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

from murmur_beam import forks
from murmur_beam.coalescer import Coalescer
from murmur_beam.deadletter import Failure, known_of, read_letter, write_letter
from murmur_beam.errors import PermanentError, RetriesExhausted, SchemaMismatch, StoreUnavailable
from murmur_beam.extract import Extractor, Known, Rejected
from murmur_beam.gc_tuning import freeze_startup_objects
from murmur_beam.metrics import Recorder
from murmur_beam.model import DeadLetter, Fields, MergeResult, Message, Outcome
from murmur_beam.processor import DUPLICATE, MERGED, RECORDED, RecordResult, needs_event_id
from murmur_beam.spec import MergeSpec
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
    """Bytes that an element carries, as `FlushLimits.bytes` counts them; the characters of a text count as one each.

    0 for what is neither bytes, text, message nor dead letter.
    """
    if isinstance(element, (bytes, str)):
        return len(element)
    try:
        data = element.payload if isinstance(element, DeadLetter) else element.data
        attributes = element.attributes or {}
        return len(data or b"") + sum(map(len, attributes)) + sum(map(len, attributes.values()))
    except Exception:  # no message; whatever looks like one may raise anything
        return 0


@dataclass(frozen=True)
class _Batch(Generic[T]):
    """What is merged together: of what made a record the element, token and record; of the rest the dead letters."""

    elements: list[Any]
    tokens: list[T]
    records: list[Fields]
    rejected: list[tuple[T, DeadLetter]]


class RecordCounter(Recorder, Protocol):
    """A recorder that also counts whole records."""

    def count(self, name: str, n: int) -> None:
        """``n`` records ended as ``name`` says: ``NAME:record_merged``, ``:record_duplicate``, ``:record_recorded``,
        ``:record_expired``."""


class Merger(Generic[T]):
    """Takes elements one by one, merges them with one write per touched row, and tells what became of each.

    Elements may be dead letters of an earlier run: of those only the keys that had failed are merged. Each element has
    a token: whatever its driver needs to hand the result on. Belongs to one thread, and has one more of its own where a
    store has ``waits_for_network``: there `flush_behind` merges while the driver goes on. In a child of a fork it is
    empty: what was buffered or under way is its parent's to merge.

    Args:
        spec: from `murmur_beam.spec.resolve`; its stores are opened here, one for each process.
        recorder: gets the counts, in place of the recorder in the spec; of a flush behind from the other thread.
        message: makes the driver's kind of message from a dead letter that holds one.
        cancel: set it, from any thread, and what fails is not tried again: the flush raises `MergeCancelled`, whose
            elements are to be delivered again.

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
        config = spec.config.with_recorder(recorder)
        extractor = Extractor(
            spec.extraction,
            spec.monoid,
            need_id=needs_event_id(config, spec.monoid),
            need_time=spec.window is not None or spec.monoid.needs_event_time,
        )
        self._record = extractor.record
        self._bucket_us = spec.window.granularity_us if spec.window else 0
        self._under_way: tuple[_Batch[T], Future[list[RecordResult]]] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._leases: list[Lease] = []
        try:
            for store in filter(None, (spec.store, spec.cache)):
                self._leases.append(Lease(store, spec.aggregate, spec.granularity))
        except BaseException:
            self.close()
            raise
        # A cache is a store with one method more, and `check_stores` has seen to it that it has that.
        cache: Any = self._leases[1].store if spec.cache is not None else None
        self._coalescer: Coalescer[T, Any] = Coalescer(
            config, spec.name, self._leases[0].store, cache, spec.window, spec.flush, cancel
        )
        self._behind = getattr(self._leases[0].store, "waits_for_network", False)
        self._buffer = self._coalescer.add
        self._elements: list[Any] = []
        self._rejected: list[tuple[T, DeadLetter]] = []
        _mergers.add(self)
        freeze_startup_objects()

    def add(self, element: Any, timestamp_us: int, token: T) -> bool:
        """Buffer an element; True says that it is time to flush.

        Args:
            element: as it came, or a dead letter that holds it.
            timestamp_us: its time unless a field says otherwise, in microseconds.
            token: comes out of a flush again.
        """
        try:
            # By its fields: a Beam worker decodes letters from elsewhere to a type made of their schema.
            if isinstance(element, tuple) and getattr(element, "_fields", None) == DeadLetter._fields:
                element = DeadLetter(*element)
                record = self._replayed(element, timestamp_us)
            else:
                record = self._record(element, timestamp_us)
        except Rejected as rejected:
            letter = self._letter(element, Failure(rejected.stage, rejected.error, rejected.known))
            self._rejected.append((token, letter))
            return self._coalescer.count_beside(size_of(letter))
        self._elements.append(element)
        kind = type(element)
        if kind is dict:
            return self._buffer(record, token)
        return self._buffer(record, token, len(element) if kind is bytes else size_of(element))

    def flush(self) -> Iterator[tuple[T, MergeResult | DeadLetter]]:
        """Merge what is buffered; token and result of each element, those of a flush behind before the others.

        All is merged when this returns; only the results are made one by one as they are taken.

        Raises:
            StoreUnavailable, SchemaMismatch: the store cannot be used as configured, which is no fault of any record,
                so that none becomes a dead letter.
            RetriesExhausted: all tries of a record were used up, and the spec says ``on_exhausted="raise"``.
            MergeCancelled: ``cancel`` is set, and not all could be merged at once.
        """
        batch = self._take()
        before = self._settle()
        return chain(before, self._results(batch, self._coalescer.merge(batch.records)))

    def flush_behind(self) -> Iterator[tuple[T, MergeResult | DeadLetter]]:
        """Begin to merge what is buffered, and return what the flush behind before this one has come to.

        So at most two buffers are held. Where merging means no waiting, and where there is nothing to merge but dead
        letters to put out, this is `flush`.

        Raises:
            Exception: as `flush`, of the one before.
        """
        if not self._behind or (self._rejected and not self._elements):
            return self.flush()
        batch = self._take()
        before = self._settle()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "murmur-flush")
        self._under_way = batch, self._thread.submit(self._coalescer.merge, batch.records)
        return before

    def clear(self) -> None:
        """Forget what is buffered or under way, as when it will be delivered again."""
        self._take()
        if self._under_way is not None:
            # What comes again while this is being merged would be merged at the same time.
            wait([self._under_way[1]])
            self._under_way = None

    def close(self) -> None:
        """Wait for a flush that is under way, then release the stores; the last user in the process closes them."""
        if self._thread is not None:
            self._thread.shutdown()
        for lease in self._leases:
            lease.release()

    def begin_anew(self) -> None:
        """In a child of a fork, which has neither the thread nor a right to what it works at."""
        self._take()
        self._thread = self._under_way = None

    def _take(self) -> _Batch[T]:
        records, tokens = self._coalescer.take()
        batch = _Batch(self._elements, tokens, records, self._rejected)
        self._elements, self._rejected = [], []
        return batch

    def _settle(self) -> Iterator[tuple[T, MergeResult | DeadLetter]]:
        """Wait for the flush that is under way; its results, none where there is no such flush."""
        if self._under_way is None:
            return iter(())
        batch, merging = self._under_way
        wait([merging])
        self._under_way = None
        return self._results(batch, merging.result())

    def _results(
        self, batch: _Batch[T], results: Sequence[RecordResult]
    ) -> Iterator[tuple[T, MergeResult | DeadLetter]]:
        outcomes = [outcome for outcome, _, _, _, _ in results]
        if None in outcomes:
            self._raise_outages(batch.records, results)
        left = len(outcomes)
        for outcome in Outcome:
            n = outcomes.count(outcome) if left else 0
            left -= n
            self._recorder.count(f"{self._spec.name}:record_{outcome}", n)
        # Made one by one while they are taken, so that they do not pile up for the garbage collector.
        merged = map(self._result, batch.elements, batch.records, results)
        return chain(batch.rejected, zip(batch.tokens, merged, strict=True))

    def _replayed(self, letter: DeadLetter, timestamp_us: int) -> Fields:
        known = Known(letter.event_id, None, None)
        try:
            known = known_of(letter)
            element = self._element(letter)
        except Exception as err:
            raise Rejected("decode", known, err) from err
        return self._record(element, timestamp_us, known)

    def _element(self, letter: DeadLetter) -> Any:
        return read_letter(letter, self._message, unpickle=self._spec.unpickle)

    def _raise_outages(self, records: Sequence[Fields], results: Sequence[RecordResult]) -> None:
        outages = self._spec.on_exhausted == "raise"
        for (event_id, _, _, _), (_, _, failed, error, attempts) in zip(records, results, strict=True):
            if isinstance(error, (StoreUnavailable, SchemaMismatch)):
                raise error
            if outages and error is not None and not isinstance(error, PermanentError):
                reason = f"{type(error).__name__}: {error}"
                raise RetriesExhausted(self._spec.name, event_id, failed, attempts, reason) from error

    def _result(self, element: Any, record: Fields, result: RecordResult) -> MergeResult | DeadLetter:
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
        known = Known(event_id, event_time_us, entities)
        return self._letter(element, Failure("merge", result.error, known, result.failed, result.attempts))

    def _letter(self, element: Any, failure: Failure) -> DeadLetter:
        name = self._spec.name
        self._recorder.record_event(f"{name}:dead_letter")
        return write_letter(element, name, failure, int(self._spec.config.clock.now() * 1_000_000))


_mergers: weakref.WeakSet[Merger[Any]] = weakref.WeakSet()


def _in_child() -> None:
    for merger in list(_mergers):
        merger.begin_anew()


forks.in_each_child(_in_child)
