"""One scenario of deliveries and faults on one store, and a model of what the store must hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime, timedelta, timezone

from murmur_beam.clock import Clock
from murmur_beam.errors import PermanentError
from murmur_beam.metrics import InMemory
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.sum import INT64_MAX, INT64_MIN, Overflow, Sum
from murmur_beam.processor import AtomicDedup, Config, RecordResult, merge_records
from murmur_beam.state.base import Result, Store
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock, FaultyStore
from tests.support.records import Record
from tests.support.strategies import BIG_KEYS, Event, FaultPlan, Scenario

OpenStore = Callable[[Clock, timedelta | None], AbstractContextManager[Store[int]]]
"""Opens an empty store of sums that uses the clock; the second argument is the length of a bucket."""


class Ledger(FaultyStore[int]):
    """A store that records what the real one has merged.

    It stands below the faults, so that it also knows of writes whose answer was lost. Violations are recorded
    instead of raised: the processor would take an exception for a fault of the store.
    """

    def __init__(self, store: Store[int]) -> None:
        super().__init__(store)
        self.merged: dict[tuple[Key, str | None], int] = {}
        self.wrongs: list[str] = []

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        results = super().merge_updates(updates)
        for update, result in zip(updates, results, strict=True):
            entry = (update.key, update.event_id)
            if result is Outcome.MERGED:
                if entry in self.merged:
                    self.wrongs.append(f"{entry} merged twice")
                self.merged[entry] = update.delta
            elif result is Outcome.DUPLICATE:
                if entry not in self.merged:
                    self.wrongs.append(f"{entry} taken for a duplicate")
            elif not isinstance(result, Overflow):
                self.wrongs.append(f"{entry} failed: {result!r}")
        return results

    def totals(self) -> dict[Key, int]:
        """Each merged event added up once, with Python's own integers."""
        totals: dict[Key, int] = {}
        for (key, _), delta in self.merged.items():
            totals[key] = totals.get(key, 0) + delta
        return totals


class Run:
    """One scenario on one store, and what must hold at each step."""

    def __init__(self, scenario: Scenario, store: Store[int], clock: FakeClock) -> None:
        self.store = store
        self.clock = clock
        self.window = scenario.window
        self.ledger = Ledger(store)
        self.plan = FaultPlan(scenario.faults)
        self.faulty = FaultyStore(self.ledger, self.plan.fault, self.plan.lost)
        self.cache = MemoryStore(Sum(), clock)
        self.cached: Counter[Key] = Counter()
        self.recorder = InMemory()
        self.cfg = Config(self.recorder, scenario.max_attempts, dedup=AtomicDedup(), clock=clock)
        self.deliveries = 0
        self.outcomes: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def deliver(self, events: Sequence[Event]) -> list[RecordResult]:
        """One batch."""
        expired = [self.is_expired(event) for event in events]
        known = set(self.ledger.merged)
        records = [event.record() for event in events]
        results = merge_records(self.cfg, "p", records, self.faulty, self.cache, self.window)
        wanted: set[tuple[Key, str | None]] = set()
        for event, record, result, old in zip(events, records, results, expired, strict=True):
            self.check_result(record, result, old)
            self.cached.update({self.key(event, entity): event.delta for entity in result.merged(record.entities)})
            if not old:
                wanted.update((key, event.event_id) for key in self.keys(event))
        assert self.ledger.wrongs == []
        assert set(self.ledger.merged) - known <= wanted, "written, though expired or not asked for"
        self.deliveries += len(events)
        return results

    def check_result(self, record: Record, result: RecordResult, expired: bool) -> None:
        """Merged, duplicate, expired or failed: one of them, and consistent in itself."""
        merged, skipped, failed = result.merged(record.entities), result.skipped, result.failed
        assert set(merged + skipped + failed) <= set(record.entities)
        assert len(merged + skipped + failed) == len({*merged, *skipped, *failed})
        assert (result.outcome is None) == bool(failed) == (result.error is not None) == (result.attempts > 0)
        if not record.entities:
            assert result == RecordResult(Outcome.MERGED)
        elif expired:
            assert result == RecordResult(Outcome.EXPIRED)
        elif not failed:
            assert result.outcome is (Outcome.MERGED if merged else Outcome.DUPLICATE)
        elif not isinstance(result.error, PermanentError):
            assert result.attempts == self.cfg.max_attempts
        self.outcomes["failed" if result.outcome is None else str(result.outcome)] += 1
        self.counts["p"] += len(merged)
        if result.outcome is Outcome.EXPIRED:
            self.counts["p:expired"] += 1
        else:
            self.counts["p:dedup_skip"] += len(record.entities) - len(merged) - len(failed)

    def deliver_alone(self, event: Event) -> None:
        """One event without faults: the model predicts the result of each of its keys."""
        totals, expired = self.ledger.totals(), self.is_expired(event)
        merged: list[str] = []
        failed: list[str] = []
        for entity, key in zip(dict.fromkeys(event.keys), self.keys(event), strict=True):
            if (key, event.event_id) not in self.ledger.merged and not expired:
                fits = INT64_MIN <= totals.get(key, 0) + event.delta <= INT64_MAX
                (merged if fits else failed).append(entity)
        (result,) = self.deliver([event])
        assert (result.merged(event.record().entities), result.failed) == (tuple(merged), tuple(failed))
        if failed:
            assert isinstance(result.error, Overflow)
            assert result.attempts == 1

    def check_complete(self, delivered: Sequence[Event]) -> None:
        """After a redelivery without faults, every event that can count does, as in the plain dictionary."""
        expected: dict[Key, int] = {}
        for event in delivered:
            for key in self.keys(event):
                if key.entity not in BIG_KEYS and (
                    not self.is_expired(event) or (key, event.event_id) in self.ledger.merged
                ):
                    expected[key] = expected.get(key, 0) + event.delta
        assert expected == {key: total for key, total in self.ledger.totals().items() if key.entity not in BIG_KEYS}

    def check_state(self) -> None:
        """Store and cache hold what the model holds, without the rows that have expired."""
        totals = self.ledger.totals()
        live = {key: total for key, total in totals.items() if self.is_live(key)}
        assert dict(self.store.scan()) == live
        assert self.store.get_many(list(totals)) == [live.get(key) for key in totals]
        cached = {key: total for key, total in self.cached.items() if key in live and key.entity not in BIG_KEYS}
        assert self.cache.get_many(list(cached)) == list(cached.values())

    def check_counts(self) -> None:
        """In = merged + duplicate + expired + failed, and the metrics say the same."""
        assert self.deliveries == self.outcomes.total()
        for name in ("p", "p:dedup_skip", "p:expired"):
            assert self.recorder.snapshot_one(name).events_processed == self.counts[name]

    def key(self, event: Event, entity: str) -> Key:
        """The key and bucket of an event: its UTC day, by the calendar and not by the library's arithmetic."""
        return Key(entity, event.event_time.toordinal() - date(1970, 1, 1).toordinal() if self.window else 0)

    def keys(self, event: Event) -> list[Key]:
        """All keys, each once."""
        return [self.key(event, entity) for entity in dict.fromkeys(event.keys)]

    def now(self) -> datetime:
        """The fake clock's time."""
        return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=int(self.clock.now() * 1e6))

    def is_expired(self, event: Event) -> bool:
        """Whether the event is now older than the retention."""
        retention = self.window.retention if self.window else None
        return retention is not None and event.event_time < self.now() - retention

    def is_live(self, key: Key) -> bool:
        """Whether its day can still receive events."""
        retention = self.window.retention if self.window else None
        end = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(days=key.bucket + 1)
        return retention is None or self.now() < end + retention


def check_conservation(open_store: OpenStore, scenario: Scenario) -> None:
    """Run a scenario (with daily windows or without a window): deliveries with faults, then all again without."""
    clock = FakeClock()
    granularity = scenario.window.granularity if scenario.window else None
    with open_store(clock, granularity) as store:
        run = Run(scenario, store, clock)
        for batch in scenario.batches:
            clock.time += batch.after.total_seconds()
            run.deliver(batch.events)
            run.check_state()

        run.plan.stop()
        delivered = scenario.delivered
        missing = [e for e in delivered if not {(key, e.event_id) for key in run.keys(e)} <= run.ledger.merged.keys()]
        again = delivered if scenario.redeliver_all else missing
        for event, result in zip(again, run.deliver(again), strict=True):
            assert not result.failed or (isinstance(result.error, Overflow) and set(event.keys) <= set(BIG_KEYS))
        run.check_complete(delivered)
        for event in [*delivered, *delivered]:
            run.deliver_alone(event)
        run.check_complete(delivered)
        run.check_state()
        run.check_counts()
