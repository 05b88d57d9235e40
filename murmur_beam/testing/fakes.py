"""A clock that never sleeps, and a store that fails on command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Generic, TypeVar

from murmur_beam.clock import Clock
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import Result, Store, freshness, single_outcome

V = TypeVar("V")


class FakeClock(Clock):
    """A clock that stands still until a caller waits; then it advances by the length of the wait.

    Args:
        now: seconds since the Unix epoch.
        jitter: position of `uniform`'s result, from 0 (low end) to 1 (high end).

    Attributes:
        waits: all waits so far, in seconds.
    """

    def __init__(self, now: float = 1_700_000_000.0, jitter: float = 1.0) -> None:
        self.time = now
        self.jitter = jitter
        self.waits: list[float] = []

    def now(self) -> float:
        """The fake time."""
        return self.time

    def monotonic(self) -> float:
        """The fake time."""
        return self.time

    def wait(self, seconds: float, cancel: threading.Event | None = None) -> bool:
        """Record the wait and advance the time."""
        self.waits.append(seconds)
        if cancel is not None and cancel.is_set():
            return True
        self.time += seconds
        return False

    async def sleep(self, seconds: float) -> None:
        """Record the wait and advance the time."""
        self.wait(seconds)

    def uniform(self, low: float, high: float) -> float:
        """``low`` for jitter 0, ``high`` for jitter 1."""
        return low + (high - low) * self.jitter


class FaultyStore(Generic[V]):
    """A wrapper of a real store that injects faults.

    Args:
        store: the real store.
        fault: called with each update before it is written. An exception that it returns becomes the update's result,
            and nothing is written; None lets the update pass.
        lost: called with each update that reached the store. An exception that it returns replaces the result, as when
            a response is lost.
    """

    def __init__(
        self,
        store: Store[V],
        fault: Callable[[Update], Exception | None] = lambda update: None,
        lost: Callable[[Update], Exception | None] = lambda update: None,
    ) -> None:
        self.store = store
        self.fault = fault
        self.lost = lost

    @property
    def monoid(self) -> Monoid[V]:
        """Monoid of the real store."""
        return self.store.monoid

    @property
    def appends(self) -> bool:
        """True if the real store appends."""
        return getattr(self.store, "appends", False)

    def get(self, key: Key, *, fresh: bool = True) -> V | None:
        """Read from the real store."""
        return self.store.get(key, **freshness(self.store.get, fresh, by_default=True))

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[V | None]:
        """Read from the real store."""
        return self.store.get_many(keys, **freshness(self.store.get_many, fresh, by_default=True))

    def merge_update(self, key: Key, delta: V, *, ttl: timedelta | None = None, event_id: str | None = None) -> Outcome:
        """Merge one update, with injected faults."""
        return single_outcome(self.merge_updates([Update(key, delta, event_id, ttl)]))

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """Merge updates, with injected faults."""
        faults = [self.fault(update) for update in updates]
        written = iter(self.store.merge_updates([u for u, fault in zip(updates, faults, strict=True) if fault is None]))
        results: list[Result] = []
        for update, fault in zip(updates, faults, strict=True):
            result = next(written) if fault is None else fault
            results.append((self.lost(update) or result) if fault is None else result)
        return results

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, V]]:
        """Scan the real store."""
        return self.store.scan(prefix, first, last, **freshness(self.store.scan, fresh, by_default=False))

    def delete(self, entity: str, first: int | None = None, last: int | None = None, *, prefix: bool = False) -> int:
        """Delete from the real store."""
        return self.store.delete(entity, first, last, prefix=prefix)

    def repopulate(self, source: Store[V], keys: Sequence[Key]) -> None:
        """Fill the real store, which must be a cache."""
        store: Any = self.store
        store.repopulate(source, keys)

    def close(self) -> None:
        """Close the real store."""
        self.store.close()
