"""Speed of appends beside commits, plain cells and bare requests; of reading and of folding.

    python -m benchmarks.append_speed [--events 300000] [--rounds 5] [--only LINE ...] [--json]

On the Bigtable emulator. Contenders run in turns, several rounds, each in a new process. Ratios are taken within a
round, and the median of the rounds is compared with its bar. Slow contenders write a part of the events. "By CPU" is
the same ratio by the time of the client's processor alone. All that was written is read back, with what is not folded
yet, and compared with the events; a wrong count is an error. The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks import contention
from benchmarks.contention import BUNDLE, KEYS, SHARED_ROWS, SHARED_WRITERS, THREADS, Contended
from benchmarks.harness import (
    Bar,
    Usage,
    bars_table,
    in_own_process,
    machine,
    missed,
    needing_extra,
    on_bigtable,
    print_table,
    require_at_least_one,
    say,
    tidy,
    versions,
)
from benchmarks.workloads import FLUSH
from murmur_beam.errors import ConfigurationError
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors

GO = 1.8
"""Assumed speed of a client in Go, as a multiple of the bare stubs of Python."""
PARTS = {"write": 5, "limit": 5, "commit-own": 5, "commit-zipf1.1": 2, "append-bundles": 3}
"""Contenders that write a part of the events, by the beginning of their names: the divisor of the number of events."""
THREADS_PARTS = {"append": 5, "commit": 25}
SHARED_PARTS = {"append": 1, "commit": 10}
CELLS = 2_000, 32, 1
"""Events of a pending cell in the rows that are folded."""
GETS = 200


class Cost(NamedTuple):
    """Cost of one unit: an event, a cell, a row or a read.

    Attributes:
        seconds, cpu_s: by the wall clock, and by the client's processor.
        reads: number of requests that read.
    """

    seconds: float
    cpu_s: float
    reads: int = 0


class Line(NamedTuple):
    """A ratio of two runs, or the figure of one.

    Attributes:
        name: for ``--only``; several lines may share it.
        text: for people.
        one, other: runs; without the other the figure is the rate of the one, in thousands a second.
        bar: None for a figure that is only shown.
        times: the factor by which the rate of the other run is multiplied.
        slower: the ratio is of times, and the bar a maximum; else it is of rates, and the bar a minimum.
        by_cpu: whether the ratio by CPU is meaningful.
        reads: the figure is the number of requests that read, and the bar a maximum.
    """

    name: str
    text: str
    one: str
    other: str | None
    bar: float | None = None
    times: float = 1.0
    slower: bool = False
    by_cpu: bool = True
    reads: bool = False


def _bundles(size: int, kind: str, bar: float | None) -> Line:
    text = f"bundles of {size:,} / one large bundle, one thread, {_KINDS[kind]}"
    return Line(f"bundles-{size}-{kind}", text, f"append-bundles-{size}-{kind}", f"append-bundles-whole-{kind}", bar)


_KINDS = {"own": "own rows", "zipf1.1": "Zipf(1.1)", "zipf1.3": "Zipf(1.3)"}
_WRITES = {"own": 4.5, "zipf1.1": 6.5, "zipf1.3": 7.0}
_THREADS = {"own": "own rows", "shared": f"{KEYS} shared rows"}
_READS = {"pending-1": "1 cell", "pending-many": "20 one-event cells", "folded-many": "20 one-event cells, folded"}
_READS_BARS = {"pending-1": 1.2, "pending-many": 3.0, "folded-many": 1.2}
_WAYS = "get_many", "scan"

LINES = [
    *[
        Line(kind, f"{who}{text} / WriteToBigTable", f"{run}-{kind}", "write", bar if run == "append" else None)
        for kind, text in _KINDS.items()
        for bar in [_WRITES[kind]]
        for run, who in (("append", ""), ("commit", "commits, "))
    ],
    Line("memory", "own rows / the memory store in the same pipeline", "append-own", "memory-own", 0.5),
    Line("stubs", f"own rows / bare conditional requests x {GO}", "append-own", "limit", 3.5, GO, by_cpu=False),
    _bundles(10, "own", 0.3),
    _bundles(10, "zipf1.1", 0.2),
    _bundles(100, "own", 0.9),
    _bundles(100, "zipf1.1", 0.9),
    _bundles(5_000, "own", None),
    _bundles(5_000, "zipf1.1", None),
    *[
        Line(
            f"threads-{rows}",
            f"{THREADS} threads, bundles of {BUNDLE}, {text}: append / commits",
            f"threads-append-{rows}",
            f"threads-commit-{rows}",
            4.0,
        )
        for rows, text in _THREADS.items()
    ],
    Line(
        "writers",
        f"{SHARED_WRITERS} writers of {SHARED_ROWS} rows: append / commits",
        "shared-append",
        "shared-commit",
        25.0,
    ),
    Line(
        "writers",
        "  requests that read, of those that append",
        "shared-append",
        None,
        0.0,
        slower=True,
        by_cpu=False,
        reads=True,
    ),
    *[
        Line(
            f"{read}-{way}",
            f"{way}, rows of {text} / committed",
            f"{way}-{read}",
            f"{way}-committed-{read.rpartition('-')[2]}",
            _READS_BARS[read],
            slower=True,
        )
        for read, text in _READS.items()
        for way in _WAYS
    ],
    *[
        Line(
            f"fold-{cell}",
            f"folding a row, cells of {cell:,}: {'cells' if cell == 1 else 'events'}",
            f"fold-{cell}",
            None,
            10.0 if cell == 1 else 500.0,
        )
        for cell in CELLS
    ],
    Line("known", "fresh get, markers known / committed, one event, p50", "known", "known-other", 4.0, slower=True),
]


class Sizes(NamedTuple):
    """How much is measured.

    Attributes:
        events: of a pipeline.
        rows: to read at once.
        pending: events of the row that is folded.
        markers: of the row that a reader remembers.
        gets: of that row in each round.
        rounds: of all.
    """

    events: int
    rows: int
    pending: int
    markers: int
    gets: int
    rounds: int


Costs = dict[str, "list[Cost]"]
"""By run: one cost for each round."""


def pipelines(sizes: Sizes, wanted: Collection[str]) -> Costs:
    """Runs of `benchmarks.contenders`, each on a new emulator."""
    with needing_extra():
        from benchmarks import contenders
        from murmur_beam.testing import emulators

    def run(name: str) -> Cost:
        part = next((part for begin, part in PARTS.items() if name.startswith(begin)), 1)
        with emulators.bigtable() as host:
            job = contenders.Job(host, max(1, sizes.events // part), FLUSH)
            (made,) = in_own_process(contenders.measure, name, job)
        return Cost(made.seconds / made.events, made.cpu_s / made.events)

    known = {**contenders.CONTENDERS, **contenders.APPENDING}
    return _in_turns(sizes.rounds, {name: lambda name=name: run(name) for name in known if name in wanted})


def contended(sizes: Sizes, wanted: Collection[str]) -> Costs:
    """Runs of `benchmarks.contention`, by appends and by commits."""

    def threads(write: str, rows: str) -> Cost:
        events = max(THREADS, sizes.events // THREADS_PARTS[write])
        keys = KEYS if rows == "shared" else None
        table = contention.new_table(write)
        return _cost_of(in_own_process(contention.merge_bundles, table, events, THREADS, BUNDLE, keys))

    def shared(write: str) -> Cost:
        return _cost_of(contention.shared_rows(write, sizes.events // SHARED_PARTS[write]))

    runs: dict[str, Callable[[], Cost]] = {}
    for write in THREADS_PARTS:
        for rows in _THREADS:
            runs[f"threads-{write}-{rows}"] = lambda write=write, rows=rows: threads(write, rows)
        runs[f"shared-{write}"] = lambda write=write: shared(write)
    return _in_turns(sizes.rounds, {name: run for name, run in runs.items() if name in wanted}, _on_emulator)


def read(sizes: Sizes, wanted: Collection[str]) -> Costs:
    """Reads of many rows."""
    from benchmarks import unfolded

    names = {name for name in wanted if name.startswith(_WAYS)}
    if not names:
        return {}
    with on_bigtable():
        took = in_own_process(unfolded.read_rows, sizes.rows, sizes.rounds)
    return {name: [_each(usage, sizes.rows) for usage in took[name]] for name in names}


def folded(sizes: Sizes, wanted: Collection[str]) -> Costs:
    """Folds of one row."""
    from benchmarks import unfolded

    def fold(cell: int) -> Cost:
        return _each(in_own_process(unfolded.fold_row, sizes.pending, cell), sizes.pending)

    runs = {f"fold-{cell}": lambda cell=cell: fold(cell) for cell in CELLS}
    return _in_turns(sizes.rounds, {name: run for name, run in runs.items() if name in wanted}, _on_emulator)


def known(sizes: Sizes, wanted: Collection[str]) -> Costs:
    """Reads of a row with many markers."""
    from benchmarks import unfolded

    if "known" not in wanted:
        return {}
    with on_bigtable():
        made = in_own_process(unfolded.get_known, sizes.markers, sizes.gets, sizes.rounds)
    return {
        "known": [_each(gets.large, 1) for gets in made],
        "known-other": [_each(gets.small, 1) for gets in made],
    }


GROUPS: Sequence[Callable[[Sizes, Collection[str]], Costs]] = (pipelines, contended, read, folded, known)
"""Each measures those of the wanted runs that it knows."""


def _in_turns(
    rounds: int, runs: dict[str, Callable[[], Cost]], around: Callable[[Callable[[], Cost]], Cost] = lambda run: run()
) -> Costs:
    costs: Costs = {}
    for number in range(rounds):
        for name, run in runs.items():
            say(f"round {number + 1} of {rounds}: {name}")
            costs.setdefault(name, []).append(around(run))
    return costs


def _on_emulator(run: Callable[[], Cost]) -> Cost:
    with on_bigtable():
        return run()


def _each(usage: Usage, n: int) -> Cost:
    return Cost(usage.seconds / n, usage.cpu_s / n)


def _cost_of(ran: Contended) -> Cost:
    return Cost(1 / ran.rate, ran.cpu_s, ran.reads)


def bars(lines: Sequence[Line], costs: Costs) -> list[Bar]:
    """The bar of each line."""
    return [Bar(line.text, *_values(line, costs)) for line in lines]


def _values(line: Line, costs: Costs) -> Iterator[Any]:
    """The arguments of `Bar` after its text."""
    ones = costs[line.one]
    if line.reads:
        yield from ([one.reads for one in ones], line.bar, False)
    elif line.other is None:
        yield from ([1e-3 / one.seconds for one in ones], line.bar, True, " k/s", [1e-3 / one.cpu_s for one in ones])
    else:
        pairs = list(zip(ones, costs[line.other], strict=True))
        wall = [other.seconds / one.seconds / line.times for one, other in pairs]
        cpu = [other.cpu_s / one.cpu_s / line.times for one, other in pairs] if line.by_cpu else []
        if line.slower:
            wall, cpu = [1 / ratio for ratio in wall], [1 / ratio for ratio in cpu]
        yield from (wall, line.bar, not line.slower, "", cpu)


@one_line_errors("append_speed")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a bar is missed."""
    names = list(dict.fromkeys(line.name for line in LINES))
    parser = OneLineErrorParser(prog="python -m benchmarks.append_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=300_000, metavar="N", help="of a run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of all runs (%(default)s)")
    parser.add_argument("--rows", type=int, default=10_000, metavar="N", help="to read at once (%(default)s)")
    parser.add_argument("--pending", type=int, default=100_000, metavar="N", help="events to fold (%(default)s)")
    parser.add_argument(
        "--markers", type=int, default=1_000_000, metavar="N", help="of the row that a reader knows (%(default)s)"
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="LINE", help=f"of {', '.join(names)}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    require_at_least_one(args, "rounds", "rows", "pending", "markers")
    if args.events < (least := SHARED_WRITERS * max(SHARED_PARTS.values())):
        raise ConfigurationError("--events", f"must be at least {least}, got {args.events}")

    lines = [line for line in LINES if args.only is None or line.name in args.only]
    wanted = {run for line in lines for run in (line.one, line.other) if run is not None}
    sizes = Sizes(args.events, args.rows, args.pending, args.markers, GETS, args.rounds)
    what = f"{machine()}; {versions()}"
    costs: Costs = {}
    with tidy():
        for group in GROUPS:
            costs |= group(sizes, wanted)
    say("")
    made = bars(lines, costs)
    if args.json:
        runs = {name: [{"us": one.seconds * 1e6, "cpu_us": one.cpu_s * 1e6} for one in costs[name]] for name in costs}
        shown = [{"line": line.name, **bar.to_dict()} for line, bar in zip(lines, made, strict=True)]
        print(json.dumps({**sizes._asdict(), "machine": what, "runs": runs, "bars": shown}, indent=2))
        return missed(made)
    print(f"{args.events:,} events a run, {args.rows:,} rows, {args.pending:,} pending, {args.markers:,} markers;")
    print(f"medians of {args.rounds} rounds; {what}\n")
    print_table(bars_table(made))
    return missed(made)


if __name__ == "__main__":
    sys.exit(main())
