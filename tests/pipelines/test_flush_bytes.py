"""The buffer is bounded by its bytes and by its age, whether its elements become records or dead letters."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from murmur_beam.buffer import FlushLimits
from murmur_beam.errors import ConfigurationError, TransientError
from murmur_beam.merger import Merger, Message, size_of
from murmur_beam.model import DeadLetter, MergeResult, Update
from murmur_beam.monoids import Count
from murmur_beam.options import MergeOptions
from murmur_beam.processor import AtomicDedup, Config
from murmur_beam.pubsub.subscriber import Tally
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER
from murmur_beam.spec import resolve
from murmur_beam.state.base import Schema
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock, FaultyStore
from murmur_beam.transforms import MergeRecords

FOREVER = timedelta(days=1)
MB = 1_000_000


class Shelf(NamedTuple):
    """The spec of a store that exists already."""

    store: FaultyStore[int]

    def open(self, monoid: Any, granularity: timedelta | None = None) -> FaultyStore[int]:
        return self.store

    def recorded_schema(self) -> Schema | None:
        return None


def merger(
    clock: FakeClock,
    limits: FlushLimits,
    *,
    waits: bool = False,
    fault: Callable[[Update], Exception | None] = lambda update: None,
    **more: Any,
) -> Merger[int]:
    """A merger of events such as ``{"id": "1", "k": "a"}``; the store may wait as for a network."""
    store = FaultyStore(MemoryStore(Count(), clock), fault)
    store.waits_for_network = waits  # type: ignore[attr-defined]
    arguments = {
        "key": "k",
        "monoid": "count",
        "event_id": "id",
        "store": Shelf(store),
        "config": Config(dedup=AtomicDedup(), clock=clock, max_attempts=1),
        "flush": limits,
        **more,
    }
    return Merger(resolve(MergeOptions(**arguments)), Tally())


def event(n: int, size: int = 0) -> bytes:
    """A good event of at least this many bytes."""
    return json.dumps({"id": f"e{n}", "k": "a", "padding": "x" * size}).encode()


def run(merging: Merger[int], elements: Iterable[Any]) -> Iterator[tuple[int, list[int]]]:
    """Add all as a bundle does; for each flush the number of elements added before it, and the tokens of its
    results."""
    for n, element in enumerate(elements):
        if merging.add(element, 0, n):
            yield n + 1, [token for token, _ in merging.flush_behind()]


class Shape(NamedTuple):
    """An object with fields, which is not a message."""

    data: int


class Moody:
    """Looks like a message, but its attributes raise."""

    @property
    def data(self) -> bytes:
        raise RuntimeError("not today")

    attributes: Any = None


LETTER = DeadLetter(
    *(b"four", "bytes", {"a": "bc"}, None, None, None, "p", "decode", None, None, [], [], "E", "m", 0, "t")
)


@pytest.mark.parametrize(
    ("element", "size"),
    [
        (b"", 0),
        (b"\x00\xff", 2),
        ("text", 4),
        ("\xfc\U0001f600", 2),
        (Message(b"data", {"key": "value"}, "m1", None, None), 12),
        (PubsubMessage(b"data", {"key": "value"}), 12),
        (PubsubMessage(None, {"k": "v"}), 2),
        (PubsubMessage(b"data", None), 4),
        (LETTER, 7),
        ({"k": "x" * 100}, 0),
        (7, 0),
        (None, 0),
        (Shape(7), 0),
        (Moody(), 0),
    ],
    ids=lambda value: repr(value).partition(" object at ")[0],
)
def test_bytes_of_an_element(element: Any, size: int) -> None:
    """Bytes, text, messages and letters count by their content; other elements are not measured, and nothing raises."""
    assert size_of(element) == size


@pytest.mark.parametrize("limit", [0, -1, 1.5, "64MB", True, None], ids=repr)
def test_a_limit_is_a_number_of_bytes(limit: Any) -> None:
    """Anything else is a mistake that names the argument."""
    with pytest.raises(ConfigurationError, match=r"^bytes: must be an integer of at least 1"):
        FlushLimits(bytes=limit)


@pytest.mark.parametrize(
    "element",
    [
        lambda n: event(n, 1_000)[:1_000],
        lambda n: event(n, 1_000),
        lambda n: Message(event(n, 900), {"more": "y" * 96}, None, None, None),
        lambda n: "z" * 1_000,
        lambda n: {"k": "a", "padding": "x" * 1_000},
    ],
    ids=["rejected bytes", "good bytes", "messages", "rejected text", "rejected dicts, by their letters"],
)
def test_it_is_full_at_its_limit_of_bytes(element: Callable[[int], Any], clock: FakeClock) -> None:
    """Whatever is buffered, with the element that reaches the limit; the count starts anew after each flush."""
    merging = merger(clock, FlushLimits(10**9, 10**9, FOREVER, 4_500))
    flushes = list(run(merging, map(element, range(12))))
    assert [n for n, _ in flushes] in ([5, 10], [4, 9])
    assert [token for _, tokens in flushes for token in tokens] == list(range(flushes[-1][0]))


def test_good_and_bad_elements_share_one_buffer(clock: FakeClock) -> None:
    """Neither has a limit of its own, of bytes or of events."""
    mixed = [event(0, 1_000), b"{" * 1_000, event(1, 1_000), b"{" * 1_000]
    assert [n for n, _ in run(merger(clock, FlushLimits(10**9, 10**9, FOREVER, 4_000)), mixed)] == [4]
    assert [n for n, _ in run(merger(clock, FlushLimits(4, 10**9, FOREVER)), mixed)] == [4]


@pytest.mark.parametrize("waits", [False, True], ids=["memory", "network"])
@pytest.mark.parametrize(
    "bad",
    [b"{", b"\xff", {"k": "no id"}, "text", Message(b'{"id": 1}', {}, None, None, None)],
    ids=["cut off", "not UTF-8", "no id", "text", "message"],
)
def test_letters_of_a_stream_of_bad_records_are_flushed_in_time(bad: Any, waits: bool, clock: FakeClock) -> None:
    """When the first of them reaches the age limit, though no record is buffered; none stays behind."""

    def stream() -> Iterator[Any]:
        for _ in range(51):
            clock.time += 0.25
            yield bad

    merging = merger(clock, FlushLimits(age=timedelta(seconds=1)), waits=waits)
    flushes = list(run(merging, stream()))
    assert [n for n, _ in flushes] == list(range(5, 51, 5))
    assert [token for _, tokens in flushes for token in tokens] == list(range(50))
    assert [token for token, _ in merging.flush()] == [50]
    merging.close()


@pytest.mark.parametrize("first", [b"{", event(0)], ids=["bad", "good"])
def test_the_age_counts_from_the_first_element_of_either_kind(first: bytes, clock: FakeClock) -> None:
    """A good one after a bad one, or a bad one after a good one, does not restart it."""
    merging = merger(clock, FlushLimits(age=timedelta(seconds=1)))
    assert not merging.add(first, 0, 0)
    clock.time += 0.6
    assert not merging.add(b"{", 0, 1)
    clock.time += 0.6
    assert merging.add(event(1), 0, 2)
    assert sorted(token for token, _ in merging.flush()) == [0, 1, 2]
    clock.time += 0.9
    assert not merging.add(b"{", 0, 3)


@pytest.mark.parametrize("end", ["flush", "clear"])
def test_cleared_elements_no_longer_count(end: str, clock: FakeClock) -> None:
    """As when a bundle has failed and is delivered again."""
    merging = merger(clock, FlushLimits(10**9, 10**9, FOREVER, 1_000))
    for n in range(3):
        assert not merging.add(b"{" * 400, 0, 0)
        assert not merging.add(event(n, 400), 0, 1)
        getattr(merging, end)()


def test_letters_that_fail_again_count_by_their_payload(clock: FakeClock) -> None:
    """Replayed letters are elements like others, whether they make a record or not."""
    letters = []
    failing = merger(clock, FlushLimits(), fault=lambda update: TransientError("busy"))
    for n in range(4):
        failing.add(event(n, 1_000), 0, n)
    letters += [letter for _, letter in failing.flush()]
    assert all(isinstance(letter, DeadLetter) for letter in letters)
    again = merger(clock, FlushLimits(10**9, 10**9, FOREVER, 2_000))
    assert [n for n, _ in run(again, letters)] == [2, 4]
    bad = [letter._replace(payload=b"{" * 1_000, event_id=None) for letter in letters]
    assert [n for n, _ in run(again, bad)] == [2, 4]


@pytest.mark.parametrize("waits", [False, True], ids=["memory", "network"])
def test_a_hundred_of_ten_megabytes_exceed_the_limit_by_one_at_most(waits: bool, clock: FakeClock) -> None:
    """However many are rejected, the buffered bytes stay bounded, and each is returned once."""
    limit = 30 * MB
    merging = merger(clock, FlushLimits(age=FOREVER, bytes=limit), waits=waits)
    out = []
    tracemalloc.start()
    for n in range(100):
        if merging.add(bytes(10 * MB), 0, n):
            out += [token for token, _ in merging.flush_behind()]
    out += [token for token, _ in merging.flush()]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert out == list(range(100))
    # One element more than the limit, and the one that is being made.
    assert most < limit + 2 * 10 * MB + MB
    merging.close()


ahead: list[int] = []
"""For each returned letter: bad elements made so far, minus the letters before it."""
made = [0]


class Source(beam.DoFn):
    """Bad elements, counted as they are made."""

    def process(self, n: int) -> Iterator[bytes]:
        for _ in range(n):
            made[0] += 1
            yield b"{" * 1_000


class Note(beam.DoFn):
    """Records how far the source is ahead."""

    def process(self, letter: DeadLetter) -> None:
        ahead.append(made[0] - len(ahead))


def test_letters_are_output_before_their_bundle_ends() -> None:
    """On a runner: of one bundle of bad elements no more are held at a time than the limit allows."""
    with beam.Pipeline(runner=IN_PROCESS_RUNNER) as p:
        elements = p | beam.Create([300]) | beam.ParDo(Source())
        merged = elements | MergeRecords(
            key="k", monoid="count", event_id="id", store="memory://leave", flush=FlushLimits(bytes=10_000)
        )
        _ = merged.dead_letter | beam.ParDo(Note())
    assert len(ahead) == 300
    assert max(ahead) == 10


sizes = st.integers(0, 50)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), sizes)), st.integers(1, 200), st.integers(1, 10))
def test_nothing_is_lost_whatever_the_limits(elements: list[tuple[bool, int]], n_bytes: int, events: int) -> None:
    """Each element is returned once, good or bad, and no flush holds more than the limit and its last element."""
    merging = merger(FakeClock(), FlushLimits(events, 10**9, FOREVER, n_bytes))
    made = [event(n, size) if good else b"{" * size for n, (good, size) in enumerate(elements)]
    came: dict[int, MergeResult | DeadLetter] = {}
    flushed_at = 0
    for n, element in enumerate(made):
        if merging.add(element, 0, n):
            results = dict(merging.flush())
            assert sorted(results) == list(range(flushed_at, n + 1))
            assert sum(map(len, made[flushed_at:n])) < n_bytes
            assert len(results) <= events
            flushed_at = n + 1
            came |= results
    came |= dict(merging.flush())
    assert {n: isinstance(result, MergeResult) for n, result in came.items()} == {
        n: good for n, (good, _) in enumerate(elements)
    }
