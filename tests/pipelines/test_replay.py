"""`murmur replay` from a subscription on the real Pub/Sub emulator; files are tested in test_replay_files.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from google.cloud import pubsub_v1

from murmur_beam.errors import TransientError
from murmur_beam.model import DeadLetter, Update
from murmur_beam.monoids import Sum
from murmur_beam.programs import replay, worker
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import FaultyStore
from tests.support import emulators, programs, recording
from tests.support.topics import Topic, new_topic

FLAGS = ["--store=sqlite:///counts.db", "--key=page/{page}", "--key==all", "--value=n", "--event_id=id"]
IDLE = ["--until_idle=1s", "--backoff_base=0s", "--backoff_max=0s"]


class Ran(NamedTuple):
    """The result of a run."""

    code: int
    out: list[str]
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(run: Callable[..., programs.Ran], own_folder: Path) -> Run:
    """Runs a pipeline in this process, in a folder of its own."""

    def call(*argv: str, pipeline: ModuleType = replay, flags: Sequence[str] = FLAGS) -> Ran:
        ran = run(pipeline, *flags, *argv)
        return Ran(ran.code, ran.out.splitlines(), ran.err)

    return call


@pytest.fixture
def dead(pubsub_host: str) -> Topic:
    """A topic for dead letters, with a subscription."""
    return new_topic()


def state() -> dict[str, int]:
    """The content of the store."""
    store = SqliteSpec("counts.db").open(Sum())
    try:
        return {key.entity: total for key, total in store.scan()}
    finally:
        store.close()


def event(n: int) -> bytes:
    """An event, as a message carries it."""
    return json.dumps({"id": f"e{n}", "page": n % 3, "n": n}).encode()


def test_failed_keys_of_a_worker_are_merged(dead: Topic, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each record the failed key, and no other; then the subscription is empty."""
    source = new_topic()
    source.publish(*map(event, range(30)))

    def busy(update: Update) -> Exception | None:
        return TransientError("busy") if update.key.entity == "all" else None

    opened = SqliteSpec.open
    with monkeypatch.context() as patch:
        patch.setattr(SqliteSpec, "open", lambda *args, **more: FaultyStore(opened(*args, **more), busy))
        ran = run(f"--subscription={source.subscription}", f"--dead_letter_topic={dead.name}", *IDLE, pipeline=worker)
        assert ran.out[0] == "0 merged / 0 duplicate / 30 dead-lettered"
    pages = {f"page/{page}": sum(range(page, 30, 3)) for page in range(3)}
    assert state() == pages

    ran = run(f"--subscription={dead.subscription}", *IDLE)
    assert (ran.code, ran.out) == (0, ["30 merged / 0 duplicate / 0 dead-lettered"])
    assert state() == {**pages, "all": sum(range(30))}
    assert dead.left() == []


def test_failed_keys_of_a_worker_are_recorded(dead: Topic, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a table that is appended to: replayed twice, the failed key counts once, and so does the other."""
    flags = [f"--store={recording.SCHEME}:///counts.db", *FLAGS[1:]]
    source = new_topic()
    source.publish(*map(event, range(30)))

    def busy(update: Update) -> Exception | None:
        return TransientError("busy") if update.key.entity == "all" else None

    opened = SqliteSpec.open
    with monkeypatch.context() as patch:
        patch.setattr(SqliteSpec, "open", lambda *args, **more: FaultyStore(opened(*args, **more), busy))
        topics = [f"--subscription={source.subscription}", f"--dead_letter_topic={dead.name}"]
        ran = run(*topics, *IDLE, pipeline=worker, flags=flags)
        assert ran.out[0] == "0 merged / 0 duplicate / 30 dead-lettered"
    pages = {f"page/{page}": sum(range(page, 30, 3)) for page in range(3)}
    assert state() == pages
    letters = dead.left(30)
    dead.publish(*[message.data for message in letters], *[message.data for message in letters])
    ran = run(f"--subscription={dead.subscription}", *IDLE, flags=flags)
    assert ran.code == 0
    (line,) = ran.out
    assert line.endswith(" recorded / 0 dead-lettered")
    assert int(line.split()[0]) >= 60
    assert state() == {**pages, "all": sum(range(30))}
    assert dead.left() == []


def letter(payload: bytes, pipeline: str = "murmur") -> bytes:
    """A dead letter of a message that could not be decoded, as it is published."""
    return json.dumps(
        {
            "payload": payload.decode(),
            "payload_type": "pubsub",
            "attributes": {"colour": "red"},
            "message_id": "m1",
            "publish_time": "2026-11-23T10:00:00.000000Z",
            "ordering_key": None,
            "pipeline": pipeline,
            "stage": "decode",
            "event_id": None,
            "event_time": None,
            "keys": [],
            "failed_keys": [],
            "error_type": "InvalidRecord",
            "error_message": "",
            "attempts": 0,
            "failed_at": "2026-11-23T10:00:00.000000Z",
        }
    ).encode()


def test_nothing_that_cannot_be_merged_is_lost(dead: Topic, run: Run) -> None:
    """Letters that fail again and messages that are not letters go to the file, byte for byte and after its content;
    letters of other pipelines stay in the subscription, available at once."""
    other = letter(event(9), "other")
    dead.publish(letter(event(1)), letter(b"{"), b"\xff no letter", other, letter(event(2)))
    Path("still-dead-letters.jsonl").write_bytes(b"earlier\n")
    ran = run(f"--topic={dead.name}", *IDLE)
    assert (ran.code, ran.out) == (
        3,
        [
            "2 merged / 0 duplicate / 2 dead-lettered",
            "1 letters of pipelines other than 'murmur' were skipped; see --name",
            "1 messages are not dead letters",
            "letters that could not be merged are in still-dead-letters.jsonl",
        ],
    )
    assert state() == {"page/1": 1, "page/2": 2, "all": 3}
    earlier, *lines = Path("still-dead-letters.jsonl").read_bytes().splitlines()
    assert earlier == b"earlier"
    again = {each.payload: each for each in map(DeadLetter.from_json, lines)}
    assert again.keys() == {b"{", b"\xff no letter"}
    assert (again[b"{"].payload_type, again[b"{"].attributes) == ("pubsub", {"colour": "red"})
    assert again[b"\xff no letter"].error_message.startswith("payload: not a dead letter: not JSON")
    assert [message.data for message in dead.left(1)] == [other]


def test_letters_of_others_may_fill_the_limit_of_messages(dead: Topic, run: Run) -> None:
    """The run must still end, and say that there may be more letters and how to reach them."""
    dead.publish(*[letter(event(n), "other") for n in range(5)])
    ran = run(f"--subscription={dead.subscription}", "--max_outstanding=5", *IDLE)
    assert ran.code == 0
    assert ran.out[1] == "5 letters of pipelines other than 'murmur' were skipped; see --name"
    assert ran.out[2].startswith("these letters reach the limit of --max_outstanding, ")
    assert 'attributes.pipeline = "murmur"' in ran.out[2]
    assert len(dead.left(5)) == 5


def test_the_id_is_that_of_the_message_inside(dead: Topic, run: Run) -> None:
    """Without ``--event_id`` an event has the id of its own message, not of the message with the letter."""
    dead.publish(letter(event(1)), letter(event(1)))
    ran = run(f"--subscription={dead.subscription}", *IDLE, flags=FLAGS[:-1])
    assert ran.out == ["1 merged / 1 duplicate / 0 dead-lettered"]
    assert state() == {"page/1": 1, "all": 1}


def test_a_topic_without_a_subscription(dead: Topic, run: Run) -> None:
    """It keeps nothing: one line that says so, and what to do."""
    name = f"{dead.name}-2"
    with pubsub_v1.PublisherClient() as client:
        client.create_topic(name=name)
    ran = run(f"--topic={name}", *IDLE)
    assert (ran.code, ran.out) == (2, [])
    assert ran.err.startswith(f"replay: error: --topic: {name} has no visible subscription")
    assert ran.err.endswith(f": gcloud pubsub subscriptions create NAME --topic={name}\n")


def test_a_topic_with_several_subscriptions(dead: Topic, run: Run) -> None:
    """One line that names them."""
    with pubsub_v1.SubscriberClient() as client:
        client.create_subscription(name=f"{dead.subscription}-2", topic=dead.name)
    ran = run(f"--topic={dead.name}", *IDLE)
    assert (ran.code, ran.out) == (2, [])
    assert ran.err == (
        f"replay: error: --topic: {dead.name} has 2 subscriptions; name one with --subscription: "
        f"{dead.subscription}, {dead.subscription}-2\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of the arguments --input --subscription --topic is required"),
        (
            ["--topic=none", f"--project={emulators.PROJECT}"],
            "--topic: projects/test-project/topics/none does not exist",
        ),
        (["--topic=a", "--subscription=b"], "argument --subscription: not allowed with argument --topic"),
        (
            ["--subscription=projects/p/subscriptions/s", "--colour=red"],
            "--colour: is not an option with",
        ),
        (["--input=none.jsonl"], "--input: no file matches"),
    ],
    ids=lambda flags: " ".join(flags) if isinstance(flags, list) else "",
)
def test_mistakes(pubsub_host: str, run: Run, flags: list[str], message: str) -> None:
    """One line that names the mistake."""
    ran = run(*flags)
    assert (ran.code, ran.out) == (2, [])
    (line,) = ran.err.splitlines()
    assert line.startswith(f"replay: error: {message}")
