"""What a process knows of a row: each event it has learned, however many, and no other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("google.cloud.bigtable")

from murmur_beam.state.base import fingerprint
from murmur_beam.state.bigtable.known import KnownRow


@given(sizes=st.lists(st.integers(1, 300) | st.just(3_000), min_size=1, max_size=30), first=st.integers(0, 10**9))
def test_a_row_knows_its_events_and_no_others(sizes: list[int], first: int) -> None:
    """Whether they came one by one or thousands at a time, and while the buckets they are kept in are split."""
    row = KnownRow()
    events = [fingerprint(str(first + i)) for i in range(sum(sizes))]
    learned = 0
    for number, size in enumerate(sizes):
        row.learn(number.to_bytes(24, "big"), b"".join(events[learned : learned + size]))
        learned += size
        assert row.has(events[learned - 1])
        assert row.has(events[random.Random(learned).randrange(learned)])
    assert all(map(row.has, events))
    assert not any(row.has(fingerprint(f"another {i}")) for i in range(200))
    assert row.events == learned
    assert row.small == sum(size <= 256 for size in sizes)


def test_a_row_that_is_forgotten_knows_nothing() -> None:
    """As before it was first read."""
    row = KnownRow()
    row.learn(bytes(24), fingerprint("a"))
    row.forget()
    assert not row.has(fingerprint("a"))
    assert (row.read, row.version, row.events, row.small, row.journal_bytes) == (False, 0, 0, 0, 0)
