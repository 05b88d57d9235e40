"""The stored format, byte by byte: golden files hold what the code writes, the code reads them, and docs/storage.md
describes them. A change of a golden file is a change of the format and needs another layout (docs/storage.md)."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from murmur_beam.model import MAX_ENTITY_BYTES, Key, Outcome
from murmur_beam.monoids import SetUnion, by_name
from murmur_beam.monoids.timed import Timed
from murmur_beam.state.base import Schema, fingerprint_of
from murmur_beam.state.bigtable import batch, encode_row_key, pending, row_cache, scratch, table_aggregates, tables
from murmur_beam.state.bigtable.keys import MAX_ROW_KEY_BYTES, SCHEMA_ROW, parse_row_key
from murmur_beam.state.bigtable.layouts import LAYOUTS
from murmur_beam.state.bigtable.meta import _KNOWN, Meta, cells_of
from tests.support import storage
from tests.support.emulators import INSTANCE, PROJECT
from tests.support.storage import SHOP, TABLES, Table, hidden, shown

PAGE = (ROOT / "docs/storage.md").read_text("utf-8")
PLACE = PROJECT, INSTANCE
STATES: dict[str, Any] = storage.read("states.json")
_names = itertools.count()


def golden(layout: int) -> Any:
    """The golden file of a layout of Bigtable."""
    return storage.read(f"bigtable-layout-{layout}.json")


def new_prefix() -> str:
    """A prefix that no other table has."""
    return f"golden-{os.getpid()}-{next(_names)}"


def require_same(expected: Any, found: Any, folder: Path) -> None:
    """Fail if two golden documents differ, and leave the actual one in the folder."""
    if told := storage.differences(expected, found):
        (folder / "found.json").write_text(storage.text_of(found))
        pytest.fail("\n".join([f"{len(told)} differences to {folder / 'found.json'}:", *told[:20]]))


# ---- the code and the golden files ----


def test_layout_2_is_made_and_written_as_in_the_golden_file(bigtable_host: str, tmp_path: Path) -> None:
    """Families, record and each cell."""
    prefix = new_prefix()
    storage.make_bigtable(PLACE, prefix)
    storage.write_bigtable(PLACE, prefix)
    require_same(golden(2), storage.read_bigtable(PLACE, prefix), tmp_path)


def test_layout_1_is_written_as_in_the_golden_file(bigtable_host: str, tmp_path: Path) -> None:
    """In tables that 0.1.0 made, each cell is as 0.1.0 writes it (`test_mixed_releases`)."""
    prefix = new_prefix()
    storage.put_bigtable(PLACE, prefix, golden(1), rows=False)
    storage.write_bigtable(PLACE, prefix)
    require_same(golden(1), storage.read_bigtable(PLACE, prefix), tmp_path)


def test_several_aggregates_are_written_and_read_as_in_the_golden_file(bigtable_host: str, tmp_path: Path) -> None:
    """A cell for each; a redelivery changes none of them, and an aggregate that is added changes the record only."""
    prefix, document = new_prefix(), storage.read("bigtable-structs.json")
    storage.make_bigtable(PLACE, prefix, [SHOP])
    storage.write_bigtable(PLACE, prefix, [SHOP])
    require_same(document, storage.read_bigtable(PLACE, prefix, ["shop"]), tmp_path)
    prefix = new_prefix()
    storage.put_bigtable(PLACE, prefix, document, which=[SHOP])
    spec = storage.spec_of(SHOP, PLACE, prefix)
    redelivered(SHOP, spec)
    assert {finding.status for finding in tables.check(spec)} <= {tables.OK, tables.NOT_CHECKED}
    require_same(document, storage.read_bigtable(PLACE, prefix, ["shop"]), tmp_path)
    spec.clock.time = storage.NOW_S
    assert table_aggregates.add_aggregate(spec, "users", SetUnion()) == "2033-05-18T03:33:20Z"
    added = "struct(views=count,revenue=sum,most=max,users=set_union@2033-05-18T03:33:20Z)"
    document["tables"]["shop"]["record"]["meta:monoid:"]["0"] = added
    require_same(document, storage.read_bigtable(PLACE, prefix, ["shop"]), tmp_path)
    assert f"`{added}`" in section("The record")


def test_pending_deltas_are_written_and_folded_as_in_the_golden_file(bigtable_host: str, tmp_path: Path) -> None:
    """Names and payloads of each kind, and the cells after a fold."""
    require_same(storage.read("bigtable-appended.json"), storage.append_and_fold(PLACE, new_prefix()), tmp_path)


def test_pending_deltas_of_a_golden_file_are_read_and_folded(bigtable_host: str) -> None:
    """By a store that has not written them; values are the same before and after, and so is each cell of a fold."""
    prefix, document = new_prefix(), storage.read("bigtable-appended.json")
    storage.put_bigtable(PLACE, prefix, document, which=storage.APPENDED)
    for table in storage.APPENDED:
        expected: dict[Key, Any] = {}
        seen = set()
        for key, delta, event_id, _ in (update for _, updates in table.updates() for update in updates):
            if (key, event_id) not in seen:
                seen.add((key, event_id))
                expected[key] = table.monoid.combine(expected.get(key, table.monoid.identity), delta)
        with closing(storage.opened(table, PLACE, prefix)) as store:
            store._clock.time += len(table.flushes) - 1
            assert store.get_many(list(expected)) == list(expected.values())
            assert store.fold().duplicates == (1 if not table.monoid.idempotent else 0)
            assert store.get_many(list(expected)) == list(expected.values())
            assert dict(store.scan()) == expected
        found = storage.raw_rows(storage.spec_of(table, PLACE, prefix))
        del found[shown(SCHEMA_ROW)]
        assert storage.differences(document["tables"][table.name]["folded"], found) == []


def test_sqlite_is_written_as_in_the_golden_file(tmp_path: Path) -> None:
    """The statements that make each table, and each row."""
    storage.write_sqlite(tmp_path / "counts.db")
    require_same(storage.read("sqlite.json"), storage.read_sqlite(tmp_path / "counts.db"), tmp_path)


def redelivered(table: Table, spec: Any) -> None:
    """All aggregates exist, and each event that is delivered again is a duplicate."""
    expected: dict[Key, Any] = {}
    merged = set()
    with closing(spec.open(table.monoid, table.granularity)) as store:
        for now_s, updates in table.updates():
            spec.clock.time = now_s
            again = [update for update in updates if update.event_id is not None]
            outcome = Outcome.MERGED if table.monoid.idempotent else Outcome.DUPLICATE
            assert store.merge_updates(again) == [outcome] * len(again)
            for key, delta, event_id, _ in updates:
                if (key, event_id) not in merged:
                    merged.add((key, event_id))
                    expected[key] = table.monoid.combine(expected.get(key, table.monoid.identity), delta)
        assert dict(store.scan()) == expected
        assert store.get_many(list(expected)) == list(expected.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_golden_table_is_read(bigtable_host: str, layout: int, tmp_path: Path) -> None:
    """Values and markers alike, without a change of any cell; ``murmur check`` finds no fault."""
    prefix = new_prefix()
    storage.put_bigtable(PLACE, prefix, golden(layout))
    for table in TABLES:
        spec = storage.spec_of(table, PLACE, prefix)
        redelivered(table, spec)
        if table.granularity is None and table.dedup_retention is None:
            continue  # their purpose is that of others; a check takes time
        assert {finding.status for finding in tables.check(spec)} <= {tables.OK, tables.NOT_CHECKED}
    require_same(golden(layout), storage.read_bigtable(PLACE, prefix), tmp_path)


def test_several_aggregates_are_one_value_in_sqlite(tmp_path: Path) -> None:
    """Their encoding, as in the golden file of states."""
    spec = storage.sqlite_spec(SHOP, tmp_path / "counts.db")
    with closing(spec.open(SHOP.monoid, SHOP.granularity)) as store:
        storage.write(SHOP, store)
    (row,) = storage.read_sqlite(tmp_path / "counts.db")["rows"]["shop"]
    assert {"blob": STATES[SHOP.monoid.name][1][1]} in row


def test_a_golden_file_of_sqlite_is_read(tmp_path: Path) -> None:
    """Values and markers alike, without a change of any row."""
    path = tmp_path / "counts.db"
    storage.put_sqlite(path, storage.read("sqlite.json"))
    for table in TABLES:
        redelivered(table, storage.sqlite_spec(table, path))
    found, expected = storage.read_sqlite(path), storage.read("sqlite.json")
    for document in (found, expected):
        document["rows"]["murmur_facts"] = [row[:-1] for row in document["rows"]["murmur_facts"]]  # seen_at advances
    require_same(expected, found, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_row_keys_and_fingerprints(layout: int) -> None:
    """Those in the golden files are made of the merged events, and of nothing else."""
    for table in TABLES:
        rows = golden(layout)["tables"][table.name]["rows"]
        updates = [update for _, flush in table.updates() for update in flush]
        marked = [update for update in updates if update.event_id is not None]
        prints = {(update.key, fingerprint_of(str(update.event_id))) for update in marked}
        assert {parse_row_key(hidden(row))[0] for row in rows} == {update.key for update in updates}
        assert list(rows) == sorted(rows, key=hidden)
        for row, columns in rows.items():
            key, shard = parse_row_key(hidden(row))
            assert shown(encode_row_key(key, shard)) == row
            journal = b"".join(
                hidden(value) for name, cells in columns.items() if name.startswith("dedup") for value in cells.values()
            )
            found = {journal[i : i + 16] for i in range(0, len(journal), 16)}
            wanted = {print_ for of, print_ in prints if of == key and print_[0] % table.shards == shard}
            assert found == (set() if table.monoid.idempotent else wanted)


@pytest.mark.parametrize("name", STATES)
def test_states_are_encoded_as_in_the_golden_file(name: str) -> None:
    """Of each shipped monoid except sums: deltas to bytes, and back."""
    monoid = by_name(name)
    for times_and_values, state in STATES[name]:
        value = monoid.fold([monoid.lift_ns(v, at_us, ns) for at_us, ns, v in times_and_values])
        assert shown(monoid.encode(value)) == state
        decoded = monoid.decode(hidden(state))
        assert (type(decoded), decoded) == (type(value), value)
        assert not isinstance(decoded, Timed) or isinstance(decoded.ns, int)


# ---- the comparison can fail ----


def _renamed(where: dict[str, Any], name: str, new: str) -> None:
    where[new] = where.pop(name)


def _flipped(text: str, at: int = -1) -> str:
    data = bytearray(hidden(text))
    data[at] ^= 1
    return f"0x{data.hex()}"


ROW, MARKER = "0x706167652f3100018000000000005a6c00", "dedup:0x000000ee957b0dc97772697465722d310000000000000002"
FLIPS: dict[str, Callable[[Any], None]] = {
    "row key": lambda t: _renamed(t["rows"], ROW, _flipped(ROW, 0)),
    "shard": lambda t: _renamed(t["rows"], ROW, _flipped(ROW)),
    "sum": lambda t: t["rows"][ROW].update({"agg:v": {"1999987200000000": "0x0000010000000062"}}),
    "timestamp": lambda t: t["rows"][ROW].update({"agg:v": {"1999987201000000": "0x0000010000000063"}}),
    "version": lambda t: t["rows"][ROW].update({"state:n": {"1999987200000000": "0x000000ee957b0dcb"}}),
    "column's version": lambda t: _renamed(t["rows"][ROW], MARKER, "dedup:" + _flipped(MARKER[6:], 7)),
    "column's writer": lambda t: _renamed(t["rows"][ROW], MARKER, "dedup:" + _flipped(MARKER[6:], 8)),
    "column's number": lambda t: _renamed(t["rows"][ROW], MARKER, "dedup:" + _flipped(MARKER[6:])),
    "fingerprint": lambda t: t["rows"][ROW].update(
        {MARKER: {"2000000001000000": "0x86bce09cf63d843e201bf4e076ed0ecc"}}
    ),
    "expiry": lambda t: t["rows"][ROW].update({"state:x": {"2002665601000000": ""}}),
    "record": lambda t: t["record"].update({"meta:monoid": {"0": "sum/3"}}),
    "rule": lambda t: t["families"]["dedup"].update({"max_versions": 2}),
}


@pytest.mark.parametrize("name", FLIPS)
def test_a_single_changed_byte_is_noticed(bigtable_host: str, name: str) -> None:
    """In a table, of any class: the comparison reports one place, or two for a changed name."""
    document = golden(2)
    document["tables"] = {"views": document["tables"]["views"]}
    other = copy.deepcopy(document)
    FLIPS[name](other["tables"]["views"])
    prefix = new_prefix()
    storage.put_bigtable(PLACE, prefix, other)
    told = storage.differences(document, storage.read_bigtable(PLACE, prefix, ["views"]))
    assert 1 <= len(told) <= 2
    assert all(text.startswith("/tables/views/") for text in told)


def test_another_fingerprint_is_another_event(bigtable_host: str) -> None:
    """Reading a golden file can fail as well."""
    document = golden(2)
    FLIPS["fingerprint"](document["tables"]["views"])
    document["tables"] = {"views": document["tables"]["views"]}
    prefix = new_prefix()
    storage.put_bigtable(PLACE, prefix, document)
    with pytest.raises(AssertionError, match="MERGED"):
        redelivered(TABLES[0], storage.spec_of(TABLES[0], PLACE, prefix))


def test_each_other_leaf_of_a_golden_file_is_noticed() -> None:
    """In every file, every name and value."""
    for name in (
        "bigtable-layout-1.json", "bigtable-layout-2.json", "bigtable-structs.json", "bigtable-appended.json",
        "sqlite.json",
    ):  # fmt: skip
        document = storage.read(name)
        leaves = list(_leaves(document))
        assert len(leaves) > (80 if name != "bigtable-structs.json" else 20)
        for where, leaf in leaves:
            value, where[leaf] = where[leaf], "another"
            assert len(storage.differences(storage.read(name), document)) == 1 if value != "another" else True
            where[leaf] = value


def _leaves(document: Any) -> Iterator[tuple[Any, Any]]:
    for name in list(document) if isinstance(document, dict) else range(len(document)):
        if isinstance(document[name], (dict, list)):
            yield from _leaves(document[name])
        else:
            yield document, name


# ---- docs/storage.md ----


def section(title: str) -> str:
    """The text under a heading, with all its subsections."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[2]


def table_under(title: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its header."""
    rows = re.findall(r"^\|(.*)\|$", section(title), re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows[2:]]


def code(cell: str) -> str:
    """A table cell in code style."""
    return cell.strip("`")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_page_has_the_families(layout: int) -> None:
    """Type and rule of each, in the words of the command, for one table with a retention and one without."""
    [told] = [{code(row[0]): row[1:] for row in table_under("Families")}]
    found = {}
    for name in LAYOUTS[2].families:
        types, rule_1, rule_2 = told[name]
        rule = rule_1 if layout == 1 else rule_2
        found[name] = (types, rule)
    meta = Meta(Schema("sum", None), bucket_age=storage.DAY, marker_age=2 * storage.DAY, layout=LAYOUTS[layout])
    spoken = {
        name: str(rule).replace("1d", "the bucket age", 1).replace("2d", "the marker age", 1)
        for name, rule in tables.gc_rules(meta).items()
    }
    spoken = {name: spoken.get(name, "no such family") for name in found}
    assert {name: rule for name, (_, rule) in found.items()} == spoken
    assert {name for name, (types, _) in found.items() if types == "aggregate: sum of int64"} == {"agg"}
    assert len(told) == len(LAYOUTS[2].families)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_page_has_the_fields_of_the_record(layout: int) -> None:
    """Each known field, in the layouts that have it, and its value in an example."""
    rows = {code(row[0]): row for row in table_under("The record")}
    assert {name for name, row in rows.items() if row[layout] != "no"} == {q.decode() for q in _KNOWN[layout]}
    schema = Schema("sum", storage.DAY, None if layout == 1 else "bytes", vague=layout == 1)
    lifetime = storage.DAY + storage.RETENTION + storage.HOUR
    example = cells_of(Meta(schema, lifetime, lifetime, 2, LAYOUTS[layout]))
    assert {name: code(row[layout]) for name, row in rows.items() if name.encode() in example} == {
        name.decode(): value.decode() for name, value in example.items()
    }


def test_the_page_s_examples_are_from_the_golden_files() -> None:
    """Each block that names a golden table shows lines of it, in their order."""
    blocks = re.findall(r"```text\n(bigtable-[\w-]+\.json): (\w+)\n(.*?)```", PAGE, re.DOTALL)
    assert {(name, table) for name, table, _ in blocks} >= {
        ("bigtable-layout-1.json", "views"), ("bigtable-layout-2.json", "views"), ("bigtable-layout-2.json", "flags"),
        ("bigtable-appended.json", "clicks"), ("bigtable-structs.json", "shop"), ("bigtable-appended.json", "shop"),
        ("bigtable-appended.json", "sales"),
    }  # fmt: skip
    for name, table, text in blocks:
        found = storage.read(name)["tables"][table]
        rows = {shown(SCHEMA_ROW): found["record"], **found["rows"]}
        left = iter([*storage.lines(rows), *storage.lines(found.get("folded", {}))])
        for line in text.splitlines():
            assert any(line == one or (line.endswith("...") and one.startswith(line[:-3])) for one in left), line


def test_the_page_s_row_keys_are_those_of_the_code() -> None:
    """Entity, bucket and shard, and the bytes."""
    rows = table_under("Row keys")
    assert len(rows) >= 5
    keys = []
    for entity, bucket, shard, made in rows:
        key = encode_row_key(Key(code(entity).encode("ascii").decode("unicode_escape"), int(bucket)), int(shard))
        assert code(made).replace(" ", "") == key.hex()
        keys.append(key)
    assert keys == sorted(keys)
    text = section("Row keys").replace(" ", "")
    assert SCHEMA_ROW.hex() in text
    assert scratch.PREFIX.hex() in text
    assert f"{MAX_ENTITY_BYTES:,}" in text
    assert f"{MAX_ROW_KEY_BYTES:,}" in text


def test_the_page_s_fingerprint_is_that_of_the_code() -> None:
    """Of an event id, 16 bytes."""
    event_id, found = re.findall(r"`(e\d)` is `([0-9a-f]{32})`", PAGE)[0]
    assert found == fingerprint_of(event_id).hex()


def test_the_page_has_the_states() -> None:
    """Of each monoid, exactly as the golden file."""
    told = [(code(row[0]), code(row[-1])) for row in table_under("Values")]
    wanted = [(name, state) for name, examples in STATES.items() for _, state in examples]
    assert [row for row in told if row[0] in STATES] == wanted


def test_the_page_has_the_schema_of_sqlite() -> None:
    """All statements, for a table called ``views``."""
    statements = re.findall(r"```sql\n(.*?)```", section("SQLite"), re.DOTALL)
    told = {re.sub(r"\s+", " ", one).strip() for one in "".join(statements).split(";\n") if one.strip()}
    schema = storage.read("sqlite.json")["schema"]
    wanted = {sql for name, sql in schema.items() if name.split("_")[0] in ("views", "murmur")}
    assert told == wanted


def test_the_page_has_the_kinds_of_pending_cells() -> None:
    """Each kind that the code writes, and how large cells are."""
    kinds = [int(code(row[0]), 16) for row in table_under("Pending deltas")]
    assert kinds == [pending.ONES, pending.INTEGERS, pending.STATES, pending.TOGETHER, pending.SUMS]
    found = json.dumps(storage.read("bigtable-appended.json"))
    assert all(f'"0x01{kind:02x}0000' in found for kind in kinds)
    assert f"{pending.EVENTS_PER_CELL:,} events" in section("Pending deltas")
    assert pending.CELL_BYTES == 2**20


def test_the_page_s_numbers() -> None:
    """Those of markers are the code's."""
    for number in (row_cache.PACK_AT, row_cache.PACKED, row_cache.SMALL_EVENTS):
        assert re.search(rf"\b{number}\b", section("Markers")), number
    assert f"{batch.EVENTS_PER_COMMIT:,}" in section("Markers")
