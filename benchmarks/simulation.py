"""What workers do to rows, without a table: how far a flush coalesces, and how often two get into each other's way.

Coalescing is an expectation, and exact: a flush of n events touches a row that has the share q of all events with the
chance 1 - (1-q)^n. Contention is simulated event by event, with the store's own protocol: bursts, a read after each
commit that found the row written by another, cold rows, and the packing of small columns. It leaves out that the store
waits by chance at rows that many write: there it says how often workers meet at most.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from typing import NamedTuple

BURST = 16
LANES = 4
PART = 16
SURE_PART = 128
SURE = 8
PACK_AT = 48
PACKED = 40
"""The store's own numbers; tests compare them."""

_EXACT_RANKS = 32
_RATIO = 1.15


class Keys(NamedTuple):
    """Keys of about the same share of the events.

    Attributes:
        share: of all events, each.
        n: how many such keys; not whole where ranks are taken together.
    """

    share: float
    n: float


def key_shares(keys: int, exponent: float, hot_share: float = 0.0) -> list[Keys]:
    """Shares of the events by key, the hottest first: the first ranks one by one, then many together.

    Args:
        keys: how many.
        exponent: the key of rank r has the weight ``r ** -exponent``.
        hot_share: of one key more, which takes this part of all events.
    """
    classes: list[tuple[float, float]] = []
    rank = 1
    while rank <= keys:
        last = rank if rank < _EXACT_RANKS else min(keys, math.ceil(rank * _RATIO))
        count = last - rank + 1
        classes.append((_weight(rank, last, exponent) / count, count))
        rank = last + 1
    total = sum(weight * count for weight, count in classes)
    shares = [Keys((1 - hot_share) * weight / total, count) for weight, count in classes]
    return sorted([Keys(hot_share, 1), *shares] if hot_share else shares, reverse=True)


def _weight(first: int, last: int, exponent: float) -> float:
    """Sum of ``r ** -exponent`` of ranks; many at once by the integral."""
    if last - first < _EXACT_RANKS:
        return math.fsum(float(rank) ** -exponent for rank in range(first, last + 1))
    low, high = first - 0.5, last + 0.5
    if exponent == 1:
        return math.log(high / low)
    return float((high ** (1 - exponent) - low ** (1 - exponent)) / (1 - exponent))


def touched(share: float, n: float) -> float:
    """The chance that a row with this share of the events is in a flush of so many."""
    return -math.expm1(n * math.log1p(-share)) if share < 1 else 1.0


def rows_per_flush(shares: Sequence[Keys], n: float, shards: int = 1) -> float:
    """Expected rows of a flush of ``n`` events."""
    return math.fsum(keys.n * shards * touched(keys.share / shards, n) for keys in shares)


def draw(keys: int, exponent: float, hot_share: float, seed: int) -> Iterator[int]:
    """Keys of events, by rank, without end; with a ``hot_share`` that one is 0."""
    chance = random.Random(seed)
    weights = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(keys)))
    ranks = range(1, keys + 1)
    while True:
        some = chance.choices(ranks, cum_weights=weights, k=1_000)
        yield from (0 if hot_share and chance.random() < hot_share else rank for rank in some)


# ---- contention ----


class Latencies(NamedTuple):
    """How long requests take from sending to answer, seconds: values to draw from.

    Attributes:
        commit, read: of a conditional write and of reading a row.
    """

    commit: Sequence[float]
    read: Sequence[float]


class Simulated(NamedTuple):
    """What came out.

    Attributes:
        rows: touched, over all flushes: that many commits came true.
        commits: requests for them.
        reads: requests to read.
        flushes: that were done.
        seconds: of the simulated time, until the last flush was done, or the time was up.
    """

    rows: int
    commits: int
    reads: int
    flushes: int
    seconds: float

    @property
    def commits_per_row(self) -> float:
        """Requests to write a touched row once."""
        return self.commits / max(self.rows, 1)

    @property
    def requests_per_row(self) -> float:
        """Of both kinds."""
        return (self.commits + self.reads) / max(self.rows, 1)


Step = Generator["float | list[Step]", float, None]
"""A process: yields until when it waits, or others to wait for; is told what time it is."""


class _Process:
    __slots__ = ("pending", "step", "waiter")

    def __init__(self, step: Step, waiter: _Process | None) -> None:
        self.step = step
        self.waiter = waiter
        self.pending = 0


class _Clock:
    """Runs processes in the order of their times."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, _Process]] = []
        self._numbers = itertools.count()

    def start(self, at_s: float, step: Step, waiter: _Process | None = None) -> None:
        process = _Process(step, waiter)
        next(step)
        self._push(at_s, process)

    def run(self, until_s: float) -> None:
        while self._queue and self._queue[0][0] <= until_s:
            now_s, _, process = heapq.heappop(self._queue)
            try:
                wanted = process.step.send(now_s)
            except StopIteration:
                if process.waiter is not None:
                    process.waiter.pending -= 1
                    if not process.waiter.pending:
                        self._push(now_s, process.waiter)
                continue
            if isinstance(wanted, list):
                process.pending = len(wanted)
                for step in wanted:
                    self.start(now_s, step, process)
            else:
                self._push(wanted, process)

    def _push(self, at_s: float, process: _Process) -> None:
        heapq.heappush(self._queue, (at_s, next(self._numbers), process))


class _Row:
    """Attributes: version; columns that are small; packed, up to which version; busy_s, until when it is."""

    __slots__ = ("busy_s", "packed", "seen", "small", "to_come", "version")

    def __init__(self) -> None:
        self.version = self.seen = self.packed = self.small = 0
        self.busy_s = 0.0
        # Commits wait for one another, in the order they came; a read meanwhile sees what is done.
        self.to_come: deque[tuple[float, int]] = deque()

    def visible(self, now_s: float) -> int:
        while self.to_come and self.to_come[0][0] <= now_s:
            self.seen = self.to_come.popleft()[1]
        return self.seen


class _Known:
    """What a worker knows of a row: its version, and how many small columns it has."""

    __slots__ = ("small", "version")

    def __init__(self, version: int = 0, small: int = 0) -> None:
        self.version = version
        self.small = small


class _Worker:
    def __init__(self) -> None:
        self.known: dict[Hashable, _Known] = {}
        self.cold = -1

    def guessed(self, right: bool) -> None:
        self.cold = max(self.cold - 1, -SURE) if right else min(self.cold + 1, SURE)


class Contest:
    """Workers that flush into the same rows.

    Args:
        rows_of: rows of the next flush of a worker, by its number.
        starts: when each worker begins its first flush, seconds.
        every_s: when it begins the next, at the earliest: after so long, and not before the last one is done.
        latencies: of requests.
        row_s: for which a conditional write has a row to itself.
        flushes: of each worker; None for as many as there is time for.
        seed: of all chance.
        packing: do columns get packed? Not if commits bring many events each.
    """

    def __init__(
        self,
        rows_of: Callable[[int], Sequence[Hashable]],
        starts: Sequence[float],
        every_s: float,
        latencies: Latencies,
        *,
        row_s: float = 0.0,
        flushes: int | None = None,
        seed: int = 1,
        packing: bool = True,
    ) -> None:
        self._rows_of = rows_of
        self._starts = starts
        self._every_s = every_s
        self._latencies = latencies
        self._row_s = row_s
        self._flushes = flushes
        self._chance = random.Random(seed)
        self._packing = packing
        self._rows: dict[Hashable, _Row] = {}
        self._done = self._committer = self._reads = self._flushed = 0
        self._last_s = 0.0

    def run(self, until_s: float = math.inf) -> Simulated:
        """Simulate until all flushes are done, or until then."""
        clock = _Clock()
        for number, start_s in enumerate(self._starts):
            clock.start(start_s, self._work(number, _Worker()))
        clock.run(until_s)
        seconds = self._last_s if math.isinf(until_s) else until_s
        return Simulated(self._done, self._committer, self._reads, self._flushed, seconds)

    def _work(self, number: int, worker: _Worker) -> Step:
        now_s = yield 0.0
        due_s = now_s
        made = 0
        while self._flushes is None or made < self._flushes:
            rows = list(self._rows_of(number))
            if rows:
                queue = iter(rows)
                now_s = yield [self._lane(worker, queue) for _ in range(min(len(rows), LANES))]
            made += 1
            self._flushed += 1
            self._last_s = max(self._last_s, now_s)
            due_s += self._every_s
            if now_s < due_s:
                now_s = yield due_s

    def _lane(self, worker: _Worker, queue: Iterator[Hashable]) -> Step:
        now_s = yield 0.0
        while part := list(itertools.islice(queue, SURE_PART if worker.cold == SURE else PART)):
            if worker.cold >= 0:
                unknown = [row for row in part if row not in worker.known]
                if unknown:
                    self._reads += 1
                    takes_s = self._chance.choice(self._latencies.read)
                    now_s = yield now_s + takes_s / 2
                    for name in unknown:
                        row = self._row(name)
                        version = row.visible(now_s)
                        worker.guessed(version == 0)
                        worker.known[name] = _Known(version, row.small)
                    now_s = yield now_s + takes_s / 2
            for start in range(0, len(part), BURST):
                burst = part[start : start + BURST]
                now_s = yield [self._burst(worker, burst)]

    def _burst(self, worker: _Worker, rows: Sequence[Hashable]) -> Step:
        """Requests of a burst are sent together, and take about as long as one another."""
        now_s = yield 0.0
        takes_s = self._draw()
        now_s = yield now_s + takes_s[0] / 2
        wait_s = 0.0
        settling: list[Step] = []
        for name in rows:
            if self._packs(worker, name):
                settling.append(self._settle(worker, name, False, takes_s))
                continue
            met, row_wait_s = self._commit(worker, name, now_s)
            wait_s = max(wait_s, row_wait_s)
            if not met:
                settling.append(self._settle(worker, name, True, takes_s))
        now_s = yield now_s + wait_s + takes_s[0] / 2
        if settling:
            yield settling

    def _settle(self, worker: _Worker, name: Hashable, refresh: bool, takes_s: tuple[float, float]) -> Step:
        """What takes more than the first try, until it is done."""
        now_s = yield 0.0
        while True:
            commit_s, read_s = takes_s
            if refresh:
                whole = True
                while whole:
                    now_s = yield now_s + read_s / 2
                    whole = self._refresh(worker, name, now_s)
                    now_s = yield now_s + read_s / 2
            packing = self._packs(worker, name)
            if packing:
                now_s = yield now_s + read_s / 2
                packing = self._to_pack(worker, name, now_s)
                now_s = yield now_s + read_s / 2
            now_s = yield now_s + commit_s / 2
            met, wait_s = self._commit(worker, name, now_s, packing)
            now_s = yield now_s + wait_s + commit_s / 2
            if met:
                return
            refresh, takes_s = True, self._draw()

    def _draw(self) -> tuple[float, float]:
        return self._chance.choice(self._latencies.commit), self._chance.choice(self._latencies.read)

    def _refresh(self, worker: _Worker, name: Hashable, now_s: float) -> bool:
        """Read what is new; must all of the row be read, since some of it has been packed away?"""
        self._reads += 1
        row, known = self._row(name), worker.known[name]
        version = row.visible(now_s)
        if 0 < known.version < row.packed:
            worker.known[name] = _Known()
            return True
        known.small = row.small if known.version == 0 else known.small + version - known.version
        known.version = version
        return False

    def _to_pack(self, worker: _Worker, name: Hashable, now_s: float) -> bool:
        """Read the small columns; are there enough, and is the row as it was known?"""
        self._reads += 1
        row, known = self._row(name), worker.known[name]
        if row.visible(now_s) != known.version:
            return False
        known.small = row.small
        return known.small >= PACK_AT

    def _commit(self, worker: _Worker, name: Hashable, now_s: float, packing: bool = False) -> tuple[bool, float]:
        """Was the row at the version that the worker knows, and how long did the commit wait for the row?"""
        row = self._row(name)
        self._commits += 1
        done_s = row.busy_s = max(now_s, row.busy_s) + self._row_s
        known = worker.known.get(name)
        met = row.version == (0 if known is None else known.version)
        if known is None:
            worker.guessed(met)
            known = worker.known[name] = _Known()
        if met:
            row.version += 1
            row.to_come.append((done_s, row.version))
            row.small += 1
            known.small += 1
            if packing:
                row.small -= PACKED - 1
                known.small -= PACKED - 1
                row.packed = row.version - row.small
            known.version = row.version
            self._done += 1
        return met, done_s - now_s

    def _packs(self, worker: _Worker, name: Hashable) -> bool:
        known = worker.known.get(name)
        return self._packing and known is not None and known.small >= PACK_AT

    def _row(self, name: Hashable) -> _Row:
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = _Row()
        return row


def hot_row(
    workers: int,
    commits_per_s: float,
    latencies: Latencies,
    *,
    row_s: float,
    seconds: float,
    seed: int = 1,
    packing: bool = True,
) -> Simulated:
    """One row that many write: each worker has something for it at its own times, evenly on average.

    Args:
        workers: how many.
        commits_per_s: that all of them together want to make.
        latencies, row_s: as of `Contest`.
        seconds: how long.
        seed: of all chance.
        packing: as of `Contest`.
    """
    every_s = workers / commits_per_s
    chance = random.Random(seed)
    starts = [chance.random() * every_s for _ in range(workers)]
    contest = Contest(lambda number: ("hot",), starts, every_s, latencies, row_s=row_s, seed=seed, packing=packing)
    return contest.run(seconds)


def spread(median_s: float, sigma: float, n: int = 500, seed: int = 1) -> list[float]:
    """Latencies around a median, lognormal: some take much longer."""
    chance = random.Random(seed)
    return [median_s * math.exp(chance.gauss(0.0, sigma)) for _ in range(n)]
