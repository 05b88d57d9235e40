"""Reads compressed streams strictly: truncated or damaged data, or other data after the end, is an error.

Python's file objects for bz2 and xz, and Beam's for all formats, stop without an error at truncated data, or ignore
data after the end. Needs no Beam.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from murmur_beam.files.layer import Layer

_CHUNK_BYTES = 1 << 17
_BUFFER_BYTES = 1 << 18
_ZSTD_FEED_BYTES = 1 << 10
"""A call decompresses all its input, up to 32 MB for a kilobyte: the library has no limit on its output."""
_ZSTD_WINDOW_BYTES = 1 << 27
_XZ_MEMORY_BYTES = 1 << 28


class Damaged(Exception):
    """A stream is damaged, or not of the expected format; the text says how."""


class _Member(Protocol):
    """Decompresses one member of a stream."""

    @property
    def eof(self) -> bool:
        """Whether the member has ended."""

    @property
    def unused_data(self) -> bytes:
        """Data after the end of the member."""

    @property
    def needs_input(self) -> bool:
        """Whether more data must be given to go on."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Decompress at most ``max_length`` further bytes."""


class _ZlibMember:
    """A zlib decompressor, with the interface of those of bz2 and xz."""

    def __init__(self, window_bits: int) -> None:
        self._inner = zlib.decompressobj(window_bits)
        self._held = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._held

    def decompress(self, data: bytes, max_length: int) -> bytes:
        found = self._inner.decompress(self._held + data if self._held else data, max_length)
        self._held = self._inner.unconsumed_tail
        return found


class _ZstdMember:
    """A zstd frame, fed in small pieces, so that the output of a call is bounded."""

    def __init__(self) -> None:
        zstandard = importlib.import_module("zstandard")
        self._inner = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
        self._input = b""
        self._at = 0
        self._output = memoryview(b"")

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof) and not self._output

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data) + self._input[self._at :]

    @property
    def needs_input(self) -> bool:
        return not self._output and self._at >= len(self._input)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if data:
            self._input, self._at = self._input[self._at :] + data, 0
        while not self._output and self._at < len(self._input) and not self._inner.eof:
            piece = self._input[self._at : self._at + _ZSTD_FEED_BYTES]
            self._at += len(piece)
            self._output = memoryview(self._inner.decompress(piece))
        found, self._output = self._output[:max_length], self._output[max_length:]
        return bytes(found)


@dataclass(frozen=True)
class Codec:
    """A compression format.

    Attributes:
        name: for messages.
        member: makes the decompressor of a member.
        compress: compresses data to one whole member.
        is_start: whether first bytes begin a member.
        padding: size of a group of zero bytes that may follow a member; 0 if none may.
    """

    name: str
    member: Callable[[], _Member]
    compress: Callable[[bytes], bytes]
    is_start: Callable[[bytes], bool]
    padding: int = 0


def _zstd(data: bytes) -> bytes:
    compressed: bytes = importlib.import_module("zstandard").ZstdCompressor(write_checksum=True).compress(data)
    return compressed


def _is_zlib(start: bytes) -> bool:
    """Return whether bytes begin zlib data. Its magic number may begin a text as well, so some data is decompressed."""
    if len(start) < 2 or start[0] != 0x78 or (start[0] << 8 | start[1]) % 31:
        return False
    try:
        return bool(zlib.decompressobj().decompress(start, 1 << 10))
    except zlib.error:
        return False


_GZIP = Codec(
    "gzip",
    lambda: _ZlibMember(zlib.MAX_WBITS | 16),
    lambda data: gzip.compress(data, mtime=0),
    lambda start: start[:3] == b"\x1f\x8b\x08",
    padding=1,
)
_BZ2 = Codec(
    "bzip2",
    bz2.BZ2Decompressor,
    bz2.compress,
    lambda start: start[:3] == b"BZh" and start[4:10] in (b"1AY&SY", b"\x17rE8P\x90"),
)
_ZSTD = Codec("zstd", _ZstdMember, _zstd, lambda start: start[:4] == b"\x28\xb5\x2f\xfd")
_XZ = Codec(
    "xz",
    lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES),
    lzma.compress,
    lambda start: start[:6] == b"\xfd7zXZ\x00",
    padding=4,
)
_ZLIB = Codec("deflate", lambda: _ZlibMember(zlib.MAX_WBITS), zlib.compress, _is_zlib)

CODECS = {".gz": _GZIP, ".bz2": _BZ2, ".zst": _ZSTD, ".zstd": _ZSTD, ".xz": _XZ, ".deflate": _ZLIB}
"""Codecs by the ending of a file's name, in lower case."""

_ARCHIVES = {b"PK\x03\x04": "zip", b"PAR1": "Parquet", b"Obj\x01": "Avro"}


def split_name(name: str) -> tuple[str, list[Codec]]:
    """A name in lower case, without the endings of compressions; and their codecs, the outermost first."""
    rest, codecs = name.lower(), []
    while ending := next((ending for ending in CODECS if rest.endswith(ending)), None):
        rest = rest.removesuffix(ending)
        codecs.append(CODECS[ending])
    return rest, codecs


def kind_of(start: bytes) -> str | None:
    """Name of the compression, archive or binary format that begins with these bytes; None for other data."""
    compressed = next((codec.name for codec in CODECS.values() if codec.is_start(start)), None)
    return compressed or next((name for magic, name in _ARCHIVES.items() if start.startswith(magic)), None)


def inflate(source: BinaryIO, codecs: list[Codec]) -> BinaryIO:
    """Decompress a stream, the outermost compression first.

    Reading from the result may raise `Damaged`; memory is bounded by some 64 MB, and 256 MB for the dictionary of xz.
    """
    for codec in codecs:
        source = io.BufferedReader(_Inflated(source, codec), _BUFFER_BYTES)
    return source


class _Inflated(Layer):
    """The content of all members of a stream, one after the other."""

    def __init__(self, source: BinaryIO, codec: Codec) -> None:
        super().__init__(source)
        self._codec = codec
        self._rest = b""
        self._member: _Member | None = None
        self._members = 0

    def _next(self, size: int) -> bytes:
        while True:
            if self._member is None and not self._begin():
                return b""
            data = self._of_member(size)
            if data:
                return data

    def _begin(self) -> bool:
        """Go to the next member; False at the end."""
        if self._members:
            self._skip_padding()
        self._rest = self._rest or self._source.read(_CHUNK_BYTES)
        if self._rest:
            self._member = self._codec.member()
            self._members += 1
        elif not self._members:
            raise Damaged(f"it is empty, which a {self._codec.name} file never is")
        return bool(self._rest)

    def _skip_padding(self) -> None:
        zeros = 0
        while self._codec.padding:
            self._rest = self._rest or self._source.read(_CHUNK_BYTES)
            kept = self._rest.lstrip(b"\0")
            zeros += len(self._rest) - len(kept)
            if kept or not self._rest:
                self._rest = kept
                break
            self._rest = b""
        if zeros and zeros % self._codec.padding:
            raise Damaged(f"{zeros} zero bytes follow the {self._codec.name} data")

    def _of_member(self, size: int) -> bytes:
        member = self._member
        assert member is not None
        chunk, at_end = b"", False
        if member.needs_input:
            chunk = self._rest or self._source.read(_CHUNK_BYTES)
            self._rest = b""
            at_end = not chunk
        try:
            data = member.decompress(chunk, size)
        except Exception as err:  # each library raises different errors
            raise Damaged(self._what_is_wrong(err)) from err
        if member.eof:
            self._rest = member.unused_data
            self._member = None
        elif at_end and not data:
            raise Damaged(f"its {self._codec.name} data is truncated")
        return data

    def _what_is_wrong(self, err: Exception) -> str:
        text = " ".join(str(err).split())
        if self._members > 1:
            return f"its {self._codec.name} data is followed by other or damaged data: {text}"
        return f"it is not {self._codec.name} data, or is damaged: {text}"
