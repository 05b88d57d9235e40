"""Shared parts of the benchmarks: new processes for measurements, time and memory, and tables of figures."""

from __future__ import annotations

import argparse
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

from murmur_beam.errors import ConfigurationError, MurmurError

T = TypeVar("T")


class Inexact(MurmurError):
    """A count is wrong, so the figures of that run mean nothing."""


class Usage(NamedTuple):
    """Time that was used.

    Attributes:
        seconds: by the wall clock.
        cpu_s: processor time of this process, of all threads.
    """

    seconds: float
    cpu_s: float


class Watch:
    """Measures from `start` to the last `stop`. Both may be called in a pipeline, for its first element and at the end
    of its last bundle. The work of a runner before and after that is not in the figure.

    Attributes:
        usage: the time that was used.
    """

    def start(self) -> None:
        """Start from zero."""
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def stop(self) -> Usage:
        """The time used since the start."""
        self.usage = Usage(time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s)
        return self.usage


def peak_mb() -> float:
    """Peak memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Call(Generic[T]):
    """A call in its own process, so that memory and caches belong to this call alone.

    The process is forked from a server that has only imported the function's module, which is quicker than a new
    Python. Its environment is a copy of the current one. Use it in a ``with`` statement, which kills the process at
    its end.

    Args:
        function: of a module that can be imported.
        args: of the function.

    Attributes:
        pid: of the process.
    """

    def __init__(self, function: Callable[..., T], *args: object) -> None:
        self._name = function.__name__
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([function.__module__])
        self._answer, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_call, args=(sender, dict(os.environ), function, args), daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0
        sender.close()

    def __enter__(self) -> Call[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill the process and wait for its end; nothing else may be called afterwards."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._answer.close()

    def done(self) -> bool:
        """Whether the call has ended, with or without a result."""
        return self._answer.poll()

    def result(self) -> T:
        """Wait for the function's result. Call it once.

        Raises:
            Exception: the function has raised it, or its process died.
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
    """Set environment variables, and restore them at the end."""
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
    """Wrap imports of optional packages.

    Raises:
        MurmurError: a package is missing; the text says how to install it.
    """
    try:
        yield
    except ImportError as err:
        raise MurmurError(f"{err}; run: pip install 'murmur-beam[bench]'") from err


@contextmanager
def tidy() -> Iterator[None]:
    """Let SIGTERM end the program as SIGINT does, so that no emulator is left running."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def on_bigtable() -> Iterator[None]:
    """Run an emulator of Bigtable for the clients of this process and of processes that it starts."""
    from murmur_beam.testing import emulators

    with tidy(), emulators.bigtable() as host, environment(BIGTABLE_EMULATOR_HOST=host), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the client, about the emulator
        yield


def require_at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Check counts of the command line.

    Raises:
        ConfigurationError: one is less than 1; names its flag.
    """
    for name in names:
        if getattr(args, name) < 1:
            raise ConfigurationError(f"--{name}", f"must be at least 1, got {getattr(args, name)}")


def say(text: str) -> None:
    """Show progress on stderr, in one line that changes; only on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:<78}", end="\r" if not text else "", file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> float:
    """The largest value divided by the smallest; 1 if all are the same."""
    return max(values) / min(values) if min(values) > 0 else float(max(values) == min(values))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least ``percent`` % of the values do not exceed."""
    return ordered[max(0, -int(-percent * len(ordered) // 100) - 1)]


class Bar(NamedTuple):
    """A ratio with the bar that it must reach.

    Attributes:
        text: the two sides of the ratio.
        values: one for each round.
        bar: None for a ratio that is only shown.
        at_least: whether the bar is a minimum; else it is a maximum.
        unit: of the values.
        by_cpu: the same by the time of the client's processor, for each round; empty if that means nothing.
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
        """Whether the bar is reached; None without a bar."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def to_dict(self) -> dict[str, object]:
        """The bar as a JSON object."""
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
    """Rows of a table; the first has the titles."""
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
    """The exit code: 1 if a bar is not reached."""
    return int(any(bar.holds is False for bar in bars))


def print_figures(rows: Sequence[Sequence[str]], bars: Sequence[Bar]) -> None:
    """Print a table of figures, and then the table of bars."""
    print_table(rows)
    print()
    print_table(bars_table(bars))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows; the first has the titles. The first column is aligned left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())


def machine() -> str:
    """Description of the machine."""
    return f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f} before"


def versions() -> str:
    """Versions of the packages and of the emulator."""
    return f"Beam {version('apache-beam')}, grpcio {version('grpcio')}, Bigtable emulator {_emulator_version()}"


def _emulator_version() -> str:
    """The version of the emulator's Debian package, or else the date of its program, which does not print a version."""
    from murmur_beam.testing.emulators import BIGTABLE

    program = BIGTABLE.find()
    with suppress(OSError):
        ask = ["dpkg-query", "-W", "-f=${Version}", BIGTABLE.package]
        asked = subprocess.run(ask, capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return asked.stdout
    return f"of {time.strftime('%Y-%m-%d', time.gmtime(os.stat(program).st_mtime))}"
