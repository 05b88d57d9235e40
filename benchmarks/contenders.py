"""The contenders of `benchmarks.throughput` and `benchmarks.append_speed`: each writes the events of a workload, some
exactly once.

The time is that from the first event to the last write, without opening stores and building pipelines.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, NamedTuple

from murmur_beam.quiet_beam import beam  # isort: split

import grpc
from apache_beam.io.gcp.bigtableio import WriteToBigTable
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from google.cloud.bigtable.data import BigtableDataClient, ReadRowsQuery, SetCell
from google.cloud.bigtable.data import row_filters as filters
from google.cloud.bigtable.data.read_modify_write_rules import IncrementRule
from google.cloud.bigtable.row import DirectRow
from google.cloud.bigtable_v2.types import CheckAndMutateRowRequest

from benchmarks.harness import Inexact, Usage, peak_mb
from benchmarks.requests import Requests, counting
from benchmarks.timing import Copy, Done, Emit, Hold, watch
from benchmarks.workloads import COMMIT, events, expected, pages
from murmur_beam.buffer import FlushLimits
from murmur_beam.gc_tuning import declare_worker_process, freeze_startup_objects
from murmur_beam.model import Key
from murmur_beam.monoids import Monoid, by_name
from murmur_beam.options import MergeOptions
from murmur_beam.processor import AtomicDedup, Config, NoDedup
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER, run
from murmur_beam.spec import resolve
from murmur_beam.state import StoreSpec
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, tables, wire
from murmur_beam.state.bigtable.keys import SCHEMA_ROW, encode_row_key
from murmur_beam.state.bigtable.layouts import LAYOUTS, NEWEST
from murmur_beam.state.bigtable.meta import APPEND
from murmur_beam.state.bigtable.meta import COMMIT as COMMITS
from murmur_beam.state.memory import MemorySpec
from murmur_beam.transforms import DEAD_LETTER, MergeDoFn, MergeRecords

PROJECT, INSTANCE, TABLE = "benchmark", "instance", "table"
NAME = "bench"
VALUE = "n"
IN_FLIGHT = 64
CLAIMS_PART = 25
OVERHEAD_TIMES = 5


class Job(NamedTuple):
    """The task of a contender.

    Attributes:
        host: of a new Bigtable emulator.
        events: number of events to write; slow contenders write a part of them, quick ones a multiple.
        flush: records that `MergeRecords` buffers at most.
        counted: whether to count requests, and to read back what is stored for dedup, which needs time.
    """

    host: str
    events: int
    flush: int
    counted: bool = False


class Pass(NamedTuple):
    """The figures of one pass over the events.

    Attributes:
        name: of the contender; of the pass, if there are several.
        events: how many.
        seconds, cpu_s: for all events; the processor's time is that of the client alone.
        peak_mb: memory of the process, with Python, Beam and the workload.
        writes: requests for each touched row and flush; None if not counted.
        dedup_bytes: stored for each event, to recognize it; None if not counted.
    """

    name: str
    events: int
    seconds: float
    cpu_s: float
    peak_mb: float
    writes: float | None = None
    dedup_bytes: float | None = None


class Contender(NamedTuple):
    """A way of writing events.

    Attributes:
        text: a description to print.
        run: writes the events of a job; called in a new process.
    """

    text: str
    run: Callable[[Job], list[Pass]]


class ToRow(beam.DoFn):
    """An event as one plain cell in a row of its own."""

    def process(self, event: dict[str, Any]) -> Iterator[DirectRow]:
        row = DirectRow(event["id"].encode())
        row.set_cell(wire.STATE, b"n", b"1", timestamp=datetime.now(timezone.utc))
        yield row


# ---- contenders of others ----


def limit(job: Job) -> list[Pass]:
    """Bare stubs: conditional writes that are ready to be sent, each to another row."""
    where = _table(job)
    name = f"projects/{PROJECT}/instances/{INSTANCE}/tables/{TABLE}"
    table = SimpleNamespace(name=name, app_profile="")
    layout = LAYOUTS[NEWEST]
    requests = []
    for page in pages("own", job.events):
        at_us = int(time.time() * 1000) * 1000
        mutations = [layout.raised(0, 0, 1), wire.add(wire.VALUE, 0, 1)]
        mutations.append(wire.put(wire.DEDUP, b"commit-1", at_us, os.urandom(16)))
        data = wire.commit(table, encode_row_key(Key(page)), layout.exists, if_not=mutations)
        requests.append(CheckAndMutateRowRequest.pb().FromString(data))

    async def send_all() -> Usage:
        async with grpc.aio.insecure_channel(job.host) as channel:
            send = channel.unary_unary(
                wire.CHECK_AND_MUTATE,
                request_serializer=CheckAndMutateRowRequest.pb().SerializeToString,
                response_deserializer=wire.CommitResponse.FromString,
            )
            metadata = (("x-goog-request-params", f"table_name={name}&app_profile_id="),)
            queue = iter(requests)

            async def work() -> None:
                for request in queue:
                    if (await send(request, metadata=metadata)).predicate_matched:
                        raise Inexact("the limit met a row that should not exist")

            freeze_startup_objects()
            watch.start()
            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
            return watch.stop()

    usage, peak = asyncio.run(send_all()), peak_mb()
    _check(where, "own", job.events, "sum")
    return [Pass("limit", job.events, *usage, peak)]


def write(job: Job) -> list[Pass]:
    """Beam's own connector: one plain cell for each event, without a sum."""
    _table(job)
    with beam.Pipeline(runner=IN_PROCESS_RUNNER) as p:
        _ = (
            p
            | beam.Create([("own", job.events, "sum")])
            | beam.ParDo(Emit())
            | beam.ParDo(ToRow())
            | WriteToBigTable(PROJECT, INSTANCE, TABLE)
            | beam.ParDo(Done())
        )
    usage, peak = watch.usage, peak_mb()
    if job.counted:
        keys_only = filters.RowFilterChain(
            [filters.FamilyNameRegexFilter(wire.STATE), filters.StripValueTransformerFilter(True)]
        )
        found = sum(1 for _ in _read(keys_only))
        if found != job.events:
            raise Inexact(f"WriteToBigTable wrote {found:,} of {job.events:,} cells")
    return [Pass("write", job.events, *usage, peak)]


def claim(job: Job) -> list[Pass]:
    """Claim the event, then increment, with the official client: one event after the other."""
    _table(job)
    n = max(1, job.events // CLAIMS_PART)
    with _client() as client, client.get_table(INSTANCE, TABLE) as table:
        exists = filters.FamilyNameRegexFilter(wire.STATE)
        freeze_startup_objects()
        watch.start()
        for event in events("own", n):
            claimed = SetCell(wire.STATE, b"claimed", b"1")
            if not table.check_and_mutate_row(f"claim/{event['id']}", exists, false_case_mutations=claimed):
                table.read_modify_write_row(f"count/{event['page']}", IncrementRule(wire.STATE, b"n", event["n"]))
        usage, peak = watch.stop(), peak_mb()
    counts = {row.row_key.decode(): row.cells[0].value for row in _read(filters.ColumnQualifierRegexFilter(b"n"))}
    if counts != {f"count/{page}": (1).to_bytes(8, "big") for page in pages("own", n)}:
        raise Inexact("claim-then-increment counted wrong")
    return [Pass("claim", n, *usage, peak)]


# ---- ours ----


def merging(
    name: str,
    kind: str,
    monoid: str = "sum",
    *,
    flush: int | None = None,
    dedup: bool = True,
    again: bool = False,
    write: str = COMMITS,
) -> Callable[[Job], list[Pass]]:
    """`MergeRecords` into Bigtable on the in-process runner.

    Args:
        name: of the passes.
        kind: of the workload.
        monoid: how to fold.
        flush: records to buffer; None for what the job says.
        dedup: whether to count exactly once; else each delivery counts.
        again: merge all events a second time, by a new pipeline that opens the store again.
        write: how the table is written; the outcome of appended events is recorded.
    """
    outcome = "recorded" if write == APPEND else "merged"

    def contender(job: Job) -> list[Pass]:
        where = _table(job, monoid, write)
        passes = []
        for name_of_pass in (name, f"{name}-again") if again else (name,):
            # Counting needs some time.
            with counting(rows=True) if job.counted else nullcontext(Requests()) as counts:
                usage, merged = _merge(job.events, kind, monoid, where, flush or job.flush, dedup, outcome)
            peak = peak_mb()
            duplicate = name_of_pass != name
            if merged != (0 if duplicate else job.events):
                raise Inexact(f"{name_of_pass}: {merged:,} of {job.events:,} events are said to be {outcome}")
            _check(where, kind, job.events, monoid)
            made = Pass(name_of_pass, job.events, *usage, peak)
            if job.counted:
                if not counts.rows or not (counts.writes or duplicate):
                    raise Inexact(f"{name_of_pass}: {counts.writes} requests for {counts.rows} rows were seen")
                stored = _dedup_bytes() / job.events if dedup else None
                made = made._replace(writes=counts.writes / counts.rows, dedup_bytes=stored)
            passes.append(made)
        return passes

    return contender


def bundles(
    name: str, size: int | None, kind: str = "zipf1.1", *, part: int = 1, write: str = COMMITS
) -> Callable[[Job], list[Pass]]:
    """The `MergeDoFn` as a streaming runner drives it: in small bundles, each of which is written at its end.

    Args:
        name: of the pass.
        size: events of a bundle; None for a single bundle.
        kind: of the workload.
        part: divisor of the number of events.
        write: how the table is written.
    """

    def contender(job: Job) -> list[Pass]:
        where = _table(job, write=write)
        n = max(size or 1, job.events // part)
        fn = MergeDoFn(resolve(MergeOptions(**_arguments("sum", where, job.flush, dedup=True))))
        fn.setup()
        taken = 0
        pages(kind, n)
        watch.start()
        fn.start_bundle()
        for i, event in enumerate(events(kind, n), 1):
            taken += _taken(fn.process(event, WindowedValue(event, Timestamp(0), (GlobalWindow(),))))
            if i % (size or n) == 0 or i == n:
                taken += _taken(fn.finish_bundle())
                fn.start_bundle()
        usage, peak = watch.stop(), peak_mb()
        fn.teardown()
        if taken != n:
            raise Inexact(f"{taken:,} of {n:,} events came out")
        _check(where, kind, n, "sum")
        return [Pass(name, n, *usage, peak)]

    return contender


def copying(name: str, fn: type[beam.DoFn]) -> Callable[[Job], list[Pass]]:
    """A ``ParDo`` that emits each element unchanged."""

    def contender(job: Job) -> list[Pass]:
        n = job.events * OVERHEAD_TIMES
        with beam.Pipeline(runner=IN_PROCESS_RUNNER) as p:
            _ = p | beam.Create([("zipf1.1", n, "sum")]) | beam.ParDo(Emit()) | beam.ParDo(fn())
        return [Pass(name, n, *watch.usage, peak_mb())]

    return contender


def remembering(name: str, kind: str, *, times: int = 1, flush: int | None = None) -> Callable[[Job], list[Pass]]:
    """`MergeRecords` with the memory store: what the transform itself costs.

    Args:
        name: of the pass.
        kind: of the workload.
        times: factor of the number of events, since the store is quick.
        flush: records to buffer; None for what the job says.
    """

    def contender(job: Job) -> list[Pass]:
        n = job.events * times
        store = MemorySpec("throughput")
        usage, merged = _merge(n, kind, "sum", store, flush or job.flush, True, "merged")
        peak = peak_mb()
        if merged != n:
            raise Inexact(f"{merged:,} of {n:,} events are said to be merged")
        _check(store, kind, n, "sum")
        return [Pass(name, n, *usage, peak)]

    return contender


CONTENDERS = {
    "limit": Contender(f"bare stubs, an event a row, {IN_FLIGHT} in flight: the limit", limit),
    "write": Contender("WriteToBigTable of Beam: a plain cell an event", write),
    "claim": Contender("claim, then increment: the official client, one by one", claim),
    "own": Contender("MergeRecords: every event its own row", merging("own", "own", again=True)),
    "zipf1.1": Contender("MergeRecords: Zipf(1.1)", merging("zipf1.1", "zipf1.1", again=True)),
    "zipf1.3": Contender("MergeRecords: Zipf(1.3)", merging("zipf1.3", "zipf1.3", again=True)),
    "hot": Contender("MergeRecords: one hot key", merging("hot", "hot", again=True)),
    "commits-32": Contender(f"the same, flushes of {COMMIT}", merging("commits-32", "hot", flush=COMMIT)),
    "max": Contender("MergeRecords: Zipf(1.1), Max", merging("max", "zipf1.1", "max")),
    "set_union": Contender("MergeRecords: Zipf(1.1), SetUnion", merging("set_union", "zipf1.1", "set_union")),
    "no-dedup": Contender("MergeRecords: Zipf(1.1), dedup off", merging("no-dedup", "zipf1.1", dedup=False)),
    "bundles-10": Contender("MergeRecords: Zipf(1.1), bundles of 10", bundles("bundles-10", 10, part=5)),
    "bundles-1000": Contender("MergeRecords: Zipf(1.1), bundles of 1,000", bundles("bundles-1000", 1_000)),
    "copy": Contender("a ParDo that only copies", copying("copy", Copy)),
    "hold": Contender("a ParDo that copies when its bundle ends", copying("hold", Hold)),
    "memory": Contender(
        "MergeRecords: Zipf(1.1), memory store",
        remembering("memory", "zipf1.1", times=OVERHEAD_TIMES, flush=FlushLimits().events),
    ),
}
"""The contenders of `benchmarks.throughput`."""

KINDS = "own", "zipf1.1", "zipf1.3"
BUNDLES = {"10": 10, "100": 100, "5000": 5_000, "whole": None}
APPENDING = {
    **{
        f"append-{kind}": Contender(f"MergeRecords, appending: {kind}", merging(f"append-{kind}", kind, write=APPEND))
        for kind in KINDS
    },
    **{
        f"commit-{kind}": Contender(f"MergeRecords, committing: {kind}", merging(f"commit-{kind}", kind))
        for kind in KINDS
    },
    **{
        f"append-bundles-{text}-{kind}": Contender(
            f"MergeDoFn, appending, bundles of {text}: {kind}",
            bundles(f"append-bundles-{text}-{kind}", size, kind, write=APPEND),
        )
        for text, size in BUNDLES.items()
        for kind in KINDS
    },
    "memory-own": Contender("MergeRecords: every event its own row, memory store", remembering("memory-own", "own")),
}
"""Further contenders, of `benchmarks.append_speed`."""


def measure(name: str, job: Job) -> list[Pass]:
    """Run a contender's job. Call it in a new process.

    Raises:
        Inexact: a count is wrong.
    """
    logging.disable(logging.WARNING)
    os.environ["BIGTABLE_EMULATOR_HOST"] = job.host
    warnings.simplefilter("ignore", RuntimeWarning)  # of Beam's client, about the emulator
    declare_worker_process()
    return (CONTENDERS | APPENDING)[name].run(job)


# ---- shared parts ----


def _arguments(monoid: str, store: StoreSpec, flush: int, dedup: bool) -> dict[str, Any]:
    return {
        "name": NAME,
        "key": "page",
        "value": VALUE,
        "monoid": monoid,
        "event_id": "id",
        "store": store,
        "config": Config(dedup=AtomicDedup() if dedup else NoDedup()),
        "flush": FlushLimits(events=flush),
    }


def _merge(
    n: int, kind: str, monoid: str, store: StoreSpec, flush: int, dedup: bool, outcome: str
) -> tuple[Usage, int]:
    """Run a pipeline; its usage, and the number of records with this outcome."""
    p = beam.Pipeline(runner=IN_PROCESS_RUNNER)
    arguments = _arguments(monoid, store, flush, dedup)
    outputs = p | beam.Create([(kind, n, monoid)]) | beam.ParDo(Emit()) | MergeRecords(**arguments)
    _ = outputs[DEAD_LETTER] | beam.ParDo(Done())
    counters = run(p)
    return watch.usage, counters.get(f"{NAME}:record_{outcome}", 0)


def _taken(outputs: Iterable[Any]) -> int:
    return sum(1 for _ in outputs)


def _table(job: Job, monoid: str = "sum", write: str = COMMITS) -> BigtableSpec:
    where = BigtableSpec(PROJECT, INSTANCE, TABLE, max_in_flight=IN_FLIGHT)
    tables.create(where, tables.table_meta(Schema.of(by_name(monoid).of(VALUE), None)), write=write)
    return where


def _check(spec: StoreSpec, kind: str, n: int, monoid: str) -> None:
    """Compare every aggregate with its expected value."""
    how: Monoid[Any] = by_name(monoid)
    wanted = expected(kind, n, monoid)
    with closing(spec.open(how)) as store:
        found = {key.entity: value for key, value in store.scan(fresh=True)}  # type: ignore[attr-defined]
    for page in wanted.keys() | found.keys():
        if found.get(page) != wanted.get(page):
            raise Inexact(f"{page} is {found.get(page)!r:.80}, and should be {wanted.get(page)!r:.80}")


def _client() -> BigtableDataClient:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # about the emulator
        return BigtableDataClient(project=PROJECT)


def _read(row_filter: filters.RowFilter) -> Iterator[Any]:
    """Rows of the table, read by the official client."""
    with _client() as client, client.get_table(INSTANCE, TABLE) as table:
        for row in table.read_rows_stream(ReadRowsQuery(row_filter=row_filter)):
            if row.row_key != SCHEMA_ROW:
                yield row


def _dedup_bytes() -> int:
    """Size of all markers: columns with their timestamps and contents."""
    family = filters.FamilyNameRegexFilter(wire.DEDUP)
    return sum(len(cell.qualifier) + 8 + len(cell.value) for row in _read(family) for cell in row)
