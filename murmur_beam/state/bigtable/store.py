"""The protocol: every commit is on condition that the row is still at the version that is known.

A commit says: if the version is still what I know, add the delta, add one to the version and note these events. If
somebody else has committed meanwhile, nothing happens; then the row is read, and what is new to it tried again. A
commit whose answer got lost is settled by reading the row as well: its column is there, or it is not. One that is still
on its way can do no harm: the next one has the same condition, so that only one of the two can come true.

Without event ids a sum needs none of this: its deltas are added, many rows a request, each at least once.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import shlex
import struct
from collections import OrderedDict
from collections.abc import Callable, Container, Coroutine, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypeVar

import grpc

from murmur_beam.durations import format_duration
from murmur_beam.errors import InvalidRecord, PermanentError, SchemaMismatch, StoreUnavailable, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.retry import ceiling_s
from murmur_beam.state.base import GRACE_S, Flushed, Result, Schema, fingerprint, fold_row, only, unreadable
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import status_of
from murmur_beam.state.bigtable.keys import AFTER_SCHEMA, entity_prefix, parse_row_key, row_key, successor
from murmur_beam.state.bigtable.known import KnownRow, KnownRows, split
from murmur_beam.state.bigtable.meta import Meta, read_meta, write_meta
from murmur_beam.state.bigtable.reading import Row
from murmur_beam.state.bigtable.settings import Settings

V = TypeVar("V")
T = TypeVar("T")

_log = logging.getLogger(__name__)

MAX_VALUE_BYTES = 100 * 2**20
"""Bigtable's limit of a cell."""
MAX_MUTATIONS = 100_000
"""Bigtable's limit of a request."""
WARN_ROW_BYTES = 50 * 2**20
"""Rows work best below 100 MB; past this size somebody should know."""

_MICROSECOND = timedelta(microseconds=1)
_EXPIRY_SLACK_US = 60_000_000
_LONG = timedelta(days=1_000_000)
_FOREVER_US = 2**62 // 1000 * 1000
_BACKOFF = timedelta(milliseconds=50), timedelta(seconds=5)
_ROWS_PER_READ = 1_000
_COLD_ROWS_PER_READ = 64
_MUTATIONS_PER_SUM = 3
_EVENTS_PER_COMMIT = 50_000
_PACKS = b"p"
_SURE = 8
# Of so many commits in a row without an answer, during an outage, it is found out that they were ours. Events of others
# that happened all the same are told to be duplicates.
_MAX_SENT = 32


class _Shard(NamedTuple):
    """What a read of one row says."""

    value: Any
    expires_us: int | None


class _Plan(NamedTuple):
    """What a commit would do, if the row is still at the version it was made for."""

    results: list[Result]
    claimed: dict[str, bytes]
    column: Any
    expires_us: int | None
    writes: bool


class _Group(NamedTuple):
    """The updates of one row in a flush."""

    encoded: bytes
    bucket: int
    positions: list[int]
    updates: list[Update]


class BigtableStore(Generic[V]):
    """One table.

    Args:
        spec: which.
        monoid: how to fold.
        granularity: length of a bucket: cells of a bucket carry its start as timestamp, so that garbage collection by
            age takes whole buckets.
    """

    def __init__(self, spec: Settings, monoid: Monoid[V], granularity: timedelta | None) -> None:
        self.monoid = monoid
        self.bucket_age: timedelta | None = None
        self.marker_age: timedelta | None = None
        self._spec = spec
        self._clock = spec.clock
        self._schema = Schema(monoid.name, granularity)
        self._granularity_us = 0 if granularity is None else granularity // _MICROSECOND
        self._sums = monoid.native == "sum"
        self._rows = KnownRows(spec.max_known_events)
        self._totals: OrderedDict[bytes, _Shard] = OrderedDict()
        self._commits = 0
        self._writer = os.urandom(8)
        self._chance = random.Random()
        self._warned: set[bytes] = set()
        # Have rows that nothing is known of turned out to exist lately? From -_SURE, never, to _SURE, always.
        self._cold = -1
        self._checked = False
        self._shards = 1
        self._in_flight = asyncio.Semaphore(spec.max_in_flight)
        self._connection = spec.connect()
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
        recorded.schema.require(self._schema, str(self._spec))
        if shards not in (None, recorded.shards):
            raise SchemaMismatch(
                f"{self._spec} was made with shards={recorded.shards}, but was opened with shards={shards}: events "
                "would count twice; leave it out, or use another table"
            )
        self._shards = recorded.shards
        self.bucket_age, self.marker_age = recorded.bucket_age, recorded.marker_age
        self._checked = True

    def close(self) -> None:
        """See `Store.close`."""
        self._connection.close()

    # ---- reading ----

    def get(self, key: Key) -> V | None:
        """See `Store.get`."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[Key]) -> list[V | None]:
        """See `Store.get_many`; the shards of a key are combined."""
        self._connection.run(self._check())
        shards = range(self._shards)
        wanted = {row_key(key, shard): key for key in keys for shard in shards}
        found: dict[Key, list[_Shard]] = {}
        encoded = list(wanted)
        for start in range(0, len(encoded), _ROWS_PER_READ):
            request = wire.read_rows(self._connection, encoded[start : start + _ROWS_PER_READ])
            for row in self._connection.run(self._connection.read(wire.only_values(request))):
                found.setdefault(wanted[row.key], []).append(self._shard(row))
        return [self._live(found.get(key, [])) for key in keys]

    def scan(self, prefix: str = "", first: int | None = None, last: int | None = None) -> Iterator[tuple[Key, V]]:
        """See `Store.scan`."""
        self._connection.run(self._check())
        start = entity_prefix(prefix) or AFTER_SCHEMA
        current: Key | None = None
        shards: list[_Shard] = []
        for row in self._pages(start, successor(entity_prefix(prefix))):
            key, _ = parse_row_key(row.key)
            if (first is not None and key.bucket < first) or (last is not None and key.bucket > last):
                continue
            if key != current:
                if current is not None and (value := self._live(shards)) is not None:
                    yield current, value
                current, shards = key, []
            shards.append(self._shard(row))
        if current is not None and (value := self._live(shards)) is not None:
            yield current, value

    def _pages(self, start: bytes, end: bytes | None) -> Iterator[Row]:
        while True:
            request = wire.read_range(self._connection, start, end, _ROWS_PER_READ)
            page = self._connection.run(self._connection.read(wire.only_values(request)))
            yield from page
            if len(page) < _ROWS_PER_READ:
                return
            start = page[-1].key + b"\x00"

    def _shard(self, row: Row) -> _Shard:
        value: Any = None
        expires_us: int | None = None
        for cell in row.cells:
            if cell.qualifier == wire.EXPIRY:
                expires_us = _expiry(cell.at_us)
            elif cell.qualifier == wire.VALUE:
                value = self._decoded(row.key, cell.value)
        return _Shard(value, expires_us)

    def _live(self, shards: Sequence[_Shard]) -> V | None:
        """The shards of a key combined; None where there are none, or the last to expire has done so."""
        values: list[V] = [shard.value for shard in shards if shard.value is not None]
        expiries = [shard.expires_us for shard in shards if shard.value is not None]
        latest = None if None in expiries else max((e for e in expiries if e is not None), default=None)
        if not values or (latest is not None and latest <= self._clock.now() * 1e6):
            return None
        return self.monoid.fold(values)

    # ---- writing ----

    def merge_update(self, key: Key, delta: V, *, ttl: timedelta | None = None, event_id: str | None = None) -> Outcome:
        """See `Store.merge_update`."""
        return only(self.merge_updates([Update(key, delta, event_id, ttl)]))

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `Store.merge_updates`; rows are written at the same time, at most `Settings.max_in_flight`."""
        return self._connection.run(self._merge(updates))

    async def _merge(self, updates: Sequence[Update]) -> list[Result]:
        await self._check()
        flushed = Flushed([Outcome.MERGED] * len(updates))
        fingerprints: dict[str, bytes] = {}
        groups = self._grouped(updates, fingerprints, flushed)
        adds = [group for group in groups if self._sums and all(update.event_id is None for update in group.updates)]
        if adds:
            await self._add(adds, flushed)
            groups = [group for group in groups if any(update.event_id is not None for update in group.updates)]
        if groups:
            flushed.sizes = {"row_bytes": 0, "journal_bytes": 0}
        # Where rows turn out to exist they are read many at a time, not each when its first commit has failed. The
        # first few rows show how it is.
        done = 0
        while done < len(groups):
            some = groups[done:] if self._cold == -_SURE else groups[done : done + _COLD_ROWS_PER_READ]
            done += len(some)
            if self._cold < 0:
                await self._settle_all(some, fingerprints, flushed)
                continue
            rows = [self._rows.borrow(group.encoded) for group in some]
            try:
                await self._read_cold(some, flushed)
                await self._settle_all(some, fingerprints, flushed)
            finally:
                for row in rows:
                    self._rows.give_back(row)
        return flushed

    async def _settle_all(self, groups: Sequence[_Group], fingerprints: dict[str, bytes], flushed: Flushed) -> None:
        queue = iter(groups)

        async def work() -> None:
            for group in queue:
                async with self._in_flight:
                    await self._settle(group, fingerprints, flushed)

        await asyncio.gather(*(work() for _ in range(min(len(groups), self._spec.max_in_flight))))

    def _grouped(self, updates: Sequence[Update], fingerprints: dict[str, bytes], flushed: Flushed) -> list[_Group]:
        """The updates row by row; those whose key makes no row get their result."""
        shards = self._shards
        by_row: dict[tuple[Key, int], list[int]] = {}
        for i, update in enumerate(updates):
            event_id = update.event_id
            shard = 0
            if event_id is not None:
                print_ = fingerprints.get(event_id)
                if print_ is None:
                    print_ = fingerprints[event_id] = fingerprint(event_id)
                shard = print_[0] % shards
            row = (update.key, shard)
            if row in by_row:
                by_row[row].append(i)
            else:
                by_row[row] = [i]
        groups = []
        for (key, shard), positions in by_row.items():
            if self.bucket_age is not None:
                self._require_kept(self.bucket_age, key.bucket, updates[positions[-1]].ttl)
            try:
                encoded = row_key(key, shard)
            except InvalidRecord as err:
                flushed.put(positions, [err] * len(positions))
            else:
                groups.append(_Group(encoded, key.bucket, positions, [updates[i] for i in positions]))
        return groups

    def _require_kept(self, bucket_age: timedelta, bucket: int, ttl: timedelta | None) -> None:
        """A pipeline that was built while the table could not be asked is found out here.

        Raises:
            SchemaMismatch: garbage collection would take the bucket while it still receives events.
        """
        if ttl is not None:
            start = timedelta(microseconds=bucket * self._granularity_us)
            needed = timedelta(seconds=self._clock.now()) + min(ttl, _LONG) - start + timedelta(seconds=GRACE_S)
            if needed <= bucket_age + timedelta(microseconds=_EXPIRY_SLACK_US):
                return
        raise SchemaMismatch(
            f"{self._spec} keeps its buckets for {bucket_age}, but the window has a longer retention, or none; use the "
            "retention that the table was made for, or give it another with murmur create-table"
        )

    async def _settle(self, group: _Group, fingerprints: dict[str, bytes], flushed: Flushed) -> None:
        """Merge one row's updates; what becomes of them goes to ``flushed``."""
        for start in range(0, len(group.updates), _EVENTS_PER_COMMIT):
            positions, updates = group.positions, group.updates
            if len(updates) > _EVENTS_PER_COMMIT:
                positions = positions[start : start + _EVENTS_PER_COMMIT]
                updates = updates[start : start + _EVENTS_PER_COMMIT]
            try:
                results = await self._merge_row(group, updates, fingerprints, flushed)
            except Exception as err:
                results = [self._connection.translated(err)] * len(positions)
            flushed.put(positions, results)

    async def _merge_row(
        self, group: _Group, updates: Sequence[Update], fingerprints: dict[str, bytes], flushed: Flushed
    ) -> Sequence[Result]:
        encoded = group.encoded
        row = self._rows.borrow(encoded)
        try:
            assert row.lock is not None
            async with row.lock:
                deadline = self._clock.monotonic() + self._spec.patience_s
                verified = False
                while True:
                    plan = self._plan(row, updates, fingerprints)
                    if not plan.writes:
                        if verified or not any(isinstance(result, Exception) for result in plan.results):
                            break
                        # Nothing will be written that could fail if the row has changed: so look.
                        await self._refresh(group, row, flushed)
                        verified = True
                    elif await self._commit(group, row, plan, deadline, flushed):
                        break
                    elif self._clock.monotonic() >= deadline:
                        raise TransientError(
                            f"{self._spec}: {_named(encoded)} was written by others for {self._spec.patience_s} s; "
                            "spread its events with shards=N"
                        )
                self._measure(group, row, flushed)
                return self._told(row, updates, plan, fingerprints)
        finally:
            self._rows.give_back(row)

    async def _commit(self, group: _Group, row: KnownRow, plan: _Plan, deadline: float, flushed: Flushed) -> bool:
        """Try to write; False if the row was not as it was known, and now is."""
        version, guessed = row.version, not row.read
        self._commits += 1
        # A row begins anywhere: one that was deleted and made anew is never at a version that it had before.
        step = self._chance.randint(1, 2**40) if version == 0 else 1
        marker = struct.pack(">Q", version + step) + self._writer + struct.pack(">Q", self._commits)
        packed = row.to_pack() if plan.claimed else []
        if packed:
            marker += _PACKS
        request = self._request(group, row, step, marker, packed, plan)
        try:
            met = await self._send(lambda: self._connection.commit(request), deadline)
        except BaseException as err:
            if isinstance(err, Exception) and isinstance(self._connection.translated(err), PermanentError):
                row.forget()
                raise
            # It may have happened, or may yet happen: the row will know.
            row.sent = row.sent or {}
            row.sent[marker] = version, b"".join(plan.claimed.values())
            if len(row.sent) > _MAX_SENT:
                del row.sent[next(iter(row.sent))]
            if not isinstance(err, Exception):
                raise
            await self._refresh(group, row, flushed)
            if row.version == version:
                raise
            return False
        committed = met == (version > 0)
        if guessed:
            self._cold = max(self._cold - 1, -_SURE) if committed else min(self._cold + 1, _SURE)
        if committed:
            self._apply(row, version + step, marker, packed, plan, flushed)
        else:
            await self._refresh(group, row, flushed)
        return committed

    async def _send(self, call: Callable[[], Coroutine[Any, Any, T]], deadline: float) -> T:
        """Call, and again for as long as the server says that it has too much to do."""
        attempt = 0
        while True:
            try:
                return await call()
            except Exception as err:
                if status_of(err) is not grpc.StatusCode.RESOURCE_EXHAUSTED or self._clock.monotonic() >= deadline:
                    raise
            attempt += 1
            # Waiting here keeps a place of those in flight: so the whole store slows down.
            await self._clock.sleep(self._clock.uniform(0.0, ceiling_s(attempt, *_BACKOFF)))

    def _plan(self, row: KnownRow, updates: Sequence[Update], fingerprints: dict[str, bytes]) -> _Plan:
        claimed: dict[str, bytes] = {}

        def claim(event_id: str) -> bool:
            if event_id in claimed or row.has(fingerprints[event_id]):
                return False
            claimed[event_id] = fingerprints[event_id]
            return True

        column, results = fold_row(self.monoid, row.value, updates, claim, claimed.pop, self._encoded)
        if not self._sums and len(column) > MAX_VALUE_BYTES:
            error = PermanentError(
                f"value: the {self.monoid.name} would take {len(column):,} bytes, "
                f"at most {MAX_VALUE_BYTES:,} are allowed"
            )
            results = [error if result is Outcome.MERGED else result for result in results]
            return _Plan(results, {}, row.column, row.expires_us, False)
        expires_us = self._expires_us(row.version > 0, row.expires_us, updates[-1].ttl)
        changes = column != row.column or expires_us != row.expires_us
        return _Plan(results, claimed, column, expires_us, bool(claimed) or (changes and Outcome.MERGED in results))

    def _expires_us(self, exists: bool, known_us: int | None, ttl: timedelta | None) -> int | None:
        """When a row expires, never earlier than it would; None: never."""
        expires_us = None
        if ttl is not None:
            expires_us = int((self._clock.now() + ttl.total_seconds()) * 1000) * 1000
        if expires_us is None or expires_us >= _FOREVER_US or (exists and known_us is None):
            return None
        # All flushes of a bucket mean the same time, but for their clocks.
        if known_us is not None and expires_us - known_us < _EXPIRY_SLACK_US:
            return known_us
        return expires_us

    def _request(self, group: _Group, row: KnownRow, step: int, marker: bytes, packed: list[bytes], plan: _Plan) -> Any:
        request = wire.Commit(
            table_name=self._connection.name, app_profile_id=self._connection.app_profile, row_key=group.encoded
        )
        mutations = wire.require_version(request, row.version)
        at_us = self._start_us(group.bucket)
        wire.add(mutations, wire.VERSION, at_us, step)
        self._write(mutations, at_us, row.column, plan.column, row.expires_us, plan.expires_us)
        if plan.claimed:
            now_us = int(self._clock.now() * 1000) * 1000
            wire.put(mutations, wire.DEDUP, marker, max(now_us, at_us), b"".join(plan.claimed.values()))
            for column in packed:
                wire.clear_column(mutations, wire.DEDUP, column)
            if packed:
                journal = b"".join([row.loose[column] for column in packed])
                wire.put(mutations, wire.DEDUP, packed[-1], max(now_us, at_us), journal)
        return request

    def _write(
        self, mutations: Any, at_us: int, before: Any, after: Any, expired_us: int | None, expires_us: int | None
    ) -> None:
        """Change the value, and the expiry where that is another one."""
        if self._sums:
            wire.add(mutations, wire.VALUE, at_us, after - (before or 0))
        elif after != before:
            wire.put(mutations, wire.STATE, wire.VALUE, at_us, after)
        if expires_us != expired_us:
            # As a timestamp: the newest cell is what is read, so that the latest expiry holds, whoever writes last.
            wire.put(mutations, wire.STATE, wire.EXPIRY, _FOREVER_US if expires_us is None else expires_us, b"")

    def _start_us(self, bucket: int) -> int:
        return max(0, bucket * self._granularity_us) // 1000 * 1000

    async def _refresh(self, group: _Group, row: KnownRow, flushed: Flushed) -> None:
        """Bring what is known of a row up to date.

        Raises:
            Exception: it cannot be read; what is known stays as it was.
        """
        deadline = self._clock.monotonic() + self._spec.patience_s
        while True:
            query = wire.only_news(wire.read_rows(self._connection, [group.encoded]), row.version)
            found = await self._send(functools.partial(self._connection.read, query, persist=False), deadline)
            flushed.counts["rows_read"] += 1
            if self._take(row, group.encoded, found[0] if found else None, flushed):
                return

    async def _read_cold(self, groups: Sequence[_Group], flushed: Flushed) -> None:
        """Read the rows of which nothing is known, in one request."""
        cold = {group.encoded: row for group in groups if not (row := self._rows[group.encoded]).read}
        if not cold:
            return
        try:
            found = await self._connection.read(
                wire.only_news(wire.read_rows(self._connection, list(cold)), 0), persist=False
            )
        except Exception:
            # Each row will be tried, and read, on its own; what is wrong shows there.
            return
        by_key = {row.key: row for row in found}
        flushed.counts["rows_read"] += len(cold)
        for encoded, row in cold.items():
            self._cold = min(self._cold + 1, _SURE) if encoded in by_key else max(self._cold - 1, -_SURE)
            # Another flush may know more by now.
            if not row.read and row.users == 1:
                # One that cannot be decoded is read again on its own, and its updates are told what is wrong.
                with suppress(PermanentError):
                    self._take(row, encoded, by_key.get(encoded), flushed)

    def _take(self, row: KnownRow, encoded: bytes, found: Row | None, flushed: Flushed) -> bool:
        """Learn what a read with `wire.only_news` of the known version found; False if all of the row must be read."""
        version, value, column, expires_us = 0, None, None, None
        columns: list[tuple[bytes, bytes]] = []
        for cell in found.cells if found is not None else ():
            if cell.family == wire.DEDUP:
                columns.append((cell.qualifier, cell.value))
            elif cell.qualifier == wire.VERSION:
                version = _int64(cell.value)
            elif cell.qualifier == wire.EXPIRY:
                expires_us = _expiry(cell.at_us)
            else:
                value = self._decoded(encoded, cell.value)
                column = value if self._sums else cell.value
        # A column for each commit since: else the row was made anew, or some have been packed away. Commits without
        # events leave no column, so this may be a false alarm; reading all of the row settles it.
        known = version > row.version and version - row.version == len(columns)
        if row.events and version != row.version and not known:
            row.forget()
            if found is not None:
                return False
        if any(marker.endswith(_PACKS) for marker, _ in columns):
            # Somebody has packed columns, and those that were known may be among them.
            row.loose.clear()
        row.read = True
        row.version, row.value, row.column, row.expires_us = version, value, column, expires_us
        for marker, journal in columns:
            row.learn(marker, journal)
        self._resolve(row, {marker for marker, _ in columns}, flushed)
        return True

    def _apply(
        self, row: KnownRow, version: int, marker: bytes, packed: list[bytes], plan: _Plan, flushed: Flushed
    ) -> None:
        """Learn what was just committed."""
        row.version = version
        row.read = True
        if packed:
            row.pack(packed)
        if plan.claimed:
            row.learn(marker, b"".join(plan.claimed.values()))
        row.value = plan.column if self._sums else self.monoid.decode(plan.column)
        row.column, row.expires_us = plan.column, plan.expires_us
        self._resolve(row, (), flushed)

    def _resolve(self, row: KnownRow, found: Container[bytes], flushed: Flushed) -> None:
        """Settle what was sent without an answer: once the row has another version it has happened, or never will."""
        sent = row.sent or {}
        for marker, (version, journal) in list(sent.items()):
            if version != row.version:
                del sent[marker]
                flushed.counts["ambiguous_resolved"] += 1
                if marker in found:
                    row.owed = (row.owed or set()).union(split(journal))

    @staticmethod
    def _told(
        row: KnownRow, updates: Sequence[Update], plan: _Plan, fingerprints: dict[str, bytes]
    ) -> Sequence[Result]:
        """The results; an event that a write of ours without an answer brought in was merged, and is no duplicate."""
        if not row.owed:
            return plan.results
        results = list(plan.results)
        for i, update in enumerate(updates):
            if update.event_id is not None and results[i] is Outcome.DUPLICATE:
                print_ = fingerprints[update.event_id]
                if print_ in row.owed:
                    row.owed.discard(print_)
                    results[i] = Outcome.MERGED
        return results

    # ---- sums without dedup ----

    async def _add(self, groups: Sequence[_Group], flushed: Flushed) -> None:
        """Add to sums, many rows a request. A request whose answer is lost is tried again, and may count twice."""
        limit = min(_ROWS_PER_READ, MAX_MUTATIONS // _MUTATIONS_PER_SUM)
        some = [groups[start : start + limit] for start in range(0, len(groups), limit)]
        await asyncio.gather(*(self._add_some(chunk, flushed) for chunk in some))

    async def _add_some(self, groups: Sequence[_Group], flushed: Flushed) -> None:
        async with self._in_flight:
            try:
                await self._read_totals([group.encoded for group in groups])
                await self._add_to(groups, flushed)
            except Exception as err:
                error = self._connection.translated(err)
                for group in groups:
                    flushed.put(group.positions, [error] * len(group.positions))

    async def _add_to(self, groups: Sequence[_Group], flushed: Flushed) -> None:
        request = wire.Bulk(table_name=self._connection.name, app_profile_id=self._connection.app_profile)
        planned: list[tuple[_Group, _Shard, list[Result]]] = []
        for group in groups:
            before = self._totals[group.encoded]
            column, results = fold_row(
                self.monoid, before.value, group.updates, lambda _: True, lambda _: None, self._encoded
            )
            flushed.put(group.positions, results)
            if Outcome.MERGED in results:
                expires_us = self._expires_us(before.value is not None, before.expires_us, group.updates[-1].ttl)
                entry = request.entries.add()
                entry.row_key = group.encoded
                at_us = self._start_us(group.bucket)
                wire.add(entry.mutations, wire.VERSION, at_us, 1)
                self._write(entry.mutations, at_us, before.value, column, before.expires_us, expires_us)
                planned.append((group, _Shard(column, expires_us), results))
        if not planned:
            return
        deadline = self._clock.monotonic() + self._spec.patience_s
        failed = await self._send(lambda: self._connection.mutate(request), deadline)
        for i, (group, total, results) in enumerate(planned):
            if i in failed:
                flushed.put(group.positions, [failed[i] if r is Outcome.MERGED else r for r in results])
            else:
                self._totals[group.encoded] = total
        while len(self._totals) > self._spec.max_known_events:
            self._totals.popitem(last=False)

    async def _read_totals(self, encoded: Sequence[bytes]) -> None:
        """Know the sums as they were not long ago, so that an overflow is noticed before it happens."""
        unknown = [one for one in encoded if one not in self._totals]
        for one in encoded:
            if one in self._totals:
                self._totals.move_to_end(one)
        if not unknown:
            return
        request = wire.only_values(wire.read_rows(self._connection, unknown))
        found = {row.key: row for row in await self._connection.read(request)}
        for one in unknown:
            self._totals[one] = self._shard(found[one]) if one in found else _Shard(None, None)

    def _measure(self, group: _Group, row: KnownRow, flushed: Flushed) -> None:
        value_bytes = 8 if self._sums else len(row.column or b"")
        row_bytes = len(group.encoded) + value_bytes + row.journal_bytes
        sizes = flushed.sizes
        if row_bytes > sizes["row_bytes"]:
            sizes["row_bytes"] = row_bytes
        if row.journal_bytes > sizes["journal_bytes"]:
            sizes["journal_bytes"] = row.journal_bytes
        if row_bytes > WARN_ROW_BYTES and group.encoded not in self._warned:
            self._warned.add(group.encoded)
            _log.warning(
                "%s: %s has grown to %d MB, %d of them markers; beyond 100 MB it gets slow, and beyond 256 MB it "
                "cannot be read: use shards, shorter buckets, or a shorter retention of markers",
                self._spec,
                _named(group.encoded),
                row_bytes >> 20,
                row.journal_bytes >> 20,
            )

    def _encoded(self, value: V) -> Any:
        return value if self._sums else self.monoid.encode(value)

    def _decoded(self, encoded: bytes, data: bytes) -> Any:
        if self._sums:
            return _int64(data)
        try:
            return self.monoid.decode(data)
        except Exception as err:
            raise unreadable(self.monoid, parse_row_key(encoded)[0], err) from err


def _named(encoded: bytes) -> str:
    key, shard = parse_row_key(encoded)
    return f"the row of {key.entity!r:.80}, bucket {key.bucket}, shard {shard}"


def _int64(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _expiry(timestamp_us: int) -> int | None:
    return None if timestamp_us >= _FOREVER_US else timestamp_us
