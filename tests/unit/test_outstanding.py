"""How many messages a pull may ask for, bounded by number and by bytes, when only a number can be requested."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.pubsub.outstanding import Outstanding


def holding(max_messages: int, max_bytes: int, *sizes: int) -> Outstanding:
    """An `Outstanding` that holds messages of these sizes, of one answer."""
    outstanding = Outstanding(max_messages, max_bytes)
    outstanding.add([(str(i), size) for i, size in enumerate(sizes)])
    return outstanding


def test_few_are_requested_while_sizes_are_unknown() -> None:
    """They might all be of 10 MB; an answer without messages says nothing about sizes."""
    outstanding = Outstanding(5_000, 100_000_000)
    assert outstanding.room(0) == 10
    outstanding.add([])
    assert outstanding.room(4) == 6
    assert outstanding.room(10) == 0
    assert Outstanding(3, 100_000_000).room(0) == 3


@pytest.mark.parametrize(
    ("size", "room"), [(3_000_000, 32), (50_000, 1_999), (100, 4_999), (0, 4_999), (90_000_000, 1)]
)
def test_the_number_depends_on_the_size(size: int, room: int) -> None:
    """Small messages up to the limit of messages, large ones up to the bytes that are left, rounded down, but at least
    one."""
    assert holding(5_000, 100_000_000, size).room(0) == room


def test_requested_messages_count_with_the_size_of_earlier_ones() -> None:
    """Several requests together ask for no more than one would."""
    outstanding = holding(5_000, 1_000, 100)
    assert outstanding.room(0) == 9
    assert outstanding.room(4) == 5
    assert outstanding.room(9) == 0


@pytest.mark.parametrize("sizes", [(1_000,), (500, 500), (5_000,), (0, 1_001)])
def test_nothing_is_requested_beyond_the_bound(sizes: tuple[int, ...]) -> None:
    """Until enough messages have been acknowledged, even where one message exceeds the bound."""
    outstanding = holding(5_000, 1_000, *sizes)
    assert outstanding.room(0) == 0
    outstanding.drop(map(str, range(len(sizes))))
    assert outstanding.room(0) >= 1


def test_the_estimate_rises_at_once_and_falls_slowly() -> None:
    """One large answer is enough to ask for less; one small one is not enough to ask for much more."""
    outstanding = holding(10**9, 1_000_000, 100)
    outstanding.drop(["0"])
    assert outstanding.room(0) == 10_000
    outstanding.add([("a", 10_000)])
    outstanding.drop(["a"])
    assert outstanding.room(0) == 100
    rooms = []
    for _ in range(30):
        outstanding.add([("b", 100)])
        outstanding.drop(["b"])
        rooms.append(outstanding.room(0))
    assert rooms[0] == 132
    assert rooms == sorted(rooms)
    assert 9_000 < rooms[-1] <= 10_000


def test_a_redelivered_message_counts_once() -> None:
    """Under the same ack id, as after the end of its lease."""
    outstanding = holding(5_000, 1_000, 400)
    outstanding.add([("0", 400)])
    assert outstanding.room(0) == 1
    outstanding.drop(["0", "0", "unknown"])
    assert outstanding.room(0) == 2


def test_leases_are_listed_by_their_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """An age of zero lists all of them."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    outstanding = holding(10, 1_000, 1)
    now[0] += 5.0
    outstanding.add([("late", 1)])
    assert outstanding.older_than(5.0) == ["0"]
    assert outstanding.older_than(5.1) == []
    assert sorted(outstanding.older_than(0.0)) == ["0", "late"]


@given(st.lists(st.lists(st.integers(0, 100), max_size=5), max_size=20), st.integers(1, 500), st.integers(1, 20))
def test_what_is_held_is_bounded_whatever_arrives(answers: list[list[int]], max_bytes: int, max_messages: int) -> None:
    """An answer has at most the requested number; so only the last one exceeds a bound, and only in bytes."""
    outstanding = Outstanding(max_messages, max_bytes)
    here: dict[str, int] = {}
    for n, sizes in enumerate(answers):
        asked = outstanding.room(0)
        if asked < 1:
            assert sum(here.values()) >= max_bytes or len(here) == max_messages
            outstanding.drop(here)
            here = {}
            continue
        assert sum(here.values()) < max_bytes
        came = {f"{n}-{i}": size for i, size in enumerate(sizes[:asked])}
        outstanding.add(list(came.items()))
        here |= came
        assert len(here) <= max_messages
