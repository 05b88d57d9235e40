"""What the processes of `benchmarks.appending` share: their place, a store that is opened however often that fails."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.append_book import Book, Shape
from murmur_beam.clock import Clock
from murmur_beam.errors import TransientError
from murmur_beam.monoids import Sum
from murmur_beam.state.bigtable import BigtableSpec

SLEEP_S = 0.03
"""The longest wait of an actor."""
LATE_S = 0.1
"""How late the proxy does what it delays."""
BURIED = "buried/"
"""How keys of rows begin that the burier deletes and makes anew."""


class Hurried(Clock):
    """The real clock with short waits: after RESOURCE_EXHAUSTED a store otherwise writes slowly for a minute."""

    def wait(self, seconds: float, cancel: threading.Event | None = None) -> bool:
        """Sleep for a short time."""
        return super().wait(min(seconds, SLEEP_S), cancel)

    async def sleep(self, seconds: float) -> None:
        """Sleep in a coroutine for a short time."""
        await super().sleep(min(seconds, SLEEP_S))


class Place(NamedTuple):
    """What a process needs to know.

    Attributes:
        shape: of the run.
        book: its path.
        processes: how many write to it.
        host: ``BIGTABLE_EMULATOR_HOST``.
        table: its name.
        planted: the fault that is planted; empty for none.
    """

    shape: Shape
    book: str
    processes: int
    host: str
    table: str
    planted: str

    def open_book(self) -> Book:
        """The book of the run."""
        return Book(self.shape, self.book, self.processes)

    def spec(self, **settings: Any) -> BigtableSpec:
        """The spec of the table."""
        return BigtableSpec("benchmark", "instance", self.table, max_in_flight=16, clock=Hurried(), **settings)


class Actor:
    """What a process owns: its book, its random numbers, its store.

    Args:
        place: what the process needs to know.
        process: its number in the book.
        seed: of its random numbers.
    """

    def __init__(self, place: Place, process: int, seed: str) -> None:
        self.place = place
        self.shape = place.shape
        self.book = place.open_book()
        self.process = process
        self.chance = random.Random(seed)

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter."""
        self.book.count(self.process, name, n)

    def open(self, **settings: Any) -> Any:
        """Open the store, and repeat while that fails."""
        while True:
            try:
                return self.place.spec(**settings).open(Sum())
            except TransientError:
                time.sleep(0.01)


def until_done(work: Callable[[], Any]) -> Any:
    """Repeat after transient errors; the result."""
    while True:
        try:
            return work()
        except TransientError:
            time.sleep(0.005)
