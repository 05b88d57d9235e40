"""Retry delays: full jitter over a capped exponential, as a pure function and a loop around it.

The formula is the "full jitter" of Marc Brooker's "Exponential Backoff And Jitter" (AWS Architecture Blog,
2015): spreading a delay over the whole interval keeps clients that failed together from retrying together.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

from murmur_beam.clock import Clock
from murmur_beam.errors import MergeCancelled

# 2**70 times the shortest base (1 us) is past the longest cap (timedelta.max); beyond 2**1023 the float overflows.
_MAX_EXPONENT = 70


def ceiling_s(attempt: int, base: timedelta, cap: timedelta) -> float:
    """Longest delay, in seconds, after the failed try number ``attempt`` (the first is 1).

    ``min(cap, base * 2 ** (attempt - 1))``
    """
    return min(cap.total_seconds(), base.total_seconds() * 2.0 ** min(attempt - 1, _MAX_EXPONENT))


def attempts(
    max_attempts: int,
    base: timedelta,
    cap: timedelta,
    clock: Clock,
    cancel: threading.Event | None = None,
) -> Iterator[int]:
    """Yield 1, 2, ... ``max_attempts``, and wait between them; the caller leaves the loop after a success.

    The wait after try ``n`` is ``uniform(0, ceiling_s(n))``, never longer than ``cap``.

    Raises:
        MergeCancelled: ``cancel`` was set before or during a wait.
    """
    for attempt in range(1, max_attempts + 1):
        yield attempt
        if attempt < max_attempts:
            delay = clock.uniform(0.0, ceiling_s(attempt, base, cap))
            if clock.wait(delay, cancel):
                raise MergeCancelled(f"cancelled while waiting to try again, after {attempt} failed tries")
