"""Small runs on the Bigtable emulator, in several processes, beside what the simulation says of them."""

from __future__ import annotations

import itertools
import logging
import os
import random
import statistics
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from benchmarks.harness import Call, Inexact
from benchmarks.planning import Assumptions, Load, Options, plan
from benchmarks.simulation import Contest, Keys, Latencies, Simulated, draw, key_shares, rows_per_flush
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count
from murmur_beam.state.base import Schema, fingerprint
from murmur_beam.state.bigtable import BigtableSpec, tables

STARTING_S = 1.5
"""For the processes to open their stores, before the first of them begins."""
KNOWN = 1_000_000
_SAMPLES = 2_000
_REPEATS = 3


class Case(NamedTuple):
    """What is run.

    Attributes:
        text: for people.
        workers: processes.
        events_per_s: of all workers.
        flush: events of one.
        flushes: of each worker.
        keys, exponent, hot_share: what the events are of; no keys: all of them are of one.
        shards: rows of each key.
        by_row: does each row have one worker, as behind a grouping step?
        timed: do the figures depend on who was quicker, and not only on what was drawn?
    """

    text: str
    workers: int
    events_per_s: float
    flush: int
    flushes: int
    keys: int
    exponent: float
    hot_share: float
    shards: int
    by_row: bool = False
    timed: bool = True

    @property
    def every_s(self) -> float:
        """Between two flushes of a worker."""
        return self.flush * self.workers / self.events_per_s


def cases(seconds: float, workers: int = 4, events_per_s: float = 10_000) -> list[Case]:
    """The small end of the scale: 10,000 events a second.

    Args:
        seconds: length of each run.
        workers: processes.
        events_per_s: of all of them.
    """
    flush = 2_000
    flushes = max(2, round(seconds * events_per_s / workers / flush))
    zipf = Case("any worker, shards=1", workers, events_per_s, flush, flushes, 1_000, 1.8, 0.05, 1)
    hot_every_s = 0.02
    hot = zipf._replace(
        text="one hot row",
        keys=0,
        hot_share=1.0,
        flush=8,
        flushes=max(10, round(seconds / hot_every_s)),
        events_per_s=8 * workers / hot_every_s,
    )
    return [
        zipf,
        zipf._replace(text="any worker, shards=8", shards=8),
        zipf._replace(text="each row its worker, shards=8", shards=8, by_row=True, timed=False),
        hot,
    ]


class Measured(NamedTuple):
    """What a worker, or all of them, have done.

    Attributes:
        events, rows, flushes: how many; rows once for each flush that touched them.
        commits, reads: requests.
        latencies: of these, some of them.
        starts: when each worker began, from the time that was set.
        seconds: of a worker's flushes and the time between them; of the slowest of them.
    """

    events: int
    rows: int
    flushes: int
    commits: int
    reads: int
    latencies: Latencies
    starts: list[float]
    seconds: float


class Compared(NamedTuple):
    """One figure.

    Attributes:
        case, what: which.
        measured, simulated: its values.
        paper: what the arithmetic of `planning` says.
        held: must the simulation agree with what was measured?
        paper_held: must that?
    """

    case: str
    what: str
    measured: float
    simulated: float
    paper: float
    held: bool
    paper_held: bool

    @property
    def off(self) -> float:
        """How far the simulation is from what was measured, as a part of that."""
        return self.simulated / self.measured - 1

    @property
    def paper_off(self) -> float:
        """How far the arithmetic is."""
        return self.paper / self.measured - 1

    def agrees(self, tolerance: float) -> bool:
        """Does what must?"""
        return abs(self.off if self.held else 0.0) <= tolerance >= abs(self.paper_off if self.paper_held else 0.0)


# ---- events ----


def flushes(case: Case, number: int) -> Iterator[list[tuple[str, str]]]:
    """Key and event id of the events of each flush of a worker, by its number; the same each time."""
    if not case.by_row:
        events = _events(case, number)
        for _ in range(case.flushes):
            yield list(itertools.islice(events, case.flush))
        return
    # All of them draw the same events, and each keeps those of its rows.
    events = _events(case, 0)
    for _ in range(case.flushes):
        some = itertools.islice(events, case.flush * case.workers)
        yield [event for event in some if _owner(case, row_of(case, event)) == number]


def _events(case: Case, number: int) -> Iterator[tuple[str, str]]:
    ranks = draw(case.keys, case.exponent, case.hot_share, 100 + number) if case.keys else itertools.repeat(0)
    for i, rank in enumerate(ranks):
        yield f"key-{rank}", f"{number}/{i}"


def row_of(case: Case, event: tuple[str, str]) -> tuple[str, int]:
    """Key and shard."""
    key, event_id = event
    return key, fingerprint(event_id)[0] % case.shards


def _owner(case: Case, row: tuple[str, int]) -> int:
    return zlib.crc32(f"{row[0]}/{row[1]}".encode()) % case.workers


# ---- measured ----


def run(host: str, number: int, case: Case) -> Measured:
    """One case, in a table of its own.

    Args:
        host: of the emulator.
        number: of the case.
        case: what to run.

    Raises:
        Inexact: a count is wrong.
    """
    spec = _spec(host, number, case)
    tables.create(spec, tables.table_meta(Schema(Count().name, None)))
    start_s = time.monotonic() + STARTING_S
    with ExitStack() as stack:
        calls = [stack.enter_context(Call(work, host, number, case, worker, start_s)) for worker in range(case.workers)]
        made = [call.result() for call in calls]
    wanted = Counter(key for worker in range(case.workers) for flush in flushes(case, worker) for key, _ in flush)
    with closing(spec.open(Count())) as store:
        found = {key.entity: count for key, count in store.scan()}
    if found != wanted:
        wrong = sum(found.get(key) != wanted.get(key) for key in found.keys() | wanted.keys())
        raise Inexact(f"{case.text}: {wrong:,} counts of {len(wanted):,} are wrong")
    latencies = Latencies(
        *(sorted(itertools.chain(*some)) for some in zip(*(one.latencies for one in made), strict=True))
    )
    return Measured(
        events=sum(one.events for one in made),
        rows=sum(one.rows for one in made),
        flushes=sum(one.flushes for one in made),
        commits=sum(one.commits for one in made),
        reads=sum(one.reads for one in made),
        latencies=latencies,
        starts=[one.starts[0] for one in made],
        seconds=max(one.seconds for one in made),
    )


def work(host: str, number: int, case: Case, worker: int, start_s: float) -> Measured:
    """What one worker does, in a process of its own.

    Args:
        host, number, case: as of `run`.
        worker: its number.
        start_s: when to begin, by `time.monotonic`; workers begin one after the other within one interval.

    Raises:
        Inexact: an event was not merged.
    """
    batches = list(flushes(case, worker))
    rows = sum(len({row_of(case, event) for event in batch}) for batch in batches)
    with closing(_spec(host, number, case).open(Count())) as store:
        commits, reads = _timed(store._connection)
        due_s = begin_s = start_s + case.every_s * random.Random(worker).random()
        for batch in batches:
            time.sleep(max(0.0, due_s - time.monotonic()))
            results = store.merge_updates([Update(Key(key), 1, event_id) for key, event_id in batch])
            if any(result is not Outcome.MERGED for result in results):
                raise Inexact(f"{case.text}: {Counter(map(str, results))}")
            due_s += case.every_s
        # Whoever is done early would have waited for the next one.
        seconds = max(due_s, time.monotonic()) - begin_s
    events = sum(map(len, batches))
    latencies = Latencies(_some(commits), _some(reads))
    return Measured(events, rows, len(batches), len(commits), len(reads), latencies, [begin_s - start_s], seconds)


def _timed(connection: Any) -> tuple[list[float], list[float]]:
    """Seconds of each request of a connection, from now on: of commits and of reads."""
    commits: list[float] = []
    reads: list[float] = []
    commit, read = connection.commit, connection.read

    def timed_commit(request: bytes, burst: Any = None) -> Any:
        sent_s = time.monotonic()
        call = commit(request, burst)
        call.add_done_callback(lambda _: commits.append(time.monotonic() - sent_s))
        return call

    async def timed_read(request: Any, *, persist: bool = True) -> Any:
        sent_s = time.monotonic()
        rows = await read(request, persist=persist)
        reads.append(time.monotonic() - sent_s)
        return rows

    connection.commit, connection.read = timed_commit, timed_read
    return commits, reads


def _some(values: Sequence[float]) -> list[float]:
    return list(values) if len(values) <= _SAMPLES else random.Random(1).sample(list(values), _SAMPLES)


def _spec(host: str, number: int, case: Case) -> BigtableSpec:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", RuntimeWarning)  # of the client, about the emulator
    os.environ["BIGTABLE_EMULATOR_HOST"] = host
    return BigtableSpec("benchmark", "instance", f"confirm-{number}", shards=case.shards)


# ---- simulated ----


def simulate(case: Case, measured: Measured, seed: int) -> Simulated:
    """The same case with events of another seed, and with the latencies and the starts that were measured."""
    streams = [draw(case.keys, case.exponent, case.hot_share, seed * 1_000 + n) for n in range(case.workers)]
    chance = random.Random(seed)
    kept: list[list[list[tuple[str, int]]]] = [[] for _ in range(case.workers)]

    def drawn(stream: Iterator[int], n: int) -> list[tuple[str, int]]:
        ranks = itertools.islice(stream, n) if case.keys else [0] * n
        return list(dict.fromkeys((f"key-{rank}", chance.randrange(case.shards)) for rank in ranks))

    def rows_of(number: int) -> list[tuple[str, int]]:
        if not case.by_row:
            return drawn(streams[number], case.flush)
        if not kept[number]:
            rows = drawn(streams[0], case.flush * case.workers)
            for worker in range(case.workers):
                kept[worker].append([row for row in rows if _owner(case, row) == worker])
        return kept[number].pop(0)

    latencies = _known_latencies(measured)
    return Contest(rows_of, measured.starts, case.every_s, latencies, flushes=case.flushes, seed=seed).run()


def _known_latencies(measured: Measured) -> Latencies:
    """Where nothing had to be read, as if a read took as long as a commit."""
    commit, read = measured.latencies
    return Latencies(commit, read or commit)


def compare(case: Case, measured: Measured, hold_timed: bool = True) -> list[Compared]:
    """What was measured beside what the simulation says.

    Args:
        case: what was run.
        measured: what came out.
        hold_timed: hold contention as well, where it depends on the machine.
    """
    runs = [simulate(case, measured, seed) for seed in range(1, _REPEATS + 1)]
    total = Simulated(*(sum(values) for values in zip(*runs, strict=True)))
    held = hold_timed or not case.timed
    requests = (measured.commits + measured.reads) / measured.rows
    figures = [
        ("rows a flush", measured.rows / measured.flushes, total.rows / total.flushes),
        ("commits a row", measured.commits / measured.rows, total.commits_per_row),
        ("requests a row", requests, total.requests_per_row),
    ]
    return [
        # Where all meet in one row they meet as often as latencies vary, of which the arithmetic knows only the mean.
        Compared(
            *(case.text, what, counted, simulated, paper),
            held=what == "rows a flush" or held,
            paper_held=what == "rows a flush" or (held and bool(case.keys)),
        )
        for (what, counted, simulated), paper in zip(figures, on_paper(case, measured), strict=True)
    ]


def on_paper(case: Case, measured: Measured) -> tuple[float, float, float]:
    """Rows of a flush, and commits and requests for each: what the arithmetic says of a case."""
    shares = key_shares(case.keys, case.exponent, case.hot_share) if case.keys else [Keys(1.0, 1)]
    if case.by_row:
        return rows_per_flush(shares, case.flush * case.workers, case.shards) / case.workers, 1.0, 1.0
    latencies = _known_latencies(measured)
    # Without the slowest tenth: a request that a busy machine has kept for long is no measure of the others.
    commit_ms, read_ms = (statistics.fmean(some[: max(1, len(some) * 9 // 10)]) * 1_000 for some in latencies)
    # The only bucket is the run, and nobody flushes early.
    load = Load(case.events_per_s, max(case.keys, 1), case.exponent, case.hot_share % 1, measured.seconds, 0)
    options = Options(case.flush, 2 * case.every_s, case.shards, False, KNOWN, case.workers)
    made = plan(load, options, Assumptions(commit_ms=commit_ms, read_ms=read_ms))
    return made.rows_per_flush, 1 + made.conflicts, made.requests / made.commits
