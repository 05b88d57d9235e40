"""The base class of a store's tests: opens stores of one spec, on a fake clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from murmur_beam.model import Key, Outcome
from murmur_beam.monoids import Monoid, Sum
from murmur_beam.state.adapted import open_store
from murmur_beam.state.base import SpecLike, Store
from murmur_beam.testing.fakes import FakeClock

DAY = timedelta(days=1)
A, B, C = Key("a"), Key("b"), Key("c")


def answers(appends: bool) -> tuple[Outcome, Outcome]:
    """The outcomes of a new event and of a known one."""
    return (Outcome.RECORDED, Outcome.RECORDED) if appends else (Outcome.MERGED, Outcome.DUPLICATE)


class StoreTests:
    """Opens the stores of a test.

    Attributes:
        appends: see `murmur_beam.testing.StoreContract`.
    """

    appends: ClassVar[bool] = False

    @property
    def merged(self) -> Outcome:
        """The outcome of a new event."""
        return answers(self.appends)[0]

    @property
    def duplicate(self) -> Outcome:
        """The outcome of a known event."""
        return answers(self.appends)[1]

    def spec(self, clock: FakeClock) -> SpecLike:
        """A spec of a new, empty store that uses ``clock``."""
        raise AssertionError(f"{type(self).__name__} must define spec(self, clock)")

    @pytest.fixture(autouse=True)
    def _open(self) -> Iterator[None]:
        self.clock = FakeClock()
        self.made: SpecLike | None = None
        self.opened: list[Store[Any]] = []
        yield
        for store in self.opened:
            store.close()

    def open(self, monoid: Monoid[Any] | None = None, granularity: timedelta | None = None) -> Store[Any]:
        """Open another store of this test's spec; it is closed at the end of the test."""
        if self.made is None:
            self.made = self.spec(self.clock)
        self.opened.append(open_store(self.made, monoid or Sum(), granularity))
        return self.opened[-1]
