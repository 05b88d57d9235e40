"""The ``murmur`` command: look at a store from a terminal or a script, and make its table where it needs one."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import chain, islice
from typing import Any

from murmur_beam import __version__, cli_delete, cli_fold, cli_plan, cli_tables
from murmur_beam.cli_arguments import (
    Parser,
    parse_end,
    parse_entity,
    parse_n,
    parse_prefix,
    parse_span,
    parse_start,
    parsed,
)
from murmur_beam.cli_output import bars, human, json_value, print_json, print_table
from murmur_beam.errors import ConfigurationError, MurmurError
from murmur_beam.model import rfc3339, to_us
from murmur_beam.monoids import by_name, names
from murmur_beam.monoids.base import Monoid
from murmur_beam.reader import Reader
from murmur_beam.state import StoreSpec, spec_from_uri
from murmur_beam.windows import parse_duration, parse_window

FOUND, NOTHING, ERROR, INTERRUPTED = 0, 1, 2, 130

_MAX_EMPTY_ROWS = 200
"""Longest range, in buckets, whose empty buckets are shown too."""
_FLAGS = {"start": "from", "end": "to"}
"""Flags that are not called as the reader's arguments are."""

_FRESH = {
    True: "with what is not folded yet, in tables that are appended to; default: --fresh",
    False: "with what is not folded yet, in tables that are appended to, which costs more; default: --no-fresh",
}
"""Help of the flag, by whether that is the default."""

_DESCRIPTION = """\
Look at the aggregates in a store, such as sqlite:///counts.db; make and check its table where that is in Bigtable.
Only create-table changes a table and what is recorded of its purpose, and only delete and reset take anything out of
one. Only fold writes aggregates: it brings into them what pipelines have appended."""
_CREATE_TABLE = "Make a table in Bigtable, or make one fit for what it is to hold; run again, it changes nothing."
_CHECK = """\
Say whether a table in Bigtable is as it should be, and what to run if not. Nothing is written, except with --probe:
scratch rows, which are removed."""
_EPILOG = """\
times:
  2026-11-20T10:30:00Z or 2026-11-20T10:30:00+01:00 (RFC 3339, with a zone), or a plain date such as 2026-11-20: the
  whole of that day, from midnight in UTC; after --from its beginning, after --to and --now its end. A time stands for
  the bucket it falls into, which is told with the answer.

exit codes:
  0  there was something to show
  1  nothing is there
  2  an error, told in one line on stderr

--json is lossless: a set is a sorted list, the first or last value is {"event_time_us": ..., "value": ...}, and what
JSON cannot hold is {"base64": ...} of the stored bytes. Times in it are when a bucket begins. A bucket that begins
outside the years 1 to 9999 is told by its number, there and elsewhere. On a terminal tables are cut to its width, in
the middle of long keys; --json and output that goes elsewhere have them whole.
"""
_TABLES_EPILOG = """\
Stores outside Bigtable need no table; there is nothing to do for them, and nothing to check.

exit codes:
  0  done, or nothing to do; the table is as it should be
  1  the table is not as it should be
  2  an error, told in one line on stderr
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``murmur --help``.

    Returns:
        The exit code: 0 found or fine, 1 nothing there or not fine, 2 error, 130 interrupted.

    Raises:
        SystemExit: after --help and --version, and with 2 for arguments that make no sense, or none.
    """
    args = _parser().read(sys.argv[1:] if argv is None else argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except ConfigurationError as err:
        flag = _FLAGS.get(err.argument, err.argument).replace("_", "-")
        argument = f"--{flag}" if err.argument in args else err.argument
        return _complain(f"error: {argument}: {err.problem}", ERROR)
    except MurmurError as err:
        return _complain(f"error: {err}", ERROR)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever reads our output has seen enough. Python would try again to flush it at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FOUND


def _monoid(args: argparse.Namespace) -> Monoid[Any] | None:
    if args.monoid and ":" in args.monoid and os.getcwd() not in sys.path:
        # As with `python -m`: a console script has its own folder there instead.
        sys.path.insert(0, os.getcwd())
    return by_name(args.monoid, "--monoid") if args.monoid else None


def _on_reader(run: Callable[[Reader[Any], argparse.Namespace], int], args: argparse.Namespace) -> int:
    spec = spec_from_uri(args.uri, "URI")
    with Reader.open(spec, _monoid(args), args.window) as reader:
        return run(reader, args)


def _on_table(run: Callable[[StoreSpec, Monoid[Any] | None, argparse.Namespace], int], args: argparse.Namespace) -> int:
    return run(spec_from_uri(args.uri, "URI"), _monoid(args), args)


def _complain(message: str, code: int) -> int:
    print(f"murmur: {message}", file=sys.stderr)
    return code


# ---- commands ----


def _get(reader: Reader[Any], args: argparse.Namespace) -> int:
    if args.at and _count(reader, *args.at) > 1:
        return _get_day(reader, args)
    at = args.at and args.at.start
    value = reader.get(args.entity, at, fresh=args.fresh)
    if args.json:
        print_json(entity=args.entity, bucket=at and _json_time(reader, at), value=json_value(reader.monoid, value))
    elif value is not None:
        # A date is told only where it is not the bucket itself.
        told = at is not None and not (args.at.is_day and _is_day(reader))
        print(human(value) + (f"  ({_buckets(reader, at, at)})" if told else ""))
    return _exit_code(value is not None, f"for {args.entity!r}" + (" in that bucket" if at else ""))


def _get_day(reader: Reader[Any], args: argparse.Namespace) -> int:
    """Of a date, where it has several buckets."""
    start, end = args.at
    found = dict(reader.buckets(args.entity, start, end, fresh=args.fresh))
    value = reader.monoid.total(found.values())
    if args.json:
        _print_json_of_buckets(reader, args, start, end, value if found else None)
    elif found:
        print(f"{human(value)}  ({_count(reader, start, end):,} {_buckets(reader, start, end)})")
    return _exit_code(bool(found), f"for {args.entity!r} in those buckets")


def _window(reader: Reader[Any], args: argparse.Namespace) -> int:
    start, end = reader.span(args.last, args.now or datetime.now(timezone.utc))
    found = dict(reader.buckets(args.entity, start, end, fresh=args.fresh))
    value = reader.monoid.total(found.values())
    if args.json:
        _print_json_of_buckets(reader, args, start, end, value if found else None)
    elif found:
        print(f"{human(value)}  ({_buckets(reader, start, end)})")
    return _exit_code(bool(found), f"for {args.entity!r} in those buckets")


def _range(reader: Reader[Any], args: argparse.Namespace) -> int:
    if args.end < args.start:
        return _complain("error: --to lies before --from", ERROR)
    found = dict(reader.buckets(args.entity, args.start, args.end, fresh=args.fresh))
    total = reader.monoid.total(found.values())
    if args.json:
        monoid = reader.monoid
        series = [{"bucket": _json_time(reader, t), "value": json_value(monoid, v)} for t, v in found.items()]
        _print_json_of_buckets(reader, args, args.start, args.end, total if found else None, series=series)
    elif found:
        _print_range(reader, args, found, total)
    return _exit_code(bool(found), f"for {args.entity!r} in those buckets")


def _print_range(reader: Reader[Any], args: argparse.Namespace, found: dict[datetime, Any], total: Any) -> None:
    n = _count(reader, args.start, args.end)
    if n <= _MAX_EMPTY_ROWS:
        found = {t: found.get(t, reader.monoid.identity) for t in reader.starts(args.start, args.end)}
    drawn = bars([*found.values()])
    rows = [(_time(reader, start), value, bar) for (start, value), bar in zip(found.items(), drawn, strict=True)]
    print_table(("bucket", "value", ""), [*rows, ("total", total, "")])
    if len(rows) < n:
        print(f"({n:,} buckets; the {n - len(rows):,} empty ones are left out)")


def _list(reader: Reader[Any], args: argparse.Namespace) -> int:
    if _is_reversed(args):
        return _complain("error: --to lies before --from", ERROR)
    rest = reader.list(args.prefix, args.start, args.end, fresh=args.fresh)
    first = list(islice(rest, 1))
    rows = chain(first, rest)
    if args.json:
        for entity, value, buckets in rows:
            print_json(entity=entity, value=json_value(reader.monoid, value), buckets=buckets)
    elif reader.window_config:
        print_table(("entity", "value", "buckets"), rows)
    else:
        print_table(("entity", "value"), (row[:2] for row in rows))
    return _exit_code(bool(first), _where(args))


def _top(reader: Reader[Any], args: argparse.Namespace) -> int:
    if _is_reversed(args):
        return _complain("error: --to lies before --from", ERROR)
    largest = reader.top(args.n, args.prefix, args.start, args.end, fresh=args.fresh)
    if args.json:
        print(json.dumps([{"entity": entity, "value": json_value(reader.monoid, value)} for entity, value in largest]))
    else:
        drawn = bars([value for _, value in largest])
        print_table(("entity", "value", ""), [(*row, bar) for row, bar in zip(largest, drawn, strict=True)])
    return _exit_code(bool(largest), _where(args))


def _is_reversed(args: argparse.Namespace) -> bool:
    return bool(args.start and args.end and args.end < args.start)


def _where(args: argparse.Namespace) -> str:
    prefix = f"with prefix {args.prefix!r}" if args.prefix else ""
    return f"{prefix} in those buckets".lstrip() if args.start or args.end else prefix


def _exit_code(found: bool, where: str) -> int:
    return FOUND if found else _complain(f"nothing is there {where}".rstrip(), NOTHING)


# ---- buckets ----


def _count(reader: Reader[Any], start: datetime, end: datetime) -> int:
    """Buckets from start's to end's; 0 without a window."""
    config = reader.window_config
    return config.bucket_id(end) - config.bucket_id(start) + 1 if config else 0


def _print_json_of_buckets(
    reader: Reader[Any], args: argparse.Namespace, start: datetime, end: datetime, value: Any, **more: Any
) -> None:
    first, last = _json_time(reader, start), _json_time(reader, end)
    print_json(entity=args.entity, first_bucket=first, last_bucket=last, value=json_value(reader.monoid, value), **more)


def _json_time(reader: Reader[Any], time: datetime) -> str | int | None:
    """When the bucket of a time begins; its number, where that is outside the calendar."""
    config = reader.window_config
    if config is None:
        return None
    bucket = config.bucket_id(time)
    try:
        return rfc3339(to_us(config.bucket_start(bucket)))
    except OverflowError:
        return bucket


def _time(reader: Reader[Any], time: datetime) -> str:
    """The same for people: as short as the bucket's length allows, and as --at takes it."""
    text = str(_json_time(reader, time)).replace(".000000Z", "Z")
    whole_days = reader.window_config and not reader.window_config.granularity % timedelta(days=1)
    return text.removesuffix("T00:00:00Z") if whole_days else text


def _buckets(reader: Reader[Any], start: datetime, end: datetime) -> str:
    first, last = _time(reader, start), _time(reader, end)
    return f"bucket {first}" if first == last else f"buckets {first} to {last}"


def _is_day(reader: Reader[Any]) -> bool:
    """Tell whether each bucket is one day."""
    return reader.window_config is not None and reader.window_config.granularity == timedelta(days=1)


# ---- arguments ----


def _parser() -> Parser:
    as_is = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="murmur", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=as_is)
    parser.add_argument("--version", action="version", version=f"murmur {__version__}")
    add_command = parser.add_commands()

    def command(name: str, run: Callable[[argparse.Namespace], int], description: str, epilog: str = _EPILOG) -> Any:
        sub = add_command(name, help=description, description=description, epilog=epilog, formatter_class=as_is)
        sub.set_defaults(run=run)
        sub.add_argument(
            "uri", metavar="URI", help="the store, such as sqlite:///counts.db or bigtable://project/instance/table"
        )
        return sub

    get = command("get", partial(_on_reader, _get), "Show the aggregate of one entity.")
    window = command("window", partial(_on_reader, _window), "Show the last time buckets of one entity combined.")
    span = command("range", partial(_on_reader, _range), "Show the time buckets of one entity and their total.")
    everything = command("list", partial(_on_reader, _list), "List the entities, with all their buckets combined.")
    top = command("top", partial(_on_reader, _top), "Show the entities with the largest aggregates.")

    for sub in (get, window, span):
        sub.add_argument("entity", metavar="ENTITY", type=parsed(parse_entity))
    get.add_argument(
        "--at", metavar="TIME", type=parsed(parse_span), help="which bucket, or day (needed if there are any)"
    )
    window.add_argument(
        "--last",
        metavar="DURATION",
        type=parsed(parse_duration),
        required=True,
        help="how far back, such as 7d or 12h, rounded up to whole buckets",
    )
    window.add_argument("--now", metavar="TIME", type=parsed(parse_end), help="the end; default: now")
    for sub in (span, everything, top):
        required = sub is span
        sub.add_argument(
            "--from", dest="start", metavar="TIME", type=parsed(parse_start), required=required, help="first bucket"
        )
        sub.add_argument(
            "--to", dest="end", metavar="TIME", type=parsed(parse_end), required=required, help="last bucket"
        )
    top.add_argument("-n", metavar="N", type=parsed(parse_n), default=10, help="how many; default: 10")
    for sub in (everything, top):
        sub.add_argument("--prefix", type=parsed(parse_prefix), default="", help="only entities that start with this")
    for sub in (get, window, span, everything, top):
        is_one = sub not in (everything, top)
        sub.add_argument("--fresh", action=argparse.BooleanOptionalAction, default=is_one, help=_FRESH[is_one])

    delete = command("delete", partial(_on_reader, cli_delete.delete), cli_delete.DELETE, cli_delete.EPILOG)
    cli_delete.add_delete(delete, parsed(parse_entity), parsed(parse_start), parsed(parse_end))
    reset = command("reset", partial(_on_reader, cli_delete.reset), cli_delete.RESET, cli_delete.EPILOG)
    cli_delete.add_yes(reset)

    for sub in (get, window, span, everything, top, delete, reset):
        sub.add_argument("--json", action="store_true", help="one JSON document; list: one a line")
        sub.add_argument(
            "--monoid", metavar="NAME", help="package.module:attribute of your own; default: what the store recorded"
        )
        sub.add_argument(
            "--window",
            metavar="WINDOW",
            type=parsed(parse_window),
            help="daily, hourly, minute or a duration such as 15m; default: what the store recorded",
        )

    create = command("create-table", partial(_on_table, cli_tables.create_table), _CREATE_TABLE, _TABLES_EPILOG)
    create.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    yes = "go on though a shorter retention deletes data, or a longer one lets clusters differ for a while"
    create.add_argument("--yes", action="store_true", help=yes)
    _add_purpose(create, "sum", "no window", "never", "for ever", "what the table recorded, or commit")
    check = command("check", partial(_on_table, cli_tables.check), _CHECK, _TABLES_EPILOG)
    probe = "also try on scratch rows what the table rests on; the output is fit for an issue (docs/operations.md)"
    check.add_argument("--probe", action="store_true", help=probe)
    _add_purpose(check, *["what the table recorded"] * 5)

    fold = command("fold", partial(_on_table, cli_fold.fold), cli_fold.FOLD, cli_fold.EPILOG)
    cli_fold.add_fold(fold, parsed(parse_prefix), parsed(parse_duration), parsed(parse_n))

    plan = add_command(
        "plan", help=cli_plan.PLAN, description=cli_plan.PLAN, epilog=cli_plan.EPILOG, formatter_class=as_is
    )
    plan.set_defaults(run=cli_plan.run)
    cli_plan.add_plan(plan, parsed(parse_duration), parsed(parse_n))
    return parser


def _add_purpose(
    sub: argparse.ArgumentParser, monoid: str, window: str, retention: str, dedup_retention: str, write: str
) -> None:
    """Add what a table is for, the same as in the pipeline that writes it; given are the defaults, for people."""
    sub.add_argument("--json", action="store_true", help="one JSON document")
    sub.add_argument("--monoid", metavar="NAME", help=f"{', '.join(names())} or your own; default: {monoid}")
    sub.add_argument(
        "--window",
        metavar="WINDOW",
        type=parsed(parse_window),
        help=f"daily, hourly, minute or a duration such as 15m; default: {window}",
    )
    sub.add_argument(
        "--retention",
        metavar="DURATION",
        type=parsed(parse_duration),
        help=f"delete a time bucket when it takes no more events, so long after its end; default: {retention}",
    )
    sub.add_argument(
        "--dedup-retention",
        metavar="DURATION",
        type=parsed(parse_duration),
        help="without a retention: for how long an event is known that was merged; delivered again after that, it "
        f"counts again; default: {dedup_retention}",
    )
    sub.add_argument(
        "--write",
        choices=("commit", "append"),
        help="commit: each flush into the aggregates, on a condition; append: beside them, without one, to be folded "
        f"later (docs/operations.md); default: {write}",
    )
