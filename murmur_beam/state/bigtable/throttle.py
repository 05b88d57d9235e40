"""How fast to write: as fast as may be, until the server asks for less.

The answer to a bulk write may carry a factor and a period: go so many times as fast as now, and look again after the
period. So a cluster is filled without being overrun (RateLimitInfo in google/bigtable/v2/bigtable.proto).
"""

from __future__ import annotations

import threading

from murmur_beam.clock import Clock
from murmur_beam.state.bigtable.connection import Hint

OVERLOADED = Hint(0.7, 1.0)
"""What RESOURCE_EXHAUSTED means."""
_LEAST, _MOST = 0.7, 1.3
_WINDOW_S = 1.0
_FADES = 0.9
"""What a window's rate is still worth a window later."""
_SLOWEST = 100.0
"""Rows a second that are always allowed."""


class Throttle:
    """Of one process and table; for any thread.

    Args:
        clock: measures the rate.

    Attributes:
        limit: rows a second; None: no limit.
    """

    def __init__(self, clock: Clock) -> None:
        self.limit: float | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._free_s = self._since_s = clock.monotonic()
        self._holds_s = float("-inf")  # until when the last hint does
        self._rows = 0
        self._rate = 0.0

    def wait(self, rows: int) -> None:
        """Wait until so many rows may be sent."""
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
        """So many rows were written, and this is what the server said. Where it says nothing any more, the limit rises
        until it is none.
        """
        with self._lock:
            now_s = self._clock.monotonic()
            self._rows += rows
            if now_s - self._since_s >= _WINDOW_S:
                # The best of late: a time in which there was little to send says nothing of what the server takes.
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
