"""What a process remembers of the rows it has written, so that it need not read them before it writes again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from murmur_beam.state.bigtable.fingerprints import (
    BUCKET_EVENTS,
    FINGERPRINT_BYTES,
    FingerprintSet,
    Known,
    known_of_few,
)

VERSION_BYTES = 8
"""A marker column's qualifier begins with the version of the row that its commit has made."""

# A row of few large marker columns is read, and its version compared, faster than a row of many small ones. So now and
# then a commit packs the oldest small columns into one.
PACK_AT = 48
PACKED = 40
SMALL_EVENTS = 256

ROW_WEIGHT = 60
"""A row takes about as much memory as this many events."""

_FORGET = 32
_CELL_OVERHEAD = 8


class Waiter:
    """Work that waits for the lock of a row. The work that holds the lock may adopt it and do both together.

    Attributes:
        adopted: the holder of the lock does this work now.
        done: a holder of the lock has done this work.
        handed: set when the lock is handed over or the work is done; None until the work awaits it.
    """

    __slots__ = ("adopted", "done", "handed")

    def __init__(self) -> None:
        self.adopted = self.done = False
        self.handed: asyncio.Future[None] | None = None

    def wake(self) -> bool:
        """Wake the work up; False if it does not await the lock."""
        if self.handed is None or self.handed.done():
            return False
        self.handed.set_result(None)
        return True


class CachedRow:
    """One row: its lock in this process, and what is known of it, which is exact while its version is ``version``.

    Attributes:
        read: whether anything is known. If not, the first guess is that the row does not exist.
        version, value, stored, expires_us: the row's; ``stored`` is the value as its cell holds it.
        events: number of events with a marker in the row.
        marker_bytes: what the markers take in the row.
        small: marker columns of at most `SMALL_EVENTS`, as far as is known; other writers may have packed some.
        packed: no small marker column is of this version, or of an earlier one.
        unanswered: commits that may have been applied although no answer said so, by the qualifier of their markers:
            the version each was made for, its fingerprints, and whether a version conflict was answered.
        unreported: fingerprints that such a commit turned out to have merged, and whose event was not reported yet.
        contention: how much other writers have written the row lately: each version conflict raises it, each merge
            lowers it by one.
        free_commits: commits that may be made at once, since the last one had no conflict, although there is
            contention.
        users: batches that hold the row or wait for it.
        waiting: work that waits for the lock, in order; None if there is none.
        weight: events that `RowCache` has counted.
    """

    # A process knows hundreds of thousands of rows, most of them with few events: each further object would be one more
    # for Python's garbage collector to visit again and again. It does not visit bytes, nor dicts of bytes.
    __slots__ = (
        "_held",
        "_markers",
        "contention",
        "events",
        "expires_us",
        "free_commits",
        "marker_bytes",
        "packed",
        "read",
        "small",
        "stored",
        "unanswered",
        "unreported",
        "users",
        "value",
        "version",
        "waiting",
        "weight",
    )

    def __init__(self) -> None:
        self.users = self.weight = self.contention = self.free_commits = 0
        self._held = False
        self.waiting: dict[Waiter, None] | None = None
        self.unanswered: dict[bytes, tuple[int, bytes, bool]] | None = None
        self.unreported: set[bytes] | None = None
        self.forget()

    # ---- the lock ----

    def try_acquire(self) -> bool:
        """Take the lock if it is free."""
        if self._held:
            return False
        self._held = True
        return True

    def enqueue(self, waiter: Waiter) -> None:
        """Put work into the queue, from which the holder of the lock may adopt it."""
        self.waiting = self.waiting or {}
        self.waiting[waiter] = None

    def dequeue(self, waiter: Waiter) -> None:
        """Take work out of the queue."""
        if self.waiting:
            self.waiting.pop(waiter, None)

    async def acquire(self, waiter: Waiter) -> bool:
        """Take the lock as soon as it is free; False if its holder has done the work meanwhile."""
        if not (waiter.adopted or waiter.done):
            if self.try_acquire():
                self.dequeue(waiter)
                return True
            self.enqueue(waiter)
        if not waiter.done:
            waiter.handed = asyncio.get_running_loop().create_future()
            try:
                await waiter.handed
            except asyncio.CancelledError:
                if not (waiter.handed.cancelled() or waiter.done):  # the lock was handed over in the same moment
                    self.release()
                self.dequeue(waiter)
                raise
        return not waiter.done

    def release(self) -> None:
        """Hand the lock to the first work that awaits it, or leave it free."""
        for waiter in self.waiting or ():
            if waiter.wake():
                self.dequeue(waiter)
                return
        self._held = False

    def reset_lock(self) -> None:
        """Free the lock and empty its queue: no batch uses the row."""
        self._held = False
        self.waiting = None

    # ---- what is known ----

    def forget(self) -> None:
        """Know nothing any more."""
        self.read = False
        self.version = 0
        self.value: Any = None
        self.stored: Any = None
        self.expires_us: int | None = None
        self.events = 0
        self.marker_bytes = 0
        self.small = 0
        self.packed = 0
        self._markers: bytes | FingerprintSet = b""

    @property
    def known(self) -> Known:
        """Finds the fingerprints of which the row has a marker, as far as is known now.

        Raises:
            MemoryError: see `learn`.
        """
        if isinstance(self._markers, bytes):
            return partial(known_of_few, self._markers)
        try:
            return self._markers.known
        except BaseException:
            self.forget()
            raise

    def learn(self, qualifier: bytes, fingerprints: bytes) -> None:
        """A marker column that is now in the row.

        Raises:
            MemoryError: there is no room; nothing is known of the row any more, since markers that are half known let
                events count twice.
        """
        n = len(fingerprints) // FINGERPRINT_BYTES
        try:
            self._reserve(n)
            if isinstance(self._markers, bytes):
                self._markers += fingerprints
            else:
                self._markers.add(fingerprints)
        except BaseException:
            self.forget()
            raise
        self.events += n
        self.marker_bytes += len(qualifier) + len(fingerprints) + _CELL_OVERHEAD
        if n <= SMALL_EVENTS:
            self.small += 1

    def _reserve(self, n: int) -> None:
        """Make room for ``n`` more events; the fingerprints of few are searched as they are."""
        if isinstance(self._markers, bytes) and self.events + n > BUCKET_EVENTS:
            self._markers = FingerprintSet(self._markers)

    def absorb(self, version: int, columns: Sequence[tuple[bytes, bytes]], *, exists: bool) -> bool:
        """Learn what a read says of all commits after the version that is known.

        Args:
            version: the row's now; 0 if it has none.
            columns: marker columns after the version that is known.
            exists: whether the row does.

        Returns:
            Whether the columns are complete. If not, the row was deleted and made again, or columns have been packed:
            then nothing is known any more, and the whole row must be read.
        """
        # Each commit leaves a column. Commits without events leave none, so this may be a false alarm; reading the
        # whole row settles it. Where no event was known, only a row made again at an earlier version has others.
        complete = version > self.version and version - self.version == len(columns)
        if version != self.version and not complete and (self.events or version < self.version):
            self.forget()
            if exists:
                return False
        n = sum(len(fingerprints) for _, fingerprints in columns) // FINGERPRINT_BYTES
        self._reserve(n)
        if isinstance(self._markers, FingerprintSet):
            self._markers.reserve(n)
        self.read = True
        self.version = version
        for qualifier, fingerprints in columns:
            self.learn(qualifier, fingerprints)
        return True

    def pack(self, n: int, qualifier: bytes, fingerprints: bytes) -> None:
        """The ``n`` oldest small columns were packed into the last of them, which now holds all their fingerprints."""
        still_small = is_small(fingerprints)
        self.small -= n - still_small
        self.packed = int.from_bytes(qualifier[:VERSION_BYTES], "big") - still_small
        self.marker_bytes -= (n - 1) * (len(qualifier) + _CELL_OVERHEAD)


def is_small(fingerprints: bytes) -> bool:
    """Whether a marker column with these fingerprints is to be packed."""
    return len(fingerprints) <= SMALL_EVENTS * FINGERPRINT_BYTES


class RowCache:
    """Rows by key. When they take too much memory, the least recently used ones are forgotten.

    Args:
        max_events: number of events to remember in all; a row counts as `ROW_WEIGHT` more.

    Attributes:
        weight: number of events that are remembered now, counted in the same way.
    """

    def __init__(self, max_events: int) -> None:
        self._max = max_events
        # In the order of their last use. A plain dict takes 80 bytes a row less than an OrderedDict.
        self._rows: dict[bytes, CachedRow] = {}
        self.weight = 0

    def borrow(self, row_key: bytes) -> CachedRow:
        """A row, to be given back; it is not forgotten meanwhile."""
        row = self._rows.pop(row_key, None)
        if row is None:
            row = CachedRow()
            self.weight += ROW_WEIGHT
        self._rows[row_key] = row
        row.users += 1
        return row

    def give_back(self, row: CachedRow) -> None:
        """End one use of a row."""
        row.users -= 1
        if not row.users:
            row.reset_lock()
        self.weight += row.events - row.weight
        row.weight = row.events
        if self.weight > self._max:
            self._forget()

    def _forget(self) -> None:
        """Forget somewhat more than needed: each row taken out of a dict makes finding its first one slower."""
        enough = self._max - self._max // _FORGET
        forgotten = []
        for row_key, row in self._rows.items():
            if self.weight <= enough:
                break
            if not row.users:
                self.weight -= row.weight + ROW_WEIGHT
                forgotten.append(row_key)
        for row_key in forgotten:
            del self._rows[row_key]

    def __contains__(self, row_key: bytes) -> bool:
        return row_key in self._rows

    def __getitem__(self, row_key: bytes) -> CachedRow:
        return self._rows[row_key]
