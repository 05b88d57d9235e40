"""Several aggregates of one record, side by side."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError, SchemaMismatch
from murmur_beam.model import ABSENT
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.struct_name import Part, parts_of, struct_name

State = tuple[Any, ...]

MAX_PARTS = 64
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_INT64, _LENGTH = struct.Struct(">q"), struct.Struct(">I")


class Struct(Monoid[State]):
    """Folds several aggregates of each record, which share its event id, its row and its marker.

    Its value is a tuple with the value of each part; `murmur_beam.model.ABSENT` skips a part. Its state is a tuple of
    the parts' states, and its result a dict of their results by name, in the order of declaration. `MergeRecords`
    makes one of its ``aggregates``.
    """

    def __init__(self, parts: Mapping[str, Monoid[Any]]) -> None:
        """Check the parts.

        Args:
            parts: at least one, by name. A name begins with an ASCII letter or an underscore; up to 63 letters, digits
                and underscores follow.

        Raises:
            ConfigurationError: a part or its name cannot be used.
        """
        if not parts or len(parts) > MAX_PARTS:
            raise ConfigurationError("aggregates", f"expected 1 to {MAX_PARTS} aggregates, got {len(parts)}")
        for name, monoid in parts.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ConfigurationError(
                    "aggregates", f"{name!r:.80} is not a name: write a letter, then letters, digits and underscores"
                )
            if not isinstance(monoid, Monoid) or isinstance(monoid, Struct):
                raise ConfigurationError("aggregates", f"{name}: expected a Monoid such as Count(), got {monoid!r:.80}")
        self.parts = dict(parts)
        self._monoids = tuple(parts.values())
        self._lifts = tuple([monoid.lift for monoid in self._monoids])
        self._folds = tuple([monoid.fold for monoid in self._monoids])
        self.only_sums = all(monoid.native == "sum" for monoid in self._monoids)
        self._integers = f">{len(self._monoids)}q"  # not a struct.Struct, which cannot be pickled
        self.name = _name_of(self.parts)
        self.identity = tuple([monoid.identity for monoid in self._monoids])
        self.commutative = all(monoid.commutative for monoid in self._monoids)
        self.idempotent = all(monoid.idempotent for monoid in self._monoids)
        self.exact_numbers = any(monoid.exact_numbers for monoid in self._monoids)
        self.needs_value = any(monoid.needs_value for monoid in self._monoids)
        self.needs_event_time = any(monoid.needs_event_time for monoid in self._monoids)
        fields = {name: monoid.field for name, monoid in parts.items() if isinstance(monoid.field, str)}
        self.field = json.dumps(fields, sort_keys=True) if fields else None

    def combine(self, a: State, b: State) -> State:
        """Combine each part.

        Raises:
            PermanentError: two states of a part cannot be combined.
        """
        return self.fold((a, b))

    def fold(self, values: Iterable[State]) -> State:
        """Fold each part.

        Raises:
            PermanentError: a part cannot be folded.
        """
        return self._by_part(self._folds, values)

    def total(self, values: Iterable[State]) -> State:
        """The total of each part."""
        return self._by_part([monoid.total for monoid in self._monoids], values)

    def lift(self, value: Any, event_time_us: int) -> State:
        """The delta of each part; that of a part without a value is its identity.

        Raises:
            InvalidRecord: a value cannot be used; names its part.
        """
        parts = zip(self.identity, self._lifts, value, strict=True)
        try:
            return tuple([nothing if each is ABSENT else lift(each, event_time_us) for nothing, lift, each in parts])
        except InvalidRecord:
            pass  # part by part, the one at fault raises it again
        return self.lift_ns(value, event_time_us, 0)

    def lift_ns(self, value: Any, event_time_us: int, ns: int) -> State:
        """See `lift`."""
        state = []
        for name, monoid, each in zip(self.parts, self._monoids, value, strict=True):
            try:
                state.append(monoid.identity if each is ABSENT else monoid.lift_ns(each, event_time_us, ns))
            except InvalidRecord as err:
                raise InvalidRecord(name if err.field == "value" else err.field, err.problem) from err
        return tuple(state)

    def present(self, state: State) -> dict[str, Any]:
        """The result of each part, by name."""
        each = zip(self.parts.items(), state, strict=True)
        return {name: monoid.present(part) for (name, monoid), part in each}

    def encode(self, v: State) -> bytes:
        """The states one after the other: a sum or count in 8 bytes, any other in 4 bytes of length and its own."""
        if self.only_sums:
            return struct.pack(self._integers, *v)
        pieces = []
        for monoid, state in zip(self._monoids, v, strict=True):
            if monoid.native == "sum":
                pieces.append(_INT64.pack(state))
            else:
                data = monoid.encode(state)
                pieces += _LENGTH.pack(len(data)), data
        return b"".join(pieces)

    def decode(self, data: bytes) -> State:
        """Inverse of `encode`; the states of parts that were declared later are identities.

        Raises:
            PermanentError: the bytes are damaged.
            SchemaMismatch: there are further parts.
        """
        if self.only_sums and len(data) == 8 * len(self._monoids):
            return struct.unpack(self._integers, data)
        states, at = [], 0
        for monoid in self._monoids:
            if at == len(data):
                states.append(monoid.identity)
                continue
            start = at if monoid.native == "sum" else at + _LENGTH.size
            end = start + (_INT64.size if start == at else int.from_bytes(data[at:start], "big"))
            if end > len(data):
                raise PermanentError(f"the encoding of a {self.name} ends early")
            piece = data[start:end]
            states.append(int.from_bytes(piece, "big", signed=True) if start == at else monoid.decode(piece))
            at = end
        if at < len(data):
            raise SchemaMismatch(
                f"there are more aggregates than {', '.join(self.parts)}: they were added to the table later; restart "
                "this program with all of them"
            )
        return tuple(states)

    def _by_part(self, functions: Sequence[Callable[[Any], Any]], values: Iterable[State]) -> State:
        state = []  # a loop: a list comprehension would take a call more
        for function, column in zip(functions, zip(*values, strict=True), strict=False):
            state.append(function(column))
        return tuple(state) if state else self.identity


def _name_of(parts: Mapping[str, Monoid[Any]]) -> str:
    """The name of a struct, from which its parts can be read again."""
    for name, monoid in parts.items():
        pair = {name: monoid.name, f"{name}_": "count"}
        if parts_of(struct_name(pair)) != {each: Part(known, None) for each, known in pair.items()}:
            raise ConfigurationError(
                "aggregates",
                f"{name}: rename the monoid {monoid.name!r:.80}: a comma, a parenthesis or a time behind @ in its name "
                "would be misread",
            )
    return struct_name({name: monoid.name for name, monoid in parts.items()})
