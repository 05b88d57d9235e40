"""Cells of pending deltas: what an append writes, and what readers and folds decode.

A cell's name is 8 bytes of the time of its first try, in microseconds, and 8 bytes that are unique to this append. Its
value is a head, the fingerprints of its events, and their deltas:

    format (1 byte, 1), kind (1 byte), number of events (4 bytes), 16 bytes of fingerprint each, then by kind
    0   no deltas: each event adds 1
    1   8 bytes of signed integer each
    2   the monoid's encoding each, after 4 bytes with its length
    3   one encoding of all of them together, and no fingerprints: folding it again changes nothing
    4   of several sums: 8 bytes of signed integer for each sum of the first event, then of the second, and so on

Integers are big-endian.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from murmur_beam.clock import Clock
from murmur_beam.errors import PermanentError, SchemaMismatch
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.structs import Struct
from murmur_beam.state.bigtable.fingerprints import FINGERPRINT_BYTES, split

V = TypeVar("V")

_FORMAT = 1
ONES, INTEGERS, STATES, TOGETHER, SUMS = range(5)
_HEAD = struct.Struct(">BBI")
_LENGTH = struct.Struct(">I")
ONE = _HEAD.pack(_FORMAT, ONES, 1)
"""Head of a cell of one event that adds 1, before its fingerprint."""
_ONES_HEAD = ONE[:2]

EVENTS_PER_CELL = 40_000
CELL_BYTES = 1 << 20
"""Limits of a cell, since folds take a row cell by cell; only a cell of one event may have more bytes."""


class Names:
    """Makes names of cells, each once.

    Args:
        clock: of the time in a name.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._writer = os.urandom(5)
        self._counter = itertools.count()

    def __call__(self) -> bytes:
        """The next name; for any thread."""
        at_us = max(0, int(self._clock.now() * 1e6))
        return at_us.to_bytes(8, "big") + self._writer + (next(self._counter) & 0xFFFFFF).to_bytes(3, "big")

    def beside(self, name: bytes) -> bytes:
        """The next name, with the time of another."""
        return name[:8] + self()[8:]


def time_us(name: bytes) -> int:
    """The time in a name: when the cell was first tried."""
    return int.from_bytes(name[:8], "big")


class Events(NamedTuple):
    """The events of a cell. Not generic: Python 3.10 has no generic named tuples.

    Attributes:
        fingerprints: one after the other, each once; empty if folding again changes nothing.
        deltas: of each event, or of all events together.
    """

    fingerprints: bytes
    deltas: Sequence[Any]

    @property
    def n(self) -> int:
        """Number of deltas."""
        return len(self.deltas)


def encoded(monoid: Monoid[V], events: Events) -> Iterator[bytes]:
    """The values of one or more cells of these events, in their order.

    Raises:
        Exception: the monoid cannot encode a delta.
    """
    fingerprints, deltas = events
    if not fingerprints:
        yield _HEAD.pack(_FORMAT, TOGETHER, len(deltas)) + monoid.encode(monoid.fold(deltas))
    elif monoid.native == "sum" or holds_sums(monoid):
        write = _integers if monoid.native == "sum" else _sums
        for start in range(0, len(deltas), EVENTS_PER_CELL):
            end = start + EVENTS_PER_CELL
            yield write(_some(fingerprints, start, end), deltas[start:end])
    else:
        states = [monoid.encode(delta) for delta in deltas]
        start = size = 0
        for i, state in enumerate(states):
            size += FINGERPRINT_BYTES + _LENGTH.size + len(state)
            if i > start and (size > CELL_BYTES or i - start == EVENTS_PER_CELL):
                yield _states(_some(fingerprints, start, i), states[start:i])
                start, size = i, FINGERPRINT_BYTES + _LENGTH.size + len(state)
        yield _states(_some(fingerprints, start, len(states)), states[start:])


def _some(fingerprints: bytes, start: int, end: int) -> bytes:
    return fingerprints[FINGERPRINT_BYTES * start : FINGERPRINT_BYTES * end]


def _integers(fingerprints: bytes, deltas: Sequence[Any]) -> bytes:
    n = len(deltas)
    if deltas.count(1) == n:
        return _HEAD.pack(_FORMAT, ONES, n) + fingerprints
    return _HEAD.pack(_FORMAT, INTEGERS, n) + fingerprints + struct.pack(f">{n}q", *deltas)


def _sums(fingerprints: bytes, deltas: Sequence[Any]) -> bytes:
    n = len(deltas)
    integers = [*itertools.chain.from_iterable(deltas)]
    return _HEAD.pack(_FORMAT, SUMS, n) + fingerprints + struct.pack(f">{len(integers)}q", *integers)


def holds_sums(monoid: Monoid[Any]) -> bool:
    """Whether a delta is a tuple of integers."""
    return isinstance(monoid, Struct) and monoid.only_sums


def _states(fingerprints: bytes, states: Sequence[bytes]) -> bytes:
    parts = [_HEAD.pack(_FORMAT, STATES, len(states)), fingerprints]
    for state in states:
        parts += _LENGTH.pack(len(state)), state
    return b"".join(parts)


def decoded(monoid: Monoid[V], value: bytes) -> Events:
    """The events of a cell.

    Raises:
        SchemaMismatch: a later release has written it.
        PermanentError: it is damaged, or of another kind than the monoid's.
        Exception: the monoid cannot decode a delta.
    """
    if len(value) < _HEAD.size:
        raise PermanentError(f"a cell of pending deltas has only {len(value)} bytes: {value!r}")
    n = count(value)
    body = _HEAD.size + FINGERPRINT_BYTES * n
    version, kind = value[0], value[1]
    if version != _FORMAT or kind > SUMS:
        raise SchemaMismatch(
            f"a cell of pending deltas has format {version}, kind {kind}, which this release of murmur_beam does not "
            "know: a later one wrote it; upgrade this one"
        )
    if kind == TOGETHER and monoid.idempotent:
        return Events(b"", [monoid.decode(value[_HEAD.size :])])
    fingerprints = value[_HEAD.size : body]
    if ones(monoid, value):
        return Events(fingerprints, [1] * n)
    if n and kind == INTEGERS and len(value) == body + 8 * n and monoid.native == "sum":
        integers: Any = struct.unpack_from(f">{n}q", value, body)
        return Events(fingerprints, integers)
    if kind == SUMS and isinstance(monoid, Struct) and n and len(value) > body and not (len(value) - body) % (8 * n):
        size = (len(value) - body) // n
        return Events(fingerprints, [monoid.decode(value[at : at + size]) for at in range(body, len(value), size)])
    states = _parts(value, body) if kind == STATES and monoid.native != "sum" else []
    if not n or len(states) != n:
        raise PermanentError(
            f"a cell of pending deltas is damaged, or not of a {monoid.name}: {len(value)} bytes, kind {kind}, "
            f"{n} events"
        )
    return Events(fingerprints, [monoid.decode(state) for state in states])


def _parts(value: bytes, at: int) -> list[bytes]:
    """Encodings from a position on; empty if they do not fill the value exactly."""
    parts = []
    while at + _LENGTH.size <= len(value):
        (length,) = _LENGTH.unpack_from(value, at)
        at += _LENGTH.size + length
        parts.append(value[at - length : at])
    return parts if at == len(value) else []


def count(value: bytes) -> int:
    """Number of events that a cell says it has."""
    return int.from_bytes(value[2 : _HEAD.size], "big")


def ones(monoid: Monoid[V], value: bytes) -> int:
    """Number of events of a cell, undamaged, in which each adds 1; 0 of any other."""
    if monoid.native != "sum" or not value.startswith(_ONES_HEAD):
        return 0
    n = count(value)
    return n if len(value) == _HEAD.size + FINGERPRINT_BYTES * n else 0


def united(monoid: Monoid[V], values: Sequence[bytes]) -> dict[bytes, V]:
    """The delta of each event of several cells: where an event is in more than one, that of the first.

    Args:
        values: of cells with fingerprints, in the order of their names.

    Raises:
        Exception: see `decoded`.
    """
    one: Any = 1
    if all(ones(monoid, value) for value in values):
        # As rows of counters are. Not made into events first, they take a sixth of the time if each has one.
        return dict.fromkeys(split(b"".join([value[_HEAD.size :] for value in values])), one)
    cells = [decoded(monoid, value) for value in reversed(values)]
    fingerprints = split(b"".join([cell.fingerprints for cell in cells]))
    return dict(zip(fingerprints, itertools.chain.from_iterable([cell.deltas for cell in cells]), strict=True))
