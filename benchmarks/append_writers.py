"""Many processes that append to the same rows: their speed together, with folds beside them, and what readers see.

    python -m benchmarks.append_writers [--rounds 3] [--only LINE ...] [--small] [--json]

On the Bigtable emulator, which shares the machine's processors with all writers; each run has a new emulator. Writers
begin together, write without a pause, and count while all of them write. Ratios are taken within a round, and the
median of the rounds is compared with its bar. All that was written is read back, with what is not folded yet, and
compared; a wrong count is an error. The exit code is 1 if a bar is missed.

The last lines are of a row with many markers, into which writers append at a steady rate, while a folder folds it and a
reader that knows it asks what it is worth. The age of an answer without what is not folded is the time for which the
row had been worth more. Answers are compared with what was sent and folded at their time. The emulator may leave out
cells of a row of which it deletes others at that moment: then an answer lacks events that are not folded yet. Such
answers are shown as torn; the service reads rows as a whole.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from benchmarks.harness import (
    Bar,
    machine,
    missed,
    needing_extra,
    on_bigtable,
    percentile,
    print_figures,
    require_at_least_one,
    say,
    tidy,
    versions,
)
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors

with needing_extra():
    from benchmarks.append_crowd import ONE, ROWS, ZIPF, Crowd, LargeRow, Work, read_large_row, write_rows
    from benchmarks.contention import SHARED_FLUSH, SHARED_ROWS

FLUSHES = {ROWS: SHARED_FLUSH, ONE: 1, ZIPF: SHARED_FLUSH}
TITLES = {ROWS: f"{SHARED_ROWS} rows", ONE: "one row, an event a flush", ZIPF: "Zipf(1.1)"}
COMMITS = "commits, "
FOLDS, LARGE = "folds", "large"
LINES = [*TITLES, "commits", FOLDS, LARGE]
BARS = {(ROWS, 16): 0.9, (ROWS, 32): 0.7, (ONE, 8): 1.0, (ONE, 16): 1.0, (ONE, 32): 1.0}
"""Of the rate of this number of writers, divided by that of one."""
SLOWEST_S, FOLDS_BAR, P50_MS, P99_MS, AGE_S = 1.0, 0.8, 5.0, 30.0, 3.0
SLOWEST_FROM = 16
"""Writers from which the slowest flush has a bar."""


class Sizes(NamedTuple):
    """How much is measured.

    Attributes:
        seconds: of a run.
        writers: numbers of processes, by line; the first is what the others are compared with.
        folding: processes that write with a folder beside them.
        folding_s, skip_s: duration of such a run, and the time before the rate is taken.
        fold_every_s: time between folds.
        markers: of the large row.
        appending: processes that append to it.
        rate: events a second of these together.
        flush: events of a flush of these.
        reading_s: duration of that run.
        fold_large_every_s: time between its folds.
    """

    seconds: float
    writers: Mapping[str, Sequence[int]]
    folding: int
    folding_s: float
    skip_s: float
    fold_every_s: float
    markers: int
    appending: int
    rate: int
    flush: int
    reading_s: float
    fold_large_every_s: float


_SOME = {
    ROWS: (1, 4, 8, 16, 32),
    ONE: (1, 4, 8, 16, 32),
    ZIPF: (1, 4, 16),
    COMMITS + ROWS: (1, 16),
    COMMITS + ONE: (1, 16),
}
FULL = Sizes(1.5, _SOME, 16, 18.0, 8.0, 10.0, 1_000_000, 16, 1_000, 10, 15.0, 1.0)
SMALL = Sizes(
    0.1, dict.fromkeys((ROWS, ONE, ZIPF, COMMITS + ONE), (1, 2)), 2, 0.4, 0.1, 0.15, 2_000, 2, 400, 10, 0.6, 0.2
)


class Measured(NamedTuple):
    """All runs: a list of rounds by name, and the rounds of the large row."""

    crowds: dict[str, list[Crowd]]
    large: list[LargeRow]


def _title(line: str, writers: int) -> str:
    before = COMMITS if line.startswith(COMMITS) else ""
    return f"{before}{TITLES[line.removeprefix(COMMITS)]}: {writers} process{'es' * (writers > 1)}"


def _folding(sizes: Sizes, folds: bool) -> str:
    beside = f"folds each {sizes.fold_every_s:g} s" if folds else "no folds"
    return f"{TITLES[ROWS]}, {sizes.folding} processes, {sizes.folding_s:g} s, {beside}"


def runs(sizes: Sizes, lines: Sequence[str]) -> dict[str, Callable[[], Crowd]]:
    """The runs of a round, without the large row."""
    made: dict[str, Callable[[], Crowd]] = {}
    for line, numbers in sizes.writers.items():
        keys = line.removeprefix(COMMITS)
        way = "append" if line == keys else "commit"
        work = Work(keys, FLUSHES[keys], sizes.seconds)
        if (line if way == "append" else "commits") in lines:
            for n in numbers:
                made[_title(line, n)] = lambda n=n, work=work, way=way: write_rows(n, work, way=way)
    if FOLDS in lines:
        work = Work(ROWS, SHARED_FLUSH, sizes.folding_s, skip_s=sizes.skip_s)
        for folds in (False, True):
            every_s = sizes.fold_every_s if folds else 0.0
            made[_folding(sizes, folds)] = lambda work=work, every_s=every_s: write_rows(
                sizes.folding, work, fold_every_s=every_s
            )
    return made


def measure(sizes: Sizes, rounds: int, lines: Sequence[str]) -> Measured:
    """Run everything in turns, each on a new emulator."""
    crowds: dict[str, list[Crowd]] = {}
    large: list[LargeRow] = []
    every_s = sizes.appending * sizes.flush / sizes.rate
    with tidy():
        for number in range(rounds):
            for name, run in runs(sizes, lines).items():
                say(f"round {number + 1} of {rounds}: {name}")
                with on_bigtable():
                    crowds.setdefault(name, []).append(run())
            if LARGE in lines:
                say(f"round {number + 1} of {rounds}: a row of {sizes.markers:,} markers")
                work = Work(ONE, sizes.flush, sizes.reading_s, every_s)
                with on_bigtable():
                    large.append(read_large_row(sizes.markers, sizes.appending, work, sizes.fold_large_every_s))
    say("")
    return Measured(crowds, large)


def bars(sizes: Sizes, ran: Measured) -> list[Bar]:
    """The figures with their bars."""
    made: list[Bar] = []
    for line, (one, *others) in sizes.writers.items():
        for n in others:
            if _title(line, n) not in ran.crowds:
                continue
            many = ran.crowds[_title(line, n)]
            made.append(
                Bar(f"{_title(line, n)} / {one}", _ratios(many, ran.crowds[_title(line, one)]), BARS.get((line, n)))
            )
            if line == ROWS and n >= SLOWEST_FROM:
                made.append(Bar("  slowest flush", [each.slowest_s for each in many], SLOWEST_S, False, " s"))
    if (with_folds := _folding(sizes, True)) in ran.crowds:
        ratios = _ratios(ran.crowds[with_folds], ran.crowds[_folding(sizes, False)])
        made.append(Bar(f"{with_folds} / no folds", ratios, FOLDS_BAR))
    return [*made, *_large_bars(sizes, ran.large)]


def _ratios(some: Sequence[Crowd], others: Sequence[Crowd]) -> list[float]:
    return [one.rate / other.rate for one, other in zip(some, others, strict=True)]


def _large_bars(sizes: Sizes, rounds: Sequence[LargeRow]) -> Iterator[Bar]:
    if not rounds:
        return
    row = f"row of {sizes.markers:,} markers"
    for name, percent, bar in (("p50", 50.0, P50_MS), ("p99", 99.0, P99_MS)):
        values = [percentile(one.took_ms, percent) for one in rounds]
        yield Bar(f"{row}: fresh get, {name}", values, bar, False, " ms")
    yield Bar("  such answers that were torn", [100 * one.torn for one in rounds], None, unit=" %")
    yield Bar(
        f"{row}: age of answers, fresh=False, p50", [percentile(one.ages_s, 50.0) for one in rounds], None, unit=" s"
    )
    yield Bar("  the oldest", [one.ages_s[-1] for one in rounds], AGE_S, False, " s")


@one_line_errors("append_writers")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a bar is missed."""
    parser = OneLineErrorParser(prog="python -m benchmarks.append_writers", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of all runs (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=LINES, metavar="LINE", help=f"of {', '.join(LINES)}")
    parser.add_argument("--small", action="store_true", help="few processes and short runs, as in the tests")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    require_at_least_one(args, "rounds")

    sizes = SMALL if args.small else FULL
    what = f"{machine()}; {versions()}"
    ran = measure(sizes, args.rounds, args.only or LINES)
    made = bars(sizes, ran)
    if args.json:
        found = {name: [each._asdict() for each in some] for name, some in ran.crowds.items()}
        print(
            json.dumps(
                {"machine": what, "rounds": args.rounds, "runs": found, "bars": [b.to_dict() for b in made]}, indent=2
            )
        )
        return missed(made)
    print(
        f"{sizes.seconds:g} s a run, flushes of {SHARED_FLUSH} events; into the large row, {sizes.appending} processes"
    )
    print(f"append {sizes.rate:,} events/s in flushes of {sizes.flush}, folded each {sizes.fold_large_every_s:g} s;")
    print(f"medians of {args.rounds} rounds, slowest of all; {what}\n")
    print_figures(figures(ran), made)
    return missed(made)


def figures(ran: Measured) -> list[list[str]]:
    """Rows to print; the first has the titles."""
    rows = [["run", "events/s", "CPU us/event", "slowest flush"]]
    for name, some in ran.crowds.items():
        rate = statistics.median(one.rate for one in some)
        cpu_us = 1e6 * statistics.median(one.cpu_s for one in some)
        rows.append([name, f"{rate:,.0f}", f"{cpu_us:.1f}", f"{max(one.slowest_s for one in some):.2f} s"])
    return rows


if __name__ == "__main__":
    sys.exit(main())
