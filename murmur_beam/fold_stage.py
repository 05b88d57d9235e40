"""The stage behind `MergeRecords` that folds tables that are appended to: each row by one worker, which remembers it.

`MergeDoFn` names rows by chance, and the names go on to `FoldDoFn`, keyed by row. Per row the runner keeps a timer, and
how often the row was named since its last fold and before; `fold_policy` decides. A row that will expire before its
events are old is not folded. If a worker is lost, the runner goes on elsewhere with the same state, and a fold that was
cut off is resumed by the next.
"""

from __future__ import annotations

import logging
from typing import Any

import apache_beam as beam
from apache_beam.coders import TupleCoder, VarIntCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from murmur_beam.beam_metrics import BeamRecorder
from murmur_beam.fold_policy import Decision, Named, expires_first, when_due, when_named
from murmur_beam.spec import MergeSpec
from murmur_beam.state.folding import Folded, FoldingStore
from murmur_beam.state.pool import Lease

_log = logging.getLogger(__name__)


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
        if named.pending + named.folded > 1:
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
        if not expires_first(self._store.expires_s(row), self._now(), self._plan):
            self._rows.append(row)

    def _report(self, folded: Folded) -> None:
        name = self._spec.name
        for what in ("folded", "events", "duplicates", "cells", "conflicts", "left", "unfoldable"):
            self._recorder.count(f"{name}:fold_{what}", getattr(folded, what))
        self._recorder.report()
        if folded.named and folded.named != self._known:
            self._known = folded.named
            _log.warning("%s: %s", name, folded.unfoldable_text)
