"""Fixtures that most test modules share: a clock that never sleeps, and a store of sums that runs by it."""

from __future__ import annotations

import pytest
from hypothesis import settings

from murmur_beam.monoids.sum import Sum
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock

# No deadline: these are not tests of speed, and a busy machine must not fail them.
settings.register_profile("murmur_beam", deadline=None)
settings.load_profile("murmur_beam")


@pytest.fixture
def clock() -> FakeClock:
    """Stands at 2023-11-14T22:13:20Z and only moves when something waits."""
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore[int]:
    """An empty store of sums."""
    return MemoryStore(Sum(), clock)
