"""Deadlines: every call has one deadline, and a server that does not answer is detected once for all calls."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from tests.support import emulators

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from murmur_beam.errors import MergeCancelled, StoreUnavailable, TransientError
from murmur_beam.metrics import InMemory
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.processor import AtomicDedup, Config, make_record, merge_records
from murmur_beam.state.base import Result, Schema
from murmur_beam.state.bigtable import BigtableSpec, BigtableStore, connection, tables
from murmur_beam.state.bigtable.dispatcher import Dispatcher, Gate, Patience
from murmur_beam.testing import emulators as emulation
from murmur_beam.testing.emulators import BIGTABLE, stop
from tests.support.fault_proxy import CHECK_AND_MUTATE, METHODS, MUTATE_ROWS, READ_ROWS, Fault, FaultProxy, Plan

T = TypeVar("T")

PATIENCE_S, TIMEOUT_S = 1.0, 0.4
AT_ONCE_S = 0.7
"""How much longer a call may take on a busy machine."""


def open_store(host: str, **arguments: Any) -> BigtableStore[int]:
    """A store of a new table, with little patience."""
    spec = emulators.new_spec(host, timeout_s=TIMEOUT_S, patience_s=PATIENCE_S, **arguments)
    store: BigtableStore[int] = spec.open(Sum())
    return store


def never(*methods: str) -> Plan:
    """These requests get no answer."""
    return Plan({Fault.DELAY: 1.0}, methods=methods, late_s=3600.0)


def timely(call: Callable[[], T], most_s: float = PATIENCE_S + AT_ONCE_S) -> T:
    """The result of a call that ends in time. A busy machine can only add to it, so one of three calls must do."""
    took_s = []
    for _ in range(3):
        started_s = time.monotonic()
        result = call()
        took_s.append(time.monotonic() - started_s)
        if took_s[-1] < most_s:
            return result
    raise AssertionError(f"it took {took_s} s, and should take {most_s:g} s at most")


def merge_all(store: BigtableStore[int], updates: list[Update]) -> None:
    """Each update is merged once, though a busy machine may need longer than the store's patience."""
    deadline = time.monotonic() + 60
    while updates:
        assert time.monotonic() < deadline
        results = store.merge_updates(updates)
        assert Outcome.DUPLICATE not in results
        updates = [update for update, result in zip(updates, results, strict=True) if result is not Outcome.MERGED]


def ping_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detect a dead connection within seconds."""
    pings = {"grpc.keepalive_time_ms": 1_000, "grpc.http2.ping_timeout_ms": 500}
    options = tuple((name, pings.get(name, value)) for name, value in connection.OPTIONS)
    assert options != connection.OPTIONS
    monkeypatch.setattr(connection, "OPTIONS", options)


# ---- a call ----


@pytest.mark.parametrize("methods", [(CHECK_AND_MUTATE,), METHODS, (CHECK_AND_MUTATE, READ_ROWS)])
@pytest.mark.parametrize("rows", [1, 40, 2_000])
def test_a_flush_ends_in_time(proxy: FaultProxy, bigtable_host: str, rows: int, methods: tuple[str, ...]) -> None:
    """However many rows it has: each is a failed try, and merges as soon as the server answers; few requests were
    sent."""
    updates = [Update(Key(f"k{i}"), 1, str(i)) for i in range(rows)]
    with closing(open_store(bigtable_host)) as store:
        proxy.plan = never(*methods)
        sent: list[int] = []

        def flush() -> list[Result]:
            before = proxy.counts[CHECK_AND_MUTATE].requests
            results = store.merge_updates(updates)
            sent.append(proxy.counts[CHECK_AND_MUTATE].requests - before)
            return results

        assert {type(result) for result in timely(flush)} == {TransientError}
        assert max(sent) <= 64 + 16 * 20
        proxy.plan = None
        merge_all(store, updates)
        with closing(dataclasses.replace(store._spec, timeout_s=30.0, patience_s=60.0).open(Sum())) as patient:
            assert set(patient.merge_updates(updates)) == {Outcome.DUPLICATE}
            assert patient.get_many([update.key for update in updates]) == [1] * rows


def test_all_the_tries_of_a_flush_end_in_time(proxy: FaultProxy, bigtable_host: str) -> None:
    """Three tries by default, and the waits between them; nothing is lost or counted twice."""
    records = [make_record(Sum(), str(i), 0, [f"k{i}"], 1, need_id=True)[:4] for i in range(500)]
    config = Config(dedup=AtomicDedup())
    with closing(open_store(bigtable_host)) as store:
        proxy.plan = never(CHECK_AND_MUTATE)
        results = timely(lambda: merge_records(config, "p", records, store), 3 * (PATIENCE_S + AT_ONCE_S))
        assert {type(result.error) for result in results} == {TransientError}
        proxy.plan = None
        merge_all(store, [Update(Key(f"k{i}"), 1, str(i)) for i in range(500)])


def test_the_default_deadline_is_below_a_minute(proxy: FaultProxy, bigtable_host: str) -> None:
    """5,000 rows, and writes that time out on a working connection; then each event is merged once."""
    records = [make_record(Sum(), str(i), 0, [f"k{i}"], 1, need_id=True)[:4] for i in range(5_000)]
    config = Config(dedup=AtomicDedup())
    with closing(emulators.new_spec(bigtable_host).open(Sum())) as store:
        proxy.plan = never(CHECK_AND_MUTATE)
        started_s = time.monotonic()
        results = merge_records(config, "p", records, store)
        took_s = time.monotonic() - started_s
        assert {type(result.error) for result in results} == {TransientError}
        proxy.plan = None
        merge_all(store, [Update(Key(f"k{i}"), 1, str(i)) for i in range(5_000)])
        assert sum(value for _, value in store.scan()) == 5_000
    assert 3 * BigtableSpec.patience_s <= took_s <= 60


def test_a_connection_whose_other_end_is_gone(
    proxy: FaultProxy, bigtable_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither end is notified. A ping detects it, and the next flush uses another connection."""
    ping_often(monkeypatch)
    updates = [Update(Key(f"k{i}"), 1, str(i)) for i in range(40)]
    spec = dataclasses.replace(emulators.new_spec(bigtable_host), timeout_s=30.0, patience_s=60.0)
    with closing(spec.open(Sum())) as store:
        assert store.merge_updates(updates[:20]) == [Outcome.MERGED] * 20
        proxy.half_open()
        started_s = time.monotonic()
        results = store.merge_updates(updates[20:])
        assert time.monotonic() - started_s < 10, "long before a request's deadline"
        assert {type(result) for result in results} == {TransientError}
        merge_all(store, updates[20:])
        assert sum(value for _, value in store.scan()) == 40


def test_a_network_that_drops_everything(
    proxy: FaultProxy, bigtable_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection ends. A retry waits for another one until patience is over, or gRPC gives that one up before. The
    error names the network either way, and not a conflict with other writers."""
    ping_often(monkeypatch)
    updates = [Update(Key(f"k{i}"), 1, str(i)) for i in range(40)]
    spec = dataclasses.replace(emulators.new_spec(bigtable_host), timeout_s=6.0, patience_s=6.0)
    with closing(spec.open(Sum())) as store:
        assert store.merge_updates(updates[:20]) == [Outcome.MERGED] * 20
        proxy.black_hole()
        results = store.merge_updates(updates[20:])
        assert {type(result) for result in results} == {TransientError}
        texts = {str(result) for result in results}
        waited = (
            f"{spec}: not done within 6 s (patience_s): the server cannot be reached, or says that it is unavailable"
        )
        assert all(text == waited or text.startswith(f"{spec}: UNAVAILABLE: ") for text in texts), texts
        proxy.down()
        proxy.up()
        merge_all(store, updates[20:])
        assert sum(value for _, value in store.scan()) == 40


def test_an_emulator_that_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It restarts without its tables: the error says so, and the store works again as soon as the table is made."""
    emulators.require(BIGTABLE)
    first = BIGTABLE.start()
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", first.host)
    try:
        store = emulators.new_spec(first.host).open(Sum())
        spec = store._spec
        assert store.merge_update(Key("a"), 1, event_id="1") is Outcome.MERGED
    finally:
        stop(first.pid)
    with closing(store):
        with pytest.raises(TransientError, match="UNAVAILABLE"):
            store.merge_update(Key("a"), 1, event_id="2")
        port = int(first.host.rpartition(":")[2])
        monkeypatch.setattr(emulation, "_free_port", lambda: port)
        again = BIGTABLE.start()
        try:
            assert again.host == first.host
            deadline = time.monotonic() + 30
            while True:
                (result,) = store.merge_updates([Update(Key("a"), 1, "2")])
                if not isinstance(result, TransientError):
                    break
                assert time.monotonic() < deadline
            assert isinstance(result, StoreUnavailable)
            assert "NOT_FOUND" in str(result)
            tables.create(spec, tables.table_meta(Schema("sum", None)))
            for event in ("2", "3", "3"):
                store.merge_update(Key("a"), 1, event_id=event)
            assert store.get(Key("a")) == 2
        finally:
            stop(again.pid)


@pytest.mark.parametrize("keys", [1, 100, 3_000])
def test_a_read_of_many_keys_ends_in_time(proxy: FaultProxy, bigtable_host: str, keys: int) -> None:
    """The client retries it until then."""
    with closing(open_store(bigtable_host)) as store:
        store.merge_update(Key("k0"), 1, event_id="1")
        proxy.plan = never(READ_ROWS)

        def read() -> None:
            with pytest.raises(TransientError):
                store.get_many([Key(f"k{i}") for i in range(keys)])

        timely(read)
        proxy.plan = None
        assert store.get(Key("k0")) == 1


@pytest.mark.parametrize("methods", [(MUTATE_ROWS,), (READ_ROWS,), METHODS])
def test_sums_without_ids_end_in_time(proxy: FaultProxy, bigtable_host: str, methods: tuple[str, ...]) -> None:
    """As commits do."""
    updates = [Update(Key(f"k{i}"), 1) for i in range(2_500)]
    with closing(open_store(bigtable_host)) as store:
        proxy.plan = never(*methods)
        assert {type(result) for result in timely(lambda: store.merge_updates(updates))} == {TransientError}
        proxy.plan = None
        merge_all(store, updates)


def test_an_overloaded_server_also_meets_the_deadline(proxy: FaultProxy, bigtable_host: str) -> None:
    """Though it answers each request at once."""
    updates = [Update(Key(f"k{i}"), 1, str(i)) for i in range(300)]
    with closing(open_store(bigtable_host)) as store:
        proxy.plan = Plan({Fault.EXHAUST: 1.0}, methods=[CHECK_AND_MUTATE])
        results = timely(lambda: store.merge_updates(updates))
        assert {type(result) for result in results} == {TransientError}
        assert all("RESOURCE_EXHAUSTED" in str(result) or "too much to do" in str(result) for result in results)


def test_rows_that_are_answered_are_merged(proxy: FaultProxy, bigtable_host: str) -> None:
    """Half of the requests get no answer; the others merge as usual."""
    updates = [Update(Key(f"k{i}"), 1, str(i)) for i in range(200)]
    with closing(open_store(bigtable_host)) as store:
        proxy.plan = Plan({Fault.DELAY: 0.5}, seed=7, methods=[CHECK_AND_MUTATE], late_s=3600.0)
        results = store.merge_updates(updates)
        merged = results.count(Outcome.MERGED)
        assert merged > 20
        assert {type(result) for result in results} <= {Outcome, TransientError}
        proxy.plan = None
        again = store.merge_updates(updates)
        assert again.count(Outcome.DUPLICATE) == merged
        assert again.count(Outcome.MERGED) == 200 - merged


def test_a_cancelled_merge_waits_for_one_try_only(proxy: FaultProxy, bigtable_host: str) -> None:
    """Failed updates are not tried again."""
    cancel = threading.Event()
    records = [make_record(Sum(), str(i), 0, [f"k{i}"], 1, need_id=True)[:4] for i in range(100)]
    with closing(open_store(bigtable_host)) as store:
        proxy.plan = never(CHECK_AND_MUTATE)
        cancel.set()

        def merge() -> None:
            with pytest.raises(MergeCancelled):
                merge_records(Config(dedup=AtomicDedup(), recorder=InMemory()), "p", records, store, cancel=cancel)

        timely(merge)


# ---- the gate ----


def run(work: Coroutine[Any, Any, None]) -> None:
    """In an event loop, within the time limit of a test."""
    asyncio.run(asyncio.wait_for(work, 20))


def test_a_gate_is_open_to_all() -> None:
    """As long as the server answers."""

    async def work() -> None:
        gate = Gate()
        assert [await gate.enter() for _ in range(5)] == [False] * 5
        for answered in (True, None, True):
            gate.leave(False, answered)
        assert not gate.silent

    run(work())


@pytest.mark.parametrize("answers", [(True,), (False, True), (False, False, None, False, True)])
def test_a_silent_server_gets_one_request_at_a_time(answers: tuple[bool | None, ...]) -> None:
    """The others wait for its result: after an answer all continue, otherwise the next one is sent."""

    async def work() -> None:
        gate = Gate()
        gate.leave(await gate.enter(), False)
        under_way: list[asyncio.Future[bool | None]] = []
        entered = 0

        async def request() -> None:
            nonlocal entered
            probes = await gate.enter()
            entered += 1
            answer = asyncio.get_running_loop().create_future()
            under_way.append(answer)
            gate.leave(probes, await answer)

        requests = [asyncio.create_task(request()) for _ in range(10)]
        for n, answer in enumerate(answers):
            await asyncio.sleep(0.01)
            assert entered == len(under_way) == n + 1
            under_way[n].set_result(answer)
        await asyncio.sleep(0.01)
        assert entered == 10
        for answered in under_way[len(answers) :]:
            answered.set_result(True)
        await asyncio.gather(*requests)
        assert not gate.silent

    run(work())


def test_a_cancelled_probe_is_replaced_by_the_next() -> None:
    """No request waits forever."""

    async def work() -> None:
        gate = Gate()
        gate.leave(False, False)
        entered = []

        async def request(n: int) -> None:
            probes = await gate.enter()
            try:
                entered.append(n)
                await asyncio.sleep(3600)
            finally:
                gate.leave(probes, None)

        requests = [asyncio.create_task(request(n)) for n in range(3)]
        for n in range(3):
            await asyncio.sleep(0.01)
            assert entered == [*range(n + 1)]
            requests[n].cancel()
        await asyncio.gather(*requests, return_exceptions=True)

    run(work())


@pytest.mark.parametrize(
    ("codes", "blamed"),
    [
        ([], "has too much to do"),
        ([None], "has too much to do"),
        ([StatusCode.ABORTED], "has too much to do"),
        ([StatusCode.DEADLINE_EXCEEDED], "does not answer"),
        ([StatusCode.UNAVAILABLE], "cannot be reached"),
        ([None, StatusCode.UNAVAILABLE], "cannot be reached"),
        ([StatusCode.UNAVAILABLE, None], "has too much to do"),
        ([StatusCode.DEADLINE_EXCEEDED, None], "has too much to do"),
        ([StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED], "does not answer"),
        ([StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE], "does not answer"),
    ],
    ids=str,
)
def test_the_last_request_gives_the_reason(codes: list[StatusCode | None], blamed: str) -> None:
    """A broken connection is not an answer, nor is it the silence of a server that has received the request."""

    async def work() -> None:
        sender = Dispatcher(BigtableSpec("p", "i", "t"))
        for code in codes:
            with suppress(AioRpcError):
                await sender.send(functools.partial(answer, code), sender.deadline())
        assert f"the server {blamed}" in str(sender.late())

    async def answer(code: StatusCode | None) -> None:
        if code is not None:
            raise AioRpcError(code, Metadata(), Metadata())

    run(work())


@pytest.mark.parametrize("silent", [True, False])
def test_a_broken_connection_neither_shuts_nor_opens_a_gate(silent: bool) -> None:
    """What is known of the server does not change."""

    async def work() -> None:
        gate = Gate()
        gate.leave(False, not silent)
        gate.leave(await gate.enter(), None, broken=True)
        assert (gate.silent, gate.broken) == (silent, True)
        gate.leave(await gate.enter(), True)
        assert (gate.silent, gate.broken) == (False, False)

    run(work())


def test_patience_ends_all_work() -> None:
    """Also work that catches its cancellation; a cancellation from outside is passed on."""

    async def work() -> None:
        caught = 0
        with Patience(0.05) as patience:
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    caught += 1
                    if caught == 3:
                        raise
        assert (patience.over, caught) == (True, 3)
        with Patience(3600.0) as patience:
            pass
        assert not patience.over

        async def waits() -> None:
            with Patience(3600.0):
                await asyncio.sleep(3600)

        task = asyncio.create_task(waits())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())


def test_patience_is_a_setting_of_the_store(bigtable_host: str) -> None:
    """The message names it."""
    with closing(open_store(bigtable_host)) as store:
        late = str(store._dispatcher.late())
    assert f"not done within {PATIENCE_S:g} s (patience_s)" in late
    assert timedelta(seconds=BigtableSpec("p", "i", "t").patience_s) == timedelta(seconds=15)
