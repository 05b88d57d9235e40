"""Limits the rate of writes once the server asks for it.

The answer to a bulk write may hold a factor and a period: multiply the present rate by the factor, and look again after
the period. So a cluster is loaded fully without being overloaded (RateLimitInfo in google/bigtable/v2/bigtable.proto).
"""

from __future__ import annotations

import threading

from murmur_beam.clock import Clock
from murmur_beam.state.bigtable.connection import Hint

OVERLOADED = Hint(0.7, 1.0)
"""The hint that RESOURCE_EXHAUSTED stands for."""
_LEAST, _MOST = 0.7, 1.3
_WINDOW_S = 1.0
_FADES = 0.9
"""Weight of a window's rate one window later."""
_SLOWEST = 100.0
"""Rows a second that are always allowed."""


class Throttle:
    """The rate limit of one process and table; for any thread.

    Args:
        clock: measures the rate.

    Attributes:
        limit: rows a second; None if there is no limit.
    """

    def __init__(self, clock: Clock) -> None:
        self.limit: float | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._free_s = self._since_s = clock.monotonic()
        self._holds_s = float("-inf")  # until when the last hint holds
        self._rows = 0
        self._rate = 0.0

    def wait(self, rows: int) -> None:
        """Wait until this number of rows may be sent."""
        if self.limit is None:
            return
        with self._lock:
            if self.limit is None:
                return
            now_s = self._clock.monotonic()
            start_s = max(now_s, self._free_s)
            self._free_s = start_s + rows / self.limit
        if start_s > now_s:
            self._clock.wait(start_s - now_s)

    def sent(self, rows: int, hint: Hint | None) -> None:
        """Count rows that were written, and heed the server's hint. Without hints the limit rises until it ends."""
        with self._lock:
            now_s = self._clock.monotonic()
            self._rows += rows
            if now_s - self._since_s >= _WINDOW_S:
                # The best of the latest windows: a window with little to send does not show what the server takes.
                self._rate = max(self._rate * _FADES, self._rows / (now_s - self._since_s))
                self._rows, self._since_s = 0, now_s
            if now_s < self._holds_s:
                return
            if hint is not None and (hint.factor < 1 or self.limit is not None):
                self._change(hint.factor, now_s + hint.period_s)
            elif self.limit is not None:
                self._change(_MOST, now_s + _WINDOW_S)
                if self.limit >= self._rate:
                    self.limit = None

    def _change(self, factor: float, holds_s: float) -> None:
        rate = self.limit or max(self._rate, float(self._rows))
        self.limit = max(_SLOWEST, rate * min(max(factor, _LEAST), _MOST))
        self._holds_s = holds_s
