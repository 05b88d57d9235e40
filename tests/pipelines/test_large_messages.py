"""Large messages on the real Pub/Sub emulator: pulled, bounded, and always acknowledged in the end."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from google.api_core.exceptions import InvalidArgument, NotFound

from murmur_beam.errors import ConfigurationError
from murmur_beam.merger import size_of
from murmur_beam.model import DeadLetter
from murmur_beam.monoids import Count
from murmur_beam.processor import Config
from murmur_beam.programs import pubsub, replay, worker
from murmur_beam.pubsub import letters
from murmur_beam.pubsub.letters import MAX_MESSAGE_BYTES, LetterTopic, message_of
from murmur_beam.pubsub.overflow import OverflowFile
from murmur_beam.pubsub.puller import Puller
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER
from murmur_beam.state.sqlite import SqliteSpec
from tests.support import programs
from tests.support.programs import letters_in
from tests.support.topics import Topic, new_topic

COUNT = ["--store=sqlite:///counts.db", "--key=page", "--monoid=count", "--event_id=id"]
IDLE = ["--until_idle=2s", "--backoff_base=1ms", "--backoff_max=10ms"]
MB = 1_000_000
CONTROLS = b"\x01" * (3 * MB)
"""As JSON text six times as long, and as base64 a third longer."""
HUGE = b"{" + b"\n" * (9_900_000 - 1)
"""A message that Pub/Sub just accepts, while it refuses the message's letter."""


class Ran(NamedTuple):
    """The result of a run."""

    code: int
    out: list[str]
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def topic(pubsub_host: str) -> Topic:
    """The topic that is read."""
    return new_topic()


@pytest.fixture
def dead(pubsub_host: str) -> Topic:
    """The topic for dead letters."""
    return new_topic()


@pytest.fixture
def run(run: Callable[..., programs.Ran], own_folder: Path) -> Run:
    """Runs a program in this process, in a folder of its own, by default until nothing comes for two seconds."""

    def call(*argv: str, program: ModuleType = worker, flags: Sequence[str] = (*COUNT, *IDLE)) -> Ran:
        ran = run(program, *flags, *argv)
        return Ran(ran.code, ran.out.splitlines(), ran.err)

    return call


def event(n: int, size: int = 0) -> bytes:
    """A good event of a little more than this many bytes."""
    return json.dumps({"id": f"e{n}", "page": f"p{n % 3}", "padding": "x" * size}).encode()


def state() -> dict[str, int]:
    """The content of the store."""
    with closing(SqliteSpec("counts.db").open(Count())) as store:
        return {key.entity: total for key, total in store.scan()}


def a_letter(payload: bytes, **more: Any) -> DeadLetter:
    """A letter of a message that could not be decoded."""
    fields: dict[str, Any] = {
        "payload_type": "pubsub",
        "attributes": {},
        "message_id": "m",
        "publish_time": None,
        "ordering_key": None,
        "pipeline": "murmur",
        "stage": "decode",
        "event_id": "m",
        "event_time": None,
        "keys": [],
        "failed_keys": [],
        "error_type": "InvalidRecord",
        "error_message": "payload: bad",
        "attempts": 0,
        "failed_at": "2026-11-23T10:00:00.000000Z",
        **more,
    }
    return DeadLetter(payload, **fields)


@pytest.mark.parametrize(("n", "size"), [(600, 50_000), (40, 500_000), (5, 5 * MB)], ids=str)
def test_answers_of_more_than_four_megabytes(topic: Topic, run: Run, n: int, size: int) -> None:
    """Google's client would refuse them from an emulator repeatedly; all are merged, once."""
    topic.publish(*[event(i, size) for i in range(n)])
    ran = run(f"--subscription={topic.subscription}")
    assert ran.out == [f"{n} merged / 0 duplicate / 0 dead-lettered"]
    assert state() == dict(Counter(f"p{i % 3}" for i in range(n)))
    assert topic.left() == []


@pytest.mark.parametrize(
    ("size", "n", "bound"), [(3 * MB, 20, 20 * MB), (50_000, 200, 2 * MB), (MB, 5, 1)], ids=["3 MB", "50 kB", "one"]
)
def test_messages_held_are_bounded_by_their_bytes(topic: Topic, size: int, n: int, bound: int) -> None:
    """Except for the first ten, whose size is unknown; acknowledged messages make room, and all are merged in the
    end."""
    topic.publish(*[bytes(size)] * n)
    with closing(Puller(topic.subscription, 5_000, Config(), "test", bound)) as pulled:
        here: list[str] = []
        came = most = 0
        while came < n:
            received = pulled.get(20.0 if not here else 0.5)
            if received is None:
                assert here, "nothing comes though there is room"
                pulled.ack(here)
                here = []
                continue
            assert size_of(received.message) == size
            came += 1
            here.append(received.ack_id)
            most = max(most, len(here))
        pulled.ack(here)
    assert most <= max(10, bound // size + 1)
    assert topic.left() == []


class Case(NamedTuple):
    """A bad message, and whether its letter fits into the topic."""

    data: bytes
    attributes: Mapping[str, str]
    fits: bool


CASES = {
    "controls": Case(CONTROLS, {}, True),
    "huge": Case(HUGE, {}, False),
    "huge text": Case(b"{" + b"x" * 9_900_000, {}, True),
    "not UTF-8": Case(b"\xff" * (8 * MB), {}, False),
    "quotes": Case(b'{"' + b'"' * (6 * MB), {}, True),
    "attributes": Case(b"{", {f"a{i}": "\xfc" * 500 for i in range(99)}, True),
}


@pytest.mark.parametrize("name", CASES)
def test_a_letter_is_written_once_however_large(topic: Topic, dead: Topic, run: Run, name: str) -> None:
    """On the topic where it fits, otherwise in the file; good messages are not affected, and nothing is redelivered
    forever."""
    case = CASES[name]
    topic.publish(case.data, **case.attributes)
    topic.publish(*map(event, range(30)))
    ran = run(f"--subscription={topic.subscription}", f"--dead_letter_topic={dead.name}")
    assert ran.code == 0
    assert ran.out[0] == "30 merged / 0 duplicate / 1 dead-lettered"
    assert not any("were returned" in line for line in ran.out), "each message must be settled at its first delivery"
    assert topic.left() == []
    published = dead.left(1 if case.fits else 0)
    if case.fits:
        (letter,) = [DeadLetter.from_json(message.data) for message in published]
        assert not Path("dead-letters.jsonl").exists()
        assert ran.out[1:] == [f"dead letters are in {dead.name}"]
    else:
        assert published == []
        (letter,) = letters_in("dead-letters.jsonl")
        assert ran.out[1:] == [f"dead letters are in {dead.name}, and 1 that it refused in dead-letters.jsonl"]
        assert f"worker: dead letters that {dead.name} refuses are written to dead-letters.jsonl: larger" in ran.err
    assert (letter.payload, letter.attributes) == (case.data, case.attributes)


def test_both_places_at_once_and_a_replay_of_both(topic: Topic, dead: Topic, run: Run) -> None:
    """A letter that does not fit does not keep others from the topic; the file is replayed like any other."""
    sent = [CONTROLS, HUGE, b"{", b"\xff" * (8 * MB), *map(event, range(5))]
    topic.publish(*sent)
    flags = [f"--subscription={topic.subscription}", f"--dead_letter_topic={dead.name}", "--dead_letters=large.jsonl"]
    ran = run(*flags)
    assert ran.out == [
        "5 merged / 0 duplicate / 4 dead-lettered",
        f"dead letters are in {dead.name}, and 2 that it refused in large.jsonl",
    ]
    assert {letter.payload for letter in letters_in("large.jsonl")} == {HUGE, sent[3]}
    assert topic.left() == []

    mended = ["--store=sqlite:///counts.db", "--key==mended", "--monoid=count", "--event_id=message:id"]
    mended.append(f"--decode={__name__}:anything")
    ran = run("--input=large.jsonl", program=replay, flags=mended)
    assert ran.out == ["2 merged / 0 duplicate / 0 dead-lettered"]
    ran = run(f"--subscription={dead.subscription}", program=replay, flags=[*mended, *IDLE])
    assert ran.out == ["2 merged / 0 duplicate / 0 dead-lettered"]
    assert state()["mended"] == 4


def anything(element: Any) -> dict[str, Any]:
    """A decoder that accepts anything."""
    return {}


class Shelf:
    """Keeps letters, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.kept: list[DeadLetter] = []
        self.error = error

    def keep(self, letters: Sequence[DeadLetter]) -> list[Exception | None]:
        if self.error is None:
            self.kept += letters
        return [self.error] * len(letters)

    def close(self) -> None:
        """Nothing to close."""


def test_letters_that_the_topic_will_never_accept_go_to_the_file(dead: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that Pub/Sub calls invalid, or the client refuses, but not one of a topic that is missing for a
    while."""
    shelf = Shelf()
    reasons: list[str] = []
    topic = LetterTopic(dead.name, shelf, lambda err: reasons.append(str(err)))
    errors = {b"schema": InvalidArgument("no such field"), b"type": TypeError("text"), b"gone": NotFound("the topic")}

    def publish(self: LetterTopic, letter: DeadLetter) -> Any:
        return errors.get(letter.payload) or published(self, letter)

    published = LetterTopic._publish
    monkeypatch.setattr(LetterTopic, "_publish", publish)
    with closing(topic):
        failures = topic.keep([a_letter(payload) for payload in (b"good", b"schema", b"gone", b"type")])
        assert [type(failure) for failure in failures] == [type(None), type(None), NotFound, type(None)]
        assert [letter.payload for letter in shelf.kept] == [b"schema", b"type"]
        topic.keep([a_letter(b"schema")])
    assert topic.overflowed == 3
    assert reasons == ["400 no such field"], "once is enough"
    assert [DeadLetter.from_json(message.data).payload for message in dead.left(1)] == [b"good"]


def test_a_default_file_that_cannot_be_written_is_a_warning(topic: Topic, dead: Topic, run: Run) -> None:
    """A container may have no place for files, and most topics never get so large a letter: everything else works."""
    Path("dead-letters.jsonl").mkdir()
    topic.publish(b"{", event(1))
    ran = run(f"--subscription={topic.subscription}", f"--dead_letter_topic={dead.name}")
    assert ran.err.startswith("worker: warning: dead-letters.jsonl cannot be written to: it is a folder; a dead letter")
    assert ran.out[0] == "1 merged / 0 duplicate / 1 dead-lettered"
    assert len(dead.left(1)) == 1


@pytest.mark.parametrize(
    ("path", "problem"),
    [("folder", "it is a folder"), ("none/x.jsonl", "the folder none does not exist")],
)
def test_a_file_that_cannot_be_written_is_reported_at_once(
    topic: Topic, dead: Topic, run: Run, path: str, problem: str
) -> None:
    """If it was named, before any message is touched; a file that can be written is not made."""
    Path("folder").mkdir()
    topic.publish(b"{")
    flags = [f"--subscription={topic.subscription}", f"--dead_letter_topic={dead.name}"]
    ran = run(*flags, f"--dead_letters={path}")
    assert (ran.code, ran.out) == (2, [])
    assert ran.err == f"worker: error: --dead_letters: {path} cannot be written to: {problem}\n"
    assert len(topic.left(1)) == 1
    topic.publish(event(1))
    assert run(*flags, "--dead_letters=x.jsonl").code == 0
    assert not Path("x.jsonl").exists()


def test_the_overflow_is_not_lost_when_its_file_fails(tmp_path: Path) -> None:
    """Each letter gets the reason, and the next ones are tried anew."""
    overflow = OverflowFile(str(tmp_path / "none" / "x.jsonl"))
    failures = overflow.keep([a_letter(b"a"), a_letter(b"b")])
    assert ["cannot be written to" in str(failure) for failure in failures] == [True, True]
    (tmp_path / "none").mkdir()
    assert overflow.keep([a_letter(b"a"), a_letter(b"b")]) == [None, None]
    overflow.close()
    assert [letter.payload for letter in letters_in(overflow.path)] == [b"a", b"b"]


def test_beam_writes_each_letter_once(dead: Topic, tmp_path: Path) -> None:
    """To the topic if Dataflow's writer accepts it, otherwise to the folder; a step that cannot write would fail
    permanently."""
    payloads = [b"{", b"\xff" * (5 * MB), b"\xff" * (6 * MB), HUGE, b"x" * (6 * MB), CONTROLS]
    folder = tmp_path / "not there" / "yet"
    with beam.Pipeline(runner=IN_PROCESS_RUNNER) as p:
        made = p | beam.Create([a_letter(payload, pipeline="\xfc" * 1_000) for payload in payloads])
        pubsub.publish(made, dead.name, str(folder))
    published = [DeadLetter.from_json(message.data).payload for message in dead.left(4)]
    filed = [letter.payload for path in folder.iterdir() for letter in letters_in(path)]
    assert sorted(published) == sorted([payloads[0], payloads[1], payloads[4], payloads[5]])
    assert sorted(filed) == sorted([payloads[2], HUGE])


def test_a_bundle_of_large_letters_is_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they are not all held until it ends; each letter is in one of its files."""
    monkeypatch.setattr(pubsub, "_FILE_BYTES", 3 * MB)
    step = pubsub.WriteLetters(str(tmp_path))
    step.start_bundle()
    files = []
    for n in range(7):
        step.process(a_letter(b"%d" % n * MB))
        files.append(len(list(tmp_path.iterdir())))
    step.finish_bundle()
    assert files == [0, 0, 1, 1, 1, 2, 2]
    written = [letters_in(path) for path in tmp_path.iterdir()]
    assert sorted(map(len, written)) == [1, 3, 3]
    assert sorted(letter.payload for some in written for letter in some) == [b"%d" % n * MB for n in range(7)]


@pytest.mark.parametrize(
    ("argv", "folder"),
    [
        ([], "dead-letters"),
        (["--runner=DataflowRunner", "--temp_location=gs://bucket/tmp"], "gs://bucket/tmp/dead-letters"),
        (["--runner=DataflowRunner", "--temp_location=gs://bucket/tmp/"], "gs://bucket/tmp/dead-letters"),
    ],
    ids=["local", "Dataflow", "slash"],
)
def test_the_default_place_for_large_letters(
    argv: list[str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, or where Dataflow's workers can write; nothing is made before such a letter exists."""
    monkeypatch.chdir(tmp_path)
    assert pubsub.overflow_folder(PipelineOptions(argv)) == folder
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "problem"),
    [(["--runner=DataflowRunner"], "and so is --temp_location"), ([], "and a folder dead-letters, ")],
)
def test_no_place_for_large_letters(
    argv: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported when the pipeline is built, with the flag."""
    monkeypatch.chdir(tmp_path)
    Path("dead-letters").write_text("a file")
    with pytest.raises(ConfigurationError, match=rf"^--dead_letters: is missing, {problem}"):
        pubsub.overflow_folder(PipelineOptions(argv))


@pytest.mark.parametrize(
    ("payload", "base64"),
    [
        (CONTROLS, True),
        (b"\x00\x1f" * MB, True),
        (b'"' * MB, True),
        (b"x" * MB, False),
        ("\xfc".encode() * MB, False),
        (json.dumps([{"k": "a long text of a record"}] * 10_000).encode(), False),
        (b"\xff" * MB, True),
        (b"\x01" * 1_000, False),
        (b"\xff", True),
        (b"", False),
    ],
    ids=["controls", "others", "quotes", "text", "umlauts", "JSON", "bytes", "few controls", "byte", "nothing"],
)
def test_the_shorter_form_of_a_payload_is_used(payload: bytes, base64: bool) -> None:
    """Base64 where the text would be longer, though short payloads stay readable; both are read back unchanged."""
    letter = a_letter(payload)
    assert ("payload_base64" in letter.to_dict()) is base64
    line = letter.to_json()
    assert len(line) < 4 / 3 * max(len(payload), 10_000) + 1_000
    assert DeadLetter.from_json(line) == letter


@pytest.mark.parametrize(
    "name", ["views", "n" * 1_024, "n" * 5_000, "\xfc" * 5_000, "\ud800" * 500, "\U0001f600" * 300]
)
def test_attributes_are_cut_to_the_limit_of_pubsub(name: str) -> None:
    """Whole characters of at most 1024 bytes, whatever the pipeline's name; the letter itself has everything."""
    made = message_of(a_letter(b"", pipeline=name), MAX_MESSAGE_BYTES)
    assert made is not None
    data, attributes = made
    assert DeadLetter.from_json(data).pipeline == name
    assert all(len(value.encode("utf-8")) <= 1_024 for value in attributes.values())
    assert name.startswith(attributes["pipeline"]) or "\ud800" in name


def test_the_largest_letter_that_is_published(dead: Topic, run: Run) -> None:
    """Each letter around the limit is published, or refused before the client or Pub/Sub would refuse it."""
    envelope = len(a_letter(b"").to_json()) + sum(len(k + v) for k, v in letters.attributes_of(a_letter(b"")).items())
    shelf = Shelf()
    with closing(LetterTopic(dead.name, shelf, lambda err: None)) as topic:
        sizes = [MAX_MESSAGE_BYTES - envelope - 1_000 + more for more in (0, 1)]
        assert topic.keep([a_letter(b"x" * size) for size in sizes]) == [None, None]
    assert [len(DeadLetter.from_json(message.data).payload) for message in dead.left(1)] == sizes[:1]
    assert [len(letter.payload) for letter in shelf.kept] == sizes[1:]


def test_without_an_emulator_google_s_own_channel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an emulator needs another one."""
    from google.cloud import pubsub_v1

    from murmur_beam.pubsub.client import subscriber_client

    made: list[dict[str, Any]] = []
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(pubsub_v1, "SubscriberClient", lambda **more: made.append(more))
    subscriber_client()
    assert made == [{}]
    assert "PUBSUB_EMULATOR_HOST" not in os.environ
