"""A store that answers as one that appends, for tests of the layers above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import SplitResult

import pytest

from murmur_beam import state
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

    def settle_retention(self, retention: timedelta | None) -> timedelta | None:
        """That of the other store."""
        settle = getattr(self.store, "settle_retention", None)
        return settle(retention) if settle else retention


@dataclass(frozen=True)
class RecordingSpec:
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
    """Read ``recording:///FILE``, for the file of SQLite."""
    return RecordingSpec(SqliteSpec(uri.path[1:]))


def add_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs in this process name one as ``recording:///FILE``."""
    monkeypatch.setitem(state._SCHEMES, "recording", __name__)
