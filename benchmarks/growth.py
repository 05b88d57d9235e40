"""Growth: the cost of an event by the events that its row holds, and time and memory by the length of a run.

    python -m benchmarks.growth [--rounds 3] [--rows N ...] [--lengths N ...] [--plot docs/growth.png] [--json]

Rows: rows of one table are filled to several sizes, in commits of 32. Then they get further commits of 32 in turns, so
that a busy machine affects all of them. Runs: `MergeRecords` into Bigtable on the in-process runner, one bundle with
Zipf(1.3) keys; each run has its own process and emulator. All counts are checked.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.harness import Bar, bars_table, in_own_process, machine, needing_extra, print_table, say, tidy
from benchmarks.workloads import COMMIT, EXPONENT, FLUSH
from murmur_beam.errors import ConfigurationError
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors
from murmur_beam.testing import emulators

if TYPE_CHECKING:
    from benchmarks.growing import Run

TURNS = 160
"""Measured commits into each row: enough for two that pack small columns, which cost more."""
ROWS = (0, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
LENGTHS = (100_000, 200_000, 500_000, 1_000_000, 2_000_000)
COST_BAR = 1.2
MEMORY_BAR = 1.15
COST_OF = 100_000, 1_000
MEMORY_OF = 2_000_000, 200_000


def bars(rows: Sequence[dict[int, float]], runs: Sequence[Run]) -> list[Bar]:
    """The ratios that have a bar, if both sides were measured."""
    made = []
    many, few = COST_OF
    if rows and {many, few} <= rows[0].keys():
        text = f"cost of an event, {many:,} in its row / {few:,}"
        made.append(Bar(text, [costs[many] / costs[few] for costs in rows], COST_BAR, at_least=False))
    long, short = ([one for one in runs if one.events == n] for n in MEMORY_OF)
    if long and short:
        text = f"peak memory, {MEMORY_OF[0]:,} events / {MEMORY_OF[1]:,}"
        made.append(Bar(text, [long[0].peak_mb / short[0].peak_mb], MEMORY_BAR, at_least=False))
    return made


def plot(rows: dict[int, float], runs: Sequence[Run], path: str) -> None:
    """Write two diagrams side by side, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(list(rows), list(rows.values()), marker="o", color="tab:blue")
    left.set(
        title="Cost of an event by the size of its row",
        xlabel="events in the row before",
        ylabel=f"µs an event, commits of {COMMIT}",
    )
    time_line = right.plot(
        [one.events for one in runs],
        [*map(_us, runs)],
        marker="o",
        color="tab:blue",
        label="µs an event",
    )
    right.set(
        title="Cost and memory by the length of a run",
        xlabel="events in the run",
        ylabel=f"µs an event, Zipf({EXPONENT})",
    )
    memory = right.twinx()
    memory_line = memory.plot(
        [one.events for one in runs], [one.peak_mb for one in runs], marker="s", color="tab:red", label="peak memory"
    )
    memory.set_ylabel("peak memory, MB")
    for axes in (left, right, memory):
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
    right.legend(handles=time_line + memory_line, loc="lower right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


@one_line_errors("growth")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and plot. The exit code is 0 even if a bar is missed."""
    with needing_extra():
        from benchmarks import growing  # noqa: F401

    parser = OneLineErrorParser(prog="python -m benchmarks.growth", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of the rows; runs go once (%(default)s)")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, metavar="N", help="events in each row; or none")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, metavar="N", help="of the runs; or none")
    parser.add_argument("--turns", type=int, default=TURNS, metavar="N", help="commits into each row (%(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="write a picture, such as docs/growth.png")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    for name, least in (("rounds", 1), ("turns", 1), ("rows", 0), ("lengths", 1)):
        given = getattr(args, name)
        for value in [given] if isinstance(given, int) else given:
            if value < least:
                raise ConfigurationError(f"--{name}", f"must be at least {least}, got {value}")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError(
            "--plot", "takes matplotlib, which is not installed; run: pip install 'murmur-beam[bench]'"
        )

    what = machine()
    rows, runs = measure(args.rounds, args.rows, args.lengths, args.turns)
    costs = {size: statistics.median(one[size] for one in rows) for size in args.rows}
    if args.plot:
        plot(costs, runs, args.plot)
    if args.json:
        measured = [(one.events, _us(one), one.peak_mb) for one in runs]
        document = {
            "rounds": args.rounds,
            "machine": what,
            "us_per_event_by_events_in_row": {size: round(cost, 2) for size, cost in costs.items()},
            "runs": [{"events": n, "us_per_event": round(us, 2), "peak_mb": round(mb)} for n, us, mb in measured],
            "bars": [bar.to_dict() for bar in bars(rows, runs)],
        }
        print(json.dumps(document, indent=2))
        return 0
    print(f"commits of {COMMIT}, medians of {args.rounds} rounds; runs: FlushLimits(events={FLUSH:,}); {what}\n")
    _print(costs, rows, runs)
    return 0


def measure(
    rounds: int, sizes: Sequence[int], lengths: Sequence[int], turns: int
) -> tuple[list[dict[int, float]], list[Run]]:
    """Costs of rows of these sizes in each round, and runs of these lengths."""
    from benchmarks import growing

    rows: list[dict[int, float]] = []
    runs: list[Run] = []
    with tidy():
        for number in range(rounds if sizes else 0):
            say(f"rows: round {number + 1} of {rounds}")
            with emulators.bigtable() as host:
                rows.append(in_own_process(growing.row_costs, host, tuple(sizes), turns))
        for length in lengths:
            say(f"run of {length:,} events")
            with emulators.bigtable() as host:
                runs.append(in_own_process(growing.run, host, length))
        say("")
    return rows, runs


def _us(run: Run) -> float:
    return run.seconds / run.events * 1e6


def _print(costs: dict[int, float], rows: Sequence[dict[int, float]], runs: Sequence[Run]) -> None:
    tables = []
    if costs:
        table = [["events in the row", "us/event", "of rounds"]]
        for size, cost in costs.items():
            least, most = (find(one[size] for one in rows) for find in (min, max))
            table.append([f"{size:,}", f"{cost:.1f}", f"{least:.1f} .. {most:.1f}"])
        tables.append(table)
    if runs:
        lines = [[f"{one.events:,}", f"{_us(one):.1f}", f"{one.peak_mb:,.0f}"] for one in runs]
        tables.append([["events in the run", "us/event", "peak MB"], *lines])
    for table in tables:
        print_table(table)
        print()
    if made := bars(rows, runs):
        print_table(bars_table(made))


if __name__ == "__main__":
    sys.exit(main())
