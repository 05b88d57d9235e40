"""A store that answers as one that appends, for tests of the layers above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import SplitResult

from murmur_beam.model import Outcome, Update
from murmur_beam.monoids import Monoid
from murmur_beam.state.base import Result, Schema, Store, StoreSpec
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import FaultyStore

WRITTEN = (Outcome.MERGED, Outcome.DUPLICATE)


class RecordingStore(FaultyStore[Any]):
    """Wraps another store, and does not report whether an event is new."""

    appends = True

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """RECORDED, or the error."""
        return [Outcome.RECORDED if result in WRITTEN else result for result in super().merge_updates(updates)]


@dataclass(frozen=True)
class RecordingSpec(StoreSpec):
    """Opens the store of ``spec`` as one that appends."""

    spec: StoreSpec

    def __str__(self) -> str:
        return f"recording-{self.spec}"

    def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> Store[Any]:
        """See `StoreSpec.open`."""
        return RecordingStore(self.spec.open(monoid, granularity))

    def recorded_schema(self) -> Schema | None:
        """See `StoreSpec.recorded_schema`."""
        return self.spec.recorded_schema()


def from_uri(uri: SplitResult) -> RecordingSpec:
    """Read ``SCHEME:///FILE``, for the file of SQLite."""
    return RecordingSpec(SqliteSpec(uri.path[1:]))


SCHEME = f"{__name__}:from_uri"
"""Programs name one as ``SCHEME:///FILE``."""
