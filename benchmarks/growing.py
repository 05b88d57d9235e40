"""The measurements of `benchmarks.growth`, each run in its own process: rows that fill up, and runs of several
lengths."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from murmur_beam.quiet_beam import beam  # isort: split

from benchmarks.harness import Inexact, peak_mb
from benchmarks.timing import Done, watch
from benchmarks.workloads import COMMIT, EXPONENT, FLUSH, zipf_stream
from murmur_beam.buffer import FlushLimits
from murmur_beam.gc_tuning import declare_worker_process
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER
from murmur_beam.runs.beam_runs import run as run_pipeline
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, tables
from murmur_beam.transforms import DEAD_LETTER, MergeRecords

TABLE = "growth"


class Run(NamedTuple):
    """The figures of one run.

    Attributes:
        events: number of events.
        seconds: from the first event to the last write.
        peak_mb: peak memory of the process.
    """

    events: int
    seconds: float
    peak_mb: float


def row_costs(host: str, sizes: Sequence[int], turns: int) -> dict[int, float]:
    """Microseconds an event, by the number of events that its row held before.

    Raises:
        Inexact: a count is wrong.
    """
    spec = _table(host)
    seconds = dict.fromkeys(sizes, 0.0)
    with closing(spec.open(Count())) as store:
        for size in sizes:
            for start in range(0, size, COMMIT):
                _merge(store, size, "held", range(start, min(start + COMMIT, size)))
        for turn in range(turns):
            for size in sizes:
                started_s = time.perf_counter()
                _merge(store, size, "more", range(turn * COMMIT, (turn + 1) * COMMIT))
                seconds[size] += time.perf_counter() - started_s
        for size in sizes:
            count, wanted = store.get(Key(_row(size))), size + turns * COMMIT
            if count != wanted:
                raise Inexact(f"the row of {size:,} events counts {count}, and should count {wanted:,}")
    return {size: total / (turns * COMMIT) * 1e6 for size, total in seconds.items()}


def _merge(store: Any, size: int, what: str, numbers: range) -> None:
    results = store.merge_updates([Update(Key(_row(size)), 1, f"{what}/{i}") for i in numbers])
    if any(result is not Outcome.MERGED for result in results):
        raise Inexact(f"the row of {size:,} events: {set(map(str, results))}")


def _row(size: int) -> str:
    return f"row-{size}"


class Emit(beam.DoFn):
    """Emits events one by one; starts the watch."""

    def process(self, n: int) -> Iterator[tuple[str, str]]:
        watch.start()
        for i, page in enumerate(zipf_stream(n, EXPONENT)):
            yield page, f"event-{i}"


def run(host: str, n: int) -> Run:
    """Run a pipeline with ``n`` events.

    Raises:
        Inexact: a count is wrong.
    """
    spec = _table(host)
    p = beam.Pipeline(runner=IN_PROCESS_RUNNER)
    merge = MergeRecords(
        "growth",
        key=lambda event: event[0],
        event_id=lambda event: event[1],
        monoid=Count(),
        store=spec,
        flush=FlushLimits(events=FLUSH),
    )
    outputs = p | beam.Create([n]) | beam.ParDo(Emit()) | merge
    _ = outputs[DEAD_LETTER] | beam.ParDo(Done())
    run_pipeline(p)
    made = Run(n, watch.usage.seconds, peak_mb())
    wanted = Counter(zipf_stream(n, EXPONENT))
    with closing(spec.open(Count())) as store:
        found = {key.entity: count for key, count in store.scan()}
    if found != wanted:
        wrong = sum(found.get(page) != wanted.get(page) for page in found.keys() | wanted.keys())
        raise Inexact(f"{wrong:,} counts of {len(wanted):,} are wrong after {n:,} events")
    return made


def _table(host: str) -> BigtableSpec:
    logging.disable(logging.WARNING)
    declare_worker_process()
    warnings.simplefilter("ignore", RuntimeWarning)  # of the client, about the emulator
    os.environ["BIGTABLE_EMULATOR_HOST"] = host
    spec = BigtableSpec("benchmark", "instance", TABLE)
    tables.create(spec, tables.table_meta(Schema(Count().name, None)))
    return spec
