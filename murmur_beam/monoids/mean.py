"""Mean of numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from murmur_beam.monoids.base import Monoid, canonical_json
from murmur_beam.monoids.exact import UNIT_BITS, nearest, read, units_of, written


class Mean(Monoid[tuple[int, int]]):
    """The mean of numbers: the float nearest to their exact sum, divided by their count; None of nothing. It does not
    depend on the order of events.

    It takes floats, integers, decimals and texts: integers exactly, other numbers as the nearest float.

    The state is the count, and the sum as in `FloatSum`. Buckets and shards are added up before the mean is made.
    """

    name = "mean"
    identity = (0, 0)

    def combine(self, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        """The counts and the sums added up."""
        return a[0] + b[0], a[1] + b[1]

    def fold(self, values: Iterable[tuple[int, int]]) -> tuple[int, int]:
        """The counts and the sums of all added up."""
        count = total = 0
        for n, units in values:
            count += n
            total += units
        return count, total

    def lift(self, value: Any, event_time_us: int) -> tuple[int, int]:
        """One, and the number in units.

        Raises:
            InvalidRecord: the value is not a finite number, or is an int of more than `MAX_INT_BITS`.
        """
        return 1, units_of(value)

    def present(self, state: tuple[int, int]) -> float | None:
        """The mean."""
        count, total = state
        return nearest(total, count << UNIT_BITS) if count else None

    def encode(self, v: tuple[int, int]) -> bytes:
        """A JSON list of the count, and the sum as `FloatSum` stores it."""
        return canonical_json((v[0], written(v[1], UNIT_BITS))).encode("ascii")

    def decode(self, data: bytes) -> tuple[int, int]:
        """Inverse of `encode`."""
        count, total = json.loads(data)
        return count, read(total, UNIT_BITS)


MONOID = Mean()
