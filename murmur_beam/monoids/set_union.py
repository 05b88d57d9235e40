"""Set of distinct strings and integers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from murmur_beam.monoids.base import Member, Monoid, canonical_json, members_of


class SetUnion(Monoid[frozenset[Member]]):
    """Collects distinct strings and integers.

    The set is kept whole, in one row, and each commit encodes and writes all of it: a commit of one event takes some
    1 ms at 1,000 members, and 200 ms at 100,000. That suits small sets, such as the tags or countries seen for a key.
    To count millions of visitors, use the sketch `Distinct` (the extra ``sketches``).

    Bools and floats are refused: ``True`` and ``1.0`` equal ``1``, so which of them a set keeps depends on the order.
    """

    name = "set_union"
    idempotent = True
    identity: frozenset[Member] = frozenset()

    def combine(self, a: frozenset[Member], b: frozenset[Member]) -> frozenset[Member]:
        """Members of either."""
        return a | b

    def fold(self, values: Iterable[frozenset[Member]]) -> frozenset[Member]:
        """Members of any of the sets, without a copy for each step."""
        return self.identity.union(*values)

    def lift(self, value: Any, event_time_us: int) -> frozenset[Member]:
        """A set of one str or int, or of the members of a set, frozenset, list or tuple.

        Raises:
            InvalidRecord: the value is something else, or has a string with a lone surrogate or an int of more than
                `MAX_INT_BITS`.
        """
        return frozenset(members_of(value))

    def encode(self, v: frozenset[Member]) -> bytes:
        """A JSON list: integers in order, then strings by code point."""
        return canonical_json(sorted(v, key=lambda m: (isinstance(m, str), m))).encode("utf-8")

    def decode(self, data: bytes) -> frozenset[Member]:
        """Inverse of `encode`."""
        return frozenset(json.loads(data))


MONOID = SetUnion()
