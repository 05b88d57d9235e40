"""Faults that `benchmarks.appending` must find: `plant` puts one of them into the library of this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from murmur_beam.state.bigtable import pending, wire
from murmur_beam.state.bigtable.attempt import FoldCommit
from murmur_beam.state.bigtable.folder import Folder
from murmur_beam.state.bigtable.row_reader import RowReader


def _family() -> None:
    """A folder deletes all pending cells, and not only those that it has read, by name."""
    real: Any = wire.clear_column

    def clear_column(family: str, name: bytes) -> bytes:
        cleared: bytes = wire.clear(family) if family == wire.PENDING else real(family, name)
        return cleared

    wire.clear_column = clear_column


def _claim() -> None:
    """A row without a version is folded at once, and does not get a version first."""
    real: Any = Folder._give_version

    async def begin(self: Any, one: Any) -> None:
        if not one.done and one.row.version == 0:
            request = wire.only_pending(wire.read_rows(self._connection, [one.key]), b"", 4_096)
            found = await self._connection.read(request)
            deltas = pending.united(self._codec.monoid, [cell.value for row in found for cell in row.cells])
            value, column = self._folded(one.row, deltas.values())
            await self._commit(one, FoldCommit(b"".join(deltas), value, column, one.row.expires_us))
        else:
            await real(self, one)

    Folder._give_version = begin  # type: ignore[method-assign]


def _markers() -> None:
    """A reader ignores markers."""
    real: Any = RowReader._value_of
    RowReader._value_of = lambda self, key, content, known: real(self, key, content, None)  # type: ignore[method-assign]


def _version() -> None:
    """A reader compares pending events with the markers it remembers, even of an old version."""
    real: Any = RowReader.united

    async def of(self: Any, rows: Any) -> Any:
        found = {}
        for row in rows:
            content = self._codec.content_of(row)
            if content.pending and content.stored is not None and row.key in self._rows:
                found[row.key] = self._value_of(row.key, content, self._rows[row.key].known)
        return found | await real(self, [row for row in rows if row.key not in found])

    RowReader.united = of  # type: ignore[method-assign]


def _verify() -> None:
    """A folder that finds nothing new does not check the version before it deletes."""

    async def verify(self: Any, some: Any) -> None:
        for one in some:
            one.unverified = False

    Folder._verify = verify  # type: ignore[method-assign]


def _name() -> None:
    """All cells that a store writes have the same name."""
    pending.Names.__call__ = lambda self: bytes(8) + self._writer + bytes(3)  # type: ignore[method-assign]


PLANTED: dict[str, Callable[[], None]] = {
    "family": _family,
    "claim": _claim,
    "markers": _markers,
    "version": _version,
    "verify": _verify,
    "name": _name,
}


def plant(name: str) -> None:
    """Plant a fault; none if the name is empty."""
    if name:
        PLANTED[name]()
