"""The most frequent items, with their counts."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.monoids.base import Monoid, members_of
from murmur_beam.monoids.notation import written

K, LG_SIZE = 10, 10
"""The defaults. They are not in the recorded name, so they must never change."""
MAX_ITEM_BYTES = 1024

_LG_MIN_SIZE = 3
_HEAD = struct.Struct("<BBBBBBH")
_TOTALS = struct.Struct("<IIQQ")
_LENGTH = struct.Struct("<I")
_VERSION, _FAMILY, _EMPTY = 1, 10, 5
_LONGS, _LONGS_IF_EMPTY = 4, 1


class Frequent(NamedTuple):
    """An item, and how often it came; exactly so if both numbers are the same."""

    item: str
    at_least: int
    at_most: int

    def __str__(self) -> str:
        """For people: ``tea 12``, or ``tea 10-12``."""
        return f"{self.item} {self.at_least:,}" + (f"-{self.at_most:,}" if self.at_most > self.at_least else "")


class Frequencies(NamedTuple):
    """How often items came.

    Attributes:
        total: number of items, each as often as it came.
        error: how much a count may be too low; an item without a count came at most this often.
        counts: items and their counts, the most frequent first.
    """

    total: int
    error: int
    counts: tuple[tuple[str, int], ...]


class TopK(Monoid[Frequencies]):
    """Finds the ``k`` most frequent items, and how often each came: a list of `Frequent`, the most frequent first.

    Items are strings; an integer is its digits. An aggregate counts at most ``2**lg_size * 3/4`` distinct items, 768 by
    default. Up to this number, counts are exact, and the result does not depend on the order of events. If there are
    more, all counts are lowered by the count of the 769th, and the items that reach 0 are dropped
    (Misra and Gries). What remains then depends on the order and grouping of events, but not what it promises:

    - The true count lies between ``at_least`` and ``at_most``.
    - These differ by at most the number of all events / 769, that is 0.13 % of them; an item that is more frequent than
      that is never dropped. This also holds for aggregates that are combined, of buckets, shards or tables.

    An item has at most 1,024 bytes, so an aggregate of 768 items has at most 796 kB; with items of 20 bytes, 25 kB.

    Args:
        k: number of items in the result.
        lg_size: each step doubles the items that are counted, and the bytes, and halves the error. From 3 to 16.

    Raises:
        ConfigurationError: ``lg_size`` is out of range, or ``k`` is, or is more than the items that are counted.
    """

    identity = Frequencies(0, 0, ())

    def __init__(self, k: int = K, lg_size: int = LG_SIZE) -> None:
        if type(lg_size) is not int or not _LG_MIN_SIZE <= lg_size <= 16:
            raise ConfigurationError("lg_size", f"expected an integer from 3 to 16, got {lg_size!r:.80}")
        self.k = k
        self.lg_size = lg_size
        self.max_items = _capacity(lg_size)
        if type(k) is not int or not 1 <= k <= self.max_items:
            raise ConfigurationError(
                "k", f"expected an integer from 1 to {self.max_items}, got {k!r:.80}; a larger lg_size allows more"
            )
        given = {"k": k} if lg_size == LG_SIZE else {"k": k, "lg_size": lg_size}
        self.name = "top_k" if given == {"k": K} else written("top_k", **given)

    def combine(self, a: Frequencies, b: Frequencies) -> Frequencies:
        """Counts added up, and lowered if there are too many items."""
        return self.fold((a, b))

    def fold(self, values: Iterable[Frequencies]) -> Frequencies:
        """``combine`` over many, in one dictionary."""
        counts: dict[str, int] = {}
        total = error = 0
        for value in values:
            total += value.total
            error += value.error
            for item, count in value.counts:
                counts[item] = counts.get(item, 0) + count
            if len(counts) > self.max_items:
                least = sorted(counts.values(), reverse=True)[self.max_items]
                counts = {item: count - least for item, count in counts.items() if count > least}
                error += least
        return Frequencies(total, error, _ranked(counts))

    def lift(self, value: Any, event_time_us: int) -> Frequencies:
        """One str or int, once, or the members of a set, frozenset, list or tuple, as often as they are there.

        Raises:
            InvalidRecord: a member is something else, has a lone surrogate, or is longer than `MAX_ITEM_BYTES`.
        """
        items = [str(member) for member in members_of(value)]
        for item in items:
            if len(item) * 4 > MAX_ITEM_BYTES and (size := len(item.encode("utf-8"))) > MAX_ITEM_BYTES:
                raise InvalidRecord("value", f"has {size:,} bytes, at most {MAX_ITEM_BYTES:,} are allowed: {item:.40}")
        each = [Frequencies(1, 0, ((item, 1),)) for item in items]
        return each[0] if len(each) == 1 else self.fold(each)

    def present(self, state: Frequencies) -> list[Frequent]:
        """The ``k`` most frequent items; equally frequent ones in the order of their text."""
        return [Frequent(item, count, count + state.error) for item, count in state.counts[: self.k]]

    def encode(self, v: Frequencies) -> bytes:
        """The bytes of a ``frequent_strings_sketch`` of DataSketches, with the items in order."""
        n, lg_size = len(v.counts), _LG_MIN_SIZE
        while _capacity(lg_size) < n:
            lg_size += 1
        if not v.total:
            return _HEAD.pack(_LONGS_IF_EMPTY, _VERSION, _FAMILY, self.lg_size, lg_size, _EMPTY, 0)
        parts = [
            _HEAD.pack(_LONGS, _VERSION, _FAMILY, self.lg_size, lg_size, 0, 0),
            _TOTALS.pack(n, 0, v.total, v.error),
            struct.pack(f"<{n}Q", *[count for _, count in v.counts]),
        ]
        for item, _ in v.counts:
            data = item.encode("utf-8")
            parts += _LENGTH.pack(len(data)), data
        return b"".join(parts)

    def decode(self, data: bytes) -> Frequencies:
        """Inverse of `encode`.

        Raises:
            ValueError: they are not such bytes, or of another ``lg_size``.
        """
        try:
            longs, version, family, lg_size, _, _, _ = _HEAD.unpack_from(data)
            if (version, family, lg_size) != (_VERSION, _FAMILY, self.lg_size):
                raise ValueError(f"not a sketch of frequent strings with lg_size={self.lg_size}")
            if longs == _LONGS_IF_EMPTY:
                return self.identity
            n, _, total, error = _TOTALS.unpack_from(data, _HEAD.size)
            at = _HEAD.size + _TOTALS.size
            counts = struct.unpack_from(f"<{n}Q", data, at)
            at += 8 * n
            items = []
            for _ in range(n):
                start = at + _LENGTH.size
                at = start + _LENGTH.unpack_from(data, at)[0]
                items.append(data[start:at].decode("utf-8"))
        except struct.error as err:
            raise ValueError(f"a sketch of frequent strings that is cut off: {err}") from err
        if at != len(data):
            raise ValueError(f"a sketch of frequent strings has {len(data)} bytes instead of {at}")
        return Frequencies(total, error, _ranked(dict(zip(items, counts, strict=True))))


def _capacity(lg_size: int) -> int:
    return 3 * (1 << lg_size) // 4


def _ranked(counts: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda of: (-of[1], of[0])))


MONOID = TopK()
