"""Aggregates in Google Cloud Bigtable: one commit of a row is one CheckAndMutateRow.

A row holds one aggregate (of one shard, where hot keys are split into several):

    agg:v         the sum, in an aggregate family: AddToCell is the increment
    agg:n         the row's version: how many commits it has had
    dedup:<n><w>  the n-th commit's events, 16 bytes each; <w> says whose commit it was
    state:v       the value of a monoid that is not a sum
    state:x       when the row expires, where it does

One row more, before all others, says in the family ``meta`` what the table holds.

A commit says: if the version is still what I know, add the delta, add one to the version and note these events. If
somebody else has committed meanwhile, nothing happens; then the row is read, and what is new to it tried again. A
commit whose answer got lost is settled by reading the row: its column is there, or it is not.

Needs an app profile with single-cluster routing and single-row transactions.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import SplitResult, parse_qsl

import grpc
from google.api_core import exceptions as api_errors
from google.cloud.bigtable.data import (
    BigtableDataClientAsync,
    ReadRowsQuery,
    Row,
    RowRange,
    TableAsync,
)
from google.cloud.bigtable.data import row_filters as filters
from google.cloud.bigtable_v2.types import CheckAndMutateRowRequest, CheckAndMutateRowResponse

from murmur_beam.clock import Clock
from murmur_beam.errors import ConfigurationError, InvalidRecord, StoreUnavailable, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import Result, Schema, fingerprint, fold_row, later, only

V = TypeVar("V")
T = TypeVar("T")

_Request: Any = CheckAndMutateRowRequest.pb()
_Response: Any = CheckAndMutateRowResponse.pb()
_METHOD = "/google.bigtable.v2.Bigtable/CheckAndMutateRow"

MAX_ROW_KEY_BYTES = 4096
# No entity makes a row key that begins with two NULs, and all begin after the second of these.
_SCHEMA_ROW = b"\x00\x00schema"
_AFTER_SCHEMA = b"\x00\x01"
_MICROSECOND = timedelta(microseconds=1)
_EXPIRY_SLACK_S = 60.0
_ROWS_PER_READ = 1_000
_PERMANENT = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
}


def row_key(key: Key, shard: int = 0) -> bytes:
    """The row of a key: injective for any text, no row key a prefix of another, the buckets of an entity adjacent and
    in order, and entities in the order of their text.

    Raises:
        InvalidRecord: longer than Bigtable's 4 KB.
    """
    encoded = entity_prefix(key.entity) + b"\x00\x01" + struct.pack(">QB", key.bucket + 2**63, shard)
    if len(encoded) > MAX_ROW_KEY_BYTES:
        raise InvalidRecord("key", f"makes a row key of {len(encoded)} bytes, at most {MAX_ROW_KEY_BYTES} are allowed")
    return encoded


def entity_prefix(entity: str) -> bytes:
    """How the rows of all entities begin that begin with this text."""
    return entity.encode("utf-8").replace(b"\x00", b"\x00\xff")


def parse_row_key(encoded: bytes) -> tuple[Key, int]:
    """Inverse of `row_key`: key and shard."""
    bucket, shard = struct.unpack(">QB", encoded[-9:])
    return Key(encoded[:-11].replace(b"\x00\xff", b"\x00").decode("utf-8"), bucket - 2**63), shard


class _Row:
    """What this process knows of a row; exact as long as the row's version is ``version``."""

    __slots__ = ("expires", "lock", "read", "seen", "value", "version")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.forget()

    def forget(self) -> None:
        """Know nothing: the first guess is that the row does not exist."""
        self.read = False
        self.version = 0
        self.value: Any = None
        self.seen: set[bytes] = set()
        self.expires: float | None = None


class _Shard(NamedTuple):
    """What a read of one row says."""

    value: Any
    expires: float | None


class _Plan(NamedTuple):
    """What a commit would do, if the row is still at the version it was made for."""

    results: list[Result]
    claimed: dict[str, bytes]
    column: Any
    delta: int | None
    expires: float | None


class BigtableStore(Generic[V]):
    """One table.

    Args:
        spec: which.
        monoid: how to fold.
        granularity: length of a bucket: cells of a bucket carry its start as timestamp, so that garbage collection by
            age takes whole buckets.
    """

    def __init__(self, spec: BigtableSpec, monoid: Monoid[V], granularity: timedelta | None) -> None:
        self.monoid = monoid
        self._spec = spec
        self._clock = spec.clock
        self._granularity_us = 0 if granularity is None else granularity // _MICROSECOND
        self._sums = monoid.native == "sum"
        self._known: OrderedDict[bytes, _Row] = OrderedDict()
        self._events_known = 0
        self._commits = 0
        self._writer = os.urandom(8)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"murmur {spec}", daemon=True)
        self._thread.start()
        self._closed = False
        try:
            self._run(self._connect())
            self._check_schema(Schema(monoid.name, granularity))
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> None:
        self._in_flight = asyncio.Semaphore(self._spec.max_in_flight)
        with warnings.catch_warnings():
            # The client warns when it is told to use an emulator, which whoever set the variable knows.
            warnings.simplefilter("ignore", RuntimeWarning)
            self._client = BigtableDataClientAsync(project=self._spec.project)
        self._table: TableAsync = self._client.get_table(
            self._spec.instance,
            self._spec.table,
            app_profile_id=self._spec.app_profile,
            # The client would try again for ten minutes; trying again is the processor's.
            default_read_rows_operation_timeout=self._spec.timeout_s,
            default_read_rows_attempt_timeout=self._spec.timeout_s,
        )
        path = self._client.transport.grpc_channel.unary_unary
        self._commit_rpc: Callable[..., Any] = path(
            _METHOD, request_serializer=_Request.SerializeToString, response_deserializer=_Response.FromString
        )
        self._name = f"projects/{self._spec.project}/instances/{self._spec.instance}/tables/{self._spec.table}"
        route = f"table_name={self._name}&app_profile_id={self._spec.app_profile or ''}"
        self._metadata = (("x-goog-request-params", route),)

    def _check_schema(self, wanted: Schema) -> None:
        """Record what the table is for, or check that it is for that.

        Raises:
            SchemaMismatch, StoreUnavailable: it is for something else, or was not made for us.
        """

        async def record() -> Schema | None:
            request = _Request(table_name=self._name, app_profile_id=self._spec.app_profile or "", row_key=_SCHEMA_ROW)
            request.predicate_filter.family_name_regex_filter = "meta"
            granularity = b"" if wanted.granularity is None else str(self._granularity_us).encode("ascii")
            for qualifier, value in ((b"monoid", wanted.monoid.encode("utf-8")), (b"granularity_us", granularity)):
                self._set_cell(request.false_mutations.add().set_cell, "meta", qualifier, 0, value)
            await self._commit_rpc(request, timeout=self._spec.timeout_s, metadata=self._metadata)
            return await _read_schema(self._table)

        recorded = self._run(record())
        if recorded is None:
            raise StoreUnavailable(f"{self._spec}: its schema was deleted while it was opened")
        recorded.require(wanted, str(self._spec))

    def close(self) -> None:
        """See `Store.close`."""
        if self._closed:
            return
        self._closed = True

        async def shut_down() -> None:
            if hasattr(self, "_table"):
                await self._table.close()
            if hasattr(self, "_client"):
                await self._client.close()

        asyncio.run_coroutine_threadsafe(shut_down(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def get(self, key: Key) -> V | None:
        """See `Store.get`."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[Key]) -> list[V | None]:
        """See `Store.get_many`; the shards of a key are combined."""
        shards = range(self._spec.shards)
        wanted = {row_key(key, shard): key for key in keys for shard in shards}
        found: dict[Key, list[_Shard]] = {}
        encoded = list(wanted)
        for start in range(0, len(encoded), _ROWS_PER_READ):
            query = ReadRowsQuery(list(encoded[start : start + _ROWS_PER_READ]), row_filter=_VALUES)
            for row in self._run(self._read_rows(query)):
                found.setdefault(wanted[row.row_key], []).append(self._shard(row))
        return [self._live(found.get(key, [])) for key in keys]

    def scan(self, prefix: str = "", first: int | None = None, last: int | None = None) -> Iterator[tuple[Key, V]]:
        """See `Store.scan`."""
        start = entity_prefix(prefix) or _AFTER_SCHEMA
        end = _successor(entity_prefix(prefix))
        current: Key | None = None
        shards: list[_Shard] = []
        for row in self._pages(start, end):
            key, _ = parse_row_key(row.row_key)
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
            rows = RowRange(start_key=start, end_key=end, start_is_inclusive=True, end_is_inclusive=False)
            query = ReadRowsQuery(row_ranges=[rows], limit=_ROWS_PER_READ, row_filter=_VALUES)
            page = self._run(self._read_rows(query))
            yield from page
            if len(page) < _ROWS_PER_READ:
                return
            start = page[-1].row_key + b"\x00"

    def merge_update(self, key: Key, delta: V, *, ttl: timedelta | None = None, event_id: str | None = None) -> Outcome:
        """See `Store.merge_update`."""
        return only(self.merge_updates([Update(key, delta, event_id, ttl)]))

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `Store.merge_updates`; rows are written at the same time, at most `BigtableSpec.max_in_flight`."""
        return self._run(self._merge(updates))

    async def _merge(self, updates: Sequence[Update]) -> list[Result]:
        fingerprints: dict[str, bytes] = {}
        by_row: dict[tuple[Key, int], list[int]] = {}
        shards = self._spec.shards
        for i, update in enumerate(updates):
            event_id = update.event_id
            shard = 0
            if event_id is not None:
                if event_id not in fingerprints:
                    fingerprints[event_id] = fingerprint(event_id)
                shard = fingerprints[event_id][0] % shards
            by_row.setdefault((update.key, shard), []).append(i)
        results: list[Result] = [Outcome.MERGED] * len(updates)

        async def merge(key: Key, shard: int, positions: list[int]) -> None:
            async with self._in_flight:
                row_updates = [updates[i] for i in positions]
                try:
                    row_results = await self._merge_row(row_key(key, shard), key.bucket, row_updates, fingerprints)
                except Exception as err:
                    row_results = [translated(self._spec, err)] * len(positions)
            for i, result in zip(positions, row_results, strict=True):
                results[i] = result

        await asyncio.gather(*(merge(key, shard, positions) for (key, shard), positions in by_row.items()))
        self._forget_some()
        return results

    async def _merge_row(
        self, encoded: bytes, bucket: int, updates: Sequence[Update], fingerprints: dict[str, bytes]
    ) -> Sequence[Result]:
        row = self._known.get(encoded)
        if row is None:
            row = self._known[encoded] = _Row()
            self._events_known += 1  # a row weighs about as much as an event, and is bounded with them
        self._known.move_to_end(encoded)
        deadline = self._clock.monotonic() + self._spec.contention_s
        ours: dict[bytes, _Plan] = {}
        async with row.lock:
            while True:
                plan = self._plan(row, updates, fingerprints)
                if Outcome.MERGED not in plan.results or (
                    row.read and not plan.claimed and not self._sums and plan.column == self._encoded(row.value)
                ):
                    return plan.results
                self._commits += 1
                marker = struct.pack(">Q", row.version + 1) + self._writer + struct.pack(">Q", self._commits)
                ours[marker] = plan
                request = self._request(encoded, bucket, row, marker, plan)
                try:
                    response = await self._commit_rpc(request, timeout=self._spec.timeout_s, metadata=self._metadata)
                    committed = response.predicate_matched == (row.version > 0)
                except grpc.aio.AioRpcError as err:
                    if err.code() in _PERMANENT:
                        self._forget(row)
                        raise
                    # It may have happened: the row knows.
                    settled = await self._settle(encoded, row, ours)
                    if settled is None:
                        raise
                    return settled
                if committed:
                    self._apply(row, plan)
                    return plan.results
                settled = await self._settle(encoded, row, ours)
                if settled is not None:
                    return settled
                if self._clock.monotonic() >= deadline:
                    raise TransientError(
                        f"{self._spec}: row {encoded[:80]!r} was written by others for {self._spec.contention_s} s; "
                        "spread its events with shards=N"
                    )

    async def _settle(self, encoded: bytes, row: _Row, ours: dict[bytes, _Plan]) -> Sequence[Result] | None:
        """Read what is new to the row; the results of ours among the commits, or None."""
        markers = await self._refresh(encoded, row)
        for marker in markers:
            if marker in ours:
                return ours[marker].results
        return None

    async def _refresh(self, encoded: bytes, row: _Row) -> list[bytes]:
        """Bring what is known of a row up to date; the columns of the commits that were new."""
        known = filters.RowFilterChain(
            [
                filters.FamilyNameRegexFilter("dedup"),
                filters.ColumnRangeFilter("dedup", start_qualifier=struct.pack(">Q", row.version + 1)),
            ]
        )
        query = filters.RowFilterUnion([_VALUES, known])
        found = await self._table.read_row(encoded, row_filter=query)
        if found is None:
            self._forget(row)
            row.read = True
            return []
        markers = []
        version = 0
        row.value = None
        row.expires = None
        for cell in found.get_cells():
            if cell.family == "dedup":
                markers.append(cell.qualifier)
                self._learn(row, [cell.value[i : i + 16] for i in range(0, len(cell.value), 16)])
            elif cell.qualifier == b"n":
                version = _int64(cell.value)
            elif cell.qualifier == b"x":
                row.expires = _int64(cell.value) / 1e6
            else:
                row.value = self._decoded(cell.value)
        row.version = version
        row.read = True
        return markers

    def _plan(self, row: _Row, updates: Sequence[Update], fingerprints: dict[str, bytes]) -> _Plan:
        claimed: dict[str, bytes] = {}

        def claim(event_id: str) -> bool:
            if event_id in claimed or fingerprints[event_id] in row.seen:
                return False
            claimed[event_id] = fingerprints[event_id]
            return True

        column, results = fold_row(self.monoid, row.value, updates, claim, claimed.pop, self._encoded)
        delta = column - (row.value or 0) if self._sums else None
        ttl = updates[-1].ttl
        expires = None if ttl is None else self._clock.now() + ttl.total_seconds()
        if row.version > 0:
            expires = later(expires, row.expires)
            # All flushes of a bucket mean the same time, but for their clocks.
            if expires is not None and row.expires is not None and expires - row.expires < _EXPIRY_SLACK_S:
                expires = row.expires
        return _Plan(results, claimed, column, delta, expires)

    def _apply(self, row: _Row, plan: _Plan) -> None:
        row.version += 1
        row.read = True
        self._learn(row, plan.claimed.values())
        row.value = plan.column if self._sums else self.monoid.decode(plan.column)
        row.expires = plan.expires

    def _request(self, encoded: bytes, bucket: int, row: _Row, marker: bytes, plan: _Plan) -> Any:
        request = _Request(table_name=self._name, app_profile_id=self._spec.app_profile or "", row_key=encoded)
        chain = request.predicate_filter.chain.filters
        chain.add().family_name_regex_filter = "agg"
        chain.add().column_qualifier_regex_filter = b"n"
        mutations = request.false_mutations
        if row.version > 0:
            version = struct.pack(">q", row.version)
            chain.add().value_range_filter.start_value_closed = version
            chain[2].value_range_filter.end_value_closed = version
            mutations = request.true_mutations
        at_us = max(0, bucket * self._granularity_us) // 1000 * 1000
        self._add_to_cell(mutations.add().add_to_cell, b"n", at_us, 1)
        if plan.delta is not None:
            self._add_to_cell(mutations.add().add_to_cell, b"v", at_us, plan.delta)
        else:
            self._set_cell(mutations.add().set_cell, "state", b"v", at_us, plan.column)
        if plan.expires is None and row.expires is not None:
            gone = mutations.add().delete_from_column
            gone.family_name, gone.column_qualifier = "state", b"x"
        elif plan.expires != row.expires and plan.expires is not None:
            self._set_cell(mutations.add().set_cell, "state", b"x", at_us, struct.pack(">q", int(plan.expires * 1e6)))
        journal = b"".join(plan.claimed.values())
        now_us = int(self._clock.now() * 1000) * 1000
        # Also when it is empty: an answer that gets lost is found by it.
        self._set_cell(mutations.add().set_cell, "dedup", marker, now_us, journal)
        return request

    @staticmethod
    def _add_to_cell(cell: Any, qualifier: bytes, at_us: int, delta: int) -> None:
        cell.family_name = "agg"
        cell.column_qualifier.raw_value = qualifier
        cell.timestamp.raw_timestamp_micros = at_us
        cell.input.int_value = delta

    @staticmethod
    def _set_cell(cell: Any, family: str, qualifier: bytes, at_us: int, value: bytes) -> None:
        cell.family_name = family
        cell.column_qualifier = qualifier
        cell.timestamp_micros = at_us
        cell.value = value

    def _encoded(self, value: V) -> Any:
        return value if self._sums else self.monoid.encode(value)

    def _decoded(self, data: bytes) -> Any:
        return _int64(data) if self._sums else self.monoid.decode(data)

    def _shard(self, row: Row) -> _Shard:
        value: Any = None
        expires: float | None = None
        for cell in row.get_cells():
            if cell.qualifier == b"x":
                expires = _int64(cell.value) / 1e6
            elif cell.qualifier == b"v":
                value = self._decoded(cell.value)
        return _Shard(value, expires)

    def _live(self, shards: Sequence[_Shard]) -> V | None:
        """The shards of a key combined; None where there are none, or the last to expire has done so."""
        values: list[V] = [shard.value for shard in shards if shard.value is not None]
        expiries = [shard.expires for shard in shards]
        latest = None if None in expiries else max((e for e in expiries if e is not None), default=None)
        if not values or (latest is not None and latest <= self._clock.now()):
            return None
        return self.monoid.fold(values)

    def _learn(self, row: _Row, events: Iterable[bytes]) -> None:
        before = len(row.seen)
        row.seen.update(events)
        self._events_known += len(row.seen) - before

    def _forget(self, row: _Row) -> None:
        self._events_known -= len(row.seen)
        row.forget()

    def _forget_some(self) -> None:
        """Keep what is known within bounds, forgetting first the rows that were not needed for longest."""
        while self._events_known > self._spec.max_known_events and self._known:
            encoded, row = next(iter(self._known.items()))
            if row.lock.locked():
                return
            del self._known[encoded]
            self._events_known -= len(row.seen) + 1

    async def _read_rows(self, query: ReadRowsQuery) -> list[Row]:
        rows: list[Row] = await self._table.read_rows(query)
        return rows

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except Exception as err:
            raise translated(self._spec, err) from err


def translated(spec: BigtableSpec, err: Exception) -> Exception:
    """Errors of the client as ours."""
    code = err.code() if isinstance(err, grpc.aio.AioRpcError) else getattr(err, "grpc_status_code", None)
    if code is None and not isinstance(err, (api_errors.GoogleAPIError, OSError)):
        return err
    text = err.details() if isinstance(err, grpc.aio.AioRpcError) else str(err)
    message = f"{spec}: {getattr(code, 'name', type(err).__name__)}: {text}"
    return StoreUnavailable(message) if code in _PERMANENT else TransientError(message)


_VALUES = filters.RowFilterChain([filters.FamilyNameRegexFilter("agg|state"), filters.CellsColumnLimitFilter(1)])


async def _read_schema(table: TableAsync) -> Schema | None:
    row = await table.read_row(_SCHEMA_ROW, row_filter=filters.FamilyNameRegexFilter("meta"))
    if row is None:
        return None
    cells = {cell.qualifier: cell.value for cell in row.get_cells()}
    granularity = cells[b"granularity_us"]
    return Schema(cells[b"monoid"].decode("utf-8"), timedelta(microseconds=int(granularity)) if granularity else None)


def _int64(data: bytes) -> int:
    (value,) = struct.unpack(">q", data)
    return int(value)


def _successor(prefix: bytes) -> bytes | None:
    """The first key after all that begin with the prefix; None: there is no end."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


@dataclass(frozen=True)
class BigtableSpec:
    """One table of an instance. `BIGTABLE_EMULATOR_HOST` in the environment leads to an emulator.

    Args:
        project, instance, table: where it is.
        app_profile: one with single-cluster routing and single-row transactions; None for the instance's default.
        shards: rows that each key is spread over, 1 to 256; more than one for keys that many workers write at once.
            The same for everybody who opens the table.
        max_in_flight: requests under way at once.
        timeout_s: deadline of one request, seconds.
        contention_s: how long one flush competes with others for a row before that counts as a failed try, seconds.
        max_known_events: events whose fingerprints are remembered, so that their rows need no reading; about 100 bytes
            each.
        clock: what decides about expiry.

    Raises:
        ConfigurationError: an argument that cannot be used.
    """

    project: str
    instance: str
    table: str
    app_profile: str | None = None
    shards: int = 1
    max_in_flight: int = 64
    timeout_s: float = 10.0
    contention_s: float = 30.0
    max_known_events: int = 500_000
    clock: Clock = field(default_factory=Clock, compare=False)

    def __post_init__(self) -> None:
        if not (self.project and self.instance and self.table):
            raise ConfigurationError("store", "write bigtable://PROJECT/INSTANCE/TABLE")
        if not 1 <= self.shards <= 256:
            raise ConfigurationError("store", f"shards must be from 1 to 256, got {self.shards}")

    def __str__(self) -> str:
        return f"bigtable://{self.project}/{self.instance}/{self.table}"

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> BigtableStore[V]:
        """See `StoreSpec.open`; the table must exist."""
        return BigtableStore(self, monoid, granularity)

    def recorded_schema(self) -> Schema | None:
        """See `StoreSpec.recorded_schema`."""

        async def read() -> Schema | None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                client = BigtableDataClientAsync(project=self.project)
            async with client, client.get_table(self.instance, self.table, app_profile_id=self.app_profile) as table:
                return await _read_schema(table)

        try:
            return asyncio.run(read())
        except Exception as err:
            raise translated(self, err) from err


def from_uri(uri: SplitResult) -> BigtableSpec:
    """Read ``bigtable://PROJECT/INSTANCE/TABLE``, with ``?app_profile=NAME&shards=N``.

    Raises:
        ConfigurationError: a part that is not understood.
    """
    parts = uri.path.strip("/").split("/")
    options = dict(parse_qsl(uri.query, keep_blank_values=True))
    app_profile = options.pop("app_profile", None) or None
    shards = options.pop("shards", "1")
    if len(parts) != 2 or options or not shards.isdecimal():
        raise ConfigurationError(
            "store", f"{uri.geturl()!r}: write bigtable://PROJECT/INSTANCE/TABLE?app_profile=NAME&shards=N"
        )
    return BigtableSpec(uri.netloc, parts[0], parts[1], app_profile, int(shards))
