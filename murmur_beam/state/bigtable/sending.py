"""How many requests are under way at once, and what is done when the server has too much to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

import grpc

from murmur_beam.retry import ceiling_s
from murmur_beam.state.bigtable.connection import status_of
from murmur_beam.state.bigtable.settings import Settings

T = TypeVar("T")

_BACKOFF = timedelta(milliseconds=50), timedelta(seconds=5)


class Sender:
    """Shared by all flushes of a store.

    Args:
        settings: how hard to try.

    Attributes:
        in_flight: to be held while requests are sent for one row, or for some.
    """

    def __init__(self, settings: Settings) -> None:
        self._clock = settings.clock
        self._patience_s = settings.patience_s
        self.in_flight = asyncio.Semaphore(settings.max_in_flight)

    def deadline(self) -> float:
        """Until when a flush that begins now goes on trying, by the monotonic clock."""
        return self._clock.monotonic() + self._patience_s

    def overdue(self, deadline: float) -> bool:
        """Has it passed?"""
        return self._clock.monotonic() >= deadline

    async def send(self, call: Callable[[], Coroutine[Any, Any, T]], deadline: float) -> T:
        """Call, and again for as long as the server says that it has too much to do."""
        attempt = 0
        while True:
            try:
                return await call()
            except Exception as err:
                if status_of(err) is not grpc.StatusCode.RESOURCE_EXHAUSTED or self.overdue(deadline):
                    raise
            attempt += 1
            # Waiting here keeps a place of those in flight: so the whole store slows down.
            await self._clock.sleep(self._clock.uniform(0.0, ceiling_s(attempt, *_BACKOFF)))
