"""Random deliveries of random events with random faults: what the conservation tests of every level draw from.

An event id always carries the same content, as a source that redelivers does. Deltas that overflow are on keys of
their own (`BIG_KEYS`): which of them still fits depends on what came before, so only a ledger can tell.
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
"""Where a `FakeClock` starts."""

EVENT_IDS = ("e0", "e1", "e2", "e3", "e4", "e5", "0", "00", "Zo\xeb", "e" * 200)
KEYS = ("a", "ab", "b", "\xfc")
BIG_KEYS = ("big", "bigger")
BIG_DELTAS = (INT64_MAX, INT64_MIN, INT64_MAX - 1, INT64_MAX // 2 + 1, INT64_MIN // 2 - 1, 1, -1)


class Event(NamedTuple):
    """What a source delivers, as often as it likes. Keys may repeat."""

    event_id: str
    event_time: datetime
    keys: tuple[str, ...]
    delta: int

    def record(self) -> Record:
        """As the processor takes it."""
        return Record.of(self.event_id, to_us(self.event_time), self.keys, self.delta)


class Fault(enum.Enum):
    """What one write meets."""

    NONE = "it goes well"
    REFUSED = "nothing is written; a later try may go well"
    LOST = "it is written, but the answer is lost"
    PERMANENT = "nothing is written, and no retry can cure it"
    FLUSH_REFUSED = "the whole flush raises, and nothing of it is written"
    FLUSH_LOST = "the whole flush raises after all of it was written"


class Batch(NamedTuple):
    """Events delivered together, duplicates among them, and how long after the batch before."""

    after: timedelta
    events: tuple[Event, ...]


class Scenario(NamedTuple):
    """All that happens in one run.

    Attributes:
        window: of the pipeline.
        batches: in their order.
        faults: what the writes meet, one by one; after the last of them all goes well.
        max_attempts: tries for each key.
        redeliver_all: deliver everything again at the end, or only what has not merged.
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
    """The two functions that `murmur_beam.testing.FaultyStore` takes, following a list of faults.

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
        """From now on all goes well."""
        self._faults.clear()


def _times() -> st.SearchStrategy[datetime]:
    """Several days around the start, the edges of days and of a retention in whole days among them."""
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
    """Batches of a few events, delivered several times over, with faults at any point."""
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
