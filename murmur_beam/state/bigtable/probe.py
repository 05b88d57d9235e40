"""The probe: `run` tests the assumptions of commits, reads, packing and appends on a table, and cleans up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from murmur_beam.errors import MurmurError, StoreUnavailable, TransientError
from murmur_beam.state.bigtable.assumptions import CORE, STEPS, Step, Wrong
from murmur_beam.state.bigtable.grpc_errors import is_creating
from murmur_beam.state.bigtable.meta import APPEND, read_meta
from murmur_beam.state.bigtable.scratch import PREFIX, Scratch
from murmur_beam.state.bigtable.spec import BigtableSpec

OK, WRONG, NOTE = "ok", "wrong", "note"

_LIMIT_S = 60.0

_UNANSWERED = "The service did not answer, so the result is unknown. Run the probe again."
_EMULATED = "A known difference of the emulator."
_NOT_REMOVED = f"Readers ignore these rows. Remove them with Table.drop_by_prefix({PREFIX!r}) of google-cloud-bigtable."


class Result(NamedTuple):
    """The result of a step.

    Attributes:
        name: of the step.
        status: ``ok``, ``wrong``, or ``note`` for behaviour that nothing depends on.
        seen: observed behaviour of the service.
        advice: consequence of a failure, and what to do; empty if the step succeeded.
    """

    name: str
    status: str
    seen: str
    advice: str = ""


class Report(NamedTuple):
    """The result of a probe.

    Attributes:
        layout: number of the table's layout.
        emulator: whether the table is in an emulator.
        results: of each step, and of the removal of the scratch rows.
        requests: number of requests.
        seconds: duration.
    """

    layout: int
    emulator: bool
    results: list[Result]
    requests: int
    seconds: float

    @property
    def wrong(self) -> list[Result]:
        """Results that make the table unfit."""
        return [result for result in self.results if result.status == WRONG]


def run(where: BigtableSpec, steps: Sequence[Step] = STEPS, limit_s: float = _LIMIT_S) -> Report:
    """Run all steps on a table, whether others fail or not, and remove the scratch rows in any case.

    It uses the app profile that commits to the table: if the table is appended to, the profile of folds.

    Args:
        where: the table.
        steps: to run.
        limit_s: time limit for all steps; steps that are not done by then have failed.

    Raises:
        StoreUnavailable: the table is missing, has no record, or may not be used; or the probe was interrupted and its
            scratch rows could not be removed.
        TransientError: the table is still being created, or its record cannot be read now.
    """
    began_s = where.clock.monotonic()
    with closing(where.connect(folds=True)) as connection:
        meta = connection.run(read_meta(connection))
    if meta is None:
        raise StoreUnavailable(f"{where}: the table's purpose is not recorded; run murmur create-table first")
    with closing(where.connect(folds=meta.write == APPEND)) as connection:
        scratch = Scratch(where, connection, meta)
        try:
            results = connection.run(_try_all(scratch, steps, began_s + limit_s))
        except BaseException as err:
            removal = _remove(scratch)
            # A table that is still being created accepts no writes, so no rows are left.
            if removal.status == WRONG and not is_creating(err.__cause__):
                raise StoreUnavailable(f"{where}: {removal.name} {removal.seen}. {removal.advice}") from err
            raise
        results.append(_remove(scratch))
    return Report(
        meta.layout.number, scratch.emulator, results, scratch.requests + 1, where.clock.monotonic() - began_s
    )


def require_core(where: BigtableSpec) -> None:
    """Test the assumptions of commits, which folds make, too, on a table that was just created.

    Raises:
        StoreUnavailable: an assumption does not hold.
        TransientError: the table is still being created.
    """
    for result in run(where, CORE).wrong:
        raise StoreUnavailable(
            f"{where}: the table is created, but is not fit for commits: {result.name}: {result.seen}. {result.advice} "
            f"For details run: murmur check --probe '{where}'"
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
        return Result(step.name, failed, "not done within the time limit of the whole probe", _UNANSWERED)
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
