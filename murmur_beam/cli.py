"""The ``murmur`` command: reads a store from a terminal or a script, and creates its table where it needs one."""

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
    add_json,
    add_monoid,
    add_window,
    parse_end,
    parse_entity,
    parse_n,
    parse_prefix,
    parse_span,
    parse_start,
    parsed,
)
from murmur_beam.cli_output import bars, human, json_value, print_json, print_table
from murmur_beam.command_line import discard_output
from murmur_beam.errors import ConfigurationError, MurmurError
from murmur_beam.model import rfc3339, to_us
from murmur_beam.monoids import by_name
from murmur_beam.monoids.base import Monoid
from murmur_beam.reader import Reader
from murmur_beam.state import StoreSpec, spec_from_uri
from murmur_beam.windows import parse_duration

FOUND, NOTHING, ERROR, INTERRUPTED = 0, 1, 2, 130

_MAX_EMPTY_ROWS = 200
"""Longest range, in buckets, whose empty buckets are shown too."""
_FLAGS = {"start": "from", "end": "to"}
"""The reader's arguments whose flags have another name."""

_FRESH = {
    True: "include pending events of tables that are appended to; default: --fresh",
    False: "include pending events of tables that are appended to, at a higher cost; default: --no-fresh",
}
"""Help of --fresh, by the flag's default."""
_RECORDED = "what the store recorded"
"""Default of --monoid and --window for commands that read a store."""

_DESCRIPTION = """\
Read the aggregates in a store, such as sqlite:///counts.db; create and check its table if the store is in Bigtable.
Only create-table changes a table and the record of its purpose. Only delete and reset remove aggregates. Only fold
writes aggregates: it folds the events that pipelines have appended."""
_CREATE_TABLE = "Create a Bigtable table, or bring an existing one up to date. A second run changes nothing."
_CHECK = """\
Check a Bigtable table and print the commands that repair it. Writes nothing, except with --probe: scratch rows, which
are removed."""
_EPILOG = """\
times:
  2026-11-20T10:30:00Z or 2026-11-20T10:30:00+01:00 (RFC 3339, with a zone), or a plain date such as 2026-11-20: the
  whole day, from midnight in UTC. --from takes the beginning of the day, --to and --now its end. A time stands for the
  bucket that contains it; the answer shows that bucket.

exit codes:
  0  found
  1  nothing found
  2  error; a one-line message on stderr

--json is lossless: a set is a sorted list, the first or last value is {"event_time_us": ..., "value": ...}, and a
value that JSON cannot represent is {"base64": ...} of the stored bytes. Its times are the starts of buckets. A bucket
that starts outside the years 1 to 9999 is shown by its number, in every output. On a terminal, tables are cut to its
width, in the middle of long keys; --json, files and pipes get whole keys.
"""
_TABLES_EPILOG = """\
Stores outside Bigtable need no table: there is nothing to create or check.

exit codes:
  0  done, or nothing to do; the table is as it should be
  1  the table is not as it should be
  2  error; a one-line message on stderr
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``murmur --help``.

    Returns:
        The exit code: 0 found or fine, 1 nothing there or not fine, 2 error, 130 interrupted.

    Raises:
        SystemExit: after --help and --version; with code 2 for invalid or missing arguments.
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
        discard_output()  # the reader of our output has closed it, as head does
        return FOUND


def _monoid(args: argparse.Namespace) -> Monoid[Any] | None:
    if args.monoid and ":" in args.monoid and os.getcwd() not in sys.path:
        # As `python -m` does; a console script puts its own folder on the path instead.
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
        # A date that is a whole bucket needs no repetition.
        shows_bucket = at is not None and not (args.at.is_day and _is_day(reader))
        print(human(value) + (f"  ({_buckets(reader, at, at)})" if shows_bucket else ""))
    return _exit_code(value is not None, f"for {args.entity!r}" + (" in that bucket" if at else ""))


def _get_day(reader: Reader[Any], args: argparse.Namespace) -> int:
    """Show the total of a date that has several buckets."""
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
    return FOUND if found else _complain(f"nothing found {where}".rstrip(), NOTHING)


# ---- buckets ----


def _count(reader: Reader[Any], start: datetime, end: datetime) -> int:
    """Number of buckets from start's to end's; 0 without a window."""
    config = reader.window_config
    return config.bucket_id(end) - config.bucket_id(start) + 1 if config else 0


def _print_json_of_buckets(
    reader: Reader[Any], args: argparse.Namespace, start: datetime, end: datetime, value: Any, **more: Any
) -> None:
    first, last = _json_time(reader, start), _json_time(reader, end)
    print_json(entity=args.entity, first_bucket=first, last_bucket=last, value=json_value(reader.monoid, value), **more)


def _json_time(reader: Reader[Any], time: datetime) -> str | int | None:
    """Start of a time's bucket; the bucket's number if the start is outside the calendar."""
    config = reader.window_config
    if config is None:
        return None
    bucket = config.bucket_id(time)
    try:
        return rfc3339(to_us(config.bucket_start(bucket)))
    except OverflowError:
        return bucket


def _time(reader: Reader[Any], time: datetime) -> str:
    """Start of a time's bucket for people: as short as the bucket's length allows, in a form that --at takes."""
    text = str(_json_time(reader, time)).replace(".000000Z", "Z")
    whole_days = reader.window_config and not reader.window_config.granularity % timedelta(days=1)
    return text.removesuffix("T00:00:00Z") if whole_days else text


def _buckets(reader: Reader[Any], start: datetime, end: datetime) -> str:
    first, last = _time(reader, start), _time(reader, end)
    return f"bucket {first}" if first == last else f"buckets {first} to {last}"


def _is_day(reader: Reader[Any]) -> bool:
    """Return whether each bucket is one day."""
    return reader.window_config is not None and reader.window_config.granularity == timedelta(days=1)


# ---- arguments ----


_AddCommand = Callable[..., Parser]
"""Adds a command, given its name, function, description and the end of its help; see `_parser`."""


def _parser() -> Parser:
    as_is = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="murmur", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=as_is)
    parser.add_argument("--version", action="version", version=f"murmur {__version__}")
    add_parser = parser.add_commands()

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int],
        description: str,
        epilog: str = _EPILOG,
        *,
        on_store: bool = True,
    ) -> Parser:
        sub = add_parser(name, help=description, description=description, epilog=epilog, formatter_class=as_is)
        sub.set_defaults(run=run)
        if on_store:
            uri = "the store, such as sqlite:///counts.db or bigtable://project/instance/table"
            sub.add_argument("uri", metavar="URI", help=uri)
        return sub

    _add_readers(command)
    _add_deleters(command)
    _add_table_commands(command)
    return parser


def _add_readers(command: _AddCommand) -> None:
    """Add get, window, range, list and top."""
    get = command("get", partial(_on_reader, _get), "Show the aggregate of one entity.")
    window = command("window", partial(_on_reader, _window), "Show the last time buckets of one entity combined.")
    span = command("range", partial(_on_reader, _range), "Show the time buckets of one entity and their total.")
    everything = command("list", partial(_on_reader, _list), "List the entities, with all their buckets combined.")
    top = command("top", partial(_on_reader, _top), "Show the entities with the largest aggregates.")

    for sub in (get, window, span):
        sub.add_argument("entity", metavar="ENTITY", type=parsed(parse_entity))
    get.add_argument(
        "--at", metavar="TIME", type=parsed(parse_span), help="bucket or day to show; required with a window"
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
        _add_reading(sub)


def _add_deleters(command: _AddCommand) -> None:
    """Add delete and reset."""
    delete = command("delete", partial(_on_reader, cli_delete.delete), cli_delete.DELETE, cli_delete.EPILOG)
    cli_delete.add_delete(delete, parsed(parse_entity), parsed(parse_start), parsed(parse_end))
    reset = command("reset", partial(_on_reader, cli_delete.reset), cli_delete.RESET, cli_delete.EPILOG)
    cli_delete.add_yes(reset)
    for sub in (delete, reset):
        _add_reading(sub)


def _add_reading(sub: Parser) -> None:
    """Add the flags that say how a store's values are read."""
    add_json(sub, "one JSON document; list: one a line")
    add_monoid(sub, _RECORDED)
    add_window(sub, _RECORDED)


def _add_table_commands(command: _AddCommand) -> None:
    """Add create-table, check, fold and plan."""
    create = command("create-table", partial(_on_table, cli_tables.create_table), _CREATE_TABLE, _TABLES_EPILOG)
    create.add_argument("--dry-run", action="store_true", help="show what would be done, and change nothing")
    yes = "go on even if a shorter retention deletes data, or a longer one lets clusters differ for a while"
    create.add_argument("--yes", action="store_true", help=yes)
    _add_purpose(create, "sum", "no window", "never", "forever", "what the table recorded, or commit")
    check = command("check", partial(_on_table, cli_tables.check), _CHECK, _TABLES_EPILOG)
    probe = "also test Bigtable's behaviour on scratch rows; paste the output into an issue (docs/operations.md)"
    check.add_argument("--probe", action="store_true", help=probe)
    _add_purpose(check, *["what the table recorded"] * 5)

    fold = command("fold", partial(_on_table, cli_fold.fold), cli_fold.FOLD, cli_fold.EPILOG)
    cli_fold.add_fold(fold, parsed(parse_prefix), parsed(parse_duration), parsed(parse_n))

    plan = command("plan", cli_plan.run, cli_plan.PLAN, cli_plan.EPILOG, on_store=False)
    cli_plan.add_plan(plan)


def _add_purpose(sub: Parser, monoid: str, window: str, retention: str, dedup_retention: str, write: str) -> None:
    """Add the flags of a table's purpose, as in its pipeline; the arguments are the defaults that the help shows."""
    add_json(sub, "one JSON document")
    add_monoid(sub, monoid)
    add_window(sub, window)
    sub.add_argument(
        "--retention",
        metavar="DURATION",
        type=parsed(parse_duration),
        help=f"delete a bucket this long after it ends; it then takes no more events; default: {retention}",
    )
    sub.add_argument(
        "--dedup-retention",
        metavar="DURATION",
        type=parsed(parse_duration),
        help="how long event ids are remembered if no --retention is given; a later redelivery counts again; "
        f"default: {dedup_retention}",
    )
    sub.add_argument(
        "--write",
        choices=("commit", "append"),
        help="commit: write each flush to the aggregates, conditionally; append: write it as pending deltas, "
        f"unconditionally, to be folded later (docs/operations.md); default: {write}",
    )
