"""The shipped monoids: what they accept and refuse, by example."""

import enum
import functools
import itertools
import math
import operator
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from murmur_beam import monoids
from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError
from murmur_beam.monoids import (
    Count,
    Custom,
    First,
    Last,
    Max,
    Min,
    Monoid,
    Overflow,
    SetUnion,
    Sum,
    Timed,
    by_name,
    names,
)
from tests.support.mean import MONOID as MEAN
from tests.support.monoids import ALIKE, extend

try:
    from apache_beam.internal.cloudpickle import cloudpickle
except ImportError:  # older Beam depends on it instead of shipping it
    import cloudpickle

from tests.support.monoids import FLAGS, GCD, INT64_MAX, INT64_MIN, WORDS, label

# What `lift` accepts and refuses.


class Color(int, enum.Enum):
    RED = 1


TOO_DEEP = functools.reduce(lambda inner, _: [inner], range(100_000), [])


@pytest.mark.parametrize(
    ("monoid", "value", "problem"),
    [
        (Sum(), True, "expected an integer, got bool: True"),
        (Sum(), 1.0, "expected an integer, got float: 1.0; count in the smallest unit, such as cents"),
        (Sum(), math.nan, "expected an integer, got float: nan; count in the smallest unit, such as cents"),
        (Sum(), None, "expected an integer, got NoneType: None"),
        (Sum(), "one", "'one' is not an integer"),
        (Sum(), Decimal(1), "expected an integer, got Decimal: Decimal('1')"),
        (Sum(), np.float64(1), "expected an integer, got float: 1.0; count in the smallest unit, such as cents"),
        (Sum(), np.bool_(True), "expected an integer, got bool: True"),
        (Sum(), np.array([1]), "expected an integer, got ndarray: array([1])"),
        (Sum(), Color.RED, "expected an integer, got Color: <Color.RED: 1>"),
        (Sum(), INT64_MAX + 1, "9223372036854775808 does not fit into a signed 64-bit integer"),
        (Sum(), INT64_MIN - 1, "-9223372036854775809 does not fit into a signed 64-bit integer"),
        (Min(), True, "expected a number, got bool: True"),
        (Min(), math.nan, "expected a finite number, got nan"),
        (Min(), -math.inf, "expected a finite number, got -inf"),
        (Min(), None, "expected a number, got NoneType: None"),
        (Min(), "one", "'one' is not a number"),
        (Min(), np.float32("nan"), "expected a finite number, got nan"),
        (Min(), 1 + 0j, "expected a number, got complex: (1+0j)"),
        (Min(), 10**5000, "an integer of 16610 bits, at most 1024 are allowed"),
        (Max(), False, "expected a number, got bool: False"),
        (Max(), math.nan, "expected a finite number, got nan"),
        (Max(), math.inf, "expected a finite number, got inf"),
        (Max(), -(2**1024), "an integer of 1025 bits, at most 1024 are allowed"),
        (First(), {1, 2}, "set has no JSON form: Object of type set is not JSON serializable"),
        (First(), math.nan, "float has no JSON form: Out of range float values are not JSON compliant"),
        (First(), [math.inf], "list has no JSON form: Out of range float values are not JSON compliant"),
        (First(), {"a": b"1"}, "dict has no JSON form: Object of type bytes is not JSON serializable"),
        (First(), {1: 2, "1": 3}, "dict has no JSON form: '<' not supported between instances of "),
        (First(), TOO_DEEP, "list has no JSON form: maximum recursion depth exceeded"),
        (Last(), "\ud800", "str has no JSON form: 'utf-8' codec can't encode character '\\ud800'"),
        (Last(), 10**5000, "int has no JSON form: Exceeds the limit (4300"),
        (Last(), object, "type has no JSON form: Object of type type is not JSON serializable"),
        (SetUnion(), 1.5, "expected strings and integers, got float: 1.5"),
        (SetUnion(), True, "expected strings and integers, got bool: True"),
        (SetUnion(), None, "expected strings and integers, got NoneType: None"),
        (SetUnion(), ["a", 1.0], "expected strings and integers, got float: 1.0"),
        (SetUnion(), [["a"]], "expected strings and integers, got list: ['a']"),
        (SetUnion(), {"a": 1}, "expected strings and integers, got dict: {'a': 1}"),
        (SetUnion(), b"a", "expected strings and integers, got bytes: b'a'"),
        (SetUnion(), Color.RED, "expected strings and integers, got Color: <Color.RED: 1>"),
        (SetUnion(), ["a", "\udfff"], "has no UTF-8 form (surrogates not allowed): '\\udfff'"),
        (SetUnion(), 2**1024, "an integer of 1025 bits, at most 1024 are allowed"),
        (FLAGS, "1", "flags cannot take str: TypeError: unsupported operand type(s) for |: 'int' and 'str'"),
        (FLAGS, True, "flags cannot take b'true': combined with the identity it becomes b'1'"),
        (WORDS, 7, "words cannot take int: AttributeError: 'int' object has no attribute 'split'"),
        (Custom("max", 0, max), math.nan, "max cannot take float: ValueError: Out of range float values are not JSON"),
        (Custom("max", 0, max), -1, "max cannot take b'-1': combined with the identity it becomes b'0'"),
    ],
    ids=label,
)
def test_lift_refuses(monoid, value, problem):
    """A value that the monoid cannot fold is refused at once, with its type and what was expected."""
    with pytest.raises(InvalidRecord) as caught:
        monoid.lift(value, 0)
    assert caught.value.field == "value"
    assert caught.value.problem.startswith(problem)


@pytest.mark.parametrize(
    ("monoid", "value", "delta"),
    [
        (Sum(), INT64_MAX, INT64_MAX),
        (Sum(), INT64_MIN, INT64_MIN),
        (Count(), "anything", 1),
        (Count(), None, 1),
        (Count(), math.nan, 1),
        (Min(), -0.0, 0),
        (Min(), 1.0, 1),
        (Min(), 1e300, int(1e300)),
        (Max(), -1.5, -1.5),
        (Max(), 2**1024 - 1, 2**1024 - 1),
        (First(), (1, 2.0, -0.0, True), Timed(7, [1, 2.0, -0.0, True])),
        (First(), {2: None}, Timed(7, {"2": None})),
        (Last(), None, Timed(7, None)),
        (Last(), "\u00e9\U0001f600", Timed(7, "\u00e9\U0001f600")),
        (SetUnion(), "tag", frozenset(["tag"])),
        (SetUnion(), "", frozenset([""])),
        (SetUnion(), -(2**70), frozenset([-(2**70)])),
        (SetUnion(), ["b", 1, "1", "b"], frozenset(["b", 1, "1"])),
        (SetUnion(), {"a"}, frozenset(["a"])),
        (SetUnion(), frozenset([2]), frozenset([2])),
        (SetUnion(), (), frozenset()),
        (FLAGS, 5, 5),
        (WORDS, "b a", ("b", "a")),
    ],
    ids=label,
)
def test_lift(monoid, value, delta):
    """Equal values become the same delta, with the record's event time where it matters."""
    lifted = monoid.lift(value, 7)
    assert (lifted, type(lifted)) == (delta, type(delta))
    assert monoid.encode(lifted) == monoid.encode(delta)  # distinguishes 1 from 1.0 and True, and -0.0 from 0.0


def test_mutable_values_are_copied():
    """Later changes to a record's value do not reach the aggregate."""
    value = {"tags": ["a"]}
    delta = First().lift(value, 0)
    value["tags"].append("b")
    assert delta.value == {"tags": ["a"]}


@pytest.mark.parametrize(
    ("monoid", "text", "delta"),
    [
        (Sum(), "12", 12),
        (Sum(), " +12 ", 12),
        (Sum(), "-9223372036854775808", INT64_MIN),
        (Sum(), "9007199254740993", 2**53 + 1),
        (Min(), "12", 12),
        (Min(), "-1.50", -1.5),
        (Max(), "1e3", 1000),
        (Max(), ".5", 0.5),
        (Max(), "340282366920938463463374607431768211457", 2**128 + 1),
        (First(), "12", Timed(7, "12")),
        (SetUnion(), "12", frozenset(["12"])),
        (WORDS, "12", ("12",)),
    ],
    ids=label,
)
def test_numbers_are_read_from_text(monoid, text, delta):
    """Monoids of numbers read them from text of any origin; for the others the text is the value."""
    lifted = monoid.lift(text, 7)
    assert (lifted, type(lifted)) == (delta, type(delta))


@pytest.mark.parametrize(
    ("monoid", "text", "problem"),
    [
        (Sum(), "1.5", "'1.5' is not an integer"),
        (Sum(), "5.0", "'5.0' is not an integer"),
        (Sum(), "", "'' is not an integer"),
        (Sum(), "1_000", "'1_000' is not an integer"),
        (Sum(), "\u0661", "'\u0661' is not an integer"),
        (Sum(), "5\n", "'5\\n' is not an integer"),
        (Sum(), "9" * 5000, f"'{'9' * 79} is not an integer"),
        (Min(), "", "'' is not a number"),
        (Max(), "1,5", "'1,5' is not a number"),
        (Min(), "nan", "expected a finite number, got nan"),
        (Max(), "-Infinity", "expected a finite number, got -inf"),
        (Max(), "1e999", "expected a finite number, got inf"),
        (Max(), "9" * 5000, "expected a finite number, got inf"),
    ],
    ids=label,
)
def test_text_that_is_not_a_number_is_refused(monoid, text, problem):
    """The error shows the text, so that the record can be mended."""
    with pytest.raises(InvalidRecord) as caught:
        monoid.lift(text, 0)
    assert (caught.value.field, caught.value.problem) == ("value", problem)


@pytest.mark.parametrize(
    ("monoid", "value", "delta"),
    [
        (Sum(), np.int64(4), 4),
        (Sum(), np.uint8(255), 255),
        (Sum(), np.array(7), 7),
        (Min(), np.float32(0.5), 0.5),
        (Max(), np.int16(-3), -3),
        (Last(), np.int64(4), Timed(7, 4)),
        (First(), np.bool_(True), Timed(7, True)),
        (Last(), np.str_("a"), Timed(7, "a")),
        (SetUnion(), np.int64(4), frozenset([4])),
        (SetUnion(), [np.str_("a"), np.int8(1)], frozenset(["a", 1])),
    ],
    ids=label,
)
def test_numpy_scalars_are_converted(monoid, value, delta):
    """Rows of pandas, Arrow and xarray hold them."""
    lifted = monoid.lift(value, 7)
    assert (lifted, type(lifted)) == (delta, type(delta))
    assert monoid.encode(lifted) == monoid.encode(delta)


class TestWithinAMicrosecond:
    def test_events_are_ordered_by_their_nanoseconds(self):
        """Whatever their values, and whatever order they arrive in."""
        older, newer = Last().lift_ns("z", 7, 100), Last().lift_ns("a", 7, 900)
        assert Last().combine(older, newer) == Last().combine(newer, older) == newer
        assert First().combine(older, newer) == First().combine(newer, older) == older
        assert Last().combine(newer, Timed(8, "a")) == Timed(8, "a")

    def test_nanoseconds_are_stored_only_where_there_are_any(self):
        """So that times without them keep their bytes."""
        assert Last().encode(Last().lift_ns("a", 7, 0)) == b'[7,"a"]'
        assert Last().encode(Last().lift_ns("a", 7, 9)) == b'[7,"a",9]'
        assert Last().decode(b'[7,"a",9]') == Timed(7, "a", 9)
        assert Last().decode(b'[7,"a"]') == Timed(7, "a", 0)

    @pytest.mark.parametrize("monoid", [Sum(), Max(), SetUnion()], ids=label)
    def test_other_monoids_ignore_nanoseconds(self, monoid):
        """Their deltas hold no time."""
        assert monoid.lift_ns(5, 7, 100) == monoid.lift(5, 7)


# How values combine.


def test_sum_at_the_limits_of_int64():
    """A sum reaches both limits exactly."""
    assert Sum().combine(INT64_MAX - 1, 1) == INT64_MAX
    assert Sum().combine(INT64_MIN + 1, -1) == INT64_MIN
    assert Sum().fold([INT64_MAX, INT64_MIN]) == -1


@pytest.mark.parametrize("values", [[INT64_MAX, 1], [INT64_MIN, -1], [INT64_MAX] * 3, [INT64_MIN] * 3])
@pytest.mark.parametrize("fold", [Sum().fold, Count().fold, functools.partial(functools.reduce, Sum().combine)])
def test_sum_overflow(values, fold):
    """A sum that leaves int64 is an error that no retry cures, and never wraps."""
    with pytest.raises(
        Overflow, match=r"^value: the sum would be -?\d+, which does not fit into a signed 64-bit integer$"
    ):
        fold(values)
    assert issubclass(Overflow, PermanentError)


def test_sum_may_overflow_within_a_fold():
    """Only the total has to fit: amounts that cancel out within one fold do not overflow."""
    assert Sum().fold([INT64_MAX, 1, -1]) == INT64_MAX


@pytest.mark.parametrize("monoid", [Sum(), Count(), Sum().of("cents")], ids=label)
def test_a_total_of_sums_is_exact(monoid):
    """It is presented and not stored, so it is not limited to 64 bits; its bytes are its digits."""
    assert monoid.total([INT64_MAX] * 3) == 3 * INT64_MAX
    assert monoid.total(iter([INT64_MIN, -1])) == INT64_MIN - 1
    assert monoid.total([]) == 0
    assert monoid.encode(monoid.total([INT64_MAX, 1])) == b"9223372036854775808"


def test_a_total_of_other_monoids_is_their_fold():
    """Unless they define another."""
    assert Max().total([3, 5, None]) == 5
    assert SetUnion().total([]) == frozenset()
    with pytest.raises(PermanentError, match="too large"):
        Custom("small", 0, _small).total([9, 9])


def _small(a, b):
    if a + b > 10:
        raise PermanentError("too large")
    return a + b


def test_count_is_a_sum():
    """A count's state is a sum, by native operation and bytes; only the name differs."""
    assert (Count().name, Sum().name) == ("count", "sum")
    assert Count().native == Sum().native == "sum"
    assert (Count().needs_value, Sum().needs_value) == (False, True)
    assert Count().fold(Count().lift(value, 0) for value in ["x", 5, None]) == 3
    assert Sum().decode(Count().encode(3)) == 3


@pytest.mark.parametrize(
    ("a", "b"),
    [(-1, 0), (1, 1.5), (-0.5, 0), (2**53, 2**53 + 1), (float(2**53), 2**53 + 1), (-(2**1023), -1e300), (5e-324, 1)],
)
def test_min_and_max(a, b):
    """Ints and floats compare exactly, without rounding the int, whichever comes first."""
    a, b = Min().lift(a, 0), Min().lift(b, 0)
    assert Min().combine(a, b) == Min().combine(b, a) == Min().fold([b, a]) == a
    assert Max().combine(a, b) == Max().combine(b, a) == Max().fold([b, a]) == b


def test_equal_numbers_have_one_encoding():
    """Equal ints and floats leave the same bytes, whichever came first; zero has no sign."""
    for monoid in (Min(), Max()):
        for alike in ([0, 0.0, -0.0], [10**20, 1e20], [-3, -3.0]):
            assert len({monoid.encode(monoid.lift(value, 0)) for value in alike}) == 1


def test_first_and_last_compare_event_times():
    """The earliest and the latest event win, in whatever order they arrive, and whatever their values."""
    early, late = Timed(-5, "z"), Timed(3, None)
    for events in ([early, late], [late, early]):
        assert First().fold(events) == early
        assert Last().fold(events) == late


@pytest.mark.parametrize("monoid", [First(), Last()], ids=label)
def test_ties(monoid):
    """At equal event times the winner depends on the values alone, even where Python considers them equal."""
    deltas = [monoid.lift(value, 1) for value in ALIKE]
    for a, b in itertools.combinations(deltas, 2):
        assert monoid.encode(a) != monoid.encode(b)
        assert monoid.encode(monoid.combine(a, b)) == monoid.encode(monoid.combine(b, a))


def test_ties_of_first_and_last_differ():
    """At equal event times first keeps the text that sorts first, last the one that sorts last."""
    events = [First().lift(value, 1) for value in (True, 1, "1", 1.0)]  # as JSON: true 1 "1" 1.0
    assert repr(First().fold(events).value) == "'1'"
    assert repr(Last().fold(events).value) == "True"
    assert repr(First().fold(events[:2]).value) == "1"
    assert repr(Last().fold(events[1:]).value) == "1.0"


def test_the_order_of_keys_makes_no_difference():
    """Dicts that differ in the order of their keys are the same value, with the same bytes."""
    a, b = (First().lift(value, 1) for value in ({"x": 1, "y": 2}, {"y": 2, "x": 1}))
    assert First().encode(a) == First().encode(b) == b'[1,{"x":1,"y":2}]'


def test_integer_keys_sort_as_text():
    """Keys that JSON turns into text are sorted as text, so that decoded and fresh values have the same bytes."""
    delta = Last().lift({10: "a", 9: "b"}, 1)
    assert Last().encode(delta) == b'[1,{"10":"a","9":"b"}]'
    assert Last().encode(Last().decode(Last().encode(delta))) == Last().encode(delta)


@pytest.mark.parametrize("monoid", [Min(), Max(), First(), Last()], ids=label)
def test_aggregates_begin_without_a_value(monoid):
    """The aggregate is then `None`, which has bytes like any other."""
    assert monoid.identity is None
    assert monoid.fold([]) is None
    assert monoid.decode(monoid.encode(None)) is None


def test_last_distinguishes_none_from_no_value():
    """A record may have the value `None`."""
    assert Last().fold([Timed(1, "x"), Timed(2, None)]) == Timed(2, None)
    assert Last().decode(Last().encode(Timed(2, None))) == Timed(2, None)


def test_set_union():
    """Members are kept once each, and 1 and "1" are two; bytes list ints in order, then strings by code point."""
    union = SetUnion().fold(SetUnion().lift(value, 0) for value in ["b", 10, ["1", 9], 1, "b", "B", "\u00e9", -1])
    assert union == {"b", 10, "1", 9, 1, "B", "\u00e9", -1}
    assert SetUnion().encode(union) == '[-1,1,9,10,"1","B","b","\u00e9"]'.encode()


@pytest.mark.parametrize(
    ("monoid", "value", "data"),
    [
        (Sum(), -5, b"-5"),
        (Min(), None, b"null"),
        (Max(), 1.5, b"1.5"),
        (First(), Timed(-1, "a"), b'[-1,"a"]'),
        (Last(), Timed(2, [None]), b"[2,[null]]"),
        (SetUnion(), frozenset(), b"[]"),
        (FLAGS, 3, b"3"),
        (WORDS, ("a", "b"), b"a\nb"),
    ],
    ids=label,
)
def test_stored_bytes_stay_the_same(monoid, value, data):
    """Another release must read them."""
    assert monoid.encode(value) == data
    assert monoid.decode(data) == value


def test_which_are_idempotent():
    """Sums are not idempotent and need markers; monoids that select or collect are."""
    assert not any(by_name(name).idempotent for name in ("count", "sum"))
    assert all(by_name(name).idempotent for name in ("first", "last", "max", "min", "set_union"))
    assert all(by_name(name).commutative for name in ("count", "first", "last", "max", "min", "set_union", "sum"))


class Ones(Monoid[int]):
    """All that a monoid needs but a name and an identity."""

    def combine(self, a, b):
        return a + b

    def lift(self, value, event_time_us):
        return 1


class WithoutIdentity(Ones):
    name = "ones"


class WithoutName(Ones):
    identity = 0


class OwnIdentity(WithoutIdentity):
    """Its identity depends on an argument."""

    def __init__(self, identity):
        self.identity = identity


@pytest.mark.parametrize(("monoid", "missing"), [(WithoutIdentity, "identity"), (WithoutName, "name")])
def test_an_incomplete_monoid_cannot_be_made(monoid, missing):
    """The error names the class and what it lacks; that a method is missing is Python's own error."""
    with pytest.raises(TypeError, match=f"^{monoid.__name__} is a Monoid without {missing}; set it in the class$"):
        monoid()


def test_an_identity_may_be_made_by_the_constructor():
    """As that of a list of N zeros."""
    assert OwnIdentity(5).fold([1]) == 6


# What is shown.


def test_a_mean_is_presented():
    """Stored as a sum and a count, shown as a mean."""
    assert MEAN.present(MEAN.fold([MEAN.lift(4, 0), MEAN.lift(5, 0)])) == 4.5
    assert MEAN.present(MEAN.identity) is None
    assert by_name("tests.support.mean:MONOID") is MEAN


def test_without_a_presentation_the_aggregate_is_shown():
    """Itself, whatever the monoid."""
    state = [1]
    assert Custom("list", [], lambda a, b: a + b).present(state) is state
    assert Sum().present(5) == 5
    assert Last().present(Timed(1, "x")) == Timed(1, "x")


def test_a_function_presents_a_custom_aggregate():
    """It is called with the aggregate."""
    mean = Custom("mean", [0, 0], lambda a, b: [a[0] + b[0], a[1] + b[1]], present=lambda state: state[0] / state[1])
    assert mean.present([9, 2]) == 4.5


# Custom.


@pytest.mark.parametrize(
    ("arguments", "argument", "problem"),
    [
        ({"name": ""}, "name", "expected a non-empty string, got ''"),
        ({"name": 7}, "name", "expected a non-empty string, got 7"),
        ({"combine": None}, "combine", "expected a function of two aggregates, got None"),
        (
            {"combine": abs},
            "combine",
            "fails for the identity with itself: TypeError: abs() takes exactly one argument",
        ),
        ({"lift": 1}, "lift", "expected a function or None, got 1"),
        ({"encode": "utf-8"}, "encode", "expected a function or None, got 'utf-8'"),
        ({"encode": str}, "decode", "is missing; give both encode and decode, or neither"),
        ({"decode": int}, "encode", "is missing; give both decode and encode, or neither"),
        ({"encode": str, "decode": int}, "encode", "expected bytes, got str: '0'"),
        (
            {"encode": len, "decode": int},
            "encode",
            "fails for the identity: TypeError: object of type 'int' has no len()",
        ),
        (
            {"encode": lambda v: b"x", "decode": int},
            "decode",
            "fails for the encoded identity b'x': ValueError: invalid literal for int()",
        ),
        ({"encode": lambda v: b"0", "decode": float}, "decode", "a int is decoded as a float"),
        ({"commutative": None}, "commutative", "expected True or False, got None"),
        ({"idempotent": 1}, "idempotent", "expected True or False, got 1"),
        (
            {"identity": 1},
            "identity",
            "combined with itself it gives b'2' instead of b'1'; combining with the",
        ),
        ({"identity": ()}, "identity", "a tuple is decoded as a list from JSON; use that, or give encode and decode"),
        ({"identity": set()}, "identity", "has no JSON form: TypeError: Object of type set is not JSON serializable; "),
    ],
    ids=label,
)
def test_custom_checks_its_arguments(arguments, argument, problem):
    """A wrong argument is refused by name where the monoid is made."""
    with pytest.raises(ConfigurationError) as caught:
        Custom(**{"name": "mine", "identity": 0, "combine": operator.add, **arguments})
    assert caught.value.argument == argument
    assert caught.value.problem.startswith(problem)


def test_custom_is_frozen():
    """A monoid in use cannot change."""
    with pytest.raises(AttributeError):
        FLAGS.name = "other"


def test_custom_monoids_are_compared_by_value():
    """Two made of the same arguments are equal, and serve as keys of a dict."""
    assert Custom("gcd", 0, math.gcd, idempotent=True) == GCD != FLAGS
    assert len({GCD, FLAGS, Custom("gcd", 0, math.gcd, idempotent=True)}) == 2


def test_custom_identity_is_not_changed():
    """A combine that changes its argument, against the rules, does not leak one key's aggregate into another's."""
    bad = Custom("extend", [], extend)
    assert bad.fold([[1], [2]]) == [1, 2]
    assert bad.fold([[3]]) == [3]
    assert bad.identity == []


def test_custom_passes_permanent_errors():
    """An error that the user's lift raises on purpose is raised unchanged."""

    def refuse(value, event_time_us):
        raise InvalidRecord("price", "is negative")

    with pytest.raises(InvalidRecord, match=r"^price: is negative$"):
        Custom("mine", 0, operator.add, lift=refuse).lift(1, 0)


def test_custom_lift_gets_the_event_time():
    """A user's lift is called with the value and the event time in microseconds."""
    newest = Custom("newest", [0, ""], max, lift=lambda value, event_time_us: [event_time_us, value])
    assert newest.lift("x", 5) == [5, "x"]


@pytest.mark.parametrize("delta", [5, [1, "a"], {"b": None, "a": [1.5, True]}])
def test_custom_encodes_a_delta_once(delta):
    """To see that it can be; the result of the identity and the delta only if it could be something else."""
    encoded = []
    mine = Custom("newest", 0, lambda a, b: b or a, encode=lambda v: encoded.append(v) or repr(v).encode(), decode=eval)
    encoded.clear()
    assert mine.lift(delta, 0) is delta
    assert len(encoded) == 1


@pytest.mark.parametrize("delta", [True, 1.0, [1], (1,)])
def test_custom_notices_that_the_identity_changes_a_delta(delta):
    """Also where Python calls both equal, and where combine changes its argument against the rules."""
    alike = {"True": 1, "1.0": 1, "[1]": [True], "(1,)": [1]}
    mine = Custom("alike", 0, lambda a, b: alike.get(repr(b), b), encode=lambda v: repr(v).encode(), decode=eval)
    with pytest.raises(InvalidRecord, match="combined with the identity it becomes"):
        mine.lift(delta, 0)
    with pytest.raises(InvalidRecord, match=r"cannot take b'\[1\]': combined with the identity it becomes b'\[1,0\]'"):
        Custom("grows", [], lambda a, b: (b and b.append(0)) or b).lift([1], 0)


def test_custom_of_lambdas_reaches_the_workers():
    """A monoid of lambdas survives cloudpickle, as Beam uses it."""
    copy = cloudpickle.loads(cloudpickle.dumps(WORDS))
    assert copy.fold([copy.lift("a b", 0), copy.decode(b"c")]) == ("a", "b", "c")


# Finding monoids by name.


def test_names_lists_the_shipped_monoids():
    """Every module with a MONOID is listed; shared code and `Custom` are not."""
    sources = {path.stem: path.read_text("utf-8") for path in Path(monoids.__file__).parent.glob("*.py")}
    assert names() == sorted(name for name, source in sources.items() if re.search("^MONOID = ", source, re.MULTILINE))
    assert {"count", "first", "last", "max", "min", "set_union", "sum"} <= {*names()}
    assert not {"base", "custom", "extremum", "timed"} & {*names()}


@pytest.mark.parametrize("name", ["first", "last", "max", "min", "set_union", "sum"])
def test_by_name(name):
    """A shipped monoid is found by its own name."""
    assert by_name(name).name == name


def test_by_name_finds_count():
    """Count has its own name on the command line, though its state is a sum."""
    assert type(by_name("count")) is Count


def test_by_name_finds_a_user_s_monoid():
    """By module and attribute."""
    assert by_name(f"{__name__}:GCD") is GCD


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "median",
            f"unknown monoid 'median'; choose {', '.join(names())} or write package.module:attribute",
        ),
        ("", f"unknown monoid ''; choose {names()[0]}, "),
        ("custom", f"unknown monoid 'custom'; choose {names()[0]}, "),
        ("base", f"unknown monoid 'base'; choose {names()[0]}, "),
        ("no_such_module:X", "cannot load monoid 'no_such_module:X': No module named 'no_such_module'"),
        ("math:median", "cannot load monoid 'math:median': module 'math' has no attribute 'median'"),
        (":X", "cannot load monoid ':X': "),
        (".sum:MONOID", "cannot load monoid '.sum:MONOID': "),
        ("math:gcd", "'math:gcd' is a builtin_function_or_method, not a Monoid"),
        ("murmur_beam.monoids:Sum", "'murmur_beam.monoids:Sum' is a class, not a Monoid"),
    ],
)
def test_by_name_refuses(name, problem):
    """A name that leads to no monoid is refused, with the argument and the known names."""
    with pytest.raises(ConfigurationError) as caught:
        by_name(name, argument="--monoid")
    assert caught.value.argument == "--monoid"
    assert caught.value.problem.startswith(problem)
