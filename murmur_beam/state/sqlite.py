"""Aggregates in one SQLite file: the embedded default. Durable, and safe with several threads and processes.

A flush is one transaction: the values of the touched rows and the markers of the events folded into them become
visible together or not at all, so that a process killed at any moment loses nothing and doubles nothing. Two tables:

    NAME       id, entity, bucket, value, expires_at        one row for each aggregate
    NAME_seen  row, event, at                               one marker for each event in a row

A sum is stored as an INTEGER, so that the file can be read with any SQLite tool; other monoids as their bytes.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote

from murmur_beam.clock import Clock
from murmur_beam.durations import parse_duration
from murmur_beam.errors import ConfigurationError, MurmurError, StoreUnavailable, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import GRACE_S, Result, Schema, fingerprint, fold_row, later, only, rows, unreadable

V = TypeVar("V")

LOCK_TIMEOUT_S = 30.0
"""How long one flush waits for another process's flush before it counts as a failed try."""

_COLLECT_EVERY_S = 60.0
_COLLECT_ROWS = 1_000
_COLLECT_MARKERS = 20_000
_PAGE = 1_000
_LAYOUT = 1
_MICROSECOND = timedelta(microseconds=1)


class SqliteStore(Generic[V]):
    """One connection to one table of a SQLite file.

    Args:
        path: the file; created if it is missing, but not its folder.
        monoid: how to fold.
        table: which aggregates of the file; letters, digits and underscores.
        granularity: bucket length, recorded with the first write.
        dedup_retention: how long markers of rows that never expire are kept; None: for ever.
        clock: what decides about expiry.

    Raises:
        StoreUnavailable: the file cannot be opened or is no SQLite database.
        SchemaMismatch: the table was made for another monoid or granularity.
        TransientError: another process holds the file for too long.
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
        self._dedup_retention = dedup_retention
        self._clock = clock or Clock()
        self._next_collect = 0.0
        if granularity is not None and granularity // _MICROSECOND >= 2**63:
            raise ConfigurationError("window", f"a bucket of {granularity} is longer than SQLite can record")
        self._schema = Schema(monoid.name, granularity)
        self._schema_is_recorded = False
        self._lock = threading.Lock()
        if monoid.native == "sum":
            self._to_column: Callable[[V], Any] = lambda value: value
            self._from_column: Callable[[Any], V] = lambda column: column
        else:
            self._to_column, self._from_column = monoid.encode, monoid.decode
        with _translated(path):
            self._db = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            with _translated(path):
                # FULL: a commit is on the disk when it returns, so that what was acknowledged survives a power cut.
                self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-65536;")
                self._create()
        except BaseException:
            self._db.close()
            raise

    def get(self, key: Key) -> V | None:
        """See `Store.get`."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[Key]) -> list[V | None]:
        """See `Store.get_many`."""
        query = (
            f"SELECT value FROM {self._rows} WHERE entity = ? AND bucket = ? AND (expires_at IS NULL OR expires_at > ?)"
        )
        now = self._clock.now()
        with self._lock, _translated(self._path):
            found = [self._db.execute(query, (*key, now)).fetchone() for key in keys]
        return [None if row is None else self._from_column(row[0]) for row in found]

    def merge_update(self, key: Key, delta: V, *, ttl: timedelta | None = None, event_id: str | None = None) -> Outcome:
        """See `Store.merge_update`."""
        return only(self.merge_updates([Update(key, delta, event_id, ttl)]))

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `Store.merge_updates`; one transaction, so a failure of the file is the result of every update."""
        results: list[Result] = [Outcome.MERGED] * len(updates)
        fingerprints = {u.event_id: fingerprint(u.event_id) for u in updates if u.event_id is not None}
        try:
            with self._lock, _translated(self._path), self._transaction():
                self._record_schema()
                for key, positions in rows(updates).items():
                    row_updates = [updates[i] for i in positions]
                    for i, result in zip(positions, self._merge_row(key, row_updates, fingerprints), strict=True):
                        results[i] = result
                self._collect()
            self._schema_is_recorded = True
        except MurmurError as err:
            return [err] * len(updates)
        return results

    def scan(self, prefix: str = "", first: int | None = None, last: int | None = None) -> Iterator[tuple[Key, V]]:
        """See `Store.scan`; read page by page, so that a long scan blocks nobody."""
        query = (
            f"SELECT entity, bucket, value FROM {self._rows} WHERE (entity, bucket) > (?, ?)"
            " AND bucket BETWEEN ? AND ? AND (expires_at IS NULL OR expires_at > ?)"
            f" ORDER BY entity, bucket LIMIT {_PAGE}"
        )
        low = -(2**63) if first is None else first
        high = 2**63 - 1 if last is None else last
        after = (prefix, -(2**63))
        while True:
            with self._lock, _translated(self._path):
                page = self._db.execute(query, (*after, low, high, self._clock.now())).fetchall()
            for entity, bucket, column in page:
                if not entity.startswith(prefix):
                    return
                yield Key(entity, bucket), self._from_column(column)
            if len(page) < _PAGE:
                return
            after = page[-1][:2]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _create(self) -> None:
        # First without the write lock, so that a reader does not wait for a writer's flush.
        if self._check_schema():
            return
        with self._transaction():
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS murmur_schema"
                " (name TEXT PRIMARY KEY, layout INTEGER NOT NULL, monoid TEXT NOT NULL, granularity_us INTEGER)"
            )
            self._db.execute(
                f"CREATE TABLE IF NOT EXISTS {self._rows} (id INTEGER PRIMARY KEY, entity TEXT NOT NULL,"
                " bucket INTEGER NOT NULL, value, expires_at REAL, UNIQUE (entity, bucket))"
            )
            self._db.execute(
                f"CREATE TABLE IF NOT EXISTS {self._seen} (row INTEGER NOT NULL, event BLOB NOT NULL, at INTEGER,"
                " PRIMARY KEY (row, event)) WITHOUT ROWID"
            )
            # Partial: rows and markers that are kept for ever cost nothing here.
            self._db.execute(
                f'CREATE INDEX IF NOT EXISTS "{self._table}_expires" ON {self._rows} (expires_at)'
                " WHERE expires_at IS NOT NULL"
            )
            self._db.execute(
                f'CREATE INDEX IF NOT EXISTS "{self._table}_seen_at" ON {self._seen} (at) WHERE at IS NOT NULL'
            )

    def _check_schema(self) -> bool:
        """Is what the table holds recorded? If so, it must be what this store was opened for."""
        recorded = _recorded(self._db, self._table)
        if recorded is not None:
            recorded.require(self._schema, f"table {self._table!r} of {self._path}")
        return recorded is not None

    def _record_schema(self) -> None:
        """With the first write, not when it is opened: a pipeline that fails to start must not decide for the next."""
        if not self._schema_is_recorded and not self._check_schema():
            granularity = self._schema.granularity
            granularity_us = None if granularity is None else granularity // _MICROSECOND
            self._db.execute(
                "INSERT INTO murmur_schema VALUES (?, ?, ?, ?)",
                (self._table, _LAYOUT, self._schema.monoid, granularity_us),
            )

    def _merge_row(self, key: Key, updates: Sequence[Update], fingerprints: dict[str, bytes]) -> list[Result]:
        execute = self._db.execute
        found = execute(
            f"SELECT id, value, expires_at FROM {self._rows} WHERE entity = ? AND bucket = ?", key
        ).fetchone()
        current: V | None = None
        if found is None:
            row = execute(f"INSERT INTO {self._rows} (entity, bucket) VALUES (?, ?)", key).lastrowid
        else:
            row = found[0]
            try:
                current = self._from_column(found[1])
            except Exception as err:
                return [unreadable(self.monoid, key, err)] * len(updates)
        now = self._clock.now()
        ttl = updates[-1].ttl
        # Markers of a row that will expire go with it; only those of a row for ever need an age of their own.
        at = int(now) if ttl is None and self._dedup_retention is not None else None

        def claim(event_id: str) -> bool:
            marker = (row, fingerprints[event_id], at)
            return execute(f"INSERT OR IGNORE INTO {self._seen} VALUES (?, ?, ?)", marker).rowcount == 1

        def unclaim(event_id: str) -> None:
            execute(f"DELETE FROM {self._seen} WHERE row = ? AND event = ?", (row, fingerprints[event_id]))

        column, results = fold_row(self.monoid, current, updates, claim, unclaim, self._to_column)
        if Outcome.MERGED in results:
            expires_at = None if ttl is None else now + ttl.total_seconds()
            if found is not None:
                expires_at = later(expires_at, found[2])
            execute(f"UPDATE {self._rows} SET value = ?, expires_at = ? WHERE id = ?", (column, expires_at, row))
        elif found is None:
            execute(f"DELETE FROM {self._rows} WHERE id = ?", (row,))
        return results

    def _collect(self) -> None:
        """Delete some of what has expired; the rest follows with the next flushes, so that none takes long."""
        now = self._clock.now()
        if now < self._next_collect:
            return
        execute = self._db.execute
        expired = execute(
            f"SELECT id FROM {self._rows} WHERE expires_at <= ? LIMIT {_COLLECT_ROWS}", (now - GRACE_S,)
        ).fetchall()
        self._db.executemany(f"DELETE FROM {self._seen} WHERE row = ?", expired)
        self._db.executemany(f"DELETE FROM {self._rows} WHERE id = ?", expired)
        forgotten = 0
        if self._dedup_retention is not None:
            forgotten = execute(
                f"DELETE FROM {self._seen} WHERE (row, event) IN"
                f" (SELECT row, event FROM {self._seen} WHERE at < ? LIMIT {_COLLECT_MARKERS})",
                (int(now - self._dedup_retention.total_seconds()),),
            ).rowcount
        if len(expired) < _COLLECT_ROWS and forgotten < _COLLECT_MARKERS:
            self._next_collect = now + _COLLECT_EVERY_S

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: take the write lock before reading, so that nobody writes between our read and our write.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise


def _recorded(db: sqlite3.Connection, table: str) -> Schema | None:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'murmur_schema'").fetchone():
        return None
    found = db.execute("SELECT layout, monoid, granularity_us FROM murmur_schema WHERE name = ?", (table,)).fetchone()
    if found is None:
        return None
    layout, monoid, granularity_us = found
    if layout != _LAYOUT:
        raise StoreUnavailable(
            f"table {table!r} has layout {layout}, this version of murmur_beam reads layout {_LAYOUT}; "
            "install the version that wrote it"
        )
    return Schema(monoid, None if granularity_us is None else timedelta(microseconds=granularity_us))


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """SQLite's errors as ours: a lock or a full disk may pass, a file that is no database will not."""
    try:
        yield
    except sqlite3.OperationalError as err:
        message = f"sqlite {path}: {err}"
        if any(words in str(err) for words in ("readonly", "unable to open", "no such")):
            raise StoreUnavailable(f"{message}; check that the folder exists and may be written to") from err
        raise TransientError(message) from err
    except sqlite3.Error as err:
        raise StoreUnavailable(f"sqlite {path}: {err}") from err


@dataclass(frozen=True)
class SqliteSpec:
    """One table of a SQLite file.

    Args:
        path: the file. A relative one is taken from the folder in which the spec is made, not where it is opened.
        table: letters, digits and underscores, not starting with a digit.
        dedup_retention: for how long a redelivered event is recognised in rows that never expire; None: for ever.
            The rows of a window with a retention keep their markers as long as they take events.
        clock: what decides about expiry.

    Raises:
        ConfigurationError: an argument that cannot be used.
    """

    path: str
    table: str = "murmur"
    dedup_retention: timedelta | None = None
    clock: Clock = field(default_factory=Clock, compare=False)

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigurationError(
                "store", "sqlite needs a file; write sqlite:///counts.db or sqlite:////data/counts.db"
            )
        name = self.table.lower()
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
            raise ConfigurationError("store", f"table {self.table!r}: use letters, digits and underscores")
        if name.startswith(("sqlite_", "murmur_")) or name.endswith(("_seen", "_expires", "_at")):
            raise ConfigurationError("store", f"table {self.table!r}: such names are taken; choose another")
        if self.dedup_retention is not None and self.dedup_retention <= timedelta(0):
            raise ConfigurationError("store", f"dedup_retention must be positive, got {self.dedup_retention}")
        object.__setattr__(self, "path", str(Path(self.path).absolute()))

    def __str__(self) -> str:
        return f"sqlite:///{self.path}?table={self.table}"

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> SqliteStore[V]:
        """See `StoreSpec.open`."""
        return SqliteStore(
            self.path,
            monoid,
            table=self.table,
            granularity=granularity,
            dedup_retention=self.dedup_retention,
            clock=self.clock,
        )

    def recorded_schema(self) -> Schema | None:
        """See `StoreSpec.recorded_schema`; creates no file."""
        try:
            exists = Path(self.path).is_file()
        except OSError as err:
            raise StoreUnavailable(f"sqlite {self.path}: {err}") from err
        if not exists:
            raise StoreUnavailable(f"sqlite {self.path}: no such file; check the path, or write to it first")
        with (
            _translated(self.path),
            closing(sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None)) as db,
        ):
            return _recorded(db, self.table)


def from_uri(uri: SplitResult) -> SqliteSpec:
    """Read ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, with ``?table=NAME&dedup_retention=90d``.

    Raises:
        ConfigurationError: a part that is not understood.
    """
    if uri.netloc or uri.fragment:
        raise ConfigurationError(
            "store", f"{uri.geturl()!r}: write sqlite:///counts.db (relative) or sqlite:////data/counts.db (absolute)"
        )
    options = dict(parse_qsl(uri.query, keep_blank_values=True))
    table = options.pop("table", "murmur")
    try:
        retention = parse_duration(options.pop("dedup_retention")) if "dedup_retention" in options else None
    except ValueError as err:
        raise ConfigurationError("store", f"dedup_retention: {err}") from None
    if options:
        raise ConfigurationError(
            "store", f"unknown option {', '.join(options)} in {uri.geturl()!r}; there are table and dedup_retention"
        )
    return SqliteSpec(unquote(uri.path.removeprefix("/")), table, retention)
