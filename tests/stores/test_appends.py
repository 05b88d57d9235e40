"""Appending: what is sent together, what is tried again, which update fails, and at what rate."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from google.cloud.bigtable_v2.types import MutateRowsRequest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.errors import MurmurError, PermanentError, StoreUnavailable, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Custom, Sum
from murmur_beam.state.bigtable import appender, wire
from murmur_beam.state.bigtable.connection import Hint
from murmur_beam.state.bigtable.throttle import OVERLOADED, Throttle
from murmur_beam.testing import FakeClock
from tests.support.emulators import appended_spec
from tests.support.fault_proxy import MUTATE_ROWS, Fault, FaultProxy, Plan, Refusal

A, B, C = Key("a"), Key("b"), Key("c")
RECORDED = Outcome.RECORDED


@pytest.fixture
def proxy(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy between the store and the emulator."""
    with FaultProxy(bigtable_host) as proxy:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", proxy.address)
        yield proxy


def appended(proxy: FaultProxy, **arguments: Any) -> Any:
    """A store whose table is appended to."""
    return appended_spec(proxy.address, **arguments).open(Sum())


# ---- entries ----


@given(
    key=st.binary(min_size=1, max_size=300),
    values=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    at_us=st.integers(0, 2**62),
)
def test_a_setter_makes_the_same_bytes_as_put_and_entry(key: bytes, values: list[bytes], at_us: int) -> None:
    """Also for the second value of the same length."""
    of = wire.setter("pending", b"name", at_us)
    for value in [*values, *values]:
        assert of(key, value) == wire.entry(key, wire.put("pending", b"name", at_us, value))


# ---- what goes out together ----


def test_flushes_that_wait_are_sent_together(proxy: FaultProxy) -> None:
    """While the maximum of requests is in progress; each thread gets the results of its own updates."""
    with closing(appended(proxy)) as store:
        store.merge_update(A, 1, event_id="first")
        proxy.plan = Plan({Fault.DELAY: 1.0}, methods=[MUTATE_ROWS], late_s=0.5)
        before = proxy.counts[MUTATE_ROWS].requests
        outcomes: list[Any] = []
        threads = [
            threading.Thread(target=lambda i=i: outcomes.append(store.merge_updates([Update(Key(f"k{i}"), i, "e")])))
            for i in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert outcomes == [[RECORDED]] * 20
        assert proxy.counts[MUTATE_ROWS].requests - before <= appender._REQUESTS + 2
        assert store.get_many([Key(f"k{i}") for i in range(20)]) == list(range(20))


def test_a_large_flush_is_several_requests(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are bounded in rows and in bytes; a row with more events than a cell holds gets several cells."""
    monkeypatch.setattr(appender, "_ROWS_PER_REQUEST", 100)
    with closing(appended(proxy)) as store:
        before = proxy.counts[MUTATE_ROWS].requests
        assert store.merge_updates([Update(Key(f"k{i}"), 1, "e") for i in range(250)]) == [RECORDED] * 250
        assert proxy.counts[MUTATE_ROWS].requests - before == 3
        monkeypatch.setattr(appender, "_REQUEST_BYTES", 1_000)
        assert store.merge_updates([Update(Key(f"k{i}"), 1, "f") for i in range(90)]) == [RECORDED] * 90
        assert proxy.counts[MUTATE_ROWS].requests - before >= 3 + 90 * 60 // 1_000
        monkeypatch.setattr("murmur_beam.state.bigtable.pending.EVENTS_PER_CELL", 10)
        assert store.merge_updates([Update(A, i, f"e{i}") for i in range(25)]) == [RECORDED] * 25
        assert store.get(A) == sum(range(25))
        assert store.fold().cells == 250 + 90 + 3


# ---- failures ----


@pytest.mark.parametrize(
    "fault", [Fault.EXHAUST, Fault.EXHAUST_AFTER, Fault.REFUSE, Fault.LOSE, Fault.EXPIRE, Fault.CUT_AFTER, Fault.TWICE]
)
def test_failed_requests_are_sent_again_and_count_once(proxy: FaultProxy, fault: Fault) -> None:
    """Whether they were written or not; events that fail in this flush can be sent in the next."""
    with closing(appended(proxy)) as store:
        proxy.plan = Plan({fault: 0.4}, seed=7, methods=[MUTATE_ROWS])
        waiting = [Update(Key(f"k{i % 7}"), 1, f"e{i}") for i in range(210)]
        random.Random(3).shuffle(waiting)
        for _ in range(50):
            some, waiting = waiting[:30], waiting[30:]
            for update, result in zip(some, store.merge_updates(some), strict=True):
                if isinstance(result, TransientError):
                    waiting.append(update)
                else:
                    assert result is RECORDED
            if not waiting:
                break
        assert not waiting
        assert proxy.counts[MUTATE_ROWS].failed + proxy.counts[MUTATE_ROWS].twice
        proxy.plan = None
        assert [store.get(Key(f"k{i}")) for i in range(7)] == [30] * 7


def test_a_refused_row_fails_alone(proxy: FaultProxy) -> None:
    """The other rows of the request are appended; events that came twice have the same result."""

    def live(method: str, request: bytes) -> Refusal | None:
        entries = MutateRowsRequest.deserialize(request).entries if method == MUTATE_ROWS else ()
        if any(b"bad" in entry.row_key for entry in entries):
            return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "that row")
        return None

    with closing(appended(proxy)) as store:
        plain, proxy.live = proxy.live, live
        keys = [Key(name) for name in ("a", "b", "bad", "c", "bad", "d")]
        results = store.merge_updates([Update(key, 1, "e") for key in keys])
        assert [type(result) for result in results[2:5:2]] == [PermanentError] * 2
        assert results[:2] + results[3:4] + results[5:] == [RECORDED] * 4
        proxy.live = plain
        assert store.get_many(keys) == [1, 1, None, 1, None, 1]


def test_a_missing_family_is_a_fault_of_the_table(proxy: FaultProxy) -> None:
    """No record fails for it."""

    def live(method: str, request: bytes) -> Refusal | None:
        if method == MUTATE_ROWS:
            return Refusal(grpc.StatusCode.NOT_FOUND, "Requested column family not found.")
        return None

    with closing(appended(proxy)) as store:
        proxy.live = live
        results = store.merge_updates([Update(A, 1, "e"), Update(B, 1, "e")])
        assert [type(result) for result in results] == [StoreUnavailable] * 2
        assert "column family" in str(results[0])


def test_a_delta_without_an_encoding_fails_alone(bigtable_host: str) -> None:
    """It is found before the append, and so is a delta that cannot be decoded again."""

    def decode(data: bytes) -> int:
        return {b"0": 0, b"10": 10}[data]

    picky = Custom("picky", 0, lambda a, b: a + b, encode=lambda v: str(int(v)).encode(), decode=decode)
    with closing(appended_spec(bigtable_host).open(picky)) as store:
        good, bad, unreadable = store.merge_updates([Update(A, 10, "1"), Update(A, "x", "2"), Update(A, 7, "3")])
        assert good is RECORDED
        assert isinstance(bad, PermanentError)
        assert "picky cannot fold 'x' into 'a'" in str(bad)
        assert isinstance(unreadable, PermanentError)
        assert store.get(A) == 10


def test_a_server_that_does_not_answer_ends_a_flush_in_time(proxy: FaultProxy) -> None:
    """Also flushes that wait for others' requests; later flushes work again."""
    with closing(appended(proxy, timeout_s=1.0, patience_s=2.0)) as store:
        store.merge_update(A, 1, event_id="first")
        proxy.plan = Plan({Fault.DELAY: 1.0}, late_s=4.0)
        began = time.monotonic()
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda i=i: results.append(store.merge_updates([Update(B, 1, f"e{i}")])[0]))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert time.monotonic() - began < 6
        assert {type(result) for result in results} == {TransientError}
        assert all("does not answer" in str(result) or "no answer" in str(result) for result in results), results
        proxy.plan = None
        proxy.drain()
        assert store.merge_updates([Update(B, 1, f"e{i}") for i in range(8)]) == [RECORDED] * 8
        assert store.get(B) == 8


def test_closing_ends_flushes_in_progress(proxy: FaultProxy) -> None:
    """In other threads, with an error of this library."""
    store = appended(proxy)
    store.merge_update(A, 1, event_id="first")
    proxy.plan = Plan({Fault.DELAY: 1.0}, methods=[MUTATE_ROWS], late_s=3.0)
    ended: list[Any] = []

    def merge(n: int) -> None:
        try:
            ended.extend(store.merge_updates([Update(B, 1, f"e{n}")]))
        except MurmurError as err:
            ended.append(err)

    threads = [threading.Thread(target=merge, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    store.close()
    for thread in threads:
        thread.join(20)
    assert len(ended) == 6
    assert all(isinstance(result, MurmurError) or result is RECORDED for result in ended)
    assert any(isinstance(result, StoreUnavailable) for result in ended)


# ---- rate ----


def test_a_server_may_lower_the_rate() -> None:
    """By a factor within bounds, and not again within its period; later the limit is dropped."""
    clock = FakeClock(0.0)
    throttle = Throttle(clock)
    for second in range(10):
        throttle.wait(100)
        clock.time = (second + 1) / 10
        throttle.sent(100, None)
    assert throttle.limit is None
    throttle.sent(0, Hint(0.9, 1.0))
    assert throttle.limit == pytest.approx(900)
    throttle.sent(0, Hint(0.1, 1.0))
    assert throttle.limit == pytest.approx(900)  # its period is not over
    clock.time += 1
    throttle.sent(0, Hint(0.1, 1.0))
    assert throttle.limit == pytest.approx(630)  # never less than 0.7 times
    clock.waits.clear()
    for _ in range(3):
        throttle.wait(63)
    assert clock.waits == pytest.approx([0.1, 0.1])
    clock.time += 1
    throttle.sent(0, Hint(2.0, 1.0))
    assert throttle.limit == pytest.approx(819)  # never more than 1.3 times
    for _ in range(3):  # the server gives no more hints
        clock.time += 1
        throttle.sent(1, None)
    assert throttle.limit is None


def test_overload_lowers_the_rate() -> None:
    """RESOURCE_EXHAUSTED does too; a hint to send more has no effect without a limit."""
    clock = FakeClock(0.0)
    throttle = Throttle(clock)
    clock.time += 1
    throttle.sent(1_000, Hint(1.3, 1.0))
    assert throttle.limit is None
    clock.time += 1
    throttle.sent(1_000, OVERLOADED)
    assert throttle.limit == pytest.approx(700)


def test_a_little_overload_lowers_the_rate_a_little() -> None:
    """One answer of a hundred, with long pauses: the rate is measured while there was something to send."""
    clock = FakeClock(0.0)
    throttle = Throttle(clock)
    for n in range(1, 1_001):
        throttle.wait(100)
        clock.time += 0.01  # a request of 100 rows: 10,000 a second
        throttle.sent(100, None)
        if n % 100 == 0:
            throttle.sent(0, OVERLOADED)
            clock.time += 30
    assert sum(clock.waits) < 10
    assert throttle.limit is None or throttle.limit > 1_000


def test_the_server_s_hint_is_followed(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes with the answer; the client has announced that it accepts hints."""
    with closing(appended(proxy)) as store:
        real = store._connection._here()
        headers: list[Any] = []

        def hinting(request: bytes, *, metadata: Any, **more: Any) -> Iterator[Any]:
            headers.append(dict(metadata))
            for data in real(request, metadata=metadata, **more):
                answer = wire.BulkResponse.FromString(data)
                answer.rate_limit_info.factor = 0.8
                answer.rate_limit_info.period.seconds = 1
                yield answer.SerializeToString()

        monkeypatch.setattr(store._connection, "_mutate_here", hinting)
        assert store.merge_updates([Update(A, 1, "e")]) == [RECORDED]
        assert store._appender._throttle.limit is not None
        assert headers[0]["bigtable-features"] == "GAEoAQ=="
