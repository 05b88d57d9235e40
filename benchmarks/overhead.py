"""The cost of the transform alone: `MergeRecords` into the memory store, beside a ``ParDo`` that only copies.

    python -m benchmarks.overhead [--events 500000] [--rounds 5] [--json]

Both run on Beam's in-process runner, which uses one core, in turns and several rounds, so that a busy machine slows
both. Figures are medians of the rounds; the counts are checked in each round.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from benchmarks.workloads import zipf_events, zipf_pages
from murmur_beam.gc_tuning import declare_worker_process, freeze_startup_objects
from murmur_beam.monoids import Sum
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER
from murmur_beam.state.memory import MemorySpec
from murmur_beam.transforms import MergeRecords


class Emit(beam.DoFn):
    """Emits the events of a workload."""

    def setup(self) -> None:
        """Tune the garbage collector as a pipeline's process does."""
        freeze_startup_objects()

    def process(self, workload: tuple[int, float]) -> Iterator[dict[str, object]]:
        yield from zipf_events(*workload)


class Copy(beam.DoFn):
    """Emits each element unchanged."""

    def process(self, element: dict[str, object]) -> Iterator[dict[str, object]]:
        yield element


def run(workload: tuple[int, float], *transforms: beam.PTransform) -> tuple[float, float]:
    """Wall and CPU seconds of one pipeline: the workload's events, through the transforms."""
    wall, cpu = time.perf_counter(), time.process_time()
    with beam.Pipeline(runner=IN_PROCESS_RUNNER) as p:
        elements: Any = p | beam.Create([workload]) | beam.ParDo(Emit())
        for transform in transforms:
            elements = elements | transform
    return time.perf_counter() - wall, time.process_time() - cpu


def merge(store: MemorySpec) -> MergeRecords:
    """The transform as a user would write it."""
    return MergeRecords("bench", key="page", value="n", event_id="id", store=store)


def check(store: MemorySpec, workload: tuple[int, float]) -> None:
    """Compare every count with the events.

    Raises:
        AssertionError: a count is wrong.
    """
    expected = Counter(zipf_pages(*workload))
    counted = {key.entity: value for key, value in store.open(Sum()).scan()}
    assert counted == expected, "the counts are wrong, so the figures mean nothing"


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=500_000, help="events in each run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    declare_worker_process()

    figures = []
    for exponent in (1.1, 1.3):
        workload = (args.events, exponent)
        zipf_pages(*workload)
        seconds: dict[str, list[tuple[float, float]]] = {"emit": [], "copy": [], "merge": [], "again": []}
        for round_number in range(args.rounds):
            print(f"\rZipf({exponent}): round {round_number + 1} of {args.rounds}", end="", file=sys.stderr)
            store = MemorySpec(f"overhead-{os.getpid()}")
            seconds["emit"].append(run(workload))
            seconds["copy"].append(run(workload, beam.ParDo(Copy())))
            seconds["merge"].append(run(workload, merge(store)))
            check(store, workload)
            seconds["again"].append(run(workload, merge(store)))
            check(store, workload)
            store.drop()
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
        for name, runs in seconds.items():
            wall = statistics.median(w for w, _ in runs)
            figures.append(
                {
                    "workload": f"Zipf({exponent})",
                    "pipeline": name,
                    "events_per_s": round(args.events / wall),
                    "us_per_event": round(wall / args.events * 1e6, 2),
                    "cpu_us_per_event": round(statistics.median(c for _, c in runs) / args.events * 1e6, 2),
                    "spread": round(max(w for w, _ in runs) / min(w for w, _ in runs), 2),
                    "to_copy": round(statistics.median(w for w, _ in seconds["copy"]) / wall, 2),
                }
            )
    if args.json:
        print(json.dumps({"events": args.events, "rounds": args.rounds, "figures": figures}, indent=2))
        return 0
    print(
        f"{'workload':<10} {'pipeline':<8} {'events/s':>10} {'us/event':>9} {'CPU us':>7} {'max/min':>8} {'to copy':>8}"
    )
    for f in figures:
        print(
            f"{f['workload']:<10} {f['pipeline']:<8} {f['events_per_s']:>10,} {f['us_per_event']:>9.2f}"
            f" {f['cpu_us_per_event']:>7.2f} {f['spread']:>8.2f} {f['to_copy']:>8.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
