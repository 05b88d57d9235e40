"""Base classes of `Min`, `Max`, `First` and `Last`, which keep one of the values seen."""

from __future__ import annotations

import abc
from typing import Any, Generic

from murmur_beam.monoids.base import Monoid, V, lift_number


class Extremum(Monoid[V | None], Generic[V]):
    """Keeps the value that comes first in a total order; None before the first value."""

    identity = None
    idempotent = True

    @abc.abstractmethod
    def pick(self, a: V, b: V) -> V:
        """Pick one of the two, independently of argument order."""

    def combine(self, a: V | None, b: V | None) -> V | None:
        """The result of `pick`, or the only value."""
        if a is None:
            return b
        if b is None:
            return a
        return self.pick(a, b)


class NumberExtremum(Extremum[int | float]):
    """An extremum of finite numbers. Ints and floats may be mixed; they are compared exactly, without rounding."""

    def lift(self, value: Any, event_time_us: int) -> int | float:
        """The number itself, or the number that a text spells; a float without a fraction becomes an int.

        Raises:
            InvalidRecord: the value is not a finite number, or is an int of more than `MAX_INT_BITS`.
        """
        return lift_number(value)
