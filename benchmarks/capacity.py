"""What a load takes: commits, Bigtable nodes, workers, bytes and money, on paper, with a simulation of the hottest row.

    python -m benchmarks.capacity [--events 1000000] [--hot-share 0.05] [--bucket 1h] [--shards 1] [--by-row] [--json]
    python -m benchmarks.capacity --assumptions
    python -m benchmarks.capacity --confirm

For each rate there are two columns: what was asked for, and what is advised: the cheapest that breaks no limit, with
buckets as long as possible. ``--confirm`` runs small loads on the Bigtable emulator, in several processes, and holds
what the simulation says of them against what was counted; exit code 1 if they differ by more than 15 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from benchmarks.harness import machine, needing_extra, print_table, say, tidy
from benchmarks.planning import KNOWN_BYTES, Assumptions, Load, Options, Plan, advise, plan
from benchmarks.simulation import Latencies, Simulated, draw, hot_row, spread
from murmur_beam.durations import format_duration, parse_duration
from murmur_beam.errors import ConfigurationError
from murmur_beam.state.base import fingerprint_of
from pipelines.console import Parser, one_line_errors

EVENTS = (10_000.0, 1_000_000.0, 10_000_000.0)
TOLERANCE = 0.15
_LATENCY_SIGMA = 0.4
_SIMULATED_S = 10.0
_SAMPLED_FLUSHES = 5


def contention(made: Plan, seed: int) -> Simulated:
    """The hottest row, written by all workers or by the one that has it."""
    a = made.assumptions
    latencies = Latencies(
        spread(a.commit_ms / 1_000, _LATENCY_SIGMA, seed=seed), spread(a.read_ms / 1_000, _LATENCY_SIGMA, seed=seed + 1)
    )
    return hot_row(
        1 if made.options.by_row else made.workers,
        made.hot_commits,
        latencies,
        row_s=a.row_ms / 1_000,
        # Long enough for rows that are seldom written.
        seconds=max(_SIMULATED_S, 50 / made.hot_commits),
        seed=seed,
    )


def drawn_rows(made: Plan, seed: int) -> float:
    """Rows of a flush, counted in some that are drawn event by event."""
    load, options = made.load, made.options
    n = round(made.events_per_flush)
    ranks = draw(load.keys, load.skew, load.hot_share, seed)
    rows = 0
    for number in range(_SAMPLED_FLUSHES):
        events = enumerate(itertools.islice(ranks, n))
        rows += len({(rank, fingerprint_of(f"{number}/{i}")[0] % options.shards) for i, rank in events})
    return rows / _SAMPLED_FLUSHES


def column(title: str, made: Plan, seed: int) -> dict[str, str]:
    """The figures of one plan as text, by what they are."""
    o = made.options
    simulated = contention(made, seed)
    up = made.keeps_up
    drawn = "" if o.by_row else f"{drawn_rows(made, seed):,.0f}"
    figures = {
        "": title,
        "rows written by": "one worker" if o.by_row else "any worker",
        "bucket": _short(made.load.bucket_s),
        "shards": f"{o.shards}",
        "flush or batch, events": f"{o.flush:,}",
        "max_cached_events": f"{o.known:,}",
        "events a flush": f"{made.events_per_flush:,.0f}",
        "rows a flush": f"{made.rows_per_flush:,.0f}",
        "  drawn": drawn,
        "commits/s": f"{made.commits:,.0f}",
        "conflicts a commit": f"{made.conflicts:.2f}",
        "rows read again/s": f"{made.read_again:,.0f}",
        "events read, MB/s": f"{made.read_mb:,.0f}",
        "requests/s": f"{made.requests:,.0f}",
        "hottest row: commits/s": f"{made.hot_commits:,.1f}",
        "  simulated": f"{simulated.rows / simulated.seconds:,.1f}",
        "  simulated, tries a commit": f"{simulated.commits_per_row:.2f}" if simulated.rows else "none succeeds",
        "  events at the end": f"{made.hot_events:,.0f}",
        "  MB at the end": f"{made.hot_mb:,.0f}",
        "nodes by writes": f"{made.nodes_by_writes:,.1f}",
        "nodes by reads": f"{made.nodes_by_reads:,.1f}",
        "nodes by storage": f"{made.nodes_by_storage:,.1f}",
        "Bigtable nodes": f"{made.nodes:,}" if up else "no number",
        "workers (1 vCPU)": f"{made.workers:,}" if up else "no number",
        "  remember, GB": f"{made.remembered * KNOWN_BYTES / 1e9:,.2f}",
        "max_in_flight": f"{made.in_flight:,}" if up else "",
        "written, GB/day": f"{made.stored_per_day / 1e9:,.0f}",
        "stored, TB": f"{made.stored / 1e12:,.2f}",
    }
    costs = {f"USD/month: {part}": f"{cost:,.0f}" if up else "" for part, cost in made.costs.items()}
    return {**figures, **costs, "USD/month": f"{made.cost:,.0f}" if up else ""}


def _short(seconds: float) -> str:
    return format_duration(timedelta(seconds=seconds))


def settings(made: Plan) -> list[str]:
    """What to write to have a plan."""
    load, o = made.load, made.options
    lines = [
        f"murmur create-table 'bigtable://PROJECT/INSTANCE/TABLE?shards={o.shards}' --window {_short(load.bucket_s)} "
        f"--retention {_short(load.retention_s)} ...",
        f"store=BigtableSpec(..., shards={o.shards}, max_in_flight={made.in_flight}, max_cached_events={o.known:_}), "
        f"flush=FlushLimits(events={o.flush:_}, age=timedelta(seconds={o.age_s:g}))",
    ]
    if o.by_row:
        lines.append(
            f"before it beam.GroupIntoBatches({o.flush}, max_buffering_duration_secs={o.age_s:g}), keyed by row: see "
            "docs/scaling.md"
        )
    return lines


# ---- the command ----


def _duration(text: str) -> float:
    try:
        return parse_duration(text).total_seconds()
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from None


def _parser() -> Parser:
    parser = Parser(prog="python -m benchmarks.capacity", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--events", type=float, nargs="+", default=EVENTS, metavar="N", help="a second (10,000, 1 million, 10 million)")
    add("--keys", type=int, default=1_000_000, metavar="N", help="%(default)s")
    add("--skew", type=float, default=0.9, metavar="S", help="the key of rank r has the weight r ** -S (%(default)s)")
    add("--hot-share", type=float, default=0.05, metavar="P", help="of one key more, of all events (%(default)s)")
    add(
        "--flush", type=int, default=1_000, metavar="N", help="events of one, or of a batch with --by-row (%(default)s)"
    )
    add("--age", type=_duration, default=10.0, metavar="D", help="how long events are buffered at most (10s)")
    add(
        "--bucket",
        type=_duration,
        default=3_600.0,
        metavar="D",
        help="length of the window's buckets; without a window, the time for which events are known (1h)",
    )
    add(
        "--retention",
        type=_duration,
        default=7 * 86_400.0,
        metavar="D",
        help="how long a bucket still takes events (7d)",
    )
    add("--shards", type=int, default=1, metavar="N", help="rows of each key, 1 to 256 (%(default)s)")
    add("--by-row", action="store_true", help="a grouping step gives each row to one worker")
    add("--known", type=int, default=1_000_000, metavar="N", help="max_cached_events of the store (%(default)s)")
    add("--workers", type=int, metavar="N", help="of one vCPU each (as many as it takes)")
    add("--seed", type=int, default=1, metavar="N", help="of the simulation (%(default)s)")
    add("--json", action="store_true", help="print one JSON document")
    add("--assumptions", action="store_true", help="print what is taken for granted, and where it comes from")
    add("--confirm", action="store_true", help="run small loads on the emulator, and compare")
    add("--seconds", type=float, default=6.0, metavar="S", help="length of each run of --confirm (%(default)s)")
    group = parser.add_argument_group("assumptions", "see --assumptions for where they come from")
    for one in dataclasses.fields(Assumptions):
        group.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=float,
            default=one.default,
            metavar="X",
            help=f"{one.metadata['unit']} (%(default)s)",
        )
    return parser


def _checked(args: argparse.Namespace) -> None:
    positive = ["events", "keys", "flush", "age", "bucket", "known", "workers", "seconds"]
    positive += [one.name for one in dataclasses.fields(Assumptions)]
    for name in positive:
        given = getattr(args, name)
        for value in given if isinstance(given, Sequence) else [given]:
            if value is not None and not 0 < value < float("inf"):
                raise ConfigurationError(_flag(name), f"must be positive, got {value:g}")
    for name in ("skew", "retention"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise ConfigurationError(_flag(name), f"must be at least 0, got {getattr(args, name):g}")
    if not 0 <= args.hot_share < 1:
        raise ConfigurationError(
            "--hot-share", f"must be a part of all events, from 0 to below 1, got {args.hot_share:g}"
        )
    if not 1 <= args.shards <= 256:
        raise ConfigurationError("--shards", f"must be from 1 to 256, got {args.shards}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@one_line_errors("capacity")
def main(argv: Sequence[str] | None = None) -> int:
    """Plan and print, or confirm; 1 if that fails."""
    args = _parser().parse_args(argv)
    _checked(args)
    if args.confirm:
        return _confirm(args)
    assumptions = Assumptions(**{one.name: getattr(args, one.name) for one in dataclasses.fields(Assumptions)})
    if args.assumptions:
        _print_assumptions(assumptions)
        return 0
    options = Options(args.flush, args.age, args.shards, args.by_row, args.known, args.workers)
    plans: list[tuple[str, Plan]] = []
    for events in args.events:
        load = Load(events, args.keys, args.skew, args.hot_share, args.bucket, args.retention)
        plans.append((f"{events:,.0f}/s", plan(load, options, assumptions)))
        plans.append(("advised", advise(load, options, assumptions)))
    if args.json:
        print(json.dumps({"plans": [_document(made, args.seed) for _, made in plans]}, indent=2))
        return 0
    columns = [column(title, made, args.seed) for title, made in plans]
    print_table([[what, *(one[what] for one in columns)] for what in columns[0]])
    for title, made in plans:
        rate = f"{made.load.events_per_s:,.0f} events/s"
        if made.warnings:
            print(f"\n{rate}, {'advised' if title == 'advised' else 'as asked'}: OVER A LIMIT")
            for warning in made.warnings:
                print(f"  {warning}")
        elif title == "advised":
            print(f"\n{rate}, to set:")
            for line in settings(made):
                print(f"  {line}")
    return 0


def _document(made: Plan, seed: int) -> dict[str, Any]:
    figures = dataclasses.asdict(made)
    figures["simulated_hot_row"] = contention(made, seed)._asdict()
    return {
        **figures,
        "cost": made.cost,
        "keeps_up": made.keeps_up,
        "in_flight": made.in_flight,
        "warnings": made.warnings,
    }


def _print_assumptions(assumptions: Assumptions) -> None:
    for one in dataclasses.fields(Assumptions):
        print(f"{_flag(one.name):<15} {getattr(assumptions, one.name):>9,g}  {one.metadata['unit']}")
        print(f"{'':<27}{one.metadata['source']}")


def _confirm(args: argparse.Namespace) -> int:
    with needing_extra():
        from benchmarks import confirming
    from murmur_beam.testing import emulators

    what = machine()
    cases = confirming.cases(args.seconds)
    compared: list[confirming.Compared] = []
    speeds: list[str] = []
    with tidy(), emulators.bigtable() as host:
        for number, case in enumerate(cases):
            say(f"{number + 1} of {len(cases)}: {case.text}")
            measured = confirming.run(host, number, case)
            speeds.append(f"{measured.events / measured.seconds:,.0f} of {case.events_per_s:,.0f}")
            compared += confirming.compare(case, measured)
        say("")
    bad = [one for one in compared if not one.agrees(TOLERANCE)]
    if args.json:
        documents = [{**one._asdict(), "off": one.off, "paper_off": one.paper_off} for one in compared]
        print(json.dumps({"machine": what, "figures": documents, "confirmed": not bad}, indent=2))
        return int(bool(bad))
    print(f"{cases[0].workers} processes on one emulator, runs of {args.seconds:g} s; {what}; all counts exact\n")
    rows = [["load", "events/s", "", "counted", "simulated", "off by", "on paper", "off by", ""]]
    rates = dict(zip((case.text for case in cases), speeds, strict=True))
    for one in compared:
        figures = [
            f"{one.measured:.3f}",
            f"{one.simulated:.3f}",
            f"{one.off:+.1%}",
            f"{one.paper:.3f}",
            f"{one.paper_off:+.1%}",
        ]
        rows.append([one.case, rates.pop(one.case, ""), one.what, *figures, "MISSED" if one in bad else "ok"])
    print_table(rows)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
