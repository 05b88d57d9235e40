"""The monoids that estimate, in each store: redelivered events change nothing, buckets combine, deltas are small."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")
pytest.importorskip("datasketches", reason="pip install 'murmur-beam[sketches]'")

from murmur_beam.model import Key, Update
from murmur_beam.monoids import Distinct, Monoid, Quantiles, TopK
from murmur_beam.reader import Reader
from murmur_beam.state import StoreSpec
from murmur_beam.state.bigtable import pending
from murmur_beam.state.bigtable.pending import Events
from murmur_beam.state.memory import MemorySpec
from murmur_beam.state.sqlite import SqliteSpec
from tests.support import emulators
from tests.support.commands import Murmur

DAY = timedelta(days=1)
START = datetime(2026, 11, 14, tzinfo=timezone.utc)
FIRST = int(START.timestamp() // DAY.total_seconds())
MONOIDS = [Distinct(), Distinct(lg_k=8), TopK(k=3), Quantiles(), Quantiles(error=0.1)]

Open = Callable[[str, Path], StoreSpec]
KINDS: dict[str, Open] = {
    "memory": lambda _, folder: MemorySpec(str(folder)),
    "sqlite": lambda _, folder: SqliteSpec(str(folder / "sketches.db")),
    "commits": lambda host, _: emulators.new_spec(host, shards=2),
    "appends": lambda host, _: emulators.appended_spec(host, shards=2),
    "folds": lambda host, _: emulators.folded_spec(host, shards=2),
}


@pytest.mark.parametrize("monoid", MONOIDS, ids=lambda monoid: monoid.name)
@pytest.mark.parametrize("kind", KINDS)
def test_each_event_counts_once(bigtable_host: str, tmp_path: Path, kind: str, monoid: Monoid[Any]) -> None:
    """Of 600 events in three days, each delivered twice in any order, in flushes of 100; read with what is recorded."""
    spec = KINDS[kind](bigtable_host, tmp_path)
    chance = random.Random(3)
    deltas = [monoid.lift(chance.randrange(500), 0) for _ in range(600)]
    deliveries = [*range(600), *range(600)]
    chance.shuffle(deliveries)
    with closing(spec.open(monoid, DAY)) as store:
        for start in range(0, 1_200, 100):
            some = deliveries[start : start + 100]
            results = store.merge_updates([Update(Key("a", FIRST + i % 3), deltas[i], f"e{i}") for i in some])
            assert [result for result in results if isinstance(result, Exception)] == []
    with closing(Reader.open(spec)) as reader:
        assert reader.range("a", START, START + 2 * DAY) == monoid.present(monoid.fold(deltas))
        assert reader.get("a", START) == monoid.present(monoid.fold(deltas[::3]))


@pytest.mark.parametrize(("monoid", "n_bytes"), [(Distinct(lg_k=14), 12), (Quantiles(), 11), (TopK(), 32 + 8 + 4 + 8)])
def test_a_pending_delta_is_small(monoid: Monoid[Any], n_bytes: int) -> None:
    """A few bytes for each event, and not a sketch."""
    fingerprints = b"" if monoid.idempotent else bytes(16)
    (cell,) = pending.encoded(monoid, Events(fingerprints, [monoid.lift("12345678", 0)]))
    assert len(cell) == 6 + len(fingerprints) + (0 if monoid.idempotent else 4) + n_bytes


def test_the_command_shows_estimates(murmur: Murmur) -> None:
    """As a number, a list and an object; parameters are part of the name."""
    murmur.fill([("a", START, f"user-{n % 250}") for n in range(600)], Distinct(lg_k=14))
    assert murmur("get", "a").out == "250\n"
    assert murmur.json("top") == [{"entity": "a", "value": 250}]
    wrong = murmur("get", "a", "--monoid", "distinct")
    assert (wrong.code, "distinct(lg_k=14)" in wrong.err) == (2, True)


def test_the_command_shows_items(murmur: Murmur) -> None:
    """JSON has the names of their parts."""
    murmur.fill([("a", START, word) for word in "cabbage"], TopK(k=2))
    assert murmur("get", "a").out == "a 2, b 2\n"
    assert murmur.json("get", "a")["value"] == [
        {"item": "a", "at_least": 2, "at_most": 2},
        {"item": "b", "at_least": 2, "at_most": 2},
    ]


def test_the_command_shows_quantiles(murmur: Murmur) -> None:
    """By their share."""
    murmur.fill([("a", START, n) for n in range(1, 101)], Quantiles())
    assert murmur("get", "a").out == "0.5: 50.0, 0.9: 90.0, 0.95: 95.0, 0.99: 99.0\n"
    assert murmur.json("get", "a")["value"] == {"0.5": 50, "0.9": 90, "0.95": 95, "0.99": 99}
