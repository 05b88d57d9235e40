"""Tables that are appended to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from typing import TypeVar

from murmur_beam.model import Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import Result, Schema
from murmur_beam.state.bigtable import BigtableSpec, BigtableStore
from murmur_beam.state.bigtable.meta import APPEND, Meta, write_meta

V = TypeVar("V")


class AppendedSpec(BigtableSpec):
    """When it is opened first, records that the table is appended to."""

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> BigtableStore[V]:
        """See `StoreSpec.open`."""
        meta = Meta(Schema.of(monoid, granularity), shards=self.shards or 1, write=APPEND)
        with closing(self.connect()) as connection:
            connection.run(write_meta(connection, meta))
        return super().open(monoid, granularity)


class FoldedSpec(AppendedSpec):
    """Opens a store that folds its appended events after each flush."""

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> BigtableStore[V]:
        """See `StoreSpec.open`."""
        super().open(monoid, granularity).close()
        return _FoldedStore(self, monoid, granularity)


class _FoldedStore(BigtableStore[V]):
    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        results = super().merge_updates(updates)
        for entity in sorted({update.key.entity for update in updates}):
            self.fold(entity)
        return results
