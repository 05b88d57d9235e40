"""Scans of Bigtable: the server sends exactly the requested rows, in whatever pieces the table is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import timedelta
from itertools import pairwise
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import emulators

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from murmur_beam.errors import TransientError
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Max, SetUnion, Sum
from murmur_beam.monoids.base import Monoid
from murmur_beam.reader import Reader
from murmur_beam.state.base import Store
from murmur_beam.state.bigtable import BigtableSpec, BigtableStore, scanning, wire
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.scanning import cuts_between
from murmur_beam.testing import FakeClock
from murmur_beam.windows import WindowConfig
from tests.support.fault_proxy import READ_ROWS, Fault, FaultProxy, Plan

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = 1_700_000_000 // 3600
"""The bucket of the hour in which the fake clock starts."""


def open_table(host: str, monoid: Monoid[Any], granularity: timedelta | None, **arguments: Any) -> BigtableStore[Any]:
    """A store in a new table."""
    table = emulators.new_table(host)
    return BigtableSpec(emulators.PROJECT, emulators.INSTANCE, table, **arguments).open(monoid, granularity)


class Answers:
    """The answers to reads.

    Attributes:
        rows: number of rows that were sent.
        requests: number of requests that were made.
    """

    def __init__(self) -> None:
        self.rows = self.requests = 0

    async def watch(self, answers: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Count them, and pass them on."""
        self.requests += 1
        async for answer in answers:
            self.rows += sum(chunk.commit_row for chunk in answer.chunks)
            yield answer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Of all reads from now on."""
    found, real = Answers(), Connection.answers
    monkeypatch.setattr(Connection, "answers", lambda self, *args: found.watch(real(self, *args)))
    return found


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even a small table at every key that the server names."""
    monkeypatch.setattr(scanning, "PIECE_BYTES", 0)
    monkeypatch.setattr(scanning, "PAGE", 7)


# ---- what the server sends ----


@pytest.mark.parametrize("ttl", [None, 30 * DAY, HOUR])
@pytest.mark.parametrize(
    ("monoid", "delta"), [(Sum(), 1), (Max(), 5), (SetUnion(), frozenset({"x"}))], ids=["sum", "max", "set_union"]
)
def test_only_the_rows_of_the_buckets_are_sent(
    bigtable_host: str, answers: Answers, monoid: Monoid[Any], delta: Any, ttl: timedelta | None
) -> None:
    """An hour of 24 is 1/24 of the rows, whatever the aggregate, and whether rows expire or not."""
    with closing(open_table(bigtable_host, monoid, HOUR, clock=FakeClock())) as store:
        store.merge_updates(
            [Update(Key(f"k{i}", NOW - h), delta, f"{i}/{h}", ttl) for i in range(20) for h in range(24)]
        )
        answers.rows = 0
        assert list(store.scan("", NOW - 5, NOW - 5)) == sorted((Key(f"k{i}", NOW - 5), delta) for i in range(20))
        assert answers.rows == 20
        assert len(list(store.scan("k1", NOW - 6, NOW - 5))) == 11 * 2
        assert answers.rows == 20 + 22


def test_a_row_that_expires_in_the_range_is_not_in_it(bigtable_host: str, answers: Answers) -> None:
    """The cell with the time at which a row expires has that time as its timestamp, which may be within the requested
    buckets; markers have the time of the commit."""
    clock = FakeClock()
    expires = NOW + 48
    with closing(open_table(bigtable_host, Sum(), HOUR, clock=clock)) as store:
        ttl = timedelta(hours=expires) - timedelta(seconds=clock.now())
        store.merge_updates([Update(Key("a", NOW - 3), 1, "1", ttl), Update(Key("b", expires), 2, "2", 2 * ttl)])
        answers.rows = 0
        assert list(store.scan("", expires - 1, expires + 1)) == [(Key("b", expires), 2)]
        assert list(store.scan("", NOW, NOW)) == []  # when it was written
        assert answers.rows == 1


def test_rows_in_the_range_still_expire(bigtable_host: str) -> None:
    """Their expiry cells are sent too, although they have other timestamps; the newest of them counts."""
    clock = FakeClock()
    with closing(open_table(bigtable_host, Sum(), HOUR, clock=clock)) as store:
        store.merge_updates([Update(Key(name, NOW), 1, "1", DAY) for name in "abc"])
        store.merge_update(Key("b", NOW), 1, event_id="2", ttl=9 * DAY)
        store.merge_update(Key("c", NOW), 1, event_id="2")
        assert [key.entity for key, _ in store.scan("", NOW, NOW)] == ["a", "b", "c"]
        clock.time += DAY.total_seconds() + 1
        assert list(store.scan("", NOW, NOW)) == [(Key("b", NOW), 2), (Key("c", NOW), 2)]
        clock.time += 9 * DAY.total_seconds()
        assert list(store.scan("", NOW, NOW)) == [(Key("c", NOW), 2)]


def test_shards_are_combined(bigtable_host: str, answers: Answers) -> None:
    """All rows of a key in the range are sent, none of another bucket."""
    with closing(open_table(bigtable_host, Sum(), HOUR, shards=4)) as store:
        store.merge_updates([Update(Key("k", NOW + h), 1, f"{h}/{i}") for h in range(3) for i in range(100)])
        answers.rows = 0
        assert list(store.scan("", NOW + 1, NOW + 1)) == [(Key("k", NOW + 1), 100)]
        assert answers.rows == 4


BUCKETS = st.integers(-3, 3) | st.sampled_from([NOW, 2_000_000_000_000_000])


@given(
    granularity=st.sampled_from([None, timedelta(microseconds=1), timedelta(microseconds=1_500), HOUR]), data=st.data()
)
def test_any_range_equals_a_filter_in_the_client(
    bigtable_host: str, granularity: timedelta | None, data: st.DataObject
) -> None:
    """Buckets before 1970, shorter than a millisecond, without a window; open and empty ranges."""
    keys = [Key(name, bucket) for name in "ab" for bucket in (-2, -1, 0, 1, 2, NOW)]
    first, last = data.draw(st.none() | BUCKETS), data.draw(st.none() | BUCKETS)
    store = _kept(bigtable_host, granularity, keys)
    expected = [key for key in keys if (first is None or key.bucket >= first) and (last is None or key.bucket <= last)]
    assert [key for key, _ in store.scan("", first, last)] == expected


_stores: dict[Any, Store[int]] = {}


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _stores:
        _stores.popitem()[1].close()


def _kept(host: str, granularity: timedelta | None, keys: list[Key]) -> Store[int]:
    """A store that all examples read."""
    if granularity not in _stores:
        store = open_table(host, Sum(), granularity)
        store.merge_updates([Update(key, 1, "1") for key in keys])
        _stores[granularity] = store
    return _stores[granularity]


def test_list_and_top_request_only_their_buckets(bigtable_host: str, answers: Answers) -> None:
    """The reader passes the range on, of a table with a retention too."""
    window = WindowConfig(HOUR)
    with closing(open_table(bigtable_host, Sum(), HOUR)) as store:
        store.merge_updates([Update(Key(f"k{i}", NOW - h), i, f"{i}/{h}") for i in range(5) for h in range(24)])
        reader = Reader(store, window)
        start, end = window.bucket_start(NOW - 2), window.bucket_start(NOW - 1)
        answers.rows = 0
        assert reader.top(2, "", start, end) == [("k4", 8), ("k3", 6)]
        assert answers.rows == 10
        assert list(reader.list("k3", start, end)) == [("k3", 6, 2)]
        assert answers.rows == 12
        assert [count for _, _, count in reader.list("", start)] == [3] * 5
        assert answers.rows == 12 + 15


# ---- pieces ----


def test_pieces_come_in_the_order_of_keys(bigtable_host: str, answers: Answers, small_pieces: None) -> None:
    """More pieces than are read at once, each of many pages, or empty."""
    with closing(open_table(bigtable_host, Sum(), HOUR)) as store:
        keys = [Key(f"k{i:04}", NOW + i % 3) for i in range(1_500)]
        store.merge_updates([Update(key, 1, "1") for key in keys])
        answers.requests = 0
        assert [key for key, _ in store.scan()] == keys
        assert answers.requests > 1_500 / 7
        assert [key for key, _ in store.scan("k00", NOW + 1, NOW + 1)] == [
            key for key in keys[:100] if key.bucket == NOW + 1
        ]


def test_an_abandoned_scan_reads_no_further(bigtable_host: str, answers: Answers, small_pieces: None) -> None:
    """Reading ahead is bounded, and ends when the scan is closed."""
    with closing(open_table(bigtable_host, Sum(), None)) as store:
        store.merge_updates([Update(Key(f"k{i:04}"), 1, "1") for i in range(1_500)])
        answers.rows = 0
        scan = store.scan()
        assert next(iter(scan))[0] == Key("k0000")
        for _ in range(300):  # each is a turn for the tasks that read ahead
            store.get(Key("k0001"))
        assert answers.rows - 300 <= scanning.STREAMS * (scanning.PAGES_AHEAD + 2) * scanning.PAGE
        scan.close()
        assert [key for key, _ in store.scan("k14")] == [Key(f"k14{i:02}") for i in range(100)]


def test_a_scan_may_be_closed_after_its_store(bigtable_host: str, small_pieces: None) -> None:
    """Closing it then raises nothing."""
    store = open_table(bigtable_host, Sum(), None)
    store.merge_updates([Update(Key(f"k{i:04}"), 1, "1") for i in range(1_500)])
    scan = store.scan()
    next(scan)
    store.close()
    scan.close()


def test_a_table_that_may_not_be_sampled_is_read_in_one_piece(
    bigtable_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing permission, or a server without the method, only costs speed."""

    async def refused(self: Connection) -> list[tuple[bytes, int]]:
        raise grpc.aio.AioRpcError(grpc.StatusCode.PERMISSION_DENIED, grpc.aio.Metadata(), grpc.aio.Metadata(), "no")

    with closing(open_table(bigtable_host, Sum(), None)) as store:
        store.merge_updates([Update(Key(f"k{i:04}"), 1, "1") for i in range(50)])
        monkeypatch.setattr(Connection, "sample_row_keys", refused)
        assert len(list(store.scan())) == 50


FAULTS = {Fault.LOSE: 0.2, Fault.EXPIRE: 0.1, Fault.REFUSE: 0.1, Fault.CUT: 0.02}


@pytest.mark.parametrize("seed", range(3))
def test_interrupted_reads_resume(
    bigtable_host: str, monkeypatch: pytest.MonkeyPatch, small_pieces: None, seed: int
) -> None:
    """Each row comes once, in order, through answers that are lost, late and cut."""
    with FaultProxy(bigtable_host) as proxy:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", proxy.address)
        with closing(open_table(bigtable_host, Sum(), HOUR)) as store:
            keys = [Key(f"k{i:04}", NOW + i % 2) for i in range(400)]
            store.merge_updates([Update(key, 1, "1") for key in keys])
            proxy.plan = Plan(FAULTS, seed, methods=[READ_ROWS, "SampleRowKeys"])
            assert [key for key, _ in store.scan()] == keys
            assert [key for key, _ in store.scan("", NOW, NOW)] == keys[::2]
            assert proxy.counts[READ_ROWS].failed > 0


def test_a_long_search_resumes_after_the_rows_it_has_scanned(
    bigtable_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that finds nothing before the deadline reports its progress; the next request starts there."""
    real, asked = Connection.answers, []

    async def slow(self: Connection, request: Any, timeout_s: float) -> AsyncIterator[Any]:
        start = request.rows.row_ranges[0].start_key_closed
        asked.append(start)
        if len(asked) < 4:
            yield wire.ReadResponse(last_scanned_row_key=start[:-1] + bytes([start[-1] + 1]))
            raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata())
        async for answer in real(self, request, timeout_s):
            yield answer

    with closing(open_table(bigtable_host, Sum(), None)) as store:
        store.merge_update(Key("z"), 1)
        monkeypatch.setattr(Connection, "answers", slow)
        assert list(store.scan("")) == [(Key("z"), 1)]
    assert asked == sorted(set(asked))
    assert len(asked) == 4


def test_a_server_that_is_gone_is_an_error_once_the_deadline_has_passed(
    bigtable_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that came before are returned first."""
    with FaultProxy(bigtable_host) as proxy:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", proxy.address)
        monkeypatch.setattr(scanning, "PAGE", 7)
        with closing(open_table(bigtable_host, Sum(), None, timeout_s=0.3)) as store:
            store.merge_updates([Update(Key(f"k{i:03}"), 1, "1") for i in range(200)])
            scan = store.scan()
            assert next(scan)[0] == Key("k000")
            proxy.plan = Plan({Fault.REFUSE: 1.0})
            with pytest.raises(TransientError, match="UNAVAILABLE"):
                list(scan)


@given(
    samples=st.lists(st.tuples(st.binary(min_size=1, max_size=2), st.integers(0, 10**6)), max_size=30),
    start=st.binary(min_size=1, max_size=2),
    end=st.none() | st.binary(min_size=1, max_size=2),
)
def test_cuts_lie_in_the_range_and_apart(samples: list[tuple[bytes, int]], start: bytes, end: bytes | None) -> None:
    """In order, between both ends, with at least the given number of bytes between them; whatever a server answers."""
    keys, offsets = sorted({key for key, _ in samples}), sorted(offset for _, offset in samples)
    sizes = dict(zip(keys, offsets, strict=False))
    cuts = cuts_between(list(sizes.items()), start, end)
    assert cuts == sorted(set(cuts))
    assert all(start < cut and (end is None or cut < end) for cut in cuts)
    assert all(sizes[b] - sizes[a] >= scanning.PIECE_BYTES for a, b in pairwise(cuts))
    assert not cuts or sizes[cuts[0]] >= scanning.PIECE_BYTES
