"""Reports to Beam's metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from apache_beam.metrics import Metrics

from murmur_beam import forks
from murmur_beam.metrics import Noop, Recorder, SizeRecorder, count_events

METRICS_NAMESPACE = "murmur_beam"


class BeamRecorder:
    """Beam metrics in the namespace ``murmur_beam``, and a second recorder beside them.

    Counters ``NAME`` (merged or recorded keys), ``NAME:retry``, ``NAME:dedup_skip``, ``NAME:expired``,
    ``NAME:dead_letter``, ``NAME:error``, and of whole records ``NAME:record_merged``, ``NAME:record_duplicate``,
    ``NAME:record_recorded``, ``NAME:record_expired``; distributions ``NAME:store_merge_us``, ``NAME:cache_merge_us``,
    ``NAME:flush_us`` (microseconds) and ``NAME:flush_records``.

    Counts are kept until `report`, since one metric update costs as much as merging an event. Samples of a flush are
    kept until `report_samples`, since Beam takes metrics only from the thread that works on the bundle. A recorder
    belongs to one DoFn; another thread may call any method but the reports.
    """

    def __init__(self, also: Recorder) -> None:
        self._also = None if isinstance(also, Noop) else also
        self._also_sizes = also if isinstance(also, SizeRecorder) else None
        self._lock = forks.Lock()
        self._counts: Counter[str] = Counter()
        self._samples: defaultdict[str, list[int]] = defaultdict(list)
        # Beam's, by name: making one takes as long as merging two events, and a small bundle reports several.
        self._counters: dict[str, Any] = {}
        self._distributions: dict[str, Any] = {}

    def record_event(self, pipeline: str) -> None:
        """Count one event."""
        self.record_events(pipeline, 1)

    def record_events(self, pipeline: str, n: int) -> None:
        """Count events."""
        self.count(pipeline, n)
        if self._also is not None:
            count_events(self._also, pipeline, n)

    def record_error(self, pipeline: str, err: BaseException) -> None:
        """Count one error."""
        self.count(f"{pipeline}:error", 1)
        if self._also is not None:
            self._also.record_error(pipeline, err)

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None:
        """Add to a distribution, in microseconds."""
        self._sample(f"{pipeline}:{op}_us", int(seconds * 1_000_000))
        if self._also is not None:
            self._also.record_latency(pipeline, op, seconds)

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        """Add to the distributions of its size and time."""
        self._sample(f"{pipeline}:{mode}_records", n)
        self._sample(f"{pipeline}:{mode}_us", int(seconds * 1_000_000))
        if self._also is not None:
            self._also.record_batch(pipeline, mode, n, seconds)

    def record_size(self, pipeline: str, what: str, n_bytes: int) -> None:
        """Add to a distribution, in bytes."""
        self._sample(f"{pipeline}:{what}", n_bytes)
        if self._also_sizes is not None:
            self._also_sizes.record_size(pipeline, what, n_bytes)

    def count(self, name: str, n: int) -> None:
        """Count whole records, which only this recorder does."""
        with self._lock:
            self._counts[name] += n

    def clear(self) -> None:
        """Forget the counts of a bundle that failed."""
        with self._lock:
            self._counts.clear()
            self._samples.clear()

    def report_samples(self) -> None:
        """Report the samples of flushes to Beam, from within a bundle."""
        with self._lock:
            samples = list(self._samples.items())
            self._samples.clear()
        for name, values in samples:
            distribution = self._distributions.get(name)
            if distribution is None:
                distribution = self._distributions[name] = Metrics.distribution(METRICS_NAMESPACE, name)
            for value in values:
                distribution.update(value)

    def report(self) -> None:
        """Report everything to Beam, at the end of a bundle."""
        self.report_samples()
        with self._lock:
            counts = list(self._counts.items())
            self._counts.clear()
        for name, n in counts:
            counter = self._counters.get(name)
            if counter is None:
                counter = self._counters[name] = Metrics.counter(METRICS_NAMESPACE, name)
            counter.inc(n)

    def _sample(self, name: str, value: int) -> None:
        with self._lock:
            self._samples[name].append(value)
