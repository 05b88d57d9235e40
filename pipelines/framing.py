"""Where each record of a file begins and ends: JSON Lines, JSON arrays and CSV, in bounded memory. Needs no Beam.

Records keep the file's own bytes. Lines that hold nothing but blanks are no records, in any format.
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
"""Longest record unless ``--max_record_bytes`` says otherwise."""
HEAD_BYTES = 64 * 1024
"""What is kept of a record that is too long."""

_CHUNK_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"


class TooLong(NamedTuple):
    """A record that is longer than allowed, which was passed over without being held.

    Attributes:
        head: its first bytes.
        size: its length in bytes, without its line end.
        line: where it begins, counted from 1; of an element of a JSON array where it ends.
    """

    head: bytes
    size: int
    line: int


class Unframed(Exception):
    """A file of which it cannot be told where its records end; the text says where and why."""


Frame = Callable[[BinaryIO, int], Iterator[bytes | TooLong]]
"""Takes a file's content and the longest record in bytes, and gives the records."""


def frame_json(content: BinaryIO, limit: int) -> Iterator[bytes | TooLong]:
    """The records of JSON Lines, or the elements of one array of objects: what a file is shows at its start.

    Raises:
        Unframed: an array that is cut short, or that something follows.
    """
    start = _without_bom(content)
    if re.match(rb"\s*\[\s*[{\]]", start):
        return _array(content, limit)
    return _lines(content, limit)


def frame_csv(content: BinaryIO, limit: int, delimiter: str = ",") -> Iterator[bytes | TooLong]:
    """The records of CSV, each as two records of bytes, the header and the record as they stand in the file: so each
    can be decoded, or given up and replayed, on its own.

    A quote that never ends, or that only the first quote of a later field ends, makes one bad record of its line; the
    lines behind it are records of their own.

    Raises:
        Unframed: the header is malformed, or a quoted field is longer than ``limit``: whether the lines in it are
            records cannot be told then.
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
    except TypeError:  # a delimiter of several bytes: the decoder will tell
        pass
    before = header + b"\n"
    for record in _csv_records(lines, limit, separator, header.count(separator)):
        yield record if isinstance(record, TooLong) else before + record


def _without_bom(content: BinaryIO) -> bytes:
    """Drop a byte order mark; some of what comes next, without taking it."""
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
    """Pass over what is left of a line; its length in all."""
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
                    raise Unframed("something follows the end of its JSON array")
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
                if sign == b'"':  # of a text that ends in a later chunk
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
        raise Unframed("its JSON array is cut short")


class _Element:
    """The bytes of an element, as far as they may be held."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._limit or not self._pieces:
            self._pieces.append(piece)

    def take(self) -> bytes | TooLong | None:
        """The element; None if there is nothing but blanks."""
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
    """Records without their ends.

    Args:
        lines: to take them from; no more of them than it needs.
        limit: longest record in bytes.
        delimiter: between fields.
        delimiters: how many a record should have.
    """
    # Lines that a quote has swallowed by mistake. Another quote that is open at the end of one ends no sooner.
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
            # The line behind it has as many fields as it should: it looks like a record.
            if end is _Quote.OPEN or (end is _Quote.BROKEN and taken[1].count(delimiter) == delimiters):
                behind.extend(enumerate(taken[1:], number + 1))
                del taken[1:]
        yield b"".join(taken).rstrip(b"\r\n")


class _Quote(enum.Enum):
    """Where a line leaves the quotes."""

    CLOSED = enum.auto()
    OPEN = enum.auto()
    """Its end lies within a quoted field."""
    BROKEN = enum.auto()
    """The field with which it began is followed by something that is no delimiter: its quote was none."""


def _take_quoted(lines: _Lines, taken: list[bytes], limit: int, delimiter: bytes, number: int) -> _Quote:
    """Take the lines of a record whose first one ends within quotes, until one does not, or the file ends."""
    size = len(taken[0])
    for _, line in lines:
        size += line.size if isinstance(line, TooLong) else len(line)
        if isinstance(line, TooLong) or size > limit:
            raise Unframed(
                f"the quoted field that is open at the end of line {number:,} goes on for more than "
                f"--max_record_bytes {limit:,}; if it is right, allow more, and if not, mend the quote"
            )
        taken.append(line)
        if b'"' in line and (end := _scan(line, True, delimiter)) is not _Quote.OPEN:
            return end
    return _Quote.OPEN


def _scan(line: bytes, quoted: bool, delimiter: bytes) -> _Quote:
    """Go through the fields of a line.

    Args:
        line: of a record, with its end.
        quoted: does it begin within a quoted field?
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
            if line.startswith(b'"', at):  # two of them are one in the text
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
    r"""Lines with their ends, which are \n, \r\n or \r."""
    rest = b""
    passed = 0
    head = b""
    while chunk := content.read(_CHUNK_BYTES):
        lines = (rest + chunk).splitlines(keepends=True)
        # The last one may go on, and so may the end of one that ends in \r.
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
