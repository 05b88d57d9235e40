"""Buffers elements and their records, so that a flush writes each touched row once however many events it got."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Annotated, Any, Generic, TypeVar

from murmur_beam.durations import parse_duration
from murmur_beam.model import DeadLetter, Record
from murmur_beam.option import Option, at_least, check_options, documented, number, positive_duration

T = TypeVar("T")


@documented
@dataclass(frozen=True)
class FlushLimits:
    """When the buffer is written: when the first limit is reached, and at the end of a bundle.

    An element that becomes a dead letter counts as a record. The age is checked when an element is added. The size is
    the length of bytes and text, and of data and attributes of messages and dead letters. Dicts and other objects count
    as 0, since measuring them costs as much as merging them; if they make no record, their dead letters count. So a
    buffer holds at most this size and one element more; if the store waits for a network, as much again is being merged
    meanwhile.

    Raises:
        ConfigurationError: a limit that is not positive, or of another type.
    """

    events: Annotated[int, Option("write after this number of records", "N", number, at_least(1))] = 10_000
    rows: Annotated[int, Option("write after this number of touched rows", "N", number, at_least(1))] = 10_000
    age: Annotated[
        timedelta, Option("write this long after the first record", "DURATION", parse_duration, positive_duration)
    ] = timedelta(seconds=1)
    bytes: Annotated[
        int, Option("write after this number of bytes of bytes, text and messages", "N", number, at_least(1))
    ] = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Batch(Generic[T]):
    """What is merged together.

    Attributes:
        elements, tokens, records: of each element that made a record.
        rejected: token and dead letter of each element that made none.
    """

    elements: list[Any]
    tokens: list[T]
    records: list[Record]
    rejected: list[tuple[T, DeadLetter]]


class Buffer(Generic[T]):
    """Collects a batch, and knows when to write it.

    Args:
        limits: when that is.
        bucket_us: length of a time bucket, microseconds; 0 without a window.
        monotonic: a clock, seconds.
    """

    def __init__(self, limits: FlushLimits, bucket_us: int, monotonic: Callable[[], float]) -> None:
        self._max_events, self._max_rows, self._max_age_s = limits.events, limits.rows, limits.age.total_seconds()
        self._max_bytes = limits.bytes
        self._bucket_us = bucket_us
        self._monotonic = monotonic
        self._begin()

    def _begin(self) -> None:
        self._elements: list[Any] = []
        self._tokens: list[T] = []
        self._records: list[Record] = []
        self._rejected: list[tuple[T, DeadLetter]] = []
        self._rows: set[tuple[str, int]] = set()
        self._rows_of = self._keys = self._bytes = 0
        self._count_rows_at = self._max_rows
        self._started_s = 0.0
        # Full at this number of records: fewer by the number of dead letters, and 0 once there are too many bytes.
        self._full_at = self._max_events

    def add(self, element: Any, token: T, record: Record, n_bytes: int) -> bool:
        """Add an element of ``n_bytes`` that made a record. Returns whether it is time to flush."""
        if n_bytes:
            self._bytes += n_bytes
            if self._bytes >= self._max_bytes:
                self._full_at = 0
        records = self._records
        if not records and not self._rejected:
            self._started_s = self._monotonic()
        records.append(record)
        self._elements.append(element)
        self._tokens.append(token)
        self._keys += len(record[2])
        return (
            len(records) >= self._full_at
            or (self._keys >= self._count_rows_at and self._count_rows() >= self._max_rows)
            or self._monotonic() - self._started_s >= self._max_age_s
        )

    def reject(self, letter: DeadLetter, token: T, n_bytes: int) -> bool:
        """Add the dead letter of an element of ``n_bytes`` that made no record. Returns whether it is time to flush."""
        if not self._records and not self._rejected:
            self._started_s = self._monotonic()
        self._rejected.append((token, letter))
        self._full_at -= 1
        self._bytes += n_bytes
        if self._bytes >= self._max_bytes:
            self._full_at = 0
        return len(self._records) >= self._full_at or self._monotonic() - self._started_s >= self._max_age_s

    @property
    def only_rejected(self) -> bool:
        """Whether it holds dead letters, and nothing to merge."""
        return bool(self._rejected) and not self._records

    def take(self) -> Batch[T]:
        """Hand over what is buffered, in the order of its addition, and begin again."""
        taken = Batch(self._elements, self._tokens, self._records, self._rejected)
        self._begin()
        return taken

    def _count_rows(self) -> int:
        """Number of touched rows; counted now and then only, since it is at most the number of keys that were added."""
        bucket_us = self._bucket_us
        self._rows |= {
            (entity, event_time_us // bucket_us if bucket_us else 0)
            for _, event_time_us, entities, _ in islice(self._records, self._rows_of, None)
            for entity in entities
        }
        self._rows_of = len(self._records)
        rows = len(self._rows)
        self._count_rows_at = self._keys + self._max_rows - rows
        return rows
