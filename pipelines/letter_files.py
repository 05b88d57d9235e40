"""Files of dead letters: held before the work begins, appended to while it goes on, and never in place of what is not
ours. Needs no Beam."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import NamedTuple

from murmur_beam.errors import ConfigurationError
from murmur_beam.model import DeadLetter
from pipelines.compressed import Codec, split_name
from pipelines.console import shown

FLAG = "--dead_letters"
_READER_S = 30.0
"""So long may the reader of a pipe take nothing."""
_TRIES = 5


class Identity(NamedTuple):
    """What a file is known by, whatever is done to its name."""

    device: int
    inode: int


def filled(path: str) -> str:
    """A file's name with ``{date}`` and ``{time}`` (2026-11-25, 093512; UTC) filled in: each run has its own then."""
    now = datetime.now(timezone.utc)
    return path.replace("{date}", f"{now:%Y-%m-%d}").replace("{time}", f"{now:%H%M%S}")


class LetterFile:
    """A JSON Lines file of dead letters, appended to. What `keep` has written survives a power cut.

    A file that is made is readable for its owner alone, since letters hold what was sent. Devices and pipes are
    written to as they are, and links written through.

    Args:
        path: of the file.
        new: it must be empty, is this run's alone, is compressed as its name says, and is removed in the end if it was
            made here and is still empty. Else it may hold letters already, and several processes may write to it.

    Raises:
        ConfigurationError: it cannot be written to, another run holds it, or it is not empty where it must be.
    """

    def __init__(self, path: str, *, new: bool = False) -> None:
        self.path = path
        self._new = new
        self._made = False
        self._codec = _codec_of(path)
        if self._codec is not None and not new:
            raise _refused(path, "letters are appended here one by one, which no compressed file takes; leave out .gz")
        try:
            self._file = self._hold()
        except (OSError, ValueError) as err:  # a name with a NUL in it
            raise _refused(path, _reason(err)) from err

    @classmethod
    def again(cls, path: str, identity: Identity) -> LetterFile:
        """The file that another object holds, for one more writer.

        Raises:
            OSError: it cannot be written to, or its name is that of another file by now.
        """
        made = cls.__new__(cls)
        made.path, made._new, made._made, made._codec = path, False, False, _codec_of(path)
        made._file = _open(path)
        if made.identity != identity:
            made.close()
            raise OSError(errno.ESTALE, "it was removed or replaced while letters were written to it", path)
        return made

    @property
    def identity(self) -> Identity:
        """Of the file that is open."""
        status = os.fstat(self._file)
        return Identity(status.st_dev, status.st_ino)

    def keep(self, letters: Sequence[DeadLetter]) -> list[Exception | None]:
        """Append letters and wait until the disk has them; of each None, or why it could not be kept.

        One that could not be kept may be there all the same, and comes twice then.
        """
        try:
            self.write("".join(f"{DeadLetter.to_json(letter)}\n" for letter in letters).encode("utf-8"))
            self.sync()
        except OSError as err:
            return [err] * len(letters)
        return [None] * len(letters)

    def write(self, lines: bytes) -> None:
        """Append whole lines.

        Raises:
            OSError: the disk is full, or a pipe's reader takes nothing.
        """
        if self._codec is not None:
            lines = self._codec.compress(lines)
        elif stat.S_ISREG(os.fstat(self._file).st_mode):
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                # A writer was killed, or met a full disk, in the middle of a line, whose message comes again.
                lines = b"\n" + lines
        left = memoryview(lines)
        try:
            while left:
                left = left[self._write_some(left) :]
        except OSError:
            written = len(lines) - len(left)
            whole = lines.rfind(b"\n", 0, written) + 1 if self._codec is None else 0
            self._take_back(written - whole)
            raise

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._file, data)
        except BlockingIOError:
            poll = select.poll()
            poll.register(self._file, select.POLLOUT)
            if not poll.poll(_READER_S * 1_000):
                raise OSError(errno.ETIMEDOUT, "the reader of this pipe takes nothing", self.path) from None
            return 0

    def _take_back(self, n_bytes: int) -> None:
        """Remove so much of what was written last; but not where another writer came behind it."""
        status = os.fstat(self._file)
        if n_bytes and stat.S_ISREG(status.st_mode) and os.lseek(self._file, 0, os.SEEK_CUR) == status.st_size:
            os.ftruncate(self._file, status.st_size - n_bytes)

    def sync(self) -> None:
        """Wait until the disk has all of it.

        Raises:
            OSError: it cannot be written.
        """
        try:
            os.fsync(self._file)
        except OSError as err:
            if err.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # a pipe or a device
                raise

    def close(self) -> None:
        """Close the file; remove it if it was made here for this run and nothing was written."""
        with suppress(OSError):
            if self._made and self._new and os.fstat(self._file).st_size == 0 and self._is_named():
                os.unlink(self.path)
        os.close(self._file)

    def _hold(self) -> int:
        """Open the file and lock it, making sure that its name is still its own by then."""
        for _ in range(_TRIES):
            self._made = False
            try:
                self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._made = True
            except FileExistsError:
                self._file = _open(self.path, os.O_CREAT)
            try:
                if not stat.S_ISREG(os.fstat(self._file).st_mode):
                    return self._file
                self._lock()
                if self._is_named():
                    self._check_empty()
                    self.sync()
                    _sync_folder(os.path.dirname(os.path.realpath(self.path)))
                    return self._file
            except BaseException:
                os.close(self._file)
                raise
            os.close(self._file)
        raise OSError(errno.ESTALE, "it is removed again and again")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, (fcntl.LOCK_EX if self._new else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refused(
                self.path, "another run is writing to it; name another file, such as dead-{time}.jsonl"
            ) from None
        except OSError as err:
            if err.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):  # a file system without locks
                raise

    def _check_empty(self) -> None:
        if self._new and os.fstat(self._file).st_size:
            raise ConfigurationError(
                FLAG,
                f"{shown(self.path)} holds those of an earlier run; replay and remove it, or name another file, such "
                "as dead-{date}-{time}.jsonl",
            )

    def _is_named(self) -> bool:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.identity


def _open(path: str, more: int = 0) -> int:
    """Open something that is there: a pipe without a reader is not waited for."""
    mode = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
    if stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "it is a disk", path)
    # Reading is for the last byte of a file; a pipe that is opened for it never lacks a reader.
    access = os.O_RDWR if stat.S_ISREG(mode) else os.O_WRONLY
    file = os.open(path, access | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | more, 0o600)
    if stat.S_IFMT(os.fstat(file).st_mode) != stat.S_IFMT(mode):
        os.close(file)
        raise OSError(errno.ESTALE, "it was replaced while it was opened", path)
    return file


def _codec_of(path: str) -> Codec | None:
    _, codecs = split_name(path)
    if len(codecs) > 1:
        raise _refused(path, "its name has several endings of compressions; one is enough")
    return codecs[0] if codecs else None


def _refused(path: str, problem: str) -> ConfigurationError:
    return ConfigurationError(FLAG, f"{shown(path)} cannot be written to: {problem}")


def _reason(err: OSError | ValueError) -> str:
    if isinstance(err, OSError) and err.errno == errno.ENXIO:
        return "it is a pipe that nobody reads, or a socket"
    return getattr(err, "strerror", None) or str(err)


def _sync_folder(folder: str) -> None:
    """So that a new file's name survives a power cut as well."""
    opened = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(opened)
