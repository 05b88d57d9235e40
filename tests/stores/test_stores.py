"""The contract of stores, fulfilled by each of them, and the features of each."""

from __future__ import annotations

import itertools
import multiprocessing
import operator
import sqlite3
import threading
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from murmur_beam.errors import ConfigurationError, PermanentError, SchemaMismatch, StoreUnavailable, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Custom, Max, Sum
from murmur_beam.state import StoreSpec, spec_from_uri
from murmur_beam.state.memory import MemorySpec, MemoryStore
from murmur_beam.state.sqlite import SqliteSpec, SqliteStore
from murmur_beam.state.sqlite import file as sqlite_file
from murmur_beam.state.sqlite import store as sqlite_store
from murmur_beam.testing import FakeClock, StoreContract
from tests.support.recording import RecordingSpec

A = Key("a")
DAY = timedelta(days=1)
_names = itertools.count()


class TestMemoryStore(StoreContract):
    """``memory://`` fulfils the contract."""

    def spec(self, clock: FakeClock) -> StoreSpec:
        return MemorySpec(f"contract-{next(_names)}", clock)


class TestRecordingStore(TestMemoryStore):
    """A store that does not report whether an event is new."""

    appends = True

    def spec(self, clock: FakeClock) -> StoreSpec:
        return RecordingSpec(super().spec(clock))


class TestSqliteStore(StoreContract):
    """``sqlite://`` fulfils the contract."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def spec(self, clock: FakeClock) -> StoreSpec:
        return SqliteSpec(str(self.folder / "counts.db"), clock=clock)

    def test_expired_rows_and_their_markers_are_deleted(self) -> None:
        """Rows that no reader can see any more are removed soon."""
        store = self.open()
        store.merge_updates([Update(Key(f"k{i}"), 1, "1", DAY) for i in range(10)])
        self.clock.time += 2 * DAY.total_seconds()
        store.merge_update(A, 1, event_id="1")
        assert self.sizes() == (1, 1)

    def test_nothing_is_deleted_while_an_event_may_still_be_written(self) -> None:
        """A record that was checked just before its bucket's end may be written a little later."""
        store = self.open()
        store.merge_update(A, 1, event_id="1", ttl=DAY)
        self.clock.time += DAY.total_seconds() + 1800
        store.merge_update(Key("other"), 1, event_id="1")
        assert store.merge_update(A, 1, event_id="1", ttl=timedelta(0)) is Outcome.DUPLICATE

    def test_expired_rows_beyond_the_limit_of_a_flush_are_deleted_by_the_next(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each flush collects a part, so that none takes long."""
        monkeypatch.setattr(sqlite_store, "_COLLECT_ROWS", 4)
        store = self.open()
        store.merge_updates([Update(Key(f"k{i}"), 1, "1", DAY) for i in range(10)])
        self.clock.time += 2 * DAY.total_seconds()
        counts = []
        for i in range(4):
            store.merge_update(A, 1, event_id=str(i))
            counts.append(self.sizes()[0] - 1)
        assert counts == [6, 2, 0, 0]

    def test_markers_are_permanent_by_default(self) -> None:
        """A duplicate is recognised after years, in a row that never expires."""
        store = self.open()
        store.merge_update(A, 1, event_id="1")
        self.clock.time += 3650 * DAY.total_seconds()
        assert store.merge_update(A, 1, event_id="1") is Outcome.DUPLICATE

    def test_dedup_retention_drops_old_markers(self) -> None:
        """With a dedup retention the markers of a permanent row are deleted after that time, and not earlier."""
        spec = SqliteSpec(str(self.folder / "counts.db"), dedup_retention=7 * DAY, clock=self.clock)
        with closing(spec.open(Sum())) as store:
            store.merge_update(A, 1, event_id="1")
            self.clock.time += 6 * DAY.total_seconds()
            assert store.merge_update(A, 1, event_id="1") is Outcome.DUPLICATE
            self.clock.time += 2 * DAY.total_seconds()
            store.merge_update(A, 1, event_id="2")
            assert self.sizes() == (1, 1)
            assert store.get(A) == 2

    def test_dedup_retention_does_not_affect_rows_that_expire(self) -> None:
        """A row of a window knows its events as long as it accepts any, however short the dedup retention is."""
        spec = SqliteSpec(str(self.folder / "counts.db"), dedup_retention=DAY, clock=self.clock)
        with closing(spec.open(Sum())) as store:
            store.merge_update(A, 1, event_id="1", ttl=30 * DAY)
            self.clock.time += 10 * DAY.total_seconds()
            store.merge_update(Key("other"), 1, event_id="1")
            assert store.merge_update(A, 1, event_id="1", ttl=20 * DAY) is Outcome.DUPLICATE

    def test_an_idempotent_monoid_keeps_no_markers(self) -> None:
        """Folding a maximum twice changes nothing, so it needs no marker."""
        store = self.open(Max())
        store.merge_updates([Update(A, 1, "1"), Update(A, 1, "1")])
        assert self.sizes() == (1, 0)

    def test_a_table_that_was_only_opened_may_be_opened_for_something_else(self) -> None:
        """A pipeline that fails before it writes records nothing; the first write does."""
        first, other = self.open(Sum(), DAY), self.open(Max())
        assert self.made is not None
        assert self.made.recorded_schema() is None
        assert other.merge_update(A, 7, event_id="1") is Outcome.MERGED
        with pytest.raises(SchemaMismatch):
            first.merge_update(A, 1, event_id="1")
        with pytest.raises(SchemaMismatch):
            self.open(Sum(), DAY)
        assert other.get(A) == 7

    def test_a_value_that_cannot_be_read_fails_alone(self) -> None:
        """It is an error of its own row, and does not change; the other rows of the flush merge."""
        store = self.open(Max())
        store.merge_updates([Update(A, 1), Update(Key("b"), 1)])
        with closing(sqlite3.connect(self.folder / "counts.db")) as db, db:
            db.execute("UPDATE murmur SET value = x'7b' WHERE entity = 'a'")
        failed, merged = store.merge_updates([Update(A, 2), Update(Key("b"), 2)])
        assert isinstance(failed, PermanentError)
        assert "the value stored for 'a' is not a max" in str(failed)
        assert merged is Outcome.MERGED
        assert store.get(Key("b")) == 2

    def test_any_tool_reads_the_sums(self) -> None:
        """A sum is an INTEGER in the file."""
        store = self.open()
        store.merge_update(A, 41, event_id="1")
        store.merge_update(A, 1, event_id="2")
        with closing(sqlite3.connect(self.folder / "counts.db")) as db:
            assert db.execute("SELECT entity, bucket, value, typeof(value) FROM murmur").fetchall() == [
                ("a", 0, 42, "integer")
            ]

    def test_tables_of_one_file_are_separate(self) -> None:
        """Each table has its own monoid, values and markers."""
        path = str(self.folder / "counts.db")
        with (
            closing(SqliteSpec(path, "order").open(Sum())) as one,
            closing(SqliteSpec(path, "two").open(Max(), DAY)) as two,
        ):
            assert one.merge_update(A, 1, event_id="1") is Outcome.MERGED
            assert two.merge_update(A, 7, event_id="1") is Outcome.MERGED
            assert (one.get(A), two.get(A)) == (1, 7)

    def test_a_flush_is_all_or_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error in the middle of a flush rolls back its rows and its markers, and is the result of every update."""
        store = self.open()
        assert isinstance(store, SqliteStore)
        merge_row = store._merge_row

        def fail_at_b(key: Key, *rest: object) -> object:
            if key.entity == "b":
                raise sqlite3.OperationalError("disk I/O error")
            return merge_row(key, *rest)  # type: ignore[arg-type]

        updates = [Update(Key(entity), 1, "1") for entity in "abc"]
        with monkeypatch.context() as patch:
            patch.setattr(store, "_merge_row", fail_at_b)
            results = store.merge_updates(updates)
        assert [type(result) for result in results] == [TransientError] * 3
        assert "disk I/O error" in str(results[0])
        assert self.sizes() == (0, 0)
        assert store.merge_updates(updates) == [Outcome.MERGED] * 3

    def test_a_lock_is_a_transient_error_and_leaves_the_store_usable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another process that holds the file too long costs a try, not the store."""
        monkeypatch.setattr(sqlite_file, "LOCK_TIMEOUT_S", 0.01)
        store = self.open()
        with closing(sqlite3.connect(self.folder / "counts.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(TransientError, match="locked"):
                store.merge_update(A, 1, event_id="1")
            assert store.get(A) is None
        assert store.merge_update(A, 1, event_id="1") is Outcome.MERGED

    def test_a_reader_does_not_wait_for_a_writer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """During a flush the store can be opened and read in its former state."""
        monkeypatch.setattr(sqlite_file, "LOCK_TIMEOUT_S", 0.01)
        self.open().merge_update(A, 1, event_id="1")
        with closing(sqlite3.connect(self.folder / "counts.db", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            assert self.open().get(A) == 1

    def test_several_processes_count_exactly(self) -> None:
        """They merge overlapping sets of the same events into one file."""
        spec = self.spec(self.clock)
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=merge_overlapping, args=(spec, 100 * i)) for i in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        with closing(spec.open(Sum())) as store:
            # Events 0 .. 499, each in one of five keys.
            assert store.get_many([Key(f"k{i}") for i in range(5)]) == [100] * 5

    def sizes(self) -> tuple[int, int]:
        """The numbers of rows and markers in the file."""
        with closing(sqlite3.connect(self.folder / "counts.db")) as db:
            ((rows,),) = db.execute("SELECT count(*) FROM murmur")
            ((markers,),) = db.execute("SELECT count(*) FROM murmur_seen")
        return rows, markers


def merge_overlapping(spec: StoreSpec, first: int) -> None:
    """Merge 300 events from ``first`` on, ten a flush, in a process of its own."""
    with closing(spec.open(Sum())) as store:
        for start in range(first, first + 300, 10):
            results = store.merge_updates([Update(Key(f"k{i % 5}"), 1, str(i)) for i in range(start, start + 10)])
            assert all(isinstance(result, Outcome) for result in results), results


def test_a_sqlite_file_that_cannot_be_opened_is_a_permanent_error(tmp_path: Path) -> None:
    """The error names a missing folder, and a file that is not a database."""
    with pytest.raises(StoreUnavailable, match="folder"):
        SqliteSpec(str(tmp_path / "missing" / "counts.db")).open(Sum())
    text = tmp_path / "text.db"
    text.write_text("this is not a database, but long enough to be taken for one" * 10)
    with pytest.raises(StoreUnavailable, match=r"text\.db"):
        SqliteSpec(str(text)).open(Sum())
    with pytest.raises(StoreUnavailable, match=r"text\.db"):
        SqliteSpec(str(text)).recorded_schema()


def test_reading_the_schema_makes_no_file(tmp_path: Path) -> None:
    """A mistyped path is an error, not a new database; a database of another program has no schema."""
    path = tmp_path / "counts.db"
    with pytest.raises(StoreUnavailable, match="no such file"):
        SqliteSpec(str(path)).recorded_schema()
    assert not path.exists()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE others (x)")
    assert SqliteSpec(str(path)).recorded_schema() is None


def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    """A file of a later version is not guessed."""
    spec = SqliteSpec(str(tmp_path / "counts.db"))
    with closing(spec.open(Sum())) as store:
        store.merge_update(A, 1)
    with closing(sqlite3.connect(spec.path)) as db, db:
        db.execute("UPDATE murmur_schema SET layout = 2")
    with pytest.raises(StoreUnavailable, match="layout 2"):
        spec.open(Sum())


def test_a_relative_path_is_resolved_where_the_spec_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that runs in another folder opens the same file."""
    monkeypatch.chdir(tmp_path)
    assert SqliteSpec("counts.db").path == str(tmp_path / "counts.db")


@pytest.mark.parametrize(
    ("uri", "spec"),
    [
        ("sqlite:////data/counts.db", SqliteSpec("/data/counts.db")),
        ("sqlite:///counts.db", SqliteSpec("counts.db")),
        ("sqlite:////data/a%20b.db?table=likes", SqliteSpec("/data/a b.db", "likes")),
        ("sqlite:////c.db?dedup_retention=7d", SqliteSpec("/c.db", dedup_retention=7 * DAY)),
        ("memory://x", MemorySpec("x")),
        ("memory://", MemorySpec("default")),
    ],
)
def test_uris(uri: str, spec: StoreSpec) -> None:
    """A URI makes its spec."""
    assert spec_from_uri(uri) == spec


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("counts.db", "unknown store scheme in 'counts.db'; use one of "),
        ("mysql://x", "unknown store scheme"),
        ("sqlite://counts.db", "sqlite:///counts.db"),
        ("sqlite:///", "needs a file"),
        ("sqlite:///c.db?tabel=x", "unknown option tabel"),
        ("sqlite:///c.db?table=a-b", "letters, digits"),
        ("sqlite:///c.db?table=", "letters, digits"),
        ("sqlite:///c.db?table=x;drop", "letters, digits"),
        ("sqlite:///c.db?table=murmur_schema", "such names are reserved"),
        ("sqlite:///c.db?table=a_seen", "such names are reserved"),
        ("sqlite:///c.db#x", "sqlite:///counts.db"),
        ("sqlite:///c.db?dedup_retention=soon", "not a duration"),
        ("sqlite:///c.db?dedup_retention=0d", "must be a positive timedelta"),
        ("memory://x/y", "more than a name"),
        ("memory://[", "not a URI"),
    ],
)
def test_wrong_uris(uri: str, problem: str) -> None:
    """The error for an invalid URI names the argument and what to write instead."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        spec_from_uri(uri, "cache")
    assert caught.value.argument == "cache"


def test_memory_is_a_cache() -> None:
    """Repopulating overwrites a cache's values with the store's, and drops keys that the store does not have."""
    store, cache = MemoryStore(Sum()), MemoryStore(Sum())
    store.merge_update(A, 5)
    cache.merge_updates([Update(A, 1), Update(Key("b"), 1), Update(Key("c"), 1)])
    cache.repopulate(store, [A, Key("b")])
    assert cache.get_many([A, Key("b"), Key("c")]) == [5, None, 1]


def test_a_memory_store_can_be_dropped() -> None:
    """After a drop the name stands for an empty store, of any monoid."""
    spec = MemorySpec(f"drop-{next(_names)}")
    spec.open(Sum()).merge_update(A, 1)
    with pytest.raises(SchemaMismatch):
        spec.open(Max())
    spec.drop()
    assert spec.recorded_schema() is None
    assert spec.open(Max()).get(A) is None


def test_memory_frees_what_has_expired(clock: FakeClock) -> None:
    """Expired rows do not stay in memory."""
    store = MemoryStore(Sum(), clock)
    store.merge_updates([Update(Key(f"k{i}"), 1, "1", DAY) for i in range(10)])
    clock.time += 2 * DAY.total_seconds()
    store.merge_update(A, 1, event_id="1")
    assert [len(held) for held in (store._state.values, store._state.seen, store._state.expires)] == [1, 1, 0]


class Unspeakable(Custom[int]):
    """A sum that cannot encode 13."""

    def encode(self, v: int) -> bytes:
        if v == 13:
            raise ValueError("13 is not spoken of")
        return super().encode(v)


def test_a_value_that_cannot_be_encoded_fails_alone(tmp_path: Path) -> None:
    """It is the result of its own update, and leaves no marker; other rows and events merge."""
    spec = SqliteSpec(str(tmp_path / "counts.db"))
    with closing(spec.open(Unspeakable("unspeakable", 0, operator.add))) as store:
        updates = [Update(A, 6, "1"), Update(A, 7, "2"), Update(A, 1, "3"), Update(Key("b"), 1, "2")]
        results = store.merge_updates([*updates[:2], updates[3]])
        assert [results[0], results[2]] == [Outcome.MERGED] * 2
        assert isinstance(results[1], PermanentError)
        assert "not spoken of" in str(results[1])
        assert store.get_many([A, Key("b")]) == [6, 1]
        assert store.merge_updates([updates[2], updates[1]]) == [Outcome.MERGED] * 2
        assert store.get(A) == 14


def test_threads_may_share_a_sqlite_store_while_one_reads(tmp_path: Path) -> None:
    """Reads between the flushes of another thread see whole flushes."""
    with closing(SqliteSpec(str(tmp_path / "counts.db")).open(Sum())) as store:
        done = threading.Event()
        seen = []

        def read() -> None:
            while not done.is_set():
                seen.append(tuple(value or 0 for value in store.get_many([A, Key("b")])))

        thread = threading.Thread(target=read)
        thread.start()
        try:
            for i in range(50):
                store.merge_updates([Update(A, 1, str(i)), Update(Key("b"), 1, str(i))])
        finally:
            done.set()
            thread.join()
        assert all(a == b for a, b in seen)
        assert store.get(A) == 50
