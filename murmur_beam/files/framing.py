"""Splits a file into records: JSON Lines, JSON arrays and CSV, in bounded memory. Needs no Beam.

Records keep the file's bytes. Blank lines are skipped, in any format.
"""

from __future__ import annotations

import csv
import enum
import re
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, NamedTuple

MAX_RECORD_BYTES = 16 * 1024 * 1024
"""Default of ``--max_record_bytes``, the longest record."""
HEAD_BYTES = 64 * 1024
"""Bytes that are kept of a record that is too long."""

_CHUNK_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"


class TooLong(NamedTuple):
    """A record that exceeds the limit; it was skipped without being held in memory.

    Attributes:
        head: first bytes of the record.
        size: length in bytes, without the line end.
        line: first line of the record, counted from 1; for an element of a JSON array its last line.
    """

    head: bytes
    size: int
    line: int


class Unframed(Exception):
    """A file cannot be split into records; the text says where and why."""


Frame = Callable[[BinaryIO, int], Iterator[bytes | TooLong]]
"""Splits a file's content into records, given the longest record in bytes."""


def frame_json(content: BinaryIO, limit: int) -> Iterator[bytes | TooLong]:
    """The records of JSON Lines, or the elements of one array of objects, depending on the start of the file.

    Raises:
        Unframed: an array is truncated, or followed by other data.
    """
    start = _without_bom(content)
    if re.match(rb"\s*\[\s*[{\]]", start):
        return _array(content, limit)
    return _lines(content, limit)


def frame_csv(content: BinaryIO, limit: int, delimiter: str = ",") -> Iterator[bytes | TooLong]:
    """The records of CSV, each with the header before it, both as in the file, so that each record can be decoded, or
    replayed as a dead letter, independently.

    A quote that is never closed, or only by the opening quote of a later field, spoils the record of its line; the
    lines after it are separate records.

    Raises:
        Unframed: the header is malformed; or a quoted field is longer than ``limit``, so the lines in it may or may not
            be records.
    """
    _without_bom(content)
    separator = delimiter.encode("utf-8")
    lines = enumerate(_csv_lines(content, limit), 1)
    header = next(_csv_records(lines, limit, separator), None)
    if header is None:
        return
    if isinstance(header, TooLong):
        raise Unframed(f"its header is {header.size:,} bytes long, more than --max_record_bytes {limit:,}")
    try:
        list(csv.reader([header.decode("latin-1")], strict=True, delimiter=delimiter.encode("utf-8").decode("latin-1")))
    except csv.Error as err:
        raise Unframed(f"its header is malformed CSV: {err}") from None
    except TypeError:  # a delimiter of several bytes; the decoder will report it
        pass
    before = header + b"\n"
    for record in _csv_records(lines, limit, separator, header.count(separator)):
        yield record if isinstance(record, TooLong) else before + record


def _without_bom(content: BinaryIO) -> bytes:
    """Skip a byte order mark; return the bytes that follow, without consuming them."""
    start: bytes = content.peek(_CHUNK_BYTES)  # type: ignore[attr-defined]
    if start.startswith(_BOM):
        content.read(len(_BOM))
        start = start[len(_BOM) :]
    return start


# ---- JSON ----


def _lines(content: BinaryIO, limit: int) -> Iterator[bytes | TooLong]:
    for number, line in enumerate(iter(partial(content.readline, limit + 2), b""), 1):
        record = line.rstrip(b"\r\n")
        if len(record) > limit:
            yield TooLong(record[:HEAD_BYTES], _rest_of_line(content, line), number)
        elif record and not record.isspace():
            yield record


def _rest_of_line(content: BinaryIO, line: bytes) -> int:
    """Skip the rest of a line; the length of the whole line."""
    size = len(line.rstrip(b"\r\n"))
    while not line.endswith(b"\n") and (line := content.readline(_CHUNK_BYTES)):
        size += len(line.rstrip(b"\r\n"))
    return size


_NOT_BLANK = re.compile(rb"\S")
_TEXT = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_BETWEEN_ELEMENTS = re.compile(_TEXT + rb'|["{}\[\],]', re.DOTALL)
_WITHIN_ONE = re.compile(_TEXT + rb'|["{}\[\]]', re.DOTALL)
_IN_TEXT = re.compile(rb'["\\]')


def _array(content: BinaryIO, limit: int) -> Iterator[bytes | TooLong]:
    element = _Element(limit)
    depth, line = 0, 1
    in_text = escaped = ended = False
    while chunk := content.read(_CHUNK_BYTES):
        at = taken = 0
        while at < len(chunk):
            if depth == 0:
                if (first := _NOT_BLANK.search(chunk, at)) is None:
                    break
                if ended:
                    raise Unframed("other data follows the end of its JSON array")
                depth, at = 1, first.end()
                taken = at
            elif escaped:
                escaped, at = False, at + 1
            elif in_text:
                if (found := _IN_TEXT.search(chunk, at)) is None:
                    break
                at = found.end()
                escaped = found[0] == b"\\"
                in_text = escaped
            elif (found := (_BETWEEN_ELEMENTS if depth == 1 else _WITHIN_ONE).search(chunk, at)) is None:
                break
            else:
                at, sign = found.end(), found[0]
                if sign == b'"':  # the text ends in a later chunk
                    in_text = True
                elif sign in b"[{":
                    depth += 1
                elif sign in b"]}":
                    depth -= 1
                if depth == 0 or (depth == 1 and sign == b","):
                    element.add(chunk[taken : at - 1])
                    taken, ended = at, depth == 0
                    if (record := element.take()) is not None:
                        yield (
                            record
                            if isinstance(record, bytes)
                            else record._replace(line=line + chunk.count(b"\n", 0, at))
                        )
        if depth:
            element.add(chunk[taken:])
        line += chunk.count(b"\n")
    if not ended:
        raise Unframed("its JSON array is truncated")


class _Element:
    """The bytes of an element, up to the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._limit or not self._pieces:
            self._pieces.append(piece)

    def take(self) -> bytes | TooLong | None:
        """The element; None if it is blank."""
        held, size = b"".join(self._pieces), self._size
        self._pieces, self._size = [], 0
        whole = held.strip()
        if size > len(held) or len(whole) > self._limit:
            return TooLong(whole[:HEAD_BYTES], size, 0)
        return whole or None


# ---- CSV ----


_Lines = Iterator[tuple[int, bytes | TooLong]]
"""Lines with their numbers."""


def _csv_records(
    lines: _Lines, limit: int, delimiter: bytes, delimiters: int | None = None
) -> Iterator[bytes | TooLong]:
    """Records without their line ends.

    Args:
        lines: of the file; only as many are consumed as are needed.
        limit: longest record in bytes.
        delimiter: between fields.
        delimiters: expected number of delimiters in a record.
    """
    # Lines that were read into a quoted field by mistake. A quote that one of them leaves open would not close sooner,
    # so it is not followed.
    behind: deque[tuple[int, bytes | TooLong]] = deque()
    blank = b" \t\r\n".replace(delimiter, b"")
    while (numbered := behind.popleft() if behind else next(lines, None)) is not None:
        number, line = numbered
        if type(line) is bytes and b'"' not in line:  # nearly all of them
            record = line.rstrip(b"\r\n")
            if record.strip(blank):
                yield record
            continue
        if isinstance(line, TooLong):
            yield line._replace(line=number)
            continue
        taken = [line]
        if _scan(line, False, delimiter) is _Quote.OPEN and not behind:
            end = _take_quoted(lines, taken, limit, delimiter, number)
            # The next line has the expected number of fields: it looks like a record.
            if end is _Quote.OPEN or (end is _Quote.BROKEN and taken[1].count(delimiter) == delimiters):
                behind.extend(enumerate(taken[1:], number + 1))
                del taken[1:]
        yield b"".join(taken).rstrip(b"\r\n")


class _Quote(enum.Enum):
    """State of the quotes at the end of a line."""

    CLOSED = enum.auto()
    OPEN = enum.auto()
    """The line ends within a quoted field."""
    BROKEN = enum.auto()
    """The quote that closes the field in which the line began is not followed by a delimiter: it did not close it."""


def _take_quoted(lines: _Lines, taken: list[bytes], limit: int, delimiter: bytes, number: int) -> _Quote:
    """Take the lines of a record whose first line ends within quotes, until the quotes are closed or the file ends."""
    size = len(taken[0])
    for _, line in lines:
        size += line.size if isinstance(line, TooLong) else len(line)
        if isinstance(line, TooLong) or size > limit:
            raise Unframed(
                f"the quoted field that is open at the end of line {number:,} is longer than --max_record_bytes "
                f"{limit:,}; raise the limit, or correct the quote"
            )
        taken.append(line)
        if b'"' in line and (end := _scan(line, True, delimiter)) is not _Quote.OPEN:
            return end
    return _Quote.OPEN


def _scan(line: bytes, quoted: bool, delimiter: bytes) -> _Quote:
    """Find the state of the quotes at the end of a line.

    Args:
        line: of a record, with its line end.
        quoted: whether the line begins within a quoted field.
        delimiter: between fields.
    """
    at, continued, broken = 0, quoted, False
    if not quoted and line.startswith(b'"'):
        quoted, at = True, 1
    while True:
        if quoted:
            at = line.find(b'"', at) + 1
            if not at:
                return _Quote.OPEN
            if line.startswith(b'"', at):  # a doubled quote is a quote in the text
                at += 1
                continue
            if continued and not line.startswith((delimiter, b"\r", b"\n"), at) and at < len(line):
                broken = True
            quoted = continued = False
        at = line.find(delimiter, at)
        if at < 0:
            return _Quote.BROKEN if broken else _Quote.CLOSED
        at += len(delimiter)
        if line.startswith(b'"', at):
            quoted, at = True, at + 1


def _csv_lines(content: BinaryIO, limit: int) -> Iterator[bytes | TooLong]:
    r"""Lines with their line ends, which are \n, \r\n or \r."""
    rest = b""
    passed = 0
    head = b""
    while chunk := content.read(_CHUNK_BYTES):
        lines = (rest + chunk).splitlines(keepends=True)
        # The last line may be incomplete, and so may a line end \r.
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        if passed and lines:
            yield TooLong(head, passed + len(lines[0].rstrip(b"\r\n")), 0)
            del lines[0]
            passed = 0
        for line in lines:
            yield line if len(line) <= limit + 2 else TooLong(line[:HEAD_BYTES], len(line.rstrip(b"\r\n")), 0)
        if len(rest) > limit + 2 or passed:
            head = head if passed else rest[:HEAD_BYTES]
            passed += len(rest)
            rest = b""
    if passed:
        yield TooLong(head, passed + len(rest.rstrip(b"\r")), 0)
    elif rest:
        yield rest
