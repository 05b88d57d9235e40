"""What a load needs of Bigtable and of workers, by closed formulas; docs/scaling.md explains them.

Rates are of a steady state, in which the writers of a row take turns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

# Google's figures: https://cloud.google.com/bigtable/docs/performance and /quotas (an older version for NODE_BYTES).
NODE_WRITES, NODE_READS, NODE_SCAN_BYTES = 14_000, 17_000, 220e6
"""Of an SSD node a second: rows of 1 KB, and bytes."""
NODE_BYTES = 2.5e12
ROW_BYTES, GOOD_ROW_BYTES = 256e6, 100e6
"""No row above the first can be read; the second is recommended."""
COLLECT_S = 7 * 86_400.0
"""Garbage collection typically needs up to a week: https://cloud.google.com/bigtable/pricing, on compaction."""

# The store's own numbers; tests/stores/test_plan.py compares them with the store.
MARKER_BYTES, PACK_AT, PACKED, SMALL_EVENTS, ROW_WEIGHT, KNOWN_EVENTS = 16, 48, 40, 256, 60, 2_000_000
KNOWN_BYTES = 15
"""Memory of an event that a process remembers: docs/speed.md, "What makes it fast"."""
ROWS_PER_APPEND, EVENTS_PER_FOLD, GRACE_S = 2_000, 100_000, 3_600

# Microseconds of a client's core, measured on the emulator: docs/speed.md, "Throughput", own rows and one hot key. The
# costs of a read after a conflict, and of an event that it brings, were measured once and are in no table.
COMMIT_US, EVENT_US, CONFLICT_US, NEWS_US = 65, 8, 250, 1
# "Appending", by CPU: own rows and Zipf(1.3) beside the 53 us of WriteToBigTable; folding cells of 1 and of 2,000.
APPEND_ROW_US, APPEND_EVENT_US, FOLD_CELL_US, FOLD_EVENT_US = 2, 6, 25, 1.1

# Assumed: bytes of a row without events, and of a cell without its value; part of a node or core to plan with.
BASE_BYTES, CELL_BYTES, PLANNED_LOAD = 150, 32, 0.7
REQUEST_S, TURN_S = 0.005, 0.002
"""Assumed: a request's time, and that for which a commit has its row to itself."""
ROW_COMMITS, ROW_COMMITS_ALONE = 70, 140
"""Commits a second of a row: by many writers 1 / (2 requests + 2 turns), by one 1 / (1 request + 1 turn). On the
emulator, with shorter requests, 32 writers of one row merge 178 events a second (docs/speed.md, "Contention")."""

MONTH_H = 730
_MOST_TIMES = 50
"""More workers than this times what one alone would need are not looked for."""
_EXACT_RANKS, _RATIO = 32, 1.15


class Load(NamedTuple):
    """What comes in, and how it is written.

    Attributes:
        events_per_s, keys, skew: the key of rank r has the weight ``r ** -skew``.
        life_s: length of a bucket; without buckets, for how long events are kept.
        retention_s: for how long after its end a bucket is kept; None without buckets.
        append: whether the table is appended to.
        workers: processes that write; None for as many as are needed.
        bundle: events of a flush.
        shards: rows of a key.
        fold_s: from one fold to the next.
        other_us: microseconds of a core for an event, outside of murmur_beam.
        node_usd, worker_usd, storage_usd: prices of a node and a worker an hour, and of a GiB a month.
    """

    events_per_s: float
    keys: int
    skew: float
    life_s: float
    retention_s: float | None
    append: bool
    workers: int | None
    bundle: int
    shards: int
    fold_s: float
    other_us: float = 20.0
    node_usd: float = 0.65
    worker_usd: float = 0.083
    storage_usd: float = 0.17

    @property
    def flushes_per_s(self) -> float:
        """Of all workers."""
        return self.events_per_s / self.bundle


class Keys(NamedTuple):
    """Keys of about the same share of all events: the share of each, and how many they are."""

    share: float
    n: float


def key_shares(keys: int, skew: float) -> list[Keys]:
    """Shares of Zipf keys, the hottest first: the first ranks one by one, the others in bins that grow."""
    weights: list[Keys] = []
    rank = 1
    while rank <= keys:
        last = rank if rank < _EXACT_RANKS else min(keys, math.ceil(rank * _RATIO))
        low, high, n = rank - 0.5, last + 0.5, last - rank + 1
        weight = math.log(high / low) if skew == 1 else (high ** (1 - skew) - low ** (1 - skew)) / (1 - skew)
        weights.append(Keys(float(rank) ** -skew if n == 1 else weight / n, n))
        rank = last + 1
    total = math.fsum(weight * n for weight, n in weights)
    return [Keys(weight / total, n) for weight, n in weights]


def touched(share: float, n: float) -> float:
    """The chance that a row with this share of all events is among ``n`` events: 1 - (1 - share)^n."""
    return -math.expm1(n * math.log1p(-share)) if share < 1 else 1.0


class Rates(NamedTuple):
    """Rows a second, of one row or of all together.

    Attributes:
        written: by flushes; of commits, those that succeed.
        conflicts: commits that found a newer version.
        met, met_there: rows that a process commits to first; of them, rows that another process has written.
        read: by writers: after conflicts, and to put markers together.
        news: events read with those rows.
        folded: by folds, a commit each.
        created: rows that are new in their bucket.
        cells: of markers that stay.
        units: written by flushes, in rows of 1 KB.
        known: events of the rows that a process has to remember; not a rate.
    """

    written: float
    conflicts: float = 0.0
    met: float = 0.0
    met_there: float = 0.0
    read: float = 0.0
    news: float = 0.0
    folded: float = 0.0
    created: float = 0.0
    cells: float = 0.0
    units: float = 0.0
    known: float = 0.0


def row_rates(load: Load, workers: int, share: float) -> Rates:
    """What one row with this share of all events needs."""
    p, rate = touched(share, load.bundle), load.events_per_s * share
    written = load.flushes_per_s * p
    per_write, events, writes = rate / written, rate * load.life_s, written * load.life_s
    row = Rates(
        written=written,
        created=-math.expm1(-events) / load.life_s,
        units=written * max(1.0, (per_write * MARKER_BYTES + BASE_BYTES) / 1_000),
    )
    if load.append:
        folds, pending = touched(share, load.events_per_s * load.fold_s) / load.fold_s, rate * load.fold_s
        cells = _cells(folds * load.life_s, events / (folds * load.life_s)) / load.life_s
        return row._replace(folded=folds * max(1.0, pending / EVENTS_PER_FOLD), cells=cells)
    flushes = max(1.0, load.flushes_per_s * load.life_s)
    mine = max(1.0, flushes / workers)
    new, met = touched(p, flushes) / (p * flushes), touched(p, mine) / (p * mine)
    # A row is as a process left it if none of the others has had it in the turns since.
    stale = (1 - new) * (1 - p * (1 - p) ** (workers - 1) / touched(p, workers))
    if workers > 1:  # while one reads the row and tries again, others may come first
        stale *= math.exp(min(1.0, written * 2 * REQUEST_S))
    packs = writes > PACK_AT and per_write <= SMALL_EVENTS
    # Each process notices that markers were put together; a process that lacks those reads the row again. Of the last 8
    # to 47 commits one is its own by chance, where rows are touched by chance, and by turns, where always.
    recent = range(PACK_AT - PACKED, PACK_AT)
    by_chance = sum((1 - 1 / workers) ** commits for commits in recent) / PACKED
    by_turns = sum(workers - 1 > commits for commits in recent) / PACKED
    behind = packs * (p * by_turns + (1 - p) * by_chance)
    visits = writes / workers
    return row._replace(
        conflicts=written * stale,
        met=written * met,
        met_there=written * max(0.0, met - new),
        read=written * (stale * (1 + behind) + packs * min(workers, PACKED) / PACKED),
        news=rate * (workers - 1) * (1 + math.expm1(-visits) / visits) + written * stale * behind * events / 2,
        cells=_cells(writes, per_write) / load.life_s,
        known=touched(p, mine) * (events + ROW_WEIGHT),
    )


def rates(load: Load, workers: int) -> Rates:
    """The sum over all rows."""
    rows = [
        [keys.n * load.shards * one for one in row_rates(load, workers, keys.share / load.shards)]
        for keys in key_shares(load.keys, load.skew)
    ]
    total = Rates(*(math.fsum(values) for values in zip(*rows, strict=True)))
    # The more of the rows that a process meets exist, the more often it reads such rows before it writes.
    return total._replace(conflicts=total.conflicts - (total.met_there**2 / total.met if total.met else 0.0))


def _cells(commits: float, events: float) -> float:
    """Cells with the markers of this many commits, each of this many events."""
    return commits if commits <= PACK_AT or events > SMALL_EVENTS else PACK_AT + (commits - PACK_AT) / PACKED


class Plan(NamedTuple):
    """What a load needs; a second, where the name gives no other unit.

    Attributes:
        writers: processes that the other figures are for.
        workers: processes that are needed, of one vCPU each. If these are more than the writers, those that are given
            are too few; or else no number is enough, since each reads what the others write.
    """

    rows_written: float
    rows_read: float
    conflicts: float
    fold_rows_written: float
    fold_rows_read: float
    write_requests: float
    hot_row_writes: float
    hot_row_events: float
    hot_row_bytes: float
    known_events: float
    stored_bytes: float
    nodes: int
    writers: int
    workers: int
    fold_workers: int
    usd_a_month: float


def plan(load: Load) -> Plan:
    """What a load needs: for the workers that are given, or for the fewest that are enough."""
    writers = load.workers or 1
    needed = _workers(load, rates(load, writers))
    most = writers if load.workers else needed * _MOST_TIMES
    while writers < needed <= most:
        writers, needed = needed, _workers(load, rates(load, needed))
    r = rates(load, writers)
    hot = row_rates(load, writers, key_shares(load.keys, load.skew)[0].share / load.shards)
    rate = load.events_per_s * key_shares(load.keys, load.skew)[0].share / load.shards
    pending_s = min(load.fold_s, load.life_s) if load.append else 0.0
    hot_bytes = rate * (load.life_s + pending_s) * MARKER_BYTES + BASE_BYTES
    hot_bytes += (hot.cells * load.life_s + hot.written * pending_s) * CELL_BYTES
    requests = r.written + r.conflicts
    fold_written = fold_read = 0.0
    fold_workers = 0
    if load.append:
        requests = load.flushes_per_s * math.ceil(r.written / load.flushes_per_s / ROWS_PER_APPEND)
        # A fold looks for rows and reads what is pending; it commits and deletes. A new row gets a version first.
        fold_written, fold_read = 2 * r.folded + r.created, 2 * r.folded
        fold_us = r.written * FOLD_CELL_US + load.events_per_s * FOLD_EVENT_US + r.folded * COMMIT_US
        fold_workers = math.ceil(fold_us / 1e6 / PLANNED_LOAD)
    stored = _stored(load, r)
    nodes = max(1, math.ceil(_nodes(load, r) / PLANNED_LOAD), math.ceil(stored / NODE_BYTES))
    hourly = nodes * load.node_usd + (max(needed, writers) + fold_workers) * load.worker_usd
    return Plan(
        rows_written=r.written,
        rows_read=r.read,
        conflicts=r.conflicts,
        fold_rows_written=fold_written,
        fold_rows_read=fold_read,
        write_requests=requests,
        hot_row_writes=hot.written,
        hot_row_events=rate * load.life_s,
        hot_row_bytes=hot_bytes,
        known_events=r.known,
        stored_bytes=stored,
        nodes=nodes,
        writers=writers,
        workers=needed,
        fold_workers=fold_workers,
        usd_a_month=MONTH_H * hourly + stored / 2**30 * load.storage_usd,
    )


def _workers(load: Load, r: Rates) -> int:
    event_us, row_us = (APPEND_EVENT_US, APPEND_ROW_US) if load.append else (EVENT_US, COMMIT_US)
    us = load.events_per_s * (event_us + load.other_us) + r.written * row_us + r.read * CONFLICT_US + r.news * NEWS_US
    return math.ceil(us / 1e6 / PLANNED_LOAD)


def _nodes(load: Load, r: Rates) -> float:
    """Fully busy nodes. A conditional write counts as a read and a write; a fold's delete is a write."""
    if load.append:
        writes, reads = r.units + 2 * r.folded + r.created, 3 * r.folded + r.created
    else:
        writes, reads = r.units, r.written + r.conflicts + r.read
    scanned = (load.events_per_s if load.append else r.news) * MARKER_BYTES
    return writes / NODE_WRITES + max(reads / NODE_READS, scanned / NODE_SCAN_BYTES)


def _stored(load: Load, r: Rates) -> float:
    """Bytes; without buckets, at the end of the time for which events are kept."""
    kept_s = load.life_s
    if load.retention_s is not None:
        kept_s = load.life_s / 2 + load.retention_s + GRACE_S + COLLECT_S
    return kept_s * (load.events_per_s * MARKER_BYTES + r.created * BASE_BYTES + r.cells * CELL_BYTES)
