"""The ``murmur`` command: look at a store from a terminal or a script, and make its table where it needs one."""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from itertools import chain, islice
from typing import Any, NoReturn, TypeVar
from unicodedata import category, east_asian_width

from murmur_beam import cli_delete, cli_tables
from murmur_beam.errors import ConfigurationError, InvalidRecord, MurmurError
from murmur_beam.extract import parse_rfc3339
from murmur_beam.model import check_entity, is_representable, rfc3339, to_us
from murmur_beam.monoids import by_name, names
from murmur_beam.monoids.base import Monoid, canonical_json
from murmur_beam.monoids.timed import Timed
from murmur_beam.reader import Reader
from murmur_beam.state import StoreSpec, spec_from_uri
from murmur_beam.windows import parse_duration, parse_window

T = TypeVar("T")

FOUND, NOTHING, ERROR = 0, 1, 2

_MAX_TEXT = 60
"""Longest value, in characters, that a person is shown in full."""
_MAX_EMPTY_ROWS = 200
"""Longest range, in buckets, whose empty buckets are shown too."""
_BAR = 30
"""Longest bar, in characters."""
_BLOCK = 1_000
"""Rows of a table that are read before the first is printed, to know how wide its columns are."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

_DESCRIPTION = """\
Look at the aggregates in a store, such as sqlite:///counts.db; make and check its table where that is in Bigtable.
No aggregate is ever written. Only create-table changes a table and what is recorded of its purpose, and only delete
and reset take anything out of one."""
_CREATE_TABLE = "Make a table in Bigtable, or make one fit for what it is to hold; run again, it changes nothing."
_CHECK = "Say whether a table in Bigtable is as it should be, and what to run if not. Nothing is written."
_EPILOG = """\
times:
  2026-11-20T10:30:00Z or 2026-11-20T10:30:00+01:00 (RFC 3339, with a zone), or a plain date such as 2026-11-20: its
  midnight in UTC, but after --to the whole of that day. A time stands for the bucket it falls into.

exit codes:
  0  there was something to show
  1  nothing is there
  2  an error, told in one line on stderr

--json is lossless: a set is a sorted list, the first or last value is {"event_time_us": ..., "value": ...}, and what
JSON cannot hold is {"base64": ...} of the stored bytes. Times in it are when a bucket begins.
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
        The exit code: 0 found or fine, 1 nothing there or not fine, 2 error.

    Raises:
        SystemExit: after --help, and with 2 for arguments that make no sense.
    """
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except ConfigurationError as err:
        argument = f"--{err.argument.replace('_', '-')}" if err.argument in args else err.argument
        return _complain(f"error: {argument}: {err.problem}", ERROR)
    except MurmurError as err:
        return _complain(f"error: {err}", ERROR)
    except OverflowError:
        return _complain("error: there is a time bucket outside the years 1 to 9999", ERROR)
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


def _on_table(run: Callable[[StoreSpec, str | None, argparse.Namespace], int], args: argparse.Namespace) -> int:
    spec = spec_from_uri(args.uri, "URI")
    monoid = _monoid(args)
    return run(spec, monoid.name if monoid else None, args)


def _complain(message: str, code: int) -> int:
    print(f"murmur: {message}", file=sys.stderr)
    return code


# ---- commands ----


def _get(reader: Reader[Any], args: argparse.Namespace) -> int:
    value = reader.get(args.entity, args.at)
    if args.json:
        _print_json(entity=args.entity, bucket=_bucket_of(reader, args.at), value=_json(reader.monoid, value))
    elif value is not None:
        print(_human(value))
    return _exit_code(value is not None, f"for {args.entity!r}" + (" in that bucket" if args.at else ""))


def _window(reader: Reader[Any], args: argparse.Namespace) -> int:
    start, end = reader.span(args.last, args.now or datetime.now(timezone.utc))
    found = dict(reader.buckets(args.entity, start, end))
    value = reader.monoid.fold(found.values())
    if args.json:
        _print_json(
            entity=args.entity,
            first_bucket=_json_time(start),
            last_bucket=_json_time(end),
            value=_json(reader.monoid, value) if found else None,
        )
    elif found:
        buckets = _time(reader, start) if start == end else f"{_time(reader, start)} to {_time(reader, end)}"
        print(f"{_human(value)}  (bucket{'s' * (start != end)} {buckets})")
    return _exit_code(bool(found), f"for {args.entity!r} in those buckets")


def _range(reader: Reader[Any], args: argparse.Namespace) -> int:
    if args.end < args.start:
        return _complain("error: --to lies before --from", ERROR)
    found = dict(reader.buckets(args.entity, args.start, args.end))
    total = reader.monoid.fold(found.values())
    if args.json:
        _print_json(
            entity=args.entity,
            first_bucket=_bucket_of(reader, args.start),
            last_bucket=_bucket_of(reader, args.end),
            value=_json(reader.monoid, total) if found else None,
            series=[{"bucket": _json_time(t), "value": _json(reader.monoid, v)} for t, v in found.items()],
        )
    elif found:
        _print_range(reader, args, found, total)
    return _exit_code(bool(found), f"for {args.entity!r} in those buckets")


def _print_range(reader: Reader[Any], args: argparse.Namespace, found: dict[datetime, Any], total: Any) -> None:
    config = reader.window_config
    assert config is not None  # or nothing would have been found
    n = config.bucket_id(args.end) - config.bucket_id(args.start) + 1
    if n <= _MAX_EMPTY_ROWS:
        starts = map(config.bucket_start, config.bucket_range(args.start, args.end))
        found = {start: found.get(start, reader.monoid.identity) for start in starts}
    bars = _bars([*found.values()])
    rows = [(_time(reader, start), value, bar) for (start, value), bar in zip(found.items(), bars, strict=True)]
    _print_table(("bucket", "value", ""), [*rows, ("total", total, "")])
    if len(rows) < n:
        print(f"({n:,} buckets; the {n - len(rows):,} empty ones are left out)")


def _list(reader: Reader[Any], args: argparse.Namespace) -> int:
    rest = reader.list(args.prefix)
    first = list(islice(rest, 1))
    rows = chain(first, rest)
    if args.json:
        for entity, value, buckets in rows:
            _print_json(entity=entity, value=_json(reader.monoid, value), buckets=buckets)
    elif reader.window_config:
        _print_table(("entity", "value", "buckets"), rows)
    else:
        _print_table(("entity", "value"), (row[:2] for row in rows))
    return _exit_code(bool(first), f"with prefix {args.prefix!r}" if args.prefix else "")


def _top(reader: Reader[Any], args: argparse.Namespace) -> int:
    if args.start and args.end and args.end < args.start:
        return _complain("error: --to lies before --from", ERROR)
    largest = reader.top(args.n, args.prefix, args.start, args.end)
    if args.json:
        print(json.dumps([{"entity": entity, "value": _json(reader.monoid, value)} for entity, value in largest]))
    else:
        bars = _bars([value for _, value in largest])
        _print_table(("entity", "value", ""), [(*row, bar) for row, bar in zip(largest, bars, strict=True)])
    return _exit_code(bool(largest), f"with prefix {args.prefix!r}" if args.prefix else "")


def _exit_code(found: bool, where: str) -> int:
    return FOUND if found else _complain(f"nothing is there {where}".rstrip(), NOTHING)


# ---- for programs ----


def _print_json(**document: Any) -> None:
    print(json.dumps(document))


def _json(monoid: Monoid[Any], value: Any) -> Any:
    """What the store's own bytes say, as JSON where they are JSON: so nothing is lost, whatever the monoid."""
    if value is None:
        return None
    if isinstance(value, Timed):
        return value._asdict()
    data = monoid.encode(value)
    with suppress(ValueError):
        document = json.loads(data)
        if canonical_json(document).encode("utf-8") == data:
            return document
    return {"base64": base64.b64encode(data).decode("ascii")}


def _json_time(time: datetime) -> str:
    return rfc3339(to_us(time))


def _bucket_of(reader: Reader[Any], time: datetime | None) -> str | None:
    config = reader.window_config
    return _json_time(config.bucket_start(config.bucket_id(time))) if config and time else None


# ---- for people ----


def _human(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, (set, frozenset)):
        return _human_set(value)
    if isinstance(value, Timed):
        us = value.event_time_us
        when = rfc3339(us).replace(".000000Z", "Z") if is_representable(us) else f"{us:,} us"
        return f"{'null' if value.value is None else _short(value.value)} at {when}"
    try:
        text = canonical_json(value)
    except (TypeError, ValueError):
        text = str(value)
    return _printable(text)


def _human_set(value: set[Any] | frozenset[Any]) -> str:
    if not value:
        return "(empty)"
    shown: list[str] = []
    length = 0
    for item in map(_short, sorted(value, key=lambda item: (type(item).__name__, item))):
        length += len(item) + 2
        if length > _MAX_TEXT and shown:
            return f"{', '.join(shown)}, ... ({len(value):,} items)"
        shown.append(item)
    return ", ".join(shown)


def _short(value: Any) -> str:
    text = _human(value)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text):,} characters)"


def _printable(text: str) -> str:
    """Escape what the terminal cannot show, and control characters: a name that came with the data must not move the
    cursor or clear the screen.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _time(reader: Reader[Any], time: datetime) -> str:
    """When a bucket begins: as short as its length allows, and as --at takes it."""
    text = _json_time(time).replace(".000000Z", "Z")
    whole_days = reader.window_config and not reader.window_config.granularity % timedelta(days=1)
    return text.removesuffix("T00:00:00Z") if whole_days else text


def _bars(values: Sequence[Any]) -> list[str]:
    """A bar for each number; none for a single one, which has nothing to be compared with."""
    if len(values) < 2:
        return [""] * len(values)
    numbers = [abs(value) if isinstance(value, (int, float)) else 0 for value in values]
    largest = max(numbers)
    # At least one sign for what is not zero; minus signs for what is negative.
    return [
        ("-" if number and value < 0 else "#") * (max(1, round(_BAR * (number / largest))) if number else 0)
        for number, value in zip(numbers, values, strict=True)
    ]


def _print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print aligned columns, numbers to the right; block by block, so that a long list appears at once."""
    rows = iter(rows)
    titles = [header]
    widths = [0] * len(header)
    while block := list(islice(rows, _BLOCK)):
        to_right = [
            any(isinstance(cell, (int, float, Decimal)) for cell in cells) for cells in zip(*block, strict=True)
        ]
        lines = [*titles, *([_human(cell) for cell in row] for row in block)]
        titles = []
        widths = [max(w, *map(_width, cells)) for w, cells in zip(widths, zip(*lines, strict=True), strict=True)]
        for line in lines:
            padded = []
            for cell, width, right in zip(line, widths, to_right, strict=True):
                blanks = " " * (width - _width(cell))
                padded.append(blanks + cell if right else cell + blanks)
            print("  ".join(padded).rstrip())


def _width(text: str) -> int:
    """Columns on a terminal: East Asian characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if category(c) in ("Mn", "Me", "Cf") else 2 if east_asian_width(c) in "WF" else 1 for c in text)


# ---- arguments ----


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, like all our errors, instead of the whole usage."""
        self.exit(ERROR, f"murmur: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    as_is = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="murmur", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=as_is)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], description: str, epilog: str = _EPILOG) -> Any:
        sub = commands.add_parser(name, help=description, description=description, epilog=epilog, formatter_class=as_is)
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
        sub.add_argument("entity", metavar="ENTITY", type=_parsed(_parse_entity))
    get.add_argument("--at", metavar="TIME", type=_parsed(_parse_time), help="which bucket (needed if there are any)")
    window.add_argument(
        "--last",
        metavar="DURATION",
        type=_parsed(parse_duration),
        required=True,
        help="how far back, such as 7d or 12h, rounded up to whole buckets",
    )
    window.add_argument("--now", metavar="TIME", type=_parsed(_parse_time), help="the end; default: now")
    for sub in (span, top):
        required = sub is span
        sub.add_argument(
            "--from", dest="start", metavar="TIME", type=_parsed(_parse_time), required=required, help="first bucket"
        )
        sub.add_argument(
            "--to", dest="end", metavar="TIME", type=_parsed(_parse_end), required=required, help="last bucket"
        )
    top.add_argument("-n", metavar="N", type=_parsed(_parse_n), default=10, help="how many; default: 10")
    for sub in (everything, top):
        sub.add_argument("--prefix", type=_parsed(_parse_prefix), default="", help="only entities that start with this")

    delete = command("delete", partial(_on_reader, cli_delete.delete), cli_delete.DELETE, cli_delete.EPILOG)
    cli_delete.add_delete(delete, _parsed(_parse_entity), _parsed(_parse_time), _parsed(_parse_end))
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
            type=_parsed(parse_window),
            help="daily, hourly, minute or a duration such as 15m; default: what the store recorded",
        )

    create = command("create-table", partial(_on_table, cli_tables.create_table), _CREATE_TABLE, _TABLES_EPILOG)
    create.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    create.add_argument("--yes", action="store_true", help="go on though a shorter retention deletes data")
    _add_purpose(create, "sum", "no window", "never", "for ever")
    check = command("check", partial(_on_table, cli_tables.check), _CHECK, _TABLES_EPILOG)
    _add_purpose(check, *["what the table recorded"] * 4)
    return parser


def _add_purpose(sub: argparse.ArgumentParser, monoid: str, window: str, retention: str, dedup_retention: str) -> None:
    """Add what a table is for, the same as in the pipeline that writes it; given are the defaults, for people."""
    sub.add_argument("--json", action="store_true", help="one JSON document")
    sub.add_argument("--monoid", metavar="NAME", help=f"{', '.join(names())} or your own; default: {monoid}")
    sub.add_argument(
        "--window",
        metavar="WINDOW",
        type=_parsed(parse_window),
        help=f"daily, hourly, minute or a duration such as 15m; default: {window}",
    )
    sub.add_argument(
        "--retention",
        metavar="DURATION",
        type=_parsed(parse_duration),
        help=f"delete a time bucket when it takes no more events, so long after its end; default: {retention}",
    )
    sub.add_argument(
        "--dedup-retention",
        metavar="DURATION",
        type=_parsed(parse_duration),
        help="without a retention: for how long an event is known that was merged; delivered again after that, it "
        f"counts again; default: {dedup_retention}",
    )


def _parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Have argparse show what is wrong; of a plain ValueError it shows the function's name only."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return convert


def _parse_time(text: str) -> datetime:
    try:
        if _DATE.fullmatch(text):
            return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)
        return parse_rfc3339(text)
    except InvalidRecord as err:
        raise ValueError(f"{err.problem}; or write a plain date, such as 2026-11-20") from None
    except ValueError:
        raise ValueError(f"{text!r} is not a day of the calendar") from None


def _parse_end(text: str) -> datetime:
    time = _parse_time(text)
    return time + timedelta(days=1, microseconds=-1) if _DATE.fullmatch(text) else time


def _parse_entity(text: str) -> str:
    try:
        return check_entity(text)
    except InvalidRecord as err:
        raise ValueError(err.problem) from None


def _parse_prefix(text: str) -> str:
    return text and _parse_entity(text)


def _parse_n(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{text!r} is not a whole number from 1 on")
    return int(text)
