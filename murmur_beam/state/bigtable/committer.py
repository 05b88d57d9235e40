"""The protocol of commits: each is on condition that the row is still at the version that is known.

A commit says: if the version is still the one I know, add the delta, raise the version by one, and write the markers of
these events. If another writer has committed meanwhile, nothing happens; then the row is read, and what is still new is
tried again. A commit whose answer was lost is settled by reading the row, too: its marker column is there, or it is
not. A commit that is still on its way does no harm: the next one has the same condition, so at most one of them can be
applied.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Generic, TypeVar

from murmur_beam.errors import PermanentError, TransientError
from murmur_beam.model import Outcome
from murmur_beam.state.base import UpdateResults
from murmur_beam.state.bigtable import row_cache, wire
from murmur_beam.state.bigtable.attempt import CommitPlan, FoldCommit, PreparedCommit, RowAttempt
from murmur_beam.state.bigtable.batch import RowUpdates, WriteBatch
from murmur_beam.state.bigtable.channels import Burst
from murmur_beam.state.bigtable.codec import RowCodec
from murmur_beam.state.bigtable.commit_planner import CommitPlanner
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.dispatcher import Dispatcher, all_of
from murmur_beam.state.bigtable.grpc_errors import is_unavailable
from murmur_beam.state.bigtable.keys import parse_row_key
from murmur_beam.state.bigtable.read_rows import Row
from murmur_beam.state.bigtable.refresher import BIAS_LIMIT, ROWS_PER_READ, Refresher, resolve_unanswered
from murmur_beam.state.bigtable.refusals import Refusals, commit_nothing
from murmur_beam.state.bigtable.row_cache import CachedRow, RowCache, Waiter
from murmur_beam.state.bigtable.sizes import WARN_ROW_BYTES
from murmur_beam.state.bigtable.spec import BigtableSpec
from murmur_beam.state.bigtable.value_cells import int64

V = TypeVar("V")

_log = logging.getLogger(__name__)

_READ_LANES = 4
_PROBE_ROWS = 16
# A commit of more events costs more than a read that shows whether it can be applied.
_READ_FIRST = 256
# At most this many unanswered commits of a row are remembered; events of older ones that were applied are reported as
# duplicates.
_MAX_UNANSWERED = 32
# Each version conflict raises a row's contention by this many steps, to at most this many.
_CONTENTION_UP, _CONTENTION_STEPS = 3, 8
# Commits that may follow one without a conflict before the next wait: they need no read. More of them raise the rate,
# but also the longest wait of the other writers.
_FREE_COMMITS = 2


class RowCommitter(Generic[V]):
    """Commits updates to their rows.

    Args:
        spec: which table, and the limits of work on it.
        connection, dispatcher: to the table.
        codec: of its rows.

    Attributes:
        rows: what is known of them.
    """

    def __init__(self, spec: BigtableSpec, connection: Connection, dispatcher: Dispatcher, codec: RowCodec[V]) -> None:
        self.connection = connection
        self.rows = RowCache(spec.max_cached_events)
        self._spec = spec
        self._clock = spec.clock
        self._dispatcher = dispatcher
        self._commit_refusals = Refusals(spec, connection, dispatcher, commit_nothing)
        self._codec = codec
        self._planner = CommitPlanner(codec)
        self._refresher = Refresher(spec, connection, dispatcher, codec, self.rows)
        self._commit_count = 0
        self._batches = 0
        self._writer = os.urandom(8)
        self._chance = random.Random()
        self._warned: set[bytes] = set()

    async def merge(self, rows: Sequence[RowUpdates], batch: WriteBatch) -> None:
        """Merge the updates of many rows; their results are put into ``batch.results``."""
        batch.results.sizes = {"row_bytes": 0, "journal_bytes": 0}
        portions = self._portions(rows)

        async def work() -> None:
            for portion in portions:
                if self._refresher.existing_bias < 0:
                    await self._commit_all(portion, batch)
                else:
                    await self._read_and_commit(portion, batch)

        self._batches += 1
        try:
            lanes = 1 if self._refresher.existing_bias == -BIAS_LIMIT else min(len(rows), _READ_LANES)
            await all_of([work() for _ in range(lanes)])
        finally:
            self._batches -= 1

    async def forget(self, row_keys: Sequence[bytes]) -> None:
        """Forget rows that were deleted."""
        for row_key in row_keys:
            if row_key not in self.rows:
                continue
            row = self.rows.borrow(row_key)
            try:
                await row.acquire(Waiter())
                row.forget()
                row.release()
            finally:
                self.rows.give_back(row)

    def learn(self, row_key: bytes, row: CachedRow, found: Row | None) -> None:
        """Learn what a read with `wire.only_news` of version 0 found of a row of which nothing is known.

        Raises:
            PermanentError: its value cannot be decoded.
        """
        self._refresher.absorb(row, row_key, found, UpdateResults())

    async def fold(self, row_key: bytes, row: CachedRow, fold: FoldCommit, deadline: float) -> bool:
        """Commit once, on condition that a row, whose lock must be held, is still as it is known.

        If the row has no version, the commit gives it one and does nothing else: otherwise a fold of what was read
        before the row was deleted could be applied after that.

        Returns:
            False: there was a version conflict; what is known of the row is wrong.

        Raises:
            Exception: it may have been applied or not; nothing is known of the row any more.
        """
        batch = _empty_batch(deadline)
        attempt = RowAttempt(RowUpdates(row_key, parse_row_key(row_key)[0].bucket, ()), row, batch)
        plan = CommitPlan(None, fold.fingerprints, fold.value, fold.stored, fold.expires_us, writes=True)
        columns = await self._columns_to_pack(attempt) if plan.packs(row) else []
        prepared = self._prepare(row, attempt.updates, plan, columns, self._now_us(), fold.beside)
        version = row.version
        try:
            call = functools.partial(self.connection.commit, prepared.request)
            met = await self._commit_refusals.send(call, deadline)
        except BaseException:
            row.forget()
            raise
        if met != (version > 0):
            return False
        self._committed(row, plan, prepared, batch.results)
        return True

    def _portions(self, rows: Sequence[RowUpdates]) -> Iterator[Sequence[RowUpdates]]:
        """Portions to read or write together: if unknown rows tend to exist, many are read at once, instead of each
        after its first commit has failed. The first few rows show how it is.
        """
        done = 0
        while done < len(rows):
            bias = self._refresher.existing_bias
            size = len(rows) if bias == -BIAS_LIMIT else ROWS_PER_READ if bias == BIAS_LIMIT else _PROBE_ROWS
            yield rows[done : done + size]
            done += size

    async def _read_and_commit(self, rows: Sequence[RowUpdates], batch: WriteBatch) -> None:
        borrowed = [self.rows.borrow(updates.row_key) for updates in rows]
        try:
            await self._refresher.read_unknown(rows, batch.results)
            await self._commit_all(rows, batch)
        finally:
            for row in borrowed:
                self.rows.give_back(row)

    async def _commit_all(self, rows: Sequence[RowUpdates], batch: WriteBatch) -> None:
        attempts = [RowAttempt(updates, self.rows.borrow(updates.row_key), batch) for updates in rows]
        queue = iter(attempts)
        burst = self._dispatcher.burst

        async def work() -> None:
            while some := list(islice(queue, burst)):
                await self._commit_burst(some)

        if self._batches > 1:
            for attempt in attempts:
                attempt.row.enqueue(attempt)
        try:
            await all_of([work() for _ in range(min(-(-len(attempts) // burst), self._spec.max_in_flight))])
        finally:
            for attempt in attempts:
                self._abandon(attempt)
                attempt.row.dequeue(attempt)
                self.rows.give_back(attempt.row)

    async def _commit_burst(self, attempts: Sequence[RowAttempt]) -> None:
        """Send a first try of each row, all at once; then finish the rows that need more."""
        gate = self._dispatcher.gate
        async with self._dispatcher.in_flight:
            probes = await gate.enter()
            burst = self.connection.burst()
            try:
                now_us = self._now_us()
                with burst:
                    for attempt in attempts:
                        self._send_first(attempt, burst, now_us)
                    rest = [attempt for attempt in attempts if not await self._finish_first(attempt, burst)]
            finally:
                gate.leave(probes, burst.answered, broken=burst.broken)
            contended = [attempt for attempt in rest if attempt.contended]
            await all_of([self._finish(attempt) for attempt in rest if not attempt.contended])
        # These wait for other writers, not for the server, so they keep no other request from being sent.
        await all_of([self._finish(attempt) for attempt in contended])

    def _abandon(self, attempt: RowAttempt) -> None:
        """Release the row, and remember a commit of which it is not known whether it was applied."""
        if attempt.answer is not None or attempt.failure is not None or attempt.conflicted:
            assert attempt.plan is not None
            assert attempt.prepared is not None
            _remember_unanswered(attempt.row, attempt.plan, attempt.prepared, answered=attempt.conflicted)
            attempt.answer, attempt.failure, attempt.conflicted = None, None, False
        attempt.release()

    def _send_first(self, attempt: RowAttempt, burst: Burst, now_us: int) -> None:
        """Plan the commit and send it, unless the row is locked or must be read before."""
        if attempt.adopted or attempt.done or not attempt.row.try_acquire():
            return
        attempt.adopt_waiting()
        if _reads_first(attempt):
            return
        try:
            attempt.plan = plan = self._planner.plan(attempt.batch, attempt.updates, attempt.row)
        except Exception:
            return  # it is planned again by `_finish`, where the error hurts no other row
        if plan.writes and not plan.packs(attempt.row):
            attempt.prepared = self._prepare(attempt.row, attempt.updates, plan, [], now_us)
            attempt.answer = self.connection.commit(attempt.prepared.request, burst)

    async def _finish_first(self, attempt: RowAttempt, burst: Burst) -> bool:
        """Finish the row if the first try succeeded; False if it needs more."""
        plan, prepared = attempt.plan, attempt.prepared
        if plan is None or (prepared is None and (plan.writes or plan.fails)):
            return attempt.done
        if attempt.answer is not None and prepared is not None:
            try:
                met = await attempt.answer
            except Exception as err:
                if is_unavailable(err):
                    burst.broken = True
                else:
                    burst.heard = True
                attempt.answer, attempt.failure = None, err
                return False
            except asyncio.CancelledError:
                if not burst.overdue:
                    raise
                attempt.answer, attempt.failure = None, self.connection.overdue()
                return False
            burst.heard = True
            attempt.answer = None
            if met != (attempt.row.version > 0):
                attempt.conflicted = True
                return False
            self._committed(attempt.row, plan, prepared, attempt.batch.results)
        self._report(attempt, plan)
        attempt.release()
        return True

    async def _finish(self, attempt: RowAttempt) -> None:
        """Go on from where the first try has ended, until the row is done or has failed."""
        if not attempt.holds_lock:
            if not await attempt.row.acquire(attempt):
                return
            attempt.adopt_waiting()
        try:
            plan = await self._commit_row(attempt)
            self._report(attempt, plan)
        except Exception as err:
            error = self.connection.translated(err)
            if attempt.others and isinstance(error, PermanentError):
                attempt.disown()  # it may be the fault of one of them
                await self._finish(attempt)
                return
            attempt.settle([error] * len(attempt.updates.positions))
        attempt.release()

    async def _commit_row(self, attempt: RowAttempt) -> CommitPlan:
        """Try until it is done; the plan that was carried out."""
        updates, row, batch = attempt.updates, attempt.row, attempt.batch
        plan, prepared = attempt.plan, attempt.prepared
        verified = False
        if _reads_first(attempt):
            await self._refresher.wait_and_refresh(attempt)
        while True:
            if plan is None:
                plan = self._planner.plan(batch, updates, row)
            if not plan.writes:
                if verified or not plan.fails:
                    return plan
                # No write will show whether the row has changed, so a read must, before an update is refused.
                await self._refresher.refresh(attempt)
                verified = True
            else:
                if prepared is None:
                    columns = await self._columns_to_pack(attempt) if plan.packs(row) else []
                    prepared = self._prepare(row, updates, plan, columns, self._now_us())
                if await self._commit(attempt, plan, prepared):
                    return plan
                if self._dispatcher.overdue(batch.deadline):
                    raise TransientError(
                        f"{self._spec}: {_named(updates.row_key)} was written by others for "
                        f"{self._spec.patience_s:g} s; append to the table (murmur create-table --write append), "
                        "or give each row one worker"
                    )
            plan = prepared = None

    # ---- committing ----

    async def _columns_to_pack(self, attempt: RowAttempt) -> list[tuple[bytes, bytes]]:
        """The row's oldest small marker columns as they are at the known version; empty if it has another."""
        row = attempt.row
        found: list[Row] = []
        with suppress(Exception):  # packing can wait; a failure of it must not fail the commit
            found = await self._refresher.read_news(attempt, row.packed)
        columns, version = [], 0
        for family, qualifier, _, data in found[0].cells if found else ():
            if family == wire.DEDUP and row_cache.is_small(data):
                columns.append((qualifier, data))
            elif qualifier == wire.VERSION and family == self._codec.layout.version_family:
                version = int64(data)
        if version != row.version:
            return []  # the commit will have a version conflict
        row.small = len(columns)
        return columns[: row_cache.PACKED] if row.small >= row_cache.PACK_AT else []

    def _prepare(
        self,
        row: CachedRow,
        updates: RowUpdates,
        plan: CommitPlan,
        columns: Sequence[tuple[bytes, bytes]],
        now_us: int,
        beside: Sequence[bytes] = (),
    ) -> PreparedCommit:
        """A commit that also packs these marker columns, and makes these mutations beside."""
        self._commit_count += 1
        # A row begins at a random version, so that one that was deleted and made again never has a former version.
        step = self._chance.getrandbits(40) + 1 if row.version == 0 else 1
        version = row.version + step
        qualifier = version.to_bytes(8, "big") + self._writer + self._commit_count.to_bytes(8, "big")
        layout = self._codec.layout
        at_us = self._codec.start_us(updates.bucket)
        mutations = [layout.raised(at_us, row.version, version), *beside]
        mutations += self._codec.changes(at_us, row.stored, plan.stored, row.expires_us, plan.expires_us)
        packed = None
        if plan.fingerprints:
            written_us = max(now_us, at_us)
            mutations.append(wire.put(wire.DEDUP, qualifier, written_us, plan.fingerprints))
            mutations += [wire.clear_column(wire.DEDUP, column) for column, _ in columns]
            if columns:
                packed = len(columns), columns[-1][0], b"".join([fingerprints for _, fingerprints in columns])
                mutations.append(wire.put(wire.DEDUP, packed[1], written_us, packed[2]))
        if row.version == 0:
            request = wire.commit(self.connection, updates.row_key, layout.exists, if_not=mutations)
        else:
            condition = layout.at_version(row.version)
            request = wire.commit(self.connection, updates.row_key, condition, if_met=mutations)
        return PreparedCommit(version, qualifier, packed, request)

    async def _commit(self, attempt: RowAttempt, plan: CommitPlan, prepared: PreparedCommit) -> bool:
        """Try to write; False after a version conflict, when the row is known as it is now."""
        row = attempt.row
        version = row.version
        try:
            if attempt.conflicted:
                met = version == 0
            else:
                call = functools.partial(self.connection.commit, prepared.request)
                met = await self._commit_refusals.send(call, attempt.batch.deadline, attempt.failure)
        except BaseException as err:
            if isinstance(err, Exception) and isinstance(self.connection.translated(err), PermanentError):
                row.forget()
                raise
            _remember_unanswered(row, plan, prepared)
            if not isinstance(err, Exception):
                raise
            await self._refresher.refresh(attempt)
            if row.version == version:
                raise
            return False
        finally:
            attempt.failure, attempt.conflicted = None, False
        if met == (version > 0):
            self._committed(row, plan, prepared, attempt.batch.results)
            return True
        if not row.read:
            self._refresher.guessed(exists=True)
        else:
            row.contention = min(row.contention + (_CONTENTION_UP if row.contention else 1), _CONTENTION_STEPS)
            row.free_commits = 0
        # It may have been applied all the same: by an earlier try, whose answer was lost on the way.
        _remember_unanswered(row, plan, prepared, answered=True)
        await self._refresher.wait_and_refresh(attempt)
        return False

    def _committed(self, row: CachedRow, plan: CommitPlan, prepared: PreparedCommit, results: UpdateResults) -> None:
        """Learn what was just written."""
        if not row.read:
            self._refresher.guessed(exists=False)
        row.read = True
        if row.contention:
            row.free_commits = row.free_commits - 1 if row.free_commits else _FREE_COMMITS
        row.version, row.stored = prepared.version, plan.stored
        row.value, row.expires_us = plan.value, plan.expires_us
        if prepared.packed:
            row.pack(*prepared.packed)
        if plan.fingerprints:
            row.learn(prepared.qualifier, plan.fingerprints)
        if row.unanswered:
            resolve_unanswered(row, (), results)

    def _now_us(self) -> int:
        """A timestamp as Bigtable takes it: in whole milliseconds."""
        return int(self._clock.now() * 1000) * 1000

    # ---- reporting ----

    def _report(self, attempt: RowAttempt, plan: CommitPlan) -> None:
        """Give out the results. An event that an unanswered commit of ours has merged is merged, not a duplicate."""
        row, updates, batch = attempt.row, attempt.updates, attempt.batch
        row.contention = max(row.contention - 1, 0)
        self._measure(updates, row, batch.results)
        results = plan.results
        if results is not None and row.unreported:
            for n, i in enumerate(updates.positions):
                if results[n] is Outcome.DUPLICATE and batch.fingerprints[i] in row.unreported:
                    row.unreported.discard(batch.fingerprints[i])
                    results[n] = Outcome.MERGED
        attempt.settle(results)

    def _measure(self, updates: RowUpdates, row: CachedRow, results: UpdateResults) -> None:
        row_bytes = len(updates.row_key) + self._codec.cells.size(row.stored) + row.marker_bytes
        sizes = results.sizes
        if row_bytes > sizes["row_bytes"]:
            sizes["row_bytes"] = row_bytes
        if row.marker_bytes > sizes["journal_bytes"]:
            sizes["journal_bytes"] = row.marker_bytes
        if row_bytes > WARN_ROW_BYTES and updates.row_key not in self._warned:
            self._warned.add(updates.row_key)
            _log.warning(
                "%s: %s has grown to %d MB, %d of them markers; beyond 100 MB it gets slow, and beyond 256 MB it "
                "cannot be read: use shards, shorter buckets, or a shorter retention of markers",
                self._spec,
                _named(updates.row_key),
                row_bytes >> 20,
                row.marker_bytes >> 20,
            )


def _reads_first(attempt: RowAttempt) -> bool:
    """Whether a read before the first commit is cheaper than the version conflict that it is likely to have."""
    row = attempt.row
    return (not row.read and len(attempt.updates.positions) > _READ_FIRST) or (
        row.contention > 0 and row.free_commits == 0
    )


def _remember_unanswered(row: CachedRow, plan: CommitPlan, prepared: PreparedCommit, *, answered: bool = False) -> None:
    """Remember a commit that may have been applied, or may yet be: a later read of the row shows it."""
    row.unanswered = row.unanswered or {}
    row.unanswered[prepared.qualifier] = row.version, plan.fingerprints, answered
    if len(row.unanswered) > _MAX_UNANSWERED:
        del row.unanswered[next(iter(row.unanswered))]


def _empty_batch(deadline: float) -> WriteBatch:
    batch = WriteBatch([], [], all_marked=True)
    batch.deadline = deadline
    return batch


def _named(row_key: bytes) -> str:
    key, shard = parse_row_key(row_key)
    return f"the row of {key.entity!r:.80}, bucket {key.bucket}, shard {shard}"
