"""What a process knows of the rows it has written, so that it need not read them before it writes again."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

FINGERPRINT_BYTES = 16
VERSION_BYTES = 8
"""How a column of events begins: with the version of the row that its commit has made."""

# A row of few large columns is read, and its version compared, faster than one of many small ones. So now and then a
# commit puts the events of the oldest small ones into one.
PACK_AT = 48
PACKED = 40
SMALL_EVENTS = 256

ROW_WEIGHT = 60
"""A row takes about as much memory as so many events."""

_FORGET = 32
_CELL_OVERHEAD = 8
_IN_BUCKET = 128
_LARGE = 4_096
"""A column of more events is put into buckets only once somebody asks; after a fold nobody may ever do."""
# So much of a fingerprint is enough to know an event again: two of a million in a row meet with a chance of 4e-13. Its
# first byte may be that of the whole row, which is a shard of its key.
_FROM, _TO = 1, 11
# By these bits of it the bucket is found; there are 2 ** k buckets.
_NUMBER_TO = 4
_BITS = 24


class Waiter:
    """Work that waits for a row. The owner of the row may adopt it and do it together with its own.

    Attributes:
        adopted: the owner of the row does it now.
        done: an owner has done it.
        handed: set when the row is handed over or the work is done; None until the work awaits it.
    """

    __slots__ = ("adopted", "done", "handed")

    def __init__(self) -> None:
        self.adopted = self.done = False
        self.handed: asyncio.Future[None] | None = None

    def tell(self) -> bool:
        """Wake the work up; False if it does not await the row."""
        if self.handed is None or self.handed.done():
            return False
        self.handed.set_result(None)
        return True


class KnownRow:
    """One row; exact as long as the row's version is ``version``.

    Attributes:
        read: is anything known? If not, the first guess is that the row does not exist.
        version, value, column, expires_us: the row's; ``column`` is the value as it is stored.
        events: number of the events in it.
        journal_bytes: what they take in the row.
        small: columns of at most `SMALL_EVENTS`, as far as is known; others may have packed some.
        packed: no small column is of this version, or an earlier one.
        sent: commits that may have happened although nobody was told, by their columns: the version each was made for,
            its events, and whether it was answered that somebody else had been first.
        owed: events that turned out to be in the row by one of those, which nobody has been told yet.
        crowded: how much others have written it lately: up with each commit that came second, one down with each merge.
        lead: commits that may be made at once, since the last came first, although the row is crowded.
        users: flushes that hold the row, or wait for it.
        waiting: work that waits for it, in order; None where there is none.
        weighed: events that `KnownRows` has counted.
    """

    # A process knows hundreds of thousands of rows, most with few events: each object more would be one more for
    # Python's garbage collector to walk over again and again. Dicts of bytes are not among those.
    __slots__ = (
        "_held",
        "_late",
        "_seen",
        "column",
        "crowded",
        "events",
        "expires_us",
        "journal_bytes",
        "lead",
        "owed",
        "packed",
        "read",
        "sent",
        "small",
        "users",
        "value",
        "version",
        "waiting",
        "weighed",
    )

    def __init__(self) -> None:
        self.users = self.weighed = self.crowded = self.lead = 0
        self._held = False
        self.waiting: dict[Waiter, None] | None = None
        self.sent: dict[bytes, tuple[int, bytes, bool]] | None = None
        self.owed: set[bytes] | None = None
        self.forget()

    def forget(self) -> None:
        """Know nothing any more."""
        self.read = False
        self.version = 0
        self.value: Any = None
        self.column: Any = None
        self.expires_us: int | None = None
        self.events = 0
        self.journal_bytes = 0
        self.small = 0
        self.packed = 0
        # One fingerprint after the other; many are shortened, and spread by their first bits over buckets that are
        # short enough to be searched: that takes an eighth of what a set does.
        self._seen: bytes | list[bytes] = b""
        self._late: list[bytes] | None = None

    def try_acquire(self) -> bool:
        """Take the row if it is free."""
        if self._held:
            return False
        self._held = True
        return True

    def want(self, waiter: Waiter) -> None:
        """Put work into the queue, from which the owner of the row may adopt it."""
        self.waiting = self.waiting or {}
        self.waiting[waiter] = None

    def unwant(self, waiter: Waiter) -> None:
        """Take work out of the queue."""
        if self.waiting:
            self.waiting.pop(waiter, None)

    async def acquire(self, waiter: Waiter) -> bool:
        """Take the row as soon as it is free; False if an owner has done the work meanwhile."""
        if not (waiter.adopted or waiter.done):
            if self.try_acquire():
                self.unwant(waiter)
                return True
            self.want(waiter)
        if not waiter.done:
            waiter.handed = asyncio.get_running_loop().create_future()
            try:
                await waiter.handed
            except asyncio.CancelledError:
                if not (waiter.handed.cancelled() or waiter.done):  # it became ours in the same moment
                    self.release()
                self.unwant(waiter)
                raise
        return not waiter.done

    def release(self) -> None:
        """Hand the row to the first work that awaits it, or leave it free."""
        for waiter in self.waiting or ():
            if waiter.tell():
                self.unwant(waiter)
                return
        self._held = False

    def unused(self) -> None:
        """Reset the lock: no flush uses the row."""
        self._held = False
        self.waiting = None

    @property
    def has(self) -> Callable[[bytes], bool]:
        """A function that tells whether an event is in the row, as far as it is known now.

        Raises:
            MemoryError: see `learn`.
        """
        if self._late is not None:
            self._add_late(self._late)
        seen = self._seen
        if isinstance(seen, bytes):
            return seen.__contains__
        n, number_of = len(seen), int.from_bytes

        # A match across the border of two fingerprints is as unlikely as two events with the same one.
        def is_in_its_bucket(event: bytes) -> bool:
            return event[_FROM:_TO] in seen[number_of(event[_FROM:_NUMBER_TO], "big") * n >> _BITS]

        return is_in_its_bucket

    def expect(self, n: int) -> None:
        """Make room for ``n`` more events, before many columns are learned."""
        room_for = self.events + n
        if room_for <= _IN_BUCKET:
            return
        seen = self._seen
        buckets = [b""] if isinstance(seen, bytes) else seen
        while room_for > _IN_BUCKET * len(buckets):
            buckets = _doubled(buckets)
        if isinstance(seen, bytes):
            _add(buckets, seen)
        self._seen = buckets

    def learn(self, column: bytes, journal: bytes) -> None:
        """A column of events that is now in the row.

        Raises:
            MemoryError: there is no room; nothing is known of the row any more, since what is half known counts twice.
        """
        n = len(journal) // FINGERPRINT_BYTES
        if n > _LARGE:
            self._late = [*(self._late or ()), journal]
        else:
            try:
                self.expect(n)
                if isinstance(self._seen, bytes):
                    self._seen += journal
                else:
                    _add(self._seen, journal)
            except BaseException:
                self.forget()
                raise
        self.events += n
        self.journal_bytes += len(column) + len(journal) + _CELL_OVERHEAD
        if n <= SMALL_EVENTS:
            self.small += 1

    def _add_late(self, journals: Sequence[bytes]) -> None:
        try:
            self.expect(0)
            for journal in journals:
                _add(self._seen, journal)  # type: ignore[arg-type]  # so many events are in buckets
        except BaseException:
            self.forget()
            raise
        self._late = None

    def take(self, version: int, columns: Sequence[tuple[bytes, bytes]], *, exists: bool) -> bool:
        """Learn what a read says of all commits after the version that is known.

        Args:
            version: the row's now; 0: none.
            columns: of events, after the version that is known.
            exists: does the row?

        Returns:
            Whether that is all. If not, the row was made anew, or columns have been packed away: then nothing is known
            any more, and all of the row must be read.
        """
        # A column for each commit since. Commits without events leave no column, so this may be a false alarm; reading
        # all of the row settles it. Where no event was known, only a row made anew at an earlier version has others.
        complete = version > self.version and version - self.version == len(columns)
        if version != self.version and not complete and (self.events or version < self.version):
            self.forget()
            if exists:
                return False
        self.expect(sum(len(journal) for _, journal in columns) // FINGERPRINT_BYTES)
        self.read = True
        self.version = version
        for marker, journal in columns:
            self.learn(marker, journal)
        return True

    def pack(self, n: int, column: bytes, journal: bytes) -> None:
        """The ``n`` oldest small columns were packed into the last of them, whose events are those of all."""
        still_small = is_small(journal)
        self.small -= n - still_small
        self.packed = int.from_bytes(column[:VERSION_BYTES], "big") - still_small
        self.journal_bytes -= (n - 1) * (len(column) + _CELL_OVERHEAD)


def is_small(journal: bytes) -> bool:
    """Tell whether a column with these events is to be packed."""
    return len(journal) <= SMALL_EVENTS * FINGERPRINT_BYTES


class KnownRows:
    """As many rows as may be remembered; those that were not needed for longest are forgotten first.

    Args:
        max_events: how many events in all, a row counting as `ROW_WEIGHT` more.

    Attributes:
        weight: how many they are.
    """

    def __init__(self, max_events: int) -> None:
        self._max = max_events
        # In the order of their last use. A plain dict takes 80 bytes a row less than one that is made for it.
        self._rows: dict[bytes, KnownRow] = {}
        self.weight = 0

    def borrow(self, encoded: bytes) -> KnownRow:
        """A row, to be given back; it is not forgotten meanwhile."""
        row = self._rows.pop(encoded, None)
        if row is None:
            row = KnownRow()
            self.weight += ROW_WEIGHT
        self._rows[encoded] = row
        row.users += 1
        return row

    def give_back(self, row: KnownRow) -> None:
        """No longer needed by one that borrowed it."""
        row.users -= 1
        if not row.users:
            row.unused()
        self.weight += row.events - row.weighed
        row.weighed = row.events
        if self.weight > self._max:
            self._forget()

    def _forget(self) -> None:
        """Some more than needed: the more rows were taken out of a dict, the longer it takes to find its first."""
        enough = self._max - self._max // _FORGET
        forgotten = []
        for encoded, row in self._rows.items():
            if self.weight <= enough:
                break
            if not row.users:
                self.weight -= row.weighed + ROW_WEIGHT
                forgotten.append(encoded)
        for encoded in forgotten:
            del self._rows[encoded]

    def __contains__(self, encoded: bytes) -> bool:
        return encoded in self._rows

    def __getitem__(self, encoded: bytes) -> KnownRow:
        return self._rows[encoded]


def _doubled(buckets: list[bytes]) -> list[bytes]:
    """Twice as many; those that are given stay as they are."""
    doubled = []
    n = 2 * len(buckets)
    for i, bucket in enumerate(buckets):
        events = split(bucket, _TO - _FROM)
        middle = ((2 * i + 1 << _BITS) // n).to_bytes(3, "big")
        doubled.append(b"".join([event for event in events if event < middle]))
        doubled.append(b"".join([event for event in events if event >= middle]))
    return doubled


def _add(buckets: list[bytes], journal: bytes) -> None:
    """Add fingerprints, shortened, and sorted so that those of a bucket are together."""
    n = len(buckets)
    events = sorted([journal[i + _FROM : i + _TO] for i in range(0, len(journal), FINGERPRINT_BYTES)])
    start = 0
    while start < len(events):
        i = int.from_bytes(events[start][: _NUMBER_TO - _FROM], "big") * n >> _BITS
        last = ((i + 1 << _BITS) // n - 1).to_bytes(3, "big") + b"\xff" * FINGERPRINT_BYTES
        end = bisect_right(events, last, start)
        buckets[i] += b"".join(events[start:end])
        start = end


def split(journal: bytes, size: int = FINGERPRINT_BYTES) -> list[bytes]:
    """The fingerprints in a column."""
    return [journal[i : i + size] for i in range(0, len(journal), size)]
