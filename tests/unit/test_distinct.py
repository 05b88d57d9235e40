"""`distinct` is a monoid by its bytes, keeps its promise of accuracy, and is what DataSketches reads."""

from __future__ import annotations

import base64
import copy
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("datasketches", reason="pip install 'murmur-beam[sketches]'")

import datasketches

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.monoids import Distinct, by_name
from murmur_beam.testing import MonoidLaws

DISTINCT = Distinct()
TINY = Distinct(lg_k=4)
VALUES = st.one_of(st.text(min_size=1, max_size=3), st.integers(-(2**63), 2**63 - 1))
# Some values, a few hundred, and thousands: a list of hashes, a hash table, registers.
RUNS = st.builds(range, st.integers(0, 500), st.sampled_from([1, 5, 20, 300, 600, 3_000]))


def counted(values: Sequence[Any], monoid: Distinct = DISTINCT) -> bytes:
    """The aggregate of some values."""
    return monoid.fold([monoid.lift(value, 0) for value in values])


class TestDistinctLaws(MonoidLaws):
    """Single values, and lists of them, of each size in which a sketch is stored."""

    monoid = DISTINCT
    deltas = st.one_of(
        st.builds(DISTINCT.lift, VALUES, st.just(0)), st.builds(lambda run: DISTINCT.lift(list(run), 0), RUNS)
    )


class TestTinyLaws(MonoidLaws):
    """The smallest sketch has no hash table."""

    monoid = TINY
    deltas = st.builds(TINY.lift, st.one_of(VALUES, st.lists(VALUES, max_size=20)), st.just(0))


@pytest.mark.parametrize("lg_k", [4, 8, 12])
@given(parts=st.lists(RUNS, max_size=5), data=st.data())
def test_any_order_and_grouping_gives_the_same_bytes(lg_k: int, parts: list[range], data: st.DataObject) -> None:
    """Of parts of any size, combined in pairs, some of them twice."""
    monoid = Distinct(lg_k=lg_k)
    states = [monoid.lift(list(part), 0) for part in parts]
    wanted = monoid.fold(states)
    assert monoid.lift([value for part in reversed(parts) for value in part], 0) == wanted
    states += states[:2]
    while len(states) > 1:
        a, b = (states.pop(data.draw(st.integers(0, len(states) - 1))) for _ in range(2))
        states.append(monoid.combine(a, b))
    assert (states or [monoid.identity])[0] == wanted


@pytest.mark.parametrize("n", [1, 7, 8, 100, 384, 385, 1_000, 20_000])
def test_single_events_give_the_bytes_of_all_at_once(n: int) -> None:
    """At the borders between the forms of a sketch, also if each event comes twice."""
    values = [f"user-{i}" for i in range(n)]
    wanted = DISTINCT.lift(values, 0)
    random.Random(n).shuffle(values)
    assert counted([*values, *values[::2]]) == wanted


@pytest.mark.parametrize("lg_k", [10, 12, 14])
@pytest.mark.parametrize("n", [100, 1_000, 10_000, 200_000])
def test_the_estimate_is_within_the_promised_error(lg_k: int, n: int) -> None:
    """Of 20 sets of values, the root mean square of the errors is as promised, and none is beyond four times it."""
    monoid = Distinct(lg_k=lg_k)
    sets = 20 if n < 100_000 else 5
    errors = [
        monoid.present(monoid.lift(list(range(seed * n, seed * n + n)), 0)) / n - 1 for seed in range(1, sets + 1)
    ]
    promised = 1.04 / 2 ** (lg_k / 2)
    assert max(map(abs, errors)) <= 4 * promised
    assert (sum(error**2 for error in errors) / sets) ** 0.5 <= 1.4 * promised


def test_few_values_are_counted_exactly() -> None:
    """Up to 384 by default."""
    for n in range(385):
        assert DISTINCT.present(DISTINCT.lift([f"user-{i}" for i in range(n)], 0)) == n


@pytest.mark.parametrize("kind", ["HLL_4", "HLL_6", "HLL_8"])
@pytest.mark.parametrize("n", [5, 200, 50_000])
def test_datasketches_hashes_and_reads_the_same(kind: str, n: int) -> None:
    """A sketch that another program makes of the same values adds nothing to ours, whatever its type."""
    sketch = datasketches.hll_sketch(12, getattr(datasketches, kind))
    values: list[Any] = [*(f"besøg-{i}" for i in range(n)), *range(-n, n)]
    for value in values:
        sketch.update(value)
    state = counted(values)
    assert DISTINCT.combine(state, DISTINCT.decode(sketch.serialize_compact())) == state
    read = datasketches.hll_sketch.deserialize(state)
    assert (read.lg_config_k, read.tgt_type) == (12, datasketches.HLL_8)
    assert round(read.get_estimate()) == DISTINCT.present(state)


def test_the_size_is_bounded() -> None:
    """A delta has 12 bytes, a few values 4 each, and any number 4,136."""
    assert len(DISTINCT.identity) == 8
    assert len(DISTINCT.lift("a" * 1_000, 0)) == 12
    assert len(counted(range(300))) == 12 + 4 * 300
    assert len(counted(range(100_000))) == 4_136
    assert len(counted(range(100_000), Distinct(lg_k=14))) == 2**14 + 40


def test_text_and_integers_are_different_values() -> None:
    """As everywhere in DataSketches."""
    assert DISTINCT.present(counted(["7", 7, "7", 7, ["7", 8]])) == 3
    assert DISTINCT.present(DISTINCT.identity) == 0


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "is an empty text, which DataSketches ignores"),
        (["a", ""], "is an empty text, which DataSketches ignores"),
        (2**63, "9223372036854775808 does not fit into a signed 64-bit integer"),
        (-(2**63) - 1, "-9223372036854775809 does not fit into a signed 64-bit integer"),
        (1.0, "expected strings and integers, got float: 1.0"),
        (True, "expected strings and integers, got bool: True"),
        (None, "expected strings and integers, got NoneType: None"),
        (b"a", "expected strings and integers, got bytes: b'a'"),
        ("\ud800", "has no UTF-8 form (surrogates not allowed): '\\ud800'"),
    ],
)
def test_what_has_no_hash_is_refused(value: object, problem: str) -> None:
    """As `SetUnion` does, and what DataSketches would ignore or turn into a float."""
    with pytest.raises(InvalidRecord) as caught:
        DISTINCT.lift(value, 0)
    assert (caught.value.field, caught.value.problem) == ("value", problem)


def test_other_bytes_are_refused() -> None:
    """Cut off, of another kind, or of another size."""
    data = counted(range(1_000))
    for wrong in (b"", b"[]", data[:20], data[:-1], datasketches.frequent_strings_sketch(10).serialize()):
        with pytest.raises(ValueError, match="not an HLL sketch"):
            DISTINCT.decode(wrong)
    with pytest.raises(ValueError, match="an HLL sketch with lg_k=4, expected lg_k=12"):
        DISTINCT.decode(counted("abc", TINY))


def test_the_size_is_part_of_the_name() -> None:
    """The default is not."""
    assert Distinct().name == Distinct(lg_k=12).name == by_name("distinct(lg_k=12)").name == "distinct"
    assert Distinct(14).name == by_name("distinct(lg_k=14)").name == "distinct(lg_k=14)"
    for wrong in (3, 22, 12.0, True):
        with pytest.raises(ConfigurationError, match="lg_k: expected an integer from 4 to 21, got"):
            Distinct(wrong)  # type: ignore[arg-type]


def test_copies_keep_their_size_and_field() -> None:
    """On their way to workers."""
    monoid = Distinct(lg_k=5).of("user")
    for other in (copy.copy(monoid), pickle.loads(pickle.dumps(monoid))):
        assert (other.name, other.field, other.lg_k) == ("distinct(lg_k=5)", "user", 5)
        assert other.lift("a", 0) == monoid.lift("a", 0)


def test_without_the_package_only_its_use_is_refused() -> None:
    """Where the monoid is made or loaded, with what to install; its name is still listed."""
    program = """
import base64, pickle, sys
sys.modules["datasketches"] = None
from murmur_beam import ConfigurationError, Distinct
from murmur_beam.monoids import by_name, names, recorded
print("distinct" in names())
for make in (Distinct, lambda: by_name("distinct", "--monoid"), lambda: by_name("distinct(lg_k=5)", "--monoid"),
             lambda: recorded("distinct"), lambda: pickle.loads(base64.b64decode(sys.argv[1]))):
    try:
        make()
    except (ConfigurationError, ImportError) as err:
        print(err)
"""
    words = [sys.executable, "-c", program, base64.b64encode(pickle.dumps(DISTINCT)).decode("ascii")]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    missing = "needs a package that is not installed ("
    told = ran.stdout.splitlines()
    assert told[0] == "True"
    assert [line.partition(missing)[0] for line in told[1:]] == [
        "",
        "--monoid: distinct ",
        "--monoid: distinct ",
        "monoid: distinct ",
        "",
    ]
    assert all(line.endswith("; run: pip install 'murmur-beam[sketches]'") for line in told[1:])
