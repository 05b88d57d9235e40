"""A monoid made of a user's functions."""

from __future__ import annotations

import marshal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError
from murmur_beam.monoids.base import Monoid, V


@dataclass(frozen=True, init=False)
class Custom(Monoid[V], Generic[V]):
    """A monoid from functions, without a new class::

        Custom("flags", identity=0, combine=operator.or_, idempotent=True)
        Custom("gcd", 0, math.gcd, idempotent=True)

    The constructor cannot check the laws; `murmur_beam.testing.MonoidLaws` checks them in a test of five lines.
    """

    name: str
    commutative: bool
    idempotent: bool
    _identity: bytes
    _combine: Callable[[V, V], V]
    _encode: Callable[[V], bytes] | None
    _decode: Callable[[bytes], V] | None
    _lift: Callable[[Any, int], V] | None
    _present: Callable[[V], Any] | None

    def __init__(
        self,
        name: str,
        identity: V,
        combine: Callable[[V, V], V],
        *,
        encode: Callable[[V], bytes] | None = None,
        decode: Callable[[bytes], V] | None = None,
        lift: Callable[[Any, int], V] | None = None,
        present: Callable[[V], Any] | None = None,
        commutative: bool = True,
        idempotent: bool = False,
    ) -> None:
        """Check the functions on the identity.

        Args:
            name: recorded by a store about its values. Choose a new name whenever the functions change their meaning:
                values under the same name are combined with each other.
            identity: the aggregate of nothing.
            combine: associative; must not change its arguments.
            encode: converts an aggregate to bytes, equal ones for equal aggregates; canonical JSON by default.
            decode: inverse of ``encode``; give both or neither.
            lift: makes a delta from a record's value and its event time in microseconds since the epoch; without it
                the value is the delta.
            present: makes the result that is shown of an aggregate, as `Monoid.present`; without it the aggregate
                itself is shown.
            commutative: as in `Monoid`.
            idempotent: as in `Monoid`. If in doubt, leave it False: event ids then prevent double counting.

        Raises:
            ConfigurationError: an argument has the wrong type, or ``combine``, or ``encode`` and ``decode``, change
                the identity.
        """
        set_field = object.__setattr__  # the way into a frozen dataclass
        set_field(self, "name", name)
        set_field(self, "commutative", commutative)
        set_field(self, "idempotent", idempotent)
        set_field(self, "_combine", combine)
        set_field(self, "_encode", encode)
        set_field(self, "_decode", decode)
        set_field(self, "_lift", lift)
        set_field(self, "_present", present)
        self._check_types()
        set_field(self, "_identity", self._check_identity(identity))

    if not TYPE_CHECKING:  # for a type checker, `Monoid.identity` is an attribute as in any other monoid

        def __getattr__(self, name: str) -> Any:
            """The ``identity``, decoded anew each time: a ``combine`` that changes its arguments then spoils only one
            aggregate."""
            if name != "identity":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return self._new_identity()

    def combine(self, a: V, b: V) -> V:
        """Call the user's function."""
        return self._combine(a, b)

    def lift(self, value: Any, event_time_us: int) -> V:
        """Make a delta, and try it on the identity: a delta that cannot be combined or encoded must fail here, with its
        record alone, and not later with all updates of its row.

        Raises:
            InvalidRecord: the delta cannot be combined or encoded, or the identity changes it, or ``lift`` raised an
                exception.
        """
        try:
            delta: V = value if self._lift is None else self._lift(value, event_time_us)
            before = _snapshot(delta)
            data = self.encode(delta)
            combined = self.combine(self._new_identity(), delta)
            if before is not None and before == _snapshot(combined):
                return delta
            after = self.encode(combined)
        except PermanentError:
            raise
        except Exception as err:
            raise InvalidRecord("value", f"{self.name} cannot take {type(value).__name__}: {_what(err)}") from err
        if data != after:
            raise InvalidRecord(
                "value", f"{self.name} cannot take {data!r:.80}: combined with the identity it becomes {after!r:.80}"
            )
        return delta

    def present(self, state: V) -> Any:
        """Call the user's function, or return the aggregate."""
        return state if self._present is None else self._present(state)

    def encode(self, v: V) -> bytes:
        """Call the user's function, or make JSON."""
        return super().encode(v) if self._encode is None else self._encode(v)

    def decode(self, data: bytes) -> V:
        """Call the user's function, or read JSON."""
        return super().decode(data) if self._decode is None else self._decode(data)

    def _new_identity(self) -> V:
        return self.decode(self._identity)

    def _check_types(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigurationError("name", f"expected a non-empty string, got {self.name!r:.80}")
        if not callable(self._combine):
            raise ConfigurationError("combine", f"expected a function of two aggregates, got {self._combine!r:.80}")
        for argument, function in (
            ("encode", self._encode),
            ("decode", self._decode),
            ("lift", self._lift),
            ("present", self._present),
        ):
            if function is not None and not callable(function):
                raise ConfigurationError(argument, f"expected a function or None, got {function!r:.80}")
        if (self._encode is None) != (self._decode is None):
            missing, given = ("encode", "decode") if self._encode is None else ("decode", "encode")
            raise ConfigurationError(missing, f"is missing; give both {given} and {missing}, or neither")
        for argument, flag in (("commutative", self.commutative), ("idempotent", self.idempotent)):
            if not isinstance(flag, bool):
                raise ConfigurationError(argument, f"expected True or False, got {flag!r:.80}")

    def _check_identity(self, identity: V) -> bytes:
        data = self._encode_identity(identity)
        try:
            decoded = self.decode(data)
        except Exception as err:
            raise ConfigurationError("decode", f"fails for the encoded identity {data!r:.80}: {_what(err)}") from err
        if type(decoded) is not type(identity):
            change = f"a {type(identity).__name__} is decoded as a {type(decoded).__name__}"
            if self._decode is None:
                raise ConfigurationError("identity", f"{change} from JSON; use that, or give encode and decode")
            raise ConfigurationError("decode", change)
        try:
            combined = self.encode(self.combine(decoded, self.decode(data)))
        except Exception as err:
            raise ConfigurationError("combine", f"fails for the identity with itself: {_what(err)}") from err
        if combined != data:
            raise ConfigurationError(
                "identity",
                f"combined with itself it gives {combined!r:.80} instead of {data!r:.80}; "
                "combining with the identity must change nothing",
            )
        return data

    def _encode_identity(self, identity: V) -> bytes:
        try:
            data = self.encode(identity)
        except Exception as err:
            if self._encode is None:
                raise ConfigurationError("identity", f"has no JSON form: {_what(err)}; give encode and decode") from err
            raise ConfigurationError("encode", f"fails for the identity: {_what(err)}") from err
        if not isinstance(data, bytes):
            raise ConfigurationError("encode", f"expected bytes, got {type(data).__name__}: {data!r:.80}")
        return data


def _snapshot(value: Any) -> bytes | None:
    """Bytes that are equal only for values of equal content and types, made much faster than an encoding; None of a
    value of another type than those of Python's literals."""
    try:
        return marshal.dumps(value, 2)  # later versions depend on how often an object is referred to
    except ValueError:
        return None


def _what(err: Exception) -> str:
    return f"{type(err).__name__}: {err}"
