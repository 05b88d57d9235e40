"""Tables of both layouts: each keeps its layout, and records of later releases are refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from murmur_beam.cli import main as cli
from murmur_beam.errors import SchemaMismatch
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, encode_row_key, tables, wire
from murmur_beam.state.bigtable.keys import SCHEMA_ROW
from murmur_beam.state.bigtable.layouts import LAYOUTS
from murmur_beam.state.bigtable.meta import APPEND, Meta, amend_meta, cells_of, meta_of, read_meta
from tests.support.emulators import INSTANCE, PROJECT, first_layout_spec, new_spec

DAY = timedelta(days=1)
DAILY = Schema("sum", DAY)
A = Key("a")


def put(spec: BigtableSpec, row: bytes, family: str, qualifier: bytes, value: bytes) -> None:
    """Set a cell, as another release might."""
    with closing(spec.connect()) as connection:
        request = wire.bulk(connection, [(row, [wire.put(family, qualifier, 0, value)])])
        assert connection.run(connection.mutate(request, 1)) == {}


def layout_of(spec: BigtableSpec) -> int:
    """The recorded layout."""
    with closing(spec.connect()) as connection:
        meta = connection.run(read_meta(connection))
        assert meta is not None
        return meta.layout.number


def test_a_table_of_layout_1_keeps_it(bigtable_host: str, request: pytest.FixtureRequest) -> None:
    """Whatever is done with it; a new one is of layout 2."""
    where = BigtableSpec(PROJECT, INSTANCE, request.node.name.replace("_", "-"))
    tables.create(where, tables.table_meta(DAILY, 90 * DAY)._replace(layout=LAYOUTS[1]))
    steps = tables.create(where, tables.table_meta(DAILY, 120 * DAY))
    assert [step.subject for step in steps] == ["family agg", "family dedup", "family state", "purpose"]
    assert {finding.status for finding in tables.check(where)} <= {tables.OK, tables.NOT_CHECKED}
    with closing(where.open(Sum().of("bytes"), DAY)) as store:
        assert store.merge_update(Key("a", 30_000), 1, event_id="e", ttl=DAY) is Outcome.MERGED
    assert layout_of(where) == 1
    new = new_spec(bigtable_host)
    new.open(Sum()).close()
    assert layout_of(new) == 2


@pytest.mark.parametrize("spec", [first_layout_spec, new_spec], ids=["layout-1", "layout-2"])
def test_the_version_is_in_the_column_of_the_layout(bigtable_host: str, spec: Callable[[str], BigtableSpec]) -> None:
    """A sum, which sums without event ids increment too; or a plain cell, which they do not change."""
    where = spec(bigtable_host)
    with closing(where.open(Sum())) as store:
        updates = [Update(A, 1, "e"), Update(A, 2, "f")]
        assert store.merge_updates(updates) == [Outcome.MERGED] * 2
        before = version_of(where)
        assert store.merge_updates([Update(A, 4)]) == [Outcome.MERGED]
        after = version_of(where)
        assert store.merge_updates(updates) == [Outcome.DUPLICATE] * 2
        assert store.merge_updates([Update(A, 8, "g")]) == [Outcome.MERGED]
        assert store.get(A) == 15
    assert before[0] == after[0] == ("agg" if spec is first_layout_spec else "state")
    assert after[1] - before[1] == (spec is first_layout_spec)


def version_of(where: BigtableSpec) -> tuple[str, int]:
    """Of the row of A: family and number."""
    with closing(where.connect()) as connection:
        request = wire.only_values(wire.read_rows(connection, [encode_row_key(A)]), "agg|state")
        [row] = connection.run(connection.read(request))
        [(family, number)] = [(c.family, int.from_bytes(c.value, "big")) for c in row.cells if c.qualifier == b"n"]
        return family, number


@pytest.mark.parametrize(
    ("spec", "qualifier", "value"),
    [
        (first_layout_spec, b"layout", b"3"),
        (new_spec, b"layout", b"3"),
        (new_spec, b"write", b"stream"),
        (new_spec, b"appended", b"0"),
        (new_spec, b"forgets", b"2"),
        (first_layout_spec, b"calendar", b"month Europe/Paris"),
        (new_spec, b"granularity_us", b"month"),
        (new_spec, b"bucket_age_us", b"-1"),
        (new_spec, b"shards", b"257"),
    ],
)
def test_a_record_of_a_later_release_is_refused(
    bigtable_host: str,
    spec: Callable[[str], BigtableSpec],
    qualifier: bytes,
    value: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By all that opens, makes or checks a table; the message names the unknown part."""
    where = spec(bigtable_host)
    where.open(Sum()).close()
    put(where, SCHEMA_ROW, wire.META, qualifier, value)
    said = f"its record says '{qualifier.decode()}={value.decode()}'"
    for work in (
        lambda: where.open(Sum()),
        where.recorded_schema,
        lambda: tables.create(where, tables.table_meta(Schema("sum", None))),
    ):
        with pytest.raises(SchemaMismatch, match=said):
            work()
    [table] = [finding for finding in tables.check(where) if finding.status == tables.WRONG]
    assert said in table.text
    for command in (["get", str(where), "a"], ["list", str(where)], ["check", str(where)]):
        assert cli.main(command) != 0
        out, err = capsys.readouterr()
        assert said in out + err


@pytest.mark.parametrize(
    ("meta", "cells"),
    [
        pytest.param(Meta(DAILY), {b"write": b"commit"}, id="commit"),
        pytest.param(Meta(DAILY, write=APPEND, appended=True), {b"write": b"append", b"appended": b"1"}, id="append"),
        pytest.param(Meta(DAILY, appended=True), {b"write": b"commit", b"appended": b"1"}, id="was-appended-to"),
        pytest.param(
            Meta(DAILY, marker_age=DAY, forgets=True), {b"write": b"commit", b"forgets": b"1"}, id="dedup-retention"
        ),
        pytest.param(
            Meta(DAILY, DAY, DAY, forgets=True), {b"write": b"commit", b"forgets": b"1"}, id="had-a-dedup-retention"
        ),
        pytest.param(Meta(DAILY, DAY, DAY, layout=LAYOUTS[1]), {}, id="layout-1"),
    ],
)
def test_the_way_of_writing_is_recorded(meta: Meta, cells: dict[bytes, bytes]) -> None:
    """With its history, and whether the table ever had a dedup retention; layout 1 has no cells for that."""
    made = cells_of(meta)
    assert {name: value for name, value in made.items() if name in (b"write", b"appended", b"forgets")} == cells
    assert meta_of(made, "the table") == meta._replace(schema=meta.schema._replace(vague=False))


def test_a_dedup_retention_is_recorded(bigtable_host: str) -> None:
    """By each function that records it, whether the table is new or not; so is that it is appended to."""
    where = new_spec(bigtable_host)
    where.open(Sum()).close()
    with closing(where.connect()) as connection:
        before = connection.run(read_meta(connection))
        assert before is not None
        assert before == Meta(Schema("sum", None))
        connection.run(amend_meta(connection, before, before._replace(marker_age=DAY)))
        assert connection.run(read_meta(connection)) == before._replace(marker_age=DAY, forgets=True)
    assert cells_of(before._replace(marker_age=DAY))[b"forgets"] == b"1"
    assert cells_of(before._replace(write=APPEND))[b"appended"] == b"1"


def test_a_table_with_a_dedup_retention_is_not_appended_to(bigtable_host: str) -> None:
    """Nor the other way round: the second setting is not recorded, whatever its writer has read before."""
    for first, second in itertools.permutations(({"write": APPEND}, {"marker_age": DAY})):
        where = new_spec(bigtable_host)
        where.open(Sum()).close()
        with closing(where.connect()) as connection:
            before = connection.run(read_meta(connection))
            assert before is not None
            connection.run(amend_meta(connection, before, before._replace(**first)))
            recorded = connection.run(read_meta(connection))
            assert recorded is not None
            assert (recorded.appended, recorded.forgets) == ("write" in first, "marker_age" in first)
            connection.run(amend_meta(connection, before, before._replace(**second)))
            assert connection.run(read_meta(connection)) == recorded


@pytest.mark.parametrize("missing", [b"write", b"monoid:", b"shards"])
def test_a_record_without_a_field_is_refused(missing: bytes) -> None:
    """With a reason: a record is written as a whole, so this one is damaged."""
    cells = cells_of(Meta(DAILY))
    del cells[missing]
    with pytest.raises(SchemaMismatch, match=f"lacks the field '{missing.decode()}'"):
        meta_of(cells, "the table")


def test_a_cell_that_only_a_later_release_can_fold_is_not_ignored(bigtable_host: str) -> None:
    """Each reader refuses it, whether the row has a value or not."""
    where = new_spec(bigtable_host)
    with closing(where.open(Sum())) as store:
        store.merge_updates([Update(A, 1, "e"), Update(Key("whole"), 1, "e")])
        put(where, encode_row_key(A), wire.PENDING, b"name", b"payload")
        put(where, encode_row_key(Key("b")), wire.PENDING, b"name", b"payload")
        for work in (lambda: store.get(A), lambda: store.get(Key("b")), lambda: list(store.scan())):
            with pytest.raises(SchemaMismatch, match="pending deltas has format"):
                work()
        assert store.get(Key("whole")) == 1


def test_a_scan_of_some_buckets_reads_pending_events(bigtable_host: str) -> None:
    """Also where the row has no value; rows of other buckets are not sent."""
    where = new_spec(bigtable_host)
    with closing(where.open(Sum(), DAY)) as store, closing(where.connect()) as connection:
        at_us = 3 * DAY // timedelta(microseconds=1)
        cell = wire.put(wire.PENDING, b"name", at_us, b"payload")
        request = wire.bulk(connection, [(encode_row_key(Key("a", 3)), [cell])])
        assert connection.run(connection.mutate(request, 1)) == {}
        assert list(store.scan(first=4)) == list(store.scan(last=2)) == []
        with pytest.raises(SchemaMismatch, match="pending deltas has format"):
            list(store.scan(first=3, last=3))
