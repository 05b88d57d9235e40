"""Tables of layout 1, as release 0.1.0 makes them."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import TypeVar

from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, BigtableStore
from murmur_beam.state.bigtable.layouts import LAYOUTS
from murmur_beam.state.bigtable.meta import Meta, write_meta

V = TypeVar("V")


class FirstLayoutSpec(BigtableSpec):
    """Records layout 1 when the table is opened first."""

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> BigtableStore[V]:
        """See `StoreSpec.open`."""
        meta = Meta(Schema.of(monoid, granularity), shards=self.shards or 1, layout=LAYOUTS[1])
        with closing(self.connect()) as connection:
            connection.run(write_meta(connection, meta))
        return super().open(monoid, granularity)
