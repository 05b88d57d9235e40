"""Appends: each row of a batch gets one cell of pending deltas, without a condition, in a few large requests.

Setting a cell again changes nothing, and a cell keeps its name over the tries of a batch. So a request that may have
been applied is sent again as it is. The calling threads build and send requests themselves, since the way to the event
loop and back takes longer than a small request. Batches that arrive while enough requests are under way go out
together, in one request, by the first thread that is free. What the server does not take at once is left to the loop,
which waits, retries, and finds out which row is at fault.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import grpc

from murmur_beam.errors import TransientError
from murmur_beam.model import Outcome
from murmur_beam.state.base import UpdateResults, unfoldable
from murmur_beam.state.bigtable import pending, wire
from murmur_beam.state.bigtable.batch import RowUpdates, WriteBatch
from murmur_beam.state.bigtable.codec import RowCodec
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.dispatcher import Dispatcher
from murmur_beam.state.bigtable.fingerprints import FINGERPRINT_BYTES
from murmur_beam.state.bigtable.grpc_errors import is_unavailable, status_of
from murmur_beam.state.bigtable.pending import Events
from murmur_beam.state.bigtable.refusals import Refusals, append_nothing
from murmur_beam.state.bigtable.spec import BigtableSpec
from murmur_beam.state.bigtable.throttle import OVERLOADED, Throttle

V = TypeVar("V")

_ROWS_PER_REQUEST = 2_000
_REQUEST_BYTES = 4 << 20
_REQUESTS = 2
"""Under way at once, in all; more do not make it faster, and with fewer more goes out together."""


class _Ticket:
    """The entries of a batch, and how far they have come.

    Attributes:
        entries: of all rows.
        taken: number of entries that were sent.
        left: number of entries without an answer.
        failed: errors of entries that were not written, by position.
        wake: set when all have an answer, or when it is this thread's turn to send.
        over: whether its thread has stopped waiting.
    """

    __slots__ = ("entries", "failed", "left", "over", "taken", "wake")

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.entries = entries
        self.left = len(entries)
        self.taken = 0
        self.failed: dict[int, Exception] = {}
        self.wake = threading.Event()
        self.over = False


_Part = tuple[_Ticket, int, int]
"""A range of a ticket's entries: the first position, and the one after the last."""


class Appender(Generic[V]):
    """Appends updates to their rows.

    Args:
        spec: which table, and the limits of work on it.
        connection, dispatcher: to the table.
        codec: of its rows.
    """

    def __init__(self, spec: BigtableSpec, connection: Connection, dispatcher: Dispatcher, codec: RowCodec[V]) -> None:
        self._spec = spec
        self._connection = connection
        self._dispatcher = dispatcher
        self._codec = codec
        self._refusals = Refusals(spec, connection, dispatcher, append_nothing)
        self._throttle = Throttle(spec.clock)
        self._names = pending.Names(spec.clock)
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._under_way = 0

    def append(self, batch: WriteBatch, rows: Sequence[RowUpdates]) -> UpdateResults:
        """Append the updates of many rows, in the calling thread; the result of each."""
        batch.results = UpdateResults([Outcome.RECORDED] * len(batch.updates))
        self._connection.require_open()
        entries, written = self._entries(batch, rows)
        ticket = _Ticket(entries)
        self._send_all(ticket, batch.deadline)
        if ticket.failed and not ticket.over:
            self._connection.run(self._send_again(ticket, batch.deadline))
        for i, error in ticket.failed.items():
            positions = written[i].positions
            batch.results.put(positions, [error] * len(positions))
        return batch.results

    # ---- what is written ----

    def _entries(self, batch: WriteBatch, rows: Sequence[RowUpdates]) -> tuple[list[bytes], list[RowUpdates]]:
        """Entries, and the row of each; updates whose delta cannot be written get their result."""
        updates, fingerprints = batch.updates, batch.fingerprints
        sums = self._codec.sums
        name = self._names()
        setters: dict[int, Callable[[bytes, bytes], bytes]] = {}
        entries, written = [], []
        one = pending.ONE
        for row in rows:
            row_key, bucket, positions = row
            entry = setters.get(bucket)
            if entry is None:
                entry = setters[bucket] = wire.setter(wire.PENDING, name, self._codec.start_us(bucket))
            if sums and len(positions) == 1 and updates[positions[0]].delta == 1:
                entries.append(entry(row_key, one + (fingerprints[positions[0]] or os.urandom(FINGERPRINT_BYTES))))
                written.append(row)
                continue
            for n, value in enumerate(self._values(batch, positions)):
                if n:
                    entry = wire.setter(wire.PENDING, self._names(), self._codec.start_us(bucket))
                entries.append(entry(row_key, value))
                written.append(row)
        return entries, written

    def _values(self, batch: WriteBatch, positions: Sequence[int]) -> Sequence[bytes]:
        """The values of a row's cells."""
        if not self._codec.monoid.idempotent:
            positions = self._once(batch, positions)
        try:
            values = list(self._encoded(batch, positions))
            if not (self._codec.sums or pending.holds_sums(self._codec.monoid)):
                for value in values:  # a value that cannot be decoded would keep its whole row from being read
                    pending.decoded(self._codec.monoid, value)
            return values
        except Exception:  # a monoid may raise anything; one by one the update at fault raises it again
            positions = self._encodable(batch, positions)
            return list(self._encoded(batch, positions)) if positions else ()

    def _encoded(self, batch: WriteBatch, positions: Sequence[int]) -> Iterator[bytes]:
        fingerprints = b""
        if not self._codec.monoid.idempotent:
            fingerprints = b"".join([batch.fingerprints[i] or os.urandom(FINGERPRINT_BYTES) for i in positions])
        return pending.encoded(self._codec.monoid, Events(fingerprints, [batch.updates[i].delta for i in positions]))

    def _once(self, batch: WriteBatch, positions: Sequence[int]) -> list[int]:
        """The positions without those of repeated events."""
        seen: set[bytes] = set()
        once = []
        for i in positions:
            fingerprint = batch.fingerprints[i]
            if fingerprint is None or fingerprint not in seen:
                once.append(i)
                if fingerprint is not None:
                    seen.add(fingerprint)
        return once

    def _encodable(self, batch: WriteBatch, positions: Sequence[int]) -> list[int]:
        """Positions whose delta can be stored and read again; the others get their result."""
        monoid = self._codec.monoid
        good = []
        for i in positions:
            try:
                for value in self._encoded(batch, [i]):
                    pending.decoded(monoid, value)
                good.append(i)
            except Exception as err:
                batch.results[i] = unfoldable(monoid, batch.updates[i], err)
        return good

    # ---- sending ----

    def _send_all(self, ticket: _Ticket, deadline: float) -> None:
        """Wait until all entries are sent, by this thread or another."""
        with self._lock:
            self._waiting.append(ticket)
        try:
            while ticket.left:
                with self._lock:
                    ticket.wake.clear()
                    parts = self._next_parts() if self._under_way < _REQUESTS else []
                    self._under_way += bool(parts)
                if parts:
                    self._send(parts)
                elif ticket.left and not ticket.wake.wait(deadline - self._spec.clock.monotonic()):
                    late = self._dispatcher.late()
                    ticket.failed = dict.fromkeys(range(len(ticket.entries)), late)
                    break
        finally:
            ticket.over = ticket.left > 0

    def _next_parts(self) -> list[_Part]:
        """The entries of the next request."""
        parts: list[_Part] = []
        rows, size = _ROWS_PER_REQUEST, _REQUEST_BYTES
        while self._waiting and rows > 0 and size > 0:
            ticket = self._waiting[0]
            if not ticket.over:
                start = ticket.taken
                some = ticket.entries[start : start + rows]
                while len(some) > 1 and sum(map(len, some)) > size:
                    some = some[: len(some) // 2]
                size -= sum(map(len, some))
                rows -= len(some)
                ticket.taken += len(some)
                parts.append((ticket, start, ticket.taken))
                if ticket.taken < len(ticket.entries):
                    break
            self._waiting.popleft()
        return parts

    def _send(self, parts: list[_Part]) -> None:
        entries = [entry for ticket, start, end in parts for entry in ticket.entries[start:end]]
        failed: dict[int, Exception] = {}
        try:
            self._throttle.wait(len(entries))
            if self._dispatcher.gate.silent:
                raise TransientError("the server does not answer")
            request = wire.bulk_of(self._connection, entries)
            failed, hint = self._connection.mutate_here(request, len(entries))
            self._throttle.sent(len(entries), hint)
        except Exception as err:
            if status_of(err) is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._throttle.sent(0, OVERLOADED)
            elif status_of(err) is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._dispatcher.gate.silent = True  # until a request of the loop has an answer again
            self._dispatcher.gate.broken = is_unavailable(err)
            failed = dict.fromkeys(range(len(entries)), err)
        except BaseException as err:
            failed = dict.fromkeys(range(len(entries)), TransientError(f"interrupted: {err!r}"))
            raise
        finally:
            self._settle(parts, failed)

    def _settle(self, parts: list[_Part], failed: dict[int, Exception]) -> None:
        with self._lock:
            self._under_way -= 1
            before = 0
            for ticket, start, end in parts:
                for i in range(start, end) if failed else ():
                    if before + i - start in failed:
                        ticket.failed[i] = failed[before + i - start]
                before += end - start
                ticket.left -= end - start
                if not ticket.left:
                    ticket.wake.set()
            while self._waiting and self._waiting[0].over:
                self._waiting.popleft()
            if self._waiting:
                self._waiting[0].wake.set()

    async def _send_again(self, ticket: _Ticket, deadline: float) -> None:
        """Send again what the server has not taken, until the deadline."""
        failed, ticket.failed = ticket.failed, {}
        again = list(failed)

        async def write(entries: Sequence[bytes]) -> dict[int, Exception]:
            return await self._connection.mutate(wire.bulk_of(self._connection, entries), len(entries))

        entries = [ticket.entries[i] for i in again]
        with self._dispatcher.patience(deadline):
            for start in range(0, len(again), _ROWS_PER_REQUEST):
                some = entries[start : start + _ROWS_PER_REQUEST]
                still = await self._refusals.send_many(write, some, deadline)
                ticket.failed.update({again[start + i]: error for i, error in still.items()})
            return
        ticket.failed = dict.fromkeys(again, self._dispatcher.late())
