"""Finds out whether a refused request is the fault of its row or of the table.

A code such as FAILED_PRECONDITION does not say. So a request of the same kind, which changes nothing, is sent to the
row of the table's own record: if the service takes it, the refused row is at fault, otherwise the table is.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from murmur_beam.errors import StoreUnavailable, TransientError
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.dispatcher import Dispatcher
from murmur_beam.state.bigtable.grpc_errors import is_refusal
from murmur_beam.state.bigtable.keys import SCHEMA_ROW
from murmur_beam.state.bigtable.spec import BigtableSpec

R = TypeVar("R")
T = TypeVar("T")

_TRUSTED_S = 5.0
_NOTHING = wire.add(wire.VALUE, 0, 0), wire.clear(wire.STATE), wire.clear(wire.DEDUP)
"""Touches every family that events are written to; the table's record has only a sum of 0 there."""


async def commit_nothing(connection: Connection) -> None:
    """Ask for everything that a commit needs, without writing."""
    await connection.commit(wire.commit(connection, SCHEMA_ROW, wire.NEVER, if_met=_NOTHING))


async def read_nothing(connection: Connection) -> None:
    """Ask for everything that a read of rows needs."""
    await connection.read(wire.only_news(wire.read_rows(connection, [SCHEMA_ROW]), 0), persist=False)


async def add_nothing(connection: Connection) -> None:
    """Ask for everything that an unconditional write needs, without changing anything."""
    for error in (await connection.mutate(wire.bulk(connection, [(SCHEMA_ROW, _NOTHING)]), 1)).values():
        raise error


async def append_nothing(connection: Connection) -> None:
    """Ask for everything that an append needs, without changing anything."""
    nothing = wire.bulk(connection, [(SCHEMA_ROW, [wire.clear(wire.PENDING)])])
    for error in (await connection.mutate(nothing, 1)).values():
        raise error


class Refusals:
    """Finds the fault of refused requests of one kind. A finding about the table holds for a few seconds.

    Args:
        spec: which table; its clock says how old a finding is.
        connection, dispatcher: to it.
        ask: sends a request of this kind that changes nothing.
    """

    def __init__(
        self,
        spec: BigtableSpec,
        connection: Connection,
        dispatcher: Dispatcher,
        ask: Callable[[Connection], Awaitable[None]],
    ) -> None:
        self._spec = spec
        self._connection = connection
        self._dispatcher = dispatcher
        self._ask = ask
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._problem = ""

    async def send(self, call: Callable[[], Awaitable[R]], deadline: float, failure: Exception | None = None) -> R:
        """As `Dispatcher.send`. A refusal that is raised is the request's own fault: the table takes others like it.

        Raises:
            StoreUnavailable: the table takes no request of this kind.
        """
        try:
            return await self._dispatcher.send(call, deadline, failure)
        except Exception as err:
            if not is_refusal(self._connection.translated(err)) or await self._was_taken(deadline):
                raise
        # The fault of the table may have passed before it was asked.
        return await self._dispatcher.send(call, deadline)

    async def send_many(
        self,
        call: Callable[[Sequence[T]], Awaitable[dict[int, Exception]]],
        items: Sequence[T],
        deadline: float,
        *,
        taken: bool = False,
    ) -> dict[int, Exception]:
        """Send a request about many rows; the errors, by position.

        The service refuses a whole request for one of its rows, and then applies nothing of it. So the refused rows are
        sent again in halves, until the rows at fault are alone: at most two requests a row.

        Args:
            call: sends it; raises, or returns the errors.
            items: what it is about, one for each row.
            deadline: no retry begins after it.
            taken: whether the table has taken such a request lately.
        """
        try:
            failed = await self._dispatcher.send(functools.partial(call, items), deadline)
        except Exception as err:
            failed = dict.fromkeys(range(len(items)), self._connection.translated(err))
        refused = [i for i, error in failed.items() if is_refusal(error)]
        if not refused or (taken and len(items) == 1):
            return failed
        try:
            taken = taken or await self._was_taken(deadline)
        except Exception as err:
            return failed | dict.fromkeys(refused, self._connection.translated(err))
        if taken and len(items) == 1:
            return failed
        if self._dispatcher.overdue(deadline):
            late = TransientError(f"{failed[refused[0]]}; which of {len(items)} rows is at fault was not found in time")
            return failed | dict.fromkeys(refused, late)
        half = -(-len(refused) // 2)
        for some in filter(None, (refused[:half], refused[half:])):
            again = await self.send_many(call, [items[i] for i in some], deadline, taken=True)
            for n, i in enumerate(some):
                del failed[i]
                if n in again:
                    failed[i] = again[n]
        return failed

    async def _was_taken(self, deadline: float) -> bool:
        """Whether the table took such a request before one was refused; otherwise it is asked now, and takes one.

        Raises:
            StoreUnavailable: it does not take one.
            Exception: the table does not answer now.
        """
        known = self._clock_s() - self._asked_at <= _TRUSTED_S
        if not known:
            async with self._asking:
                if self._clock_s() - self._asked_at > _TRUSTED_S:
                    self._problem = await self._find_out(deadline)
                    self._asked_at = self._clock_s()
        if self._problem:
            raise StoreUnavailable(self._problem)
        return known

    async def _find_out(self, deadline: float) -> str:
        """What is wrong with the table; empty if it takes the request."""
        try:
            await self._dispatcher.send(functools.partial(self._ask, self._connection), deadline)
        except Exception as err:
            error = self._connection.translated(err)
            if is_refusal(error):
                return (
                    f"{error}; so it says of a request that changes nothing (app profile "
                    f"{self._connection.app_profile or 'default'}), hence of all of this kind; "
                    f"see: murmur check '{self._spec}'"
                )
            if isinstance(error, StoreUnavailable):
                return str(error)
            raise
        return ""

    def _clock_s(self) -> float:
        return self._spec.clock.monotonic()
