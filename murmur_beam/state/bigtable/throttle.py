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
_FORGET_S = 60.0


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
        self._free_s = self._slowed_s = self._changed_s = self._since_s = clock.monotonic()
        self._rows = 0

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
        """So many rows were written, and this is what the server said."""
        with self._lock:
            self._rows += rows
            now_s = self._clock.monotonic()
            if hint is not None and now_s - self._changed_s >= hint.period_s:
                self._change(hint.factor, now_s)
            elif self.limit is not None and now_s - self._slowed_s >= _FORGET_S:
                self.limit = None

    def _change(self, factor: float, now_s: float) -> None:
        rate = self.limit or self._rows / max(now_s - self._since_s, 1e-3)
        self._changed_s = self._since_s = now_s
        self._rows = 0
        if factor < 1:
            self._slowed_s = now_s
        if self.limit is not None or factor < 1:
            self.limit = max(1.0, rate * min(max(factor, _LEAST), _MOST))
