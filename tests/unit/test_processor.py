"""The per-record core: merges, duplicates, dedupers, and tables that are appended to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from murmur_beam import processor
from murmur_beam.errors import (
    InvalidRecord,
    PermanentError,
)
from murmur_beam.metrics import InMemory
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.sum import Sum
from murmur_beam.processor import (
    AtomicDedup,
    Config,
    MergeCancelled,
    NoDedup,
    RecordResult,
    RetriesExhausted,
    make_record,
    merge_one,
    merge_records,
    needs_event_id,
)
from murmur_beam.state.base import Result
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock, FaultyStore
from murmur_beam.windows import daily
from tests.support.processing import (
    BUSY,
    WHEN,
    Deduper,
    Max,
    Raising,
    Spy,
    always,
    config,
    errors,
    events,
    merge,
    script,
    values,
)
from tests.support.recording import RecordingStore
from tests.support.records import Record


class TestSuccess:
    def test_a_record_is_folded_into_its_key(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A first delivery adds the delta, returns MERGED and counts one event."""
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
        """``merge_one`` is ``merge_many`` with one key, including extraction, window, cache and cancellation."""
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
        """The event's time decides the bucket, not the time of the merge."""
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
        """Keys are read once, so an iterator serves as well as a list."""
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
        """The time of a store that raises counts as well."""
        cfg = config(clock, max_attempts=2)
        with pytest.raises(RetriesExhausted):
            merge(cfg, Raising(store, times=2))
        recorder = cfg.recorder
        assert isinstance(recorder, InMemory)
        assert recorder.snapshot_one("p").latencies["store_merge"].n == 2


class TestDedup:
    def test_a_duplicate_is_a_no_op(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The second delivery changes nothing, returns DUPLICATE and counts under ``:dedup_skip``."""
        cfg = config(clock)
        merge(cfg, store)
        assert merge(cfg, store) is Outcome.DUPLICATE
        assert values(store, "a") == [1]
        assert events(cfg) == {"p": 1, "p:dedup_skip": 1}

    def test_a_new_key_of_a_known_event_merges(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Markers belong to a key: an event known to a is new to b, and the record as a whole is MERGED."""
        cfg = config(clock)
        merge(cfg, store, ["a"])
        assert merge(cfg, store, ["a", "b"]) is Outcome.MERGED
        assert values(store, "a", "b") == [1, 1]
        assert events(cfg) == {"p": 2, "p:dedup_skip": 1}

    @pytest.mark.parametrize("dedup", [None, NoDedup()])
    def test_without_dedup_each_delivery_counts(
        self, clock: FakeClock, store: MemoryStore[int], dedup: NoDedup | None
    ) -> None:
        """None and `NoDedup` mean at least once: two deliveries count twice, event id or not."""
        cfg = config(clock, dedup=dedup)
        assert merge(cfg, store) is merge(cfg, store) is Outcome.MERGED
        assert values(store, "a") == [2]
        assert events(cfg) == {"p": 2}

    def test_a_missing_event_id_is_refused_with_dedup(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Without an id a redelivery cannot be distinguished from a new event, so it is an InvalidRecord."""
        for dedup in (AtomicDedup(), Deduper()):
            with pytest.raises(InvalidRecord, match="event_id: is missing"):
                merge(config(clock, dedup=dedup), store, event_id=None)
        assert list(store.scan()) == []

    def test_a_missing_event_id_is_fine_without_dedup(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """At least once needs no id."""
        assert merge(config(clock, dedup=None), store, event_id=None) is Outcome.MERGED
        assert values(store, "a") == [1]

    def test_an_idempotent_monoid_needs_no_event_id(self, clock: FakeClock) -> None:
        """Folding a maximum twice is harmless, so atomic dedup needs no id; a Deduper does, as it claims one."""
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
    def test_an_event_id_is_needed_with_dedup(self, dedup: Any, monoid: Monoid[int], needed: bool) -> None:
        """Unless dedup is atomic and folding twice is harmless."""
        assert needs_event_id(Config(dedup=dedup), monoid) is needed

    def test_lost_answers_do_not_count_twice(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The next try finds a write whose answer was lost: a duplicate, not a second write."""
        cfg = config(clock)
        lost = script(a=[BUSY], b=[BUSY, BUSY])
        assert merge(cfg, FaultyStore(store, lost=lost), ["a", "b", "c"]) is Outcome.MERGED
        assert values(store, "a", "b", "c") == [1, 1, 1]
        assert events(cfg) == {"p": 1, "p:dedup_skip": 2, "p:retry": 3}

    def test_a_lost_answer_on_every_try_heals_on_redelivery(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The driver gets a failure though the write happened; the redelivery is a duplicate."""
        cfg = config(clock)
        with pytest.raises(RetriesExhausted):
            merge(cfg, FaultyStore(store, lost=always(BUSY)))
        assert merge(cfg, store) is Outcome.DUPLICATE
        assert values(store, "a") == [1]

    def test_without_dedup_a_lost_answer_counts_twice(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """At least once: ``dedup=None`` must not be mistaken for safe."""
        merge(config(clock, dedup=None), FaultyStore(store, lost=script(a=[BUSY])))
        assert values(store, "a") == [2]

    def test_threads_that_deliver_the_same_events_count_each_once(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """Four threads, the same 200 events each: every event is MERGED exactly once."""
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
        """The claim comes first, so the redelivery of an event whose merge failed is skipped; only a replay without
        dedup merges it. AtomicDedup does not have this weakness."""
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
        """A failed claim is a failed try: it waits, counts under ``:retry``, and then the record merges."""
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

    def test_a_retry_of_the_merge_keeps_the_claim(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A second claim would make the record look like a duplicate."""
        deduper = Deduper()
        assert merge(config(clock, dedup=deduper), FaultyStore(store, script(a=[BUSY, BUSY]))) is Outcome.MERGED
        assert deduper.calls == ["e1"]
        assert values(store, "a") == [1]


class Scripted(FaultyStore[int]):
    """A store that returns the given results, call by call, and writes nothing."""

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
    """A store that appends does not report whether an event is new."""

    def test_an_event_is_recorded_at_each_delivery_and_counts_once(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """Each delivery counts its keys under the name, as merged ones do, since none is known to be a duplicate."""
        cfg = config(clock)
        assert [merge(cfg, RecordingStore(store), ["a", "b"]) for _ in range(2)] == [RECORDED, RECORDED]
        one = merge_one(cfg, "p", "e1", WHEN, "a", str, lambda value: 1, RecordingStore(store))
        assert one is RECORDED
        assert values(store, "a", "b") == [1, 1]
        assert events(cfg) == {"p": 5}

    def test_records_without_keys_and_expired_ones_are_as_in_other_stores(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """Neither touches a row."""
        recording = RecordingStore(store)
        assert merge(config(clock), recording, []) is MERGED
        old = WHEN - timedelta(days=9)
        assert merge(config(clock), recording, window=daily(timedelta(days=2)), event_time=old) is Outcome.EXPIRED

    def test_only_failed_keys_are_tried_again(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A recorded key is done, and counted once."""
        cfg, spy = config(clock), Spy(RecordingStore(store), script(b=[BUSY]))
        assert merge(cfg, spy, ["a", "b"]) is RECORDED
        assert [[update.key.entity for update in call] for call in spy.calls] == [["a", "b"], ["b"]]
        assert events(cfg) == {"p": 2, "p:retry": 1}
        assert errors(cfg) == {"p": 1}

    def test_a_key_that_fails_leaves_the_others_recorded(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The record has failed, but only with its failed keys; a redelivery records those."""
        cfg, faulty = config(clock), FaultyStore(RecordingStore(store), script(b=[BUSY] * 3))
        record = make_record(Sum(), "e1", 0, ["a", "b"], 1, need_id=True)
        (result,) = merge_records(cfg, "p", [record], faulty)
        assert result == RecordResult(None, failed=("b",), error=BUSY, attempts=3)
        assert result.merged(("a", "b")) == ("a",)
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
    def test_a_table_may_be_switched_between_two_tries(
        self, clock: FakeClock, answers: list[list[Result]], outcome: Outcome, skipped: tuple[str, ...]
    ) -> None:
        """Recorded, if any key was; keys that are known to be duplicates are still reported as such."""
        cfg = config(clock)
        record = make_record(Sum(), "e1", 0, ["a", "b", "c"], 1, need_id=True)
        (result,) = merge_records(cfg, "p", [record], Scripted(*answers))
        assert result == RecordResult(outcome, skipped)
        assert events(cfg).get("p", 0) == 3 - len(skipped)
        assert events(cfg).get("p:dedup_skip", 0) == len(skipped)

    def test_recorded_records_of_a_batch_share_one_result(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Bundles hold thousands of them; they share it also beside a record with another outcome."""
        batch = [Record.of(f"e{i}", 0, ["a", "b"] if i else ["never"], 1) for i in range(3)]
        results = merge_records(config(clock), "p", batch, RecordingStore(store))
        assert all(result is processor.RECORDED for result in results)
        faulty = FaultyStore(RecordingStore(store), script(never=[PermanentError("never")]))
        failed, *others = merge_records(config(clock), "p", batch, faulty)
        assert failed.failed == ("never",)
        assert all(result is processor.RECORDED for result in others)

    def test_the_cache_gets_nothing(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A delta of a duplicate would count twice in it."""
        cache = Spy(MemoryStore(Sum(), clock))
        merge(config(clock), RecordingStore(store), cache=cache)
        assert cache.calls == []

    @pytest.mark.parametrize("event_id", [None, "e1"])
    @pytest.mark.parametrize("dedup", [None, NoDedup()])
    def test_without_dedup_each_delivery_counts_once_though_its_answer_is_lost(
        self, clock: FakeClock, store: MemoryStore[int], dedup: Any, event_id: str | None
    ) -> None:
        """All tries of a flush have the same id, which no other update or redelivery has."""
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

    def test_updates_have_ids_after_a_claim_too(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The claim is made once, but the append may be tried again."""
        cfg = config(clock, dedup=Deduper())
        faulty = FaultyStore(RecordingStore(store), lost=script(a=[BUSY]))
        assert [merge(cfg, faulty), merge(cfg, faulty)] == [RECORDED, DUPLICATE]
        assert values(store, "a") == [1]

    def test_ids_are_generated_only_where_needed(self, clock: FakeClock) -> None:
        """Not where the event's own id is the marker, nor for an idempotent monoid, nor for a store that does not
        append; the store is asked at each flush, since a table may be switched."""
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
