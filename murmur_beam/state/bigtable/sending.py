"""How many requests are under way at once, and what is done when the server has too much to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import grpc

from murmur_beam.errors import MurmurError, StoreUnavailable, TransientError
from murmur_beam.retry import ceiling_s
from murmur_beam.state.bigtable.connection import is_creating, is_unavailable, status_of
from murmur_beam.state.bigtable.settings import Settings

T = TypeVar("T")

_BURST = 16
_BURSTS = 4
_AGAIN_S = 0.1
_BACKOFF = timedelta(milliseconds=50), timedelta(seconds=5)


class Gate:
    """Lets requests to the server. While it stands still only one, so that this is found out once, and not by each
    request again; the others wait for what becomes of that one.

    Attributes:
        silent: whether the last request that is known of got no answer.
        broken: whether the last one failed because its connection was not there, or broke.
    """

    def __init__(self) -> None:
        self.silent = self.broken = False
        self._probing = False
        self._waiting: list[asyncio.Future[None]] = []

    async def enter(self) -> bool:
        """Wait until a request may be sent; True if it is the one that shows how the server is.

        After it comes `leave`.
        """
        while self.silent:
            if not self._probing:
                self._probing = True
                return True
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        return False

    def leave(self, probes: bool, answered: bool | None, *, broken: bool = False) -> None:
        """Tell what became of a request.

        Args:
            probes: as `enter` has returned.
            answered: in whatever way; None: it was not sent, its connection broke, or somebody would not wait.
            broken: its connection did.
        """
        if answered is not None:
            self.silent = not answered
        if answered is not None or broken:
            self.broken = broken
        if probes:
            self._probing = False
        if not self.silent or probes:
            waiting, self._waiting = self._waiting, []
            for turn in waiting:
                if not turn.done():
                    turn.set_result(None)


class Patience:
    """Cancels the running task when its time is over; the end of the ``with`` statement catches that.

    Args:
        seconds: how long.

    Attributes:
        over: is it?
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._seconds = seconds

    def __enter__(self) -> Patience:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> bool:
        self._timer.cancel()
        return self.over and kind is asyncio.CancelledError

    def _end(self) -> None:
        self.over = True
        self._task.cancel()
        # Again, if somebody takes that for the end of a request.
        self._timer = asyncio.get_running_loop().call_later(_AGAIN_S, self._end)


class Sender:
    """Shared by all flushes of a store.

    Args:
        settings: how hard to try.

    Attributes:
        burst: so many requests are made, and then sent together.
        in_flight: to be held for each burst.
        gate: to be passed by each burst.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = settings.clock
        self._patience_s = settings.patience_s
        # Requests one after the other, as each gets its turn, wake the server up for each, and us for each answer.
        self.burst = max(1, min(_BURST, settings.max_in_flight // _BURSTS))
        self.in_flight = asyncio.Semaphore(max(1, settings.max_in_flight // self.burst))
        self.gate = Gate()
        # Was that the last that went wrong?
        self._creating = False
        # Of those that are sent one by one.
        self._singles = asyncio.Semaphore(settings.max_in_flight)

    def deadline(self) -> float:
        """Until when a flush that begins now goes on, by the monotonic clock."""
        return self._clock.monotonic() + self._patience_s

    def patience(self, deadline: float | None = None) -> Patience:
        """The same for the task that runs, however long it waits for an answer.

        Args:
            deadline: until when, if that has begun before.
        """
        return Patience(self._patience_s if deadline is None else max(0.0, deadline - self._clock.monotonic()))

    def late(self) -> MurmurError:
        """Why something is not done though its time is over: a failed try, unless more of them would be in vain."""
        if self._creating:
            return StoreUnavailable(
                f"{self._settings}: the table was still being created after {self._patience_s:g} s; try again later"
            )
        within = f"within {self._patience_s:g} s (patience_s)"
        if self.gate.silent:
            why = "does not answer"
        elif self.gate.broken:
            # What is tried again waits for another connection, and is not overdue.
            why = "cannot be reached, or says that it is unavailable"
        else:
            why = "has too much to do, or others write the same rows"
        return TransientError(f"{self._settings}: not done {within}: the server {why}")

    def overdue(self, deadline: float) -> bool:
        """Tell whether the deadline has passed."""
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
        async with self._singles:
            while True:
                if failure is None:
                    try:
                        result = await self._send(call)
                        self._creating = False
                        return result
                    except Exception as err:
                        failure = err
                self._creating = is_creating(failure)
                if self._creating:
                    if self.overdue(deadline):
                        raise self.late() from failure
                elif status_of(failure) is not grpc.StatusCode.RESOURCE_EXHAUSTED or self.overdue(deadline):
                    raise failure
                failure = None
                attempt += 1
                # Waiting here keeps a place of those in flight: so the whole store slows down.
                await self._clock.sleep(self._clock.uniform(0.0, ceiling_s(attempt, *_BACKOFF)))

    async def _send(self, call: Callable[[], Awaitable[T]]) -> T:
        probes = await self.gate.enter()
        answered: bool | None = None
        broken = False
        try:
            result = await call()
            answered = True
        except Exception as err:
            broken = is_unavailable(err)
            answered = None if broken else status_of(err) is not grpc.StatusCode.DEADLINE_EXCEEDED
            raise
        finally:
            self.gate.leave(probes, answered, broken=broken)
        return result


async def all_of(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait until all have ended, also when one of them fails or this is cancelled; then raise what the first has.

    There is no task where there is only one, as with small flushes.
    """
    if len(work) == 1:
        await work[0]
    elif work:
        for failure in await asyncio.gather(*work, return_exceptions=True):
            if failure is not None:
                raise failure
