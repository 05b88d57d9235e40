"""Appending: each row of a flush gets one cell of pending deltas, without a condition, in a few large requests.

Setting a cell again changes nothing, and its name is kept over the tries of a flush: so a request that may have
happened is sent again as it is. Requests are made and sent by the threads that flush, since the way to the loop and
back takes longer than a small request. What comes in while enough of them are under way goes out together, in one
request, by whichever of those threads is free first. What the server does not take at once is left to the loop, which
waits, tries again, and finds out which row is at fault.
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
from murmur_beam.state.base import Flushed, unfoldable
from murmur_beam.state.bigtable import pending, wire
from murmur_beam.state.bigtable.cells import Cells
from murmur_beam.state.bigtable.connection import Connection, is_unavailable, status_of
from murmur_beam.state.bigtable.groups import Flush, Group
from murmur_beam.state.bigtable.known import FINGERPRINT_BYTES
from murmur_beam.state.bigtable.pending import Events
from murmur_beam.state.bigtable.refusals import Refusals, append_nothing
from murmur_beam.state.bigtable.sending import Sender
from murmur_beam.state.bigtable.settings import Settings
from murmur_beam.state.bigtable.throttle import OVERLOADED, Throttle

V = TypeVar("V")

_ROWS_PER_REQUEST = 2_000
_REQUEST_BYTES = 4 << 20
_REQUESTS = 2
"""Under way at once, in all; more do not make it faster, and with fewer more goes out together."""


class _Ticket:
    """The entries of a flush, and what has become of them.

    Attributes:
        entries: all of them.
        taken: how many of them have gone out.
        left: how many have no answer yet.
        failed: why some were not written, by position.
        wake: set when all have an answer, or when it is this thread's turn to send.
        over: nobody waits for it any more.
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
"""Entries of a ticket, from one position on, before another."""


class Appends(Generic[V]):
    """Appends groups of updates to their rows.

    Args:
        settings: which table, and how hard to work on it.
        connection, sender: to it.
        cells: what it holds.
    """

    def __init__(self, settings: Settings, connection: Connection, sender: Sender, cells: Cells[V]) -> None:
        self._settings = settings
        self._connection = connection
        self._sender = sender
        self._cells = cells
        self._refusals = Refusals(settings, connection, sender, append_nothing)
        self._throttle = Throttle(settings.clock)
        self._names = pending.Names(settings.clock)
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._under_way = 0

    def append(self, flush: Flush, groups: Sequence[Group]) -> Flushed:
        """Append the updates of many rows, in the thread that calls; what became of each."""
        flush.results = Flushed([Outcome.RECORDED] * len(flush.updates))
        self._connection.require_open()
        entries, written = self._entries(flush, groups)
        ticket = _Ticket(entries)
        self._send_all(ticket, flush.deadline)
        if ticket.failed and not ticket.over:
            self._connection.run(self._send_again(ticket, flush.deadline))
        for i, error in ticket.failed.items():
            positions = written[i].positions
            flush.results.put(positions, [error] * len(positions))
        return flush.results

    # ---- what is written ----

    def _entries(self, flush: Flush, groups: Sequence[Group]) -> tuple[list[bytes], list[Group]]:
        """What is written, and of which group each is; updates whose delta cannot be have their result."""
        updates, prints = flush.updates, flush.prints
        sums = self._cells.sums
        name = self._names()
        setters: dict[int, Callable[[bytes, bytes], bytes]] = {}
        entries, written = [], []
        one = pending.ONE
        for group in groups:
            encoded, bucket, positions = group
            entry = setters.get(bucket)
            if entry is None:
                entry = setters[bucket] = wire.setter(wire.PENDING, name, self._cells.start_us(bucket))
            if sums and len(positions) == 1 and updates[positions[0]].delta == 1:
                entries.append(entry(encoded, one + (prints[positions[0]] or os.urandom(FINGERPRINT_BYTES))))
                written.append(group)
                continue
            for n, value in enumerate(self._values(flush, positions)):
                if n:
                    entry = wire.setter(wire.PENDING, self._names(), self._cells.start_us(bucket))
                entries.append(entry(encoded, value))
                written.append(group)
        return entries, written

    def _values(self, flush: Flush, positions: Sequence[int]) -> Sequence[bytes]:
        """The cells of a row."""
        if not self._cells.monoid.idempotent:
            positions = self._once(flush, positions)
        try:
            values = list(self._encoded(flush, positions))
            if not self._cells.sums:
                for value in values:  # one that cannot be read again would keep its whole row from being read
                    pending.decoded(self._cells.monoid, value)
            return values
        except Exception:  # whatever a monoid raises: one by one it raises it again, for one to blame
            positions = self._encodable(flush, positions)
            return list(self._encoded(flush, positions)) if positions else ()

    def _encoded(self, flush: Flush, positions: Sequence[int]) -> Iterator[bytes]:
        fingerprints = b""
        if not self._cells.monoid.idempotent:
            fingerprints = b"".join([flush.prints[i] or os.urandom(FINGERPRINT_BYTES) for i in positions])
        return pending.encoded(self._cells.monoid, Events(fingerprints, [flush.updates[i].delta for i in positions]))

    def _once(self, flush: Flush, positions: Sequence[int]) -> list[int]:
        """Without the events that are among them before."""
        seen: set[bytes] = set()
        once = []
        for i in positions:
            print_ = flush.prints[i]
            if print_ is None or print_ not in seen:
                once.append(i)
                if print_ is not None:
                    seen.add(print_)
        return once

    def _encodable(self, flush: Flush, positions: Sequence[int]) -> list[int]:
        """Those whose delta can be stored and read again; the others get their result."""
        monoid = self._cells.monoid
        good = []
        for i in positions:
            try:
                for value in self._encoded(flush, [i]):
                    pending.decoded(monoid, value)
                good.append(i)
            except Exception as err:
                flush.results[i] = unfoldable(monoid, flush.updates[i], err)
        return good

    # ---- sending ----

    def _send_all(self, ticket: _Ticket, deadline: float) -> None:
        """Have all entries sent, by this thread or another."""
        with self._lock:
            self._waiting.append(ticket)
        try:
            while ticket.left:
                with self._lock:
                    ticket.wake.clear()
                    parts = self._take() if self._under_way < _REQUESTS else []
                    self._under_way += bool(parts)
                if parts:
                    self._send(parts)
                elif ticket.left and not ticket.wake.wait(deadline - self._settings.clock.monotonic()):
                    late = self._sender.late()
                    ticket.failed = dict.fromkeys(range(len(ticket.entries)), late)
                    break
        finally:
            ticket.over = ticket.left > 0

    def _take(self) -> list[_Part]:
        """What goes out with the next request."""
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
            if self._sender.gate.silent:
                raise TransientError("the server does not answer")
            request = wire.bulk_of(self._connection, entries)
            failed, hint = self._connection.mutate_here(request, len(entries))
            self._throttle.sent(len(entries), hint)
        except Exception as err:
            if status_of(err) is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._throttle.sent(0, OVERLOADED)
            elif status_of(err) is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._sender.gate.silent = True  # until the loop has found that it answers again
            self._sender.gate.broken = is_unavailable(err)
            failed = dict.fromkeys(range(len(entries)), err)
        except BaseException as err:
            failed = dict.fromkeys(range(len(entries)), TransientError(f"interrupted: {err!r}"))
            raise
        finally:
            self._sent(parts, failed)

    def _sent(self, parts: list[_Part], failed: dict[int, Exception]) -> None:
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
        """Send what the server has not taken, with all patience."""
        failed, ticket.failed = ticket.failed, {}
        again = list(failed)

        async def write(entries: Sequence[bytes]) -> dict[int, Exception]:
            return await self._connection.mutate(wire.bulk_of(self._connection, entries), len(entries))

        entries = [ticket.entries[i] for i in again]
        with self._sender.patience(deadline):
            for start in range(0, len(again), _ROWS_PER_REQUEST):
                some = entries[start : start + _ROWS_PER_REQUEST]
                still = await self._refusals.send_many(write, some, deadline)
                ticket.failed.update({again[start + i]: error for i, error in still.items()})
            return
        ticket.failed = dict.fromkeys(again, self._sender.late())
