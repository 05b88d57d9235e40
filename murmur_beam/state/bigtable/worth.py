"""What a row is worth: its aggregate, folded with the delta of each pending event that has no marker.

Aggregate and markers follow from the row's version. So what is pending in one read may be held against markers of
another, if the version is the same. Readers remember markers, and read only those of later versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from murmur_beam.errors import PermanentError, SchemaMismatch
from murmur_beam.state.bigtable import pending, wire
from murmur_beam.state.bigtable.cells import Cells, Content, Value
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.keys import parse_row_key
from murmur_beam.state.bigtable.known import KnownRow, KnownRows
from murmur_beam.state.bigtable.reading import Row
from murmur_beam.state.bigtable.settings import Settings

V = TypeVar("V")

ROWS_PER_READ = 1_000
_WITH_MARKERS = 64
"""Rows of a read that brings all of their markers."""
_READS = 8
"""Such reads at a time."""


class Worth(Generic[V]):
    """Reads rows.

    Args:
        settings: which table, and how many markers are remembered.
        connection: to it.
        cells: what it holds.
    """

    def __init__(self, settings: Settings, connection: Connection, cells: Cells[V]) -> None:
        self._connection = connection
        self._cells = cells
        self._rows = KnownRows(settings.max_known_events)
        self._reading = asyncio.Semaphore(_READS)

    async def read(self, keys: Sequence[bytes], *, fresh: bool) -> dict[bytes, Value]:
        """Read these rows; those that exist, by key.

        Args:
            keys: of rows.
            fresh: also what is not folded yet, if anything is.

        Raises:
            PermanentError: one holds what the monoid does not understand.
            SchemaMismatch: one was written by a later release.
        """
        found: dict[bytes, Value] = {}
        for some in wire.batches(keys, ROWS_PER_READ):
            request = wire.only_values(wire.read_rows(self._connection, some), self._cells.layout.read)
            rows = await self._connection.read(request)
            found |= await self.of(rows) if fresh else {row.key: self.at_last_fold(row) for row in rows}
        return found

    def at_last_fold(self, row: Row) -> Value:
        """What a row that was read was worth when it was last folded; before it ever was, what it is worth now. For any
        thread; see `read`.
        """
        content = self._cells.content_of(row)
        if content.pending and content.column is not None and not self._cells.monoid.idempotent:
            content = content._replace(pending=[])
        return self._unite(row.key, content, None)

    async def of(self, rows: Sequence[Row]) -> dict[bytes, Value]:
        """What rows are worth that were read, by key; see `read`."""
        found: dict[bytes, Value] = {}
        known: list[bytes] = []
        unknown: list[bytes] = []
        for row in rows:
            content = self._cells.content_of(row)
            if not content.pending or self._cells.monoid.idempotent or content.column is None:
                # Nothing was ever folded into a row without a value, so that it has no markers.
                found[row.key] = self._unite(row.key, content, None)
            elif row.key not in self._rows:
                unknown.append(row.key)
            elif content.version == 0 or self._rows[row.key].version != content.version:
                known.append(row.key)  # a scan's rows come without their version, whatever it is
            else:
                found[row.key] = self._unite(row.key, content, self._rows[row.key].has)
        parts = [*([key] for key in known), *wire.batches(unknown, _WITH_MARKERS)]
        for some in await asyncio.gather(*map(self._read_marked, parts)):
            found |= some
        return found

    async def _read_marked(self, keys: Sequence[bytes]) -> dict[bytes, Value]:
        """Read rows with the markers of all commits after those that are known; of several rows, with all markers."""
        found: dict[bytes, Value] = {}
        rows = {key: self._rows.borrow(key) for key in keys}
        try:
            async with self._reading:
                while left := [key for key in keys if key not in found]:
                    since = rows[left[0]].version if len(left) == 1 else 0
                    request = wire.only_news(wire.read_rows(self._connection, left), since, self._cells.layout.read)
                    by_key = {row.key: row for row in await self._connection.read(request)}
                    for key in left:
                        content = self._cells.content_of(by_key.get(key))
                        if _knows(rows[key], content, since):
                            found[key] = self._unite(key, content, rows[key].has)
        finally:
            for row in rows.values():
                self._rows.give_back(row)
        return found

    def _unite(self, key: bytes, content: Content, has: Callable[[bytes], bool] | None) -> Value:
        """Fold what is pending into the aggregate.

        Args:
            key: of the row.
            content: of the row.
            has: tells whether the row has a marker of an event; None: it has none at all.

        Raises:
            PermanentError, SchemaMismatch: see `read`.
        """
        bucket = parse_row_key(key)[0].bucket if self._cells.bucket_age_us is not None else 0
        expires_us = self._cells.live_until_us(bucket, content.expires_us, pending=bool(content.pending))
        value = None if content.column is None else self._cells.decoded(key, content.column)
        if not content.pending:
            return Value(value, expires_us)
        try:
            deltas = _deltas(self._cells.monoid, content, has)
        except SchemaMismatch as err:
            raise SchemaMismatch(f"the row of {parse_row_key(key)[0].entity!r:.80}: {err}") from err
        except Exception as err:
            raise PermanentError(
                f"the row of {parse_row_key(key)[0].entity!r:.80} has a pending delta that is no "
                f"{self._cells.monoid.name}: {type(err).__name__}: {err}"
            ) from err
        if self._cells.sums:
            if not deltas:
                return Value(value, expires_us)
            return Value((value or 0) + sum(deltas), expires_us)  # exact, however large
        return Value(_folded(self._cells.monoid, value, deltas), expires_us)


def _knows(row: KnownRow, content: Content, since: int) -> bool:
    """Learn what a read says of all commits after a version; False if the row must be read once more."""
    if row.read and row.version == content.version:
        return True
    if since == 0:
        row.forget()
    elif row.version != since:
        return False  # another read has learned more meanwhile
    return row.take(content.version, content.journal, exists=content.version > 0)


def _deltas(monoid: Any, content: Content, has: Callable[[bytes], bool] | None) -> Sequence[Any]:
    """One for each event that has no marker."""
    values = [data for _, data in content.pending]
    if monoid.idempotent:
        return [delta for value in values for delta in pending.decoded(monoid, value).deltas]
    if has is None and len(values) == 1:
        return pending.decoded(monoid, values[0]).deltas
    events = pending.united(monoid, values)
    if has is None:
        return list(events.values())
    return [delta for print_, delta in events.items() if not has(print_)]


def _folded(monoid: Any, value: Any, deltas: Sequence[Any]) -> Any:
    """As a fold does it: what the monoid cannot combine is left out."""
    if value is None and not deltas:
        return None
    before = [] if value is None else [value]
    try:
        return monoid.fold([*before, *deltas])
    except Exception:  # which may be any, of a user's combine
        folded = monoid.fold(before)
        for delta in deltas:
            try:
                folded = monoid.combine(folded, delta)
            except Exception:
                continue
        return folded
