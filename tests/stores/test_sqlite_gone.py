"""Changes to a SQLite file under a running writer end in an error that names the file, and never in "merged"."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from murmur_beam import MergeRecords, Reader
from murmur_beam.errors import StoreUnavailable, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count, Sum
from murmur_beam.state.sqlite import SqliteSpec, SqliteStore
from murmur_beam.state.sqlite import file as sqlite_file
from tests.support import environment

A, B = Key("a"), Key("b")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file, in a folder of its own, where backups may lie too."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "c.db"


@pytest.fixture
def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteStore[int]]:
    """An open store, with 20,000 events of 50 keys in the file itself, and some more in its log."""
    monkeypatch.setattr(sqlite_file, "_REST_AFTER_CHECK", 0)
    with closing(SqliteSpec(str(path)).open(Count())) as store:
        merge(store, 20_000)
        checkpoint(path)
        store.merge_updates([Update(B, 1, str(i)) for i in range(10)])
        yield store


def merge(store: SqliteStore[int], n: int) -> None:
    """Merge the first ``n`` events; known ones change nothing."""
    for start in range(0, n, 500):
        results = store.merge_updates([Update(Key(f"k{i % 50}"), 1, str(i)) for i in range(start, min(start + 500, n))])
        assert all(isinstance(result, Outcome) for result in results), results


def checkpoint(path: Path, mode: str = "PASSIVE") -> None:
    """Move the log into the file."""
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA wal_checkpoint({mode})")


def remove(*endings: str) -> Callable[[Path], None]:
    """Remove the files with these suffixes."""

    def harm(path: Path) -> None:
        for ending in endings:
            os.remove(f"{path}{ending}")

    return harm


def move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def empty_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def remake(path: Path) -> None:
    """Let another process find no file, and make a new one."""
    move(path)
    os.remove(f"{path}-wal")
    os.remove(f"{path}-shm")
    in_another_process(path, "merge(1)")


def replace_by_copy(path: Path) -> None:
    """As tools do that write a file beside it first."""
    shutil.copy(path, path.with_name("copy.db"))
    os.replace(path.with_name("copy.db"), path)


def replace_log(path: Path) -> None:
    shutil.copy(f"{path}-wal", f"{path}-copy")
    os.replace(f"{path}-copy", f"{path}-wal")


def cut(ending: str, size: int) -> Callable[[Path], None]:
    """Truncate it to this many bytes."""
    return lambda path: os.truncate(f"{path}{ending}", size)


def overwrite(first: float, with_what: bytes) -> Callable[[Path], None]:
    """Overwrite it from there to its end, without changing its length."""

    def harm(path: Path) -> None:
        size = path.stat().st_size
        start = int(size * first) // 4096 * 4096
        with open(path, "r+b") as file:
            file.seek(start)
            file.write((with_what * size)[: size - start])

    return harm


def overwrite_by_text(path: Path) -> None:
    path.write_text("this is not a database " * 10_000)


HARMS = [
    pytest.param(remove(""), "c.db: was removed or moved", id="removed"),
    pytest.param(remove("", "-wal", "-shm"), "c.db: was removed or moved", id="removed-with-its-log"),
    pytest.param(remove("-wal"), "c.db-wal: was removed or moved", id="log-removed"),
    pytest.param(remove("-shm"), "c.db-shm: was removed or moved", id="index-removed"),
    pytest.param(remove("-wal", "-shm"), "c.db-wal: was removed or moved", id="log-and-index-removed"),
    pytest.param(empty_folder, "c.db: was removed or moved", id="folder-removed"),
    pytest.param(move, "c.db: was removed or moved", id="moved"),
    pytest.param(move_folder, "c.db: was removed or moved", id="folder-moved"),
    pytest.param(remake, "c.db: was replaced", id="made-anew-by-another-process"),
    pytest.param(replace_by_copy, "c.db: was replaced", id="replaced"),
    pytest.param(replace_log, "c.db-wal: was replaced", id="log-replaced"),
    pytest.param(cut("", 0), "it is no longer a database", id="emptied"),
    pytest.param(cut("", 100_000), "c.db: was truncated or overwritten", id="cut"),
    pytest.param(cut("-wal", 0), "c.db: was truncated or overwritten", id="log-emptied"),
    pytest.param(cut("-wal", 32 + 4_120), "c.db: was truncated or overwritten", id="log-cut"),
    pytest.param(overwrite(0, b"\0"), "it is no longer a database", id="zeros"),
    pytest.param(overwrite(0.3, b"\0"), "c.db: was truncated or overwritten", id="zeros-in-the-middle"),
    pytest.param(overwrite(0.3, b"\xff\x17"), "c.db: was truncated or overwritten", id="noise-in-the-middle"),
    pytest.param(overwrite_by_text, "it is no longer a database", id="text"),
]


@pytest.mark.parametrize(("harm", "problem"), HARMS)
def test_no_later_flush_is_merged(
    store: SqliteStore[int], path: Path, harm: Callable[[Path], None], problem: str
) -> None:
    """Each update has the error that names the file, however often it is tried; and closing does no more harm."""
    harm(path)
    for _ in range(2):
        results = store.merge_updates([Update(A, 1, "x"), Update(B, 1, "x"), Update(Key("k0"), 1, "0")])
        assert [type(result) for result in results] == [StoreUnavailable] * 3
        assert problem in str(results[0])
        assert str(path) in str(results[0])
    after = {file: file.read_bytes() for file in path.parent.glob("c.db*")} if problem == "c.db: was replaced" else {}
    store.close()
    assert all(file.read_bytes() == data for file, data in after.items() if not file.name.endswith("-shm"))


GONE = [harm for harm in HARMS if "removed" in str(harm.values[1]) or "replaced" in str(harm.values[1])]


@pytest.mark.parametrize(("harm", "problem"), GONE)
def test_the_flush_during_the_change_is_not_merged(
    store: SqliteStore[int], path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None], problem: str
) -> None:
    """Though SQLite has committed it, to a file that no process will open."""
    if harm is remake:
        pytest.skip("the other process would wait for this flush")
    collect = store._collect

    def harm_and_collect() -> None:
        harm(path)
        collect()

    monkeypatch.setattr(store, "_collect", harm_and_collect)
    results = store.merge_updates([Update(A, 1, "x"), Update(B, 1, "x")])
    assert [type(result) for result in results] == [StoreUnavailable] * 2
    assert problem in str(results[0])


@pytest.mark.parametrize(("harm", "problem"), GONE)
def test_reads_fail_too(store: SqliteStore[int], path: Path, harm: Callable[[Path], None], problem: str) -> None:
    """An open reader does not keep returning the old values; of the log it has all, as long as it is open."""
    harm(path)
    if problem.startswith("c.db: "):
        with pytest.raises(StoreUnavailable, match=problem):
            store.get(Key("k0"))
        with pytest.raises(StoreUnavailable, match=problem):
            list(store.scan())
    else:
        assert store.get(Key("k0")) == 400
    with pytest.raises(StoreUnavailable, match=problem):
        store.delete("k0")


@pytest.mark.parametrize("logged", [0, 1_000])
def test_an_older_copy_written_over_it(path: Path, tmp_path: Path, logged: int) -> None:
    """By ``cp``, which keeps the inode, and leaves the log of the newer file beside it."""
    with closing(SqliteSpec(str(path)).open(Count())) as store:
        merge(store, 500)
        checkpoint(path)
        shutil.copyfile(path, tmp_path / "backup.db")
        merge(store, 5_000)
        checkpoint(path)
        merge(store, 5_500 + logged)
        shutil.copyfile(tmp_path / "backup.db", path)
        (result,) = store.merge_updates([Update(A, 1, "x")])
        assert isinstance(result, StoreUnavailable)
        assert "an older copy has replaced it" in str(result)


def test_a_backup_that_sqlite_made_written_over_it(store: SqliteStore[int], path: Path, tmp_path: Path) -> None:
    """It has the same number of pages, and another history."""
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(tmp_path / "backup.db")) as backup:
        db.backup(backup)
    merge(store, 22_000)
    shutil.copyfile(tmp_path / "backup.db", path)
    (result,) = store.merge_updates([Update(A, 1, "x")])
    assert isinstance(result, StoreUnavailable)


def test_a_backup_that_sqlite_restores_is_accepted(store: SqliteStore[int], path: Path, tmp_path: Path) -> None:
    """It is a transaction like any other: values and markers are those of the backup, and later events count anew."""
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(tmp_path / "backup.db")) as backup:
        db.backup(backup)
    merge(store, 22_000)
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(tmp_path / "backup.db")) as backup:
        backup.backup(db)
    assert store.get(Key("k0")) == 400
    merge(store, 22_000)
    assert [value for _, value in store.scan("k")] == [440] * 50


def test_sqlite_s_own_changes_raise_no_error(store: SqliteStore[int], path: Path) -> None:
    """Checkpoints, a shrinking file, another table, readers that come and go, also in other processes."""
    merge(store, 20_000)
    for n, what in enumerate(
        (
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "DELETE FROM murmur WHERE entity > 'k2'",
            "VACUUM",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "CREATE TABLE others AS SELECT * FROM murmur",
            "DROP TABLE others",
            "VACUUM",
            "PRAGMA optimize",
        )
    ):
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(what).fetchall()
        assert store.merge_update(A, 1, event_id=f"x{n}") is Outcome.MERGED
        with Reader.open(SqliteSpec(str(path))) as reader:
            assert reader.get("a") == n + 1
    for n in range(3):
        in_another_process(path, f"merge({n}, '{n}')")
        assert store.merge_update(A, 1, event_id=f"y{n}") is Outcome.MERGED
    assert store.get(A) == 11


def test_two_writers_raise_no_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each constantly writes to the file and its log beside the other."""
    checked = []
    check = sqlite_file.OpenFile._check_content
    monkeypatch.setattr(sqlite_file.OpenFile, "_check_content", lambda self: (checked.append(1), check(self)))
    spec = SqliteSpec(str(path))
    with closing(spec.open(Sum())) as one, closing(spec.open(Sum())) as other:
        for start in range(0, 20_000, 500):
            for store in (one, other):
                updates = [Update(Key(f"k{i}"), 1, "1") for i in range(start, start + 500)]
                assert all(isinstance(result, Outcome) for result in store.merge_updates(updates))
    assert checked == []


SCRIPT = """
import sys
from contextlib import closing
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Count
from murmur_beam.state.sqlite import SqliteSpec

path = sys.argv[1]

def merge(n, prefix=""):
    with closing(SqliteSpec(path).open(Count())) as store:
        return store.merge_updates([Update(Key(f"{prefix}k{i % 50}"), 1, str(i)) for i in range(n)])

"""


def in_another_process(path: Path, code: str, **more: Any) -> str:
    """The output of a process; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + code, str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        **more,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


DISK_FULL = """
import resource, signal, os
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def limit(n):
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))

def flush(store, start, keys=50):
    return store.merge_updates([Update(Key(f"k{i % keys}"), 1, str(i)) for i in range(start, start + 500)])

"""


def test_a_full_disk_is_transient(path: Path) -> None:
    """Its error says so; once there is space, the same flush merges, and nothing was counted twice."""
    code = f"""{DISK_FULL}
with closing(SqliteSpec(path).open(Count())) as store:
    limit(300_000)
    start = 0
    while isinstance(result := flush(store, start)[0], str):
        start += 500
    print(type(result).__name__, result)
    print(type(flush(store, start)[-1]).__name__)
    limit(resource.RLIM_INFINITY)
    print({{str(r) for r in flush(store, start)}}, sum(value for _, value in store.scan()) - start)
"""
    first, second, last = in_another_process(path, code).splitlines()
    assert first.startswith(f"TransientError sqlite {path}: disk I/O error; its disk may be full")
    assert second == "TransientError"
    assert last == "{'merged'} 500"


def test_a_disk_that_is_full_during_a_checkpoint(path: Path) -> None:
    """Merged events are in the log, and stay there until there is space."""
    code = f"""{DISK_FULL}
with closing(SqliteSpec(path).open(Count())) as store:
    for start in range(0, 60_000, 500):
        flush(store, start, 100_000)
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._file.note()
    size = os.path.getsize(path)
    limit(size)
    merged = 0
    while True:
        results = flush(store, 60_000 + merged, 100_000)
        if not all(isinstance(r, str) for r in results):
            break
        merged += 500
    assert os.path.getsize(path) == size, "the limit was meant for the file"
    print(merged, type(results[0]).__name__)
"""
    merged, error = in_another_process(path, code).split()
    assert int(merged) >= 1_000
    assert error == "TransientError"
    with closing(SqliteSpec(str(path)).open(Count())) as store:
        assert sum(value for _, value in store.scan()) == 60_000 + int(merged)
        assert store.merge_update(Key("k60000"), 1, event_id="60000") is Outcome.DUPLICATE


def merged_without_rights(path: Path) -> str:
    """The result of a merge in a process without root's rights, since root ignores modes."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            with closing(SqliteSpec(str(path)).open(Count())) as store:
                os.write(writing, str(store.merge_update(A, 1, event_id="1")).encode())
        except Exception as err:
            os.write(writing, f"{type(err).__name__} {err}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as said:
        return said.read()


def test_a_file_that_may_not_be_written_to() -> None:
    """By its own mode, or by that of its folder; both are refused."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "c.db"
        with closing(SqliteSpec(str(path)).open(Count())) as store:
            store.merge_update(A, 1, event_id="1")
        os.chmod(path, 0o444)
        os.chmod(folder, 0o555)
        for where in (path, Path(folder) / "new.db"):
            said = merged_without_rights(where)
            assert said.startswith(f"StoreUnavailable sqlite {where}: ")
            assert "writable" in said
        os.chmod(folder, 0o755)


def test_a_lock_of_another_process_is_transient(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how long it has waited."""
    monkeypatch.setattr(sqlite_file, "LOCK_TIMEOUT_S", 0.01)
    with closing(SqliteSpec(str(path)).open(Count())) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            (result,) = store.merge_updates([Update(A, 1, "1")])
        assert isinstance(result, TransientError)
        assert f"sqlite {path}: database is locked; another process" in str(result)
        assert store.merge_update(A, 1, event_id="1") is Outcome.MERGED


@pytest.mark.parametrize("harm", [remove(""), remove("", "-wal", "-shm"), move, cut("", 0)])
def test_a_pipeline_fails_and_names_the_file(path: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """Whether it happens between its flushes or within one: no event of that bundle is reported as merged."""
    done = tmp_path / "done"

    def harm_in_the_middle(event: dict[str, str]) -> dict[str, str]:
        if event["id"] == "700" and path.exists():
            harm(path)
        return event

    def note(result: Any) -> None:
        with done.open("a") as file:
            file.write(f"{result}\n")

    pipeline = beam.Pipeline(runner=FnApiRunner())
    events = [{"id": str(i), "page": "p"} for i in range(1_000)]
    result = (
        pipeline
        | beam.Create(events)
        | beam.Map(harm_in_the_middle)
        | MergeRecords(key="page", event_id="id", monoid=Count(), store=SqliteSpec(str(path)))
    )
    _ = result.merged | "merged" >> beam.Map(note)
    _ = result.dead_letter | "dead" >> beam.Map(note)
    with pytest.raises(Exception, match=r"sqlite .*c\.db: was (removed|truncated)"):
        pipeline.run().wait_until_finish()
    assert not done.exists()


class TestPermissions:
    def test_the_file_is_private_to_its_owner(self, path: Path) -> None:
        """And so are the two files beside it: keys may be people's names."""
        before = os.umask(0o022)
        try:
            with closing(SqliteSpec(str(path)).open(Count())) as store:
                store.merge_update(A, 1, event_id="1")
                modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        finally:
            os.umask(before)
        assert modes == {"c.db": 0o600, "c.db-wal": 0o600, "c.db-shm": 0o600}

    def test_an_existing_file_keeps_its_mode(self, path: Path) -> None:
        """The owner has chosen it."""
        path.touch(mode=0o640)
        os.chmod(path, 0o640)
        with closing(SqliteSpec(str(path)).open(Count())) as store:
            store.merge_update(A, 1, event_id="1")
            assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o640}
