"""Whose fault it is when the service refuses a request: its row's, or the table's.

A code such as FAILED_PRECONDITION says neither. So the same kind of request is tried on the row of the table's own
record, one that changes nothing: if the service takes that, what it refuses is a row's own fault, and else the table's.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from murmur_beam.errors import StoreUnavailable, TransientError
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import Connection, is_refusal
from murmur_beam.state.bigtable.keys import SCHEMA_ROW
from murmur_beam.state.bigtable.sending import Sender
from murmur_beam.state.bigtable.settings import Settings

R = TypeVar("R")
T = TypeVar("T")

_TRUSTED_S = 5.0
_NOTHING = wire.add(wire.VALUE, 0, 0), wire.clear(wire.STATE), wire.clear(wire.DEDUP)
"""Touches every family that events are written to; the table's record has no cells there but a sum of 0."""


async def commit_nothing(connection: Connection) -> None:
    """Ask for all that a commit needs, without ever writing."""
    await connection.commit(wire.commit(connection, SCHEMA_ROW, wire.NEVER, if_met=_NOTHING))


async def read_nothing(connection: Connection) -> None:
    """Ask for all that reading rows needs."""
    await connection.read(wire.only_news(wire.read_rows(connection, [SCHEMA_ROW]), 0), persist=False)


async def add_nothing(connection: Connection) -> None:
    """Ask for all that unconditional writes need, without changing anything."""
    for error in (await connection.mutate(wire.bulk(connection, [(SCHEMA_ROW, _NOTHING)]), 1)).values():
        raise error


async def append_nothing(connection: Connection) -> None:
    """Ask for all that appending needs, without changing anything."""
    nothing = wire.bulk(connection, [(SCHEMA_ROW, [wire.clear(wire.PENDING)])])
    for error in (await connection.mutate(nothing, 1)).values():
        raise error


class Refusals:
    """Finds out who is to blame for requests of one kind. What was found out holds for a few seconds.

    Args:
        settings: which table; their clock says how long ago that was.
        connection, sender: to it.
        ask: sends a request of this kind that changes nothing.
    """

    def __init__(
        self, settings: Settings, connection: Connection, sender: Sender, ask: Callable[[Connection], Awaitable[None]]
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._sender = sender
        self._ask = ask
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._problem = ""

    async def send(self, call: Callable[[], Awaitable[R]], deadline: float, failure: Exception | None = None) -> R:
        """As `Sender.send`; what is refused is refused for its own fault, since the table takes others like it.

        Raises:
            StoreUnavailable: the table takes none.
        """
        try:
            return await self._sender.send(call, deadline, failure)
        except Exception as err:
            if not is_refusal(self._connection.translated(err)) or await self._was_taken(deadline):
                raise
        # What was wrong with the table may have passed before it was asked.
        return await self._sender.send(call, deadline)

    async def send_many(
        self,
        call: Callable[[Sequence[T]], Awaitable[dict[int, Exception]]],
        items: Sequence[T],
        deadline: float,
        *,
        taken: bool = False,
    ) -> dict[int, Exception]:
        """Send a request about many rows; what failed, by position.

        The service refuses all of a request for one of its rows, and then does nothing of it. So what is refused, and
        only that, is sent again in halves, until those that are to blame are alone: at most two requests a row.

        Args:
            call: sends it; may raise, or tell what failed.
            items: what it is about.
            deadline: until when to try again.
            taken: has the table taken such a request lately?
        """
        try:
            failed = await self._sender.send(functools.partial(call, items), deadline)
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
        if self._sender.overdue(deadline):
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
        """Did the table take such a request before one was refused? Else it is asked now, and takes one.

        Raises:
            StoreUnavailable: it does not.
            Exception: there is no telling now.
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
        """What is wrong with the table; empty: nothing."""
        try:
            await self._sender.send(functools.partial(self._ask, self._connection), deadline)
        except Exception as err:
            error = self._connection.translated(err)
            if is_refusal(error):
                return (
                    f"{error}; so it says of a request that changes nothing (app profile "
                    f"{self._settings.app_profile or 'default'}), hence of all of this kind; "
                    f"see: murmur check '{self._settings}'"
                )
            if isinstance(error, StoreUnavailable):
                return str(error)
            raise
        return ""

    def _clock_s(self) -> float:
        return self._settings.clock.monotonic()
