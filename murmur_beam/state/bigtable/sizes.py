"""How large the rows of a table are, and what of them is markers or pending."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.fingerprints import FINGERPRINT_BYTES
from murmur_beam.state.bigtable.keys import AFTER_SCHEMA, parse_row_key

WARN_ROW_BYTES = 50 * 2**20
"""Rows work best below 100 MB; from this size on there is a warning."""
LOOK_S = 5.0
"""How long to look at rows."""


class RowSize(NamedTuple):
    """Bytes of a row: all of it, its markers, and what is yet to be folded.

    Attributes:
        cells: pending ones.
        oldest_us: when the first of those was written, by its name; None if there is none.
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
    """What rows take together, and the one that takes most of each.

    Attributes:
        rows: how many were looked at.
        whole: whether those are all.
        total: what they take together; its key means nothing.
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
        """How many have a marker."""
        return self.total.markers // FINGERPRINT_BYTES


async def look(connection: Connection, seconds: float = LOOK_S) -> Sizes:
    """Read rows from the first on, for so long.

    Raises:
        Exception: they cannot be read.
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


def size_text(size: float) -> str:
    """A number of bytes, for people."""
    for unit in ("B", "kB", "MB"):
        if size < 1_000:
            return f"{size:.4g} {unit}"
        size /= 1_000
    return f"{size:.4g} GB"


class _Counter:
    """Adds up the chunks of a read, without keeping any value."""

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
