"""Greatest number."""

from __future__ import annotations

from murmur_beam.monoids.extremum import NumberExtremum


class Max(NumberExtremum):
    """Keeps the greatest number; None before the first event."""

    name = "max"

    def pick(self, a: int | float, b: int | float) -> int | float:
        """The greater number."""
        return max(a, b)


MONOID = Max()
