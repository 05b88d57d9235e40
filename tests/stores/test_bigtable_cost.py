"""Costs in Bigtable that must not grow: an event's time with the events of its row, and a worker with its bundles."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.options import MergeOptions
from murmur_beam.spec import resolve
from murmur_beam.state import spec_from_uri
from murmur_beam.transforms import MergeDoFn
from tests.support import emulators
from tests.support.merging import Measure, do_all, several

HELD = 100_000
BATCH = 32
BUNDLE = 500


@pytest.fixture
def uri(bigtable_host: str) -> str:
    """A store in an empty table."""
    return emulators.new_uri(bigtable_host)


def test_an_event_costs_the_same_on_a_full_row_as_on_a_fresh_one(bigtable_host: str, uri: str) -> None:
    """On a row that holds 100,000 events a batch of 32 must take at most 1.5 times as long as on a fresh row: for the
    process that wrote them, and for one that has just read the row."""
    with closing(spec_from_uri(uri).open(Sum())) as store:
        started_s = time.perf_counter()
        for start in range(0, HELD, BATCH):
            updates = [Update(Key("old"), 1, f"held/{i}") for i in range(start, min(start + BATCH, HELD))]
            assert set(store.merge_updates(updates)) == {Outcome.MERGED}
        print(f"{HELD:,} events in batches of {BATCH}: {time.perf_counter() - started_s:.1f} s")
        known = Measure(bigtable_host, uri, "old", "known", batches=200).on(store)
    print(f"known: {known}")
    with several(1) as processes:
        (new,) = do_all(processes, [Measure(bigtable_host, uri, "old", "new", batches=200)])
    print(f"new process: {new}")
    assert known.ratio <= 1.5
    assert new.ratio <= 1.5
    with closing(spec_from_uri(uri).open(Sum())) as store:
        assert store.get(Key("old")) == HELD + 2 * 201 * BATCH


def test_two_hundred_bundles_leave_nothing_behind(bigtable_host: str, uri: str) -> None:
    """A DoFn that is set up and torn down 20 times, with 10 bundles each time, must end with the threads and files that
    it began with, and hardly more memory than after the first times."""
    fn = MergeDoFn(resolve(MergeOptions(name="test", key="k", value="v", event_id="id", store=uri)))

    def rounds(of: range) -> None:
        for i in of:
            fn.setup()
            for bundle in range(10):
                outputs = list(run_bundle(fn, [event(i, bundle, n) for n in range(BUNDLE)]))
                assert len(outputs) == BUNDLE
                assert {str(value.outcome) for value in outputs} == {"merged"}
            fn.teardown()

    rounds(range(5))
    before, threads = steady(), threading.active_count()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rounds(range(5, 20))
    deadline = time.monotonic() + 20
    while (left := count()) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == before
    assert threading.active_count() == threads
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    # Kilobytes, but on macOS bytes.
    grown_kb = grown // 1024 if sys.platform == "darwin" else grown
    print(f"threads and files: {left}, memory: {grown_kb:,} KB more")
    assert grown_kb < 4 * 1024
    with closing(spec_from_uri(uri).open(Sum())) as store:
        assert sum(total for _, total in store.scan()) == 20 * 10 * BUNDLE


def event(i: int, bundle: int, n: int) -> dict[str, Any]:
    """An event that differs from all others, for one of 20 keys of its round."""
    return {"id": f"{i}/{bundle}/{n}", "k": f"k{i}/{n % 20}", "v": 1}


def run_bundle(fn: MergeDoFn, elements: list[Any]) -> Iterator[Any]:
    """Run one bundle as a runner does; its outputs."""
    fn.start_bundle()
    for element in elements:
        windowed = WindowedValue(element, Timestamp(0), (GlobalWindow(),))
        for output in fn.process(element, windowed):
            yield output.value
    for output in fn.finish_bundle():
        assert not isinstance(output, TaggedOutput)
        yield output.value


def count() -> tuple[int, int]:
    """Threads and open files, sockets among them."""
    gc.collect()
    return threading.active_count(), len(os.listdir("/dev/fd"))


def steady() -> tuple[int, int]:
    """The same counts, once they no longer change."""
    last, since = count(), time.monotonic()
    deadline = since + 20
    while time.monotonic() - since < 0.3 and time.monotonic() < deadline:
        time.sleep(0.02)
        now = count()
        if now != last:
            last, since = now, time.monotonic()
    return last
