"""Aggregates by sub-key, in one row."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any, Generic

from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError
from murmur_beam.model import MAX_ENTITY_BYTES
from murmur_beam.monoids.base import Monoid, V
from murmur_beam.monoids.notation import written
from murmur_beam.monoids.sum import MONOID as SUM

MAX_KEYS = 1_000
"""Default limit of the sub-keys of a map."""

_LENGTH = struct.Struct(">I")


class MapOf(Monoid[dict[str, V]], Generic[V]):
    """A map of sub-keys to aggregates of another monoid: the revenue of a day by country, in one row.

    ``MapOf(Sum(places=2))``, by name ``map_of(sum(places=2))``, takes a mapping: ``{"FR": "12.30", "DE": 7}`` adds to
    two sub-keys. A monoid that needs no value also takes one sub-key as text, so ``map_of(count)`` of the field
    ``browser`` counts by browser. The result is a dict of results, in the order of the sub-keys.

    The map is kept whole, in one row, and each commit encodes and writes all of it. So it is bounded: an event that
    would bring the map of a row beyond ``max_keys`` becomes a dead letter; in a table that is appended to it stays
    pending, put apart by the fold. Which sub-keys are in the map then depends on the order of events. It suits
    sub-keys of which there are few; for many, let each be a key of its own (``key="{day}/{country}"``).

    It depends on the order of events, or ignores redeliveries, if the inner monoid does.
    """

    def __init__(self, inner: Monoid[V] = SUM, max_keys: int = MAX_KEYS) -> None:  # type: ignore[assignment]
        """Check the arguments.

        Args:
            inner: folds the values of each sub-key.
            max_keys: sub-keys of a row at most.

        Raises:
            ConfigurationError: an argument is something else.
        """
        if not isinstance(inner, Monoid):
            raise ConfigurationError("inner", f"expected a Monoid such as Sum(), got {inner!r:.80}")
        if type(max_keys) is not int or max_keys < 1:
            raise ConfigurationError("max_keys", f"expected a positive integer, got {max_keys!r:.80}")
        self.inner = inner
        self.max_keys = max_keys
        self.name = written("map_of", inner.name, **({} if max_keys == MAX_KEYS else {"max_keys": max_keys}))
        self.commutative, self.idempotent = inner.commutative, inner.idempotent
        self.exact_numbers = inner.exact_numbers
        self.needs_event_time = inner.needs_event_time

    @property
    def identity(self) -> dict[str, V]:  # type: ignore[override]
        """An empty map, a new one each time, because a dict can be changed."""
        return {}

    def combine(self, a: dict[str, V], b: dict[str, V]) -> dict[str, V]:
        """The sub-keys of both; where a sub-key is in both, the inner monoid combines them.

        Raises:
            PermanentError: the inner monoid cannot combine them, or there are more than ``max_keys``.
        """
        combined = dict(a)
        for key, value in b.items():
            combined[key] = self.inner.combine(combined[key], value) if key in combined else value
        return self._bounded(combined)

    def fold(self, values: Iterable[dict[str, V]]) -> dict[str, V]:
        """The sub-keys of all, each folded by the inner monoid."""
        return self._bounded({key: self.inner.fold(some) for key, some in _by_key(values).items()})

    def total(self, values: Iterable[dict[str, V]]) -> dict[str, V]:
        """As `fold`, but with any number of sub-keys."""
        return {key: self.inner.total(some) for key, some in _by_key(values).items()}

    def lift(self, value: Any, event_time_us: int) -> dict[str, V]:
        """The mapping, with the deltas that the inner monoid makes of its values.

        Raises:
            InvalidRecord: the value is not a mapping of texts, or the inner monoid refuses one of its values, or there
                are more than ``max_keys``.
        """
        return self.lift_ns(value, event_time_us, 0)

    def lift_ns(self, value: Any, event_time_us: int, ns: int) -> dict[str, V]:
        """As `lift`.

        Raises:
            InvalidRecord: as in `lift`.
        """
        if isinstance(value, str) and not self.inner.needs_value:
            value = {value: None}
        if not isinstance(value, Mapping):
            raise InvalidRecord(
                "value", f"expected a mapping of sub-keys to values, got {type(value).__name__}: {value!r:.80}"
            )
        if len(value) > self.max_keys:
            raise InvalidRecord("value", f"has {len(value):,} sub-keys, at most {self.max_keys:,} are allowed")
        return {_sub_key(key): self._lifted(key, each, event_time_us, ns) for key, each in value.items()}

    def present(self, state: dict[str, V]) -> dict[str, Any]:
        """The result of each sub-key, in their order."""
        return {key: self.inner.present(state[key]) for key in sorted(state)}

    def encode(self, v: dict[str, V]) -> bytes:
        """For each sub-key, in the order of their UTF-8 bytes: its length, itself, the length of its aggregate, and the
        aggregate as the inner monoid encodes it."""
        parts: list[bytes] = []
        for key, value in sorted((key.encode("utf-8"), value) for key, value in v.items()):
            data = self.inner.encode(value)
            parts += _LENGTH.pack(len(key)), key, _LENGTH.pack(len(data)), data
        return b"".join(parts)

    def decode(self, data: bytes) -> dict[str, V]:
        """Inverse of `encode`."""
        parts: list[bytes] = []
        at = 0
        while at < len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size + length
            parts.append(data[at - length : at])
        if at != len(data) or len(parts) % 2:
            raise ValueError(f"a map of {len(data)} bytes does not end where its last part ends")
        return {
            key.decode("utf-8"): self.inner.decode(value) for key, value in zip(parts[::2], parts[1::2], strict=True)
        }

    def _lifted(self, key: Any, value: Any, event_time_us: int, ns: int) -> V:
        try:
            return self.inner.lift_ns(value, event_time_us, ns) if ns else self.inner.lift(value, event_time_us)
        except InvalidRecord as err:
            raise InvalidRecord("value", f"of sub-key {key!r:.80}: {err.problem}") from err

    def _bounded(self, combined: dict[str, V]) -> dict[str, V]:
        if len(combined) <= self.max_keys:
            return combined
        raise PermanentError(
            f"value: the map would have {len(combined):,} sub-keys, at most {self.max_keys:,} are allowed"
        )


def _by_key(values: Iterable[dict[str, V]]) -> dict[str, list[V]]:
    found: dict[str, list[V]] = {}
    for value in values:
        for key, each in value.items():
            found.setdefault(key, []).append(each)
    return found


def _sub_key(key: Any) -> str:
    if type(key) is not str:
        raise InvalidRecord("value", f"a sub-key must be text, got {type(key).__name__}: {key!r:.80}")
    try:
        size = len(key.encode("utf-8"))
    except UnicodeEncodeError as err:
        raise InvalidRecord("value", f"sub-key {key!r:.80} has no UTF-8 form ({err.reason})") from None
    if size > MAX_ENTITY_BYTES:
        raise InvalidRecord(
            "value", f"sub-key {key[:40]!r}... is {size} bytes long, at most {MAX_ENTITY_BYTES} are allowed"
        )
    return key


MONOID = MapOf(SUM)
