"""The least or the greatest of what was seen: what `Min`, `Max`, `First` and `Last` share."""

from __future__ import annotations

import abc
from typing import Any, Generic

from murmur_beam.monoids.base import Monoid, V, lift_number


class Extremum(Monoid[V | None], Generic[V]):
    """Keeps one of its values, the one that comes first in some total order; None before there is any."""

    identity = None
    idempotent = True

    @abc.abstractmethod
    def pick(self, a: V, b: V) -> V:
        """One of the two, and of two that differ in their bytes the same one in either order."""

    def combine(self, a: V | None, b: V | None) -> V | None:
        """What `pick` picks, or the one that is there."""
        if a is None:
            return b
        if b is None:
            return a
        return self.pick(a, b)


class NumberExtremum(Extremum[int | float]):
    """An extremum of finite numbers. Ints and floats mix, and are compared exactly, without rounding."""

    def lift(self, value: Any, event_time_us: int) -> int | float:
        """The number itself, or the one that a text spells; an int where a float has no fraction.

        Raises:
            InvalidRecord: not a number, or not finite, or an int of more than `MAX_INT_BITS`.
        """
        return lift_number(value)
