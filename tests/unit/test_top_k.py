"""`top_k` is a monoid as far as it promises, keeps its bounds beyond that, and stays small."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.monoids import Frequencies, Frequent, TopK, by_name
from murmur_beam.monoids.top_k import MAX_ITEM_BYTES
from murmur_beam.testing import MonoidLaws

WORDS = st.one_of(st.text(max_size=3), st.integers(-3, 3))
SMALL = TopK(k=2, lg_size=3)
"""Counts 6 items."""


class TestTopKLaws(MonoidLaws):
    """Fewer distinct items than an aggregate counts."""

    monoid = TopK()
    deltas = st.builds(TopK().lift, st.one_of(WORDS, st.lists(WORDS, max_size=4)), st.just(0))


class TestLawsAtTheLimit(MonoidLaws):
    """Exactly as many distinct items as an aggregate counts."""

    monoid = SMALL
    deltas = st.builds(SMALL.lift, st.sampled_from("abcdef"), st.just(0))


def counted(values: Sequence[Any], monoid: TopK) -> Frequencies:
    """The aggregate of some values."""
    return monoid.fold([monoid.lift(value, 0) for value in values])


def require_bounds(state: Frequencies, values: Sequence[str], monoid: TopK) -> None:
    """Fail unless each promise of an aggregate of these values holds."""
    truth, counts = Counter(values), dict(state.counts)
    assert state.total == len(values)
    assert len(counts) <= monoid.max_items
    assert state.error * (monoid.max_items + 1) <= len(values)
    for item in truth | counts:
        assert counts.get(item, 0) <= truth[item] <= counts.get(item, 0) + state.error


@given(parts=st.lists(st.lists(st.sampled_from("abcdefghijklmno"), max_size=30), max_size=6), data=st.data())
def test_beyond_the_limit_bounds_hold_in_any_order_and_grouping(parts: list[list[str]], data: st.DataObject) -> None:
    """More distinct items than an aggregate counts, in parts that are combined in any order."""
    states = [counted(part, SMALL) for part in parts]
    values = [value for part in parts for value in part]
    require_bounds(SMALL.fold(states), values, SMALL)
    while len(states) > 1:
        a, b = (states.pop(data.draw(st.integers(0, len(states) - 1))) for _ in range(2))
        assert SMALL.combine(a, b) == SMALL.combine(b, a)
        states.append(SMALL.combine(a, b))
    require_bounds(states[0] if states else SMALL.identity, values, SMALL)


@given(values=st.lists(st.sampled_from("abcdefghijklmno"), max_size=60))
def test_a_fold_is_combine_one_by_one_beyond_the_limit_too(values: list[str]) -> None:
    """Readers and writers then agree."""
    deltas = [SMALL.lift(value, 0) for value in values]
    assert SMALL.fold(deltas) == reduce(SMALL.combine, deltas, SMALL.identity)


@pytest.mark.parametrize("seed", range(3))
def test_the_most_frequent_of_many_are_found(seed: int) -> None:
    """Of 100,000 events of 30,000 items, in buckets that are combined, and their counts within the error."""
    chance = random.Random(seed)
    values = chance.choices([str(n) for n in range(30_000)], [1 / (n + 1) for n in range(30_000)], k=100_000)
    monoid = TopK()
    state = monoid.fold([counted(values[start : start + 5_000], monoid) for start in range(0, 100_000, 5_000)])
    assert len(set(values)) > 10 * monoid.max_items
    assert 0 < state.error <= 100_000 // 769
    require_bounds(state, values, monoid)
    assert [found.item for found in monoid.present(state)] == [item for item, _ in Counter(values).most_common(10)]


def test_items_are_presented_with_their_bounds() -> None:
    """The most frequent first, equally frequent ones in order; both bounds are equal until items are dropped."""
    assert SMALL.present(counted(["b", "a", "c", "c", 7, ["7", "7"]], SMALL)) == [("7", 3, 3), ("c", 2, 2)]
    assert SMALL.present(counted(["b", "a"], SMALL)) == [Frequent("a", 1, 1), Frequent("b", 1, 1)]
    assert SMALL.present(counted(["a"] * 5 + ["b"] * 3 + list("cdefg"), SMALL)) == [("a", 4, 5), ("b", 2, 3)]
    assert SMALL.present(counted([*"abcdef", *"abcdef", "g"], SMALL)) == [("a", 1, 2), ("b", 1, 2)]
    assert SMALL.present(SMALL.identity) == []


def test_the_order_of_events_makes_no_difference_to_the_bytes() -> None:
    """As long as all items are counted."""
    values = [str(n % 50) for n in range(1_000)]
    wanted = TopK().encode(counted(values, TopK()))
    random.Random(1).shuffle(values)
    assert TopK().encode(counted(values, TopK())) == wanted


@given(values=st.lists(st.text(max_size=5), max_size=40), lg_size=st.integers(3, 6))
def test_datasketches_reads_the_bytes(values: list[str], lg_size: int) -> None:
    """And so does BigQuery, whose functions are the same code."""
    library = pytest.importorskip("datasketches", reason="pip install 'murmur-beam[sketches]'")
    monoid = TopK(k=1, lg_size=lg_size)
    state = counted(values, monoid)
    sketch = library.frequent_strings_sketch.deserialize(monoid.encode(state))
    found = sketch.get_frequent_items(library.frequent_items_error_type.NO_FALSE_NEGATIVES)
    assert sketch.total_weight == state.total
    assert set(found) == {(item, count + state.error, count, count + state.error) for item, count in state.counts}


@given(values=st.lists(st.sampled_from("abcdef"), max_size=20))
def test_the_bytes_of_datasketches_are_read(values: list[str]) -> None:
    """In whatever order its hash table has them."""
    library = pytest.importorskip("datasketches", reason="pip install 'murmur-beam[sketches]'")
    sketch = library.frequent_strings_sketch(SMALL.lg_size)
    for value in values:
        sketch.update(value)
    assert SMALL.decode(sketch.serialize()) == counted(values, SMALL)


def test_other_bytes_are_refused() -> None:
    """Cut off, too long, or of another size."""
    data = SMALL.encode(counted("aab", SMALL))
    for wrong in (b"", data[:5], data[:20], data[:-1], data + b"x", TopK().encode(counted("aab", TopK())), b"[]" * 9):
        with pytest.raises(ValueError, match="sketch of frequent strings"):
            SMALL.decode(wrong)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (1.5, "expected strings and integers, got float: 1.5"),
        (None, "expected strings and integers, got NoneType: None"),
        (["a", True], "expected strings and integers, got bool: True"),
        ("\ud800", "has no UTF-8 form (surrogates not allowed): '\\ud800'"),
        ("x" * 1025, "has 1,025 bytes, at most 1,024 are allowed: xxx"),
        ("é" * 513, "has 1,026 bytes, at most 1,024 are allowed: ééé"),
    ],
)
def test_what_cannot_be_counted_is_refused(value: object, problem: str) -> None:
    """With its type, or its length."""
    with pytest.raises(InvalidRecord) as caught:
        TopK().lift(value, 0)
    assert caught.value.field == "value"
    assert caught.value.problem.startswith(problem)


def test_the_size_is_bounded() -> None:
    """With the longest items it is 796 kB; a delta of 20 bytes has 64."""
    values = [f"{n:0{MAX_ITEM_BYTES}}" for n in range(1_000)]
    assert len(TopK().encode(counted(values[:768], TopK()))) == 32 + 768 * (8 + 4 + 1_024) < 796_000
    assert len(TopK().encode(counted(values, TopK()))) < 796_000
    assert len(TopK().encode(TopK().lift("a" * 20, 0))) == 64


def test_the_parameters_are_part_of_the_name() -> None:
    """The defaults are not."""
    assert TopK().name == TopK(k=10, lg_size=10).name == by_name("top_k").name == "top_k"
    assert by_name("top_k(k=3)").name == TopK(3).name == "top_k(k=3)"
    assert by_name("top_k(lg_size=12, k=3)").name == "top_k(k=3, lg_size=12)"
    assert by_name("top_k(lg_size=12)").name == "top_k(k=10, lg_size=12)"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"k": 0}, "k: expected an integer from 1 to 768, got 0; a larger lg_size allows more"),
        ({"k": 7, "lg_size": 3}, "k: expected an integer from 1 to 6, got 7; a larger lg_size allows more"),
        ({"k": 1.0}, "k: expected an integer from 1 to 768, got 1.0; a larger lg_size allows more"),
        ({"lg_size": 17}, "lg_size: expected an integer from 3 to 16, got 17"),
    ],
)
def test_parameters_out_of_range_are_refused(given: dict[str, Any], problem: str) -> None:
    """When the monoid is made."""
    with pytest.raises(ConfigurationError) as caught:
        TopK(**given)
    assert str(caught.value) == problem
