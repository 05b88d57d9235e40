"""Processes that merge into Bigtable for a test: light ones, which load neither Beam nor pytest."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.sum import Sum
from murmur_beam.processor import AtomicDedup, Config, make_record, merge_records
from murmur_beam.state import spec_from_uri
from murmur_beam.state.base import Store

PATIENT = Config(
    dedup=AtomicDedup(),
    max_attempts=20,
    backoff_base=timedelta(milliseconds=1),
    backoff_max=timedelta(milliseconds=20),
)
"""Enough tries that a plan of faults leaves no dead letters."""

_BATCH = 200
_MEASURED = 32


class Event(NamedTuple):
    """An event to count."""

    event_id: str
    key: str
    value: int


class Merge(NamedTuple):
    """A job: merge these events, with `PATIENT`, after `Process.go`.

    Attributes:
        host: ``BIGTABLE_EMULATOR_HOST``.
        uri: of the store.
        events: in this order.
    """

    host: str
    uri: str
    events: Sequence[Event]

    def run(self, ready: Callable[[], None]) -> Counter[str]:
        """The number of events with each outcome; failures by their errors' names."""
        outcomes: Counter[str] = Counter()
        os.environ["BIGTABLE_EMULATOR_HOST"] = self.host
        with closing(spec_from_uri(self.uri).open(Sum())) as store:
            ready()
            for start in range(0, len(self.events), _BATCH):
                records = [
                    make_record(Sum(), event.event_id, 0, [event.key], event.value, need_id=True)
                    for event in self.events[start : start + _BATCH]
                ]
                for result in merge_records(PATIENT, "test", records, store):
                    outcomes[str(result.outcome or repr(result.error))] += 1
        return outcomes


class Costs(NamedTuple):
    """Times of batches of 32, in seconds.

    Attributes:
        first_s: the first on the old row, which the process does not know yet.
        old_s: median on the old row after that.
        fresh_s: median on rows with few batches.
    """

    first_s: float
    old_s: float
    fresh_s: float

    @property
    def ratio(self) -> float:
        """How much more the old row costs."""
        return self.old_s / self.fresh_s

    def __str__(self) -> str:
        us = 1e6 / _MEASURED
        return (
            f"{self.old_s * us:.1f} us an event on the old row, {self.fresh_s * us:.1f} on fresh ones, ratio "
            f"{self.ratio:.2f}; the first batch on the old row took {self.first_s * 1e3:.0f} ms"
        )


class Measure(NamedTuple):
    """A job: time batches on a row that holds many events, and alternately on fresh rows.

    Attributes:
        host: ``BIGTABLE_EMULATOR_HOST``.
        uri: of the store.
        old: key of the old row.
        name: unique name of the job; events and fresh rows are named after it.
        batches: how many on each.
    """

    host: str
    uri: str
    old: str
    name: str
    batches: int

    def run(self, ready: Callable[[], None]) -> Costs:
        """Run the job."""
        os.environ["BIGTABLE_EMULATOR_HOST"] = self.host
        with closing(spec_from_uri(self.uri).open(Sum())) as store:
            ready()
            return self.on(store)

    def on(self, store: Store[int]) -> Costs:
        """Run it with an open store."""

        def timed(key: str, batch: str) -> float:
            updates = [Update(Key(key), 1, f"{self.name}/{batch}/{i}") for i in range(_MEASURED)]
            started_s = perf_counter()
            results = store.merge_updates(updates)
            took_s = perf_counter() - started_s
            assert list(results) == [Outcome.MERGED] * _MEASURED, results
            return took_s

        first_s = timed(self.old, "first")
        old_s, fresh_s = [], []
        for i in range(self.batches):
            fresh_s.append(timed(f"{self.name} fresh {i // 20}", f"fresh {i}"))
            old_s.append(timed(self.old, f"old {i}"))
        return Costs(first_s, median(old_s), median(fresh_s))


class Process:
    """A new process that runs jobs; `several` starts and ends them."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def prepare(self, job: Merge | Measure) -> None:
        """Let it open the store."""
        self._pipe.send(job)

    def wait_ready(self) -> None:
        """Until the store is open."""
        self._take("ready")

    def go(self) -> None:
        """Let it run the job."""
        self._pipe.send("go")

    def result(self) -> Any:
        """Wait for the result of the job."""
        return self._take("result")

    def end(self) -> None:
        """End it, whatever its state."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    def _take(self, what: str) -> Any:
        assert self._pipe.poll(120), f"no {what} within 120 s"
        kind, value = self._pipe.recv()
        assert kind == what, value
        return value


@contextmanager
def several(n: int) -> Iterator[list[Process]]:
    """This many processes, until the end of the block."""
    processes = [Process() for _ in range(n)]
    try:
        yield processes
    finally:
        for process in processes:
            process.end()


def do_all(processes: Sequence[Process], jobs: Sequence[Merge | Measure]) -> list[Any]:
    """Run one job in each process, all at once; their results."""
    for process, job in zip(processes, jobs, strict=True):
        process.prepare(job)
    for process in processes:
        process.wait_ready()
    for process in processes:
        process.go()
    return [process.result() for process in processes]


def _serve(pipe: Connection) -> None:
    def ready() -> None:
        pipe.send(("ready", None))
        pipe.recv()

    while True:
        job = pipe.recv()
        try:
            pipe.send(("result", job.run(ready)))
        except Exception as err:
            pipe.send(("error", repr(err)))
