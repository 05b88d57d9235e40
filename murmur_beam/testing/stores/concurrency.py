"""Tests with several threads, and with forks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import pytest

from murmur_beam.errors import MurmurError, StoreUnavailable
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.state.adapted import open_store
from murmur_beam.state.base import SpecLike, Store
from murmur_beam.testing.stores.base import A, B, StoreTests, answers

_DEADLINE_S = 60.0


class ConcurrencyTests(StoreTests):
    """A store is exact with several threads, and safe for forks."""

    def test_closing_during_merges(self) -> None:
        """Merges in other threads end, with results or a MurmurError; after a retry each event counts once."""
        tried: list[Update] = []
        problems: list[BaseException] = []

        def merge(store: Store[Any], name: str, merged: threading.Semaphore) -> None:
            for n in range(1_000_000):
                updates = [Update(Key(name), 1, f"{name}/{n}/{i}") for i in range(3)]
                tried.extend(updates)
                try:
                    errors = [result for result in store.merge_updates(updates) if isinstance(result, Exception)]
                    if errors:
                        raise errors[0]
                except MurmurError:
                    return
                except BaseException as err:
                    problems.append(err)
                    return
                finally:
                    merged.release()

        for turn in range(20):
            store, merged = self.open(), threading.Semaphore(0)
            threads = [
                # Daemons, so that a thread that hangs fails this test, but does not block the tests after it.
                threading.Thread(target=merge, args=(store, f"{turn}/{i}", merged), daemon=True)
                for i in range(32)
            ]
            for thread in threads:
                thread.start()
            for _ in range(3 * turn):
                assert merged.acquire(timeout=_DEADLINE_S)
            store.close()
            deadline = time.monotonic() + _DEADLINE_S
            for thread in threads:
                thread.join(max(deadline - time.monotonic(), 0.0))
            assert [thread.name for thread in threads if thread.is_alive()] == []
        assert problems == []
        store = self.open()
        assert all(isinstance(result, Outcome) for result in store.merge_updates(tried))
        assert sum(value for _, value in store.scan()) == len(tried)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    @pytest.mark.parametrize("situation", ["opened", "used", "merging", "closed"])
    def test_a_fork(self, situation: str) -> None:
        """A child reopens the parent's store or is refused; the parent is not affected."""
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        parent = context.Process(target=_fork_and_merge, args=(self.spec(self.clock), situation, theirs))
        parent.start()
        theirs.close()
        try:
            assert mine.poll(_DEADLINE_S), "the child or its parent hangs"
            problem = mine.recv()
            parent.join(_DEADLINE_S)
            assert (problem, parent.exitcode) == ("", 0)
        finally:
            parent.kill()
            parent.join()
            mine.close()

    def test_several_threads_count_exactly(self) -> None:
        """Threads merge overlapping sets of events, through one store and through several; each event counts once."""
        self.clock.jitter = 0.0  # the threads share the clock: the waits of all would pass the deadline of each flush
        shared = self.open()
        stores = [shared, shared, self.open(), self.open()]
        problems: list[BaseException] = []

        def merge(store: Store[Any], first: int) -> None:
            try:
                for start in range(first, first + 300, 30):
                    updates = [Update(Key(f"k{i % 5}"), 1, str(i)) for i in range(start, start + 60)]
                    problems.extend(r for r in store.merge_updates(updates) if isinstance(r, Exception))
            except BaseException as err:
                problems.append(err)

        threads = [threading.Thread(target=merge, args=(store, 50 * i)) for i, store in enumerate(stores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        # Events 0 .. 479, each in one of five keys.
        assert shared.get_many([Key(f"k{i}") for i in range(5)]) == [96] * 5

    def test_deleting_beside_a_writer(self) -> None:
        """After deletions during writes, other rows are exact and keep their markers; deleted events count again."""
        self.clock.jitter = 0.0  # as above
        writer, eraser = self.open(), self.open()
        events = [[Update(Key(f"{kind}/{i % 3}", i % 2), 1, str(i)) for kind in ("gone", "kept")] for i in range(400)]
        results: list[Any] = []
        started, done = threading.Event(), threading.Event()

        def write() -> None:
            for i in range(0, len(events), 10):
                results.extend(writer.merge_updates([u for pair in events[i : i + 10] for u in pair]))
                started.set()
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        started.wait()
        while not done.is_set():
            eraser.delete("gone/", prefix=True)
        thread.join()
        eraser.delete("gone/", prefix=True)
        assert results == [self.merged] * 800
        model: dict[Key, int] = {}
        for _, update in events:
            model[update.key] = model.get(update.key, 0) + 1
        assert dict(writer.scan()) == model
        again = [eraser.merge_updates(pair) for pair in events]
        assert again == [[self.merged, self.duplicate]] * 400
        assert dict(writer.scan()) == model | {Key(f"gone{key.entity[4:]}", key.bucket): n for key, n in model.items()}


def _fork_and_merge(spec: SpecLike, situation: str, answer: Connection) -> None:
    """Use a store in a new process that forks; send the problem to the parent, or an empty text."""
    try:
        _check_fork(spec, situation)
        answer.send("")
    except BaseException as err:
        answer.send(repr(err))


def _check_fork(spec: SpecLike, situation: str) -> None:
    store: Store[Any] = open_store(spec, Sum())
    merged, duplicate = answers(store.appends)
    done = threading.Event()
    n_merged = 0

    def merge() -> None:
        nonlocal n_merged
        while not done.is_set():
            assert store.merge_update(B, 1, event_id=str(n_merged)) is merged
            n_merged += 1

    thread = threading.Thread(target=merge, daemon=True)
    if situation != "opened":
        assert store.merge_update(A, 1, event_id="parent") is merged
    if situation == "closed":
        store.close()
    if situation == "merging":
        thread.start()
    children = [_child(spec, store, situation, i) for i in range(5 if situation == "merging" else 1)]
    for child in children:
        _wait_for(child)
    if situation == "closed":
        store = open_store(spec, Sum())
    expected = merged if situation == "opened" else duplicate
    assert store.merge_update(A, 1, event_id="parent") is expected
    assert store.merge_update(A, 1, event_id="parent again") is merged
    done.set()
    if situation == "merging":
        thread.join(_DEADLINE_S)
        assert not thread.is_alive()
    assert store.get(B) == (n_merged or None)
    # The children's merges are visible unless the state belongs to one process.
    assert store.get(A) in {2, 2 + len(children)}
    store.close()


def _child(spec: SpecLike, store: Store[Any], situation: str, number: int) -> int:
    """Fork a child that merges, through the inherited store and through a new one, or is refused; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    merged, duplicate = answers(store.appends)
    try:
        refused = 0
        try:
            own = open_store(spec, Sum())
            assert own.merge_update(A, 1, event_id=f"child {number}") is merged
            if situation != "opened":
                assert own.merge_update(A, 1, event_id="parent") is duplicate
            own.close()
        except StoreUnavailable:
            refused += 1
        try:
            assert store.merge_update(A, 1, event_id=f"child {number}") is duplicate
        except StoreUnavailable:
            refused += 1
        # Either both stores are refused or none; if the inherited one was closed, it alone.
        assert refused == 1 if situation == "closed" else refused in (0, 2)
        store.close()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait_for(pid: int) -> None:
    deadline = time.monotonic() + _DEADLINE_S / 2
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")
