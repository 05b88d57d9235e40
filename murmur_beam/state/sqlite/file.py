"""The file under an open database: what may happen to it behind SQLite's back, and how it is noticed.

SQLite goes on reading and writing a file that was removed, and trusts its cache where somebody has overwritten what is
on the disk. So the file is looked at before each flush, and once more after its commit, before anything is reported as
merged. Looking means asking the system for its name: to open and close a file that SQLite has open drops its locks.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

from murmur_beam.errors import StoreUnavailable, TransientError

LOCK_TIMEOUT_S = 30.0
"""How long one flush waits for another process's flush before it counts as a failed try."""

_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_PARTS = ("", "-wal", "-shm")
_MAY_PASS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN}
# The content is read through at most so often that this takes a hundredth of the time.
_REST_AFTER_CHECK = 100
_HINTS = {
    "locked": f"another process has kept it locked for {LOCK_TIMEOUT_S:g} s",
    "full": "free some space on its disk",
    "disk I/O": "its disk may be full, or gone",
    "readonly": "it, or its folder, may not be written to",
    "unable to open": "check that the folder exists and may be written to",
    "no such": "something has dropped it; restore the file from a backup",
    "malformed": "the file is damaged; restore it from a backup",
    "not a database": "name another file, or restore this one from a backup",
}
_LASTING = ("readonly", "unable to open", "no such")


class _Shape(NamedTuple):
    """Sizes and time that change with each write to the file or its log."""

    size: int
    modified_ns: int
    wal_size: int


class _Header(NamedTuple):
    """What the file's first page says, as it is on the disk: none of it ever gets less, but for the pages by VACUUM."""

    schema_cookie: int
    change_counter: int
    pages: int
    page_bytes: int


def make(path: str) -> None:
    """Make the file unless it is there, for its owner alone: it holds what was counted, and by whom.

    Raises:
        StoreUnavailable: it cannot be made.
        TransientError: not now.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except (OSError, ValueError) as err:
        message = f"sqlite {path}: {getattr(err, 'strerror', None) or err}"
        if isinstance(err, OSError) and err.errno in _MAY_PASS:
            raise TransientError(message) from err
        raise StoreUnavailable(f"{message}; {_HINTS['unable to open']}") from err


class OpenFile:
    """An open database's files, as they were when it was opened, or last written to by us.

    Args:
        path: of the database, which exists.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._paths = {part: path + part for part in _PARTS}
        self._known: dict[str, tuple[int, int]] = {}
        self._shape = _Shape(0, 0, 0)
        self._header: _Header | None = None
        self._data_version = 0
        self._descriptor: int | None = None
        self._next_check_s = 0.0
        self._identify("")

    def watch(self, db: sqlite3.Connection) -> None:
        """SQLite has opened the files, and read from them: from now on they must stay what they are.

        Raises:
            StoreUnavailable: the database is another one already.
        """
        # Where it was closed for a fork, SQLite may have removed its log, and made another.
        self._known = {"": self._known[""]}
        self._descriptor = None
        for part in _PARTS:
            self._identify(part)
        self._data_version = self._version_of(db)
        self.note()

    def require_there(self) -> None:
        """Check that the database is the file that was opened.

        Raises:
            StoreUnavailable: it was removed, moved or replaced.
        """
        self._identify("")

    def require_whole(self, db: sqlite3.Connection) -> None:
        """Check that all files are those that were opened, that they can be read, and, as far as it shows, that only
        SQLite has written to them.

        Args:
            db: the open database, in no transaction.

        Raises:
            StoreUnavailable: it is not so.
        """
        shape = self._look()
        if shape == self._shape:
            return
        header = self._read_header()
        if header is not None and self._header is not None and _is_older(header, self._header):
            raise StoreUnavailable(self._damaged("an older copy is in its place"))
        shrunk = shape.size < self._shape.size
        if shrunk and header is not None and shape.size < header.pages * header.page_bytes:
            raise StoreUnavailable(self._damaged("some of its pages are missing"))
        shrunk = shrunk or shape.wal_size < self._shape.wal_size
        version = self._version_of(db)
        # Where other connections have committed, one of them has written to the file as well.
        touched = version == self._data_version and shape[:2] != self._shape[:2]
        if shrunk or (touched and time.monotonic() >= self._next_check_s):
            self._check_content()
        self._data_version = version

    def note(self) -> None:
        """Keep in mind what the files look like after a write of ours.

        Raises:
            StoreUnavailable: one was removed, moved or replaced, so that the write is not in it.
        """
        shape = self._look()
        if shape[:2] != self._shape[:2]:
            self._header = self._read_header()
        self._shape = shape

    def _look(self) -> _Shape:
        found = {part: self._identify(part) for part in self._known}
        main, wal = found[""], found.get("-wal")
        assert main is not None  # or it would have been missed
        return _Shape(main.st_size, main.st_mtime_ns, wal.st_size if wal is not None else 0)

    def _identify(self, part: str) -> os.stat_result | None:
        try:
            found = os.stat(self._paths[part])
        except FileNotFoundError:
            if part in self._known or not part:
                raise StoreUnavailable(self._gone(part)) from None
            return None  # there is no log where the file system cannot have one
        except OSError as err:
            raise StoreUnavailable(f"sqlite {self.path}{part}: {err.strerror}") from err
        identity = found.st_dev, found.st_ino
        if self._known.setdefault(part, identity) != identity:
            raise StoreUnavailable(
                f"sqlite {self.path}{part}: was replaced while it was open; what was written to the one before is not "
                "in it. Stop all that write to it, make sure that this is the file you want, and start again"
            )
        return found

    @staticmethod
    def _version_of(db: sqlite3.Connection) -> int:
        (version,) = db.execute("PRAGMA data_version").fetchone()
        return int(version)

    def _read_header(self) -> _Header | None:
        """By SQLite's own descriptor; None where that cannot be found.

        Raises:
            StoreUnavailable: that is no database any more.
        """
        if self._descriptor is None or not self._is_ours(self._descriptor):
            self._descriptor = next(filter(self._is_ours, _descriptors()), None)
        if self._descriptor is None:
            return None
        data = os.pread(self._descriptor, _HEADER_BYTES, 0)
        if not data and self._header is None:
            return None  # nothing was written to it yet
        if len(data) < _HEADER_BYTES or not data.startswith(_MAGIC):
            raise StoreUnavailable(self._damaged("it is no database any more"))
        counter, pages = struct.unpack_from(">II", data, 24)
        (cookie,) = struct.unpack_from(">I", data, 40)
        (page_bytes,) = struct.unpack_from(">H", data, 16)
        return _Header(cookie, counter, pages, 65_536 if page_bytes == 1 else page_bytes)

    def _is_ours(self, descriptor: int) -> bool:
        try:
            found = os.fstat(descriptor)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._known[""]

    def _check_content(self) -> None:
        """Read all of the file through a new connection, which has nothing in a cache."""
        started_s = time.monotonic()
        problem = ""
        try:
            with closing(sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None)) as db:
                (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    problem = " ".join(found.split())
                elif not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'murmur_schema'").fetchone():
                    problem = "its tables are gone"
        except sqlite3.Error as err:
            problem = str(err)
        if problem:
            raise StoreUnavailable(self._damaged(problem))
        took_s = time.monotonic() - started_s
        self._next_check_s = time.monotonic() + _REST_AFTER_CHECK * took_s

    def _damaged(self, problem: str) -> str:
        return (
            f"sqlite {self.path}: was cut short or overwritten while it was open ({problem}). Stop all that write to "
            "it, restore it from a backup, and start again"
        )

    def _gone(self, part: str) -> str:
        lost = "" if not part else "; what it held may be lost"
        return (
            f"sqlite {self.path}{part}: was removed or moved while it was open{lost}. Stop all that write to it, "
            "put it back with its -wal and -shm files, or restore a backup, and start again"
        )


def _is_older(header: _Header, than: _Header) -> bool:
    if header.schema_cookie != than.schema_cookie:
        return header.schema_cookie < than.schema_cookie
    return header.change_counter < than.change_counter or header.pages < than.pages


def _descriptors() -> Iterator[int]:
    """Those that this process has open, where the system tells."""
    with suppress(OSError):
        yield from map(int, os.listdir("/dev/fd"))


@contextmanager
def translated(path: str) -> Iterator[None]:
    """SQLite's errors as ours: a lock or a full disk may pass, a file that is no database will not."""
    try:
        yield
    except sqlite3.Error as err:
        text = str(err)
        hint = next((f"; {hint}" for words, hint in _HINTS.items() if words in text), "")
        message = f"sqlite {path}: {text}{hint}"
        if isinstance(err, sqlite3.OperationalError) and not any(words in text for words in _LASTING):
            raise TransientError(message) from err
        raise StoreUnavailable(message) from err
