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
from murmur_beam.cli.plan_folds import EVERY, FoldRules, folds_of
from murmur_beam.durations import parse_duration, spell_duration
from murmur_beam.errors import ConfigurationError
from murmur_beam.option import text_of
from murmur_beam.options import FOLD_AGE, FOLD_SHARE
from murmur_beam.runs.command_line import parsed
from murmur_beam.sizes import size_text

PLAN = "Print what a load needs: rows and requests a second, size of rows, Bigtable nodes, workers and cost."
EPILOG = """\
No store is opened. docs/scaling.md has the formulas and the measurements behind them. The cost is that of nodes,
storage and workers. Exit codes: 0 the load fits; 1 it does not, and stderr says what to change; 2 an error.
"""

# Google's figures of an SSD node a second: https://cloud.google.com/bigtable/docs/performance and /quotas.
NODE_WRITES, NODE_READS, NODE_SCAN_BYTES, NODE_BYTES = 14_000, 17_000, 220e6, 2.5e12
# No larger row can be read: 256 MiB, with cells. Garbage collection needs up to a week: /bigtable/pricing.
ROW_EVENTS, COLLECT_S = 16e6, 7 * 86_400.0
# The store's own numbers; tests/stores/test_plan.py compares them with the store. CELL_BYTES: of a pending cell without
# its fingerprints; CACHED: events that a process remembers; CACHED_ROW: of these, what a row counts as.
MARKER_BYTES, CELL_BYTES, PACK_AT, PACKED, SMALL_EVENTS = 16, 22, 48, 40, 256
ROWS_PER_APPEND, GRACE_S, CACHED, CACHED_ROW, MOST_SHARDS = 2_000, 3_600, 2_000_000, 60, 256
# Microseconds of a client's core on the emulator: docs/speed.md, "Throughput" and "Appending".
COMMIT_US, EVENT_US, CONFLICT_US, NEWS_US = 65, 8, 250, 1
APPEND_ROW_US, APPEND_EVENT_US, FOLD_CELL_US, FOLD_EVENT_US, MARKER_US = 2, 6, 25, 1.1, 0.45
# Assumed: bytes of a row without events and of the deletion of a cell, part of a node or core to plan with, CPU time of
# an event (or a name) in the rest of the pipeline, the time of a request, and of a commit's turn at its row (hence
# ROW_COMMITS).
BASE_BYTES, DELETE_BYTES, PLANNED_LOAD, OTHER_US, REQUEST_S, TURN_S = 150, 40, 0.7, 20, 0.005, 0.002
ROW_COMMITS, ROW_COMMITS_ALONE, _MOST_TIMES, _EXACT_RANKS, _RATIO = 70, 140, 50, 32, 1.15
# Prices of a node an hour and a GiB a month (cloud.google.com/bigtable/pricing), of a vCPU an hour (/dataflow/pricing).
NODE_USD, STORAGE_USD, WORKER_USD = 0.65, 0.17, 0.083

_TOTALS = "hot_row_events hot_row_bytes stored_bytes nodes writers workers fold_workers usd_a_month"
"""Figures that are not a second's."""
_BUCKETS = ("1d", "12h", "6h", "4h", "2h", "1h", "30m", "20m", "15m", "10m", "5m", "2m", "1m", "30s", "10s", "5s", "1s")
"""Usual lengths of a bucket."""


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
    fold: FoldRules


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


def shard_shares(shards: int) -> list[tuple[float, int]]:
    """Parts of a key's events, and how many of its rows have each, the largest first: 256 values of a byte are dealt
    out, so the rows are alike if their number is a power of two."""
    each, more = divmod(MOST_SHARDS, shards)
    return [(n / MOST_SHARDS, rows) for n, rows in ((each + 1, more), (each, shards - more)) if rows]


def touched(share: float, n: float) -> float:
    """The chance that a row with this share of all events is among ``n`` events: 1 - (1 - share)^n."""
    return -math.expm1(n * math.log1p(-share)) if share < 1 else 1.0


class Rates(NamedTuple):
    """A second, in rows where nothing else is named; ``met``: first written by a process, ``met_there``: and existing;
    ``news``: events that writers read; ``units``: of a kB that are written; ``fold_*``: folds, those of new rows, their
    commits, the events and cells that they fold, and the markers of the rows that they fold again."""

    written: float
    conflicts: float = 0.0
    met: float = 0.0
    met_there: float = 0.0
    read: float = 0.0
    news: float = 0.0
    created: float = 0.0
    units: float = 0.0
    folds: float = 0.0
    fold_first: float = 0.0
    fold_commits: float = 0.0
    fold_events: float = 0.0
    fold_cells: float = 0.0
    fold_markers: float = 0.0


def row_rates(load: Load, workers: int, share: float) -> Rates:
    """The rates of one row with this share of all events."""
    p, rate, flushes_per_s = touched(share, load.bundle), load.events_per_s * share, load.events_per_s / load.bundle
    written = flushes_per_s * p
    per_write, events, writes = rate / written, rate * load.life_s, written * load.life_s
    units = written * max(1.0, (per_write * MARKER_BYTES + BASE_BYTES) / 1_000)
    row = Rates(written, created=-math.expm1(-events) / load.life_s, units=units)
    if load.append:
        folds, first, commits, folded, markers = (n / load.life_s for n in folds_of(events, load.life_s, load.fold))
        cells = folded / per_write
        units += first + max(commits, folded * MARKER_BYTES / 1_000) + max(folds, cells * DELETE_BYTES / 1_000)
        return row._replace(
            units=units,
            folds=folds,
            fold_first=first,
            fold_commits=commits,
            fold_events=folded,
            fold_cells=cells,
            fold_markers=markers,
        )
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
    shares = [(a * b, n * m) for a, n in key_shares(load.keys, load.skew) for b, m in shard_shares(load.shards)]
    rows = [[n * one for one in row_rates(load, workers, share)] for share, n in shares]
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
    requests, node_reads, scanned = r.written + r.conflicts, r.written + r.conflicts + r.read, r.news * MARKER_BYTES
    fold_workers, fold_read, fold_bytes_read = 0, 0.0, 0.0
    # A conditional write counts as a write and a read of a node; a fold's delete is a write.
    if load.append:
        flushes_per_s = load.events_per_s / load.bundle
        requests = flushes_per_s * math.ceil(r.written / flushes_per_s / ROWS_PER_APPEND)
        fold_workers, forgets = _fold_workers(load, r)
        # A fold reads what is pending, and the markers of a row that was folded before and is not remembered.
        fold_read = r.folds + forgets * (r.folds - r.fold_first)
        fold_bytes_read = (r.fold_events + forgets * r.fold_markers) * MARKER_BYTES + r.fold_cells * CELL_BYTES
        node_reads, scanned = fold_read + r.fold_first + r.fold_commits, fold_bytes_read
    kept_s = load.life_s if load.retention_s is None else load.life_s / 2 + load.retention_s + GRACE_S + COLLECT_S
    never_folded = (r.written - r.fold_cells) * CELL_BYTES if load.append else 0.0
    stored = kept_s * (load.events_per_s * MARKER_BYTES + never_folded + r.created * BASE_BYTES)
    busy = r.units / NODE_WRITES + max(node_reads / NODE_READS, scanned / NODE_SCAN_BYTES)
    nodes = max(1, math.ceil(busy / PLANNED_LOAD), math.ceil(stored / NODE_BYTES))
    hourly_usd = nodes * NODE_USD + (max(needed, writers) + fold_workers) * WORKER_USD
    return {
        "rows_written": r.written,
        "rows_read": r.read,
        "conflicts": r.conflicts,
        "write_requests": requests,
        "append_bytes": load.append * (load.events_per_s * MARKER_BYTES + r.written * CELL_BYTES),
        "fold_events": r.fold_events,
        # A commit, and the deletion of what was pending. A new row gets a version first.
        "fold_rows_written": r.fold_first + r.fold_commits + r.folds,
        "fold_rows_read": fold_read,
        "fold_bytes_read": fold_bytes_read,
        **_hottest(load, writers),
        "stored_bytes": stored,
        "nodes": nodes,
        "writers": writers,
        "workers": needed,
        "fold_workers": fold_workers,
        "usd_a_month": 730 * hourly_usd + stored / 2**30 * STORAGE_USD,
    }


def _hottest(load: Load, writers: int) -> dict[str, float]:
    """The figures of the hottest key and of its largest row; what is written of the key is in units of a kB."""
    (share, _), *_ = key_shares(load.keys, load.skew)
    parts = shard_shares(load.shards)
    of_key = math.fsum(n * row_rates(load, writers, share * part).units for part, n in parts)
    hot, rate = row_rates(load, writers, share * parts[0][0]), load.events_per_s * share * parts[0][0]
    events = rate * load.life_s
    # Pending at most: what comes until a fold is due. A row of few events is never folded.
    due = max(rate * load.fold.every_s, min(load.fold.share * events, rate * load.fold.age_s), 2 * EVERY)
    cells = load.append * min(due, events) * hot.written / rate
    size = events * MARKER_BYTES + cells * CELL_BYTES + BASE_BYTES
    return {"hot_key_writes": of_key, "hot_row_writes": hot.written, "hot_row_events": events, "hot_row_bytes": size}


def _fold_workers(load: Load, r: Rates) -> tuple[int, bool]:
    """Workers that fold, and whether they forget a row's markers before it is folded again."""
    us = r.fold_cells * FOLD_CELL_US + r.fold_events * FOLD_EVENT_US + load.events_per_s / EVERY * OTHER_US
    us += (r.fold_first + r.fold_commits) * COMMIT_US
    needed = math.ceil(us / 1e6 / PLANNED_LOAD)
    if (load.events_per_s + r.created * CACHED_ROW) * load.life_s <= needed * CACHED:
        return needed, False
    return math.ceil((us + r.fold_markers * MARKER_US) / 1e6 / PLANNED_LOAD), True


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
        ("--fold", "DURATION", duration, "1m", "append: as of MergeRecords, from an event to the fold of its row"),
        ("--fold_share", "SHARE", amount, FOLD_SHARE, "append: as of MergeRecords, from 0 to 1"),
        ("--fold_age", "DURATION", duration, text_of(FOLD_AGE), "append: as of MergeRecords"),
    ):
        text += "" if default in (None, ...) else f"; default: {default}"
        sub.add_argument(flag, metavar=metavar, type=kind, default=default, required=default is ..., help=text)
    sub.add_argument(
        "--write", choices=("commit", "append"), default="commit", help="as of create-table; default: commit"
    )
    add_json(sub, "one JSON document")


def load_of(args: argparse.Namespace) -> Load:
    """The load that the arguments describe.

    Raises:
        ConfigurationError: an argument is out of its range.
    """
    kept = timedelta(days=7 if args.bucket else 3_650) if args.retention is None else args.retention
    for name in ("events_per_s", "bucket", "fold", "fold_age", *(() if args.bucket else ("retention",))):
        if getattr(args, name) in (0, timedelta(0)):
            raise ConfigurationError(name, "must be more than 0")
    if args.shards > MOST_SHARDS:
        raise ConfigurationError("shards", f"must be from 1 to {MOST_SHARDS}, got {args.shards}")
    if args.fold_share > 1:
        raise ConfigurationError("fold_share", f"must be from 0 to 1, got {args.fold_share}")
    fold = FoldRules(args.fold.total_seconds(), args.fold_share, args.fold_age.total_seconds())
    life_s, retention_s = (args.bucket or kept).total_seconds(), kept.total_seconds() if args.bucket else None
    rate, append = (args.events_per_s, args.keys, args.skew), args.write == "append"
    return Load(*rate, life_s, retention_s, append, args.workers, args.bundle, args.shards, fold)


def run(args: argparse.Namespace) -> int:
    """Print the plan for a load; 1 if the load does not fit."""
    load = load_of(args)
    figures = plan(load)
    problems, warnings = list(_problems(load, figures)), list(_warnings(figures))
    if args.json:
        print_json(fits=not problems, **figures, problems=problems, warnings=warnings)
    else:
        for name, value in figures.items():
            per_s = "" if name in _TOTALS.split() else " a second"
            number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            print(f"{name.replace('_', ' ') + per_s:<32}{size_text(value) if 'bytes' in name else number:>12}")
    sys.stderr.writelines(f"murmur: warning: {warning}\n" for warning in warnings)
    sys.stderr.writelines(f"murmur: does not fit: {problem}\n" for problem in problems)
    return int(bool(problems))


def _smaller_rows(load: Load, events: float) -> str:
    """Flags with which the hottest row, of this number of events now, is small enough."""
    full_s = load.life_s * ROW_EVENTS / events
    flags = [f"--bucket {text}" for text in _BUCKETS if parse_duration(text).total_seconds() <= full_s][:1]
    # The hottest shard has a number of the 256 values of a byte: as many as fit, and the fewest shards of that size.
    values = int(ROW_EVENTS / events * max(n for n, _ in shard_shares(load.shards)) * MOST_SHARDS)
    flags += [f"--shards {math.ceil(MOST_SHARDS / values)}"] if values else []
    return " or ".join(flags) or "more keys: neither a shorter bucket nor shards are enough"


def _problems(load: Load, figures: dict[str, float]) -> Iterator[str]:
    """What does not fit, and what to change."""
    if (events := figures["hot_row_events"]) > ROW_EVENTS:
        full = spell_duration(timedelta(seconds=int(load.life_s * ROW_EVENTS / events)))
        yield (
            f"the hottest row gets {events:,.0f} events in its life, and a row of more than {ROW_EVENTS / 1e6:.0f} "
            f"million (256 MB) cannot be read: this one is full after {full}. Use {_smaller_rows(load, events)}"
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


def _warnings(figures: dict[str, float]) -> Iterator[str]:
    """What may be too slow for some time."""
    if (writes := figures["hot_key_writes"]) > NODE_WRITES:
        yield (
            f"the rows of the hottest key take {writes:,.0f} writes a second, and a node {NODE_WRITES:,}; they are "
            "neighbours, on one node until Bigtable divides them. A shorter --bucket with fewer --shards, or a larger "
            "--bundle, makes fewer writes"
        )
