"""What every driver does with its elements: read, buffer, merge, and tell what became of each. Needs no Beam.

`MergeDoFn` drives it bundle by bundle, a plain subscriber batch by batch. What either owes its source stays its own:
windows here, acknowledgements there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from murmur_beam.coalescer import Coalescer
from murmur_beam.deadletter import Failure, known_of, read_letter, write_letter
from murmur_beam.errors import PermanentError, RetriesExhausted, SchemaMismatch, StoreUnavailable
from murmur_beam.extract import Extractor, Known, Rejected, parse_rfc3339
from murmur_beam.metrics import Recorder
from murmur_beam.model import DeadLetter, MergeResult, Outcome, Record
from murmur_beam.processor import RecordResult, needs_event_id
from murmur_beam.spec import MergeSpec
from murmur_beam.state.pool import Lease

T = TypeVar("T")


class Message(NamedTuple):
    """A Pub/Sub message, for drivers that have no class of their own for it."""

    data: bytes
    attributes: Mapping[str, str]
    message_id: str | None
    publish_time: datetime | None
    ordering_key: str | None

    @classmethod
    def of_letter(cls, letter: DeadLetter) -> Message:
        """The message that a letter of type "pubsub" holds."""
        return cls(
            letter.payload,
            dict(letter.attributes),
            letter.message_id,
            (letter.publish_time and parse_rfc3339(letter.publish_time)) or None,
            letter.ordering_key,
        )


class RecordCounter(Recorder, Protocol):
    """A recorder that also counts whole records."""

    def count(self, name: str, n: int) -> None:
        """``n`` records ended as ``name`` says: ``NAME:record_merged``, ``:record_duplicate``, ``:record_expired``."""


class Merger(Generic[T]):
    """Takes elements one by one, merges them with one write per touched row, and tells what became of each.

    Elements may be dead letters of an earlier run: of those only the keys that had failed are merged. Each element has
    a token: whatever its driver needs to hand the result on. Not thread-safe.

    Args:
        spec: from `murmur_beam.spec.resolve`; its stores are opened here, one for each process.
        recorder: gets the counts, in place of the recorder in the spec.
        message: makes the driver's kind of message from a dead letter that holds one.

    Raises:
        MurmurError: a store cannot be opened.
    """

    def __init__(
        self, spec: MergeSpec, recorder: RecordCounter, message: Callable[[DeadLetter], Any] = Message.of_letter
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
        self._leases: list[Lease] = []
        try:
            for store in filter(None, (spec.store, spec.cache)):
                self._leases.append(Lease(store, spec.monoid, spec.granularity))
        except BaseException:
            self.close()
            raise
        # A cache is a store with one method more, and `check_stores` has seen to it that it has that.
        cache: Any = self._leases[1].store if spec.cache is not None else None
        self._coalescer: Coalescer[T, Any] = Coalescer(
            config, spec.name, self._leases[0].store, cache, spec.window, spec.flush
        )
        self._elements: list[Any] = []
        self._rejected: list[tuple[T, DeadLetter]] = []

    def add(self, element: Any, timestamp_us: int, token: T) -> bool:
        """Buffer an element; True says that it is time to flush.

        Args:
            element: as it came, or a dead letter that holds it.
            timestamp_us: its time unless a field says otherwise, in microseconds.
            token: comes out of `flush` again.
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
            return len(self._rejected) >= self._spec.flush.events
        self._elements.append(element)
        return self._coalescer.add(record, token)

    def flush(self) -> Iterator[tuple[T, MergeResult | DeadLetter]]:
        """Merge what is buffered; token and result of each element.

        All is merged when this returns; only the results are made one by one as they are taken.

        Raises:
            StoreUnavailable, SchemaMismatch: the store cannot be used as configured, which is no fault of any record,
                so that none becomes a dead letter.
            RetriesExhausted: all tries of a record were used up, and the spec says ``on_exhausted="raise"``.
        """
        elements, rejected = self._elements, self._rejected
        self._elements, self._rejected = [], []
        flushed = self._coalescer.flush()
        outcomes = [result.outcome for _, _, result in flushed]
        if None in outcomes:
            self._raise_outages(flushed)
        for outcome in Outcome:
            self._recorder.count(f"{self._spec.name}:record_{outcome}", outcomes.count(outcome))
        # Made one by one while they are taken, so that they do not pile up for the garbage collector.
        merged = (
            (token, self._result(element, record, result))
            for element, (token, record, result) in zip(elements, flushed, strict=True)
        )
        return chain(rejected, merged)

    def clear(self) -> None:
        """Forget what is buffered, as when it will be delivered again."""
        self._elements, self._rejected = [], []
        self._coalescer.clear()

    def close(self) -> None:
        """Close the stores, unless somebody else in this process uses them."""
        for lease in self._leases:
            lease.release()

    def _replayed(self, letter: DeadLetter, timestamp_us: int) -> Record:
        known = Known(letter.event_id, None, None)
        try:
            known = known_of(letter)
            element = self._element(letter)
        except Exception as err:
            raise Rejected("decode", known, err) from err
        return self._record(element, timestamp_us, known)

    def _element(self, letter: DeadLetter) -> Any:
        return read_letter(letter, self._message, unpickle=self._spec.unpickle)

    def _raise_outages(self, flushed: Sequence[tuple[T, Record, RecordResult]]) -> None:
        outages = self._spec.on_exhausted == "raise"
        for _, record, (_, _, failed, error, attempts) in flushed:
            if isinstance(error, (StoreUnavailable, SchemaMismatch)):
                raise error
            if outages and error is not None and not isinstance(error, PermanentError):
                reason = f"{type(error).__name__}: {error}"
                raise RetriesExhausted(self._spec.name, record.event_id, failed, attempts, reason) from error

    def _result(self, element: Any, record: Record, result: RecordResult) -> MergeResult | DeadLetter:
        outcome, _, failed, error, attempts = result
        event_id, event_time_us, entities, _ = record
        if outcome is not None:
            if isinstance(element, DeadLetter):
                element = self._element(element)
            bucket = event_time_us // self._bucket_us if self._bucket_us else 0
            return MergeResult(element, outcome, event_id, entities, result.merged(entities), bucket)
        assert error is not None
        known = Known(event_id, event_time_us, entities)
        return self._letter(element, Failure("merge", error, known, failed, attempts))

    def _letter(self, element: Any, failure: Failure) -> DeadLetter:
        name = self._spec.name
        self._recorder.record_event(f"{name}:dead_letter")
        return write_letter(element, name, failure, int(self._spec.config.clock.now() * 1_000_000))
