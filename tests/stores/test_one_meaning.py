"""One table holds one aggregate: a second, different one is refused with a reason, wherever the two meet."""

from __future__ import annotations

import importlib
import itertools
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from murmur_beam import MergeRecords, Reader
from murmur_beam.errors import ConfigurationError, SchemaMismatch
from murmur_beam.model import Key, Outcome
from murmur_beam.monoids import Count, Max, Monoid, Sum
from murmur_beam.options import MergeOptions
from murmur_beam.processor import AtomicDedup, Config, merge_many
from murmur_beam.programs import merge_files
from murmur_beam.spec import resolve
from murmur_beam.state import StoreSpec
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, tables, wire
from murmur_beam.state.bigtable.keys import SCHEMA_ROW
from murmur_beam.state.memory import MemorySpec
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.windows import WindowConfig, daily, hourly
from tests.support import emulators

A = Key("a")
DAY = timedelta(days=1)
NOW = datetime.now(timezone.utc)
EVENTS = [{"id": str(i), "page": "p", "cents": 100, "items": 2, "at": NOW.isoformat()} for i in range(5)]
FIELDS: dict[str, Any] = {"key": "page", "event_id": "id"}
_names = itertools.count()


@pytest.fixture(params=["memory", "sqlite", "bigtable"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSpec:
    """An unused table, in each kind of store."""
    if request.param == "memory":
        return MemorySpec(f"one-meaning-{next(_names)}")
    if request.param == "sqlite":
        return SqliteSpec(str(tmp_path / "c.db"))
    host = request.getfixturevalue("bigtable_host")
    return emulators.new_spec(host)


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteSpec:
    """A file that does not exist yet."""
    return SqliteSpec(str(tmp_path / "c.db"))


COUNT = {"monoid": "count"}
CENTS = {"monoid": "sum", "value": "cents"}
OTHERS = [
    pytest.param(COUNT, CENTS, id="count-sum"),
    pytest.param(CENTS, COUNT, id="sum-count"),
    pytest.param(CENTS, {"value": "items"}, id="another-field"),
    pytest.param({"monoid": "max", "value": "cents"}, {"monoid": "max", "value": "items"}, id="max-of-another-field"),
    pytest.param(CENTS, {"monoid": "max", "value": "cents"}, id="sum-max"),
    pytest.param(COUNT, {"monoid": "count", "window": hourly(), "event_time": "at"}, id="another-window"),
    pytest.param(
        {**CENTS, "window": daily(), "event_time": "at"},
        {**CENTS, "window": hourly(), "event_time": "at"},
        id="days-hours",
    ),
]
SAME = [
    pytest.param(COUNT, {"monoid": Count()}, id="name-instance"),
    pytest.param(COUNT, {"monoid": "count", "value": "cents"}, id="count-has-no-field"),
    pytest.param(CENTS, {"monoid": Sum(), "value": "cents"}, id="sum"),
    pytest.param(CENTS, {"value": lambda event: event["items"]}, id="field-function"),
    pytest.param({"value": lambda event: event["items"]}, CENTS, id="function-field"),
]


class TestPipelines:
    @pytest.mark.parametrize(("first", "second"), OTHERS)
    def test_two_steps_of_one_pipeline(self, spec: StoreSpec, first: dict[str, Any], second: dict[str, Any]) -> None:
        """The second is refused while the pipeline is built, though nothing was written yet; the error names both."""
        events = beam.Pipeline() | beam.Create(EVENTS)
        _ = events | MergeRecords("one", store=spec, **FIELDS, **first)
        with pytest.raises(ConfigurationError) as caught:
            events | MergeRecords("two", store=spec, **FIELDS, **second)
        assert caught.value.argument == "store"
        for part in (spec, resolve(MergeOptions(**{"store": spec, **FIELDS, **first})).monoid.name, "another table"):
            assert str(part) in caught.value.problem

    @pytest.mark.parametrize(("first", "second"), SAME)
    def test_two_steps_with_the_same_aggregate(
        self, spec: StoreSpec, first: dict[str, Any], second: dict[str, Any]
    ) -> None:
        """They share the table."""
        events = beam.Pipeline() | beam.Create(EVENTS)
        _ = events | MergeRecords("one", store=spec, **FIELDS, **first)
        _ = events | MergeRecords("two", store=spec, **FIELDS, **second)

    @pytest.mark.parametrize(("first", "second"), OTHERS)
    def test_one_pipeline_after_the_other(
        self, sqlite: SqliteSpec, first: dict[str, Any], second: dict[str, Any]
    ) -> None:
        """The second is refused while it is built; the merged events of the first stay."""
        with beam.Pipeline() as pipeline:
            pipeline | beam.Create(EVENTS) | MergeRecords(store=sqlite, **FIELDS, **first)
        with Reader.open(sqlite) as reader:
            before = list(reader.store.scan())
        with pytest.raises(ConfigurationError, match="was opened for"):
            beam.Pipeline() | beam.Create(EVENTS) | MergeRecords(store=sqlite, **FIELDS, **second)
        with Reader.open(sqlite) as reader:
            assert list(reader.store.scan()) == before != []

    def test_other_names_of_one_table_in_one_pipeline(self, tmp_path: Path) -> None:
        """A link to the file, or upper case, does not make another table; another name does."""
        (tmp_path / "link.db").symlink_to(tmp_path / "c.db")
        events = beam.Pipeline() | beam.Create(EVENTS)
        _ = events | MergeRecords("one", store=f"sqlite:///{tmp_path}/c.db", **FIELDS, **COUNT)
        for n, same in enumerate(("c.db?table=MURMUR", "link.db", "c.db?dedup_retention=1d")):
            with pytest.raises(ConfigurationError, match="in another step of this pipeline"):
                events | MergeRecords(f"two {n}", store=f"sqlite:///{tmp_path}/{same}", **FIELDS, **CENTS)
        _ = events | MergeRecords("three", store=f"sqlite:///{tmp_path}/c.db?table=cents", **FIELDS, **CENTS)

    def test_a_pipeline_that_was_never_run_reserves_nothing(self, sqlite: SqliteSpec) -> None:
        """The next one may use the table for something else."""
        _ = beam.Pipeline() | beam.Create(EVENTS) | MergeRecords(store=sqlite, **FIELDS, **COUNT)
        _ = beam.Pipeline() | beam.Create(EVENTS) | MergeRecords(store=sqlite, **FIELDS, **CENTS)

    def test_from_the_command_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The same as a count and a sum of flags: one line, exit code 2."""
        monkeypatch.chdir(tmp_path)
        Path("o.jsonl").write_text('{"id": "1", "page": "p", "cents": 100}\n')
        given = ["--input=o.jsonl", "--key=page", "--event_id=id", "--store=sqlite:///c.db"]
        assert merge_files.main([*given, "--monoid=count"]) == 0
        assert merge_files.main([*given, "--monoid=sum", "--value=cents"]) == 2
        problem = capsys.readouterr().err.splitlines()[-1]
        assert "holds values of monoid 'count'" in problem
        assert "was opened for monoid 'sum' of 'cents'" in problem
        assert f"another table, such as sqlite:///{tmp_path}/c.db?table=NAME" in problem
        assert (
            merge_files.main([*given[:-1], "--store=sqlite:///c.db?table=cents", "--monoid=sum", "--value=cents"]) == 0
        )


def test_the_name_on_the_command_line_is_recorded(spec: StoreSpec) -> None:
    """A count is called a count, and read as one."""
    with closing(spec.open(Count(), DAY)) as store:
        store.merge_update(A, 1, event_id="1")
    recorded = spec.recorded_schema()
    assert recorded is not None
    assert str(recorded) == "monoid 'count' and buckets of 1d"
    with Reader.open(spec) as reader:
        assert type(reader.monoid) is Count
    with closing(spec.open(Count(), DAY)) as store, pytest.raises(SchemaMismatch, match="monoid 'count' and buckets"):
        spec.open(Count(), DAY * 2)


def test_the_field_is_recorded(spec: StoreSpec) -> None:
    """In the table, and in the error for another field."""
    with closing(spec.open(Max().of("cart.total"))) as store:
        store.merge_update(A, 7, event_id="1")
        assert str(spec.recorded_schema()) == "monoid 'max' of 'cart.total' and no window"
    with Reader.open(spec) as reader:
        assert reader.get("a") == 7


def of_release_0_1_0(spec: StoreSpec, monoid: Monoid[Any]) -> None:
    """Give a table the record that release 0.1.0 writes."""
    if isinstance(spec, SqliteSpec):
        with closing(sqlite3.connect(spec.path)) as db, db:
            db.execute("DROP TABLE murmur_facts")
            db.execute(f'DROP TRIGGER "{spec.table}_erase"')
            db.execute("UPDATE murmur_schema SET monoid = 'sum' WHERE monoid = 'count'")
    elif isinstance(spec, BigtableSpec):
        with closing(spec.connect()) as connection:
            kept = {b"monoid": b"sum", b"granularity_us": b"", b"shards": b"1"}
            cells = [wire.put(wire.META, name, 0, value) for name, value in kept.items()]
            commit = wire.commit(connection, SCHEMA_ROW, wire.NEVER, if_not=[wire.clear(wire.META), *cells])

            async def write() -> None:
                await connection.commit(commit)

            connection.run(write())


class TestTablesOfRelease010:
    @pytest.fixture(params=["sqlite", "bigtable"])
    def spec(self, request: pytest.FixtureRequest, tmp_path: Path) -> StoreSpec:
        """A table of counts made by that release: it called them sums, and recorded no field."""
        made: StoreSpec = SqliteSpec(str(tmp_path / "c.db"))
        if request.param == "bigtable":
            host = request.getfixturevalue("bigtable_host")
            made = emulators.first_layout_spec(host)
        with closing(made.open(Count())) as store:
            store.merge_update(A, 1, event_id="1")
        of_release_0_1_0(made, Count())
        return made

    @pytest.mark.parametrize("monoid", [Count(), Sum(), Sum().of("cents"), Sum().of("items")])
    def test_counts_and_sums_of_any_field_are_still_merged(self, spec: StoreSpec, monoid: Monoid[Any]) -> None:
        """And record nothing that excludes others."""
        for n, each in enumerate((monoid, Sum().of("else"), Count())):
            with closing(spec.open(each)) as store:
                assert store.merge_update(A, 1, event_id="1") is Outcome.DUPLICATE
                assert store.merge_update(A, 1, event_id=f"new {n}") is Outcome.MERGED
        with Reader.open(spec) as reader:
            assert reader.get("a") == 4

    def test_anything_else_is_refused(self, spec: StoreSpec) -> None:
        """As before."""
        for monoid, granularity in ((Max(), None), (Count(), DAY)):
            with pytest.raises(SchemaMismatch, match="monoid 'sum' and no window"):
                spec.open(monoid, granularity)

    def test_a_reader_changes_nothing(self, spec: StoreSpec, tmp_path: Path) -> None:
        """Only a writer upgrades the file."""
        with Reader.open(spec) as reader:
            assert reader.get("a") == 1
        if isinstance(spec, SqliteSpec):
            with closing(sqlite3.connect(spec.path)) as db:
                assert db.execute("SELECT name FROM sqlite_master WHERE name = 'murmur_facts'").fetchall() == []

    def test_that_release_can_still_add_tables(self, tmp_path: Path) -> None:
        """To a file that a later release has written, though it counts the columns."""
        path = str(tmp_path / "c.db")
        with closing(SqliteSpec(path).open(Count())) as store:
            store.merge_update(A, 1, event_id="1")
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("INSERT INTO murmur_schema VALUES (?, ?, ?, ?)", ("old", 1, "sum", None))
        SqliteSpec(path, "old").open(Sum().of("n")).close()


class TestUpperAndLowerCase:
    """SQLite treats ``Views`` and ``views`` as one table."""

    @pytest.mark.parametrize("names", [("Views", "views"), ("views", "VIEWS"), ("VIEWS", "vIEWs")])
    def test_they_are_one_table(self, tmp_path: Path, names: tuple[str, str]) -> None:
        """With one record, and the same events."""
        one, other = (SqliteSpec(str(tmp_path / "c.db"), name) for name in names)
        assert one == other
        with closing(one.open(Count())) as store:
            store.merge_update(A, 1, event_id="1")
        for monoid, granularity in ((Max(), None), (Sum(), None), (Count(), DAY)):
            with pytest.raises(SchemaMismatch):
                other.open(monoid, granularity)
        with closing(other.open(Count())) as store:
            assert store.merge_update(A, 1, event_id="1") is Outcome.DUPLICATE

    def test_two_records_that_contradict_each_other(self, tmp_path: Path) -> None:
        """Release 0.1.0 made such records: it is unknown what the table holds, so writes are refused."""
        path = str(tmp_path / "c.db")
        with closing(SqliteSpec(path, "views").open(Sum())) as store:
            store.merge_update(A, 1, event_id="1")
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("INSERT INTO murmur_schema VALUES ('Views', 1, 'max', NULL)")
        for name in ("views", "Views", "VIEWS"):
            with pytest.raises(SchemaMismatch, match="recorded twice"):
                SqliteSpec(path, name).open(Sum())


CONFIG = Config(dedup=AtomicDedup())


def merge(store: Any, event_id: str, age: timedelta, window: WindowConfig | None) -> Outcome:
    """Merge one event of that age."""
    return merge_many(CONFIG, "test", event_id, NOW - age, ["a"], 1, store, None, window)


class TestRetention:
    """A pipeline without a retention uses that of the table."""

    def test_it_is_that_of_the_first_window_with_one(self, sqlite: SqliteSpec) -> None:
        """Another pipeline with another retention keeps its own."""
        with closing(sqlite.open(Sum(), DAY)) as store:
            assert merge(store, "1", 50 * DAY, daily()) is Outcome.MERGED
        for retention in (30 * DAY, 60 * DAY):
            with closing(sqlite.open(Sum(), DAY)) as store:
                assert merge(store, "2", timedelta(0), daily(retention)) in Outcome
        with closing(sqlite.open(Sum(), DAY)) as store:
            assert merge(store, "3", 29 * DAY, daily()) is Outcome.MERGED
            assert merge(store, "4", 31 * DAY, daily()) is Outcome.EXPIRED
            assert merge(store, "5", 31 * DAY, daily(60 * DAY)) is Outcome.MERGED
        with closing(sqlite3.connect(sqlite.path)) as db:
            (expiries,) = zip(*db.execute("SELECT expires_at FROM murmur ORDER BY bucket"), strict=True)
        assert expiries[0] is None
        assert None not in expiries[1:]

    def test_two_steps_of_one_process(self, spec: StoreSpec) -> None:
        """Steps that share an open store, though nothing is recorded yet."""
        if isinstance(spec, BigtableSpec):
            pytest.skip("there it is recorded when the table is made")
        with closing(spec.open(Sum(), DAY)) as store:
            merge(store, "1", timedelta(0), daily(30 * DAY))
            assert merge(store, "2", 31 * DAY, daily()) is Outcome.EXPIRED

    def test_without_a_retention_nothing_expires(self, spec: StoreSpec) -> None:
        """As before."""
        with closing(spec.open(Sum(), DAY)) as store:
            assert merge(store, "1", 5_000 * DAY, daily()) is Outcome.MERGED

    def test_the_longest_retention(self, sqlite: SqliteSpec) -> None:
        """It is recorded up to the limit of a file."""
        for _ in range(2):
            with closing(sqlite.open(Sum(), DAY)) as store:
                merge(store, "1", timedelta(0), daily(timedelta.max))
                assert merge(store, "2", 5_000 * DAY, daily()) in Outcome

    def test_in_bigtable_it_is_that_of_the_table(self, bigtable_host: str) -> None:
        """Its purpose, also where the pipeline was built before the server answered."""
        where = BigtableSpec(emulators.PROJECT, emulators.INSTANCE, f"kept-{os.getpid()}-{next(_names)}")
        tables.create(where, tables.table_meta(Schema("sum", DAY), 30 * DAY))
        with closing(where.open(Sum(), DAY)) as store:
            store._checked = False
            assert merge(store, "1", 29 * DAY, daily()) is Outcome.MERGED
            assert merge(store, "2", 31 * DAY, daily()) is Outcome.EXPIRED


@pytest.mark.parametrize("uri", ["memory://x", "memory://", "MEMORY://x", "sqlite:///:memory:"])
@pytest.mark.parametrize("program", ["merge_files", "worker", "pubsub", "replay"])
def test_state_that_ends_with_the_program_is_refused(
    program: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On every command line, before anything is read or acknowledged: one line that names the flag."""
    monkeypatch.chdir(tmp_path)
    Path("o.jsonl").write_text('{"id": "1", "page": "p"}\n')
    inputs = {
        "merge_files": ["--input=o.jsonl"],
        "replay": ["--input=o.jsonl"],
        "worker": ["--subscription=projects/p/subscriptions/s"],
        "pubsub": ["--subscription=projects/p/subscriptions/s", "--dead_letters=dead.jsonl"],
    }
    main: Callable[[list[str]], int] = importlib.import_module(f"pipelines.{program}").main
    flags = [f"--store={uri}", "--key=page", "--monoid=count", "--event_id=id"]
    assert main([*inputs[program], *flags]) == 2
    problem = capsys.readouterr().err.splitlines()[-1]
    assert "store" in problem
    assert "end" in problem
    assert sorted(os.listdir(tmp_path)) == ["o.jsonl"]


def test_options_of_a_pipeline_count_as_a_command_line() -> None:
    """`MurmurOptions` refuses a store in memory too; in Python it is accepted."""
    options = PipelineOptions(["--murmur_store=memory://x", "--murmur_key=page", "--murmur_monoid=count"])
    with pytest.raises(ConfigurationError, match=r"--murmur_store.*lost when the program ends"):
        beam.Pipeline(options=options) | beam.Create(EVENTS) | MergeRecords(event_id="id")
    _ = beam.Pipeline() | beam.Create(EVENTS) | MergeRecords(**FIELDS, **COUNT, store=f"memory://{next(_names)}")
