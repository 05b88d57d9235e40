"""`Sum` with decimal places: exact sums of amounts of money, from text, decimals and JSON."""

from __future__ import annotations

import decimal
import json
import math
import pickle
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.decode import decode_json, decoder_of
from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.extract import Extraction, Extractor, Rejected
from murmur_beam.model import Key, WrittenFloat
from murmur_beam.monoids import Count, Overflow, Sum, by_name
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import MonoidLaws

CENTS = Sum(places=2)
LARGEST, SMALLEST = "92233720368547758.07", "-92233720368547758.08"


class TestDecimalSumLaws(MonoidLaws):
    """Amounts in any form."""

    monoid = CENTS
    deltas = st.builds(
        CENTS.lift, st.decimals(-(10**15), 10**15, places=2) | st.integers(-(10**15), 10**15), st.just(0)
    )


@pytest.mark.parametrize(
    ("value", "delta"),
    [
        ("12.30", 1230),
        (" -12.3 ", -1230),
        ("+.5", 50),
        ("5.", 500),
        ("1.2300000000000000000000000000000000000000000000000000000000000000000000000000000", 123),
        ("1.5e1", 1500),
        ("1500e-2", 1500),
        ("-0.00", 0),
        ("0e999999999", 0),
        (LARGEST, 2**63 - 1),
        (SMALLEST, -(2**63)),
        (Decimal("12.30"), 1230),
        (Decimal("1E+3"), 100_000),
        (7, 700),
        (-92233720368547758, -9223372036854775800),
        (12.3, 1230),
        (0.29, 29),
        (1e15, 10**17),
        (-0.0, 0),
        (WrittenFloat("90071992547409.93"), 9007199254740993),
        (WrittenFloat("92233720368547758.07"), 2**63 - 1),
        (np.float64(12.3), 1230),
        (np.int32(7), 700),
        (np.str_("0.07"), 7),
    ],
    ids=repr,
)
def test_lift(value: Any, delta: int) -> None:
    """Each form of a number is taken exactly; a float is the shortest decimal that prints it."""
    assert (CENTS.lift(value, 0), type(CENTS.lift(value, 0))) == (delta, int)


LIMIT = f"a sum with 2 decimal places takes at most {LARGEST}"
FINER = "has more than 2 decimal places; round it, or use a sum with more places"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("12.345", f"12.345 {FINER}"),
        (Decimal("0.001"), f"0.001 {FINER}"),
        (0.1 + 0.2, f"0.30000000000000004 {FINER}"),
        (WrittenFloat("12.3000000000000000001"), f"12.3000000000000000001 {FINER}"),
        ("1e-999999999", f"1E-999999999 {FINER}"),
        (np.float32(12.3), f"12.300000190734863 {FINER}"),
        ("92233720368547758.08", f"92233720368547758.08 does not fit: {LIMIT}"),
        ("-92233720368547758.09", "-92233720368547758.09 does not fit: "),
        (10**30, "1000000000000000000000000000000 does not fit: "),
        ("1e999999999", "1E+999999999 does not fit: "),
        ("1e99999999999999999999", "1e99999999999999999999 is too large or too small"),
        ("9" * 5000, f"{'9' * 80} does not fit: "),
        (10**5000, "an integer of 16610 bits, at most 1024 are allowed"),
        ("nan", "expected a finite number, got NaN"),
        (math.nan, "expected a finite number, got NaN"),
        (-math.inf, "expected a finite number, got -Infinity"),
        (Decimal("sNaN"), "expected a finite number, got sNaN"),
        ("1,5", "'1,5' is not a number"),
        ("1_000", "'1_000' is not a number"),
        ("\u0661", "'\u0661' is not a number"),
        ("", "'' is not a number"),
        (True, "expected a decimal number, got bool: True"),
        (None, "expected a decimal number, got NoneType: None"),
        ({"units": 1}, "expected a decimal number, got dict: {'units': 1}"),
    ],
    ids=lambda value: f"{type(value).__name__} {value!s:.30}" if not isinstance(value, int) else "int",
)
def test_lift_refuses(value: Any, problem: str) -> None:
    """What would have to be rounded, what does not fit, and what is not a number; the value is shown."""
    with pytest.raises(InvalidRecord) as caught:
        CENTS.lift(value, 0)
    assert caught.value.field == "value"
    assert caught.value.problem.startswith(problem)


@pytest.mark.parametrize("places", [-1, 19, True, 2.0, "2"])
def test_places_that_a_sum_cannot_have(places: Any) -> None:
    """The error names the argument."""
    with pytest.raises(ConfigurationError, match=r"^places: expected an integer from 0 to 18, got "):
        Sum(places=places)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 18))
def test_what_is_presented_is_lifted_to_itself(units: int, places: int) -> None:
    """With exactly the places of the sum, also where the thread's context of decimal has fewer digits."""
    monoid = Sum(places=places)
    with decimal.localcontext() as context:
        context.prec = 5
        shown = monoid.present(units)
        assert (type(shown), shown.as_tuple().exponent) == (Decimal, -places)
        assert monoid.lift(shown, 0) == monoid.lift(str(shown), 0) == units


def test_a_total_of_several_rows_may_exceed_64_bits() -> None:
    """It is presented, and not stored."""
    assert CENTS.present(CENTS.total([2**63 - 1] * 3)) == Decimal(LARGEST) * 3


def test_an_overflow() -> None:
    """It shows the sum as an amount, and in what unit it is stored."""
    with pytest.raises(Overflow) as caught:
        CENTS.combine(2**63 - 1, 1)
    assert str(caught.value) == (
        "value: the sum would be 92233720368547758.08, which does not fit into a signed 64-bit integer of the smallest "
        "unit, 0.01"
    )


def test_a_sum_without_places_is_as_before() -> None:
    """Its name, its result, what it takes; a count has no places."""
    assert (Sum().name, Sum().present(5), Sum().exact_numbers) == ("sum", 5, False)
    assert (CENTS.name, CENTS.native, CENTS.exact_numbers) == ("sum(places=2)", "sum", True)
    for value in (1.5, Decimal(1), WrittenFloat("1.0")):
        with pytest.raises(InvalidRecord, match="expected an integer"):
            Sum().lift(value, 0)
    with pytest.raises(TypeError):
        Count(places=2)  # type: ignore[call-arg]
    assert Sum(places=0).present(Sum(places=0).lift("1.00", 0)) == Decimal("1")


def test_of_keeps_the_places() -> None:
    """A sum of a named field, and one that went through pickle."""
    for copy in (CENTS.of("amount"), pickle.loads(pickle.dumps(CENTS))):
        assert (copy.name, copy.lift("0.07", 0), copy.present(7)) == ("sum(places=2)", 7, Decimal("0.07"))


# Numbers of JSON.


def test_a_number_of_json_keeps_its_text() -> None:
    """Only where it is asked for; it is still a float to everybody else, and goes through pickle and JSON."""
    data = b'{"a": 12.30, "b": [1e2, -0.50], "c": 3}'
    record = decode_json(data, exact=True)
    assert record == decode_json(data)
    assert [x.text for x in (record["a"], *record["b"])] == ["12.30", "1e2", "-0.50"]
    assert (type(record["c"]), type(decode_json(data)["a"])) == (int, float)
    copy = pickle.loads(pickle.dumps(record["a"]))
    assert (copy, copy.text) == (12.3, "12.30")
    assert json.dumps(record) == json.dumps(decode_json(data))


@pytest.mark.parametrize("decode", [None, "json"])
def test_only_sums_of_decimals_ask_for_the_text(decode: str | None) -> None:
    """Other pipelines decode as fast as before."""
    assert type(decoder_of(decode, None)(b'{"a": 1.5}')["a"]) is float
    assert type(decoder_of(decode, None, exact=True)(b'{"a": 1.5}')["a"]) is WrittenFloat


def extractor(monoid: Any, **more: Any) -> Extractor:
    """Of the fields k, v and id."""
    return Extractor(Extraction(("k",), "v", "id", **more), monoid, need_id=True, need_time=False)


def test_an_amount_of_json_never_goes_through_a_float() -> None:
    """A float has 17 digits at most; 90071992547409930.01 would be rounded."""
    line = b'{"id": "1", "k": "a", "v": 90071992547409930.01}'
    assert extractor(CENTS).record(line, 0)[3] == 9007199254740993001
    assert extractor(CENTS, decode="json").record(line.decode(), 0)[3] == 9007199254740993001
    with pytest.raises(Rejected) as caught:
        extractor(CENTS).record(b'{"id": "1", "k": "a", "v": 1.005}', 0)
    assert str(caught.value.error) == f"value: 1.005 {FINER}"


def test_keys_ids_and_times_are_as_in_other_pipelines() -> None:
    """A number that is a key has the same text, and one that is a time is the same time."""
    line = b'{"id": "1", "k": 1.50, "v": 1, "t": 1700000000.250}'
    extraction = Extraction(("k", "n/{k}"), "v", "{id}-{k}", "t")
    made = [Extractor(extraction, m, need_id=True, need_time=False).record(line, 0) for m in (Sum(), CENTS)]
    assert made[0][:3] == made[1][:3] == ("1-1.5", 1_700_000_000_250_000, ("1.5", "n/1.5"))


# Money.


def amounts(n: int) -> Iterator[int]:
    """Cents, some of them negative."""
    chance = random.Random(7)
    return (chance.randrange(-(10 ** (i % 12)), 2 * 10 ** (i % 12)) for i in range(n))


def test_a_million_amounts() -> None:
    """As text, as decimals and as numbers of JSON: all three sums are that of `decimal`, to the cent."""
    decode = decoder_of(None, None, exact=True)
    store = MemoryStore(CENTS)
    expected = Decimal(0)
    cents = list(amounts(1_000_000))
    for start in range(0, len(cents), 10_000):
        texts = [f"{'-' * (n < 0)}{abs(n) // 100}.{abs(n) % 100:02}" for n in cents[start : start + 10_000]]
        decimals = [*map(Decimal, texts)]
        expected += sum(decimals)
        numbers = decode(f'{{"v": [{",".join(texts)}]}}'.encode())["v"]
        for key, values in (("text", texts), ("decimal", decimals), ("json", numbers)):
            delta = CENTS.fold(CENTS.lift(value, 0) for value in values)  # as a bundle of one key is coalesced
            store.merge_update(Key(key), delta, event_id=f"{start}")
    assert expected == Decimal(sum(cents)).scaleb(-2) != 0
    found = [CENTS.present(store.get(Key(key)) or 0) for key in ("text", "decimal", "json")]
    assert [*map(str, found)] == [str(expected)] * 3


def test_the_name_on_command_lines() -> None:
    """As in Python."""
    assert by_name("sum(places=2)").lift("0.07", 0) == 7
