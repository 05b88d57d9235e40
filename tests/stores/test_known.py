"""Known events of a row: each event that the process has learned, however many, and no other."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("google.cloud.bigtable")

from murmur_beam.state.base import fingerprint
from murmur_beam.state.bigtable.known import KnownRow


@given(
    sizes=st.lists(st.integers(1, 300) | st.just(3_000), min_size=1, max_size=30),
    at_once=st.integers(1, 5),
    first=st.integers(0, 10**9),
    shard=st.none() | st.binary(min_size=1, max_size=1),
)
def test_a_row_knows_its_events_and_no_others(sizes: list[int], at_once: int, first: int, shard: bytes | None) -> None:
    """Whether they came one by one or thousands at a time, and while their buckets are split.

    In one of 256 shards all fingerprints begin alike.
    """

    def of(name: object) -> bytes:
        return fingerprint(str(name)) if shard is None else shard + fingerprint(str(name))[1:]

    row = KnownRow()
    events = [of(first + i) for i in range(sum(sizes))]
    ends = list(itertools.accumulate(sizes))
    columns = [
        (number.to_bytes(24, "big"), b"".join(events[end - size : end]))
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    for start in range(0, len(columns), at_once):
        some = columns[start : start + at_once]
        row.expect(sum(len(journal) for _, journal in some) // 16)
        for column, journal in some:
            row.learn(column, journal)
        learned = ends[min(start + at_once, len(ends)) - 1]
        assert row.has(events[learned - 1])
        assert row.has(events[random.Random(learned).randrange(learned)])
    assert all(map(row.has, events))
    assert not any(row.has(of(f"another {i}")) for i in range(200))
    assert row.events == len(events)
    assert row.small == sum(size <= 256 for size in sizes)
    assert row.journal_bytes == sum(24 + 16 * size + 8 for size in sizes)


@pytest.mark.parametrize("shard", [b"", b"\xff"])
def test_buckets_stay_short(shard: bytes) -> None:
    """They are searched from the start; also where all fingerprints begin alike."""
    row = KnownRow()
    for column in range(20):
        events = [(shard + fingerprint(f"{column} {i}"))[:16] for i in range(1_000)]
        row.learn(bytes(24), b"".join(events))
    lengths = [len(bucket) for bucket in row._seen]
    assert len(lengths) == 256
    assert max(lengths) < 2 * 10 * 20_000 / 256


def test_a_row_that_is_forgotten_knows_nothing() -> None:
    """As before it was first read."""
    row = KnownRow()
    row.learn(bytes(24), fingerprint("a"))
    row.forget()
    assert not row.has(fingerprint("a"))
    assert (row.read, row.version, row.events, row.small, row.journal_bytes) == (False, 0, 0, 0, 0)


@pytest.mark.parametrize("held", [1, 200])
@pytest.mark.parametrize("part", ["_add", "_doubled"])
def test_a_row_that_does_not_fit_is_forgotten(monkeypatch: pytest.MonkeyPatch, held: int, part: str) -> None:
    """With half of the events known, the other half would count twice."""
    row = KnownRow()
    row.learn(bytes(24), b"".join(fingerprint(str(i)) for i in range(held)))
    row.read, row.version = True, 7

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"murmur_beam.state.bigtable.known.{part}", full)
    more = b"".join(fingerprint(f"more {i}") for i in range(300))
    with pytest.raises(MemoryError):
        row.learn(bytes(24), more)
    assert (row.read, row.version, row.events) == (False, 0, 0)
    assert not row.has(fingerprint("0"))


def test_a_lack_of_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is reserved before the results of a read are used."""
    row = KnownRow()
    row.learn(bytes(24), b"".join(fingerprint(str(i)) for i in range(200)))

    left = iter([[]])

    def full(*_: object) -> list[bytes]:
        try:
            return next(left)
        except StopIteration:
            raise MemoryError from None

    monkeypatch.setattr("murmur_beam.state.bigtable.known.split", full)
    with pytest.raises(MemoryError):
        row.expect(1_000)
    assert row.events == 200
    assert all(row.has(fingerprint(str(i))) for i in range(200))
