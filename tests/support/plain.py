"""A store and its spec as a user may write them without the base classes: the methods, and no attribute besides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Generic, TypeVar

from murmur_beam.model import Key, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import Result, Schema
from murmur_beam.state.memory import MemoryStore

V = TypeVar("V")


class PlainStore(Generic[V]):
    """Holds aggregates in memory, and folds each event at once, so its reads have no ``fresh``.

    Attributes:
        reads: number of reads and scans.
    """

    def __init__(self, monoid: Monoid[V]) -> None:
        self.monoid = monoid
        self.reads = 0
        self._memory = MemoryStore(monoid)

    def get_many(self, keys: Sequence[Key]) -> list[V | None]:
        """See `StoreLike`."""
        self.reads += 1
        return self._memory.get_many(keys)

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `StoreLike`."""
        return self._memory.merge_updates(updates)

    def scan(self, prefix: str = "", first: int | None = None, last: int | None = None) -> Iterator[tuple[Key, V]]:
        """See `StoreLike`."""
        self.reads += 1
        return self._memory.scan(prefix, first, last)

    def close(self) -> None:
        """See `StoreLike`."""


class PlainSpec:
    """Opens one `PlainStore`, whatever the process does."""

    def __init__(self, monoid: Monoid[Any]) -> None:
        self.store = PlainStore(monoid)
        self.schema: Schema | None = None

    def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> PlainStore[Any]:
        """See `SpecLike`."""
        self.schema = Schema.of(monoid, granularity)
        return self.store

    def recorded_schema(self) -> Schema | None:
        """See `SpecLike`."""
        return self.schema
