"""SIGKILL in the middle of the work, repeatedly on the same state: no event may be lost or counted twice."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from murmur_beam.programs import flights
from tests.support import environment
from tests.support.programs import State, first_flights, flights_by_hand, flights_in, rows_of

FLIGHTS = 6_000
KILLS = 8
MOST_BEFORE_A_KILL = 400
"""Flights that a run may add before it is killed; few enough that all kills together leave more than enough to do."""
TIMEOUT_S = 120.0

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


class Child(Protocol):
    """A run of the pipeline in a process of its own."""

    pid: int

    def kill(self) -> None:
        """Send SIGKILL."""

    def ended(self) -> int | None:
        """Its exit code, -9 after a SIGKILL; None while it runs."""

    def wait(self) -> int:
        """Wait for its end; its exit code."""


class Forked:
    """`murmur flights` by its ``main``, in a fork of a process that has already imported Beam: it starts at once."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["murmur_beam.programs.flights"])
        self._process = context.Process(target=_forked, args=(list(argv), str(log)))
        self._process.start()
        self.pid = self._process.pid or 0

    def kill(self) -> None:
        self._process.kill()

    def ended(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join(TIMEOUT_S)
        code = self._process.exitcode
        assert code is not None, f"process {self.pid} does not end"
        return code


def _forked(argv: list[str], log: str) -> None:
    """The code of the fork."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(flights.main(argv))


class Commanded:
    """``python -m pipelines.flights``, as its users start it."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.flights", *argv], stdout=file, stderr=file, env=environment()
            )
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def ended(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        return self._process.wait(TIMEOUT_S)


@contextlib.contextmanager
def running(start: Callable[[Sequence[str], Path], Child], argv: Sequence[str], log: Path) -> Iterator[Child]:
    """A child that ends with the block."""
    child = start(argv, log)
    try:
        yield child
    finally:
        if child.ended() is None:
            child.kill()
        child.wait()


class Watch:
    """Reads the state from outside, without ever blocking the writer."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def merged(self) -> int:
        """Flights in the state so far."""
        return sum(_count(value) for (value,) in self._select("SELECT value FROM murmur WHERE entity = 'all'"))

    def state(self) -> State:
        """The counts of flights, by entity and bucket."""
        rows = self._select("SELECT entity, bucket, value FROM murmur")
        return {(entity, day): _count(value) for entity, day, value in rows}

    def torn(self) -> list[tuple[str, int, int, int]]:
        """Rows whose count of flights is not the number of markers of flights in them."""
        rows = self._select(
            "SELECT entity, bucket, value, (SELECT count(*) FROM murmur_seen WHERE row = murmur.id) FROM murmur"
        )
        return [(*key, _count(value), markers) for *key, value, markers in rows if _count(value) != markers]

    def _select(self, query: str) -> list[tuple]:
        if not self._path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", timeout=30.0, uri=True)) as db:
            try:
                return db.execute(query).fetchall()
            except sqlite3.OperationalError as err:
                # The first run has made the file, but not yet its tables.
                if "no such table" in str(err):
                    return []
                raise


def _count(value: bytes) -> int:
    """The count of flights, which a row's value begins with."""
    return int.from_bytes(value[:8], "big")


def wait_for(watch: Watch, child: Child, flown: int, log: Path) -> None:
    """Until this many flights are in the state. The child must not end before."""
    deadline = time.monotonic() + TIMEOUT_S
    while watch.merged() < flown:
        assert child.ended() is None, f"ended with {child.ended()}: {log.read_text()}"
        assert time.monotonic() < deadline, f"{watch.merged()} of {flown} flights after {TIMEOUT_S} s"
        time.sleep(0.001)


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    """The first flights of the shipped file."""
    return first_flights(tmp_path / "flights.csv", FLIGHTS)


def test_kills_lose_and_double_nothing(twin: Path, tmp_path: Path) -> None:
    """However often a run is killed while it writes, the last one must end with every count as in a dictionary."""
    chance = random.Random(20_131)
    log, database = tmp_path / "log", tmp_path / "flights.db"
    argv = [
        f"--state=sqlite:///{database}",
        f"--input={twin}",
        f"--dead_letters={tmp_path / 'dead-letters.jsonl'}",
        "--murmur_flush_events=25",
    ]
    by_hand, watch = flights_by_hand(rows_of(twin)), Watch(database)
    expected = {key: result["flights"] for key, result in by_hand.items()}
    before = 0
    for kill in range(KILLS):
        # Some as users start them, most by the fast way; the first of all makes the file.
        start = Commanded if kill == 5 else Forked
        with running(start, argv, log) as child:
            wait_for(watch, child, before + chance.randint(1, MOST_BEFORE_A_KILL), log)
            # Anywhere within a commit or between two of them.
            now = time.perf_counter()
            until = now + chance.uniform(0, 0.01)
            while now < until:
                now = time.perf_counter()
            child.kill()
            assert child.wait() == -signal.SIGKILL, log.read_text()
        flown = watch.merged()
        assert before < flown < FLIGHTS, "killed while it was at work"
        assert watch.torn() == []
        too_many = {key: n for key, n in watch.state().items() if n > expected.get(key, 0)}
        assert too_many == {}
        before = flown

    with running(Commanded, [*argv, "--check"], log) as child:
        assert child.wait() == 0, log.read_text()
    text = log.read_text()
    assert " numbers compared with flights.csv, 0 differ" in text
    assert f"{FLIGHTS - before:,} merged / {before:,} duplicate / 0 dead-lettered" in text
    assert flights_in(database) == by_hand
    assert watch.torn() == []
