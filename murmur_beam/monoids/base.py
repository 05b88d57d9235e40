"""What it takes to be an aggregate: an associative ``combine`` with an ``identity``, and a codec."""

from __future__ import annotations

import abc
import copy
import json
import math
import re
from collections.abc import Iterable
from functools import reduce
from typing import Any, ClassVar, Generic, TypeVar

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import plain

V = TypeVar("V")

MAX_INT_BITS = 1024
"""Longest integer in an aggregate: the range of a float. Python itself refuses to print, and so to encode, integers of
more than 4300 digits; one that got into an aggregate could never be written."""


class Monoid(abc.ABC, Generic[V]):
    """One way to fold deltas into an aggregate. Instances hold no state and can be pickled.

    A new one is a file in this package that defines ``MONOID``, and a test that subclasses
    `murmur_beam.testing.MonoidLaws`.
    """

    name: str
    """What a store records about its values: monoids that share a name can read each other's state."""
    commutative: bool = True
    """Does the order of deltas not matter? Beam gives no order, so an aggregate that says no depends on arrival."""
    idempotent: bool = False
    """Does folding a delta again, at any later time, change nothing: ``combine(combine(a, b), a) == combine(a, b)``?
    Then a redelivery is harmless and stores keep no marker for it. Where the order of deltas does not matter, this is
    ``combine(a, a) == a``; but "keep the last to arrive" fulfils that one and is not idempotent."""
    native: ClassVar[str | None] = None
    """Name of the store operation that folds without reading ("sum"), for stores that have it."""
    needs_value: ClassVar[bool] = True
    """Does `lift` look at the value it is given?"""
    needs_event_time: ClassVar[bool] = False
    """Does `lift` look at the event time?"""
    field: str | None = None
    """Which field of a record is folded, where that is known by name; see `of`."""

    def of(self, field: str) -> Monoid[V]:
        """A copy that says which field of a record it folds; a store records that, and refuses another.

        Args:
            field: its name or path, as ``value=`` takes it.
        """
        named = copy.copy(self)
        object.__setattr__(named, "field", field)  # also where the class is a frozen dataclass
        return named

    @property
    @abc.abstractmethod
    def identity(self) -> V:
        """The aggregate of nothing: ``combine(identity, v) == combine(v, identity) == v``."""

    @abc.abstractmethod
    def combine(self, a: V, b: V) -> V:
        """Fold two aggregates into one; associative.

        Raises:
            PermanentError: the result cannot be represented.
        """

    @abc.abstractmethod
    def lift(self, value: Any, event_time_us: int) -> V:
        """Make a delta from what one record carries.

        Args:
            value: what the user's value function returned.
            event_time_us: the record's event time, microseconds since the epoch.

        Raises:
            InvalidRecord: ``value`` is of the wrong type, or not a number.
        """

    def lift_ns(self, value: Any, event_time_us: int, ns: int) -> V:
        """`lift` for an event time with digits finer than microseconds; for those that order events by it.

        Args:
            value: as in `lift`.
            event_time_us: as in `lift`.
            ns: nanoseconds beyond that microsecond, 0 to 999.

        Raises:
            InvalidRecord: as `lift`.
        """
        return self.lift(value, event_time_us)

    def fold(self, values: Iterable[V]) -> V:
        """``combine`` over many, from the left, starting with the identity."""
        return reduce(self.combine, values, self.identity)

    def total(self, values: Iterable[V]) -> V:
        """What a reader is shown of several aggregates together. It is never stored, so it may be larger than an
        aggregate can be; `fold` unless overridden, and the same wherever `fold` has a result."""
        return self.fold(values)

    def encode(self, v: V) -> bytes:
        """Bytes for a store; equal aggregates have equal bytes. JSON unless overridden."""
        return canonical_json(v).encode("utf-8")

    def decode(self, data: bytes) -> V:
        """Inverse of `encode`."""
        decoded: V = json.loads(data)
        return decoded


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks.

    Raises:
        ValueError, TypeError: NaN, infinity, or a type that JSON has not.
    """
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def number_of(value: Any) -> Any:
    """The number that a value is or spells: the one rule for numbers as text, as CSV, attributes of messages and
    64-bit integers in JSON are.

    A text is a decimal number with an optional sign and exponent, between optional blanks; numpy's scalars are the
    numbers that they hold. Anything else is handed back as it is, for the monoid to refuse.

    Raises:
        InvalidRecord: a text that is no number.
    """
    value = plain(value)
    if not isinstance(value, str):
        return value
    # Not just float(), which also takes "1_000" and the digits of other scripts.
    if not _NUMBER.fullmatch(value):
        raise InvalidRecord("value", f"{value!r:.80} is not a number")
    try:
        return int(value)
    except ValueError:
        return float(value)


def lift_number(value: Any) -> int | float:
    """Check a finite int or float (not bool), or the text of one; a float without a fraction becomes an int, so that
    equal numbers have one form.

    Raises:
        InvalidRecord: anything else, or an int of more than `MAX_INT_BITS`.
    """
    value = number_of(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRecord("value", f"expected a number, got {type(value).__name__}: {value!r:.80}")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRecord("value", f"expected a finite number, got {value}")
        if value.is_integer():
            return int(value)
        return value
    return check_int_size(value)


def check_int_size(value: int) -> int:
    """Return the int if it has at most `MAX_INT_BITS`.

    Raises:
        InvalidRecord: it has more.
    """
    if (bits := value.bit_length()) > MAX_INT_BITS:
        raise InvalidRecord("value", f"an integer of {bits} bits, at most {MAX_INT_BITS} are allowed")
    return value


# NaN and infinities are read as well, for `lift_number` to refuse by name.
_NUMBER = re.compile(r" *[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf(inity)?) *", re.IGNORECASE)
