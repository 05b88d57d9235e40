"""A clock that never sleeps, and a store that fails on command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

from murmur_beam.clock import Clock
from murmur_beam.model import Key, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.adapted import as_store
from murmur_beam.state.base import Cache, Result, Store, StoreLike

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


class FaultyStore(Cache[V]):
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
        store: StoreLike[V],
        fault: Callable[[Update], Exception | None] = lambda update: None,
        lost: Callable[[Update], Exception | None] = lambda update: None,
    ) -> None:
        self.store: Store[V] = as_store(store)
        self.fault = fault
        self.lost = lost

    @property
    def monoid(self) -> Monoid[V]:  # type: ignore[override]  # read-only
        """Monoid of the real store."""
        return self.store.monoid

    @property
    def appends(self) -> bool:  # type: ignore[override]  # read-only
        """True if the real store appends."""
        return self.store.appends

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[V | None]:
        """Read from the real store."""
        return self.store.get_many(keys, fresh=fresh)

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
        return self.store.scan(prefix, first, last, fresh=fresh)

    def delete(self, entity: str, first: int | None = None, last: int | None = None, *, prefix: bool = False) -> int:
        """Delete from the real store."""
        return self.store.delete(entity, first, last, prefix=prefix)

    def settle_retention(self, retention: timedelta | None) -> timedelta | None:
        """The retention of the real store."""
        return self.store.settle_retention(retention)

    def repopulate(self, source: StoreLike[V], keys: Sequence[Key]) -> None:
        """Fill the real store, which must be a cache.

        Raises:
            TypeError: the real store is not a cache.
        """
        if not isinstance(self.store, Cache):
            raise TypeError(f"{type(self.store).__name__} is not a Cache")
        self.store.repopulate(source, keys)

    def close(self) -> None:
        """Close the real store."""
        self.store.close()
