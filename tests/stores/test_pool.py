"""The pool: one open store for all leases of a spec, closed with the last of them."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from murmur_beam.errors import SchemaMismatch, StoreUnavailable, TransientError
from murmur_beam.model import Key
from murmur_beam.monoids import Count, Max, Monoid, Sum
from murmur_beam.state.base import Schema, Store
from murmur_beam.state.memory import MemoryStore
from murmur_beam.state.pool import Lease
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import FakeClock

DAY = timedelta(days=1)


def linger() -> None:
    """Be busy for long enough that other threads run."""
    for _ in range(500):
        pass


class Closable(MemoryStore[Any]):
    """A store that counts how often it was closed, and raises when it is read afterwards."""

    closed = 0

    def get(self, key: Key) -> Any:
        assert not self.closed
        return super().get(key)

    def close(self) -> None:
        self.closed += 1


@dataclass(frozen=True)
class Spec:
    """A spec that counts its openings, can make them fail, and notices if two threads look it up at once. Equal specs
    are one store, as for workers that have each unpickled their own."""

    name: str
    faults: Any = field(default_factory=lambda: iter(()), compare=False)
    opened: list[Closable] = field(default_factory=list, compare=False)
    collisions: list[str] = field(default_factory=list, compare=False)
    turn: threading.Lock = field(default_factory=threading.Lock, compare=False)

    _names: ClassVar[Any] = itertools.count()

    @classmethod
    def new(cls, *faults: Exception | None) -> Spec:
        """A spec that no other test shares."""
        return cls(f"test-{next(cls._names)}", iter(faults))

    def __hash__(self) -> int:
        if not self.turn.acquire(blocking=False):
            self.collisions.append(threading.current_thread().name)
            return hash(self.name)
        linger()
        self.turn.release()
        return hash(self.name)

    def copy(self) -> Spec:
        """An equal spec that is another object."""
        return replace(self)

    def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> Store[Any]:
        fault = next(self.faults, None)
        if fault is not None:
            raise fault
        linger()
        self.opened.append(Closable(monoid, FakeClock()))
        return self.opened[-1]

    def recorded_schema(self) -> Schema | None:
        return None


def lease(spec: Any, monoid: Monoid[Any] | None = None, granularity: timedelta | None = None) -> Lease:
    """A lease, by default of a store of sums."""
    return Lease(spec, monoid or Sum(), granularity)


class TestSharing:
    def test_equal_specs_share_one_store(self) -> None:
        """However many leases exist, the store is opened once."""
        spec = Spec.new()
        leases = [lease(spec), lease(spec.copy()), lease(spec.copy())]
        assert len(spec.opened) == 1
        assert all(each.store is spec.opened[0] for each in leases)

    def test_different_specs_have_their_own_stores(self) -> None:
        """Closing one leaves the other open."""
        one, other = Spec.new(), Spec.new()
        first, second = lease(one), lease(other)
        assert first.store is not second.store
        first.release()
        assert (one.opened[0].closed, other.opened[0].closed) == (1, 0)

    def test_a_store_is_opened_with_monoid_and_granularity(self) -> None:
        """As the lease requests it."""

        opened: list[Any] = []

        class Watching:
            def open(self, *arguments: Any) -> Any:
                opened.append(arguments)
                return Closable(arguments[0])

        monoid = Sum()
        lease(Watching(), monoid, DAY)
        assert opened == [(monoid, DAY)]

    def test_another_monoid_or_granularity_has_another_store(self) -> None:
        """They hold other values, and the store decides whether one table can hold both."""
        spec = Spec.new()
        stores = [
            lease(spec, Sum()).store,
            lease(spec, Max()).store,
            lease(spec, Sum(), DAY).store,
            lease(spec, Sum(), timedelta(hours=1)).store,
        ]
        assert len({id(store) for store in stores}) == len(spec.opened) == 4

    def test_monoids_that_share_a_name_share_a_store(self) -> None:
        """Two instances of one monoid, as after unpickling; another monoid, or one of another field, has its own
        store."""
        spec = Spec.new()
        shared = lease(spec, Sum()).store
        assert shared is lease(spec, Sum()).store
        assert lease(spec, Count()).store is not shared
        assert lease(spec, Sum().of("n")).store is not shared
        assert lease(spec, Sum().of("n")).store is lease(spec, Sum().of("n")).store


class TestRelease:
    def test_the_last_release_closes(self) -> None:
        """And no earlier release; the order does not matter."""
        spec = Spec.new()
        leases = [lease(spec) for _ in range(3)]
        for each in (leases[1], leases[0]):
            each.release()
            assert spec.opened[0].closed == 0
        leases[2].release()
        assert spec.opened[0].closed == 1

    def test_a_second_release_does_nothing(self) -> None:
        """It takes no other share, and does not close again."""
        spec = Spec.new()
        first, second = lease(spec), lease(spec)
        first.release()
        first.release()
        assert second.store.get(Key("a")) is None
        second.release()
        second.release()
        first.release()
        assert spec.opened[0].closed == 1

    def test_after_the_last_release_the_next_lease_opens_anew(self) -> None:
        """A closed store is not leased; an old release does not close the new one."""
        spec = Spec.new()
        first = lease(spec)
        first.release()
        second = lease(spec)
        first.release()
        assert second.store is not first.store
        assert [store.closed for store in spec.opened] == [1, 0]
        second.release()
        assert [store.closed for store in spec.opened] == [1, 1]

    def test_a_lease_keeps_the_store_in_use_while_others_come_and_go(self) -> None:
        """All of them share one opening."""
        spec = Spec.new()
        lasting = lease(spec)
        for _ in range(3):
            passing = lease(spec)
            passing.release()
        assert lasting.store.get(Key("a")) is None
        assert len(spec.opened) == 1

    def test_a_store_that_fails_to_close_is_dropped(self) -> None:
        """The error is raised once; the next lease opens anew."""

        class Stuck(Closable):
            def close(self) -> None:
                raise TransientError("stuck")

        class Once(Spec):
            def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> Store[Any]:
                self.opened.append(Stuck(monoid, FakeClock()))
                return self.opened[-1]

        spec = Once.new()
        first = lease(spec)
        with pytest.raises(TransientError, match="stuck"):
            first.release()
        first.release()
        assert lease(spec).store is not first.store


class TestFailures:
    @pytest.mark.parametrize("error", [StoreUnavailable("gone"), SchemaMismatch("other"), RuntimeError("bug")])
    def test_a_failing_open_leaves_nothing_behind(self, error: Exception) -> None:
        """The error is raised, and the next lease tries again."""
        spec = Spec.new(error)
        with pytest.raises(type(error)) as caught:
            lease(spec)
        assert caught.value is error
        second = lease(spec)
        assert second.store is spec.opened[0]
        second.release()
        assert spec.opened[0].closed == 1

    def test_a_failing_open_does_not_affect_other_leases(self) -> None:
        """A store in use stays open, and other specs can be opened."""
        spec = Spec.new(None, TransientError("busy"))
        kept = lease(spec)
        with pytest.raises(TransientError):
            lease(spec, Max())
        assert lease(spec).store is kept.store
        assert lease(Spec.new()).store is not kept.store
        assert spec.opened[0].closed == 0

    def test_the_schema_is_checked_by_the_store(self, tmp_path: Path) -> None:
        """Two leases of one file with different monoids do not mix; the file stays usable for the first."""
        spec = SqliteSpec(str(tmp_path / "counts.db"))
        first = lease(spec)
        first.store.merge_update(Key("a"), 1)
        with pytest.raises(SchemaMismatch):
            lease(spec, Max())
        second = lease(SqliteSpec(spec.path))
        first.release()
        assert second.store.get(Key("a")) == 1
        second.release()


def together(n: int, work: Callable[[], None]) -> None:
    """Let ``n`` threads do the same at the same time; an error of any of them is raised."""
    start = threading.Barrier(n)

    def run() -> None:
        start.wait(30)
        work()

    with ThreadPoolExecutor(n) as pool:
        for done in [pool.submit(run) for _ in range(n)]:
            done.result(30)


@pytest.fixture
def hurry() -> Iterator[None]:
    """Switch threads as often as possible, so that one race in a hundred becomes one in two."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hurry")
class TestThreads:
    def test_threads_that_start_together_open_one_store(self) -> None:
        """Even if opening is slow."""
        for _ in range(20):
            spec = Spec.new()
            leases: list[Lease] = []
            together(4, lambda: leases.append(lease(spec.copy())))  # noqa: B023 - called at once
            assert len(leases) == 4
            assert len(spec.opened) == 1

    def test_no_lease_ever_has_a_closed_store(self) -> None:
        """While others lease and release all the time; at the end each opened store was closed exactly once."""
        spec = Spec.new()

        def work() -> None:
            for _ in range(200):
                shared = lease(spec)
                assert shared.store.get(Key("a")) is None
                shared.release()

        together(8, work)
        assert spec.opened
        assert {store.closed for store in spec.opened} == {1}
        assert spec.collisions == []

    def test_simultaneous_releases_count_one_by_one(self) -> None:
        """The last one closes the store."""
        spec = Spec.new()
        shares = iter([[lease(spec) for _ in range(100)] for _ in range(8)])
        lasting = lease(spec)

        def work() -> None:
            for share in next(shares):
                share.release()

        together(8, work)
        assert spec.collisions == []
        assert spec.opened[0].closed == 0
        lasting.release()
        assert spec.opened[0].closed == 1

    def test_one_lease_released_by_many_threads_is_released_once(self) -> None:
        """The second share stays."""
        spec = Spec.new()
        for _ in range(50):
            first, second = lease(spec), lease(spec)
            together(4, first.release)
            assert second.store.get(Key("a")) is None
            second.release()
