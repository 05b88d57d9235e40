"""Writes of the Bigtable store: lost answers, conflicts, refusals and several writers of one row."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextlib import closing
from datetime import datetime, timezone
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from murmur_beam.errors import (
    InvalidRecord,
    PermanentError,
    StoreUnavailable,
    TransientError,
)
from murmur_beam.metrics import InMemory
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Max, SetUnion, Sum
from murmur_beam.monoids.sum import Overflow
from murmur_beam.processor import AtomicDedup, Config, merge_many
from murmur_beam.state.base import UpdateResults
from murmur_beam.state.bigtable import encode_row_key, wire
from murmur_beam.testing import FakeClock
from tests.support.emulators import new_spec
from tests.support.lines import UNAVAILABLE, Line, Unreadable

A = Key("a")


@pytest.mark.parametrize("shards", [1, 8])
def test_writers_of_the_same_rows_count_exactly(bigtable_host: str, shards: int) -> None:
    """Eight stores merge overlapping sets of the same events into the same 50 keys at once."""
    spec = new_spec(bigtable_host, shards=shards)
    problems: list[object] = []

    def merge(first: int) -> None:
        with closing(spec.open(Sum())) as store:
            for start in range(first, first + 1000, 100):
                updates = [Update(Key(f"k{i % 50}"), 1, str(i)) for i in range(start, start + 200)]
                problems.extend(r for r in store.merge_updates(updates) if not isinstance(r, Outcome))

    threads = [threading.Thread(target=merge, args=(100 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    with closing(spec.open(Sum())) as store:
        # Events 0 .. 1799, each in one of 50 keys.
        assert store.get_many([Key(f"k{i}") for i in range(50)]) == [36] * 50


@pytest.mark.parametrize("monoid", [Sum(), SetUnion(), Max()])
def test_a_write_whose_answer_is_lost_is_resolved_by_reading(bigtable_host: str, monoid: Any) -> None:
    """It has happened, so it is merged: not an error, not a duplicate, and not written twice."""
    with closing(new_spec(bigtable_host).open(monoid)) as store:
        line = Line(store)
        line.lose = [UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED] * 8
        deltas = [monoid.lift(i, 0) for i in range(20)]
        updates = [Update(Key(f"k{i % 4}"), delta, str(i)) for i, delta in enumerate(deltas)]
        for start in range(0, 20, 5):
            assert store.merge_updates(updates[start : start + 5]) == [Outcome.MERGED] * 5
        assert line.lose == []
        again = Outcome.MERGED if monoid.idempotent else Outcome.DUPLICATE
        assert store.merge_updates(updates) == [again] * 20
        assert store.get_many([Key(f"k{i}") for i in range(4)]) == [monoid.fold(deltas[i::4]) for i in range(4)]


def test_a_lost_answer_that_is_resolved_later_is_merged(bigtable_host: str) -> None:
    """If the row cannot be read either, the try fails; the next one finds the events and returns merged, once."""
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        line = Line(store)
        line.lose, line.unread = [UNAVAILABLE], [UNAVAILABLE]
        updates = [Update(A, 1, "1"), Update(A, 2, "2")]
        assert [type(result) for result in store.merge_updates(updates)] == [TransientError] * 2
        flushed = store.merge_updates([*updates, Update(A, 4, "3"), Update(A, 1, "1")])
        assert flushed == [Outcome.MERGED] * 3 + [Outcome.DUPLICATE]
        assert isinstance(flushed, UpdateResults)
        assert flushed.counts == {"ambiguous_resolved": 1, "rows_read": 1}
        assert store.merge_updates(updates) == [Outcome.DUPLICATE] * 2
        assert store.get(A) == 7


def test_a_lost_answer_is_a_duplicate_once_others_have_packed_the_row(bigtable_host: str) -> None:
    """Its commit can no longer be identified; the events have counted once in any case."""
    spec = new_spec(bigtable_host)
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        line = Line(store)
        line.lose, line.unread = [UNAVAILABLE], [UNAVAILABLE]
        assert isinstance(store.merge_updates([Update(A, 1, "lost")])[0], TransientError)
        for i in range(60):
            assert other.merge_update(A, 1, event_id=str(i)) is Outcome.MERGED
        assert store.merge_update(A, 1, event_id="lost") is Outcome.DUPLICATE
        assert store.get(A) == 61


@pytest.mark.parametrize("arrives", ["before", "after"])
def test_a_write_that_arrives_late_does_no_harm(bigtable_host: str, arrives: str) -> None:
    """Whether it arrives before the next try or after, the event is merged once, and reported as merged once."""
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        store.merge_update(A, 1, event_id="0")
        line = Line(store)
        late: list[Any] = []

        async def delayed(request: bytes) -> bool:
            late.append(request)
            line.fail([grpc.StatusCode.DEADLINE_EXCEEDED])
            return False

        sent = line._commit
        line.commit = lambda request, burst=None: asyncio.ensure_future(delayed(request))  # type: ignore[method-assign]
        assert isinstance(store.merge_updates([Update(A, 2, "1")])[0], TransientError)
        del line.commit  # that of the class
        if arrives == "before":
            assert line.run(sent(late[0])) is True
        assert store.merge_update(A, 2, event_id="1") is Outcome.MERGED
        if arrives == "after":
            assert line.run(sent(late[0])) is False
        assert store.get(A) == 3
        assert store.merge_update(A, 2, event_id="1") is Outcome.DUPLICATE


def test_an_interrupted_flush_leaves_its_rows_usable(bigtable_host: str) -> None:
    """Its commits may have happened: the next flush reads the rows, and reports each event once."""
    updates = [Update(Key(f"k{i}"), 1, str(i)) for i in range(20)]
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        line = Line(store)
        send, under_way, never = line._commit, threading.Semaphore(0), asyncio.Event()

        async def unanswered(request: bytes, *, lost: bool) -> bool:
            if not lost:
                await send(request)
            under_way.release()
            return await never.wait()

        for lost in (False, True):
            line.commit = lambda request, burst=None, lost=lost: asyncio.ensure_future(  # type: ignore[misc]
                unanswered(request, lost=lost)
            )
            flush = asyncio.run_coroutine_threadsafe(store._merge(updates), line._loop)
            for _ in updates:
                assert under_way.acquire(timeout=30)
            flush.cancel()
        del line.commit
        assert store.merge_updates(updates) == [Outcome.MERGED] * 20
        assert store.merge_updates(updates) == [Outcome.DUPLICATE] * 20
        assert store.get_many([update.key for update in updates]) == [1] * 20


def test_flushes_of_the_same_rows_at_once_wait_for_each_other(bigtable_host: str) -> None:
    """Two threads that write the same rows from opposite ends must not deadlock."""
    keys = [Key(f"k{i}") for i in range(60)]
    done: list[int] = []
    with closing(new_spec(bigtable_host, max_in_flight=8).open(Sum())) as store:

        def merge(name: str, step: int) -> None:
            for n in range(20):
                results = store.merge_updates([Update(key, 1, f"{name}{n}") for key in keys[::step]])
                done.append(results.count(Outcome.MERGED))

        threads = [
            threading.Thread(target=merge, args=(f"t{i}-", step), daemon=True) for i, step in enumerate((1, -1, 1, -1))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
        assert done == [60] * 80
        assert store.get_many(keys) == [80] * 60


def test_a_value_that_could_not_be_decoded_again_is_not_written(bigtable_host: str) -> None:
    """Its update fails; the row and the other updates of the flush are not affected."""
    with closing(new_spec(bigtable_host).open(Unreadable())) as store:
        updates = [Update(Key(f"k{i}"), i) for i in range(16)]
        results = store.merge_updates(updates)
        assert [i for i, result in enumerate(results) if result is not Outcome.MERGED] == [13]
        assert isinstance(results[13], PermanentError)
        assert store.merge_update(Key("k13"), 14) is Outcome.MERGED
        assert store.get_many([update.key for update in updates]) == [*range(13), 14, 14, 15]


def test_lost_answers_are_a_metric(bigtable_host: str) -> None:
    """They are counted under the pipeline's name, and so are the sizes of rows."""
    recorder = InMemory()
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        line = Line(store)
        line.lose = [UNAVAILABLE, None, UNAVAILABLE]
        cfg = Config(recorder=recorder, dedup=AtomicDedup(), clock=FakeClock())
        for i in range(3):
            when = datetime(2026, 11, 23, tzinfo=timezone.utc)
            assert merge_many(cfg, "views", str(i), when, ["a"], 1, store) is Outcome.MERGED
    stats = recorder.snapshot()
    assert stats["views:ambiguous_resolved"].events_processed == 2
    # Three commits, each with a column of 24 bytes and one fingerprint of 16, besides the row key and the sum.
    assert stats["views"].sizes == {"journal_bytes": 3 * (24 + 16 + 8), "row_bytes": 3 * (24 + 16 + 8) + 12 + 8}


def test_an_overloaded_server_is_given_time(bigtable_host: str) -> None:
    """RESOURCE_EXHAUSTED is not a failed try: the store waits, longer each time, at most for its patience."""
    clock = FakeClock()
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    with closing(new_spec(bigtable_host, clock=clock).open(Sum())) as store:
        line = Line(store)
        line.refuse = [exhausted] * 9
        assert store.merge_update(A, 1, event_id="1") is Outcome.MERGED
        assert clock.waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        assert line.commits == 10
        line.refuse = [exhausted] * 100
        (result,) = store.merge_updates([Update(A, 1, "2")])
        assert isinstance(result, TransientError)
        assert "RESOURCE_EXHAUSTED" in str(result)
        assert 15 <= sum(clock.waits[9:]) <= 20
        line.refuse.clear()
        line.lose, line.unread = [UNAVAILABLE], [exhausted]
        assert store.merge_update(A, 1, event_id="2") is Outcome.MERGED
        assert line.unread == []
        assert store.get(A) == 2


def test_a_row_with_endless_conflicts_fails_in_the_end(bigtable_host: str) -> None:
    """A version conflict is not a failed try, but the commit must not be repeated forever."""
    clock = FakeClock()
    spec = new_spec(bigtable_host, clock=clock)
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        line = Line(store)
        send = line._commit

        async def overtaken(request: bytes) -> bool:
            clock.time += 1.0
            await asyncio.to_thread(other.merge_update, A, 1, event_id=str(line.commits))
            return await send(request)

        line.commit = lambda request, burst=None: asyncio.ensure_future(  # type: ignore[method-assign]
            overtaken(request)
        )
        (result,) = store.merge_updates([Update(A, 100, "x")])
        assert isinstance(result, TransientError)
        assert "written by others for 15 s" in str(result)
        assert 8 <= line.commits <= 15, "with waits between them"
        assert other.get(A) == line.commits


def test_a_conflict_costs_one_read_and_one_more_write(bigtable_host: str) -> None:
    """A row that another writer has written is read once, and only new events are written; other rows merge."""
    spec = new_spec(bigtable_host)
    keys = [Key(f"k{i}") for i in range(32)]
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        store.merge_updates([Update(key, 1, "1") for key in keys])
        other.merge_updates([Update(key, 1, "2") for key in keys[:3]])
        line = Line(store)
        results = store.merge_updates([Update(key, 1, event) for key in keys for event in ("2", "3")])
        assert results == [Outcome.DUPLICATE, Outcome.MERGED] * 3 + [Outcome.MERGED] * 58
        assert (line.commits, line.reads) == (32 + 3, 3)
        assert store.get_many(keys) == [3] * 32


def test_a_request_that_is_refused_permanently_is_a_permanent_error(bigtable_host: str) -> None:
    """A request that the server never accepts is a fault of the record; a missing permission is one of the table."""
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        line = Line(store)
        for code, kind in (("INVALID_ARGUMENT", PermanentError), ("PERMISSION_DENIED", StoreUnavailable)):
            # Twice: after the first time the table is asked whether it accepts similar rows.
            line.refuse = [grpc.StatusCode[code], None, grpc.StatusCode[code]]
            bad, good = store.merge_updates([Update(A, 1, "1"), Update(Key("b"), 1, code)])
            line.refuse.clear()
            assert type(bad) is kind
            assert f"{code}: as told" in str(bad)
            assert good is Outcome.MERGED
        assert store.merge_update(A, 1, event_id="1") is Outcome.MERGED


def test_a_value_that_is_too_long_is_permanent(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would refuse it at every try; the old value and earlier merges are kept."""
    monkeypatch.setattr("murmur_beam.state.bigtable.commit_planner.MAX_VALUE_BYTES", 40)
    with closing(new_spec(bigtable_host).open(SetUnion())) as store:
        assert store.merge_update(A, frozenset({"x" * 20}), event_id="1") is Outcome.MERGED
        with pytest.raises(PermanentError, match=r"set_union would take \d+ bytes, at most 40"):
            store.merge_update(A, frozenset({"y" * 20}), event_id="2")
        assert store.get(A) == {"x" * 20}


def test_a_row_that_was_deleted_is_read_again(bigtable_host: str) -> None:
    """A cached row is useless once another process has deleted and filled it again, even equally often."""
    spec = new_spec(bigtable_host)
    keys = [Key(f"k{i}") for i in range(10)]  # by chance each has a larger or a smaller version than before
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        for i in range(3):
            store.merge_updates([Update(key, 1, f"old {i}") for key in keys])
        line = Line(store)
        nothing_left = [wire.clear(family) for family in (wire.AGG, wire.DEDUP, wire.STATE)]
        deletion = wire.bulk(line, [(encode_row_key(key), nothing_left) for key in keys])
        assert line.run(line.real.mutate(deletion, len(keys))) == {}
        for i in range(3):
            other.merge_updates([Update(key, 10, f"new {i}") for key in keys])
        again = [Update(key, 10, f"new {i}") for key in keys for i in range(3)]
        assert store.merge_updates(again) == [Outcome.DUPLICATE] * 30
        assert store.merge_updates([Update(key, 1, "old 0") for key in keys]) == [Outcome.MERGED] * 10
        assert other.get_many(keys) == [31] * 10


def test_many_existing_rows_are_read_together(bigtable_host: str) -> None:
    """A new worker on old rows needs about one read for 128 of them, and a write for each that changes."""
    spec = new_spec(bigtable_host)
    keys = [Key(f"k{i}") for i in range(512)]
    with closing(spec.open(Sum())) as store:
        line = Line(store)
        assert set(store.merge_updates([Update(key, 1, "1") for key in keys])) == {Outcome.MERGED}
        assert (line.commits, line.reads) == (512, 0)
        assert set(store.merge_updates([Update(key, 1, "1") for key in keys])) == {Outcome.DUPLICATE}
        assert (line.commits, line.reads) == (512, 0)
    with closing(spec.open(Sum())) as store:
        assert set(store.merge_updates([Update(key, 1, "1") for key in keys[:64]])) == {Outcome.DUPLICATE}
        line = Line(store)
        assert set(store.merge_updates([Update(key, 1, "1") for key in keys[64:]])) == {Outcome.DUPLICATE}
        assert (line.commits, line.reads) == (0, 4)
        assert set(store.merge_updates([Update(key, 1, "2") for key in keys])) == {Outcome.MERGED}
        assert (line.commits, line.reads) == (512, 4)


@pytest.mark.parametrize("known", [0, 64])
def test_a_row_that_cannot_be_read_fails_alone(bigtable_host: str, known: int) -> None:
    """Whether it is read alone or with others: its updates get the error, and the others merge."""
    spec = new_spec(bigtable_host)
    keys = [Key(f"k{i:03}") for i in range(known + 3)]
    with closing(spec.open(SetUnion())) as store:
        store.merge_updates([Update(key, frozenset({"x"})) for key in keys])
        spoil = wire.bulk(store._connection, [(encode_row_key(keys[-2]), [wire.put(wire.STATE, wire.VALUE, 0, b"{")])])
        assert store._connection.run(store._connection.mutate(spoil, 1)) == {}
    with closing(spec.open(SetUnion())) as store:
        store.merge_updates([Update(key, frozenset({"y"})) for key in keys[:known]])
        results = store.merge_updates([Update(key, frozenset({"y"})) for key in keys[known:]])
        assert results[0] is results[2] is Outcome.MERGED
        assert isinstance(results[1], PermanentError)
        assert f"the value stored for '{keys[-2].entity}' is not a set_union" in str(results[1])
        assert store.get_many([keys[0], keys[-1]]) == [{"x", "y"}] * 2


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(0, 3), st.sampled_from(["", "", "", "lose", "refuse"])),
    min_size=10,
    max_size=60,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_packing_loses_no_event(
    bigtable_host: str, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, int, int, str]]
) -> None:
    """Three writers of a row pack its columns repeatedly, each with the events that it knows: all events stay known."""
    for name, value in (("PACK_AT", 4), ("PACKED", 3), ("SMALL_EVENTS", 6)):
        monkeypatch.setattr(f"murmur_beam.state.bigtable.row_cache.{name}", value)
    spec = new_spec(bigtable_host)
    events: list[str] = []
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(closing(spec.open(Sum()))) for _ in range(3)]
        lines = [Line(store) for store in stores]
        merged = 0
        for writer, n, again, fault in steps:
            new = [f"e{len(events) + i}" for i in range(n)]
            batch = [Update(A, 1, event) for event in [*events[len(events) - again :], *new]]
            getattr(lines[writer], fault or "lose").append(UNAVAILABLE if fault else None)
            results = stores[writer].merge_updates(batch)
            if any(isinstance(result, TransientError) for result in results):
                results = stores[writer].merge_updates(batch)
            merged += results.count(Outcome.MERGED)
            events += new
        assert merged == len(events)
    with closing(spec.open(Sum())) as store:
        assert store.merge_updates([Update(A, 1, event) for event in events]) == [Outcome.DUPLICATE] * len(events)
        assert store.get(A) == len(events)
        assert store._committer.rows[encode_row_key(A)].small <= 4


def test_large_flushes_become_several_commits(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row's events are split, so that a cell of fingerprints stays small."""
    monkeypatch.setattr("murmur_beam.state.bigtable.batch.EVENTS_PER_COMMIT", 10)
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        line = Line(store)
        updates = [Update(A, 1, str(i % 25)) for i in range(50)]
        results = store.merge_updates(updates)
        assert results == [Outcome.MERGED] * 25 + [Outcome.DUPLICATE] * 25
        assert line.commits == 3
        assert store.get(A) == 25


def test_a_large_row_is_logged_once(
    bigtable_host: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator should know before the row gets slow, but not at every flush."""
    monkeypatch.setattr("murmur_beam.state.bigtable.committer.WARN_ROW_BYTES", 1000)
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        for i in range(5):
            store.merge_updates([Update(A, 1, f"{i}/{n}") for n in range(25)])
        store.merge_update(Key("b"), 1, event_id="1")
    (record,) = caplog.records
    assert "the row of 'a', bucket 0, shard 0 has grown to" in record.getMessage()


class TestWithoutDedup:
    """Sums without event ids are added, many rows in a request."""

    def test_many_rows_need_one_request(self, bigtable_host: str) -> None:
        """And each delivery counts."""
        with closing(new_spec(bigtable_host).open(Sum())) as store:
            line = Line(store)
            updates = [Update(Key(f"k{i % 300}"), i) for i in range(900)]
            for _ in range(2):
                assert store.merge_updates(updates) == [Outcome.MERGED] * 900
            assert (line.commits, line.bulks, line.reads) == (0, 2, 1)
            expected = [2 * sum(range(n, 900, 300)) for n in range(300)]
            assert store.get_many([Key(f"k{n}") for n in range(300)]) == expected

    def test_an_overflow_is_permanent(self, bigtable_host: str) -> None:
        """It is found before it is written, and other updates are not affected."""
        spec = new_spec(bigtable_host)
        with closing(spec.open(Sum())) as store:
            store.merge_update(A, 2**63 - 5)
        with closing(spec.open(Sum())) as store:
            results = store.merge_updates([Update(A, 4), Update(A, 1), Update(Key("b"), 1), Update(Key("x" * 5000), 1)])
            assert [type(result) for result in results] == [Outcome, Overflow, Outcome, InvalidRecord]
            assert store.get_many([A, Key("b")]) == [2**63 - 1, 1]

    def test_a_failed_request_is_transient(self, bigtable_host: str) -> None:
        """It is only known to have failed; other updates are not affected."""
        with closing(new_spec(bigtable_host).open(Sum())) as store:
            line = Line(store)
            line.refuse = [UNAVAILABLE]
            assert isinstance(store.merge_updates([Update(A, 1)])[0], TransientError)
            assert store.merge_updates([Update(A, 1), Update(Key("b"), 1, "1")]) == [Outcome.MERGED] * 2
            assert store.merge_updates([Update(A, 1, "1"), Update(A, 1, "1")]) == [Outcome.MERGED, Outcome.DUPLICATE]
            assert store.get_many([A, Key("b")]) == [2, 1]

    def test_a_missing_family_makes_it_unusable(self, bigtable_host: str) -> None:
        """An entry that fails has its own error, with the same text as that of a whole request."""
        with closing(new_spec(bigtable_host).open(Sum())) as store:
            entries = [(b"x", [wire.put(family, b"v", 0, b"")]) for family in (wire.STATE, "nowhere")]
            failed = store._connection.run(store._connection.mutate(wire.bulk(store._connection, entries), 2))
            assert {i: type(err) for i, err in failed.items()} == {1: StoreUnavailable}
