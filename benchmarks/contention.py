"""The cost of contention: many writers of one row, and small bundles of many threads.

    python -m benchmarks.contention [--events 960] [--bundled 24000] [--rounds 3] [--json]

On the Bigtable emulator. Writers of one row are processes, each with its own store, that merge one event after the
other: each event is a commit, and no event comes twice. Bundles are merged by threads that share one store, as on a
worker. Every count is checked. The exit code is 1 if a bar is missed.

The last figure is the most that small bundles could reach with conditional writes: by bare stubs, if each write had all
events of its row that are under way. These are few: `THREADS` x `BUNDLE` events are under way, of `KEYS` rows.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, NamedTuple

from benchmarks.harness import (
    Bar,
    Call,
    Inexact,
    Watch,
    environment,
    in_own_process,
    machine,
    missed,
    needing_extra,
    on_bigtable,
    print_figures,
    require_at_least_one,
    say,
)
from benchmarks.requests import counting
from murmur_beam.errors import ConfigurationError, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.processor import AtomicDedup, Config, make_record, merge_records
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors
from murmur_beam.state.base import Schema

WRITERS = (1, 8, 32)
STUBS = "bare stubs, 64 in flight"
THREADS, BUNDLE, WHOLE, KEYS = 12, 10, 5_000, 200
SHARED_WRITERS, SHARED_PROCESSES, SHARED_ROWS, SHARED_FLUSH = 16, 2, 50, 500
ROW_BAR, SLOWEST_BAR_S, BUNDLE_BAR = 0.15, 5.0, 0.15
_READY_S = 0.2
"""Time for each writer to get ready, since all writers are to begin at the same time."""


class Contended(NamedTuple):
    """The figures of a run.

    Attributes:
        rate: events a second.
        slowest_s: duration of the slowest call.
        requests: number of requests that write, for each event.
        cpu_s: time of the clients' processors for each event.
        reads: number of requests that read.
    """

    rate: float
    slowest_s: float
    requests: float
    cpu_s: float = 0.0
    reads: int = 0


class Shared(NamedTuple):
    """The figures of the writers in one process.

    Attributes:
        began, ended: by the wall clock.
        slowest_s: duration of the slowest flush, until all of it was merged.
        cpu_s: time of the processor.
        writes, reads: number of requests.
    """

    began: float
    ended: float
    slowest_s: float
    cpu_s: float
    writes: int
    reads: int


def _spec(table: str) -> Any:
    with needing_extra():
        from murmur_beam.state.bigtable import BigtableSpec
    return BigtableSpec("benchmark", "instance", table)


def new_table(write: str | None = None) -> str:
    """Make a table that is written in this way, by default by commits; its name."""
    from murmur_beam.state.bigtable import tables

    name = f"contention-{uuid.uuid4().hex[:8]}"
    tables.create(_spec(name), tables.table_meta(Schema(Sum().name, None)), write=write)
    return name


def open_table(table: str) -> Any:
    """A new store."""
    return _spec(table).open(Sum())


def write_one_row(table: str, writer: int, events: int, begin_at: float) -> tuple[float, float, list[float], int]:
    """Merge one event after the other into the row; begin, end, the duration of each event, and the number of
    writes."""
    with closing(open_table(table)) as store, counting() as requests:
        time.sleep(max(0.0, begin_at - time.time()))
        began, took = time.time(), []
        for n in range(events):
            started_s = time.perf_counter()
            while (result := store.merge_updates([Update(Key("row"), 1, f"{writer}/{n}")])[0]) is not Outcome.MERGED:
                if not isinstance(result, Exception):
                    raise Inexact(f"event {n} of writer {writer}: {result}, though it came once")
            took.append(time.perf_counter() - started_s)
        return began, time.time(), took, requests.writes


def one_row(writers: int, events: int) -> Contended:
    """Run many processes that write to one row.

    Raises:
        Inexact: the count is wrong.
    """
    table = new_table()
    each = events // writers
    begin_at = time.time() + 1 + _READY_S * writers
    with ExitStack() as stack:
        calls = [stack.enter_context(Call(write_one_row, table, n, each, begin_at)) for n in range(writers)]
        ran = [call.result() for call in calls]
    with closing(open_table(table)) as store:
        if (count := store.get(Key("row"))) != each * writers:
            raise Inexact(f"{writers} writers of one row: {count} events of {each * writers}")
    seconds = max(ended for _, ended, _, _ in ran) - min(began for began, _, _, _ in ran)
    slowest_s = max(max(took) for _, _, took, _ in ran)
    return Contended(each * writers / seconds, slowest_s, sum(commits for _, _, _, commits in ran) / (each * writers))


def write_shared_rows(table: str, writers: Sequence[int], events: int, begin_at: float) -> Shared:
    """Merge flushes in threads, each with its own store; each flush has events of all the shared rows."""
    each = [[Update(Key(f"row-{n % SHARED_ROWS}"), 1, f"{writer}/{n}") for n in range(events)] for writer in writers]
    with ExitStack() as stack:
        stores = [stack.enter_context(closing(open_table(table))) for _ in writers]
        requests = stack.enter_context(counting())

        def write(store: Any, updates: Sequence[Update]) -> float:
            return max(merge_all(store, updates[at : at + SHARED_FLUSH]) for at in range(0, events, SHARED_FLUSH))

        with ThreadPoolExecutor(len(writers)) as pool:
            time.sleep(max(0.0, begin_at - time.time()))
            began, watch = time.time(), Watch()
            watch.start()
            slowest_s = max(pool.map(write, stores, each))
            cpu_s = watch.stop().cpu_s
        return Shared(began, time.time(), slowest_s, cpu_s, requests.writes, requests.reads)


def merge_all(store: Any, updates: Sequence[Update]) -> float:
    """Merge updates, and repeat those that fail; the seconds that it took."""
    started_s = time.perf_counter()
    wanted = {Outcome.RECORDED if store.appends else Outcome.MERGED}
    while updates:
        results = store.merge_updates(updates)
        if wrong := [one for one in results if not (one in wanted or isinstance(one, TransientError))]:
            raise Inexact(f"{len(wrong)} events ended as {wrong[0]!r:.80}")
        # A failed write may have been done.
        wanted.add(Outcome.DUPLICATE)
        updates = [update for update, one in zip(updates, results, strict=True) if isinstance(one, TransientError)]
    return time.perf_counter() - started_s


def shared_rows(write: str, events: int) -> Contended:
    """Run many writers of the same rows: several processes, each with several threads.

    Raises:
        Inexact: a count is wrong.
    """
    table = new_table(write)
    each = max(1, events // SHARED_WRITERS)
    begin_at = time.time() + 1 + _READY_S * SHARED_WRITERS
    share = SHARED_WRITERS // SHARED_PROCESSES
    with ExitStack() as stack:
        calls = [
            stack.enter_context(Call(write_shared_rows, table, range(n, n + share), each, begin_at))
            for n in range(0, SHARED_WRITERS, share)
        ]
        ran = [call.result() for call in calls]
    total = each * SHARED_WRITERS
    require(table, Counter(f"row-{n % SHARED_ROWS}" for n in range(each) for _ in range(SHARED_WRITERS)))
    seconds = max(one.ended for one in ran) - min(one.began for one in ran)
    return Contended(
        total / seconds,
        max(one.slowest_s for one in ran),
        sum(one.writes for one in ran) / total,
        sum(one.cpu_s for one in ran) / total,
        sum(one.reads for one in ran),
    )


def merge_bundles(table: str, events: int, threads: int, bundle: int, keys: int | None = KEYS) -> Contended:
    """Merge bundles in threads that share a store.

    Args:
        table: name of the table.
        events: number of events.
        threads: number of threads.
        bundle: events of a bundle.
        keys: number of shared keys; None for a key for each event.

    Raises:
        Inexact: a count is wrong.
    """
    config = Config(dedup=AtomicDedup())
    chosen = range(events) if keys is None else random.Random(events).choices(range(keys), k=events)
    records = [make_record(Sum(), f"e{n}", 0, [f"k{key}"], 1, need_id=True)[:4] for n, key in enumerate(chosen)]
    with closing(open_table(table)) as store, counting() as requests:
        wanted = Outcome.RECORDED if store.appends else Outcome.MERGED

        def merge(some: Sequence[Any]) -> list[float]:
            took = []
            for start in range(0, len(some), bundle):
                started_s = time.perf_counter()
                results = merge_records(config, "contention", some[start : start + bundle], store)
                took.append(time.perf_counter() - started_s)
                if any(result.outcome is not wanted for result in results):
                    raise Inexact(f"bundles of {bundle}: not all was {wanted.value}: {results!r:.80}")
            return took

        share = len(records) // threads
        parts = [records[n * share : (n + 1) * share] for n in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            watch = Watch()
            watch.start()
            took = [seconds for some in pool.map(merge, parts) for seconds in some]
            usage = watch.stop()
    merged = share * threads
    require(table, Counter(f"k{key}" for key in chosen[:merged]))
    return Contended(merged / usage.seconds, max(took), requests.writes / merged, usage.cpu_s / merged, requests.reads)


def require(table: str, wanted: Counter[str]) -> None:
    """Compare the aggregates with the expected ones.

    Raises:
        Inexact: an aggregate differs.
    """
    with closing(open_table(table)) as store:
        found = {key.entity: value for key, value in store.scan(fresh=True)}
    if found != wanted:
        wrong = min(key for key in found.keys() | wanted if found.get(key) != wanted.get(key))
        raise Inexact(f"{wrong} is {found.get(wrong)}, and should be {wanted.get(wrong)}")


def bare_stubs(events: int) -> Contended:
    """Send conditional writes as fast as gRPC can, each to another row."""
    with needing_extra():
        from benchmarks import contenders
        from murmur_beam.testing import emulators
    with emulators.bigtable() as host, environment(BIGTABLE_EMULATOR_HOST=host):
        [ran] = in_own_process(contenders.limit, contenders.Job(host, events, events))
    return Contended(ran.events / ran.seconds, ran.seconds, 1.0)


def bars(ran: dict[str, list[Contended]]) -> list[Bar]:
    """The ratios with their bars."""
    under_way = THREADS * BUNDLE
    least_writes = KEYS * (1 - (1 - 1 / KEYS) ** under_way) / under_way
    alone, many = ran["1 writer of one row"], ran[f"{WRITERS[-1]} writers of one row"]
    whole, small = ran[_bundles(1, WHOLE)], ran[_bundles(THREADS, BUNDLE)]
    return [
        Bar(f"{WRITERS[-1]} writers of one row / 1 writer", _ratios(many, alone), ROW_BAR),
        Bar(f"slowest event of {WRITERS[-1]} writers", [one.slowest_s for one in many], SLOWEST_BAR_S, False, " s"),
        Bar(f"{_bundles(THREADS, BUNDLE)} / {_bundles(1, WHOLE)}", _ratios(small, whole), BUNDLE_BAR),
        Bar(
            f"the same at {least_writes:.2f} writes/event by bare stubs",
            [ratio / least_writes for ratio in _ratios(ran[STUBS], whole)],
            None,
        ),
    ]


def _ratios(some: Sequence[Contended], others: Sequence[Contended]) -> list[float]:
    return [one.rate / other.rate for one, other in zip(some, others, strict=True)]


def _bundles(threads: int, bundle: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}, bundles of {bundle:,}"


def measure(events: int, bundled: int, rounds: int) -> dict[str, list[Contended]]:
    """Run everything in turns.

    Args:
        events: number of events into the one row.
        bundled: number of events into the other rows.
        rounds: of all runs.
    """
    ran: dict[str, list[Contended]] = {}

    def add(name: str, run: Callable[[], Contended]) -> None:
        say(f"round {len(ran.setdefault(name, [])) + 1} of {rounds}: {name}")
        ran[name].append(run())

    with on_bigtable():
        for _ in range(rounds):
            for writers in WRITERS:
                add(f"{writers} writer{'s' * (writers > 1)} of one row", partial(one_row, writers, events))
            for threads, bundle in ((1, WHOLE), (THREADS, WHOLE // 10), (THREADS, BUNDLE)):
                run = partial(in_own_process, merge_bundles, new_table(), bundled, threads, bundle)
                add(_bundles(threads, bundle), run)
            add(STUBS, partial(bare_stubs, bundled))
    say("")
    return ran


@one_line_errors("contention")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a bar is missed."""
    parser = OneLineErrorParser(prog="python -m benchmarks.contention", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=960, metavar="N", help="into the one row (%(default)s)")
    parser.add_argument("--bundled", type=int, default=24_000, metavar="N", help="into the others (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of all runs (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    if args.events < WRITERS[-1]:
        raise ConfigurationError("--events", f"must be at least {WRITERS[-1]}, an event for each writer")
    if args.bundled < THREADS:
        raise ConfigurationError("--bundled", f"must be at least {THREADS}, an event for each thread")
    require_at_least_one(args, "rounds")

    what = machine()
    ran = measure(args.events, args.bundled, args.rounds)
    made = bars(ran)
    if args.json:
        runs = {name: _document(some) for name, some in ran.items()}
        document = {"machine": what, "rounds": args.rounds, "runs": runs, "bars": [bar.to_dict() for bar in made]}
        print(json.dumps(document, indent=2))
        return missed(made)
    print(f"{args.events:,} events into the one row, {args.bundled:,} in bundles over {KEYS} rows")
    print(f"medians of {args.rounds} rounds, slowest of all; {what}\n")
    rows = [["run", "events/s", "slowest", "writes/event"]]
    for name, some in ran.items():
        rate, requests = (statistics.median(values) for values in ([o.rate for o in some], [o.requests for o in some]))
        rows.append([name, f"{rate:,.0f}", f"{max(one.slowest_s for one in some):.2f} s", f"{requests:.2f}"])
    print_figures(rows, made)
    return missed(made)


def _document(runs: Sequence[Contended]) -> dict[str, float]:
    return {
        "events_per_s": round(statistics.median(one.rate for one in runs), 1),
        "slowest_s": round(max(one.slowest_s for one in runs), 3),
        "writes_per_event": round(statistics.median(one.requests for one in runs), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
