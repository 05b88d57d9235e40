"""Folds the rows that a program without Beam appends to, in a thread beside it.

Several programs may append to the same rows. Each counts how often it has named a row (`fold_policy`), and before a
fold looks at the row's oldest pending event: if that is newer than the first one that this program has counted, another
program has folded the row meanwhile. The program that folded a row last does so again after `FoldPlan.every`. The
others wait twice as long, and for twice the share. So a row has one folder at a time, and if that ends, another takes
its place. If two fold a row at once, one of them has a version conflict, and every number is right.
"""

from __future__ import annotations

import heapq
import queue
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from murmur_beam.fold_policy import Decision, Named, after_fold, expires_first, when_due, when_named
from murmur_beam.spec import FoldPlan, MergeSpec
from murmur_beam.state.folding import Folded, FoldingStore
from murmur_beam.state.pool import Lease

_MOST_ROWS = 200_000
"""About 80 MB. Beyond it, the rows that were named longest ago are forgotten."""
_SLACK_S = 0.001
"""Times are remembered in whole milliseconds."""
_PATIENT = 2.0


class _Row(NamedTuple):
    """What this program remembers of a row, whether it was the last to fold it, and when to look at it."""

    named: Named
    mine: bool
    due_s: float | None


class RowFolds:
    """The rows that this program has named, and when each is folded.

    Args:
        store: whose rows they are.
        plan: when to fold.
        now: seconds since the epoch.
        uniform: a random number between two, as `Clock.uniform`.
    """

    def __init__(
        self,
        store: FoldingStore[object],
        plan: FoldPlan,
        now: Callable[[], float],
        uniform: Callable[[float, float], float],
    ) -> None:
        self._store = store
        self._plan = plan
        self._others_plan = FoldPlan(_PATIENT * plan.every, min(1.0, _PATIENT * plan.share), plan.age + plan.every)
        self._now = now
        self._uniform = uniform
        self._rows: dict[bytes, _Row] = {}
        self._due: list[tuple[float, bytes]] = []

    def named(self, rows: Sequence[bytes]) -> None:
        """Remember that these rows were named."""
        now_s = self._now()
        for row in rows:
            known = self._rows.get(row) or _Row(Named(), False, None)
            self._apply(row, known.mine, when_named(known.named, now_s, self._plan_of(known)))
        while len(self._rows) > _MOST_ROWS:
            del self._rows[next(iter(self._rows))]

    def wait_s(self) -> float | None:
        """Seconds until the next row is due; None if none is."""
        return max(0.0, self._due[0][0] - self._now()) if self._due else None

    def fold_due(self) -> Folded:
        """Fold the rows that are due; the totals.

        Raises:
            Exception: not all could be folded; they are due again after `FoldPlan.every`.
        """
        now_s = self._now()
        ready = []
        while self._due and self._due[0][0] <= now_s:
            due_s, row = heapq.heappop(self._due)
            known = self._rows.get(row)
            if known is None or known.due_s != due_s:
                continue
            decision = when_due(known.named, now_s, self._plan_of(known))
            if decision.folds and not self._expires_first(row, now_s):
                ready.append(row)
            else:
                self._apply(row, known.mine, decision)
        return self._fold(ready)

    def fold_rest(self) -> Folded:
        """Fold the rows that were named more than once, to their last event; the totals.

        Raises:
            Exception: not all could be folded.
        """
        now_s = self._now()
        rest = [row for row, (named, _, _) in self._rows.items() if named.pending + named.folded > 1]
        return self._fold([row for row in rest if not self._expires_first(row, now_s)])

    def _fold(self, rows: Sequence[bytes]) -> Folded:
        if not rows:
            return Folded()
        now_s = self._now()
        try:
            oldest_s = self._store.oldest_pending_s(rows)
            left = {row for row, at_s in oldest_s.items() if self._is_left(row, at_s)}
            total = self._store.fold_rows(sorted(left))
        except BaseException:
            for row in rows:
                known = self._rows[row]
                self._apply(row, known.mine, Decision(known.named, now_s + self._plan.every.total_seconds()))
            raise
        for row in rows:
            self._apply(row, row in left, after_fold(self._rows[row].named, now_s, self._plan))
        return total

    def _is_left(self, row: bytes, oldest_s: float) -> bool:
        """Whether this program is the one to fold a row, whose oldest pending event is of that time."""
        named, mine, _ = self._rows[row]
        return mine if not named.pending else oldest_s <= named.since_ms / 1000 + _SLACK_S

    def _plan_of(self, known: _Row) -> FoldPlan:
        if known.mine:
            return self._plan
        # By chance, or else all would look at a new row in the same moment.
        return self._others_plan._replace(every=self._others_plan.every * self._uniform(1.0, 1.5))

    def _expires_first(self, row: bytes, now_s: float) -> bool:
        return expires_first(self._store.expires_s(row), now_s, self._plan)

    def _apply(self, row: bytes, mine: bool, decision: Decision) -> None:
        known = self._rows.pop(row, None)
        if decision.named is None:
            return
        due_s = decision.due_s if decision.due_s is not None else known and known.due_s
        self._rows[row] = _Row(decision.named, mine, due_s)
        if decision.due_s is not None:
            heapq.heappush(self._due, (decision.due_s, row))


class FoldThread:
    """A thread that folds rows when they are due, until `close`.

    Args:
        spec: of the merge; it says when to fold.
        warn: is given a line of text when something goes wrong, in the thread.

    Attributes:
        total: what was folded.

    Raises:
        MurmurError: the store cannot be opened.
    """

    def __init__(self, spec: MergeSpec, warn: Callable[[str], None]) -> None:
        assert spec.fold is not None
        self.total = Folded()
        self._warn = warn
        self._warned: tuple[str, ...] = ()
        self._every_s = spec.fold.every.total_seconds()
        self._lease = Lease(spec.store, spec.aggregate, spec.granularity)
        store = self._lease.store
        assert isinstance(store, FoldingStore)
        self._rows = RowFolds(store, spec.fold, spec.config.clock.now, spec.config.clock.uniform)
        self._names: queue.SimpleQueue[Sequence[bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="murmur-fold", daemon=True)
        self._thread.start()

    def named(self, rows: Sequence[bytes]) -> None:
        """Note that events were appended to these rows."""
        self._names.put(rows)

    def close(self) -> None:
        """Fold what is left, and end."""
        self._names.put(None)
        self._thread.join()
        self._lease.release()

    def _run(self) -> None:
        while self._take():
            self._fold(self._rows.fold_due, f"rows could not be folded; the next try is in {self._every_s:g} s")
        self._fold(self._rows.fold_rest, "rows could not be folded, and stay pending; run murmur fold")

    def _take(self) -> bool:
        """Wait for names until a row is due; False at the end."""
        try:
            rows = self._names.get(timeout=self._rows.wait_s())
        except queue.Empty:
            return True
        if rows is not None:
            self._rows.named(rows)
        return rows is not None

    def _fold(self, fold: Callable[[], Folded], problem: str) -> None:
        try:
            folded = fold()
        except Exception as err:  # a store may raise anything; merging goes on, and the events are safe
            self._warn(f"{problem}: {err}")
            return
        self.total = self.total.plus(folded)
        if folded.named and folded.named != self._warned:
            self._warned = folded.named
            self._warn(folded.unfoldable_text)
