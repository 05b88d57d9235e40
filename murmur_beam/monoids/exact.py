"""Floats as integers, so that sums of them are exact and do not depend on the order: multiples of ``2**-1074``, the
least float above zero. Shared by `FloatSum`, `Mean` and `Variance`.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from murmur_beam.monoids.base import lift_number

UNIT_BITS = 1074
"""A float is a multiple of ``2**-UNIT_BITS``, and its square of ``2**-(2 * UNIT_BITS)``."""


def units_of(value: Any) -> int:
    """The number that a value is or spells, in units: an integer exactly, any other number as the nearest float.

    Raises:
        InvalidRecord: the value is not a finite number, or is an int of more than `MAX_INT_BITS`.
    """
    number = lift_number(str(value) if isinstance(value, Decimal) else value)
    numerator, denominator = number.as_integer_ratio()  # the denominator is a power of two
    return numerator << (UNIT_BITS + 1 - denominator.bit_length())


def nearest(numerator: int, denominator: int) -> float:
    """The float nearest to a fraction with a positive denominator; infinity beyond the range of floats."""
    try:
        return numerator / denominator  # Python rounds it correctly
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


def nearest_root(numerator: int, denominator: int) -> float:
    """The float nearest to the square root of a fraction, neither of whose parts is negative."""
    # Some 64 bits of the root, and a last one that is set if it is not exact, so that it is rounded to the right side.
    shift = max(0, 64 - (numerator.bit_length() - denominator.bit_length()) // 2)
    square, rest = divmod(numerator << 2 * shift, denominator)
    root = math.isqrt(square)
    inexact = rest != 0 or root * root != square
    return nearest(root << 1 | inexact, 1 << shift + 1)


def written(number: int, bits: int) -> str:
    """The one text of ``number * 2**-bits``: an odd integer in hexadecimal, and the exponent of two: ``-0x5p-3``."""
    zeros = (number & -number).bit_length() - 1 if number else bits
    return f"{number >> zeros:#x}p{zeros - bits}"


def read(text: str, bits: int) -> int:
    """Inverse of `written`.

    Raises:
        ValueError: it is not such a text.
    """
    mantissa, exponent = text.split("p")
    return int(mantissa, 16) << (int(exponent) + bits)
