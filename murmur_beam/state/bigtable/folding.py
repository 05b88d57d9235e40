"""Folding: bringing what is pending into the aggregates.

A fold commits, on condition that the row is still at the version at which its markers are known, what is pending and
has no marker; then it deletes, by name, the cells that it has read. If it stops in between, the next fold finds that
their events have markers, and only deletes. A row that has no version is given one first, and read again after that:
what was read before could come from a row that was deleted meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from murmur_beam.errors import MurmurError, PermanentError, TransientError
from murmur_beam.state.bigtable import pending, wire
from murmur_beam.state.bigtable.cells import Cells
from murmur_beam.state.bigtable.commits import MAX_VALUE_BYTES, Commits, Fold
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.keys import parse_row_key
from murmur_beam.state.bigtable.known import KnownRow, Waiter, split
from murmur_beam.state.bigtable.pending import Events
from murmur_beam.state.bigtable.reading import Row
from murmur_beam.state.bigtable.sending import Sender
from murmur_beam.state.bigtable.settings import Settings

T = TypeVar("T")
V = TypeVar("V")

_ROWS_PER_PAGE = 1_000
_ROWS = 64
"""That are read together."""
_SIDE_BY_SIDE = 4
_READ_BYTES = 8 << 20
"""So much is read at once; of a row that holds more, what comes first."""
_CELLS = 65_536
_EVENTS = 100_000
"""Of one commit."""
_DELETES = 5_000
"""Cells that one request deletes."""
_TRIES = 4
"""Of a row that others write at the same time; then it is left for the next round."""
_NAMED = 20


class Folded(NamedTuple):
    """What a round of folding has come to.

    Attributes:
        rows: with enough that was pending.
        folded: rows that something was brought into.
        cells, n_bytes: deleted, and what they took.
        events, duplicates: brought in, and found to have been counted before.
        conflicts: commits that came second.
        left: rows that others wrote all the time; the next round takes them.
        unfoldable: events that cannot be folded; they stay pending.
        named: some of their rows, and why.
        oldest_us: when the oldest cell that was folded had first been tried, in microseconds; None where none was.
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

    def plus(self, other: Folded) -> Folded:
        """Both together."""
        oldest = [us for us in (self.oldest_us, other.oldest_us) if us is not None]
        sums: list[Any] = [a + b for a, b in zip(self[:9], other[:9], strict=True)]
        return Folded._make([*sums, (self.named + other.named)[:_NAMED], min(oldest, default=None)])


class Folder(Generic[V]):
    """Folds rows of a table.

    Args:
        settings: which table.
        connection, sender: to it.
        cells: what it holds.
        commits: knows rows, and commits to them.
    """

    def __init__(
        self, settings: Settings, connection: Connection, sender: Sender, cells: Cells[V], commits: Commits[V]
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._sender = sender
        self._cells = cells
        self._commits = commits
        self._names = pending.Names(settings.clock)
        self._large = asyncio.Lock()

    async def fold(self, start: bytes, end: bytes | None, least: int, tell: Callable[[Folded], None]) -> Folded:
        """Fold the rows from ``start`` on, before ``end`` (None: to the last row).

        Args:
            start, end: keys.
            least: only rows with so many pending cells.
            tell: is told now and then how far it is; what it raises ends it, between rows.

        Raises:
            Exception: the table cannot be read, or not be written. What was folded stays so; again, it goes on.
        """
        total = Folded()
        async for keys in self._unfolded(start, end, least):
            parts = [keys[i : i + _ROWS] for i in range(0, len(keys), _ROWS)]
            for i in range(0, len(parts), _SIDE_BY_SIDE):
                for folded in await _all(map(self._fold_rows, parts[i : i + _SIDE_BY_SIDE])):
                    total = total.plus(folded)
                tell(total)
        return total

    async def _unfolded(self, start: bytes, end: bytes | None, least: int) -> AsyncIterator[list[bytes]]:
        """Keys of rows with so many pending cells, in order."""
        while True:
            request = wire.read_range(self._connection, start, end, _ROWS_PER_PAGE)
            page = await self._connection.read(wire.only_unfolded(request, least))
            if keys := [row.key for row in page if len(row.cells) >= least]:
                yield keys
            if len(page) < _ROWS_PER_PAGE:
                return
            start = page[-1].key + b"\x00"

    async def _fold_rows(self, keys: Sequence[bytes]) -> Folded:
        """Fold some rows, in as few requests as may be, until nothing is pending that can be folded."""
        rows = {key: _Folding(key, self._commits.rows.borrow(key)) for key in keys}
        try:
            for one in rows.values():
                await one.row.acquire(Waiter())
                one.held = True
            while left := [one for one in rows.values() if not one.done]:
                await self._know([one for one in left if not one.row.read])
                await _all(map(self._begin, left))
                ready = [one for one in left if not one.done and one.row.version > 0]
                await self._read_pending(ready)
                await _all(map(self._fold_row, ready))
                await self._verify([one for one in ready if one.unverified])
                await self._clear(ready)
            # A row that takes several commits is one row.
            totals = [one.total._replace(folded=min(1, one.total.folded)) for one in rows.values()]
            return functools.reduce(Folded.plus, totals, Folded(rows=len(keys)))
        finally:
            for one in rows.values():
                if one.held:
                    one.row.release()
                self._commits.rows.give_back(one.row)

    # ---- reading ----

    async def _know(self, some: Sequence[_Folding]) -> None:
        """Read version, value and markers of rows of which nothing is known."""
        while some:
            request = self._committed([one.key for one in some])
            found, _, more = await self._connection.read_some(request, _READ_BYTES)
            fit = _reached(some, found) if more else len(some)
            by_key = {row.key: row for row in found}
            for one in some[:fit]:
                self._learn(one, by_key.get(one.key))
            for one in some[fit : fit + 1]:
                # Alone, since markers must be known as they are at one moment, however many there are.
                async with self._large:
                    (whole,) = await self._connection.read(self._committed([one.key])) or (None,)
                    self._learn(one, whole)
            some = some[fit + 1 :]

    def _committed(self, keys: Sequence[bytes]) -> Any:
        family = wire.AGG if self._cells.sums else wire.STATE
        return wire.only_committed(wire.read_rows(self._connection, keys), family, self._cells.layout.version_family)

    def _learn(self, one: _Folding, found: Row | None) -> None:
        try:
            self._commits.learn(one.key, one.row, found)
        except PermanentError as err:
            one.row.forget()
            one.fail([one.key], err)
            one.done = True

    async def _read_pending(self, some: Sequence[_Folding]) -> None:
        """Read pending cells of each row: as many as fit, from the first on or, after some that stay, from there."""
        for one in some:
            one.cells, one.done = [], True
        together = [one for one in some if not one.after]
        for part in (together, *([one] for one in some if one.after)):
            if not part:
                continue
            request = wire.read_rows(self._connection, [one.key for one in part])
            request = wire.only_pending(request, part[0].after, _CELLS)
            found, begun, more = await self._connection.read_some(request, _READ_BYTES)
            cells_of = {row.key: row.cells for row in found}
            fit = len(part)
            if more:
                fit = _reached(part, found)
                cells_of |= {one.key: begun for one in part[fit : fit + 1]}
            for i, one in enumerate(part):
                one.cells = [(cell.qualifier, cell.value) for cell in cells_of.get(one.key, ())]
                one.done = i < fit and len(one.cells) < _CELLS

    async def _verify(self, some: Sequence[_Folding]) -> None:
        """Where nothing new was found, no commit has shown that the cells are of the row whose markers are known."""
        if not some:
            return
        request = wire.read_rows(self._connection, [one.key for one in some])
        found = await self._connection.read(wire.only_version(request, self._cells.layout.version_family))
        versions = {row.key: self._cells.content_of(row).version for row in found}
        for one in some:
            one.unverified = False
            if versions.get(one.key) != one.row.version:
                one.gone = []
                self._again(one, None)

    # ---- writing ----

    async def _begin(self, one: _Folding) -> None:
        """Give a row a version that has none; one that has expired is left to garbage collection."""
        row = one.row
        until_us = self._cells.live_until_us(one.bucket, row.expires_us, pending=True)
        if until_us is not None and until_us <= self._settings.clock.now() * 1e6:
            one.done = True
        elif not one.done and row.version == 0:
            await self._commit(one, Fold(b"", row.value, row.column, row.expires_us))

    async def _commit(self, one: _Folding, fold: Fold) -> bool:
        """False: somebody else was first, or the answer is lost. Then the row is to be read again, and its cells."""
        failure: Exception | None = None
        try:
            if await self._commits.fold(one.key, one.row, fold, self._sender.deadline()):
                return True
        except Exception as err:
            failure = self._connection.translated(err)
            if not isinstance(failure, TransientError):
                raise
        self._again(one, failure)
        return False

    def _again(self, one: _Folding, failure: Exception | None) -> None:
        """What was known of a row, or what was read of its cells, is not so any more."""
        one.row.forget()
        one.after = b""
        one.tries += 1
        one.done = one.tries == _TRIES
        if failure is None:
            one.add(conflicts=1)
        if one.done:
            if failure is not None:
                raise failure
            one.add(left=1)

    async def _fold_row(self, one: _Folding) -> None:
        """Fold the cells that were read, some events at a time."""
        some: list[_Cell] = []
        n = 0
        one.has = one.row.has if one.row.events else None
        one.seen = {}
        for name, data in one.cells:
            cell = _Cell(name, data, 1 if self._cells.monoid.idempotent else pending.count(data))
            if some and n + cell.n > _EVENTS:
                if not await self._fold_cells(one, some):
                    return
                some, n = [], 0
            some.append(cell)
            n += cell.n
        if some:
            await self._fold_cells(one, some)

    async def _fold_cells(self, one: _Folding, cells: Sequence[_Cell]) -> bool:
        """Bring what is new of these cells into the aggregate, in one commit; False: it was not done."""
        row = one.row
        try:
            deltas = self._new_deltas(cells, one.has)
        except Exception:  # which may be any, of a user's decode: cell by cell it is raised again, for one to blame
            cells = self._decodable(one, cells)
            deltas = self._new_deltas(cells, one.has)
        # What came before among the cells that were read; to ask the row for it would take ten times as long.
        for event in one.seen.keys() & deltas.keys():
            del deltas[event]
        failed: Collection[bytes] = ()
        try:
            value, column = self._folded(row, deltas.values())
        except Exception:  # which may be any, of a user's combine: one by one it is raised again, for one to blame
            value, column, failures = self._one_by_one(row, deltas)
            for event, err in failures.items():
                one.fail([event], err)
            failed = failures.keys()
            deltas = {event: delta for event, delta in deltas.items() if event not in failed}
        # Without event ids in them, cells of what is harmless to fold again; else fingerprints, which are the markers.
        journal = b"" if self._cells.monoid.idempotent else b"".join(deltas)
        writes = column != row.column or bool(journal)
        kept, apart = self._put_apart(one, cells, failed, writes) if failed else (set(), [])
        if writes:
            expires_us = row.expires_us
            if expires_us is not None:
                expires_us = self._cells.live_until_us(one.bucket, expires_us, pending=True)
            if not await self._commit(one, Fold(journal, value, column, expires_us, apart)):
                return False
        one.seen.update(deltas)
        one.unverified = not writes
        gone = [cell for cell in cells if cell.name not in kept]
        one.gone += [cell.name for cell in gone]
        events = len(deltas) if writes else 0
        one.add(
            folded=int(writes),
            cells=len(gone),
            n_bytes=sum(len(cell.name) + len(cell.data) for cell in gone),
            events=events,
            duplicates=sum(cell.n for cell in cells) - events - len(failed),
            oldest_us=min((pending.time_us(cell.name) for cell in gone), default=None),
        )
        return True

    def _decodable(self, one: _Folding, cells: Sequence[_Cell]) -> list[_Cell]:
        """Without those that cannot be decoded, which stay."""
        good = []
        for cell in cells:
            try:
                pending.decoded(self._cells.monoid, cell.data)
                good.append(cell)
            except Exception as err:
                one.fail([cell.name], err)
                one.after = cell.name
        return good

    def _new_deltas(self, cells: Sequence[_Cell], has: Callable[[bytes], bool] | None) -> dict[bytes, Any]:
        """Delta of each event that is new, by fingerprint; where there are no fingerprints, of each cell, by name.

        Raises:
            Exception: a cell cannot be decoded.
        """
        monoid = self._cells.monoid
        if monoid.idempotent:
            return {cell.name: delta for cell in cells for delta in pending.decoded(monoid, cell.data).deltas}
        new = pending.united(monoid, [cell.data for cell in cells])
        return new if has is None else {print_: delta for print_, delta in new.items() if not has(print_)}

    def _folded(self, row: KnownRow, deltas: Collection[Any]) -> tuple[Any, Any]:
        """The value with these deltas, and as it is stored.

        Raises:
            Exception: it cannot be stored, or not be made.
        """
        if not deltas:
            return row.value, row.column
        before = [] if row.value is None else [row.value]
        column = self._cells.encoded(self._cells.monoid.fold([*before, *deltas]))
        if not self._cells.sums and len(column) > MAX_VALUE_BYTES:
            raise PermanentError(f"the {self._cells.monoid.name} would take {len(column):,} bytes")
        return self._cells.decoded(b"", column), column

    def _one_by_one(self, row: KnownRow, deltas: dict[bytes, Any]) -> tuple[Any, Any, dict[bytes, Exception]]:
        """As `_folded`, without those that cannot be; why, of each of them."""
        value, column = row.value, row.column
        failures: dict[bytes, Exception] = {}
        for event, delta in deltas.items():
            monoid = self._cells.monoid
            try:
                new = delta if value is None else monoid.combine(value, delta)
                stored = self._cells.encoded(new)
                if not self._cells.sums and len(stored) > MAX_VALUE_BYTES:
                    raise PermanentError(f"the {monoid.name} would take {len(stored):,} bytes")
                value, column = self._cells.decoded(b"", stored), stored
            except Exception as err:
                failures[event] = err
        return value, column, failures

    def _put_apart(
        self, one: _Folding, cells: Sequence[_Cell], failed: Collection[bytes], writes: bool
    ) -> tuple[set[bytes], list[bytes]]:
        """Names of cells that stay; and mutations that put what cannot be folded into cells of its own, so that the
        others can go. These come with the commit: a row that was deleted meanwhile must not come back.
        """
        kept: set[bytes] = set()
        apart: list[bytes] = []
        monoid = self._cells.monoid
        for cell in cells:
            events = pending.decoded(monoid, cell.data)
            if monoid.idempotent:
                bad = Events(b"", events.deltas) if cell.name in failed else Events(b"", ())
            else:
                both = zip(split(events.fingerprints), events.deltas, strict=True)
                pairs = [(print_, delta) for print_, delta in both if print_ in failed]
                bad = Events(b"".join([print_ for print_, _ in pairs]), [delta for _, delta in pairs])
            if not bad.deltas:
                continue
            if len(bad.deltas) == len(events.deltas) or not writes:
                kept.add(cell.name)
                one.after = max(one.after, cell.name)
                continue
            at_us = self._cells.start_us(one.bucket)
            values = pending.encoded(monoid, bad)
            apart += [wire.put(wire.PENDING, self._names.beside(cell.name), at_us, value) for value in values]
        return kept, apart

    async def _clear(self, some: Sequence[_Folding]) -> None:
        """Delete the cells that were folded, many rows a request."""
        entries: list[tuple[bytes, list[bytes]]] = []
        n = 0
        for one in some:
            # From the last one on: so the emulator moves none of those that go as well.
            gone = one.gone[::-1]
            for start in range(0, len(gone), _DELETES):
                names = gone[start : start + _DELETES]
                if entries and n + len(names) > _DELETES:
                    await self._delete(entries)
                    entries, n = [], 0
                entries.append((one.key, [wire.clear_column(wire.PENDING, name) for name in names]))
                n += len(names)
            one.gone = []
        if entries:
            await self._delete(entries)

    async def _delete(self, entries: Sequence[tuple[bytes, list[bytes]]]) -> None:
        request = wire.bulk(self._connection, entries)
        send = functools.partial(self._connection.mutate, request, len(entries))
        for error in (await self._sender.send(send, self._sender.deadline())).values():
            raise error


class _Cell(NamedTuple):
    """A pending cell: its name, its value, and how many events it says that it has."""

    name: bytes
    data: bytes
    n: int


class _Folding:
    """A row that is being folded.

    Attributes:
        key, bucket, row: which, and what is known of it.
        held: does nobody else have it?
        unverified: were cells found to hold nothing new, and is it not known whether they are of this row?
        done: is nothing left to be done?
        tries: commits that came to nothing.
        after: name of the last cell that stays; cells before it are not read again.
        cells: that were read last, by name.
        has: tells whether the row had a marker of an event when they were read; None: it had none at all.
        seen: events of these cells that were folded since.
        gone: names of cells to delete.
        total: what was done.
    """

    def __init__(self, key: bytes, row: KnownRow) -> None:
        self.key = key
        self.bucket = parse_row_key(key)[0].bucket
        self.row = row
        self.held = self.done = self.unverified = False
        self.tries = 0
        self.after = b""
        self.cells: list[tuple[bytes, bytes]] = []
        self.has: Callable[[bytes], bool] | None = None
        self.seen: dict[bytes, Any] = {}
        self.gone: list[bytes] = []
        self.total = Folded()
        self._failed: set[bytes] = set()

    def add(self, **more: Any) -> None:
        """Add to the total."""
        self.total = self.total.plus(Folded(**more))

    def fail(self, events: Sequence[bytes], err: Exception) -> None:
        """These, each told by its fingerprint or its cell's name, cannot be folded."""
        new = self._failed.union(events)
        if len(new) > len(self._failed):
            why = str(err) if isinstance(err, MurmurError) else f"{type(err).__name__}: {err}"
            text = f"{parse_row_key(self.key)[0].entity!r:.80}, bucket {self.bucket}: {why}"
            self.add(unfoldable=len(new) - len(self._failed), named=() if self._failed else (text,))
            self._failed = new


def _reached(some: Sequence[_Folding], found: Sequence[Row]) -> int:
    """Position of the row that a read has stopped in, or before; behind the last row, where it has come to its end."""
    return next((i for i, one in enumerate(some) if not found or one.key > found[-1].key), len(some))


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all come to; if one fails the others end first."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]
