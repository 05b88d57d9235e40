"""Number of events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from murmur_beam.monoids.sum import Sum


class Count(Sum):
    """Adds one for each event, whatever its value."""

    name = "count"
    needs_value = False

    def __init__(self) -> None:
        """Take no parameters."""
        super().__init__()

    def of(self, field: str | Callable[[Any], Any], *, optional: bool = False) -> Count:
        """Return itself: a count uses no field."""
        return self

    def lift(self, value: Any, event_time_us: int) -> int:
        """Return one."""
        return 1


MONOID = Count()
