"""`MergeRecords` on a real runner, and `MergeDoFn` driven as a runner drives it, bundle by bundle."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import apache_beam as beam
import pytest
from apache_beam.coders import registry
from apache_beam.internal import pickler
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms import window as beam_window
from apache_beam.transforms.environments import SubprocessSDKEnvironment
from apache_beam.typehints.schemas import named_fields_from_element_type, schema_from_element_type
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import RecordingSpec, RecordingStore
from strategies import BIG_KEYS, START, Event, FaultPlan, Scenario, scenarios

import murmur_beam
from murmur_beam import transforms
from murmur_beam.coalescer import FlushLimits
from murmur_beam.errors import (
    ConfigurationError,
    PermanentError,
    RetriesExhausted,
    SchemaMismatch,
    StoreUnavailable,
    TransientError,
)
from murmur_beam.model import DeadLetter, Key, MergeResult, Outcome, Update
from murmur_beam.monoids import Count, Custom, Max, Sum
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.sum import INT64_MAX
from murmur_beam.processor import AtomicDedup, Config, NoDedup
from murmur_beam.reader import Reader
from murmur_beam.spec import resolve
from murmur_beam.state.base import Result, Schema, Store, StoreSpec
from murmur_beam.state.memory import MemorySpec, MemoryStore
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import FakeClock, FaultyStore
from murmur_beam.transforms import DEAD_LETTER, MERGED, MergeDoFn, MergeRecords
from murmur_beam.windows import WindowConfig, daily, hourly

DAY = timedelta(days=1)
NOW_S = int(START.timestamp())
BUSY = TransientError("busy")
FIELDS: dict[str, Any] = {"key": "k", "value": "v", "event_id": "id"}
"""The arguments that fit `event`."""


def event(event_id: object, key: object = "a", value: object = 1, **more: object) -> dict[str, object]:
    """An element that `FIELDS` fits."""
    return {"id": event_id, "k": key, "v": value, **more}


def config(**changes: Any) -> Config:
    """Exactly once, two tries, at a time that stands still."""
    return Config(**{"max_attempts": 2, "dedup": AtomicDedup(), "clock": FakeClock(jitter=0), **changes})


# Stores that a test can reach into. The runner works in threads of this process, so what is pickled is a name only.

_shelf: dict[str, Store[Any]] = {}


@dataclass(frozen=True)
class OnShelf:
    """A store that the test has put on the shelf, under a name that can be pickled."""

    name: str
    opened: ClassVar[Counter[str]] = Counter()

    @classmethod
    def put(cls, store: Store[Any]) -> OnShelf:
        """Under a name of its own."""
        spec = cls(uuid.uuid4().hex)
        _shelf[spec.name] = store
        return spec

    def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> Store[Any]:
        self.opened[self.name] += 1
        return _shelf[self.name]

    def recorded_schema(self) -> Schema | None:
        return None


class Faulty(FaultyStore[int]):
    """Sums in memory that fail by a plan, count how often they are closed, and keep a ledger of what has merged.

    The ledger stands below the faults: it also knows of writes whose answer was lost. One that ``appends`` answers
    RECORDED.
    """

    def __init__(
        self,
        clock: FakeClock | None = None,
        fault: Callable[[Update], Exception | None] = lambda update: None,
        lost: Callable[[Update], Exception | None] = lambda update: None,
        *,
        appends: bool = False,
    ) -> None:
        self.ledger = Ledger(MemoryStore(Sum(), clock or FakeClock()))
        super().__init__(RecordingStore(self.ledger) if appends else self.ledger, fault, lost)
        self.spec = OnShelf.put(self)
        self.closed = 0
        self.waits_for_network = False

    def close(self) -> None:
        self.closed += 1

    def state(self) -> dict[tuple[str, int], int]:
        """All there is, by entity and bucket."""
        return {tuple(key): total for key, total in self.scan()}


class Ledger(FaultyStore[int]):
    """Notes each event that a store has merged under each key."""

    def __init__(self, store: Store[int]) -> None:
        super().__init__(store)
        self.merged: dict[tuple[Key, str | None], int] = {}

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        results = super().merge_updates(updates)
        for update, result in zip(updates, results, strict=True):
            if result is Outcome.MERGED:
                assert (update.key, update.event_id) not in self.merged, f"{update} merged twice"
                self.merged[update.key, update.event_id] = update.delta
        return results


def failing(**times: int) -> Callable[[Update], Exception | None]:
    """A plan of faults: so many writes to a key fail, then all goes well."""

    def fault(update: Update) -> Exception | None:
        left = times.get(update.key.entity, 0)
        times[update.key.entity] = left - 1
        return BUSY if left > 0 else None

    return fault


@pytest.fixture
def store() -> Iterator[Faulty]:
    """An empty store of sums without faults."""
    faulty = Faulty()
    yield faulty
    del _shelf[faulty.spec.name]


@pytest.fixture
def memory() -> Iterator[MemorySpec]:
    """An empty store that URIs can name."""
    spec = MemorySpec(uuid.uuid4().hex, FakeClock())
    yield spec
    spec.drop()


def sums(spec: StoreSpec, granularity: timedelta | None = None) -> dict[Key, int]:
    """All there is in a store of sums, or counts."""
    with Reader.open(spec, None, granularity and WindowConfig(granularity)) as reader:
        return dict(reader.store.scan())


@pytest.fixture
def lasting(tmp_path: Path) -> SqliteSpec:
    """An empty store that command lines can name."""
    return SqliteSpec(str(tmp_path / "lasting.db"))


# A runner.


class Out(NamedTuple):
    """One element of an output, in one of its windows."""

    value: Any
    timestamp: Timestamp
    window: Any


class Ran(NamedTuple):
    """What a pipeline gave: both outputs and the counters of `MergeRecords`."""

    merged: list[Out]
    dead: list[Out]
    counters: dict[str, int]

    @property
    def results(self) -> list[MergeResult]:
        """Elements of the main output."""
        return [out.value for out in self.merged]

    @property
    def letters(self) -> list[DeadLetter]:
        """Elements of the other one."""
        return [out.value for out in self.dead]

    @property
    def letter(self) -> DeadLetter:
        """The only dead letter there is."""
        (letter,) = self.letters
        return letter

    def outcomes(self) -> Counter[str]:
        """How many of each, dead letters among them."""
        return Counter([str(result.outcome) for result in self.results] + ["dead_letter"] * len(self.dead))


_collected: dict[str, list[Out]] = {}


class Collect(beam.DoFn):
    """Keeps what comes in a list of this process, and undoes what a coder may have done: types that are made up from a
    schema become ours, and the keys of a result tuples."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def process(self, element: Any, windowed: WindowedValue = beam.DoFn.WindowedValueParam) -> None:
        fields = getattr(element, "_fields", None)
        if fields == MergeResult._fields:
            element = MergeResult(*element)._replace(keys=tuple(element.keys), merged_keys=tuple(element.merged_keys))
        elif fields == DeadLetter._fields:
            element = DeadLetter(*element)
        for each in windowed.windows:
            _collected.setdefault(self._name, []).append(Out(element, windowed.timestamp, each))


def collect(collection: beam.PCollection, label: str) -> str:
    """Attach a `Collect`; the name to `collected`."""
    name = uuid.uuid4().hex
    _ = collection | f"Collect {label}" >> beam.ParDo(Collect(name))
    return name


def collected(name: str) -> list[Out]:
    """What has come; once."""
    return _collected.pop(name, [])


def new_pipeline(*flags: str, runner: Any = None) -> beam.Pipeline:
    """On the runner that is part of Beam, in this process."""
    return beam.Pipeline(runner=runner or FnApiRunner(), options=PipelineOptions(list(flags)))


def counters_of(result: Any) -> dict[str, int]:
    """Beam's counters of `MergeRecords`, summed over the steps of a pipeline; those that count something."""
    counts: Counter[str] = Counter()
    for counter in result.metrics().query(MetricsFilter().with_namespace("murmur_beam"))["counters"]:
        counts[counter.key.metric.name] += counter.result or 0  # Prism says None for nothing
    return {name: n for name, n in counts.items() if n}


def stamped(element: Any) -> Any:
    """Give a tuple of element and seconds its timestamp; anything else stays."""
    return beam_window.TimestampedValue(*element) if type(element) is tuple else element


def run(elements: Iterable[Any], *flags: str, window_into: Any = None, **arguments: Any) -> Ran:
    """Run a pipeline of one `MergeRecords`; elements may be tuples with their timestamps in seconds."""
    pipeline = new_pipeline(*flags)
    source = pipeline | beam.Create(list(elements)) | beam.Map(stamped)
    if window_into is not None:
        source |= beam.WindowInto(window_into)
    outputs = source | MergeRecords(**arguments)
    merged, dead = collect(outputs.merged, "merged"), collect(outputs.dead_letter, "dead")
    result = pipeline.run()
    result.wait_until_finish()
    return Ran(collected(merged), collected(dead), counters_of(result))


def test_each_element_becomes_one_output(store: Faulty) -> None:
    """Merged, duplicate, expired or dead letter: each element must come out once, as one of them."""
    old = event("old", t=NOW_S - 3 * 86_400)
    elements = [event("1", t=NOW_S), event("1", t=NOW_S), event("2", t=NOW_S), old, event("3", value="x", t=NOW_S)]
    ran = run(elements, **FIELDS, event_time="t", window=daily(2 * DAY), store=store.spec, config=config())
    assert ran.outcomes() == {"merged": 2, "duplicate": 1, "expired": 1, "dead_letter": 1}
    today = NOW_S // 86_400
    by_outcome = {str(result.outcome): result for result in ran.results if result.event_id != "2"}
    assert by_outcome == {
        "merged": MergeResult(elements[0], "merged", "1", ("a",), ("a",), today),
        "duplicate": MergeResult(elements[0], "duplicate", "1", ("a",), (), today),
        "expired": MergeResult(old, "expired", "old", ("a",), (), today - 3),
    }
    assert json.loads(ran.letter.payload) == elements[4]
    assert store.state() == {("a", today): 2}


@pytest.mark.parametrize("limit", [1, 3, 5000])
@pytest.mark.parametrize(
    "windowing",
    [None, beam_window.FixedWindows(60), beam_window.SlidingWindows(60, 20)],
    ids=["global", "fixed", "sliding"],
)
def test_outputs_keep_timestamp_and_windows(store: Faulty, windowing: Any, limit: int) -> None:
    """Whatever comes out, and whenever it is flushed, must come out once in each window of its element, at its time."""
    elements = [event(str(i), key="big" if i > 6 else "a") for i in range(9)]
    elements[2]["v"] = "bad"
    elements[7]["v"] = elements[8]["v"] = INT64_MAX
    ran = run(
        [(element, 7 * i) for i, element in enumerate(elements)],
        window_into=windowing,
        **FIELDS,
        store=store.spec,
        flush=FlushLimits(events=limit),
    )
    assign = (windowing or beam_window.GlobalWindows()).assign
    expected = Counter(
        (str(i), 7 * i, w) for i in range(9) for w in assign(beam_window.WindowFn.AssignContext(Timestamp(7 * i)))
    )
    assert Counter((out.value.event_id, int(out.timestamp), out.window) for out in ran.merged + ran.dead) == expected
    assert {letter.stage for letter in ran.letters} == {"extract", "merge"}
    assert store.state() == {("a", 0): 6, ("big", 0): INT64_MAX}


def test_the_command_line_alone_is_enough(lasting: SqliteSpec) -> None:
    """`MergeRecords` without any argument must take them all from the pipeline's options."""
    flags = [
        "--murmur_name=clicks",
        f"--murmur_store={lasting}",
        "--murmur_key=page/{k}",
        "--murmur_key==all",
        "--murmur_value=v",
        "--murmur_event_id=id",
        "--murmur_event_time=t",
        "--murmur_window=hourly",
        "--murmur_retention=90d",
        "--murmur_decode=json",
        "--murmur_max_attempts=1",
        "--murmur_backoff_base=1ms",
        "--murmur_backoff_max=2ms",
        "--murmur_flush_events=2",
        "--murmur_flush_rows=2",
        "--murmur_flush_age=1s",
        "--murmur_on_exhausted=raise",
        "--murmur_dedup=exact",
    ]
    now = datetime.now(timezone.utc)
    times = [now.isoformat(), now.isoformat(), (now - 100 * DAY).isoformat()]
    ran = run([json.dumps(event(i, value=5, t=t)).encode() for i, t in enumerate(times)], *flags)
    assert ran.outcomes() == {"merged": 2, "expired": 1}
    bucket = int(now.timestamp() // 3600)
    state = sums(lasting, timedelta(hours=1))
    assert state == {Key("all", bucket): 10, Key("page/a", bucket): 10}
    assert ran.counters["clicks:record_merged"] == 2


def test_arguments_win_over_the_command_line(lasting: SqliteSpec) -> None:
    """An argument given in Python must replace the flag; what is not given still comes from the command line."""
    flags = [
        "--murmur_name=flag",
        f"--murmur_store={lasting}",
        "--murmur_key=wrong",
        "--murmur_key=wrong_too",
        "--murmur_value=wrong",
        "--murmur_event_id=id",
    ]
    ran = run([event("1")], *flags, name="argument", key="k", value="v")
    assert ran.outcomes() == {"merged": 1}
    assert ran.counters == {"argument": 1, "argument:record_merged": 1}
    assert sums(lasting) == {Key("a"): 1}
    assert run([event("2")], *flags, keys=["k", "=all"], value="v").results[0].merged_keys == ("a", "all")


def test_dedup_off_counts_each_delivery(lasting: SqliteSpec) -> None:
    """With ``--murmur_dedup=none`` no event id must be needed, and each delivery must count."""
    ran = run([{"k": "a"}] * 3, f"--murmur_store={lasting}", "--murmur_dedup=none", key="k", monoid=Count())
    assert ran.outcomes() == {"merged": 3}
    assert sums(lasting) == {Key("a"): 3}


@pytest.mark.parametrize(
    "keys",
    [["page/{k}", "=all", "page/{k}"], lambda element: [f"page/{element['k']}", "all"]],
    ids=["templates", "function"],
)
def test_several_keys(store: Faulty, keys: Any) -> None:
    """A record must be folded into each of its keys, once, and the output must name them."""
    ran = run([event("1", value=2), event("2", "b", 3)], keys=keys, value="v", event_id="id", store=store.spec)
    assert store.state() == {("all", 0): 5, ("page/a", 0): 2, ("page/b", 0): 3}
    for result in ran.results:
        assert result.keys == result.merged_keys == (f"page/{result.element['k']}", "all")


def test_no_keys(store: Faulty) -> None:
    """An element without keys must come out as merged, and write nothing."""
    ran = run([event("1")], keys=lambda element: [], value="v", event_id="id", store=store.spec)
    assert ran.results == [MergeResult(event("1"), Outcome.MERGED, "1", (), (), 0)]
    assert store.state() == {}


def test_functions_for_all_fields(store: Faulty) -> None:
    """Lambdas must reach the workers and be called with the decoded record."""
    ran = run(
        [b"1;a;5", b"2;a;6"],
        decode=lambda element: element.decode().split(";"),
        key=lambda fields: fields[1],
        value=lambda fields: int(fields[2]),
        event_id=lambda fields: fields[0],
        event_time=lambda fields: START,
        window=daily(),
        store=store.spec,
    )
    assert sorted(result.element for result in ran.results) == [b"1;a;5", b"2;a;6"]
    assert store.state() == {("a", NOW_S // 86_400): 11}


def test_exhausted_records_can_fail_the_pipeline(store: Faulty) -> None:
    """With ``on_exhausted="raise"`` a record whose tries are used up must fail the pipeline, and say why."""
    store.fault = failing(a=2)
    with pytest.raises(RetriesExhausted, match=r"event '1' failed 2 times for 'a'") as raised:
        run([event("1"), event("2", "b")], **FIELDS, store=store.spec, config=config(), on_exhausted="raise")
    assert "RetriesExhausted: murmur: event '1' failed 2 times for 'a': TransientError: busy" in "".join(
        traceback.format_exception(raised.value)
    )
    assert store.state() == {("b", 0): 1}, "other keys keep their writes"
    again = run([event("1"), event("2", "b")], **FIELDS, store=store.spec, config=config(), on_exhausted="raise")
    assert again.outcomes() == {"merged": 1, "duplicate": 1}
    assert store.state() == {("a", 0): 1, ("b", 0): 1}


def test_bad_records_are_dead_letters_even_if_exhausted_ones_raise(store: Faulty) -> None:
    """No redelivery cures a permanent error: it must go to the dead letters whatever ``on_exhausted`` says."""
    store.fault = lambda update: PermanentError("no") if update.key.entity == "b" else None
    elements = [event("1"), event("2", "b"), event("3", value=None), b"{"]
    ran = run(elements, **FIELDS, store=store.spec, config=config(), on_exhausted="raise")
    assert ran.outcomes() == {"merged": 1, "dead_letter": 3}
    assert {(letter.stage, letter.attempts) for letter in ran.letters} == {("merge", 1), ("extract", 0), ("decode", 0)}


@pytest.mark.parametrize("on_exhausted", ["dead_letter", "raise"])
@pytest.mark.parametrize("error", [StoreUnavailable("no such table"), SchemaMismatch("another monoid")], ids=repr)
def test_a_store_that_cannot_be_used_raises(store: Faulty, error: Exception, on_exhausted: str) -> None:
    """It is no fault of a record: whatever ``on_exhausted`` says, it must not empty the source into the dead letters,
    but fail the pipeline with the store's own words, even if only some of the keys meet it."""
    store.fault = lambda update: error if update.key.entity == "a" else None
    with pytest.raises(type(error), match=f"^{error}"):
        run([event("1", "b"), event("2")], **FIELDS, store=store.spec, config=config(), on_exhausted=on_exhausted)
    store.fault = lambda update: None
    again = run([event("1", "b"), event("2")], **FIELDS, store=store.spec, config=config(), on_exhausted=on_exhausted)
    assert again.outcomes() == {"merged": 1, "duplicate": 1}


def test_an_option_that_is_misspelt_is_refused(memory: MemorySpec) -> None:
    """Beam passes over flags it does not know; a window left out for a typing error would count into one bucket."""
    pipeline = new_pipeline("--murmur_widnow=hourly")
    with pytest.raises(ConfigurationError, match=r"--murmur_widnow: is no option"):
        _ = pipeline | beam.Create([]) | MergeRecords(**FIELDS, store=memory)


def test_dead_letters_replay_through_the_same_transform(store: Faulty) -> None:
    """Of a record that failed half way only the failed keys must be merged, and the original element come out."""
    store.fault = failing(b=3)
    arguments = {
        "keys": ["k", "other", "=all"],
        "value": "v",
        "event_id": "id",
        "store": store.spec,
        "config": config(max_attempts=1),
        "name": "p",
    }
    original = event("1", other="b", value=7)
    pipeline = new_pipeline()
    first = pipeline | beam.Create([original]) | "first" >> MergeRecords(**arguments)
    second = first.dead_letter | beam.Reshuffle() | "second" >> MergeRecords(**arguments)
    names = [collect(out, str(i)) for i, out in enumerate([first.merged, second.merged, second.dead_letter])]
    pipeline.run().wait_until_finish()
    assert [collected(name) for name in names[:2]] == [[], []]
    ((letter, *_),) = collected(names[2])
    assert (letter.keys, letter.failed_keys, letter.event_id) == (["a", "b", "all"], ["b"], "1")
    assert (letter.error_type, letter.error_message, letter.attempts) == ("TransientError", "busy", 1)
    assert store.state() == {("a", 0): 7, ("all", 0): 7}

    still_down = run([letter], **arguments)
    assert still_down.letter._replace(failed_at="") == letter._replace(failed_at="")
    healed = run([letter, letter], **arguments)
    assert healed.outcomes() == {"merged": 1, "duplicate": 1}
    for result in healed.results:
        assert result.element == original
        assert result.keys == ("b",)
    assert store.state() == {("a", 0): 7, ("all", 0): 7, ("b", 0): 7}
    redelivered = run([original], **arguments)
    assert redelivered.outcomes() == {"duplicate": 1}
    assert store.state() == {("a", 0): 7, ("all", 0): 7, ("b", 0): 7}


def test_a_replay_keeps_the_first_event_time(store: Faulty) -> None:
    """An event counts in the bucket of its own timestamp, although its letter is replayed at another one."""
    store.fault = failing(a=1)
    arguments = {**FIELDS, "store": store.spec, "config": config(max_attempts=1), "window": hourly()}
    ran = run([(event("1"), NOW_S)], **arguments)
    assert ran.letter.event_time == "2023-11-14T22:13:20.000000Z"
    replayed = run([(ran.letter, NOW_S + 7200)], **arguments)
    assert (replayed.merged[0].value.bucket, replayed.merged[0].timestamp) == (NOW_S // 3600, NOW_S + 7200)
    assert store.state() == {("a", NOW_S // 3600): 1}


def test_a_rejected_element_can_be_replayed_with_mended_arguments(store: Faulty) -> None:
    """A letter from before the merge must be extracted anew, so that a mended ``value`` function cures it."""
    ran = run([event("1", value="#7")], **FIELDS, store=store.spec)
    assert (ran.letter.stage, ran.letter.event_id, ran.letter.keys) == ("extract", "1", ["a"])
    mended = {**FIELDS, "value": lambda element: int(element["v"].lstrip("#"))}
    assert run([ran.letter], **mended, store=store.spec).outcomes() == {"merged": 1}
    assert store.state() == {("a", 0): 7}


@dataclass
class Click:
    """An element that JSON cannot hold."""

    id: str
    k: str
    v: object


def test_pickled_elements_are_replayed_only_if_that_is_allowed(store: Faulty) -> None:
    """Unpickling runs code, so it must be refused, naming the argument that allows it."""
    click = Click("1", "a", "#7")
    letter = run([click], **FIELDS, store=store.spec).letter
    assert letter.payload_type == "pickle"
    mended = {**FIELDS, "value": lambda element: int(element.v.lstrip("#")), "store": store.spec}
    refused = run([letter], **mended).letter
    assert (refused.stage, refused.payload) == ("decode", letter.payload)
    assert "unpickle=True" in refused.error_message
    allowed = run([refused], **mended, unpickle=True)
    assert [result.element for result in allowed.results] == [click]
    assert store.state() == {("a", 0): 7}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"payload": pickle.dumps(1), "payload_type": "pickle"}, "the element is pickled"),
        ({"payload_type": "repr"}, "a payload of type 'repr' cannot be turned back"),
        ({"payload": b"{", "payload_type": "json"}, "Expecting property name"),
    ],
    ids=["pickled", "only readable", "broken"],
)
def test_letters_that_cannot_be_read_stay_as_they_are(store: Faulty, changes: dict[str, Any], problem: str) -> None:
    """All they knew must be in the new letter: what is missing, and when it happened."""
    letter = letter_of(**changes)
    again = run([letter], **FIELDS, store=store.spec, name="p", config=config()).letter
    assert again.error_message.startswith(problem)
    assert (again.stage, again.attempts) == ("decode", 0)
    news = ("stage", "attempts", "error_type", "error_message", "failed_at")
    assert again._replace(**{name: getattr(letter, name) for name in news}) == letter
    assert store.state() == {}


def test_a_letter_whose_time_is_none_becomes_another(store: Faulty) -> None:
    """A letter that somebody has edited must not stop the pipeline."""
    again = run([letter_of(event_time="noon")], **FIELDS, store=store.spec).letter
    assert again.error_message.startswith("event_time: 'noon'")
    assert (again.stage, again.event_id, again.failed_keys) == ("decode", "1", ["a"])


def test_outputs_have_schemas() -> None:
    """Each field must have a type of its own that any language knows: what a write to BigQuery needs."""
    optional, texts = "typing.Optional[str]", "typing.Sequence[str]"
    fields = dict(named_fields_from_element_type(DeadLetter))
    assert {name: kind.__name__ if isinstance(kind, type) else str(kind) for name, kind in fields.items()} == {
        "payload": "bytes",
        "payload_type": "str",
        "attributes": "typing.Mapping[str, str]",
        "message_id": optional,
        "publish_time": optional,
        "ordering_key": optional,
        "pipeline": "str",
        "stage": "str",
        "event_id": optional,
        "event_time": optional,
        "keys": texts,
        "failed_keys": texts,
        "error_type": "str",
        "error_message": "str",
        "attempts": "int64",
        "failed_at": "str",
    }
    assert "pythonsdk_any" not in str(schema_from_element_type(DeadLetter))
    merge_result = dict(named_fields_from_element_type(MergeResult))
    assert {name: kind for name, kind in merge_result.items() if kind is Any} == {"element": Any}


def test_outputs_know_their_element_types(store: Faulty) -> None:
    """What follows, a write to BigQuery say, must find the schema at the output itself."""
    outputs = new_pipeline() | beam.Create([event("1")]) | MergeRecords(**FIELDS, store=store.spec)
    assert (outputs.merged.element_type, outputs.dead_letter.element_type) == (MergeResult, DeadLetter)
    for row in (MergeResult, DeadLetter):
        assert type(registry.get_coder(row)).__name__ == "RowCoder"


def letter_of(**changes: Any) -> DeadLetter:
    """A dead letter with all there can be in it."""
    return DeadLetter(
        **{
            "payload": b'\xff\x00"\n',
            "payload_type": "pubsub",
            "attributes": {"\xfc": "\U0001f600", "": ""},
            "message_id": "7",
            "publish_time": "2023-11-14T22:13:20.000000Z",
            "ordering_key": "k",
            "pipeline": "p",
            "stage": "merge",
            "event_id": "1",
            "event_time": "0001-01-01T00:00:00.000000Z",
            "keys": ["a", "\xfc"],
            "failed_keys": ["a"],
            "error_type": "TransientError",
            "error_message": "line 1\nline 2",
            "attempts": 3,
            "failed_at": "2023-11-14T22:13:20.000000Z",
            **changes,
        }
    )


NOTHING_KNOWN = dict.fromkeys(("message_id", "publish_time", "ordering_key", "event_id", "event_time"))


@pytest.mark.parametrize(
    "row",
    [
        letter_of(),
        letter_of(**NOTHING_KNOWN, payload=b"", attributes={}, keys=[], failed_keys=[]),
        MergeResult({"any": (1, b"\xff")}, Outcome.MERGED, "1", ["a"], ["a"], -(2**63)),
        MergeResult(b"\xff", "duplicate", None, [], [], 2**63 - 1),
    ],
    ids=["letter", "bare letter", "merged", "duplicate"],
)
def test_outputs_survive_their_coder(row: Any) -> None:
    """Encoding must lose nothing. The type may be one that Beam made of the schema, as older versions always do."""
    coder = registry.get_coder(type(row))
    copy = coder.decode(coder.encode(row))
    assert copy == row
    assert copy._fields == row._fields


def test_outputs_survive_a_shuffle(store: Faulty) -> None:
    """Both outputs must come out of a Reshuffle as they went in, but that a sequence may have become a list."""
    pipeline = new_pipeline()
    outputs = pipeline | beam.Create([event("1"), event("2", value="x")]) | MergeRecords(**FIELDS, store=store.spec)
    names = [collect(outputs[tag] | f"S{tag}" >> beam.Reshuffle(), tag) for tag in (MERGED, DEAD_LETTER)]
    pipeline.run().wait_until_finish()
    (merged,), (dead,) = (collected(name) for name in names)
    assert merged.value._fields == MergeResult._fields
    element, outcome, event_id, keys, merged_keys, bucket = merged.value
    assert (element, outcome, event_id, bucket) == (event("1"), "merged", "1", 0)
    assert (list(keys), list(merged_keys)) == (["a"], ["a"])
    assert dead.value._fields == DeadLetter._fields
    assert (json.loads(dead.value.payload), list(dead.value.keys)) == (event("2", value="x"), ["a"])


def test_dead_letters_become_json(store: Faulty, tmp_path: Path) -> None:
    """``to_dict`` must give what JSON takes, and ``to_json`` lines that read back as the same letters."""
    path = str(tmp_path / "letters.jsonl")
    pipeline = new_pipeline()
    letters = pipeline | beam.Create([b"\xff", b'{"k": "\\ud800"}', b"\n"]) | MergeRecords(**FIELDS, store=store.spec)
    letters = letters.dead_letter
    _ = letters | "json" >> beam.Map(DeadLetter.to_json) | beam.io.WriteToText(path, shard_name_template="")
    name, dicts = collect(letters, "letters"), collect(letters | beam.Map(DeadLetter.to_dict), "dicts")
    pipeline.run().wait_until_finish()
    expected = sorted(out.value for out in collected(name))
    assert [letter.payload for letter in expected] == [b"\n", b'{"k": "\\ud800"}', b"\xff"]
    lines = Path(path).read_text("utf-8").splitlines()
    assert sorted(DeadLetter.from_json(line) for line in lines) == expected
    assert sorted(DeadLetter.from_dict(json.loads(json.dumps(out.value))) for out in collected(dicts)) == expected


def message(data: bytes | None, event_id: str = "m1", **attributes: str) -> PubsubMessage:
    """As a subscription delivers it."""
    return PubsubMessage(data, attributes, event_id, START, "order")


def test_pubsub_messages(store: Faulty) -> None:
    """Fields, attributes and the message's id must be found, and the message itself come out."""
    arguments = {
        "keys": ["user/{user.id}", "attribute:country"],
        "value": "v",
        "event_id": "message:id",
        "event_time": "message:publish_time",
        "window": daily(),
        "store": store.spec,
    }
    good = message(b'{"user": {"id": 7}, "v": 2}', country="\xfc")
    ran = run([good, good], **arguments)
    assert ran.outcomes() == {"merged": 1, "duplicate": 1}
    assert [result.element for result in ran.results] == [good, good]
    assert store.state() == {("user/7", NOW_S // 86_400): 2, ("\xfc", NOW_S // 86_400): 2}


@pytest.mark.parametrize("config", [None, Config(max_attempts=5), Config().with_backoff(timedelta(0), timedelta(1))])
def test_it_is_exactly_once_whatever_else_its_config_says(store: Faulty, config: Config | None) -> None:
    """Dedup is on unless it is turned off by name."""
    ran = run([event("1"), event("1")], **FIELDS, store=store.spec, config=config)
    assert ran.outcomes() == {"merged": 1, "duplicate": 1}


def test_dedup_is_turned_off_by_name(memory: MemorySpec) -> None:
    """Each delivery counts then, and no id is asked for."""
    fields = {name: field for name, field in FIELDS.items() if name != "event_id"}
    for config in (None, Config(max_attempts=5)):
        with pytest.raises(ConfigurationError, match=r"^event_id: is missing.*NoDedup\(\)"):
            run([event("1")], **fields, store=memory, config=config)
    ran = run([event("1"), event("1")], **fields, store=memory, config=Config(dedup=NoDedup()))
    assert ran.outcomes() == {"merged": 2}
    assert sums(memory) == {Key("a"): 2}


def test_messages_bring_an_id_of_their_own(memory: MemorySpec) -> None:
    """Where none is named, a message is known by the id that Pub/Sub gave it; but only where an id is needed."""

    def merged(*sent: PubsubMessage, config: Config | None = None) -> list[MergeResult]:
        pipeline = new_pipeline()
        read = pipeline | beam.Create(sent) | beam.Map(lambda sent: sent).with_output_types(PubsubMessage)
        outputs = read | MergeRecords(key="=all", value="v", store=memory, config=config)
        results = collect(outputs.merged, "merged")
        pipeline.run().wait_until_finish()
        return [out.value for out in collected(results)]

    results = merged(message(b'{"v": 2}', "m1"), message(b'{"v": 2}', "m1"), message(b'{"v": 3}', "m2"))
    assert [(result.event_id, str(result.outcome)) for result in results] == [
        ("m1", "merged"),
        ("m1", "duplicate"),
        ("m2", "merged"),
    ]
    assert sums(memory) == {Key("all"): 5}
    (result,) = merged(message(b'{"v": 2}', ""), config=Config(dedup=NoDedup()))
    assert (result.event_id, str(result.outcome)) == (None, "merged")


@pytest.mark.parametrize("data", [b"\xff\x00\n", b'{"v": 1', b""], ids=["binary", "json", "empty"])
def test_pubsub_messages_come_back_byte_for_byte(store: Faulty, data: bytes) -> None:
    """A dead letter must hold the whole message, and a replay must work on the very same one."""
    arguments = {"key": "k", "value": "v", "event_id": "message:id", "store": store.spec}
    sent = message(data, a="b", ü="")
    letter = run([sent], **arguments).letter
    assert (letter.payload, letter.payload_type, letter.attributes) == (data, "pubsub", {"a": "b", "\xfc": ""})
    assert (letter.message_id, letter.publish_time, letter.ordering_key) == (
        "m1",
        "2023-11-14T22:13:20.000000Z",
        "order",
    )
    mended = {**arguments, "decode": lambda element: {"k": "a", "v": len(element.data)}}
    (result,) = run([DeadLetter.from_json(letter.to_json())], **mended).results
    # The message's own equality leaves out some of it.
    assert (result.element, result.element.publish_time, result.element.ordering_key) == (sent, START, "order")
    assert (result.event_id, store.state()) == ("m1", {("a", 0): len(data)})


def bad(name: str, stage: str, message: str, **changes: object) -> Any:
    """A case of the test below: changes to a good event, sent as JSON."""
    good = {**event("bad", t="2023-11-14T22:13:20Z"), "case": name}
    element = {field: value for field, value in (good | changes).items() if value is not ...}
    return pytest.param(json.dumps(element).encode(), stage, message, id=name)


BAD = [
    pytest.param(b'{"id": "bad", "k": "a"', "decode", "payload: malformed JSON", id="malformed JSON"),
    pytest.param(b'{"id": "bad\xff"}', "decode", "payload: not UTF-8", id="not UTF-8"),
    pytest.param(b"[1]", "decode", "payload: expected a JSON object", id="no object"),
    pytest.param(b"", "decode", "payload: malformed JSON", id="nothing"),
    bad("no id", "extract", "event_id: field 'id' is missing", id=...),
    bad("no key", "extract", "key: field 'k' is missing", k=...),
    bad("no value", "extract", "value: field 'v' is missing", v=...),
    bad("no time", "extract", "event_time: field 't' is missing", t=...),
    bad("text value", "extract", "value: 'one' is not an integer", v="one"),
    bad("bool value", "extract", "value: expected an integer, got bool", v=True),
    bad("null value", "extract", "value: expected an integer, got NoneType", v=None),
    bad("fraction", "extract", "value: expected an integer, got float: 0.5", v=0.5),
    bad("NaN", "extract", "value: expected an integer, got float: nan", v=float("nan")),
    bad("infinity", "extract", "value: expected an integer, got float: inf", v=float("inf")),
    bad("too large", "extract", "value: ", v=2**63),
    bad("too small", "extract", "value: ", v=-(2**63) - 1),
    bad("empty key", "extract", "key: is empty", k=""),
    bad("long key", "extract", "key: 5000 bytes long", k="x" * 5000),
    bad("null key", "extract", "key: ", k=None),
    bad("half a surrogate pair", "extract", "key: has no UTF-8 form", k="\ud800"),
    bad("empty id", "extract", "event_id: is empty", id=""),
    bad("null id", "extract", "event_id: is missing", id=None),
    bad("fractional id", "extract", "event_id: expected a string", id=0.5),
    bad("no time zone", "extract", "event_time: '2023-11-14T22:13:20' has no time zone", t="2023-11-14T22:13:20"),
    bad("no such time", "extract", "event_time: ", t="2023-02-30T00:00:00Z"),
    bad("unclear unit", "extract", "event_time: ", t=17_000_000_000_000),
    pytest.param(
        event("bad", t=datetime(2023, 11, 14)),
        "extract",
        "event_time: 2023-11-14T00:00:00 has no time zone",
        id="naive datetime",
    ),
    pytest.param("no bytes", "extract", "event_id: field 'id' is missing", id="text"),
    pytest.param(None, "extract", "event_id: field 'id' is missing", id="None"),
]


@pytest.fixture(scope="module")
def bad_run() -> tuple[Ran, Faulty]:
    """All of `BAD` in one pipeline, among three good events."""
    store = Faulty()
    good = [event(f"good{i}", t=START) for i in range(3)]
    elements = [*good[:1], *(case.values[0] for case in BAD), *good[1:]]
    ran = run(elements, **FIELDS, event_time="t", window=daily(), store=store.spec, config=config())
    return ran, store


def packed(element: Any) -> bytes:
    """The payload that a letter of the element must have."""
    if isinstance(element, bytes):
        return element
    if isinstance(element, dict):
        return pickle.dumps(element)
    return b"null" if element is None else str(element).encode()


@pytest.mark.parametrize(("element", "stage", "problem"), BAD)
def test_bad_input_becomes_one_dead_letter(bad_run: tuple[Ran, Faulty], element: Any, stage: str, problem: str) -> None:
    """Exactly one, which says what is wrong with which field, and holds the element as it came."""
    (letter,) = [letter for letter in bad_run[0].letters if letter.payload == packed(element)]
    assert letter.stage == stage
    assert letter.error_message.startswith(problem)
    assert letter.error_type == "InvalidRecord"
    assert (letter.pipeline, letter.failed_keys, letter.attempts) == ("murmur", [], 0)
    assert letter.failed_at == "2023-11-14T22:13:20.000000Z"
    if stage == "extract" and not problem.startswith("event_id"):
        assert letter.event_id == "bad"


def test_bad_input_leaves_the_rest_alone(bad_run: tuple[Ran, Faulty]) -> None:
    """Every other element of the bundle must be merged."""
    ran, store = bad_run
    assert ran.outcomes() == {"merged": 3, "dead_letter": len(BAD)}
    assert store.state() == {("a", NOW_S // 86_400): 3}
    assert ran.counters == {"murmur": 3, "murmur:record_merged": 3, "murmur:dead_letter": len(BAD)}


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("store", {"store": None}),
        ("store", {"store": "counts.db"}),
        ("store", {"store": "postgres://x"}),
        ("store", {"store": 5}),
        ("store", {"store": "sqlite:////no/such/folder/x.db"}),
        ("key", {"key": None}),
        ("key", {"keys": ["k"]}),
        ("key", {"key": "{k"}),
        ("key", {"key": ""}),
        ("key", {"key": 5}),
        ("keys", {"key": None, "keys": "k"}),
        ("keys", {"key": None, "keys": []}),
        ("keys", {"key": None, "keys": ["k", 5]}),
        ("value", {"value": None}),
        ("value", {"value": 5}),
        ("monoid", {"monoid": "median"}),
        ("monoid", {"monoid": Sum}),
        ("window", {"window": "sometimes"}),
        ("window", {"window": 5}),
        ("retention", {"retention": "90d"}),
        ("retention", {"retention": "long", "window": "daily"}),
        ("event_id", {"event_id": None}),
        ("event_time", {"event_time": "message:time"}),
        ("decode", {"decode": "xml"}),
        ("config", {"config": {}}),
        ("flush", {"flush": 5}),
        ("on_exhausted", {"on_exhausted": "ignore"}),
        ("name", {"name": ""}),
        ("cache", {"cache": "redis"}),
    ],
)
def test_a_wrong_argument_fails_when_the_pipeline_is_built(
    memory: MemorySpec, argument: str, changes: dict[str, Any]
) -> None:
    """Not on a worker: applying the transform must raise, naming the argument."""
    source = new_pipeline() | beam.Create([])
    with pytest.raises(ConfigurationError) as raised:
        _ = source | MergeRecords(**{**FIELDS, "store": memory, **changes})
    assert raised.value.argument == argument
    assert str(raised.value).startswith(f"{argument}: ")


def test_a_store_of_another_monoid_fails_when_the_pipeline_is_built(tmp_path: Path) -> None:
    """The aggregates of one pipeline must not be mixed up with those of another."""
    spec = SqliteSpec(str(tmp_path / "counts.db"))
    with closing(spec.open(Max())) as written:
        written.merge_update(Key("a"), 1)
    with pytest.raises(ConfigurationError, match=r"store: .*max"):
        _ = new_pipeline() | beam.Create([]) | MergeRecords(**FIELDS, store=spec)


def test_a_store_that_is_no_cache_fails_when_the_pipeline_is_built(tmp_path: Path, memory: MemorySpec) -> None:
    """A cache must be a store that can be refilled."""
    with pytest.raises(ConfigurationError, match="cache: "):
        _ = new_pipeline() | beam.Create([]) | MergeRecords(**FIELDS, store=memory, cache=f"sqlite:///{tmp_path}/c.db")


@pytest.mark.parametrize("commutative", [True, False])
def test_an_aggregate_that_depends_on_the_order_warns(
    memory: MemorySpec, caplog: pytest.LogCaptureFixture, commutative: bool
) -> None:
    """Beam gives no order; who asks for one anyway must hear of it when the pipeline is built."""
    joined = Custom("joined", "", str.__add__, commutative=commutative)
    with caplog.at_level(logging.WARNING, logger="murmur_beam"):
        _ = new_pipeline() | beam.Create([]) | MergeRecords("p", **FIELDS, monoid=joined, store=memory)
    assert [record.message for record in caplog.records if "order" in record.message] == (
        [] if commutative else ["p: monoid 'joined' depends on the order of events, and Beam gives none"]
    )


def test_counters(store: Faulty) -> None:
    """All that happens must be counted under the transform's name, also what fails last of all."""
    store.fault = failing(shaky=1, down=9)
    old = event("old", keys=["a"], t=NOW_S - 3 * 86_400)
    elements = [
        event("1", keys=["a", "b"], t=NOW_S),
        event("1", keys=["a", "b"], t=NOW_S),
        event("2", keys=["shaky"], t=NOW_S),
        event("3", keys=["a", "down"], t=NOW_S),
        event("4", keys=["a"], value="x", t=NOW_S),
        event("5", keys=["big", "big2"], value=INT64_MAX, t=NOW_S),
        event("6", keys=["big"], value=INT64_MAX, t=NOW_S),
        old,
    ]
    ran = run(
        elements,
        name="p",
        keys=lambda element: element["keys"],
        value="v",
        event_id="id",
        event_time="t",
        window=daily(2 * DAY),
        store=store.spec,
        config=config(max_attempts=3),
        flush=FlushLimits(events=100),
    )
    letters = sorted((letter.event_id, letter.stage, letter.attempts, letter.failed_keys) for letter in ran.letters)
    assert letters == [("3", "merge", 3, ["down"]), ("4", "extract", 0, []), ("6", "merge", 1, ["big"])]
    assert ran.counters == {
        "p": 6,  # a and b of 1, shaky, a of 3, both keys of 5
        "p:retry": 3,  # one for shaky, two for down
        "p:dedup_skip": 2,
        "p:expired": 1,
        "p:dead_letter": 3,
        "p:error": 5,  # one of shaky, three of down, one of big
        "p:record_merged": 3,
        "p:record_duplicate": 1,
        "p:record_expired": 1,
    }


def test_a_table_that_is_appended_to() -> None:
    """New or again, an event is recorded, and counts once; the letter of a key that failed is replayed into the same
    table, which has the other key already."""
    store = Faulty(fault=failing(shaky=2), appends=True)
    arguments: dict[str, Any] = {
        "name": "p",
        "keys": lambda element: element["keys"],
        "value": "v",
        "event_id": "id",
        "event_time": "t",
        "window": daily(2 * DAY),
        "store": store.spec,
        "config": config(),
        "flush": FlushLimits(events=100),
    }
    elements = [
        event("1", keys=["a", "b"], t=NOW_S),
        event("1", keys=["a", "b"], t=NOW_S),
        event("2", keys=["a", "shaky"], t=NOW_S),
        event("3", keys=["a"], value="x", t=NOW_S),
        event("4", keys=["a"], t=NOW_S - 3 * 86_400),
    ]
    ran = run(elements, **arguments)
    assert ran.outcomes() == {"recorded": 2, "expired": 1, "dead_letter": 2}
    told = sorted((result.outcome, result.event_id, result.merged_keys) for result in ran.results)
    assert told == [("expired", "4", ()), ("recorded", "1", ("a", "b")), ("recorded", "1", ("a", "b"))]
    assert sorted((letter.event_id, letter.failed_keys) for letter in ran.letters) == [("2", ["shaky"]), ("3", [])]
    assert ran.counters == {
        "p": 5,  # a and b of 1, twice; a of 2
        "p:retry": 1,
        "p:expired": 1,
        "p:dead_letter": 2,
        "p:error": 2,
        "p:record_recorded": 2,
        "p:record_expired": 1,
    }
    today = NOW_S // 86_400
    assert store.state() == {("a", today): 2, ("b", today): 1}
    for _ in range(2):
        again = run([letter for letter in ran.letters if letter.event_id == "2"], **arguments)
        (result,) = again.results
        assert (result.outcome, result.keys, result.merged_keys) == ("recorded", ("shaky",), ("shaky",))
        assert result.element == elements[2]
        assert again.counters == {"p": 1, "p:record_recorded": 1}
        assert store.state() == {("a", today): 2, ("b", today): 1, ("shaky", today): 1}


@pytest.mark.parametrize("behind", [False, True])
def test_distributions(store: Faulty, memory: MemorySpec, behind: bool) -> None:
    """Sizes and times of flushes must be there to be looked at, also of those that another thread has made."""
    store.waits_for_network = behind
    pipeline = new_pipeline()
    elements = beam.Create([event(str(i)) for i in range(5)], reshuffle=False)
    _ = pipeline | elements | MergeRecords("p", **FIELDS, store=store.spec, cache=memory, flush=FlushLimits(events=2))
    result = pipeline.run()
    result.wait_until_finish()
    found = {each.key.metric.name: each.result for each in result.metrics().query()["distributions"]}
    assert (found["p:flush_records"].count, found["p:flush_records"].sum) == (3, 5)
    for name in ("p:flush_us", "p:store_merge_us", "p:cache_merge_us"):
        assert found[name].count == 3


def test_each_bundle_is_counted_once(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one bundle has reported the next one must not report again."""
    counts: Counter[str] = Counter()

    class Reported:
        """In place of one of Beam's counters."""

        def __init__(self, namespace: str, name: str) -> None:
            self._name = f"{namespace} {name}"

        def inc(self, n: int) -> None:
            counts[self._name] += n

    monkeypatch.setattr(transforms.Metrics, "counter", Reported)
    worker = Worker(**FIELDS, store=store.spec, name="p")
    for i in range(3):
        assert len(list(worker.bundle(event(str(i)), event("again"), event(str(i), value="x")))) == 3
    assert +counts == {
        "murmur_beam p": 4,
        "murmur_beam p:dedup_skip": 2,
        "murmur_beam p:dead_letter": 3,
        "murmur_beam p:record_merged": 4,
        "murmur_beam p:record_duplicate": 2,
    }


class Notebook:
    """A recorder that can be pickled: it notes on a page of this process."""

    pages: ClassVar[dict[str, Counter[str]]] = {}

    def __init__(self, page: str) -> None:
        self._page = page

    def record_event(self, pipeline: str) -> None:
        self._note(pipeline)

    def record_error(self, pipeline: str, err: BaseException) -> None:
        self._note(f"{pipeline} {type(err).__name__}")

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None:
        self._note(f"{pipeline} {op}")

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        self._note(f"{pipeline} {mode} of {n}")

    def _note(self, what: str) -> None:
        self.pages.setdefault(self._page, Counter())[what] += 1


def test_a_recorder_of_ones_own(store: Faulty) -> None:
    """The config's recorder must hear all that Beam's metrics hear."""
    page = uuid.uuid4().hex
    store.fault = failing(b=2)
    elements = [event("1"), event("1"), event("2", "b"), event("3", value="x")]
    ran = run(elements, name="p", **FIELDS, store=store.spec, config=config(recorder=Notebook(page)))
    notes = Notebook.pages.pop(page)
    flushes = {note: n for note, n in notes.items() if note.startswith("p flush of")}
    assert sum(int(note.split()[-1]) * n for note, n in flushes.items()) == 3
    counted = {"p": 1, "p:dedup_skip": 1, "p:retry": 1, "p:dead_letter": 2}
    assert {note: n for note, n in notes.items() if " " not in note} == counted
    assert {name: ran.counters[name] for name in counted} == counted
    assert notes["p TransientError"] == ran.counters["p:error"] == 2
    assert notes["p store_merge"] > 0


def test_a_cache_gets_what_was_merged(store: Faulty, memory: MemorySpec) -> None:
    """Only that: no duplicate, and nothing that failed."""
    store.fault = failing(b=2)
    elements = [event("1"), event("1"), event("2"), event("3", "b")]
    ran = run(elements, **FIELDS, store=store.spec, cache=str(memory), config=config())
    assert ran.outcomes() == {"merged": 2, "duplicate": 1, "dead_letter": 1}
    assert sums(memory) == {Key("a"): 2}


def test_a_cache_that_fails_changes_nothing(store: Faulty) -> None:
    """Its failures must be counted, and no more."""
    cache = Faulty(fault=lambda update: BUSY)
    ran = run([event("1"), event("2")], name="p", **FIELDS, store=store.spec, cache=cache.spec, config=config())
    assert ran.outcomes() == {"merged": 2}
    assert ran.counters["p:cache:error"] == 2
    assert store.state() == {("a", 0): 2}


def test_two_in_one_pipeline(store: Faulty) -> None:
    """Two with names of their own need no labels; two without must be told apart by labels, as Beam says."""
    pipeline = new_pipeline()
    source = pipeline | beam.Create([event("1", value=5)])
    _ = source | MergeRecords("sum", key="k", value="v", event_id="id", store=store.spec)
    _ = source | MergeRecords("all", key="=n", value="v", event_id="id", store=store.spec)
    result = pipeline.run()
    result.wait_until_finish()
    assert store.state() == {("a", 0): 5, ("n", 0): 5}
    assert counters_of(result) == {"sum": 1, "sum:record_merged": 1, "all": 1, "all:record_merged": 1}
    _ = source | MergeRecords(**FIELDS, store=store.spec)
    with pytest.raises(RuntimeError, match="MergeRecords"):
        _ = source | MergeRecords(**FIELDS, store=store.spec)


def test_step_labels_are_stable(store: Faulty) -> None:
    """A running job can only be updated if its steps keep their names."""
    pipeline = new_pipeline()
    source = pipeline | beam.Create([event("1")])
    _ = source | MergeRecords("p", **FIELDS, store=store.spec)
    _ = source | MergeRecords(**FIELDS, store=store.spec)
    _ = source | "Mine" >> MergeRecords("q", **FIELDS, store=store.spec)
    steps = pipeline.to_runner_api().components.transforms.values()
    names = {step.unique_name for step in steps}
    for label in ("MergeRecords(p)", "MergeRecords", "Mine"):
        assert {name for name in names if name == label or name.startswith(f"{label}/")} == {
            label,
            f"{label}/Merge",
            f"{label}/Merge/ParDo(MergeDoFn)",
        }


def test_the_package_offers_the_transform() -> None:
    """The names of the README must be there."""
    assert murmur_beam.MergeRecords is MergeRecords
    assert murmur_beam.MergeDoFn is MergeDoFn
    assert murmur_beam.MurmurOptions is transforms.MurmurOptions


@pytest.fixture
def other_process(monkeypatch: pytest.MonkeyPatch) -> FnApiRunner:
    """A runner whose worker is a process of its own, as with every real runner."""
    # The tests as well: some versions of Beam pickle a lambda with the name of its module.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(murmur_beam.__file__).parents[1]), *sys.path]))
    command = f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment(command_string=command))


def test_letters_replay_in_another_process(other_process: FnApiRunner, tmp_path: Path) -> None:
    """There Beam decodes letters that come from a shuffle to a type that it makes up: they must still be letters."""
    arguments = {**FIELDS, "store": SqliteSpec(str(tmp_path / "counts.db"))}
    mended = {**arguments, "value": lambda element: int(element["v"].lstrip("#"))}
    pipeline = new_pipeline(runner=other_process)
    elements = [event("1"), event("2", value="#5"), event("2", value="#5")]
    first = pipeline | beam.Create(elements) | MergeRecords("first", **arguments)
    second = first.dead_letter | "a" >> beam.Reshuffle() | MergeRecords("second", **mended)
    third = first.dead_letter | "b" >> beam.Reshuffle() | MergeRecords("third", **arguments)
    for name, lines in {
        "merged": second.merged | beam.Map(lambda result: json.dumps([str(result.outcome), result.element])),
        "letters": third.dead_letter | beam.Map(DeadLetter.to_json),
    }.items():
        _ = lines | f"write {name}" >> beam.io.WriteToText(str(tmp_path / name), shard_name_template="")
    pipeline.run().wait_until_finish()
    merged = [json.loads(line) for line in (tmp_path / "merged").read_text().splitlines()]
    assert sorted(merged, key=str) == [["duplicate", elements[1]], ["merged", elements[1]]]
    letters = [DeadLetter.from_json(line) for line in (tmp_path / "letters").read_text().splitlines()]
    assert [json.loads(letter.payload) for letter in letters] == elements[1:]
    assert sums(arguments["store"]) == {Key("a"): 6}


def test_what_is_recorded_in_another_process_says_so(other_process: FnApiRunner, tmp_path: Path) -> None:
    """Through pickles and coders, also those of a shuffle; without ids each delivery counts, and each of them once."""
    stores = [RecordingSpec(SqliteSpec(str(tmp_path / f"{name}.db"))) for name in ("once", "each")]
    pipeline = new_pipeline(runner=other_process)
    elements = pipeline | beam.Create([event("1"), event("1"), event("2")])
    once = elements | MergeRecords("once", **FIELDS, store=stores[0])
    each = elements | MergeRecords("each", key="k", value="v", config=Config(dedup=NoDedup()), store=stores[1])
    for name, outputs in {"once": once, "each": each}.items():
        lines = outputs.merged | f"{name} shuffle" >> beam.Reshuffle() | f"{name} text" >> beam.Map(_told)
        _ = lines | f"{name} write" >> beam.io.WriteToText(str(tmp_path / name), shard_name_template="")
    result = pipeline.run()
    result.wait_until_finish()
    for name, total in {"once": 2, "each": 3}.items():
        assert (tmp_path / name).read_text().splitlines() == ["recorded ['a']"] * 3
        assert sums(SqliteSpec(str(tmp_path / f"{name}.db"))) == {Key("a"): total}
    assert counters_of(result) == {"once": 3, "once:record_recorded": 3, "each": 3, "each:record_recorded": 3}


def _told(result: Any) -> str:
    return f"{result.outcome} {list(result.merged_keys)}"


def test_letters_become_json_in_another_process(other_process: FnApiRunner, memory: MemorySpec, tmp_path: Path) -> None:
    """``to_json`` must do for them as well."""
    pipeline = new_pipeline(runner=other_process)
    letters = pipeline | beam.Create([b"\xff"]) | MergeRecords(**FIELDS, store=memory)
    lines = letters.dead_letter | beam.Reshuffle() | beam.Map(DeadLetter.to_json)
    _ = lines | beam.io.WriteToText(str(tmp_path / "letters"), shard_name_template="")
    pipeline.run().wait_until_finish()
    assert DeadLetter.from_json((tmp_path / "letters").read_text()).payload == b"\xff"


# The DoFn, without a runner.

_INTERVALS = [beam_window.IntervalWindow(60 * i, 60 * i + 180) for i in range(3)]


class Worker:
    """Drives a `MergeDoFn` as a runner does.

    Args:
        windows: how many Beam windows each element is in.
        arguments: of `MergeRecords`.
    """

    def __init__(self, windows: int = 1, **arguments: Any) -> None:
        self.fn = MergeDoFn(resolve(arguments))
        self._windows = _INTERVALS[:windows]
        self.fn.setup()

    def start(self) -> None:
        """Begin a bundle, or begin it again."""
        self.fn.start_bundle()

    def process(self, *elements: Any, at_s: int = NOW_S) -> Iterator[Any]:
        """Hand in elements, and take what comes out at once."""
        for element in elements:
            windowed = WindowedValue(element, Timestamp(at_s), list(self._windows))
            for output in self.fn.process(element, windowed):
                tagged = isinstance(output, TaggedOutput)
                value = output.value if tagged else output
                if isinstance(value, WindowedValue):
                    # Beam would multiply the windows by those of the element.
                    assert len(self._windows) == 1
                    value = value.value
                assert tagged == isinstance(value, DeadLetter)
                yield value

    def finish(self) -> Iterator[Any]:
        """End the bundle, and take what comes out."""
        for output in self.fn.finish_bundle():
            value = output.value if isinstance(output, TaggedOutput) else output
            assert list(value.windows) == self._windows
            yield value.value

    def bundle(self, *elements: Any) -> Iterator[Any]:
        """One bundle that goes well."""
        self.start()
        yield from self.process(*elements)
        yield from self.finish()


def test_a_bundle_that_is_delivered_again_counts_once(store: Faulty) -> None:
    """Whether its first delivery had got to write or not."""
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


def test_a_flush_under_way_belongs_to_its_bundle(store: Faulty) -> None:
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


def test_a_flush_under_way_is_dropped_with_its_bundle(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has merged is duplicate when it comes again, and neither its results nor its counts come later."""
    counts: Counter[str] = Counter()

    class Reported:
        """In place of one of Beam's counters."""

        def __init__(self, namespace: str, name: str) -> None:
            self._name = name

        def inc(self, n: int) -> None:
            counts[self._name] += n

    monkeypatch.setattr(transforms.Metrics, "counter", Reported)
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


def test_a_flush_under_way_that_fails_fails_its_bundle(store: Faulty) -> None:
    """At the next full buffer, or at the end; the bundle comes again and is merged."""
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


def test_metrics_come_from_the_thread_of_the_bundle(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam loses what other threads report."""
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

    monkeypatch.setattr(transforms.Metrics, "counter", Reported)
    monkeypatch.setattr(transforms.Metrics, "distribution", Reported)
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
    """What it had buffered must neither be written nor put out by the next bundle."""
    worker = Worker(**FIELDS, store=store.spec)
    worker.start()
    assert list(worker.process(event("1"))) == []
    worker.start()
    assert list(worker.finish()) == []
    assert store.state() == {}
    assert list(worker.finish()) == []


def test_held_outputs_of_a_bundle_that_fails_are_forgotten(store: Faulty) -> None:
    """An element in several windows comes out at the end of its bundle; if there is none, not at that of the next."""
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
def test_a_full_buffer_is_put_out_before_the_bundle_ends(store: Faulty, limits: FlushLimits, seconds: int) -> None:
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


def test_nothing_is_put_out_before_it_is_committed(store: Faulty) -> None:
    """At the moment an output can be seen, its event must be in the store."""
    worker = Worker(**FIELDS, store=store.spec, flush=FlushLimits(events=2))
    seen = 0
    for result in worker.bundle(*(event(str(i)) for i in range(5))):
        assert (Key("a"), result.event_id) in store.ledger.merged
        seen += 1
    assert seen == 5


def test_a_bundle_of_nothing(store: Faulty) -> None:
    """It must write and put out nothing."""
    worker = Worker(**FIELDS, store=store.spec)
    assert list(worker.bundle()) == []
    assert store.state() == {}


def test_an_element_without_a_timestamp_needs_an_event_time(store: Faulty) -> None:
    """With a window, the timestamp that Beam gives where there is none must not be taken for a time."""
    worker = Worker(**FIELDS, store=store.spec, window=daily())
    worker.start()
    windowed = WindowedValue(event("1"), MIN_TIMESTAMP, [beam_window.GlobalWindow()])
    assert list(worker.fn.process(windowed.value, windowed)) == []
    (output,) = worker.fn.finish_bundle()
    assert output.tag == DEAD_LETTER
    letter = output.value.value
    assert letter.error_message.startswith("event_time: the element has no timestamp of its own")
    assert letter.event_time is None


def test_elements_that_are_no_records_do_not_pile_up(store: Faulty) -> None:
    """They must be put out before the bundle ends, as merged ones are."""
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
        time.sleep(0.05)  # Prism's worker may still be at its teardown
    assert store.closed == 2, "once when the pipeline was built, and once by its worker"


def open_files() -> int:
    """Of this process."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux lists them")
def test_cycles_of_setup_and_teardown_leak_nothing(tmp_path: Path) -> None:
    """A worker may live through thousands of them: neither threads nor files may add up."""
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
    """Only its configuration travels to the workers."""
    spec = resolve({**FIELDS, "store": f"sqlite:///{tmp_path}/counts.db", "window": "daily", "config": config()})
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


# Conservation, at random.

GENERATED: dict[str, Any] = {
    "name": "p",
    "keys": lambda element: element["keys"],
    "value": "delta",
    "event_id": "id",
    "event_time": "time",
}


def element_of(event: Event, n: int) -> dict[str, Any]:
    """As JSON can hold it, with a number that tells deliveries of one event apart."""
    time = event.event_time.isoformat()
    return {"n": n, "id": event.event_id, "time": time, "keys": list(event.keys), "delta": event.delta}


@dataclass
class Model:
    """What must hold of a scenario's store and outputs, by plain dictionaries."""

    scenario: Scenario
    appends: bool = False
    clock: FakeClock = field(default_factory=lambda: FakeClock(jitter=0))

    def __post_init__(self) -> None:
        self.plan = FaultPlan(self.scenario.faults)
        self.store = Faulty(self.clock, self.plan.fault, self.plan.lost, appends=self.appends)
        self.window = self.scenario.window
        self.arguments = {
            **GENERATED,
            "store": self.store.spec,
            "window": self.window,
            "config": config(max_attempts=self.scenario.max_attempts, clock=self.clock),
        }

    def key(self, time: datetime, entity: str) -> Key:
        """Where an event counts: under its UTC day, by the calendar."""
        return Key(entity, time.toordinal() - date(1970, 1, 1).toordinal() if self.window else 0)

    def merged(self, event_id: str, time: datetime, entities: Iterable[str]) -> set[str]:
        """The entities under which the store has the event."""
        return {entity for entity in entities if (self.key(time, entity), event_id) in self.store.ledger.merged}

    def is_expired(self, time: datetime) -> bool:
        """Is an event of this time too old, now?"""
        retention = self.window.retention if self.window else None
        return retention is not None and time < START + timedelta(seconds=self.clock.time - NOW_S) - retention

    def check_outputs(self, elements: Sequence[dict[str, Any]], outputs: Iterable[Any]) -> list[DeadLetter]:
        """Each element must come out once, and what an output says must be true when it can be seen; the letters."""
        letters, came = [], Counter[int]()
        for output in outputs:
            dead = isinstance(output, DeadLetter)
            element = json.loads(output.payload) if dead else output.element
            came[element["n"]] += 1
            time, keys = datetime.fromisoformat(element["time"]), set(element["keys"])
            there = self.merged(element["id"], time, keys)
            assert output.event_id == element["id"]
            if dead:
                letters.append(output)
                failed = set(output.failed_keys)
                assert failed
                assert failed <= keys
                assert keys - failed <= there
                assert (output.stage, output.pipeline) == ("merge", "p")
            elif output.outcome == "expired":
                assert self.is_expired(time)
                assert output.merged_keys == ()
            else:
                assert set(output.keys) <= keys
                assert keys <= there
                assert set(output.merged_keys) <= set(output.keys)
                assert output.outcome in ({"recorded"} if self.appends and keys else {"merged", "duplicate"})
                assert bool(output.merged_keys) == (output.outcome != "duplicate" and bool(keys))
                assert output.outcome != "recorded" or set(output.merged_keys) == set(output.keys)
        assert came == Counter(element["n"] for element in elements)
        return letters

    def check_final_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Without faults only an overflow can fail."""
        for letter in letters:
            assert letter.error_type == "Overflow"
            assert set(letter.failed_keys) <= set(BIG_KEYS)

    def check_state(self) -> None:
        """After all was delivered, each event that is not too old must be in the state, and be there once."""
        ledger, expected = self.store.ledger.merged, dict[tuple[str, int], int]()
        for key, event_id in ledger:
            expected[key] = expected.get(key, 0) + ledger[key, event_id]
        for delivered in self.scenario.delivered:
            wanted = set(delivered.keys) - set(BIG_KEYS)
            if not self.is_expired(delivered.event_time):
                assert self.merged(delivered.event_id, delivered.event_time, wanted) == wanted
        retention = self.window.retention if self.window else None
        if retention is not None:
            now = START + timedelta(seconds=self.clock.time - NOW_S)
            start = datetime(1970, 1, 1, tzinfo=timezone.utc)
            expected = {key: n for key, n in expected.items() if now < start + (key[1] + 1) * DAY + retention}
        assert self.store.state() == expected


def limits() -> st.SearchStrategy[FlushLimits]:
    """Small enough for several flushes in a bundle."""
    return st.builds(FlushLimits, events=st.integers(1, 6), rows=st.integers(1, 8))


@settings(max_examples=300, deadline=None)
@given(
    scenario=scenarios(),
    flush=limits(),
    crashes=st.lists(st.none() | st.integers(0, 10), min_size=4, max_size=4),
    windows=st.integers(1, 3),
    behind=st.booleans(),
    appends=st.booleans(),
)
def test_bundles_lose_nothing_and_count_nothing_twice(
    scenario: Scenario, flush: FlushLimits, crashes: list[int | None], windows: int, behind: bool, appends: bool
) -> None:
    """Random bundles, faults and crashes: one output for each element, and a state like a dictionary's.

    With a store that is merged into at once, or while the next records are processed; one that tells merged from
    duplicate, or one that appends.
    """
    model = Model(scenario, appends)
    model.store.waits_for_network = behind
    worker = Worker(windows, **model.arguments, flush=flush)
    letters: list[DeadLetter] = []
    for batch, crash in zip(scenario.batches, crashes, strict=False):
        model.clock.time += batch.after.total_seconds()
        elements = [element_of(each, n) for n, each in enumerate(batch.events)]
        if crash is not None:
            worker.start()
            list(worker.process(*elements[:crash]))
        letters += model.check_outputs(elements, worker.bundle(*elements))
    model.plan.stop()
    if scenario.redeliver_all:
        elements = [element_of(each, n) for n, each in enumerate(scenario.delivered)]
        model.check_final_letters(model.check_outputs(elements, worker.bundle(*elements)))
    else:
        model.check_final_letters([each for each in worker.bundle(*letters) if isinstance(each, DeadLetter)])
    model.check_state()
    again = [element_of(each, n) for n, each in enumerate(scenario.delivered)]
    for output in worker.bundle(*again):
        assert (
            isinstance(output, DeadLetter)
            or output.outcome != "merged"
            or not output.keys
            or (set(output.merged_keys) <= set(BIG_KEYS))
        )
    model.check_state()
    worker.fn.teardown()


@settings(max_examples=12, deadline=None)
@given(scenario=scenarios(), flush=limits(), behind=st.booleans(), appends=st.booleans())
def test_a_runner_loses_nothing_and_counts_nothing_twice(
    scenario: Scenario, flush: FlushLimits, behind: bool, appends: bool
) -> None:
    """The same on Beam's runner: what was dead-lettered is fed in again, through a shuffle."""
    model = Model(scenario, appends)
    model.store.waits_for_network = behind
    events = [each for batch in scenario.batches for each in batch.events]
    elements = [element_of(each, n) for n, each in enumerate(events)]
    ran = run(elements, **model.arguments, flush=flush)
    letters = model.check_outputs(elements, [out.value for out in ran.merged + ran.dead])
    outcomes = ("merged", "duplicate", "recorded", "expired")
    counted = {outcome: ran.counters.get(f"p:record_{outcome}", 0) for outcome in outcomes}
    assert Counter({**counted, "dead_letter": ran.counters.get("p:dead_letter", 0)}) == ran.outcomes()
    model.plan.stop()
    again = run(letters, **model.arguments, flush=flush)
    assert len(again.merged) + len(again.dead) == len(letters)
    model.check_final_letters(again.letters)
    model.check_state()


def test_a_lot_in_one_bundle_in_reasonable_time(store: Faulty) -> None:
    """Ten thousand elements through the DoFn with many flushes must not take minutes: nothing may be quadratic."""
    worker = Worker(**FIELDS, store=store.spec, flush=FlushLimits(events=50))
    started_s = time.monotonic()
    outputs = sum(1 for _ in worker.bundle(*(event(str(i), key=str(i % 100)) for i in range(10_000))))
    assert outputs == 10_000
    assert time.monotonic() - started_s < 30
    assert sum(store.state().values()) == 10_000
