"""Deleting: with SQL, by ``murmur delete`` and ``murmur reset``, and beside writers. The contract of stores has what
every store must do."""

from __future__ import annotations

import io
import itertools
import json
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.cli import main as cli
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count, Max, SetUnion, Sum
from murmur_beam.reader import Reader
from murmur_beam.state import StoreSpec
from murmur_beam.state.bigtable import BigtableSpec
from murmur_beam.state.memory import MemorySpec
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.windows import daily
from tests.support import emulators
from tests.support.commands import Ran

MERGED, DUPLICATE = Outcome.MERGED, Outcome.DUPLICATE
DAY = timedelta(days=1)
START = datetime(2026, 11, 14, tzinfo=timezone.utc)
_names = itertools.count()


@pytest.fixture(params=["memory", "sqlite", "bigtable", "bigtable-shards"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSpec:
    """An unused table, in each kind of store."""
    if request.param == "memory":
        return MemorySpec(f"delete-{next(_names)}")
    if request.param == "sqlite":
        return SqliteSpec(str(tmp_path / "c.db"))
    host = request.getfixturevalue("bigtable_host")
    shards = 4 if request.param == "bigtable-shards" else None
    return emulators.new_spec(host, shards=shards)


# ---- with SQL ----


ERASURES = {
    "all": "DELETE FROM murmur",
    "some": "DELETE FROM murmur WHERE entity >= 'k5'",
    "one": "DELETE FROM murmur WHERE entity = 'k9'",
    "first": "DELETE FROM murmur WHERE id = 1",
    "by-replacing": "INSERT OR REPLACE INTO murmur (entity, bucket, value) SELECT entity, 0, 5 FROM murmur",
    "by-updating-ids": "UPDATE murmur SET id = id + 1000",
    "all-after-replacing": "INSERT OR REPLACE INTO murmur (entity, bucket, value) SELECT entity, 0, 5 FROM murmur;"
    " DELETE FROM murmur",
}


def events(keys: str) -> list[Update]:
    """Three events for each of the keys with this prefix."""
    return [Update(Key(f"{keys}{i}"), 1, str(event)) for i in range(10) for event in range(3)]


@pytest.mark.parametrize("statement", ERASURES.values(), ids=ERASURES.keys())
@pytest.mark.parametrize("while_open", [True, False])
def test_no_row_inherits_markers_from_a_row_deleted_with_sql(tmp_path: Path, statement: str, while_open: bool) -> None:
    """Whatever its id: an event of a new key counts, and one of a deleted key counts anew."""
    spec = SqliteSpec(str(tmp_path / "c.db"))
    store = spec.open(Count())
    store.merge_updates(events("k"))
    if not while_open:
        store.close()
    with closing(sqlite3.connect(spec.path)) as db, db:
        db.executescript(statement)
        left = {name for (name,) in db.execute("SELECT entity FROM murmur")}
    if not while_open:
        store = spec.open(Count())
    with closing(store):
        assert set(store.merge_updates(events("new"))) == {MERGED}
        if "DELETE" in statement:
            again = store.merge_updates(events("k"))
            assert again == [DUPLICATE if update.key.entity in left else MERGED for update in events("k")]


@given(steps=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.booleans()), max_size=30))
def test_sql_deletes_and_merges_in_any_order(steps: list[tuple[str, int, bool]], tmp_path_factory: Any) -> None:
    """The file holds the same as a dictionary would."""
    spec = SqliteSpec(str(tmp_path_factory.mktemp("sql") / "c.db"))
    model: dict[str, set[int]] = {}
    with closing(spec.open(Count())) as store, closing(sqlite3.connect(spec.path)) as db:
        for entity, event, deletes in steps:
            if deletes:
                with db:
                    db.execute("DELETE FROM murmur WHERE entity = ?", (entity,))
                model.pop(entity, None)
            else:
                known = model.setdefault(entity, set())
                expected = DUPLICATE if event in known else MERGED
                assert store.merge_update(Key(entity), 1, event_id=str(event)) is expected
                known.add(event)
        assert {key.entity: value for key, value in store.scan()} == {e: len(known) for e, known in model.items()}


@pytest.mark.parametrize("where", ["true", "id % 2", "id > 1", "id < 2"])
def test_markers_left_behind_by_release_0_1_0(tmp_path: Path, where: str) -> None:
    """Rows that SQL deleted under it come back without them, whether or not their ids are reused at once."""
    spec = SqliteSpec(str(tmp_path / "c.db"))
    with closing(spec.open(Count())) as store:
        store.merge_updates(events("k"))
    with closing(sqlite3.connect(spec.path)) as db, db:
        db.execute('DROP TRIGGER "murmur_erase"')
        db.execute("DROP TABLE murmur_facts")
        db.execute(f"DELETE FROM murmur WHERE {where}")
        left = {entity for (entity,) in db.execute("SELECT entity FROM murmur")}
        assert db.execute("SELECT count(*) FROM murmur_seen").fetchone() == (30,)
    with closing(spec.open(Count())) as store:
        assert set(store.merge_updates(events("new"))) == {MERGED}
        again = store.merge_updates(events("k"))
        assert again == [DUPLICATE if update.key.entity in left else MERGED for update in events("k")]
    with closing(sqlite3.connect(spec.path)) as db, db:
        db.execute("DELETE FROM murmur")
    with closing(spec.open(Count())) as store:
        assert set(store.merge_updates(events("k") + events("new"))) == {MERGED}


def test_deleted_rows_are_overwritten(tmp_path: Path) -> None:
    """Neither the key nor the fingerprints can be found in the files any more."""
    spec = SqliteSpec(str(tmp_path / "c.db"))
    with closing(spec.open(SetUnion())) as store:
        store.merge_updates(
            [Update(Key("jane.doe"), frozenset({"secret-tag"}), "1"), Update(Key("b"), frozenset({"x"}))]
        )
        assert b"jane.doe" in on_disk(tmp_path)
        store.delete("jane.doe")
        assert b"jane.doe" not in on_disk(tmp_path)
        assert b"secret-tag" not in on_disk(tmp_path)


def on_disk(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm"))


# ---- beside writers ----


def test_deleting_beside_a_writer(spec: StoreSpec) -> None:
    """While one store merges, duplicates included, another deletes: at the end the other keys are exact and know their
    events; a deleted key holds what came after the last deletion."""
    writer, eraser = spec.open(Count(), DAY), spec.open(Count(), DAY)
    updates = [Update(Key(f"{kind}/{i % 5}", i % 3), 1, str(i)) for i in range(300) for kind in ("user", "page")]
    results: list[Any] = []
    under_way, deleted = threading.Event(), threading.Event()

    def write() -> None:
        for start in range(0, len(updates), 50):
            if start == 300:
                deleted.wait()
            results.extend(writer.merge_updates(updates[start : start + 50]))
            results.extend(writer.merge_updates(updates[max(0, start - 20) : start]))
            under_way.set()

    thread = threading.Thread(target=write)
    thread.start()
    under_way.wait()
    for user in range(5):
        eraser.delete(f"user/{user}")
    assert eraser.delete("user/", prefix=True) >= 0
    deleted.set()
    thread.join()
    assert all(isinstance(result, Outcome) for result in results), results
    pages = Counter(update.key for update in updates if update.key.entity.startswith("page/"))
    assert dict(writer.scan("page/")) == pages
    users = Counter(update.key for update in updates if update.key.entity.startswith("user/"))
    late = Counter(update.key for update in updates[300:] if update.key.entity.startswith("user/"))
    for key, value in writer.scan("user/"):
        assert late[key] <= value <= users[key]
    eraser.delete("user/", prefix=True)
    with closing(spec.open(Count(), DAY)) as other:
        again = other.merge_updates(updates)
        assert again == [DUPLICATE if update.key.entity.startswith("page/") else MERGED for update in updates]
        assert dict(other.scan()) == pages | users
    for store in (writer, eraser):
        assert set(store.merge_updates(updates)) == {DUPLICATE}
        store.close()


@pytest.mark.parametrize("event_ids", [True, False])
def test_the_cache_of_the_deleting_store_is_cleared(spec: StoreSpec, event_ids: bool) -> None:
    """Its cached rows are dropped, and so are those of another store once it writes to one of them."""
    ids: Callable[[int], str | None] = str if event_ids else lambda n: None
    one, other = spec.open(Count()), spec.open(Count())
    for n in range(3):
        for store in (one, other):
            store.merge_updates([Update(Key(f"k{i}"), 1, ids(n)) for i in range(20)])
    before = 3 if event_ids else 6
    assert dict(one.scan()) == {Key(f"k{i}"): before for i in range(20)}
    assert one.delete("k", prefix=True) == 20
    assert one.merge_updates([Update(Key(f"k{i}"), 1, ids(n)) for i in range(20) for n in range(3)]) == [MERGED] * 60
    assert other.merge_updates([Update(Key(f"k{i}"), 1, ids(9)) for i in range(20)]) == [MERGED] * 20
    assert dict(one.scan()) == {Key(f"k{i}"): 4 for i in range(20)}
    one.close()
    other.close()


# ---- the command ----


class Terminal(io.StringIO):
    """A stdin that is a terminal."""

    def isatty(self) -> bool:
        return True


class Murmur:
    """Runs the command on a store of counts of each kind, in buckets of days: three days of a, ab and b, ten events
    each."""

    def __init__(self, spec: StoreSpec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.spec = spec
        self.uri = str(spec)
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.updates = [
            Update(Key(entity, daily().bucket_id(START + day * DAY)), 1, str(event))
            for entity in ("a", "ab", "b")
            for day in range(3)
            for event in range(10)
        ]
        with closing(spec.open(Count(), DAY)) as store:
            store.merge_updates(self.updates)

    def __call__(self, command: str, *args: str, answer: str | None = None) -> Ran:
        """Run it; with an answer, on a terminal."""
        self._monkeypatch.setattr(sys, "stdin", io.StringIO("") if answer is None else Terminal(answer))
        self._capsys.readouterr()
        return Ran(cli.main([command, self.uri, *args]), *self._capsys.readouterr())

    def left(self) -> set[tuple[str, int]]:
        """Entity and day of all rows; their counts must be exact."""
        with Reader.open(self.spec) as reader:
            rows = dict(reader.store.scan())
        assert set(rows.values()) <= {10}
        first = daily().bucket_id(START)
        return {(key.entity, key.bucket - first) for key in rows}

    def again(self) -> set[tuple[str, Outcome]]:
        """The results of the events when they are delivered again."""
        with closing(self.spec.open(Count(), DAY)) as store:
            results = store.merge_updates(self.updates)
        return {(update.key.entity, result) for update, result in zip(self.updates, results, strict=True)}  # type: ignore[misc]


ALL = {(entity, day) for entity in ("a", "ab", "b") for day in range(3)}


@pytest.fixture
def murmur(spec: StoreSpec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Murmur:
    if isinstance(spec, BigtableSpec) and spec.shards:
        pytest.skip("the same as without shards")
    return Murmur(spec, capsys, monkeypatch)


def test_a_key(murmur: Murmur) -> None:
    """All of its buckets, and nothing else; its events count anew, other events are known."""
    ran = murmur("delete", "a", "--yes")
    assert ran == (0, "3 rows of 'a' deleted, with the markers of their events\n", "")
    assert murmur.left() == ALL - {("a", day) for day in range(3)}
    assert murmur.again() == {("a", MERGED), ("ab", DUPLICATE), ("b", DUPLICATE)}
    assert murmur.left() == ALL


@pytest.mark.parametrize(
    ("args", "gone"),
    [
        (["--prefix", "a"], {(entity, day) for entity in ("a", "ab") for day in range(3)}),
        (["ab", "--from", "2026-11-15"], {("ab", 1), ("ab", 2)}),
        (["ab", "--to", "2026-11-15"], {("ab", 0), ("ab", 1)}),
        (["--prefix", "b", "--from", "2026-11-15T10:00:00Z", "--to", "2026-11-15"], {("b", 1)}),
    ],
    ids=["prefix", "from", "to", "prefix-and-day"],
)
def test_a_prefix_and_times(murmur: Murmur, args: list[str], gone: set[tuple[str, int]]) -> None:
    """Only these buckets."""
    document = murmur("delete", *args, "--yes", "--json")
    assert json.loads(document.out) == {"store": murmur.uri, "deleted": len(gone)}
    assert murmur.left() == ALL - gone


@pytest.mark.parametrize("answer", ["y\n", "YES\n", " y \n"])
def test_it_asks_first(murmur: Murmur, answer: str) -> None:
    """The question has the number of rows, what a redelivery does, and what to stop."""
    ran = murmur("delete", "a", answer=answer)
    assert ran.code == 0
    assert ran.err == (
        f"{murmur.uri}: 3 rows of 'a', and any expired ones, will be deleted permanently. First stop the senders of "
        "their events: a redelivery counts again.\ndelete them? [y/N] "
    )
    assert ("a", 0) not in murmur.left()


@pytest.mark.parametrize("answer", ["\n", "n\n", "", "nein\n", "yes please\n"])
@pytest.mark.parametrize("command", [["delete", "a"], ["reset"]])
def test_any_answer_but_yes_means_no(murmur: Murmur, command: list[str], answer: str) -> None:
    """So does the end of the input."""
    ran = murmur(*command, answer=answer)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith("nothing was deleted\n")
    assert murmur.left() == ALL


@pytest.mark.parametrize("command", [["delete", "a"], ["delete", "--prefix", "a"], ["reset"]])
def test_without_a_terminal_yes_must_be_given(murmur: Murmur, command: list[str]) -> None:
    """A script must confirm it with a flag."""
    ran = murmur(*command)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("murmur: error: --yes: is required when stdin is not a terminal. ")
    assert ran.err.count("\n") == 1
    assert murmur.left() == ALL


def test_reset(murmur: Murmur) -> None:
    """All rows are deleted; the purpose of the table stays."""
    before = murmur.spec.recorded_schema()
    ran = murmur("reset", "--yes")
    assert ran == (0, "9 rows of the whole table deleted, with the markers of their events\n", "")
    assert murmur.left() == set()
    assert murmur.spec.recorded_schema() == before != None  # noqa: E711 - one chain says both
    assert {result for _, result in murmur.again()} == {MERGED}
    assert murmur.left() == ALL


def test_nothing_to_delete(murmur: Murmur) -> None:
    """Exit code 1, as for the other commands."""
    assert murmur("delete", "x", "--yes") == (1, "", "murmur: nothing found of 'x'\n")
    murmur("reset", "--yes")
    assert murmur("reset", "--yes").code == 1


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ([], "KEY: give either one KEY or --prefix; to delete a whole table use murmur reset"),
        (["a", "--prefix", "a"], "KEY: give either one KEY or --prefix"),
        (["a", "--from", "2026-11-15", "--to", "2026-11-14"], "--to: lies before --from"),
        (["a", "--monoid", "max"], "holds values of monoid 'count'"),
    ],
)
def test_mistakes(murmur: Murmur, args: list[str], problem: str) -> None:
    """One line each; nothing is deleted."""
    ran = murmur("delete", *args, "--yes")
    assert (ran.code, ran.out) == (2, "")
    assert problem in ran.err
    assert ran.err.count("\n") == 1
    assert murmur.left() == ALL


def test_times_without_buckets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They would delete more than intended."""
    spec = SqliteSpec(str(tmp_path / "c.db"))
    with closing(spec.open(Max())) as store:
        store.merge_update(Key("a"), 1)
    assert cli.main(["delete", str(spec), "a", "--from", "2026-11-14", "--yes"]) == 2
    assert capsys.readouterr().err == "murmur: error: the store has no time buckets; leave out --from and --to\n"


def test_a_store_that_cannot_delete(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own store without the method is refused."""
    spec = MemorySpec(f"delete-{next(_names)}")
    spec.open(Sum()).merge_update(Key("a"), 1)
    monkeypatch.delattr("murmur_beam.state.memory.MemoryStore.delete")
    assert cli.main(["delete", str(spec), "a", "--yes"]) == 2
    assert "MemoryStore cannot delete: it has no delete method" in capsys.readouterr().err
