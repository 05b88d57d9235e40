"""Counts the requests of this process to Bigtable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

_WRITES, _READS = ("commit", "mutate", "mutate_here"), ("answers",)


class Requests:
    """What was counted.

    Attributes:
        writes: requests that write, conditional or not.
        reads: requests that read.
        rows: that flushes touched, once for each flush; 0 where rows are not counted.
    """

    def __init__(self) -> None:
        self.writes = self.reads = self.rows = 0


@contextmanager
def counting(*, rows: bool = False) -> Iterator[Requests]:
    """Count the requests of each store in this process, and the rows of each flush if asked to."""
    from murmur_beam.state.bigtable import BigtableStore
    from murmur_beam.state.bigtable.connection import Connection

    counts = Requests()

    def counted(owner: Any, name: str, count: Callable[..., None]) -> Any:
        real = getattr(owner, name)

        def call(*args: Any) -> Any:
            count(*args)
            return real(*args)

        return mock.patch.object(owner, name, call)

    def write(*_: Any) -> None:
        counts.writes += 1

    def read(*_: Any) -> None:
        counts.reads += 1

    def touch(_: Any, updates: Any) -> None:
        counts.rows += len({update.key for update in updates})

    with ExitStack() as stack:
        for names, count in ((_WRITES, write), (_READS, read)):
            for name in names:
                stack.enter_context(counted(Connection, name, count))
        if rows:
            stack.enter_context(counted(BigtableStore, "merge_updates", touch))
        yield counts
