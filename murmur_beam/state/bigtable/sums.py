"""Sums without event ids: added, many rows a request, each at least once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from murmur_beam.model import Outcome
from murmur_beam.state.base import Result, fold_row
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.cells import Cells, Value
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.groups import Flush, Group
from murmur_beam.state.bigtable.refusals import Refusals, add_nothing, read_nothing
from murmur_beam.state.bigtable.sending import Sender, all_of
from murmur_beam.state.bigtable.settings import Settings

ROWS_PER_READ = 1_000
MAX_MUTATIONS = 100_000
"""Bigtable's limit of a request."""
_MUTATIONS_PER_SUM = 3


class _Sum(NamedTuple):
    """What is added to a row: how, what its sum is then, and what is told of the updates."""

    group: Group
    mutations: list[bytes]
    total: Value
    results: list[Result]


class Sums:
    """Adds to the sums of a table. What their values were is remembered, so that an overflow is noticed before it
    happens.

    Args:
        settings: which table, and how many sums are remembered.
        connection, sender: to it.
        cells: what it holds.
    """

    def __init__(self, settings: Settings, connection: Connection, sender: Sender, cells: Cells[Any]) -> None:
        self.connection = connection
        self._sender = sender
        self._write_refusals = Refusals(settings, connection, sender, add_nothing)
        self._read_refusals = Refusals(settings, connection, sender, read_nothing)
        self._cells = cells
        self._max_known = settings.max_known_events
        self._known: OrderedDict[bytes, Value] = OrderedDict()

    async def add(self, groups: Sequence[Group], flush: Flush) -> None:
        """Merge the updates of many rows. A request whose answer is lost is tried again, and may count twice."""
        limit = min(ROWS_PER_READ, MAX_MUTATIONS // _MUTATIONS_PER_SUM)
        some = [groups[start : start + limit] for start in range(0, len(groups), limit)]
        await all_of([self._add_some(chunk, flush) for chunk in some])

    def forget(self, rows: Sequence[bytes]) -> None:
        """These were deleted."""
        for encoded in rows:
            self._known.pop(encoded, None)

    async def _add_some(self, groups: Sequence[Group], flush: Flush) -> None:
        async with self._sender.in_flight:
            try:
                unread = await self._read([group.encoded for group in groups], flush.deadline)
                for group in groups:
                    if group.encoded in unread:
                        flush.fail(group, unread[group.encoded])
                await self._add_to([group for group in groups if group.encoded not in unread], flush)
            except Exception as err:
                error = self.connection.translated(err)
                for group in groups:
                    flush.fail(group, error)

    async def _add_to(self, groups: Sequence[Group], flush: Flush) -> None:
        sums: list[_Sum] = []
        cells = self._cells
        for group in groups:
            before = self._known[group.encoded]
            updates = [flush.updates[i] for i in group.positions]
            value, results = fold_row(
                cells.monoid, before.value, updates, lambda _: True, lambda _: None, cells.encoded
            )
            if Outcome.MERGED not in results:
                flush.settle(group, results)
            else:
                expires_us = cells.expires_us(before.value is not None, before.expires_us, updates[-1].ttl)
                at_us = cells.start_us(group.bucket)
                changes = cells.changes(at_us, before.value, value, before.expires_us, expires_us)
                mutations = [*cells.layout.added(at_us), *changes]
                sums.append(_Sum(group, mutations, Value(value, expires_us), results))

        async def write(some: Sequence[_Sum]) -> dict[int, Exception]:
            request = wire.bulk(self.connection, [(one.group.encoded, one.mutations) for one in some])
            failed = await self.connection.mutate(request, len(some))
            # At once: what is written must not count as failed because of what comes after it, and so count twice.
            for i, one in enumerate(some):
                if i not in failed:
                    flush.settle(one.group, one.results)
                    self._known[one.group.encoded] = one.total
            return failed

        if sums:
            for i, error in (await self._write_refusals.send_many(write, sums, flush.deadline)).items():
                flush.settle(sums[i].group, [error if r is Outcome.MERGED else r for r in sums[i].results])
        while len(self._known) > self._max_known:
            self._known.popitem(last=False)

    async def _read(self, encoded: Sequence[bytes], deadline: float) -> dict[bytes, Exception]:
        """Know the sums as they were not long ago; why some cannot be known, by row."""
        unknown = [one for one in encoded if one not in self._known]
        for one in encoded:
            if one in self._known:
                self._known.move_to_end(one)
        unread: dict[bytes, Exception] = {}
        for some in wire.batches(unknown, ROWS_PER_READ):
            failed = await self._read_refusals.send_many(self._read_some, some, deadline)
            unread |= {some[i]: error for i, error in failed.items()}
        return unread

    async def _read_some(self, encoded: Sequence[bytes]) -> dict[int, Exception]:
        request = wire.only_values(wire.read_rows(self.connection, encoded), f"{wire.AGG}|{wire.STATE}")
        found = {row.key: row for row in await self.connection.read(request)}
        for one in encoded:
            content = self._cells.content_of(found.get(one))
            self._known[one] = Value(content.column, content.expires_us)
        return {}
