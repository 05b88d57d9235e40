"""The laws of monoids: each shipped monoid satisfies them, and a broken monoid violates them."""

import functools
import json
import operator
import subprocess
import sys

import pytest
from hypothesis import strategies as st

from murmur_beam.monoids import (
    Count,
    Custom,
    First,
    Last,
    Max,
    Min,
    SetUnion,
    Sum,
)
from murmur_beam.testing import MonoidLaws
from tests.support.mean import MONOID as MEAN
from tests.support.mean import Mean
from tests.support.monoids import ALIKE, extend

try:
    from apache_beam.internal.cloudpickle import cloudpickle
except ImportError:  # older Beam depends on it instead of shipping it
    import cloudpickle

from tests.support.monoids import FLAGS, WORDS, label

numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**100), 2**100),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**53, 2**53 + 1, 2.0**53, -0.0, 0.5]),
)
json_values = st.one_of(
    st.sampled_from(ALIKE),
    st.text(max_size=3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.dictionaries(st.text(max_size=2), st.integers(-3, 3), max_size=3),
)
small_ints = st.integers(-9, 9)
few_times = st.integers(-1, 1)  # so that ties are frequent


class TestSumLaws(MonoidLaws):
    """Sums far enough from the limits of int64 that nothing overflows."""

    monoid = Sum()
    deltas = st.integers(-(2**50), 2**50)


class TestMeanLaws(MonoidLaws):
    """A monoid of another package, whose results are not what is stored."""

    monoid = MEAN
    deltas = st.builds(MEAN.lift, st.integers(), st.just(0))


class TestCountLaws(MonoidLaws):
    """Counts, also of amounts counted before."""

    monoid = Count()
    deltas = st.one_of(st.just(1), st.integers(0, 2**50))


class TestMinLaws(MonoidLaws):
    """Minima of ints and floats mixed."""

    monoid = Min()
    deltas = st.builds(Min().lift, numbers, few_times)


class TestMaxLaws(MonoidLaws):
    """Maxima of ints and floats mixed."""

    monoid = Max()
    deltas = st.builds(Max().lift, numbers, few_times)


class TestFirstLaws(MonoidLaws):
    """First values, with many ties."""

    monoid = First()
    deltas = st.builds(First().lift, json_values, few_times)


class TestLastLaws(MonoidLaws):
    """Last values, with many ties."""

    monoid = Last()
    deltas = st.builds(Last().lift, json_values, few_times)


class TestSetUnionLaws(MonoidLaws):
    """Sets of strings and ints mixed."""

    monoid = SetUnion()
    deltas = st.builds(
        SetUnion().lift, st.lists(st.one_of(st.text(max_size=2), st.integers(-3, 3)), max_size=4), few_times
    )


class TestFlagsLaws(MonoidLaws):
    """A `Custom` of a function of the standard library."""

    monoid = FLAGS
    deltas = st.integers(0, 255)


class TestWordsLaws(MonoidLaws):
    """A `Custom` of lambdas with a codec of its own, which depends on the order."""

    monoid = WORDS
    deltas = st.lists(st.text("ab", min_size=1, max_size=2), max_size=3).map(tuple)
    pickler = cloudpickle


# The laws themselves: each must fail for a monoid that breaks it.


class WrongIdentity(Sum):
    identity = 1


class Difference(Sum):
    def combine(self, a, b):
        return a - b


class IdempotentSum(Sum):
    idempotent = True


class ForgetsLast(Sum):
    def fold(self, values):
        return functools.reduce(self.combine, list(values)[:-1], 0)


class FoldsListsOnly(Sum):
    def fold(self, values):
        return sum(values[:])


class RoundTotals(Sum):
    def total(self, values):
        return round(sum(values), -1)


class ArrivalOrder(SetUnion):
    """A union whose bytes depend on the order in which its members came."""

    identity = ()

    def combine(self, a, b):
        return a + tuple(member for member in b if member not in a)

    fold = Sum.__mro__[1].fold

    def encode(self, v):
        return json.dumps(v).encode()

    def decode(self, data):
        return tuple(json.loads(data))


class ForgetsTuple(First):
    def decode(self, data):
        return json.loads(data)


class ForgetsValue(Sum):
    def encode(self, v):
        return b"0"


class EncodesText(Sum):
    def encode(self, v):
        return str(v)


class ForgetsName(Sum):
    def __init__(self, name="sum"):
        self.name = name

    def __reduce__(self):
        return ForgetsName, ()


class MeanOfSome(Mean):
    def present(self, state):
        return state[0] / state[1]


class Sorts(Custom):
    """Puts a list in order to show it, and so changes it."""

    def __init__(self):
        super().__init__("lists", [], lambda a, b: a + b)

    def present(self, state):
        state.sort()
        return state


@pytest.mark.parametrize(
    ("law", "monoid", "deltas"),
    [
        ("test_identity", WrongIdentity(), small_ints),
        ("test_associativity", Difference(), small_ints),
        ("test_commutativity", Difference(), small_ints),
        ("test_commutativity", Custom("text", "", operator.add), st.text("ab")),
        ("test_idempotence", IdempotentSum(), small_ints),
        # combine(a, a) == a holds for this one; a repeated value later on is what it gets wrong.
        ("test_idempotence", Custom("newest", "", lambda a, b: b or a, idempotent=True), st.text("ab", min_size=1)),
        ("test_fold", ForgetsLast(), small_ints),
        ("test_total", RoundTotals(), small_ints),
        ("test_equal_aggregates_have_equal_bytes", ForgetsLast(), small_ints),
        ("test_equal_aggregates_have_equal_bytes", ArrivalOrder(), st.tuples(small_ints)),
        ("test_encoding", ForgetsTuple(), st.builds(First().lift, json_values, few_times)),
        ("test_encoding", ForgetsValue(), small_ints),
        ("test_encoding", EncodesText(), small_ints),
        ("test_arguments_are_left_alone", Custom("extend", [], extend), st.lists(small_ints)),
        ("test_presentation", MeanOfSome(), st.builds(MEAN.lift, small_ints, st.just(0))),
        ("test_presentation", Sorts(), st.lists(small_ints)),
        ("test_pickling", ForgetsName("mine"), small_ints),
        ("test_pickling", WORDS, st.just(())),
    ],
    ids=label,
)
def test_laws_fail_for_a_broken_monoid(law, monoid, deltas):
    """A law that cannot fail checks nothing."""
    laws = type("Laws", (MonoidLaws,), {"monoid": monoid, "deltas": deltas})()
    with pytest.raises(AssertionError):
        getattr(laws, law)()


@pytest.mark.parametrize("missing", ["monoid", "deltas"])
def test_a_missing_attribute_is_named(missing):
    """By each law that needs it, with the class."""
    given = {"monoid": Sum(), "deltas": small_ints}
    del given[missing]
    laws = type("Laws", (MonoidLaws,), given)()
    with pytest.raises(AssertionError, match=f"Laws must define {missing}, "):
        laws.test_identity()


def test_a_presentation_that_fails_is_reported_with_its_state():
    """Here the state of nothing, which each bucket without events has."""
    laws = type("Laws", (MonoidLaws,), {"monoid": MeanOfSome(), "deltas": st.just((1, 1))})()
    with pytest.raises(AssertionError, match=r"present\(a\) fails for \(0, 0\): ZeroDivisionError"):
        laws.test_presentation()


def test_the_law_of_fold_requires_any_iterable():
    """A fold that only accepts lists fails its law, as a store may pass a generator."""
    laws = type("Laws", (MonoidLaws,), {"monoid": FoldsListsOnly(), "deltas": small_ints})()
    with pytest.raises(TypeError):
        laws.test_fold()


def test_a_broken_law_reports_the_difference():
    """With the expression, and both results."""
    laws = type("Laws", (MonoidLaws,), {"monoid": WrongIdentity(), "deltas": small_ints})()
    with pytest.raises(AssertionError, match=r"combine\(identity, a\) is -?\d+, but a is -?\d+"):
        laws.test_identity()


def test_laws_accept_types_without_equality():
    """A type that has no equality of its own is compared by its bytes alone."""

    class Box:
        def __init__(self, n):
            self.n = n

    class Boxes(MonoidLaws):
        monoid = Custom(
            "box",
            Box(0),
            lambda a, b: Box(a.n + b.n),
            encode=lambda box: b"%d" % box.n,
            decode=lambda data: Box(int(data)),
        )
        deltas = small_ints.map(Box)

    Boxes().test_encoding()


def test_testing_imports_without_the_extra():
    """Without Hypothesis the other helpers still import, and a law says what to install."""
    program = """
import sys
sys.modules["hypothesis"] = sys.modules["pytest"] = None
from murmur_beam.monoids import Sum
from murmur_beam.testing import FakeClock, MonoidLaws
laws = MonoidLaws()
laws.monoid, laws.deltas = Sum(), None
try:
    laws.test_identity()
except ImportError as err:
    print(err)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "MonoidLaws needs hypothesis: pip install 'murmur-beam[test]'\n"
