"""Conservation: no event is lost or counted twice, whatever fails and however often it is delivered.

Each delivery of a record has one result (merged, duplicate, expired or failed), and once the faults are over and
everything was delivered again, the state is that of a plain dictionary in which every event was added up once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta

import pytest
from hypothesis import given, settings

from murmur_beam.clock import Clock
from murmur_beam.monoids.sum import Sum
from murmur_beam.state.base import Store
from murmur_beam.state.memory import MemoryStore
from murmur_beam.state.sqlite import SqliteSpec
from tests.support.conservation import OpenStore, check_conservation
from tests.support.strategies import Scenario, scenarios


@contextmanager
def open_memory(clock: Clock, granularity: timedelta | None) -> Iterator[Store[int]]:
    """In a dictionary."""
    yield MemoryStore(Sum(), clock)


@contextmanager
def open_sqlite(clock: Clock, granularity: timedelta | None) -> Iterator[Store[int]]:
    """In a file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteSpec(f"{folder}/counts.db", clock=clock).open(Sum(), granularity)
        with closing(store):
            yield store


STORES = [pytest.param(open_memory, id="memory")]


@pytest.mark.parametrize("open_store", STORES)
@settings(max_examples=400, deadline=None)
@given(scenario=scenarios())
def test_nothing_is_lost_and_nothing_counts_twice(open_store: OpenStore, scenario: Scenario) -> None:
    """Random events in random batches, duplicates in and across them, faults at any point, time that passes."""
    check_conservation(open_store, scenario)


@settings(max_examples=150, deadline=None)
@given(scenario=scenarios())
def test_sqlite_loses_nothing_and_counts_nothing_twice(scenario: Scenario) -> None:
    """The same with a file on disk, in fewer examples because each flush waits for the disk."""
    check_conservation(open_sqlite, scenario)
