"""The fold stage in streaming pipelines whose workers are killed: Flink goes on, on Prism the job is run again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PipelineResult

from murmur_beam import MergeRecords
from murmur_beam.fold_policy import EVERY
from murmur_beam.monoids import Count
from murmur_beam.state.bigtable import BigtableSpec
from murmur_beam.state.bigtable.sizes import Sizes, look_at_sizes
from tests.pipelines.test_fold_stage import events, recount, totals
from tests.support import emulators, ticks
from tests.support.appended import AppendedSpec
from tests.support.engines import PRISM, Pool, flink, worker_pool

TIMEOUT_S = 240.0
PARTS = 80
BUSY = 4
LAST = 16 * EVERY
"""Events of each busy row in the last part: one of them is picked for certain, and the row folded once more."""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds workers by Linux's list of processes"
)


@pytest.fixture
def table(bigtable_host: str) -> BigtableSpec:
    """A new table that is appended to."""
    spec = emulators.new_spec(bigtable_host)
    AppendedSpec(*spec.place[1:]).open(Count()).close()
    return spec


class Parts:
    """The events in parts; each but the last ones of the busy rows twice."""

    def __init__(self) -> None:
        self.events = events(6_000, BUSY)
        last = [{"id": f"last{i}", "k": f"busy{i % BUSY}"} for i in range(BUSY * LAST)]
        random.Random(2).shuffle(last)
        self._parts = [self.events[part::PARTS] for part in range(PARTS)]
        self._parts[-1] = [*self._parts[-1], *last]
        self.events += last

    def __call__(self, part: int) -> list[dict[str, str]]:
        """One of the parts."""
        return self._parts[part]


def merge(numbers: beam.PCollection[int], parts: Parts, table: BigtableSpec) -> None:
    """Merge the parts, and fold often the rows that have doubled; only the end of the input folds the rest."""
    fold = MergeRecords("test", key="k", event_id="id", monoid="count", store=table, fold="500ms", fold_share=1.0)
    _ = numbers | "Part" >> beam.FlatMap(parts) | fold


def kill_in_the_middle(
    result: PipelineResult, ready: Callable[[], bool], victim: Callable[[], int], table: BigtableSpec
) -> None:
    """Kill a worker after something was folded, and before all has arrived."""
    n_events = recount(Parts().events).total()
    deadline = time.monotonic() + TIMEOUT_S
    while not (sizes(table).events and ready()):
        assert result.state not in ("FAILED", "DONE")
        assert time.monotonic() < deadline, "nothing was folded"
        time.sleep(0.05)
    arrived = totals(table, fresh=True).total()
    os.kill(victim(), signal.SIGKILL)
    assert arrived < n_events, "the end of the input has folded"


def check(table: BigtableSpec, parts: Parts) -> None:
    """Each event counts once, and nothing of the busy rows is pending."""
    right = recount(parts.events)
    assert totals(table, fresh=True) == right
    at_end = sizes(table)
    assert at_end.events >= sum(n for key, n in right.items() if key.startswith("busy"))
    assert "busy" not in str(at_end.most_pending)
    once = len(right) - BUSY
    assert at_end.total.cells <= 4 * once, "twice in the input, and twice more after the kill"


def sizes(table: BigtableSpec) -> Sizes:
    """The sizes of all rows, by their markers and pending cells."""
    with closing(table.connect()) as connection:
        return connection.run(look_at_sizes(connection))


def test_flink_goes_on_after_a_kill(table: BigtableSpec, tmp_path: Path) -> None:
    """Flink restores state and timers of the stage: no number is wrong, and busy rows are folded to the last event."""
    parts = Parts()
    with flink(tmp_path) as engine:
        checkpoints = ["--checkpointing_interval=500", "--unaligned_checkpoint_enabled"]
        flags = [*engine.flags, "--streaming", *checkpoints, "--shutdown_sources_after_idle_ms=0"]
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        merge(ticks.on_flink(pipeline, range(PARTS), 0.1, sends=PARTS), parts, table)
        result = pipeline.run()
        kill_in_the_middle(
            result, lambda: engine.logged("Completed checkpoint ") > 0, engine.pool.busiest_worker, table
        )
        assert result.wait_until_finish(TIMEOUT_S * 1000) == "DONE"
        assert engine.logged("from state RUNNING to RESTARTING.") == 1
        assert engine.logged("Restoring job ") == 1, "from a checkpoint"
    check(table, parts)


def test_the_next_run_on_prism_is_right_after_a_kill(table: BigtableSpec, tmp_path: Path) -> None:
    """Prism starts no other worker: the job fails, or hangs. A run of the whole input on another Prism counts nothing
    twice, and folds it all."""
    emulators.require(PRISM)
    parts = Parts()

    def run(host: str, pool: Pool, interval_s: float) -> PipelineResult:
        flags = ["--runner=PrismRunner", f"--job_endpoint={host}", "--streaming", *pool.flags]
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        merge(ticks.by_clock(pipeline, range(PARTS), interval_s, time.time()), parts, table)
        return pipeline.run()

    for name in ("killed", "again"):
        (tmp_path / name).mkdir()
    with emulators.shared(PRISM, tmp_path / "killed") as host, worker_pool(tmp_path / "killed") as pool:
        result = run(host, pool, 0.2)
        kill_in_the_middle(result, lambda: bool(pool.workers()), pool.busiest_worker, table)
    assert totals(table, fresh=True) != recount(parts.events)
    with emulators.shared(PRISM, tmp_path / "again") as host, worker_pool(tmp_path / "again") as pool:
        assert run(host, pool, 0.01).wait_until_finish() == "DONE"
    check(table, parts)
