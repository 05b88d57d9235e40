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
