"""Fingerprints of event ids, one after the other as a row stores them, and a compact set of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection

FINGERPRINT_BYTES = 16

BUCKET_EVENTS = 128
"""A bucket that holds more fingerprints takes longer to search than to divide."""
_LARGE = 4_096
_SEARCHES = 32
"""This many searches of a few fingerprints from end to end take as long as making a set of them."""
# These bytes of a fingerprint are enough to know an event again: two of a million in a row meet with a chance of 4e-13.
# The first byte may be the same for the whole row, since the shard of an event is computed from it.
_FROM, _TO = 1, 11
# These bits of a fingerprint number its bucket; there are 2 ** k buckets.
_NUMBER_TO = 4
_BITS = 24


Known = Callable[[Collection[bytes]], list[bytes]]
"""Finds those of some fingerprints that are known."""


class FingerprintSet:
    """A set of fingerprints that takes about 11 bytes for each, where a set of bytes objects takes 71.

    Fingerprints are shortened, and spread by their first bits over buckets that are searched from end to end.

    Args:
        fingerprints: one after the other.
    """

    __slots__ = ("_buckets", "_size", "_unsorted")

    def __init__(self, fingerprints: bytes = b"") -> None:
        self._buckets = [b""]
        self._size = 0
        self._unsorted: list[bytes] = []
        self.add(fingerprints)

    def add(self, fingerprints: bytes) -> None:
        """Add fingerprints. A large addition is sorted into buckets at the first search; often there is none.

        Raises:
            MemoryError: there is no room; the set is not usable any more.
        """
        n = len(fingerprints) // FINGERPRINT_BYTES
        if n > _LARGE:
            self._size += n
            self._unsorted.append(fingerprints)
        else:
            self.reserve(n)
            self._size += n
            _add(self._buckets, fingerprints)

    def reserve(self, n: int) -> None:
        """Make room for ``n`` more, so that the set is divided once and not at each addition."""
        while self._size + n > BUCKET_EVENTS * len(self._buckets):
            self._buckets = _doubled(self._buckets)

    @property
    def known(self) -> Known:
        """Finds the fingerprints that are in the set as it is now.

        Raises:
            MemoryError: see `add`.
        """
        unsorted, self._unsorted = self._unsorted, []
        if unsorted:
            self.reserve(0)
        for fingerprints in unsorted:
            _add(self._buckets, fingerprints)
        buckets, size = self._buckets, self._size
        n, number_of = len(buckets), int.from_bytes

        def known(some: Collection[bytes]) -> list[bytes]:
            if 2 * len(some) > size:  # making one set is faster than searching
                everything = {each for bucket in buckets for each in split(bucket, _TO - _FROM)}
                return [each for each in some if each[_FROM:_TO] in everything]
            # A match across the border of two fingerprints is as unlikely as two events with the same one.
            return [
                each
                for each in some
                if each[_FROM:_TO] in buckets[number_of(each[_FROM:_NUMBER_TO], "big") * n >> _BITS]
            ]

        return known


def known_of_few(fingerprints: bytes, some: Collection[bytes]) -> list[bytes]:
    """Those of ``some`` that are among a few fingerprints, given one after the other."""
    few = frozenset(split(fingerprints)) if len(some) > _SEARCHES else fingerprints
    return [each for each in some if each in few]


def split(fingerprints: bytes, size: int = FINGERPRINT_BYTES) -> list[bytes]:
    """The fingerprints, each by itself."""
    return [fingerprints[i : i + size] for i in range(0, len(fingerprints), size)]


def _doubled(buckets: list[bytes]) -> list[bytes]:
    """Twice as many buckets with the same fingerprints; the given ones are not changed."""
    doubled = []
    n = 2 * len(buckets)
    for i, bucket in enumerate(buckets):
        fingerprints = split(bucket, _TO - _FROM)
        middle = ((2 * i + 1 << _BITS) // n).to_bytes(3, "big")
        doubled.append(b"".join([each for each in fingerprints if each < middle]))
        doubled.append(b"".join([each for each in fingerprints if each >= middle]))
    return doubled


def _add(buckets: list[bytes], fingerprints: bytes) -> None:
    """Shorten fingerprints and add them, sorted so that those of a bucket are added together."""
    n = len(buckets)
    short = sorted([fingerprints[i + _FROM : i + _TO] for i in range(0, len(fingerprints), FINGERPRINT_BYTES)])
    start = 0
    while start < len(short):
        i = int.from_bytes(short[start][: _NUMBER_TO - _FROM], "big") * n >> _BITS
        last = ((i + 1 << _BITS) // n - 1).to_bytes(3, "big") + b"\xff" * FINGERPRINT_BYTES
        end = bisect_right(short, last, start)
        buckets[i] += b"".join(short[start:end])
        start = end
