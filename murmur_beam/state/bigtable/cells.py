"""What the cells of a row hold: the aggregate, and when it expires."""

from __future__ import annotations

import struct
from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypeVar

from murmur_beam.clock import Clock
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import GRACE_S, undecodable
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.keys import parse_row_key
from murmur_beam.state.bigtable.layouts import LAYOUTS, NEWEST
from murmur_beam.state.bigtable.reading import Row

V = TypeVar("V")

EXPIRY_SLACK_US = 60_000_000
FOREVER_US = 2**62 // 1000 * 1000
"""Timestamp of the expiry of a row that is kept for ever."""
_new = tuple.__new__  # of a NamedTuple: half the time of calling the class
_INT64 = struct.Struct(">q")


class Value(NamedTuple):
    """A row's aggregate, None where there is none, and when it expires, in microseconds; None: never."""

    value: Any
    expires_us: int | None


class Content(NamedTuple):
    """What a read of a row says.

    Attributes:
        version: 0: none.
        column: the value as it is stored; None where there is none.
        expires_us: as it is stored; None: never, or nothing is stored.
        journal: columns of markers, and the fingerprints in each.
        pending: names of the cells that are yet to be folded, and what is in each.
    """

    version: int
    column: Any
    expires_us: int | None
    journal: list[tuple[bytes, bytes]]
    pending: list[tuple[bytes, bytes]]


class Cells(Generic[V]):
    """Makes cells of values, and values of cells.

    Args:
        monoid: whose values. Those of a sum are cells that the server adds to; others are put as they are encoded.
        granularity_us: length of a bucket, whose start is the timestamp of its cells; 0 without a window.
        clock: what decides about expiry.

    Attributes:
        sums: are values added by the server?
        layout, bucket_age_us, appended: of the table: how its rows are laid out, when garbage collection takes a bucket
            (None: never), and whether it is appended to; to be set once its record has been read.
    """

    def __init__(self, monoid: Monoid[V], granularity_us: int, clock: Clock) -> None:
        self.monoid = monoid
        self.sums = monoid.native == "sum"
        self.layout = LAYOUTS[NEWEST]
        self.bucket_age_us: int | None = None
        self.appended = False
        self._granularity_us = granularity_us
        self._clock = clock

    def encoded(self, value: V) -> Any:
        """A value as a cell holds it; a sum as it is."""
        return value if self.sums else self.monoid.encode(value)

    def decoded(self, key: bytes, column: Any) -> Any:
        """Inverse of `encoded`, in the row with this key.

        Raises:
            PermanentError: nothing that the monoid understands.
        """
        if self.sums:
            return column
        try:
            return self.monoid.decode(column)
        except Exception as err:
            raise undecodable(self.monoid, parse_row_key(key)[0], err) from err

    def column_of(self, data: bytes) -> Any:
        """A cell's bytes, as `encoded` makes them."""
        return int64(data) if self.sums else data

    def content_of(self, row: Row | None) -> Content:
        """What a read of a row says; None: the row does not exist."""
        version, column, expires_us = 0, None, None
        journal: list[tuple[bytes, bytes]] = []
        pending: list[tuple[bytes, bytes]] = []
        for family, qualifier, at_us, data in row.cells if row is not None else ():
            if family == wire.PENDING:
                pending.append((qualifier, data))
            elif family == wire.DEDUP:
                journal.append((qualifier, data))
            elif qualifier == wire.VERSION:
                version = int64(data)
            elif qualifier == wire.EXPIRY:
                expires_us = expiry(at_us)
            elif qualifier == wire.VALUE:
                column = self.column_of(data)
        return _new(Content, (version, column, expires_us, journal, pending))

    def live_until_us(self, bucket: int, stored_us: int | None, *, pending: bool) -> int | None:
        """When a row expires, in microseconds; None: never.

        A commit stores that. An append stores nothing: then the bucket and the table's record tell.

        Args:
            bucket: the row's.
            stored_us: when it expires, as it is stored; None: never, or nothing is stored.
            pending: does it hold pending deltas?
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
            exists: is there a row?
            known_us: when that one expires.
            ttl: how long the update wants it to be kept.
        """
        if ttl is None:
            return None
        expires_us = int((self._clock.now() + ttl.total_seconds()) * 1000) * 1000
        if expires_us >= FOREVER_US or (exists and known_us is None):
            return None
        # All flushes of a bucket mean the same time, but for their clocks.
        if known_us is not None and expires_us - known_us < EXPIRY_SLACK_US:
            return known_us
        return expires_us

    def changes(
        self, at_us: int, before: Any, after: Any, expired_us: int | None, expires_us: int | None
    ) -> list[bytes]:
        """The mutations that change value and expiry, where these are others.

        Args:
            at_us: timestamp of the bucket.
            before, after: as `encoded` makes them; None before the first.
            expired_us, expires_us: before and after.
        """
        made = []
        if after is None:
            pass  # a row that gets a version, and no value yet
        elif self.sums:
            made.append(wire.add(wire.VALUE, at_us, after - (before or 0)))
        elif after != before:
            made.append(wire.put(wire.STATE, wire.VALUE, at_us, after))
        if expires_us != expired_us:
            # As a timestamp: the newest cell is what is read, so that the latest expiry holds, whoever writes last.
            made.append(wire.put(wire.STATE, wire.EXPIRY, FOREVER_US if expires_us is None else expires_us, b""))
        return made


def int64(data: bytes) -> int:
    """What a cell says that the server adds to."""
    n: int = _INT64.unpack(data)[0]
    return n


def expiry(timestamp_us: int) -> int | None:
    """When a row expires whose cell of expiry has this timestamp."""
    return None if timestamp_us >= FOREVER_US else timestamp_us
