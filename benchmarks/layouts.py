"""The cost of commits on tables of layout 1 and of layout 2, where the version of a row is a plain cell.

    python -m benchmarks.layouts [--events 20000] [--rounds 5] [--json]

On the Bigtable emulator, in turns; each run has its own process and table, and every count is checked. The exit code is
1 if layout 2 needs more of the client's processor than layout 1.
"""

from __future__ import annotations

import json
import statistics
import sys
import uuid
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from benchmarks.harness import (
    Bar,
    Inexact,
    Watch,
    in_own_process,
    machine,
    missed,
    needing_extra,
    on_bigtable,
    print_figures,
    require_at_least_one,
    say,
)
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Sum
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors
from murmur_beam.state.base import Schema

LAYOUTS = 1, 2
BAR = 1.05
"""More than 1, since two equal runs differ by as much."""


class Work(NamedTuple):
    """How events are merged.

    Attributes:
        rows: number of rows of the events; None for a row for each event.
        flush: events that are merged at once.
    """

    rows: int | None
    flush: int


WORK = {
    "a row an event, flushes of 5,000": Work(None, 5_000),
    "200 rows, flushes of 5,000": Work(200, 5_000),
    "200 rows, flushes of 200": Work(200, 200),
}


class Ran(NamedTuple):
    """The figures of a run: events a second, and microseconds of the client's processor for each event."""

    rate: float
    cpu_us: float


def merge(layout: int, events: int, work: Work) -> Ran:
    """Merge events into a new table.

    Raises:
        Inexact: a count is wrong.
    """
    with needing_extra():
        from murmur_beam.state.bigtable import BigtableSpec, layouts, tables
    where = BigtableSpec("benchmark", "instance", f"layouts-{uuid.uuid4().hex[:8]}")
    tables.create(where, tables.table_meta(Schema(Sum().name, None))._replace(layout=layouts.LAYOUTS[layout]))
    updates = [Update(Key(f"k{n % (work.rows or events)}"), 1, f"e{n}") for n in range(events)]
    watch = Watch()
    with closing(where.open(Sum())) as store:
        watch.start()
        for start in range(0, events, work.flush):
            store.merge_updates(updates[start : start + work.flush])
        seconds, cpu_s = watch.stop()
        found = sum(value for _, value in store.scan())
    if found != events:
        raise Inexact(f"layout {layout}: {found} events of {events}")
    return Ran(events / seconds, cpu_s / events * 1e6)


@one_line_errors("layouts")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a bar is missed."""
    parser = OneLineErrorParser(prog="python -m benchmarks.layouts", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=20_000, metavar="N", help="a run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of all runs (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    require_at_least_one(args, "events", "rounds")

    what = machine()
    ran: dict[tuple[str, int], list[Ran]] = {}
    with on_bigtable():
        for n in range(args.rounds):
            for name, work in WORK.items():
                # The order alternates, since the load of the machine may change between two runs.
                for layout in LAYOUTS if n % 2 == 0 else LAYOUTS[::-1]:
                    say(f"round {n + 1} of {args.rounds}: {name}, layout {layout}")
                    ran.setdefault((name, layout), []).append(in_own_process(merge, layout, args.events, work))
    say("")
    bars = [
        Bar(
            f"CPU, layout 2 / layout 1: {name}",
            [new.cpu_us / old.cpu_us for new, old in zip(ran[name, 2], ran[name, 1], strict=True)],
            BAR,
            at_least=False,
        )
        for name in WORK
    ]
    if args.json:
        runs = [
            {
                "work": name,
                "layout": layout,
                "events_per_s": round(statistics.median(one.rate for one in some), 1),
                "cpu_us_per_event": round(statistics.median(one.cpu_us for one in some), 2),
            }
            for (name, layout), some in ran.items()
        ]
        document = {"machine": what, "rounds": args.rounds, "runs": runs, "bars": [bar.to_dict() for bar in bars]}
        print(json.dumps(document, indent=2))
        return missed(bars)
    print(f"{args.events:,} events a run, medians of {args.rounds} rounds; {what}\n")
    rows = [["run", "layout", "events/s", "CPU us/event"]]
    for (name, layout), some in sorted(ran.items()):
        rate, cpu_us = (statistics.median(values) for values in zip(*some, strict=True))
        rows.append([name, str(layout), f"{rate:,.0f}", f"{cpu_us:.1f}"])
    print_figures(rows, bars)
    return missed(bars)


if __name__ == "__main__":
    sys.exit(main())
