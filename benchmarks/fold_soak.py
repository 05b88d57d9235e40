"""A streaming pipeline with the fold stage for a long time, while workers are killed: what is pending stays bounded.

    python -m benchmarks.fold_soak --engine flink|prism [--minutes 30] [--rate 1000] [--kill_every 600] [--no_fold]

On the Bigtable emulator. Events come at this rate: 60 % to the same 16 rows all the time, 35 % to ever-new rows that
get 128 events within seconds, 5 % to a new row each; one event of ten is delivered twice. A line each half minute has
`events` with a marker, `pending` cells and events (of all rows, and of the hot ones), the largest hot row by its bound,
the bytes that folders have `read` for each event so far, the time of a fresh `get` of a hot row, the memory of workers
and engine, and the size of Flink's last checkpoint.

The bounds follow from when rows are folded: see `hot_bound` and `burst_bound`. At the end every number must equal a
recount. The exit code is 0 if all this holds.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import (
    Bar,
    bars_table,
    machine,
    missed,
    needing_extra,
    on_bigtable,
    print_table,
    versions,
)
from benchmarks.soak_pipeline import BURST_EVENTS, BURSTS, HOT_ROWS, TICK_S, Job, Shape, recount
from murmur_beam.errors import ConfigurationError
from murmur_beam.fold_policy import EVERY
from murmur_beam.model import Key
from murmur_beam.monoids import Count
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors
from murmur_beam.state.base import Schema

READ_BYTES = 40
"""Bytes that folders may read for each event."""
SHARE = 0.1
STALLED_S = 600.0
"""The last events must arrive within this time after they were due; a source does not catch up after each kill."""
_PAUSE_S = 0.5
_BUNDLE_S = 2.0
_COLUMNS = (
    ("at", 6),
    ("events", 9),
    ("rows", 7),
    ("pending cells", 13),
    ("events", 9),
    ("MB", 5),
    ("hot cells", 9),
    ("events", 9),
    ("of bound", 8),
    ("markers MB", 10),
    ("table MB", 8),
    ("read B", 7),
    ("p50 ms", 6),
    ("p99 ms", 6),
    ("worker MB", 9),
    ("engine MB", 9),
    ("state kB", 8),
    ("kills", 5),
)
"""Titles and widths."""


def print_line(cells: Sequence[str]) -> None:
    """Print a line of the table."""
    print("  ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True)), flush=True)


class Seen(NamedTuple):
    """What one look found.

    Attributes:
        hot: the largest pending part of a hot row, divided by its bound.
        burst: that of all burst rows, divided by theirs.
        hot_events: pending events of a hot row, on average.
        read: bytes that folders have read for each event so far.
        p50_ms, p99_ms: of fresh reads since the last look.
        worker_mb: memory of the workers.
    """

    hot: float
    burst: float
    hot_events: float
    read: float
    p50_ms: float
    p99_ms: float
    worker_mb: float


def hot_bound(events: int, shape: Shape) -> float:
    """Pending events of a hot row, at most, if this many have markers.

    A row is folded once its pending events are a share of those folded before, or old, as far as one event of `EVERY`
    shows; a factor of 2 is for chance. Whether it is time is decided at intervals, and bundles take time.
    """
    waits = min(shape.share * events, shape.hot_rate * shape.age_s)
    return 2 * (waits + EVERY) + shape.hot_rate * (shape.every_s + shape.late_s)


def burst_bound(rows: int, shape: Shape) -> float:
    """Pending events of burst rows, at most.

    A row is folded after it was named twice, and then whenever it is named: on average it keeps fewer than twice
    `EVERY` events. Those of the last interval, and of bursts that go on, are not folded yet.
    """
    burst_s = BURST_EVENTS * BURSTS / shape.burst_rate
    return 2 * EVERY * rows + shape.burst_rate * (shape.every_s + shape.late_s + burst_s)


class Soak:
    """Looks at a running job.

    Args:
        spec: of the table.
        shape: of the events.
        engine: that runs the job.
        read: gives the bytes that folders have read.
        gets: the fresh reads.
    """

    def __init__(self, spec: Any, shape: Shape, engine: Any, read: Callable[[], int], gets: Any) -> None:
        self._spec = spec
        self._shape = shape
        self._engine = engine
        self._read = read
        self._gets = gets
        self._began_s = time.monotonic()
        self.seen: list[Seen] = []

    def go(self, look_s: float, kill_s: float, expected: Mapping[str, int]) -> int:
        """Look now and then, and kill, until all events have arrived and are old; the number of keys that are wrong."""
        print_line([title for title, _ in _COLUMNS])
        end_s = self._shape.ticks * TICK_S
        self._until(lambda: self._seconds() > end_s, look_s, kill_s)
        self._until(lambda: self._arrived(expected) or self._seconds() > end_s + STALLED_S, look_s)
        if self._shape.every_s:
            old_s = self._seconds() + self._shape.age_s + 2 * self._shape.every_s + _BUNDLE_S
            self._until(lambda: self._seconds() > old_s, look_s)
        self.look()
        with closing(self._spec.open(Count())) as store:
            found = {key.entity: value for key, value in store.scan(fresh=True)}
        return sum(found.get(key) != expected.get(key) for key in found.keys() | expected.keys())

    def _seconds(self) -> float:
        return time.monotonic() - self._began_s

    def _until(self, done: Callable[[], bool], look_s: float, kill_s: float = 0.0) -> None:
        look_at_s, kill_at_s = self._seconds() + look_s, self._seconds() + kill_s
        while not done():
            time.sleep(_PAUSE_S)
            self._engine.check()
            if kill_s and self._seconds() > kill_at_s and self._engine.kill_one():
                kill_at_s += kill_s
            if self._seconds() > look_at_s:
                look_at_s += look_s
                self.look()

    def _arrived(self, expected: Mapping[str, int]) -> bool:
        """Whether all events of hot rows have arrived."""
        keys = [key for key in expected if key.startswith("hot/")]
        with closing(self._spec.open(Count())) as store:
            return store.get_many(list(map(Key, keys))) == [expected[key] for key in keys]

    def look(self) -> None:
        """Look once, and print a line."""
        from benchmarks.soak_looks import Rows, look

        shape = self._shape
        groups, hot_rows = look(self._spec)
        total, hot, burst = Rows(), groups["hot"], groups["burst"]
        for rows in groups.values():
            total.add(rows)
        n_events = max(1, total.marked + total.events)  # those that are pending twice count twice
        worker_mb, engine_mb = self._engine.memory_mb()
        seen = Seen(
            max((row.events / hot_bound(row.marked, shape) for row in hot_rows), default=0.0),
            burst.events / burst_bound(burst.rows, shape),
            hot.events / HOT_ROWS,
            self._read() / n_events,
            *self._gets.percentiles_ms(),
            worker_mb,
        )
        self.seen.append(seen)
        minutes, seconds = divmod(round(time.monotonic() - self._began_s), 60)
        cells = [f"{minutes}:{seconds:02}", f"{total.marked:,}", f"{total.rows:,}", f"{total.cells:,}"]
        cells += [f"{total.events:,}", f"{total.pending / 1e6:.1f}", f"{hot.cells:,}", f"{hot.events:,}"]
        cells += [f"{seen.hot:.2f}", f"{total.markers / 1e6:.1f}", f"{total.size / 1e6:.1f}", f"{seen.read:.1f}"]
        cells += [f"{seen.p50_ms:.1f}", f"{seen.p99_ms:.1f}", f"{worker_mb:,.0f}", f"{engine_mb:,.0f}"]
        cells += [f"{self._engine.state_kb():,.0f}", str(self._engine.kills)]
        print_line(cells)


@contextmanager
def _counting_proxy(upstream: str) -> Iterator[tuple[str, Callable[[], int]]]:
    """Run the proxy of the workers in its own process; its address, and a function that returns the bytes."""
    from benchmarks.soak_looks import serve_proxy

    context = multiprocessing.get_context("forkserver")
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve_proxy, args=(theirs, upstream), daemon=True)
    process.start()
    theirs.close()

    def read() -> int:
        pipe.send(None)
        n_bytes: int = pipe.recv()
        return n_bytes

    try:
        yield pipe.recv(), read
    finally:
        process.kill()
        process.join()


def soak(name: str, shape: Shape, look_s: float, kill_s: float, folder: Path) -> tuple[list[Seen], int]:
    """Run the soak on the emulator that `BIGTABLE_EMULATOR_HOST` names; what was seen, and how many keys are wrong."""
    with needing_extra():
        from benchmarks.soak_engines import running
        from benchmarks.soak_looks import gets
        from murmur_beam.state.bigtable import BigtableSpec, tables
    spec = BigtableSpec("benchmark", "instance", f"soak-{uuid.uuid4().hex[:8]}", timeout_s=60, patience_s=120)
    tables.create(spec, tables.table_meta(Schema(Count().name, None)), write="append")
    with _counting_proxy(os.environ["BIGTABLE_EMULATOR_HOST"]) as (host, read), gets(spec) as reads:
        job = Job((), shape, host, spec.place[1:], 0, time.time())
        with running(name, job, folder) as engine:
            soaking = Soak(spec, shape, engine, read, reads)
            wrong = soaking.go(look_s, kill_s, recount(shape))
    return soaking.seen, wrong


def bars(seen: Sequence[Seen], wrong: int) -> list[Bar]:
    """The figures, with their bars: of what was not picked since the last fold, `EVERY` events are expected."""
    quarter = math.ceil(len(seen) / 4)
    return [
        Bar("numbers that differ from the recount", [wrong], 0, at_least=False),
        Bar("pending of a hot row / its bound, the largest", [max(each.hot for each in seen)], 1, at_least=False),
        Bar("pending of burst rows / their bound, the largest", [max(each.burst for each in seen)], 1, at_least=False),
        Bar("pending events of a hot row at the end", [seen[-1].hot_events], 2 * EVERY, at_least=False),
        Bar("bytes that folders have read, an event", [seen[-1].read], READ_BYTES, at_least=False, unit=" B"),
        Bar("p50 of a fresh get, last quarter", [each.p50_ms for each in seen[-quarter:]], None, unit=" ms"),
        Bar("p50 of a fresh get, first quarter", [each.p50_ms for each in seen[:quarter]], None, unit=" ms"),
        Bar("memory of the workers, last quarter", [each.worker_mb for each in seen[-quarter:]], None, unit=" MB"),
        Bar("memory of the workers, first quarter", [each.worker_mb for each in seen[:quarter]], None, unit=" MB"),
    ]


@one_line_errors("fold_soak")
def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; 1 if something does not hold."""
    from benchmarks.soak_engines import ENGINES

    parser = OneLineErrorParser(prog="python -m benchmarks.fold_soak", description=__doc__.split("\n")[0])
    parser.add_argument("--engine", choices=ENGINES, required=True, help="that runs the pipeline")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="of events (%(default)s)")
    parser.add_argument("--rate", type=int, default=1_000, metavar="N", help="events a second (%(default)s)")
    parser.add_argument("--interval", type=float, default=10.0, metavar="S", help="fold= in seconds (%(default)s)")
    parser.add_argument("--age", type=float, default=120.0, metavar="S", help="fold_age= in seconds (%(default)s)")
    parser.add_argument("--late", type=float, default=20.0, metavar="S", help="see the bounds (%(default)s)")
    parser.add_argument("--kill_every", type=float, default=600.0, metavar="S", help="0: no kills (%(default)s)")
    parser.add_argument("--look_every", type=float, default=30.0, metavar="S", help="a line (%(default)s)")
    parser.add_argument("--no_fold", action="store_true", help="without the fold stage: the bounds must be missed")
    args = parser.parse_args(argv)
    if args.rate <= 0 or args.rate % 40:
        raise ConfigurationError("--rate", f"must be a multiple of 40, got {args.rate}")
    ticks = round(args.minutes * 60 / TICK_S)
    shape = Shape(args.rate, ticks, 0.0 if args.no_fold else args.interval, SHARE, args.age, args.late)
    print(f"{args.engine}; {machine()}; {versions()}\n")
    with on_bigtable(), tempfile.TemporaryDirectory(prefix="murmur-soak-") as folder:
        seen, wrong = soak(args.engine, shape, args.look_every, args.kill_every, Path(folder))
    found = bars(seen, wrong)
    print()
    print_table(bars_table(found))
    return missed(found)


if __name__ == "__main__":
    sys.exit(main())
