"""What the folds of a row come to, on average, by the rules of ``MergeRecords(fold=...)`` (`murmur_beam.fold_stage`).

One event of `EVERY` names its row, at random. A row is folded some time after its second name. Then it is folded again
once it has a further name, and its pending events are a share of those folded before, or old.
"""

from __future__ import annotations

import math
from typing import NamedTuple

EVERY, EVENTS_PER_COMMIT = 16, 100_000
"""The fold stage's and the store's own numbers; tests/stores/test_plan.py compares them."""
_EXACT, _RARE = 30, 1e-4


class FoldRules(NamedTuple):
    """When a row is folded: this long after it was named, at this share of the events folded before, or this age."""

    every_s: float
    share: float
    age_s: float


class RowFolds(NamedTuple):
    """Of one row in its life: folds; the first of them, at most 1; commits; events folded; markers that the row had at
    its folds, added up."""

    folds: float
    first: float
    commits: float
    events: float
    markers: float


def at_least(n: int, mean: float) -> float:
    """The chance that a Poisson number is at least ``n``."""
    if mean <= 0:
        return 0.0
    if mean > _EXACT or n > 4 * _EXACT:  # the normal distribution is near enough
        return math.erfc((n - 0.5 - mean) / math.sqrt(2 * mean)) / 2
    term = less = math.exp(-mean)
    for k in range(1, n):
        term *= mean / k
        less += term
    return max(0.0, 1 - less)


def folds_of(events: float, life_s: float, rules: FoldRules) -> RowFolds:
    """The folds of a row that gets this many events, at an even rate, in its life."""
    names = events / EVERY
    per_look, per_age = names / life_s * rules.every_s, names / life_s * rules.age_s
    # A row that is named once is forgotten when the name is old.
    kept = 1.0 if life_s <= rules.age_s else -math.expm1(-per_age)
    first = kept * at_least(2, names)
    # All of a row with two names is folded, but what comes after its last name and the fold that follows.
    folded = kept * names * -math.expm1(-names)
    folded += (EVERY - 1) * (names * first - kept * at_least(3, names - per_look) * math.exp(-per_look))
    # The next fold needs one name more, in the time that is left after the looks so far.
    waited, at = 2, 2 + per_look
    folds, commits, markers = first, first * _commits(min(at, names)), 0.0
    while (chance := kept * at_least(waited + 1, names - (at - waited))) > _RARE:
        step = _step(at, per_look, per_age, rules.share)
        again = 1.0
        if step >= 1 + per_age or not rules.share:  # all further steps are alike
            again = max(1.0, (names - at) / step)
        folds += chance * again
        commits += chance * again * _commits(min(step, max(1.0, names - at)))
        # A row of few names has them far apart: of its events, a smaller part comes before.
        markers += chance * again * min(EVERY * (at + step * (again - 1) / 2), events * at / (at + 2))
        waited += math.ceil(again)
        at += step * again
    return RowFolds(folds, first, commits, folded, markers)


def _step(at: float, per_look: float, per_age: float, share: float) -> float:
    """Names from one fold, at which ``at`` were folded, to the next: the row is named, and then looked at in turns."""
    wanted = math.ceil(share * at - 1e-9) - 1
    return 1 + min(per_look * max(1, math.ceil(wanted / per_look - 1e-9)), per_age)


def _commits(names: float) -> float:
    return max(1.0, names * EVERY / EVENTS_PER_COMMIT)
