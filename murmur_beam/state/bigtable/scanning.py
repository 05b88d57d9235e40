"""Scans: the rows of a range of keys in their order, read in several pieces at the same time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc

from murmur_beam.errors import PermanentError
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.read_rows import Row, RowAssembler

PAGE = 1_000
"""Rows of one answer."""
STREAMS = 4
"""Pieces that are read at the same time."""
PAGES_AHEAD = 2
"""Pages of each piece that are read ahead; the next one is read only when there is room."""
PIECE_BYTES = 1 << 18
"""Least size of a piece, by the server's estimate, so that a small table is not divided."""


class Scan:
    """The rows from ``start`` on, before ``end`` (None: to the last row).

    At most ``STREAMS * (PAGES_AHEAD + 1)`` pages are in memory. Pieces are read side by side as long as each fits into
    its share of that; of a longer piece only its share is read ahead.

    Args:
        connection: to the table.
        start, end: keys.
        narrow: gives a request its filter.
    """

    def __init__(self, connection: Connection, start: bytes, end: bytes | None, narrow: Callable[[Any], Any]) -> None:
        self._connection = connection
        self._start = start
        self._end = end
        self._narrow = narrow

    def __iter__(self) -> Iterator[Row]:
        pieces = self._connection.run(self._pieces())
        waiting = deque(pieces)
        reading: deque[_Piece] = deque()
        try:
            while waiting or reading:
                while waiting and len(reading) < STREAMS:
                    reading.append(self._connection.run(_Piece.begin(self._pages, *waiting.popleft())))
                while page := self._connection.run(reading[0].next_page()):
                    yield from page
                reading.popleft()
        finally:
            for piece in reading:
                piece.stop()

    async def _pieces(self) -> list[tuple[bytes, bytes | None]]:
        try:
            samples = await self._connection.sample_row_keys()
        except Exception:  # without samples the scan reads the range as one piece
            samples = []
        cuts = cuts_between(samples, self._start, self._end)
        return list(zip([self._start, *cuts], [*cuts, self._end], strict=True))

    async def _pages(self, start: bytes, end: bytes | None, put: Callable[[Any], Any]) -> None:
        after: bytes | None = start
        while after is not None:
            page, after = await self._read_on(after, end)
            if page:
                await put(page)

    async def _read_on(self, start: bytes, end: bytes | None) -> tuple[Sequence[Row], bytes | None]:
        """The next page, and where to go on; None: the piece is at its end.

        A server that finds few rows for the filter may take longer than a request's deadline. Then the rows that have
        come are a page, and the next request goes on behind them, or behind the last row that the server has looked at.
        """
        request = self._narrow(wire.read_range(self._connection, start, end, PAGE))
        deadline = time.monotonic() + self._connection.timeout_s
        wait_s = 0.05
        while True:
            assembler = RowAssembler()
            looked_at = b""
            try:
                async for answer in self._connection.answers(request, max(deadline - time.monotonic(), 0.0)):
                    assembler.take(answer.chunks)
                    looked_at = answer.last_scanned_row_key or looked_at
                rows = assembler.rows
                return rows, _after(rows[-1].key) if len(rows) == PAGE else None
            except grpc.aio.AioRpcError as err:
                rows = assembler.rows
                if isinstance(self._connection.translated(err), PermanentError):
                    raise
                reached = max(looked_at, rows[-1].key if rows else b"")
                if reached:
                    return rows, _after(reached)
                if time.monotonic() + wait_s > deadline:
                    raise
            await asyncio.sleep(wait_s)
            wait_s *= 2


class _Piece:
    """A part of the range, read ahead by a task on the connection's loop."""

    def __init__(self, pages: Callable[..., Any], start: bytes, end: bytes | None) -> None:
        self._ahead: asyncio.Queue[Any] = asyncio.Queue(PAGES_AHEAD)
        self._task = asyncio.create_task(self._read(pages, start, end))

    @classmethod
    async def begin(cls, pages: Callable[..., Any], start: bytes, end: bytes | None) -> _Piece:
        return cls(pages, start, end)

    async def _read(self, pages: Callable[..., Any], start: bytes, end: bytes | None) -> None:
        last: Any = None
        try:
            await pages(start, end, self._ahead.put)
        except Exception as err:
            last = err
        await self._ahead.put(last)

    async def next_page(self) -> Any:
        """The next rows; None after the last.

        Raises:
            Exception: the rows could not be read."""
        page = await self._ahead.get()
        if isinstance(page, Exception):
            raise page
        return page

    def stop(self) -> None:
        """Stop reading, from any thread; also after the connection was closed."""
        with suppress(RuntimeError):
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)


def cuts_between(samples: Sequence[tuple[bytes, int]], start: bytes, end: bytes | None) -> list[bytes]:
    """Keys at which to divide a range, so that each piece except perhaps the last has `PIECE_BYTES` or more.

    Args:
        samples: keys in their order, each with the number of bytes stored before it.
        start, end: the range; None: to the last key.
    """
    cuts = []
    cut_at = 0
    for key, offset in samples:
        if key <= start:
            cut_at = offset
        elif end is not None and key >= end:
            break
        elif offset - cut_at >= PIECE_BYTES:
            cuts.append(key)
            cut_at = offset
    return cuts


def _after(key: bytes) -> bytes:
    return key + b"\x00"
