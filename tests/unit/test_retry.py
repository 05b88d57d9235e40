"""Delays: the formula, and a loop that waits only between tries. The tests control the time and the random numbers."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.clock import Clock
from murmur_beam.errors import MergeCancelled
from murmur_beam.retry import attempts, ceiling_s
from murmur_beam.testing import FakeClock

BASE = timedelta(milliseconds=50)
CAP = timedelta(seconds=5)
DURATIONS = st.timedeltas(timedelta(0), timedelta.max)


class TestCeiling:
    @pytest.mark.parametrize(
        ("attempt", "seconds"), [(1, 0.05), (2, 0.1), (3, 0.2), (4, 0.4), (7, 3.2), (8, 5.0), (9, 5.0), (10**9, 5.0)]
    )
    def test_it_doubles_up_to_the_cap(self, attempt: int, seconds: float) -> None:
        """50 ms, 100 ms, 200 ms ... 5 s, and 5 s after that."""
        assert ceiling_s(attempt, BASE, CAP) == pytest.approx(seconds)

    @given(attempt=st.integers(1, 200), base=DURATIONS, cap=DURATIONS)
    def test_it_is_the_formula(self, attempt: int, base: timedelta, cap: timedelta) -> None:
        """``min(cap, base * 2 ** (attempt - 1))``, compared with exact integers of microseconds."""
        us = timedelta(microseconds=1)
        exact = min(cap // us, (base // us) * 2 ** (attempt - 1))
        assert ceiling_s(attempt, base, cap) == pytest.approx(exact / 10**6, rel=1e-12)

    @given(attempt=st.integers(1, 10**30), base=DURATIONS, cap=DURATIONS)
    def test_it_never_exceeds_the_cap(self, attempt: int, base: timedelta, cap: timedelta) -> None:
        """Not even by a rounding error, and not after more tries than a float can count."""
        assert 0 <= ceiling_s(attempt, base, cap) <= cap.total_seconds()

    def test_huge_attempt_numbers_reach_the_longest_cap_from_the_shortest_base(self) -> None:
        """The exponent is bounded for the float's sake, but only where that makes no difference."""
        longest, shortest = timedelta.max, timedelta(microseconds=1)
        assert ceiling_s(10**9, shortest, longest) == longest.total_seconds()
        assert ceiling_s(10**9, longest, longest) == longest.total_seconds()

    def test_a_base_of_zero_gives_no_delay(self) -> None:
        """Zero doubled is zero."""
        assert ceiling_s(10**9, timedelta(0), CAP) == 0


class TestAttempts:
    def test_it_yields_each_attempt_and_waits_only_between(self) -> None:
        """The wait of try n comes when try n + 1 is asked for, and none follows the last."""
        clock = FakeClock()
        seen = [(attempt, list(clock.waits)) for attempt in attempts(4, BASE, CAP, clock)]
        assert seen == [(1, []), (2, [0.05]), (3, [0.05, 0.1]), (4, [0.05, 0.1, 0.2])]
        assert clock.waits == [0.05, 0.1, 0.2]

    def test_a_caller_that_breaks_out_waits_for_nothing(self) -> None:
        """Success on the first try needs no time."""
        clock = FakeClock()
        assert next(attempts(4, BASE, CAP, clock)) == 1
        assert clock.waits == []

    def test_a_single_attempt_never_waits(self) -> None:
        """There is nothing to wait for."""
        clock = FakeClock()
        assert list(attempts(1, BASE, CAP, clock)) == [1]
        assert clock.waits == []

    @given(st.floats(0, 1))
    def test_the_wait_is_uniform_between_zero_and_the_ceiling(self, jitter: float) -> None:
        """Full jitter: the clock is asked for a number between zero and the ceiling."""
        clock = FakeClock(jitter=jitter)
        list(attempts(10, BASE, CAP, clock))
        assert clock.waits == pytest.approx([jitter * min(5.0, 0.05 * 2**n) for n in range(9)])

    def test_cancel_set_before_a_wait_ends_it(self) -> None:
        """The first try is made and the wait is not; the error says how many tries had failed."""
        clock, cancel = FakeClock(), threading.Event()
        cancel.set()
        tries = attempts(4, BASE, CAP, clock, cancel)
        assert next(tries) == 1
        with pytest.raises(MergeCancelled, match="after 1 failed tries"):
            next(tries)

    def test_cancel_set_later_ends_a_later_wait(self) -> None:
        """It is checked in every wait."""
        cancel = threading.Event()
        tries = attempts(4, BASE, CAP, FakeClock(), cancel)
        assert [next(tries), next(tries)] == [1, 2]
        cancel.set()
        with pytest.raises(MergeCancelled, match="after 2 failed tries"):
            next(tries)


class TestClock:
    def test_the_real_clock_returns_the_time(self) -> None:
        """Seconds since 1970, and a monotonic time that does not go back."""
        clock = Clock()
        assert abs(clock.now() - time.time()) < 60
        assert clock.monotonic() <= clock.monotonic()

    @given(st.floats(0, 1e9))
    def test_its_random_numbers_stay_in_range(self, high: float) -> None:
        """Between the two bounds, inclusive."""
        assert 0 <= Clock().uniform(0.0, high) <= high

    def test_its_random_numbers_are_spread(self) -> None:
        """Clients that failed together must not retry together."""
        drawn = [Clock().uniform(0.0, 1.0) for _ in range(1000)]
        assert min(drawn) < 0.1
        assert max(drawn) > 0.9

    def test_a_wait_is_cancelled_by_a_set_event(self) -> None:
        """At once, however long the wait; otherwise it lasts for the whole time and returns False."""
        cancel = threading.Event()
        assert Clock().wait(0.0, cancel) is False
        assert Clock().wait(0.0) is False
        cancel.set()
        assert Clock().wait(3600.0, cancel) is True

    def test_a_wait_without_cancel_sleeps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For as long as requested."""
        slept: list[float] = []
        monkeypatch.setattr(time, "sleep", slept.append)
        assert Clock().wait(1.5) is False
        assert slept == [1.5]
