"""From events a second to what they take: commits, nodes, workers, bytes and money. Arithmetic, no measuring.

All figures are of a steady state at the given rate. Assumptions carry where they come from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.simulation import Keys, key_shares, touched
from murmur_beam.state.base import GRACE_S
from murmur_beam.state.bigtable.fingerprints import FINGERPRINT_BYTES
from murmur_beam.state.bigtable.row_cache import PACK_AT, PACKED, ROW_WEIGHT, SMALL_EVENTS

DAY_S = 86_400.0
MB = 1e6
GIB = 2.0**30
COLUMN_BYTES = 24 + 8
"""Of a column of events: its name, and what Bigtable keeps of a cell besides, as the store reckons."""
KNOWN_BYTES = 15
"""That a process takes to remember an event."""
_TRIED_AT_MOST = 50
"""Times the workers that it would take if none read of the others: if that many are too few there is no number."""
_SHARDS = [2**power for power in range(9)]
_BUCKETS_S = (DAY_S, 3_600.0, 900.0, 300.0, 60.0)
_FLUSHES = (1_000, 10_000)
_KNOWN = (1_000_000, 10_000_000, 100_000_000)


def assumed(default: float, unit: str, source: str) -> Any:
    """An assumption: a default that can be changed, with where it comes from."""
    return field(default=default, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """What the arithmetic takes for granted; each is an argument of the command."""

    commit_us: float = assumed(65, "us of a core for a commit", "measured: benchmarks.throughput, own rows")
    event_us: float = assumed(8, "us of a core for an event", "measured: benchmarks.throughput, one hot key")
    conflict_us: float = assumed(
        250, "us of a core for a commit that found the row written by another, its read and the second try", "measured"
    )
    news_us: float = assumed(1, "us of a core to learn one event of another worker", "measured")
    other_us: float = assumed(
        20, "us of a core for an event outside of murmur_beam: receiving, decoding", "assumed; measure yours"
    )
    group_us: float = assumed(20, "us of a core for an event in a grouping step", "assumed; measure yours")
    commit_ms: float = assumed(
        5,
        "ms from a commit to its answer",
        "assumed; measure yours: the client-side latency of Bigtable's monitoring",
    )
    read_ms: float = assumed(5, "ms from reading a row to its answer", "assumed, as commit_ms")
    row_ms: float = assumed(2, "ms for which a conditional write has its row to itself", "assumed, not documented")
    node_writes: float = assumed(
        14_000, "rows of 1 KB a second that an SSD node writes", "https://cloud.google.com/bigtable/docs/performance"
    )
    node_reads: float = assumed(
        17_000, "rows of 1 KB a second that an SSD node reads", "https://cloud.google.com/bigtable/docs/performance"
    )
    node_scan_mb: float = assumed(
        220, "MB a second that an SSD node scans", "https://cloud.google.com/bigtable/docs/performance"
    )
    node_tb: float = assumed(
        2.5,
        "TB to keep on an SSD node",
        "https://cloud.google.com/bigtable/quota (an older version; look up what it is now)",
    )
    node_load: float = assumed(
        0.7,
        "part of a node's throughput to plan with",
        "assumed",
    )
    core_load: float = assumed(0.7, "part of a worker's core to plan with", "assumed")
    row_mb: float = assumed(
        100, "MB that a row should stay below", "https://cloud.google.com/bigtable/quotas (hard limit: 256 MB)"
    )
    row_bytes: float = assumed(
        150, "bytes of a row without its events: key, sum, version", "assumed: 30 of them the key"
    )
    collect_days: float = assumed(
        7,
        "days until Bigtable has removed what it may",
        "https://cloud.google.com/bigtable/pricing (compaction: typically within a week)",
    )
    worker_gb: float = assumed(4, "GB of memory of a worker of one vCPU", "assumed: n2-standard")
    event_bytes: float = assumed(200, "bytes of an event as it arrives", "assumed; measure yours")
    node_usd: float = assumed(
        0.65, "USD for a node an hour, us-central1", "cited by others of https://cloud.google.com/bigtable/pricing"
    )
    ssd_usd: float = assumed(
        0.17, "USD for a GiB on SSD a month", "cited by others of https://cloud.google.com/bigtable/pricing"
    )
    vcpu_usd: float = assumed(
        0.069, "USD for a streaming vCPU an hour", "cited by others of https://cloud.google.com/dataflow/pricing"
    )
    memory_usd: float = assumed(
        0.003557,
        "USD for a GB of a worker's memory an hour",
        "cited by others of https://cloud.google.com/dataflow/pricing",
    )
    engine_usd: float = assumed(
        0.018, "USD for a GB through Streaming Engine", "assumed; https://cloud.google.com/dataflow/pricing"
    )
    pubsub_usd: float = assumed(40, "USD for a TiB published or delivered", "https://cloud.google.com/pubsub/pricing")
    month_hours: float = assumed(730, "hours of a month", "365 days by 12")


@dataclass(frozen=True)
class Load:
    """What comes in.

    Attributes:
        events_per_s: of all keys.
        keys: how many.
        skew: the key of rank r has the weight ``r ** -skew``.
        hot_share: of one key more, which takes this part of all events.
        bucket_s: length of the window's buckets.
        retention_s: for how long after its end a bucket still takes events.
    """

    events_per_s: float
    keys: int
    skew: float
    hot_share: float
    bucket_s: float
    retention_s: float

    @property
    def shares(self) -> list[Keys]:
        """Of the keys."""
        return key_shares(self.keys, self.skew, self.hot_share)


@dataclass(frozen=True)
class Options:
    """What can be set.

    Attributes:
        flush: events of one, at most; `FlushLimits` and the bundle.
        age_s: for which events are buffered, at most.
        shards: rows of each key.
        by_row: is there a grouping step that gives each row to one worker?
        known: events that a worker remembers; ``max_cached_events``.
        workers: of one core each; None for as many as it takes.
    """

    flush: int
    age_s: float
    shards: int = 1
    by_row: bool = False
    known: int = 1_000_000
    workers: int | None = None


@dataclass(frozen=True)
class Plan:
    """What it takes; a second, where a figure is a rate.

    Attributes:
        load, options, assumptions: what it was made for.
        events_per_flush, rows_per_flush: on average.
        commits: that come true, in a second.
        conflicts: commits that find the row written by another, for each that comes true.
        requests: writes and reads of Bigtable, in a second.
        hot_commits: of the hottest row, in a second.
        hot_events, hot_mb: in that row by the end of its bucket.
        row_limit: commits a second that one row takes.
        events_per_commit: of the hottest row.
        read_again: rows a second that a worker had forgotten.
        read_mb: a second, of events that workers have to learn.
        nodes_by_writes, nodes_by_reads, nodes_by_storage, nodes: of Bigtable.
        workers, worker_load: cores, and how busy they are.
        remembered: events by each of them when a bucket ends; a row counts as `ROW_WEIGHT`.
        stored_per_day, stored: bytes.
        costs: USD a month, by part.
    """

    load: Load
    options: Options
    assumptions: Assumptions
    events_per_flush: float
    rows_per_flush: float
    commits: float
    conflicts: float
    requests: float
    hot_commits: float
    hot_events: float
    hot_mb: float
    row_limit: float
    events_per_commit: float
    read_again: float
    read_mb: float
    nodes_by_writes: float
    nodes_by_reads: float
    nodes_by_storage: float
    nodes: int
    workers: int
    worker_load: float
    remembered: float
    stored_per_day: float
    stored: float
    costs: dict[str, float]

    @property
    def cost(self) -> float:
        """USD a month."""
        return sum(self.costs.values())

    @property
    def keeps_up(self) -> bool:
        """Are there enough workers?"""
        return self.worker_load <= self.assumptions.core_load * 1.001

    @property
    def in_flight(self) -> int:
        """Requests that a worker has under way on average, twice, and at least what is the default."""
        busy = 2 * self.requests / self.workers * self.assumptions.commit_ms / 1_000
        return max(64, 2 ** math.ceil(math.log2(busy)) if busy > 1 else 1)

    @property
    def warnings(self) -> list[str]:
        """What is over a limit, and what helps."""
        a, options = self.assumptions, self.options
        found = []
        if not self.keeps_up:
            what = "more workers"
            if options.workers is None and options.by_row:
                what = "they would read again what they have forgotten; a larger max_cached_events, or shorter buckets"
            elif options.workers is None:
                what = "more of them read more of what the others write; take --by-row, or shorter buckets"
            found.append(f"{self.workers:,} workers would be {self.worker_load:,.0%} busy: {what}")
        if self.hot_commits > self.row_limit:
            what = "a longer age, larger flushes" if options.by_row else "--by-row, or larger flushes"
            found.append(f"the hottest row gets {self.hot_commits:,.0f} commits/s of {self.row_limit:,.0f}: {what}")
        if self.hot_mb > a.row_mb:
            found.append(
                f"the hottest row grows to {self.hot_mb:,.0f} MB of {a.row_mb:,.0f}: more shards, or shorter buckets"
            )
        if self.hot_events > options.known:
            found.append(
                f"the hottest row has {self.hot_events:,.0f} events in the end, more than a worker remembers, and is "
                "read again each time: a larger max_cached_events, more shards, or shorter buckets"
            )
        known_gb = options.known * KNOWN_BYTES / 1e9
        if known_gb > a.worker_gb / 2:
            found.append(f"max_cached_events={options.known} takes {known_gb:,.1f} GB of {a.worker_gb:g}")
        return found


class _Sums(NamedTuple):
    """Over all rows, a second.

    Attributes:
        commits, conflicts: how many.
        read_again: rows that had been forgotten.
        packing: rows that are read to pack their columns, or since they might have to.
        news: events that are read.
        write_units: rows of 1 KB.
        rows, columns: made.
    """

    commits: float
    conflicts: float
    read_again: float
    packing: float
    news: float
    write_units: float
    rows: float
    columns: float


def plan(load: Load, options: Options, assumptions: Assumptions) -> Plan:
    """What a load takes with these options."""
    a = assumptions
    shares = load.shares
    workers = options.workers or _workers(load, shares, options, a)
    sums = _sums(load, shares, options, workers, a)
    core_us = _core_us(load, options, sums, a)
    conflicts = sums.conflicts / sums.commits
    hot = shares[0].share / options.shards
    hot_rate = load.events_per_s * hot
    hot_commits = _commits(load, options, workers, hot)
    hot_events = hot_rate * load.bucket_s
    hot_columns = _columns(hot_commits * load.bucket_s, hot_rate / hot_commits)
    hot_mb = (hot_events * FINGERPRINT_BYTES + hot_columns * COLUMN_BYTES + a.row_bytes) / MB
    writes = max(sums.commits, sums.write_units) / a.node_writes
    # A condition is a read of the row, and those that fail are nothing else.
    reading = sums.conflicts + sums.read_again + sums.packing
    read_rows = sums.commits + sums.conflicts + reading
    read_mb = sums.news * FINGERPRINT_BYTES / MB
    reads = max(read_rows / a.node_reads, read_mb / a.node_scan_mb)
    per_day = DAY_S * (load.events_per_s * FINGERPRINT_BYTES + sums.rows * a.row_bytes + sums.columns * COLUMN_BYTES)
    stored = per_day * ((load.bucket_s / 2 + load.retention_s + GRACE_S) / DAY_S + a.collect_days)
    by_storage = stored / (a.node_tb * 1e12)
    by_writes, by_reads = writes / a.node_load, reads / a.node_load
    nodes = max(1, math.ceil(by_writes + by_reads), math.ceil(by_storage))
    arriving = load.events_per_s * a.event_bytes * a.month_hours * 3_600
    costs = {
        "Bigtable nodes": nodes * a.node_usd * a.month_hours,
        "Bigtable storage": stored / GIB * a.ssd_usd,
        "Dataflow workers": workers * (a.vcpu_usd + a.worker_gb * a.memory_usd) * a.month_hours,
        "Streaming Engine": arriving / 1e9 * a.engine_usd * (2 if options.by_row else 1),
        "Pub/Sub": 2 * arriving / 2**40 * a.pubsub_usd,
    }
    n = _events_per_flush(load, options, workers)
    return Plan(
        load=load,
        options=options,
        assumptions=a,
        events_per_flush=n,
        rows_per_flush=n * sums.commits / load.events_per_s,
        commits=sums.commits,
        conflicts=conflicts,
        requests=sums.commits + sums.conflicts + reading,
        hot_commits=hot_commits,
        hot_events=hot_events,
        hot_mb=hot_mb,
        row_limit=_row_limit(options, a),
        events_per_commit=hot_rate / hot_commits,
        read_again=sums.read_again,
        read_mb=read_mb,
        nodes_by_writes=by_writes,
        nodes_by_reads=by_reads,
        nodes_by_storage=by_storage,
        nodes=nodes,
        workers=workers,
        worker_load=core_us / 1e6 / workers,
        remembered=min(options.known, _remembered([_Rows.of(load, options, workers, one) for one in shares], load)),
        stored_per_day=per_day,
        stored=stored,
        costs=costs,
    )


def _workers(load: Load, shares: Sequence[Keys], options: Options, a: Assumptions) -> int:
    """The fewest that are not too busy. More of them read more of one another's events, so there may be none: then as
    many as it would take without that."""

    def enough(workers: int) -> bool:
        return _core_us(load, options, _sums(load, shares, options, workers, a), a) <= workers * a.core_load * 1e6

    alone = _core_us(load, options, _sums(load, shares, options, 1, a)._replace(read_again=0.0, news=0.0), a)
    least = few = max(1, math.ceil(alone / 1e6 / a.core_load))
    many = least
    while not enough(many):
        if many > _TRIED_AT_MOST * least:
            return least
        few, many = many, math.ceil(many * 1.25)
    while many - few > 1 and few >= least:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def _core_us(load: Load, options: Options, sums: _Sums, a: Assumptions) -> float:
    """Of all workers' cores, a second."""
    per_event = a.event_us + a.other_us + (a.group_us if options.by_row else 0.0)
    read = (sums.conflicts + sums.read_again + sums.packing) * a.conflict_us + sums.news * a.news_us
    return load.events_per_s * per_event + sums.commits * a.commit_us + read


def _row_limit(options: Options, a: Assumptions) -> float:
    """Commits a second that a row takes: one after the other by one worker; by many, each with a first try that fails
    and a read, so many that all of them keep up. The simulation collapses soon above that."""
    return 1_000 / (a.commit_ms + a.row_ms if options.by_row else a.commit_ms + a.read_ms + 2 * a.row_ms)


def _events_per_flush(load: Load, options: Options, workers: int) -> float:
    return max(1.0, min(options.flush, load.events_per_s / workers * options.age_s))


def _commits(load: Load, options: Options, workers: int, share: float) -> float:
    """Of a row with this share of the events, a second."""
    rate = load.events_per_s * share
    if options.by_row:
        # A batch begins with an event, and takes what comes until it is full or too old.
        return rate / min(options.flush, 1 + rate * options.age_s)
    n = _events_per_flush(load, options, workers)
    return load.events_per_s / n * touched(share, n)


def _sums(load: Load, shares: Sequence[Keys], options: Options, workers: int, a: Assumptions) -> _Sums:
    return _Sums(*(math.fsum(values) for values in zip(*_terms(load, shares, options, workers, a), strict=True)))


def _terms(
    load: Load, shares: Sequence[Keys], options: Options, workers: int, a: Assumptions
) -> Iterator[tuple[float, ...]]:
    """What the rows of each class of keys add to `_Sums`."""
    others = 0.0 if options.by_row else (workers - 1) / workers
    behind = _behind(workers) if others else 0.0
    rows_of = [_Rows.of(load, options, workers, keys) for keys in shares]
    horizon_s = _horizon(rows_of, options.known, load.bucket_s)
    for row in rows_of:
        in_bucket = row.commits * load.bucket_s
        made = -math.expm1(-in_bucket) / in_bucket
        conflicts = row.commits * (1 - made) * others
        # Another may commit between the read and the second try; far above 1 the row does not keep up at all.
        conflicts += conflicts * math.expm1(min(1.0, row.commits * others * (a.commit_ms + a.read_ms) / 1_000))
        # A row that has become larger than all that is remembered is forgotten each time, any other if it waits long.
        large = max(0.0, 1 - options.known / row.events)
        forgotten = (1 - large) * math.exp(-row.own * horizon_s)
        again = row.commits * (1 - made) * (large + forgotten)
        small_events = min(row.events, options.known)
        news = row.commits * (1 - made) * (large * (small_events + row.events) + forgotten * small_events) / 2
        per_commit = row.rate / row.commits
        packed = in_bucket > PACK_AT and per_commit <= SMALL_EVENTS
        # Each worker finds out for itself that another has packed.
        packing = row.commits * min(1 if options.by_row else workers, PACKED) / PACKED if packed else 0.0
        if others:
            own = row.own * load.bucket_s
            # Until its last commit of the bucket a worker has read all that others have brought.
            news += row.rate * (workers - 1) * _last(own)
            if packed:
                # Where some of it has been packed away since, all of the row is read: half of it, on average.
                news += row.commits * (1 - made) * _last(own) * behind * row.events / 2
        yield (
            row.n * row.commits,
            row.n * conflicts,
            row.n * again,
            row.n * packing,
            row.n * news,
            row.n * row.commits * max(1.0, (per_commit * FINGERPRINT_BYTES + a.row_bytes) / 1_000),
            row.n * -math.expm1(-row.events) / load.bucket_s,
            row.n * _columns(in_bucket, per_commit) / load.bucket_s,
        )


class _Rows(NamedTuple):
    """Rows of about the same share of the events.

    Attributes:
        n: how many such rows.
        rate: events of each, a second.
        events: of each, by the end of its bucket.
        commits: of each, a second.
        own: of those, by one worker that has to do with the row.
        seen: how many such rows a worker has to do with.
    """

    n: float
    rate: float
    events: float
    commits: float
    own: float
    seen: float

    @classmethod
    def of(cls, load: Load, options: Options, workers: int, keys: Keys) -> _Rows:
        share, n = keys.share / options.shards, keys.n * options.shards
        commits, rate = _commits(load, options, workers, share), load.events_per_s * share
        own, seen = (commits, n / workers) if options.by_row else (commits / workers, n)
        return cls(n, rate, rate * load.bucket_s, commits, own, seen)


def _remembered(rows: Sequence[_Rows], load: Load) -> float:
    """Events of all rows that a worker has to do with in a bucket."""
    return sum(one.seen * -math.expm1(-one.own * load.bucket_s) * (one.events + ROW_WEIGHT) for one in rows)


def _horizon(rows: Sequence[_Rows], known: float, bucket_s: float) -> float:
    """For how long a worker remembers a row that it does not use, when it can remember so many events in all."""

    def remembered(horizon_s: float) -> float:
        return sum(
            one.seen * -math.expm1(-one.own * horizon_s) * (min(one.events, known) / 2 + ROW_WEIGHT) for one in rows
        )

    low_s, high_s = 1e-6, bucket_s
    if remembered(high_s) <= known:
        return math.inf
    while high_s / low_s > 1.01:
        middle_s = math.sqrt(low_s * high_s)
        low_s, high_s = (middle_s, high_s) if remembered(middle_s) <= known else (low_s, middle_s)
    return low_s


def _last(touches: float) -> float:
    """Which part of a bucket has passed at the last of so many touches, on average; they come at random."""
    return 1 + math.expm1(-touches) / touches if touches > 1e-9 else touches / 2


def _behind(workers: int) -> float:
    """The chance that some of a row was packed away since a worker's last commit, with so many of them."""
    stay = 1 - 1 / workers
    tail = range(PACK_AT - PACKED, PACK_AT)
    return sum(stay**commits for commits in tail) / len(tail)


def _columns(commits: float, events: float) -> float:
    """That hold the events of so many commits with so many events each."""
    if commits <= PACK_AT or events > SMALL_EVENTS:
        return commits
    return PACK_AT + (commits - PACK_AT) / PACKED


def advise(load: Load, options: Options, assumptions: Assumptions) -> Plan:
    """The cheapest plan without a warning, with buckets as long as may be; if there is none, what was asked for.

    Args:
        load: what comes in; its buckets are not made longer.
        options: its age and workers; the rest is to be found.
        assumptions: to plan with.
    """
    for bucket_s in [load.bucket_s, *(one for one in _BUCKETS_S if one < load.bucket_s)]:
        shorter = dataclasses.replace(load, bucket_s=bucket_s)
        found = [
            one
            for flush in sorted({options.flush, *_FLUSHES})
            for by_row in (False, True)
            for known in _KNOWN
            if (
                one := _best_shards(
                    shorter, dataclasses.replace(options, flush=flush, by_row=by_row, known=known), assumptions
                )
            )
        ]
        if found:
            return min(found, key=lambda one: one.cost)
    return plan(load, options, assumptions)


def _best_shards(load: Load, options: Options, assumptions: Assumptions) -> Plan | None:
    """With the fewest that will do: each more makes more rows of all keys."""
    hot = max(keys.share for keys in load.shares) * load.events_per_s * load.bucket_s
    most = min(options.known, assumptions.row_mb * MB / FINGERPRINT_BYTES)
    for shards in _SHARDS:
        if hot / shards > most:
            continue
        made = plan(load, dataclasses.replace(options, shards=shards), assumptions)
        return made if not made.warnings else None
    return None
