"""What a store offers that appends, and folds later."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

from murmur_beam.model import Key
from murmur_beam.state.base import Store, V

_NAMED = 20


class Folded(NamedTuple):
    """Totals of a fold.

    Attributes:
        rows: rows with enough pending cells.
        folded: rows whose aggregate was changed.
        cells, n_bytes: number and size of the cells that were deleted.
        events, duplicates: events that were folded, and events that had been counted before.
        conflicts: commits that had a version conflict.
        left: rows that other writers wrote all the time; the next fold takes them.
        unfoldable: events that cannot be folded; they stay pending.
        named: some of the rows of such events, and why.
        oldest_us: when the oldest folded cell was first tried, in microseconds; None if no cell was folded.
    """

    rows: int = 0
    folded: int = 0
    cells: int = 0
    n_bytes: int = 0
    events: int = 0
    duplicates: int = 0
    conflicts: int = 0
    left: int = 0
    unfoldable: int = 0
    named: tuple[str, ...] = ()
    oldest_us: int | None = None

    @property
    def unfoldable_text(self) -> str:
        """Names the events that cannot be folded."""
        return f"{self.unfoldable:,} events cannot be folded, and stay pending: {'; '.join(self.named)}"

    def plus(self, other: Folded) -> Folded:
        """The totals of both."""
        oldest = [us for us in (self.oldest_us, other.oldest_us) if us is not None]
        sums: list[Any] = [a + b for a, b in zip(self[:9], other[:9], strict=True)]
        return Folded._make([*sums, (self.named + other.named)[:_NAMED], min(oldest, default=None)])


class FoldingStore(Store[V]):
    """A store whose rows may hold pending events, and that can fold some rows on request.

    A row is named by its key in the store, so that what names rows need not know how a store spreads an aggregate.
    """

    @abc.abstractmethod
    def row_keys(self, keys: Sequence[Key], event_id: str | None) -> list[bytes]:
        """Names of the rows that an event may be in, once it has been written.

        Args:
            keys: that the event was written to.
            event_id: of the event; None: any row of the keys.
        """

    @abc.abstractmethod
    def fold_rows(self, rows: Sequence[bytes]) -> Folded:
        """Fold the pending events of these rows; others may append, fold and read meanwhile.

        Raises:
            TransientError, PermanentError: not every row could be folded; what was folded stays so, and another call
                goes on from there.
        """

    def require_folds(self) -> None:
        """Check, without writing, that the store can be folded as it was opened.

        Raises:
            PermanentError: it cannot.
            TransientError: the store does not answer.
        """

    @abc.abstractmethod
    def oldest_pending_s(self, rows: Sequence[bytes]) -> dict[bytes, float]:
        """When the oldest pending event of each row was first written, in seconds since the epoch, by the clock of its
        writer; without the rows that have no pending events.

        Raises:
            TransientError, PermanentError: the rows cannot be read.
        """

    @abc.abstractmethod
    def expires_s(self, row: bytes) -> float | None:
        """When a row of pending events expires, in seconds since the epoch; None: never."""
