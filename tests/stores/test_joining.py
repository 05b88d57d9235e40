"""Flushes with events for the same row share its commits, and each gets the results of its own events."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import closing
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from murmur_beam.errors import PermanentError, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import SetUnion, Sum
from murmur_beam.state.bigtable import BigtableStore
from murmur_beam.state.bigtable.keys import encode_row_key
from tests.support.emulators import new_spec
from tests.support.fault_proxy import CHECK_AND_MUTATE, Fault, FaultProxy, Plan
from tests.support.lines import Unreadable

MERGED, DUPLICATE = Outcome.MERGED, Outcome.DUPLICATE
WAIT_S = 60.0


def at_once(store: BigtableStore[Any], flushes: list[list[Update]]) -> list[list[Any]]:
    """Merge each of the flushes in a thread of its own, all at the same time; the results of each."""
    results: list[Any] = [None] * len(flushes)
    begin = threading.Barrier(len(flushes))

    def merge(n: int) -> None:
        begin.wait(WAIT_S)
        results[n] = store.merge_updates(flushes[n])

    threads = [threading.Thread(target=merge, args=(n,), daemon=True) for n in range(len(flushes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert None not in results, "one hangs"
    return results


def told(flushes: list[list[Update]], results: list[list[Any]]) -> Counter[tuple[Key, str | None, Any]]:
    """How often each event of each key had each result."""
    return Counter(
        (update.key, update.event_id, result)
        for flush, its in zip(flushes, results, strict=True)
        for update, result in zip(flush, its, strict=True)
    )


def test_many_flushes_of_a_row_need_few_commits(proxy: FaultProxy, bigtable_host: str) -> None:
    """Flushes that wait during a commit share the next one."""
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        store.merge_update(Key("row"), 1, event_id="first")
        before = proxy.counts[CHECK_AND_MUTATE].requests
        proxy.plan = Plan({Fault.DELAY: 1.0}, methods=[CHECK_AND_MUTATE], late_s=0.3)
        results = at_once(store, [[Update(Key("row"), 1, f"{n}")] for n in range(24)])
        assert results == [[MERGED]] * 24
        assert proxy.counts[CHECK_AND_MUTATE].requests - before <= 4
        assert store.get(Key("row")) == 25


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("faults", [{}, {Fault.LOSE: 0.2, Fault.EXHAUST: 0.1, Fault.DELAY: 0.3}])
def test_each_event_is_merged_once_whichever_flush_has_it(
    proxy: FaultProxy, bigtable_host: str, seed: int, faults: dict[Fault, float]
) -> None:
    """Overlapping flushes of few rows, at once, also where answers are lost: exactly one of the flushes with an event
    returns merged, the others a duplicate; the sums are exact."""
    chance = random.Random(seed)
    events = [(Key(f"k{chance.randrange(6)}"), str(n)) for n in range(120)]
    with closing(new_spec(bigtable_host, timeout_s=5.0).open(Sum())) as store:
        proxy.plan = Plan(faults, seed=seed, methods=[CHECK_AND_MUTATE], late_s=0.05) if faults else None
        flushes = []
        for _ in range(10):
            some = chance.sample(events, chance.randrange(1, 60))
            flushes.append([Update(key, 1, event_id) for key, event_id in some])
        results = at_once(store, flushes)
        proxy.plan = None
        # Results that were not known in time are tried again.
        for flush, its in zip(flushes, results, strict=True):
            for n, result in enumerate(its):
                if isinstance(result, TransientError):
                    (its[n],) = store.merge_updates([flush[n]])
        brought = {(update.key, update.event_id) for flush in flushes for update in flush}
        counts = told(flushes, results)
        assert {(key, event_id) for key, event_id, result in counts if result is MERGED} == brought
        assert all(n == 1 for (_, _, result), n in counts.items() if result is MERGED)
        assert {result for _, _, result in counts} <= {MERGED, DUPLICATE}
        assert dict(store.scan()) == Counter(key for key, _ in brought)


def test_an_update_that_cannot_be_merged_fails_only_its_own_flush(bigtable_host: str) -> None:
    """It would overflow: only that flush gets the error, though they share a commit."""
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        flushes = [[Update(Key("row"), 2**62, f"big{n}")] for n in range(4)]
        flushes += [[Update(Key("row"), 1, f"small{n}")] for n in range(12)]
        results = at_once(store, flushes)
        kinds = Counter(type(its[0]).__name__ for its in results[:4])
        assert kinds == {"Outcome": 1, "Overflow": 3}
        assert results[4:] == [[MERGED]] * 12
        assert store.get(Key("row")) == 2**62 + 12


def test_a_value_that_could_not_be_decoded_again_fails_only_its_own_flush(
    proxy: FaultProxy, bigtable_host: str
) -> None:
    """Its flush alone has the error, whichever flush makes the shared commit."""
    with closing(new_spec(bigtable_host).open(Unreadable())) as store:
        store.merge_update(Key("row"), 1)
        proxy.plan = Plan({Fault.DELAY: 1.0}, methods=[CHECK_AND_MUTATE], late_s=0.3)
        results = at_once(store, [[Update(Key("row"), 13 if n == 5 else n)] for n in range(12)])
        bad = results.pop(5)
        assert results == [[MERGED]] * 11
        # Once the row has a greater value, 13 changes nothing, and does no harm.
        assert isinstance(bad[0], PermanentError) or bad == [MERGED]
        assert store.get(Key("row")) == 11


def test_a_row_is_fast_again_after_many_flushes(bigtable_host: str) -> None:
    """Also where only duplicates come."""
    spec = new_spec(bigtable_host)
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        for n in range(40):
            for each in (store, other):
                each.merge_update(Key("row"), 1, event_id=f"{n}")
        row = store._committer.rows[encode_row_key(Key("row"))]
        row.contention = 8
        for _ in range(8):
            assert store.merge_update(Key("row"), 1, event_id="1") is DUPLICATE
        assert row.contention == 0


def test_monoids_without_markers_share_commits_too(bigtable_host: str) -> None:
    """A set has all the members of all flushes."""
    with closing(new_spec(bigtable_host).open(SetUnion())) as store:
        flushes = [[Update(Key("row"), frozenset({f"{n}"}), "same")] for n in range(20)]
        assert at_once(store, flushes) == [[MERGED]] * 20
        assert store.get(Key("row")) == frozenset(str(n) for n in range(20))


def test_a_flush_whose_time_was_over_gets_its_result_at_the_next_try(proxy: FaultProxy, bigtable_host: str) -> None:
    """Its events were merged with those of another flush after its deadline: they are not duplicates."""
    spec = new_spec(bigtable_host, patience_s=1.0)
    with closing(spec.open(Sum())) as store:
        store.merge_update(Key("row"), 1, event_id="first")
        proxy.plan = Plan({Fault.DELAY: 1.0}, methods=[CHECK_AND_MUTATE], late_s=0.7)
        results: dict[str, Any] = {}

        def merge(event_id: str) -> None:
            (results[event_id],) = store.merge_updates([Update(Key("row"), 1, event_id)])

        # The second waits for the first, and shares a commit with the third, which has more time.
        threads = [threading.Thread(target=merge, args=(event_id,), daemon=True) for event_id in "123"]
        for thread in threads:
            thread.start()
            time.sleep(0.3)
        for thread in threads:
            thread.join(WAIT_S)
        proxy.plan = None
        for event_id in "123":
            if results[event_id] is not MERGED:
                assert isinstance(results[event_id], TransientError)
                merge(event_id)
        assert results == dict.fromkeys("123", MERGED)
        assert store.merge_updates([Update(Key("row"), 1, event_id) for event_id in "123"]) == [DUPLICATE] * 3
        assert store.get(Key("row")) == 4


def test_a_deletion_waits_for_its_row(bigtable_host: str) -> None:
    """Beside many that write it; afterwards every event counts anew."""
    with closing(new_spec(bigtable_host).open(Sum())) as store:
        for _ in range(5):
            at_once(store, [[Update(Key("row"), 1, f"{n}")] for n in range(8)])
            store.delete("row")
            assert at_once(store, [[Update(Key("row"), 1, f"{n}")] for n in range(8)]) == [[MERGED]] * 8
            assert store.get(Key("row")) == 8
