"""Random deliveries of random events with random faults: the scenarios of the conservation tests of every level.

An event id always has the same content, as with a source that redelivers. Deltas that overflow have keys of their own
(`BIG_KEYS`): which of them still fits depends on earlier ones, so only a ledger knows.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

from hypothesis import strategies as st

from murmur_beam.errors import PermanentError, TransientError
from murmur_beam.model import Update, to_us
from murmur_beam.monoids.sum import INT64_MAX, INT64_MIN
from murmur_beam.windows import WindowConfig, daily
from tests.support.records import Record

START = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
"""The time of a `FakeClock` at the start."""

EVENT_IDS = ("e0", "e1", "e2", "e3", "e4", "e5", "0", "00", "Zo\xeb", "e" * 200)
KEYS = ("a", "ab", "b", "\xfc")
BIG_KEYS = ("big", "bigger")
BIG_DELTAS = (INT64_MAX, INT64_MIN, INT64_MAX - 1, INT64_MAX // 2 + 1, INT64_MIN // 2 - 1, 1, -1)


class Event(NamedTuple):
    """An event of a source, which may deliver it repeatedly. Keys may repeat."""

    event_id: str
    event_time: datetime
    keys: tuple[str, ...]
    delta: int

    def record(self) -> Record:
        """The record as the processor accepts it."""
        return Record.of(self.event_id, to_us(self.event_time), self.keys, self.delta)


class Fault(enum.Enum):
    """The fault of one write."""

    NONE = "it goes well"
    REFUSED = "nothing is written; a later try may go well"
    LOST = "it is written, but the answer is lost"
    PERMANENT = "nothing is written, and no retry can cure it"
    FLUSH_REFUSED = "the whole flush raises, and nothing of it is written"
    FLUSH_LOST = "the whole flush raises after all of it was written"


class Batch(NamedTuple):
    """Events delivered together, duplicates among them, and the time since the batch before."""

    after: timedelta
    events: tuple[Event, ...]


class Scenario(NamedTuple):
    """All deliveries and faults of one run.

    Attributes:
        window: of the pipeline.
        batches: in their order.
        faults: of the writes, one by one; later writes succeed.
        max_attempts: tries for each key.
        redeliver_all: deliver everything again at the end, or only the unmerged events.
    """

    window: WindowConfig | None
    batches: tuple[Batch, ...]
    faults: tuple[Fault, ...]
    max_attempts: int
    redeliver_all: bool

    @property
    def delivered(self) -> list[Event]:
        """Each event that was delivered at all, once."""
        return list(dict.fromkeys(event for batch in self.batches for event in batch.events))


class FaultPlan:
    """The two functions that `murmur_beam.testing.FaultyStore` accepts, following a list of faults.

    Errors that it returns are the updates' own; those that it raises are the whole flush's. Not thread-safe.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = deque(faults)
        self._passed: deque[Fault] = deque()

    def fault(self, update: Update) -> Exception | None:
        """For ``FaultyStore(fault=...)``."""
        fault = self._faults.popleft() if self._faults else Fault.NONE
        if fault is Fault.FLUSH_REFUSED:
            self._passed.clear()
            raise TransientError("flush refused")
        if fault is Fault.REFUSED:
            return TransientError("refused")
        if fault is Fault.PERMANENT:
            return PermanentError("refused for good")
        self._passed.append(fault)
        return None

    def lost(self, update: Update) -> Exception | None:
        """For ``FaultyStore(lost=...)``."""
        fault = self._passed.popleft()
        if fault is Fault.FLUSH_LOST:
            self._passed.clear()
            raise TimeoutError("answer to the flush lost")
        return TimeoutError("answer lost") if fault is Fault.LOST else None

    def stop(self) -> None:
        """Let all later writes succeed."""
        self._faults.clear()


def _times() -> st.SearchStrategy[datetime]:
    """Several days around the start, the limits of days and of a retention in whole days among them."""
    hours = st.integers(-5 * 24, 24).map(lambda n: START.replace(hour=0, minute=0, second=0) + timedelta(hours=n))
    edges = st.integers(-5, 1).map(lambda n: START + timedelta(days=n))
    nudges = st.sampled_from([timedelta(0), timedelta(microseconds=1), timedelta(microseconds=-1)])
    return st.builds(lambda time, nudge: time + nudge, hours | edges, nudges)


def _contents() -> st.SearchStrategy[tuple[tuple[str, ...], int]]:
    """Keys and delta of an event."""
    small = st.tuples(st.lists(st.sampled_from(KEYS), max_size=3).map(tuple), st.integers(-1000, 1000))
    big = st.tuples(st.lists(st.sampled_from(BIG_KEYS), min_size=1, max_size=2).map(tuple), st.sampled_from(BIG_DELTAS))
    return st.one_of(small, small, big)


def events() -> st.SearchStrategy[list[Event]]:
    """One to eight events with different ids."""
    event = st.builds(
        lambda event_id, time, content: Event(event_id, time, *content),
        st.sampled_from(EVENT_IDS),
        _times(),
        _contents(),
    )
    return st.lists(event, min_size=1, max_size=8, unique_by=lambda e: e.event_id)


WINDOWS = (None, daily(), daily(timedelta(days=2)))


@st.composite
def scenarios(draw: st.DrawFn, windows: Sequence[WindowConfig | None] = WINDOWS) -> Scenario:
    """Batches of a few events, delivered several times, with faults at any point."""
    pool = st.sampled_from(draw(events()))
    pause = st.sampled_from([timedelta(0), timedelta(0), timedelta(hours=1), timedelta(days=1)])
    batch = st.builds(Batch, pause, st.lists(pool, max_size=10).map(tuple))
    fault = st.sampled_from(Fault)
    return Scenario(
        window=draw(st.sampled_from(windows)),
        batches=tuple(draw(st.lists(batch, min_size=1, max_size=4))),
        faults=tuple(draw(st.lists(fault, max_size=30))),
        max_attempts=draw(st.integers(1, 3)),
        redeliver_all=draw(st.booleans()),
    )
