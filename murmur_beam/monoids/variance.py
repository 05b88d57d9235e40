"""Variance and standard deviation of numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from murmur_beam.monoids.base import Monoid, canonical_json
from murmur_beam.monoids.exact import UNIT_BITS, nearest, nearest_root, read, units_of, written


class Moments(NamedTuple):
    """The result of a `Variance`.

    Attributes:
        n: number of values.
        mean: None of nothing.
        variance: of a sample: the sum of the squared differences from the mean, divided by ``n - 1``; None of fewer
            than two values. That of a population is ``variance * (n - 1) / n``.
        stddev: the square root of the variance.
    """

    n: int
    mean: float | None
    variance: float | None
    stddev: float | None


class Variance(Monoid[tuple[int, int, int]]):
    """Number, mean, variance and standard deviation of numbers, as `Moments`. The variance is that of a sample, as
    `statistics.variance` and SQL's ``VARIANCE`` have it.

    It takes floats, integers, decimals and texts: integers exactly, other numbers as the nearest float. Count, sum and
    sum of squares are exact, so each result is the float nearest to the exact one: it depends on no order, and loses no
    digits where the mean is large and the variance is small. A result beyond the range of floats is infinite.
    """

    name = "variance"
    identity = (0, 0, 0)

    def combine(self, a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
        """The counts, the sums and the sums of squares added up."""
        return a[0] + b[0], a[1] + b[1], a[2] + b[2]

    def fold(self, values: Iterable[tuple[int, int, int]]) -> tuple[int, int, int]:
        """Those of all added up."""
        count = total = squares = 0
        for n, units, square in values:
            count += n
            total += units
            squares += square
        return count, total, squares

    def lift(self, value: Any, event_time_us: int) -> tuple[int, int, int]:
        """One, the number in units, and its square.

        Raises:
            InvalidRecord: the value is not a finite number, or is an int of more than `MAX_INT_BITS`.
        """
        units = units_of(value)
        return 1, units, units * units

    def present(self, state: tuple[int, int, int]) -> Moments:
        """Number, mean, variance and standard deviation."""
        count, total, squares = state
        mean = nearest(total, count << UNIT_BITS) if count else None
        if count < 2:
            return Moments(count, mean, None, None)
        differences, divisor = count * squares - total * total, count * (count - 1) << 2 * UNIT_BITS
        return Moments(count, mean, nearest(differences, divisor), nearest_root(differences, divisor))

    def encode(self, v: tuple[int, int, int]) -> bytes:
        """A JSON list of the count, and the sums of values and of squares as `FloatSum` stores its sum."""
        parts = v[0], written(v[1], UNIT_BITS), written(v[2], 2 * UNIT_BITS)
        return canonical_json(parts).encode("ascii")

    def decode(self, data: bytes) -> tuple[int, int, int]:
        """Inverse of `encode`."""
        count, total, squares = json.loads(data)
        return count, read(total, UNIT_BITS), read(squares, 2 * UNIT_BITS)


MONOID = Variance()
