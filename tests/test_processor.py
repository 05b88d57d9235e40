"""The promises of the per-record core, one test each, without Beam."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording import RecordingStore

import murmur_beam
from murmur_beam import processor
from murmur_beam.clock import Clock
from murmur_beam.errors import (
    ConfigurationError,
    InvalidRecord,
    PermanentError,
    SchemaMismatch,
    StoreUnavailable,
    TransientError,
)
from murmur_beam.metrics import InMemory, Noop
from murmur_beam.model import Key, Outcome, Record, Update, to_us
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.sum import INT64_MAX, Overflow, Sum
from murmur_beam.processor import (
    AtomicDedup,
    Config,
    MergeCancelled,
    NoDedup,
    RecordResult,
    RetriesExhausted,
    defaults,
    make_record,
    merge_many,
    merge_one,
    merge_records,
    needs_event_id,
)
from murmur_beam.state.base import Flushed, Result, Store
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock, FaultyStore
from murmur_beam.windows import WindowConfig, daily, hourly

WHEN = datetime(2023, 11, 14, 22, 0, tzinfo=timezone.utc)
"""13 minutes and 20 seconds before the fake clock's now."""
BUSY = TransientError("busy")


class Max(Monoid[int]):
    """The largest value: idempotent, so that no marker is needed."""

    name = "test-max"
    idempotent = True
    identity = -(2**63)

    def combine(self, a: int, b: int) -> int:
        return max(a, b)

    def lift(self, value: Any, event_time_us: int) -> int:
        return int(value)


class Deduper:
    """Claims ids in memory; ``fail`` is how many claims raise first."""

    def __init__(self, fail: int = 0, error: Exception = BUSY) -> None:
        self.seen: set[str] = set()
        self.calls: list[str] = []
        self.fail = fail
        self.error = error

    def mark_seen(self, event_id: str) -> bool:
        self.calls.append(event_id)
        if self.fail:
            self.fail -= 1
            raise self.error
        fresh = event_id not in self.seen
        self.seen.add(event_id)
        return fresh


class Spy(FaultyStore[int]):
    """A store that remembers the updates it was given, one list for each call."""

    def __init__(self, store: Store[int], fault: Callable[[Update], Exception | None] = lambda update: None) -> None:
        super().__init__(store, fault)
        self.calls: list[list[Update]] = []

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        self.calls.append(list(updates))
        return super().merge_updates(updates)


def script(**faults: Iterable[Exception | None]) -> Callable[[Update], Exception | None]:
    """A plan of faults: what the first, second ... write of an entity meets; then all goes well."""
    left = {entity: iter(errors) for entity, errors in faults.items()}
    return lambda update: next(left.get(update.key.entity, iter(())), None)


def always(error: Exception) -> Callable[[Update], Exception]:
    """A plan of faults without end."""
    return lambda update: error


def config(clock: Clock, **changes: Any) -> Config:
    """Exactly once, and a recorder to look at."""
    return Config(**{"recorder": InMemory(), "dedup": AtomicDedup(), "clock": clock, **changes})


def merge(cfg: Config, store: Store[int], keys: Iterable[str] = ("a",), event_id: Any = "e1", **more: Any) -> Any:
    """`merge_many` of a delta of 1 under the name "p"."""
    return merge_many(cfg, "p", event_id, more.pop("event_time", WHEN), keys, more.pop("delta", 1), store, **more)


def events(cfg: Config) -> dict[str, int]:
    """All event counts that are not zero, by name."""
    recorder = cfg.recorder
    assert isinstance(recorder, InMemory)
    return {name: stats.events_processed for name, stats in recorder.snapshot().items() if stats.events_processed}


def errors(cfg: Config) -> dict[str, int]:
    """All error counts that are not zero, by name."""
    recorder = cfg.recorder
    assert isinstance(recorder, InMemory)
    return {name: stats.errors for name, stats in recorder.snapshot().items() if stats.errors}


def values(store: Store[int], *entities: str) -> list[int | None]:
    """The aggregates without a window."""
    return store.get_many([Key(entity) for entity in entities])


class TestSuccess:
    def test_a_record_is_folded_into_its_key(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A first delivery adds the delta, says MERGED and counts one event."""
        cfg = config(clock)
        assert merge(cfg, store, delta=5) is Outcome.MERGED
        assert values(store, "a") == [5]
        assert events(cfg) == {"p": 1}
        assert errors(cfg) == {}
        assert clock.waits == []

    def test_every_key_of_a_record_gets_the_delta_and_counts(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Three keys are three events under the pipeline's name."""
        cfg = config(clock)
        assert merge(cfg, store, ["a", "b", "c"], delta=-2) is Outcome.MERGED
        assert values(store, "a", "b", "c") == [-2, -2, -2]
        assert events(cfg) == {"p": 3}

    def test_merge_one_extracts_key_and_delta_from_the_value(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """``merge_one`` is ``merge_many`` with one key, extraction, window, cache and cancel included."""
        cfg = config(clock)
        cache = MemoryStore(Sum(), clock)
        order = {"customer": "c7", "cents": 1250}
        for expected in (Outcome.MERGED, Outcome.DUPLICATE):
            outcome = merge_one(
                cfg, "p", "e1", WHEN, order, lambda o: str(o["customer"]), lambda o: o["cents"], store, cache, daily()
            )
            assert outcome is expected
        bucket = daily().bucket_id(WHEN)
        assert store.get(Key("c7", bucket)) == cache.get(Key("c7", bucket)) == 1250
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(MergeCancelled):
            merge_one(cfg, "p", "e2", WHEN, 1, str, lambda v: v, FaultyStore(store, always(BUSY)), cancel=cancel)

    def test_a_window_puts_the_record_into_the_bucket_of_its_event_time(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """The event's time decides about the bucket, not the time of the merge."""
        yesterday = WHEN - timedelta(days=1)
        merge(config(clock), store, event_time=yesterday, window=daily())
        assert list(store.scan()) == [(Key("a", daily().bucket_id(yesterday)), 1)]

    def test_an_event_before_1970_has_a_bucket_like_any_other(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """One microsecond before the epoch is the day -1, not the day 0."""
        before = datetime(1970, 1, 1, tzinfo=timezone.utc) - timedelta(microseconds=1)
        merge(config(clock), store, event_time=before, window=daily())
        assert list(store.scan()) == [(Key("a", -1), 1)]

    def test_a_repeated_key_in_one_record_counts_once(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """``["a", "b", "a"]`` is one delta for a and one for b, even without dedup."""
        cfg = config(clock, dedup=None)
        assert merge(cfg, store, ["a", "b", "a"]) is Outcome.MERGED
        assert values(store, "a", "b") == [1, 1]
        assert events(cfg) == {"p": 2}

    def test_keys_may_come_from_a_generator(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Keys are looked at once, so an iterator is as good as a list."""
        assert merge(config(clock), store, (key for key in "ab")) is Outcome.MERGED
        assert values(store, "a", "b") == [1, 1]

    @pytest.mark.parametrize("keys", [[], (), iter(())])
    @pytest.mark.parametrize("event_id", ["e1", None])
    def test_an_empty_key_list_does_nothing(
        self, clock: FakeClock, store: MemoryStore[int], keys: Any, event_id: str | None
    ) -> None:
        """No write, no claim, no count, and MERGED, so that the driver acknowledges it; with or without an id."""
        spy, deduper = Spy(store), Deduper()
        cfg = config(clock, dedup=deduper)
        assert merge(cfg, spy, keys, event_id) is Outcome.MERGED
        assert (spy.calls, deduper.calls, events(cfg)) == ([], [], {})

    def test_latencies_of_store_and_cache_are_recorded(self, clock: FakeClock) -> None:
        """``store_merge`` and ``cache_merge`` hold the time that each took, failed tries included."""

        class Slow(MemoryStore[int]):
            def __init__(self, seconds: float) -> None:
                super().__init__(Sum(), clock)
                self.seconds = seconds

            def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
                clock.time += self.seconds
                return super().merge_updates(updates)

        cfg = config(clock)
        merge(cfg, FaultyStore(Slow(0.25), script(a=[BUSY])), cache=Slow(0.5))
        recorder = cfg.recorder
        assert isinstance(recorder, InMemory)
        latencies = recorder.snapshot_one("p").latencies
        assert {op: (stats.n, stats.p50) for op, stats in latencies.items()} == {
            "store_merge": (2, pytest.approx(0.25)),
            "cache_merge": (1, pytest.approx(0.5)),
        }

    def test_a_failed_call_has_a_latency_too(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A store that raises was waited for all the same."""
        cfg = config(clock, max_attempts=2)
        with pytest.raises(RetriesExhausted):
            merge(cfg, Raising(store, times=2))
        recorder = cfg.recorder
        assert isinstance(recorder, InMemory)
        assert recorder.snapshot_one("p").latencies["store_merge"].n == 2


class Raising(FaultyStore[int]):
    """A store whose first flushes raise as a whole instead of giving results."""

    def __init__(self, store: Store[int], times: int, error: Exception = BUSY) -> None:
        super().__init__(store)
        self.times = times
        self.error = error

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        if self.times:
            self.times -= 1
            raise self.error
        return super().merge_updates(updates)


class TestDedup:
    def test_a_duplicate_is_a_no_op(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The second delivery changes nothing, says DUPLICATE and counts under ``:dedup_skip``."""
        cfg = config(clock)
        merge(cfg, store)
        assert merge(cfg, store) is Outcome.DUPLICATE
        assert values(store, "a") == [1]
        assert events(cfg) == {"p": 1, "p:dedup_skip": 1}

    def test_a_new_key_of_a_known_event_merges(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Markers are for each key: an event known to a is new to b, and the record as a whole MERGED."""
        cfg = config(clock)
        merge(cfg, store, ["a"])
        assert merge(cfg, store, ["a", "b"]) is Outcome.MERGED
        assert values(store, "a", "b") == [1, 1]
        assert events(cfg) == {"p": 2, "p:dedup_skip": 1}

    @pytest.mark.parametrize("dedup", [None, NoDedup()])
    def test_without_dedup_each_delivery_counts(
        self, clock: FakeClock, store: MemoryStore[int], dedup: NoDedup | None
    ) -> None:
        """None and `NoDedup` are at least once here: two deliveries are two, event id or not."""
        cfg = config(clock, dedup=dedup)
        assert merge(cfg, store) is merge(cfg, store) is Outcome.MERGED
        assert values(store, "a") == [2]
        assert events(cfg) == {"p": 2}

    def test_a_missing_event_id_is_refused_with_dedup(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Without an id a redelivery cannot be told from a new event, so it is an InvalidRecord."""
        for dedup in (AtomicDedup(), Deduper()):
            with pytest.raises(InvalidRecord, match="event_id: is missing"):
                merge(config(clock, dedup=dedup), store, event_id=None)
        assert list(store.scan()) == []

    def test_a_missing_event_id_is_fine_without_dedup(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """At least once needs no id."""
        assert merge(config(clock, dedup=None), store, event_id=None) is Outcome.MERGED
        assert values(store, "a") == [1]

    def test_an_idempotent_monoid_needs_no_event_id(self, clock: FakeClock) -> None:
        """Folding a maximum twice is harmless, so atomic dedup asks for no id; a Deduper does, it claims one."""
        store = MemoryStore(Max(), clock)
        assert merge(config(clock), store, event_id=None) is Outcome.MERGED
        with pytest.raises(InvalidRecord):
            merge(config(clock, dedup=Deduper()), store, event_id=None)

    @pytest.mark.parametrize(
        ("dedup", "monoid", "needed"),
        [
            (None, Sum(), False),
            (None, Max(), False),
            (AtomicDedup(), Sum(), True),
            (AtomicDedup(), Max(), False),
            (Deduper(), Sum(), True),
            (Deduper(), Max(), True),
        ],
    )
    def test_when_an_event_id_is_needed(self, dedup: Any, monoid: Monoid[int], needed: bool) -> None:
        """With dedup, unless it is atomic and folding twice harmless."""
        assert needs_event_id(Config(dedup=dedup), monoid) is needed

    def test_lost_answers_do_not_double_count(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A write that happened though its answer got lost is found by the next try: a duplicate, not a second one."""
        cfg = config(clock)
        lost = script(a=[BUSY], b=[BUSY, BUSY])
        assert merge(cfg, FaultyStore(store, lost=lost), ["a", "b", "c"]) is Outcome.MERGED
        assert values(store, "a", "b", "c") == [1, 1, 1]
        assert events(cfg) == {"p": 1, "p:dedup_skip": 2, "p:retry": 3}

    def test_a_lost_answer_on_every_try_heals_on_redelivery(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The driver hears of a failure though the write happened; the redelivery is a duplicate."""
        cfg = config(clock)
        with pytest.raises(RetriesExhausted):
            merge(cfg, FaultyStore(store, lost=always(BUSY)))
        assert merge(cfg, store) is Outcome.DUPLICATE
        assert values(store, "a") == [1]

    def test_without_dedup_a_lost_answer_counts_twice(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """What at least once means, so that nobody takes ``dedup=None`` for safe."""
        merge(config(clock, dedup=None), FaultyStore(store, lost=script(a=[BUSY])))
        assert values(store, "a") == [2]

    def test_threads_that_deliver_the_same_events_count_each_once(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """Four threads, the same 200 events each: every one is MERGED exactly once."""
        cfg = config(clock)
        start = threading.Barrier(4)

        def deliver() -> None:
            start.wait()
            for i in range(200):
                merge(cfg, store, ["a", "b"], f"e{i}")

        threads = [threading.Thread(target=deliver) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert values(store, "a", "b") == [200, 200]
        assert events(cfg) == {"p": 400, "p:dedup_skip": 1200}


class TestDeduper:
    def test_a_deduper_drops_the_second_delivery(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """One claim for each record, ``:dedup_skip`` for each of its keys, and no marker in the store."""
        deduper = Deduper()
        cfg = config(clock, dedup=deduper)
        spy = Spy(store)
        assert merge(cfg, spy, ["a", "b"]) is Outcome.MERGED
        assert merge(cfg, spy, ["a", "b"]) is Outcome.DUPLICATE
        assert deduper.calls == ["e1", "e1"]
        assert [[update.event_id for update in call] for call in spy.calls] == [[None, None]]
        assert values(store, "a", "b") == [1, 1]
        assert events(cfg) == {"p": 2, "p:dedup_skip": 2}

    def test_known_weakness_a_failed_merge_after_the_claim_is_skipped_on_redelivery(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """The claim comes first, so an event whose merge fails is lost to the redelivery; a replay without dedup
        brings it in. AtomicDedup has no such hole."""
        deduper = Deduper()
        cfg = config(clock, dedup=deduper)
        with pytest.raises(RetriesExhausted):
            merge(cfg, FaultyStore(store, always(BUSY)))
        assert merge(cfg, store) is Outcome.DUPLICATE
        assert values(store, "a") == [None]
        assert merge(cfg.with_dedup(None), store) is Outcome.MERGED
        assert values(store, "a") == [1]

    def test_known_weakness_a_claim_whose_answer_is_lost_loses_the_event(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """The id is claimed although the call raised, so the next try takes the event for a duplicate."""

        class Lossy(Deduper):
            def mark_seen(self, event_id: str) -> bool:
                fresh = super().mark_seen(event_id)
                if fresh:
                    raise TimeoutError("answer lost")
                return fresh

        assert merge(config(clock, dedup=Lossy()), store) is Outcome.DUPLICATE
        assert values(store, "a") == [None]

    def test_a_deduper_that_raises_is_tried_again(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A failed claim is a failed try: waited for, counted under ``:retry``, and then the record merges."""
        cfg = config(clock, dedup=Deduper(fail=2))
        assert merge(cfg, store) is Outcome.MERGED
        assert values(store, "a") == [1]
        assert events(cfg) == {"p": 1, "p:retry": 2}
        assert errors(cfg) == {"p": 2}
        assert len(clock.waits) == 2

    def test_a_deduper_that_keeps_raising_exhausts_the_tries(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Nothing is written without a claim; all keys have failed."""
        deduper = Deduper(fail=99)
        spy = Spy(store)
        cfg = config(clock, dedup=deduper, max_attempts=4)
        with pytest.raises(RetriesExhausted) as failed:
            merge(cfg, spy, ["a", "b"])
        assert (failed.value.keys, failed.value.attempts) == (("a", "b"), 4)
        assert failed.value.__cause__ is BUSY
        assert (len(deduper.calls), spy.calls) == (4, [])
        assert events(cfg) == {"p:dead_letter": 1, "p:retry": 3}

    def test_a_deduper_s_permanent_error_is_raised_straight_away(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """As with a store: one try, and the record's keys in ``.keys``."""
        deduper = Deduper(fail=99, error=PermanentError("no such table"))
        with pytest.raises(PermanentError, match="no such table") as failed:
            merge(config(clock, dedup=deduper), store, ["a", "b"])
        assert failed.value.keys == ("a", "b")
        assert (deduper.calls, clock.waits) == (["e1"], [])

    def test_the_same_event_twice_in_one_batch_is_claimed_once(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Within a batch as across batches."""
        cfg = config(clock, dedup=Deduper())
        record = make_record(Sum(), "e1", 0, ["a"], 1, need_id=True)
        results = merge_records(cfg, "p", [record, record], store)
        assert [result.outcome for result in results] == [Outcome.MERGED, Outcome.DUPLICATE]
        assert values(store, "a") == [1]

    def test_a_retry_of_the_merge_claims_nothing_again(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The claim is kept over the tries of the merge: it would look like a duplicate otherwise."""
        deduper = Deduper()
        assert merge(config(clock, dedup=deduper), FaultyStore(store, script(a=[BUSY, BUSY]))) is Outcome.MERGED
        assert deduper.calls == ["e1"]
        assert values(store, "a") == [1]


class Scripted(FaultyStore[int]):
    """A store that answers, call by call, what it is told, and writes nothing."""

    def __init__(self, *answers: list[Result], appends: bool = True) -> None:
        super().__init__(MemoryStore(Sum(), FakeClock()))
        self.answers = iter(answers)
        self.ids: list[list[str | None]] = []
        self._appends = appends

    @property
    def appends(self) -> bool:
        return self._appends

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        self.ids.append([update.event_id for update in updates])
        return next(self.answers)


MERGED, DUPLICATE, RECORDED = Outcome.MERGED, Outcome.DUPLICATE, Outcome.RECORDED


class TestRecorded:
    """A store that appends does not say whether an event was there before."""

    def test_an_event_is_recorded_as_often_as_it_comes_and_counts_once(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """Each delivery counts its keys under the name, as merged ones do, since none is known to be a duplicate."""
        cfg = config(clock)
        assert [merge(cfg, RecordingStore(store), ["a", "b"]) for _ in range(2)] == [RECORDED, RECORDED]
        one = merge_one(cfg, "p", "e1", WHEN, "a", str, lambda value: 1, RecordingStore(store))
        assert one is RECORDED
        assert values(store, "a", "b") == [1, 1]
        assert events(cfg) == {"p": 5}

    def test_no_keys_and_too_old_are_as_anywhere(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Neither touches a row."""
        recording = RecordingStore(store)
        assert merge(config(clock), recording, []) is MERGED
        old = WHEN - timedelta(days=9)
        assert merge(config(clock), recording, window=daily(timedelta(days=2)), event_time=old) is Outcome.EXPIRED

    def test_only_what_failed_is_tried_again(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """What is recorded is done, and counted when it is."""
        cfg, spy = config(clock), Spy(RecordingStore(store), script(b=[BUSY]))
        assert merge(cfg, spy, ["a", "b"]) is RECORDED
        assert [[update.key.entity for update in call] for call in spy.calls] == [["a", "b"], ["b"]]
        assert events(cfg) == {"p": 2, "p:retry": 1}
        assert errors(cfg) == {"p": 1}

    def test_a_key_that_fails_leaves_the_others_recorded(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The record has failed, by its failed keys alone; a redelivery brings those in."""
        cfg, faulty = config(clock), FaultyStore(RecordingStore(store), script(b=[BUSY] * 3))
        record = make_record(Sum(), "e1", 0, ["a", "b"], 1, need_id=True)
        (result,) = merge_records(cfg, "p", [record], faulty)
        assert result == RecordResult(None, failed=("b",), error=BUSY, attempts=3)
        assert result.merged(record.entities) == ("a",)
        assert merge(cfg, faulty, ["a", "b"]) is RECORDED
        assert values(store, "a", "b") == [1, 1]

    @pytest.mark.parametrize(
        ("answers", "outcome", "skipped"),
        [
            ([[MERGED, BUSY, BUSY], [RECORDED, RECORDED]], RECORDED, ()),
            ([[MERGED, DUPLICATE, BUSY], [RECORDED]], RECORDED, ("b",)),
            ([[DUPLICATE, DUPLICATE, BUSY], [RECORDED]], RECORDED, ("a", "b")),
            ([[RECORDED, RECORDED, BUSY], [MERGED]], RECORDED, ()),
            ([[RECORDED, RECORDED, BUSY], [DUPLICATE]], RECORDED, ("c",)),
            ([[RECORDED, RECORDED, BUSY], [RECORDED]], RECORDED, ()),
            ([[MERGED, DUPLICATE, BUSY], [DUPLICATE]], MERGED, ("b", "c")),
        ],
    )
    def test_a_table_that_is_switched_between_two_tries(
        self, clock: FakeClock, answers: list[list[Result]], outcome: Outcome, skipped: tuple[str, ...]
    ) -> None:
        """Recorded, if any key was; the keys that were known to be duplicates are told all the same."""
        cfg = config(clock)
        record = make_record(Sum(), "e1", 0, ["a", "b", "c"], 1, need_id=True)
        (result,) = merge_records(cfg, "p", [record], Scripted(*answers))
        assert result == RecordResult(outcome, skipped)
        assert events(cfg).get("p", 0) == 3 - len(skipped)
        assert events(cfg).get("p:dedup_skip", 0) == len(skipped)

    def test_a_batch_that_is_recorded_shares_one_result(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Bundles hold thousands; the same one also beside a record that fared otherwise."""
        batch = [Record.of(f"e{i}", 0, ["a", "b"] if i else ["never"], 1) for i in range(3)]
        results = merge_records(config(clock), "p", batch, RecordingStore(store))
        assert all(result is processor.RECORDED for result in results)
        faulty = FaultyStore(RecordingStore(store), script(never=[PermanentError("never")]))
        failed, *others = merge_records(config(clock), "p", batch, faulty)
        assert failed.failed == ("never",)
        assert all(result is processor.RECORDED for result in others)

    def test_the_cache_gets_nothing(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A delta that was there before would count twice in it."""
        cache = Spy(MemoryStore(Sum(), clock))
        merge(config(clock), RecordingStore(store), cache=cache)
        assert cache.calls == []

    @pytest.mark.parametrize("event_id", [None, "e1"])
    @pytest.mark.parametrize("dedup", [None, NoDedup()])
    def test_without_dedup_each_delivery_counts_once_though_its_answer_is_lost(
        self, clock: FakeClock, store: MemoryStore[int], dedup: Any, event_id: str | None
    ) -> None:
        """All tries of a flush have the same id, which nothing else has: neither another update nor a redelivery."""
        cfg = config(clock, dedup=dedup)
        spy = Spy(RecordingStore(store))
        faulty = FaultyStore(spy, lost=script(a=[BUSY, None, None, BUSY]))
        record = make_record(Sum(), event_id, 0, ["a", "b"], 1, need_id=False)
        for delivered in (2, 4):
            results = merge_records(cfg, "p", [record, record], faulty)
            assert [result.outcome for result in results] == [RECORDED] * 2
            assert values(store, "a", "b") == [delivered] * 2
        ids = [[(update.key.entity, update.event_id) for update in call] for call in spy.calls]
        assert [len(call) for call in ids] == [4, 1, 4, 1]
        assert ids[1] == [ids[0][0]]
        different = {event_id for call in ids for _, event_id in call}
        assert len(different) == 8
        assert not different & {None, "e1"}

    def test_after_a_claim_updates_have_ids_too(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The claim is made once, but the append may be tried again."""
        cfg = config(clock, dedup=Deduper())
        faulty = FaultyStore(RecordingStore(store), lost=script(a=[BUSY]))
        assert [merge(cfg, faulty), merge(cfg, faulty)] == [RECORDED, DUPLICATE]
        assert values(store, "a") == [1]

    def test_ids_are_made_up_where_they_are_of_use(self, clock: FakeClock) -> None:
        """Not where the event's own is the marker, nor for an idempotent monoid, nor for a store that does not append;
        which is asked at each flush, since a table may be switched."""
        scripted = Scripted(*[[RECORDED]] * 4, appends=True)
        merge(config(clock), scripted)
        merge(config(clock, dedup=NoDedup()), scripted)
        scripted._appends = False
        merge(config(clock, dedup=NoDedup()), scripted)
        scripted.store = MemoryStore(Max(), clock)
        scripted._appends = True
        merge(config(clock, dedup=NoDedup()), scripted)
        own, made_up, *others = [event_id for (event_id,) in scripted.ids]
        assert own == "e1"
        assert made_up is not None
        assert others == [None, None]


class TestRetries:
    def test_retry_then_success_counts_its_retries(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Two failures and a success are MERGED, two events under ``:retry``, two errors and two waits."""
        cfg = config(clock)
        assert merge(cfg, FaultyStore(store, script(a=[BUSY, BUSY]))) is Outcome.MERGED
        assert values(store, "a") == [1]
        assert events(cfg) == {"p": 1, "p:retry": 2}
        assert errors(cfg) == {"p": 2}
        assert clock.waits == [0.05, 0.1]

    def test_exhaustion_raises_with_the_last_failure_as_cause(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """RetriesExhausted says which pipeline, event and keys, how many tries, and why the last one failed."""
        cfg = config(clock)
        tries = [TransientError("first"), OSError("second"), TimeoutError("third"), TransientError("never made")]
        with pytest.raises(RetriesExhausted) as failed:
            merge(cfg, FaultyStore(store, script(a=tries)))
        error = failed.value
        assert (error.pipeline_name, error.event_id, error.keys, error.attempts) == ("p", "e1", ("a",), 3)
        assert error.__cause__ is tries[2]
        assert str(error) == "p: event 'e1' failed 3 times for 'a': TimeoutError: third"
        assert events(cfg) == {"p:dead_letter": 1, "p:retry": 2}
        assert errors(cfg) == {"p": 3}

    @pytest.mark.parametrize("max_attempts", [1, 2, 3, 7])
    def test_exactly_max_attempts_tries_are_made(
        self, clock: FakeClock, store: MemoryStore[int], max_attempts: int
    ) -> None:
        """Not one more, not one less; a wait between each two, none after the last."""
        spy = Spy(store, always(BUSY))
        with pytest.raises(RetriesExhausted) as failed:
            merge(config(clock, max_attempts=max_attempts), spy)
        assert failed.value.attempts == len(spy.calls) == max_attempts
        assert len(clock.waits) == max_attempts - 1

    def test_success_on_the_last_try_is_success(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The last try counts like the first."""
        assert merge(config(clock, max_attempts=3), FaultyStore(store, script(a=[BUSY, BUSY]))) is Outcome.MERGED

    def test_a_flush_that_raises_as_a_whole_is_tried_again(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A store that raises instead of giving results has failed for each update of the call."""
        cfg = config(clock)
        assert merge(cfg, Raising(store, times=1), ["a", "b"]) is Outcome.MERGED
        assert values(store, "a", "b") == [1, 1]
        assert events(cfg) == {"p": 2, "p:retry": 2}
        assert errors(cfg) == {"p": 2}

    def test_only_what_failed_is_tried_again(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Even without dedup a key that merged is not written a second time by its record's retry; what is left keeps
        its order."""
        spy = Spy(store, script(b=[BUSY, BUSY], d=[BUSY]))
        assert merge(config(clock, dedup=None), spy, ["a", "b", "c", "d"]) is Outcome.MERGED
        assert [[update.key.entity for update in call] for call in spy.calls] == [list("abcd"), ["b", "d"], ["b"]]
        assert values(store, "a", "b", "c", "d") == [1, 1, 1, 1]

    @given(
        base=st.timedeltas(timedelta(0), timedelta(days=1)),
        extra=st.timedeltas(timedelta(0), timedelta(days=1)),
        max_attempts=st.integers(1, 80),
        seed=st.none() | st.integers(0, 2**32),
    )
    def test_no_sleep_ever_exceeds_backoff_max(
        self, base: timedelta, extra: timedelta, max_attempts: int, seed: int | None
    ) -> None:
        """Whatever base, cap, attempts and jitter: Murmur's "full jitter" could sleep half as long again."""
        rng = random.Random(seed)

        class Chance(FakeClock):
            def uniform(self, low: float, high: float) -> float:
                return super().uniform(low, high) if seed is None else rng.uniform(low, high)

        clock = Chance(jitter=1.0)
        cap = base + extra
        cfg = Config(clock=clock, max_attempts=max_attempts).with_backoff(base, cap)
        with pytest.raises(RetriesExhausted):
            merge(cfg, FaultyStore(MemoryStore(Sum(), clock), always(BUSY)))
        assert len(clock.waits) == max_attempts - 1
        assert all(0 <= wait <= cap.total_seconds() for wait in clock.waits)
        if seed is None:
            ceilings = [min(cap.total_seconds(), base.total_seconds() * 2.0**n) for n in range(max_attempts - 1)]
            assert clock.waits == ceilings

    def test_jitter_spreads_the_wait_from_zero(self, store: MemoryStore[int]) -> None:
        """Full jitter: the shortest wait is none at all."""
        clock = FakeClock(jitter=0.0)
        merge(config(clock), FaultyStore(store, script(a=[BUSY, BUSY])))
        assert clock.waits == [0.0, 0.0]


class WaitingClock(Clock):
    """The real clock without jitter; tells when a wait is about to begin."""

    def __init__(self) -> None:
        self.waiting = threading.Event()

    def wait(self, seconds: float, cancel: threading.Event | None = None) -> bool:
        self.waiting.set()
        return super().wait(seconds, cancel)

    def uniform(self, low: float, high: float) -> float:
        return high


class TestCancellation:
    def test_cancellation_in_a_backoff_returns_within_50_ms(self) -> None:
        """A merge that would sleep for a minute ends at once when ``cancel`` is set; a busy machine can only add to
        what is measured, so the fastest of a few counts."""
        took_s = []
        for _ in range(5):
            clock, cancel = WaitingClock(), threading.Event()
            ended: list[float] = []
            minute = timedelta(minutes=1)
            cfg = Config(clock=clock, backoff_base=minute, backoff_max=minute)
            failing = FaultyStore(MemoryStore(Sum(), clock), always(BUSY))

            def work(
                cfg: Config = cfg,
                store: Store[int] = failing,
                cancel: threading.Event = cancel,
                ended: list[float] = ended,
            ) -> None:
                with pytest.raises(MergeCancelled, match="after 1 failed tries"):
                    merge(cfg, store, cancel=cancel)
                ended.append(time.monotonic())

            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            assert clock.waiting.wait(10)
            time.sleep(0.01)  # so that the thread is truly asleep
            cancelled = time.monotonic()
            cancel.set()
            thread.join(10)
            assert ended, "the merge went on sleeping, or did not raise MergeCancelled"
            took_s.append(ended[0] - cancelled)
        assert min(took_s) < 0.05

    def test_a_deduper_s_backoff_can_be_cancelled(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The wait between two claims is a backoff like any other."""
        cancel = threading.Event()
        cancel.set()
        deduper = Deduper(fail=1)
        with pytest.raises(MergeCancelled):
            merge(config(clock, dedup=deduper), store, cancel=cancel)
        assert deduper.calls == ["e1"]

    def test_cancel_is_only_looked_at_in_a_wait(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A merge that needs no second try succeeds; one without a second try is exhausted, not cancelled."""
        cancel = threading.Event()
        cancel.set()
        assert merge(config(clock), store, cancel=cancel) is Outcome.MERGED
        with pytest.raises(RetriesExhausted):
            merge(config(clock, max_attempts=1), FaultyStore(store, always(BUSY)), event_id="e2", cancel=cancel)

    def test_what_merged_before_a_cancellation_is_counted_cached_and_kept(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """a is written, counted and cached when b's backoff is cancelled; the redelivery merges b alone."""
        cfg, cache, cancel = config(clock), MemoryStore(Sum(), clock), threading.Event()
        cancel.set()
        with pytest.raises(MergeCancelled):
            merge(cfg, FaultyStore(store, script(b=[BUSY])), ["a", "b"], cache=cache, cancel=cancel)
        assert events(cfg) == {"p": 1}
        assert values(cache, "a", "b") == [1, None]
        assert merge(cfg, store, ["a", "b"], cache=cache) is Outcome.MERGED
        assert values(store, "a", "b") == values(cache, "a", "b") == [1, 1]
        assert events(cfg) == {"p": 2, "p:dedup_skip": 1}


class TestPartialFailure:
    def test_a_half_failed_record_heals_on_redelivery(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The second of three keys fails: RetriesExhausted names it alone, the others keep their writes, and the
        redelivery merges it alone. Murmur never gives it another try."""
        cfg = config(clock)
        with pytest.raises(RetriesExhausted) as failed:
            merge(cfg, FaultyStore(store, lambda u: BUSY if u.key.entity == "b" else None), ["a", "b", "c"])
        assert failed.value.keys == ("b",)
        assert values(store, "a", "b", "c") == [1, None, 1]
        assert events(cfg) == {"p": 2, "p:retry": 2, "p:dead_letter": 1}

        assert merge(cfg, store, ["a", "b", "c"]) is Outcome.MERGED
        assert values(store, "a", "b", "c") == [1, 1, 1]
        assert events(cfg) == {"p": 3, "p:dedup_skip": 2, "p:retry": 2, "p:dead_letter": 1}
        assert merge(cfg, store, ["a", "b", "c"]) is Outcome.DUPLICATE

    def test_failed_keys_come_in_the_record_s_order(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Whatever order they failed in."""
        faults = script(z=[BUSY] * 3, m=[BUSY] * 3)
        with pytest.raises(RetriesExhausted) as failed:
            merge(config(clock), FaultyStore(store, faults), ["z", "a", "m"])
        assert failed.value.keys == ("z", "m")

    @pytest.mark.parametrize("unusable", [StoreUnavailable("no table"), SchemaMismatch("max")])
    def test_the_store_s_fault_comes_before_the_record_s(
        self, clock: FakeClock, store: MemoryStore[int], unusable: PermanentError
    ) -> None:
        """Of several keys' errors the one that makes a driver stop is told, whichever came first."""
        faults = {"a": BUSY, "b": PermanentError("overflow"), "c": unusable}
        for keys in (["a", "b", "c"], ["c", "b", "a"]):
            cfg = config(clock, max_attempts=1)
            with pytest.raises(type(unusable)) as failed:
                merge(cfg, FaultyStore(store, lambda u: faults[u.key.entity]), keys)
            assert failed.value is unusable
            assert failed.value.keys == tuple(keys)
            assert events(cfg) == {}, "no fault of the record"
        with pytest.raises(PermanentError, match="overflow"):
            merge(config(clock), FaultyStore(store, lambda u: faults[u.key.entity]), ["a", "b"])

    def test_a_permanent_error_is_raised_straight_away(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """One try, no wait, no ``:retry``, and ``.keys`` names what failed; the other keys are merged."""
        cfg = config(clock)
        denied = PermanentError("permission denied")
        spy = Spy(store, script(b=[denied]))
        with pytest.raises(PermanentError) as failed:
            merge(cfg, spy, ["a", "b"])
        assert failed.value is denied
        assert denied.keys == ("b",)
        assert (len(spy.calls), clock.waits) == (1, [])
        assert values(store, "a", "b") == [1, None]
        assert events(cfg) == {"p": 1, "p:dead_letter": 1}
        assert errors(cfg) == {"p": 1}

    def test_a_permanent_error_of_the_whole_flush_is_raised_straight_away(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """The table is missing: no key merges, and none is tried again."""
        raising = Raising(store, times=1, error=PermanentError("no such table"))
        with pytest.raises(PermanentError, match="no such table") as failed:
            merge(config(clock), raising, ["a", "b"])
        assert failed.value.keys == ("a", "b")
        assert clock.waits == []
        assert values(store, "a", "b") == [None, None]

    def test_one_permanent_and_one_transient_key(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The transient one gets all its tries, the permanent one a single try; the error is the permanent one and
        names both."""
        spy = Spy(store, script(a=[BUSY] * 3, b=[PermanentError("never")]))
        cfg = config(clock)
        with pytest.raises(PermanentError, match="never") as failed:
            merge(cfg, spy, ["a", "b", "c"])
        assert failed.value.keys == ("a", "b")
        assert [[update.key.entity for update in call] for call in spy.calls] == [["a", "b", "c"], ["a"], ["a"]]
        assert values(store, "a", "b", "c") == [None, None, 1]

    def test_a_transient_key_heals_beside_a_permanent_one(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The permanent failure does not take the others' retries away, and is named alone."""
        with pytest.raises(PermanentError) as failed:
            merge(config(clock), FaultyStore(store, script(a=[BUSY], b=[PermanentError("never")])), ["a", "b"])
        assert failed.value.keys == ("b",)
        assert values(store, "a", "b") == [1, None]

    def test_an_overflow_fails_its_key_alone_and_leaves_no_marker(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """The full key refuses, the empty one merges; once there is room the redelivery heals."""
        cfg = config(clock)
        merge(cfg, store, ["full"], "e0", delta=INT64_MAX)
        with pytest.raises(Overflow) as failed:
            merge(cfg, store, ["full", "empty"])
        assert failed.value.keys == ("full",)
        assert values(store, "full", "empty") == [INT64_MAX, 1]
        merge(cfg, store, ["full"], "e2", delta=-10)
        assert merge(cfg, store, ["full", "empty"]) is Outcome.MERGED
        assert values(store, "full", "empty") == [INT64_MAX - 9, 1]


class TestInvalidRecords:
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"keys": ["a", ""]}, "key"),
            ({"keys": ["a", 7]}, "key"),
            ({"keys": ["x" * 5000]}, "key"),
            ({"keys": ["a\ud800"]}, "key"),
            ({"keys": "abc"}, "key"),
            ({"event_id": ""}, "event_id"),
            ({"event_id": True}, "event_id"),
            ({"event_time": datetime(2023, 1, 1)}, "event_time"),
            ({"event_time": 1_700_000_000}, "event_time"),
            ({"delta": "one"}, "value"),
            ({"delta": 1.5}, "value"),
            ({"delta": True}, "value"),
            ({"delta": 2**63}, "value"),
        ],
    )
    def test_what_no_retry_can_cure_is_refused_before_any_write(
        self, clock: FakeClock, store: MemoryStore[int], changes: dict[str, Any], field: str
    ) -> None:
        """The error names the field; nothing was written, claimed or waited for."""
        spy, deduper = Spy(store), Deduper()
        with pytest.raises(InvalidRecord) as failed:
            merge(cfg := config(clock, dedup=deduper), spy, **changes)
        assert failed.value.field == field
        assert events(cfg) == {"p:dead_letter": 1}
        assert (spy.calls, deduper.calls, clock.waits) == ([], [], [])

    def test_an_invalid_record_names_its_keys_and_is_recorded(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """None of its keys could be merged, so all of them are in ``.keys``, each once."""
        cfg = config(clock)
        with pytest.raises(InvalidRecord) as failed:
            merge(cfg, store, ["b", "a", "b"], delta="much")
        assert failed.value.keys == ("b", "a")
        assert errors(cfg) == {"p": 1}
        assert events(cfg) == {"p:dead_letter": 1}

    def test_an_integer_event_id_is_its_decimal_text(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """7 and "7" are the same event: databases give numbers, message attributes give text."""
        cfg = config(clock)
        assert merge(cfg, store, event_id=7) is Outcome.MERGED
        assert merge(cfg, store, event_id="7") is Outcome.DUPLICATE


class TestExpiry:
    def test_an_expired_event_is_never_written(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Older than the retention: EXPIRED, one ``:expired`` for the record, no write, no claim."""
        spy, deduper = Spy(store), Deduper()
        cfg = config(clock, dedup=deduper)
        old = WHEN - timedelta(days=3)
        outcome = merge(cfg, spy, ["a", "b"], event_time=old, window=daily(timedelta(days=2)))
        assert outcome is Outcome.EXPIRED
        assert (spy.calls, deduper.calls) == ([], [])
        assert events(cfg) == {"p:expired": 1}

    def test_the_edge_of_the_retention_belongs_to_it(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Exactly as old as the retention still counts, one microsecond older does not."""
        window = hourly(timedelta(days=2))
        edge = datetime.fromtimestamp(clock.now(), timezone.utc) - timedelta(days=2)
        older = edge - timedelta(microseconds=1)
        assert merge(config(clock), store, event_time=edge, window=window) is Outcome.MERGED
        assert merge(config(clock), store, event_id="e2", event_time=older, window=window) is Outcome.EXPIRED

    def test_without_retention_nothing_expires(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Buckets are kept for ever, so the first event of 1 January of the year 1 counts."""
        first = datetime(1, 1, 1, tzinfo=timezone.utc)
        spy = Spy(store)
        assert merge(config(clock), spy, event_time=first, window=daily()) is Outcome.MERGED
        assert spy.calls[0][0].ttl is None

    def test_the_store_learns_how_long_a_bucket_may_still_receive_events(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """``ttl`` is the end of the bucket plus the retention, seen from now."""
        spy = Spy(store)
        merge(config(clock), spy, ["a", "b"], window=hourly(timedelta(days=2)))
        rest_of_hour = timedelta(minutes=46, seconds=40)
        assert [update.ttl for update in spy.calls[0]] == [rest_of_hour + timedelta(days=2)] * 2

    def test_a_retry_that_crosses_the_end_of_its_bucket_is_still_a_duplicate(self, clock: FakeClock) -> None:
        """The answer to an event of the last moment is lost, and its bucket expires during the backoff: the marker
        outlives the bucket for a while, so that the next try finds it."""
        window = hourly(timedelta(minutes=30))
        event_time = WHEN - timedelta(microseconds=1)
        clock.time = (event_time + timedelta(minutes=30)).timestamp()
        minutes = timedelta(minutes=3)
        cfg = config(clock, backoff_base=minutes, backoff_max=minutes)
        store = MemoryStore(Sum(), clock)
        lost = FaultyStore(store, lost=script(a=[BUSY, BUSY]))
        assert merge(cfg, lost, event_time=event_time, window=window) is Outcome.DUPLICATE
        assert events(cfg) == {"p:dedup_skip": 1, "p:retry": 2}

    def test_a_retention_without_bounds_is_no_error(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """`timedelta.max` plus the rest of the bucket is more than a timedelta holds."""
        assert merge(config(clock), store, window=WindowConfig(timedelta.max, timedelta.max)) is Outcome.MERGED
        assert merge(config(clock), store, window=daily(timedelta.max)) is Outcome.MERGED


class BrokenCache(MemoryStore[int]):
    """A cache that fails as told."""

    def __init__(self, mode: str) -> None:
        super().__init__(Sum())
        self.mode = mode

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        if self.mode == "raises":
            raise ConnectionError("cache gone")
        return [ConnectionError("cache gone") for _ in updates]


class TestCache:
    @pytest.mark.parametrize("mode", ["raises", "returns errors"])
    def test_a_cache_failure_changes_no_outcome(self, clock: FakeClock, store: MemoryStore[int], mode: str) -> None:
        """It is recorded as an error under ``:cache``, is not tried again, and the record is MERGED."""
        cfg = config(clock)
        assert merge(cfg, store, cache=BrokenCache(mode)) is Outcome.MERGED
        assert values(store, "a") == [1]
        assert events(cfg) == {"p": 1}
        assert errors(cfg) == {"p:cache": 1}
        assert clock.waits == []

    def test_a_cache_is_updated_only_for_what_the_store_reported_merged(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """a is a duplicate, b merges, c fails, d merges but its answer is lost: the cache hears of b alone."""
        merge(config(clock), store, ["a"])
        cache = Spy(MemoryStore(Sum(), clock))
        faulty = FaultyStore(store, script(c=[BUSY] * 3), lost=script(d=[BUSY]))
        with pytest.raises(RetriesExhausted) as failed:
            merge(config(clock), faulty, ["a", "b", "c", "d"], cache=cache)
        assert failed.value.keys == ("c",)
        assert cache.calls == [[Update(Key("b"), 1)]]

    def test_a_key_that_merges_on_a_later_try_reaches_the_cache(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """Each key once, whichever try merged it."""
        cache = MemoryStore(Sum(), clock)
        merge(config(clock), FaultyStore(store, script(b=[BUSY])), ["a", "b"], cache=cache)
        assert values(cache, "a", "b") == [1, 1]

    def test_a_duplicate_or_an_expired_event_does_not_touch_the_cache(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """Not even with an empty call."""
        cfg, cache = config(clock), Spy(MemoryStore(Sum(), clock))
        window = daily(timedelta(days=2))
        merge(cfg, store, window=window)
        merge(cfg, store, window=window, cache=cache)
        merge(cfg, store, window=window, cache=cache, event_id="e2", event_time=WHEN - timedelta(days=9))
        assert cache.calls == []

    def test_the_cache_gets_the_bucket_s_ttl_and_no_event_id(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """It keeps no markers, and may drop what the store drops."""
        cache, spy = Spy(MemoryStore(Sum(), clock)), Spy(store)
        merge(config(clock), spy, window=daily(timedelta(days=2)), cache=cache)
        (written,), (cached,) = spy.calls[0], cache.calls[0]
        assert written.event_id == "e1"
        assert cached == written._replace(event_id=None)


class TestBatches:
    def test_results_come_in_the_records_order(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """One result for each record, whatever became of its neighbours."""
        now_us = int(clock.now() * 1e6)
        day_us = 86_400_000_000
        batch = [
            Record.of("e1", now_us, ["a"], 1),
            Record.of("e2", now_us - 9 * day_us, [], 1),
            Record.of("e3", now_us - 9 * day_us, ["a"], 1),
            Record.of("e4", now_us, ["bad", "a"], 1),
            Record.of("e1", now_us, ["a"], 1),
            Record.of("e5", now_us, ["worse"], 1),
            Record.of("e1", now_us, ["a", "b", "c"], 1),
            Record.of("e4", now_us, ["a", "b", "bad"], 1),
            Record.of("e6", now_us, ["worse", "bad"], 1),
        ]
        never = PermanentError("never")
        faulty = FaultyStore(store, script(bad=[BUSY] * 9, worse=[never, never]))
        cfg = config(clock)
        results = merge_records(cfg, "p", batch, faulty, window=daily(timedelta(days=2)))
        assert results == [
            RecordResult(Outcome.MERGED),
            RecordResult(Outcome.MERGED),
            RecordResult(Outcome.EXPIRED),
            RecordResult(None, failed=("bad",), error=BUSY, attempts=3),
            RecordResult(Outcome.DUPLICATE),
            RecordResult(None, failed=("worse",), error=never, attempts=1),
            RecordResult(Outcome.MERGED, skipped=("a",)),
            RecordResult(None, skipped=("a",), failed=("bad",), error=BUSY, attempts=3),
            RecordResult(None, failed=("worse", "bad"), error=never, attempts=3),
        ]
        merged = [result.merged(record.entities) for record, result in zip(batch, results, strict=True)]
        assert merged == [("a",), (), (), ("a",), (), (), ("b", "c"), ("b",), ()]
        assert events(cfg) == {"p": 5, "p:dedup_skip": 3, "p:expired": 1, "p:retry": 6}

    def test_a_batch_is_one_call_to_the_store(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Each row can then be written once for all its events."""
        spy = Spy(store)
        batch = [Record.of(f"e{i}", 0, ["a", f"k{i}"], 1) for i in range(10)]
        merge_records(config(clock), "p", batch, spy)
        assert [len(call) for call in spy.calls] == [20]
        assert values(store, "a") == [10]

    def test_new_events_and_duplicates_of_one_row_in_one_batch(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Only what is new is added, in whatever order they come."""
        merge(config(clock), store, event_id="e0", delta=1)
        ids = ["e0", "e1", "e1", "e0", "e2", "e1"]
        batch = [Record.of(event_id, 0, ["a"], 10 ** int(event_id[1])) for event_id in ids]
        results = merge_records(config(clock), "p", batch, store)
        new = [ids[i] for i, result in enumerate(results) if result.outcome is Outcome.MERGED]
        assert new == ["e1", "e2"]
        assert values(store, "a") == [111]

    def test_one_entity_on_several_days_in_one_batch(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Each event goes to its own bucket, and each bucket has its own end."""
        window, spy = daily(timedelta(days=9)), Spy(store)
        days = [WHEN, WHEN - timedelta(days=1), WHEN]
        batch = [Record.of(f"e{i}", to_us(day), ["a"], 10**i) for i, day in enumerate(days)]
        merge_records(config(clock), "p", batch, spy, window=window)
        today = window.bucket_id(WHEN)
        assert dict(store.scan()) == {Key("a", today): 101, Key("a", today - 1): 10}
        assert {update.key.bucket: update.ttl for update in spy.calls[0]} == {
            bucket: window.bucket_start(bucket + 1)
            + timedelta(days=9)
            - datetime.fromtimestamp(clock.now(), timezone.utc)
            for bucket in (today, today - 1)
        }

    def test_an_empty_batch_calls_nothing(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Nor does one whose records have no keys."""
        spy = Spy(store)
        assert merge_records(config(clock), "p", [], spy) == []
        assert len(merge_records(config(clock), "p", [Record.of("e", 0, [], 1)], spy)) == 1
        assert spy.calls == []

    def test_exhaustion_in_a_batch_is_a_result_and_is_left_to_the_caller_to_count(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """`merge_records` raises nothing and counts no ``:dead_letter``: its caller knows what becomes of it."""
        cfg = config(clock)
        (result,) = merge_records(cfg, "p", [Record.of("e", 0, ["a"], 1)], FaultyStore(store, always(BUSY)))
        assert (result.outcome, result.failed, result.error, result.attempts) == (None, ("a",), BUSY, 3)
        assert events(cfg) == {"p:retry": 2}


class Talkative(FaultyStore[int]):
    """A store that says what it noticed."""

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        flushed = Flushed(super().merge_updates(updates))
        flushed.counts.update({"ambiguous_resolved": 2})
        flushed.sizes = {"row_bytes": 9}
        return flushed


class FourMethods:
    """A recorder without `record_size`."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def record_event(self, pipeline: str) -> None:
        self.events.append(pipeline)

    def record_error(self, pipeline: str, err: BaseException) -> None:
        raise AssertionError(err)

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None: ...

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None: ...


class TestWhatStoresNotice:
    def test_it_goes_to_the_recorder(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Under the pipeline's name: how often, and the largest size of each flush."""
        cfg = config(clock, recorder=InMemory())
        assert merge(cfg, Talkative(store)) is Outcome.MERGED
        assert events(cfg) == {"p": 1, "p:ambiguous_resolved": 2}
        assert isinstance(cfg.recorder, InMemory)
        assert cfg.recorder.snapshot_one("p").sizes == {"row_bytes": 9}

    def test_a_recorder_need_not_take_sizes(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """What worked with a store that notices nothing works with one that does."""
        recorder = FourMethods()
        assert merge(config(clock, recorder=recorder), Talkative(store)) is Outcome.MERGED
        assert sorted(recorder.events) == ["p", "p:ambiguous_resolved", "p:ambiguous_resolved"]


class TestConfig:
    def test_the_defaults(self) -> None:
        """Three tries, 50 ms to 5 s, no dedup, no metrics."""
        cfg = defaults()
        assert (cfg.max_attempts, cfg.backoff_base, cfg.backoff_max, cfg.dedup) == (
            3,
            timedelta(milliseconds=50),
            timedelta(seconds=5),
            None,
        )
        assert isinstance(cfg.recorder, Noop)
        assert type(cfg.clock) is Clock

    @pytest.mark.parametrize(
        ("changes", "argument"),
        [
            ({"max_attempts": 0}, "max_attempts"),
            ({"max_attempts": -1}, "max_attempts"),
            ({"max_attempts": 2.0}, "max_attempts"),
            ({"max_attempts": "3"}, "max_attempts"),
            ({"max_attempts": True}, "max_attempts"),
            ({"backoff_base": timedelta(microseconds=-1)}, "backoff_base"),
            ({"backoff_base": 0.05}, "backoff_base"),
            ({"backoff_max": 5}, "backoff_max"),
            ({"backoff_max": timedelta(milliseconds=49)}, "backoff_max"),
            ({"dedup": True}, "dedup"),
            ({"dedup": AtomicDedup}, "dedup"),
            ({"dedup": Deduper}, "dedup"),
        ],
    )
    def test_a_wrong_argument_fails_at_construction_and_is_named(self, changes: dict[str, Any], argument: str) -> None:
        """Not with the first failure on a worker, when it is too late."""
        with pytest.raises(ConfigurationError) as failed:
            Config(**changes)
        assert failed.value.argument == argument

    def test_the_smallest_allowed_values(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """One try; no wait at all between tries."""
        cfg = Config(max_attempts=2, backoff_base=timedelta(0), backoff_max=timedelta(0), clock=clock)
        assert merge(cfg, FaultyStore(store, script(a=[BUSY]))) is Outcome.MERGED
        assert clock.waits == [0.0]
        assert Config(max_attempts=1).max_attempts == 1

    def test_with_methods_return_a_changed_copy(self) -> None:
        """The original stays as it was; the copy is checked like any other."""
        cfg = defaults()
        recorder, dedup = InMemory(), AtomicDedup()
        second = timedelta(seconds=1)
        changed = cfg.with_recorder(recorder).with_max_attempts(9).with_backoff(second, 2 * second).with_dedup(dedup)
        assert changed == Config(recorder, 9, second, 2 * second, dedup, cfg.clock)
        assert cfg == Config(recorder=cfg.recorder, clock=cfg.clock)
        assert changed.with_dedup(None).dedup is None
        with pytest.raises(ConfigurationError):
            cfg.with_max_attempts(0)
        with pytest.raises(ConfigurationError):
            cfg.with_backoff(second, second / 2)

    def test_it_is_frozen(self) -> None:
        """A transform may share one between threads."""
        with pytest.raises(AttributeError):
            defaults().max_attempts = 5  # type: ignore[misc]

    def test_it_pickles(self) -> None:
        """It travels to workers inside a DoFn."""
        cfg = defaults().with_max_attempts(4).with_dedup(AtomicDedup())
        copy = pickle.loads(pickle.dumps(cfg))
        assert (copy.max_attempts, copy.backoff_base, copy.backoff_max, copy.dedup) == (
            4,
            cfg.backoff_base,
            cfg.backoff_max,
            AtomicDedup(),
        )
        assert isinstance(copy.recorder, Noop)


def test_every_public_name_is_there() -> None:
    """`__all__` names what the design promises, and nothing that is missing."""
    promised = {"Config", "defaults", "merge_one", "merge_many", "AtomicDedup", "RetriesExhausted", "MergeCancelled"}
    assert promised <= set(processor.__all__)
    assert all(hasattr(processor, name) for name in processor.__all__)


def test_importing_the_processor_loads_neither_beam_nor_google() -> None:
    """A plain subscriber must not pay for what it does not use; asked in a fresh interpreter."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"  # a namespace package's .pth file may have loaded its stub
        "import murmur_beam.processor\n"
        "new = set(sys.modules) - before\n"
        "print(sorted({name.partition('.')[0] for name in new} & {'apache_beam', 'google', 'grpc'}))"
    )
    root = Path(murmur_beam.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
