"""The book of `benchmarks.appending`: the events, their deliveries, and the values that rows must have.

The book is memory that all processes of a run share, so a killed process loses nothing of it. Each word is written by
one process. An event is noted as sent before it is sent, and as acknowledged after its acknowledgement. So a read must
show at least what was acknowledged before it began, and at most what was sent before it ended.

Most rows hold `EVENTS` events, each of which adds a power of four. So the sum shows which events it counts, and a digit
of two or three shows an event that counts twice. Each wave has new rows of this kind. Hot rows get many events in every
wave; their sums must be between bounds, and exact at the end.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

EVENTS = 30
"""Events of a row of powers: as many as fit into 63 bits."""
ONCE = (4**EVENTS - 1) // 3
"""The sum of a row that counts each of its events once."""
DELETIONS = 4
"""How often a row may be deleted."""
MORTAL_EVERY = 6
"""One row of this many may be deleted."""

_REDELIVERED = 3
"""Deliveries of an event of a row of powers, on average; an event of a hot row has two."""
_LATE = 0.2
"""The part of the deliveries that comes one or two waves later."""
_OFFSET_BITS = 24

COUNTERS = (
    "deliveries", "flushes", "recorded", "merged", "duplicate", "sent again", "folds", "rows folded", "cells deleted",
    "events folded", "found counted", "conflicts", "rows left", "folds failed", "rows read",
    "rows read as of last fold", "hot rows read", "reads failed", "rows deleted", "rows made anew",
)  # fmt: skip


class Shape(NamedTuple):
    """How large a run is.

    Attributes:
        seed: of the random numbers that decide what is delivered.
        waves: in turn.
        rows: of powers; each wave has new ones.
        hot: rows that are used in all waves.
        hot_events: of all hot rows together, in a wave.
        appenders, folders, readers: processes.
        most: deliveries of one flush.
    """

    seed: int
    waves: int
    rows: int
    hot: int
    hot_events: int
    appenders: int
    folders: int
    readers: int
    most: int

    @property
    def n_rows(self) -> int:
        """Number of rows of powers in all waves."""
        return self.waves * self.rows

    @property
    def n_events(self) -> int:
        """Number of all events, each counted once."""
        return self.n_rows * EVENTS + self.waves * self.hot_events

    def key(self, row: int) -> str:
        """The key of a row of powers."""
        return f"{row // self.rows:05}/{row % self.rows:04}"

    def row_of(self, key: str) -> int | None:
        """Inverse of `key`; None for other rows."""
        wave, _, row = key.partition("/")
        return int(wave) * self.rows + int(row) if wave.isdigit() else None

    def is_mortal(self, row: int) -> bool:
        """Whether a row may be deleted."""
        return row % MORTAL_EVERY == 0

    def event(self, row: int, i: int) -> Delivery:
        """An event of a row of powers."""
        return Delivery(row, i, self.key(row), f"{row}/{i}", 4**i)

    def hot_event(self, wave: int, i: int, primary: bool) -> Delivery:
        """An event of a hot row."""
        hot = i % (1 + i // 5 % self.hot)
        delta = 1 + (i * 2_654_435_761 + wave * 97) % 1_000_003
        return Delivery(-1 - hot, int(primary), f"hot/{hot:02}", f"hot {wave}/{i}", delta)

    def hot_sums(self, waves: int) -> list[int]:
        """The sums of the hot rows, with all events of the first ``waves`` waves."""
        return list(_hot_sums(self, min(waves, self.waves)))


class Delivery(NamedTuple):
    """One of the deliveries of an event.

    Attributes:
        row: of powers; or -1, -2 and so on for hot rows.
        i: which event of a row of powers; of a hot row: 1 for the delivery that the bounds count.
        key, event_id, delta: what is merged.
    """

    row: int
    i: int
    key: str
    event_id: str
    delta: int


@lru_cache(maxsize=64)
def _hot_sums(shape: Shape, waves: int) -> Sequence[int]:
    if waves <= 0:
        return [0] * shape.hot
    sums = list(_hot_sums(shape, waves - 1))
    for i in range(shape.hot_events):
        one = shape.hot_event(waves - 1, i, True)
        sums[-1 - one.row] += one.delta
    return sums


@lru_cache(maxsize=4)
def _dealt(shape: Shape, wave: int) -> dict[tuple[int, int], list[Delivery]]:
    """The deliveries of events of a wave, by the number of waves by which they are late, and by appender."""
    chance = random.Random(f"{shape.seed}/{wave}")
    dealt: dict[tuple[int, int], list[Delivery]] = {}

    def deal(delivery: Delivery, *, first: bool) -> None:
        late = 0 if first or chance.random() > _LATE else chance.randint(1, 2)
        dealt.setdefault((late, chance.randrange(shape.appenders)), []).append(delivery)

    if not 0 <= wave < shape.waves:
        return dealt
    for row in range(wave * shape.rows, (wave + 1) * shape.rows):
        for i in range(EVENTS):
            one = shape.event(row, i)
            for n in range(chance.randint(_REDELIVERED - 1, _REDELIVERED + 1)):
                deal(one, first=n == 0)
    for i in range(shape.hot_events):
        deal(shape.hot_event(wave, i, True), first=True)
        deal(shape.hot_event(wave, i, False), first=False)
    return dealt


def deliveries(shape: Shape, wave: int, appender: int) -> Sequence[Delivery]:
    """What an appender delivers in a wave, in order: events of this wave, and redeliveries of earlier ones.

    Args:
        shape: of the run.
        wave: up to ``shape.waves + 1``, since some come late.
        appender: its number.
    """
    made = [one for late in range(3) for one in _dealt(shape, wave - late).get((late, appender), ())]
    random.Random(f"{shape.seed}/{wave}/{appender}").shuffle(made)
    return made


def n_deliveries(shape: Shape) -> int:
    """The approximate number of deliveries."""
    return shape.waves * (shape.rows * EVENTS * _REDELIVERED + 2 * shape.hot_events)


class Bounds(NamedTuple):
    """The least sum that a row of powers must show, and the life of the row that this is about."""

    least: int
    life: int


class Book:
    """What has been sent and acknowledged so far.

    Args:
        shape: of the run.
        path: of its file; faults are noted in a file beside it.
        processes: how many have counters.
    """

    def __init__(self, shape: Shape, path: str, processes: int) -> None:
        self.shape = shape
        self._path = path
        self._writers = shape.appenders + 1
        n = shape.n_rows
        self._mortals = -(-n // MORTAL_EVERY)
        sizes = {
            "sent": self._writers * n,
            "acknowledged": self._writers * n,
            "in_life": self._writers * self._mortals * (DELETIONS + 1),
            "life": self._mortals,
            "hot": self._writers * shape.hot,
            "begun": self._writers,
            "position": self._writers,
            "counters": processes * len(COUNTERS),
            "stop": 1,
        }
        total = 8 * sum(sizes.values())
        with open(path, "a+b") as file:
            if os.path.getsize(path) < total:
                file.truncate(total)
            self._map = mmap.mmap(file.fileno(), total)
        words = memoryview(self._map).cast("q")
        start, parts = 0, {}
        for name, size in sizes.items():
            parts[name] = words[start : start + size]
            start += size
        self._sent, self._acknowledged, self._in_life = parts["sent"], parts["acknowledged"], parts["in_life"]
        self._life, self._hot, self._begun = parts["life"], parts["hot"], parts["begun"]
        self._position, self._counters, self._stop = parts["position"], parts["counters"], parts["stop"]

    # ---- for appenders ----

    def position(self, writer: int) -> tuple[int, int]:
        """The wave of an appender, and how many of its deliveries are acknowledged."""
        position = self._position[writer]
        return position >> _OFFSET_BITS, position & (1 << _OFFSET_BITS) - 1

    def go_on(self, writer: int, wave: int, offset: int) -> None:
        """Note that all deliveries before this position are acknowledged."""
        self._position[writer] = wave << _OFFSET_BITS | offset

    def sending(self, writer: int, wave: int, some: Sequence[Delivery]) -> list[int]:
        """Note deliveries that are about to be sent; the life of each one's row."""
        self._begun[writer] = max(self._begun[writer], wave + 1)
        first = writer * self.shape.n_rows
        for row, _, _, _, delta in some:
            if row >= 0:
                self._sent[first + row] |= delta
        return [self.life(one.row) for one in some]

    def acknowledged(self, writer: int, some: Sequence[Delivery], lives: Sequence[int]) -> None:
        """Note deliveries that are in the table, without those of a row that was being deleted. Call `go_on` first.

        So a process that is killed in between leaves out some, and notes none twice.
        """
        first = writer * self.shape.n_rows
        for (row, primary, _, _, delta), life in zip(some, lives, strict=True):
            if row < 0:
                if primary:
                    self._hot[writer * self.shape.hot - 1 - row] += delta
            elif not self.shape.is_mortal(row):
                self._acknowledged[first + row] |= delta
            elif life % 2 == 0:
                self._in_life[self._place_in_life(writer, row, life)] |= delta

    def _place_in_life(self, writer: int, row: int, life: int) -> int:
        mortal = writer * self._mortals + row // MORTAL_EVERY
        return mortal * (DELETIONS + 1) + life // 2

    # ---- for deleters ----

    def life(self, row: int) -> int:
        """The life of a row: even; odd while the row is being deleted."""
        return self._life[row // MORTAL_EVERY] if row >= 0 and self.shape.is_mortal(row) else 0

    def next_life(self, row: int) -> None:
        """Begin the next life of a row: call it before the deletion and after it."""
        self._life[row // MORTAL_EVERY] += 1

    # ---- for readers ----

    def waves(self) -> tuple[int, int]:
        """The first and the last wave that an appender is in."""
        positions = [self._position[writer] >> _OFFSET_BITS for writer in range(self.shape.appenders)]
        last = self.shape.waves - 1
        return min(*positions, last), min(max(positions), last)

    def bounds(self, row: int) -> Bounds:
        """The least that a read must show of a row of powers, if it begins now."""
        life = self.life(row)
        least = 0
        for writer in range(self._writers):
            if not self.shape.is_mortal(row):
                least |= self._acknowledged[writer * self.shape.n_rows + row]
            elif life % 2 == 0:
                least |= self._in_life[self._place_in_life(writer, row, life)]
        return Bounds(least, life)

    def most(self, row: int) -> int:
        """The most that a read may show of a row of powers, if it ends now."""
        most = 0
        for writer in range(self._writers):
            most |= self._sent[writer * self.shape.n_rows + row]
        return most

    def hot_least(self) -> list[int]:
        """The least that a read must show of the hot rows, if it begins now."""
        hot = self.shape.hot
        return [sum(self._hot[writer * hot + i] for writer in range(self._writers)) for i in range(hot)]

    def hot_most(self) -> list[int]:
        """The most that a read may show of the hot rows, if it ends now."""
        return self.shape.hot_sums(max(self._begun))

    # ---- for all ----

    @property
    def stopped(self) -> bool:
        """Whether the run has ended."""
        return self._stop[0] > 1

    @property
    def deleting(self) -> bool:
        """Whether rows may still be deleted. The last deliveries come after that."""
        return self._stop[0] == 0

    def stop_deleting(self) -> None:
        """Let no more rows be deleted."""
        self._stop[0] = max(self._stop[0], 1)

    def stop(self) -> None:
        """End the run."""
        self._stop[0] = 2

    def count(self, process: int, name: str, n: int = 1) -> None:
        """Add to a counter of a process."""
        self._counters[process * len(COUNTERS) + COUNTERS.index(name)] += n

    def counted(self, name: str) -> int:
        """The sum of a counter over all processes."""
        return sum(self._counters[COUNTERS.index(name) :: len(COUNTERS)])

    def note(self, fault: str) -> None:
        """Note a fault."""
        with open(f"{self._path}.faults", "a", encoding="utf-8") as file:
            file.write(fault.replace("\n", " ")[:500] + "\n")

    def faults(self) -> list[str]:
        """All faults that were noted."""
        path = Path(f"{self._path}.faults")
        return path.read_text("utf-8").splitlines() if path.exists() else []


def wrong(value: int | None, least: int, most: int) -> str:
    """What is wrong with the sum of a row of powers; empty if it is right.

    Args:
        value: that was read.
        least: events that must be in it.
        most: events that may be in it.
    """
    found = value or 0
    if not 0 <= found < 4**EVENTS:
        return f"{found} is not a sum of its events"
    double = [i for i, digit in _digits(found) if digit > 1]
    if double:
        return f"events {double} count more than once"
    if lost := least & ~found:
        return f"events {[i for i, _ in _digits(lost)]} do not count, although they were acknowledged"
    if foreign := found & ~most:
        return f"events {[i for i, _ in _digits(foreign)]} count, although they were not sent"
    return ""


def _digits(found: int) -> Iterator[tuple[int, int]]:
    for i in range(EVENTS):
        if digit := found >> 2 * i & 3:
            yield i, digit
