"""Value of the latest event."""

from __future__ import annotations

from murmur_beam.monoids.timed import Timed, TimedExtremum, precedes


class Last(TimedExtremum):
    """Keeps the value with the greatest event time, in whatever order the events arrive; None before there is any."""

    name = "last"

    def pick(self, a: Timed, b: Timed) -> Timed:
        """The later one; at equal times, the one whose JSON text sorts last."""
        return b if precedes(a, b) else a


MONOID = Last()
