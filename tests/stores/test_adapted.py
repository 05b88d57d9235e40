"""Stores that have the methods only, without a base class, and stores that subclass `Store`: both get the same rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest

from murmur_beam.errors import ConfigurationError, PermanentError, StoreUnavailable
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.options import MergeOptions
from murmur_beam.processor import AtomicDedup, Config, NoDedup, merge_many
from murmur_beam.reader import Reader
from murmur_beam.spec import resolve
from murmur_beam.state.adapted import as_spec, as_store, open_store
from murmur_beam.state.base import Cache, Result, Store, StoreLike
from murmur_beam.state.memory import MemorySpec, MemoryStore
from murmur_beam.state.pool import Lease
from murmur_beam.testing import FakeClock, FaultyStore, StoreContract
from murmur_beam.windows import daily
from tests.support.plain import PlainSpec, PlainStore
from tests.support.processing import WHEN

A, B = Key("a"), Key("b")


class LeastStore(Store[int]):
    """A subclass with no more than it must define."""

    def __init__(self) -> None:
        self.monoid = Sum()
        self.values: dict[Key, int] = {}

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[int | None]:
        return [self.values.get(key) for key in keys]

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        if any(update.delta == 13 for update in updates):
            return [PermanentError("13")]
        self.values |= {update.key: update.delta for update in updates}
        return [Outcome.MERGED] * len(updates)

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, int]]:
        return iter(self.values.items())

    def close(self) -> None:
        pass


class Late(PlainStore[int]):
    """Learns of its table after it was opened; has methods that `StoreLike` does not ask for."""

    appends = False
    bucket_age: timedelta | None = None
    marker_age: timedelta | None = None
    waits_for_network = True

    def get(self, key: Key) -> int:
        return 42

    def get_many(self, keys: Sequence[Key], fresh: bool | None = None) -> list[Any]:
        return [fresh for _ in keys]

    def merge_update(self, key: Key, delta: int, **more: Any) -> Outcome:
        return Outcome.EXPIRED

    def delete(self, entity: str, first: int | None, last: int | None, *, prefix: bool) -> int:
        return 7

    def settle_retention(self, retention: timedelta | None) -> timedelta | None:
        return timedelta(days=5)


class PlainCache(PlainStore[int]):
    def repopulate(self, source: StoreLike[int], keys: Sequence[Key]) -> None:
        self.merge_updates([Update(key, value or 0) for key, value in zip(keys, source.get_many(keys), strict=True)])


class TestTheBaseClass:
    def test_a_subclass_gets_the_rest(self) -> None:
        """One key is read and merged through the methods for many, and an error is raised."""
        store = LeastStore()
        assert store.merge_update(A, 5, event_id="1") is Outcome.MERGED
        assert (store.get(A), store.get(B, fresh=False)) == (5, None)
        with pytest.raises(PermanentError, match="13"):
            store.merge_update(A, 13)
        assert (store.appends, store.waits_for_network, store.bucket_age, store.marker_age) == (
            False,
            False,
            None,
            None,
        )
        assert store.settle_retention(timedelta(1)) == timedelta(1)
        with pytest.raises(StoreUnavailable, match="LeastStore cannot delete"):
            store.delete("a")

    def test_an_incomplete_subclass_cannot_be_made(self) -> None:
        """Python's own error names what is missing."""

        class Incomplete(LeastStore):
            scan = Store.scan  # type: ignore[assignment]

        with pytest.raises(TypeError, match=r"Incomplete.*scan"):
            Incomplete()

    def test_shipped_stores_and_specs_are_left_as_they_are(self) -> None:
        """Nothing is added to a call."""
        store, spec = MemoryStore(Sum()), MemorySpec("test_adapted")
        assert as_store(store) is store
        assert as_spec(spec) is spec
        assert isinstance(store, Cache)


class TestPlainStores:
    def test_the_least_is_enough(self) -> None:
        """Merging, and every question of a reader."""
        store = PlainStore(Sum())
        for event in ("1", "1", "2"):
            merge_many(Config(dedup=AtomicDedup()), "p", event, WHEN, ["a", "b"], 3, store)
        assert Reader(store).get("a") == 6
        assert Reader(store).get("a", fresh=False) == 6
        assert [*Reader(store).list()] == [("a", 6, 1), ("b", 6, 1)]
        assert Reader(store).top(1, fresh=True) == [("a", 6)]
        assert merge_many(Config(dedup=NoDedup()), "p", None, WHEN, ["c"], 1, store) is Outcome.MERGED
        assert merge_many(Config(dedup=AtomicDedup()), "p", "1", WHEN, ["c"], 1, store, None, daily()) is Outcome.MERGED
        adapted = as_store(store)
        assert adapted.get(A) == 6
        assert adapted.merge_update(A, 1) is Outcome.MERGED
        assert (adapted.appends, adapted.waits_for_network, adapted.bucket_age, adapted.marker_age) == (
            False,
            False,
            None,
            None,
        )
        assert adapted.settle_retention(None) is None
        assert not isinstance(adapted, Cache)
        with pytest.raises(StoreUnavailable, match="PlainStore cannot delete: it has no delete method"):
            adapted.delete("a")

    def test_what_it_has_is_used(self) -> None:
        """Attributes and methods alike, and what it learns late."""
        store = Late(Sum())
        adapted = as_store(store)
        assert (adapted.get(A, fresh=False), adapted.merge_update(A, 1, event_id="1")) == (42, Outcome.EXPIRED)
        assert (adapted.delete("a"), adapted.settle_retention(None), adapted.waits_for_network) == (
            7,
            timedelta(5),
            True,
        )
        assert [adapted.get_many([A], fresh=fresh) for fresh in (True, False)] == [[True], [False]]
        assert not adapted.appends
        store.appends, store.bucket_age, store.marker_age = True, timedelta(1), timedelta(2)
        assert adapted.appends
        assert (adapted.bucket_age, adapted.marker_age) == (timedelta(1), timedelta(2))

    def test_a_store_that_appends_gets_ids(self) -> None:
        """Without dedup each update has an id of its own, as in any store that appends."""
        store = Late(Sum())
        store.appends = True
        seen: list[Update] = []
        merge_many(
            Config(dedup=NoDedup()),
            "p",
            None,
            WHEN,
            ["a", "b"],
            1,
            FaultyStore(store, lambda update: seen.append(update)),
        )
        assert None not in {update.event_id for update in seen}
        assert len({update.event_id for update in seen}) == 2

    def test_a_window_takes_the_retention_that_it_settles(self) -> None:
        """An event older than that is expired."""
        merged = merge_many(
            Config(dedup=AtomicDedup()), "p", "1", WHEN - timedelta(2000), ["a"], 1, Late(Sum()), None, daily()
        )
        assert merged is Outcome.EXPIRED

    def test_a_faulty_store_passes_on_what_it_settles(self) -> None:
        """As all else of the store that it wraps."""
        faulty = FaultyStore(Late(Sum()))
        assert faulty.settle_retention(None) == timedelta(5)
        assert (faulty.monoid.name, faulty.delete("a"), faulty.appends) == ("sum", 7, False)

    def test_a_cache_is_one_that_can_repopulate(self) -> None:
        """Any other store is refused as a cache."""
        cache, source = PlainCache(Sum()), MemoryStore(Sum())
        source.merge_update(A, 5)
        adapted = as_store(cache)
        assert isinstance(adapted, Cache)
        adapted.repopulate(source, [A])
        assert cache.get_many([A]) == [5]
        faulty = FaultyStore(cache)
        faulty.repopulate(source, [A])
        assert faulty.get(A) == 10
        with pytest.raises(TypeError, match="_Adapted is not a Cache"):
            FaultyStore(PlainStore(Sum())).repopulate(source, [A])
        arguments: Any = {"key": "k", "monoid": "count", "event_id": "id", "store": "memory://test_adapted_1"}
        with pytest.raises(ConfigurationError, match="cannot serve as a cache"):
            resolve(MergeOptions(**arguments, cache=PlainSpec(Sum()))).check_stores()
        spec = PlainSpec(Sum())
        spec.store = cache
        resolve(MergeOptions(**arguments, cache=spec)).check_stores()


class TestPlainSpecs:
    def test_it_opens_and_is_read(self) -> None:
        """By the pool, a reader, and by its text."""
        spec = PlainSpec(Sum())
        lease = Lease(spec, Sum(), None)
        lease.store.merge_update(A, 5)
        assert open_store(spec, Sum()).get(A) == 5
        assert Reader.open(spec).get("a") == 5
        lease.release()
        adapted = as_spec(spec)
        assert (str(adapted), adapted.lasting) == (str(spec), True)
        assert (adapted == as_spec(spec), hash(adapted) == hash(as_spec(spec))) == (True, True)
        assert adapted.place == as_spec(spec).place
        assert adapted != as_spec(PlainSpec(Sum()))

    def test_what_it_has_is_used(self) -> None:
        """Its place, and whether it lasts."""

        class Placed(PlainSpec):
            place = "here"
            lasting = False

        adapted = as_spec(Placed(Sum()))
        assert (adapted.place, adapted.lasting) == ("here", False)


class TestPlainContract(StoreContract):
    """A memory store that shows its methods only passes the contract of all stores."""

    def spec(self, clock: FakeClock) -> Any:
        return _Hidden(MemorySpec(f"test_adapted_{id(self)}", clock))


class _Hidden:
    """A spec, without its base class, of stores without theirs."""

    def __init__(self, spec: MemorySpec) -> None:
        self.spec = spec
        spec.drop()

    def open(self, *arguments: Any) -> Any:
        return _HiddenStore(self.spec.open(*arguments))

    def recorded_schema(self) -> Any:
        return self.spec.recorded_schema()


class _HiddenStore:
    def __init__(self, store: MemoryStore[Any]) -> None:
        self.store = store
        self.monoid = store.monoid

    def get_many(self, keys: Sequence[Key]) -> list[Any]:
        return self.store.get_many(keys)

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        return self.store.merge_updates(updates)

    def scan(self, *arguments: Any) -> Iterator[tuple[Key, Any]]:
        return self.store.scan(*arguments)

    def delete(self, *arguments: Any, **more: Any) -> int:
        return self.store.delete(*arguments, **more)

    def close(self) -> None:
        self.store.close()
