"""How several programs share the folding of rows: simulated, with a store of pending events only."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from murmur_beam.errors import TransientError
from murmur_beam.fold_policy import EVERY
from murmur_beam.fold_thread import RowFolds
from murmur_beam.model import Key
from murmur_beam.spec import FoldPlan
from murmur_beam.state.folding import Folded, FoldingStore

ROW = b"busy"


class Table:
    """Rows of pending events, with the time of each, and who has folded them."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0
        self.pending: defaultdict[bytes, list[float]] = defaultdict(list)
        self.folds: list[tuple[float, str, bytes]] = []

    def since(self, begin_s: float, row: bytes = ROW) -> list[str]:
        """Programs that have folded the row since then, in order."""
        return [who for at_s, who, folded in self.folds if folded == row and at_s >= begin_s]


class Folding(FoldingStore[Any]):
    """The part of a store that folds, of one program.

    Attributes:
        fails: whether requests fail.
        expires: when each row expires.
    """

    def __init__(self, table: Table, who: str) -> None:
        self._table = table
        self._who = who
        self.fails = False
        self.expires: float | None = None

    def row_keys(self, keys: Sequence[Key], event_id: str | None) -> list[bytes]:
        raise NotImplementedError

    get_many = scan = merge_updates = close = row_keys

    def fold_rows(self, rows: Sequence[bytes]) -> Folded:
        if self.fails:
            raise TransientError("down")
        n = 0
        for row in rows:
            self._table.folds.append((self._table.now_s, self._who, row))
            n += len(self._table.pending.pop(row, []))
        return Folded(events=n)

    def oldest_pending_s(self, rows: Sequence[bytes]) -> dict[bytes, float]:
        return {row: min(times) for row in rows if (times := self._table.pending.get(row))}

    def expires_s(self, row: bytes) -> float | None:
        return self.expires


class Program:
    """One of several programs that append to the same rows."""

    def __init__(self, table: Table, who: str, plan: FoldPlan, chance: random.Random) -> None:
        self._table = table
        self._chance = chance
        self.store = Folding(table, who)
        self.folds = RowFolds(self.store, plan, lambda: table.now_s, chance.uniform)

    def append(self, row: bytes) -> None:
        """Append an event; one of some names its row."""
        self._table.pending[row].append(self._table.now_s)
        if self._chance.random() < 1 / EVERY:
            self.folds.named([row])


def programs(table: Table, n: int, seed: int, share: float = 0.1) -> list[Program]:
    """Programs that fold 10 s after a write."""
    plan = FoldPlan(timedelta(seconds=10), share, timedelta(hours=1))
    return [Program(table, f"p{i}", plan, random.Random(1_000 * seed + i)) for i in range(n)]


def run(table: Table, some: Sequence[Program], seconds: int, per_s: int, chance: random.Random) -> int:
    """Let them append and fold for this time; the largest number of pending events of the row."""
    most = 0
    for _ in range(seconds):
        for _ in range(per_s):
            chance.choice(some).append(ROW)
        table.now_s += 1.0
        for each in some:
            each.folds.fold_due()
        most = max(most, len(table.pending[ROW]))
    return most


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_one_folds_at_a_time(n: int, share: float) -> None:
    """Nearly all folds are of one program, and there are as many as one alone would make."""
    table = Table()
    some = programs(table, n, seed=3, share=share)
    chance = random.Random(1)
    run(table, some, 60, 100, chance)
    begin_s = table.now_s
    run(table, some, 300, 100, chance)
    folds = table.since(begin_s)
    ((_, most),) = Counter(folds).most_common(1)
    assert most >= 0.9 * len(folds)
    if not share:
        assert 25 <= len(folds) <= 33


def test_another_takes_the_place_of_one_that_ends() -> None:
    """Without any message: it sees that nothing was folded. What is pending meanwhile is bounded."""
    table = Table()
    some = programs(table, 4, seed=5)
    chance = random.Random(2)
    run(table, some, 120, 100, chance)
    (owner,) = set(table.since(table.now_s - 60))
    rest = [each for each in some if each.store._who != owner]
    begin_s = table.now_s
    most = run(table, rest, 300, 100, chance)
    assert owner not in table.since(begin_s)
    ((_, folded),) = Counter(table.since(begin_s + 90)).most_common(1)
    assert folded == len(table.since(begin_s + 90)) > 0, "again one of them"
    # 12,000 events were folded before: two tenths and a sampling error of them, or what comes in 4 x 10 s.
    assert most <= 0.2 * 12_000 * 1.5 + 40 * 100


def test_a_fold_that_fails_is_tried_again() -> None:
    """What was counted is kept."""
    table = Table()
    (one,) = programs(table, 1, seed=7)
    one.folds.named([ROW])
    one.folds.named([ROW])
    table.pending[ROW] = [table.now_s] * 20
    one.store.fails = True
    table.now_s += 31
    with pytest.raises(TransientError):
        one.folds.fold_due()
    assert one.folds.wait_s() == pytest.approx(10)
    one.store.fails = False
    table.now_s += 10
    assert one.folds.fold_due().events == 20


def test_the_rest_is_folded_at_the_end() -> None:
    """Rows that were named once, or that expire first, are left."""
    table = Table()
    (one,) = programs(table, 1, seed=7)
    one.folds.named([ROW, b"once", ROW])
    table.pending = defaultdict(list, {ROW: [table.now_s], b"once": [table.now_s]})
    one.store.expires = table.now_s + 3_599
    assert one.folds.fold_rest() == Folded()
    one.store.expires = table.now_s + 3_601
    assert one.folds.fold_rest().events == 1
    assert list(table.pending) == [b"once"]
    table.pending[ROW] = [table.now_s]  # and not named
    assert one.folds.fold_rest().events == 1


def test_a_row_that_expires_first_is_not_folded() -> None:
    """Garbage collection takes it."""
    table = Table()
    (one,) = programs(table, 1, seed=7)
    one.store.expires = table.now_s
    one.folds.named([ROW, ROW])
    table.pending[ROW] = [table.now_s]
    table.now_s += 60
    assert one.folds.fold_due() == Folded()
    assert table.folds == []


def test_idle_rows_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """By time, and beyond a number of rows, those that were named longest ago first."""
    table = Table()
    (one,) = programs(table, 1, seed=7)
    one.folds.named([ROW])
    table.now_s += 2 * 3_600
    one.folds.fold_due()
    assert one.folds.wait_s() is None
    monkeypatch.setattr("murmur_beam.fold_thread._MOST_ROWS", 2)
    one.folds.named([b"a", b"b", b"a", b"c"])
    assert set(one.folds._rows) == {b"a", b"c"}
