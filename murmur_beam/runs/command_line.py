"""What all command lines share: one-line usage errors, two spellings of a flag, output to a closed pipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

USAGE_ERROR = 2


class OneLineErrorParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage.

    Flags are spelt with underscores, as Beam's are; hyphens are accepted in their place.

    Args:
        name: begins each error; by default the first word of ``prog``, or of a module in it its last name.
        arguments: of `argparse.ArgumentParser`.
    """

    def __init__(self, *, name: str | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._name = name or self.prog.rpartition(".")[2].partition(" ")[0]

    def parse_known_args(  # type: ignore[override] # overloaded there
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As of argparse, with either spelling of flags."""
        words = sys.argv[1:] if args is None else list(args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(self._spelt, words[:end]), *words[end:]], namespace)

    def _spelt(self, word: str) -> str:
        """Spell a flag as it is known here, also if it is abbreviated; other words are not changed."""
        spelt = with_underscores(word)
        flag = spelt.partition("=")[0]
        ours = flag.startswith("--") and any(option.startswith(flag) for option in self._option_string_actions)
        return spelt if ours else word

    def error(self, message: str) -> NoReturn:
        """Report a usage error and exit with code 2."""
        self.exit(USAGE_ERROR, f"{self._name}: error: {message} (see {self.prog} --help)\n")


def with_underscores(word: str) -> str:
    """A flag's own spelling, ``--event_id=a-b`` for ``--event-id=a-b``; another word as it is."""
    flag, equals, value = word.partition("=")
    return flag[:2] + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else word


def parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Wrap a parser so that argparse shows its message; of a plain ValueError it shows only the function's name."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return convert


def complain(message: str, code: int) -> int:
    """Print a message of ``murmur`` on stderr, and return the code."""
    print(f"murmur: {message}", file=sys.stderr)
    return code


def discard_output() -> None:
    """Send further output to the null device: after a BrokenPipeError Python's flush at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
