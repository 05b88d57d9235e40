"""Recorders: what `InMemory` counts, and which percentiles it reports."""

from __future__ import annotations

import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.metrics import (
    MAX_SAMPLES,
    InMemory,
    LatencyStats,
    Noop,
    PipelineStats,
    SizeRecorder,
    count_events,
)


def nearest_rank(samples: list[float], p: int) -> float:
    """The smallest sample such that at least p percent of the samples are less or equal, computed slowly."""
    return min(
        value for value in samples if Fraction(sum(s <= value for s in samples), len(samples)) >= Fraction(p, 100)
    )


class TestCounts:
    def test_an_unused_name_has_zeros_and_stays_unused(self) -> None:
        """Asking for it creates nothing."""
        recorder = InMemory()
        assert recorder.snapshot_one("never") == PipelineStats(0, 0, None, {}, {})
        assert recorder.snapshot() == {}

    def test_events_and_errors_are_counted_by_name(self) -> None:
        """The latest error is kept; a suffix makes another name."""
        recorder = InMemory()
        first, second = ValueError("1"), ValueError("2")
        for name in ("p", "p", "p:retry"):
            recorder.record_event(name)
        recorder.record_error("p", first)
        recorder.record_error("p", second)
        recorder.record_error("q", first)
        assert recorder.snapshot() == {
            "p": PipelineStats(2, 2, second),
            "p:retry": PipelineStats(1),
            "q": PipelineStats(0, 1, first),
        }

    def test_a_batch_counts_its_records_and_its_time(self) -> None:
        """Records by mode, and one latency under the mode for each batch."""
        recorder = InMemory()
        recorder.record_batch("p", "flush", 100, 0.5)
        recorder.record_batch("p", "flush", 50, 0.5)
        recorder.record_batch("p", "drain", 1, 2.0)
        stats = recorder.snapshot_one("p")
        assert stats.batches == {"flush": 150, "drain": 1}
        assert stats.latencies == {"flush": LatencyStats(2, 0.5, 0.5, 0.5), "drain": LatencyStats(1, 2.0, 2.0, 2.0)}
        assert stats.events_processed == 0

    def test_the_snapshot_has_every_name_in_order(self) -> None:
        """However a name was used: event, error, latency or batch."""
        recorder = InMemory()
        recorder.record_event("d")
        recorder.record_error("c", ValueError())
        recorder.record_latency("b", "op", 1.0)
        recorder.record_batch("a", "flush", 1, 1.0)
        assert list(recorder.snapshot()) == ["a", "b", "c", "d"]

    def test_a_snapshot_does_not_change_afterwards(self) -> None:
        """It holds the values of the moment it was taken."""
        recorder = InMemory()
        recorder.record_batch("p", "flush", 1, 1.0)
        before = recorder.snapshot_one("p")
        recorder.record_batch("p", "flush", 1, 9.0)
        recorder.record_event("p")
        assert (before.batches, before.latencies["flush"].n, before.events_processed) == ({"flush": 1}, 1, 0)


class TestLatencies:
    @given(st.lists(st.floats(0, 1000), min_size=1, max_size=120))
    def test_percentiles_are_by_nearest_rank(self, samples: list[float]) -> None:
        """As computed by the slow function; always one of the samples."""
        recorder = InMemory()
        for sample in samples:
            recorder.record_latency("p", "op", sample)
        assert recorder.snapshot_one("p").latencies == {
            "op": LatencyStats(len(samples), *(nearest_rank(samples, p) for p in (50, 95, 99)))
        }

    @pytest.mark.parametrize(
        ("n", "expected"),
        [(1, (1, 1, 1)), (2, (1, 2, 2)), (20, (10, 19, 20)), (100, (50, 95, 99)), (101, (51, 96, 100))],
    )
    def test_percentiles_of_one_to_n(self, n: int, expected: tuple[int, int, int]) -> None:
        """By hand: of 1 .. 100 they are 50, 95 and 99, in any order."""
        recorder = InMemory()
        for sample in range(n, 0, -1):
            recorder.record_latency("p", "op", sample)
        assert recorder.snapshot_one("p").latencies["op"] == LatencyStats(n, *expected)

    def test_operations_are_separate(self) -> None:
        """A slow store does not make the cache look slow, nor one pipeline another."""
        recorder = InMemory()
        recorder.record_latency("p", "store_merge", 9.0)
        recorder.record_latency("p", "cache_merge", 1.0)
        recorder.record_latency("q", "store_merge", 2.0)
        assert recorder.snapshot_one("p").latencies == {
            "store_merge": LatencyStats(1, 9.0, 9.0, 9.0),
            "cache_merge": LatencyStats(1, 1.0, 1.0, 1.0),
        }

    def test_memory_is_bounded_by_the_latest_samples(self) -> None:
        """All are counted, but the percentiles are those of the latest `MAX_SAMPLES`."""
        recorder = InMemory()
        for _ in range(500):
            recorder.record_latency("p", "op", 1e9)
        for sample in range(1, MAX_SAMPLES + 1):
            recorder.record_latency("p", "op", sample)
        assert recorder.snapshot_one("p").latencies["op"] == LatencyStats(
            MAX_SAMPLES + 500, MAX_SAMPLES * 50 // 100, MAX_SAMPLES * 95 // 100, MAX_SAMPLES * 99 // 100
        )


def test_threads_lose_no_count() -> None:
    """Eight threads record and read at the same time."""
    recorder = InMemory()
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for i in range(500):
            recorder.record_event("p")
            recorder.record_error("p", ValueError(i))
            recorder.record_latency("p", "op", i)
            recorder.record_batch("p", "flush", 2, i)
            if i % 100 == 0:
                recorder.snapshot()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = recorder.snapshot_one("p")
    assert (stats.events_processed, stats.errors, stats.batches) == (4000, 4000, {"flush": 8000})
    assert {op: latency.n for op, latency in stats.latencies.items()} == {"op": 4000, "flush": 4000}


def test_the_largest_size_is_kept() -> None:
    """Whatever came before and after it, by pipeline and by subject."""
    recorder = InMemory()
    for n_bytes in (3, 9, 4):
        recorder.record_size("p", "row_bytes", n_bytes)
    recorder.record_size("p", "journal_bytes", 1)
    recorder.record_size("q", "row_bytes", 0)
    assert {name: stats.sizes for name, stats in recorder.snapshot().items()} == {
        "p": {"row_bytes": 9, "journal_bytes": 1},
        "q": {"row_bytes": 0},
    }


@pytest.mark.parametrize("recorder", [Noop(), InMemory()])
def test_every_recorder_accepts_every_call(recorder: SizeRecorder) -> None:
    """With the protocol's own argument names, and without a result."""
    recorder.record_event(pipeline="p")
    recorder.record_error(pipeline="p", err=ValueError())
    recorder.record_latency(pipeline="p", op="store_merge", seconds=0.1)
    recorder.record_batch(pipeline="p", mode="flush", n=3, seconds=0.1)
    recorder.record_size(pipeline="p", what="row_bytes", n_bytes=3)
    assert isinstance(recorder, SizeRecorder)


class OneByOne:
    """A recorder without a method for many events at once."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def record_event(self, pipeline: str) -> None:
        self.events.append(pipeline)

    def record_error(self, pipeline: str, err: BaseException) -> None:
        """Ignored."""

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None:
        """Ignored."""

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        """Ignored."""


def test_many_events_reach_any_recorder() -> None:
    """One by one where the recorder has no such method; zero events make no name."""
    one_by_one, at_once = OneByOne(), InMemory()
    for n in (0, 3):
        count_events(one_by_one, "p", n)
        count_events(at_once, "p", n)
        count_events(at_once, "never", 0)
    assert one_by_one.events == ["p"] * 3
    assert at_once.snapshot() == {"p": PipelineStats(3)}
