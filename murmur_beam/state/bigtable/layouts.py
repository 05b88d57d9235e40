"""How the cells of a table are laid out. A table keeps the layout that it was made with; both are read and written.

1   release 0.1.0: the version of a row is a sum, agg:n
2   the version is a plain cell, state:n, and the family pending holds what is yet to be folded
"""

from __future__ import annotations

from typing import NamedTuple

from murmur_beam.state.bigtable import wire


class Layout(NamedTuple):
    """Where a row's version is, and which families there are.

    Attributes:
        number: as it is recorded.
        families: all of them.
        read: those that a row's value is read from.
        version_family: of the version's cell, whose column is `wire.VERSION`.
        exists: the predicate "the row has a version".
    """

    number: int
    families: tuple[str, ...]
    read: str
    version_family: str
    exists: bytes

    def at_version(self, version: int) -> bytes:
        """The predicate "the row is at this version", which a row that does not exist never is."""
        return wire.at_version(self.version_family, version)

    def raised(self, at_us: int, before: int, after: int) -> bytes:
        """The mutation that makes one version of another.

        Args:
            at_us: timestamp of the bucket.
            before, after: versions, 0 where there is none.
        """
        if self.version_family == wire.AGG:
            return wire.add(wire.VERSION, at_us, after - before)
        return wire.put(self.version_family, wire.VERSION, at_us, after.to_bytes(8, "big"))

    def added(self, at_us: int) -> list[bytes]:
        """The mutations that tell of a sum without event ids, if any: only a version that is a sum can be raised
        without knowing it.
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
"""That of tables which are made now."""
