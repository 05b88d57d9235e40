"""The Pub/Sub pipeline by its own main: on both emulators in a process of its own, and with mistakes in this one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from murmur_beam.errors import ConfigurationError, StoreUnavailable
from murmur_beam.model import DeadLetter
from murmur_beam.options import MergeOptions
from murmur_beam.programs import pubsub, replay
from murmur_beam.reader import Reader
from tests.support import emulators, environment, topics

Message = tuple[bytes, dict[str, str]]

TIMEOUT_S = 90.0
SUBSCRIPTION = "--subscription=projects/test-project/subscriptions/sub"
COUNT = ("--key=page", "--monoid=count")
BAD: Sequence[Message] = (
    (b'{"page": ', {"id": "bad-1"}),
    (b"\xff\x00\xfe not text", {"id": "bad-2", "language": "español"}),
    (b'{"no page": 1}', {"id": "bad-3", "": "an empty name"}),
    (b'{"page": "home"}', {"id": ""}),
    (b"", {"id": "bad-5"}),
)


@pytest.fixture
def topic(pubsub_host: str) -> topics.Topic:
    """The topic that the pipeline reads."""
    return topics.new_topic()


@pytest.fixture
def dead(pubsub_host: str) -> topics.Topic:
    """The topic for its dead letters."""
    return topics.new_topic()


@pytest.fixture
def store(bigtable_host: str) -> str:
    """URI of an empty Bigtable table."""
    return emulators.new_uri(bigtable_host)


@contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """The pipeline as its users start it; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.pubsub", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        assert process.returncode is not None


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until it happens, while the process runs."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it does not come to hold"
        time.sleep(0.1)


def ended(process: subprocess.Popen[str], by: signal.Signals) -> list[str]:
    """Its lines on stderr after a signal, within a few seconds."""
    process.send_signal(by)
    out, err = process.communicate(timeout=15)
    assert (process.returncode, out) == (0, ""), err
    return err.splitlines()


def counts(store: str) -> dict[tuple[str, int], int]:
    """The content of the state: empty before the first write."""
    with suppress(StoreUnavailable), Reader.open(store) as reader:
        return {(key.entity, key.bucket): value for key, value in reader.store.scan()}
    return {}


def as_published(letters: Sequence[DeadLetter], ids: Sequence[str]) -> list[tuple[str, Message]]:
    """Message id, payload and attributes of each, in the order of the ids."""
    assert {letter.payload_type for letter in letters} == {"pubsub"}
    found = [(letter.message_id or "", (letter.payload, dict(letter.attributes))) for letter in letters]
    return sorted(found, key=lambda each: ids.index(each[0]))


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_from_subscription_to_state_and_topic(
    by: signal.Signals, topic: topics.Topic, dead: topics.Topic, store: str
) -> None:
    """Each event counts once however often it is published, each bad message is a dead letter on the topic byte for
    byte; a signal ends the run at once, with one line."""
    pages = ["home", "help", "blog"]
    good: list[Message] = [
        (json.dumps({"page": pages[i % 3], "at": f"2026-11-{1 + i % 2:02d}T10:00:00Z"}).encode(), {"id": f"e{i}"})
        for i in range(60)
    ]
    topic.send([*good, *good[:30]])
    ids = topic.send(BAD)
    argv = [f"--subscription={topic.subscription}", f"--store={store}", f"--dead_letter_topic={dead.name}", *COUNT]
    with running(*argv, "--event_id=attribute:id", "--event_time=at", "--window=daily", "--name=views") as process:
        wait_until(lambda: sum(counts(store).values()) >= 60, process)
        received = dead.left(len(BAD))
        topic.send(good)
        topic.send([(b'{"page": "the last", "at": "2026-11-01T10:00:00Z"}', {"id": "last"})])
        wait_until(lambda: any(entity == "the last" for entity, _ in counts(store)), process)
        lines = ended(process, by)

    # 2026-11-01 is day 20758 of the Unix epoch.
    expected = Counter((pages[i % 3], 20758 + i % 2) for i in range(60))
    expected["the last", 20758] = 1
    assert counts(store) == expected
    letters = [DeadLetter.from_json(message.data) for message in received]
    assert as_published(letters, ids) == list(zip(ids, BAD, strict=True))
    for message, letter in zip(received, letters, strict=True):
        assert dict(message.attributes) == {
            "pipeline": "views",
            "stage": letter.stage,
            "error_type": letter.error_type,
        }
        assert letter.error_type == "InvalidRecord"
    assert Counter(letter.stage for letter in letters) == {"decode": 2, "extract": 3}
    assert lines == [
        "pubsub: note: Beam's local runner acknowledges messages before it processes them, so a stop or a crash loses "
        "some; python -m pipelines.worker loses none",
        "pubsub: stopped",
    ]


def test_dead_letters_in_a_folder(
    topic: topics.Topic, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of whole lines that replay reads, byte for byte; events without an id have their message's, in buckets of
    their publish time, with a warning."""
    folder = tmp_path / "dead" / "letters"
    ids = topic.send(BAD)
    topic.send([(b'{"page": "home"}', {})] * 3)

    def letters() -> list[DeadLetter]:
        lines = [line for file in folder.glob("*.jsonl") for line in file.read_bytes().splitlines(keepends=True)]
        assert all(line.endswith(b"\n") for line in lines)
        return [DeadLetter.from_json(line) for line in lines]

    flags = [f"--store={store}", *COUNT, "--window=daily"]
    with running(f"--subscription={topic.subscription}", f"--dead_letters={folder}", *flags) as process:
        wait_until(lambda: len(letters()) == 4 and sum(counts(store).values()) == 4, process)
        warning, *lines = ended(process, signal.SIGTERM)

    # These have their messages' ids, so that one more of the bad ones is complete.
    assert list(counts(store).values()) == [4]
    (bucket,) = {bucket for _, bucket in counts(store)}
    assert abs(bucket - time.time() // 86_400) <= 1
    assert warning.startswith("warning: without --event_id")
    assert len(lines) == 2
    bad = [BAD[i] for i in (0, 1, 2, 4)]
    assert as_published(letters(), ids) == list(zip([ids[i] for i in (0, 1, 2, 4)], bad, strict=True))
    assert {file.suffix for file in folder.iterdir()} == {".jsonl"}

    again = [f"--input={folder}/*", "--event_id=message:id", "--event_time=message:publish_time", "--key==mended"]
    still = tmp_path / "still.jsonl"
    assert replay.main([*again, f"--dead_letters={still}", *flags[:1], "--monoid=count", "--window=daily"]) == 3
    assert "2 merged / 0 duplicate / 2 dead-lettered" in capsys.readouterr().out
    assert counts(store)["mended", bucket] == 2


def test_a_bundle_writes_its_letters_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file a bundle, none for a bundle without letters; a failed bundle leaves nothing to its second try."""
    letter = DeadLetter(
        *(b"\xff", "bytes", {}, None, None, None, "views", "decode", None, None, [], [], "E", "m\n", 0, "t")
    )
    step = pubsub.WriteLetters(str(tmp_path))
    for letters in (0, 2, 1):
        step.start_bundle()
        step.process(letter)
        step.start_bundle()
        for _ in range(letters):
            step.process(letter)
        step.finish_bundle()
    files = [path.read_text("utf-8").splitlines() for path in tmp_path.glob("*.jsonl")]
    assert sorted(map(len, files)) == [1, 2]
    assert [DeadLetter.from_json(line) for lines in files for line in lines] == [letter] * 3

    monkeypatch.setattr("murmur_beam.programs.pubsub.FileSystems.rename", lambda source, target: 1 / 0)
    step.start_bundle()
    step.process(letter)
    with pytest.raises(ZeroDivisionError):
        step.finish_bundle()
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


@pytest.mark.parametrize(
    "to",
    [{"dead_letter_topic": "projects/test-project/topics/dead"}, {"dead_letters": "gs://bucket/dead"}],
    ids=["topic", "folder"],
)
def test_the_graph_is_built_offline(to: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As needed for Dataflow: the read with its subscription, the merge step, and both of its outputs."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    pipeline = beam.Pipeline(options=PipelineOptions(["--streaming"]))
    merge = MergeOptions(key="page", monoid="count", event_id="id", store="memory://test_the_graph")
    pubsub.build(pipeline, "projects/test-project/subscriptions/views", merge, **to)
    steps = {step.unique_name: step for step in pipeline.to_runner_api().components.transforms.values()}
    read = steps["ReadFromPubSub/Read"]
    assert read.spec.urn == "beam:transform:pubsub_read:v1"
    assert b"projects/test-project/subscriptions/views" in read.spec.payload
    merged = steps["MergeRecords/Merge/ParDo(MergeDoFn)"]
    assert merged.spec.urn == "beam:transform:pardo:v1"
    assert list(merged.inputs.values()) == list(steps["ReadFromPubSub"].outputs.values())
    consumed = {output for step in steps.values() for output in step.inputs.values()}
    assert merged.outputs["dead_letter"] in consumed
    assert any(name.startswith("WriteDeadLetters") for name in steps)


class Endless:
    """A pipeline that runs until the process ends."""

    def run(self) -> Endless:
        return self

    def wait_until_finish(self) -> None:
        threading.Event().wait()


def test_two_signals_in_a_row_end_it_as_one_does() -> None:
    """The second may interrupt the handler of the first, at any point, and must not wait for it."""
    main = threading.get_ident()
    over = threading.Event()

    def shower() -> None:
        while not over.is_set():
            signal.pthread_kill(main, signal.SIGINT)
            signal.pthread_kill(main, signal.SIGTERM)
            time.sleep(0.0001)

    ignored = {each: signal.signal(each, lambda number, frame: None) for each in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=shower, daemon=True)
    thread.start()
    try:
        for _ in range(50):
            assert pubsub.run_until_stopped(Endless())
    finally:
        over.set()
        thread.join()
        for each, handler in ignored.items():
            signal.signal(each, handler)


class Mistake:
    """A wrong command line: one line on stderr, exit code 2."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str) -> str:
        try:
            code: object = pubsub.main(argv)
        except SystemExit as exit:
            code = exit.code
        out, err = self._capsys.readouterr()
        assert (code, out) == (2, "")
        (line,) = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert line.startswith("pubsub: error: ")
        return line.removeprefix("pubsub: error: ")


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str], own_folder: Path) -> Mistake:
    """Runs a wrong command line, in a folder of its own."""
    return Mistake(capsys)


STORE = "--store=sqlite:///pubsub.db"
TOPIC = "--dead_letter_topic=projects/test-project/topics/dead"
WHOLE = (SUBSCRIPTION, STORE, TOPIC, "--event_id=id", *COUNT)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([STORE, TOPIC, *COUNT], "the following arguments are required: --subscription"),
        ([SUBSCRIPTION, STORE, *COUNT], "--dead_letters: is missing, and so is --dead_letter_topic"),
        ([SUBSCRIPTION, STORE, f"--dead_letters={__file__}", *COUNT], "--dead_letters: /"),
        ([SUBSCRIPTION, STORE, f"--dead_letters={__file__}/x", *COUNT], "--dead_letters: /"),
        ([SUBSCRIPTION, TOPIC, *COUNT], "store: is missing"),
        ([*WHOLE, "--decode=xml"], "--decode: unknown format 'xml'"),
        ([*WHOLE, "--subscription=views"], "--subscription: 'views' lacks a project; write projects/"),
        ([*WHOLE, "--dead_letter_topic=a/b"], "--dead_letter_topic: 'a/b' is not a valid name; write projects/"),
        ([*WHOLE, "--subscription=projects/p/subscriptions/s"], "--subscription: Invalid PubSub project name: 'p'"),
        ([*WHOLE, "--dead_letter_topic=dead", "--project=p"], "--dead_letter_topic: Invalid PubSub project name: 'p'"),
        ([*WHOLE, "--subscribtion=x"], "--subscribtion: is neither an option of this pipeline"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv: list[str], complaint: str, mistake: Mistake) -> None:
    """It names the flag, before anything is read."""
    assert mistake(*argv).startswith(complaint)


def test_a_client_that_is_not_installed_is_named(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that installs it."""
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    assert mistake(*WHOLE).endswith("run: pip install 'murmur-beam[gcp]'")


def test_missing_topics_and_subscriptions_are_reported_before_any_read(
    topic: topics.Topic, dead: topics.Topic, mistake: Mistake
) -> None:
    """The local runner would lose messages that it reads before it notices."""
    here, there = f"--subscription={topic.subscription}", f"--dead_letter_topic={dead.name}"
    topic.send([(b"not JSON", {})])
    assert mistake(*WHOLE, f"{here}-not", there).startswith(f"--subscription: {topic.subscription}-not does not exist")
    assert mistake(*WHOLE, here, f"{there}-not").startswith(f"--dead_letter_topic: {dead.name}-not does not exist")
    assert mistake(*WHOLE, here, f"--dead_letter_topic={topic.name}").startswith("--dead_letter_topic: is the topic th")
    assert len(topic.left(1)) == 1


def test_a_server_that_does_not_answer_is_reported(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without minutes of retries."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    assert mistake(*WHOLE).startswith("--subscription: cannot look up projects/test-project/subscriptions/sub: ")


def test_a_place_for_dead_letters_is_required() -> None:
    """Also where the steps are built from Python."""
    merge = {"key": "page", "monoid": "count", "event_id": "id", "store": "memory://test_pubsub"}
    with pytest.raises(ConfigurationError, match=r"^--dead_letters: is missing"):
        pubsub.build(beam.Pipeline(), "projects/test-project/subscriptions/sub", merge)


class Result:
    """Of a pipeline that runs until a test makes it end."""

    def __init__(self, error: Exception | None = None) -> None:
        self._end = threading.Event()
        self._error = error
        if error is not None:
            self._end.set()

    def run(self) -> Result:
        return self

    def wait_until_finish(self) -> None:
        self._end.wait()
        if self._error is not None:
            raise self._error


def test_a_pipeline_that_fails_says_why() -> None:
    """Its error is raised, and the former signal handlers are restored."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    pipeline: Any = Result(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        pubsub.run_until_stopped(pipeline)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
