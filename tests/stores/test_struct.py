"""Several aggregates in one row: the same numbers as of separate tables, in every store."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.cli import main as cli
from murmur_beam.errors import SchemaMismatch
from murmur_beam.model import ABSENT, Key, Update
from murmur_beam.monoids import Count, Custom, First, Max, Monoid, SetUnion, Struct, Sum
from murmur_beam.reader import Reader
from murmur_beam.state import Schema, StoreSpec
from murmur_beam.state.bigtable import BigtableSpec, wire
from murmur_beam.state.bigtable.store import BigtableStore
from murmur_beam.state.bigtable.value_cells import ValueCells
from murmur_beam.state.memory import MemorySpec
from murmur_beam.state.sqlite import SqliteSpec
from tests.support import emulators
from tests.support.appended import AppendedSpec

_names = itertools.count()
Make = Callable[[], StoreSpec]


@pytest.fixture(params=["memory", "sqlite", "commit", "append"])
def make(request: pytest.FixtureRequest, tmp_path: Path, bigtable_host: str) -> Make:
    """Makes specs of new stores of one kind."""

    def spec() -> StoreSpec:
        if request.param == "memory":
            return MemorySpec(f"struct-{next(_names)}")
        if request.param == "sqlite":
            return SqliteSpec(str(tmp_path / f"{next(_names)}.db"))
        made = emulators.new_spec(bigtable_host)
        return made if request.param == "commit" else AppendedSpec(*made.place[1:])

    return spec


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes stores."""
    with ExitStack() as stack:
        yield stack


def opened(spec: StoreSpec, monoid: Monoid[Any], stack: ExitStack) -> Any:
    """A store that is closed at the end."""
    store = spec.open(monoid)
    stack.callback(store.close)
    return store


PARTS: dict[str, Monoid[Any]] = {
    "n": Count(),  # as a version's column
    "x": Sum(),
    "v": SetUnion(),
    "most": Max(),
    "words": Custom("words", "", lambda a, b: "".join(sorted(a + b))),
}


def test_the_same_as_separate_tables(make: Make, stack: ExitStack) -> None:
    """Random structs of random parts: with duplicates, several flushes, folds in between and two writers."""
    chance = random.Random(7)
    for _ in range(4):
        names = chance.sample(sorted(PARTS), chance.randint(1, len(PARTS)))
        struct = Struct({name: PARTS[name] for name in names})
        spec = make()
        both = [opened(spec, struct, stack) for _ in range(2)]
        alone = {name: opened(make(), PARTS[name], stack) for name in names}
        events = [
            (
                Key(f"k{chance.randrange(4)}"),
                (None, chance.randrange(-9, 9), f"u{i % 7}", i, chance.choice("abc")),
                f"e{i}",
            )
            for i in range(120)
        ]
        deliveries = events + chance.sample(events, 60)
        chance.shuffle(deliveries)
        while deliveries:
            some = [deliveries.pop() for _ in range(min(len(deliveries), chance.randint(1, 30)))]
            values = [dict(zip(PARTS, value, strict=True)) for _, value, _ in some]
            together = [
                Update(key, struct.lift(tuple(value[name] for name in names), 0), id_)
                for (key, _, id_), value in zip(some, values, strict=True)
            ]
            store = chance.choice(both)
            assert not [result for result in store.merge_updates(together) if isinstance(result, Exception)]
            for name, other in alone.items():
                other.merge_updates(
                    [
                        Update(key, PARTS[name].lift(value[name], 0), id_)
                        for (key, _, id_), value in zip(some, values, strict=True)
                    ]
                )
            if isinstance(store, BigtableStore) and chance.random() < 0.3:
                store.fold()
        keys = [Key(f"k{i}") for i in range(5)]
        wanted = [other.get_many(keys) for other in alone.values()]
        columns = [None if column[0] is None else tuple(column) for column in zip(*wanted, strict=True)]
        assert both[0].get_many(keys) == columns
        assert dict(both[1].scan(fresh=True)) == {key: value for key, value in zip(keys, columns, strict=True) if value}
        if isinstance(both[0], BigtableStore):
            both[0].fold()
            assert dict(both[1].scan(fresh=False)) == {k: v for k, v in zip(keys, columns, strict=True) if v}


def test_an_absent_value_skips_its_aggregate(make: Make, stack: ExitStack) -> None:
    """The event counts in the others, and once."""
    struct = Struct({"views": Count(), "revenue": Sum().of("amount", optional=True), "first": First()})
    store = opened(make(), struct, stack)
    for event_id, amount in (("1", 5), ("2", ABSENT), ("1", 5)):
        store.merge_update(Key("k"), struct.lift((None, amount, "a"), 7), event_id=event_id)
    state = store.get(Key("k"))
    assert struct.present(state) == {"views": 2, "revenue": 5, "first": First().present(state[2])}


def test_an_overflow_of_one_is_refused_alone(make: Make, stack: ExitStack) -> None:
    """No aggregate takes the event, and no other event is refused; a fold keeps it pending."""
    struct = Struct({"views": Count(), "revenue": Sum()})
    store = opened(make(), struct, stack)
    results = store.merge_updates(
        [Update(Key("k"), (1, 2**62), str(i)) for i in range(3)] + [Update(Key("k"), (1, 1), "4")]
    )
    if store.appends:
        assert store.fold().unfoldable == 2
        assert store.get(Key("k"), fresh=False) == (2, 2**62 + 1)
        assert store.get(Key("k")) == (4, 3 * 2**62 + 1)
    else:
        assert [isinstance(result, Exception) for result in results] == [False, True, True, False]
        assert store.get(Key("k")) == (2, 2**62 + 1)


def test_other_aggregates_are_refused(make: Make, stack: ExitStack) -> None:
    """Fewer of them too: their markers would keep the others from being counted."""
    spec = make()
    both = Struct({"views": Count(), "revenue": Sum()})
    opened(spec, both, stack).merge_update(Key("k"), (1, 2), event_id="1")
    for other in (
        Struct({"views": Count()}),
        Struct({"revenue": Sum(), "views": Count()}),
        Struct({"views": Count(), "revenue": Max()}),
        Struct({**both.parts, "most": Max()}),
        Sum(),
    ):
        with pytest.raises(SchemaMismatch):
            spec.open(other)
    assert opened(spec, both, stack).get(Key("k")) == (1, 2)


def test_sums_are_columns_of_their_own(bigtable_host: str, stack: ExitStack) -> None:
    """Others find them by name, and the server adds to them; a state that does not change is not written again."""
    spec: BigtableSpec = emulators.new_spec(bigtable_host)
    struct = Struct({"views": Count(), "revenue": Sum(), "most": Max()})
    store = opened(spec, struct, stack)
    store.merge_update(Key("k"), (1, 5, 9), event_id="1")
    store.merge_update(Key("k"), (1, -7, 3), event_id="2")
    connection = store._connection
    (row,) = [
        row for row in connection.run(connection.read(wire.read_range(connection, b"\0\1", None, 10))) if row.cells
    ]
    cells = {(cell.family, cell.qualifier): cell.value for cell in row.cells}
    assert cells[wire.AGG, b"views"] == (2).to_bytes(8, "big")
    assert cells[wire.AGG, b"revenue"] == (-2).to_bytes(8, "big", signed=True)
    assert cells[wire.STATE, b"=most"] == b"9"
    changed = ValueCells(struct).changes(0, (1, 5, b"9"), (2, 5, b"9"))
    assert changed == [wire.add(b"views", 0, 1)]


class TestAlterTable:
    """``murmur alter-table --add`` on a live table."""

    @pytest.fixture(params=["commit", "append"])
    def table(self, request: pytest.FixtureRequest, bigtable_host: str) -> BigtableSpec:
        """A table of two aggregates."""
        spec: BigtableSpec = emulators.new_spec(bigtable_host)
        spec = BigtableSpec(*spec.place[1:3], f"{spec.table}-altered")
        flags = ["--aggregate", "views=count", "--aggregate", "revenue=sum:amount", "--write", request.param]
        assert cli.main(["create-table", str(spec), *flags]) == 0
        return spec

    def test_an_aggregate_counts_from_then_on(
        self, table: BigtableSpec, stack: ExitStack, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Programs of the old definition go on, also if they are started again, and leave the new one alone."""
        old, new = Struct(dict(list(PARTS_ADDED.items())[:2])), Struct(PARTS_ADDED)
        running = opened(table, old, stack)
        running.merge_update(Key("k"), (1, 5), event_id="1")
        with pytest.raises(SchemaMismatch, match="was opened for aggregates views=count, revenue=sum, most=max"):
            table.open(new)
        assert cli.main(["alter-table", str(table), "--add", "most=max"]) == 0
        assert cli.main(["alter-table", str(table), "--add", "most=max"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert re.match(
            r".*: added most=max; it counts since 20\d\d-.*Z, in programs that are started with it$", said[-2]
        )
        assert said[-1] == f"{table}: nothing to do; it has most"
        newer = opened(table, new, stack)
        newer.merge_updates([Update(Key("k"), (1, 1, 7), "2"), Update(Key("k"), (1, 5, 99), "1")])
        running.merge_update(Key("k"), (1, 2), event_id="3")
        again = opened(table, old, stack)
        again.merge_update(Key("k"), (1, 3), event_id="4")
        newer.merge_update(Key("k"), (1, 0, 4), event_id="5")
        # Of the redelivered event 1 the first delivery counts, which lacks the new aggregate.
        assert newer.get(Key("k")) == (5, 11, 7)
        if newer.appends:
            assert again.fold().unfoldable > 0, "cells of the new definition stay pending"
            newer.fold()
        assert newer.get(Key("k"), fresh=False) == (5, 11, 7)
        assert again.get(Key("k"), fresh=False) == (5, 11)
        with Reader.open(table) as reader:
            assert reader.get("k") == {"views": 5, "revenue": 11, "most": 7}
        capsys.readouterr()
        assert cli.main(["get", str(table), "k"]) == 0
        assert capsys.readouterr().err.startswith("murmur: most counts since 20")

    @pytest.mark.parametrize(
        ("add", "problem"),
        [
            ("views=sum", "has views already, as count; choose another name"),
            ("Ä=sum", "'Ä' is not a name"),
            ("most=median", "unknown monoid 'median'"),
            ("most", "write NAME=MONOID:FIELD"),
        ],
    )
    def test_mistakes(self, table: BigtableSpec, capsys: pytest.CaptureFixture[str], add: str, problem: str) -> None:
        """Nothing is recorded."""
        capsys.readouterr()
        assert cli.main(["alter-table", str(table), "--add", add]) == 2
        assert problem in capsys.readouterr().err
        assert table.recorded_schema() == Schema("struct(views=count,revenue=sum)", None)

    def test_a_table_without_markers(self, bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Programs of before write events without a marker, which a sum would count again."""
        spec = emulators.new_spec(bigtable_host)
        spec.open(Struct({"most": Max(), "tags": SetUnion()})).close()
        assert cli.main(["alter-table", str(spec), "--add", "views=count"]) == 2
        assert "'count' needs markers of events, and" in capsys.readouterr().err
        assert cli.main(["alter-table", str(spec), "--add", "least=min"]) == 0

    def test_a_table_of_one_aggregate(self, bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> None:
        """It has no names to which another could be added."""
        spec = emulators.new_spec(bigtable_host)
        spec.open(Sum()).close()
        assert cli.main(["alter-table", str(spec), "--add", "most=max"]) == 2
        assert "holds one aggregate, 'sum'; only a table that was made with --aggregate" in capsys.readouterr().err


PARTS_ADDED: dict[str, Monoid[Any]] = {"views": Count(), "revenue": Sum(), "most": Max()}
