"""Event streams to measure with: the same for every contender of a run, and for every run of one seed."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

KEYS = 100_000
USERS = 100
COMMIT = 32
"""Events of one commit, where a figure is about commits of one size."""
EXPONENT = 1.3
"""Of the keys of long runs."""
FLUSH = 20_000
"""Records that `MergeRecords` buffers, where nothing else is said."""
VALUES: dict[str, Callable[[int], object]] = {
    "sum": lambda i: 1,
    "max": lambda i: i,
    "set_union": lambda i: f"user-{i % USERS}",
}
"""What the i-th event has to fold, by the monoid's name."""


def zipf_stream(n: int, exponent: float, keys: int = KEYS, seed: int = 1) -> Iterator[str]:
    """``n`` pages out of ``keys``, of which the one of rank r has the weight ``r ** -exponent``; none is kept."""
    weights = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(keys)))
    chance = random.Random(seed)
    for start in range(0, n, 10_000):
        for rank in chance.choices(range(keys), cum_weights=weights, k=min(10_000, n - start)):
            yield f"page-{rank}"


@functools.lru_cache(maxsize=4)
def zipf_pages(n: int, exponent: float, keys: int = KEYS, seed: int = 1) -> list[str]:
    """The same as a list."""
    return list(zipf_stream(n, exponent, keys, seed))


def zipf_events(n: int, exponent: float) -> Iterator[dict[str, object]]:
    """One event for each of `zipf_pages`, with an id of its own; made one by one, so that none outlives its bundle."""
    for i, page in enumerate(zipf_pages(n, exponent)):
        yield {"id": f"event-{i}", "page": page, "n": 1}


def pages(kind: str, n: int) -> list[str]:
    """The page of each of ``n`` events: ``own``, each its own; ``hot``, all the same; ``zipf1.1`` and the like."""
    if kind == "own":
        return [f"page-{i}" for i in range(n)]
    return ["page-0"] * n if kind == "hot" else zipf_pages(n, float(kind.removeprefix("zipf")))


def events(kind: str, n: int, monoid: str = "sum") -> Iterator[dict[str, object]]:
    """One event for each of `pages`, with an id of its own, and ``n`` to fold by the monoid of this name."""
    value = VALUES[monoid]
    for i, page in enumerate(pages(kind, n)):
        yield {"id": f"event-{i}", "page": page, "n": value(i)}


def expected(kind: str, n: int, monoid: str = "sum") -> dict[str, Any]:
    """What must have been counted after these events, page by page: nothing of murmur_beam takes part."""
    if monoid == "sum":
        return dict(Counter(pages(kind, n)))
    if monoid == "max":
        return {page: i for i, page in enumerate(pages(kind, n))}
    found: dict[str, set[object]] = {}
    for event in events(kind, n, monoid):
        found.setdefault(str(event["page"]), set()).add(event["n"])
    return found
