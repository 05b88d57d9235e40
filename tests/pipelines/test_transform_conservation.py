"""`MergeRecords` and `MergeDoFn` with random events, faults and crashes: nothing is lost or counted twice."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from murmur_beam.buffer import FlushLimits
from murmur_beam.model import DeadLetter, Key
from murmur_beam.testing import FakeClock
from tests.support.strategies import BIG_KEYS, START, Event, FaultPlan, Scenario, scenarios
from tests.support.transform import (
    DAY,
    FIELDS,
    NOW_S,
    Faulty,
    Worker,
    config,
    event,
    run,
)

GENERATED: dict[str, Any] = {
    "name": "p",
    "keys": lambda element: element["keys"],
    "value": "delta",
    "event_id": "id",
    "event_time": "time",
}


def element_of(event: Event, n: int) -> dict[str, Any]:
    """In a form that JSON can represent, with a number that distinguishes deliveries of one event."""
    time = event.event_time.isoformat()
    return {"n": n, "id": event.event_id, "time": time, "keys": list(event.keys), "delta": event.delta}


@dataclass
class Model:
    """The expected store and outputs of a scenario, in plain dictionaries."""

    scenario: Scenario
    appends: bool = False
    clock: FakeClock = field(default_factory=lambda: FakeClock(jitter=0))

    def __post_init__(self) -> None:
        self.plan = FaultPlan(self.scenario.faults)
        self.store = Faulty(self.clock, self.plan.fault, self.plan.lost, appends=self.appends)
        self.window = self.scenario.window
        self.arguments = {
            **GENERATED,
            "store": self.store.spec,
            "window": self.window,
            "config": config(max_attempts=self.scenario.max_attempts, clock=self.clock),
        }

    def key(self, time: datetime, entity: str) -> Key:
        """The key and bucket of an event: its UTC day, by the calendar."""
        return Key(entity, time.toordinal() - date(1970, 1, 1).toordinal() if self.window else 0)

    def merged(self, event_id: str, time: datetime, entities: Iterable[str]) -> set[str]:
        """The entities under which the store has the event."""
        return {entity for entity in entities if (self.key(time, entity), event_id) in self.store.ledger.merged}

    def is_expired(self, time: datetime) -> bool:
        """Whether an event of this time is now too old."""
        retention = self.window.retention if self.window else None
        return retention is not None and time < START + timedelta(seconds=self.clock.time - NOW_S) - retention

    def check_outputs(self, elements: Sequence[dict[str, Any]], outputs: Iterable[Any]) -> list[DeadLetter]:
        """Each element must be output once, and what an output says must be true when it is visible; the letters."""
        letters, came = [], Counter[int]()
        for output in outputs:
            dead = isinstance(output, DeadLetter)
            element = json.loads(output.payload) if dead else output.element
            came[element["n"]] += 1
            time, keys = datetime.fromisoformat(element["time"]), set(element["keys"])
            there = self.merged(element["id"], time, keys)
            assert output.event_id == element["id"]
            if dead:
                letters.append(output)
                failed = set(output.failed_keys)
                assert failed
                assert failed <= keys
                assert keys - failed <= there
                assert (output.stage, output.pipeline) == ("merge", "p")
            elif output.outcome == "expired":
                assert self.is_expired(time)
                assert output.merged_keys == ()
            else:
                assert set(output.keys) <= keys
                assert keys <= there
                assert set(output.merged_keys) <= set(output.keys)
                assert output.outcome in ({"recorded"} if self.appends and keys else {"merged", "duplicate"})
                assert bool(output.merged_keys) == (output.outcome != "duplicate" and bool(keys))
                assert output.outcome != "recorded" or set(output.merged_keys) == set(output.keys)
        assert came == Counter(element["n"] for element in elements)
        return letters

    def check_final_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Without faults only an overflow can fail."""
        for letter in letters:
            assert letter.error_type == "Overflow"
            assert set(letter.failed_keys) <= set(BIG_KEYS)

    def check_state(self) -> None:
        """After all was delivered, each event that is not too old must be in the state, once."""
        ledger, expected = self.store.ledger.merged, dict[tuple[str, int], int]()
        for key, event_id in ledger:
            expected[key] = expected.get(key, 0) + ledger[key, event_id]
        for delivered in self.scenario.delivered:
            wanted = set(delivered.keys) - set(BIG_KEYS)
            if not self.is_expired(delivered.event_time):
                assert self.merged(delivered.event_id, delivered.event_time, wanted) == wanted
        retention = self.window.retention if self.window else None
        if retention is not None:
            now = START + timedelta(seconds=self.clock.time - NOW_S)
            start = datetime(1970, 1, 1, tzinfo=timezone.utc)
            expected = {key: n for key, n in expected.items() if now < start + (key[1] + 1) * DAY + retention}
        assert self.store.state() == expected


def limits() -> st.SearchStrategy[FlushLimits]:
    """Limits small enough for several flushes in a bundle."""
    return st.builds(FlushLimits, events=st.integers(1, 6), rows=st.integers(1, 8))


@settings(max_examples=150, deadline=None)
@given(
    scenario=scenarios(),
    flush=limits(),
    crashes=st.lists(st.none() | st.integers(0, 10), min_size=4, max_size=4),
    windows=st.integers(1, 3),
    behind=st.booleans(),
    appends=st.booleans(),
)
def test_bundles_lose_nothing_and_count_nothing_twice(
    scenario: Scenario, flush: FlushLimits, crashes: list[int | None], windows: int, behind: bool, appends: bool
) -> None:
    """Random bundles, faults and crashes: one output for each element, and a state like a dictionary's.

    With a store that is merged into at once, or while the next records are processed; one that distinguishes merged
    from duplicate, or one that appends.
    """
    model = Model(scenario, appends)
    model.store.waits_for_network = behind
    worker = Worker(windows, **model.arguments, flush=flush)
    letters: list[DeadLetter] = []
    for batch, crash in zip(scenario.batches, crashes, strict=False):
        model.clock.time += batch.after.total_seconds()
        elements = [element_of(each, n) for n, each in enumerate(batch.events)]
        if crash is not None:
            worker.start()
            list(worker.process(*elements[:crash]))
        letters += model.check_outputs(elements, worker.bundle(*elements))
    model.plan.stop()
    if scenario.redeliver_all:
        elements = [element_of(each, n) for n, each in enumerate(scenario.delivered)]
        model.check_final_letters(model.check_outputs(elements, worker.bundle(*elements)))
    else:
        model.check_final_letters([each for each in worker.bundle(*letters) if isinstance(each, DeadLetter)])
    model.check_state()
    again = [element_of(each, n) for n, each in enumerate(scenario.delivered)]
    for output in worker.bundle(*again):
        assert (
            isinstance(output, DeadLetter)
            or output.outcome != "merged"
            or not output.keys
            or (set(output.merged_keys) <= set(BIG_KEYS))
        )
    model.check_state()
    worker.fn.teardown()


@settings(max_examples=12, deadline=None)
@given(scenario=scenarios(), flush=limits(), behind=st.booleans(), appends=st.booleans())
def test_a_runner_loses_nothing_and_counts_nothing_twice(
    scenario: Scenario, flush: FlushLimits, behind: bool, appends: bool
) -> None:
    """The same on Beam's runner: dead letters are fed in again, through a shuffle."""
    model = Model(scenario, appends)
    model.store.waits_for_network = behind
    events = [each for batch in scenario.batches for each in batch.events]
    elements = [element_of(each, n) for n, each in enumerate(events)]
    ran = run(elements, **model.arguments, flush=flush)
    letters = model.check_outputs(elements, [out.value for out in ran.merged + ran.dead])
    outcomes = ("merged", "duplicate", "recorded", "expired")
    counted = {outcome: ran.counters.get(f"p:record_{outcome}", 0) for outcome in outcomes}
    assert Counter({**counted, "dead_letter": ran.counters.get("p:dead_letter", 0)}) == ran.outcomes()
    model.plan.stop()
    again = run(letters, **model.arguments, flush=flush)
    assert len(again.merged) + len(again.dead) == len(letters)
    model.check_final_letters(again.letters)
    model.check_state()


def test_a_large_bundle_in_reasonable_time(store: Faulty) -> None:
    """Ten thousand elements through the DoFn with many flushes must not take minutes: nothing may be quadratic."""
    worker = Worker(**FIELDS, store=store.spec, flush=FlushLimits(events=50))
    started_s = time.monotonic()
    outputs = sum(1 for _ in worker.bundle(*(event(str(i), key=str(i % 100)) for i in range(10_000))))
    assert outputs == 10_000
    assert time.monotonic() - started_s < 30
    assert sum(store.state().values()) == 10_000
