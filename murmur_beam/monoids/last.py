"""Value of the latest event."""

from __future__ import annotations

from murmur_beam.monoids.timed import Timed, TimedExtremum, precedes


class Last(TimedExtremum):
    """Keeps the value with the greatest event time, whatever the order of arrival; None before the first event."""

    name = "last"

    def pick(self, a: Timed, b: Timed) -> Timed:
        """The later value; at equal times, the value whose JSON text sorts last."""
        return b if precedes(a, b) else a


MONOID = Last()
