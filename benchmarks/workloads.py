"""Event streams for measurements: the same for all contenders of a run, and for all runs with one seed."""

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
"""Events of a commit, in figures of commits of one size."""
EXPONENT = 1.3
"""Zipf exponent of the keys of long runs."""
FLUSH = 20_000
"""Records that `MergeRecords` buffers by default."""
VALUES: dict[str, Callable[[int], object]] = {
    "sum": lambda i: 1,
    "max": lambda i: i,
    "set_union": lambda i: f"user-{i % USERS}",
}
"""The value of the i-th event, by the monoid's name."""


def zipf_stream(n: int, exponent: float, keys: int = KEYS, seed: int = 1) -> Iterator[str]:
    """``n`` pages out of ``keys``; the page of rank r has the weight ``r ** -exponent``. No list is kept."""
    weights = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(keys)))
    chance = random.Random(seed)
    for start in range(0, n, 10_000):
        for rank in chance.choices(range(keys), cum_weights=weights, k=min(10_000, n - start)):
            yield f"page-{rank}"


@functools.lru_cache(maxsize=4)
def zipf_pages(n: int, exponent: float, keys: int = KEYS, seed: int = 1) -> list[str]:
    """The pages of `zipf_stream` as a list."""
    return list(zipf_stream(n, exponent, keys, seed))


def zipf_events(n: int, exponent: float) -> Iterator[dict[str, object]]:
    """An event with its own id for each of `zipf_pages`; made one by one, so that no event outlives its bundle."""
    for i, page in enumerate(zipf_pages(n, exponent)):
        yield {"id": f"event-{i}", "page": page, "n": 1}


def pages(kind: str, n: int) -> list[str]:
    """The pages of ``n`` events: ``own``, all different; ``hot``, all the same; ``zipf1.1``, by that exponent."""
    if kind == "own":
        return [f"page-{i}" for i in range(n)]
    return ["page-0"] * n if kind == "hot" else zipf_pages(n, float(kind.removeprefix("zipf")))


def events(kind: str, n: int, monoid: str = "sum") -> Iterator[dict[str, object]]:
    """An event with its own id for each of `pages`, with a value ``n`` for the monoid of this name."""
    value = VALUES[monoid]
    for i, page in enumerate(pages(kind, n)):
        yield {"id": f"event-{i}", "page": page, "n": value(i)}


def expected(kind: str, n: int, monoid: str = "sum") -> dict[str, Any]:
    """The expected value of each page after these events, computed without murmur_beam."""
    if monoid == "sum":
        return dict(Counter(pages(kind, n)))
    if monoid == "max":
        return {page: i for i, page in enumerate(pages(kind, n))}
    found: dict[str, set[object]] = {}
    for event in events(kind, n, monoid):
        found.setdefault(str(event["page"]), set()).add(event["n"])
    return found
