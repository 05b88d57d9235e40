"""The cost of several aggregates of one record, and of one more event of a large sketch.

    python -m benchmarks.aggregates [--events 60000] [--visitors 1000000] [--rounds 5] [--json]

Each run merges the same events without Beam into a new store: one sum, and structs of 1, 2, 4 and 8 counts and sums;
into memory, and into the Bigtable emulator by commits and by appends. Runs have processes of their own and go in turns;
every number is checked. The cost is the client's processor time for each event. The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

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
from murmur_beam.buffer import FlushLimits
from murmur_beam.gc_tuning import declare_worker_process
from murmur_beam.merger import Merger
from murmur_beam.metrics import Noop
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count, Distinct, Monoid, Struct, Sum
from murmur_beam.options import MergeOptions
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors
from murmur_beam.spec import resolve
from murmur_beam.state import StoreSpec
from murmur_beam.state.base import Schema
from murmur_beam.state.memory import MemorySpec

STORES = "memory", "commit", "append"
SIZES = 1, 2, 4, 8
"""Numbers of aggregates in a struct."""
KEYS = 5_000
SHARE = 0.15
"""What each aggregate may cost, as a part of the cost of one."""
FLUSH = 20_000
SINGLE = 200
"""Events of a sketch that are merged one by one, or appended together."""


class Recorder(Noop):
    """Records nothing."""

    def count(self, name: str, n: int) -> None:
        """Do nothing."""


def events(n: int) -> list[dict[str, Any]]:
    """Events with a key, and a number for each aggregate."""
    chance = random.Random(n)
    return [
        {"id": f"e{i}", "key": f"k{chance.randrange(KEYS)}", **{f"f{j}": (i + j) % 1_000 for j in range(max(SIZES))}}
        for i in range(n)
    ]


def parts(k: int) -> dict[str, Monoid[Any]]:
    """A count, and sums of fields; one alone is a sum."""
    sums = {f"f{j}": Sum().of(f"f{j}") for j in range(k)}
    return sums if k == 1 else {**sums, "f0": Count()}


def new_store(kind: str, monoid: Monoid[Any]) -> StoreSpec:
    """An empty store."""
    if kind == "memory":
        return MemorySpec(uuid.uuid4().hex)
    with needing_extra():
        from murmur_beam.state.bigtable import BigtableSpec, tables
    where = BigtableSpec("benchmark", "instance", f"aggregates-{uuid.uuid4().hex[:8]}")
    tables.create(where, tables.table_meta(Schema.of(monoid, None)), write=kind)
    return where


def merge(kind: str, k: int, n: int) -> float:
    """Merge ``n`` events with ``k`` aggregates, 0 for one without a struct; microseconds of CPU time an event.

    Raises:
        Inexact: a number is wrong.
    """
    declare_worker_process()
    monoid: Monoid[Any] = Struct(parts(k)) if k else Sum().of("f0")
    store = new_store(kind, monoid)
    what: Mapping[str, Any] = {"aggregates": parts(k)} if k else {"monoid": Sum(), "value": "f0"}
    flush = FlushLimits(events=FLUSH)
    spec = resolve(MergeOptions("bench", key="key", event_id="id", store=store, flush=flush, **what))
    some = events(n)
    watch = Watch()
    with closing(Merger[int](spec, Recorder())) as merger:
        watch.start()
        results = [merger.flush() for i, event in enumerate(some) if merger.add(event, 0, i)]
        for _ in itertools.chain.from_iterable([*results, merger.flush()]):
            pass
        usage = watch.stop()
        with closing(store.open(monoid)) as written:
            found = [state for _, state in written.scan(fresh=True)]
    right = [len(some) if k > 1 and j == 0 else sum(event[f"f{j}"] for event in some) for j in range(max(k, 1))]
    if [sum(column) for column in zip(*[state if k else (state,) for state in found], strict=True)] != right:
        raise Inexact(f"{kind}, {k} aggregates: the sums are wrong")
    return usage.cpu_s / n * 1e6


def visit(kind: str, visitors: int) -> float:
    """Microseconds of wall time for one more event of a sketch of this many visitors: appended with others, or in a
    commit of its own.

    Raises:
        Inexact: an event was not merged.
    """
    monoid = Distinct()
    with closing(new_store(kind, monoid).open(monoid)) as store:
        for start in range(0, visitors, FLUSH):
            names = range(start, min(start + FLUSH, visitors))
            store.merge_updates([Update(Key("k"), monoid.lift(f"visitor-{i}", 0)) for i in names])
        if kind == "append":
            store.fold()
        more = [Update(Key("k"), monoid.lift(f"more-{i}", 0)) for i in range(SINGLE)]
        began_s = time.perf_counter()
        results = store.merge_updates(more) if kind == "append" else [store.merge_updates([each])[0] for each in more]
        seconds = time.perf_counter() - began_s
        estimate = monoid.present(store.get(Key("k")))
    if {*results} != {Outcome.RECORDED if kind == "append" else Outcome.MERGED}:
        raise Inexact(f"{kind}: {results[:3]}")
    if not 0.9 * visitors < estimate < 1.1 * visitors + SINGLE:
        raise Inexact(f"{kind}: {estimate:,} visitors instead of {visitors:,}")
    return seconds / SINGLE * 1e6


@one_line_errors("aggregates")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a bar is missed."""
    parser = OneLineErrorParser(prog="python -m benchmarks.aggregates", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=60_000, metavar="N", help="a run (%(default)s)")
    parser.add_argument("--visitors", type=int, default=1_000_000, metavar="N", help="of the sketch (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of all runs (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    require_at_least_one(args, "events", "visitors", "rounds")

    what = machine()
    cases = list(itertools.product(STORES, (0, *SIZES)))
    costs: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    visits: dict[str, list[float]] = {kind: [] for kind in STORES[1:]}
    with on_bigtable():
        for n in range(args.rounds):
            # The order alternates, since the load of the machine may change between two runs.
            for kind, k in cases if n % 2 == 0 else cases[::-1]:
                say(f"round {n + 1} of {args.rounds}: {kind}, {k or 'one without names'}")
                costs[kind, k].append(in_own_process(merge, kind, k, args.events))
            for kind, some in visits.items():
                some.append(in_own_process(visit, kind, args.visitors))
    say("")
    bars = _bars(costs, visits)
    rows = [["CPU us/event", "one", *[f"struct of {k}" for k in SIZES]]]
    rows += [[kind, *[f"{statistics.median(costs[kind, k]):.1f}" for k in (0, *SIZES)]] for kind in STORES]
    if args.json:
        runs = [{"store": kind, "aggregates": k, "cpu_us": some} for (kind, k), some in costs.items()]
        print(json.dumps({"machine": what, "runs": runs, "bars": [bar.to_dict() for bar in bars]}, indent=2))
        return missed(bars)
    print(f"{args.events:,} events a run, {args.visitors:,} visitors, medians of {args.rounds} rounds; {what}\n")
    print_figures(rows, bars)
    return missed(bars)


def _bars(costs: Mapping[tuple[str, int], Sequence[float]], visits: Mapping[str, Sequence[float]]) -> list[Bar]:
    bars = [
        Bar(
            f"{kind}: struct of {k} / one",
            [several / one for several, one in zip(costs[kind, k], costs[kind, 0], strict=True)],
            1 + SHARE * k,
            at_least=False,
        )
        for kind in STORES
        for k in SIZES
    ]
    limits = {"commit": 2_000, "append": 100}
    how = {"commit": "in a commit of its own", "append": f"appended with {SINGLE - 1} others"}
    for kind, some in visits.items():
        bars.append(Bar(f"one more event of a large Distinct, {how[kind]}", some, limits[kind], False, " us"))
    return bars


if __name__ == "__main__":
    sys.exit(main())
