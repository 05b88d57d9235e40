"""The ``murmur`` command's arguments: their spelling and their meaning."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.model import check_entity, to_us
from murmur_beam.monoids import by_name
from murmur_beam.monoids.base import Monoid
from murmur_beam.option import add_flag, described, naming
from murmur_beam.options import MergeOptions, as_aggregates
from murmur_beam.reader import Reader
from murmur_beam.runs.command_line import USAGE_ERROR, OneLineErrorParser, parsed, with_underscores
from murmur_beam.state import StoreSpec, spec_from_uri
from murmur_beam.times import parse_rfc3339
from murmur_beam.windows import parse_window

if TYPE_CHECKING:
    from murmur_beam.state.bigtable.spec import BigtableSpec

MERGE = {each.name: each for each in described(MergeOptions)}
"""The options of a merge, some of which commands have too."""

_RECORDED = "what the store recorded"
"""Default of --monoid and --window for commands that read a store."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class Parser(OneLineErrorParser):
    """An argument parser that suggests the command or flag that a mistyped word resembles."""

    def __init__(self, **arguments: Any) -> None:
        self._flags: list[str] = []
        self._commands: dict[str, Parser] = {}
        super().__init__(**arguments)

    def add_argument(self, *names: Any, **arguments: Any) -> Any:
        """Add an argument, as argparse does, and remember its flags."""
        action = super().add_argument(*names, **arguments)
        self._flags += [name for name in action.option_strings if name.startswith("--")]
        return action

    def add_commands(self) -> Callable[..., Parser]:
        """Return a function that adds a command, given its name, and returns the command's `Parser`."""
        commands = self.add_subparsers(required=True, metavar="COMMAND")
        self._commands = commands.choices
        return commands.add_parser

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse a command line. An empty one prints the help and counts as an error, so that scripts stop.

        Raises:
            SystemExit: after --help, and with code 2 for invalid or missing arguments.
        """
        if not argv:
            self.print_help(sys.stderr)
            self.exit(USAGE_ERROR)
        end = argv.index("--") if "--" in argv else len(argv)
        words = list(argv[:end])
        parser = self
        if words and not words[0].startswith("-"):
            words[0] = words[0].replace("_", "-")
            if words[0] not in self._commands:
                self.error(f"{argv[0]!r} is not a command; {_near(words[0], [*self._commands])}")
            parser = self._commands[words[0]]
        for word in words:
            flag = with_underscores(word).partition("=")[0]
            # As argparse, take an abbreviation for a flag, but not a word that contains a blank.
            if flag.startswith("--") and " " not in word and not any(known.startswith(flag) for known in parser._flags):
                after = parser is self and self._of_a_command(flag)
                hint = "write it after the command" if after else _near(flag, parser._flags)
                parser.error(f"{word.partition('=')[0]} is not a flag of {parser.prog}; {hint}")
        return self.parse_args([*words, *argv[end:]])

    def _of_a_command(self, flag: str) -> bool:
        return any(flag in command._flags for command in self._commands.values())


AddCommand = Callable[..., Parser]
"""Adds a command, given its name, function, description and the end of its help."""


def on_reader(run: Callable[[Reader[Any], argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The function of a command that reads the store of its URI. Its reader returns states, which the command combines,
    and presents last."""

    def opened(args: argparse.Namespace) -> int:
        spec = spec_from_uri(args.uri, "URI")
        with Reader.open(spec, _monoid(args), args.window, states=True) as reader:
            code = run(reader, args)
            for name, since in reader.since.items():
                print(f"murmur: {name} counts since {since}", file=sys.stderr)
            return code

    return opened


def on_table(
    run: Callable[[StoreSpec, Monoid[Any] | None, argparse.Namespace], int],
) -> Callable[[argparse.Namespace], int]:
    """The function of a command about the table of its URI."""
    return lambda args: run(spec_from_uri(args.uri, "URI"), _monoid(args), args)


def bigtable_spec(spec: StoreSpec) -> BigtableSpec | None:
    """The spec if it is one of Bigtable, whatever its name on the command line; else None. Google's packages are not
    imported for any other spec, since they may be missing."""
    module = sys.modules.get("murmur_beam.state.bigtable.spec")
    found: BigtableSpec | None = spec if module is not None and isinstance(spec, module.BigtableSpec) else None
    return found


def _monoid(args: argparse.Namespace) -> Monoid[Any] | None:
    if not args.aggregate:
        return by_name(args.monoid, "--monoid") if args.monoid else None
    if args.monoid:
        raise ConfigurationError("--monoid", "is for one aggregate; leave it out, or --aggregate")
    with naming("--aggregate"):
        return as_aggregates(args.aggregate)


def add_reading(sub: Parser) -> None:
    """Add the flags that say how a store's values are read."""
    add_json(sub, "one JSON document; list: one a line")
    add_monoid(sub, _RECORDED)
    add_window(sub, _RECORDED)


def add_json(sub: argparse.ArgumentParser, text: str) -> None:
    """Add --json with this help."""
    sub.add_argument("--json", action="store_true", help=text)


def add_monoid(sub: argparse.ArgumentParser, default: str) -> None:
    """Add --monoid and --aggregate; ``default`` is how the help shows the default."""
    add_flag(sub, MERGE["monoid"], default=default)
    add_flag(sub, MERGE["aggregates"])


def add_window(sub: argparse.ArgumentParser, default: str) -> None:
    """Add --window; ``default`` is how the help shows the default."""
    add_flag(sub, MERGE["window"], default=default, type=parsed(parse_window))


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"


class Span(NamedTuple):
    """The span of a time on the command line: an instant, or a whole day in UTC; both ends are included."""

    start: datetime
    end: datetime

    @property
    def is_day(self) -> bool:
        """Whether the time was a plain date."""
        return self.start < self.end


def parse_span(text: str) -> Span:
    """Read a time with a zone, or a plain date.

    Raises:
        ValueError: the text is something else, or lies outside the years 1 to 9999 in UTC.
    """
    try:
        if _DATE.fullmatch(text):
            day = datetime.fromisoformat(text).replace(tzinfo=timezone.utc)
            return Span(day, day + timedelta(days=1, microseconds=-1))
        time = parse_rfc3339(text)
        to_us(time)
    except InvalidRecord as err:
        raise ValueError(f"{err.problem}; or write a plain date, such as 2026-11-20") from None
    except ValueError:
        raise ValueError(f"{text!r} is not a date of the calendar") from None
    return Span(time, time)


def parse_start(text: str) -> datetime:
    """First instant of `parse_span`."""
    return parse_span(text).start


def parse_end(text: str) -> datetime:
    """Last instant of `parse_span`."""
    return parse_span(text).end


def parse_entity(text: str) -> str:
    """Check an entity.

    Raises:
        ValueError: no event can have this entity.
    """
    try:
        return check_entity(text)
    except InvalidRecord as err:
        raise ValueError(err.problem) from None


def parse_prefix(text: str) -> str:
    """Check a prefix of entities; the empty prefix stands for all.

    Raises:
        ValueError: as `parse_entity`.
    """
    return text and parse_entity(text)


def parse_amount(text: str) -> float:
    """Read a finite number that is not negative.

    Raises:
        ValueError: the text is something else.
    """
    with suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise ValueError(f"{text!r:.40} is not a number from 0 on")


def parse_n(text: str) -> int:
    """Read a positive whole number of at most 18 digits.

    Raises:
        ValueError: the text is something else.
    """
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or not int(text):
        raise ValueError(f"{text!r:.40} is not a positive whole number")
    return int(text)
