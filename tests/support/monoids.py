"""Monoids for tests, and the names of parametrised monoids."""

import math
import operator

from murmur_beam.monoids import (
    Custom,
    Monoid,
)

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

ALIKE = [0, 0.0, -0.0, False, 1, 1.0, True, "1", None, [1], [True], {"a": 1}, {"a": 1.0}]
"""Values that Python considers equal, or cannot order, though their JSON differs."""

FLAGS = Custom("flags", 0, operator.or_, idempotent=True)
GCD = Custom("gcd", 0, math.gcd, idempotent=True)
WORDS = Custom(
    "words",
    (),
    lambda a, b: a + b,
    encode=lambda v: "\n".join(v).encode(),
    decode=lambda data: tuple(data.decode().splitlines()),
    lift=lambda value, event_time_us: tuple(value.split()),
    commutative=False,
)


def label(parameter):
    """A test's id, the same in every process of pytest-xdist, as the repr of a function or a set is not."""
    if isinstance(parameter, Monoid):
        return parameter.name
    if isinstance(parameter, str) and parameter.isascii():
        return parameter[:40]
    return type(parameter).__name__


def extend(a, b):
    """Append to the first argument, which breaks the rules."""
    a.extend(b)
    return a
