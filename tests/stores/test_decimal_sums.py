"""Sums with decimal places in stores: what is recorded and refused, overflows, and what the command shows."""

from __future__ import annotations

from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from murmur_beam.errors import ConfigurationError, SchemaMismatch
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count, Custom, Overflow, Sum
from murmur_beam.reader import Reader
from murmur_beam.state import spec_from_uri
from murmur_beam.state.base import StoreSpec
from murmur_beam.state.sqlite import SqliteSpec
from tests.support import emulators
from tests.support.commands import Command

CENTS = Sum(places=2)
A, B = Key("a"), Key("b")


@pytest.fixture(params=["sqlite", "bigtable"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSpec:
    """A new table of each lasting store."""
    if request.param == "sqlite":
        return SqliteSpec(str(tmp_path / "money.db"))
    return emulators.new_spec(request.getfixturevalue("bigtable_host"))


def cents(*amounts: str) -> list[int]:
    """Deltas."""
    return [CENTS.lift(amount, 0) for amount in amounts]


def test_a_table_is_of_its_places(spec: StoreSpec) -> None:
    """It cannot be opened for integers, for other places or for a count, nor one of integers for places."""
    with closing(spec.open(CENTS.of("amount"))) as store:
        store.merge_update(A, 1230, event_id="1")
    recorded = spec.recorded_schema()
    assert recorded is not None
    assert recorded.monoid == "sum(places=2)"
    for other in (Sum(), Sum(places=3), Count(), Sum(places=2).of("items")):
        with pytest.raises(SchemaMismatch, match=r"'sum\(places=2\)' of 'amount'"):
            spec.open(other)
    with Reader.open(spec) as reader:
        assert str(reader.get("a")) == "12.30"
        assert isinstance(reader.monoid, Sum)


def test_a_table_of_integers_is_not_of_places(spec: StoreSpec) -> None:
    """Its 1230 may be anything."""
    with closing(spec.open(Sum())) as store:
        store.merge_update(A, 1230, event_id="1")
    with pytest.raises(SchemaMismatch, match=r"'sum' and no window, but was opened for monoid 'sum\(places=2\)'"):
        spec.open(CENTS)


def test_a_name_that_looks_like_a_shipped_one_is_not_loaded(tmp_path: Path) -> None:
    """A store's content must not decide what is imported, and a user's monoid needs its own name."""
    spec = SqliteSpec(str(tmp_path / "x.db"))
    own: Custom[int] = Custom("max(json:loads)", 0, max)
    with closing(spec.open(own)) as store:
        store.merge_update(A, 1)
    with pytest.raises(ConfigurationError, match=r"was written with 'max\(json:loads\)', which is not one of"):
        Reader.open(spec)


def test_an_overflow_affects_its_event_only(spec: StoreSpec) -> None:
    """The error shows an amount; other events of the row and other rows are merged."""
    deltas = cents("92233720368547758.00", "0.07", "0.01", "-0.01")
    with closing(spec.open(CENTS)) as store:
        updates = [Update(A, delta, f"{n}") for n, delta in enumerate(deltas)]
        first = store.merge_updates([*updates[:3], Update(B, 5, "0")])
        assert [type(result) for result in first] == [Outcome, Outcome, Overflow, Outcome]
        assert "value: the sum would be 92233720368547758.08, which" in str(first[2])
        assert store.merge_updates([updates[3], updates[2]]) == [Outcome.MERGED] * 2
    with Reader.open(spec) as reader:
        assert str(reader.get("a")) == "92233720368547758.07"
        assert reader.get_many(["b", "c"]) == [Decimal("0.05"), None]


def test_a_fold_puts_apart_what_overflows(bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a table that is appended to: the other events are folded, reads are exact, and the event stays pending."""
    spec = emulators.appended_spec(bigtable_host)
    with closing(spec.open(CENTS)) as store:
        for n, delta in enumerate(cents("92233720368547758.07", "-12.30", "92233720368547758.07")):
            assert store.merge_updates([Update(A, delta, f"{n}")]) == [Outcome.RECORDED]
    ran = Command(str(spec), capsys)("fold")
    assert ran.code == 1
    assert "'a', bucket 0: value: the sum would be 184467440737095503.84, which does not fit" in ran.err
    with Reader.open(spec) as reader:
        assert str(reader.get("a")) == "184467440737095503.84"
        assert str(reader.get("a", fresh=False)) == "92233720368547745.77"


def test_the_command_shows_amounts(spec: StoreSpec, capsys: pytest.CaptureFixture[str]) -> None:
    """With their places, in tables, ranks and bars; in JSON as text, so that no program reads a float."""
    with closing(spec.open(CENTS)) as store:
        store.merge_updates(
            [Update(key, delta) for key, delta in zip((A, B), cents("1234567.80", "-0.05"), strict=True)]
        )
    murmur = Command(str(spec), capsys)
    assert murmur("get", "a").out == "1,234,567.80\n"
    assert murmur.json("get", "b")["value"] == "-0.05"
    assert murmur.json("top") == [{"entity": "a", "value": "1234567.80"}, {"entity": "b", "value": "-0.05"}]
    rows = [line.split() for line in murmur("top").out.splitlines()]
    assert rows == [["entity", "value"], ["a", "1,234,567.80", "#" * 30], ["b", "-0.05", "-"]]
    assert murmur("get", "a", "--monoid", "sum(places=2)").code == 0
    refused = murmur("get", "a", "--monoid", "sum")
    assert refused.code == 2
    assert "holds values of monoid 'sum(places=2)' and no window, but was opened for monoid 'sum' and" in refused.err


def test_a_table_can_be_made_for_it(bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In any spelling of the name; a pipeline finds the table ready, and one for another aggregate is refused."""
    murmur = Command(emulators.new_uri(bigtable_host), capsys)
    assert murmur("create-table", "--monoid", "sum( places=2 )").code == 0
    assert "monoid 'sum(places=2)' and no window" in murmur("check", "--monoid", "sum(places=2)").out
    with pytest.raises(SchemaMismatch):
        spec_from_uri(murmur.uri).open(Sum())
    refused = murmur("create-table", "--monoid", "sum(places=99)")
    assert (refused.code, refused.err) == (
        2, "murmur: error: --monoid: 'sum(places=99)': places: expected an integer from 0 to 18, got 99\n"
    )  # fmt: skip
