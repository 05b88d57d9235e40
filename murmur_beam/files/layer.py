"""A stream over another one."""

from __future__ import annotations

import io
from typing import Any


class Layer(io.RawIOBase):
    """The bytes that `_next` makes of another stream; by default that one's own. Closing it closes the other one.

    Args:
        source: has ``read`` and ``close``.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self._source = source

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes | memoryview:
        """At most this many further bytes; none at the end."""
        data: bytes = self._source.read(size)
        return data
