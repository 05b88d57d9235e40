"""When a row that was appended to is folded: plain functions, without Beam."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.errors import ConfigurationError
from murmur_beam.fold_policy import EVERY, Decision, Named, RowSampler, when_due, when_named
from murmur_beam.options import MergeOptions
from murmur_beam.spec import FoldPlan, resolve
from murmur_beam.state.memory import MemorySpec

NOW_S = 1_800_000_000.0
PLAN = FoldPlan(every=timedelta(seconds=10), share=0.1, age=timedelta(hours=1))
OPTIONS = {"key": "k", "event_id": "id", "monoid": "count", "store": MemorySpec("test_fold_stage")}


def test_one_of_some_events_is_picked() -> None:
    """At random, and on average one of `EVERY`; never none for long."""
    sampler = RowSampler(random.Random(1).uniform)
    picked = [i for i in range(160_000) if sampler.picks()]
    assert len(picked) == pytest.approx(160_000 / EVERY, rel=0.03)
    gaps = Counter(b - a for a, b in itertools.pairwise(picked))
    assert min(gaps) == 1
    assert max(gaps) <= 2 * EVERY
    assert len(gaps) > EVERY


class TestDecisions:
    def test_the_first_naming_is_only_remembered(self) -> None:
        """A row of one event costs no fold; its state is forgotten when it is old."""
        first = when_named(Named(), NOW_S, PLAN)
        assert first == Decision(Named(1, 0, int(NOW_S * 1000)), NOW_S + 3600)
        assert first.named is not None
        assert when_due(first.named, NOW_S + 3600, PLAN) == Decision(None, None)

    def test_the_second_sets_the_timer(self) -> None:
        """Further ones do not move it: a busy row must be folded on time."""
        second = when_named(Named(1, 0, 5), NOW_S, PLAN)
        assert second == Decision(Named(2, 0, 5), NOW_S + 10)
        assert when_named(Named(2, 0, 5), NOW_S + 1, PLAN) == Decision(Named(3, 0, 5), None)

    def test_a_row_that_was_folded_needs_one(self) -> None:
        """It is known to be busy."""
        assert when_named(Named(0, 2, 0), NOW_S, PLAN) == Decision(Named(1, 2, int(NOW_S * 1000)), NOW_S + 10)

    def test_a_tenth_is_folded(self) -> None:
        """Less waits, but not longer than the limit."""
        since_ms = int(NOW_S * 1000)
        assert when_due(Named(10, 100, since_ms), NOW_S + 10, PLAN) == Decision(Named(0, 110), NOW_S + 3610, folds=True)
        assert when_due(Named(9, 100, since_ms), NOW_S + 10, PLAN) == Decision(Named(9, 100, since_ms), NOW_S + 20)
        assert when_due(Named(9, 100, since_ms), NOW_S + 3595, PLAN).due_s == NOW_S + 3600
        assert when_due(Named(9, 100, since_ms), NOW_S + 3600, PLAN).folds

    def test_an_idle_row_is_forgotten(self) -> None:
        """Its state does not stay with the runner."""
        assert when_due(Named(0, 110), NOW_S, PLAN) == Decision(None, None)

    @given(st.lists(st.floats(0.01, 5_000), min_size=1, max_size=200), st.floats(0, 1))
    def test_nothing_stays_pending(self, gaps: list[float], share: float) -> None:
        """Whenever a row is named: once it has been named twice, it is folded within the limit, and in the end its
        state is gone."""
        plan = PLAN._replace(share=share)
        now_s, due_s = NOW_S, None
        named: Named | None = None
        oldest_s: float | None = None
        times = [NOW_S + sum(gaps[: i + 1]) for i in range(len(gaps))]
        while times or due_s is not None:
            fires = due_s is not None and (not times or due_s <= times[0])
            if fires:
                assert due_s is not None
                now_s, due_s = due_s, None
                decision = when_due(named or Named(), now_s, plan)
                if decision.folds:
                    oldest_s = None
            else:
                now_s = times.pop(0)
                decision = when_named(named or Named(), now_s, plan)
                assert decision.named is not None
                if oldest_s is None and decision.named.pending + decision.named.folded > 1:
                    oldest_s = decision.named.since_ms / 1000
            named = decision.named
            due_s = due_s if decision.due_s is None else decision.due_s
            if named is None:
                oldest_s = None
            assert oldest_s is None or now_s - oldest_s <= plan.age.total_seconds() + 0.01
        assert named is None


class TestArguments:
    def test_defaults(self) -> None:
        """A tenth, and an hour."""
        assert resolve(MergeOptions(**OPTIONS)).fold is None
        assert resolve(MergeOptions(**OPTIONS, fold="10s")).fold == PLAN
        given = resolve(MergeOptions(**OPTIONS, fold=timedelta(minutes=1), fold_share=0.5, fold_age="5m")).fold
        assert given == FoldPlan(timedelta(minutes=1), 0.5, timedelta(minutes=5))

    @pytest.mark.parametrize(
        ("more", "argument", "problem"),
        [
            ({"fold": "0s"}, "fold", "expected a positive duration"),
            ({"fold": 5}, "fold", "expected a positive duration"),
            ({"fold": "1s", "fold_share": 2}, "fold_share", "must be a number from 0 to 1, got 2"),
            ({"fold_share": 0.1}, "fold_share", "needs fold"),
            ({"fold_age": "1h"}, "fold_age", "needs fold"),
        ],
    )
    def test_mistakes(self, more: dict[str, object], argument: str, problem: str) -> None:
        """Named, when the pipeline is built."""
        with pytest.raises(ConfigurationError) as caught:
            resolve(MergeOptions(**OPTIONS, **more))  # type: ignore[arg-type]
        assert caught.value.argument == argument
        assert caught.value.problem.startswith(problem)

    def test_a_store_that_folds_at_once_needs_none(self) -> None:
        """A flag that has no effect would mislead."""
        with pytest.raises(ConfigurationError, match=r"fold: .* folds each event when it is merged"):
            resolve(MergeOptions(**OPTIONS, fold="10s")).check_stores()
