"""`MapOf`: an aggregate of another monoid for each sub-key."""

from __future__ import annotations

import pickle
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError
from murmur_beam.model import WrittenFloat
from murmur_beam.monoids import Count, FloatSum, Last, MapOf, Max, Mean, Overflow, SetUnion, Sum, Timed, by_name
from murmur_beam.testing import MonoidLaws
from tests.support.monoids import GCD, WORDS

keys = st.text("aé\U0001f600\x00", max_size=2)


class TestMapOfSumsLaws(MonoidLaws):
    """Sums by sub-key."""

    monoid = MapOf(Sum())
    deltas = st.dictionaries(keys, st.integers(-(2**50), 2**50), max_size=3)


class TestMapOfMaximaLaws(MonoidLaws):
    """Idempotent, as a maximum is."""

    monoid = MapOf(Max())
    deltas = st.builds(
        MapOf(Max()).lift, st.dictionaries(keys, st.integers() | st.floats(-9, 9), max_size=3), st.just(0)
    )


class TestMapOfMapsLaws(MonoidLaws):
    """Two levels, the inner ones of means."""

    monoid = MapOf(MapOf(Mean()))
    deltas = st.builds(
        MapOf(MapOf(Mean())).lift,
        st.dictionaries(keys, st.dictionaries(keys, st.floats(-9, 9), max_size=2), max_size=2),
        st.just(0),
    )


def folded(monoid: Any, *values: Any) -> Any:
    """The result of these values."""
    return monoid.present(monoid.fold([monoid.lift(value, 5) for value in values]))


def test_each_sub_key_has_a_result_of_its_own() -> None:
    """As the inner monoid presents it, in the order of the sub-keys."""
    found = folded(MapOf(Sum(places=2)), {"FR": "12.30"}, {"DE": 7, "FR": WrittenFloat("0.70")}, {})
    assert [*found.items()] == [("DE", Decimal("7.00")), ("FR", Decimal("13.00"))]
    assert folded(MapOf(Last()), {"a": 1}, {"b": None}) == {"a": Timed(5, 1), "b": Timed(5, None)}
    assert folded(MapOf(SetUnion()), {"a": "x"}, {"a": ["y"]}) == {"a": {"x", "y"}}
    assert folded(MapOf(FloatSum())) == {}


def test_a_count_takes_a_sub_key_as_text() -> None:
    """It needs no value; other monoids do."""
    assert folded(MapOf(Count()), "firefox", "lynx", {"firefox": None, "": 7}) == {"": 1, "firefox": 2, "lynx": 1}
    assert MapOf(Count()).needs_value
    with pytest.raises(InvalidRecord, match="expected a mapping of sub-keys to values, got str: 'firefox'"):
        MapOf(Sum()).lift("firefox", 0)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "expected a mapping of sub-keys to values, got NoneType: None"),
        ([("a", 1)], "expected a mapping of sub-keys to values, got list: [('a', 1)]"),
        ({1: 1}, "a sub-key must be text, got int: 1"),
        ({"a": 1, "b": 1.5}, "of sub-key 'b': expected an integer, got float: 1.5; count in the smallest unit"),
        ({"\ud800": 1}, "sub-key '\\ud800' has no UTF-8 form (surrogates not allowed)"),
        ({"é" * 2001: 1}, f"sub-key '{'é' * 40}'... is 4002 bytes long, at most 4000 are allowed"),
        ({str(n): 1 for n in range(1001)}, "has 1,001 sub-keys, at most 1,000 are allowed"),
    ],
)
def test_lift_refuses(value: Any, problem: str) -> None:
    """All of an event, if any of its sub-keys or values cannot be folded."""
    with pytest.raises(InvalidRecord) as caught:
        MapOf(Sum()).lift(value, 0)
    assert caught.value.field == "value"
    assert caught.value.problem.startswith(problem)


def test_a_map_is_bounded() -> None:
    """By an error that no retry cures; sub-keys that are there can still be added to, and readers' totals have room."""
    small = MapOf(Sum(), max_keys=2)
    full = small.fold([{"a": 1}, {"b": 1}])
    assert small.combine(full, {"a": 1, "b": 2}) == {"a": 2, "b": 3}
    for fold in (lambda: small.combine(full, {"c": 1}), lambda: small.fold([full, {"c": 1}])):
        with pytest.raises(PermanentError, match=r"^value: the map would have 3 sub-keys, at most 2 are allowed$"):
            fold()
    assert small.total([full, {"c": 1}, {"c": 2}]) == {"a": 1, "b": 1, "c": 3}
    with pytest.raises(Overflow):
        small.combine({"a": 2**63 - 1}, {"a": 1})
    assert small.total([{"a": 2**63 - 1}] * 2) == {"a": 2**64 - 2}


def test_it_has_what_the_inner_monoid_has() -> None:
    """Its facts are those that stores and decoders ask for."""
    facts = ("commutative", "idempotent", "needs_event_time", "exact_numbers")
    for inner in (Sum(), Sum(places=2), Max(), Last(), GCD, WORDS):
        assert [getattr(MapOf(inner), fact) for fact in facts] == [getattr(inner, fact) for fact in facts]
        assert MapOf(inner).native is None
    assert MapOf(Last()).lift_ns({"a": 1}, 5, 7) == {"a": Timed(5, 1, 7)}


@pytest.mark.parametrize(
    ("monoid", "name"),
    [
        (MapOf(), "map_of(sum)"),
        (MapOf(Count()), "map_of(count)"),
        (MapOf(Sum(places=2), max_keys=9), "map_of(sum(places=2), max_keys=9)"),
        (MapOf(MapOf(Max(), 5)), "map_of(map_of(max, max_keys=5))"),
    ],
)
def test_names(monoid: MapOf[Any], name: str) -> None:
    """They are read again, to a monoid of the same name, also by pickle."""
    assert monoid.name == name
    for found in (by_name(name), by_name(name.replace("(", "( ")), pickle.loads(pickle.dumps(monoid))):
        assert isinstance(found, MapOf)
        assert (found.name, found.max_keys, found.inner.name) == (name, monoid.max_keys, monoid.inner.name)
    assert by_name("map_of").name == "map_of(sum)"


def test_a_user_s_monoid_has_its_module_in_the_name_that_is_typed() -> None:
    """Its own name is recorded."""
    found = by_name("map_of(tests.support.monoids:GCD, max_keys=3)")
    assert isinstance(found, MapOf)
    assert (found.inner, found.name, found.idempotent) == (GCD, "map_of(gcd, max_keys=3)", True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"inner": "sum"}, "inner: expected a Monoid such as Sum(), got 'sum'"),
        ({"inner": Sum}, "inner: expected a Monoid such as Sum(), got <class"),
        ({"max_keys": 0}, "max_keys: expected a positive integer, got 0"),
        ({"max_keys": 2.0}, "max_keys: expected a positive integer, got 2.0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], problem: str) -> None:
    """By name."""
    with pytest.raises(ConfigurationError) as caught:
        MapOf(**arguments)
    assert str(caught.value).startswith(problem)


def test_the_identity_cannot_be_spoilt() -> None:
    """Each is a new dict; and a result is not the state."""
    monoid = MapOf(Sum())
    monoid.identity["a"] = 1
    assert monoid.identity == {}
    state = {"a": 1}
    monoid.present(state)["a"] = 2
    assert state == {"a": 1}


@given(st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1)), st.data())
def test_bytes_that_are_cut_cannot_be_decoded(state: dict[str, int], data: st.DataObject) -> None:
    """Or are those of a map of fewer sub-keys, cut between two of them."""
    monoid = MapOf(Sum(), max_keys=10_000)
    encoded = monoid.encode(state)
    assert monoid.decode(encoded) == state
    cut = encoded[: data.draw(st.integers(0, len(encoded)))]
    try:
        found = monoid.decode(cut)
    except Exception:
        return
    assert found.items() <= state.items()
    assert monoid.encode(found) == cut
