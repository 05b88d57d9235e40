"""Tracks a subscription's unacknowledged messages, and how many more to request. Needs no Beam."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

_FIRST = 10
"""Messages to request before the first ones show how large messages are."""
_FORGET = 0.25
"""Weight of an answer with smaller messages in the estimated mean size. An answer with larger ones replaces it."""


class Outstanding:
    """The leases of messages, by their ack ids, and the room for more. Thread-safe.

    A pull request limits the number of messages, but not their bytes. So the number follows the mean size of the last
    messages: it falls at once when they grow, and rises slowly when they shrink. Nothing is requested while
    ``max_bytes`` are unacknowledged. The bytes may exceed ``max_bytes`` by as much as the messages of the requests in
    flight are larger than earlier ones; and by one message, so that a message larger than ``max_bytes`` is delivered.

    Args:
        max_messages: maximum number of unacknowledged messages.
        max_bytes: maximum bytes of their data and attributes.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._leases: dict[str, tuple[float, int]] = {}
        self._bytes = 0
        self._mean_bytes: float | None = None

    def add(self, messages: Sequence[tuple[str, int]]) -> None:
        """Add the messages of an answer, by ack id and bytes; their leases start now."""
        now_s = time.monotonic()
        with self._lock:
            for ack_id, n_bytes in messages:
                self._forget(ack_id)
                self._leases[ack_id] = now_s, n_bytes
                self._bytes += n_bytes
            if messages:
                mean = max(sum(n_bytes for _, n_bytes in messages) / len(messages), 1.0)
                before = mean if self._mean_bytes is None else self._mean_bytes
                self._mean_bytes = max(mean, before + _FORGET * (mean - before))

    def drop(self, ack_ids: Iterable[str]) -> None:
        """Remove messages that are acknowledged or returned."""
        with self._lock:
            for ack_id in ack_ids:
                self._forget(ack_id)

    def room(self, asked: int) -> int:
        """Number of messages to request, while ``asked`` messages are requested already."""
        with self._lock:
            room = self._max_messages - len(self._leases) - asked
            if self._mean_bytes is None:
                return min(room, _FIRST - asked)
            left_bytes = self._max_bytes - self._bytes - asked * self._mean_bytes
            return min(room, max(1, int(left_bytes / self._mean_bytes))) if left_bytes > 0 else 0

    def older_than(self, seconds: float) -> list[str]:
        """Ack ids of the messages whose leases started at least this long ago."""
        until_s = time.monotonic() - seconds
        with self._lock:
            return [ack_id for ack_id, (since_s, _) in self._leases.items() if since_s <= until_s]

    def _forget(self, ack_id: str) -> None:
        _, n_bytes = self._leases.pop(ack_id, (0.0, 0))
        self._bytes -= n_bytes
