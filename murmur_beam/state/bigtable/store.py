"""The store: an open table, with its reads and writes."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import groupby, islice
from typing import Any, TypeVar

import grpc

from murmur_beam.durations import format_duration
from murmur_beam.errors import MurmurError, PermanentError, SchemaMismatch, StoreUnavailable, TransientError
from murmur_beam.model import Key, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import GRACE_S, Result, Schema, bucket_lifetime, fingerprint_of
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.adder import BulkAdder
from murmur_beam.state.bigtable.appender import Appender
from murmur_beam.state.bigtable.batch import RowUpdates, WriteBatch, batch_of, split_oversized
from murmur_beam.state.bigtable.codec import EXPIRY_SLACK_US, RowCodec, Value
from murmur_beam.state.bigtable.committer import RowCommitter
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.deleting import delete_rows
from murmur_beam.state.bigtable.dispatcher import Dispatcher
from murmur_beam.state.bigtable.due_rows import DueRows
from murmur_beam.state.bigtable.folds import Folds
from murmur_beam.state.bigtable.grpc_errors import status_of
from murmur_beam.state.bigtable.keys import (
    AFTER_SCHEMA,
    encode_row_key,
    entity_prefix,
    parse_row_key,
    shard_of,
    successor,
)
from murmur_beam.state.bigtable.meta import APPEND, Meta, name_field, read_meta, write_meta
from murmur_beam.state.bigtable.read_rows import Row
from murmur_beam.state.bigtable.row_reader import RowReader
from murmur_beam.state.bigtable.scanning import Scan
from murmur_beam.state.bigtable.spec import BigtableSpec
from murmur_beam.state.folding import Folded, FoldingStore

V = TypeVar("V")

_log = logging.getLogger(__name__)

_ROWS_PER_UNION = 256
_MICROSECOND = timedelta(microseconds=1)
_LAST_US = (2**63 - 1) // 1000 * 1000
_LONG = timedelta(days=1_000_000)


class BigtableStore(FoldingStore[V]):
    """One table.

    Args:
        spec: which.
        monoid: how to fold.
        granularity: length of a bucket, whose start is the timestamp of its cells, so that garbage collection by age
            takes whole buckets.
    """

    waits_for_network = True

    def __init__(self, spec: BigtableSpec, monoid: Monoid[V], granularity: timedelta | None) -> None:
        self.monoid = monoid
        self._spec = spec
        self._clock = spec.clock
        self._schema = Schema.of(monoid, granularity)
        self._granularity = granularity
        self._granularity_us = 0 if granularity is None else granularity // _MICROSECOND
        self._checked = False
        self._shards = 1
        self._codec = RowCodec(monoid, self._granularity_us, spec.clock)
        self._connection = spec.connect()
        self._dispatcher = Dispatcher(spec)
        self._committer = RowCommitter(spec, self._connection, self._dispatcher, self._codec)
        self._folds = Folds(spec, self._connection, self._dispatcher, self._codec, self._committer)
        self._adder = BulkAdder(spec, self._connection, self._dispatcher, self._codec)
        self._row_reader = RowReader(spec, self._connection, self._codec)
        self._appender = Appender(spec, self._connection, self._dispatcher, self._codec)
        try:
            self._connection.run(self._check())
        except TransientError as err:
            _log.warning("%s; going on, but nothing can be merged until it answers", err)
        except BaseException as err:
            self.close()
            if isinstance(err, StoreUnavailable) and status_of(err.__cause__) is grpc.StatusCode.NOT_FOUND:
                window = [] if granularity is None else ["--window", format_duration(granularity)]
                run = shlex.join(["murmur", "create-table", str(spec), "--monoid", monoid.name, *window])
                raise StoreUnavailable(f"{err}; make the table with: {run}") from err
            if isinstance(err, PermanentError) and not isinstance(err, (SchemaMismatch, StoreUnavailable)):
                # The fault concerns every request: the app profile allows no transactions, for example.
                raise StoreUnavailable(f"{err}; see: murmur check '{spec}'") from err
            raise

    async def _check(self) -> None:
        """Record the table's schema, or check it; done once the server has answered.

        Raises:
            SchemaMismatch, StoreUnavailable: the table has another schema, or was not made by this library.
        """
        if self._checked:
            return
        shards = self._spec.shards
        recorded = await read_meta(self._connection)
        if recorded is None:
            recorded = await self._folds.change_record(self._record, appends=False)
        if recorded is None:
            raise StoreUnavailable(f"{self._spec}: its schema was deleted while it was opened")
        self._require(recorded)
        if recorded.schema.names(self._schema):
            self._require(await self._named(recorded) or recorded)
        if shards not in (None, recorded.shards):
            raise SchemaMismatch(
                f"{self._spec} was made with shards={recorded.shards}, but was opened with shards={shards}: events "
                "would count twice; leave it out, or use another table"
            )
        self._shards = recorded.shards
        self.bucket_age, self.marker_age = recorded.bucket_age, recorded.marker_age
        self.appends = recorded.write == APPEND
        self._codec.layout = recorded.layout
        if recorded.bucket_age is not None and recorded.layout.number > 1:
            self._codec.bucket_age_us = recorded.bucket_age // _MICROSECOND
        self._codec.appended = self.appends
        self._checked = True

    async def _record(self, connection: Connection) -> Meta | None:
        """Record the schema. Two processes may do this at once: one of them writes, and both read what it has
        written.
        """
        await write_meta(connection, Meta(self._schema, shards=self._spec.shards or 1))
        return await read_meta(connection)

    async def _named(self, recorded: Meta) -> Meta | None:
        """Record the name of the field, unless one is recorded already; the record after that."""
        field = str(self._schema.field)

        async def name(connection: Connection) -> Meta | None:
            await name_field(connection, recorded.layout, field)
            return await read_meta(connection)

        try:
            return await self._folds.change_record(name, appends=recorded.write == APPEND)
        except StoreUnavailable as err:
            raise StoreUnavailable(f"the field {field!r} cannot be recorded: {err}") from err

    def delete(self, entity: str, first: int | None = None, last: int | None = None, *, prefix: bool = False) -> int:
        """See `Store.delete`; all shards of a key are one aggregate."""

        async def delete() -> int:
            await self._check()
            deleted = 0
            before: Key | None = None
            async for rows in delete_rows(self._connection, self._dispatcher, entity, first, last, prefix):
                self._adder.forget(rows)
                await self._committer.forget(rows)
                for row_key in rows:
                    key, _ = parse_row_key(row_key)
                    deleted += key != before
                    before = key
            return deleted

        return self._connection.run(delete())

    def _require(self, recorded: Meta) -> None:
        example = f"bigtable://{self._spec.project}/{self._spec.instance}/NAME"
        recorded.schema.require(self._schema, str(self._spec), example)

    def settle_retention(self, retention: timedelta | None) -> timedelta | None:
        """See `Store`."""
        if retention is None and self._granularity is not None:
            with suppress(MurmurError):  # the error will show when something is merged
                if not self._checked:
                    self._connection.run(self._check())
            if self.bucket_age is not None:
                return self.bucket_age - bucket_lifetime(self._granularity, timedelta(0))
        return retention

    def close(self) -> None:
        """See `Store.close`."""
        self._connection.close()
        self._folds.close()

    # ---- reading ----

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[V | None]:
        """See `Store.get_many`; the shards of a key are combined."""
        return self._connection.run(self._get_many(keys, fresh))

    async def _get_many(self, keys: Sequence[Key], fresh: bool) -> list[V | None]:
        with self._dispatcher.patience():
            await self._check()
            wanted = {encode_row_key(key, shard): key for key in keys for shard in range(self._shards)}
            found: dict[Key, list[Value]] = {}
            for row_key, value in (await self._row_reader.read(list(wanted), fresh=fresh)).items():
                found.setdefault(wanted[row_key], []).append(value)
            return [self._live(found.get(key, [])) for key in keys]
        raise self._dispatcher.late()

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, V]]:
        """See `Store.scan`; the server sends only rows of these buckets, from several pieces of the table at once."""
        self._connection.run(self._check())
        start, end = entity_prefix(prefix) or AFTER_SCHEMA, successor(entity_prefix(prefix))
        between_us = self._between_us(first, last)
        pending, columns = wire.PENDING in self._codec.layout.families, self._codec.cells.columns

        def narrow(request: Any) -> Any:
            return wire.only_results(request, columns, pending=pending, between_us=between_us)

        rows = iter(Scan(self._connection, start, end, narrow))
        for key, shards in groupby(self._values(rows, fresh), key=lambda row: parse_row_key(row[0])[0]):
            # Buckets before 1970 share a timestamp, as do those of one millisecond.
            if (first is not None and key.bucket < first) or (last is not None and key.bucket > last):
                continue
            if (value := self._live([value for _, value in shards])) is not None:
                yield key, value

    def _values(self, rows: Iterator[Row], fresh: bool) -> Iterator[tuple[bytes, Value]]:
        """Keys and values, in the order of rows, which are read without their version and markers."""
        if not fresh:
            yield from ((row.key, self._row_reader.at_last_fold(row)) for row in rows)
            return
        while some := list(islice(rows, _ROWS_PER_UNION)):
            found = self._connection.run(self._row_reader.united(some))
            yield from ((row.key, found[row.key]) for row in some)

    def _between_us(self, first: int | None, last: int | None) -> tuple[int, int] | None:
        """The timestamps of these buckets' values, for `wire.only_results`."""
        if not self._granularity_us or (first is None and last is None):
            return None
        start_us = 0 if first is None else self._codec.start_us(first)
        end_us = 0 if last is None else self._codec.start_us(last) + 1000
        return min(start_us, _LAST_US), min(end_us, _LAST_US)

    def _live(self, shards: Sequence[Value]) -> V | None:
        """The shards of a key combined; None if there are none, or all have expired."""
        values: list[V] = [shard.value for shard in shards if shard.value is not None]
        expiries = [shard.expires_us for shard in shards if shard.value is not None]
        latest = None if None in expiries else max((e for e in expiries if e is not None), default=None)
        if not values or (latest is not None and latest <= self._clock.now() * 1e6):
            return None
        return self.monoid.total(values)

    # ---- folding ----

    def keeps_pending(self) -> bool:
        """Whether its rows may hold pending deltas; those of a table of layout 1 do not.

        Raises:
            TransientError: the table does not answer.
        """
        self._connection.run(self._check())
        return wire.PENDING in self._codec.layout.families

    def fold(
        self,
        prefix: str = "",
        *,
        min_cells: int = 1,
        report: Callable[[Folded], None] = lambda folded: None,
        due: DueRows | None = None,
    ) -> Folded:
        """Fold the pending deltas of each row once; others may append, fold and read meanwhile.

        Args:
            prefix: only rows of entities that start with it.
            min_cells: only rows with at least this many pending cells.
            report: is given the totals now and then, in another thread; an exception of it ends the fold, and no row is
                left half done.
            due: selects rows, and remembers what it has seen of the others; None: all rows.

        Raises:
            TransientError, PermanentError: not every row could be folded; what was folded stays so, and another call
                goes on from there.
        """
        if not self.keeps_pending():
            return Folded()
        start, end = entity_prefix(prefix) or AFTER_SCHEMA, successor(entity_prefix(prefix))
        return self._folds.run(lambda folder: folder.fold(start, end, min_cells, report, due))

    def fold_rows(self, rows: Sequence[bytes]) -> Folded:
        """See `FoldingStore.fold_rows`."""
        if not self.keeps_pending():
            return Folded()
        return self._folds.run(lambda folder: folder.fold_these(sorted(set(rows))))

    def oldest_pending_s(self, rows: Sequence[bytes]) -> dict[bytes, float]:
        """See `FoldingStore.oldest_pending_s`."""
        if not self.keeps_pending():
            return {}
        return self._folds.run(lambda folder: folder.oldest_pending_s(rows))

    def require_folds(self) -> None:
        """See `FoldingStore.require_folds`."""
        self._folds.check()

    def row_keys(self, keys: Sequence[Key], event_id: str | None) -> list[bytes]:
        """See `FoldingStore.row_keys`."""
        shards: Iterable[int] = range(self._shards)
        if event_id is not None:
            shards = (shard_of(fingerprint_of(event_id), self._shards),)
        return [encode_row_key(key, shard) for key in keys for shard in shards]

    def expires_s(self, row: bytes) -> float | None:
        """See `FoldingStore.expires_s`."""
        until_us = self._codec.live_until_us(parse_row_key(row)[0].bucket, None, pending=True)
        return None if until_us is None else until_us / 1e6

    # ---- writing ----

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `Store.merge_updates`; at most `BigtableSpec.max_in_flight` rows are written at once."""
        if not self._checked:
            self._connection.run(self._check_patiently())
        if self.appends:
            return self._append(updates)
        return self._connection.run(self._merge(updates))

    async def _check_patiently(self) -> None:
        deadline = self._dispatcher.deadline()
        with self._dispatcher.patience():
            await self._dispatcher.send(self._check, deadline)
            return
        raise self._dispatcher.late()

    def _append(self, updates: Sequence[Update]) -> list[Result]:
        batch, rows = batch_of(updates, self._shards, marks=not self.monoid.idempotent)
        batch.deadline = self._dispatcher.deadline()
        if self.bucket_age is not None:
            for row in rows:
                self._require_kept(self.bucket_age, row, updates)
        return self._appender.append(batch, rows)

    async def _merge(self, updates: Sequence[Update]) -> list[Result]:
        batch, rows = batch_of(updates, self._shards, marks=not self.monoid.idempotent)
        batch.deadline = self._dispatcher.deadline()
        with self._dispatcher.patience():
            try:
                await self._merge_rows(batch, rows)
            finally:
                batch.over = True
        if batch.unsettled:
            late = self._dispatcher.late()
            for row in list(batch.unsettled.values()):
                batch.fail(row, late)
        return batch.results

    async def _merge_rows(self, batch: WriteBatch, rows: list[RowUpdates]) -> None:
        if self.bucket_age is not None:
            for row in rows:
                self._require_kept(self.bucket_age, row, batch.updates)
        adds: list[RowUpdates] = []
        if self._codec.sums:
            adds = [row for row in rows if not batch.marked(row)]
            rows = [row for row in rows if batch.marked(row)] if adds else rows
        commits = list(split_oversized(rows))
        batch.begin([*adds, *commits])
        if adds:
            await self._adder.add(adds, batch)
        if commits:
            await self._committer.merge(commits, batch)

    def _require_kept(self, bucket_age: timedelta, row: RowUpdates, updates: Sequence[Update]) -> None:
        """Check what could not be checked if the table did not answer when the pipeline was built.

        Raises:
            SchemaMismatch: garbage collection would take the bucket while it still receives events.
        """
        ttl = updates[row.positions[-1]].ttl
        if ttl is not None:
            start = timedelta(microseconds=row.bucket * self._granularity_us)
            needed = timedelta(seconds=self._clock.now()) + min(ttl, _LONG) - start + timedelta(seconds=GRACE_S)
            if needed <= bucket_age + timedelta(microseconds=EXPIRY_SLACK_US):
                return
        raise SchemaMismatch(
            f"{self._spec} keeps its buckets for {bucket_age}, but the window has a longer retention, or none; use the "
            "retention that the table was made for, or give it another with murmur create-table"
        )
