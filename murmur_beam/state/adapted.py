"""Stores and specs of users that have the methods, but not the base classes: here they get the rest.

All that the library uses of them is declared in `Store` and `StoreSpec`; only this module asks an object what it has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from murmur_beam.errors import ConfigurationError, StoreUnavailable
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import Cache, Result, Schema, SpecLike, Store, StoreLike, StoreSpec

V = TypeVar("V")


def as_store(store: StoreLike[V]) -> Store[V]:
    """The store itself if it is a `Store`; else one that calls its methods, a `Cache` if it can ``repopulate``."""
    if isinstance(store, Store):
        return store
    return _AdaptedCache(store) if hasattr(store, "repopulate") else _Adapted(store)


def as_spec(spec: SpecLike) -> StoreSpec:
    """The spec itself if it is a `StoreSpec`; else a `StoreSpec` that calls its methods."""
    return spec if isinstance(spec, StoreSpec) else _AdaptedSpec(spec)


def as_shared_spec(spec: SpecLike, argument: str) -> StoreSpec:
    """`as_spec`, for a spec by which the users of its store in a process find each other.

    Raises:
        ConfigurationError: the spec has no hash; names ``argument``.
    """
    try:
        hash(spec)
    except TypeError as err:
        raise ConfigurationError(argument, f"{err}; workers find their open stores by their specs") from None
    return as_spec(spec)


def open_store(spec: SpecLike, monoid: Monoid[V], granularity: timedelta | None = None) -> Store[V]:
    """Open the store of any spec.

    Args:
        spec, monoid, granularity: as in `StoreSpec.open`.

    Raises:
        Exception: as `StoreSpec.open`; a user's spec may raise anything.
    """
    return as_store(spec.open(monoid, granularity))


def is_spec(found: object) -> bool:
    """Return whether an object has the methods of a spec; so has the class of one."""
    return all(callable(getattr(found, method, None)) for method in ("open", "recorded_schema"))


class _Adapted(Store[V]):
    """Calls a store that is not a `Store`. Attributes are read anew each time, since a store may learn them late."""

    def __init__(self, store: StoreLike[V]) -> None:
        self._store: Any = store
        self.monoid = store.monoid
        self.waits_for_network = getattr(store, "waits_for_network", False)

    @property
    def appends(self) -> bool:  # type: ignore[override]  # read-only
        return getattr(self._store, "appends", False)

    @property
    def bucket_age(self) -> timedelta | None:  # type: ignore[override]  # read-only
        return getattr(self._store, "bucket_age", None)

    @property
    def marker_age(self) -> timedelta | None:  # type: ignore[override]  # read-only
        return getattr(self._store, "marker_age", None)

    def get(self, key: Key, *, fresh: bool = True) -> V | None:
        read = getattr(self._store, "get", None)
        found: V | None = super().get(key, fresh=fresh) if read is None else read(key, **_freshness(read, fresh))
        return found

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[V | None]:
        found: list[V | None] = self._store.get_many(keys, **_freshness(self._store.get_many, fresh))
        return found

    def merge_update(self, key: Key, delta: V, *, ttl: timedelta | None = None, event_id: str | None = None) -> Outcome:
        merge = getattr(self._store, "merge_update", super().merge_update)
        outcome: Outcome = merge(key, delta, ttl=ttl, event_id=event_id)
        return outcome

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        results: list[Result] = self._store.merge_updates(updates)
        return results

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, V]]:
        found: Iterator[tuple[Key, V]] = self._store.scan(prefix, first, last, **_freshness(self._store.scan, fresh))
        return found

    def delete(self, entity: str, first: int | None = None, last: int | None = None, *, prefix: bool = False) -> int:
        delete = getattr(self._store, "delete", None)
        if delete is None:
            raise StoreUnavailable(f"{type(self._store).__name__} cannot delete: it has no delete method")
        deleted: int = delete(entity, first, last, prefix=prefix)
        return deleted

    def settle_retention(self, retention: timedelta | None) -> timedelta | None:
        settled: timedelta | None = getattr(self._store, "settle_retention", super().settle_retention)(retention)
        return settled

    def close(self) -> None:
        self._store.close()


class _AdaptedCache(_Adapted[V], Cache[V]):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Calls a cache that is not a `Cache`."""

    def repopulate(self, source: StoreLike[V], keys: Sequence[Key]) -> None:
        self._store.repopulate(source, keys)


@dataclass(frozen=True)
class _AdaptedSpec(StoreSpec):
    """Calls a spec that is not a `StoreSpec`; equal if that one is equal."""

    _spec: SpecLike

    def __str__(self) -> str:
        return str(self._spec)

    @property
    def lasting(self) -> bool:  # type: ignore[override]  # read-only
        return getattr(self._spec, "lasting", True)

    @property
    def place(self) -> Hashable:
        place: Hashable = getattr(self._spec, "place", self)
        return place

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> Store[V]:
        return open_store(self._spec, monoid, granularity)

    def recorded_schema(self) -> Schema | None:
        return self._spec.recorded_schema()


def _freshness(read: Callable[..., object], fresh: bool) -> dict[str, bool]:
    """The argument ``fresh`` for a method; empty if it lacks the argument, since such a store folds at once."""
    try:
        inspect.signature(read).bind_partial(fresh=fresh)
    except TypeError:
        return {}
    return {"fresh": fresh}
