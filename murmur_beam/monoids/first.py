"""Value of the earliest event."""

from __future__ import annotations

from murmur_beam.monoids.timed import Timed, TimedExtremum, precedes


class First(TimedExtremum):
    """Keeps the value with the least event time, whatever the order of arrival; None before the first event."""

    name = "first"

    def pick(self, a: Timed, b: Timed) -> Timed:
        """The earlier value; at equal times, the value whose JSON text sorts first."""
        return a if precedes(a, b) else b


MONOID = First()
