"""Which table to use, and the limits of work on it: what a pipeline carries, and a worker opens."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode

from murmur_beam.clock import Clock
from murmur_beam.errors import ConfigurationError
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.meta import read_meta

if TYPE_CHECKING:
    from murmur_beam.state.bigtable.store import BigtableStore

V = TypeVar("V")

_REQUESTS_PER_CHANNEL = 64
"""A connection carries 100 requests at a time, and works best with fewer; further ones would wait in the client."""


@dataclass(frozen=True)
class BigtableSpec:
    """One table of an instance. `BIGTABLE_EMULATOR_HOST` in the environment leads to an emulator.

    Args:
        project, instance, table: where it is.
        app_profile: one with single-cluster routing and single-row transactions; None for the instance's default.
        shards: rows that each key is spread over, 1 to 256; more than one for keys whose row would get too large. For
            keys that many workers write at once, use one worker a row or a table that is appended to
            (docs/scaling.md). The number of a table never changes, and need not be given again; None: the table's
            number, or 1 for a new table.
        max_in_flight: number of requests under way at once.
        timeout_s: deadline of one request, seconds.
        patience_s: deadline of a flush, or of a read of many keys, with all of its requests and their retries, seconds.
            What is not done by then is a failed try, and is tried again as `Config` says.
        max_cached_events: number of events whose fingerprints are remembered, so that their rows need no reading; about
            15 bytes each. A row counts as 60 more.
        clock: decides what has expired, and waits.

    Raises:
        ConfigurationError: an argument that cannot be used.
    """

    project: str
    instance: str
    table: str
    app_profile: str | None = None
    shards: int | None = None
    max_in_flight: int = 64
    timeout_s: float = 10.0
    patience_s: float = 15.0
    max_cached_events: int = 2_000_000
    clock: Clock = field(default_factory=Clock, compare=False)

    def __post_init__(self) -> None:
        if not (self.project and self.instance and self.table):
            raise ConfigurationError("store", "write bigtable://PROJECT/INSTANCE/TABLE")
        if self.shards is not None and not 1 <= self.shards <= 256:
            raise ConfigurationError("store", f"shards must be from 1 to 256, got {self.shards}")

    def __str__(self) -> str:
        options = {"app_profile": self.app_profile, "shards": self.shards}
        query = urlencode({name: value for name, value in options.items() if value is not None})
        return f"bigtable://{self.project}/{self.instance}/{self.table}" + (f"?{query}" if query else "")

    @property
    def place(self) -> tuple[str, ...]:
        """The same for all specs of one table."""
        return "bigtable", self.project, self.instance, self.table

    def connect(self) -> Connection:
        """A client of the table; to be closed."""
        return Connection(
            self.project,
            self.instance,
            self.table,
            self.app_profile,
            self.timeout_s,
            str(self),
            channels=max(1, -(-self.max_in_flight // _REQUESTS_PER_CHANNEL)),
        )

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> BigtableStore[V]:
        """See `StoreSpec.open`; the table must exist (``murmur create-table`` makes it).

        The store opens even if the server cannot be reached now: each use of it is then a `TransientError` until the
        server answers.
        """
        from murmur_beam.state.bigtable.store import BigtableStore  # the store imports this module

        return BigtableStore(self, monoid, granularity)

    def recorded_schema(self) -> Schema | None:
        """See `StoreSpec.recorded_schema`."""
        connection = self.connect()
        try:
            meta = connection.run(read_meta(connection))
        finally:
            connection.close()
        return None if meta is None else meta.schema
