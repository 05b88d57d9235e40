"""Sums without event ids: added, many rows a request, each at least once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from murmur_beam.model import Outcome
from murmur_beam.state.base import Result, fold_row
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.cells import Cells, Value
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.groups import Flush, Group
from murmur_beam.state.bigtable.sending import Sender, all_of

ROWS_PER_READ = 1_000
MAX_MUTATIONS = 100_000
"""Bigtable's limit of a request."""
_MUTATIONS_PER_SUM = 3


class Sums:
    """Adds to the sums of a table. What their values were is remembered, so that an overflow is noticed before it
    happens.

    Args:
        connection, sender: to the table.
        cells: what it holds.
        max_known: sums that are remembered.
    """

    def __init__(self, connection: Connection, sender: Sender, cells: Cells[Any], max_known: int) -> None:
        self.connection = connection
        self._sender = sender
        self._cells = cells
        self._max_known = max_known
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
                await self._read([group.encoded for group in groups])
                await self._add_to(groups, flush)
            except Exception as err:
                error = self.connection.translated(err)
                for group in groups:
                    flush.fail(group, error)

    async def _add_to(self, groups: Sequence[Group], flush: Flush) -> None:
        entries: list[tuple[bytes, list[bytes]]] = []
        planned: list[tuple[Group, Value, list[Result]]] = []
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
                entries.append((group.encoded, [wire.add(wire.VERSION, at_us, 1), *changes]))
                planned.append((group, Value(value, expires_us), results))
        if not planned:
            return
        request = wire.bulk(self.connection, entries)
        failed = await self._sender.send(lambda: self.connection.mutate(request, len(entries)), flush.deadline)
        for i, (group, total, results) in enumerate(planned):
            if i in failed:
                flush.settle(group, [failed[i] if r is Outcome.MERGED else r for r in results])
            else:
                flush.settle(group, results)
                self._known[group.encoded] = total
        while len(self._known) > self._max_known:
            self._known.popitem(last=False)

    async def _read(self, encoded: Sequence[bytes]) -> None:
        """Know the sums as they were not long ago."""
        unknown = [one for one in encoded if one not in self._known]
        for one in encoded:
            if one in self._known:
                self._known.move_to_end(one)
        if not unknown:
            return
        request = wire.only_values(wire.read_rows(self.connection, unknown))
        found = {row.key: row for row in await self.connection.read(request)}
        for one in unknown:
            self._known[one] = self._cells.value_of(found[one]) if one in found else Value(None, None)
