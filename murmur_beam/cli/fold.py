"""``murmur fold``: folds a table's pending events into its aggregates, once or periodically."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from murmur_beam.cli.arguments import add_json, add_monoid, bigtable_spec
from murmur_beam.cli.output import human, print_json
from murmur_beam.clock import Clock
from murmur_beam.durations import format_duration, spell_duration
from murmur_beam.errors import ConfigurationError, TransientError
from murmur_beam.model import rfc3339
from murmur_beam.monoids.base import Monoid
from murmur_beam.options import FOLD_AGE, FOLD_SHARE
from murmur_beam.reader import Reader
from murmur_beam.sizes import size_text
from murmur_beam.state import StoreSpec

if TYPE_CHECKING:
    from murmur_beam.state.bigtable.spec import BigtableSpec
    from murmur_beam.state.folding import Folded

FOLD = "Fold the events that pipelines have appended to a Bigtable table (create-table --write append)."
EPILOG = """\
Pipelines, readers and other folders may use the table at the same time: each event counts once. The command may be
killed at any time; the next fold resumes. Stores outside Bigtable need no fold.

Each round prints one line: rows with enough pending cells, events folded, duplicates found, pending cells deleted and
their bytes, the age of the oldest of them, commits lost to version conflicts, rows left for the next round because
other writers kept changing them, and events that cannot be folded. Those stay pending; stderr names their rows, the
reason and what to do.

exit codes:
  0    done, or nothing to do; with --every: ended by SIGTERM
  1    done, except for events that cannot be folded
  2    error; a one-line message on stderr
  130  interrupted

--json prints one object per round. With --every, a round that fails with a transient error is reported on stderr, and
the next round begins on time.
"""

DONE, UNFOLDABLE = 0, 1

_COLUMNS = {
    "rows": 9,
    "events": 11,
    "duplicates": 10,
    "cells": 9,
    "bytes": 8,
    "oldest": 8,
    "conflicts": 9,
    "left": 7,
    "unfoldable": 10,
}
"""Columns of a round's line, and their widths."""
_LOOK_S = 0.2
"""Seconds between two looks for a signal, while the next round is awaited."""
_IN_PLACE_EVERY_S = 0.2
_LINE_EVERY_S = 10.0


def add_fold(
    sub: argparse.ArgumentParser,
    prefix: Callable[[str], str],
    duration: Callable[[str], timedelta],
    number: Callable[[str], int],
    share: Callable[[str], float],
) -> None:
    """Add the arguments of ``murmur fold``; ``prefix``, ``duration``, ``number`` and ``share`` parse their texts."""
    sub.add_argument("--prefix", type=prefix, default="", help="only rows of entities that start with this")
    sub.add_argument(
        "--every",
        metavar="DURATION",
        type=duration,
        help="fold periodically: time from the start of one round to the next, such as 1m; default: fold once",
    )
    sub.add_argument(
        "--min_cells",
        metavar="N",
        type=number,
        default=1,
        help="only rows with at least N pending cells; each cell slows a fresh read by some microseconds; "
        "default: %(default)s",
    )
    sub.add_argument(
        "--share",
        metavar="S",
        type=share,
        help="only rows whose pending events are at least this share of those folded before, 0 to 1, or that are old; "
        f"default: all rows, and {FOLD_SHARE} with --age",
    )
    sub.add_argument(
        "--age",
        metavar="DURATION",
        type=duration,
        help="with --share: pending events are old after this time; a row that expires within it is not folded; "
        f"default: {format_duration(FOLD_AGE)}",
    )
    add_json(sub, "one JSON document per round, each on a line")
    add_monoid(sub, "what the store recorded")


def fold(spec: StoreSpec, monoid: Monoid[Any] | None, args: argparse.Namespace) -> int:
    """Fold a table.

    Args:
        spec: the store.
        monoid: of the table's values; None for the recorded one.
        args: ``uri``, ``prefix``, ``every``, ``min_cells``, ``share``, ``age``, ``json``.

    Returns:
        The exit code.

    Raises:
        MurmurError: the fold failed. With ``every``, transient errors are reported and the next round goes on.
    """
    if args.every is not None and args.every <= timedelta(0):
        raise ConfigurationError("every", "must be positive, such as 1m")
    if args.share is not None and args.share > 1:
        raise ConfigurationError("share", f"must be a number from 0 to 1, got {args.share:g}")
    table = bigtable_spec(spec)
    if table is None:
        return _needs_none(args, "needs no fold: stores outside Bigtable fold each event when it is merged")
    folding = _Folding(table, monoid, args)
    try:
        if args.every is None:
            return folding.round()
        with _until_sigterm(folding):
            return folding.rounds(args.every)
    finally:
        folding.close()


def _needs_none(args: argparse.Namespace, why: str) -> int:
    if args.json:
        print_json(store=args.uri, needs_fold=False)
    else:
        print(f"{args.uri}: {why}")
    return DONE


def _say(text: str) -> None:
    print(f"murmur: {text}", file=sys.stderr, flush=True)


class _Ended(Exception):
    """A round was asked to stop, and ended before all rows were folded."""


class _Folding:
    """Rounds over one table. The first round opens it; if that fails, the next one tries again.

    Args:
        spec, monoid, args: see `fold`.

    Attributes:
        stopped: set to end the rounds after the rows in progress.
    """

    def __init__(self, spec: BigtableSpec, monoid: Monoid[Any] | None, args: argparse.Namespace) -> None:
        self.stopped = False
        self._spec = spec
        self._monoid = monoid
        self._args = args
        self._clock = spec.clock
        self._reader: Reader[Any] | None = None
        self._needs_none = False
        self._has_header = False
        self._named: tuple[str, ...] = ()
        self._due = None
        if args.share is not None or args.age is not None:
            from murmur_beam.state.bigtable.due_rows import DueRows  # loads Google's client

            share, age = FOLD_SHARE if args.share is None else args.share, args.age or FOLD_AGE
            self._due = DueRows(share, age, spec.clock.now)

    def close(self) -> None:
        """Close the table."""
        if self._reader is not None:
            self._reader.close()

    def rounds(self, every: timedelta) -> int:
        """Fold until stopped, or until the table turns out to need no fold; return the exit code.

        Raises:
            MurmurError: an error that a later round cannot cure.
        """
        while not self.stopped:
            next_s = self._clock.monotonic() + every.total_seconds()
            try:
                self.round()
            except TransientError as err:
                _say(f"this round failed: {err}; the next one begins {format_duration(every)} after its start")
            if self._needs_none:
                break
            while not self.stopped and (left_s := next_s - self._clock.monotonic()) > 0:
                # Not an Event that the signal sets: a signal handler must not take a lock.
                self._clock.wait(min(left_s, _LOOK_S))
        return DONE

    def round(self) -> int:
        """Fold once; return the exit code.

        Raises:
            MurmurError: the table cannot be opened or folded.
        """
        if self._reader is None:
            self._reader = Reader.open(self._spec, self._monoid)
        store: Any = self._reader.store
        if not store.keeps_pending():
            self._needs_none = True
            return _needs_none(self._args, "needs no fold: a table of layout 1 never has pending events")
        began, began_s = self._clock.now(), self._clock.monotonic()
        progress = _Progress(self._clock)
        so_far = None

        def report(folded: Folded) -> None:
            nonlocal so_far
            so_far = folded
            if self.stopped:
                raise _Ended
            progress.show(folded)

        try:
            folded = store.fold(self._args.prefix, min_cells=self._args.min_cells, report=report, due=self._due)
            whole = True
        except _Ended:
            assert so_far is not None
            folded, whole = so_far, False
        finally:
            progress.end()
        if self._args.json:
            head = {"store": str(self._spec), "began": _time(began), "seconds": self._clock.monotonic() - began_s}
            print_json(**head, whole=whole, **folded._asdict())
        else:
            self._print(began, folded)
        sys.stdout.flush()
        self._warn(folded, whole)
        return UNFOLDABLE if folded.unfoldable else DONE

    def _print(self, began: float, folded: Folded) -> None:
        lead = [f"{_time(began):<20}"] if self._args.every else []
        if not self._has_header:
            self._has_header = True
            print("  ".join(["began".ljust(20)] * bool(lead) + [name.rjust(n) for name, n in _COLUMNS.items()]))
        oldest = "-" if folded.oldest_us is None else _age(self._clock.now() - folded.oldest_us / 1e6)
        counts = folded.rows, folded.events, folded.duplicates, folded.cells
        texts = *map(human, counts), size_text(folded.n_bytes), oldest, *map(human, folded[6:9])
        print("  ".join([*lead, *(text.rjust(n) for text, n in zip(texts, _COLUMNS.values(), strict=True))]))

    def _warn(self, folded: Folded, whole: bool) -> None:
        """Report what was not done; events that cannot be folded only if they differ from the last round's."""
        if not whole:
            _say("ended before all rows were folded; the next fold resumes")
        if folded.left:
            were = "rows were" if folded.left > 1 else "row was"
            again = "the next round tries again" if self._args.every else "run it again"
            _say(f"{folded.left:,} {were} not folded because of concurrent writes; {again}")
        known, self._named = self._named, folded.named
        if not folded.unfoldable or folded.named == known:
            return
        many = folded.unfoldable > 1
        some = "; some of their rows" if folded.unfoldable > len(folded.named) else ""
        _say(f"{folded.unfoldable:,} event{'s' * many} cannot be folded, and stay{'' if many else 's'} pending{some}:")
        for text in folded.named:
            print(f"  {human(text)}", file=sys.stderr)
        _say(
            "they are not lost: fresh reads include them where possible, and each fold tries them again; correct the "
            "cause above, or remove the key with murmur delete (docs/operations.md, Folding)"
        )


@contextmanager
def _until_sigterm(folding: _Folding) -> Iterator[None]:
    """Let SIGTERM end the rounds after the rows in progress; a second SIGTERM ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        folding.stopped = True
        # Not print: the signal may have interrupted another print.
        os.write(2, b"murmur: ending after the rows in progress; a second SIGTERM ends it at once\n")

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """Reports a round's progress on stderr: in one changing line on a terminal, and in occasional lines elsewhere."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._in_place = sys.stderr.isatty()
        self._began_s = clock.monotonic()
        self._next_s = self._began_s + (0.0 if self._in_place else _LINE_EVERY_S)
        self._width = 0

    def show(self, folded: Folded) -> None:
        """Report the progress, unless the last report is too recent."""
        now_s = self._clock.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + (_IN_PLACE_EVERY_S if self._in_place else _LINE_EVERY_S)
        per_s = folded.events / max(now_s - self._began_s, 1e-3)
        text = f"{folded.rows:,} rows so far, {folded.events:,} events, {folded.cells:,} cells, {per_s:,.0f} events/s"
        if not self._in_place:
            _say(text)
            return
        print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def end(self) -> None:
        """Clear the progress line for the output that follows."""
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    return rfc3339(int(seconds) * 1_000_000).replace(".000000Z", "Z")


def _age(seconds: float) -> str:
    """Spell a duration in its two largest units."""
    whole = timedelta(seconds=max(0, int(seconds)))
    return " ".join(spell_duration(whole).split()[:2])
