"""The state of a fold: of one row, and the totals that are reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from murmur_beam.errors import MurmurError
from murmur_beam.state.bigtable.fingerprints import Known
from murmur_beam.state.bigtable.keys import parse_row_key
from murmur_beam.state.bigtable.row_cache import CachedRow
from murmur_beam.state.folding import Folded


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
        known: finds events of which the row had a marker when the cells were read; None: it had no markers.
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
        self.known: Known | None = None
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
