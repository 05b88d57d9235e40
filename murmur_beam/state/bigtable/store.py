"""The store: a table, opened; what is read of it, and how a flush is shared out."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import groupby, islice
from typing import Any, Generic, TypeVar

import grpc

from murmur_beam.durations import format_duration
from murmur_beam.errors import MurmurError, PermanentError, SchemaMismatch, StoreUnavailable, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import GRACE_S, Result, Schema, bucket_lifetime, single_outcome
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.appends import Appends
from murmur_beam.state.bigtable.cells import EXPIRY_SLACK_US, Cells, Value
from murmur_beam.state.bigtable.commits import Commits
from murmur_beam.state.bigtable.connection import status_of
from murmur_beam.state.bigtable.deleting import delete_rows
from murmur_beam.state.bigtable.folding import Folded, Folder
from murmur_beam.state.bigtable.groups import Flush, Group, flush_of, pieces
from murmur_beam.state.bigtable.keys import AFTER_SCHEMA, entity_prefix, parse_row_key, row_key, successor
from murmur_beam.state.bigtable.meta import APPEND, Meta, name_field, read_meta, write_meta
from murmur_beam.state.bigtable.reading import Row
from murmur_beam.state.bigtable.scanning import Scan
from murmur_beam.state.bigtable.sending import Sender
from murmur_beam.state.bigtable.settings import Settings
from murmur_beam.state.bigtable.sums import Sums
from murmur_beam.state.bigtable.worth import Worth

V = TypeVar("V")

_log = logging.getLogger(__name__)

_ROWS_PER_UNION = 256
_MICROSECOND = timedelta(microseconds=1)
_LAST_US = (2**63 - 1) // 1000 * 1000
_LONG = timedelta(days=1_000_000)


class BigtableStore(Generic[V]):
    """One table.

    Args:
        spec: which.
        monoid: how to fold.
        granularity: length of a bucket: cells of a bucket carry its start as timestamp, so that garbage collection by
            age takes whole buckets.
    """

    waits_for_network = True

    def __init__(self, spec: Settings, monoid: Monoid[V], granularity: timedelta | None) -> None:
        self.monoid = monoid
        self.bucket_age: timedelta | None = None
        self.marker_age: timedelta | None = None
        self.appends = False
        self._spec = spec
        self._clock = spec.clock
        self._schema = Schema.of(monoid, granularity)
        self._granularity = granularity
        self._granularity_us = 0 if granularity is None else granularity // _MICROSECOND
        self._checked = False
        self._shards = 1
        self._cells = Cells(monoid, self._granularity_us, spec.clock)
        self._connection = spec.connect()
        self._sender = Sender(spec)
        self._commits = Commits(spec, self._connection, self._sender, self._cells)
        self._sums = Sums(spec, self._connection, self._sender, self._cells)
        self._worth = Worth(spec, self._connection, self._cells)
        self._appends = Appends(spec, self._connection, self._sender, self._cells)
        try:
            self._connection.run(self._check())
        except TransientError as err:
            _log.warning("%s; going on, until it answers nothing can be merged", err)
        except BaseException as err:
            self.close()
            if isinstance(err, StoreUnavailable) and status_of(err.__cause__) is grpc.StatusCode.NOT_FOUND:
                window = [] if granularity is None else ["--window", format_duration(granularity)]
                run = shlex.join(["murmur", "create-table", str(spec), "--monoid", monoid.name, *window])
                raise StoreUnavailable(f"{err}; make the table with: {run}") from err
            if isinstance(err, PermanentError) and not isinstance(err, (SchemaMismatch, StoreUnavailable)):
                # What is wrong with this request is wrong with all, such as an app profile without transactions.
                raise StoreUnavailable(f"{err}; see: murmur check '{spec}'") from err
            raise

    async def _check(self) -> None:
        """Record what the table is for, or check that it is for that; until the server has answered once.

        Raises:
            SchemaMismatch, StoreUnavailable: it is for something else, or was not made for us.
        """
        if self._checked:
            return
        shards = self._spec.shards
        recorded = await read_meta(self._connection)
        if recorded is None:
            # Two that do this at once are no matter: one of them writes, and both read what it wrote.
            await write_meta(self._connection, Meta(self._schema, shards=shards or 1))
            recorded = await read_meta(self._connection)
        if recorded is None:
            raise StoreUnavailable(f"{self._spec}: its schema was deleted while it was opened")
        self._require(recorded)
        if recorded.schema.names(self._schema):
            await name_field(self._connection, recorded.layout, str(self._schema.field))
            self._require(await read_meta(self._connection) or recorded)
        if shards not in (None, recorded.shards):
            raise SchemaMismatch(
                f"{self._spec} was made with shards={recorded.shards}, but was opened with shards={shards}: events "
                "would count twice; leave it out, or use another table"
            )
        self._shards = recorded.shards
        self.bucket_age, self.marker_age = recorded.bucket_age, recorded.marker_age
        self.appends = recorded.write == APPEND
        self._cells.layout = recorded.layout
        if recorded.bucket_age is not None and recorded.layout.number > 1:
            self._cells.bucket_age_us = recorded.bucket_age // _MICROSECOND
        self._cells.appended = self.appends
        self._checked = True

    def delete(self, entity: str, first: int | None = None, last: int | None = None, *, prefix: bool = False) -> int:
        """See `Store.delete`; all shards of a key are one aggregate."""

        async def delete() -> int:
            await self._check()
            deleted = 0
            before: Key | None = None
            async for rows in delete_rows(self._connection, self._sender, entity, first, last, prefix):
                self._sums.forget(rows)
                await self._commits.forget(rows)
                for encoded in rows:
                    key, _ = parse_row_key(encoded)
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
            with suppress(MurmurError):  # what it is shows when something is merged
                if not self._checked:
                    self._connection.run(self._check())
            if self.bucket_age is not None:
                return self.bucket_age - bucket_lifetime(self._granularity, timedelta(0))
        return retention

    def close(self) -> None:
        """See `Store.close`."""
        self._connection.close()

    # ---- reading ----

    def get(self, key: Key, *, fresh: bool = True) -> V | None:
        """See `Store.get`."""
        return self.get_many([key], fresh=fresh)[0]

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[V | None]:
        """See `Store.get_many`; the shards of a key are combined."""
        return self._connection.run(self._get_many(keys, fresh))

    async def _get_many(self, keys: Sequence[Key], fresh: bool) -> list[V | None]:
        with self._sender.patience():
            await self._check()
            wanted = {row_key(key, shard): key for key in keys for shard in range(self._shards)}
            found: dict[Key, list[Value]] = {}
            for encoded, value in (await self._worth.read(list(wanted), fresh=fresh)).items():
                found.setdefault(wanted[encoded], []).append(value)
            return [self._live(found.get(key, [])) for key in keys]
        raise self._sender.late()

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, V]]:
        """See `Store.scan`; the server sends only rows of these buckets, from several pieces of the table at once."""
        self._connection.run(self._check())
        start, end = entity_prefix(prefix) or AFTER_SCHEMA, successor(entity_prefix(prefix))
        family = wire.AGG if self._cells.sums else wire.STATE
        between_us = self._between_us(first, last)
        pending = wire.PENDING in self._cells.layout.families

        def narrow(request: Any) -> Any:
            return wire.only_results(request, family, pending=pending, between_us=between_us)

        rows = iter(Scan(self._connection, start, end, narrow))
        for key, shards in groupby(self._values(rows, fresh), key=lambda row: parse_row_key(row[0])[0]):
            # Buckets before 1970 share a timestamp, as do those of one millisecond.
            if (first is not None and key.bucket < first) or (last is not None and key.bucket > last):
                continue
            if (value := self._live([value for _, value in shards])) is not None:
                yield key, value

    def _values(self, rows: Iterator[Row], fresh: bool) -> Iterator[tuple[bytes, Value]]:
        """Keys and values, in their order; a scan's rows come without their version and markers."""
        if not fresh:
            yield from ((row.key, self._worth.at_last_fold(row)) for row in rows)
            return
        while some := list(islice(rows, _ROWS_PER_UNION)):
            found = self._connection.run(self._worth.of(some))
            yield from ((row.key, found[row.key]) for row in some)

    def _between_us(self, first: int | None, last: int | None) -> tuple[int, int] | None:
        """Which timestamps the values of these buckets have, for `wire.only_results`."""
        if not self._granularity_us or (first is None and last is None):
            return None
        start_us = 0 if first is None else self._cells.start_us(first)
        end_us = 0 if last is None else self._cells.start_us(last) + 1000
        return min(start_us, _LAST_US), min(end_us, _LAST_US)

    def _live(self, shards: Sequence[Value]) -> V | None:
        """The shards of a key combined; None where there are none, or the last to expire has done so."""
        values: list[V] = [shard.value for shard in shards if shard.value is not None]
        expiries = [shard.expires_us for shard in shards if shard.value is not None]
        latest = None if None in expiries else max((e for e in expiries if e is not None), default=None)
        if not values or (latest is not None and latest <= self._clock.now() * 1e6):
            return None
        return self.monoid.total(values)

    # ---- folding ----

    def keeps_pending(self) -> bool:
        """Can its rows hold what is yet to be folded? Those of a table of layout 1 cannot.

        Raises:
            TransientError: the table does not answer.
        """
        self._connection.run(self._check())
        return wire.PENDING in self._cells.layout.families

    def fold(self, prefix: str = "", *, least: int = 1, tell: Callable[[Folded], None] = lambda folded: None) -> Folded:
        """Bring what is pending into the aggregates, once for each row; others may append, fold and read meanwhile.

        Args:
            prefix: only of entities that start with it.
            least: only in rows with so many pending cells.
            tell: is told now and then how far it is, in another thread. What it raises ends the fold, with no row half
                done.

        Returns:
            What was done.

        Raises:
            TransientError, PermanentError: not all could be done; what was folded stays so, and again, it goes on.
        """
        if not self.keeps_pending():
            return Folded()
        start, end = entity_prefix(prefix) or AFTER_SCHEMA, successor(entity_prefix(prefix))
        folder = Folder(self._spec, self._connection, self._sender, self._cells, self._commits)
        return self._connection.run(folder.fold(start, end, least, tell))

    # ---- writing ----

    def merge_update(self, key: Key, delta: V, *, ttl: timedelta | None = None, event_id: str | None = None) -> Outcome:
        """See `Store.merge_update`."""
        return single_outcome(self.merge_updates([Update(key, delta, event_id, ttl)]))

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `Store.merge_updates`; rows are written at the same time, at most `Settings.max_in_flight`."""
        if not self._checked:
            self._connection.run(self._check_patiently())
        if self.appends:
            return self._append(updates)
        return self._connection.run(self._merge(updates))

    async def _check_patiently(self) -> None:
        deadline = self._sender.deadline()
        with self._sender.patience():
            await self._sender.send(self._check, deadline)
            return
        raise self._sender.late()

    def _append(self, updates: Sequence[Update]) -> list[Result]:
        flush, groups = flush_of(updates, self._shards, marks=not self.monoid.idempotent)
        flush.deadline = self._sender.deadline()
        if self.bucket_age is not None:
            for group in groups:
                self._require_kept(self.bucket_age, group, updates)
        return self._appends.append(flush, groups)

    async def _merge(self, updates: Sequence[Update]) -> list[Result]:
        flush, groups = flush_of(updates, self._shards, marks=not self.monoid.idempotent)
        flush.deadline = self._sender.deadline()
        with self._sender.patience():
            try:
                await self._merge_groups(flush, groups)
            finally:
                flush.over = True
        if flush.unsettled:
            late = self._sender.late()
            for group in list(flush.unsettled.values()):
                flush.fail(group, late)
        return flush.results

    async def _merge_groups(self, flush: Flush, groups: list[Group]) -> None:
        if self.bucket_age is not None:
            for group in groups:
                self._require_kept(self.bucket_age, group, flush.updates)
        adds: list[Group] = []
        if self._cells.sums:
            adds = [group for group in groups if not flush.marked(group)]
            groups = [group for group in groups if flush.marked(group)] if adds else groups
        commits = list(pieces(groups))
        flush.begin([*adds, *commits])
        if adds:
            await self._sums.add(adds, flush)
        if commits:
            await self._commits.merge(commits, flush)

    def _require_kept(self, bucket_age: timedelta, group: Group, updates: Sequence[Update]) -> None:
        """A pipeline that was built while the table could not be asked is found out here.

        Raises:
            SchemaMismatch: garbage collection would take the bucket while it still receives events.
        """
        ttl = updates[group.positions[-1]].ttl
        if ttl is not None:
            start = timedelta(microseconds=group.bucket * self._granularity_us)
            needed = timedelta(seconds=self._clock.now()) + min(ttl, _LONG) - start + timedelta(seconds=GRACE_S)
            if needed <= bucket_age + timedelta(microseconds=EXPIRY_SLACK_US):
                return
        raise SchemaMismatch(
            f"{self._spec} keeps its buckets for {bucket_age}, but the window has a longer retention, or none; use the "
            "retention that the table was made for, or give it another with murmur create-table"
        )
