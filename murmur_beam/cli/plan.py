"""``murmur plan``: what a load needs of Bigtable and of workers, by closed formulas (docs/scaling.md explains them)."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from murmur_beam.cli.arguments import add_json, parse_amount, parse_n
from murmur_beam.cli.output import print_json
from murmur_beam.durations import spell_duration
from murmur_beam.errors import ConfigurationError
from murmur_beam.runs.command_line import parsed
from murmur_beam.sizes import size_text
from murmur_beam.windows import parse_duration

PLAN = "Print what a load needs: rows and requests a second, size of rows, Bigtable nodes, workers and cost."
EPILOG = """\
No store is opened. docs/scaling.md has the formulas and the measurements behind them. The cost is that of nodes,
storage and workers. Exit codes: 0 the load fits; 1 it does not, and stderr says what to change; 2 an error.
"""

# Google's figures of an SSD node a second: https://cloud.google.com/bigtable/docs/performance and /quotas.
NODE_WRITES, NODE_READS, NODE_SCAN_BYTES, NODE_BYTES = 14_000, 17_000, 220e6, 2.5e12
# No larger row can be read. Garbage collection needs up to a week: https://cloud.google.com/bigtable/pricing.
ROW_BYTES, COLLECT_S = 256e6, 7 * 86_400.0
# The store's own numbers; tests/stores/test_plan.py compares them with the store.
MARKER_BYTES, PACK_AT, PACKED, SMALL_EVENTS = 16, 48, 40, 256
ROWS_PER_APPEND, EVENTS_PER_FOLD, GRACE_S = 2_000, 100_000, 3_600
# Microseconds of a client's core on the emulator: docs/speed.md, "Throughput" and "Appending".
COMMIT_US, EVENT_US, CONFLICT_US, NEWS_US = 65, 8, 250, 1
APPEND_ROW_US, APPEND_EVENT_US, FOLD_CELL_US, FOLD_EVENT_US = 2, 6, 25, 1.1
# Assumed: bytes of a row without events and of a cell without its value, part of a node or core to plan with, CPU time
# of an event in the rest of the pipeline, the time of a request, and of a commit's turn at its row (hence ROW_COMMITS).
BASE_BYTES, CELL_BYTES, PLANNED_LOAD, OTHER_US, REQUEST_S, TURN_S = 150, 32, 0.7, 20, 0.005, 0.002
ROW_COMMITS, ROW_COMMITS_ALONE, _MOST_TIMES, _EXACT_RANKS, _RATIO = 70, 140, 50, 32, 1.15
# Prices of a node an hour and a GiB a month (cloud.google.com/bigtable/pricing), of a vCPU an hour (/dataflow/pricing).
NODE_USD, STORAGE_USD, WORKER_USD = 0.65, 0.17, 0.083


class Load(NamedTuple):
    """A load: the key of rank r has the weight ``r ** -skew``; without buckets, events are kept for ``life_s``."""

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


def key_shares(keys: int, skew: float) -> list[tuple[float, int]]:
    """Shares of Zipf keys and how many keys have each; the first ranks one by one, the others in bins that grow."""
    weights: list[tuple[float, int]] = []
    rank = 1
    while rank <= keys:
        last = rank if rank < _EXACT_RANKS else min(keys, math.ceil(rank * _RATIO))
        low, high, n = rank - 0.5, last + 0.5, last - rank + 1
        weight = math.log(high / low) if skew == 1 else (high ** (1 - skew) - low ** (1 - skew)) / (1 - skew)
        weights.append((float(rank) ** -skew if n == 1 else weight / n, n))
        rank = last + 1
    total = math.fsum(weight * n for weight, n in weights)
    return [(weight / total, n) for weight, n in weights]


def touched(share: float, n: float) -> float:
    """The chance that a row with this share of all events is among ``n`` events: 1 - (1 - share)^n."""
    return -math.expm1(n * math.log1p(-share)) if share < 1 else 1.0


class Rates(NamedTuple):
    """Rows a second; ``met``: first written by a process, ``met_there``: and existing; ``news``: events read."""

    written: float
    conflicts: float = 0.0
    met: float = 0.0
    met_there: float = 0.0
    read: float = 0.0
    news: float = 0.0
    folded: float = 0.0
    created: float = 0.0
    units: float = 0.0


def row_rates(load: Load, workers: int, share: float) -> Rates:
    """The rates of one row with this share of all events."""
    p, rate, flushes_per_s = touched(share, load.bundle), load.events_per_s * share, load.events_per_s / load.bundle
    written = flushes_per_s * p
    per_write, events, writes = rate / written, rate * load.life_s, written * load.life_s
    units = written * max(1.0, (per_write * MARKER_BYTES + BASE_BYTES) / 1_000)
    row = Rates(written, created=-math.expm1(-events) / load.life_s, units=units)
    if load.append:
        folds, pending = touched(share, load.events_per_s * load.fold_s) / load.fold_s, rate * load.fold_s
        return row._replace(folded=folds * max(1.0, pending / EVENTS_PER_FOLD))
    flushes = max(1.0, flushes_per_s * load.life_s)
    mine = max(1.0, flushes / workers)
    new, met = touched(p, flushes) / (p * flushes), touched(p, mine) / (p * mine)
    # A row is as a process left it if none of the other processes has had it in the turns since.
    stale = (1 - new) * (1 - p * (1 - p) ** (workers - 1) / touched(p, workers))
    if workers > 1:  # while one reads the row and tries again, others may come first
        stale *= math.exp(min(1.0, written * 2 * REQUEST_S))
    packs = writes > PACK_AT and per_write <= SMALL_EVENTS
    # A process reads a row again if markers that it lacks were packed: none of the last 8 to 47 commits was its own.
    recent = range(PACK_AT - PACKED, PACK_AT)
    by_chance, by_turns = sum((1 - 1 / workers) ** n for n in recent), sum(workers - 1 > n for n in recent)
    behind, visits = packs * (p * by_turns + (1 - p) * by_chance) / PACKED, writes / workers
    return row._replace(
        conflicts=written * stale,
        met=written * met,
        met_there=written * max(0.0, met - new),
        read=written * (stale * (1 + behind) + packs * min(workers, PACKED) / PACKED),
        news=rate * (workers - 1) * (1 + math.expm1(-visits) / visits) + written * stale * behind * events / 2,
    )


def rates(load: Load, workers: int) -> Rates:
    """The sum over all rows."""
    keys = key_shares(load.keys, load.skew)
    rows = [[n * load.shards * one for one in row_rates(load, workers, share / load.shards)] for share, n in keys]
    total = Rates(*(math.fsum(values) for values in zip(*rows, strict=True)))
    # The more of the rows that a process meets exist, the more often it reads such rows before it writes.
    return total._replace(conflicts=total.conflicts - (total.met_there**2 / total.met if total.met else 0.0))


def plan(load: Load) -> dict[str, float]:
    """What a load needs, for its workers (``writers``) or the fewest that are enough. More ``workers``: too few."""
    r = rates(load, writers := load.workers or 1)
    needed = _workers(load, r)
    most = writers if load.workers else needed * _MOST_TIMES
    while writers < needed <= most:
        writers, r = needed, rates(load, needed)
        needed = _workers(load, r)
    share, _ = key_shares(load.keys, load.skew)[0]
    hot, rate = row_rates(load, writers, share / load.shards), load.events_per_s * share / load.shards
    fold_written, fold_read, fold_workers, requests, pending_s = 0.0, 0.0, 0, r.written + r.conflicts, 0.0
    # A conditional write counts as a write and a read of a node; a fold's delete is a write.
    node_writes, node_reads, scanned = r.units, r.written + r.conflicts + r.read, r.news
    if load.append:
        pending_s, flushes_per_s = min(load.fold_s, load.life_s), load.events_per_s / load.bundle
        requests = flushes_per_s * math.ceil(r.written / flushes_per_s / ROWS_PER_APPEND)
        # A fold looks for rows and reads what is pending; it commits and deletes. A new row gets a version first.
        fold_written, fold_read = 2 * r.folded + r.created, 2 * r.folded
        fold_us = r.written * FOLD_CELL_US + load.events_per_s * FOLD_EVENT_US + r.folded * COMMIT_US
        fold_workers = math.ceil(fold_us / 1e6 / PLANNED_LOAD)
        node_writes, node_reads, scanned = r.units + fold_written, 3 * r.folded + r.created, load.events_per_s
    kept_s = load.life_s if load.retention_s is None else load.life_s / 2 + load.retention_s + GRACE_S + COLLECT_S
    stored = kept_s * (load.events_per_s * MARKER_BYTES + r.created * BASE_BYTES)
    busy = node_writes / NODE_WRITES + max(node_reads / NODE_READS, scanned * MARKER_BYTES / NODE_SCAN_BYTES)
    nodes = max(1, math.ceil(busy / PLANNED_LOAD), math.ceil(stored / NODE_BYTES))
    hourly_usd = nodes * NODE_USD + (max(needed, writers) + fold_workers) * WORKER_USD
    hot_bytes = rate * (load.life_s + pending_s) * MARKER_BYTES + hot.written * pending_s * CELL_BYTES + BASE_BYTES
    return {
        "rows_written": r.written,
        "rows_read": r.read,
        "conflicts": r.conflicts,
        "write_requests": requests,
        "fold_rows_written": fold_written,
        "fold_rows_read": fold_read,
        "hot_row_writes": hot.written,
        "hot_row_events": rate * load.life_s,
        "hot_row_bytes": hot_bytes,
        "stored_bytes": stored,
        "nodes": nodes,
        "writers": writers,
        "workers": needed,
        "fold_workers": fold_workers,
        "usd_a_month": 730 * hourly_usd + stored / 2**30 * STORAGE_USD,
    }


def _workers(load: Load, r: Rates) -> int:
    event_us, row_us = (APPEND_EVENT_US, APPEND_ROW_US) if load.append else (EVENT_US, COMMIT_US)
    us = load.events_per_s * (event_us + OTHER_US) + r.written * row_us + r.read * CONFLICT_US + r.news * NEWS_US
    return math.ceil(us / 1e6 / PLANNED_LOAD)


def add_plan(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of ``murmur plan``."""
    amount, number, duration = parsed(parse_amount), parsed(parse_n), parsed(parse_duration)
    kept = "how long a bucket takes events after its end (7d); without --bucket, how long events are kept (3650d)"
    for flag, metavar, kind, default, text in (
        ("--events_per_s", "N", amount, ..., "events of all keys a second, more than 0"),
        ("--keys", "N", number, ..., "number of keys"),
        ("--skew", "S", amount, 0.0, "Zipf exponent: the key of rank r has the weight r^-S; 0: all alike"),
        ("--bucket", "DURATION", duration, None, "length of a time bucket, such as 1h; default: all-time counters"),
        ("--retention", "DURATION", duration, None, kept),
        ("--workers", "N", number, None, "processes that write; default: as many as are needed"),
        ("--bundle", "N", number, 10_000, "events of one flush of a process"),
        ("--shards", "N", number, 1, "rows of each key, 1 to 256"),
        ("--fold_every", "DURATION", duration, "1m", "append: from one fold to the next"),
    ):
        text += "" if default in (None, ...) else f"; default: {default}"
        sub.add_argument(flag, metavar=metavar, type=kind, default=default, required=default is ..., help=text)
    sub.add_argument(
        "--write", choices=("commit", "append"), default="commit", help="as of create-table; default: commit"
    )
    add_json(sub, "one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the plan for a load; 1 if the load does not fit."""
    kept = timedelta(days=7 if args.bucket else 3_650) if args.retention is None else args.retention
    for name in ("events_per_s", "bucket", "fold_every"):
        if getattr(args, name) in (0, timedelta(0)):
            raise ConfigurationError(name, "must be more than 0")
    if args.shards > 256:
        raise ConfigurationError("shards", f"must be from 1 to 256, got {args.shards}")
    life_s, fold_s = (args.bucket or kept).total_seconds(), args.fold_every.total_seconds()
    retention_s = kept.total_seconds() if args.bucket else None
    rate, append = (args.events_per_s, args.keys, args.skew), args.write == "append"
    load = Load(*rate, life_s, retention_s, append, args.workers, args.bundle, args.shards, fold_s)
    figures = plan(load)
    problems = list(_problems(load, figures))
    if args.json:
        print_json(fits=not problems, **figures, problems=problems)
    else:
        for name, value in figures.items():
            per_s = " a second" if name.endswith(("written", "read", "conflicts", "requests", "writes")) else ""
            number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            print(f"{name.replace('_', ' ') + per_s:<32}{size_text(value) if 'bytes' in name else number:>12}")
    sys.stderr.writelines(f"murmur: does not fit: {problem}\n" for problem in problems)
    return int(bool(problems))


def _problems(load: Load, figures: dict[str, float]) -> Iterator[str]:
    """What does not fit, and what to change."""
    if (size := figures["hot_row_bytes"]) > ROW_BYTES:
        full = spell_duration(timedelta(seconds=int(load.life_s * ROW_BYTES / size)))
        yield (
            f"the hottest row grows to {size_text(size)}; a row above {size_text(ROW_BYTES)} (16 million events"
            f"{'' if load.retention_s is not None else ' in all its life'}) cannot be read, and this one is full after "
            f"{full}. Use {'--bucket' if load.retention_s is None else 'shorter buckets'} or more --shards"
        )
    most = ROW_COMMITS_ALONE if figures["writers"] == 1 else ROW_COMMITS
    if not load.append and figures["hot_row_writes"] > most:
        yield (
            f"the hottest row gets {figures['hot_row_writes']:,.0f} commits a second, and takes about {most}, of all "
            "writers together. Use --write append, a grouping step that gives each row one worker, or a larger "
            "--bundle; more shards do not help against many writers (docs/scaling.md)"
        )
    if figures["workers"] > figures["writers"]:
        enough = "no number of workers is enough: each reads what the others commit. Use --write append"
        yield f"--workers {load.workers}: {figures['workers']:,} are needed" if load.workers else enough
