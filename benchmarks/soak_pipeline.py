"""The events of `benchmarks.fold_soak`, and its pipeline, which runs in a process of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

from benchmarks.harness import needing_extra
from murmur_beam.errors import MurmurError

TICK_S = 0.5
CLASSES = 20
"""Of this many events one is of a row of its own, `BURST_CLASSES` are of rows that soon get no more, the rest hot."""
BURST_CLASSES = 7
HOT_ROWS = 16
BURST_EVENTS, BURSTS = 128, 16
"""Events of a burst row, and rows that get theirs at the same time."""
AGAIN_TICKS = 10
"""After this many ticks events of two classes are delivered again: one of burst rows, one of hot rows."""
AGAIN_CLASSES = (1, BURST_CLASSES + 1)


class Shape(NamedTuple):
    """What is merged, and how it is folded.

    Attributes:
        rate: events a second, without those that are delivered again; a multiple of 40.
        ticks: number of parts in which they arrive, `TICK_S` apart.
        every_s: how long after a write rows are folded; 0: never.
        share, age_s: see `FoldPlan`.
        late_s: how much later than planned a row may be folded: bundles, checkpoints, a worker that is started again.
    """

    rate: int
    ticks: int
    every_s: float
    share: float
    age_s: float
    late_s: float

    @property
    def per_tick(self) -> int:
        """Events of a tick."""
        return round(self.rate * TICK_S)

    @property
    def events(self) -> int:
        """All events."""
        return self.ticks * self.per_tick

    @property
    def hot_rate(self) -> float:
        """Deliveries a second of a hot row."""
        return self.rate * (CLASSES - 1 - BURST_CLASSES + 1) / CLASSES / HOT_ROWS

    @property
    def burst_rate(self) -> float:
        """Deliveries a second of all burst rows."""
        return self.rate * (BURST_CLASSES + 1) / CLASSES


def key_of(event: int) -> str:
    """The key of an event, by its number."""
    group, part = divmod(event, CLASSES)
    if part == 0:
        return f"once/{event}"
    if part <= BURST_CLASSES:
        n = group * BURST_CLASSES + part - 1
        return f"burst/{n // (BURST_EVENTS * BURSTS)}/{n % BURSTS}"
    return f"hot/{(group * 13 + part) % HOT_ROWS}"


def deliveries(tick: int, shape: Shape) -> Iterator[int]:
    """The numbers of the events that arrive at a tick."""
    yield from range(tick * shape.per_tick, (tick + 1) * shape.per_tick)
    if tick >= AGAIN_TICKS:
        before = tick - AGAIN_TICKS
        for event in range(before * shape.per_tick, (before + 1) * shape.per_tick):
            if event % CLASSES in AGAIN_CLASSES:
                yield event


def recount(shape: Shape) -> Counter[str]:
    """The number of events of each key."""
    return Counter(map(key_of, range(shape.events)))


class Job(NamedTuple):
    """What runs where.

    Attributes:
        flags: of the pipeline, for its engine.
        shape: of the events.
        host: of the emulator.
        place: project, instance and name of the table.
        first: the tick to start with.
        start_s: when it is due, in seconds since the epoch; not on Flink.
    """

    flags: Sequence[str]
    shape: Shape
    host: str
    place: tuple[str, str, str]
    first: int
    start_s: float


def run(job: Job) -> None:
    """Run the pipeline to its end, in a process of its own.

    Raises:
        MurmurError: the pipeline has failed.
    """
    with needing_extra():
        from murmur_beam.quiet_beam import beam  # isort: split

        from apache_beam.options.pipeline_options import PipelineOptions

        from murmur_beam import MergeRecords
        from murmur_beam.runs.beam_runs import quiet
        from murmur_beam.state.bigtable import BigtableSpec
        from tests.support import ticks
    quiet()
    os.environ["BIGTABLE_EMULATOR_HOST"] = job.host
    shape = job.shape
    numbers = range(job.first, shape.ticks)
    pipeline = beam.Pipeline(options=PipelineOptions([*job.flags, "--streaming"]))
    if "--runner=FlinkRunner" in job.flags:
        arriving = ticks.on_flink(pipeline, numbers, TICK_S)
    else:
        arriving = ticks.by_clock(pipeline, numbers, TICK_S, job.start_s)
    fold = {}
    if shape.every_s:
        every, age = timedelta(seconds=shape.every_s), timedelta(seconds=shape.age_s)
        fold = {"fold": every, "fold_share": shape.share, "fold_age": age}
    store = BigtableSpec(*job.place, patience_s=60)
    merge = MergeRecords("soak", key="k", event_id="id", monoid="count", store=store, **fold)
    _ = arriving | "Events" >> beam.FlatMap(_records, shape) | merge
    try:
        pipeline.run().wait_until_finish()
    except Exception as err:  # Beam's own may not be picklable
        raise MurmurError(f"the pipeline has failed: {type(err).__name__}: {err}") from None


def _records(tick: int, shape: Shape) -> list[dict[str, str]]:
    return [{"id": f"event-{event}", "k": key_of(event)} for event in deliveries(tick, shape)]
