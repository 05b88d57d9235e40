"""The protocol: every commit is on condition that the row is still at the version that is known.

A commit says: if the version is still what I know, add the delta, add one to the version and note these events. If
somebody else has committed meanwhile, nothing happens; then the row is read, and what is new to it tried again. A
commit whose answer got lost is settled by reading the row as well: its column is there, or it is not. One that is still
on its way can do no harm: the next one has the same condition, so that only one of the two can come true.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from murmur_beam.errors import PermanentError, TransientError
from murmur_beam.model import Outcome
from murmur_beam.state.base import Flushed, Result, fold_row
from murmur_beam.state.bigtable import known, wire
from murmur_beam.state.bigtable.cells import Cells, int64
from murmur_beam.state.bigtable.connection import Burst, Call, Connection, is_unavailable
from murmur_beam.state.bigtable.groups import EVENTS_PER_COMMIT, Flush, Group, joined
from murmur_beam.state.bigtable.keys import parse_row_key
from murmur_beam.state.bigtable.known import KnownRow, KnownRows, Waiter, split
from murmur_beam.state.bigtable.reading import Row
from murmur_beam.state.bigtable.refusals import Refusals, commit_nothing, read_nothing
from murmur_beam.state.bigtable.sending import Sender, all_of
from murmur_beam.state.bigtable.settings import Settings
from murmur_beam.state.bigtable.sizes import WARN_ROW_BYTES

V = TypeVar("V")

_log = logging.getLogger(__name__)

MAX_VALUE_BYTES = 100 * 2**20
"""Bigtable's limit of a cell."""

_new = tuple.__new__  # of a NamedTuple: half the time of calling the class
_MERGED, _DUPLICATE = Outcome.MERGED, Outcome.DUPLICATE  # looked up once: that takes as long as to know an event again
_ROWS_PER_READ = 128
_READS = 4
_FIRST_ROWS = 16
# A commit of more events costs more than a read that shows whether it can come true.
_READ_FIRST = 256
_SURE = 8
# Of so many commits in a row without an answer, during an outage, it is found out that they were ours. Events of others
# that happened all the same are told to be duplicates.
_MAX_SENT = 32
# Waits of those who meet at a row that many write: steps up with each meeting, and one down with each merge.
_CROWD_S, _CROWD_MOST_S = 0.004, 0.5
_CROWD_UP, _CROWD_STEPS = 3, 8
# Commits that may follow one that came first, before the next wait: they take no read. More of them raise the rate, but
# also the longest wait of the others.
_LEAD = 2


class Fold(NamedTuple):
    """What a fold writes.

    Attributes:
        journal: fingerprints of the events that it brings in.
        value, column, expires_us: the row's, afterwards.
        beside: further mutations.
    """

    journal: bytes
    value: Any
    column: Any
    expires_us: int | None
    beside: Sequence[bytes] = ()


class _Plan(NamedTuple):
    """What a commit would do, if the row is still at the version it was made for.

    Attributes:
        results: of the group's updates; None: all are merged.
        journal: fingerprints of the events that it brings in.
        value, column, expires_us: the row's, afterwards.
        writes: is there anything to write?
    """

    results: list[Result] | None
    journal: bytes
    value: Any
    column: Any
    expires_us: int | None
    writes: bool

    @property
    def fails(self) -> bool:
        """Whether any update fails."""
        return self.results is not None and any(isinstance(result, Exception) for result in self.results)

    def packs(self, row: KnownRow) -> bool:
        """Tell whether it is time to put small columns together."""
        return row.small >= known.PACK_AT and bool(self.journal)


class _Attempt(NamedTuple):
    """A commit that is ready to be sent.

    Attributes:
        version: the row's, afterwards.
        marker: the column of its events.
        packed: how many columns it packs, into which, and with which events.
        request: itself.
    """

    version: int
    marker: bytes
    packed: tuple[int, bytes, bytes] | None
    request: bytes


class _Turn(Waiter):
    """A group with its row, and how far the first try has come.

    Attributes:
        group, flush: what is merged: its own, or with those of others behind it.
        others: of other flushes, which are merged with it.
        has_row: does nobody else have it?
        plan, attempt, answer: what is done; None where it is not.
        failure: why there is no answer.
        unmet: the row was not at the version it was known at.
    """

    __slots__ = (
        "answer", "attempt", "failure", "flush", "group", "has_row", "others", "own", "plan", "row", "unmet"
    )  # fmt: skip

    def __init__(self, group: Group, row: KnownRow, flush: Flush) -> None:
        super().__init__()
        self.own = flush, group
        self.group = group
        self.flush = flush
        self.row = row
        self.others: list[_Turn] = []
        self.has_row = self.unmet = False
        self.plan: _Plan | None = None
        self.attempt: _Attempt | None = None
        self.answer: Call | None = None
        self.failure: Exception | None = None

    @property
    def contended(self) -> bool:
        """Whether other writers have written the row, or hold it."""
        return self.unmet or not self.has_row or self.row.crowded > 0

    def join(self) -> None:
        """The row is ours: take what others wait to merge into it, as much as one commit may bring in."""
        self.has_row = True
        self.row.unwant(self)
        events = len(self.group.positions)
        for other in list(self.row.waiting or ()):
            if not isinstance(other, _Turn) or other.flush.over:
                continue
            events += len(other.group.positions)
            if events > EVENTS_PER_COMMIT:
                break
            self.row.unwant(other)
            other.adopted = True
            self.others.append(other)
        if self.others:
            self.flush, self.group = joined([each.own for each in (self, *self.others)])
            own, _ = self.own
            self.flush.results.counts, self.flush.results.sizes = own.results.counts, own.results.sizes

    def part(self) -> None:
        """Let others have their own back, if they were not told what became of it."""
        for other in self.others:
            other.adopted = False
            if not (other.done or other.flush.over):
                self.row.want(other)
        self.others = []
        self.flush, self.group = self.own
        self.plan = self.attempt = None

    def leave(self) -> None:
        """Let others have the row."""
        if self.has_row:
            self.has_row = False
            self.part()
            self.row.release()

    def give(self, results: Sequence[Result] | None) -> None:
        """Give each flush its part of the results; None: all are merged."""
        if not self.others:
            self.flush.settle(self.group, results)
            return
        results = results or self.flush.results
        start = 0
        for each in (self, *self.others):
            flush, group = each.own
            some = results[start : start + len(group.positions)]
            start += len(some)
            if not flush.over:
                flush.settle(group, some)
            else:
                # It would not wait any longer, and will be told when the events come again.
                merged = [flush.prints[i] for i, r in zip(group.positions, some, strict=True) if r is _MERGED]
                self.row.owed = (self.row.owed or set()).union(filter(None, merged))
            if each is not self:
                each.done = True
                each.tell()


class Commits(Generic[V]):
    """Commits groups of updates to their rows.

    Args:
        settings: which table, and how hard to work on it.
        connection, sender: to it.
        cells: what it holds.
    """

    def __init__(self, settings: Settings, connection: Connection, sender: Sender, cells: Cells[V]) -> None:
        self.connection = connection
        self.rows = KnownRows(settings.max_known_events)
        self._settings = settings
        self._clock = settings.clock
        self._sender = sender
        self._commit_refusals = Refusals(settings, connection, sender, commit_nothing)
        self._read_refusals = Refusals(settings, connection, sender, read_nothing)
        self._cells = cells
        self._commits = 0
        self._flushes = 0
        self._writer = os.urandom(8)
        self._chance = random.Random()
        self._warned: set[bytes] = set()
        # Have rows that nothing is known of turned out to exist lately? From -_SURE, never, to _SURE, always.
        self._cold = -1

    async def merge(self, groups: Sequence[Group], flush: Flush) -> None:
        """Merge the updates of many rows; what becomes of them goes to ``flush.results``."""
        flush.results.sizes = {"row_bytes": 0, "journal_bytes": 0}
        parts = self._parts(groups)

        async def work() -> None:
            for part in parts:
                if self._cold < 0:
                    await self._settle_all(part, flush)
                else:
                    await self._read_and_settle(part, flush)

        self._flushes += 1
        try:
            await all_of([work() for _ in range(1 if self._cold == -_SURE else min(len(groups), _READS))])
        finally:
            self._flushes -= 1

    async def forget(self, rows: Sequence[bytes]) -> None:
        """These were deleted, so that what is known of them is not true any more."""
        for encoded in rows:
            if encoded not in self.rows:
                continue
            row = self.rows.borrow(encoded)
            try:
                await row.acquire(Waiter())
                row.forget()
                row.release()
            finally:
                self.rows.give_back(row)

    def learn(self, encoded: bytes, row: KnownRow, found: Row | None) -> None:
        """Learn what a read with `wire.only_news` of version 0 found of a row of which nothing is known.

        Raises:
            PermanentError: its value cannot be decoded.
        """
        self._take(row, encoded, found, Flushed())

    async def fold(self, encoded: bytes, row: KnownRow, fold: Fold, deadline: float) -> bool:
        """Commit once, on condition that a row, which must be held, is still as it is known.

        Where the row has no version, this gives it one, and does nothing else: else a fold of what was read before the
        row was deleted could come true after that.

        Returns:
            False: it was not; what is known is wrong.

        Raises:
            Exception: it may have happened or not; nothing is known any more.
        """
        flush = _no_flush(deadline)
        bucket = parse_row_key(encoded)[0].bucket
        turn = _Turn(Group(encoded, bucket, ()), row, flush)
        plan = _Plan(None, fold.journal, fold.value, fold.column, fold.expires_us, True)
        columns = await self._to_pack(turn) if plan.packs(row) else []
        attempt = self._attempt(row, turn.group, plan, columns, self._now_us(), fold.beside)
        version = row.version
        try:
            call = functools.partial(self.connection.commit, attempt.request)
            met = await self._commit_refusals.send(call, deadline)
        except BaseException:
            row.forget()
            raise
        if met != (version > 0):
            return False
        self._committed(row, plan, attempt, flush.results)
        return True

    def _parts(self, groups: Sequence[Group]) -> Iterator[Sequence[Group]]:
        """Where rows turn out to exist they are read many at a time, not each when its first commit has failed. The
        first few rows show how it is."""
        done = 0
        while done < len(groups):
            size = len(groups) if self._cold == -_SURE else _ROWS_PER_READ if self._cold == _SURE else _FIRST_ROWS
            yield groups[done : done + size]
            done += size

    async def _read_and_settle(self, groups: Sequence[Group], flush: Flush) -> None:
        rows = [self.rows.borrow(group.encoded) for group in groups]
        try:
            await self._read_cold(groups, flush.results)
            await self._settle_all(groups, flush)
        finally:
            for row in rows:
                self.rows.give_back(row)

    async def _settle_all(self, groups: Sequence[Group], flush: Flush) -> None:
        turns = [_Turn(group, self.rows.borrow(group.encoded), flush) for group in groups]
        queue = iter(turns)
        burst = self._sender.burst

        async def work() -> None:
            while some := list(islice(queue, burst)):
                await self._merge_some(some)

        if self._flushes > 1:
            for turn in turns:
                turn.row.want(turn)
        try:
            await all_of([work() for _ in range(min(-(-len(turns) // burst), self._settings.max_in_flight))])
        finally:
            for turn in turns:
                self._end(turn)
                turn.row.unwant(turn)
                self.rows.give_back(turn.row)

    async def _merge_some(self, turns: Sequence[_Turn]) -> None:
        """Send a first try for each, all at once; then take care of those that take more."""
        gate = self._sender.gate
        async with self._sender.in_flight:
            probes = await gate.enter()
            burst = self.connection.burst()
            try:
                now_us = self._now_us()
                with burst:
                    for turn in turns:
                        self._begin(turn, burst, now_us)
                    rest = [turn for turn in turns if not await self._succeeds(turn, burst)]
            finally:
                gate.leave(probes, burst.answered, broken=burst.broken)
            contended = [turn for turn in rest if turn.contended]
            await all_of([self._settle(turn) for turn in rest if not turn.contended])
        # These wait for others, and not for the server: they keep nobody from being sent.
        await all_of([self._settle(turn) for turn in contended])

    def _end(self, turn: _Turn) -> None:
        """Let others have the row."""
        if turn.answer is not None or turn.failure is not None or turn.unmet:
            # Interrupted before it was found out whether it has happened.
            assert turn.plan is not None
            assert turn.attempt is not None
            self._sent(turn.row, turn.plan, turn.attempt, answered=turn.unmet)
            turn.answer, turn.failure, turn.unmet = None, None, False
        turn.leave()

    def _begin(self, turn: _Turn, burst: Burst, now_us: int) -> None:
        if turn.adopted or turn.done or not turn.row.try_acquire():
            return
        turn.join()
        if self._reads_first(turn):
            return
        try:
            turn.plan = self._plan(turn)
        except Exception:
            return  # the second time, on its own, it hurts no other
        if turn.plan.writes and not turn.plan.packs(turn.row):
            turn.attempt = self._attempt(turn.row, turn.group, turn.plan, [], now_us)
            turn.answer = self.connection.commit(turn.attempt.request, burst)

    async def _succeeds(self, turn: _Turn, burst: Burst) -> bool:
        """Is that all? Nearly always it is: nothing is new, or the row was as it was known."""
        plan, attempt = turn.plan, turn.attempt
        if plan is None or (attempt is None and (plan.writes or plan.fails)):
            return turn.done
        if turn.answer is not None and attempt is not None:
            try:
                met = await turn.answer
            except Exception as err:
                if is_unavailable(err):
                    burst.broken = True
                else:
                    burst.heard = True
                turn.answer, turn.failure = None, err
                return False
            except asyncio.CancelledError:
                if not burst.overdue:
                    raise
                turn.answer, turn.failure = None, self.connection.overdue()
                return False
            burst.heard = True
            turn.answer = None
            if met != (turn.row.version > 0):
                turn.unmet = True
                return False
            self._committed(turn.row, plan, attempt, turn.flush.results)
        self._tell(turn, plan)
        turn.leave()
        return True

    async def _settle(self, turn: _Turn) -> None:
        """Go on from where the first try has ended."""
        if not turn.has_row:
            if not await turn.row.acquire(turn):
                return
            turn.join()
        try:
            plan = await self._merge_row(turn)
            self._tell(turn, plan)
        except Exception as err:
            error = self.connection.translated(err)
            if turn.others and isinstance(error, PermanentError):
                turn.part()  # it may be the fault of one of them
                await self._settle(turn)
                return
            turn.give([error] * len(turn.group.positions))
        turn.leave()

    async def _merge_row(self, turn: _Turn) -> _Plan:
        """Try until it is done; what was done."""
        group, row, flush = turn.group, turn.row, turn.flush
        plan, attempt = turn.plan, turn.attempt
        verified = False
        if self._reads_first(turn):
            await self._wait_and_refresh(turn)
        while True:
            if plan is None:
                plan = self._plan(turn)
            if not plan.writes:
                if verified or not plan.fails:
                    return plan
                # Nothing will be written that could fail if the row has changed: so look.
                await self._refresh(turn)
                verified = True
            else:
                if attempt is None:
                    columns = await self._to_pack(turn) if plan.packs(row) else []
                    attempt = self._attempt(row, group, plan, columns, self._now_us())
                if await self._commit(turn, plan, attempt):
                    return plan
                if self._sender.overdue(flush.deadline):
                    raise TransientError(
                        f"{self._settings}: {_named(group.encoded)} was written by others for "
                        f"{self._settings.patience_s:g} s; spread its events with shards=N"
                    )
            plan = attempt = None

    @staticmethod
    def _reads_first(turn: _Turn) -> bool:
        row = turn.row
        return (not row.read and len(turn.group.positions) > _READ_FIRST) or (row.crowded > 0 and row.lead == 0)

    # ---- planning ----

    def _plan(self, turn: _Turn) -> _Plan:
        row, group, flush = turn.row, turn.group, turn.flush
        updates, prints = flush.updates, flush.prints
        has: Callable[[Any], bool] | None = row.has if row.events else None
        # Duplicates come by the bundle; where an event is new, that is soon found out.
        if has is not None and flush.all_marked and all(map(has, map(prints.__getitem__, group.positions))):
            duplicates: list[Result] = [_DUPLICATE] * len(group.positions)
            return _Plan(duplicates, b"", row.value, row.column, row.expires_us, False)
        fresh: list[V] = [] if row.value is None else [row.value]
        results: list[Result] | None = None
        claimed: dict[bytes, None] = {}
        for n, i in enumerate(group.positions):
            print_ = prints[i]
            if print_ is not None:
                if print_ in claimed or (has is not None and has(print_)):
                    if results is None:
                        results = [Outcome.MERGED] * len(group.positions)
                    results[n] = _DUPLICATE
                    continue
                claimed[print_] = None
            fresh.append(updates[i].delta)
        merges = len(fresh) > (row.value is not None)
        if not merges:
            return _Plan(results, b"", row.value, row.column, row.expires_us, False)
        try:
            column = self._cells.encoded(self._cells.monoid.fold(fresh))
        except Exception:  # which may be any, of a user's combine: one by one it is raised again, for one to blame
            column, results, claimed = self._planned_one_by_one(row, group, flush)
            merges = Outcome.MERGED in results
        if not self._cells.sums and len(column) > MAX_VALUE_BYTES:
            error = PermanentError(
                f"value: the {self._cells.monoid.name} would take {len(column):,} bytes, "
                f"at most {MAX_VALUE_BYTES:,} are allowed"
            )
            results = [error if r is Outcome.MERGED else r for r in results or [Outcome.MERGED] * len(group.positions)]
            return _Plan(results, b"", row.value, row.column, row.expires_us, False)
        # As whoever reads it will see it; if that cannot be, nothing is written.
        value = self._cells.decoded(group.encoded, column)
        expires_us = self._cells.expires_us(row.version > 0, row.expires_us, updates[group.positions[-1]].ttl)
        changes = column != row.column or expires_us != row.expires_us
        writes = bool(claimed) or (changes and merges)
        return _new(_Plan, (results, b"".join(claimed), value, column, expires_us, writes))

    def _planned_one_by_one(
        self, row: KnownRow, group: Group, flush: Flush
    ) -> tuple[Any, list[Result], dict[bytes, None]]:
        updates = [flush.updates[i] for i in group.positions]
        prints = {flush.updates[i].event_id: print_ for i in group.positions if (print_ := flush.prints[i]) is not None}
        claimed: dict[bytes, None] = {}

        def claim(event_id: str) -> bool:
            print_ = prints[event_id]
            if print_ in claimed or row.has(print_):
                return False
            claimed[print_] = None
            return True

        column, results = fold_row(
            self._cells.monoid,
            row.value,
            updates,
            claim,
            lambda event_id: claimed.pop(prints[event_id]),
            self._cells.encoded,
        )
        return column, results, claimed

    # ---- committing ----

    async def _to_pack(self, turn: _Turn) -> list[tuple[bytes, bytes]]:
        """The row's oldest small columns, just as they are at the version that is known; none if it has another."""
        row = turn.row
        found: list[Row] = []
        with suppress(Exception):  # packing can wait; the commit is not to fail for it
            found = await self._read_news(turn, row.packed)
        columns, version = [], 0
        for family, qualifier, _, data in found[0].cells if found else ():
            if family == wire.DEDUP and known.is_small(data):
                columns.append((qualifier, data))
            elif qualifier == wire.VERSION:
                version = int64(data)
        if version != row.version:
            return []  # the commit will find that out
        row.small = len(columns)
        return columns[: known.PACKED] if row.small >= known.PACK_AT else []

    def _attempt(
        self,
        row: KnownRow,
        group: Group,
        plan: _Plan,
        columns: Sequence[tuple[bytes, bytes]],
        now_us: int,
        beside: Sequence[bytes] = (),
    ) -> _Attempt:
        """A commit that also packs these columns, and makes these mutations beside."""
        self._commits += 1
        # A row begins anywhere: one that was deleted and made anew is never at a version that it had before.
        step = self._chance.getrandbits(40) + 1 if row.version == 0 else 1
        version = row.version + step
        marker = version.to_bytes(8, "big") + self._writer + self._commits.to_bytes(8, "big")
        packed = None
        if columns:
            packed = len(columns), columns[-1][0], b"".join([journal for _, journal in columns])
        request = self._request(group, row, version, marker, columns, plan, now_us, beside)
        return _new(_Attempt, (version, marker, packed, request))

    async def _commit(self, turn: _Turn, plan: _Plan, attempt: _Attempt) -> bool:
        """Try to write; False if the row was not as it was known, and now is."""
        row = turn.row
        version = row.version
        try:
            if turn.unmet:
                met = version == 0
            else:
                call = functools.partial(self.connection.commit, attempt.request)
                met = await self._commit_refusals.send(call, turn.flush.deadline, turn.failure)
        except BaseException as err:
            if isinstance(err, Exception) and isinstance(self.connection.translated(err), PermanentError):
                row.forget()
                raise
            self._sent(row, plan, attempt)
            if not isinstance(err, Exception):
                raise
            await self._refresh(turn)
            if row.version == version:
                raise
            return False
        finally:
            turn.failure, turn.unmet = None, False
        if met == (version > 0):
            self._committed(row, plan, attempt, turn.flush.results)
            return True
        if not row.read:
            self._cold = min(self._cold + 1, _SURE)
        else:
            row.crowded = min(row.crowded + (_CROWD_UP if row.crowded else 1), _CROWD_STEPS)
            row.lead = 0
        # It may have been done all the same: by a try before the one that was answered, whoever made that.
        self._sent(row, plan, attempt, answered=True)
        await self._wait_and_refresh(turn)
        return False

    @staticmethod
    def _sent(row: KnownRow, plan: _Plan, attempt: _Attempt, *, answered: bool = False) -> None:
        """It may have happened, or may yet happen: the row will know."""
        row.sent = row.sent or {}
        row.sent[attempt.marker] = row.version, plan.journal, answered
        if len(row.sent) > _MAX_SENT:
            del row.sent[next(iter(row.sent))]

    def _committed(self, row: KnownRow, plan: _Plan, attempt: _Attempt, flushed: Flushed) -> None:
        """Learn what was just written."""
        if not row.read:
            self._cold = max(self._cold - 1, -_SURE)
        row.read = True
        if row.crowded:
            row.lead = row.lead - 1 if row.lead else _LEAD
        row.version, row.value, row.column, row.expires_us = attempt.version, plan.value, plan.column, plan.expires_us
        if attempt.packed:
            row.pack(*attempt.packed)
        if plan.journal:
            row.learn(attempt.marker, plan.journal)
        if row.sent:
            self._resolve(row, (), flushed)

    def _now_us(self) -> int:
        """A timestamp as Bigtable takes it: in whole milliseconds."""
        return int(self._clock.now() * 1000) * 1000

    def _request(
        self,
        group: Group,
        row: KnownRow,
        version: int,
        marker: bytes,
        columns: Sequence[tuple[bytes, bytes]],
        plan: _Plan,
        now_us: int,
        beside: Sequence[bytes],
    ) -> bytes:
        layout = self._cells.layout
        at_us = self._cells.start_us(group.bucket)
        mutations = [layout.raised(at_us, row.version, version), *beside]
        mutations += self._cells.changes(at_us, row.column, plan.column, row.expires_us, plan.expires_us)
        if plan.journal:
            written_us = max(now_us, at_us)
            mutations.append(wire.put(wire.DEDUP, marker, written_us, plan.journal))
            mutations += [wire.clear_column(wire.DEDUP, column) for column, _ in columns]
            if columns:
                journal = b"".join([journal for _, journal in columns])
                mutations.append(wire.put(wire.DEDUP, columns[-1][0], written_us, journal))
        if row.version == 0:
            return wire.commit(self.connection, group.encoded, layout.exists, if_not=mutations)
        return wire.commit(self.connection, group.encoded, layout.at_version(row.version), if_met=mutations)

    # ---- reading ----

    async def _wait_and_refresh(self, turn: _Turn) -> None:
        """Where many write the row, those that try at once meet again."""
        if turn.row.crowded > 1:
            longest_s = min(_CROWD_MOST_S, _CROWD_S * (2.0 ** (turn.row.crowded - 1) - 1))
            await self._clock.sleep(self._clock.uniform(0.0, longest_s))
        await self._refresh(turn)

    async def _refresh(self, turn: _Turn) -> None:
        """Bring what is known of a row up to date.

        Raises:
            Exception: it cannot be read; what is known stays as it was.
        """
        row = turn.row
        while True:
            found = await self._read_news(turn, row.version)
            if self._take(row, turn.group.encoded, found[0] if found else None, turn.flush.results):
                return

    async def _read_news(self, turn: _Turn, version: int) -> list[Row]:
        """The row with the events of all commits after a version."""
        query = wire.only_news(wire.read_rows(self.connection, [turn.group.encoded]), version)
        read = functools.partial(self.connection.read, query, persist=False)
        found = await self._read_refusals.send(read, turn.flush.deadline)
        turn.flush.results.counts["rows_read"] += 1
        return found

    async def _read_cold(self, groups: Sequence[Group], flushed: Flushed) -> None:
        """Read the rows of which nothing is known, in as few requests as may be."""
        cold = {group.encoded: row for group in groups if not (row := self.rows[group.encoded]).read}
        if not cold:
            return
        found: list[Row] = []
        try:
            for some in wire.batches(list(cold), _ROWS_PER_READ):
                query = wire.only_news(wire.read_rows(self.connection, some), 0)
                found += await self.connection.read(query, persist=False)
        except Exception:
            # Each row will be tried, and read, on its own; what is wrong shows there.
            return
        by_key = {row.key: row for row in found}
        flushed.counts["rows_read"] += len(cold)
        for encoded, row in cold.items():
            self._cold = min(self._cold + 1, _SURE) if encoded in by_key else max(self._cold - 1, -_SURE)
            # Another flush may know more by now.
            if not row.read and row.users == 1:
                # One that cannot be decoded is read again on its own, and its updates are told what is wrong.
                with suppress(PermanentError):
                    self._take(row, encoded, by_key.get(encoded), flushed)

    def _take(self, row: KnownRow, encoded: bytes, found: Row | None, flushed: Flushed) -> bool:
        """Learn what a read with `wire.only_news` of the known version found; False if all of the row must be read."""
        content = self._cells.content_of(found)
        value = None if content.column is None else self._cells.decoded(encoded, content.column)
        if not row.take(content.version, content.journal, exists=found is not None):
            return False
        row.value, row.column, row.expires_us = value, content.column, content.expires_us
        if row.sent:
            self._resolve(row, {marker for marker, _ in content.journal}, flushed)
        return True

    def _resolve(self, row: KnownRow, found: Container[bytes], flushed: Flushed) -> None:
        """Settle what was sent: once the row has another version it has happened, or never will."""
        sent = row.sent or {}
        for marker, (version, journal, answered) in list(sent.items()):
            if version != row.version:
                del sent[marker]
                if not answered or marker in found:  # else just a conflict, as it was said to be
                    flushed.counts["ambiguous_resolved"] += 1
                if marker in found:
                    row.owed = (row.owed or set()).union(split(journal))
        row.sent = sent or None

    def _tell(self, turn: _Turn, plan: _Plan) -> None:
        """Give out the results; an event that a write of ours without an answer brought in was merged, and is no
        duplicate."""
        row, group, flush = turn.row, turn.group, turn.flush
        row.crowded = max(row.crowded - 1, 0)
        self._measure(group, row, flush.results)
        results = plan.results
        if results is not None and row.owed:
            for n, i in enumerate(group.positions):
                if results[n] is _DUPLICATE and flush.prints[i] in row.owed:
                    row.owed.discard(flush.prints[i])
                    results[n] = Outcome.MERGED
        turn.give(results)

    def _measure(self, group: Group, row: KnownRow, flushed: Flushed) -> None:
        value_bytes = 8 if self._cells.sums else len(row.column or b"")
        row_bytes = len(group.encoded) + value_bytes + row.journal_bytes
        sizes = flushed.sizes
        if row_bytes > sizes["row_bytes"]:
            sizes["row_bytes"] = row_bytes
        if row.journal_bytes > sizes["journal_bytes"]:
            sizes["journal_bytes"] = row.journal_bytes
        if row_bytes > WARN_ROW_BYTES and group.encoded not in self._warned:
            self._warned.add(group.encoded)
            _log.warning(
                "%s: %s has grown to %d MB, %d of them markers; beyond 100 MB it gets slow, and beyond 256 MB it "
                "cannot be read: use shards, shorter buckets, or a shorter retention of markers",
                self._settings,
                _named(group.encoded),
                row_bytes >> 20,
                row.journal_bytes >> 20,
            )


def _no_flush(deadline: float) -> Flush:
    flush = Flush([], [], all_marked=True)
    flush.deadline = deadline
    return flush


def _named(encoded: bytes) -> str:
    key, shard = parse_row_key(encoded)
    return f"the row of {key.entity!r:.80}, bucket {key.bucket}, shard {shard}"
