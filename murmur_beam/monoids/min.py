"""Least number."""

from __future__ import annotations

from murmur_beam.monoids.extremum import NumberExtremum


class Min(NumberExtremum):
    """Keeps the least number; None before the first event."""

    name = "min"

    def pick(self, a: int | float, b: int | float) -> int | float:
        """The lesser number."""
        return min(a, b)


MONOID = Min()
