"""Fixtures of tests that need no Beam, no emulator, and no store but the one in memory."""

from __future__ import annotations

import pytest

from murmur_beam.monoids.sum import Sum
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore[int]:
    """An empty store of sums."""
    return MemoryStore(Sum(), clock)
