"""Creates tables, and keeps the records of what they hold."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from typing import NamedTuple

from murmur_beam.errors import SchemaMismatch, StoreUnavailable
from murmur_beam.state.base import Schema

_LAYOUT = 1
_MICROSECOND = timedelta(microseconds=1)


class Recorded(NamedTuple):
    """The record of a table.

    Attributes:
        schema: of the table's values.
        retention: of the first window that had one; None if no window had one.
        seen_at: time of a recent flush, in seconds since the epoch; None if unknown.
    """

    schema: Schema
    retention: timedelta | None = None
    seen_at: float | None = None


def create(db: sqlite3.Connection, table: str) -> None:
    """Create a table, in the caller's transaction."""
    db.execute(
        "CREATE TABLE IF NOT EXISTS murmur_schema"
        " (name TEXT PRIMARY KEY, layout INTEGER NOT NULL, monoid TEXT NOT NULL, granularity_us INTEGER)"
    )
    db.execute(
        f'CREATE TABLE IF NOT EXISTS "{table}" (id INTEGER PRIMARY KEY, entity TEXT NOT NULL,'
        " bucket INTEGER NOT NULL, value, expires_at REAL, UNIQUE (entity, bucket))"
    )
    db.execute(
        f'CREATE TABLE IF NOT EXISTS "{table}_seen" (row INTEGER NOT NULL, event BLOB NOT NULL, at INTEGER,'
        " PRIMARY KEY (row, event)) WITHOUT ROWID"
    )
    # Partial indexes: rows and markers that are kept forever cost nothing.
    db.execute(f'CREATE INDEX IF NOT EXISTS "{table}_expires" ON "{table}" (expires_at) WHERE expires_at IS NOT NULL')
    db.execute(f'CREATE INDEX IF NOT EXISTS "{table}_seen_at" ON "{table}_seen" (at) WHERE at IS NOT NULL')


def upgrade(db: sqlite3.Connection, table: str) -> None:
    """Add the parts that release 0.1.0 did not create, in the caller's transaction."""
    # A separate table, since 0.1.0 inserts into murmur_schema by the number of its columns.
    db.execute(
        "CREATE TABLE IF NOT EXISTS murmur_facts"
        " (name TEXT PRIMARY KEY COLLATE NOCASE, field TEXT, retention_us INTEGER, seen_at REAL)"
    )
    db.execute(
        f'CREATE TRIGGER IF NOT EXISTS "{table}_erase" AFTER DELETE ON "{table}"'
        f' BEGIN DELETE FROM "{table}_seen" WHERE row = OLD.id; END'
    )


def read(db: sqlite3.Connection, table: str, path: str) -> Recorded | None:
    """Read the record of a table; None if nothing is recorded.

    Raises:
        StoreUnavailable: a later release made the record.
        SchemaMismatch: release 0.1.0 made two contradictory records, under names that differ in case only.
    """
    known = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'murmur!_%' ESCAPE '!'")}
    if "murmur_schema" not in known:
        return None
    found = db.execute(
        "SELECT layout, monoid, granularity_us FROM murmur_schema WHERE name = ? COLLATE NOCASE", (table,)
    ).fetchall()
    if not found:
        return None
    layout, monoid, granularity_us = found[0]
    if layout != _LAYOUT:
        raise StoreUnavailable(
            f"table {table!r} has layout {layout}, but this version of murmur_beam reads layout {_LAYOUT}; "
            "install the version that wrote it"
        )
    if len(set(found)) > 1:
        raise SchemaMismatch(
            f"table {table!r} of {path} is recorded twice, in upper and lower case, for different aggregates, which "
            "are now mixed; merge all events again into another table, ?table=NAME"
        )
    facts = None
    if "murmur_facts" in known:
        facts = db.execute("SELECT field, retention_us, seen_at FROM murmur_facts WHERE name = ?", (table,)).fetchone()
    field, retention_us, seen_at = facts or (None, None, None)
    # An unknown field is an empty text, or null in a record of 0.1.0.
    schema = Schema(monoid, _duration(granularity_us), field or None, vague=field is None)
    return Recorded(schema, _duration(retention_us), seen_at)


def record(db: sqlite3.Connection, table: str, schema: Schema, retention: timedelta | None) -> None:
    """Record what a table holds, as its first writer."""
    db.execute(
        "INSERT INTO murmur_schema VALUES (?, ?, ?, ?)", (table, _LAYOUT, schema.monoid, _us(schema.granularity))
    )
    db.execute(
        "INSERT OR REPLACE INTO murmur_facts (name, field, retention_us) VALUES (?, ?, ?)",
        (table, schema.field or "", _us(retention)),
    )


def amend(
    db: sqlite3.Connection,
    table: str,
    *,
    field: str | None = None,
    retention: timedelta | None = None,
    seen_at: float | None = None,
) -> None:
    """Add to a table's record; None leaves a field unchanged."""
    db.execute("INSERT OR IGNORE INTO murmur_facts (name) VALUES (?)", (table,))
    for column, value in (("field", field), ("retention_us", _us(retention)), ("seen_at", seen_at)):
        if value is not None:
            db.execute(f"UPDATE murmur_facts SET {column} = ? WHERE name = ?", (value, table))


def _duration(us: int | None) -> timedelta | None:
    return None if us is None else timedelta(microseconds=us)


def _us(duration: timedelta | None) -> int | None:
    return None if duration is None else min(duration // _MICROSECOND, 2**63 - 1)
