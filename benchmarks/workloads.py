"""Event streams to measure with: the same for every contender of a run, and for every run of one seed."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator


@functools.lru_cache(maxsize=4)
def zipf_pages(n: int, exponent: float, keys: int = 100_000, seed: int = 1) -> list[str]:
    """``n`` pages out of ``keys``, of which the one of rank r has the weight ``r ** -exponent``."""
    weights = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(keys)))
    return [f"page-{rank}" for rank in random.Random(seed).choices(range(keys), cum_weights=weights, k=n)]


def zipf_events(n: int, exponent: float) -> Iterator[dict[str, object]]:
    """One event for each of `zipf_pages`, with an id of its own; made one by one, so that none outlives its bundle."""
    for i, page in enumerate(zipf_pages(n, exponent)):
        yield {"id": f"event-{i}", "page": page, "n": 1}
