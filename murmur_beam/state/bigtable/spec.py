"""Which table to use, and the limits of work on it: what a pipeline carries, and a worker opens."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

from murmur_beam.clock import Clock
from murmur_beam.errors import ConfigurationError
from murmur_beam.monoids.base import Monoid
from murmur_beam.option import (
    Option,
    at_least,
    check_options,
    decimal,
    documented,
    number,
    positive_seconds,
    write_query,
)
from murmur_beam.state.base import Schema, StoreSpec
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.meta import read_meta

if TYPE_CHECKING:
    from murmur_beam.state.bigtable.store import BigtableStore

V = TypeVar("V")

_REQUESTS_PER_CHANNEL = 64
"""A connection carries 100 requests at a time, and works best with fewer; further ones would wait in the client."""


def _profile(text: str) -> str | None:
    return text or None


@documented
@dataclass(frozen=True)
class BigtableSpec(StoreSpec):
    """One table of an instance. `BIGTABLE_EMULATOR_HOST` in the environment leads to an emulator.

    Args:
        project: the project of the instance.
        instance: the instance of the table.
        table: its name.
        clock: decides what has expired, and waits.

    Raises:
        ConfigurationError: an argument that cannot be used.
    """

    project: str
    instance: str
    table: str
    app_profile: Annotated[
        str | None,
        Option(
            "app profile; to commit it needs single-cluster routing and single-row transactions, to append any will do",
            "NAME",
            _profile,
            default="the instance's",
        ),
    ] = None
    shards: Annotated[
        int | None,
        Option(
            "rows that each key is spread over, 1 to 256",
            "N",
            number,
            at_least(1, 256),
            default="the table's number, or 1 for a new table",
            more="More than one is for keys whose row would get too large. For keys that many workers write at once, "
            "use one worker a row or a table that is appended to (docs/scaling.md). The number of a table never "
            "changes.",
        ),
    ] = None
    max_in_flight: Annotated[int, Option("number of requests under way at once", "N", number, at_least(1))] = 64
    timeout_s: Annotated[float, Option("deadline of one request, in seconds", "SECONDS", decimal, positive_seconds)] = (
        10.0
    )
    patience_s: Annotated[
        float,
        Option(
            "deadline of a flush, or of a read of many keys, with all retries of its requests, in seconds",
            "SECONDS",
            decimal,
            positive_seconds,
            more="What is not done by then is a failed try, and is tried again as `Config` says.",
        ),
    ] = 15.0
    max_cached_events: Annotated[
        int,
        Option(
            "number of events whose fingerprints are remembered, so that their rows need no reading",
            "N",
            number,
            at_least(0),
            more="Each takes about 15 bytes; a row counts as 60 more.",
        ),
    ] = 2_000_000
    fold_profile: Annotated[
        str | None,
        Option(
            "app profile with which folds read and commit; it needs single-cluster routing and single-row transactions",
            "NAME",
            _profile,
            default="`app_profile`",
            more="On several clusters all folds must run in one of them (docs/operations.md).",
        ),
    ] = None
    clock: Clock = field(default_factory=Clock, compare=False)

    def __post_init__(self) -> None:
        if not (self.project and self.instance and self.table):
            raise ConfigurationError("store", "write bigtable://PROJECT/INSTANCE/TABLE")
        check_options(self, "store")

    def __str__(self) -> str:
        return f"bigtable://{self.project}/{self.instance}/{self.table}{write_query(self)}"

    @property
    def place(self) -> tuple[str, ...]:
        """The same for all specs of one table."""
        return "bigtable", self.project, self.instance, self.table

    @property
    def profile_of_folds(self) -> str | None:
        """The app profile of folds; None is the instance's default profile."""
        return self.fold_profile or self.app_profile

    def connect(self, *, folds: bool = False) -> Connection:
        """A client of the table; to be closed.

        Args:
            folds: with the app profile of folds.
        """
        return Connection(
            self.project,
            self.instance,
            self.table,
            self.profile_of_folds if folds else self.app_profile,
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
