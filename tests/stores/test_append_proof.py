"""`benchmarks.appending` on a small scale: faults and SIGKILLs lose and double nothing; and the errors that it has
found."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.append_book import EVENTS, ONCE, Book, Shape, deliveries, n_deliveries, wrong
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Sum
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, folder, tables
from murmur_beam.testing.emulators import BIGTABLE
from tests.support import ROOT, emulators
from tests.support.fault_proxy import READ_ROWS, Fault, FaultProxy, Plan

SHAPE = Shape(seed=3, waves=4, rows=12, hot=3, hot_events=100, appenders=2, folders=1, readers=1, most=50)


@pytest.fixture
def spec(bigtable_host: str) -> BigtableSpec:
    """An empty table that is appended to."""
    made = BigtableSpec(emulators.PROJECT, emulators.INSTANCE, emulators.new_table(bigtable_host))
    tables.create(made, tables.table_meta(Schema("sum", None)), write="append")
    return made


def append(store: Any, *events: int) -> None:
    """Append these events to the row k, each adding a power of four."""
    results = store.merge_updates([Update(Key("k"), 4**i, f"e{i}") for i in events])
    assert [str(result) for result in results] == ["recorded"] * len(events)


# ---- the proof ----


def test_nothing_is_lost_or_doubled() -> None:
    """While processes append, fold, read and delete, are killed, and requests fail in every possible way."""
    emulators.require(BIGTABLE)
    command = [sys.executable, "-m", "benchmarks.appending", "--small", "--deliveries=12000", "--kills=8", "--json"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout[-5_000:] + ran.stderr[-5_000:]
    proved = json.loads(ran.stdout)
    print(proved)
    assert proved["wrong"] == []
    assert (proved["lost"], proved["doubled"]) == (0, 0)
    assert proved["deliveries"] >= 12_000
    assert sum(proved["kills"].values()) >= 8
    # Each fault has really happened.
    counters = proved["counters"]
    for name in ("recorded", "merged", "events folded", "found counted", "rows read", "rows deleted", "rows made anew"):
        assert counters[name] > 0, name
    assert {fault.name for fault in (Fault.REFUSE, Fault.LOSE, Fault.EXPIRE, Fault.STRAGGLE)} <= proved["faults"].keys()
    assert proved["replayed"] > 100


# ---- the book ----


def test_every_event_is_delivered() -> None:
    """Those of all rows, and about as often as specified."""
    made = [
        one
        for appender in range(SHAPE.appenders)
        for wave in range(SHAPE.waves + 2)
        for one in deliveries(SHAPE, wave, appender)
    ]
    deltas = {one.event_id: (one.row, one.delta) for one in made}
    assert len(deltas) == SHAPE.n_events
    assert 0.9 < len(made) / n_deliveries(SHAPE) < 1.1
    sums = dict.fromkeys(range(-SHAPE.hot, SHAPE.n_rows), 0)
    for row, delta in deltas.values():
        sums[row] += delta
    assert [sums[row] for row in range(SHAPE.n_rows)] == [ONCE] * SHAPE.n_rows
    assert [sums[-1 - i] for i in range(SHAPE.hot)] == SHAPE.hot_sums(SHAPE.waves)
    primary = [one.event_id for one in made if one.row < 0 and one.i]
    assert len(primary) == len(set(primary)) == SHAPE.waves * SHAPE.hot_events


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "events [0] do not count"),
        (4**1, "events [0] do not count"),
        (4**0 + 4**1, ""),
        (4**0 + 4**2, "events [2] count, although they were not sent"),
        (2 * 4**0, "events [0] count more than once"),
        (4**0 + 3 * 4**1, "events [1] count more than once"),
        (-1, "is not a sum of its events"),
        (4**EVENTS, "is not a sum of its events"),
    ],
)
def test_a_wrong_sum_is_described(value: int | None, problem: str) -> None:
    """Event 0 was acknowledged, and event 1 was sent."""
    found = wrong(value, 4**0, 4**0 + 4**1)
    assert problem in found
    assert bool(problem) == bool(found)


def test_the_book_is_shared_and_outlives_its_process(tmp_path: Path) -> None:
    """One process finds the notes of another; a row that was deleted and made anew must hold nothing from before."""
    book, other = (Book(SHAPE, str(tmp_path / "book"), 2) for _ in range(2))
    ordinary, mortal = SHAPE.event(1, 3), SHAPE.event(0, 5)
    lives = book.sending(0, 0, [ordinary, mortal])
    assert other.most(1) == 4**3
    assert other.bounds(1).least == 0
    book.go_on(0, 0, 2)
    book.acknowledged(0, [ordinary, mortal], lives)
    assert other.position(0) == (0, 2)
    assert (other.bounds(1).least, other.bounds(0).least) == (4**3, 4**5)
    other.next_life(0)
    assert book.bounds(0) == (0, 1)
    lives = book.sending(0, 0, [mortal])
    other.next_life(0)
    book.acknowledged(0, [mortal], lives)
    assert book.bounds(0) == (0, 2)
    book.acknowledged(0, [mortal], book.sending(0, 0, [mortal]))
    assert other.bounds(0) == (4**5, 2)
    book.note("a\nfault")
    assert other.faults() == ["a fault"]


# ---- errors that it has found, and errors that it was made to find ----


class SecondReadIsLate(Plan):
    """A plan without faults, but with a late answer to the second read of rows."""

    def __init__(self, late_s: float) -> None:
        super().__init__({}, late_s=late_s)
        self._reads = 0

    def draw(self, method: str) -> Fault | None:
        self._reads += method == READ_ROWS
        return Fault.DELAY if method == READ_ROWS and self._reads == 2 else None


def test_a_scan_meets_a_read_that_does_not_know_the_markers_yet(proxy: FaultProxy, spec: BigtableSpec) -> None:
    """The rows of a scan come without their version. They must not be taken for rows that have no version, and so no
    markers."""
    with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
        append(other, 1)
        other.fold()
        append(other, 1, 2)
        proxy.plan = SecondReadIsLate(0.5)
        read: list[Any] = []
        thread = threading.Thread(target=lambda: read.extend(store.get_many([Key("k")])))
        thread.start()
        time.sleep(0.2)
        scanned = list(store.scan(fresh=True))
        thread.join()
        assert read == [4**1 + 4**2]
        assert scanned == [(Key("k"), 4**1 + 4**2)]


def test_a_second_fold_deletes_only_verified_cells(spec: BigtableSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fold knows the markers of a row that was deleted and made anew. As far as it knows, the first cells hold
    nothing new; another writer's commit then shows that the row is another one. None of the cells may be deleted."""
    monkeypatch.setattr(folder, "_EVENTS_PER_COMMIT", 1)
    with closing(spec.open(Sum())) as first, closing(spec.open(Sum())) as other:
        append(other, 1)
        assert first.fold().events == 1
        other.delete("k")
        append(other, 1)
        append(other, 2)
        first.fold()
        assert other.get(Key("k")) == 4**1 + 4**2
