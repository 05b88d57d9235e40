"""Detects changes of an open database's file that SQLite does not notice.

SQLite goes on reading and writing a file that was removed, and trusts its cache if another program has overwritten the
file. So the file is checked before each flush, and again after its commit, before any event is reported as merged. The
check uses the file's name and status only: opening and closing a file that SQLite has open would drop SQLite's locks.
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
# Checks of the whole content take at most a hundredth of the time.
_REST_AFTER_CHECK = 100
_HINTS = {
    "locked": f"another process has kept the file locked for {LOCK_TIMEOUT_S:g} s",
    "full": "free some space on its disk",
    "disk I/O": "its disk may be full or disconnected",
    "readonly": "make the file and its folder writable",
    "unable to open": "check that the folder exists and is writable",
    "no such": "another program has dropped it; restore the file from a backup",
    "malformed": "the file is damaged; restore it from a backup",
    "not a database": "name another file, or restore this one from a backup",
}
_LASTING = ("readonly", "unable to open", "no such")


class _Shape(NamedTuple):
    """Sizes and modification time, which change with each write to the file or its log."""

    size: int
    modified_ns: int
    wal_size: int


class _Header(NamedTuple):
    """Fields of the file's first page, as on the disk. They never decrease, except the pages by VACUUM."""

    schema_cookie: int
    change_counter: int
    pages: int
    page_bytes: int


def make(path: str) -> None:
    """Create the file, unless it exists, readable by its owner only, since its keys may be confidential.

    Raises:
        StoreUnavailable: the file cannot be created.
        TransientError: the file cannot be created now.
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
    """The files of an open database, as they were when they were opened or last written by this process.

    Args:
        path: of an existing database.
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
        """Remember the identities of the files, which SQLite has opened and read; from now on they must not change.

        Raises:
            StoreUnavailable: the database was replaced already.
        """
        # If the database was closed for a fork, SQLite may have removed its log and created another.
        self._known = {"": self._known[""]}
        self._descriptor = None
        for part in _PARTS:
            self._identify(part)
        self._data_version = self._version_of(db)
        self.note()

    def require_there(self) -> None:
        """Check that the database is the file that was opened.

        Raises:
            StoreUnavailable: the file was removed, moved or replaced.
        """
        self._identify("")

    def require_whole(self, db: sqlite3.Connection) -> None:
        """Check that all files are those that were opened, that they can be read, and, as far as can be seen, that only
        SQLite has written to them.

        Args:
            db: the open database, outside a transaction.

        Raises:
            StoreUnavailable: a file was removed, replaced or damaged.
        """
        shape = self._look()
        if shape == self._shape:
            return
        header = self._read_header()
        if header is not None and self._header is not None and _is_older(header, self._header):
            raise StoreUnavailable(self._damaged("an older copy has replaced it"))
        shrunk = shape.size < self._shape.size
        if shrunk and header is not None and shape.size < header.pages * header.page_bytes:
            raise StoreUnavailable(self._damaged("some of its pages are missing"))
        shrunk = shrunk or shape.wal_size < self._shape.wal_size
        version = self._version_of(db)
        # After commits of other connections, their writes have changed the file as well.
        touched = version == self._data_version and shape[:2] != self._shape[:2]
        if shrunk or (touched and time.monotonic() >= self._next_check_s):
            self._check_content()
        self._data_version = version

    def note(self) -> None:
        """Remember the state of the files after a write of this process.

        Raises:
            StoreUnavailable: a file was removed, moved or replaced, so the write is not in it.
        """
        shape = self._look()
        if shape[:2] != self._shape[:2]:
            self._header = self._read_header()
        self._shape = shape

    def _look(self) -> _Shape:
        found = {part: self._identify(part) for part in self._known}
        main, wal = found[""], found.get("-wal")
        assert main is not None  # `_identify` raises if it is missing
        return _Shape(main.st_size, main.st_mtime_ns, wal.st_size if wal is not None else 0)

    def _identify(self, part: str) -> os.stat_result | None:
        try:
            found = os.stat(self._paths[part])
        except FileNotFoundError:
            if part in self._known or not part:
                raise StoreUnavailable(self._gone(part)) from None
            return None  # some file systems cannot have a log
        except OSError as err:
            raise StoreUnavailable(f"sqlite {self.path}{part}: {err.strerror}") from err
        identity = found.st_dev, found.st_ino
        if self._known.setdefault(part, identity) != identity:
            raise StoreUnavailable(
                f"sqlite {self.path}{part}: was replaced while it was open; the new file lacks what was written to the "
                "old one. Stop all writers, make sure that this is the file you want, and start again"
            )
        return found

    @staticmethod
    def _version_of(db: sqlite3.Connection) -> int:
        (version,) = db.execute("PRAGMA data_version").fetchone()
        return int(version)

    def _read_header(self) -> _Header | None:
        """Read the header through SQLite's own descriptor; None if that cannot be found.

        Raises:
            StoreUnavailable: the file is no longer a database.
        """
        if self._descriptor is None or not self._is_ours(self._descriptor):
            self._descriptor = next(filter(self._is_ours, _descriptors()), None)
        if self._descriptor is None:
            return None
        data = os.pread(self._descriptor, _HEADER_BYTES, 0)
        if not data and self._header is None:
            return None  # nothing was written to it yet
        if len(data) < _HEADER_BYTES or not data.startswith(_MAGIC):
            raise StoreUnavailable(self._damaged("it is no longer a database"))
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
        """Check the whole file through a new connection, whose cache is empty."""
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
            f"sqlite {self.path}: was truncated or overwritten while it was open ({problem}). Stop all writers, "
            "restore the file from a backup, and start again"
        )

    def _gone(self, part: str) -> str:
        lost = "" if not part else "; its content may be lost"
        return (
            f"sqlite {self.path}{part}: was removed or moved while it was open{lost}. Stop all writers, put the file "
            "back with its -wal and -shm files, or restore a backup, and start again"
        )


def _is_older(header: _Header, than: _Header) -> bool:
    if header.schema_cookie != than.schema_cookie:
        return header.schema_cookie < than.schema_cookie
    return header.change_counter < than.change_counter or header.pages < than.pages


def _descriptors() -> Iterator[int]:
    """The file descriptors that this process has open, if the system lists them."""
    with suppress(OSError):
        yield from map(int, os.listdir("/dev/fd"))


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Translate SQLite's errors: a lock or a full disk is transient, a file that is not a database is permanent."""
    try:
        yield
    except sqlite3.Error as err:
        text = str(err)
        hint = next((f"; {hint}" for words, hint in _HINTS.items() if words in text), "")
        message = f"sqlite {path}: {text}{hint}"
        if isinstance(err, sqlite3.OperationalError) and not any(words in text for words in _LASTING):
            raise TransientError(message) from err
        raise StoreUnavailable(message) from err
