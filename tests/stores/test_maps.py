"""`MapOf` in stores: what is recorded, maps that are full, and what the command shows."""

from __future__ import annotations

from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from murmur_beam.errors import PermanentError, SchemaMismatch
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import MapOf, Max, Sum, by_name
from murmur_beam.reader import Reader
from murmur_beam.state.base import StoreSpec
from murmur_beam.state.sqlite import SqliteSpec
from tests.support import emulators
from tests.support.commands import Command

A, B = Key("a"), Key("b")
SMALL = MapOf(Sum(places=2), max_keys=2)


@pytest.fixture(params=["sqlite", "bigtable"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSpec:
    """A new table of each lasting store."""
    if request.param == "sqlite":
        return SqliteSpec(str(tmp_path / "maps.db"))
    return emulators.new_spec(request.getfixturevalue("bigtable_host"))


def test_a_table_is_of_its_inner_monoid(spec: StoreSpec) -> None:
    """Its name has all parameters, and readers find it by that name."""
    with closing(spec.open(SMALL)) as store:
        store.merge_update(A, SMALL.lift({"FR": "12.30"}, 0), event_id="1")
        assert store.merge_update(A, SMALL.lift({"FR": "12.30"}, 0), event_id="1") is Outcome.DUPLICATE
    for name in ("map_of(sum)", "map_of(sum(places=2))", "map_of(max)", "sum(places=2)"):
        with pytest.raises(SchemaMismatch, match=r"'map_of\(sum\(places=2\), max_keys=2\)'"):
            spec.open(by_name(name))
    with Reader.open(spec) as reader:
        assert reader.get("a") == {"FR": Decimal("12.30")}


def test_an_event_that_has_no_room_fails_alone(spec: StoreSpec) -> None:
    """All of it: none of its sub-keys is added to. Other events and rows are merged."""
    deltas = [SMALL.lift(value, 0) for value in ({"FR": 1, "DE": 2}, {"FR": 5, "IT": 1}, {"FR": "0.50"})]
    with closing(spec.open(SMALL)) as store:
        updates = [Update(A, delta, f"{n}") for n, delta in enumerate(deltas)]
        results = store.merge_updates([*updates, Update(B, deltas[1])])
        assert [type(result) for result in results] == [Outcome, PermanentError, Outcome, Outcome]
        assert str(results[1]) == "value: the map would have 3 sub-keys, at most 2 are allowed"
    with Reader.open(spec) as reader:
        assert reader.get("a") == {"DE": 2, "FR": Decimal("1.50")}
        assert reader.get("b") == {"FR": 5, "IT": 1}


def test_a_fold_puts_apart_what_has_no_room(bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a table that is appended to: it stays pending. Fresh reads include it, before and after, as they do an event
    that would overflow a sum."""
    spec = emulators.appended_spec(bigtable_host)
    with closing(spec.open(SMALL)) as store:
        for n, value in enumerate(({"FR": 1}, {"DE": 2}, {"IT": 3}, {"FR": 4})):
            assert store.merge_updates([Update(A, SMALL.lift(value, 0), f"{n}")]) == [Outcome.RECORDED]
    with Reader.open(spec) as reader:
        before = reader.get("a")
    ran = Command(str(spec), capsys)("fold")
    assert ran.code == 1
    assert "'a', bucket 0: value: the map would have 3 sub-keys, at most 2 are allowed" in ran.err
    with Reader.open(spec) as reader:
        folded = reader.get("a", fresh=False)
        assert reader.get("a") == before == {"FR": 5, "DE": 2, "IT": 3}
    assert len(folded) == 2
    assert folded.items() <= before.items()


def test_an_idempotent_map_needs_no_ids(spec: StoreSpec) -> None:
    """As the monoid of its values."""
    monoid = MapOf(Max())
    with closing(spec.open(monoid)) as store:
        for value in ({"a": 3}, {"a": 1, "b": 2}, {"a": 3}):
            assert store.merge_update(A, monoid.lift(value, 0), event_id="1") is Outcome.MERGED
        assert store.get(A) == {"a": 3, "b": 2}


def test_the_command_shows_maps(spec: StoreSpec, capsys: pytest.CaptureFixture[str]) -> None:
    """As an object, with the results of the inner monoid."""
    with closing(spec.open(SMALL)) as store:
        store.merge_update(A, SMALL.lift({"FR": "12.30", "DE": 7}, 0))
    murmur = Command(str(spec), capsys)
    assert murmur("get", "a").out == '{"DE":"7.00","FR":"12.30"}\n'
    assert murmur.json("get", "a")["value"] == {"DE": "7.00", "FR": "12.30"}
