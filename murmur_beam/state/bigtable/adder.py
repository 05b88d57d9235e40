"""Sums without event ids: added, many rows a request, each at least once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from murmur_beam.model import Outcome
from murmur_beam.state.base import Result, fold_row
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.batch import RowUpdates, WriteBatch
from murmur_beam.state.bigtable.codec import RowCodec, Value
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.dispatcher import Dispatcher, all_of
from murmur_beam.state.bigtable.refusals import Refusals, add_nothing, read_nothing
from murmur_beam.state.bigtable.spec import BigtableSpec

ROWS_PER_READ = 1_000
MAX_MUTATIONS = 100_000
"""Bigtable's limit of a request."""
_MUTATIONS_PER_SUM = 3


class _Sum(NamedTuple):
    """What is added to a row: the mutations, the total afterwards, and the results of the updates."""

    row: RowUpdates
    mutations: list[bytes]
    total: Value
    results: list[Result]


class BulkAdder:
    """Adds to the sums of a table, and remembers them, so that an overflow is noticed before it happens.

    Args:
        spec: which table, and how many sums are remembered.
        connection, dispatcher: to the table.
        codec: of its rows.
    """

    def __init__(
        self, spec: BigtableSpec, connection: Connection, dispatcher: Dispatcher, codec: RowCodec[Any]
    ) -> None:
        self.connection = connection
        self._dispatcher = dispatcher
        self._write_refusals = Refusals(spec, connection, dispatcher, add_nothing)
        self._read_refusals = Refusals(spec, connection, dispatcher, read_nothing)
        self._codec = codec
        self._max_remembered = spec.max_cached_events
        self._totals: OrderedDict[bytes, Value] = OrderedDict()

    async def add(self, rows: Sequence[RowUpdates], batch: WriteBatch) -> None:
        """Merge the updates of many rows. A request whose answer is lost is tried again, and may count twice."""
        limit = min(ROWS_PER_READ, MAX_MUTATIONS // _MUTATIONS_PER_SUM)
        some = [rows[start : start + limit] for start in range(0, len(rows), limit)]
        await all_of([self._add_some(chunk, batch) for chunk in some])

    def forget(self, row_keys: Sequence[bytes]) -> None:
        """Forget rows that were deleted."""
        for row_key in row_keys:
            self._totals.pop(row_key, None)

    async def _add_some(self, rows: Sequence[RowUpdates], batch: WriteBatch) -> None:
        async with self._dispatcher.in_flight:
            try:
                unread = await self._read([row.row_key for row in rows], batch.deadline)
                for row in rows:
                    if row.row_key in unread:
                        batch.fail(row, unread[row.row_key])
                await self._add_to([row for row in rows if row.row_key not in unread], batch)
            except Exception as err:
                error = self.connection.translated(err)
                for row in rows:
                    batch.fail(row, error)

    async def _add_to(self, rows: Sequence[RowUpdates], batch: WriteBatch) -> None:
        """Add to rows whose totals are known."""
        sums: list[_Sum] = []
        codec = self._codec
        for row in rows:
            before = self._totals[row.row_key]
            updates = [batch.updates[i] for i in row.positions]
            value, results = fold_row(
                codec.monoid, before.value, updates, lambda _: True, lambda _: None, codec.encoded
            )
            if Outcome.MERGED not in results:
                batch.settle(row, results)
            else:
                expires_us = codec.expires_us(before.value is not None, before.expires_us, updates[-1].ttl)
                at_us = codec.start_us(row.bucket)
                changes = codec.changes(at_us, before.value, value, before.expires_us, expires_us)
                mutations = [*codec.layout.added(at_us), *changes]
                sums.append(_Sum(row, mutations, Value(value, expires_us), results))

        async def write(some: Sequence[_Sum]) -> dict[int, Exception]:
            request = wire.bulk(self.connection, [(each.row.row_key, each.mutations) for each in some])
            failed = await self.connection.mutate(request, len(some))
            # Settled at once: a sum that is written must not fail because of a later one, and so be added twice.
            for i, each in enumerate(some):
                if i not in failed:
                    batch.settle(each.row, each.results)
                    self._totals[each.row.row_key] = each.total
            return failed

        if sums:
            for i, error in (await self._write_refusals.send_many(write, sums, batch.deadline)).items():
                batch.settle(sums[i].row, [error if r is Outcome.MERGED else r for r in sums[i].results])
        while len(self._totals) > self._max_remembered:
            self._totals.popitem(last=False)

    async def _read(self, row_keys: Sequence[bytes], deadline: float) -> dict[bytes, Exception]:
        """Read the totals that are not remembered; the errors of rows that cannot be read."""
        unknown = [row_key for row_key in row_keys if row_key not in self._totals]
        for row_key in row_keys:
            if row_key in self._totals:
                self._totals.move_to_end(row_key)
        unread: dict[bytes, Exception] = {}
        for some in wire.batches(unknown, ROWS_PER_READ):
            failed = await self._read_refusals.send_many(self._read_some, some, deadline)
            unread |= {some[i]: error for i, error in failed.items()}
        return unread

    async def _read_some(self, row_keys: Sequence[bytes]) -> dict[int, Exception]:
        request = wire.only_values(wire.read_rows(self.connection, row_keys), f"{wire.AGG}|{wire.STATE}")
        found = {row.key: row for row in await self.connection.read(request)}
        for row_key in row_keys:
            content = self._codec.content_of(found.get(row_key))
            self._totals[row_key] = Value(content.stored, content.expires_us)
        return {}
