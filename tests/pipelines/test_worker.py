"""`murmur worker` on the real Pub/Sub emulator: no message is acknowledged before it is merged or its letter is
kept."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.cloud import pubsub_v1

from murmur_beam.errors import MurmurError, StoreUnavailable, TransientError
from murmur_beam.model import DeadLetter, Key, Update
from murmur_beam.monoids import Count
from murmur_beam.options import MergeOptions
from murmur_beam.processor import Config
from murmur_beam.programs import worker
from murmur_beam.pubsub import puller
from murmur_beam.pubsub.puller import Puller
from murmur_beam.pubsub.subscriber import Subscriber
from murmur_beam.reader import Reader
from murmur_beam.spec import resolve
from murmur_beam.state import spec_from_uri
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import FaultyStore
from murmur_beam.testing import emulators as murmur_emulators
from tests.support import emulators, environment, programs, recording
from tests.support.fault_proxy import CHECK_AND_MUTATE, Fault, FaultProxy, Outage, Plan
from tests.support.programs import letters_in
from tests.support.topics import TIMEOUT_S, Topic, new_topic

COUNT = ["--key=page/{page}", "--key==all", "--monoid=count", "--event_id=id"]
"""The arguments of the merge in nearly all tests."""

State = dict[str, int]


@pytest.fixture
def topic(pubsub_host: str) -> Topic:
    """A topic with a subscription."""
    return new_topic()


def event(n: int, pages: int = 7) -> dict[str, object]:
    """An event of a page."""
    return {"id": f"e{n}", "page": n % pages}


def payloads(events: Sequence[Mapping[str, object]]) -> list[bytes]:
    """Events as messages carry them."""
    return [json.dumps(each).encode() for each in events]


def by_hand(events: Sequence[Mapping[str, object]]) -> State:
    """The expected state of events, each of them once: a plain dictionary."""
    once = {each["id"]: each for each in events}.values()
    return dict(Counter(f"page/{each['page']}" for each in once) + Counter({"all": len(once)}))


class Watch:
    """Reads the state from outside."""

    def __init__(self, uri: str) -> None:
        self._store = spec_from_uri(uri, "store").open(Count(), None)

    def merged(self) -> int:
        """Events in the state so far."""
        return self._store.get(Key("all")) or 0

    def state(self) -> State:
        """All aggregates."""
        return {key.entity: value for key, value in self._store.scan()}

    def close(self) -> None:
        """Close the store."""
        self._store.close()


@contextlib.contextmanager
def running(log: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m pipelines.worker`` as its users start it; it ends with the block."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.worker", *argv], stdout=file, stderr=file, env=environment()
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(TIMEOUT_S)


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until it happens; the process must not end before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        assert process.poll() is None, f"ended with {process.poll()}: {log.read_text()}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.002)


class Ran(NamedTuple):
    """The result of a run of ``main``."""

    code: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        """The only line of a run that ended with a mistake."""
        (line,) = self.err.splitlines()
        assert self.code == 2
        return line


Run = Callable[..., Ran]


@pytest.fixture
def run(run: Callable[..., programs.Ran], own_folder: Path) -> Run:
    """Runs a worker in this process, in a folder of its own, until nothing comes for a second."""

    def call(*argv: str) -> Ran:
        return Ran(*run(worker, "--until_idle=1s", "--backoff_base=1ms", "--backoff_max=10ms", *argv))

    return call


def outcomes(text: str) -> list[str]:
    """The summaries of runs."""
    return [line for line in text.splitlines() if re.match(r"[0-9,]+ merged", line)]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[Update], Exception | None]]:
    """Append a function, and SQLite fails by it, as in `FaultyStore`. The last function counts."""
    plan: list[Callable[[Update], Exception | None]] = [lambda update: None]
    opened = SqliteSpec.open

    def opens(*args: Any, **more: Any) -> FaultyStore[Any]:
        return FaultyStore(opened(*args, **more), lambda update: plan[-1](update))

    monkeypatch.setattr(SqliteSpec, "open", opens)
    return plan


def test_messages_become_counts(topic: Topic, run: Run, tmp_path: Path) -> None:
    """Each event once, however many messages it has; the subscription is empty, and no dead letter is made."""
    events = [event(n) for n in range(2_500)]
    topic.publish(*payloads(events), *payloads(events[:500]))
    uri = f"sqlite:///{tmp_path}/counts.db"
    ran = run(f"--subscription={topic.subscription}", f"--store={uri}", *COUNT)
    assert (ran.code, ran.out) == (0, "2,500 merged / 500 duplicate / 0 dead-lettered\n")
    with closing(Watch(uri)) as watch:
        assert watch.state() == by_hand(events)
    assert topic.left() == []
    assert (tmp_path / "dead-letters.jsonl").read_bytes() == b""


def test_messages_are_recorded(topic: Topic, run: Run, tmp_path: Path) -> None:
    """In a table that is appended to: acknowledged, summed up as recorded, and counted once each."""
    events = [event(n) for n in range(300)]
    topic.publish(*payloads(events), *payloads(events[:50]), b"{")
    uri = f"{recording.SCHEME}:///{tmp_path}/counts.db"
    ran = run(f"--subscription={topic.subscription}", f"--store={uri}", *COUNT)
    assert (ran.code, ran.out.splitlines()[0]) == (0, "350 recorded / 1 dead-lettered")
    with closing(Watch(uri)) as watch:
        assert watch.state() == by_hand(events)
    assert len(letters_in(tmp_path / "dead-letters.jsonl")) == 1
    assert topic.left() == []


@pytest.mark.parametrize("kind", ["enable_message_ordering", "enable_exactly_once_delivery"])
def test_other_kinds_of_subscriptions(pubsub_host: str, run: Run, tmp_path: Path, kind: str) -> None:
    """With ordering keys, or with exactly-once delivery, all must arrive and be acknowledged as well."""
    topic = new_topic(**{kind: True})
    events = [event(n) for n in range(300)]
    for page in range(7):
        key = {"ordering_key": f"page-{page}"} if kind == "enable_message_ordering" else {}
        topic.publish(*payloads([each for each in events if each["page"] == page]), **key)
    ran = run(f"--subscription={topic.subscription}", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT)
    assert ran.out == "300 merged / 0 duplicate / 0 dead-lettered\n"
    assert topic.left() == []


def test_the_message_itself_gives_what_no_flag_names(topic: Topic, run: Run, tmp_path: Path) -> None:
    """Its id and its publish time; short names need only a project."""
    topic.publish(b'{"page": 1}', b'{"page": 1}')
    uri = f"sqlite:///{tmp_path}/counts.db"
    name = topic.subscription.rpartition("/")[2]
    flags = ["--key=page", "--monoid=count", "--window=daily", f"--project={emulators.PROJECT}"]
    ran = run(f"--subscription={name}", f"--store={uri}", *flags)
    assert ran.out == "2 merged / 0 duplicate / 0 dead-lettered\n"
    (warning,) = ran.err.splitlines()[:1]
    assert "without --event_id" in warning
    with Reader.open(uri) as reader:
        ((day, views),) = reader.buckets(
            "1", datetime.now(timezone.utc) - timedelta(days=2), datetime.max.replace(tzinfo=timezone.utc)
        )
    assert views == 2
    assert datetime.now(timezone.utc) - day < timedelta(days=2)


BAD = [b"{", b"\xff\x00", b'{"id": "e1"}']


def test_dead_letters_go_to_a_file(topic: Topic, run: Run, tmp_path: Path) -> None:
    """After those of an earlier run, even if that was killed in the middle of a line; with payload and attributes."""
    topic.publish(*BAD, *payloads([event(1)]), colour="\xfc")
    path = tmp_path / "letters.jsonl"
    path.write_text('an earlier one\n{"half a l')
    flags = [f"--subscription={topic.subscription}", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT]
    ran = run(*flags, f"--dead_letters={path}")
    assert ran.out == f"1 merged / 0 duplicate / 3 dead-lettered\ndead letters are in {path}\n"
    earlier, half, *lines = path.read_bytes().splitlines()
    assert (earlier, half) == (b"an earlier one", b'{"half a l')
    letters = [DeadLetter.from_json(line) for line in lines]
    assert sorted(letter.payload for letter in letters) == sorted(BAD)
    assert [letter.attributes for letter in letters] == [{"colour": "\xfc"}] * 3
    assert {letter.payload_type for letter in letters} == {"pubsub"}
    assert topic.left() == []


def test_dead_letters_go_to_a_topic(topic: Topic, run: Run, tmp_path: Path) -> None:
    """As JSON, with attributes to filter by."""
    dead = new_topic()
    topic.publish(*BAD)
    flags = [f"--subscription={topic.subscription}", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT]
    ran = run(*flags, "--name=views", f"--dead_letter_topic={dead.name}")
    assert ran.out.splitlines()[0] == "0 merged / 0 duplicate / 3 dead-lettered"
    messages = dead.left(len(BAD))
    assert sorted(DeadLetter.from_json(message.data).payload for message in messages) == sorted(BAD)
    attributes = [(message.attributes["stage"], message.attributes["error_type"]) for message in messages]
    assert sorted(attributes) == [("decode", "InvalidRecord")] * 2 + [("extract", "InvalidRecord")]
    assert {message.attributes["pipeline"] for message in messages} == {"views"}
    assert topic.left() == []
    assert not (tmp_path / "dead-letters.jsonl").exists()


class FullDisk:
    """Keeps no letter the first time, and only the first one the second time."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.calls = 0

    def keep(self, letters: Sequence[DeadLetter]) -> list[Exception | None]:
        self.calls += 1
        n = (0, 1, len(letters))[min(self.calls, 3) - 1]
        self.kept += [letter.payload for letter in letters[:n]]
        return [None if i < n else OSError("the disk is full") for i in range(len(letters))]

    def close(self) -> None:
        """Nothing to close."""


def test_messages_wait_for_letters_that_cannot_be_kept(
    topic: Topic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are returned and redelivered until the letter is kept; that is reported and counted, and no letter counts
    twice."""
    topic.publish(*BAD, *payloads([event(1)]))
    arguments = {"key": "page", "monoid": "count", "event_id": "id", "store": f"sqlite:///{tmp_path}/counts.db"}
    letters = FullDisk()
    with closing(Subscriber(resolve(MergeOptions(**arguments)), topic.subscription, 100, "worker")) as subscriber:
        subscriber.run(letters, timedelta(seconds=1))
        assert str(subscriber.outcomes) == "1 merged / 0 duplicate / 3 dead-lettered"
        assert subscriber.returned >= 3
    assert sorted(letters.kept) == sorted(BAD)
    assert "messages are returned to the subscription: the disk is full" in capsys.readouterr().err
    assert topic.left() == []


def test_an_outage_makes_dead_letters(topic: Topic, run: Run, tmp_path: Path, faults: list[Any]) -> None:
    """After all tries, by default: the letter names the failed key, and the other is merged."""
    faults.append(lambda update: TransientError("busy") if update.key.entity == "all" else None)
    topic.publish(*payloads([event(1)]))
    ran = run(f"--subscription={topic.subscription}", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT)
    assert outcomes(ran.out) == ["0 merged / 0 duplicate / 1 dead-lettered"]
    (letter,) = letters_in(tmp_path / "dead-letters.jsonl")
    assert (letter.keys, letter.failed_keys, letter.attempts) == (["page/1", "all"], ["all"], 3)


def test_an_outage_can_wait_in_the_subscription(topic: Topic, run: Run, tmp_path: Path, faults: list[Any]) -> None:
    """With ``--on_exhausted=raise`` messages are returned until the store can be reached, and none is lost or counted
    twice; a bad one among them is one dead letter."""
    left = [200]

    def busy(update: Update) -> Exception | None:
        left[0] -= 1
        return TransientError("busy") if left[0] > 0 else None

    faults.append(busy)
    events = [event(n) for n in range(20)]
    topic.publish(*payloads(events), b"{")
    uri = f"sqlite:///{tmp_path}/counts.db"
    ran = run(f"--subscription={topic.subscription}", f"--store={uri}", "--on_exhausted=raise", *COUNT)
    assert ran.code == 0
    merged, duplicate, dead = map(int, re.findall(r"\d+", outcomes(ran.out)[0]))
    assert (merged + duplicate, dead) == (20, 1)
    assert re.search(
        r"^worker: \d+ messages are returned to the subscription: murmur: event 'e\d+' failed 3 times", ran.err, re.M
    )
    assert re.search(r"^[0-9,]+ messages were returned to the subscription$", ran.out, re.M)
    with closing(Watch(uri)) as watch:
        assert watch.state() == by_hand(events)
    assert len(letters_in(tmp_path / "dead-letters.jsonl")) == 1
    assert topic.left() == []


def test_a_store_that_cannot_be_used_ends_it(topic: Topic, run: Run, tmp_path: Path, faults: list[Any]) -> None:
    """With one line; all messages are returned, even those that the store could accept."""
    faults.append(lambda update: StoreUnavailable("no such table"))
    sent = [b"{", *payloads([event(n) for n in range(10)])]
    topic.publish(*sent)
    ran = run(f"--subscription={topic.subscription}", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT)
    assert (ran.code, ran.err.splitlines()[-1]) == (4, "worker: error: no such table")
    assert (tmp_path / "dead-letters.jsonl").read_bytes() == b""
    assert sorted(message.data for message in topic.left(len(sent))) == sorted(sent)


def test_held_messages_are_not_redelivered(topic: Topic) -> None:
    """However long it takes: Pub/Sub is asked for more time, as long as a message is neither merged nor returned."""
    topic.publish(b"1")
    with closing(Puller(topic.subscription, 10, Config(), "test")) as pulled:
        received = pulled.get(TIMEOUT_S)
        assert received is not None
        # A third longer than the deadline of the subscription.
        deadline = time.monotonic() + 13.5
        while (left_s := deadline - time.monotonic()) > 0:
            assert pulled.get(left_s) is None
        pulled.ack([received.ack_id])
    assert topic.left() == []


def test_the_number_of_outstanding_messages_is_limited(topic: Topic) -> None:
    """Messages that are neither acknowledged nor returned count; at the end all of them are returned."""
    topic.publish(*[b"%d" % n for n in range(50)])
    with closing(Puller(topic.subscription, 20, Config(), "test")) as pulled:
        taken = []
        while (received := pulled.get(1.0)) is not None:
            taken.append(received)
        assert len(taken) == 20
        pulled.ack([each.ack_id for each in taken[:5]])
        while (received := pulled.get(1.0)) is not None:
            taken.append(received)
        assert len(taken) == 25
    assert len(topic.left(45)) == 45


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--subscription=projects/test-project/subscriptions/none"],
            "--subscription: projects/test-project/subscriptions/none does not exist",
        ),
        (["--subscription=short"], "--subscription: 'short' lacks a project"),
        (["--subscription=projects/p/topics/t"], "--subscription: 'projects/p/topics/t' is not a valid name"),
        (
            ["--dead_letter_topic=projects/test-project/topics/none"],
            "--dead_letter_topic: projects/test-project/topics/none does not exist",
        ),
        (["--dead_letter_topic={topic}"], "--dead_letter_topic: is the topic that is read"),
        (["--dead_letters={tmp}"], "--dead_letters: {tmp} cannot be written to: "),
        (["--dead_letters={tmp}/none/x"], "--dead_letters: {tmp}/none/x cannot be written to: "),
        (["--topic=a/b"], "--topic: 'a/b' is not a valid name; write projects/PROJECT/topics/NAME"),
        (["--until_idle=soon"], "--until_idle: 'soon' is not a duration"),
        (["--max_outstanding=0"], "--max_outstanding: must be at least 1"),
        (["--max_outstanding_bytes=0"], "--max_outstanding_bytes: must be at least 1"),
        (["--monoid=median"], "--monoid: unknown monoid 'median'"),
        (["--store=sqlite:///{tmp}/none/x.db"], "store: "),
        (["--store=sqlite:///"], "--store: "),
        (["--fold=10s"], "fold: sqlite:///"),
        (["--colour=red"], "unrecognized arguments: --colour=red"),
    ],
    ids=lambda flags: " ".join(flags) if isinstance(flags, list) else "",
)
def test_mistakes(topic: Topic, run: Run, tmp_path: Path, flags: list[str], message: str) -> None:
    """A user's mistake must end in one line that names it, and no message is touched."""
    topic.publish(b"1")
    given = [flag.format(topic=topic.name, tmp=tmp_path) for flag in flags]
    ran = run(f"--subscription={topic.subscription}", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT, *given)
    assert ran.mistake.startswith(f"worker: error: {message.format(tmp=tmp_path)}")
    assert ran.out == ""
    assert len(topic.left(1)) == 1


def test_a_server_that_does_not_answer(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and soon, although Google's client would try for minutes."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{taken.getsockname()[1]}")
        ran = run("--subscription=projects/p/subscriptions/sub", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT)
    assert ran.mistake.startswith("worker: error: --subscription: cannot look up projects/p/subscriptions/sub: 503")


def test_a_worker_that_has_ended_holds_nothing_back(topic: Topic, run: Run, tmp_path: Path) -> None:
    """Requests in progress when it ends must not swallow messages that are published next."""
    flags = [f"--subscription={topic.subscription}", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT]
    assert run(*flags).out == "0 merged / 0 duplicate / 0 dead-lettered\n"
    topic.publish(*payloads([event(n) for n in range(50)]))
    assert run(*flags).out == "50 merged / 0 duplicate / 0 dead-lettered\n"


def test_it_says_why_there_are_dead_letters(topic: Topic, run: Run, tmp_path: Path, faults: list[Any]) -> None:
    """An outage must be reported at once; but one line is enough for many letters."""
    faults.append(lambda update: TransientError("the store is on fire"))
    topic.publish(*payloads([event(n) for n in range(50)]))
    ran = run(f"--subscription={topic.subscription}", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT)
    assert ran.out.startswith("0 merged / 0 duplicate / 50 dead-lettered\n")
    listening, *lines, common, reason, failed = ran.err.splitlines()
    assert listening.startswith(f"worker: listening to {topic.subscription}, writing to sqlite:///")
    (line,) = [line for line in lines if line.startswith("worker: ")]
    assert re.fullmatch(
        r"worker: \d+ messages could not be merged .* because of TransientError: the store is on fire", line
    )
    assert (common, reason) == (
        "worker: 50 dead letters; the most common reasons:",
        "  50  store: the store is on fire",
    )
    assert failed == "worker: error: 50 of 50 records became dead letters: the store failed"
    assert ran.code == 4


def test_without_google_s_client(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install."""
    monkeypatch.setitem(sys.modules, "google.cloud.pubsub_v1", None)
    monkeypatch.delattr("google.cloud.pubsub_v1", raising=False)
    ran = run("--subscription=projects/p/subscriptions/sub", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT)
    assert ran.mistake == "worker: error: google-cloud-pubsub is not installed; run: pip install 'murmur-beam[gcp]'"


def test_a_subscription_that_is_deleted(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in one line that names it, as for one that never existed, at the next request to Pub/Sub."""
    monkeypatch.setattr(puller, "_PULL_S", 0.5)
    with closing(Puller(topic.subscription, 10, Config(), "test")) as pulled:
        assert pulled.get(1.0) is None
        with pubsub_v1.SubscriberClient() as client:
            client.delete_subscription(subscription=topic.subscription)
        with pytest.raises(MurmurError, match=rf"^{topic.subscription}: 404 "):
            any(map(pulled.get, [1.0] * 60))


def test_pubsub_that_is_unavailable_for_a_while(
    pubsub_host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked again until it answers, and the screen says what happens meanwhile."""
    with murmur_emulators.pubsub() as host:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", host)
        topic = new_topic()
        pulled = Puller(topic.subscription, 10, Config(), "test")
        topic.publish(b"1")
        received = pulled.get(TIMEOUT_S)
        assert received is not None
    with closing(pulled):
        monkeypatch.setattr(puller, "_SETTLE_S", 0.1)
        deadline = time.monotonic() + TIMEOUT_S
        said = ""
        while said.count("pull failed, retrying: 503") < 2:
            assert time.monotonic() < deadline
            assert pulled.get(1.0) is None
            said += capsys.readouterr().err
        pulled.ack([received.ack_id])
        assert "test: 1 messages will be redelivered: " in capsys.readouterr().err


def test_pubsub_that_restarts(pubsub_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that were published meanwhile are delivered, once it is back."""
    topic = new_topic()
    with Outage(pubsub_host) as outage:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", outage.address)
        with closing(Puller(topic.subscription, 10, Config(), "test")) as pulled:
            topic.publish(b"before")
            received = pulled.get(TIMEOUT_S)
            assert received is not None
            pulled.ack([received.ack_id])
            outage.down()
            monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub_host)
            topic.publish(b"meanwhile")
            assert pulled.get(1.0) is None
            outage.up()
            deadline = time.monotonic() + TIMEOUT_S
            while (again := pulled.get(1.0)) is None or again.message.data != b"meanwhile":
                assert time.monotonic() < deadline


def test_a_signal_ends_it_in_order(topic: Topic, tmp_path: Path) -> None:
    """It finishes its present batch, returns the other messages at once, prints its summary and ends with 0; the next
    worker continues, and nothing is delivered twice."""
    events = [event(n) for n in range(5_000)]
    topic.publish(*payloads(events))
    log, uri = tmp_path / "log", f"sqlite:///{tmp_path}/counts.db"
    argv = [
        f"--subscription={topic.subscription}",
        f"--store={uri}",
        f"--dead_letters={tmp_path}/letters.jsonl",
        *COUNT,
    ]
    with closing(Watch(uri)) as watch:
        with running(log, *argv, "--flush_events=50", "--max_outstanding=100") as process:
            wait_until(lambda: watch.merged() > 100, process, log)
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0, log.read_text()
        merged = watch.merged()
        assert 100 < merged < len(events)
        assert outcomes(log.read_text()) == [f"{merged:,} merged / 0 duplicate / 0 dead-lettered"]
        # The answer to a request in progress is only delivered again after the deadline of the subscription.
        with running(log, *argv, "--until_idle=12s") as process:
            assert process.wait(TIMEOUT_S) == 0, log.read_text()
        assert watch.state() == by_hand(events)
    assert outcomes(log.read_text())[1] == f"{len(events) - merged:,} merged / 0 duplicate / 0 dead-lettered"
    assert topic.left() == []


def test_a_signal_ends_it_in_time_while_the_store_does_not_answer(
    topic: Topic, bigtable_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the 30 s that Kubernetes grants: nothing is tried again, all messages are returned, and the next worker
    merges them."""
    events = [event(n) for n in range(300)]
    topic.publish(*payloads(events))
    uri = emulators.new_uri(bigtable_host)
    log, letters = tmp_path / "log", tmp_path / "letters.jsonl"
    argv = [f"--subscription={topic.subscription}", f"--store={uri}", f"--dead_letters={letters}", *COUNT]
    Watch(uri).close()  # records what the table is for, which is a conditional write, too
    with FaultProxy(bigtable_host) as proxy:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", proxy.address)
        proxy.plan = Plan({Fault.DELAY: 1.0}, methods=[CHECK_AND_MUTATE], late_s=3600.0)
        with running(log, *argv) as process:
            wait_until(lambda: proxy.counts[CHECK_AND_MUTATE].requests > 0, process, log)
            started_s = time.monotonic()
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0, log.read_text()
            assert time.monotonic() - started_s < 25
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", bigtable_host)
    with running(log, *argv, "--until_idle=12s") as process:
        assert process.wait(TIMEOUT_S) == 0, log.read_text()
    with closing(Watch(uri)) as watch:
        assert watch.state() == by_hand(events)
    assert letters.read_bytes() == b""
    assert topic.left() == []


def hang(element: Any) -> Any:
    """A decoder that never returns."""
    Path(os.environ["HANGS"]).touch()
    time.sleep(10 * TIMEOUT_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(
    topic: Topic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Even if its present batch never ends."""
    topic.publish(*payloads([event(1)]))
    log, hangs = tmp_path / "log", tmp_path / "hangs"
    monkeypatch.setenv("HANGS", str(hangs))
    argv = [f"--subscription={topic.subscription}", f"--store=sqlite:///{tmp_path}/counts.db", *COUNT]
    with running(log, *argv, f"--dead_letters={tmp_path}/letters.jsonl", f"--decode={__name__}:hang") as process:
        wait_until(hangs.exists, process, log)
        process.send_signal(number)
        wait_until(lambda: "a second signal ends it at once" in log.read_text(), process, log)
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == -number, log.read_text()


KILLS = 10
MESSAGES = 8_000
MOST_BEFORE_A_KILL = 400
"""Messages that a process may merge before it is killed; few enough that all kills together leave enough to do."""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_kills_lose_and_double_nothing(topic: Topic, bigtable_host: str, tmp_path: Path) -> None:
    """However often a worker is killed during its work, in the end every count is exact and no message is left."""
    chance = random.Random(20_261)
    events = [event(chance.randrange(10**9), pages=50) for _ in range(MESSAGES)]
    topic.publish(*payloads(events))
    uri = emulators.new_uri(bigtable_host)
    log, letters = tmp_path / "log", tmp_path / "letters.jsonl"
    argv = [
        f"--subscription={topic.subscription}",
        f"--store={uri}",
        f"--dead_letters={letters}",
        "--max_outstanding=500",
        *COUNT,
    ]
    total = len({each["id"] for each in events})
    with closing(Watch(uri)) as watch:
        before = 0
        for _ in range(KILLS):
            target = before + chance.randint(1, MOST_BEFORE_A_KILL)
            with running(log, *argv) as process:
                wait_until(lambda target=target: watch.merged() >= target, process, log)
                # Anywhere within a commit, between two, between commit and acknowledgement.
                time.sleep(chance.uniform(0, 0.05))
                process.kill()
                assert process.wait(TIMEOUT_S) == -signal.SIGKILL, log.read_text()
            merged = watch.merged()
            assert before < merged < total, "killed while it was at work"
            before = merged
        # Longer than Pub/Sub waits for the killed ones.
        with running(log, *argv, "--until_idle=12s") as process:
            assert process.wait(2 * TIMEOUT_S) == 0, log.read_text()
        assert watch.state() == by_hand(events)
    assert topic.left() == []
    assert letters.read_bytes() == b""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_committed_but_unacknowledged_messages_are_duplicates(topic: Topic, tmp_path: Path) -> None:
    """Killed between the two, while dead letters are written: into a FIFO here, which does not accept a letter of 200
    kB."""
    events = [event(n) for n in range(300)]
    good, bad = payloads(events), [b"%d" % n * 200_000 for n in range(3)]
    topic.publish(*good[:100], bad[0], *good[100:200], bad[1], *good[200:], bad[2])
    uri = f"sqlite:///{tmp_path}/counts.db"
    log, fifo, letters = tmp_path / "log", tmp_path / "fifo", tmp_path / "letters.jsonl"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    argv = [f"--subscription={topic.subscription}", f"--store={uri}", *COUNT]
    with closing(Watch(uri)) as watch:
        with running(log, *argv, f"--dead_letters={fifo}") as process:
            wait_until(lambda: bool(select.select([reader], [], [], 0)[0]), process, log)
            process.kill()
            assert process.wait(TIMEOUT_S) == -signal.SIGKILL, log.read_text()
        os.close(reader)
        merged = watch.merged()
        # Longer than Pub/Sub waits for the killed one.
        with running(log, *argv, f"--dead_letters={letters}", "--until_idle=12s") as process:
            assert process.wait(TIMEOUT_S) == 0, log.read_text()
        assert watch.state() == by_hand(events)
    (said,) = outcomes(log.read_text())
    merged_now, duplicate, dead = (int(n.replace(",", "")) for n in re.findall(r"[0-9,]+", said))
    assert (merged_now, dead) == (len(events) - merged, 3)
    assert duplicate >= 1
    assert sorted(letter.payload for letter in letters_in(letters)) == bad
    assert topic.left() == []
