"""What it costs that many write the same rows at once: of one row, and of small bundles of many threads.

    python -m benchmarks.contention [--events 960] [--bundled 24000] [--rounds 3] [--json]

On the Bigtable emulator. Writers of one row are processes with a store each, which merge one event after the other, so
that each event is a commit; all events are different ones. Bundles are merged by threads that share one store, as on a
worker. Every count is checked. The exit code is 1 if a bar is missed.

The last figure is the most that small bundles could reach with conditional writes: bare stubs, and each write brings in
all events under way of its row. Those are few: the threads have `THREADS` x `BUNDLE` events under way, of `KEYS` rows.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
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
    say,
)
from murmur_beam.errors import ConfigurationError, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.processor import AtomicDedup, Config, make_record, merge_records
from murmur_beam.state.base import Schema
from pipelines.console import Parser, one_line_errors

WRITERS = (1, 8, 32)
STUBS = "bare stubs, 64 in flight"
THREADS, BUNDLE, WHOLE, KEYS = 12, 10, 5_000, 200
SHARED_WRITERS, SHARED_PROCESSES, SHARED_ROWS, SHARED_FLUSH = 16, 2, 50, 500
ROW_BAR, SLOWEST_BAR_S, BUNDLE_BAR = 0.15, 5.0, 0.15
_READY_S = 0.2
"""From when a writer is ready until it begins, for each writer: they are to begin at the same time."""


class Contended(NamedTuple):
    """What a run took.

    Attributes:
        rate: events a second.
        slowest_s: the longest that one call took.
        requests: that write, for each event.
        cpu_s: of the clients' processors, for each event.
        reads: requests that read, in all.
    """

    rate: float
    slowest_s: float
    requests: float
    cpu_s: float = 0.0
    reads: int = 0


class Shared(NamedTuple):
    """What the writers of one process took.

    Attributes:
        began, ended: when, by the clock on the wall.
        slowest_s: the longest that one flush took, until all of it was merged.
        cpu_s: of the processor.
        writes, reads: requests.
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
    """Make a table that is written in this way, by commits if nothing is said; its name."""
    from murmur_beam.state.bigtable import tables

    name = f"contention-{uuid.uuid4().hex[:8]}"
    tables.create(_spec(name), tables.table_meta(Schema(Sum().name, None)), write=write)
    return name


class _Requests:
    """Counts the requests of this process: those that write, conditional or not, and those that read."""

    def __init__(self) -> None:
        self.writes = self.reads = 0


@contextmanager
def _counting() -> Iterator[_Requests]:
    from murmur_beam.state.bigtable.connection import Connection

    requests = _Requests()
    before = {name: getattr(Connection, name) for name in ("commit", "mutate", "mutate_here", "answers")}

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            requests.reads += name == "answers"
            requests.writes += name != "answers"
            return before[name](*args)

        return call

    for name in before:
        setattr(Connection, name, counted(name))
    try:
        yield requests
    finally:
        for name, real in before.items():
            setattr(Connection, name, real)


def write_one_row(table: str, writer: int, events: int, begin_at: float) -> tuple[float, float, list[float], int]:
    """Merge one event after the other into the row; when it began and ended, how long each took, and the writes."""
    with closing(_spec(table).open(Sum())) as store, _counting() as requests:
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
    """Many processes write to one row.

    Raises:
        Inexact: the count is wrong.
    """
    table = new_table()
    each = events // writers
    begin_at = time.time() + 1 + _READY_S * writers
    with ExitStack() as stack:
        calls = [stack.enter_context(Call(write_one_row, table, n, each, begin_at)) for n in range(writers)]
        ran = [call.result() for call in calls]
    with closing(_spec(table).open(Sum())) as store:
        if (count := store.get(Key("row"))) != each * writers:
            raise Inexact(f"{writers} writers of one row: {count} events of {each * writers}")
    seconds = max(ended for _, ended, _, _ in ran) - min(began for began, _, _, _ in ran)
    slowest_s = max(max(took) for _, _, took, _ in ran)
    return Contended(each * writers / seconds, slowest_s, sum(commits for _, _, _, commits in ran) / (each * writers))


def write_shared_rows(table: str, writers: Sequence[int], events: int, begin_at: float) -> Shared:
    """Threads, each with a store of its own, merge flushes of events of the same rows, all the rows in each."""
    each = [[Update(Key(f"row-{n % SHARED_ROWS}"), 1, f"{writer}/{n}") for n in range(events)] for writer in writers]
    with ExitStack() as stack:
        stores = [stack.enter_context(closing(_spec(table).open(Sum()))) for _ in writers]
        requests = stack.enter_context(_counting())

        def write(store: Any, updates: Sequence[Update]) -> float:
            return max(_merge(store, updates[at : at + SHARED_FLUSH]) for at in range(0, events, SHARED_FLUSH))

        with ThreadPoolExecutor(len(writers)) as pool:
            time.sleep(max(0.0, begin_at - time.time()))
            began, watch = time.time(), Watch()
            watch.start()
            slowest_s = max(pool.map(write, stores, each))
            cpu_s = watch.stop().cpu_s
        return Shared(began, time.time(), slowest_s, cpu_s, requests.writes, requests.reads)


def _merge(store: Any, updates: Sequence[Update]) -> float:
    """Merge all of these, however often some fail; seconds that it took."""
    started_s = time.perf_counter()
    wanted = {Outcome.RECORDED if store.appends else Outcome.MERGED}
    while updates:
        results = store.merge_updates(updates)
        if wrong := [one for one in results if not (one in wanted or isinstance(one, TransientError))]:
            raise Inexact(f"{len(wrong)} events ended as {wrong[0]!r:.80}")
        # What has failed may have happened.
        wanted.add(Outcome.DUPLICATE)
        updates = [update for update, one in zip(updates, results, strict=True) if isinstance(one, TransientError)]
    return time.perf_counter() - started_s


def shared_rows(write: str, events: int) -> Contended:
    """Many writers, in processes of some threads each, write the same rows at the same time.

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
    """Threads that share a store merge bundles of events of shared keys; of keys of their own, where there is no number
    of these.

    Raises:
        Inexact: a count is wrong.
    """
    config = Config(dedup=AtomicDedup())
    chosen = range(events) if keys is None else random.Random(events).choices(range(keys), k=events)
    records = [make_record(Sum(), f"e{n}", 0, [f"k{key}"], 1, need_id=True)[:4] for n, key in enumerate(chosen)]
    with closing(_spec(table).open(Sum())) as store, _counting() as requests:
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
    """Compare what is stored with what should be.

    Raises:
        Inexact: it is something else.
    """
    with closing(_spec(table).open(Sum())) as store:
        found = {key.entity: value for key, value in store.scan(fresh=True)}
    if found != wanted:
        wrong = min(key for key in found.keys() | wanted if found.get(key) != wanted.get(key))
        raise Inexact(f"{wrong} is {found.get(wrong)}, and should be {wanted.get(wrong)}")


def bare_stubs(events: int) -> Contended:
    """Conditional writes as fast as gRPC sends them, each to a row of its own."""
    with needing_extra():
        from benchmarks import contenders
        from murmur_beam.testing import emulators
    with emulators.bigtable() as host, environment(BIGTABLE_EMULATOR_HOST=host):
        [ran] = in_own_process(contenders.limit, contenders.Job(host, events, events))
    return Contended(ran.events / ran.seconds, ran.seconds, 1.0)


def bars(ran: dict[str, list[Contended]]) -> list[Bar]:
    """What is to be reached."""
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


@one_line_errors("contention")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a bar is missed."""
    parser = Parser(prog="python -m benchmarks.contention", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=960, metavar="N", help="into the one row (%(default)s)")
    parser.add_argument("--bundled", type=int, default=24_000, metavar="N", help="into the others (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of all runs (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    if args.events < WRITERS[-1]:
        raise ConfigurationError("--events", f"must be at least {WRITERS[-1]}, an event for each writer")
    if args.bundled < THREADS:
        raise ConfigurationError("--bundled", f"must be at least {THREADS}, an event for each thread")
    if args.rounds < 1:
        raise ConfigurationError("--rounds", f"must be at least 1, got {args.rounds}")

    what = machine()
    ran: dict[str, list[Contended]] = {}
    with on_bigtable():
        for n in range(args.rounds):
            for writers in WRITERS:
                name = f"{writers} writer{'s' * (writers > 1)} of one row"
                say(f"round {n + 1} of {args.rounds}: {name}")
                ran.setdefault(name, []).append(one_row(writers, args.events))
            for threads, bundle in ((1, WHOLE), (THREADS, WHOLE // 10), (THREADS, BUNDLE)):
                name = _bundles(threads, bundle)
                say(f"round {n + 1} of {args.rounds}: {name}")
                ran.setdefault(name, []).append(
                    in_own_process(merge_bundles, new_table(), args.bundled, threads, bundle)
                )
            say(f"round {n + 1} of {args.rounds}: {STUBS}")
            ran.setdefault(STUBS, []).append(bare_stubs(args.bundled))
    say("")
    made = bars(ran)
    if args.json:
        document = {
            "machine": what,
            "rounds": args.rounds,
            "runs": {
                name: {
                    "events_per_s": round(statistics.median(one.rate for one in runs), 1),
                    "slowest_s": round(max(one.slowest_s for one in runs), 3),
                    "writes_per_event": round(statistics.median(one.requests for one in runs), 3),
                }
                for name, runs in ran.items()
            },
            "bars": [bar.to_dict() for bar in made],
        }
        print(json.dumps(document, indent=2))
        return missed(made)
    print(f"{args.events:,} events into the one row, {args.bundled:,} in bundles over {KEYS} rows")
    print(f"medians of {args.rounds} rounds, slowest of all; {what}\n")
    print_figures(
        [
            ["run", "events/s", "slowest", "writes/event"],
            *(
                [
                    name,
                    f"{statistics.median(one.rate for one in runs):,.0f}",
                    f"{max(one.slowest_s for one in runs):.2f} s",
                    f"{statistics.median(one.requests for one in runs):.2f}",
                ]
                for name, runs in ran.items()
            ),
        ],
        made,
    )
    return missed(made)


if __name__ == "__main__":
    sys.exit(main())
