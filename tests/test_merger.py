"""`Merger`, by which `MergeDoFn` and the worker merge: what it adds to the parts that have tests of their own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.errors import MurmurError, PermanentError, RetriesExhausted, StoreUnavailable, TransientError
from murmur_beam.merger import Merger, Message
from murmur_beam.model import DeadLetter, MergeResult, Update
from murmur_beam.monoids import Sum
from murmur_beam.monoids.base import Monoid
from murmur_beam.processor import AtomicDedup, Config
from murmur_beam.spec import resolve
from murmur_beam.state.base import Schema
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock, FaultyStore

Fault = Callable[[Update], Exception | None]


class Shelf:
    """The spec of a store that stands here already, and counts how often it is closed."""

    def __init__(self, fault: Fault = lambda update: None) -> None:
        self.store = FaultyStore(MemoryStore(Sum(), FakeClock()), fault)
        self.store.close = self._close  # type: ignore[method-assign]
        self.closed = 0

    def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> FaultyStore[int]:
        return self.store

    def recorded_schema(self) -> Schema | None:
        return None

    def state(self) -> dict[str, int]:
        return {key.entity: total for key, total in self.store.scan()}

    def _close(self) -> None:
        self.closed += 1


class Recorder:
    """Keeps what it is told of whole records."""

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
    return Merger(resolve(arguments), recorder or Recorder())


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
    assert Message.of_letter(letter) == message
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
