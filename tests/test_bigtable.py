"""The Bigtable store against the real emulator: the contract of stores, row keys, and several writers of one row."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
from emulators import appended_spec, first_layout_spec, folded_spec, new_spec
from fault_proxy import CHECK_AND_MUTATE, Fault, FaultProxy, Plan
from google.cloud.bigtable_admin_v2 import BigtableTableAdminClient
from google.cloud.bigtable_admin_v2.services.bigtable_table_admin.transports import BigtableTableAdminGrpcTransport
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import Scenario, scenarios
from test_conservation import check_conservation

from murmur_beam.clock import Clock
from murmur_beam.errors import (
    ConfigurationError,
    InvalidRecord,
    PermanentError,
    SchemaMismatch,
    StoreUnavailable,
    TransientError,
)
from murmur_beam.metrics import InMemory
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Max, SetUnion, Sum
from murmur_beam.monoids.sum import Overflow
from murmur_beam.processor import AtomicDedup, Config, merge_many
from murmur_beam.state import StoreSpec, spec_from_uri
from murmur_beam.state.base import Flushed, Schema, Store
from murmur_beam.state.bigtable import (
    BigtableSpec,
    BigtableStore,
    entity_prefix,
    parse_row_key,
    row_key,
    tables,
    wire,
)
from murmur_beam.state.bigtable.known import ROW_WEIGHT
from murmur_beam.testing import FakeClock, StoreContract
from murmur_beam.testing.emulators import bigtable

A = Key("a")


class TestBigtableStore(StoreContract):
    """``bigtable://`` keeps the contract."""

    @pytest.fixture(autouse=True)
    def _host(self, bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = bigtable_host
        # For processes that fork: gRPC's own handlers may crash a child whose parent is at work.
        monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "false")

    def spec(self, clock: FakeClock) -> StoreSpec:
        return new_spec(self.host, clock=clock)


class TestFirstLayout(TestBigtableStore):
    """So does a table of layout 1, which release 0.1.0 made."""

    def spec(self, clock: FakeClock) -> StoreSpec:
        return first_layout_spec(self.host, clock=clock)


class TestShards(TestBigtableStore):
    """A key spread over several rows keeps it too."""

    def spec(self, clock: FakeClock) -> StoreSpec:
        return new_spec(self.host, shards=8, clock=clock)

    @pytest.mark.skip(reason="with shards the limit of 64 bits is that of each shard, so two events need not meet it")
    def test_an_overflow_affects_its_update_only(self) -> None: ...

    @pytest.mark.skip(reason="with shards the limit of 64 bits is that of each shard, so two events need not meet it")
    def test_merge_update_raises_what_failed(self) -> None: ...


class TestAppended(TestBigtableStore):
    """So does a table that is appended to."""

    appends = True

    def spec(self, clock: FakeClock) -> StoreSpec:
        return appended_spec(self.host, clock=clock)


class TestFolded(TestAppended):
    """And whatever of it is folded already; with several rows for each key, which are united one by one."""

    def spec(self, clock: FakeClock) -> StoreSpec:
        return folded_spec(self.host, shards=8, clock=clock)

    # What these are about is done before anything is folded, and takes long with a fold after each flush.
    test_closing_during_merges = None  # type: ignore[assignment]
    test_scan_reads_any_number_of_rows = None  # type: ignore[assignment]
    test_any_number_of_rows_is_deleted = None  # type: ignore[assignment]
    test_deleting_beside_a_writer = None  # type: ignore[assignment]
    test_a_fork = None  # type: ignore[assignment]


class TestSmallMemory(TestBigtableStore):
    """A store that forgets what it knows of rows at once keeps it too: then it reads them again."""

    def spec(self, clock: FakeClock) -> StoreSpec:
        return new_spec(self.host, max_known_events=0, clock=clock)


@pytest.mark.parametrize("spec", [new_spec, first_layout_spec], ids=["layout-2", "layout-1"])
@settings(max_examples=30)
@given(scenario=scenarios())
def test_bigtable_loses_nothing_and_counts_nothing_twice(
    bigtable_host: str, spec: Callable[..., StoreSpec], scenario: Scenario
) -> None:
    """Random events in random batches, duplicates, faults, days going by."""

    @contextmanager
    def open_bigtable(clock: Clock, granularity: timedelta | None) -> Iterator[Store[int]]:
        with closing(spec(bigtable_host, clock=clock).open(Sum(), granularity)) as store:
            yield store

    check_conservation(open_bigtable, scenario)


ENTITIES = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x00\x01\xff/"), min_size=1, max_size=8)
KEYS = st.builds(Key, ENTITIES, st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2))


@given(keys=st.lists(st.tuples(KEYS, st.integers(0, 255)), min_size=2, max_size=2))
def test_row_keys_are_ordered_and_none_begins_another(keys: list[tuple[Key, int]]) -> None:
    """Row keys sort as their keys and shards do, come back as they were, and are no prefixes of one another."""
    first, second = (row_key(*key) for key in keys)
    assert parse_row_key(first) == keys[0]
    assert (first < second) == (keys[0] < keys[1])
    assert (first == second) == (keys[0] == keys[1])
    if keys[0] != keys[1]:
        assert not first.startswith(second)


@given(prefix=st.text(max_size=3), entity=ENTITIES)
def test_a_prefix_of_the_text_is_one_of_the_row_key(prefix: str, entity: str) -> None:
    """All entities that begin with a text, and no others, have row keys in one range."""
    try:
        encoded = entity_prefix(prefix)
    except UnicodeEncodeError:
        return
    assert row_key(Key(entity)).startswith(encoded) == entity.startswith(prefix)


def test_a_row_key_that_is_too_long_is_refused() -> None:
    """NULs take two bytes each, so that even a short entity may be too long."""
    with pytest.raises(InvalidRecord, match="row key of 50"):
        row_key(Key("\x00" * 2500))


@pytest.mark.parametrize("shards", [1, 8])
def test_writers_of_the_same_rows_count_exactly(bigtable_host: str, shards: int) -> None:
    """Eight stores that merge overlapping sets of the same events into the same 50 keys at once."""
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


class Line:
    """A store's connection that counts requests, and fails on command.

    Args:
        store: whose connection it takes over.

    Attributes:
        commits, bulks, reads: requests so far.
        refuse: errors of the next commits, which do not happen; None lets one through.
        lose: errors of the next commits that do happen.
        unread: errors of the next reads.
    """

    def __init__(self, store: BigtableStore[Any]) -> None:
        self.real = store._connection
        self.commits = self.bulks = self.reads = 0
        self.refuse: list[grpc.StatusCode | None] = []
        self.lose: list[grpc.StatusCode | None] = []
        self.unread: list[grpc.StatusCode | None] = []
        for holder in (store._commits, store._sums):
            holder.connection = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    @staticmethod
    def fail(codes: list[grpc.StatusCode | None]) -> None:
        """Raise the next error, if it is one."""
        if codes and (code := codes.pop(0)) is not None:
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "as told")

    def commit(self, request: bytes, burst: Any = None) -> asyncio.Future[bool]:
        return asyncio.ensure_future(self._commit(request))

    async def _commit(self, request: bytes) -> bool:
        self.commits += 1
        self.fail(self.refuse)
        met = await self.real.commit(request)
        self.fail(self.lose)
        return met

    async def mutate(self, request: bytes, n: int) -> dict[int, Exception]:
        self.bulks += 1
        self.fail(self.refuse)
        return await self.real.mutate(request, n)

    async def read(self, query: Any, *, persist: bool = True) -> list[Any]:
        self.reads += 1
        self.fail(self.unread)
        return await self.real.read(query, persist=persist)


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("monoid", [Sum(), SetUnion(), Max()])
def test_a_write_whose_answer_is_lost_is_settled_by_reading(bigtable_host: str, monoid: Any) -> None:
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


def test_a_lost_answer_that_cannot_be_settled_at_once_is_merged_when_it_is(bigtable_host: str) -> None:
    """If the row cannot be read either, the try fails; the next one finds the events there, and says merged: once."""
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        line = Line(store)
        line.lose, line.unread = [UNAVAILABLE], [UNAVAILABLE]
        updates = [Update(A, 1, "1"), Update(A, 2, "2")]
        assert [type(result) for result in store.merge_updates(updates)] == [TransientError] * 2
        flushed = store.merge_updates([*updates, Update(A, 4, "3"), Update(A, 1, "1")])
        assert flushed == [Outcome.MERGED] * 3 + [Outcome.DUPLICATE]
        assert isinstance(flushed, Flushed)
        assert flushed.counts == {"ambiguous_resolved": 1, "rows_read": 1}
        assert store.merge_updates(updates) == [Outcome.DUPLICATE] * 2
        assert store.get(A) == 7


def test_a_lost_answer_is_told_to_be_a_duplicate_once_others_have_packed_it_away(bigtable_host: str) -> None:
    """Whose commit it was cannot be seen any more; it has counted once, whatever it is called."""
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
def test_a_write_that_is_still_on_its_way_does_no_harm(bigtable_host: str, arrives: str) -> None:
    """Whether it arrives before the next try is made for it or after, the event is merged once, and said so once."""
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


def test_a_flush_that_is_interrupted_leaves_its_rows_usable(bigtable_host: str) -> None:
    """What was on its way may have happened: the next flush gets hold of the rows, and tells each event once."""
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
    """Two threads that go over the same rows from both ends must not hold what the other waits for."""
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


class Unreadable(Max):
    """Writes what it cannot read again."""

    name = "unreadable"

    def decode(self, data: bytes) -> Any:
        """See `Monoid.decode`."""
        value = super().decode(data)
        if value == 13:
            raise ValueError("13")
        return value


def test_a_value_that_could_not_be_read_again_is_not_written(bigtable_host: str) -> None:
    """The update is told so, and neither the row nor those of the same burst are hurt."""
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
    """RESOURCE_EXHAUSTED is no failed try: the store waits, longer each time, and for no longer than its patience."""
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


def test_a_row_that_others_keep_writing_is_an_error_in_the_end(bigtable_host: str) -> None:
    """Losing against other writers is no failed try, but it must not go on for ever."""
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
    """A row that somebody else has written is read once, and only what is new to it is written; others go on."""
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


def test_a_request_that_is_refused_for_good_is_permanent(bigtable_host: str) -> None:
    """What the server will never take is the record's fault; a missing permission is the table's."""
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        line = Line(store)
        for code, kind in (("INVALID_ARGUMENT", PermanentError), ("PERMISSION_DENIED", StoreUnavailable)):
            # Twice: after the first time the table is asked whether it takes others like it.
            line.refuse = [grpc.StatusCode[code], None, grpc.StatusCode[code]]
            bad, good = store.merge_updates([Update(A, 1, "1"), Update(Key("b"), 1, code)])
            line.refuse.clear()
            assert type(bad) is kind
            assert f"{code}: as told" in str(bad)
            assert good is Outcome.MERGED
        assert store.merge_update(A, 1, event_id="1") is Outcome.MERGED


def test_a_value_that_is_too_long_is_permanent(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would refuse it at every try; what was there stays, and what was merged before stays merged."""
    monkeypatch.setattr("murmur_beam.state.bigtable.commits.MAX_VALUE_BYTES", 40)
    with closing(new_spec(bigtable_host).open(SetUnion())) as store:
        assert store.merge_update(A, frozenset({"x" * 20}), event_id="1") is Outcome.MERGED
        with pytest.raises(PermanentError, match=r"set_union would take \d+ bytes, at most 40"):
            store.merge_update(A, frozenset({"y" * 20}), event_id="2")
        assert store.get(A) == {"x" * 20}


def test_a_row_that_was_deleted_is_read_again(bigtable_host: str) -> None:
    """What a store remembers of a row is worth nothing when somebody has deleted and filled it again, even as often."""
    spec = new_spec(bigtable_host)
    keys = [Key(f"k{i}") for i in range(10)]  # each by chance has a larger or a smaller version than before
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        for i in range(3):
            store.merge_updates([Update(key, 1, f"old {i}") for key in keys])
        line = Line(store)
        nothing_left = [wire.clear(family) for family in (wire.AGG, wire.DEDUP, wire.STATE)]
        deletion = wire.bulk(line, [(row_key(key), nothing_left) for key in keys])
        assert line.run(line.real.mutate(deletion, len(keys))) == {}
        for i in range(3):
            other.merge_updates([Update(key, 10, f"new {i}") for key in keys])
        again = [Update(key, 10, f"new {i}") for key in keys for i in range(3)]
        assert store.merge_updates(again) == [Outcome.DUPLICATE] * 30
        assert store.merge_updates([Update(key, 1, "old 0") for key in keys]) == [Outcome.MERGED] * 10
        assert other.get_many(keys) == [31] * 10


def test_many_rows_that_exist_are_read_together(bigtable_host: str) -> None:
    """A new worker that goes over old rows needs about one read for 128 of them, and a write for each that changes."""
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
def test_a_row_that_cannot_be_read_hurts_no_other(bigtable_host: str, known: int) -> None:
    """Whether it is read alone or with others: its updates are told what is wrong, and the others merge."""
    spec = new_spec(bigtable_host)
    keys = [Key(f"k{i:03}") for i in range(known + 3)]
    with closing(spec.open(SetUnion())) as store:
        store.merge_updates([Update(key, frozenset({"x"})) for key in keys])
        spoil = wire.bulk(store._connection, [(row_key(keys[-2]), [wire.put(wire.STATE, wire.VALUE, 0, b"{")])])
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


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_packing_loses_no_event(
    bigtable_host: str, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, int, int, str]]
) -> None:
    """Three writers of a row pack its columns again and again, with what each knows of them: all events stay known."""
    for name, value in (("PACK_AT", 4), ("PACKED", 3), ("SMALL_EVENTS", 6)):
        monkeypatch.setattr(f"murmur_beam.state.bigtable.known.{name}", value)
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
        assert store._commits.rows[row_key(A)].small <= 4


def test_large_flushes_become_several_commits(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row's events are split, so that a cell of fingerprints stays small."""
    monkeypatch.setattr("murmur_beam.state.bigtable.groups.EVENTS_PER_COMMIT", 10)
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        line = Line(store)
        updates = [Update(A, 1, str(i % 25)) for i in range(50)]
        results = store.merge_updates(updates)
        assert results == [Outcome.MERGED] * 25 + [Outcome.DUPLICATE] * 25
        assert line.commits == 3
        assert store.get(A) == 25


def test_a_row_that_grows_large_is_a_warning_once(
    bigtable_host: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody should know before the row gets slow, and not at every flush."""
    monkeypatch.setattr("murmur_beam.state.bigtable.commits.WARN_ROW_BYTES", 1000)
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        for i in range(5):
            store.merge_updates([Update(A, 1, f"{i}/{n}") for n in range(25)])
        store.merge_update(Key("b"), 1, event_id="1")
    (record,) = caplog.records
    assert "the row of 'a', bucket 0, shard 0 has grown to" in record.getMessage()


class TestWithoutDedup:
    """Sums without event ids are added, many rows a request."""

    def test_it_takes_one_request_for_many_rows(self, bigtable_host: str) -> None:
        """And each delivery counts."""
        with closing(new_spec(bigtable_host).open(Sum())) as store:
            line = Line(store)
            updates = [Update(Key(f"k{i % 300}"), i) for i in range(900)]
            for _ in range(2):
                assert store.merge_updates(updates) == [Outcome.MERGED] * 900
            assert (line.commits, line.bulks, line.reads) == (0, 2, 1)
            expected = [2 * sum(range(n, 900, 300)) for n in range(300)]
            assert store.get_many([Key(f"k{n}") for n in range(300)]) == expected

    def test_what_does_not_fit_is_permanent(self, bigtable_host: str) -> None:
        """An overflow is noticed before it is written, and hurts nobody else."""
        spec = new_spec(bigtable_host)
        with closing(spec.open(Sum())) as store:
            store.merge_update(A, 2**63 - 5)
        with closing(spec.open(Sum())) as store:
            results = store.merge_updates([Update(A, 4), Update(A, 1), Update(Key("b"), 1), Update(Key("x" * 5000), 1)])
            assert [type(result) for result in results] == [Outcome, Overflow, Outcome, InvalidRecord]
            assert store.get_many([A, Key("b")]) == [2**63 - 1, 1]

    def test_a_failed_request_is_transient(self, bigtable_host: str) -> None:
        """Nothing is known about it but that it failed; and what others do meanwhile does not disturb."""
        with closing(new_spec(bigtable_host).open(Sum())) as store:
            line = Line(store)
            line.refuse = [UNAVAILABLE]
            assert isinstance(store.merge_updates([Update(A, 1)])[0], TransientError)
            assert store.merge_updates([Update(A, 1), Update(Key("b"), 1, "1")]) == [Outcome.MERGED] * 2
            assert store.merge_updates([Update(A, 1, "1"), Update(A, 1, "1")]) == [Outcome.MERGED, Outcome.DUPLICATE]
            assert store.get_many([A, Key("b")]) == [2, 1]

    def test_a_missing_family_makes_it_unusable(self, bigtable_host: str) -> None:
        """An entry that fails has an error of its own, which says as much as that of a whole request."""
        with closing(new_spec(bigtable_host).open(Sum())) as store:
            entries = [(b"x", [wire.put(family, b"v", 0, b"")]) for family in (wire.STATE, "nowhere")]
            failed = store._connection.run(store._connection.mutate(wire.bulk(store._connection, entries), 2))
            assert {i: type(err) for i, err in failed.items()} == {1: StoreUnavailable}


def test_a_row_expires_when_the_last_writer_says(bigtable_host: str) -> None:
    """A row's life is never shortened, whoever writes, and however: with dedup or without."""
    clock = FakeClock()
    spec = new_spec(bigtable_host, clock=clock)
    day = timedelta(days=1)
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        for i, key in enumerate((Key("with"), Key("without"), Key("for ever"))):
            event_id = None if i == 1 else "1"
            store.merge_update(key, 1, ttl=9 * day, event_id=event_id)
            other.merge_update(key, 1, ttl=day, event_id=event_id and "2")
        other.merge_update(Key("for ever"), 1, event_id="3")
        store.merge_update(Key("for ever"), 1, ttl=day, event_id="4")
        clock.time += 8 * 86_400
        for reader in (store, other):
            assert reader.get_many([Key("with"), Key("without"), Key("for ever")]) == [2, 2, 4]
        clock.time += 2 * 86_400
        assert store.get_many([Key("with"), Key("without"), Key("for ever")]) == [None, None, 4]


@pytest.mark.usefixtures("bigtable_host")
def test_a_table_that_is_missing_is_one_readable_error() -> None:
    """Opening it is permanent, and says by which command the table is made for just this purpose."""
    missing = BigtableSpec("p", "i", "nowhere", app_profile="one", shards=2)
    uri = "bigtable://p/i/nowhere?app_profile=one&shards=2"
    for granularity, window in ((None, ""), (timedelta(hours=1), " --window 1h")):
        with pytest.raises(StoreUnavailable) as caught:
            missing.open(Max(), granularity)
        text = str(caught.value)
        assert text.startswith(f"{uri}: NOT_FOUND: table ")
        assert text.endswith(f"; make the table with: murmur create-table '{uri}' --monoid max{window}")


def test_a_table_that_is_dropped_under_a_writer(bigtable_host: str) -> None:
    """Nothing is merged after it, be it in rows that the writer knows or in new ones."""
    spec = new_spec(bigtable_host)
    with closing(spec.open(Sum())) as store:
        assert store.merge_update(A, 1, event_id="1") is Outcome.MERGED
        admin = BigtableTableAdminClient(
            transport=BigtableTableAdminGrpcTransport(channel=grpc.insecure_channel(bigtable_host))
        )
        admin.delete_table(name=f"projects/{spec.project}/instances/{spec.instance}/tables/{spec.table}")
        for key in (A, Key("new")):
            with pytest.raises(StoreUnavailable, match=r"NOT_FOUND: table .* not found"):
                store.merge_update(key, 1, event_id="2")


def test_a_server_that_is_down_is_a_transient_error(monkeypatch: pytest.MonkeyPatch, bigtable_host: str) -> None:
    """What cannot be reached now may be reached later; nothing is left running."""
    before = threading.active_count()
    with bigtable() as host:
        assert host != bigtable_host
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", host)
        store = new_spec(host, timeout_s=1.0).open(Sum())
    with closing(store):
        (result,) = store.merge_updates([Update(A, 1, "1")])
        assert isinstance(result, TransientError)
    # gRPC may take a moment to give up a connection that was being made.
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_server_that_does_not_answer_is_a_transient_error(
    monkeypatch: pytest.MonkeyPatch, bigtable_host: str
) -> None:
    """Rows that were not answered in time are given up, and can be written as soon as the server is well again."""
    updates = [Update(Key(f"k{i}"), 1, str(i)) for i in range(40)]
    with FaultProxy(bigtable_host) as proxy:
        spec = new_spec(bigtable_host, timeout_s=0.5)
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", proxy.address)
        with closing(spec.open(Sum())) as store:
            proxy.plan = Plan({Fault.DELAY: 1.0}, methods=[CHECK_AND_MUTATE], late_s=60.0)
            results = store.merge_updates(updates)
            assert [type(result) for result in results] == [TransientError] * 40
            assert {str(result) for result in results} == {f"{spec}: DEADLINE_EXCEEDED: no answer within 0.5 s"}
            counts = proxy.counts[CHECK_AND_MUTATE]
            assert counts.broken == counts.delayed >= 16, "nothing of them is under way"
            proxy.plan = None
            assert store.merge_updates(updates) == [Outcome.MERGED] * 40


def test_a_store_opens_while_its_server_is_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bigtable_host: str
) -> None:
    """Workers start although it cannot be reached, say so, and work once it is there, if it is what it should be."""
    spec = new_spec(bigtable_host, timeout_s=1.0)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", f"127.0.0.1:{nobody.getsockname()[1]}")
        store = spec.open(Sum())
    (record,) = caplog.records
    assert "UNAVAILABLE" in record.getMessage()
    with closing(store):
        with pytest.raises(TransientError, match="UNAVAILABLE"):
            store.merge_update(A, 1, event_id="1")
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", bigtable_host)
        with closing(spec.open(Max())) as other:
            other.merge_update(A, 1)
            store._connection, down = other._connection, store._connection
            with pytest.raises(SchemaMismatch, match="monoid 'max'"):
                store.merge_update(A, 1, event_id="1")
            store._connection = down


def test_opening_and_closing_leaves_nothing_behind(bigtable_host: str) -> None:
    """Threads are as before after 20 times."""
    spec = new_spec(bigtable_host)
    with closing(spec.open(Sum())) as store:
        store.merge_update(A, 0, event_id="first")
    before = threading.active_count()
    for i in range(20):
        with closing(spec.open(Sum())) as store:
            assert store.merge_update(A, 1, event_id=str(i)) is Outcome.MERGED
            assert store.get(A) == i + 1
    assert threading.active_count() == before


def test_what_is_known_of_rows_is_counted_and_bounded(bigtable_host: str) -> None:
    """The count that keeps memory in bounds must stay that of the rows and events known, however often it is used."""
    spec = new_spec(bigtable_host, max_known_events=500)
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        for i in range(30):
            store.merge_updates([Update(Key(f"k{n % 40}"), 1, f"{i}/{n}") for n in range(i, i + 15)])
            other.merge_update(Key(f"k{i}"), 1, event_id=str(i))
            known = sum(row.events + ROW_WEIGHT for row in store._commits.rows._rows.values())
            assert store._commits.rows.weight == known <= 500


def test_a_table_keeps_its_number_of_shards(bigtable_host: str) -> None:
    """Another number would look for an event's marker in another row; who does not say one gets the table's."""
    spec = new_spec(bigtable_host, shards=4)
    with closing(spec.open(Sum())) as store:
        store.merge_updates([Update(A, 1, str(i)) for i in range(20)])
    unsaid = dataclasses.replace(spec, shards=None)
    with closing(unsaid.open(Sum())) as store:
        assert set(store.merge_updates([Update(A, 1, str(i)) for i in range(20)])) == {Outcome.DUPLICATE}
        assert store.get(A) == 20
    with pytest.raises(SchemaMismatch, match="was made with shards=4, but was opened with shards=2"):
        dataclasses.replace(spec, shards=2).open(Sum())


def test_a_pipeline_that_keeps_buckets_longer_than_the_table_is_stopped(bigtable_host: str) -> None:
    """Also where it was built while the table could not be asked: its buckets would go while they still count."""
    clock = FakeClock()
    day = timedelta(days=1)
    spec = new_spec(bigtable_host, clock=clock)
    tables.create(spec, tables.table_meta(Schema("sum", day), 30 * day), yes=True)
    today = int(clock.now() // 86_400)
    left = timedelta(seconds=(today + 1) * 86_400 - clock.now())
    with closing(spec.open(Sum(), day)) as store:
        for bucket in (today - 30, today, today + 5):
            ttl = left + (bucket - today) * day + 30 * day
            assert store.merge_update(Key("a", bucket), 1, ttl=ttl, event_id="1") is Outcome.MERGED
            for wrong in (ttl + timedelta(minutes=2), None, timedelta.max):
                with pytest.raises(SchemaMismatch, match="keeps its buckets for 31 days, 1:00:00, but"):
                    store.merge_update(Key("a", bucket), 1, ttl=wrong, event_id="2")
        assert store.get(Key("a", today)) == 1


def test_missing_credentials_are_one_readable_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without an emulator and without credentials the store says so, and is permanently unusable."""
    monkeypatch.delenv("BIGTABLE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    before = threading.active_count()
    with pytest.raises(StoreUnavailable, match=r"bigtable://p/i/t: File .*none\.json was not found"):
        BigtableSpec("p", "i", "t").open(Sum())
    assert threading.active_count() == before


def test_an_overflow_is_decided_by_the_row_and_not_by_what_is_remembered(bigtable_host: str) -> None:
    """Another writer may have made room, so the row is looked at before an event is given up."""
    spec = new_spec(bigtable_host)
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        store.merge_update(A, 2**63 - 1, event_id="1")
        other.merge_update(A, -10, event_id="2")
        assert store.merge_update(A, 5, event_id="3") is Outcome.MERGED
        assert store.get(A) == 2**63 - 6
        with pytest.raises(Overflow):
            store.merge_update(A, 6, event_id="4")


def test_uris() -> None:
    """A URI makes the spec it says, and a wrong one says how to write it."""
    spec = BigtableSpec("p", "i", "t", "single-cluster", 4)
    assert spec_from_uri("bigtable://p/i/t?app_profile=single-cluster&shards=4") == spec
    assert spec_from_uri("bigtable://p/i/t") == BigtableSpec("p", "i", "t")
    assert spec_from_uri("bigtable://p/i/t?app_profile=") == BigtableSpec("p", "i", "t")
    for wrong in ("bigtable://p/i", "bigtable://p/i/t/x", "bigtable://p/i/t?shard=4", "bigtable://p/i/t?shards=many"):
        with pytest.raises(ConfigurationError, match="bigtable://PROJECT/INSTANCE/TABLE"):
            spec_from_uri(wrong)
    with pytest.raises(ConfigurationError, match="from 1 to 256"):
        spec_from_uri("bigtable://p/i/t?shards=0")
