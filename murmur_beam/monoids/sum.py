"""Sum of signed 64-bit integers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from murmur_beam.errors import InvalidRecord, PermanentError
from murmur_beam.monoids.base import Monoid, number_of

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

_INTEGER = re.compile(r" *[+-]?[0-9]{1,4000} *")


class Overflow(PermanentError):
    """The total would leave the range of a signed 64-bit integer, where a sum in the store would wrap silently."""


class Sum(Monoid[int]):
    """Adds integers, exactly. Count money and other fractions in the smallest unit (cents, milliseconds).

    Floats are refused: their sum depends on the order, so two runs could differ.
    """

    name = "sum"
    native = "sum"
    identity = 0

    def combine(self, a: int, b: int) -> int:
        """``a + b``.

        Raises:
            Overflow: the sum lies outside -2**63 .. 2**63-1.
        """
        return _checked(a + b)

    def fold(self, values: Iterable[int]) -> int:
        """Sum of all; only the total must fit into 64 bits."""
        return _checked(sum(values))

    def total(self, values: Iterable[int]) -> int:
        """Sum of all, however large."""
        return sum(values)

    def lift(self, value: Any, event_time_us: int) -> int:
        """The integer itself, or the integer that a text spells.

        Raises:
            InvalidRecord: the value is not an integer, or lies outside -2**63 .. 2**63-1.
        """
        if type(value) is not int:
            value = _integer(value)
        if type(value) is not int:
            hint = "; count in the smallest unit, such as cents" if isinstance(value, float) else ""
            raise InvalidRecord("value", f"expected an integer, got {type(value).__name__}: {value!r:.80}{hint}")
        if not INT64_MIN <= value <= INT64_MAX:
            # Python refuses to print a number of thousands of digits.
            shown = value if value.bit_length() <= 256 else f"an integer of {value.bit_length()} bits"
            raise InvalidRecord("value", f"{shown} does not fit into a signed 64-bit integer")
        return value


def _integer(value: Any) -> Any:
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise InvalidRecord("value", f"{value!r:.80} is not an integer")
    return number_of(value)


def _checked(total: int) -> int:
    if INT64_MIN <= total <= INT64_MAX:
        return total
    raise Overflow(f"value: the sum would be {total}, which does not fit into a signed 64-bit integer")


MONOID = Sum()
