"""Processes that fork: a child uses nothing of its parent's, and the parent is not affected."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from murmur_beam.monoids import Sum
from tests.support import emulators, environment

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")

PRELUDE = """
import gc, multiprocessing, os, signal, sys, threading, time, traceback
from murmur_beam import forks
from murmur_beam.errors import MurmurError, StoreUnavailable
from murmur_beam.metrics import InMemory
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count, Custom, Sum
from murmur_beam.state import spec_from_uri
from murmur_beam.state.pool import Lease

A, B = Key("a"), Key("b")
uri = sys.argv[1]
spec = spec_from_uri(uri)

def fork(work, leave=os._exit):
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        leave(0)
    return pid

def wait(pid):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            assert code == 0, code
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")

def refusal(call):
    try:
        call()
    except StoreUnavailable as err:
        return str(err)
    raise AssertionError("was not refused")

class Merging:
    # Threads that merge all the time: events "thread/number" into b.
    def __init__(self, store, threads):
        self.store, self.merged, self.done = store, [0] * threads, threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(threads)]

    def work(self, i):
        while not self.done.is_set():
            assert self.store.merge_update(B, 1, event_id=f"{i}/{self.merged[i]}") is Outcome.MERGED
            self.merged[i] += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()
"""


def run(uri: str, code: str, *, main: str = "", grpc_handlers: str = "false") -> str:
    """The output of a process that forks; it must end well, and soon.

    Args:
        uri: of its store.
        code: its program, after `PRELUDE`.
        main: a file for the program; processes that are started by spawn or forkserver read it.
        grpc_handlers: whether gRPC's own fork handlers are in use. They may crash a child whose parent is busy.
    """
    variables = environment(GRPC_ENABLE_FORK_SUPPORT=grpc_handlers)
    arguments = ["-c", PRELUDE + code]
    if main:
        Path(main).write_text(PRELUDE + code, encoding="utf-8")
        arguments = [main]
    ended = subprocess.run(
        [sys.executable, *arguments, uri], env=variables, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """A new file."""
    return f"sqlite:///{tmp_path / 'counts.db'}"


@pytest.fixture
def bigtable(bigtable_host: str) -> str:
    """A new table."""
    return emulators.new_uri(bigtable_host)


@pytest.fixture(params=["memory", "sqlite", "bigtable"])
def any_store(request: pytest.FixtureRequest) -> str:
    """Each kind of store."""
    return "memory://forks" if request.param == "memory" else str(request.getfixturevalue(request.param))


class TestSqlite:
    def test_commits_of_a_child_outlive_the_parent_s_close(self, sqlite: str) -> None:
        """A child that shared its parent's open file would hold no lock of its own on it: the parent's close would then
        delete the log with the child's writes."""
        code = """
store = spec.open(Sum())
store.merge_update(A, 1, event_id="parent")
def work():
    other = spec.open(Sum())
    for each, name in ((other, "own"), (store, "inherited")):
        assert each.merge_update(A, 1, event_id=name) is Outcome.MERGED
    os.write(ready[1], b"x")
    os.read(closed[0], 1)
    for each, name in ((other, "own too"), (store, "inherited too")):
        assert each.merge_update(A, 1, event_id=name) is Outcome.MERGED
ready, closed = os.pipe(), os.pipe()
child = fork(work)
os.read(ready[0], 1)
store.merge_update(A, 1, event_id="parent too")
store.close()
os.write(closed[1], b"x")
wait(child)
"""
        run(sqlite, code)
        with closing(sqlite3.connect(sqlite.removeprefix("sqlite:///"))) as db:
            assert db.execute("SELECT value FROM murmur").fetchall() == [(6,)]
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    @pytest.mark.parametrize("leave", ["os._exit", "sys.exit"])
    def test_forks_while_others_merge(self, sqlite: str, leave: str) -> None:
        """However the children end, used or not: no process hangs, nothing is lost."""
        code = f"""
store = spec.open(Sum())
def work(i):
    if i % 3:
        assert store.merge_update(A, 1, event_id=str(i)) is Outcome.MERGED
    if i % 3 == 2:
        store.close()
with Merging(store, 4) as merging:
    for i in range(30):
        wait(fork(lambda: work(i), {leave}))
assert store.get_many([A, B]) == [20, sum(merging.merged)]
"""
        run(sqlite, code)
        with closing(sqlite3.connect(sqlite.removeprefix("sqlite:///"))) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def test_a_file_that_was_replaced_meanwhile_is_noticed(self, sqlite: str) -> None:
        """Though it was closed for the fork, both processes know the file that was opened."""
        code = """
store = spec.open(Sum())
store.merge_update(A, 1, event_id="1")
def work():
    os.rename(spec.path, spec.path + ".old")
    spec.open(Sum()).close()
    assert "was replaced" in refusal(lambda: store.get(A))
wait(fork(work))
assert "was replaced" in refusal(lambda: store.get(A))
"""
        run(sqlite, code)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_fork_that_waits_too_long_is_refused_in_the_child(kind: str, sqlite: str) -> None:
    """Where another thread works for too long, the child's copy is inconsistent; the parent is not affected."""
    code = """
forks.WAIT_S = 0.2
combining, forked = threading.Event(), threading.Event()
def add(a, b):
    if threading.current_thread() is not threading.main_thread():
        combining.set()
        assert forked.wait(30)
    return a + b
slow = Custom("slow", 0, add)
store = spec.open(slow)
store.merge_update(B, 1, event_id="1")
thread = threading.Thread(target=store.merge_update, args=(B, 1), kwargs={"event_id": "2"})
thread.start()
assert combining.wait(30)
def work():
    print(refusal(lambda: store.get(B)))
    if uri.startswith("sqlite"):
        print(refusal(lambda: spec.open(slow)))
    sys.stdout.flush()
child = fork(work)
forked.set()
wait(child)
thread.join(30)
assert store.get(B) == 2
"""
    said = run("memory://forks" if kind == "memory" else sqlite, code).splitlines()
    assert len(said) == 1 if kind == "memory" else len(said) == 2
    assert all("another thread was" in each and "spawn or forkserver" in each for each in said)


class TestBigtable:
    def test_open_stores_are_refused_with_a_reason(self, bigtable: str) -> None:
        """The inherited store, a fresh one, and one in a grandchild; closing them is harmless."""
        code = """
store = spec.open(Sum())
store.merge_update(A, 1, event_id="1")
def work():
    for use in (lambda: store.merge_update(A, 1), lambda: store.get(A), lambda: spec.open(Sum()), spec.recorded_schema):
        print(refusal(use))
    store.close()
    sys.stdout.flush()
def nested():
    work()
    wait(fork(work))
wait(fork(nested))
assert store.merge_update(A, 1, event_id="2") is Outcome.MERGED
assert store.get(A) == 2
store.close()
"""
        said = run(bigtable, code).splitlines()
        assert len(said) == 8
        for each in said:
            assert each.startswith(f"{bigtable}: cannot be used in this process, which was forked from one that had")
            assert "Close all Bigtable stores before the fork" in each
            assert "spawn or forkserver" in each

    def test_the_connection_of_folds_is_as_safe_as_the_other(self, bigtable_host: str) -> None:
        """A child is refused its use, also while a thread of the parent opens it, and may close the store; after the
        parent has closed it, a child opens its own."""
        spec = emulators.appended_spec(bigtable_host, app_profile="any", fold_profile="folds")
        spec.open(Sum()).close()
        code = """
store = spec.open(Sum())
store.merge_update(A, 1, event_id="1")
def refused():
    assert "was forked from" in refusal(store.fold)
    assert "was forked from" in refusal(store.require_folds)
    assert "was forked from" in refusal(lambda: spec.open(Sum()))
    store.close()
with store._folds._lock:
    wait(fork(refused))
assert store.fold().events == 1
wait(fork(refused))
store.merge_update(A, 1, event_id="2")
assert store.fold().events == 1
store.close()
assert not [thread for thread in threading.enumerate() if thread.name.startswith("murmur")]
def own():
    with_own = spec.open(Sum())
    with_own.merge_update(A, 1, event_id="3")
    assert with_own.fold().events == 1
    with_own.close()
wait(fork(own))
"""
        run(str(spec), code)

    @pytest.mark.parametrize("grpc_handlers", ["false", "true"])
    def test_children_of_a_parent_that_has_closed_all_open_their_own(self, bigtable: str, grpc_handlers: str) -> None:
        """Directly after the close, even while an error of it is referenced; and the parent opens it again."""
        code = """
for turn in range(5):
    store = spec.open(Sum())
    store.merge_update(A, 1, event_id=f"{turn}")
    store.close()
    kept = refusal(lambda: store.get(A))
    def work():
        own = spec.open(Sum())
        assert own.merge_update(A, 1, event_id=f"{turn}") is Outcome.DUPLICATE
        assert own.merge_update(A, 1, event_id=f"child {turn}") is Outcome.MERGED
        own.close()
    wait(fork(work, sys.exit))
assert spec.open(Sum()).get(A) == 10
"""
        run(bigtable, code, grpc_handlers=grpc_handlers)

    @pytest.mark.parametrize("grpc_handlers", ["false", "true"])
    def test_a_parent_that_has_opened_nothing(self, bigtable: str, grpc_handlers: str) -> None:
        """Two children at once, as workers of a server that loads the application first."""
        code = """
def work(i):
    own = spec.open(Sum())
    assert own.merge_update(A, 1, event_id=str(i)) is Outcome.MERGED
    own.close()
for child in [fork(lambda: work(i), sys.exit) for i in range(2)]:
    wait(child)
assert spec.open(Sum()).get(A) == 2
"""
        run(bigtable, code, grpc_handlers=grpc_handlers)

    @pytest.mark.parametrize("leave", ["os._exit", "sys.exit"])
    def test_children_that_end_do_not_affect_the_parent(self, bigtable: str, leave: str) -> None:
        """However they end, also when they delete all that they have inherited."""
        code = f"""
store = spec.open(Sum())
def work():
    global store
    scan.close()
    merging.store = store = None
    gc.collect()
with Merging(store, 4) as merging:
    store.merge_update(A, 1, event_id="1")
    scan = store.scan()
    next(scan)
    for i in range(10):
        wait(fork(work, {leave}))
assert store.get_many([A, B]) == [1, sum(merging.merged)]
store.close()
"""
        run(bigtable, code)


class TestPool:
    @pytest.mark.parametrize("when", ["before", "after", "while"])
    def test_a_child_can_lease(self, any_store: str, when: str) -> None:
        """Before or after its parent's lease, or while another thread of the parent opens and closes under the lock."""
        code = f"""
when = {when!r}
parent = Lease(spec, Sum(), None) if when == "after" else None
done = threading.Event()
def churn():
    while not done.is_set():
        Lease(spec, Sum(), None).release()
thread = threading.Thread(target=churn, daemon=True)
if when == "while":
    thread.start()
def work():
    try:
        own = Lease(spec, Sum(), None)
        assert own.store.merge_update(A, 1) is Outcome.MERGED
        own.release()
        if parent:
            assert parent.store.merge_update(A, 1) is Outcome.MERGED
            parent.release()
    except StoreUnavailable as err:
        assert uri.startswith("bigtable") and when != "before", err
for _ in range(5):
    wait(fork(work))
done.set()
if when == "while":
    thread.join(30)
    assert not thread.is_alive()
parent = parent or Lease(spec, Sum(), None)
assert parent.store.merge_update(B, 1) is Outcome.MERGED
parent.release()
"""
        run(any_store, code)

    @pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
    def test_multiprocessing(self, any_store: str, method: str, tmp_path: Path) -> None:
        """A pool of processes whose parent has a share: all of them merge, except for forks with Bigtable."""
        code = f"""
def merge(i):
    lease = Lease(spec, Sum(), None)
    try:
        return str(lease.store.merge_update(A, 1, event_id=str(i)))
    except StoreUnavailable as err:
        return str(err)
    finally:
        lease.release()

if __name__ == "__main__":
    held = Lease(spec, Sum(), None)
    held.store.merge_update(B, 1, event_id="0")
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        for result in pool.map_async(merge, range(8)).get(60):
            print(result)
        pool.close()
        pool.join()
    assert held.store.merge_update(B, 1, event_id="1") is Outcome.MERGED
    held.release()
"""
        said = run(any_store, code, main=str(tmp_path / "main.py")).splitlines()
        if method == "fork" and any_store.startswith("bigtable"):
            assert len(said) == 8
            assert all("forked from one that had Bigtable open" in each for each in said)
        else:
            assert said == ["merged"] * 8


MERGER = """
from murmur_beam.merger import Merger
from murmur_beam.metrics import InMemory
from murmur_beam.options import MergeOptions
from murmur_beam.spec import resolve

class Counts(InMemory):
    def count(self, name, n):
        self.record_events(name, n)

merger = Merger(resolve(MergeOptions(name="test", key="k", event_id="i", monoid="count", store=uri)), Counts())
def add(i):
    merger.add({"k": "a", "i": str(i)}, 0, i)
def entities(results):
    return [token for token, _ in results]
"""


@pytest.mark.parametrize("when", ["buffered", "under way"])
def test_a_merger_is_empty_in_a_child(any_store: str, when: str) -> None:
    """Records that its parent had buffered or begun are merged there, and not twice; the child starts empty."""
    code = f"""{MERGER}
add(1)
if {when!r} == "under way":
    assert entities(merger.flush_behind()) in ([], [1])
    add(2)
def work():
    add(3)
    try:
        assert entities(merger.flush_behind()) + entities(merger.flush()) == [3]
    except StoreUnavailable:
        assert uri.startswith("bigtable")
    merger.clear()
    merger.close()
wait(fork(work))
rest = entities(merger.flush())
assert rest in ([1], [2], [1, 2]), rest
merger.close()
"""
    run(any_store, code)


def test_a_recorder_is_usable_in_a_child() -> None:
    """Whichever thread held its lock in the parent."""
    code = """
recorder = InMemory()
done = threading.Event()
def record():
    while not done.is_set():
        recorder.record_event("test")
thread = threading.Thread(target=record, daemon=True)
sys.setswitchinterval(1e-6)
thread.start()
for _ in range(50):
    wait(fork(lambda: recorder.record_event("test")))
with recorder._lock:
    wait(fork(lambda: recorder.record_event("test")))
done.set()
"""
    run("memory://forks", code)
