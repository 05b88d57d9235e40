"""Value of the earliest event."""

from __future__ import annotations

from murmur_beam.monoids.timed import Timed, TimedExtremum, precedes


class First(TimedExtremum):
    """Keeps the value with the least event time, in whatever order the events arrive; None before there is any."""

    name = "first"

    def pick(self, a: Timed, b: Timed) -> Timed:
        """The earlier one; at equal times, the one whose JSON text sorts first."""
        return a if precedes(a, b) else b


MONOID = First()
