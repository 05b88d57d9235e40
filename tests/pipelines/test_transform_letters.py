"""Dead letters of `MergeRecords` on a real runner: which elements become one, and how they are replayed."""

from __future__ import annotations

import json
import os
import pickle
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

import murmur_beam
from murmur_beam.model import DeadLetter, Key
from murmur_beam.processor import Config, NoDedup
from murmur_beam.state.memory import MemorySpec
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.transforms import MergeRecords
from murmur_beam.windows import daily, hourly
from tests.support.recording import RecordingSpec
from tests.support.strategies import START
from tests.support.transform import (
    FIELDS,
    NOW_S,
    Faulty,
    Ran,
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


def test_dead_letters_replay_through_the_same_transform(store: Faulty) -> None:
    """Of a record that failed in part only the failed keys must be merged, and the original element be output."""
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
    """An element that JSON cannot represent."""

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
def test_unreadable_letters_keep_their_content(store: Faulty, changes: dict[str, Any], problem: str) -> None:
    """The new letter must have all that they knew, the reason, and the time of the failure."""
    letter = letter_of(**changes)
    again = run([letter], **FIELDS, store=store.spec, name="p", config=config()).letter
    assert again.error_message.startswith(problem)
    assert (again.stage, again.attempts) == ("decode", 0)
    news = ("stage", "attempts", "error_type", "error_message", "failed_at")
    assert again._replace(**{name: getattr(letter, name) for name in news}) == letter
    assert store.state() == {}


def test_a_letter_with_an_invalid_time_becomes_another(store: Faulty) -> None:
    """A letter that was edited by hand must not stop the pipeline."""
    again = run([letter_of(event_time="noon")], **FIELDS, store=store.spec).letter
    assert again.error_message.startswith("event_time: 'noon'")
    assert (again.stage, again.event_id, again.failed_keys) == ("decode", "1", ["a"])


def test_dead_letters_become_json(store: Faulty, tmp_path: Path) -> None:
    """``to_dict`` must give values that JSON can represent, and ``to_json`` lines that are read back as the same
    letters."""
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
    """Exactly one, which says what is wrong with which field, and holds the original element."""
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


@pytest.fixture
def other_process(monkeypatch: pytest.MonkeyPatch) -> FnApiRunner:
    """A runner whose worker is a process of its own, as with every real runner."""
    # The tests as well: some versions of Beam pickle a lambda with the name of its module.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(murmur_beam.__file__).parents[1]), *sys.path]))
    command = f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment(command_string=command))


def test_letters_replay_in_another_process(other_process: FnApiRunner, tmp_path: Path) -> None:
    """Beam decodes letters from a shuffle there to a type that it generates: they must still be letters."""
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


def test_recorded_records_in_another_process(other_process: FnApiRunner, tmp_path: Path) -> None:
    """Through pickles and coders, also those of a shuffle; without ids each delivery counts once."""
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
    """``to_json`` must work for them as well."""
    pipeline = new_pipeline(runner=other_process)
    letters = pipeline | beam.Create([b"\xff"]) | MergeRecords(**FIELDS, store=memory)
    lines = letters.dead_letter | beam.Reshuffle() | beam.Map(DeadLetter.to_json)
    _ = lines | beam.io.WriteToText(str(tmp_path / "letters"), shard_name_template="")
    pipeline.run().wait_until_finish()
    assert DeadLetter.from_json((tmp_path / "letters").read_text()).payload == b"\xff"
