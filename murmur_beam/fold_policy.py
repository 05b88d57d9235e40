"""When a row that was appended to is folded: decided by how often it was named lately, and before.

`RowSampler` picks one event of `EVERY` at random, and the rows of these events are named. So a busy row is named soon
and often, and a row of one event seldom. A row is folded when its pending events are a share of those folded before, or
old.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from murmur_beam.spec import FoldPlan

EVERY = 16
"""One event of this many names its rows. A row is folded after it was named twice, so after some 32 events."""


class RowSampler:
    """Picks one event of `EVERY`, with a random number of others in between.

    Args:
        uniform: a random number between two, as `Clock.uniform`.
    """

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._left = self._gap()

    def picks(self) -> bool:
        """Whether the next event is picked."""
        self._left -= 1
        if self._left > 0:
            return False
        self._left = self._gap()
        return True

    def _gap(self) -> int:
        # Uniform from 1 to 2 * EVERY - 1: the mean is EVERY, and no pattern of events can avoid it.
        return 1 + int(self._uniform(0.0, 2.0 * EVERY - 1.0))


class Named(NamedTuple):
    """What is remembered of a row.

    Attributes:
        pending: how often it was named since its last fold.
        folded: how often it was named before, as far as remembered.
        since_ms: when it was first named since its last fold, in milliseconds since the epoch.
    """

    pending: int = 0
    folded: int = 0
    since_ms: int = 0


class Decision(NamedTuple):
    """What is done with a row at a time.

    Attributes:
        named: what to remember; None: nothing.
        due_s: when to look again, in seconds since the epoch; None: when it is named again.
        folds: whether to fold it now.
    """

    named: Named | None
    due_s: float | None
    folds: bool = False


def when_named(named: Named, now_s: float, plan: FoldPlan) -> Decision:
    """A row was named once more. The first time it is only remembered: few rows of one event are ever folded."""
    more = named._replace(pending=named.pending + 1, since_ms=named.since_ms if named.pending else int(now_s * 1000))
    if more.pending + more.folded == 1:
        return Decision(more, now_s + plan.age.total_seconds())
    is_first = more.pending == (1 if named.folded else 2)
    return Decision(more, now_s + plan.every.total_seconds() if is_first else None)


def when_due(named: Named, now_s: float, plan: FoldPlan) -> Decision:
    """A row's timer has fired: fold it, look again later, or forget a row that is not written any more."""
    if not named.pending or named.pending + named.folded == 1:
        return Decision(None, None)
    limit_s = plan.age.total_seconds()
    age_s = now_s - named.since_ms / 1000
    if named.pending < plan.share * named.folded and age_s < limit_s:
        return Decision(named, now_s + min(plan.every.total_seconds(), limit_s - age_s))
    return after_fold(named, now_s, plan)


def after_fold(named: Named, now_s: float, plan: FoldPlan) -> Decision:
    """A row is folded now: remember it until it would be old."""
    return Decision(Named(0, named.folded + named.pending), now_s + plan.age.total_seconds(), folds=True)


def expires_first(expires_s: float | None, now_s: float, plan: FoldPlan) -> bool:
    """Whether a row expires before events of now would be old, so that no fold is worth it; None: it never expires."""
    return expires_s is not None and expires_s <= now_s + plan.age.total_seconds()
