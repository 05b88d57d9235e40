"""Least number."""

from __future__ import annotations

from murmur_beam.monoids.extremum import NumberExtremum


class Min(NumberExtremum):
    """Keeps the least number; None before there is any."""

    name = "min"

    def pick(self, a: int | float, b: int | float) -> int | float:
        """The lesser one."""
        return min(a, b)


MONOID = Min()
