"""Cells of pending deltas: what an append writes, and what readers and folds take out of them.

A cell's name is 8 bytes of the time of its first try, in microseconds, and 8 bytes that no other append has. Its value
is a head, the fingerprints of its events, and their deltas:

    format (1 byte, 1), kind (1 byte), number of events (4 bytes), 16 bytes of fingerprint each, then by kind
    0   no deltas: each event adds 1
    1   8 bytes of signed integer each
    2   the monoid's encoding each, after 4 bytes with its length
    3   one encoding of all of them together, and no fingerprints: folding it again changes nothing

Integers are big-endian.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from murmur_beam.clock import Clock
from murmur_beam.errors import PermanentError, SchemaMismatch
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.bigtable.known import FINGERPRINT_BYTES, split

V = TypeVar("V")

_FORMAT = 1
ONES, INTEGERS, STATES, TOGETHER = range(4)
_HEAD = struct.Struct(">BBI")
_LENGTH = struct.Struct(">I")
ONE = _HEAD.pack(_FORMAT, ONES, 1)
"""Head of a cell of one event that adds 1, before its fingerprint."""
_ONE_BYTES = len(ONE) + FINGERPRINT_BYTES
_ONE_DELTA: Any = (1,)
_new = tuple.__new__  # of a NamedTuple: half the time of calling the class

EVENTS_PER_CELL = 40_000
CELL_BYTES = 1 << 20
"""A cell has no more events and, unless it is of one event, no more bytes: folds take a row cell by cell."""


class Names:
    """Names of cells, each given once.

    Args:
        clock: says when.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._writer = os.urandom(5)
        self._counter = itertools.count()

    def __call__(self) -> bytes:
        """The next one, for any thread."""
        at_us = max(0, int(self._clock.now() * 1e6))
        return at_us.to_bytes(8, "big") + self._writer + (next(self._counter) & 0xFFFFFF).to_bytes(3, "big")

    def beside(self, name: bytes) -> bytes:
        """Another one, of the same time."""
        return name[:8] + self()[8:]


def time_us(name: bytes) -> int:
    """When a cell of this name was first tried."""
    return int.from_bytes(name[:8], "big")


class Events(NamedTuple, Generic[V]):
    """What is in a cell.

    Attributes:
        prints: fingerprints, none of them twice; empty where folding again changes nothing.
        deltas: of each event, or of all of them together.
    """

    prints: Sequence[bytes]
    deltas: Sequence[V]

    @property
    def n(self) -> int:
        """How many."""
        return len(self.deltas)


def encoded(monoid: Monoid[V], events: Events[V]) -> Iterator[bytes]:
    """Cells of these events, in their order: the value of each.

    Raises:
        Exception: a delta has no encoding; whatever the monoid raises.
    """
    prints, deltas = events
    if not prints:
        yield _HEAD.pack(_FORMAT, TOGETHER, len(deltas)) + monoid.encode(monoid.fold(deltas))
    elif monoid.native == "sum":
        for start in range(0, len(prints), EVENTS_PER_CELL):
            some = prints[start : start + EVENTS_PER_CELL]
            yield _integers(some, deltas[start : start + EVENTS_PER_CELL])
    else:
        states = [monoid.encode(delta) for delta in deltas]
        start = size = 0
        for i, state in enumerate(states):
            size += FINGERPRINT_BYTES + _LENGTH.size + len(state)
            if i > start and (size > CELL_BYTES or i - start == EVENTS_PER_CELL):
                yield _states(prints[start:i], states[start:i])
                start, size = i, FINGERPRINT_BYTES + _LENGTH.size + len(state)
        yield _states(prints[start:], states[start:])


def _integers(prints: Sequence[bytes], deltas: Sequence[Any]) -> bytes:
    n = len(prints)
    if deltas.count(1) == n:
        return _HEAD.pack(_FORMAT, ONES, n) + b"".join(prints)
    return _HEAD.pack(_FORMAT, INTEGERS, n) + b"".join(prints) + struct.pack(f">{n}q", *deltas)


def _states(prints: Sequence[bytes], states: Sequence[bytes]) -> bytes:
    parts = [_HEAD.pack(_FORMAT, STATES, len(prints)), *prints]
    for state in states:
        parts += _LENGTH.pack(len(state)), state
    return b"".join(parts)


def decoded(monoid: Monoid[V], value: bytes) -> Events[V]:
    """The events of a cell.

    Raises:
        SchemaMismatch: a later release has written it.
        PermanentError: it is damaged, or of another kind than the monoid's.
        Exception: whatever the monoid raises of what it does not understand.
    """
    if len(value) == _ONE_BYTES and value.startswith(ONE) and monoid.native == "sum":
        # A fifth of the time of what follows; where rows have many such cells, most of reading them is here.
        return _new(Events, ((value[_HEAD.size :],), _ONE_DELTA))
    if len(value) < _HEAD.size:
        raise PermanentError(f"a cell of pending deltas has only {len(value)} bytes: {value!r}")
    version, kind, n = _HEAD.unpack_from(value)
    if version != _FORMAT or kind > TOGETHER:
        raise SchemaMismatch(
            f"a cell of pending deltas has format {version}, kind {kind}, which this release of murmur_beam does not "
            "know: a later one wrote it; upgrade this one"
        )
    body = _HEAD.size + FINGERPRINT_BYTES * n
    if kind == TOGETHER and monoid.idempotent:
        return Events((), [monoid.decode(value[_HEAD.size :])])
    prints = split(value[_HEAD.size : body])
    if n and monoid.native == "sum":
        if kind == ONES and len(value) == body:
            ones: Any = [1] * n
            return Events(prints, ones)
        if kind == INTEGERS and len(value) == body + 8 * n:
            integers: Any = struct.unpack_from(f">{n}q", value, body)
            return Events(prints, integers)
    states = _parts(value, body) if kind == STATES else []
    if not n or len(states) != n or len(prints) != n:
        raise PermanentError(
            f"a cell of pending deltas is damaged, or of no {monoid.name}: {len(value)} bytes, kind {kind}, {n} events"
        )
    return Events(prints, [monoid.decode(state) for state in states])


def _parts(value: bytes, at: int) -> list[bytes]:
    """Encodings from there on; none where they do not come to the very end."""
    parts = []
    while at + _LENGTH.size <= len(value):
        (length,) = _LENGTH.unpack_from(value, at)
        at += _LENGTH.size + length
        parts.append(value[at - length : at])
    return parts if at == len(value) else []


def united(cells: Iterable[Events[V]]) -> dict[bytes, V]:
    """The delta of each event of several cells: where an event is in more than one, that of the first.

    Args:
        cells: in the order of their names.
    """
    deltas: dict[bytes, V] = {}
    for prints, values in reversed(list(cells)):
        if len(prints) == 1:
            deltas[prints[0]] = values[0]
        else:
            deltas.update(zip(prints, values, strict=True))
    return deltas
