"""`quantiles` is a monoid, keeps its promise of accuracy, and stays small."""

from __future__ import annotations

import bisect
import itertools
import math
import random
import sys
from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.monoids import Quantiles, by_name
from murmur_beam.monoids.quantiles import OCTAVES, SHOWN, Bins
from murmur_beam.testing import MonoidLaws

NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-200, 200), st.integers())


class Few(Quantiles):
    """With so few bins that they are joined all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.max_bins = 3


class TestQuantilesLaws(MonoidLaws):
    """All finite numbers."""

    monoid = Quantiles()
    deltas = st.builds(Quantiles().lift, NUMBERS, st.just(0))


class TestCoarseLaws(MonoidLaws):
    """Another accuracy."""

    monoid = Quantiles(error=0.25)
    deltas = st.builds(Quantiles(error=0.25).lift, NUMBERS, st.just(0))


class TestLawsWhereBinsAreJoined(MonoidLaws):
    """The result of joining must not depend on the order either."""

    monoid = Few()
    deltas = st.builds(Few().lift, st.integers(-40, 40), st.just(0))

    def aggregates(self) -> st.SearchStrategy[Bins]:
        return st.lists(self.deltas, max_size=12).map(self.monoid.fold)


def histogram(values: Iterable[float], monoid: Quantiles) -> Bins:
    """The aggregate of some values."""
    return monoid.fold(monoid.lift(value, 0) for value in values)


@pytest.mark.parametrize("error", [0.001, 0.01, 0.03, 0.25])
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_each_number_is_known_within_the_error(error: float, value: float) -> None:
    """From the smallest to the largest, of both signs; zero exactly."""
    monoid = Quantiles(error=error)
    found = monoid.quantile(monoid.lift(value, 0), 0.5)
    assert found is not None
    assert abs(found - value) <= error * abs(value)


@pytest.mark.parametrize(
    "value", [5e-324, 1e-323, sys.float_info.min, sys.float_info.max, -sys.float_info.max, 2**1024 - 1, 1 - 2**1024]
)
def test_the_ends_of_the_range_are_within_the_error(value: float) -> None:
    """Denormal numbers, the largest float, and integers beyond it."""
    monoid = Quantiles()
    found = monoid.quantile(monoid.lift(value, 0), 0)
    assert found is not None
    assert abs(Fraction(found) - Fraction(value)) <= abs(Fraction(value)) / 100


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("spread", "mean"), [(0.2, 3.0), (2.0, -5.0), (3.0, 0.0)], ids=["narrow", "wide", "around 1"])
def test_quantiles_are_within_the_error(seed: int, spread: float, mean: float) -> None:
    """Of 20,000 numbers, a third of them negative, compared with the sorted list."""
    chance = random.Random(seed)
    values = sorted(chance.lognormvariate(mean, spread) * chance.choice((1, 1, -1)) for _ in range(20_000))
    monoid = Quantiles()
    state = histogram(values, monoid)
    for q in (0, 0.001, 0.01, 0.25, 1 / 3, 0.5, 0.9, 0.95, 0.99, 0.999, 1):
        exact, found = values[int(q * (len(values) - 1))], monoid.quantile(state, q)
        assert found is not None
        assert abs(found - exact) <= 0.01 * abs(exact), q


@given(values=st.lists(st.integers(-128, 128), min_size=1), q=st.floats(0, 1))
def test_whole_numbers_up_to_128_are_exact(values: list[int], q: float) -> None:
    """Such as minutes, ages or HTTP retries."""
    monoid = Quantiles()
    assert monoid.quantile(histogram(values, monoid), q) == sorted(values)[int(q * (len(values) - 1))]


def test_some_quantiles_are_presented() -> None:
    """Others on demand."""
    monoid = Quantiles()
    state = histogram(range(1, 101), monoid)
    assert monoid.present(state) == {0.5: 50, 0.9: 90, 0.95: 95, 0.99: 99}
    assert monoid.quantile(state, 0.25) == 25
    assert monoid.present(monoid.identity) == dict.fromkeys(SHOWN)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigurationError, match="q: expected a number from 0 to 1"):
            monoid.quantile(state, wrong)


@pytest.mark.parametrize(("error", "bins"), [(0.001, 16_384), (0.01, 2_048), (0.25, 64)])
def test_the_number_of_bins_is_bounded(error: float, bins: int) -> None:
    """By joining those nearest to zero; at least 32 powers of two are left as they are."""
    monoid = Quantiles(error=error)
    values = [2 ** (0.003 * n) for n in range(-20_000, 20_000)]
    state = histogram([*values, *(-value for value in values)], monoid)
    assert len(state) == 2 * bins
    assert sum(count for _, count in state) == 2 * len(values)
    kept = bisect.bisect(values, values[-1] / 2 ** (OCTAVES - 1))
    for rank, exact in list(enumerate(values))[kept::100]:
        found = monoid.quantile(state, (len(values) + rank + 0.5) / (2 * len(values) - 1))
        assert found is not None
        assert abs(found - exact) <= error * exact
    if error == 0.01:
        assert len(monoid.encode(state)) < 90_000


def test_any_order_and_grouping_of_joins_gives_the_same_bytes() -> None:
    """Of 5,000 numbers with far more bins than are kept."""
    chance = random.Random(7)
    monoid = Quantiles(error=0.25)
    deltas = [monoid.lift(chance.choice((1, -1)) * 2 ** chance.uniform(-900, 900), 0) for _ in range(5_000)]
    wanted = monoid.encode(monoid.fold(deltas))
    for _ in range(5):
        chance.shuffle(deltas)
        cuts = [0, *sorted(chance.sample(range(5_000), 40)), 5_000]
        parts = [monoid.fold(deltas[start:end]) for start, end in itertools.pairwise(cuts)]
        chance.shuffle(parts)
        assert monoid.encode(monoid.fold(parts)) == wanted


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.nan, "expected a finite number, got nan"),
        (-math.inf, "expected a finite number, got -inf"),
        ("nan", "expected a finite number, got nan"),
        ("1,5", "'1,5' is not a number"),
        (True, "expected a number, got bool: True"),
        (None, "expected a number, got NoneType: None"),
        ([1], "expected a number, got list: [1]"),
        (2**1024, "an integer of 1025 bits, at most 1024 are allowed"),
    ],
)
def test_what_is_not_a_finite_number_is_refused(value: object, problem: str) -> None:
    """As `Min` and `Max` do."""
    with pytest.raises(InvalidRecord) as caught:
        Quantiles().lift(value, 0)
    assert (caught.value.field, caught.value.problem) == ("value", problem)


def test_numbers_are_read_from_text() -> None:
    """Equal numbers have one form."""
    monoid = Quantiles()
    assert monoid.lift("1.50", 0) == monoid.lift(1.5, 0)
    assert monoid.lift("3", 0) == monoid.lift(3, 0) == monoid.lift(3.0, 0)
    assert monoid.lift(-0.0, 0) == monoid.lift(0, 0)


def test_a_delta_is_small() -> None:
    """It is stored for each event of a table that is appended to."""
    assert Quantiles().encode(Quantiles().lift(1.5, 0)) == b"[[68769,1]]"


def test_the_error_is_part_of_the_name() -> None:
    """The default has none."""
    assert Quantiles().name == Quantiles(error=0.01).name == by_name("quantiles").name == "quantiles"
    assert Quantiles(error=0.005).name == by_name("quantiles(error=0.005)").name == "quantiles(error=0.005)"
    for wrong in (0.0005, 0.3, True, "0.1", 1):
        with pytest.raises(ConfigurationError, match=r"error: expected a number from 0\.001 to 0\.25, got"):
            Quantiles(error=wrong)  # type: ignore[arg-type]
