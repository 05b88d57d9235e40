"""Counts and latencies of a pipeline, behind a small protocol that each driver implements in its way."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from murmur_beam import forks

MAX_SAMPLES = 10_000
"""Latencies that `InMemory` keeps per operation: percentiles cover the newest ones."""


class Recorder(Protocol):
    """Receives the processor's reports. Calls may come from several threads, and must neither block nor raise."""

    def record_event(self, pipeline: str) -> None:
        """Record one event under ``pipeline``, which may have a suffix such as ``:retry``."""

    def record_error(self, pipeline: str, err: BaseException) -> None:
        """Record one failure of a store, a cache or a record."""

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None:
        """Record the duration of one ``store_merge`` or ``cache_merge``."""

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        """Record that ``n`` records were processed together in ``seconds``, in a mode such as ``flush``."""


@runtime_checkable
class SizeRecorder(Recorder, Protocol):
    """A recorder that also takes the sizes of rows, from stores that report them."""

    def record_size(self, pipeline: str, what: str, n_bytes: int) -> None:
        """Record the largest size in one flush, such as ``row_bytes`` of the rows it wrote."""


def count_events(recorder: Recorder, pipeline: str, n: int) -> None:
    """Record ``n`` events, with one call if the recorder has ``record_events(pipeline, n)``."""
    record_events = getattr(recorder, "record_events", None)  # isinstance would be as slow as counting a bundle
    if record_events is None:
        for _ in range(n):
            recorder.record_event(pipeline)
    elif n:
        record_events(pipeline, n)


class Noop:
    """Records nothing."""

    def record_event(self, pipeline: str) -> None:
        """Do nothing."""

    def record_events(self, pipeline: str, n: int) -> None:
        """Do nothing."""

    def record_error(self, pipeline: str, err: BaseException) -> None:
        """Do nothing."""

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None:
        """Do nothing."""

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        """Do nothing."""

    def record_size(self, pipeline: str, what: str, n_bytes: int) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class LatencyStats:
    """Latencies of one operation, in seconds; ``n`` counts all of them, the percentiles cover the newest
    `MAX_SAMPLES`."""

    n: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class PipelineStats:
    """Everything recorded under one pipeline name so far."""

    events_processed: int = 0
    errors: int = 0
    last_error: BaseException | None = None
    latencies: Mapping[str, LatencyStats] = field(default_factory=dict)
    batches: Mapping[str, int] = field(default_factory=dict)
    """Number of records processed in batches, by mode."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Largest sizes so far, in bytes, by name."""


class InMemory:
    """Keeps all reports in this process; for tests and for drivers that print a summary. Thread-safe."""

    def __init__(self) -> None:
        self._lock = forks.Lock()
        self._events: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._last_error: dict[str, BaseException] = {}
        self._latency_counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._latencies: dict[str, dict[str, deque[float]]] = defaultdict(dict)
        self._batches: dict[str, Counter[str]] = defaultdict(Counter)
        self._sizes: dict[str, dict[str, int]] = defaultdict(dict)

    def record_event(self, pipeline: str) -> None:
        """Count one event."""
        self.record_events(pipeline, 1)

    def record_events(self, pipeline: str, n: int) -> None:
        """Count events."""
        with self._lock:
            self._events[pipeline] += n

    def record_error(self, pipeline: str, err: BaseException) -> None:
        """Count one error and keep the newest."""
        with self._lock:
            self._errors[pipeline] += 1
            self._last_error[pipeline] = err

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None:
        """Record one latency."""
        with self._lock:
            self._latency_counts[pipeline][op] += 1
            self._latencies[pipeline].setdefault(op, deque(maxlen=MAX_SAMPLES)).append(seconds)

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        """Count the records of one batch, and record its duration as a latency named ``mode``."""
        with self._lock:
            self._batches[pipeline][mode] += n
        self.record_latency(pipeline, mode, seconds)

    def record_size(self, pipeline: str, what: str, n_bytes: int) -> None:
        """Keep the largest size."""
        with self._lock:
            sizes = self._sizes[pipeline]
            sizes[what] = max(n_bytes, sizes.get(what, n_bytes))

    def snapshot_one(self, pipeline: str) -> PipelineStats:
        """Everything recorded under ``pipeline``; zeros for a name never used."""
        with self._lock:
            return PipelineStats(
                self._events[pipeline],
                self._errors[pipeline],
                self._last_error.get(pipeline),
                {
                    op: _stats(self._latency_counts[pipeline][op], sorted(samples))
                    for op, samples in self._latencies.get(pipeline, {}).items()
                },
                dict(self._batches.get(pipeline, {})),
                dict(self._sizes.get(pipeline, {})),
            )

    def snapshot(self) -> dict[str, PipelineStats]:
        """Everything recorded, by name."""
        with self._lock:
            names = sorted({*self._events, *self._errors, *self._latencies, *self._batches, *self._sizes})
        return {name: self.snapshot_one(name) for name in names}


def _stats(n: int, ordered: Sequence[float]) -> LatencyStats:
    def percentile(p: int) -> float:
        # Nearest rank: the smallest sample that at least p percent of the samples do not exceed.
        return ordered[-(-p * len(ordered) // 100) - 1]

    return LatencyStats(n, percentile(50), percentile(95), percentile(99))
