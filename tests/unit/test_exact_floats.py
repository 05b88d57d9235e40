"""`FloatSum`, `Mean` and `Variance`: exact, whatever the order of events; compared with fractions."""

from __future__ import annotations

import math
import random
import statistics
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import WrittenFloat
from murmur_beam.monoids import FloatSum, Mean, Moments, Variance
from murmur_beam.monoids.exact import nearest_root, read, written
from murmur_beam.testing import MonoidLaws

floats = st.floats(allow_nan=False, allow_infinity=False)
numbers = floats | st.integers(1 - 2**1024, 2**1024 - 1) | st.sampled_from([0.1, -0.1, 1e308, -1e308, 5e-324, 1e16])
ALL = pytest.mark.parametrize("monoid", [FloatSum(), Mean(), Variance()], ids=lambda monoid: monoid.name)


class TestFloatSumLaws(MonoidLaws):
    """Sums, also beyond the range of floats."""

    monoid = FloatSum()
    deltas = st.builds(FloatSum().lift, numbers, st.just(0))


class TestMeanLaws(MonoidLaws):
    """Means, of nothing too."""

    monoid = Mean()
    deltas = st.builds(Mean().lift, numbers, st.just(0))


class TestVarianceLaws(MonoidLaws):
    """Variances, of one value too."""

    monoid = Variance()
    deltas = st.builds(Variance().lift, numbers, st.just(0))


def folded(monoid: Any, values: list[Any]) -> Any:
    """The result of these values."""
    return monoid.present(monoid.fold(monoid.lift(value, 0) for value in values))


def nearest(exact: Fraction) -> float:
    """The float nearest to a fraction."""
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


@given(st.lists(numbers, max_size=8))
def test_results_are_the_floats_nearest_to_the_exact_ones(values: list[Any]) -> None:
    """Of sum, mean and variance: as fractions have them."""
    exact = [*map(Fraction, values)]
    assert folded(FloatSum(), values) == nearest(Fraction(sum(exact)))
    assert folded(Mean(), values) == (nearest(sum(exact) / len(exact)) if exact else None)
    found = folded(Variance(), values)
    assert found[:2] == (len(values), folded(Mean(), values))
    assert found.variance == (nearest(statistics.variance(exact)) if len(exact) > 1 else None)


@given(st.lists(numbers, min_size=2, max_size=5))
def test_the_deviation_is_the_float_nearest_to_the_root(values: list[Any]) -> None:
    """The exact one lies within half the distance to the floats beside it, also where the variance is beyond floats."""
    found, exact = folded(Variance(), values), statistics.variance(map(Fraction, values))
    assert (found.stddev == 0) == (exact == 0)
    if exact and math.isfinite(found.stddev):
        below, above = (Fraction(math.nextafter(found.stddev, to)) for to in (0.0, math.inf))
        middle = Fraction(found.stddev)
        assert ((below + middle) / 2) ** 2 <= exact <= ((middle + above) / 2) ** 2


@pytest.mark.parametrize(("more", "root"), [(-1, 2.0**53), (0, 2.0**53), (1, 2.0**53 + 2)])
def test_a_root_is_rounded_to_the_right_side(more: int, root: float) -> None:
    """Just below, at and just above the middle of two floats."""
    middle = 2**53 + 1
    assert nearest_root((middle * middle << 200) + more, 1 << 200) == root


@given(st.lists(floats.filter(lambda x: abs(x) < 1e300), max_size=20), st.randoms(use_true_random=False))
def test_a_sum_is_fsum_in_any_order(values: list[float], chance: random.Random) -> None:
    """And leaves the same bytes."""
    other = values.copy()
    chance.shuffle(other)
    monoid = FloatSum()
    assert folded(monoid, values) == math.fsum(values)
    for each in (monoid, Mean(), Variance()):
        one, two = ([each.lift(value, 0) for value in some] for some in (values, other))
        assert each.encode(each.fold(one)) == each.encode(each.fold(two))


def test_what_a_plain_sum_loses() -> None:
    """Small numbers beside large ones, tenths, and the variance of values that hardly differ."""
    assert folded(FloatSum(), [1e100, 1.0, -1e100]) == 1.0 != sum([1e100, 1.0, -1e100])
    assert folded(FloatSum(), [0.1] * 10) == 1.0 != 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1
    assert folded(Mean(), [0.1] * 3) == 0.1
    assert folded(Variance(), [1e9, 1e9 + 1, 1e9 + 2]) == Moments(3, 1e9 + 1, 1.0, 1.0)


def test_beyond_the_range_of_floats() -> None:
    """A result is infinite as long as it is there, in any order; the state is exact, so it comes back."""
    for sign in (1, -1):
        large = sign * 1.7e308
        assert folded(FloatSum(), [large, large]) == sign * math.inf
        assert folded(FloatSum(), [large, large, -large]) == large
        assert folded(Mean(), [large, large]) == large
    assert folded(Variance(), [1e200, -1e200]) == Moments(2, 0.0, math.inf, math.sqrt(2) * 1e200)
    assert folded(Variance(), [5e-324, 0.0])[2:] == (0.0, 5e-324)


def test_results_of_few_values() -> None:
    """Nothing adds up to zero, and has no mean; one value has no variance."""
    assert folded(FloatSum(), []) == folded(FloatSum(), [-0.0]) == 0.0
    assert math.copysign(1, folded(FloatSum(), [-0.0])) == 1
    assert (folded(Mean(), []), folded(Mean(), [7])) == (None, 7.0)
    assert folded(Variance(), []) == Moments(0, None, None, None)
    assert folded(Variance(), [7]) == Moments(1, 7.0, None, None)
    assert folded(Variance(), [2, 4, 4, 4, 5, 5, 7, 9]).variance == 32 / 7


@ALL
@pytest.mark.parametrize(
    ("value", "same"),
    [
        ("12.5", 12.5),
        (" -3 ", -3),
        ("9007199254740993", 2**53 + 1),
        (Decimal("0.1"), 0.1),
        (Decimal(2**53 + 1), 2**53 + 1),
        (WrittenFloat("0.10"), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (-0.0, 0),
        (1e300, int(1e300)),
    ],
    ids=repr,
)
def test_lift(monoid: Any, value: Any, same: Any) -> None:
    """Integers exactly, also beyond 2**53; other numbers as the nearest float."""
    assert monoid.encode(monoid.lift(value, 0)) == monoid.encode(monoid.lift(same, 0))
    assert monoid.lift(value, 0) != monoid.lift(2**53, 0)


@ALL
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.nan, "expected a finite number, got nan"),
        ("-Infinity", "expected a finite number, got -inf"),
        ("1e999", "expected a finite number, got inf"),
        (Decimal("1e999"), "expected a finite number, got inf"),
        (Decimal("NaN"), "expected a finite number, got nan"),
        (WrittenFloat("1e999"), "expected a finite number, got inf"),
        (2**1024, "an integer of 1025 bits, at most 1024 are allowed"),
        (True, "expected a number, got bool: True"),
        (None, "expected a number, got NoneType: None"),
        ("1,5", "'1,5' is not a number"),
    ],
    ids=repr,
)
def test_lift_refuses(monoid: Any, value: Any, problem: str) -> None:
    """What is not a number, and what no float can hold."""
    with pytest.raises(InvalidRecord) as caught:
        monoid.lift(value, 0)
    assert (caught.value.field, caught.value.problem) == ("value", problem)


@given(st.integers(-(2**3000), 2**3000))
def test_a_number_has_one_text(number: int) -> None:
    """Which is read again, and is the same whatever the unit."""
    assert read(written(number, 1074), 1074) == number
    assert written(number << 7, 1081) == written(number, 1074)


def test_states_are_small() -> None:
    """Those of numbers of similar size, and the largest there is."""
    monoid = FloatSum()
    cents = monoid.fold(monoid.lift(n / 100, 0) for n in range(100_000))
    assert len(monoid.encode(cents)) <= 30
    assert len(monoid.encode(2**64 * monoid.lift(2**1024 - 1, 0) + monoid.lift(5e-324, 0))) < 560
