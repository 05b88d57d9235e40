"""The ``murmur`` command's arguments: how they are spelt, and what they mean."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, NoReturn, TypeVar

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import check_entity, to_us
from murmur_beam.times import parse_rfc3339

T = TypeVar("T")

USAGE_ERROR = 2
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and that knows what a mistyped word was meant to be."""

    def __init__(self, **arguments: Any) -> None:
        self._flags: list[str] = []
        self._commands: dict[str, Parser] = {}
        super().__init__(**arguments)

    def add_argument(self, *names: Any, **arguments: Any) -> Any:
        """As argparse does."""
        action = super().add_argument(*names, **arguments)
        # Of one that can be turned off both.
        self._flags += [name for name in action.option_strings if name.startswith("--")]
        return action

    def add_commands(self) -> Callable[..., Parser]:
        """What adds a command, given its name; each is a parser of this class."""
        commands = self.add_subparsers(required=True, metavar="COMMAND")
        self._commands = commands.choices
        return commands.add_parser

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse a command line. Without one the help is shown, as an error, so that no script goes on.

        Raises:
            SystemExit: after help, and for arguments that make no sense.
        """
        if not argv:
            self.print_help(sys.stderr)
            self.exit(USAGE_ERROR)
        end = argv.index("--") if "--" in argv else len(argv)
        words = [_with_hyphens(word) for word in argv[:end]]
        parser = self
        if words and not words[0].startswith("-"):
            words[0] = words[0].replace("_", "-")
            if words[0] not in self._commands:
                self.error(f"{argv[0]!r} is no command; {_near(words[0], [*self._commands])}")
            parser = self._commands[words[0]]
        for word in words:
            flag = word.partition("=")[0]
            # What contains a blank is no flag to argparse either; an abbreviation is one.
            if flag.startswith("--") and " " not in word and not any(known.startswith(flag) for known in parser._flags):
                after = parser is self and self._of_a_command(flag)
                hint = "write it after the command" if after else _near(flag, parser._flags)
                parser.error(f"{flag} is no flag of {parser.prog}; {hint}")
        return self.parse_args([*words, *argv[end:]])

    def _of_a_command(self, flag: str) -> bool:
        return any(flag in command._flags for command in self._commands.values())

    def error(self, message: str) -> NoReturn:
        """One line, like all our errors, instead of the whole usage."""
        self.exit(USAGE_ERROR, f"murmur: error: {message} (see {self.prog} --help)\n")


def _with_hyphens(word: str) -> str:
    """A flag as we spell it; underscores, as Beam's flags have them, are taken too."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") and " " not in flag else word


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


class Span(NamedTuple):
    """What a time on the command line stands for: an instant, or a whole day in UTC; both ends are included."""

    start: datetime
    end: datetime

    @property
    def is_day(self) -> bool:
        """Whether it was a plain date."""
        return self.start < self.end


def parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Have argparse show what is wrong; of a plain ValueError it shows the function's name only."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return convert


def parse_span(text: str) -> Span:
    """A time with a zone, or a plain date.

    Raises:
        ValueError: anything else, or outside the years 1 to 9999 in UTC.
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
        raise ValueError(f"{text!r} is not a day of the calendar") from None
    return Span(time, time)


def parse_start(text: str) -> datetime:
    """As `parse_span`: its first instant."""
    return parse_span(text).start


def parse_end(text: str) -> datetime:
    """As `parse_span`: its last instant."""
    return parse_span(text).end


def parse_entity(text: str) -> str:
    """A key.

    Raises:
        ValueError: none that an event could have.
    """
    try:
        return check_entity(text)
    except InvalidRecord as err:
        raise ValueError(err.problem) from None


def parse_prefix(text: str) -> str:
    """How a key may begin; empty for all.

    Raises:
        ValueError: as `parse_entity`.
    """
    return text and parse_entity(text)


def parse_n(text: str) -> int:
    """A whole number from 1 on, in at most 18 digits.

    Raises:
        ValueError: anything else.
    """
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or not int(text):
        raise ValueError(f"{text!r:.40} is not a whole number from 1 on")
    return int(text)
