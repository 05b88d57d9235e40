"""Aggregates in this process's memory: for tests, for trying things out, and as a cache.

``memory://NAME`` is one store a process: every `MemorySpec` of that name opens the same one, so that a test reads
what its pipeline wrote.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import SplitResult

from murmur_beam.clock import Clock
from murmur_beam.errors import ConfigurationError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import GRACE_S, Result, Schema, Store, fold_row, later, only, rows

V = TypeVar("V")

_COLLECT_EVERY_S = 60.0


class MemoryStore(Generic[V]):
    """A dictionary of aggregates behind a lock. Also a `Cache`."""

    def __init__(self, monoid: Monoid[V], clock: Clock | None = None) -> None:
        self.monoid = monoid
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._values: dict[Key, V] = {}
        self._seen: dict[Key, set[str]] = {}
        self._expires: dict[Key, float] = {}
        self._next_collect = 0.0

    def get(self, key: Key) -> V | None:
        """See `Store.get`."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[Key]) -> list[V | None]:
        """See `Store.get_many`."""
        with self._lock:
            now = self._clock.now()
            return [self._values.get(key) if self._live(key, now) else None for key in keys]

    def merge_update(self, key: Key, delta: V, *, ttl: timedelta | None = None, event_id: str | None = None) -> Outcome:
        """See `Store.merge_update`."""
        return only(self.merge_updates([Update(key, delta, event_id, ttl)]))

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `Store.merge_updates`."""
        results: list[Result] = [Outcome.MERGED] * len(updates)
        with self._lock:
            self._collect()
            for key, positions in rows(updates).items():
                seen = self._seen.get(key)
                if seen is None:
                    seen = self._seen[key] = set()
                value, row_results = fold_row(
                    self.monoid,
                    self._values.get(key),
                    [updates[i] for i in positions],
                    _adder(seen),
                    seen.discard,
                    _as_it_is,
                )
                for i, result in zip(positions, row_results, strict=True):
                    results[i] = result
                if not seen:
                    del self._seen[key]
                if Outcome.MERGED in row_results:
                    ttl = updates[positions[-1]].ttl
                    expires = None if ttl is None else self._clock.now() + ttl.total_seconds()
                    if key in self._values:
                        expires = later(expires, self._expires.get(key))
                    self._values[key] = value
                    if expires is None:
                        self._expires.pop(key, None)
                    else:
                        self._expires[key] = expires
        return results

    def scan(self, prefix: str = "", first: int | None = None, last: int | None = None) -> Iterator[tuple[Key, V]]:
        """See `Store.scan`; a snapshot of the moment of the call."""
        with self._lock:
            now = self._clock.now()
            found = [
                (key, value)
                for key, value in self._values.items()
                if self._live(key, now)
                and key.entity.startswith(prefix)
                and (first is None or key.bucket >= first)
                and (last is None or key.bucket <= last)
            ]
        return iter(sorted(found, key=lambda item: item[0]))

    def repopulate(self, source: Store[V], keys: Sequence[Key]) -> None:
        """See `Cache.repopulate`."""
        values = source.get_many(keys)
        with self._lock:
            for key, value in zip(keys, values, strict=True):
                if value is None:
                    self._values.pop(key, None)
                else:
                    self._values[key] = value

    def close(self) -> None:
        """Nothing to release: the state lives as long as the process."""

    def _live(self, key: Key, now: float) -> bool:
        expires = self._expires.get(key)
        return expires is None or now < expires

    def _collect(self) -> None:
        """Drop expired rows, looking for them at most once in `_COLLECT_EVERY_S`."""
        now = self._clock.now()
        if now < self._next_collect:
            return
        self._next_collect = now + _COLLECT_EVERY_S
        for key in [key for key in self._expires if not self._live(key, now - GRACE_S)]:
            del self._expires[key]
            self._values.pop(key, None)
            self._seen.pop(key, None)


def _as_it_is(value: V) -> V:
    return value


def _adder(seen: set[str]) -> Any:
    """``seen.add`` that tells whether the id is new."""

    def add(event_id: str) -> bool:
        if event_id in seen:
            return False
        seen.add(event_id)
        return True

    return add


@dataclass(frozen=True)
class MemorySpec:
    """The store called ``name`` in whichever process opens it.

    Args:
        name: any text; tests use one of their own each.
        clock: what decides about expiry.
    """

    name: str = "default"
    clock: Clock = field(default_factory=Clock, compare=False)

    _stores: ClassVar[dict[str, tuple[Schema, MemoryStore[Any]]]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __str__(self) -> str:
        return f"memory://{self.name}"

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> MemoryStore[V]:
        """See `StoreSpec.open`."""
        schema = Schema(monoid.name, granularity)
        with self._lock:
            recorded, store = self._stores.setdefault(self.name, (schema, MemoryStore(monoid, self.clock)))
        recorded.require(schema, str(self))
        return store

    def recorded_schema(self) -> Schema | None:
        """See `StoreSpec.recorded_schema`."""
        with self._lock:
            return self._stores[self.name][0] if self.name in self._stores else None

    def drop(self) -> None:
        """Forget the store and all it holds."""
        with self._lock:
            self._stores.pop(self.name, None)


def from_uri(uri: SplitResult) -> MemorySpec:
    """Read ``memory://NAME``.

    Raises:
        ConfigurationError: there is more in it than a name.
    """
    if uri.path or uri.query or uri.fragment:
        raise ConfigurationError("store", f"{uri.geturl()!r} has more than a name; write memory://NAME")
    return MemorySpec(uri.netloc or "default")
