"""Folds: brings pending deltas into the aggregates.

A fold commits the pending deltas that have no marker, on condition that the row is still at the version at which its
markers are known; then it deletes, by name, the cells that it has read. If it stops in between, the next fold finds
markers of their events, and only deletes. A row without a version is given one first, and read again afterwards: what
was read before could be from a row that was deleted meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any, Generic, TypeVar

from murmur_beam.errors import PermanentError, TransientError
from murmur_beam.state.bigtable import pending, wire
from murmur_beam.state.bigtable.attempt import FoldCommit
from murmur_beam.state.bigtable.codec import RowCodec
from murmur_beam.state.bigtable.commit_planner import MAX_VALUE_BYTES
from murmur_beam.state.bigtable.committer import RowCommitter
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.dispatcher import Dispatcher
from murmur_beam.state.bigtable.due_rows import DueRows
from murmur_beam.state.bigtable.fingerprints import Known, split
from murmur_beam.state.bigtable.keys import parse_row_key
from murmur_beam.state.bigtable.pending import Events
from murmur_beam.state.bigtable.read_rows import Row
from murmur_beam.state.bigtable.row_cache import CachedRow, Waiter
from murmur_beam.state.bigtable.row_fold import PendingCell, RowFold
from murmur_beam.state.bigtable.spec import BigtableSpec
from murmur_beam.state.folding import Folded

T = TypeVar("T")
V = TypeVar("V")

_ROWS_PER_PAGE = 1_000
_ROWS_PER_READ = 64
_READS = 4
_ROWS_PER_REPORT = _ROWS_PER_READ * _READS
_READ_BYTES = 8 << 20
"""A read ends after this many bytes; of a row that holds more, the first cells are folded first."""
_CELLS_PER_READ = 65_536
_EVENTS_PER_COMMIT = 100_000
_CELLS_PER_DELETION = 5_000
_TRIES = 4
"""Of a row that other writers write at the same time; then it is left for the next fold."""


class Folder(Generic[V]):
    """Folds rows of a table.

    Args:
        spec: which table.
        connection, dispatcher: to the table.
        codec: of its rows.
        committer: knows rows, and commits to them.
    """

    def __init__(
        self,
        spec: BigtableSpec,
        connection: Connection,
        dispatcher: Dispatcher,
        codec: RowCodec[V],
        committer: RowCommitter[V],
    ) -> None:
        self._spec = spec
        self._connection = connection
        self._dispatcher = dispatcher
        self._codec = codec
        self._committer = committer
        self._names = pending.Names(spec.clock)
        self._large = asyncio.Lock()

    async def fold(
        self, start: bytes, end: bytes | None, min_cells: int, report: Callable[[Folded], None], due: DueRows | None
    ) -> Folded:
        """Fold the rows from ``start`` on, before ``end`` (None: to the last row).

        Args:
            start, end: keys.
            min_cells: only rows with at least this many pending cells.
            report: is given the totals now and then; an exception of it ends the fold, between rows.
            due: selects rows; None: all.

        Raises:
            Exception: the table cannot be read or written. What was folded stays so; another fold goes on from there.
        """
        total = Folded()
        async for keys in self._unfolded(start, end, min_cells, due):
            for i in range(0, len(keys), _ROWS_PER_REPORT):
                total = total.plus(await self.fold_these(keys[i : i + _ROWS_PER_REPORT], due))
                report(total)
        return total

    async def fold_these(self, keys: Sequence[bytes], due: DueRows | None = None) -> Folded:
        """Fold rows with these keys, as far as they are due; those without pending events cost a read.

        Raises:
            Exception: see `fold`.
        """
        total = Folded()
        parts = [keys[i : i + _ROWS_PER_READ] for i in range(0, len(keys), _ROWS_PER_READ)]
        for i in range(0, len(parts), _READS):
            for folded in await _all(self._fold_rows(part, due) for part in parts[i : i + _READS]):
                total = total.plus(folded)
        return total

    async def oldest_pending_s(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """See `FoldingStore.oldest_pending_s`."""
        found: dict[bytes, float] = {}
        for i in range(0, len(keys), _ROWS_PER_READ):
            request = wire.read_rows(self._connection, keys[i : i + _ROWS_PER_READ])
            for row in await self._connection.read(wire.only_unfolded(request, 1)):
                found[row.key] = pending.time_us(row.cells[0].qualifier) / 1e6
        return found

    async def _unfolded(
        self, start: bytes, end: bytes | None, min_cells: int, due: DueRows | None
    ) -> AsyncIterator[list[bytes]]:
        """Keys of rows with enough pending cells, in order, without those that are not due."""

        def is_wanted(row: Row) -> bool:
            if len(row.cells) < min_cells:
                return False
            until_us = self._codec.live_until_us(parse_row_key(row.key)[0].bucket, None, pending=True)
            oldest_us = pending.time_us(row.cells[0].qualifier)
            return due is None or due.may_be_due(row.key, len(row.cells), oldest_us, until_us)

        while True:
            request = wire.read_range(self._connection, start, end, _ROWS_PER_PAGE)
            n = min_cells if due is None else due.needed_cells(min_cells)
            page = await self._connection.read(wire.only_unfolded(request, n))
            if keys := [row.key for row in page if is_wanted(row)]:
                yield keys
            if len(page) < _ROWS_PER_PAGE:
                return
            start = page[-1].key + b"\x00"

    async def _fold_rows(self, keys: Sequence[bytes], due: DueRows | None) -> Folded:
        """Fold rows together, in as few requests as possible, until only what cannot be folded is pending."""
        folds = {key: RowFold(key, self._committer.rows.borrow(key)) for key in keys}
        try:
            for each in folds.values():
                await each.row.acquire(Waiter())
                each.held = True
            while left := [each for each in folds.values() if not each.done]:
                await self._read_committed([each for each in left if not each.row.read])
                await _all(map(self._give_version, left))
                ready = [each for each in left if not each.done and each.row.version > 0]
                await self._read_pending(ready)
                if due is not None:
                    ready, due = _due(ready, due), None
                await _all(map(self._fold_row, ready))
                await self._verify([each for each in ready if each.unverified])
                await self._delete_folded(ready)
            # A row that takes several commits is one row.
            totals = [each.total._replace(folded=min(1, each.total.folded)) for each in folds.values()]
            return functools.reduce(Folded.plus, totals, Folded(rows=len(keys)))
        finally:
            for each in folds.values():
                if each.held:
                    each.row.release()
                self._committer.rows.give_back(each.row)

    # ---- reading ----

    async def _read_committed(self, some: Sequence[RowFold]) -> None:
        """Read version, value and markers of rows of which nothing is known."""
        while some:
            request = self._committed([each.key for each in some])
            found, _, more = await self._connection.read_some(request, _READ_BYTES)
            fit = _first_incomplete(some, found) if more else len(some)
            by_key = {row.key: row for row in found}
            for each in some[:fit]:
                self._learn(each, by_key.get(each.key))
            for each in some[fit : fit + 1]:
                # Read alone: all markers of a row must be known at one version, however many there are.
                async with self._large:
                    (whole,) = await self._connection.read(self._committed([each.key])) or (None,)
                    self._learn(each, whole)
            some = some[fit + 1 :]

    def _committed(self, keys: Sequence[bytes]) -> Any:
        request = wire.read_rows(self._connection, keys)
        return wire.only_committed(request, self._codec.cells.columns, self._codec.layout.version_family)

    def _learn(self, fold: RowFold, found: Row | None) -> None:
        try:
            self._committer.learn(fold.key, fold.row, found)
        except PermanentError as err:
            fold.row.forget()
            fold.fail([fold.key], err)
            fold.done = True

    async def _read_pending(self, some: Sequence[RowFold]) -> None:
        """Read as many pending cells of each row as fit, from the first one on or after those that stay."""
        for each in some:
            each.cells, each.done = [], True
        together = [each for each in some if not each.after]
        for part in (together, *([each] for each in some if each.after)):
            if not part:
                continue
            request = wire.read_rows(self._connection, [each.key for each in part])
            request = wire.only_pending(request, part[0].after, _CELLS_PER_READ)
            found, begun, more = await self._connection.read_some(request, _READ_BYTES)
            cells_of = {row.key: row.cells for row in found}
            fit = len(part)
            if more:
                fit = _first_incomplete(part, found)
                cells_of |= {each.key: begun for each in part[fit : fit + 1]}
            for i, each in enumerate(part):
                each.cells = [(cell.qualifier, cell.value) for cell in cells_of.get(each.key, ())]
                each.done = i < fit and len(each.cells) < _CELLS_PER_READ

    async def _verify(self, some: Sequence[RowFold]) -> None:
        """Read the version again where cells held nothing new: no commit has shown that they are of the known row."""
        if not some:
            return
        request = wire.read_rows(self._connection, [each.key for each in some])
        found = await self._connection.read(wire.only_version(request, self._codec.layout.version_family))
        versions = {row.key: self._codec.content_of(row).version for row in found}
        for each in some:
            each.unverified = False
            if versions.get(each.key) != each.row.version:
                each.gone = []
                self._start_over(each, None)

    # ---- writing ----

    async def _give_version(self, fold: RowFold) -> None:
        """Give a row without a version one; leave an expired row to garbage collection."""
        row = fold.row
        until_us = self._codec.live_until_us(fold.bucket, row.expires_us, pending=True)
        if until_us is not None and until_us <= self._spec.clock.now() * 1e6:
            fold.done = True
        elif not fold.done and row.version == 0:
            await self._commit(fold, FoldCommit(b"", row.value, row.stored, row.expires_us))

    async def _commit(self, fold: RowFold, commit: FoldCommit) -> bool:
        """Commit; False after a version conflict or a lost answer, when row and cells must be read again."""
        failure: Exception | None = None
        try:
            if await self._committer.fold(fold.key, fold.row, commit, self._dispatcher.deadline()):
                return True
        except Exception as err:
            failure = self._connection.translated(err)
            if not isinstance(failure, TransientError):
                raise
        self._start_over(fold, failure)
        return False

    def _start_over(self, fold: RowFold, failure: Exception | None) -> None:
        """Forget what is known of the row and its cells, which is not true any more; give up after `_TRIES`."""
        fold.row.forget()
        fold.after = b""
        fold.tries += 1
        fold.done = fold.tries == _TRIES
        if failure is None:
            fold.add(conflicts=1)
        if fold.done:
            if failure is not None:
                raise failure
            fold.add(left=1)

    async def _fold_row(self, fold: RowFold) -> None:
        """Fold the cells that were read, some events at a time."""
        some: list[PendingCell] = []
        n = 0
        fold.known = fold.row.known if fold.row.events else None
        fold.seen = {}
        for name, data in fold.cells:
            cell = PendingCell(name, data, 1 if self._codec.monoid.idempotent else pending.count(data))
            if some and n + cell.n > _EVENTS_PER_COMMIT:
                if not await self._fold_cells(fold, some):
                    return
                some, n = [], 0
            some.append(cell)
            n += cell.n
        if some:
            await self._fold_cells(fold, some)

    async def _fold_cells(self, fold: RowFold, cells: Sequence[PendingCell]) -> bool:
        """Fold what is new of these cells, in one commit; False if that was not applied."""
        row = fold.row
        try:
            deltas = self._new_deltas(cells, fold.known)
        except Exception:  # a user's decode may raise anything; cell by cell the one at fault raises it again
            cells = self._decodable(fold, cells)
            deltas = self._new_deltas(cells, fold.known)
        # Events of cells that were folded before; asking the row for them would take ten times as long.
        for event in fold.seen.keys() & deltas.keys():
            del deltas[event]
        failed: Collection[bytes] = ()
        try:
            value, stored = self._folded(row, deltas.values())
        except Exception:  # a user's combine may raise anything; one by one the delta at fault raises it again
            value, stored, failures = self._one_by_one(row, deltas)
            for event, err in failures.items():
                fold.fail([event], err)
            failed = failures.keys()
            deltas = {event: delta for event, delta in deltas.items() if event not in failed}
        # The keys are fingerprints, which become markers; for an idempotent monoid they are names of cells.
        markers = b"" if self._codec.monoid.idempotent else b"".join(deltas)
        writes = stored != row.stored or bool(markers)
        kept, apart = self._put_apart(fold, cells, failed, writes) if failed else (set(), [])
        if writes:
            expires_us = row.expires_us
            if expires_us is not None:
                expires_us = self._codec.live_until_us(fold.bucket, expires_us, pending=True)
            if not await self._commit(fold, FoldCommit(markers, value, stored, expires_us, apart)):
                return False
        fold.seen.update(deltas)
        fold.unverified = not writes
        gone = [cell for cell in cells if cell.name not in kept]
        fold.gone += [cell.name for cell in gone]
        events = len(deltas) if writes else 0
        fold.add(
            folded=int(writes),
            cells=len(gone),
            n_bytes=sum(len(cell.name) + len(cell.data) for cell in gone),
            events=events,
            duplicates=sum(cell.n for cell in cells) - events - len(failed),
            oldest_us=min((pending.time_us(cell.name) for cell in gone), default=None),
        )
        return True

    def _decodable(self, fold: RowFold, cells: Sequence[PendingCell]) -> list[PendingCell]:
        """The cells without those that cannot be decoded, which stay pending."""
        good = []
        for cell in cells:
            try:
                pending.decoded(self._codec.monoid, cell.data)
                good.append(cell)
            except Exception as err:
                fold.fail([cell.name], err)
                fold.after = cell.name
        return good

    def _new_deltas(self, cells: Sequence[PendingCell], known: Known | None) -> dict[bytes, Any]:
        """Delta of each event without a marker, by fingerprint; of an idempotent monoid by the name of its cell.

        Raises:
            Exception: a cell cannot be decoded.
        """
        monoid = self._codec.monoid
        if monoid.idempotent:
            return {cell.name: delta for cell in cells for delta in pending.decoded(monoid, cell.data).deltas}
        deltas = pending.united(monoid, [cell.data for cell in cells])
        for event in known(deltas) if known is not None else ():
            del deltas[event]
        return deltas

    def _folded(self, row: CachedRow, deltas: Collection[Any]) -> tuple[Any, Any]:
        """The value with these deltas, and as its cell holds it.

        Raises:
            Exception: the monoid cannot combine it, or it cannot be stored.
        """
        if not deltas:
            return row.value, row.stored
        before = [] if row.value is None else [row.value]
        return self._storable(self._codec.monoid.fold([*before, *deltas]))

    def _storable(self, value: Any) -> tuple[Any, Any]:
        stored = self._codec.encoded(value)
        if (size := self._codec.cells.size(stored)) > MAX_VALUE_BYTES:
            raise PermanentError(f"the {self._codec.monoid.name} would take {size:,} bytes")
        return self._codec.decoded(b"", stored), stored

    def _one_by_one(self, row: CachedRow, deltas: dict[bytes, Any]) -> tuple[Any, Any, dict[bytes, Exception]]:
        """As `_folded`, without the deltas that cannot be folded; the error of each of these."""
        value, stored = row.value, row.stored
        failures: dict[bytes, Exception] = {}
        for event, delta in deltas.items():
            try:
                value, stored = self._storable(delta if value is None else self._codec.monoid.combine(value, delta))
            except Exception as err:
                failures[event] = err
        return value, stored, failures

    def _put_apart(
        self, fold: RowFold, cells: Sequence[PendingCell], failed: Collection[bytes], writes: bool
    ) -> tuple[set[bytes], list[bytes]]:
        """Keep what cannot be folded pending, so that the other events of its cells can be folded.

        Returns:
            Names of cells that stay; and mutations that put the rest of what cannot be folded into cells of its own.
            These are part of the commit: a row that was deleted meanwhile must not come back.
        """
        kept: set[bytes] = set()
        apart: list[bytes] = []
        monoid = self._codec.monoid
        for cell in cells:
            events = pending.decoded(monoid, cell.data)
            if monoid.idempotent:
                bad = Events(b"", events.deltas) if cell.name in failed else Events(b"", ())
            else:
                both = zip(split(events.fingerprints), events.deltas, strict=True)
                pairs = [(fingerprint, delta) for fingerprint, delta in both if fingerprint in failed]
                bad = Events(b"".join([fingerprint for fingerprint, _ in pairs]), [delta for _, delta in pairs])
            if not bad.deltas:
                continue
            if len(bad.deltas) == len(events.deltas) or not writes:
                kept.add(cell.name)
                fold.after = max(fold.after, cell.name)
                continue
            at_us = self._codec.start_us(fold.bucket)
            values = pending.encoded(monoid, bad)
            apart += [wire.put(wire.PENDING, self._names.beside(cell.name), at_us, value) for value in values]
        return kept, apart

    async def _delete_folded(self, some: Sequence[RowFold]) -> None:
        """Delete the cells that were folded, many rows a request."""
        entries: list[tuple[bytes, list[bytes]]] = []
        n = 0
        for each in some:
            # From the last one on: then the emulator moves no cell that is deleted next.
            gone = each.gone[::-1]
            for start in range(0, len(gone), _CELLS_PER_DELETION):
                names = gone[start : start + _CELLS_PER_DELETION]
                if entries and n + len(names) > _CELLS_PER_DELETION:
                    await self._delete(entries)
                    entries, n = [], 0
                entries.append((each.key, [wire.clear_column(wire.PENDING, name) for name in names]))
                n += len(names)
            each.gone = []
        if entries:
            await self._delete(entries)

    async def _delete(self, entries: Sequence[tuple[bytes, list[bytes]]]) -> None:
        request = wire.bulk(self._connection, entries)
        send = functools.partial(self._connection.mutate, request, len(entries))
        for error in (await self._dispatcher.send(send, self._dispatcher.deadline())).values():
            raise error


def _due(some: Sequence[RowFold], due: DueRows) -> list[RowFold]:
    """The rows that are due, of those whose markers and pending cells have just been read; the others are done."""
    ready = []
    for each in some:
        events = sum(pending.count(data) for _, data in each.cells)
        oldest_us = pending.time_us(each.cells[0][0]) if each.cells else 0
        if due.is_due(each.key, each.row.events, len(each.cells), events, oldest_us):
            ready.append(each)
        else:
            each.done = True
    return ready


def _first_incomplete(some: Sequence[RowFold], found: Sequence[Row]) -> int:
    """Position of the first row that a read which was ended early has not brought whole."""
    return next((i for i, each in enumerate(some) if not found or each.key > found[-1].key), len(some))


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; if one fails, the others end first."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]
