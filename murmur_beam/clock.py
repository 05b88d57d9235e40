"""Time and chance, in one object that tests replace."""

from __future__ import annotations

import asyncio
import random
import threading
import time


class Clock:
    """The real clock. Tests pass `murmur_beam.testing.FakeClock` instead, so that none of them ever sleeps."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back."""
        return time.monotonic()

    def wait(self, seconds: float, cancel: threading.Event | None = None) -> bool:
        """Sleep; return True at once when ``cancel`` is, or becomes, set."""
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
    """Time that goes on as a stop watch does, but never ahead of a clock: what decides about deleting.

    Args:
        clock: which may be set, and may be wrong.
        seen_at: when its life before ended, seconds since the epoch; None: begin with what the clock says.
    """

    def __init__(self, clock: Clock, seen_at: float | None = None) -> None:
        self._clock = clock
        self._offset_s = (clock.now() if seen_at is None else seen_at) - clock.monotonic()

    def now(self) -> float:
        """Seconds since the epoch: a clock that jumps ahead does not take it along, one that is set back does."""
        monotonic_s = self._clock.monotonic()
        self._offset_s = min(self._offset_s, self._clock.now() - monotonic_s)
        return self._offset_s + monotonic_s
