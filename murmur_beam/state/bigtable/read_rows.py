"""Assembles rows from the chunks of a ReadRows answer, as the service documents them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """One cell; the timestamp in microseconds."""

    family: str
    qualifier: bytes
    at_us: int
    value: bytes


class Row(NamedTuple):
    """One row, its cells by family, qualifier and, within a column, from the newest to the oldest."""

    key: bytes
    cells: list[Cell]


class RowAssembler:
    """Assembles rows. A chunk holds at most one cell or a piece of one, and what differs from the one before."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._family = ""
        self._qualifier = b""
        self._reset()

    def _reset(self) -> None:
        self._key = b""
        self._cells: list[Cell] = []
        self._at_us = 0
        self._pieces: list[bytes] = []

    @property
    def begun(self) -> list[Cell]:
        """Complete cells of a row that is not complete yet."""
        return self._cells

    def take(self, chunks: Iterable[Any]) -> None:
        """Add the chunks of the next response; complete rows are in ``rows``."""
        for chunk in chunks:
            if chunk.reset_row:
                self._reset()
                continue
            self._key = chunk.row_key or self._key
            if chunk.HasField("family_name"):
                self._family = chunk.family_name.value
            if chunk.HasField("qualifier"):
                self._qualifier = chunk.qualifier.value
            if not self._pieces:
                self._at_us = chunk.timestamp_micros
            self._pieces.append(chunk.value)
            if chunk.value_size:
                continue  # a piece of a long value, and more of it to come
            self._cells.append(Cell(self._family, self._qualifier, self._at_us, b"".join(self._pieces)))
            self._pieces = []
            if chunk.commit_row:
                self.rows.append(Row(self._key, self._cells))
                self._reset()
