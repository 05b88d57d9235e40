"""What of a subscription is here without an acknowledgement, and how much more there is room for. Needs no Beam."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

_FIRST = 10
"""Messages to ask for while none has come that would tell how large they are."""
_FORGET = 0.25
"""Part of the guess that each answer with smaller messages replaces. Larger ones replace all of it."""


class Outstanding:
    """The leases of messages, by their ack ids, and the room for more. Any thread may use it.

    Pub/Sub is asked for a number of messages, and cannot be told how many bytes they may have. So the number follows
    the mean size of those that came last: it falls at once when they grow, and rises slowly when they shrink; nothing
    more is asked for while ``max_bytes`` are here. What is here may exceed ``max_bytes`` by as much as the messages of
    the requests under way are larger than those before them. It may also exceed it by one message, so that one which
    is larger than ``max_bytes`` comes through.

    Args:
        max_messages: that may be here.
        max_bytes: data and attributes of those that may be here.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._leases: dict[str, tuple[float, int]] = {}
        self._bytes = 0
        self._mean_bytes: float | None = None

    def add(self, messages: Sequence[tuple[str, int]]) -> None:
        """Ack id and bytes of each message of an answer; their leases run from now on."""
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
        """They are acknowledged, or given back."""
        with self._lock:
            for ack_id in ack_ids:
                self._forget(ack_id)

    def room(self, asked: int) -> int:
        """How many messages more to ask for while so many are asked for already."""
        with self._lock:
            room = self._max_messages - len(self._leases) - asked
            if self._mean_bytes is None:
                return min(room, _FIRST - asked)
            left_bytes = self._max_bytes - self._bytes - asked * self._mean_bytes
            return min(room, max(1, int(left_bytes / self._mean_bytes))) if left_bytes > 0 else 0

    def older_than(self, seconds: float) -> list[str]:
        """Those here for so long."""
        until_s = time.monotonic() - seconds
        with self._lock:
            return [ack_id for ack_id, (since_s, _) in self._leases.items() if since_s <= until_s]

    def _forget(self, ack_id: str) -> None:
        _, n_bytes = self._leases.pop(ack_id, (0.0, 0))
        self._bytes -= n_bytes
