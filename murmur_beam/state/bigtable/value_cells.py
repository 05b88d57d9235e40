"""The cells that hold a row's aggregate: one for a plain monoid, and one for each aggregate of a struct.

agg:v  state:v              of a plain monoid: a sum, to which the server adds; any other state
agg:NAME  state:=NAME       of the aggregate NAME of a struct
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.structs import Struct
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.wire import Columns

_INT64 = struct.Struct(">q")
_BEFORE_NAME, _AFTER_NAMES = b"=", b">"
"""Columns of states begin with the first, and so differ from those of a version and an expiry."""


class _Cell(NamedTuple):
    monoid: Monoid[Any]
    family: str
    qualifier: bytes

    def encoded(self, value: Any) -> Any:
        return value if self.family == wire.AGG else self.monoid.encode(value)

    def decoded(self, stored: Any) -> Any:
        return stored if self.family == wire.AGG else self.monoid.decode(stored)

    def change(self, at_us: int, before: Any, after: Any) -> bytes:
        if self.family == wire.AGG:
            return wire.add(self.qualifier, at_us, after - (before or 0))
        return wire.put(self.family, self.qualifier, at_us, after)


class ValueCells:
    """Encodes aggregates as cells, and decodes them. A *stored* aggregate is what its cells hold: an int or bytes; for
    a struct a tuple of these, with None for a cell that is missing.

    Args:
        monoid: of the aggregates.

    Attributes:
        sums: whether the aggregate is one sum.
        columns: where the cells are.
    """

    def __init__(self, monoid: Monoid[Any]) -> None:
        self.sums = monoid.native == "sum"
        self._several = isinstance(monoid, Struct)
        if isinstance(monoid, Struct):
            self._cells = [_cell_of(name, part) for name, part in monoid.parts.items()]
            families = dict.fromkeys([cell.family for cell in self._cells])
            everywhere = {wire.AGG: Columns(wire.AGG), wire.STATE: Columns(wire.STATE, _BEFORE_NAME, _AFTER_NAMES)}
            self.columns: Sequence[Columns] = [everywhere[family] for family in families]
        else:
            self._cells = [_Cell(monoid, wire.AGG if self.sums else wire.STATE, wire.VALUE)]
            self.columns = [Columns(self._cells[0].family, wire.VALUE, wire.VALUE)]
        self._places = {(cell.family, cell.qualifier): i for i, cell in enumerate(self._cells)}

    def encoded(self, value: Any) -> Any:
        """An aggregate as its cells hold it."""
        if not self._several:
            return self._cells[0].encoded(value)
        return tuple([cell.encoded(part) for cell, part in zip(self._cells, value, strict=True)])

    def decoded(self, stored: Any) -> Any:
        """Inverse of `encoded`; a cell that is missing is the identity.

        Raises:
            Exception: the monoid cannot decode it.
        """
        if not self._several:
            return self._cells[0].decoded(stored)
        pairs = zip(self._cells, stored, strict=True)
        return tuple([cell.monoid.identity if data is None else cell.decoded(data) for cell, data in pairs])

    def read(self, stored: Any, family: str, qualifier: bytes, data: bytes) -> Any:
        """The stored aggregate with one more cell.

        Args:
            stored: None before the first.
            family, qualifier, data: the cell; it may belong to an aggregate that this program does not know.
        """
        place = self._places.get((family, qualifier))
        if place is None:
            return stored
        found = int64(data) if family == wire.AGG else data
        if not self._several:
            return found
        cells = [None] * len(self._cells) if stored is None else list(stored)
        cells[place] = found
        return tuple(cells)

    def changes(self, at_us: int, before: Any, after: Any) -> list[bytes]:
        """The mutations that make one stored aggregate another; of a struct, those of the cells that differ.

        Args:
            at_us: timestamp of the bucket.
            before: None if nothing is stored.
            after: what will be stored.
        """
        if not self._several:
            cell = self._cells[0]
            return [cell.change(at_us, before, after)] if self.sums or after != before else []
        some = zip(self._cells, before or [None] * len(self._cells), after, strict=True)
        return [cell.change(at_us, was, will_be) for cell, was, will_be in some if was != will_be]

    def size(self, stored: Any) -> int:
        """Bytes of a stored aggregate."""
        parts = stored if self._several else [stored]
        return sum(len(part) if isinstance(part, bytes) else 8 for part in parts or ())


def _cell_of(name: str, monoid: Monoid[Any]) -> _Cell:
    if monoid.native == "sum":
        return _Cell(monoid, wire.AGG, name.encode())
    return _Cell(monoid, wire.STATE, _BEFORE_NAME + name.encode())


def int64(data: bytes) -> int:
    """The number in a cell that the server adds to."""
    n: int = _INT64.unpack(data)[0]
    return n
