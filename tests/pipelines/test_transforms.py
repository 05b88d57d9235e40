"""`MergeRecords` on a real runner: its outputs, its arguments, and its steps in a pipeline."""

from __future__ import annotations

import json
import logging
import traceback
from collections import Counter
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import registry
from apache_beam.transforms import window as beam_window
from apache_beam.typehints.schemas import named_fields_from_element_type, schema_from_element_type
from apache_beam.utils.timestamp import Timestamp

import murmur_beam
from murmur_beam import transforms
from murmur_beam.buffer import FlushLimits
from murmur_beam.errors import (
    ConfigurationError,
    PermanentError,
    RetriesExhausted,
    SchemaMismatch,
    StoreUnavailable,
)
from murmur_beam.model import DeadLetter, Key, MergeResult, Outcome
from murmur_beam.monoids import Count, Custom, Max, Sum
from murmur_beam.monoids.sum import INT64_MAX
from murmur_beam.state.memory import MemorySpec
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.transforms import DEAD_LETTER, MERGED, MergeDoFn, MergeRecords
from murmur_beam.windows import daily
from tests.support.strategies import START
from tests.support.transform import (
    BUSY,
    DAY,
    FIELDS,
    NOW_S,
    Faulty,
    collect,
    collected,
    config,
    counters_of,
    event,
    failing,
    letter_of,
    new_pipeline,
    run,
    sums,
)


def test_each_element_becomes_one_output(store: Faulty) -> None:
    """Merged, duplicate, expired or dead letter: each element must be output once, as one of them."""
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
    """Every output, whenever it is flushed, must be in each window of its element once, at its time."""
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


def test_arguments_override_the_command_line(lasting: SqliteSpec) -> None:
    """An argument given in Python must replace the flag; others still come from the command line."""
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
    """An element without keys must be output as merged, and write nothing."""
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
    """With ``on_exhausted="raise"`` a record without a try left must fail the pipeline, and say why."""
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
    """It is not a fault of a record: whatever ``on_exhausted`` says, it must not empty the source into the dead
    letters, but fail the pipeline with the store's own message, even if only some of the keys get it."""
    store.fault = lambda update: error if update.key.entity == "a" else None
    with pytest.raises(type(error), match=f"^{error}"):
        run([event("1", "b"), event("2")], **FIELDS, store=store.spec, config=config(), on_exhausted=on_exhausted)
    store.fault = lambda update: None
    again = run([event("1", "b"), event("2")], **FIELDS, store=store.spec, config=config(), on_exhausted=on_exhausted)
    assert again.outcomes() == {"merged": 1, "duplicate": 1}


def test_a_misspelt_option_is_refused(memory: MemorySpec) -> None:
    """Beam ignores unknown flags; a window that is lost by a typing error would count into one bucket."""
    pipeline = new_pipeline("--murmur_widnow=hourly")
    with pytest.raises(ConfigurationError, match=r"--murmur_widnow: is not an option"):
        _ = pipeline | beam.Create([]) | MergeRecords(**FIELDS, store=memory)


def test_outputs_have_schemas() -> None:
    """Each field must have a portable type of its own, as a write to BigQuery needs."""
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
    """The next step, for example a write to BigQuery, must find the schema at the output itself."""
    outputs = new_pipeline() | beam.Create([event("1")]) | MergeRecords(**FIELDS, store=store.spec)
    assert (outputs.merged.element_type, outputs.dead_letter.element_type) == (MergeResult, DeadLetter)
    for row in (MergeResult, DeadLetter):
        assert type(registry.get_coder(row)).__name__ == "RowCoder"


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
    """Encoding must lose nothing. The type may be one that Beam generates from the schema, as older versions always
    do."""
    coder = registry.get_coder(type(row))
    copy = coder.decode(coder.encode(row))
    assert copy == row
    assert copy._fields == row._fields


def test_outputs_survive_a_shuffle(store: Faulty) -> None:
    """Both outputs must pass a Reshuffle unchanged, except that a sequence may become a list."""
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
    """The aggregates of one pipeline must not be mixed with those of another."""
    spec = SqliteSpec(str(tmp_path / "counts.db"))
    with closing(spec.open(Max())) as written:
        written.merge_update(Key("a"), 1)
    with pytest.raises(ConfigurationError, match=r"store: .*max"):
        _ = new_pipeline() | beam.Create([]) | MergeRecords(**FIELDS, store=spec)


def test_a_store_that_cannot_be_a_cache_fails_when_the_pipeline_is_built(tmp_path: Path, memory: MemorySpec) -> None:
    """A cache must be a store that can be refilled."""
    with pytest.raises(ConfigurationError, match="cache: "):
        _ = new_pipeline() | beam.Create([]) | MergeRecords(**FIELDS, store=memory, cache=f"sqlite:///{tmp_path}/c.db")


@pytest.mark.parametrize("commutative", [True, False])
def test_an_aggregate_that_depends_on_the_order_warns(
    memory: MemorySpec, caplog: pytest.LogCaptureFixture, commutative: bool
) -> None:
    """Beam has no order; a pipeline that needs one must log a warning when it is built."""
    joined = Custom("joined", "", str.__add__, commutative=commutative)
    with caplog.at_level(logging.WARNING, logger="murmur_beam"):
        _ = new_pipeline() | beam.Create([]) | MergeRecords("p", **FIELDS, monoid=joined, store=memory)
    assert [record.message for record in caplog.records if "order" in record.message] == (
        [] if commutative else ["p: monoid 'joined' depends on the order of events, and Beam gives none"]
    )


def test_a_table_that_is_appended_to() -> None:
    """New or again, an event is recorded, and counts once; the letter of a failed key is replayed into the same table,
    which already has the other key."""
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


def test_a_cache_gets_only_merged_events(store: Faulty, memory: MemorySpec) -> None:
    """No duplicate, and no failed event."""
    store.fault = failing(b=2)
    elements = [event("1"), event("1"), event("2"), event("3", "b")]
    ran = run(elements, **FIELDS, store=store.spec, cache=str(memory), config=config())
    assert ran.outcomes() == {"merged": 2, "duplicate": 1, "dead_letter": 1}
    assert sums(memory) == {Key("a"): 2}


def test_a_cache_that_fails_changes_nothing(store: Faulty) -> None:
    """Its failures must only be counted."""
    cache = Faulty(fault=lambda update: BUSY)
    ran = run([event("1"), event("2")], name="p", **FIELDS, store=store.spec, cache=cache.spec, config=config())
    assert ran.outcomes() == {"merged": 2}
    assert ran.counters["p:cache:error"] == 2
    assert store.state() == {("a", 0): 2}


def test_two_in_one_pipeline(store: Faulty) -> None:
    """Two with names of their own need no labels; two without must be distinguished by labels, as Beam says."""
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
    """The names of the README must exist."""
    assert murmur_beam.MergeRecords is MergeRecords
    assert murmur_beam.MergeDoFn is MergeDoFn
    assert murmur_beam.MurmurOptions is transforms.MurmurOptions
