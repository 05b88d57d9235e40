"""Time and random numbers, in one object that tests replace."""

from __future__ import annotations

import asyncio
import random
import threading
import time


class Clock:
    """The real clock. Tests pass `murmur_beam.testing.FakeClock` instead, and so never sleep."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never decreases."""
        return time.monotonic()

    def wait(self, seconds: float, cancel: threading.Event | None = None) -> bool:
        """Sleep; return True as soon as ``cancel`` is set."""
        if cancel is not None:
            return cancel.wait(seconds)
        time.sleep(seconds)
        return False

    async def sleep(self, seconds: float) -> None:
        """Sleep in a coroutine."""
        await asyncio.sleep(seconds)

    def uniform(self, low: float, high: float) -> float:
        """A random number between ``low`` and ``high``."""
        return random.uniform(low, high)


class SteadyClock:
    """A time that advances steadily and is never ahead of a clock; it decides when rows are deleted.

    Args:
        clock: a clock that may be wrong, and may be set.
        seen_at: time to go on from, in seconds since the epoch; None: start at the clock's time.
    """

    def __init__(self, clock: Clock, seen_at: float | None = None) -> None:
        self._clock = clock
        self._offset_s = (clock.now() if seen_at is None else seen_at) - clock.monotonic()

    def now(self) -> float:
        """Seconds since the epoch. The time follows a clock that is set back, but not one that jumps ahead."""
        monotonic_s = self._clock.monotonic()
        self._offset_s = min(self._offset_s, self._clock.now() - monotonic_s)
        return self._offset_s + monotonic_s
