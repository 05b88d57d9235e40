"""What `benchmarks.fold_soak` sees from outside while the pipeline runs: the table, reads, memory."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from benchmarks.harness import percentile
from benchmarks.soak_pipeline import HOT_ROWS
from murmur_beam.model import Key
from murmur_beam.monoids import Count
from murmur_beam.state.bigtable import pending, wire
from murmur_beam.state.bigtable.fingerprints import FINGERPRINT_BYTES
from murmur_beam.state.bigtable.keys import AFTER_SCHEMA, parse_row_key
from tests.support.fault_proxy import READ_ROWS, FaultProxy, Plan

_PAUSE_S = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")


# ---- the table ----


@dataclass
class Rows:
    """Sizes of some rows.

    Attributes:
        rows: their number.
        cells, events, pending: pending cells, the events in them, and their bytes with names.
        markers: bytes of markers.
        size: all bytes.
    """

    rows: int = 0
    cells: int = 0
    events: int = 0
    pending: int = 0
    markers: int = 0
    size: int = 0

    def add(self, other: Rows) -> None:
        """Add the sizes of more rows."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def marked(self) -> int:
        """Events with a marker."""
        return self.markers // FINGERPRINT_BYTES


def look(spec: Any) -> tuple[dict[str, Rows], list[Rows]]:
    """Read the whole table.

    Returns:
        The sizes of the rows by the first part of their key, and of each hot row.
    """
    groups: dict[str, Rows] = defaultdict(Rows)
    hot: list[Rows] = []

    def take(row_key: bytes, row: Rows) -> None:
        group = parse_row_key(row_key)[0].entity.partition("/")[0]
        groups[group].add(row)
        if group == "hot":
            hot.append(row)

    async def read(connection: Any) -> None:
        counter = _Counter(take)
        async for answer in connection.answers(wire.read_range(connection, AFTER_SCHEMA, None, 0), 60.0):
            for chunk in answer.chunks:
                counter.take(chunk)

    with closing(spec.connect()) as connection:
        connection.run(read(connection))
    return groups, hot


class _Counter:
    """Adds up the chunks of a read, row by row."""

    def __init__(self, report: Callable[[bytes, Rows], None]) -> None:
        self._report = report
        self._start(b"")

    def _start(self, key: bytes) -> None:
        self._key, self._family, self._row = key, "", Rows(rows=1, size=len(key))

    def take(self, chunk: Any) -> None:
        if chunk.row_key not in (b"", self._key):
            self._start(chunk.row_key)
        row = self._row
        if chunk.HasField("family_name"):
            self._family = chunk.family_name.value
        begins = chunk.HasField("qualifier")
        size = len(chunk.value) + (len(chunk.qualifier.value) if begins else 0)
        row.size += size
        if self._family == wire.DEDUP:
            row.markers += len(chunk.value)
        elif self._family == wire.PENDING:
            row.pending += size
            row.cells += begins
            row.events += pending.count(chunk.value) if begins else 0
        if chunk.commit_row:
            self._report(self._key, row)


# ---- the bytes that folders read ----


def serve_proxy(pipe: Pipe, upstream: str) -> None:
    """Run a proxy before the emulator, for the workers: in a pipeline that appends, only folders read.

    The pipe gets its address; then each message is answered with the bytes of all answers to reads so far.
    """
    n_bytes = 0

    def count(method: str, request: bytes, answers: list[bytes]) -> list[bytes]:
        nonlocal n_bytes
        if method == READ_ROWS:
            n_bytes += sum(map(len, answers))
        return answers

    with FaultProxy(upstream, Plan({}, whole_reads=True)) as proxy:
        proxy.told = count
        pipe.send(proxy.address)
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            pipe.send(n_bytes)


# ---- reads ----


class Gets:
    """Fresh reads of hot rows, one after the other, by a reader that remembers markers.

    Args:
        store: to read from.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._took: list[float] = []

    def percentiles_ms(self) -> tuple[float, float]:
        """p50 and p99 of the reads since the last call; 0 without any."""
        took, self._took = sorted(self._took), []
        return (percentile(took, 50) * 1e3, percentile(took, 99) * 1e3) if took else (0.0, 0.0)

    def read_until(self, done: threading.Event) -> None:
        """Read, with pauses."""
        n = 0
        while not done.wait(_PAUSE_S):
            n += 1
            began_s = time.perf_counter()
            self._store.get(Key(f"hot/{n % HOT_ROWS}"))
            self._took.append(time.perf_counter() - began_s)


@contextmanager
def gets(spec: Any) -> Iterator[Gets]:
    """Read within the block, in a thread; the table must exist."""
    done = threading.Event()
    with closing(spec.open(Count())) as store:
        reads = Gets(store)
        thread = threading.Thread(target=reads.read_until, args=(done,), name="reads", daemon=True)
        thread.start()
        try:
            yield reads
        finally:
            done.set()
            thread.join()


# ---- processes ----


def memory_mb(pids: list[int]) -> float:
    """Resident memory of processes; those that have ended count as 0."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * _PAGE / 2**20
