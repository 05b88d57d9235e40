"""Which table, and how hard to work on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlencode

from murmur_beam.clock import Clock
from murmur_beam.errors import ConfigurationError
from murmur_beam.state.bigtable.connection import Connection

_REQUESTS_PER_CHANNEL = 64
"""A connection carries 100 requests at a time, and does best with fewer; beyond that they would wait in the client."""


@dataclass(frozen=True)
class Settings:
    """One table of an instance. `BIGTABLE_EMULATOR_HOST` in the environment leads to an emulator.

    Args:
        project, instance, table: where it is.
        app_profile: one with single-cluster routing and single-row transactions; None for the instance's default.
        shards: rows that each key is spread over, 1 to 256; more than one for keys whose row would get too large. Keys
            that many workers write at once are better given one worker a row (docs/scaling.md). A table has one number
            for ever, so whoever opens it later need not say it; None: that one, or else 1.
        max_in_flight: requests under way at once.
        timeout_s: deadline of one request, seconds.
        patience_s: how long a flush, or a read of many keys, goes on in all, with all of its requests and their tries.
            What is not done by then has failed for this time, and is tried again as `Config` says; seconds.
        max_known_events: events whose fingerprints are remembered, so that their rows need no reading; about 15 bytes
            each. A row counts as 60 more.
        clock: what decides about expiry and waits.

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
    max_known_events: int = 2_000_000
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
