"""``murmur plan``: print what a load needs of Bigtable and of workers. No store is opened."""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from murmur_beam.cli_output import print_json
from murmur_beam.durations import spell_duration
from murmur_beam.errors import ConfigurationError
from murmur_beam.planner import (
    GOOD_ROW_BYTES,
    KNOWN_BYTES,
    KNOWN_EVENTS,
    MARKER_BYTES,
    ROW_BYTES,
    ROW_COMMITS,
    ROW_COMMITS_ALONE,
    Load,
    Plan,
    plan,
)

PLAN = "Print what a load needs: rows and requests a second, size of rows, Bigtable nodes, workers and cost."
EPILOG = """\
No store is opened. The figures are of a steady state at the rate that is given; docs/scaling.md says how they are
derived, and from which measurements. The cost is that of nodes, storage and workers. Not in it: replication, reads by
users, the network, Pub/Sub, and what Dataflow bills besides workers.

exit codes:
  0  the load fits
  1  the load does not fit: stderr says which limit it breaks, and what to change
  2  an error, in one line on stderr
"""

FITS, REFUSED = 0, 1
_DEFAULT_RETENTION, _DEFAULT_LIFE = timedelta(days=7), timedelta(days=3_650)
_MOST_SHARDS = 256
_COLUMNS = 80
_AGE_S = 1.0
"""Default of `FlushLimits`."""


def add_plan(sub: argparse.ArgumentParser, duration: Callable[[str], timedelta], number: Callable[[str], int]) -> None:
    """Add the arguments of ``murmur plan``; given are the parsers of their texts."""

    def add(flag: str, metavar: str, kind: Callable[[str], Any], default: Any, text: str) -> None:
        text += "" if default is None else f"; default: {default}"
        sub.add_argument(flag, metavar=metavar, type=kind, default=default, help=text)

    sub.add_argument("--events-per-s", metavar="N", type=_positive, required=True, help="events of all keys a second")
    sub.add_argument("--keys", metavar="N", type=number, required=True, help="number of keys")
    add("--skew", "S", _not_negative, 0, "Zipf exponent: the key of rank r has the weight r^-S; 0: all alike")
    add("--bucket", "DURATION", duration, None, "length of a time bucket, such as 1h; default: all-time counters")
    add(
        *("--retention", "DURATION", duration, None),
        "with --bucket: how long a bucket still takes events after its end, default 7d; without: how long events are "
        "kept, which is the life of a counter or its dedup retention, default 3650d",
    )
    sub.add_argument(
        "--write",
        choices=("commit", "append"),
        default="commit",
        help="as of create-table (docs/operations.md); default: commit",
    )
    add("--workers", "N", number, None, "processes that write; default: as many as are needed")
    add("--bundle", "N", number, 10_000, "events of one flush of a process")
    add("--shards", "N", number, 1, "rows of each key, 1 to 256")
    add("--fold-every", "DURATION", duration, "1m", "append: from one fold to the next")
    add(
        "--other-us",
        "N",
        _not_negative,
        20.0,
        "microseconds of a core for an event in the rest of the pipeline (assumed)",
    )
    bigtable, dataflow = (f"https://cloud.google.com/{product}/pricing" for product in ("bigtable", "dataflow"))
    add("--node-usd", "USD", _not_negative, 0.65, f"price of a node (SSD) an hour, us-central1, as cited of {bigtable}")
    add("--storage-usd", "USD", _not_negative, 0.17, f"price of a GiB (SSD) a month, as cited of {bigtable}")
    add("--worker-usd", "USD", _not_negative, 0.083, f"price of a vCPU with 4 GB an hour, as cited of {dataflow}")
    sub.add_argument("--json", action="store_true", help="one JSON document")


def _positive(text: str) -> float:
    if (value := _not_negative(text)) == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number from 0 on")
    return value


def run(args: argparse.Namespace) -> int:
    """Print the plan for a load.

    Args:
        args: as `add_plan` has added them.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: an argument is out of its range.
    """
    if args.shards > _MOST_SHARDS:
        raise ConfigurationError("shards", f"must be from 1 to {_MOST_SHARDS}, got {args.shards}")
    for name in ("bucket", "fold_every"):
        if getattr(args, name) == timedelta(0):
            raise ConfigurationError(name, "must be longer than 0")
    load = _load(args)
    made = plan(load)
    refusals, notes = list(_refusals(load, made)), list(_notes(load, made))
    if args.json:
        print_json(fits=not refusals, **made._asdict(), refusals=refusals, notes=notes)
    else:
        for name, value in _lines(load, made):
            print(f"{name:<42}{value:>14}")
        for note in notes:
            print(textwrap.fill(f"note: {note}", _COLUMNS, subsequent_indent="  "))
    for refusal in refusals:
        print(f"murmur: does not fit: {refusal}", file=sys.stderr)
    return REFUSED if refusals else FITS


def _load(args: argparse.Namespace) -> Load:
    retention = args.retention
    if retention is None:
        retention = _DEFAULT_RETENTION if args.bucket else _DEFAULT_LIFE
    if not (args.bucket or retention):
        raise ConfigurationError("retention", "must be longer than 0 without --bucket")
    return Load(
        events_per_s=args.events_per_s,
        keys=args.keys,
        skew=args.skew,
        life_s=(args.bucket or retention).total_seconds(),
        retention_s=retention.total_seconds() if args.bucket else None,
        append=args.write == "append",
        workers=args.workers,
        bundle=args.bundle,
        shards=args.shards,
        fold_s=args.fold_every.total_seconds(),
        other_us=args.other_us,
        node_usd=args.node_usd,
        worker_usd=args.worker_usd,
        storage_usd=args.storage_usd,
    )


def _refusals(load: Load, made: Plan) -> Iterator[str]:
    """What does not fit, and what to change."""
    if made.hot_row_bytes > ROW_BYTES:
        life = spell_duration(timedelta(seconds=load.life_s))
        full = timedelta(seconds=int(load.life_s * ROW_BYTES / made.hot_row_bytes))
        most = f"{ROW_BYTES / MARKER_BYTES / 1e6:.0f} million events"
        buckets = load.retention_s is not None
        yield (
            f"the hottest row grows to {_bytes(made.hot_row_bytes)} in {life}; a row above {_bytes(ROW_BYTES)} "
            f"({most}{'' if buckets else ' in all its life'}) cannot be read, and this one is full after "
            f"{spell_duration(full)}. Use {'shorter buckets' if buckets else '--bucket'} or more --shards"
        )
    most_commits = ROW_COMMITS_ALONE if made.writers == 1 else ROW_COMMITS
    if not load.append and made.hot_row_writes > most_commits:
        yield (
            f"the hottest row gets {made.hot_row_writes:,.0f} commits a second, and takes about {most_commits}, of all "
            "writers together. Use --write append, or give each row one worker by a grouping step, or use a larger "
            "--bundle. More shards do not help against many writers: see docs/scaling.md"
        )
    if made.workers > made.writers and load.workers:
        yield f"--workers {load.workers}: {made.workers:,} are needed"
    elif made.workers > made.writers:
        yield "no number of workers is enough: each reads what the others commit. Use --write append"


def _notes(load: Load, made: Plan) -> Iterator[str]:
    """What fits, and should be known."""
    if GOOD_ROW_BYTES < made.hot_row_bytes <= ROW_BYTES:
        yield f"rows above {_bytes(GOOD_ROW_BYTES)} are slow to read: use shorter buckets or more --shards"
    if (age_s := made.writers * load.bundle / load.events_per_s) > _AGE_S:
        yield f"the plan is for FlushLimits(age) of {age_s:,.1f} s: that long a worker collects a bundle"
    if made.known_events > KNOWN_EVENTS:
        yield (
            f"the plan is for max_cached_events={made.known_events:.1e}, {_bytes(made.known_events * KNOWN_BYTES)} "
            "in each process; with fewer, rows are read whole before commits"
        )


def _lines(load: Load, made: Plan) -> Iterator[tuple[str, str]]:
    """Names and values, for people."""
    yield "rows written a second", _number(made.rows_written)
    yield "rows read a second, by writers", _number(made.rows_read)
    if load.append:
        yield "rows written a second, by folds", _number(made.fold_rows_written)
        yield "rows read a second, by folds", _number(made.fold_rows_read)
    else:
        yield "version conflicts a second", _number(made.conflicts)
    yield "write requests a second", _number(made.write_requests)
    yield f"hottest row: {'appends' if load.append else 'commits'} a second", _number(made.hot_row_writes)
    yield "hottest row: events at the end", _number(made.hot_row_events)
    yield "hottest row: size at the end", _bytes(made.hot_row_bytes)
    yield "stored", _bytes(made.stored_bytes)
    no_number = made.workers > made.writers and not load.workers
    yield "Bigtable nodes (SSD)", "no number" if no_number else _number(made.nodes)
    yield "workers (1 vCPU) to write", "no number" if no_number else _number(max(made.workers, made.writers))
    if load.append:
        yield "workers (1 vCPU) to fold", _number(made.fold_workers)
    yield "USD a month", "no number" if no_number else _number(made.usd_a_month)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1_000
    return f"{size:,.3g} TB"
