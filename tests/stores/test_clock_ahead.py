"""A clock that is wrong for a while deletes nothing that is still needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.clock import Clock, SteadyClock
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.state.memory import MemoryStore
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import FakeClock

DAY = timedelta(days=1)
DAY_S = DAY.total_seconds()
START = 1_700_000_000.0
KEYS = [Key(f"k{i}") for i in range(20)]


class Wrong(FakeClock):
    """A clock whose time of day can be set wrong; its monotonic time is always right.

    Attributes:
        ahead_s: by how many seconds the time of day is wrong.
    """

    def __init__(self, now: float = START, ahead_s: float = 0.0) -> None:
        super().__init__(now)
        self.ahead_s = ahead_s

    def now(self) -> float:
        return self.time + self.ahead_s


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "c.db")


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, path: str) -> Iterator[Any]:
    """Uses ``store.clock``, which is right at first; holds rows of a window with a retention."""
    clock = Wrong()
    opened = SqliteSpec(path, clock=clock).open(Sum()) if request.param == "sqlite" else MemoryStore(Sum(), clock)
    fill(opened, 30 * DAY)
    opened.clock = clock
    yield opened
    opened.close()


def fill(store: Any, ttl: timedelta | None) -> None:
    store.merge_updates([Update(key, 1, "1", ttl) for key in KEYS])


def assert_known(store: Any) -> None:
    """All rows exist, with the markers of their events."""
    assert store.get_many(KEYS) == [1] * len(KEYS)
    assert store.merge_updates([Update(key, 1, "1", 30 * DAY) for key in KEYS]) == [Outcome.DUPLICATE] * len(KEYS)


@pytest.mark.parametrize("ahead", [40 * DAY, 400 * DAY, 20_000 * DAY, -400 * DAY])
@pytest.mark.parametrize("flushes", [1, 10])
def test_a_clock_that_is_set_wrong_and_right_again(store: Any, ahead: timedelta, flushes: int) -> None:
    """For one flush, or for hours of them."""
    for wrong_s in (0.0, ahead.total_seconds(), 0.0, ahead.total_seconds(), 0.0):
        store.clock.ahead_s = wrong_s
        for n in range(flushes if wrong_s else 1):
            store.clock.time += 600
            store.merge_update(Key("other"), 1, event_id=f"{store.clock.now()} {n}")
    assert_known(store)


def test_expired_rows_are_still_deleted(store: Any) -> None:
    """Also after the clock was wrong."""
    store.clock.ahead_s = 400 * DAY_S
    store.merge_update(Key("other"), 1, event_id="1")
    store.clock.ahead_s = 0.0
    store.clock.time += 31 * DAY_S
    store.merge_update(Key("other"), 1, event_id="2")
    assert store.delete("k", prefix=True) == 0


class TestProcesses:
    """Each process has its own store, whose monotonic time starts anew."""

    def run(self, path: str, now: float, ahead_s: float = 0.0, lasts_s: float = 600.0, **spec: Any) -> None:
        """A process that flushes from its start to its end."""
        clock = Wrong(now, ahead_s)
        with closing(SqliteSpec(path, clock=clock, **spec).open(Sum())) as store:
            for n in range(3):
                store.merge_update(Key("other"), 1, event_id=f"{now} {n}")
                clock.time += lasts_s / 2

    @pytest.fixture(autouse=True)
    def _filled(self, path: str) -> None:
        with closing(SqliteSpec(path, clock=Wrong()).open(Sum())) as store:
            fill(store, 30 * DAY)

    def left(self, path: str) -> int:
        with closing(SqliteSpec(path, clock=Wrong()).open(Sum())) as store:
            return store.delete("k", prefix=True)

    def test_a_process_whose_clock_is_always_wrong(self, path: str) -> None:
        """It uses the time that the previous one has seen; the next process, with a right clock, is not misled."""
        self.run(path, START + 600, ahead_s=400 * DAY_S)
        self.run(path, START + 1_200)
        assert self.left(path) == len(KEYS)

    def test_daily_short_runs_delete_expired_rows(self, path: str) -> None:
        """Each run deletes what had expired at the time of the previous one, which it knows."""
        for day in range(33):
            self.run(path, START + day * DAY_S, lasts_s=8)
            assert day < 32 or self.left(path) == 0

    def test_after_a_long_pause_all_is_kept_for_one_more_run(self, path: str) -> None:
        """Only the next run can decide whether that was a pause or a wrong clock."""
        self.run(path, START + 400 * DAY_S)
        self.run(path, START + 400 * DAY_S + 600)
        assert self.left(path) == 0

    def test_markers_of_permanent_rows(self, path: str) -> None:
        """A retention of markers is as careful."""
        spec = {"dedup_retention": 7 * DAY}
        with closing(SqliteSpec(path, "t", clock=Wrong(), **spec).open(Sum())) as store:
            fill(store, None)
        spec["table"] = "t"
        self.run(path, START + 600, ahead_s=30 * DAY_S, **spec)
        with closing(SqliteSpec(path, clock=Wrong(START + 1_200), **spec).open(Sum())) as store:
            assert_known(store)
        self.run(path, START + 8 * DAY_S, **spec)
        with closing(SqliteSpec(path, clock=Wrong(START + 8 * DAY_S), **spec).open(Sum())) as store:
            store.merge_update(Key("other"), 1, event_id="x")
            assert store.merge_update(KEYS[0], 1, event_id="1") is Outcome.MERGED


def test_a_steady_clock_never_runs_faster_than_time() -> None:
    """It is set back together with the other clock, and never ahead."""
    clock = Wrong()
    steady = SteadyClock(clock)
    times = []
    for ahead_s, passed_s in ((0, 10), (500, 10), (0, 10), (-100, 10), (0, 10), (900, 0)):
        clock.ahead_s = ahead_s
        clock.time += passed_s
        times.append(steady.now() - START)
    assert times == [10, 20, 30, -60, -50, -50]


def test_the_real_one_starts_with_the_time_of_day() -> None:
    """Or with the time that was seen before."""
    assert abs(SteadyClock(Clock()).now() - Clock().now()) < 60
    assert abs(SteadyClock(Clock(), 5.0).now() - 5) < 60
