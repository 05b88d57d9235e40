"""The contract of an aggregate: an associative ``combine`` with an ``identity``, what is shown of it, and a codec."""

from __future__ import annotations

import abc
import copy
import json
import math
import re
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import WrittenFloat, plain

V = TypeVar("V")
Member = str | int

MAX_INT_BITS = 1024
"""Longest integer in an aggregate: the range of a float. Python refuses to print, and so to encode, integers of more
than 4300 digits; such an integer could never be written."""


class _Complete(abc.ABCMeta):
    """Checks, when a monoid is made, that it has all it needs, whether its class or its ``__init__`` sets it."""

    if not TYPE_CHECKING:  # a type checker knows calls of a class better without it

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            made = super().__call__(*args, **kwargs)
            for needed in ("name", "identity"):
                if not hasattr(made, needed):
                    raise TypeError(f"{cls.__name__} is a Monoid without {needed}; set it in the class")
            return made


class Monoid(Generic[V], metaclass=_Complete):
    """One way to fold deltas into an aggregate: `lift` makes a delta of a record, `combine` folds two, `present` makes
    the result that is shown. Instances hold no state and can be pickled.

    A new monoid is a file in this package that defines ``MONOID``, and a test that subclasses
    `murmur_beam.testing.MonoidLaws`. A monoid of your own may be in any module; see `murmur_beam.monoids.by_name`.

    Raises:
        TypeError: a subclass has no ``name``, no ``identity``, or not all methods.
    """

    name: str
    """Recorded by a store about its values: monoids that share a name can read each other's state."""
    identity: V
    """The aggregate of nothing: ``combine(identity, v) == combine(v, identity) == v``. It must not be changed: make it
    of a type that cannot be, such as a tuple."""
    commutative: bool = True
    """True if the order of deltas does not matter. Beam guarantees no order, so other results depend on arrival."""
    idempotent: bool = False
    """True if folding a delta again, at any later time, changes nothing:
    ``combine(combine(a, b), a) == combine(a, b)``. A redelivery is then harmless, and stores keep no marker for it. For
    a commutative monoid the law is ``combine(a, a) == a``; "keep the last to arrive" satisfies that law too, but is not
    idempotent."""
    native: ClassVar[str | None] = None
    """Name of the store operation that folds without reading ("sum"), for stores that have it."""
    needs_value: bool = True
    """True if `lift` uses the value."""
    needs_event_time: bool = False
    """True if `lift` uses the event time."""
    exact_numbers: bool = False
    """True if `lift` wants numbers as they are written: those with a fraction in JSON are then `WrittenFloat`."""
    field: str | Callable[[Any], Any] | None = None
    """The record's field that is folded, if known; see `of`."""
    optional: bool = False
    """Whether a record without the field skips this aggregate; see `of`."""

    def of(self, field: str | Callable[[Any], Any], *, optional: bool = False) -> Monoid[V]:
        """A copy that knows the record's field it folds. A store records the field's name, and refuses another.

        Args:
            field: as in ``value=``.
            optional: in `MergeRecords.aggregates`, a record that lacks the field, or has None there, is not folded into
                this aggregate; otherwise it becomes a dead letter.
        """
        named = copy.copy(self)
        object.__setattr__(named, "field", field)  # also where the class is a frozen dataclass
        object.__setattr__(named, "optional", optional)
        return named

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
            InvalidRecord: ``value`` has the wrong type, or is not a number.
        """

    def lift_ns(self, value: Any, event_time_us: int, ns: int) -> V:
        """`lift` for an event time finer than a microsecond; overridden by monoids that order events by time.

        Args:
            value: as in `lift`.
            event_time_us: as in `lift`.
            ns: nanoseconds beyond the microsecond, 0 to 999.

        Raises:
            InvalidRecord: as in `lift`.
        """
        return self.lift(value, event_time_us)

    def fold(self, values: Iterable[V]) -> V:
        """``combine`` over many, from the left, starting with the identity."""
        return reduce(self.combine, values, self.identity)

    def total(self, values: Iterable[V]) -> V:
        """One aggregate of several, for readers, who `present` it. It is never stored, so it may exceed the limits
        of an aggregate. The default is `fold`; an override must agree with `fold` wherever that has a result."""
        return self.fold(values)

    def present(self, state: V) -> Any:
        """The result that readers return, and commands show and rank; by default the aggregate itself.

        It is made last: aggregates of several buckets or shards are combined first. For the mean of a sum and a count,
        that is the difference between the mean and a mean of means.

        Args:
            state: an aggregate, which must not be changed; also the identity, if there is nothing.
        """
        return state

    def encode(self, v: V) -> bytes:
        """The aggregate as bytes for a store; equal aggregates have equal bytes. The default is JSON."""
        return canonical_json(v).encode("utf-8")

    def decode(self, data: bytes) -> V:
        """Inverse of `encode`."""
        decoded: V = json.loads(data)
        return decoded


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks.

    Raises:
        ValueError, TypeError: the value is NaN, infinite, or of a type that JSON lacks.
    """
    return _encode_json(value)


# `json.dumps` with these arguments would make an encoder for each call.
_encode_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def number_of(value: Any) -> Any:
    """The number that a value is or spells. CSV, message attributes and 64-bit integers in JSON give numbers as text.

    A text is a decimal number with an optional sign and exponent, between optional blanks. Numpy's scalars become
    Python numbers. Any other value is returned unchanged, for the monoid to refuse.

    Raises:
        InvalidRecord: a text is not a number.
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


def decimal_of(value: Any) -> Decimal:
    """The number that a value is or spells, exactly as it is written; of a float the shortest decimal that prints it.

    Raises:
        InvalidRecord: the value is not a number, or not finite, or an int of more than `MAX_INT_BITS`.
    """
    value = plain(value)
    if isinstance(value, float):
        text = value.text if isinstance(value, WrittenFloat) else float.__repr__(value)
    elif isinstance(value, str):
        text = value.strip(" ")
        if not _NUMBER.fullmatch(text):
            raise InvalidRecord("value", f"{value!r:.80} is not a number")
    elif type(value) is int:
        return Decimal(check_int_size(value))
    elif isinstance(value, Decimal):
        text = ""
    else:
        raise InvalidRecord("value", f"expected a decimal number, got {type(value).__name__}: {value!r:.80}")
    try:
        number = Decimal(text) if text else value
    except InvalidOperation:  # an exponent of twenty digits
        raise InvalidRecord("value", f"{text:.80} is too large or too small") from None
    if not number.is_finite():
        raise InvalidRecord("value", f"expected a finite number, got {number}")
    return number


def lift_number(value: Any) -> int | float:
    """Return a finite int or float (not bool), also from text; a float without a fraction becomes an int, so that equal
    numbers have one form.

    Raises:
        InvalidRecord: the value is something else, or an int of more than `MAX_INT_BITS`.
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


def members_of(value: Any) -> tuple[Member, ...]:
    """The strings and integers of a value: itself, or the members of a set, frozenset, list or tuple.

    Bools and floats are refused: ``True`` and ``1.0`` equal ``1``, so which of them is kept would depend on the order.

    Raises:
        InvalidRecord: a member is something else, or is a string with a lone surrogate or an int of more than
            `MAX_INT_BITS`.
    """
    members = value if isinstance(value, (set, frozenset, list, tuple)) else (value,)
    return tuple(map(_member, members))


def _member(value: Any) -> Member:
    value = plain(value)
    # Exact types: a bool is an int, and an enum's member may be a str.
    if type(value) is int:
        return check_int_size(value)
    if type(value) is not str:
        raise InvalidRecord("value", f"expected strings and integers, got {type(value).__name__}: {value!r:.80}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise InvalidRecord("value", f"has no UTF-8 form ({err.reason}): {value!r:.80}") from None
    return value


def check_int_size(value: int) -> int:
    """Return the int if it has at most `MAX_INT_BITS`.

    Raises:
        InvalidRecord: the int has more bits.
    """
    if (bits := value.bit_length()) > MAX_INT_BITS:
        raise InvalidRecord("value", f"an integer of {bits} bits, at most {MAX_INT_BITS} are allowed")
    return value


# NaN and infinities match as well, so that `lift_number` can refuse them by name.
_NUMBER = re.compile(r" *[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf(inity)?) *", re.IGNORECASE)
