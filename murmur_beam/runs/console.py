"""Terminal output of the pipelines: help, one-line errors, progress and the summary. Needs no Beam."""

from __future__ import annotations

import functools
import io
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from murmur_beam.errors import (
    MissingExtra,
    MurmurError,
    RetriesExhausted,
    SchemaMismatch,
    StoreUnavailable,
    TransientError,
)
from murmur_beam.gc_tuning import declare_worker_process
from murmur_beam.model import Outcome
from murmur_beam.runs.command_line import OneLineErrorParser, discard_output
from murmur_beam.runs.endings import INTERRUPTED, MISTAKE, STORE_FAILED

DEAD_LETTERS_HELP = (
    "file for elements that cannot be merged; must be new or empty; {date} and {time} in its name are filled in "
    "(%(default)s)"
)


class Parser(OneLineErrorParser):
    """The parser of a program's arguments.

    Args:
        program: name of its module.
        arguments: of `argparse.ArgumentParser`.
    """

    def __init__(self, program: str, **arguments: Any) -> None:
        super().__init__(name=program, prog=command_of(program), **arguments)


def command_of(program: str) -> str:
    """The command that runs a program, as this process was started."""
    spec = sys.modules["__main__"].__spec__
    in_clone = spec is not None and spec.name.startswith("pipelines.")
    return f"python -m pipelines.{program}" if in_clone else f"murmur {program.replace('_', '-')}"


Main = Callable[[Sequence[str] | None], int]

_WHILE_RUNNING = re.compile(r" \[while running '.*'\]$", re.DOTALL)
"""The suffix that Beam adds to the text of an error in a step."""

_OF_THE_STORE = (StoreUnavailable, SchemaMismatch, TransientError, RetriesExhausted)
_WRAPPED = re.compile(rf"(?:[\w.]*\.)?({'|'.join(kind.__name__ for kind in _OF_THE_STORE)}): (.*)", re.DOTALL)
"""The text of a store's error that Beam raised again as another type."""

_IN_PLACE_EVERY_S = 0.2
_LINE_EVERY_S = 5.0


def one_line_errors(name: str) -> Callable[[Main], Main]:
    """Report an error in one line on stderr, after the pipeline's name, and return its exit code from `endings`.

    An interruption is one line as well. An unexpected exception keeps its traceback.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def wrapped(argv: Sequence[str] | None = None) -> int:
            if isinstance(sys.stdout, io.TextIOWrapper):
                # A terminal without a character shows a question mark in its place.
                sys.stdout.reconfigure(errors="replace")
            try:
                code = main(argv)
                sys.stdout.flush()
            except BrokenPipeError:
                discard_output()  # the reader of our output has closed it, as head does
                return 0
            except (MurmurError, MissingExtra, OSError) as err:
                print(f"{name}: error: {_WHILE_RUNNING.sub('', str(err))}", file=sys.stderr)
                return STORE_FAILED if isinstance(err, _OF_THE_STORE) else MISTAKE
            except (KeyboardInterrupt, RuntimeError) as err:
                # Beam wraps the exceptions of its steps.
                text = f"{type(err).__name__}: {err}"
                if "KeyboardInterrupt" in text:
                    print(f"\n{name}: interrupted; run it again to go on", file=sys.stderr)
                    return INTERRUPTED
                if (failed := _WRAPPED.match(str(err))) is None:
                    raise
                print(f"{name}: error: {_WHILE_RUNNING.sub('', failed[2])}", file=sys.stderr)
                return STORE_FAILED
            return code

        return wrapped

    return decorate


def program(main: Main) -> NoReturn:
    """Run a main function as this process's only task, and exit with its code."""
    declare_worker_process()
    sys.exit(main(None))


class Outcomes(NamedTuple):
    """Numbers of a `MergeRecords`' elements, by outcome."""

    merged: int
    duplicate: int
    recorded: int
    expired: int
    dead_letter: int

    @classmethod
    def of(cls, name: str, counters: Mapping[str, int]) -> Outcomes:
        """Read the outcomes from the counters of `run`."""
        records = {str(outcome): counters.get(f"{name}:record_{outcome}", 0) for outcome in Outcome}
        return cls(**records, dead_letter=counters.get(f"{name}:dead_letter", 0))

    @property
    def total(self) -> int:
        """Number of all elements."""
        return sum(self)

    def __str__(self) -> str:
        texts = []
        # A table that is appended to has recorded elements only; any other has merged and duplicate ones.
        if self.merged or self.duplicate or not self.recorded:
            texts += [f"{self.merged:,} merged", f"{self.duplicate:,} duplicate"]
        if self.recorded:
            texts.append(f"{self.recorded:,} recorded")
        if self.expired:
            texts.append(f"{self.expired:,} expired")
        return " / ".join([*texts, f"{self.dead_letter:,} dead-lettered"])


class Progress:
    """Reports a count on stderr; on a terminal in one line that changes.

    Args:
        what: plural noun of the counted items, such as ``flights``.
        total: expected number, if known.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._seen = 0
        self._started_s = time.monotonic()
        self._next_s = self._started_s
        self._in_place = sys.stderr.isatty()

    def add(self, n: int = 1, more: object = "") -> None:
        """Count ``n`` more, and show the count unless the last report is too recent, followed by ``more``."""
        self._seen += n
        if time.monotonic() >= self._next_s:
            self._show(more)
            self._next_s = time.monotonic() + (_IN_PLACE_EVERY_S if self._in_place else _LINE_EVERY_S)

    def end(self, n: int = 0, more: object = "") -> None:
        """Count the last ``n``; on a terminal print the final count and end the progress line."""
        self._seen += n
        if self._in_place:
            self._show(more)
            print(file=sys.stderr)

    def _show(self, more: object) -> None:
        per_s = self._seen / max(time.monotonic() - self._started_s, 1e-3)
        of_total = f" of {self._total:,} ({self._seen / self._total:4.0%})" if self._total else ""
        text = f"{self._seen:>9,}{of_total} {self._what}, {per_s:,.0f}/s{more and f': {more}'}"
        print(
            f"\r{text:<70}" if self._in_place else text, end="" if self._in_place else "\n", file=sys.stderr, flush=True
        )
