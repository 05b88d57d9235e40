"""Sum of signed 64-bit integers, or of decimal numbers with a fixed number of places."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact, InvalidOperation
from typing import Any

from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError
from murmur_beam.monoids.base import Monoid, decimal_of, number_of
from murmur_beam.monoids.notation import written

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_PLACES = 18
"""Decimal places of a sum: with more, 10 would not fit into 64 bits."""

# Digits enough for 20 before the point and 18 behind it; with more, a number cannot fit.
_EXACT = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[Inexact, InvalidOperation])

_INTEGER = re.compile(r" *[+-]?[0-9]{1,4000} *")


class Overflow(PermanentError):
    """The total would leave the range of a signed 64-bit integer, where a sum in the store would wrap silently."""


class Sum(Monoid[int]):
    """Adds integers, exactly; with ``places``, decimal numbers such as amounts of money, as exactly.

    Without ``places`` floats are refused: their sum depends on the order, so two runs could differ. `FloatSum` adds
    them.

    ``Sum(places=2)``, by name ``sum(places=2)``, takes numbers with at most two decimal places: text ("12.30"),
    `decimal.Decimal`, ints, and the numbers of JSON as they are written, never through a float. A Python float counts
    as the shortest decimal that prints it. The state is an int, the number of hundredths; the result is a `Decimal`
    with two places.
    """

    name = "sum"
    native = "sum"
    identity = 0
    places: int | None = None

    def __init__(self, places: int | None = None) -> None:
        """Check the argument.

        Args:
            places: decimal places of the sum, 0 to 18; None: it is an int.

        Raises:
            ConfigurationError: ``places`` is something else.
        """
        if places is None:
            return
        if type(places) is not int or not 0 <= places <= MAX_PLACES:
            raise ConfigurationError("places", f"expected an integer from 0 to {MAX_PLACES}, got {places!r:.80}")
        self.places = places
        self.name = written(self.name, places=places)
        self.exact_numbers = True

    def combine(self, a: int, b: int) -> int:
        """``a + b``.

        Raises:
            Overflow: the sum lies outside -2**63 .. 2**63-1, which with ``places`` are the smallest units.
        """
        return self._checked(a + b)

    def fold(self, values: Iterable[int]) -> int:
        """Sum of all; only the total must fit into 64 bits."""
        return self._checked(sum(values))

    def total(self, values: Iterable[int]) -> int:
        """Sum of all, however large."""
        return sum(values)

    def lift(self, value: Any, event_time_us: int) -> int:
        """The number that the value is, or that a text spells, in the smallest units.

        Raises:
            InvalidRecord: the value is not an integer, or with ``places`` not a finite number with at most as many; or
                it does not fit into 64 bits.
        """
        if self.places is not None:
            return _scaled(decimal_of(value), self.places)
        if type(value) is not int:
            value = _integer(value)
        if type(value) is not int:
            hint = (
                "; count in the smallest unit, such as cents, or use sum(places=2)"
                if isinstance(value, (float, Decimal))
                else ""
            )
            raise InvalidRecord("value", f"expected an integer, got {type(value).__name__}: {value!r:.80}{hint}")
        if not INT64_MIN <= value <= INT64_MAX:
            # Python refuses to print a number of thousands of digits.
            shown = value if value.bit_length() <= 256 else f"an integer of {value.bit_length()} bits"
            raise InvalidRecord("value", f"{shown} does not fit into a signed 64-bit integer")
        return value

    def present(self, state: int) -> Any:
        """The sum; with ``places`` a `Decimal` with as many."""
        return state if self.places is None else _decimal(state, self.places)

    def _checked(self, total: int) -> int:
        if INT64_MIN <= total <= INT64_MAX:
            return total
        unit = "" if self.places is None else f" of the smallest unit, {_decimal(1, self.places)}"
        raise Overflow(
            f"value: the sum would be {self.present(total)}, which does not fit into a signed 64-bit integer{unit}"
        )


def _scaled(number: Decimal, places: int) -> int:
    """The number in units of ``10**-places``."""
    if not number:
        return 0
    try:
        # Looked at first: an int of a million digits takes long to make.
        scaled = (
            int(_EXACT.to_integral_exact(_EXACT.scaleb(number, places))) if number.adjusted() < 20 else INT64_MAX + 1
        )
    except Inexact:
        raise InvalidRecord(
            "value", f"{number!s:.80} has more than {places} decimal places; round it, or use a sum with more places"
        ) from None
    if not INT64_MIN <= scaled <= INT64_MAX:
        raise InvalidRecord(
            "value",
            f"{number!s:.80} does not fit: a sum with {places} decimal places takes at most "
            f"{_decimal(INT64_MAX, places)}",
        )
    return scaled


def _decimal(units: int, places: int) -> Decimal:
    # From text: no operation of decimal, so not rounded to the precision of the thread's context.
    return Decimal(f"{units}E-{places}")


def _integer(value: Any) -> Any:
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise InvalidRecord("value", f"{value!r:.80} is not an integer")
    return number_of(value)


MONOID = Sum()
