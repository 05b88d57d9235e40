"""What a pipeline carries, and a worker opens."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable.meta import read_meta
from murmur_beam.state.bigtable.settings import Settings
from murmur_beam.state.bigtable.store import BigtableStore

V = TypeVar("V")


@dataclass(frozen=True)
class BigtableSpec(Settings):
    """One table of an instance, and how hard to work on it; arguments as in `Settings`."""

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> BigtableStore[V]:
        """See `StoreSpec.open`; the table must exist (``murmur create-table`` makes it).

        A server that cannot be reached now does not keep the store from being opened: whatever is done with it is a
        `TransientError` until the server answers.
        """
        return BigtableStore(self, monoid, granularity)

    def recorded_schema(self) -> Schema | None:
        """See `StoreSpec.recorded_schema`."""
        connection = self.connect()
        try:
            meta = connection.run(read_meta(connection))
        finally:
            connection.close()
        return None if meta is None else meta.schema
