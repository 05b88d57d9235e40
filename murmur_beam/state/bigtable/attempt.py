"""How far the updates of one row have come on their way into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from murmur_beam.model import Outcome
from murmur_beam.state.base import Result
from murmur_beam.state.bigtable import row_cache
from murmur_beam.state.bigtable.batch import EVENTS_PER_COMMIT, RowUpdates, WriteBatch, joined
from murmur_beam.state.bigtable.channels import Call
from murmur_beam.state.bigtable.row_cache import CachedRow, Waiter


class CommitPlan(NamedTuple):
    """What a commit does, if the row is still at the version that the plan was made for.

    Attributes:
        results: of the row's updates; None: all are merged.
        fingerprints: of the events that the commit folds, one after the other.
        value, stored, expires_us: the row's afterwards.
        writes: whether there is anything to write.
    """

    results: list[Result] | None
    fingerprints: bytes
    value: Any
    stored: Any
    expires_us: int | None
    writes: bool

    @property
    def fails(self) -> bool:
        """Whether any update fails."""
        return self.results is not None and any(isinstance(result, Exception) for result in self.results)

    def packs(self, row: CachedRow) -> bool:
        """Whether the commit also packs small marker columns."""
        return row.small >= row_cache.PACK_AT and bool(self.fingerprints)


class FoldCommit(NamedTuple):
    """What a fold writes.

    Attributes:
        fingerprints: of the events that it folds.
        value, stored, expires_us: the row's afterwards.
        beside: further mutations.
    """

    fingerprints: bytes
    value: Any
    stored: Any
    expires_us: int | None
    beside: Sequence[bytes] = ()


class PreparedCommit(NamedTuple):
    """A commit that is ready to be sent.

    Attributes:
        version: the row's afterwards.
        qualifier: of the column of its markers.
        packed: how many marker columns it packs, the qualifier of the packed column, and its fingerprints.
        request: its bytes.
    """

    version: int
    qualifier: bytes
    packed: tuple[int, bytes, bytes] | None
    request: bytes


class RowAttempt(Waiter):
    """The updates of a row, and how far the first try has come.

    Attributes:
        batch, updates: what is written: this attempt's own, or with those of other batches behind them.
        row: what is known of the row, and its lock.
        others: attempts of other batches that are written together with this one.
        holds_lock: whether this attempt holds the row's lock.
        plan, prepared, answer: what was done of the first try; None if it was not.
        failure: why there is no answer.
        conflicted: whether another writer was first.
    """

    __slots__ = (
        "answer",
        "batch",
        "conflicted",
        "failure",
        "holds_lock",
        "others",
        "own",
        "plan",
        "prepared",
        "row",
        "updates",
    )

    def __init__(self, updates: RowUpdates, row: CachedRow, batch: WriteBatch) -> None:
        super().__init__()
        self.own = batch, updates
        self.batch = batch
        self.updates = updates
        self.row = row
        self.others: list[RowAttempt] = []
        self.holds_lock = self.conflicted = False
        self.plan: CommitPlan | None = None
        self.prepared: PreparedCommit | None = None
        self.answer: Call | None = None
        self.failure: Exception | None = None

    @property
    def contended(self) -> bool:
        """Whether other writers have written the row, or hold its lock."""
        return self.conflicted or not self.holds_lock or self.row.contention > 0

    def adopt_waiting(self) -> None:
        """With the row's lock taken, adopt the work that waits for it, as much as one commit may hold."""
        self.holds_lock = True
        self.row.dequeue(self)
        events = len(self.updates.positions)
        for other in list(self.row.waiting or ()):
            if not isinstance(other, RowAttempt) or other.batch.over:
                continue
            events += len(other.updates.positions)
            if events > EVENTS_PER_COMMIT:
                break
            self.row.dequeue(other)
            other.adopted = True
            self.others.append(other)
        if self.others:
            self.batch, self.updates = joined([each.own for each in (self, *self.others)])
            own, _ = self.own
            self.batch.results.counts, self.batch.results.sizes = own.results.counts, own.results.sizes

    def disown(self) -> None:
        """Return adopted work to its owners, unless it has its results already."""
        for other in self.others:
            other.adopted = False
            if not (other.done or other.batch.over):
                self.row.enqueue(other)
        self.others = []
        self.batch, self.updates = self.own
        self.plan = self.prepared = None

    def release(self) -> None:
        """Release the row's lock."""
        if self.holds_lock:
            self.holds_lock = False
            self.disown()
            self.row.release()

    def settle(self, results: Sequence[Result] | None) -> None:
        """Give each batch its part of the results; None: all are merged."""
        if not self.others:
            self.batch.settle(self.updates, results)
            return
        results = results or self.batch.results
        start = 0
        for each in (self, *self.others):
            batch, updates = each.own
            some = results[start : start + len(updates.positions)]
            start += len(some)
            if not batch.over:
                batch.settle(updates, some)
            else:
                # Its caller did not wait for the results; it learns them when the events are delivered again.
                merged = [
                    batch.fingerprints[i]
                    for i, result in zip(updates.positions, some, strict=True)
                    if result is Outcome.MERGED
                ]
                self.row.unreported = (self.row.unreported or set()).union(filter(None, merged))
            if each is not self:
                each.done = True
                each.wake()
