"""Input files: finds them by name or pattern, and reads all their bytes or fails.

A name of an existing file is that file, whatever characters it contains; any other name is a pattern.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import select
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, BinaryIO

from murmur_beam.quiet_beam import beam  # noqa: F401 - before other imports of Beam

# isort: split
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from murmur_beam.errors import ConfigurationError, MurmurError
from murmur_beam.files.compressed import Damaged, inflate, kind_of, split_name
from murmur_beam.files.layer import Layer
from murmur_beam.files.names import shown

_BUFFER_BYTES = 1 << 18
_WRITER_S = 10.0
"""Longest wait for a pipe's first writer."""
_SILENCE_S = 3600.0
"""Longest wait for a pipe's next data."""
_UTF16 = re.compile(rb"\xff\xfe.\0|\xfe\xff\0|\xff\xfe\0\0|\0\0\xfe\xff", re.DOTALL)
_WILD = re.compile(r"\*\*/?|\*|\?|\[!?\]?[^\]]*\]")


def is_remote(path: str) -> bool:
    """Return whether a name belongs to one of Beam's file systems, such as ``gs://bucket/name``. `matching` gives local
    files absolute paths."""
    return "://" in path and not os.path.isabs(path)


def matching(patterns: Sequence[str], flag: str = "--input") -> list[str]:
    """The files that match, each once, whatever its names; local files with absolute paths.

    Args:
        patterns: names and patterns: ``*``, ``?`` and ``[...]`` match within a folder, ``**`` across folders.
        flag: of the patterns, for errors.

    Raises:
        ConfigurationError: a pattern matches no file, or something that cannot be read.
    """
    found: dict[object, str] = {}
    for pattern in patterns:
        for path, identity in _found_by(pattern, flag):
            found.setdefault(identity, path)
    return list(found.values())


def _found_by(pattern: str, flag: str) -> Iterator[tuple[str, object]]:
    """Each path, with the identity of its file."""
    try:
        names = _named(pattern)
        for path in names:
            yield path, path if is_remote(path) else _identity(path)
    except (OSError, ValueError) as err:
        path = shown(getattr(err, "filename", None) or pattern)
        raise ConfigurationError(flag, f"{path} cannot be read: {reason(err)}") from err
    if not names:
        raise ConfigurationError(flag, f"no file matches '{shown(pattern)}'")


def reason(err: Exception) -> str:
    """The text of an error, without its number and file name."""
    return getattr(err, "strerror", None) or " ".join(str(err).split()) or type(err).__name__


def _named(pattern: str) -> list[str]:
    where = os.path.join(os.getcwd(), pattern)
    try:
        os.lstat(where)
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        if not _WILD.search(pattern):
            raise
    else:
        return [where]
    if is_remote(pattern):
        return _remote(pattern)
    if not _WILD.search(pattern):
        return []
    return sorted(_expanded("/", where.split("/")[1:]))


def _remote(pattern: str) -> list[str]:
    try:
        return [file.path for file in FileSystems.match([pattern])[0].metadata_list]
    except Exception as err:  # each file system raises different errors, with tracebacks in their texts
        raise ValueError(str(err).strip().splitlines()[-1]) from err


def _expanded(folder: str, parts: list[str]) -> Iterator[str]:
    """All files that a pattern matches.

    Args:
        folder: where the pattern starts.
        parts: of the pattern, between the slashes.

    Raises:
        OSError: a folder cannot be listed, so files in it would be missed.
    """
    part, rest = parts[0], parts[1:]
    if "**" in part:
        whole = _regex("/".join(parts))
        yield from (path for path in _below(folder, set()) if whole.fullmatch(os.path.relpath(path, folder)))
    elif not _WILD.search(part):
        path = os.path.join(folder, part)
        if rest and os.path.isdir(path):
            yield from _expanded(path, rest)
        elif not rest and os.path.lexists(path) and not os.path.isdir(path):
            yield path
    else:
        regex = _regex(part)
        for entry in _listed(folder):
            if regex.fullmatch(entry.name):
                if rest and entry.is_dir():
                    yield from _expanded(entry.path, rest)
                elif not rest and not entry.is_dir():
                    yield entry.path


def _below(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """All files below a folder, also through links, but each folder once."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in _listed(folder):
        if entry.is_dir():
            yield from _below(entry.path, seen)
        else:
            yield entry.path


def _listed(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _regex(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern, as in Beam, except that ``**/`` also matches zero folders."""
    translated, at = "", 0
    for wild in _WILD.finditer(pattern):
        token = wild.group()
        translated += re.escape(pattern[at : wild.start()])
        at = wild.end()
        if token[0] == "[":
            inner = token[1:-1].replace("\\", "\\\\").replace("[", "\\[")
            negated = "^" if inner.startswith("!") else "\\" if inner.startswith("^") else ""
            translated += f"[{negated}{inner.removeprefix('!')}]"
        else:
            translated += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}[token]
    try:
        return re.compile(translated + re.escape(pattern[at:]), re.DOTALL)
    except re.error as err:
        raise ValueError(f"it is not a valid pattern: {err}") from None


def _identity(path: str) -> object:
    """The identity of a file, the same under all its names.

    Raises:
        OSError: the file cannot be read, or is of a kind without an end.
    """
    status = os.stat(path)
    problem = _problem(status)
    if problem is None and not os.access(path, os.R_OK):
        problem = os.strerror(errno.EACCES)
    if problem is not None:
        raise OSError(errno.EINVAL, problem, path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _problem(status: os.stat_result) -> str | None:
    """The reason why a file is not read; None for a regular file, a pipe, or the null device."""
    if stat.S_ISDIR(status.st_mode):
        return "it is a folder; write FOLDER/* for the files in it"
    if stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode):
        return None
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev:
        return None
    return "it is neither a file nor a pipe"


def check_encoding(encoding: str, flag: str = "--encoding") -> None:
    """Check the name of a text encoding.

    Raises:
        ConfigurationError: the encoding is unknown.
    """
    try:
        if isinstance("".encode(encoding), bytes):
            return
    except (LookupError, ValueError):
        pass
    raise ConfigurationError(flag, f"unknown encoding {encoding!r}; write utf-8, latin-1, cp1252 or utf-16, say")


@contextmanager
def opened(path: str, encoding: str = "utf-8") -> Iterator[BinaryIO]:
    """Open a file, decompressed by the ending of its name, and converted to UTF-8.

    Bytes that are invalid in the encoding are kept; since they are invalid in UTF-8 too, only their record fails.

    Args:
        path: from `matching`.
        encoding: of the file.

    Raises:
        MurmurError: the file cannot be read to its end, or its content does not fit its name. Raised from the block as
            well.
    """
    try:
        source = _raw(path)
        with closing(inflate(source, split_name(path)[1])) as content:
            _check_start(content, encoding)
            if encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
                content = io.BufferedReader(_Transcoded(content, encoding), _BUFFER_BYTES)
            yield content
            if isinstance(source, _Regular):
                source.check_end()
    except (Damaged, OSError, EOFError, UnicodeError) as err:
        raise MurmurError(f"{shown(path)}: cannot be read to its end: {reason(err)}") from err


def _raw(path: str) -> BinaryIO:
    """The bytes of a file, not decompressed."""
    if is_remote(path):
        try:
            remote = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
        except Exception as err:  # each file system raises different errors
            raise Damaged(f"{type(err).__name__}: {reason(err)}") from err
        return io.BufferedReader(Layer(remote), _BUFFER_BYTES)
    # O_NONBLOCK: otherwise opening a pipe without a writer would block.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(file)
    problem = _problem(status)
    if problem is not None:
        os.close(file)
        raise Damaged(problem)
    if stat.S_ISFIFO(status.st_mode):
        return io.BufferedReader(_Pipe(file), _BUFFER_BYTES)
    return _Regular(io.FileIO(file), _BUFFER_BYTES)


def _check_start(content: BinaryIO, encoding: str) -> None:
    start = content.peek(1 << 12)[: 1 << 12]  # type: ignore[attr-defined]
    kind = kind_of(start)
    if kind is not None:
        raise Damaged(f"it holds {kind} data, but its name lacks that ending")
    if _UTF16.match(start) and "16" not in encoding and "32" not in encoding:
        raise Damaged("it begins with the byte order mark of UTF-16; add --encoding utf-16")


class _Transcoded(Layer):
    """Converts a text to UTF-8."""

    def __init__(self, source: BinaryIO, encoding: str) -> None:
        super().__init__(source)
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
        self._ready = memoryview(b"")

    def _next(self, size: int) -> memoryview:
        chunk = b"\0"
        while not self._ready and chunk:
            chunk = self._source.read(_BUFFER_BYTES)
            text = self._decoder.decode(chunk, not chunk)
            self._ready = memoryview(text.encode("utf-8", "surrogateescape"))
        data, self._ready = self._ready[:size], self._ready[size:]
        return data


class _Regular(io.BufferedReader):
    """A file on a disk."""

    def check_end(self) -> None:
        """Raise if the file was truncated while it was read."""
        if self.tell() > os.fstat(self.fileno()).st_size:
            raise Damaged("it became shorter while it was read")


class _Pipe(io.RawIOBase):
    """A pipe whose writer must connect, and write, within a time limit."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self._file = file
        self._poll = select.poll()
        self._poll.register(file, select.POLLIN)
        self._waiting_s = _WRITER_S

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()

    def readinto(self, buffer: Any) -> int:
        started_s = time.monotonic()
        while True:
            event = self._poll.poll(1000 * min(self._waiting_s, _WRITER_S))
            try:
                data = os.read(self._file, len(buffer))
            except BlockingIOError:  # a writer is connected, but has not written yet
                if time.monotonic() - started_s > _SILENCE_S:
                    raise Damaged(f"nothing has come through this pipe for {_SILENCE_S:.0f} s") from None
                continue
            if not data and not event:
                raise Damaged(f"no program has written to this pipe for {_WRITER_S:.0f} s")
            buffer[: len(data)] = data
            return len(data)
