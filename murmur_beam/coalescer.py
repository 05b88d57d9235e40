"""Buffers a bundle's records, so that a flush writes each touched row once however many events it got."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Generic, TypeVar

from murmur_beam.errors import ConfigurationError
from murmur_beam.model import Fields
from murmur_beam.processor import Config, RecordResult, merge_records
from murmur_beam.state.base import Cache, Store
from murmur_beam.windows import WindowConfig

T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True)
class FlushLimits:
    """When the buffer is written out: at whichever limit is reached first, and at the end of a bundle.

    Args:
        events: buffered elements, at least 1: records, and elements that make none and become dead letters.
        rows: touched rows, at least 1.
        age: time since the first element was buffered, looked at when one is added.
        bytes: what the buffered elements carry, at least 1: the length of bytes and text, data and attributes of
            messages and dead letters. Dicts and other objects count as 0, since to measure them costs as much as to
            merge them; if they make no record, their dead letters count. So a buffer holds at most this and one
            element more; where a store waits for a network, as much again is being merged meanwhile.

    Raises:
        ConfigurationError: a limit that is not positive, or of another type.
    """

    events: int = 10_000
    rows: int = 10_000
    age: timedelta = timedelta(seconds=1)
    bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("events", "rows", "bytes"):
            limit = getattr(self, name)
            if type(limit) is not int or limit < 1:
                raise ConfigurationError(name, f"must be an integer of at least 1, got {limit!r:.80}")
        if not isinstance(self.age, timedelta) or self.age <= timedelta(0):
            raise ConfigurationError("age", f"must be a positive timedelta, got {self.age!r:.80}")


class Coalescer(Generic[T, V]):
    """Pending records, each with a token: whatever its driver needs to hand the result on.

    Elements that make no record stay with the driver, and count towards the limits as the records do.

    Belongs to one thread; only `merge` may be called from any.
    """

    def __init__(
        self,
        cfg: Config,
        pipeline_name: str,
        store: Store[V],
        cache: Cache[V] | None = None,
        window: WindowConfig | None = None,
        limits: FlushLimits | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self._cancel = cancel
        self._cfg = cfg
        self._name = pipeline_name
        self._store = store
        self._cache = cache
        self._window = window
        self._granularity_us = window.granularity_us if window else 0
        limits = limits or FlushLimits()
        self._max_events, self._max_rows, self._max_age_s = limits.events, limits.rows, limits.age.total_seconds()
        self._max_bytes = limits.bytes
        self._monotonic = cfg.clock.monotonic
        self._records: list[Fields] = []
        self._tokens: list[T] = []
        self._rows: set[tuple[str, int]] = set()
        self._rows_of = 0
        self._keys = 0
        self._count_rows_at = self._max_rows
        self._started_s = 0.0
        self._beside = 0
        self._bytes = 0
        # With so many records it is full: fewer by what is held beside them, and none once there are too many bytes.
        self._full_at = self._max_events

    def add(self, record: Fields, token: T, n_bytes: int = 0) -> bool:
        """Buffer a record; ``n_bytes`` is what its element carries. True says that it is time to flush."""
        if n_bytes:
            self._bytes += n_bytes
            if self._bytes >= self._max_bytes:
                self._full_at = 0
        records = self._records
        if not records and not self._beside:
            self._started_s = self._monotonic()
        records.append(record)
        self._tokens.append(token)
        self._keys += len(record[2])
        return (
            len(records) >= self._full_at
            or (self._keys >= self._count_rows_at and self._count_rows() >= self._max_rows)
            or self._monotonic() - self._started_s >= self._max_age_s
        )

    def count_beside(self, n_bytes: int) -> bool:
        """Count an element that makes no record and is held elsewhere. True says that it is time to flush."""
        if not self._records and not self._beside:
            self._started_s = self._monotonic()
        self._beside += 1
        self._full_at -= 1
        self._bytes += n_bytes
        if self._bytes >= self._max_bytes:
            self._full_at = 0
        return len(self._records) >= self._full_at or self._monotonic() - self._started_s >= self._max_age_s

    def _count_rows(self) -> int:
        """Touched rows; counted only now and then, since they are never more than the keys that were added."""
        bucket_us = self._granularity_us
        self._rows |= {
            (entity, event_time_us // bucket_us if bucket_us else 0)
            for _, event_time_us, entities, _ in islice(self._records, self._rows_of, None)
            for entity in entities
        }
        self._rows_of = len(self._records)
        rows = len(self._rows)
        self._count_rows_at = self._keys + self._max_rows - rows
        return rows

    def take(self) -> tuple[list[Fields], list[T]]:
        """Hand over what is pending, records and tokens, in the order they were added."""
        taken = self._records, self._tokens
        self.clear()
        return taken

    def merge(self, records: Sequence[Fields]) -> list[RecordResult]:
        """Merge what was taken; the result of each.

        Raises:
            MergeCancelled: ``cancel`` was set, and not all has merged at the first try.
        """
        if not records:
            return []
        started_s = self._monotonic()
        results = merge_records(
            self._cfg, self._name, records, self._store, self._cache, self._window, cancel=self._cancel
        )
        self._cfg.recorder.record_batch(self._name, "flush", len(records), self._monotonic() - started_s)
        return results

    def clear(self) -> None:
        """Forget what is pending, as when its bundle has failed and will come again."""
        self._records, self._tokens = [], []
        self._rows.clear()
        self._rows_of = self._keys = self._beside = self._bytes = 0
        self._count_rows_at, self._full_at = self._max_rows, self._max_events
