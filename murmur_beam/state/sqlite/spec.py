"""The description of a SQLite store, which a pipeline carries and workers open."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, TypeVar

from murmur_beam.clock import Clock
from murmur_beam.durations import parse_duration
from murmur_beam.errors import ConfigurationError, StoreUnavailable
from murmur_beam.monoids.base import Monoid
from murmur_beam.option import Option, check_options, documented, positive_duration, write_query
from murmur_beam.state.base import Schema, StoreSpec
from murmur_beam.state.sqlite import file, records
from murmur_beam.state.sqlite.store import SqliteStore

V = TypeVar("V")


def _table_name(table: str) -> None:
    name = table.lower()
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        raise ValueError(f"{table!r}: use letters, digits and underscores")
    if name.startswith(("sqlite_", "murmur_")) or name.endswith(("_seen", "_expires", "_at")):
        raise ValueError(f"{table!r}: such names are reserved; choose another")


@documented
@dataclass(frozen=True)
class SqliteSpec(StoreSpec):
    """One table of a SQLite file.

    Args:
        path: the file. A relative path is resolved where the spec is made, not where it is opened.
        clock: decides about expiry.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    path: str
    table: Annotated[
        str,
        Option(
            "the table; letters, digits and underscores, not starting with a digit; case does not matter",
            "NAME",
            check=_table_name,
        ),
    ] = field(default="murmur", compare=False)
    dedup_retention: Annotated[
        timedelta | None,
        Option(
            "how long a redelivered event is recognised in rows that never expire",
            "DURATION",
            parse_duration,
            positive_duration,
            default="forever",
            more="The rows of a window with a retention keep their markers as long as they take events.",
        ),
    ] = None
    clock: Clock = field(default_factory=Clock, compare=False)
    _name: str = field(init=False, repr=False, default="")

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigurationError(
                "store", "sqlite needs a file; write sqlite:///counts.db or sqlite:////data/counts.db"
            )
        if ":memory:" in self.path:
            raise ConfigurationError(
                "store", f"{self.path!r} is lost when the program ends; name a file (in a test, write memory://NAME)"
            )
        check_options(self, "store")
        object.__setattr__(self, "path", str(Path(self.path).absolute()))
        object.__setattr__(self, "_name", self.table.lower())

    def __str__(self) -> str:
        return f"sqlite:///{self.path}{write_query(self)}"

    @property
    def place(self) -> tuple[str, ...]:
        """Identifies the table: equal for all specs of one table."""
        return "sqlite", os.path.realpath(self.path), self._name

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
            raise StoreUnavailable(f"sqlite {self.path}: no such file; check the path, or run its pipeline first")
        with (
            file.translated(self.path),
            closing(sqlite3.connect(self.path, timeout=file.LOCK_TIMEOUT_S, isolation_level=None)) as db,
        ):
            recorded = records.read(db, self.table, self.path)
        return None if recorded is None else recorded.schema
