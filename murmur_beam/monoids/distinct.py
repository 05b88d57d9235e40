"""Estimated number of distinct values."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

from murmur_beam.errors import ConfigurationError, InvalidRecord, MissingExtra
from murmur_beam.monoids.base import Member, Monoid, members_of
from murmur_beam.monoids.notation import written

LG_K = 12
"""The default. It is not in the recorded name, so it must never change."""

_LG_K_BYTE, _FLAGS_BYTE, _MODE_BYTE = 3, 5, 7
_LIST, _SET = 0, 1
_OUT_OF_ORDER = 0x10
_FIRST_COUPON = {_LIST: 8, _SET: 12}


class Distinct(Monoid[bytes]):
    """Estimates how many distinct strings and integers there were; needs ``pip install 'murmur-beam[sketches]'``.

    The aggregate is a HyperLogLog sketch of Apache DataSketches. It has at most ``2**lg_k + 40`` bytes, 4,136 by
    default; while there are few values, 4 bytes for each. The relative standard error is at most
    ``1.04 / sqrt(2**lg_k)``, 1.6 % by default: 68 % of the estimates are within it, 95 % within twice and 99.7 % within
    three times of it. Up to 384 values are counted almost exactly; with a ``lg_k`` from 8 on, ``2**lg_k * 3 / 32``.

    A value is hashed as DataSketches does, in every language and in BigQuery: a string as UTF-8, an integer as a signed
    64-bit integer. So the string "7" and the integer 7 are two values.

    Args:
        lg_k: the size of the sketch, from 4 to 21; each step doubles the bytes, and two halve the error.

    Raises:
        ConfigurationError: ``lg_k`` is out of range.
        MissingExtra: the package ``datasketches`` is not installed.
    """

    idempotent = True

    def __init__(self, lg_k: int = LG_K) -> None:
        _datasketches()
        if type(lg_k) is not int or not 4 <= lg_k <= 21:
            raise ConfigurationError("lg_k", f"expected an integer from 4 to 21, got {lg_k!r:.80}")
        self.name = "distinct" if lg_k == LG_K else written("distinct", lg_k=lg_k)
        self.lg_k = lg_k
        self.identity = self.fold([])

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Checked here too: a worker without the package must fail, not make a dead letter of each record.
        _datasketches()
        self.__dict__.update(state)

    def combine(self, a: bytes, b: bytes) -> bytes:
        """The sketch of the values of both."""
        return self.fold((a, b))

    def fold(self, values: Iterable[bytes]) -> bytes:
        """The sketch of the values of all, made in one go."""
        library = _datasketches()
        union, deserialize = library.hll_union(self.lg_k), library.hll_sketch.deserialize
        for value in values:
            union.update(deserialize(value))
        return _canonical(union.get_result(library.HLL_8).serialize_compact())

    def lift(self, value: Any, event_time_us: int) -> bytes:
        """The sketch of one str or int, which has 12 bytes, or of the members of a set, frozenset, list or tuple.

        Raises:
            InvalidRecord: a member is something else, an empty string, which DataSketches ignores, a string with a lone
                surrogate, or an integer that does not fit into 64 bits.
        """
        library = _datasketches()
        sketch = library.hll_sketch(self.lg_k, library.HLL_8)
        for member in members_of(value):
            sketch.update(_hashable(member))
        return _canonical(sketch.serialize_compact())

    def present(self, state: bytes) -> int:
        """The estimate, rounded."""
        estimate: float = _datasketches().hll_sketch.deserialize(state).get_estimate()
        return round(estimate)

    def encode(self, v: bytes) -> bytes:
        """The aggregate itself."""
        return v

    def decode(self, data: bytes) -> bytes:
        """The bytes, once it is clear that they are a sketch of this ``lg_k``.

        Raises:
            ValueError: they are not.
        """
        try:
            _datasketches().hll_sketch.deserialize(data)
        except (ValueError, RuntimeError, IndexError) as err:
            raise ValueError(f"not an HLL sketch: {err}") from err
        if data[_LG_K_BYTE] != self.lg_k:
            raise ValueError(f"an HLL sketch with lg_k={data[_LG_K_BYTE]}, expected lg_k={self.lg_k}")
        return data


def _hashable(member: Member) -> Member:
    if member == "":
        raise InvalidRecord("value", "is an empty text, which DataSketches ignores")
    if isinstance(member, int) and not -(2**63) <= member < 2**63:
        raise InvalidRecord("value", f"{member!r:.80} does not fit into a signed 64-bit integer")
    return member


def _canonical(data: bytes) -> bytes:
    """The same sketch in the one form that depends on its values alone.

    The library writes a small sketch's hashes in the order of arrival or of its hash table, and a large one's
    estimate as a running total. Here the hashes are sorted, and the sketch is marked as out of order, as any union of
    large ones is: then readers compute the estimate from the registers, and ignore the running total, which is 0.
    """
    start = _FIRST_COUPON.get(data[_MODE_BYTE] & 3)
    if start is None:
        return b"%b%c%b%b%b" % (data[:_FLAGS_BYTE], data[_FLAGS_BYTE] | _OUT_OF_ORDER, data[6:8], bytes(8), data[16:])
    return data[:start] + array("I", sorted(array("I", data[start:]))).tobytes()


def _datasketches() -> Any:
    try:
        import datasketches
    except ImportError as err:
        raise MissingExtra("sketches", err) from err
    return datasketches


MONOID = Distinct
