"""The Bigtable store against the real emulator: the contract of stores, row keys, and several writers of one row."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import emulators
import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Scenario, scenarios
from test_conservation import check_conservation

from murmur_beam.clock import Clock
from murmur_beam.errors import ConfigurationError, InvalidRecord, StoreUnavailable, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Max, SetUnion, Sum
from murmur_beam.state import StoreSpec, spec_from_uri
from murmur_beam.state.base import Store
from murmur_beam.state.bigtable import BigtableSpec, BigtableStore, entity_prefix, parse_row_key, row_key
from murmur_beam.testing import FakeClock, StoreContract

A = Key("a")


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """An emulator."""
    with emulators.bigtable() as address:
        yield address


def new_spec(host: str, **arguments: Any) -> BigtableSpec:
    """A table of its own."""
    return BigtableSpec(emulators.PROJECT, emulators.INSTANCE, emulators.new_table(host), **arguments)


class TestBigtableStore(StoreContract):
    """``bigtable://`` keeps the contract."""

    @pytest.fixture(autouse=True)
    def _host(self, host: str) -> None:
        self.host = host

    def spec(self, clock: FakeClock) -> StoreSpec:
        return new_spec(self.host, clock=clock)


class TestShards(TestBigtableStore):
    """A key spread over several rows keeps it too."""

    def spec(self, clock: FakeClock) -> StoreSpec:
        return new_spec(self.host, shards=8, clock=clock)

    @pytest.mark.skip(reason="with shards the limit of 64 bits is that of each shard, so two events need not meet it")
    def test_what_cannot_be_folded_hurts_nobody_else(self) -> None: ...

    @pytest.mark.skip(reason="with shards the limit of 64 bits is that of each shard, so two events need not meet it")
    def test_merge_update_raises_what_failed(self) -> None: ...


class TestSmallMemory(TestBigtableStore):
    """A store that forgets what it knows of rows at once keeps it too: then it reads them again."""

    def spec(self, clock: FakeClock) -> StoreSpec:
        return new_spec(self.host, max_known_events=0, clock=clock)


@settings(max_examples=60)
@given(scenario=scenarios())
def test_bigtable_loses_nothing_and_counts_nothing_twice(host: str, scenario: Scenario) -> None:
    """Random events in random batches, duplicates, faults, days going by."""

    @contextmanager
    def open_bigtable(clock: Clock, granularity: timedelta | None) -> Iterator[Store[int]]:
        with closing(new_spec(host, clock=clock).open(Sum(), granularity)) as store:
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
def test_writers_of_the_same_rows_count_exactly(host: str, shards: int) -> None:
    """Eight stores that merge overlapping sets of the same events into the same 50 keys at once."""
    spec = new_spec(host, shards=shards)
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


class LosesAnswers:
    """Lets requests through and then drops every answer but the n-th."""

    def __init__(self, store: BigtableStore[Any], every: int) -> None:
        self.rpc = store._commit_rpc
        self.every = every
        self.calls = 0

    async def __call__(self, request: Any, **how: Any) -> Any:
        answer = await self.rpc(request, **how)
        self.calls += 1
        if self.calls % self.every:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "lost")
        return answer


@pytest.mark.parametrize("monoid", [Sum(), SetUnion(), Max()])
def test_a_write_whose_answer_is_lost_is_settled_by_reading(host: str, monoid: Any) -> None:
    """It has happened, so it is merged: not an error, not a duplicate, and not written twice."""
    with closing(new_spec(host).open(monoid)) as store:
        store._commit_rpc = LosesAnswers(store, every=1_000)
        deltas = [monoid.lift(i, 0) for i in range(20)]
        updates = [Update(Key(f"k{i % 4}"), delta, str(i)) for i, delta in enumerate(deltas)]
        for start in range(0, 20, 5):
            assert store.merge_updates(updates[start : start + 5]) == [Outcome.MERGED] * 5
        again = Outcome.MERGED if monoid.idempotent else Outcome.DUPLICATE
        assert store.merge_updates(updates) == [again] * 20
        assert store.get_many([Key(f"k{i}") for i in range(4)]) == [monoid.fold(deltas[i::4]) for i in range(4)]


def test_a_table_that_is_missing_is_one_readable_error() -> None:
    """Opening it names the table, and is permanent."""
    with emulators.bigtable(), pytest.raises(StoreUnavailable, match=r"bigtable://p/i/nowhere: NOT_FOUND"):
        BigtableSpec("p", "i", "nowhere").open(Sum())


def test_a_server_that_is_down_is_a_transient_error() -> None:
    """What cannot be reached now may be reached later; nothing is left running."""
    before = threading.active_count()
    with emulators.bigtable() as host:
        store = new_spec(host, timeout_s=1.0).open(Sum())
    with closing(store):
        (result,) = store.merge_updates([Update(A, 1, "1")])
        assert isinstance(result, TransientError)
    assert threading.active_count() == before


def test_opening_and_closing_leaves_nothing_behind(host: str) -> None:
    """Threads are as before after 20 times."""
    spec = new_spec(host)
    with closing(spec.open(Sum())) as store:
        store.merge_update(A, 0, event_id="first")
    before = threading.active_count()
    for i in range(20):
        with closing(spec.open(Sum())) as store:
            assert store.merge_update(A, 1, event_id=str(i)) is Outcome.MERGED
            assert store.get(A) == i + 1
    assert threading.active_count() == before


def test_what_is_known_of_rows_is_counted_and_bounded(host: str) -> None:
    """The count that keeps memory in bounds must stay that of the rows and events known, however often it is used."""
    spec = new_spec(host, max_known_events=50)
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        for i in range(30):
            store.merge_updates([Update(Key(f"k{n % 40}"), 1, f"{i}/{n}") for n in range(i, i + 15)])
            other.merge_update(Key(f"k{i}"), 1, event_id=str(i))
            known = sum(len(row.seen) + 1 for row in store._known.values())
            assert store._events_known == known <= 50


def test_uris() -> None:
    """A URI makes the spec it says, and a wrong one says how to write it."""
    spec = BigtableSpec("p", "i", "t", "single-cluster", 4)
    assert spec_from_uri("bigtable://p/i/t?app_profile=single-cluster&shards=4") == spec
    assert spec_from_uri("bigtable://p/i/t") == BigtableSpec("p", "i", "t")
    for wrong in ("bigtable://p/i", "bigtable://p/i/t/x", "bigtable://p/i/t?shard=4", "bigtable://p/i/t?shards=many"):
        with pytest.raises(ConfigurationError, match="bigtable://PROJECT/INSTANCE/TABLE"):
            spec_from_uri(wrong)
    with pytest.raises(ConfigurationError, match="from 1 to 256"):
        spec_from_uri("bigtable://p/i/t?shards=0")
