"""A model of appending: every order of a few requests, random orders of more requests."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.append_model import (
    Actor,
    Appender,
    Broken,
    Committer,
    Deleter,
    Folder,
    Reader,
    begin,
    explore,
    following,
)


def e(*events: int) -> frozenset[int]:
    """Events."""
    return frozenset(events)


@pytest.mark.parametrize(
    "actors",
    [
        pytest.param([Appender(1, e(0, 1)), Appender(2, e(1, 2), 1), Committer(e(0, 3)), Folder()], id="a commit"),
        pytest.param(
            [Appender(1, e(0, 1)), Appender(2, e(1, 2), 1), Committer(e(0), 1), Folder(), Folder(1)], id="two folders"
        ),
        pytest.param([Appender(1, e(0, 1)), Committer(e(0)), Committer(e(0, 2), 2), Folder(1)], id="two committers"),
        pytest.param([Appender(1, e(0, 1)), Committer(e(1, 2)), Folder(1), Reader()], id="a reader"),
        pytest.param([Appender(1, e(0, 1)), Committer(e(0)), Folder(1), Deleter()], id="a deletion"),
        pytest.param([Appender(1, e(0, 1)), Folder(), Folder(1), Reader(), Deleter()], id="all but commits"),
        pytest.param([Appender(1, e(0, 1)), Committer(e(1, 2), 2), Folder(), Reader(fresh=False)], id="as of a fold"),
    ],
)
def test_every_order_counts_each_event_once(actors: Sequence[Actor]) -> None:
    """Whatever is lost, late or executed twice."""
    assert explore(actors) > 500


@pytest.mark.parametrize(
    ("actors", "problem"),
    [
        pytest.param([Appender(1, e(0)), Folder(claims=False), Deleter()], "worth", id="first fold without a claim"),
        pytest.param(
            [Appender(1, e(0), 1), Appender(2, e(1), 1), Folder(by_name=False)], "worth", id="deletes the family"
        ),
        pytest.param(
            [Appender(1, e(0), 1), Committer(e(0)), Committer(e(1)), Folder(skips_empty=False)],
            "forgets",
            id="a version with nothing new",
        ),
        pytest.param(
            [Appender(1, e(0)), Committer(e(0)), Folder(verifies=False), Deleter()], "worth", id="two rows: fold"
        ),
        pytest.param(
            [Appender(1, e(0)), Folder(), Reader(fresh=False, by_value=False)], "last fold", id="a version, no value"
        ),
        pytest.param([Appender(1, e(0)), Committer(e(0)), Reader(one_version=False)], "worth", id="two versions: read"),
        pytest.param([Appender(1, e(0), 1), Appender(1, e(1), 1)], "worth", id="a name used twice"),
    ],
)
def test_the_model_finds_a_broken_rule(actors: Sequence[Actor], problem: str) -> None:
    """Otherwise the model would prove nothing."""
    with pytest.raises(Broken, match=problem):
        explore(actors)


EVENTS = st.frozensets(st.integers(0, 6), min_size=1, max_size=4)


@st.composite
def crowds(draw: st.DrawFn) -> list[Actor]:
    """Groups of actors too large to try in every order."""
    appenders = [Appender(name, events) for name, events in enumerate(draw(st.lists(EVENTS, min_size=1, max_size=5)))]
    committers = [Committer(events) for events in draw(st.lists(EVENTS, max_size=3))]
    others: list[Actor] = [Folder(3)] * draw(st.integers(1, 3)) + [Reader(), Reader(fresh=False)][
        : draw(st.integers(0, 2))
    ]
    return [*appenders, *committers, *others, *[Deleter()] * draw(st.integers(0, 2))]


@settings(max_examples=150)
@given(actors=crowds(), seed=st.integers(0, 2**32))
def test_random_orders_count_each_event_once(actors: list[Actor], seed: int) -> None:
    """Of up to 15 actors."""
    chance, world = random.Random(seed), begin(actors)
    while after := list(following(actors, world)):
        world = chance.choice(after)
        if chance.random() < 0.01:
            return  # all of them crash
