"""Sends requests: limits how many are under way, and retries what an overloaded or silent server did not take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import grpc

from murmur_beam.errors import MurmurError, StoreUnavailable, TransientError
from murmur_beam.retry import ceiling_s
from murmur_beam.state.bigtable.grpc_errors import is_creating, is_unavailable, status_of
from murmur_beam.state.bigtable.spec import BigtableSpec

T = TypeVar("T")

_BURST = 16
_BURSTS = 4
_AGAIN_S = 0.1
_BACKOFF = timedelta(milliseconds=50), timedelta(seconds=5)


class Gate:
    """Lets requests through to the server. While the server is silent it lets only one through, the probe; the others
    wait for the outcome of the probe instead of timing out themselves.

    Attributes:
        silent: whether the last request got no answer.
        broken: whether the last request failed because its connection was missing, or broke.
    """

    def __init__(self) -> None:
        self.silent = self.broken = False
        self._probing = False
        self._waiting: list[asyncio.Future[None]] = []

    async def enter(self) -> bool:
        """Wait until a request may be sent; True if it is the probe.

        Call `leave` afterwards.
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
        """Report the outcome of a request.

        Args:
            probes: what `enter` has returned.
            answered: whether there was an answer, of any kind; None: the request was not sent, its connection broke, or
                its caller stopped waiting.
            broken: whether its connection broke.
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
    """Cancels the running task when its time is over; the end of the ``with`` statement catches the cancellation.

    Args:
        seconds: the time.

    Attributes:
        over: whether the time is over.
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
        # Again, in case other code takes the cancellation for the end of a request.
        self._timer = asyncio.get_running_loop().call_later(_AGAIN_S, self._end)


class Dispatcher:
    """Sends the requests of a store, for all of its batches.

    Args:
        spec: the limits.

    Attributes:
        burst: number of requests that are made first and then sent together.
        in_flight: semaphore to be held for each burst.
        gate: to be entered for each burst.
    """

    def __init__(self, spec: BigtableSpec) -> None:
        self._spec = spec
        self._clock = spec.clock
        self._patience_s = spec.patience_s
        # Requests that are sent one by one wake the server up for each, and the client for each answer.
        self.burst = max(1, min(_BURST, spec.max_in_flight // _BURSTS))
        self.in_flight = asyncio.Semaphore(max(1, spec.max_in_flight // self.burst))
        self.gate = Gate()
        self._creating = False  # whether the last request failed because the table is still being created
        # For requests that are sent outside of a burst.
        self._singles = asyncio.Semaphore(spec.max_in_flight)

    def deadline(self) -> float:
        """The deadline of a batch that begins now, by the monotonic clock."""
        return self._clock.monotonic() + self._patience_s

    def patience(self, deadline: float | None = None) -> Patience:
        """Cancels the running task at the deadline, even while it waits for an answer.

        Args:
            deadline: of a batch that has begun before; None: it begins now.
        """
        return Patience(self._patience_s if deadline is None else max(0.0, deadline - self._clock.monotonic()))

    def late(self) -> MurmurError:
        """The error of work that is not done when its time is over: transient, unless retries would have no effect."""
        if self._creating:
            return StoreUnavailable(
                f"{self._spec}: the table was still being created after {self._patience_s:g} s; try again later"
            )
        within = f"within {self._patience_s:g} s (patience_s)"
        if self.gate.silent:
            why = "does not answer"
        elif self.gate.broken:
            # A retry waits for another connection, and is not overdue.
            why = "cannot be reached, or says that it is unavailable"
        else:
            why = "has too much to do, or others write the same rows"
        return TransientError(f"{self._spec}: not done {within}: the server {why}")

    def overdue(self, deadline: float) -> bool:
        """Whether the deadline has passed."""
        return self._clock.monotonic() >= deadline

    async def send(self, call: Callable[[], Awaitable[T]], deadline: float, failure: Exception | None = None) -> T:
        """Send a request, and retry while the server answers that it is overloaded, or still creates the table.

        Args:
            call: makes the request.
            deadline: no retry begins after it.
            failure: of a first try that was made before.

        Raises:
            StoreUnavailable: the table does not exist yet.
            Exception: the error of the last try.
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
                # The wait keeps its place among the requests in flight, so the whole store slows down.
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
    """Wait until all have ended, even if one of them fails or this is cancelled; then raise the first error.

    A single coroutine, as of a small batch, gets no task of its own.
    """
    if len(work) == 1:
        await work[0]
    elif work:
        for failure in await asyncio.gather(*work, return_exceptions=True):
            if failure is not None:
                raise failure
