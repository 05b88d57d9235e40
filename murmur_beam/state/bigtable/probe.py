"""The probe: `run` tries on a table what commits, reads, packing and appends rest on, whatever fails, and cleans up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from murmur_beam.errors import MurmurError, StoreUnavailable, TransientError
from murmur_beam.state.bigtable.assumptions import CORE, STEPS, Step, Wrong
from murmur_beam.state.bigtable.grpc_errors import is_creating
from murmur_beam.state.bigtable.meta import read_meta
from murmur_beam.state.bigtable.scratch import PREFIX, Scratch
from murmur_beam.state.bigtable.spec import BigtableSpec

OK, WRONG, NOTE = "ok", "wrong", "note"

_LIMIT_S = 60.0

_UNANSWERED = "The service gave no answer, so this is not known. Run the probe again."
_EMULATED = "A known difference of the emulator."
_NOT_REMOVED = (
    f"No reader looks at these rows. Remove them with Table.drop_by_prefix({PREFIX!r}) of google-cloud-bigtable."
)


class Result(NamedTuple):
    """What a step has found.

    Attributes:
        name: the step's.
        status: ``ok``, ``wrong``, or ``note`` for what nothing depends on.
        seen: what the service did.
        advice: what that means and what to do, where it is not as it should be.
    """

    name: str
    status: str
    seen: str
    advice: str = ""


class Report(NamedTuple):
    """What a probe has found.

    Attributes:
        layout: the table's, by its number.
        emulator: was it an emulator?
        results: of each step, and of the removal of the scratch rows.
        requests: that were sent.
        seconds: that it took.
    """

    layout: int
    emulator: bool
    results: list[Result]
    requests: int
    seconds: float

    @property
    def wrong(self) -> list[Result]:
        """What makes the table unfit."""
        return [result for result in self.results if result.status == WRONG]


def run(where: BigtableSpec, steps: Sequence[Step] = STEPS, limit_s: float = _LIMIT_S) -> Report:
    """Try steps on a table. One that fails keeps no other from being tried; the scratch rows are removed in any case.

    Args:
        where: which table.
        steps: which.
        limit_s: how long all of them may take; what is not done by then has failed.

    Raises:
        StoreUnavailable: the table is missing, has no record, or may not be used; or the probe was interrupted and its
            scratch rows could not be removed.
        TransientError: the table is still being created, or its record cannot be read now.
    """
    began_s = where.clock.monotonic()
    with closing(where.connect()) as connection:
        meta = connection.run(read_meta(connection))
        if meta is None:
            raise StoreUnavailable(f"{where}: what the table is for is not recorded; run murmur create-table first")
        scratch = Scratch(where, connection, meta)
        try:
            results = connection.run(_try_all(scratch, steps, began_s + limit_s))
        except BaseException as err:
            removal = _remove(scratch)
            # A table that is being created takes nothing, so that nothing is left.
            if removal.status == WRONG and not is_creating(err.__cause__):
                raise StoreUnavailable(f"{where}: {removal.name} {removal.seen}. {removal.advice}") from err
            raise
        results.append(_remove(scratch))
    return Report(
        meta.layout.number, scratch.emulator, results, scratch.requests + 1, where.clock.monotonic() - began_s
    )


def require_core(where: BigtableSpec) -> None:
    """Try what commits need, on a table that was just made.

    Raises:
        StoreUnavailable: it does not hold; the text says what, and what to do.
        TransientError: the table is still being created.
    """
    for result in run(where, CORE).wrong:
        raise StoreUnavailable(
            f"{where}: the table is made, but is not fit for commits: {result.name}: {result.seen}. {result.advice} "
            f"To see more: murmur check --probe '{where}'"
        )


async def _try_all(scratch: Scratch, steps: Sequence[Step], deadline_s: float) -> list[Result]:
    return [await _try(scratch, step, deadline_s - scratch.clock.monotonic()) for step in steps]


async def _try(scratch: Scratch, step: Step, left_s: float) -> Result:
    failed = WRONG if step.matters else NOTE
    try:
        seen = await asyncio.wait_for(step.run(scratch), left_s)
    except Wrong as wrong:
        known = wrong.emulated and scratch.emulator
        return Result(step.name, NOTE if known else failed, str(wrong), _EMULATED if known else step.advice)
    except asyncio.TimeoutError:
        return Result(step.name, failed, "not done when the time of the whole probe was over", _UNANSWERED)
    except Exception as err:
        error = scratch.connection.translated(err)
        if is_creating(err) or not isinstance(error, MurmurError):
            raise
        advice = _UNANSWERED if isinstance(error, TransientError) else step.advice
        return Result(step.name, failed, scratch.words(err), advice)
    return Result(step.name, OK if step.matters else NOTE, seen)


def _remove(scratch: Scratch) -> Result:
    name, left, why = "scratch rows", scratch.keys, ""
    try:
        left = scratch.connection.run(scratch.remove())
    except (Exception, KeyboardInterrupt) as err:
        why = f" ({scratch.words(err) if isinstance(err, Exception) else 'interrupted'})"
    if left:
        return Result(name, WRONG, f"not removed{why}: {', '.join(map(repr, left))}", _NOT_REMOVED)
    return Result(name, OK, f"{len(scratch.keys)} removed, and none is left")
