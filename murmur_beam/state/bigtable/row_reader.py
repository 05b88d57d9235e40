"""Reads what rows are worth: the aggregate, folded with the delta of each pending event that has no marker.

Aggregate and markers are functions of the row's version. So the pending cells of one read may be compared with the
markers of another read, if the version is the same. Readers remember markers, and read only those of later versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from murmur_beam.errors import PermanentError, SchemaMismatch
from murmur_beam.state.bigtable import pending, wire
from murmur_beam.state.bigtable.codec import Content, RowCodec, Value
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.fingerprints import Known
from murmur_beam.state.bigtable.keys import parse_row_key
from murmur_beam.state.bigtable.read_rows import Row
from murmur_beam.state.bigtable.row_cache import CachedRow, RowCache
from murmur_beam.state.bigtable.spec import BigtableSpec

V = TypeVar("V")

ROWS_PER_READ = 1_000
_ROWS_WITH_MARKERS = 64
"""Rows of a read that brings all of their markers."""
_READS_WITH_MARKERS = 8
"""Such reads under way at once."""


class RowReader(Generic[V]):
    """Reads rows.

    Args:
        spec: which table, and how many markers are remembered.
        connection: to the table.
        codec: of its rows.
    """

    def __init__(self, spec: BigtableSpec, connection: Connection, codec: RowCodec[V]) -> None:
        self._connection = connection
        self._codec = codec
        self._rows = RowCache(spec.max_cached_events)
        self._reading = asyncio.Semaphore(_READS_WITH_MARKERS)

    async def read(self, keys: Sequence[bytes], *, fresh: bool) -> dict[bytes, Value]:
        """Read rows; the values of those that exist, by key.

        Args:
            keys: of rows.
            fresh: with the deltas that are not folded yet.

        Raises:
            PermanentError: the monoid cannot decode a value.
            SchemaMismatch: a row was written by a later release.
        """
        found: dict[bytes, Value] = {}
        for some in wire.batches(keys, ROWS_PER_READ):
            request = wire.only_values(wire.read_rows(self._connection, some), self._codec.layout.read)
            rows = await self._connection.read(request)
            found |= await self.united(rows) if fresh else {row.key: self.at_last_fold(row) for row in rows}
        return found

    def at_last_fold(self, row: Row) -> Value:
        """What a row was worth at its last fold; or is worth now if it was never folded. See `read`."""
        content = self._codec.content_of(row)
        if content.pending and content.stored is not None and not self._codec.monoid.idempotent:
            content = content._replace(pending=[])
        return self._value_of(row.key, content, None)

    async def united(self, rows: Sequence[Row]) -> dict[bytes, Value]:
        """What rows are worth with their pending deltas, by key; see `read`."""
        found: dict[bytes, Value] = {}
        known: list[bytes] = []
        unknown: list[bytes] = []
        for row in rows:
            content = self._codec.content_of(row)
            if not content.pending or self._codec.monoid.idempotent or content.stored is None:
                # A row without a value was never folded, so it has no markers.
                found[row.key] = self._value_of(row.key, content, None)
            elif row.key not in self._rows:
                unknown.append(row.key)
            elif content.version == 0 or self._rows[row.key].version != content.version:
                known.append(row.key)  # a scan reads rows without their version
            else:
                found[row.key] = self._value_of(row.key, content, self._rows[row.key].known)
        parts = [*([key] for key in known), *wire.batches(unknown, _ROWS_WITH_MARKERS)]
        for some in await asyncio.gather(*map(self._read_marked, parts)):
            found |= some
        return found

    async def _read_marked(self, keys: Sequence[bytes]) -> dict[bytes, Value]:
        """Read rows with their markers: of one row those of commits that are not known yet, of several rows all."""
        found: dict[bytes, Value] = {}
        rows = {key: self._rows.borrow(key) for key in keys}
        try:
            async with self._reading:
                while left := [key for key in keys if key not in found]:
                    since = rows[left[0]].version if len(left) == 1 else 0
                    request = wire.only_news(wire.read_rows(self._connection, left), since, self._codec.layout.read)
                    by_key = {row.key: row for row in await self._connection.read(request)}
                    for key in left:
                        content = self._codec.content_of(by_key.get(key))
                        if _knows(rows[key], content, since):
                            found[key] = self._value_of(key, content, rows[key].known)
        finally:
            for row in rows.values():
                self._rows.give_back(row)
        return found

    def _value_of(self, key: bytes, content: Content, known: Known | None) -> Value:
        """The aggregate with the pending deltas folded into it.

        Args:
            key: of the row.
            content: of the row.
            known: finds events of which the row has a marker; None: it has no markers.

        Raises:
            PermanentError, SchemaMismatch: see `read`.
        """
        bucket = parse_row_key(key)[0].bucket if self._codec.bucket_age_us is not None else 0
        expires_us = self._codec.live_until_us(bucket, content.expires_us, pending=bool(content.pending))
        value = None if content.stored is None else self._codec.decoded(key, content.stored)
        if not content.pending:
            return Value(value, expires_us)
        try:
            deltas = _deltas(self._codec.monoid, content, known)
        except SchemaMismatch as err:
            raise SchemaMismatch(f"the row of {parse_row_key(key)[0].entity!r:.80}: {err}") from err
        except Exception as err:
            raise PermanentError(
                f"the row of {parse_row_key(key)[0].entity!r:.80} has a pending delta that is not a "
                f"{self._codec.monoid.name}: {type(err).__name__}: {err}"
            ) from err
        return Value(_folded(self._codec.monoid, value, deltas), expires_us)


def _knows(row: CachedRow, content: Content, since: int) -> bool:
    """Learn what a read says of all commits after a version; False if the row must be read again."""
    if row.read and row.version == content.version:
        return True
    if since == 0:
        row.forget()
    elif row.version != since:
        return False  # another read has learned more meanwhile
    return row.absorb(content.version, content.markers, exists=content.version > 0)


def _deltas(monoid: Any, content: Content, known: Known | None) -> Sequence[Any]:
    """The deltas of events without a marker, one for each."""
    values = [data for _, data in content.pending]
    if monoid.idempotent:
        return [delta for value in values for delta in pending.decoded(monoid, value).deltas]
    if known is None and len(values) == 1:
        return pending.decoded(monoid, values[0]).deltas
    events = pending.united(monoid, values)
    for event in known(events) if known is not None else ():
        del events[event]
    return list(events.values())


def _folded(monoid: Any, value: Any, deltas: Sequence[Any]) -> Any:
    """The aggregate with these deltas, however large it gets; without those that the monoid cannot combine."""
    if value is None and not deltas:
        return None
    before = [] if value is None else [value]
    try:
        return monoid.total([*before, *deltas])
    except Exception:  # a user's combine may raise anything
        folded = monoid.fold(before)
        for delta in deltas:
            try:
                folded = monoid.combine(folded, delta)
            except Exception:
                continue
        return folded
