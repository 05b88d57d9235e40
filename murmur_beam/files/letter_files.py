"""Files of dead letters: reserved before a run, appended to during the run, and never overwriting other files. Needs no
Beam."""

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
from murmur_beam.files.compressed import Codec, split_name
from murmur_beam.files.names import shown
from murmur_beam.model import DeadLetter

FLAG = "--dead_letters"
_READER_S = 30.0
"""Longest wait for a pipe's reader."""
_TRIES = 5


class Identity(NamedTuple):
    """Identity of a file, independent of its name."""

    device: int
    inode: int


def filled(path: str) -> str:
    """A file's name with ``{date}`` and ``{time}`` filled in (2026-11-25, 093512; UTC), so that runs differ."""
    now = datetime.now(timezone.utc)
    return path.replace("{date}", f"{now:%Y-%m-%d}").replace("{time}", f"{now:%H%M%S}")


class LetterFile:
    """A JSON Lines file of dead letters, appended to. Letters that `keep` has written survive a power failure.

    A new file is readable by its owner only, since letters contain the input. Devices, pipes and links are written to
    directly.

    Args:
        path: of the file.
        new: the file must be empty and is exclusive to this run. It is compressed by the ending of its name, and
            removed at the end if it was created here and is still empty. Otherwise it may hold letters already, and
            several processes may write to it.

    Raises:
        ConfigurationError: the file cannot be written to, another run has locked it, or it must be empty but is not.
    """

    def __init__(self, path: str, *, new: bool = False) -> None:
        self.path = path
        self._new = new
        self._made = False
        self._codec = _codec_of(path)
        if self._codec is not None and not new:
            raise _refused(path, "letters are appended one by one, so the file cannot be compressed; leave out .gz")
        try:
            self._file = self._hold()
        except (OSError, ValueError) as err:  # a name with a NUL in it
            raise _refused(path, _reason(err)) from err

    @classmethod
    def again(cls, path: str, identity: Identity) -> LetterFile:
        """Open a file that another object has reserved, for a further writer.

        Raises:
            OSError: the file cannot be written to, or its name now belongs to another file.
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
        """Identity of the open file."""
        status = os.fstat(self._file)
        return Identity(status.st_dev, status.st_ino)

    def keep(self, letters: Sequence[DeadLetter]) -> list[Exception | None]:
        """Append letters and sync the file. Returns, per letter, None or the error that prevented it.

        A letter with an error may have been written nevertheless; a retry then writes it twice.
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
                # A writer was killed, or met a full disk, in the middle of a line; its message is redelivered.
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
        """Remove the last bytes written, unless another writer has appended since."""
        status = os.fstat(self._file)
        if n_bytes and stat.S_ISREG(status.st_mode) and os.lseek(self._file, 0, os.SEEK_CUR) == status.st_size:
            os.ftruncate(self._file, status.st_size - n_bytes)

    def sync(self) -> None:
        """Wait until the file is on the disk.

        Raises:
            OSError: the disk refuses the data.
        """
        try:
            os.fsync(self._file)
        except OSError as err:
            if err.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # a pipe or a device
                raise

    def close(self) -> None:
        """Close the file; remove it if it was created for this run and is still empty."""
        with suppress(OSError):
            if self._made and self._new and os.fstat(self._file).st_size == 0 and self._is_named():
                os.unlink(self.path)
        os.close(self._file)

    def _hold(self) -> int:
        """Open and lock the file, and make sure that its name still belongs to it."""
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
        raise OSError(errno.ESTALE, "another program keeps removing it")

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
                f"{shown(self.path)} holds dead letters of an earlier run; replay and remove it, or name another file, "
                "such as dead-{date}-{time}.jsonl",
            )

    def _is_named(self) -> bool:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.identity


def _open(path: str, more: int = 0) -> int:
    """Open an existing file, without waiting for a pipe's reader."""
    mode = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
    if stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "it is a disk", path)
    # Regular files are also read, to find their last byte. A pipe opened for reading would have itself as a reader.
    access = os.O_RDWR if stat.S_ISREG(mode) else os.O_WRONLY
    file = os.open(path, access | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | more, 0o600)
    if stat.S_IFMT(os.fstat(file).st_mode) != stat.S_IFMT(mode):
        os.close(file)
        raise OSError(errno.ESTALE, "it was replaced while it was opened", path)
    return file


def _codec_of(path: str) -> Codec | None:
    _, codecs = split_name(path)
    if len(codecs) > 1:
        raise _refused(path, "its name has several endings of compressions; use one")
    return codecs[0] if codecs else None


def _refused(path: str, problem: str) -> ConfigurationError:
    return ConfigurationError(FLAG, f"{shown(path)} cannot be written to: {problem}")


def _reason(err: OSError | ValueError) -> str:
    if isinstance(err, OSError) and err.errno == errno.ENXIO:
        return "it is a pipe without a reader, or a socket"
    return getattr(err, "strerror", None) or str(err)


def _sync_folder(folder: str) -> None:
    """Sync a folder, so that a new file's name survives a power failure as well."""
    opened = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(opened)
