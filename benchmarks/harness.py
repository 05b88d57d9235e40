"""What the benchmarks share: a fresh process for each measurement, its clock and memory, and how figures are told."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any, Generic, NamedTuple, TypeVar, cast

from murmur_beam.errors import MurmurError

T = TypeVar("T")


class Inexact(MurmurError):
    """A count is wrong, so that the figures of whoever counted mean nothing."""


class Usage(NamedTuple):
    """What something took.

    Attributes:
        seconds: by the wall clock.
        cpu_s: of this process, all its threads.
    """

    seconds: float
    cpu_s: float


class Watch:
    """Measures from `start` to the last `stop`; both may be called from within a pipeline, when its first element comes
    and when its last bundle ends. What a runner does before and after that is not in the figure.

    Attributes:
        usage: what it took.
    """

    def start(self) -> None:
        """Begin anew."""
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def stop(self) -> Usage:
        """What it took since."""
        self.usage = Usage(time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s)
        return self.usage


def peak_mb() -> float:
    """The most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Call(Generic[T]):
    """A call that goes on in a process of its own, so that memory and caches are of this call alone.

    The process is forked from one that has only imported what the function needs, which is quicker than starting Python
    anew; its environment is what that of this process is now. Use it in a ``with`` statement, which kills
    the process at its end.

    Args:
        function: of a module that can be imported.
        args: for it.
    """

    def __init__(self, function: Callable[..., T], *args: object) -> None:
        self._name = function.__name__
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([function.__module__])
        self._answer, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_call, args=(sender, dict(os.environ), function, args), daemon=True)
        self._process.start()
        sender.close()

    def __enter__(self) -> Call[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._answer.close()

    def done(self) -> bool:
        """Has it ended, somehow?"""
        return self._answer.poll()

    def result(self) -> T:
        """Wait for what the function returns; to be asked for once.

        Raises:
            Exception: what the function raises, or that its process died.
        """
        try:
            value, error = self._answer.recv()
        except EOFError:
            self._process.join()
            raise MurmurError(f"the process of {self._name} died with exit code {self._process.exitcode}") from None
        if error is not None:
            raise error
        return cast(T, value)


def _call(sender: Any, variables: dict[str, str], function: Callable[..., object], args: Sequence[object]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    try:
        answer = function(*args), None
    except Exception as err:
        err.__traceback__ = None
        answer = None, err
    sender.send(answer)


def in_own_process(function: Callable[..., T], *args: object) -> T:
    """As `Call`, with its result."""
    with Call(function, *args) as call:
        return call.result()


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def needing_extra() -> Iterator[None]:
    """Around imports of what not every installation has.

    Raises:
        MurmurError: it is not there; says how to get it.
    """
    try:
        yield
    except ImportError as err:
        raise MurmurError(f"{err}; run: pip install 'murmur-beam[bench]'") from err


@contextmanager
def tidy() -> Iterator[None]:
    """SIGTERM ends the program as SIGINT does, so that no emulator is left running."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def on_bigtable() -> Iterator[None]:
    """An emulator of Bigtable that clients of this process, and of those it starts, come to."""
    from murmur_beam.testing import emulators

    with tidy(), emulators.bigtable() as host, environment(BIGTABLE_EMULATOR_HOST=host), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the client, about the emulator
        yield


def say(text: str) -> None:
    """Show on stderr what is being done: on a terminal in one line that changes, else nothing."""
    if sys.stderr.isatty():
        print(f"\r{text:<78}", end="\r" if not text else "", file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> float:
    """The greatest by the least; 1 where all are the same."""
    return max(values) / min(values) if min(values) > 0 else float(max(values) == min(values))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that so many percent of them do not exceed."""
    return ordered[max(0, -int(-percent * len(ordered) // 100) - 1)]


class Bar(NamedTuple):
    """A ratio with the bar that it has to reach.

    Attributes:
        text: of what to what.
        values: one for each round.
        bar: None for one that is only shown.
        at_least: or at most?
        unit: of the values.
        by_cpu: the same by the time of the client's processor, for each round; empty where that says nothing.
    """

    text: str
    values: Sequence[float]
    bar: float | None
    at_least: bool = True
    unit: str = ""
    by_cpu: Sequence[float] = ()

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def holds(self) -> bool | None:
        """Is it reached?"""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "text": self.text,
            "value": round(self.value, 3),
            "least": round(min(self.values), 3),
            "greatest": round(max(self.values), 3),
            "unit": self.unit,
            "by_cpu": round(statistics.median(self.by_cpu), 3) if self.by_cpu else None,
            "bar": self.bar,
            "at_least": self.at_least,
            "holds": self.holds,
        }


def bars_table(bars: Sequence[Bar]) -> list[list[str]]:
    """Rows of a table, the first of them the titles."""
    with_cpu = any(bar.by_cpu for bar in bars)
    rows = [["figure", "median", "of rounds", *(["by CPU"] if with_cpu else []), "bar", ""]]
    for bar in bars:
        wanted = "" if bar.bar is None else f"{'>=' if bar.at_least else '<='} {bar.bar:g}{bar.unit}"
        verdict = {None: "", True: "holds", False: "MISSED"}[bar.holds]
        between = f"{min(bar.values):.2f} .. {max(bar.values):.2f}"
        by_cpu = [f"{statistics.median(bar.by_cpu):.2f}" if bar.by_cpu else ""] if with_cpu else []
        rows.append([bar.text, f"{bar.value:.2f}{bar.unit}", between, *by_cpu, wanted, verdict])
    return rows


def missed(bars: Sequence[Bar]) -> int:
    """The exit code: 1 if one is not reached."""
    return int(any(bar.holds is False for bar in bars))


def print_figures(rows: Sequence[Sequence[str]], bars: Sequence[Bar]) -> None:
    """Print a table of figures, and behind it that of the bars."""
    print_table(rows)
    print()
    print_table(bars_table(bars))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows, the first of them the titles: the first column to the left, all others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())


def machine() -> str:
    """What the figures were taken on."""
    return f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f} before"


def versions() -> str:
    """Of what figures depend on besides."""
    return f"Beam {version('apache-beam')}, grpcio {version('grpcio')}, Bigtable emulator {_emulator_version()}"


def _emulator_version() -> str:
    """The emulator does not say it: that of the package it came with, or else the day its program was made."""
    from murmur_beam.testing.emulators import BIGTABLE

    program = BIGTABLE.find()
    with suppress(OSError):
        ask = ["dpkg-query", "-W", "-f=${Version}", BIGTABLE.package]
        asked = subprocess.run(ask, capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return asked.stdout
    return f"of {time.strftime('%Y-%m-%d', time.gmtime(os.stat(program).st_mtime))}"
