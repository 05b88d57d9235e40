"""Which rows with pending events are worth a fold now; the others wait for a later one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

_MANY_CELLS = 256
"""Reading cells costs more than folding their events, so this many are folded in any case."""
_MOST_ROWS = 500_000
"""Rows to remember; about 100 MB."""


class _Seen(NamedTuple):
    markers: int
    events_per_cell: float


class DueRows:
    """Selects the rows whose pending events are a share of their markers, or old, or in many cells. A row that will
    expire before its events are old is never selected.

    Give the same object to each fold of a table: what it remembers of the rows that were not due keeps the next folds
    from reading them.

    Args:
        share: of pending events, of the markers of the row.
        age: of the oldest pending event.
        now: seconds since the epoch.
    """

    def __init__(self, share: float, age: timedelta, now: Callable[[], float]) -> None:
        self._share = share
        self._age_us = age.total_seconds() * 1e6
        self._now = now
        self._seen: dict[bytes, _Seen] = {}

    def may_be_due(self, row: bytes, cells: int, oldest_us: int, until_us: int | None) -> bool:
        """Whether a row is due by what its cells' names say, and by what is remembered of it.

        Args:
            row: its key.
            cells: number of its pending cells.
            oldest_us: when the first of them was written, in microseconds since the epoch.
            until_us: when the row expires; None: never.
        """
        now_us = self._now() * 1e6
        if until_us is not None and until_us <= now_us + self._age_us:
            return False
        seen = self._seen.get(row)
        if seen is None or cells >= _MANY_CELLS or now_us - oldest_us >= self._age_us:
            return True
        return cells * seen.events_per_cell >= self._share * seen.markers

    def is_due(self, row: bytes, markers: int, cells: int, events: int, oldest_us: int) -> bool:
        """Whether a row is due, now that its markers and pending events have been read.

        Args:
            row, cells, oldest_us: as in `may_be_due`.
            markers: number of events in the aggregate.
            events: number of pending events.
        """
        self._seen.pop(row, None)
        is_due = (
            events >= self._share * markers or cells >= _MANY_CELLS or self._now() * 1e6 - oldest_us >= self._age_us
        )
        self._seen[row] = _Seen(markers + events * is_due, events / max(cells, 1))
        if len(self._seen) > _MOST_ROWS:
            del self._seen[next(iter(self._seen))]
        return is_due

    def needed_cells(self, min_cells: int) -> int:
        """How many cells' names to list of each row, of which ``min_cells`` are required."""
        return max(min_cells, _MANY_CELLS)
