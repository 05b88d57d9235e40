"""Sizes of a table's rows, and their parts for markers and pending cells."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.fingerprints import FINGERPRINT_BYTES
from murmur_beam.state.bigtable.keys import AFTER_SCHEMA, parse_row_key

WARN_ROW_BYTES = 50 * 2**20
"""Rows larger than this cause a warning; rows work best below 100 MB."""
LOOK_S = 5.0
"""Time limit for reading rows to measure them."""


class RowSize(NamedTuple):
    """Bytes of a row: in all, of its markers, and of its pending cells.

    Attributes:
        cells: number of pending cells.
        oldest_us: time in the name of the oldest pending cell; None if the row has no pending cells.
    """

    key: bytes = b""
    size: int = 0
    markers: int = 0
    pending: int = 0
    cells: int = 0
    oldest_us: int | None = None

    def __str__(self) -> str:
        key, shard = parse_row_key(self.key)
        return f"{key.entity!r:.60}, bucket {key.bucket}" + (f", shard {shard}" if shard else "")


class Sizes(NamedTuple):
    """Total size of the rows, and the largest row by each measure.

    Attributes:
        rows: number of rows measured.
        whole: whether all rows were measured.
        total: sum over the rows; its key is meaningless.
        largest, most_markers, most_pending: single rows.
    """

    rows: int
    whole: bool
    total: RowSize
    largest: RowSize
    most_markers: RowSize
    most_pending: RowSize

    @property
    def events(self) -> int:
        """Number of events with a marker."""
        return self.total.markers // FINGERPRINT_BYTES


async def look_at_sizes(connection: Connection, seconds: float = LOOK_S) -> Sizes:
    """Measure rows, from the first on, for at most this many seconds.

    Raises:
        Exception: the rows cannot be read.
    """
    counter = _Counter()

    async def read() -> None:
        request = wire.read_range(connection, AFTER_SCHEMA, None, 0)
        async for answer in connection.answers(request, connection.timeout_s):
            for chunk in answer.chunks:
                counter.take(chunk)

    try:
        await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:
        return counter.sizes(whole=False)
    return counter.sizes(whole=True)


class _Counter:
    """Adds up the chunks of a read, without keeping values."""

    def __init__(self) -> None:
        self._rows = 0
        self._total = self._largest = self._most_markers = self._most_pending = RowSize()
        self._family = ""
        self._row = RowSize()

    def take(self, chunk: Any) -> None:
        row = RowSize() if chunk.reset_row else self._row
        if chunk.row_key not in (b"", row.key):
            row = RowSize(chunk.row_key, len(chunk.row_key))
        if chunk.HasField("family_name"):
            self._family = chunk.family_name.value
        size = len(chunk.value)
        if chunk.HasField("qualifier"):
            size += len(chunk.qualifier.value)
        row = row._replace(size=row.size + size)
        if self._family == wire.DEDUP:
            row = row._replace(markers=row.markers + len(chunk.value))
        elif self._family == wire.PENDING:
            row = row._replace(pending=row.pending + size)
            if chunk.HasField("qualifier"):
                at_us = int.from_bytes(chunk.qualifier.value[:8], "big")
                row = row._replace(cells=row.cells + 1, oldest_us=_earlier(row.oldest_us, at_us))
        self._row = row
        if chunk.commit_row:
            self._add(row)

    def _add(self, row: RowSize) -> None:
        total = self._total
        self._rows += 1
        self._total = RowSize(
            b"",
            total.size + row.size,
            total.markers + row.markers,
            total.pending + row.pending,
            total.cells + row.cells,
            _earlier(total.oldest_us, row.oldest_us),
        )
        self._largest = max(self._largest, row, key=lambda one: one.size)
        self._most_markers = max(self._most_markers, row, key=lambda one: one.markers)
        self._most_pending = max(self._most_pending, row, key=lambda one: one.pending)

    def sizes(self, whole: bool) -> Sizes:
        return Sizes(self._rows, whole, self._total, self._largest, self._most_markers, self._most_pending)


def _earlier(one: int | None, other: int | None) -> int | None:
    return min((us for us in (one, other) if us is not None), default=None)
