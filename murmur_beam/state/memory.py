"""Aggregates in this process's memory: for tests, for experiments, and as a cache.

``memory://NAME`` is one store per process: every `MemorySpec` of that name opens the same state, so a test can read
what its pipeline wrote.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import repeat
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import SplitResult

from murmur_beam import forks
from murmur_beam.clock import Clock, SteadyClock
from murmur_beam.errors import ConfigurationError, StoreUnavailable
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.option import read_query
from murmur_beam.state.base import GRACE_S, Cache, Result, Schema, StoreLike, StoreSpec, fold_row, later_expiry

V = TypeVar("V")

_Row = tuple[str, int]
_COLLECT_EVERY_S = 60.0
_MERGED = Outcome.MERGED


class _State(Generic[V]):
    """State shared by the stores of one name. A child of a fork has a copy, as of the end of a flush."""

    def __init__(self, clock: Clock) -> None:
        self.lock = threading.Lock()
        self.torn = False
        self.steady = SteadyClock(clock)
        self.retention: timedelta | None = None
        # Dicts of texts, since the garbage collector traverses sets but not these.
        self.values: dict[_Row, V] = {}
        self.seen: dict[_Row, dict[str, None]] = {}
        self.expires: dict[_Row, float] = {}
        self.next_collect_s = 0.0
        forks.watch(self)

    def let_go(self) -> None:
        """Do nothing: memory is not shared with a child."""

    def be_torn(self) -> None:
        """See `forks.Holder`."""
        self.torn = True


class MemoryStore(Cache[V]):
    """A dictionary of aggregates behind a lock."""

    def __init__(self, monoid: Monoid[V], clock: Clock | None = None) -> None:
        self.monoid = monoid
        self._clock = clock or Clock()
        self._state: _State[V] = _State(self._clock)
        self._closed = False

    def share(self) -> MemoryStore[V]:
        """Another store of the same state, to be closed separately."""
        other = copy.copy(self)
        other._closed = False
        return other

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[V | None]:
        """See `Store.get_many`."""
        with self._in_use() as state:
            now = self._clock.now()
            return [state.values.get(key) if self._live(key, now) else None for key in keys]

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `Store.merge_updates`."""
        by_row: dict[Key, list[Update]] = {}
        for update in updates:
            key = update.key
            row = by_row.get(key)
            if row is None:
                by_row[key] = [update]
            else:
                row.append(update)
        with self._in_use():
            self._collect()
            results_by_row = [self._merge_row(key, row) for key, row in by_row.items()]
        if not any(results_by_row):
            return [_MERGED] * len(updates)
        ordered = {key: iter(results or repeat(_MERGED)) for key, results in zip(by_row, results_by_row, strict=True)}
        return [next(ordered[update.key]) for update in updates]

    def _merge_row(self, key: _Row, updates: list[Update]) -> list[Result] | None:
        """Merge the updates of a row; their results, None if all were merged."""
        state = self._state
        exists = key in state.values
        if not exists:
            # The garbage collector stops traversing plain tuples, but not a Key.
            key = key[:]
        current, seen = state.values.get(key), state.seen.get(key)
        if seen is None:
            seen = {}
        value, results = fold_row(self.monoid, current, updates, _adder(seen), seen.__delitem__, _as_it_is)
        merged = results.count(_MERGED)
        if not merged:
            return results
        if seen:
            state.seen[key] = seen
        state.values[key] = value
        self._prolong(key, updates[-1].ttl, exists)
        return None if merged == len(results) else results

    def _prolong(self, key: _Row, ttl: timedelta | None, exists: bool) -> None:
        """Set the expiry of a row that has got events; without a ``ttl`` it never expires."""
        expires = None if ttl is None else self._clock.now() + ttl.total_seconds()
        known = self._state.expires
        if exists:
            expires = later_expiry(expires, known.get(key))
        if expires is not None:
            known[key] = expires
        elif known:
            known.pop(key, None)

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, V]]:
        """See `Store.scan`; a snapshot at the time of the call."""
        with self._in_use() as state:
            now = self._clock.now()
            found = [
                (key, value)
                for key, value in ((Key(*row), value) for row, value in state.values.items())
                if self._live(key, now)
                and key.entity.startswith(prefix)
                and (first is None or key.bucket >= first)
                and (last is None or key.bucket <= last)
            ]
        return iter(sorted(found, key=lambda item: item[0]))

    def delete(self, entity: str, first: int | None = None, last: int | None = None, *, prefix: bool = False) -> int:
        """See `Store.delete`."""
        with self._in_use() as state:
            found = [
                row
                for row in state.values
                if (row[0].startswith(entity) if prefix else row[0] == entity)
                and (first is None or row[1] >= first)
                and (last is None or row[1] <= last)
            ]
            for row in found:
                self._forget(row)
        return len(found)

    def settle_retention(self, retention: timedelta | None) -> timedelta | None:
        """See `Store`."""
        self._state.retention = self._state.retention or retention
        return retention or self._state.retention

    def repopulate(self, source: StoreLike[V], keys: Sequence[Key]) -> None:
        """See `Cache.repopulate`."""
        values = source.get_many(keys)
        with self._in_use() as state:
            for key, value in zip(keys, values, strict=True):
                if value is None:
                    state.values.pop(key, None)
                else:
                    state.values[key] = value

    def close(self) -> None:
        """See `Store.close`; the state of a `MemorySpec` lives as long as the process."""
        self._closed = True

    @contextmanager
    def _in_use(self) -> Iterator[_State[V]]:
        state = self._state
        with state.lock:
            if self._closed:
                raise StoreUnavailable("memory: the store is closed; open it again")
            if state.torn:
                raise StoreUnavailable(
                    "memory: another thread was in the middle of a flush when this process was forked, so this copy is "
                    "inconsistent; fork before the first merge, or start processes with spawn or forkserver"
                )
            yield state

    def _live(self, key: _Row, now: float) -> bool:
        expires = self._state.expires.get(key)
        return expires is None or now < expires

    def _collect(self) -> None:
        """Drop expired rows, at most once in `_COLLECT_EVERY_S`."""
        state = self._state
        if self._clock.monotonic() < state.next_collect_s:
            return
        state.next_collect_s = self._clock.monotonic() + _COLLECT_EVERY_S
        now = state.steady.now()
        for key in [key for key in state.expires if not self._live(key, now - GRACE_S)]:
            self._forget(key)

    def _forget(self, key: _Row) -> None:
        self._state.values.pop(key, None)
        self._state.seen.pop(key, None)
        self._state.expires.pop(key, None)


def _as_it_is(value: V) -> V:
    return value


def _adder(seen: dict[str, None]) -> Callable[[str], bool]:
    """A function that adds an event id and returns whether it is new."""

    def add(event_id: str) -> bool:
        if event_id in seen:
            return False
        seen[event_id] = None
        return True

    return add


@dataclass(frozen=True)
class MemorySpec(StoreSpec):
    """The store called ``name`` in the process that opens it.

    Args:
        name: any text; each test should use a different one.
        clock: decides about expiry.
    """

    name: str = "default"
    clock: Clock = field(default_factory=Clock, compare=False)

    lasting = False
    _stores: ClassVar[dict[str, tuple[Schema, MemoryStore[Any]]]] = {}
    _lock: ClassVar[forks.Lock] = forks.Lock()

    def __str__(self) -> str:
        return f"memory://{self.name}"

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> MemoryStore[V]:
        """See `StoreSpec.open`."""
        schema = Schema.of(monoid, granularity)
        with self._lock:
            recorded, store = self._stores.setdefault(self.name, (schema, MemoryStore(monoid, self.clock)))
            recorded.require(schema, str(self), "memory://NAME")
            if recorded.names(schema):
                self._stores[self.name] = recorded._replace(field=schema.field), store
        return store.share()

    def recorded_schema(self) -> Schema | None:
        """See `StoreSpec.recorded_schema`."""
        with self._lock:
            return self._stores[self.name][0] if self.name in self._stores else None

    def drop(self) -> None:
        """Forget the store and its content."""
        with self._lock:
            self._stores.pop(self.name, None)


def from_uri(uri: SplitResult) -> MemorySpec:
    """Read ``memory://NAME``.

    Raises:
        ConfigurationError: the URI has more parts than a name.
    """
    if uri.path or uri.fragment:
        raise ConfigurationError("store", f"{uri.geturl()!r} has more than a name; write memory://NAME")
    return MemorySpec(uri.netloc or "default", **read_query(uri, MemorySpec))
