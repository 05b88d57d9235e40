"""The state of a fold: of one row, and the totals that are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from murmur_beam.errors import MurmurError
from murmur_beam.state.bigtable.keys import parse_row_key
from murmur_beam.state.bigtable.row_cache import CachedRow

_NAMED = 20


class Folded(NamedTuple):
    """Totals of a fold.

    Attributes:
        rows: rows with enough pending cells.
        folded: rows whose aggregate was changed.
        cells, n_bytes: number and size of the cells that were deleted.
        events, duplicates: events that were folded, and events that had been counted before.
        conflicts: commits that had a version conflict.
        left: rows that other writers wrote all the time; the next fold takes them.
        unfoldable: events that cannot be folded; they stay pending.
        named: some of the rows of such events, and why.
        oldest_us: when the oldest folded cell was first tried, in microseconds; None if no cell was folded.
    """

    rows: int = 0
    folded: int = 0
    cells: int = 0
    n_bytes: int = 0
    events: int = 0
    duplicates: int = 0
    conflicts: int = 0
    left: int = 0
    unfoldable: int = 0
    named: tuple[str, ...] = ()
    oldest_us: int | None = None

    def plus(self, other: Folded) -> Folded:
        """The totals of both."""
        oldest = [us for us in (self.oldest_us, other.oldest_us) if us is not None]
        sums: list[Any] = [a + b for a, b in zip(self[:9], other[:9], strict=True)]
        return Folded._make([*sums, (self.named + other.named)[:_NAMED], min(oldest, default=None)])


class PendingCell(NamedTuple):
    """A pending cell: its name, its value, and how many events it says that it has."""

    name: bytes
    data: bytes
    n: int


class RowFold:
    """A row that is being folded.

    Attributes:
        key, bucket, row: which row, and what is known of it.
        held: whether this fold holds the row's lock.
        unverified: whether cells held nothing new, so that no commit has shown that they are of the row whose markers
            are known.
        done: whether nothing is left to do.
        tries: commits that were not applied.
        after: name of the last cell that stays; cells up to it are not read again.
        cells: name and value of the cells that were read last.
        has: says whether the row had a marker of an event when the cells were read; None: it had no markers.
        seen: events of these cells that were folded since.
        gone: names of cells to delete.
        total: what was done.
    """

    def __init__(self, key: bytes, row: CachedRow) -> None:
        self.key = key
        self.bucket = parse_row_key(key)[0].bucket
        self.row = row
        self.held = self.done = self.unverified = False
        self.tries = 0
        self.after = b""
        self.cells: list[tuple[bytes, bytes]] = []
        self.has: Callable[[bytes], bool] | None = None
        self.seen: dict[bytes, Any] = {}
        self.gone: list[bytes] = []
        self.total = Folded()
        self._failed: set[bytes] = set()

    def add(self, **more: Any) -> None:
        """Add to the total."""
        self.total = self.total.plus(Folded(**more))

    def fail(self, events: Sequence[bytes], err: Exception) -> None:
        """Count events that cannot be folded, each given by its fingerprint or the name of its cell."""
        new = self._failed.union(events)
        if len(new) > len(self._failed):
            why = str(err) if isinstance(err, MurmurError) else f"{type(err).__name__}: {err}"
            text = f"{parse_row_key(self.key)[0].entity!r:.80}, bucket {self.bucket}: {why}"
            self.add(unfoldable=len(new) - len(self._failed), named=() if self._failed else (text,))
            self._failed = new
