"""Estimated quantiles of numbers, such as the median and the 99th percentile."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from typing import Any

from murmur_beam.errors import ConfigurationError
from murmur_beam.monoids.base import Monoid, lift_number
from murmur_beam.monoids.notation import written

ERROR = 0.01
"""The default. It is not in the recorded name, so it must never change."""
SHOWN = (0.5, 0.9, 0.95, 0.99)
OCTAVES = 32
"""Powers of two that the bins of one sign cover at least."""

_LEAST_EXPONENT = math.frexp(5e-324)[1]

Bins = tuple[tuple[int, int], ...]
"""Numbers of bins, in order, and how many values lie in each."""


class Quantiles(Monoid[Bins]):
    """Estimates quantiles of finite numbers: a dict of the median, the 90th, 95th and 99th percentile; see `quantile`
    for others.

    The aggregate is a histogram. Each number counts in the bin of the nearest number that has few binary digits, and an
    estimate is that number. So an estimate differs from the true quantile, which is one of the values, by at most
    ``error`` of it. Zero is exact, and so are whole numbers up to 128 by default. The same events give the same bytes,
    in any order and on any machine: the calculation is exact.

    The number of bins is bounded: 2,048 for positive and as many for negative numbers, if the error is 1 %. They cover
    values whose magnitudes differ by a factor of 2**32, such as a microsecond to an hour, and more if there are gaps.
    If there are more bins, those nearest to zero are joined: their values count as the smallest magnitude that is
    kept. An aggregate has some 12 bytes for each bin in use: usually less than 10 kB, at most 90 kB until a bin has ten
    billion values.

    Args:
        error: the largest relative error, from 0.001 to 0.25; half of it needs twice the bins.

    Raises:
        ConfigurationError: ``error`` is out of range.
    """

    identity = ()

    def __init__(self, error: float = ERROR) -> None:
        if not (type(error) is float and 0.001 <= error <= 0.25):
            raise ConfigurationError("error", f"expected a number from 0.001 to 0.25, got {error!r:.80}")
        self.name = "quantiles" if error == ERROR else written("quantiles", error=error)
        self.error = error
        self._steps = 2  # of each power of two; a power of two itself, so that all arithmetic is exact
        while 2 * error * self._steps < 1:
            self._steps *= 2
        self.max_bins = OCTAVES * self._steps
        self._last = (sys.float_info.max_exp - _LEAST_EXPONENT + 1) * self._steps

    def combine(self, a: Bins, b: Bins) -> Bins:
        """Values in the bins of both."""
        return self.fold((a, b))

    def fold(self, values: Iterable[Bins]) -> Bins:
        """Values in the bins of all, made in one go."""
        counts: dict[int, int] = {}
        for bins in values:
            for number, count in bins:
                counts[number] = counts.get(number, 0) + count
        if len(counts) > self.max_bins:
            for sign in (1, -1):
                self._join(counts, sign)
        return tuple(sorted(counts.items()))

    def lift(self, value: Any, event_time_us: int) -> Bins:
        """The bin of a number, or of the number that a text spells.

        Raises:
            InvalidRecord: the value is not a finite number, or is an int of more than `MAX_INT_BITS`.
        """
        number = lift_number(value)
        if not number:
            return ((0, 1),)
        try:
            magnitude = abs(float(number))
        except OverflowError:  # an int between the largest float and 2**1024
            magnitude = sys.float_info.max
        found = min(self._bin(magnitude), self._last)
        return ((found if number > 0 else -found, 1),)

    def quantile(self, state: Bins, q: float) -> float | None:
        """An estimate of the value that a share ``q`` of all values lies below: the one with rank ``q * (n - 1)``,
        rounded down, of ``n`` values in order, the least of which has rank 0. None of no values.

        Raises:
            ConfigurationError: ``q`` is not from 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ConfigurationError("q", f"expected a number from 0 to 1, got {q!r:.80}")
        rank = int(q * (sum(count for _, count in state) - 1))
        for number, count in state:
            if rank < count:
                return self._value(number)
            rank -= count
        return None

    def present(self, state: Bins) -> dict[float, float | None]:
        """Some quantiles, each None if there are no values."""
        return {q: self.quantile(state, q) for q in SHOWN}

    def decode(self, data: bytes) -> Bins:
        """Tuples of the JSON lists."""
        return tuple((number, count) for number, count in json.loads(data))

    def _bin(self, magnitude: float) -> int:
        """The number of a positive number's bin: at least 1, and larger for larger numbers."""
        fraction, exponent = math.frexp(magnitude)
        return (exponent - _LEAST_EXPONENT) * self._steps + round((2 * fraction - 1) * self._steps) + 1

    def _value(self, number: int) -> float:
        """The number at the middle of a bin."""
        exponent, step = divmod(abs(number) - 1, self._steps)
        magnitude = math.ldexp(1 + step / self._steps, exponent + _LEAST_EXPONENT - 1) if number else 0.0
        return math.copysign(magnitude, number)

    def _join(self, counts: dict[int, int], sign: int) -> None:
        """Join the bins nearest to zero of one sign, if there are too many."""
        numbers = sorted((number for number in counts if number * sign > 0), key=abs)
        kept = numbers[-self.max_bins :]
        for number in numbers[: -self.max_bins]:
            counts[kept[0]] += counts.pop(number)


MONOID = Quantiles()
