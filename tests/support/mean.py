"""An example of a monoid: the mean, which is stored as a sum and a count. Its name is ``tests.support.mean:MONOID``."""

from __future__ import annotations

from typing import Any

from murmur_beam.errors import InvalidRecord
from murmur_beam.monoids.base import Monoid


class Mean(Monoid[tuple[int, int]]):
    """The mean of integers, as an exact sum and a count; None if there is nothing."""

    name = "mean of integers"
    identity = (0, 0)

    def combine(self, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        """The sums and the counts added up."""
        return a[0] + b[0], a[1] + b[1]

    def lift(self, value: Any, event_time_us: int) -> tuple[int, int]:
        """The sum and the count of one event.

        Raises:
            InvalidRecord: the value is not an integer.
        """
        if type(value) is not int:
            raise InvalidRecord("value", f"expected an integer, got {value!r:.80}")
        return value, 1

    def present(self, state: tuple[int, int]) -> float | None:
        """The mean."""
        total, count = state
        return total / count if count else None

    def decode(self, data: bytes) -> tuple[int, int]:
        """A tuple of the JSON list."""
        total, count = super().decode(data)
        return total, count


MONOID = Mean()
