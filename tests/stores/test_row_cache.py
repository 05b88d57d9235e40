"""What a process knows of a row: each event that it has learned, and no other."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("google.cloud.bigtable")

from murmur_beam.state.base import fingerprint_of
from murmur_beam.state.bigtable.fingerprints import FingerprintSet
from murmur_beam.state.bigtable.row_cache import CachedRow


@given(
    sizes=st.lists(st.integers(1, 300) | st.just(3_000), min_size=1, max_size=30),
    at_once=st.integers(1, 5),
    first=st.integers(0, 10**9),
    shard=st.none() | st.binary(min_size=1, max_size=1),
)
def test_a_row_knows_its_events_and_no_others(sizes: list[int], at_once: int, first: int, shard: bytes | None) -> None:
    """Whether they came one by one or thousands at a time, and while the buckets they are kept in are split.

    In one of 256 shards all fingerprints begin alike.
    """

    def of(name: object) -> bytes:
        return fingerprint_of(str(name)) if shard is None else shard + fingerprint_of(str(name))[1:]

    row = CachedRow()
    events = [of(first + i) for i in range(sum(sizes))]
    ends = list(itertools.accumulate(sizes))
    columns = [
        (number.to_bytes(24, "big"), b"".join(events[end - size : end]))
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    for start in range(0, len(columns), at_once):
        some = columns[start : start + at_once]
        assert row.absorb(row.version + len(some), some, exists=True)
        learned = ends[min(start + at_once, len(ends)) - 1]
        some = [events[learned - 1], events[random.Random(learned).randrange(learned)]]
        assert row.known(some) == some
    others = [of(f"another {i}") for i in range(200)]
    for step in (1, 7, 40, len(events)):  # few are looked for in another way than many
        assert row.known([*events[::step], *others]) == events[::step]
        assert row.known([*others[::step], *events]) == events
    assert row.known(others) == []
    assert row.events == len(events)
    assert row.small == sum(size <= 256 for size in sizes)
    assert row.marker_bytes == sum(24 + 16 * size + 8 for size in sizes)


@pytest.mark.parametrize("shard", [b"", b"\xff"])
def test_buckets_stay_short(shard: bytes) -> None:
    """They are searched from their beginning; also where all fingerprints begin alike."""
    row = CachedRow()
    for column in range(20):
        events = [(shard + fingerprint_of(f"{column} {i}"))[:16] for i in range(1_000)]
        row.learn(bytes(24), b"".join(events))
    assert isinstance(row._markers, FingerprintSet)
    lengths = [len(bucket) for bucket in row._markers._buckets]
    assert len(lengths) == 256
    assert max(lengths) < 2 * 10 * 20_000 / 256


def test_a_row_that_is_forgotten_knows_nothing() -> None:
    """As before it was first read."""
    row = CachedRow()
    row.learn(bytes(24), fingerprint_of("a"))
    row.forget()
    assert row.known([fingerprint_of("a")]) == []
    assert (row.read, row.version, row.events, row.small, row.marker_bytes) == (False, 0, 0, 0, 0)


@pytest.mark.parametrize("held", [1, 200])
@pytest.mark.parametrize("part", ["_add", "_doubled"])
def test_a_row_that_does_not_fit_is_forgotten(monkeypatch: pytest.MonkeyPatch, held: int, part: str) -> None:
    """With half of the markers known, the events of the other half would count twice."""
    row = CachedRow()
    row.learn(bytes(24), b"".join(fingerprint_of(str(i)) for i in range(held)))
    row.read, row.version = True, 7

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"murmur_beam.state.bigtable.fingerprints.{part}", full)
    more = b"".join(fingerprint_of(f"more {i}") for i in range(300))
    with pytest.raises(MemoryError):
        row.learn(bytes(24), more)
    assert (row.read, row.version, row.events) == (False, 0, 0)
    assert row.known([fingerprint_of("0")]) == []


def test_no_room_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made before anything else that a read has found is believed."""
    row = CachedRow()
    row.learn(bytes(24), b"".join(fingerprint_of(str(i)) for i in range(200)))

    left = iter([[]])

    def full(*_: object) -> list[bytes]:
        try:
            return next(left)
        except StopIteration:
            raise MemoryError from None

    with monkeypatch.context() as patch:
        patch.setattr("murmur_beam.state.bigtable.fingerprints.split", full)
        with pytest.raises(MemoryError):
            row.absorb(1, [(bytes(24), bytes(16 * 1_000))], exists=True)
    assert (row.events, row.version) == (200, 0)
    events = [fingerprint_of(str(i)) for i in range(200)]
    assert row.known(events) == events
