"""`Merger`, by which `MergeDoFn` and the worker merge: what it adds to the parts that have tests of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.errors import (
    MurmurError,
    PermanentError,
    RetriesExhausted,
    SchemaMismatch,
    StoreUnavailable,
    TransientError,
)
from murmur_beam.merger import Merger, message_of
from murmur_beam.model import DeadLetter, MergeResult, Message, Update
from murmur_beam.monoids import Sum
from murmur_beam.monoids.base import Monoid
from murmur_beam.options import MergeOptions
from murmur_beam.processor import AtomicDedup, Config
from murmur_beam.spec import resolve
from murmur_beam.state.base import Schema
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock, FaultyStore
from tests.support.recording import RecordingStore

Fault = Callable[[Update], Exception | None]


class Shelf:
    """The spec of a store that stands here already, and counts how often it is closed."""

    def __init__(self, fault: Fault = lambda update: None) -> None:
        self.store = FaultyStore(MemoryStore(Sum(), FakeClock()), fault)
        self.store.close = self._close  # type: ignore[method-assign]
        self.closed = 0
        self.store.waits_for_network = False  # type: ignore[attr-defined]

    def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> FaultyStore[int]:
        return self.store

    def recorded_schema(self) -> Schema | None:
        return None

    def state(self) -> dict[str, int]:
        return {key.entity: total for key, total in self.store.scan()}

    def _close(self) -> None:
        self.closed += 1


class Recorder:
    """Keeps the counts of whole records."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def count(self, name: str, n: int) -> None:
        if n:
            self.counts[name] = self.counts.get(name, 0) + n

    def record_event(self, pipeline: str) -> None:
        self.count(pipeline, 1)

    def record_error(self, pipeline: str, err: BaseException) -> None:
        """Not looked at."""

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None:
        """Not looked at."""

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        """Not looked at."""


class Batches(Recorder):
    """Keeps the batches, too."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[str, str, int, float]] = []

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        self.batches.append((pipeline, mode, n, seconds))


def merger(shelf: Shelf, recorder: Recorder | None = None, **more: Any) -> Merger[str]:
    """Of events such as ``{"id": "1", "k": "a"}``, which add ``v``, or 1, to ``k``."""
    arguments = {
        "key": "k",
        "value": lambda record: record.get("v", 1),
        "event_id": "id",
        "config": Config(dedup=AtomicDedup(), clock=FakeClock()),
        "store": shelf,
        **more,
    }
    return Merger(resolve(MergeOptions(**arguments)), recorder or Recorder())


def test_a_flush_is_recorded_with_its_size_and_time() -> None:
    """Its size is the number of records, and its time includes the waits between tries. An empty flush is not recorded,
    and does not call the store.
    """
    clock, tries = FakeClock(), iter([TransientError("busy")])
    shelf, recorder = Shelf(lambda update: next(tries, None)), Batches()
    merging = merger(shelf, recorder, config=Config(dedup=AtomicDedup(), clock=clock))
    for i in range(7):
        merging.add({"id": str(i), "k": "a"}, 0, str(i))
    assert len(list(merging.flush())) == 7
    assert recorder.batches == [("murmur", "flush", 7, pytest.approx(sum(clock.waits)))]
    assert sum(clock.waits) > 0
    assert list(merging.flush()) == []
    assert len(recorder.batches) == 1


def test_each_element_comes_out_with_its_token() -> None:
    """Merged, duplicate or a dead letter, and counted once; nothing comes out a second time."""
    shelf, recorder = Shelf(), Recorder()
    merging = merger(shelf, recorder)
    merging.add({"id": "1", "k": "a"}, 0, "first")
    merging.add({"id": "1", "k": "a"}, 0, "again")
    merging.add({"k": "a"}, 0, "bad")
    results = dict(merging.flush())
    assert isinstance(results["bad"], DeadLetter)
    outcomes = {token: result.outcome for token, result in results.items() if isinstance(result, MergeResult)}
    assert outcomes == {"first": "merged", "again": "duplicate"}
    assert list(merging.flush()) == []
    counts = {name.removeprefix("murmur:record_"): n for name, n in recorder.counts.items() if "record_" in name}
    assert counts == {"merged": 1, "duplicate": 1}
    assert recorder.counts["murmur:dead_letter"] == 1
    assert shelf.state() == {"a": 1}


def test_what_a_store_that_appends_has_is_recorded() -> None:
    """The result names all keys of a record. After a failure the dead letter names the failed keys, which a replay
    records.
    """
    shelf, recorder = Shelf(lambda update: TransientError("busy") if update.key.entity == down else None), Recorder()
    shelf.store.store = RecordingStore(shelf.store.store)
    merging = merger(shelf, recorder, key=None, keys=lambda record: record["k"])
    down = "b"
    for token in ("first", "again"):
        merging.add({"id": "1", "k": ["a", "c"]}, 0, token)
    merging.add({"id": "2", "k": ["a", "b"]}, 0, "failed")
    merging.add({"id": "3", "k": []}, 0, "no keys")
    results = dict(merging.flush())
    letter = results.pop("failed")
    assert isinstance(letter, DeadLetter)
    assert (letter.keys, letter.failed_keys) == (["a", "b"], ["b"])
    told = {token: (result.outcome, result.merged_keys) for token, result in results.items() if result != letter}
    assert told == {"first": ("recorded", ("a", "c")), "again": ("recorded", ("a", "c")), "no keys": ("merged", ())}
    assert shelf.state() == {"a": 2, "c": 1}
    down = ""
    merging.add(letter, 0, "replayed")
    ((_, result),) = merging.flush()
    assert isinstance(result, MergeResult)
    assert (result.element, result.outcome, result.merged_keys) == ({"id": "2", "k": ["a", "b"]}, "recorded", ("b",))
    assert shelf.state() == {"a": 2, "b": 1, "c": 1}
    counts = {name: n for name, n in recorder.counts.items() if n}
    assert counts == {
        "murmur": 6,  # a and c twice, a of the letter, then b
        "murmur:retry": 2,
        "murmur:dead_letter": 1,
        "murmur:record_recorded": 3,
        "murmur:record_merged": 1,
    }


def test_what_is_cleared_is_forgotten() -> None:
    """Neither records nor what made no record may come out later, as when their batch is delivered again."""
    shelf = Shelf()
    merging = merger(shelf)
    merging.add({"id": "1", "k": "a"}, 0, "good")
    merging.add({}, 0, "bad")
    merging.clear()
    assert list(merging.flush()) == []
    assert shelf.state() == {}


@pytest.mark.parametrize(
    ("fault", "on_exhausted", "raised"),
    [
        (StoreUnavailable("gone"), "dead_letter", StoreUnavailable),
        (StoreUnavailable("gone"), "raise", StoreUnavailable),
        (TransientError("busy"), "raise", RetriesExhausted),
        (TransientError("busy"), "dead_letter", None),
        (PermanentError("no"), "raise", None),
    ],
    ids=repr,
)
def test_flush_raises_before_anything_can_be_taken_for_done(
    fault: Exception, on_exhausted: str, raised: type[Exception] | None
) -> None:
    """An outage that must make no dead letters raises from `flush` itself, not from its results, and counts nothing."""
    shelf, recorder = Shelf(lambda update: fault if update.key.entity == "b" else None), Recorder()
    merging = merger(shelf, recorder, on_exhausted=on_exhausted)
    merging.add({"id": "1", "k": "a"}, 0, "good")
    merging.add({"id": "2", "k": "b"}, 0, "bad")
    if raised is None:
        results = dict(merging.flush())
        assert isinstance(results["bad"], DeadLetter)
        assert isinstance(results["good"], MergeResult)
        return
    with pytest.raises(raised):
        merging.flush()
    assert "murmur:record_merged" not in recorder.counts
    assert "murmur:dead_letter" not in recorder.counts
    assert shelf.state() == {"a": 1}, "other keys keep their writes"


@pytest.mark.parametrize("published", [None, datetime(2026, 11, 23, 10, tzinfo=timezone.utc)], ids=str)
@pytest.mark.parametrize("ordering_key", [None, "o"])
def test_a_message_comes_back_out_of_its_letter(published: datetime | None, ordering_key: str | None) -> None:
    """As it was, and `Merger` reads it again without Beam."""
    message = Message(b'{"v": 3}', {"colour": "red"}, "m1", published, ordering_key)
    shelf = Shelf(lambda update: TransientError("busy"))
    fields = {"key": "attribute:colour", "value": "v", "event_id": "message:id"}
    merging = merger(shelf, **fields)
    merging.add(message, 0, "token")
    ((_, letter),) = merging.flush()
    assert isinstance(letter, DeadLetter)
    assert message_of(letter) == message
    shelf.store.fault = lambda update: None
    merging.add(letter, 0, "token")
    ((_, result),) = merging.flush()
    assert isinstance(result, MergeResult)
    assert (result.element, result.outcome) == (message, "merged")
    assert shelf.state() == {"red": 3}


def test_stores_are_closed(tmp_path: Path) -> None:
    """At the end, and also if the cache cannot be opened after the store was."""
    shelf = Shelf()
    merger(shelf).close()
    assert shelf.closed == 1
    with pytest.raises(MurmurError):
        merger(shelf, cache=f"sqlite:///{tmp_path}/none/cache.db")
    assert shelf.closed == 2


class Gate:
    """A store that waits, as if for a network, until the test lets it go on."""

    def __init__(self) -> None:
        self.shelf = Shelf(self._pass)
        self.shelf.store.waits_for_network = True  # type: ignore[attr-defined]
        self.reached = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        self.error: Exception | None = None
        self.merging = 0

    def _pass(self, update: Update) -> Exception | None:
        self.merging += 1
        assert self.merging == 1, "one flush at a time"
        self.reached.release()
        assert self.open.acquire(timeout=20)
        self.merging -= 1
        return self.error


def tokens(results: Iterator[tuple[str, MergeResult | DeadLetter]]) -> list[str]:
    """Those of the elements whose results these are."""
    return [token for token, _ in results]


def test_records_are_taken_while_a_flush_is_under_way() -> None:
    """Its results come with the next flush, each once and in order, what made no record among them."""
    gate = Gate()
    merging = merger(gate.shelf)
    merging.add({"id": "1", "k": "a"}, 0, "first")
    merging.add({"k": "a"}, 0, "bad")
    assert tokens(merging.flush_behind()) == []
    assert gate.reached.acquire(timeout=20)
    merging.add({"id": "2", "k": "a"}, 0, "second")
    assert gate.shelf.state() == {}
    gate.open.release(3)
    assert tokens(merging.flush_behind()) == ["bad", "first"]
    merging.add({"id": "3", "k": "a"}, 0, "third")
    assert tokens(merging.flush()) == ["second", "third"]
    assert tokens(merging.flush()) == tokens(merging.flush_behind()) == []
    merging.close()
    assert gate.shelf.state() == {"a": 3}


def test_what_is_cleared_under_way_comes_to_its_end_first() -> None:
    """Or it would be merged at the same time as what comes again; its results are dropped."""
    gate = Gate()
    merging = merger(gate.shelf)
    merging.add({"id": "1", "k": "a"}, 0, "first")
    merging.flush_behind()
    assert gate.reached.acquire(timeout=20)
    clearing = threading.Thread(target=merging.clear)
    clearing.start()
    clearing.join(0.05)
    assert clearing.is_alive()
    gate.open.release()
    clearing.join(20)
    assert not clearing.is_alive()
    assert gate.shelf.state() == {"a": 1}
    assert tokens(merging.flush()) == []
    merging.close()


def test_a_store_is_not_closed_under_a_flush() -> None:
    """What is under way when a worker ends is merged; the thread ends with it."""
    gate = Gate()
    merging = merger(gate.shelf)
    before = threading.active_count()
    merging.add({"id": "1", "k": "a"}, 0, "first")
    merging.flush_behind()
    assert gate.reached.acquire(timeout=20)
    closing = threading.Thread(target=merging.close)
    closing.start()
    closing.join(0.05)
    assert gate.shelf.closed == 0
    gate.open.release()
    closing.join(20)
    assert gate.shelf.closed == 1
    assert gate.shelf.state() == {"a": 1}
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (StoreUnavailable("gone"), StoreUnavailable),
        (SchemaMismatch("other"), SchemaMismatch),
        (TransientError("busy"), RetriesExhausted),
    ],
    ids=repr,
)
@pytest.mark.parametrize("end", ["flush", "flush_behind"])
def test_an_outage_of_a_flush_under_way_comes_out_at_the_next(
    error: Exception, raised: type[Exception], end: str
) -> None:
    """Once, with nothing left behind that could be taken for done."""
    gate = Gate()
    gate.error = error
    gate.open.release(99)
    recorder = Recorder()
    merging = merger(gate.shelf, recorder, on_exhausted="raise")
    merging.add({"id": "1", "k": "a"}, 0, "first")
    merging.flush_behind()
    merging.add({"id": "2", "k": "a"}, 0, "second")
    with pytest.raises(raised):
        getattr(merging, end)()
    gate.error = None
    assert tokens(merging.flush()) == []
    assert gate.shelf.state() == {}
    assert not any("record_" in name for name in recorder.counts)
    merging.close()


@pytest.mark.parametrize("waits", [False, True])
def test_no_thread_is_made_without_need(waits: bool) -> None:
    """Neither for a store in this process, nor for what fits into one buffer."""
    shelf = Shelf()
    shelf.store.waits_for_network = waits  # type: ignore[attr-defined]
    merging = merger(shelf)
    before = threading.active_count()
    merging.add({"id": "1", "k": "a"}, 0, "first")
    assert tokens(merging.flush() if waits else merging.flush_behind()) == ["first"]
    assert threading.active_count() == before
    merging.close()
