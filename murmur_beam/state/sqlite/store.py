"""The store: one open table. `SqliteStore.merge_updates` is one transaction."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from murmur_beam import forks
from murmur_beam.clock import Clock, SteadyClock
from murmur_beam.errors import ConfigurationError, MurmurError, StoreUnavailable
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import (
    GRACE_S,
    Result,
    Schema,
    Store,
    fingerprint_of,
    fold_row,
    later_expiry,
    positions_by_key,
    undecodable,
)
from murmur_beam.state.sqlite import file, records

V = TypeVar("V")

_COLLECT_EVERY_S = 60.0
_COLLECT_ROWS = 1_000
_COLLECT_MARKERS = 20_000
_PAGE = 1_000
_LEAST, _GREATEST = -(2**63), 2**63 - 1

# Files in use by threads of the parent when this process was forked; their connections must not even be closed.
_inherited: list[tuple[str, Any]] = []


class _Statements:
    """The statements of a flush, built once, since SQLite caches statements by their text."""

    def __init__(self, rows: str, seen: str) -> None:
        self.find = f"SELECT id, value, expires_at FROM {rows} WHERE entity = ? AND bucket = ?"
        self.insert = f"INSERT INTO {rows} (entity, bucket) VALUES (?, ?)"
        self.update = f"UPDATE {rows} SET value = ?, expires_at = ? WHERE id = ?"
        self.delete = f"DELETE FROM {rows} WHERE id = ?"
        self.claim = f"INSERT OR IGNORE INTO {seen} VALUES (?, ?, ?)"
        self.unclaim = f"DELETE FROM {seen} WHERE row = ? AND event = ?"
        self.forget = f"DELETE FROM {seen} WHERE row = ?"


class SqliteStore(Store[V]):
    """One connection to one table of a SQLite file.

    Args:
        path: the file; if it is missing it is created, readable by its owner only. Its folder must exist.
        monoid: of the values.
        table: name of the table; letters, digits and underscores.
        granularity: bucket length, recorded with the first write.
        dedup_retention: how long markers of rows that never expire are kept; None: forever.
        clock: decides about expiry.

    Raises:
        StoreUnavailable: the file cannot be opened, or is not a SQLite database.
        SchemaMismatch: the table holds another monoid, field or granularity.
        TransientError: another process has locked the file for too long.
    """

    def __init__(
        self,
        path: str,
        monoid: Monoid[V],
        *,
        table: str = "murmur",
        granularity: timedelta | None = None,
        dedup_retention: timedelta | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.monoid = monoid
        self._path = path
        self._table = table
        # Quoted: a table may be called "order".
        self._rows, self._seen = f'"{table}"', f'"{table}_seen"'
        self._statements = _Statements(self._rows, self._seen)
        self._dedup_retention = dedup_retention
        self._clock = clock or Clock()
        self._steady: SteadyClock | None = None
        self._next_collect_s = 0.0
        if granularity is not None and granularity // timedelta(microseconds=1) > _GREATEST:
            raise ConfigurationError("window", f"a bucket of {granularity} is longer than SQLite can record")
        self._schema = Schema.of(monoid, granularity)
        self._retention: timedelta | None = None
        self._is_recorded = False
        self.lock = threading.Lock()
        self._closed = False
        if monoid.native == "sum":
            self._to_column: Callable[[V], Any] = lambda value: value
            self._from_column: Callable[[Any], V] = lambda column: column
        else:
            self._to_column, self._from_column = monoid.encode, monoid.decode
        file.make(path)
        self._file = file.OpenFile(path)
        self._is_open = False
        forks.watch(self)
        with self.lock, file.translated(path):
            self._open()

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[V | None]:
        """See `Store.get_many`."""
        query = (
            f"SELECT value FROM {self._rows} WHERE entity = ? AND bucket = ? AND (expires_at IS NULL OR expires_at > ?)"
        )
        now = self._clock.now()
        with self._reading():
            found = [self._db.execute(query, (*key, now)).fetchone() for key in keys]
        return [None if row is None else self._from_column(row[0]) for row in found]

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `Store.merge_updates`. It is one transaction, so a failure of the file is the result of every update."""
        results: list[Result] = [Outcome.MERGED] * len(updates)
        fingerprints = {u.event_id: fingerprint_of(u.event_id) for u in updates if u.event_id is not None}
        try:
            with self._in_use(), self._flush():
                self._record()
                for key, positions in positions_by_key(updates).items():
                    row_updates = [updates[i] for i in positions]
                    for i, result in zip(positions, self._merge_row(key, row_updates, fingerprints), strict=True):
                        results[i] = result
                self._collect()
            self._is_recorded = True
        except MurmurError as err:
            return [err] * len(updates)
        return results

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, V]]:
        """See `Store.scan`. It reads page by page, so a long scan does not block writers."""
        query = (
            f"SELECT entity, bucket, value FROM {self._rows} WHERE (entity, bucket) > (?, ?)"
            " AND bucket BETWEEN ? AND ? AND (expires_at IS NULL OR expires_at > ?)"
            f" ORDER BY entity, bucket LIMIT {_PAGE}"
        )
        low, high = _LEAST if first is None else first, _GREATEST if last is None else last
        after = (prefix, _LEAST)
        while True:
            with self._reading():
                page = self._db.execute(query, (*after, low, high, self._clock.now())).fetchall()
            for entity, bucket, column in page:
                if not entity.startswith(prefix):
                    return
                yield Key(entity, bucket), self._from_column(column)
            if len(page) < _PAGE:
                return
            after = page[-1][:2]

    def delete(self, entity: str, first: int | None = None, last: int | None = None, *, prefix: bool = False) -> int:
        """See `Store.delete`. Deleted data is also overwritten in the file."""
        that_one = "" if prefix else " AND entity = :entity"
        query = (
            f"SELECT entity, bucket, id FROM {self._rows} WHERE (entity, bucket) > (:entity_after, :bucket_after)"
            f" AND bucket BETWEEN :low AND :high{that_one} ORDER BY entity, bucket LIMIT {_PAGE}"
        )
        wanted: dict[str, Any] = {
            "entity": entity,
            "entity_after": entity,
            "bucket_after": _LEAST,
            "low": _LEAST if first is None else first,
            "high": _GREATEST if last is None else last,
        }
        deleted = 0
        while True:
            with self._in_use(), self._flush():
                self._record()
                page = self._db.execute(query, wanted).fetchall()
                found = [(row,) for name, _, row in page if (name.startswith(entity) if prefix else name == entity)]
                self._db.execute("PRAGMA secure_delete=ON")
                self._db.executemany(self._statements.delete, found)
            self._is_recorded = True
            deleted += len(found)
            if len(found) < _PAGE:
                break
            wanted["entity_after"], wanted["bucket_after"], _ = page[-1]
        with self._in_use():
            # Otherwise deleted data would stay in the log for a while, as it does if a reader uses the log now.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._file.note()
        return deleted

    def settle_retention(self, retention: timedelta | None) -> timedelta | None:
        """See `Store`."""
        if retention is None:
            return self._retention
        if self._retention is None:
            self._retention, self._is_recorded = retention, False
        return retention

    def close(self) -> None:
        """Close the file, once no other thread uses it."""
        with self.lock:
            self._closed = True
            self._let_go()

    def let_go(self) -> None:
        """See `forks.Holder`. SQLite's locks belong to the process: a child has none of them, and takes no new ones on
        a file that it inherits open. So the file is closed before a fork, and both processes reopen it when needed."""
        with suppress(sqlite3.Error):
            self._let_go()

    def be_torn(self) -> None:
        """See `forks.Holder`."""
        _inherited.append((os.path.realpath(self._path), getattr(self, "_db", None)))
        self._is_open = False

    def _let_go(self) -> None:
        if self._is_open:
            self._is_open = False
            self._db.close()

    def _open(self) -> None:
        """Open or reopen the file, with the lock held."""
        if any(path == os.path.realpath(self._path) for path, _ in _inherited):
            raise StoreUnavailable(
                f"sqlite {self._path}: another thread was using it when this process was forked, so SQLite cannot open "
                "it here safely; fork before the first merge, or start processes with spawn or forkserver"
            )
        self._db = sqlite3.connect(
            self._path, timeout=file.LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._is_open = True
        try:
            # FULL: a commit is on the disk when it returns, so acknowledged events survive a power failure.
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-65536;")
            self._create()
            self._file.watch(self._db)
        except BaseException:
            self._let_go()
            raise

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Hold the lock, with the file open."""
        with self.lock, file.translated(self._path):
            if self._closed:
                raise StoreUnavailable(f"sqlite {self._path}: the store is closed; open it again")
            if not self._is_open:
                self._file.require_there()
                self._open()
            yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._in_use():
            self._file.require_there()
            yield

    def _create(self) -> None:
        # First without the write lock, so a reader does not wait for a writer's flush.
        if self._read_record() is None:
            with self._transaction():
                records.create(self._db, self._table)

    def _read_record(self) -> records.Recorded | None:
        """Read the table's record, and check that it fits this store."""
        recorded = records.read(self._db, self._table, self._path)
        if recorded is not None:
            recorded.schema.require(
                self._schema,
                f"table {self._table!r} of {self._path}",
                f"sqlite:///{self._path}?table=NAME",
            )
            self._retention = recorded.retention or self._retention
        return recorded

    def _record(self) -> None:
        """Record the schema with the first write: a pipeline that fails to start must not decide it."""
        if self._is_recorded:
            return
        records.upgrade(self._db, self._table)
        recorded = self._read_record()
        if recorded is None:
            records.record(self._db, self._table, self._schema, self._retention)
        else:
            field = self._schema.field if recorded.schema.names(self._schema) else None
            retention = self._retention if recorded.retention is None else None
            records.amend(self._db, self._table, field=field, retention=retention)
        if self._steady is None:
            seen_at = None if recorded is None else recorded.seen_at
            self._steady = SteadyClock(self._clock, seen_at)
            if seen_at is None:
                self._collected()

    def _merge_row(self, key: Key, updates: Sequence[Update], fingerprints: dict[str, bytes]) -> list[Result]:
        execute, statements = self._db.execute, self._statements
        found = execute(statements.find, key).fetchone()
        current: V | None = None
        if found is None:
            row = execute(statements.insert, key).lastrowid
            # SQLite reuses the ids of deleted rows, and 0.1.0 did not delete the markers of those rows.
            execute(statements.forget, (row,))
        else:
            row = found[0]
            try:
                current = self._from_column(found[1])
            except Exception as err:
                return [undecodable(self.monoid, key, err)] * len(updates)
        now = self._clock.now()
        ttl = updates[-1].ttl
        # Markers of a row that expires are deleted with it; only those of a permanent row need an age.
        at = int(now) if ttl is None and self._dedup_retention is not None else None
        claims, unclaims = statements.claim, statements.unclaim

        def claim(event_id: str) -> bool:
            return execute(claims, (row, fingerprints[event_id], at)).rowcount == 1

        def unclaim(event_id: str) -> None:
            execute(unclaims, (row, fingerprints[event_id]))

        column, results = fold_row(self.monoid, current, updates, claim, unclaim, self._to_column)
        if Outcome.MERGED in results:
            expires_at = None if ttl is None else now + ttl.total_seconds()
            if found is not None:
                expires_at = later_expiry(expires_at, found[2])
            execute(statements.update, (column, expires_at, row))
        elif found is None:
            execute(statements.delete, (row,))
        return results

    def _collect(self) -> None:
        """Delete some expired rows and markers; the rest follows with the next flushes, so that none takes long."""
        if self._steady is None or self._clock.monotonic() < self._next_collect_s:
            return
        # A deletion cannot be undone, so it does not rely on a clock that may have jumped ahead.
        now = self._steady.now()
        execute = self._db.execute
        expired = execute(
            f"DELETE FROM {self._rows} WHERE id IN"
            f" (SELECT id FROM {self._rows} WHERE expires_at <= ? LIMIT {_COLLECT_ROWS})",
            (now - GRACE_S,),
        ).rowcount
        forgotten = 0
        if self._dedup_retention is not None:
            forgotten = execute(
                f"DELETE FROM {self._seen} WHERE (row, event) IN"
                f" (SELECT row, event FROM {self._seen} WHERE at < ? LIMIT {_COLLECT_MARKERS})",
                (int(now - self._dedup_retention.total_seconds()),),
            ).rowcount
        if expired < _COLLECT_ROWS and forgotten < _COLLECT_MARKERS:
            self._collected()

    def _collected(self) -> None:
        self._next_collect_s = self._clock.monotonic() + _COLLECT_EVERY_S
        records.amend(self._db, self._table, seen_at=self._clock.now())

    @contextmanager
    def _flush(self) -> Iterator[None]:
        """A transaction, with the files checked before and after it."""
        self._file.require_whole(self._db)
        try:
            with self._transaction():
                yield
        except sqlite3.Error:
            self._file.require_whole(self._db)  # a damaged file is the better explanation
            raise
        self._file.note()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: take the write lock before reading, so that no other writer comes between our read and our write.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
