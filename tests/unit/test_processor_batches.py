"""The per-record core: caches, batches, recorders and the config."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import murmur_beam
from murmur_beam import processor
from murmur_beam.clock import Clock
from murmur_beam.errors import (
    ConfigurationError,
    PermanentError,
)
from murmur_beam.metrics import InMemory, Noop
from murmur_beam.model import Key, Outcome, Update, to_us
from murmur_beam.monoids.sum import Sum
from murmur_beam.processor import (
    AtomicDedup,
    Config,
    RecordResult,
    RetriesExhausted,
    defaults,
    merge_records,
)
from murmur_beam.state.base import Result, UpdateResults
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock, FaultyStore
from murmur_beam.windows import daily
from tests.support.processing import (
    BUSY,
    WHEN,
    Deduper,
    Spy,
    always,
    config,
    errors,
    events,
    merge,
    script,
    values,
)
from tests.support.records import Record


class BrokenCache(MemoryStore[int]):
    """A cache that fails in the given way."""

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
        """a is a duplicate, b merges, c fails, d merges but its answer is lost: the cache gets b alone."""
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
        """It keeps no markers, and may drop buckets when the store does."""
        cache, spy = Spy(MemoryStore(Sum(), clock)), Spy(store)
        merge(config(clock), spy, window=daily(timedelta(days=2)), cache=cache)
        (written,), (cached,) = spy.calls[0], cache.calls[0]
        assert written.event_id == "e1"
        assert cached == written._replace(event_id=None)


class TestBatches:
    def test_results_come_in_the_records_order(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """One result for each record, whatever the outcome of the others."""
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
        """Only new events are added, in whatever order they come."""
        merge(config(clock), store, event_id="e0", delta=1)
        ids = ["e0", "e1", "e1", "e0", "e2", "e1"]
        batch = [Record.of(event_id, 0, ["a"], 10 ** int(event_id[1])) for event_id in ids]
        results = merge_records(config(clock), "p", batch, store)
        new = [ids[i] for i, result in enumerate(results) if result.outcome is Outcome.MERGED]
        assert new == ["e1", "e2"]
        assert values(store, "a") == [111]

    def test_one_entity_on_several_days_in_one_batch(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Each event goes to its own bucket, and each bucket expires at its own time."""
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
        """Nor does a batch whose records have no keys."""
        spy = Spy(store)
        assert merge_records(config(clock), "p", [], spy) == []
        assert len(merge_records(config(clock), "p", [Record.of("e", 0, [], 1)], spy)) == 1
        assert spy.calls == []

    def test_exhaustion_in_a_batch_is_a_result_that_the_caller_counts(
        self, clock: FakeClock, store: MemoryStore[int]
    ) -> None:
        """`merge_records` raises nothing and counts no ``:dead_letter``: its caller decides about the record."""
        cfg = config(clock)
        (result,) = merge_records(cfg, "p", [Record.of("e", 0, ["a"], 1)], FaultyStore(store, always(BUSY)))
        assert (result.outcome, result.failed, result.error, result.attempts) == (None, ("a",), BUSY, 3)
        assert events(cfg) == {"p:retry": 2}


class Talkative(FaultyStore[int]):
    """A store that reports counts and sizes."""

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        flushed = UpdateResults(super().merge_updates(updates))
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
    def test_counts_and_sizes_go_to_the_recorder(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """Under the pipeline's name: the number, and the largest size of each flush."""
        cfg = config(clock, recorder=InMemory())
        assert merge(cfg, Talkative(store)) is Outcome.MERGED
        assert events(cfg) == {"p": 1, "p:ambiguous_resolved": 2}
        assert isinstance(cfg.recorder, InMemory)
        assert cfg.recorder.snapshot_one("p").sizes == {"row_bytes": 9}

    def test_a_recorder_need_not_accept_sizes(self, clock: FakeClock, store: MemoryStore[int]) -> None:
        """A recorder without `record_size` works with a store that reports sizes."""
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
        """The original does not change; the copy is checked like any other."""
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
        """It is sent to workers inside a DoFn."""
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
    """`__all__` has the names that the design promises, and each of them exists."""
    promised = {"Config", "defaults", "merge_one", "merge_many", "AtomicDedup", "RetriesExhausted", "MergeCancelled"}
    assert promised <= set(processor.__all__)
    assert all(hasattr(processor, name) for name in processor.__all__)


def test_importing_the_processor_loads_neither_beam_nor_google() -> None:
    """A plain subscriber must not load what it does not use; checked in a fresh interpreter."""
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
