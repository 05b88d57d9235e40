"""The per-record core: retries, cancellation, failures and expiry."""

from __future__ import annotations

import random
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.clock import Clock
from murmur_beam.errors import (
    InvalidRecord,
    PermanentError,
    SchemaMismatch,
    StoreUnavailable,
    TransientError,
)
from murmur_beam.model import Outcome
from murmur_beam.monoids.sum import INT64_MAX, Overflow, Sum
from murmur_beam.processor import (
    Config,
    MergeCancelled,
    RetriesExhausted,
)
from murmur_beam.state.base import Store
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock, FaultyStore
from murmur_beam.windows import WindowConfig, daily, hourly
from tests.support.processing import (
    BUSY,
    WHEN,
    Deduper,
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


class TestRetries:
    def test_retry_then_success_counts_its_retries(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Two failures and a success give MERGED, two events under ``:retry``, two errors and two waits."""
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
        """Not one more, not one less; one wait between every two, none after the last."""
        spy = Spy(store, always(BUSY))
        with pytest.raises(RetriesExhausted) as failed:
            merge(config(clock, max_attempts=max_attempts), spy)
        assert failed.value.attempts == len(spy.calls) == max_attempts
        assert len(clock.waits) == max_attempts - 1

    def test_success_on_the_last_try_is_success(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """The last try counts like the first."""
        assert merge(config(clock, max_attempts=3), FaultyStore(store, script(a=[BUSY, BUSY]))) is Outcome.MERGED

    def test_a_flush_that_raises_as_a_whole_is_tried_again(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A store that raises instead of returning results has failed for each update of the call."""
        cfg = config(clock)
        assert merge(cfg, Raising(store, times=1), ["a", "b"]) is Outcome.MERGED
        assert values(store, "a", "b") == [1, 1]
        assert events(cfg) == {"p": 2, "p:retry": 2}
        assert errors(cfg) == {"p": 2}

    def test_only_failed_keys_are_tried_again(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Even without dedup a retry does not write a merged key again; the other keys keep their order."""
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
        """Whatever base, cap, attempts and jitter."""
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
        """With full jitter the shortest wait is zero."""
        clock = FakeClock(jitter=0.0)
        merge(config(clock), FaultyStore(store, script(a=[BUSY, BUSY])))
        assert clock.waits == [0.0, 0.0]


class WaitingClock(Clock):
    """The real clock without jitter; it signals when a wait is about to begin."""

    def __init__(self) -> None:
        self.waiting = threading.Event()

    def wait(self, seconds: float, cancel: threading.Event | None = None) -> bool:
        self.waiting.set()
        return super().wait(seconds, cancel)

    def uniform(self, low: float, high: float) -> float:
        return high


class TestCancellation:
    def test_cancellation_in_a_backoff_returns_within_50_ms(self) -> None:
        """A merge that would sleep for a minute ends at once when ``cancel`` is set; a busy machine can only add to the
        measured time, so the fastest of a few counts."""
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
            time.sleep(0.01)  # so that the thread is really asleep
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

    def test_cancel_is_only_checked_in_a_wait(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A merge that needs no second try succeeds; one that has no second try is exhausted, not cancelled."""
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
        redelivery merges it alone."""
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
    def test_the_error_of_the_store_comes_before_that_of_the_record(
        self, clock: FakeClock, store: MemoryStore[int], unusable: PermanentError
    ) -> None:
        """Of several keys' errors the one that stops a driver is raised, whichever came first."""
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
        """One try, no wait, no ``:retry``, and ``.keys`` names the failed key; the other keys are merged."""
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
        """The permanent failure leaves the others their retries, and is named alone."""
        with pytest.raises(PermanentError) as failed:
            merge(config(clock), FaultyStore(store, script(a=[BUSY], b=[PermanentError("never")])), ["a", "b"])
        assert failed.value.keys == ("b",)
        assert values(store, "a", "b") == [1, None]

    def test_an_overflow_fails_its_key_alone_and_leaves_no_marker(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """The full key refuses, the empty one merges; once the sum fits, the redelivery merges it."""
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
    def test_a_record_that_no_retry_cures_is_refused_before_any_write(
        self, clock: FakeClock, store: MemoryStore[int], changes: dict[str, Any], field: str
    ) -> None:
        """The error names the field; nothing was written or claimed, without any wait."""
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

    def test_an_event_of_exactly_the_retention_still_counts(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """One microsecond older does not."""
        window = hourly(timedelta(days=2))
        edge = datetime.fromtimestamp(clock.now(), timezone.utc) - timedelta(days=2)
        older = edge - timedelta(microseconds=1)
        assert merge(config(clock), store, event_time=edge, window=window) is Outcome.MERGED
        assert merge(config(clock), store, event_id="e2", event_time=older, window=window) is Outcome.EXPIRED

    def test_without_retention_nothing_expires(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Buckets are kept permanently, so the first event of 1 January of the year 1 counts."""
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

    def test_an_unlimited_retention_is_not_an_error(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """`timedelta.max` plus the rest of the bucket is more than a timedelta holds."""
        assert merge(config(clock), store, window=WindowConfig(timedelta.max, timedelta.max)) is Outcome.MERGED
        assert merge(config(clock), store, window=daily(timedelta.max)) is Outcome.MERGED
