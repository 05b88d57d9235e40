"""How many requests are under way at once, and what is done when the server has too much to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import grpc

from murmur_beam.errors import StoreUnavailable
from murmur_beam.retry import ceiling_s
from murmur_beam.state.bigtable.connection import is_creating, status_of
from murmur_beam.state.bigtable.settings import Settings

T = TypeVar("T")

_BURST = 16
_BURSTS = 4
_BACKOFF = timedelta(milliseconds=50), timedelta(seconds=5)


class Sender:
    """Shared by all flushes of a store.

    Args:
        settings: how hard to try.

    Attributes:
        burst: so many requests are made, and then sent together.
        in_flight: to be held for each burst.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = settings.clock
        self._patience_s = settings.patience_s
        # Requests one after the other, as each gets its turn, wake the server up for each, and us for each answer.
        self.burst = max(1, min(_BURST, settings.max_in_flight // _BURSTS))
        self.in_flight = asyncio.Semaphore(max(1, settings.max_in_flight // self.burst))

    def deadline(self) -> float:
        """Until when a flush that begins now goes on trying, by the monotonic clock."""
        return self._clock.monotonic() + self._patience_s

    def overdue(self, deadline: float) -> bool:
        """Has it passed?"""
        return self._clock.monotonic() >= deadline

    async def send(self, call: Callable[[], Awaitable[T]], deadline: float, failure: Exception | None = None) -> T:
        """Call, and again for as long as the server says that it has too much to do, or is still creating the table.

        Args:
            call: makes the request.
            deadline: until when to try again.
            failure: of a first try that has been made.

        Raises:
            StoreUnavailable: the table is still not there.
            Exception: what the last try has raised.
        """
        attempt = 0
        while True:
            if failure is None:
                try:
                    return await call()
                except Exception as err:
                    failure = err
            if is_creating(failure):
                if self.overdue(deadline):  # more tries would end in dead letters
                    text = f"{self._settings} is still being created after {self._patience_s:g} s; try again later"
                    raise StoreUnavailable(text) from failure
            elif status_of(failure) is not grpc.StatusCode.RESOURCE_EXHAUSTED or self.overdue(deadline):
                raise failure
            failure = None
            attempt += 1
            # Waiting here keeps a place of those in flight: so the whole store slows down.
            await self._clock.sleep(self._clock.uniform(0.0, ceiling_s(attempt, *_BACKOFF)))
