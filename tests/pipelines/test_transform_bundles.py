"""`MergeDoFn` driven as a runner drives it, bundle by bundle."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from apache_beam.internal import pickler
from apache_beam.transforms import window as beam_window
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from murmur_beam import beam_metrics
from murmur_beam.buffer import FlushLimits
from murmur_beam.errors import (
    StoreUnavailable,
)
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.options import MergeOptions
from murmur_beam.spec import resolve
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import FakeClock
from murmur_beam.transforms import DEAD_LETTER, MergeDoFn
from murmur_beam.windows import daily
from tests.support.transform import (
    DAY,
    FIELDS,
    NOW_S,
    Faulty,
    OnShelf,
    Worker,
    config,
    event,
    run,
    sums,
)


def test_a_bundle_that_is_delivered_again_counts_once(store: Faulty) -> None:
    """Whether its first delivery was written or not."""
    worker = Worker(**FIELDS, store=store.spec, flush=FlushLimits(events=2))
    elements = [event(str(i)) for i in range(5)]
    worker.start()
    first = list(worker.process(*elements[:3]))
    assert [result.outcome for result in first] == ["merged", "merged"]
    assert store.state() == {("a", 0): 2}
    outputs = list(worker.bundle(*elements))
    assert [(result.event_id, result.outcome) for result in outputs] == [
        ("0", "duplicate"),
        ("1", "duplicate"),
        ("2", "merged"),
        ("3", "merged"),
        ("4", "merged"),
    ]
    assert store.state() == {("a", 0): 5}


def test_a_flush_in_progress_belongs_to_its_bundle(store: Faulty) -> None:
    """Its results come with the next full buffer, or with the end of the bundle, each once."""
    store.waits_for_network = True
    worker = Worker(**FIELDS, store=store.spec, flush=FlushLimits(events=2))
    worker.start()
    assert list(worker.process(event("0"), event("1"), event("2"))) == []
    assert [result.event_id for result in worker.process(event("3"))] == ["0", "1"]
    assert [result.event_id for result in worker.process(event("4"))] == []
    assert [result.event_id for result in worker.finish()] == ["2", "3", "4"]
    worker.start()
    assert list(worker.finish()) == []
    worker.fn.teardown()
    assert store.state() == {("a", 0): 5}


def test_a_flush_in_progress_is_dropped_with_its_bundle(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its merged events are duplicates when they are redelivered, and neither its results nor its counts come later."""
    counts: Counter[str] = Counter()

    class Reported:
        """In place of one of Beam's counters."""

        def __init__(self, namespace: str, name: str) -> None:
            self._name = name

        def inc(self, n: int) -> None:
            counts[self._name] += n

    monkeypatch.setattr(beam_metrics.Metrics, "counter", Reported)
    store.waits_for_network = True
    released = threading.Event()

    def fault(update: Update) -> None:
        assert released.wait(20)

    store.fault = fault
    worker = Worker(**FIELDS, store=store.spec, flush=FlushLimits(events=2), name="p")
    worker.start()
    assert list(worker.process(event("0"), event("1"))) == []
    threading.Timer(0.05, released.set).start()
    outputs = list(worker.bundle(event("0"), event("1"), event("2")))
    assert [(result.event_id, result.outcome) for result in outputs] == [
        ("0", "duplicate"),
        ("1", "duplicate"),
        ("2", "merged"),
    ]
    assert +counts == {"p": 1, "p:dedup_skip": 2, "p:record_merged": 1, "p:record_duplicate": 2}
    worker.fn.teardown()
    assert store.state() == {("a", 0): 3}


def test_a_failed_flush_in_progress_fails_its_bundle(store: Faulty) -> None:
    """At the next full buffer, or at the end; the bundle is redelivered and merged."""
    store.waits_for_network = True
    worker = Worker(**FIELDS, store=store.spec, flush=FlushLimits(events=2))
    for last in (worker.process(event("2"), event("3")), worker.finish()):
        store.fault = lambda update: StoreUnavailable("gone")
        worker.start()
        assert list(worker.process(event("0"), event("1"))) == []
        with pytest.raises(StoreUnavailable):
            list(last)
    store.fault = lambda update: None
    assert len(list(worker.bundle(event("0"), event("1"), event("2")))) == 3
    worker.fn.teardown()
    assert store.state() == {("a", 0): 3}


def test_metrics_are_reported_by_the_thread_of_the_bundle(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam loses those of other threads."""
    threads: set[threading.Thread] = set()
    merging: set[threading.Thread] = set()

    class Reported:
        """In place of Beam's counters and distributions."""

        def __init__(self, namespace: str, name: str) -> None:
            pass

        def inc(self, n: int) -> None:
            threads.add(threading.current_thread())

        update = inc

    def fault(update: Update) -> None:
        merging.add(threading.current_thread())

    monkeypatch.setattr(beam_metrics.Metrics, "counter", Reported)
    monkeypatch.setattr(beam_metrics.Metrics, "distribution", Reported)
    store.fault = fault
    store.waits_for_network = True
    worker = Worker(**FIELDS, store=store.spec, flush=FlushLimits(events=2))
    worker.start()
    assert len(list(worker.process(*(event(str(i)) for i in range(7))))) == 4
    assert threads, "what flushes have measured must not pile up until the end of a bundle"
    assert len(list(worker.finish())) == 3
    worker.fn.teardown()
    assert threads == {threading.current_thread()}
    assert len(merging) == 2, "the full buffers in a thread of their own, the rest in this one"


def test_a_bundle_that_fails_leaves_nothing_behind(store: Faulty) -> None:
    """Its buffered records must neither be written nor be output by the next bundle."""
    worker = Worker(**FIELDS, store=store.spec)
    worker.start()
    assert list(worker.process(event("1"))) == []
    worker.start()
    assert list(worker.finish()) == []
    assert store.state() == {}
    assert list(worker.finish()) == []


def test_held_outputs_of_a_bundle_that_fails_are_dropped(store: Faulty) -> None:
    """An element in several windows is output at the end of its bundle; after a failure, not at the end of the next."""
    worker = Worker(windows=3, **FIELDS, store=store.spec, flush=FlushLimits(events=1))
    worker.start()
    assert list(worker.process(event("1"), event("2"))) == []
    assert store.state() == {("a", 0): 2}
    outputs = list(worker.bundle(event("1"), event("2"), event("3")))
    assert [(result.event_id, result.outcome) for result in outputs] == [
        ("1", "duplicate"),
        ("2", "duplicate"),
        ("3", "merged"),
    ]
    assert list(worker.bundle()) == []


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [(FlushLimits(events=3), 0), (FlushLimits(rows=3), 0), (FlushLimits(age=timedelta(seconds=2)), 1)],
    ids=["events", "rows", "age"],
)
def test_a_full_buffer_is_output_before_the_bundle_ends(store: Faulty, limits: FlushLimits, seconds: int) -> None:
    """At whichever limit is reached first: records, touched rows, or time."""
    clock = FakeClock()
    worker = Worker(**FIELDS, store=store.spec, flush=limits, config=config(clock=clock))
    worker.start()
    came = []
    for i in range(7):
        came.append([result.event_id for result in worker.process(event(str(i), key=f"k{i}"))])
        clock.time += seconds
    assert came == [[], [], ["0", "1", "2"], [], [], ["3", "4", "5"], []]
    assert [result.event_id for result in worker.finish()] == ["6"]


def test_nothing_is_output_before_it_is_committed(store: Faulty) -> None:
    """As soon as an output is visible, its event must be in the store."""
    worker = Worker(**FIELDS, store=store.spec, flush=FlushLimits(events=2))
    seen = 0
    for result in worker.bundle(*(event(str(i)) for i in range(5))):
        assert (Key("a"), result.event_id) in store.ledger.merged
        seen += 1
    assert seen == 5


def test_an_empty_bundle(store: Faulty) -> None:
    """It must write and output nothing."""
    worker = Worker(**FIELDS, store=store.spec)
    assert list(worker.bundle()) == []
    assert store.state() == {}


def test_an_element_without_a_timestamp_needs_an_event_time(store: Faulty) -> None:
    """With a window, Beam's timestamp for "no timestamp" must not be taken for a time."""
    worker = Worker(**FIELDS, store=store.spec, window=daily())
    worker.start()
    windowed = WindowedValue(event("1"), MIN_TIMESTAMP, [beam_window.GlobalWindow()])
    assert list(worker.fn.process(windowed.value, windowed)) == []
    (output,) = worker.fn.finish_bundle()
    assert output.tag == DEAD_LETTER
    letter = output.value.value
    assert letter.error_message.startswith("event_time: the element has no timestamp of its own")
    assert letter.event_time is None


def test_rejected_elements_do_not_accumulate(store: Faulty) -> None:
    """They must be output before the bundle ends, as merged ones are."""
    worker = Worker(**FIELDS, store=store.spec, flush=FlushLimits(events=3))
    worker.start()
    came = [[letter.payload for letter in worker.process(text)] for text in (b"{", b"[", b"}", b"]")]
    assert came == [[], [], [b"{", b"[", b"}"], []]
    assert [letter.payload for letter in worker.finish()] == [b"]"]


def test_two_steps_share_a_store_and_the_last_one_closes_it(store: Faulty) -> None:
    """Each process must open a store once, and close it when no step uses it any more."""
    opened = OnShelf.opened[store.spec.name]
    first, second = Worker(**FIELDS, store=store.spec), Worker(**FIELDS, name="other", store=store.spec)
    assert OnShelf.opened[store.spec.name] == opened + 1
    first.fn.teardown()
    assert store.closed == 0
    assert [result.outcome for result in second.bundle(event("1"))] == ["merged"]
    first.fn.teardown()
    assert store.closed == 0, "a second call does nothing"
    second.fn.teardown()
    assert store.closed == 1


def test_a_cache_is_closed_too(store: Faulty) -> None:
    """Teardown must release both stores."""
    cache = Faulty()
    worker = Worker(**FIELDS, store=store.spec, cache=cache.spec)
    worker.fn.teardown()
    assert (store.closed, cache.closed) == (1, 1)


def test_a_pipeline_closes_its_store(store: Faulty) -> None:
    """A runner calls teardown at its end: no store must stay open."""
    run([event("1")], **FIELDS, store=store.spec)
    deadline = time.monotonic() + 30
    while store.closed < 2 and time.monotonic() < deadline:
        time.sleep(0.05)  # Prism's worker may still be in its teardown
    assert store.closed == 2, "once when the pipeline was built, and once by its worker"


def open_files() -> int:
    """The number of open files of this process."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux lists them")
def test_cycles_of_setup_and_teardown_leak_nothing(tmp_path: Path) -> None:
    """A worker may have thousands of them: neither threads nor files may accumulate."""
    arguments = {**FIELDS, "store": SqliteSpec(str(tmp_path / "counts.db")), "cache": f"memory://{uuid.uuid4().hex}"}
    for i in range(21):
        worker = Worker(**arguments)
        assert len(list(worker.bundle(event(str(i))))) == 1
        worker.fn.teardown()
        if i == 0:
            gc.collect()
            before = threading.active_count(), open_files()
    gc.collect()
    assert (threading.active_count(), open_files()) == before


@pytest.mark.parametrize("dumps", [pickle.dumps, pickler.dumps], ids=["pickle", "beam"])
def test_the_dofn_can_be_pickled(tmp_path: Path, dumps: Callable[[Any], bytes]) -> None:
    """Only its configuration is sent to the workers."""
    spec = resolve(MergeOptions(**FIELDS, store=f"sqlite:///{tmp_path}/counts.db", window="daily", config=config()))
    loads = pickle.loads if dumps is pickle.dumps else pickler.loads
    fn = loads(dumps(MergeDoFn(spec)))
    fn.setup()
    fn.start_bundle()
    windowed = WindowedValue(event("1"), Timestamp(NOW_S), [beam_window.GlobalWindow()])
    assert list(fn.process(windowed.value, windowed)) == []
    (output,) = fn.finish_bundle()
    assert output.value.outcome is Outcome.MERGED
    fn.teardown()
    assert sums(SqliteSpec(f"{tmp_path}/counts.db"), DAY) == {Key("a", NOW_S // 86_400): 1}
