"""The stage behind `MergeRecords` that folds tables that are appended to: each row by one worker, which remembers it.

`RowSampler` picks one event of `EVERY` at random, and the names of its rows go on to `FoldDoFn`, keyed by row. So a
busy row is named soon and often, and a row of one event seldom. Per row the runner keeps a timer, and how often the row
was named since its last fold and before. A row is folded when its pending events are a share of those folded before, or
old; not if it will expire before that. If a worker is lost, the runner goes on elsewhere with the same state, and a
fold that was cut off is resumed by the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import TupleCoder, VarIntCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from murmur_beam.beam_metrics import BeamRecorder
from murmur_beam.spec import FoldPlan, MergeSpec
from murmur_beam.state.folding import Folded, FoldingStore
from murmur_beam.state.pool import Lease

EVERY = 16
"""One event of this many names its rows. A row is folded after it was named twice, so after some 32 events."""

_log = logging.getLogger(__name__)


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
    return Decision(Named(0, named.folded + named.pending), now_s + limit_s, folds=True)


class FoldDoFn(beam.DoFn):
    """Folds the rows that are named, some time after.

    Args:
        spec: of the merge before it; it says when to fold.
        at_end: fold at the end of the input only. Beam's runner in this process refuses to end before all timers, and a
            batch runner works on one stage after the other, so that timers would only be late.
    """

    NAMED = ReadModifyWriteStateSpec("named", TupleCoder([VarIntCoder(), VarIntCoder(), VarIntCoder()]))
    DUE = TimerSpec("due", TimeDomain.REAL_TIME)
    END = TimerSpec("end", TimeDomain.WATERMARK)
    """At the end of all input: a pipeline that ends leaves nothing for later."""

    def __init__(self, spec: MergeSpec, *, at_end: bool) -> None:
        super().__init__()
        self._spec = spec
        self._at_end = at_end

    def setup(self) -> None:
        """Open the store, which the merge in this process shares."""
        assert self._spec.fold is not None
        self._plan = self._spec.fold
        self._now = self._spec.config.clock.now
        self._recorder = BeamRecorder(self._spec.config.recorder)
        self._lease = Lease(self._spec.store, self._spec.aggregate, self._spec.granularity)
        assert isinstance(self._lease.store, FoldingStore)
        self._store = self._lease.store
        self._rows: list[bytes] = []
        self._known: tuple[str, ...] = ()

    def start_bundle(self) -> None:
        """Forget the rows of a bundle that failed."""
        self._rows.clear()
        self._recorder.clear()

    def process(
        self,
        element: tuple[bytes, int],
        state: Any = beam.DoFn.StateParam(NAMED),
        due: Any = beam.DoFn.TimerParam(DUE),
        end: Any = beam.DoFn.TimerParam(END),
        window: Any = beam.DoFn.WindowParam,
    ) -> None:
        """Remember that a row was named."""
        before = state.read()
        if before is None:
            end.set(window.max_timestamp())
        self._apply(when_named(Named(*(before or ())), self._now(), self._plan), state, due, end)

    @on_timer(DUE)  # type: ignore[untyped-decorator] # Beam's
    def on_due(
        self,
        row: bytes = beam.DoFn.KeyParam,
        state: Any = beam.DoFn.StateParam(NAMED),
        due: Any = beam.DoFn.TimerParam(DUE),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> None:
        """Fold the row if it is time to, and look again later."""
        decision = when_due(Named(*(state.read() or ())), self._now(), self._plan)
        if decision.folds:
            self._take(row)
        self._apply(decision, state, due, end)

    @on_timer(END)  # type: ignore[untyped-decorator] # Beam's
    def on_end(
        self,
        row: bytes = beam.DoFn.KeyParam,
        state: Any = beam.DoFn.StateParam(NAMED),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> None:
        """Fold the row for the last time. An engine would wait for its other timer."""
        due.clear()
        named = Named(*(state.read() or ()))
        if named.pending and named.pending + named.folded > 1:
            self._take(row)
        state.clear()

    def finish_bundle(self) -> None:
        """Fold the rows whose time has come, together.

        Raises:
            TransientError, PermanentError: not every row could be folded; the runner tries the bundle again.
        """
        if self._rows:
            rows, self._rows = self._rows, []
            self._report(self._store.fold_rows(rows))

    def teardown(self) -> None:
        """Close the store, unless another step of this process uses it."""
        self._lease.release()

    def _apply(self, decision: Decision, state: Any, due: Any, end: Any) -> None:
        if decision.named is None:
            # Nothing of a row stays with the runner: there may be new rows forever.
            state.clear()
            end.clear()
        else:
            state.write(tuple(decision.named))
        if decision.due_s is not None and not self._at_end:
            due.set(Timestamp(decision.due_s))

    def _take(self, row: bytes) -> None:
        """Fold the row at the end of the bundle, unless it expires before its pending events would be old."""
        expires_s = self._store.expires_s(row)
        if expires_s is None or expires_s > self._now() + self._plan.age.total_seconds():
            self._rows.append(row)

    def _report(self, folded: Folded) -> None:
        name = self._spec.name
        for what in ("folded", "events", "duplicates", "cells", "conflicts", "left", "unfoldable"):
            self._recorder.count(f"{name}:fold_{what}", getattr(folded, what))
        self._recorder.report()
        if folded.named and folded.named != self._known:
            self._known = folded.named
            _log.warning(
                "%s: %d events cannot be folded, and stay pending: %s", name, folded.unfoldable, "; ".join(folded.named)
            )
