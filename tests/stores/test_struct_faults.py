"""Several aggregates in one row while requests fail: each event counts once in each of them, and in all or none."""

from __future__ import annotations

import random
from contextlib import closing, suppress
from typing import Any

import pytest

from murmur_beam.errors import TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count, Distinct, Max, Mean, Quantiles, Struct, Sum
from murmur_beam.state.bigtable import BigtableSpec
from tests.support import emulators
from tests.support.appended import AppendedSpec
from tests.support.fault_proxy import Fault, FaultProxy, Plan

STRUCT = Struct(
    {"views": Count(), "revenue": Sum(), "most": Max(), "mean": Mean(), "users": Distinct(), "ms": Quantiles()}
)
FAULTS = [Fault.REFUSE, Fault.LOSE, Fault.EXPIRE, Fault.EXHAUST_AFTER, Fault.CUT, Fault.CUT_AFTER, Fault.STRAGGLE]
KEYS = [Key(f"k{i}") for i in range(8)]


def deliveries(chance: random.Random, n: int) -> tuple[list[Update], dict[Key, Any]]:
    """Events, half of them twice, in any order; and the right state of each key."""
    updates, right = [], dict.fromkeys(KEYS, STRUCT.identity)
    for i in range(n):
        amount = chance.randint(-50, 50)
        delta = STRUCT.lift((None, amount, amount, amount / 8, f"u{chance.randrange(60)}", abs(amount) + 1), 0)
        key = chance.choice(KEYS)
        updates.append(Update(key, delta, f"e{i}"))
        right[key] = STRUCT.combine(right[key], delta)
    again = updates + chance.sample(updates, n // 2)
    chance.shuffle(again)
    return again, right


@pytest.mark.parametrize("write", ["commit", "append"])
def test_all_or_none(bigtable_host: str, proxy: FaultProxy, write: str) -> None:
    """With two stores that write to the same rows, retries of whatever fails, late writes and folds in between."""
    chance = random.Random(20_261)
    made = emulators.new_spec(bigtable_host, timeout_s=2.0)
    spec: BigtableSpec = made if write == "commit" else AppendedSpec(*made.place[1:], timeout_s=2.0)
    left, right = deliveries(chance, 1_500)
    with closing(spec.open(STRUCT)) as one, closing(spec.open(STRUCT)) as two:
        proxy.plan = Plan(dict.fromkeys(FAULTS, 0.03), seed=5, whole_reads=True)
        while left:
            store = chance.choice((one, two))
            some = [left.pop() for _ in range(min(len(left), chance.randint(1, 40)))]
            results = store.merge_updates(some)
            left += [update for update, result in zip(some, results, strict=True) if not isinstance(result, Outcome)]
            if write == "append" and chance.random() < 0.2:
                with suppress(TransientError):
                    store.fold()
        assert sum(count.failed for count in proxy.counts.values()) > 20
        proxy.plan = None
        proxy.drain()
        assert dict(zip(KEYS, one.get_many(KEYS), strict=True)) == right
        two.fold()
        assert dict(one.scan(fresh=False)) == right
