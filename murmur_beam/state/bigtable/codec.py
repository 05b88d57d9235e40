"""The cells of a row: the aggregate, its version and expiry, markers, and pending deltas."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypeVar

from murmur_beam.clock import Clock
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import GRACE_S, undecodable
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.keys import parse_row_key
from murmur_beam.state.bigtable.layouts import LAYOUTS, NEWEST
from murmur_beam.state.bigtable.read_rows import Row
from murmur_beam.state.bigtable.value_cells import ValueCells, int64

V = TypeVar("V")

EXPIRY_SLACK_US = 60_000_000
FOREVER_US = 2**62 // 1000 * 1000
"""Timestamp of the expiry of a row that never expires."""


class Value(NamedTuple):
    """A row's aggregate, None where there is none, and when it expires, in microseconds; None: never."""

    value: Any
    expires_us: int | None


class Content(NamedTuple):
    """What a read of a row says.

    Attributes:
        version: 0 if there is none.
        stored: the value as its cell holds it; None if there is none.
        expires_us: as it is stored; None: never, or nothing is stored.
        markers: qualifiers of the marker columns, and the fingerprints in each.
        pending: names of the cells that are not folded yet, and the value of each.
    """

    version: int
    stored: Any
    expires_us: int | None
    markers: list[tuple[bytes, bytes]]
    pending: list[tuple[bytes, bytes]]


class RowCodec(Generic[V]):
    """Encodes values as the cells of a row, and decodes them.

    Args:
        monoid: whose values. The server adds to the cells of a sum; other values are put as they are encoded.
        granularity_us: length of a bucket, whose start is the timestamp of its cells; 0 without a window.
        clock: decides what has expired.

    Attributes:
        cells: of the values.
        sums: whether a value is one sum.
        layout, bucket_age_us, appended: of the table: how its rows are laid out, when garbage collection takes a bucket
            (None: never), and whether it is appended to; to be set once its record has been read.
    """

    def __init__(self, monoid: Monoid[V], granularity_us: int, clock: Clock) -> None:
        self.monoid = monoid
        self.cells = ValueCells(monoid)
        self.sums = self.cells.sums
        self.layout = LAYOUTS[NEWEST]
        self.bucket_age_us: int | None = None
        self.appended = False
        self._granularity_us = granularity_us
        self._clock = clock

    def encoded(self, value: V) -> Any:
        """A value as its cells hold it; a sum as it is."""
        return self.cells.encoded(value)

    def decoded(self, key: bytes, stored: Any) -> Any:
        """Inverse of `encoded`, in the row with this key.

        Raises:
            PermanentError: the monoid cannot decode it.
        """
        try:
            return self.cells.decoded(stored)
        except Exception as err:
            raise undecodable(self.monoid, parse_row_key(key)[0], err) from err

    def content_of(self, row: Row | None) -> Content:
        """What a read of a row says; None: the row does not exist."""
        version, stored, expires_us = 0, None, None
        markers: list[tuple[bytes, bytes]] = []
        pending: list[tuple[bytes, bytes]] = []
        for family, qualifier, at_us, data in row.cells if row is not None else ():
            if family == wire.PENDING:
                pending.append((qualifier, data))
            elif family == wire.DEDUP:
                markers.append((qualifier, data))
            elif qualifier == wire.VERSION and family == self.layout.version_family:
                version = int64(data)
            elif qualifier == wire.EXPIRY and family == wire.STATE:
                expires_us = expiry(at_us)
            else:
                stored = self.cells.read(stored, family, qualifier, data)
        return Content(version, stored, expires_us, markers, pending)

    def live_until_us(self, bucket: int, stored_us: int | None, *, pending: bool) -> int | None:
        """When a row expires, in microseconds; None: never.

        A commit stores the time. An append does not: then it follows from the bucket and the table's record.

        Args:
            bucket: the row's.
            stored_us: when it expires, as it is stored; None: never, or nothing is stored.
            pending: whether it holds pending deltas.
        """
        if self.bucket_age_us is None or (stored_us is not None and not (pending or self.appended)):
            return stored_us
        by_bucket_us = bucket * self._granularity_us + self.bucket_age_us - int(GRACE_S * 1e6)
        return by_bucket_us if stored_us is None else max(stored_us, by_bucket_us)

    def start_us(self, bucket: int) -> int:
        """Timestamp of the cells of a bucket: its start, so that garbage collection by age takes whole buckets."""
        return max(0, bucket * self._granularity_us) // 1000 * 1000

    def expires_us(self, exists: bool, known_us: int | None, ttl: timedelta | None) -> int | None:
        """When a row will expire, never earlier than it would; None: never.

        Args:
            exists: whether there is a row.
            known_us: when that row expires.
            ttl: how long the update wants the row to be kept.
        """
        if ttl is None:
            return None
        expires_us = int((self._clock.now() + ttl.total_seconds()) * 1000) * 1000
        if expires_us >= FOREVER_US or (exists and known_us is None):
            return None
        # All batches of a bucket mean the same time; only their clocks differ.
        if known_us is not None and expires_us - known_us < EXPIRY_SLACK_US:
            return known_us
        return expires_us

    def changes(
        self, at_us: int, before: Any, after: Any, expired_us: int | None, expires_us: int | None
    ) -> list[bytes]:
        """The mutations that change value and expiry; none where they stay as they are.

        Args:
            at_us: timestamp of the bucket.
            before, after: values as `encoded` makes them; None before the first.
            expired_us, expires_us: the row's expiry before and after.
        """
        # A row may get a version, and no value yet.
        made = [] if after is None else self.cells.changes(at_us, before, after)
        if expires_us != expired_us:
            # The expiry is a timestamp: a read takes the newest cell, so the latest expiry holds.
            made.append(wire.put(wire.STATE, wire.EXPIRY, FOREVER_US if expires_us is None else expires_us, b""))
        return made


def expiry(timestamp_us: int) -> int | None:
    """The expiry that the timestamp of an expiry cell stands for; None: never."""
    return None if timestamp_us >= FOREVER_US else timestamp_us
