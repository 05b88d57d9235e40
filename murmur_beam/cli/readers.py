"""The commands that read a store: get, window, range, list and top."""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timedelta, timezone
from itertools import chain, islice
from typing import Any

from murmur_beam.cli.arguments import (
    AddCommand,
    add_reading,
    on_reader,
    parse_end,
    parse_entity,
    parse_n,
    parse_prefix,
    parse_span,
    parse_start,
)
from murmur_beam.cli.output import bars, human, json_value, print_json, print_table
from murmur_beam.model import rfc3339, to_us
from murmur_beam.monoids import Struct
from murmur_beam.reader import Reader
from murmur_beam.runs.command_line import complain, parsed
from murmur_beam.windows import parse_duration

FOUND, NOTHING, ERROR = 0, 1, 2

_MAX_EMPTY_ROWS = 200
"""Longest range, in buckets, whose empty buckets are shown too."""
_FRESH = {
    True: "include pending events of tables that are appended to; default: --fresh",
    False: "include pending events of tables that are appended to, at a higher cost; default: --no_fresh",
}
"""Help of --fresh, by the flag's default."""


def add_readers(command: AddCommand) -> None:
    """Add get, window, range, list and top."""
    get = command("get", on_reader(_get), "Show the aggregate of one entity.")
    window = command("window", on_reader(_window), "Show the last time buckets of one entity combined.")
    span = command("range", on_reader(_range), "Show the time buckets of one entity and their total.")
    everything = command("list", on_reader(_list), "List the entities, with all their buckets combined.")
    top = command("top", on_reader(_top), "Show the entities with the largest aggregates.")

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
    top.add_argument("--by", metavar="NAME", help="the aggregate that ranks; default: the first number")
    for sub in (everything, top):
        sub.add_argument("--prefix", type=parsed(parse_prefix), default="", help="only entities that start with this")
    for sub in (get, window, span, everything, top):
        is_one = sub not in (everything, top)
        sub.add_argument("--fresh", action="store_true", default=is_one, help=_FRESH[is_one])
        sub.add_argument("--no_fresh", action="store_false", dest="fresh", help="the opposite of --fresh")
        add_reading(sub)


# ---- commands ----


def _get(reader: Reader[Any], args: argparse.Namespace) -> int:
    if args.at and _count(reader, *args.at) > 1:
        return _get_day(reader, args)
    at = args.at and args.at.start
    state = reader.get(args.entity, at, fresh=args.fresh)
    if args.json:
        print_json(entity=args.entity, bucket=at and _json_time(reader, at), value=json_value(reader.monoid, state))
    elif state is not None:
        # A date that is a whole bucket needs no repetition.
        shows_bucket = at is not None and not (args.at.is_day and _is_day(reader))
        _print_state(reader, state, f"({_buckets(reader, at, at)})" if shows_bucket else "")
    return _exit_code(state is not None, f"for {args.entity!r}" + (" in that bucket" if at else ""))


def _get_day(reader: Reader[Any], args: argparse.Namespace) -> int:
    """Show the total of a date that has several buckets."""
    start, end = args.at
    return _show_total(reader, args, start, end, f"{_count(reader, start, end):,} ")


def _window(reader: Reader[Any], args: argparse.Namespace) -> int:
    return _show_total(reader, args, *reader.span(args.last, args.now or datetime.now(timezone.utc)))


def _show_total(reader: Reader[Any], args: argparse.Namespace, start: datetime, end: datetime, before: str = "") -> int:
    """Show the total of some buckets; ``before`` stands before their times."""
    found = dict(reader.buckets(args.entity, start, end, fresh=args.fresh))
    total = reader.monoid.total(found.values())
    if args.json:
        _print_json_of_buckets(reader, args, start, end, total if found else None)
    elif found:
        _print_state(reader, total, f"({before}{_buckets(reader, start, end)})")
    return _exit_code(bool(found), f"for {args.entity!r} in those buckets")


def _range(reader: Reader[Any], args: argparse.Namespace) -> int:
    if args.end < args.start:
        return complain("error: --to lies before --from", ERROR)
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
    names = _names(reader)
    values = [_results(reader, state) for state in found.values()]
    drawn = bars([value[0] for value in values]) if len(names) == 1 else [""] * len(values)
    rows = [(_time(reader, start), *value, bar) for start, value, bar in zip(found, values, drawn, strict=True)]
    print_table(("bucket", *names, ""), [*rows, ("total", *_results(reader, total), "")])
    if len(rows) < n:
        print(f"({n:,} buckets; the {n - len(rows):,} empty ones are left out)")


def _list(reader: Reader[Any], args: argparse.Namespace) -> int:
    if _is_reversed(args):
        return complain("error: --to lies before --from", ERROR)
    rest = reader.list(args.prefix, args.start, args.end, fresh=args.fresh)
    first = list(islice(rest, 1))
    rows = chain(first, rest)
    if args.json:
        for entity, state, buckets in rows:
            print_json(entity=entity, value=json_value(reader.monoid, state), buckets=buckets)
        return _exit_code(bool(first), _where(args))
    shown = ((entity, *_results(reader, state), buckets) for entity, state, buckets in rows)
    if reader.window_config:
        print_table(("entity", *_names(reader), "buckets"), shown)
    else:
        print_table(("entity", *_names(reader)), (row[:-1] for row in shown))
    return _exit_code(bool(first), _where(args))


def _top(reader: Reader[Any], args: argparse.Namespace) -> int:
    if _is_reversed(args):
        return complain("error: --to lies before --from", ERROR)
    largest = reader.top(args.n, args.prefix, args.start, args.end, fresh=args.fresh, by=args.by)
    if args.json:
        print(json.dumps([{"entity": entity, "value": json_value(reader.monoid, state)} for entity, state in largest]))
    else:
        names = _names(reader)
        values = [_results(reader, state) for _, state in largest]
        ranking = reader.ranking(args.by)
        ranked = 0 if ranking is None else names.index(ranking)
        drawn = bars([value[ranked] for value in values])
        rows = [(entity, *value, bar) for (entity, _), value, bar in zip(largest, values, drawn, strict=True)]
        print_table(("entity", *names, ""), rows)
    return _exit_code(bool(largest), _where(args))


def _names(reader: Reader[Any]) -> tuple[str, ...]:
    """Titles of the columns of results: the names of several aggregates."""
    return tuple(reader.monoid.parts) if isinstance(reader.monoid, Struct) else ("value",)


def _results(reader: Reader[Any], state: Any) -> tuple[Any, ...]:
    """What the monoid presents of an aggregate, or of each of several."""
    result = reader.monoid.present(state)
    return tuple(result.values()) if isinstance(reader.monoid, Struct) else (result,)


def _print_state(reader: Reader[Any], state: Any, behind: str) -> None:
    """Print one aggregate: on one line, and a line for each of several."""
    results = _results(reader, state)
    if isinstance(reader.monoid, Struct):
        print_table(("aggregate", "value"), [*zip(_names(reader), map(human, results), strict=True)])
        if behind:
            print(behind)
    else:
        print(human(results[0]) + (f"  {behind}" if behind else ""))


def _is_reversed(args: argparse.Namespace) -> bool:
    return bool(args.start and args.end and args.end < args.start)


def _where(args: argparse.Namespace) -> str:
    prefix = f"with prefix {args.prefix!r}" if args.prefix else ""
    return f"{prefix} in those buckets".lstrip() if args.start or args.end else prefix


def _exit_code(found: bool, where: str) -> int:
    return FOUND if found else complain(f"nothing found {where}".rstrip(), NOTHING)


# ---- buckets ----


def _count(reader: Reader[Any], start: datetime, end: datetime) -> int:
    """Number of buckets from start's to end's; 0 without a window."""
    config = reader.window_config
    return config.bucket_id(end) - config.bucket_id(start) + 1 if config else 0


def _print_json_of_buckets(
    reader: Reader[Any], args: argparse.Namespace, start: datetime, end: datetime, total: Any, **more: Any
) -> None:
    first, last = _json_time(reader, start), _json_time(reader, end)
    print_json(entity=args.entity, first_bucket=first, last_bucket=last, value=json_value(reader.monoid, total), **more)


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
