"""``murmur fold``: bring what was appended to a table into its aggregates, once or again and again."""

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
from urllib.parse import urlsplit

from murmur_beam.cli_output import human, print_json
from murmur_beam.clock import Clock
from murmur_beam.durations import format_duration, spell_duration
from murmur_beam.errors import ConfigurationError, TransientError
from murmur_beam.model import rfc3339
from murmur_beam.monoids.base import Monoid
from murmur_beam.reader import Reader
from murmur_beam.state import StoreSpec

if TYPE_CHECKING:
    from murmur_beam.state.bigtable.row_fold import Folded

FOLD = (
    "Bring into the aggregates of a table in Bigtable what pipelines have appended to it (create-table --write append)."
)
EPILOG = """\
Pipelines, readers and other folders may work on the table meanwhile: each event counts once. It may be killed at any
time; the next one goes on. Stores outside Bigtable need no fold.

Each round is one line: the rows with enough that was pending, the events that were brought in, duplicates that were
found, pending cells that were deleted and their bytes, how long the oldest of them had waited, commits that came second
to somebody else's, rows that were written by others all the time and are left for the next round, and events that
cannot be folded. Those stay pending; stderr names their rows, and says why and what to do.

exit codes:
  0    done, or nothing to do; with --every: ended by SIGTERM
  1    done, but for events that cannot be folded
  2    an error, told in one line on stderr
  130  interrupted

--json is one object a round. With --every, a round that fails where a later one may not is told on stderr, and the next
one begins in its time.
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
"""What is told of a round, and how wide it is."""
_LOOK_S = 0.2
"""How often to look for a signal between rounds."""
_IN_PLACE_EVERY_S = 0.2
_LINE_EVERY_S = 10.0


def add_fold(
    sub: argparse.ArgumentParser,
    prefix: Callable[[str], str],
    duration: Callable[[str], timedelta],
    number: Callable[[str], int],
) -> None:
    """Add the arguments of ``murmur fold``; given are the parsers of their texts."""
    sub.add_argument("--prefix", type=prefix, default="", help="only rows of entities that start with this")
    sub.add_argument(
        "--every",
        metavar="DURATION",
        type=duration,
        help="fold for ever: a round begins so long after the last one began, such as 1m; default: fold once",
    )
    sub.add_argument(
        "--min-cells",
        metavar="N",
        type=number,
        default=1,
        help="only rows with so many pending cells: each costs a fresh read some microseconds; default: %(default)s",
    )
    sub.add_argument("--json", action="store_true", help="one JSON document a round, each on a line")
    sub.add_argument(
        "--monoid", metavar="NAME", help="package.module:attribute of your own; default: what the store recorded"
    )


def fold(spec: StoreSpec, monoid: Monoid[Any] | None, args: argparse.Namespace) -> int:
    """Fold a table.

    Args:
        spec: the store.
        monoid: what the table holds; None for what is recorded.
        args: ``uri``, ``prefix``, ``every``, ``min_cells``, ``json``.

    Returns:
        The exit code.

    Raises:
        MurmurError: it cannot be done; of a single round also where a later one may do it.
    """
    if args.every is not None and args.every <= timedelta(0):
        raise ConfigurationError("every", "must be positive, such as 1m")
    if urlsplit(args.uri).scheme != "bigtable":
        return _needs_none(args, "needs no fold: stores outside Bigtable fold at once")
    folding = _Folding(spec, monoid, args)
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
    """A round has ended before all was done, since it was told to."""


class _Folding:
    """Rounds over one table, which is opened by the first that can.

    Args:
        spec, monoid, args: see `fold`.

    Attributes:
        stopped: end after the rows under way.
    """

    def __init__(self, spec: StoreSpec, monoid: Monoid[Any] | None, args: argparse.Namespace) -> None:
        self.stopped = False
        self._spec = spec
        self._monoid = monoid
        self._args = args
        self._clock: Clock = getattr(spec, "clock", None) or Clock()
        self._reader: Reader[Any] | None = None
        self._needs_none = False
        self._has_header = False
        self._named: tuple[str, ...] = ()

    def close(self) -> None:
        """Close the table."""
        if self._reader is not None:
            self._reader.close()

    def rounds(self, every: timedelta) -> int:
        """Fold until it is stopped, or no round is needed; the exit code.

        Raises:
            MurmurError: what no later round can cure.
        """
        while not self.stopped:
            next_s = self._clock.monotonic() + every.total_seconds()
            try:
                self.round()
            except TransientError as err:
                _say(f"this round failed: {err}; the next one begins {format_duration(every)} after it began")
            if self._needs_none:
                break
            while not self.stopped and (left_s := next_s - self._clock.monotonic()) > 0:
                # Not an Event that the signal sets: who handles a signal must not take a lock.
                self._clock.wait(min(left_s, _LOOK_S))
        return DONE

    def round(self) -> int:
        """Fold once; the exit code.

        Raises:
            MurmurError: it cannot be done.
        """
        if self._reader is None:
            self._reader = Reader.open(self._spec, self._monoid)
        store: Any = self._reader.store
        if not store.keeps_pending():
            self._needs_none = True
            return _needs_none(self._args, "needs no fold: in a table of layout 1 nothing is ever pending")
        began, began_s = self._clock.now(), self._clock.monotonic()
        progress = _Progress(self._clock)
        so_far = None

        def tell(folded: Folded) -> None:
            nonlocal so_far
            so_far = folded
            if self.stopped:
                raise _Ended
            progress.show(folded)

        try:
            folded = store.fold(self._args.prefix, least=self._args.min_cells, report=tell)
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
        from murmur_beam.state.bigtable.sizes import size_text  # not above: what is not installed is told by the store

        oldest = "-" if folded.oldest_us is None else _age(self._clock.now() - folded.oldest_us / 1e6)
        counts = folded.rows, folded.events, folded.duplicates, folded.cells
        told = *map(human, counts), size_text(folded.n_bytes), oldest, *map(human, folded[6:9])
        print("  ".join([*lead, *(text.rjust(n) for text, n in zip(told, _COLUMNS.values(), strict=True))]))

    def _warn(self, folded: Folded, whole: bool) -> None:
        """Say what was not done; what cannot be folded only if it is not as in the last round."""
        if not whole:
            _say("ended before all was done; the next fold goes on")
        if folded.left:
            were = "rows were" if folded.left > 1 else "row was"
            again = "the next round goes on" if self._args.every else "run it again"
            _say(f"{folded.left:,} {were} written by others all the time; {again}")
        known, self._named = self._named, folded.named
        if not folded.unfoldable or folded.named == known:
            return
        many = folded.unfoldable > 1
        some = "; some of their rows" if folded.unfoldable > len(folded.named) else ""
        _say(f"{folded.unfoldable:,} event{'s' * many} cannot be folded, and stay{'' if many else 's'} pending{some}:")
        for text in folded.named:
            print(f"  {human(text)}", file=sys.stderr)
        _say(
            "they are not lost: fresh reads show them where they can, and each fold tries them again; mend what is "
            "said above, or remove the key with murmur delete (docs/operations.md, Folding)"
        )


@contextmanager
def _until_sigterm(folding: _Folding) -> Iterator[None]:
    """SIGTERM ends the rounds after the rows under way; a second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        folding.stopped = True
        # Not print: what the signal has interrupted may be printing.
        os.write(2, b"murmur: ending after the rows under way; once more ends it at once\n")

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """Says on stderr how far a round is: on a terminal in one line that changes, else now and then."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._in_place = sys.stderr.isatty()
        self._began_s = clock.monotonic()
        self._next_s = self._began_s + (0.0 if self._in_place else _LINE_EVERY_S)
        self._width = 0

    def show(self, folded: Folded) -> None:
        """Say it, if the last time is long enough ago."""
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
        """Leave the line empty for what comes."""
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    return rfc3339(int(seconds) * 1_000_000).replace(".000000Z", "Z")


def _age(seconds: float) -> str:
    """The two largest units of it."""
    whole = timedelta(seconds=max(0, int(seconds)))
    return " ".join(spell_duration(whole).split()[:2])
