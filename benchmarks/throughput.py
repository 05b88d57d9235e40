"""Exactly-once counting by `MergeRecords` into Bigtable, beside its limit and other ways of writing.

    python -m benchmarks.throughput [--events 60000] [--rounds 5] [--flush 20000] [--only NAME ...] [--json]

Contenders run in turns, several rounds, each on a new emulator and in a new process. Ratios are taken within a round,
and the median of the rounds is compared with its bar. A contender with a wrong count has no figure. A first round
counts requests and the bytes that are stored for dedup; its times are not used.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.harness import (
    Bar,
    Inexact,
    bars_table,
    in_own_process,
    machine,
    needing_extra,
    print_table,
    require_at_least_one,
    say,
    spread,
    tidy,
)
from benchmarks.workloads import FLUSH
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors
from murmur_beam.testing import emulators

RATIOS: list[tuple[str, str, str, float | None]] = [
    ("every event its own row / limit", "own", "limit", 0.8),
    ("Zipf(1.3) / WriteToBigTable", "zipf1.3", "write", 3.0),
    ("Zipf(1.1) / WriteToBigTable", "zipf1.1", "write", 1.3),
    ("every event its own row / claim-then-increment", "own", "claim", 8.0),
    ("Zipf(1.3) / claim-then-increment", "zipf1.3", "claim", 35.0),
    ("second pass / first pass, own rows", "own-again", "own", 1.0),
    ("second pass / first pass, Zipf(1.1)", "zipf1.1-again", "zipf1.1", 1.0),
    ("second pass / first pass, Zipf(1.3)", "zipf1.3-again", "zipf1.3", 1.0),
    ("second pass / first pass, one hot key", "hot-again", "hot", 1.0),
    ("one hot key / limit", "hot", "limit", 5.0),
    ("memory store / copying ParDo", "memory", "copy", 0.25),
    ("copying when the bundle ends / copying", "hold", "copy", None),
    ("Max / Sum, Zipf(1.1)", "max", "zipf1.1", None),
    ("SetUnion / Sum, Zipf(1.1)", "set_union", "zipf1.1", None),
    ("dedup off / Sum, Zipf(1.1)", "no-dedup", "zipf1.1", None),
    ("bundles of 10 / one bundle, Zipf(1.1)", "bundles-10", "zipf1.1", None),
    ("bundles of 1,000 / one bundle, Zipf(1.1)", "bundles-1000", "zipf1.1", None),
]
"""Ratios of events a second: text, contender, base and bar."""
FIRST_PASSES = ("own", "zipf1.1", "zipf1.3", "hot", "commits-32")
WRITES_BAR = 1.02
DEDUP_BYTES_BAR = 20.0

Run = Callable[[str, bool], "list[Any]"]


class Found(NamedTuple):
    """The results of all rounds.

    Attributes:
        counted: passes of the round that counts, by name.
        rounds: passes of the other rounds, by name; one for each round.
        failed: contenders without a figure, with the reason.
    """

    counted: dict[str, Any]
    rounds: dict[str, list[Any]]
    failed: dict[str, str]


def measure_all(names: Sequence[str], rounds: int, run: Run) -> Found:
    """Run all contenders in turns, in each round.

    Args:
        names: of the contenders.
        rounds: number of timed rounds.
        run: runs a contender, given its name and whether to count.
    """
    found = Found({}, {}, {})
    for number in range(rounds + 1):
        for name in names:
            if name in found.failed:
                continue
            say(f"round {number} of {rounds}: {name}")
            try:
                passes = run(name, number == 0)
            except Inexact as err:
                found.failed[name] = str(err)
                # Its earlier passes have no figure either.
                for done in [done for done in found.counted if done in (name, f"{name}-again")]:
                    del found.counted[done]
                    found.rounds.pop(done, None)
                continue
            for made in passes:
                if number == 0:
                    found.counted[made.name] = made
                else:
                    found.rounds.setdefault(made.name, []).append(made)
    say("")
    return found


def bars(found: Found) -> list[Bar]:
    """The ratios whose sides both have figures, and the counted figures."""
    made = []
    for text, name, base, bar in RATIOS:
        if name in found.rounds and base in found.rounds:
            pairs = zip(found.rounds[name], found.rounds[base], strict=True)
            made.append(Bar(text, [_speed(one) / _speed(other) for one, other in pairs], bar))
    writes = [found.counted[name].writes for name in FIRST_PASSES if name in found.counted]
    if writes:
        made.append(Bar("write requests for each touched row and flush", [max(writes)], WRITES_BAR, at_least=False))
    if "commits-32" in found.counted:
        stored = found.counted["commits-32"].dedup_bytes
        text = "dedup bytes for each event, commits of 32"
        made.append(Bar(text, [stored], DEDUP_BYTES_BAR, at_least=False))
    return made


def _speed(one: Any) -> float:
    return float(one.events / one.seconds)


def figures(found: Found) -> list[dict[str, Any]]:
    """The medians of each pass."""
    return [
        {
            "name": name,
            "events": passes[0].events,
            "events_per_s": round(statistics.median(map(_speed, passes))),
            "spread": round(spread([one.seconds for one in passes]), 2),
            "cpu_us_per_event": round(statistics.median(one.cpu_s / one.events for one in passes) * 1e6, 1),
            "peak_mb": round(statistics.median(one.peak_mb for one in passes)),
            "writes_per_row_and_flush": found.counted[name].writes,
            "dedup_bytes_per_event": found.counted[name].dedup_bytes,
        }
        for name, passes in found.rounds.items()
    ]


def _print(found: Found, texts: dict[str, str]) -> None:
    rows = [["contender", "events/s", "max/min", "CPU us", "peak MB", "writes", "dedup B"]]
    for f in figures(found):
        first = f["name"].removesuffix("-again")
        rows.append(
            [
                f"{f['name']:<14} {texts[first] if first == f['name'] else '  a second time: all are duplicates'}",
                *(f"{f['events_per_s']:,}", f"{f['spread']:.2f}", f"{f['cpu_us_per_event']:.1f}"),
                *(f"{f['peak_mb']:,}", _optional(f["writes_per_row_and_flush"]), _optional(f["dedup_bytes_per_event"])),
            ]
        )
    for name, reason in found.failed.items():
        rows.append([f"{name:<14} NO FIGURE: {reason:.90}", *[""] * 6])
    print_table(rows)
    print("\nCPU: of the client, for each event. Writes: requests for each touched row and flush. Dedup: bytes stored")
    print("for each event. The second pass is a new pipeline, which opens the store anew and knows no row.\n")
    if made := bars(found):
        print_table(bars_table(made))


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@one_line_errors("throughput")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a contender has counted wrong. The exit code is 0 even if a bar is missed."""
    # Imported here: it needs some time, and each measuring process imports it again.
    with needing_extra():
        from benchmarks import contenders

    parser = OneLineErrorParser(prog="python -m benchmarks.throughput", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=60_000, metavar="N", help="events in each run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed runs of each (%(default)s)")
    parser.add_argument(
        "--flush",
        type=int,
        default=FLUSH,
        metavar="N",
        help="records that MergeRecords buffers, FlushLimits(events=N) (%(default)s)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=contenders.CONTENDERS,
        metavar="NAME",
        help=f"of {', '.join(contenders.CONTENDERS)}",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    require_at_least_one(args, "events", "rounds", "flush")

    def run(name: str, counted: bool) -> list[contenders.Pass]:
        with emulators.bigtable() as host:
            job = contenders.Job(host, args.events, args.flush, counted)
            return in_own_process(contenders.measure, name, job)

    what = {"events": args.events, "rounds": args.rounds, "flush": args.flush, "machine": machine()}
    with tidy():
        found = measure_all(args.only or list(contenders.CONTENDERS), args.rounds, run)
    if args.json:
        made = [bar.to_dict() for bar in bars(found)]
        print(json.dumps({**what, "figures": figures(found), "bars": made, "failed": found.failed}, indent=2))
    else:
        print(
            f"{args.events:,} events a run, medians of {args.rounds} rounds; FlushLimits(events={args.flush:,}), "
            f"max_in_flight={contenders.IN_FLIGHT}; {what['machine']}\n"
        )
        _print(found, {name: contender.text for name, contender in contenders.CONTENDERS.items()})
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
