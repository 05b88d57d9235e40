"""Exact sum of floats."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from murmur_beam.monoids.base import Monoid, canonical_json
from murmur_beam.monoids.exact import UNIT_BITS, nearest, read, units_of, written


class FloatSum(Monoid[int]):
    """Adds numbers without rounding, as `math.fsum` does; the result is the float nearest to the exact sum. It does not
    depend on the order of events, nor do the stored bytes.

    It takes floats, integers, decimals and texts: integers exactly, other numbers as the nearest float, so 0.1 is
    0.1000000000000000055. For money use ``Sum(places=2)``, which takes 0.1 as it is written.

    The state is an integer, the sum in units of ``2**-1074``. It is stored without its trailing zeros, in some 30 bytes
    for numbers of similar size, and 560 at most. A sum may leave the range of floats, and return: only while it is
    outside, the result is infinite.
    """

    name = "float_sum"
    identity = 0

    def combine(self, a: int, b: int) -> int:
        """``a + b``."""
        return a + b

    def fold(self, values: Iterable[int]) -> int:
        """Sum of all."""
        return sum(values)

    def lift(self, value: Any, event_time_us: int) -> int:
        """The number that the value is, or that a text spells, in units.

        Raises:
            InvalidRecord: the value is not a finite number (``NaN``, infinity, a text beyond the range of floats), or
                an int of more than `MAX_INT_BITS`.
        """
        return units_of(value)

    def present(self, state: int) -> float:
        """The float nearest to the sum; infinity beyond the range of floats."""
        return nearest(state, 1 << UNIT_BITS)

    def encode(self, v: int) -> bytes:
        """A JSON text: an odd integer in hexadecimal, and the exponent of two."""
        return canonical_json(written(v, UNIT_BITS)).encode("ascii")

    def decode(self, data: bytes) -> int:
        """Inverse of `encode`."""
        return read(json.loads(data), UNIT_BITS)


MONOID = FloatSum()
