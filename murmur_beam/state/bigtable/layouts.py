"""Layouts of a table's cells. A table keeps the layout that it was created with; both are read and written.

1   release 0.1.0: the version of a row is a sum, agg:n
2   the version is a plain cell, state:n, and the family pending holds pending deltas
"""

from __future__ import annotations

from typing import NamedTuple

from murmur_beam.state.bigtable import wire


class Layout(NamedTuple):
    """The families of a table, and the place of a row's version.

    Attributes:
        number: as recorded.
        families: all families.
        read: regular expression of the families from which a row's value is read.
        version_family: family of the version's cell, whose column is `wire.VERSION`.
        exists: the predicate "the row has a version".
    """

    number: int
    families: tuple[str, ...]
    read: str
    version_family: str
    exists: bytes

    def at_version(self, version: int) -> bytes:
        """The predicate "the row has this version", which is false for a row that does not exist."""
        return wire.at_version(self.version_family, version)

    def raised(self, at_us: int, before: int, after: int) -> bytes:
        """The mutation that changes a row's version.

        Args:
            at_us: timestamp of the bucket.
            before, after: versions; 0 for a row without one.
        """
        if self.version_family == wire.AGG:
            return wire.add(wire.VERSION, at_us, after - before)
        return wire.put(self.version_family, wire.VERSION, at_us, after.to_bytes(8, "big"))

    def added(self, at_us: int) -> list[bytes]:
        """The mutations that raise the version when a sum is written without event ids. Only a version that is a sum
        can be raised without knowing it; otherwise the list is empty.
        """
        return [wire.add(wire.VERSION, at_us, 1)] if self.version_family == wire.AGG else []


_FIRST = wire.AGG, wire.DEDUP, wire.STATE, wire.META
LAYOUTS = {
    1: Layout(1, _FIRST, f"{wire.AGG}|{wire.STATE}", wire.AGG, wire.has_column(wire.AGG, wire.VERSION)),
    2: Layout(
        2,
        (*_FIRST, wire.PENDING),
        f"{wire.AGG}|{wire.STATE}|{wire.PENDING}",
        wire.STATE,
        wire.has_column(wire.STATE, wire.VERSION),
    ),
}
NEWEST = 2
"""The layout of new tables."""
