"""The per-record core as the tests call it: configs, plans of faults, and stores that record their calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

from murmur_beam.clock import Clock
from murmur_beam.errors import (
    TransientError,
)
from murmur_beam.metrics import InMemory
from murmur_beam.model import Key, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.processor import (
    AtomicDedup,
    Config,
    merge_many,
)
from murmur_beam.state.base import Result, Store
from murmur_beam.testing import FaultyStore

WHEN = datetime(2023, 11, 14, 22, 0, tzinfo=timezone.utc)
"""13 minutes and 20 seconds before the fake clock's now."""
BUSY = TransientError("busy")


class Max(Monoid[int]):
    """The largest value: idempotent, so that it needs no marker."""

    name = "test-max"
    idempotent = True
    identity = -(2**63)

    def combine(self, a: int, b: int) -> int:
        return max(a, b)

    def lift(self, value: Any, event_time_us: int) -> int:
        return int(value)


class Deduper:
    """Claims ids in memory; the first ``fail`` claims raise."""

    def __init__(self, fail: int = 0, error: Exception = BUSY) -> None:
        self.seen: set[str] = set()
        self.calls: list[str] = []
        self.fail = fail
        self.error = error

    def mark_seen(self, event_id: str) -> bool:
        self.calls.append(event_id)
        if self.fail:
            self.fail -= 1
            raise self.error
        fresh = event_id not in self.seen
        self.seen.add(event_id)
        return fresh


class Spy(FaultyStore[int]):
    """A store that keeps the updates of each call."""

    def __init__(self, store: Store[int], fault: Callable[[Update], Exception | None] = lambda update: None) -> None:
        super().__init__(store, fault)
        self.calls: list[list[Update]] = []

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        self.calls.append(list(updates))
        return super().merge_updates(updates)


def script(**faults: Iterable[Exception | None]) -> Callable[[Update], Exception | None]:
    """A plan of faults: the results of the first, second ... write of an entity; later writes succeed."""
    left = {entity: iter(errors) for entity, errors in faults.items()}
    return lambda update: next(left.get(update.key.entity, iter(())), None)


def always(error: Exception) -> Callable[[Update], Exception]:
    """A plan in which every write fails."""
    return lambda update: error


def config(clock: Clock, **changes: Any) -> Config:
    """Exactly once, and a recorder to read."""
    return Config(**{"recorder": InMemory(), "dedup": AtomicDedup(), "clock": clock, **changes})


def merge(cfg: Config, store: Store[int], keys: Iterable[str] = ("a",), event_id: Any = "e1", **more: Any) -> Any:
    """`merge_many` of a delta of 1 under the name "p"."""
    return merge_many(cfg, "p", event_id, more.pop("event_time", WHEN), keys, more.pop("delta", 1), store, **more)


def events(cfg: Config) -> dict[str, int]:
    """All event counts that are not zero, by name."""
    recorder = cfg.recorder
    assert isinstance(recorder, InMemory)
    return {name: stats.events_processed for name, stats in recorder.snapshot().items() if stats.events_processed}


def errors(cfg: Config) -> dict[str, int]:
    """All error counts that are not zero, by name."""
    recorder = cfg.recorder
    assert isinstance(recorder, InMemory)
    return {name: stats.errors for name, stats in recorder.snapshot().items() if stats.errors}


def values(store: Store[int], *entities: str) -> list[int | None]:
    """The aggregates without a window."""
    return store.get_many([Key(entity) for entity in entities])


class Raising(FaultyStore[int]):
    """A store whose first flushes raise as a whole instead of giving results."""

    def __init__(self, store: Store[int], times: int, error: Exception = BUSY) -> None:
        super().__init__(store)
        self.times = times
        self.error = error

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        if self.times:
            self.times -= 1
            raise self.error
        return super().merge_updates(updates)
