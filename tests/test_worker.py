"""`pipelines.worker` on the real Pub/Sub emulator: every message is merged or a dead letter before it is acknowledged."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import emulators
import pytest

import murmur_beam
from murmur_beam.model import DeadLetter, Key
from murmur_beam.monoids import Count
from murmur_beam.state import spec_from_uri
from pipelines import worker

pubsub_v1 = pytest.importorskip("google.cloud.pubsub_v1", reason="google-cloud-pubsub is not installed")

TIMEOUT_S = 60.0
COUNT = ["--key=page/{page}", "--key==all", "--monoid=count", "--event_id=id", "--ack_deadline=10s"]
"""What to merge in nearly all tests."""

State = dict[str, int]
_names = itertools.count()


class Topic(NamedTuple):
    """A topic of its own for a test, with one subscription."""

    name: str
    subscription: str

    def publish(self, *payloads: bytes, **attributes: str) -> list[str]:
        """Publish messages, many in one request; their ids."""
        settings = pubsub_v1.types.BatchSettings(max_messages=1000, max_latency=0.05)
        with pubsub_v1.PublisherClient(settings) as client:
            sent = [client.publish(self.name, payload, **attributes) for payload in payloads]
            return [one.result(timeout=TIMEOUT_S) for one in sent]

    def left(self) -> list[Any]:
        """Messages that can be had now, without waiting; they are acknowledged."""
        messages = []
        with pubsub_v1.SubscriberClient() as client:
            while True:
                received = client.pull(
                    subscription=self.subscription, max_messages=1000, return_immediately=True, timeout=10
                ).received_messages
                if not received:
                    return messages
                messages += [each.message for each in received]
                ids = [each.ack_id for each in received]
                client.acknowledge(subscription=self.subscription, ack_ids=ids)


def new_topic(**more: Any) -> Topic:
    """One with an empty subscription; ``more`` is of the subscription."""
    unique = f"worker-{os.getpid()}-{next(_names)}"
    topic, subscription = (f"projects/{emulators.PROJECT}/{kind}/{unique}" for kind in ("topics", "subscriptions"))
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=topic)
        subscriber.create_subscription(
            request={"name": subscription, "topic": topic, "ack_deadline_seconds": 10, **more}
        )
    return Topic(topic, subscription)


@pytest.fixture
def topic(pubsub_host: str) -> Topic:
    """A topic with a subscription."""
    return new_topic()


def event(n: int, pages: int = 7) -> dict[str, object]:
    """An event of a page."""
    return {"id": f"e{n}", "page": n % pages}


def payloads(events: Sequence[Mapping[str, object]]) -> list[bytes]:
    """As messages carry them."""
    return [json.dumps(each).encode() for each in events]


def by_hand(events: Sequence[Mapping[str, object]]) -> State:
    """The state that events must lead to, each of them once: a plain dictionary."""
    once = {each["id"]: each for each in events}.values()
    return dict(Counter(f"page/{each['page']}" for each in once) + Counter({"all": len(once)}))


class Watch:
    """Looks at the state from outside."""

    def __init__(self, uri: str) -> None:
        self._store = spec_from_uri(uri, "store").open(Count(), None)

    def merged(self) -> int:
        """Events in the state so far."""
        return self._store.get(Key("all")) or 0

    def state(self) -> State:
        """All there is."""
        return {key.entity: value for key, value in self._store.scan()}

    def close(self) -> None:
        """Close the store."""
        self._store.close()


@contextlib.contextmanager
def running(log: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m pipelines.worker`` as its users start it; it does not survive the block."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(murmur_beam.__file__).parents[1]),
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.worker", *argv], stdout=file, stderr=file, env=environment
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(TIMEOUT_S)


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """The process must not end before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        assert process.poll() is None, f"ended with {process.poll()}: {log.read_text()}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.002)


KILLS = 30
MESSAGES = 20_000
MOST_BEFORE_A_KILL = 400
"""Messages that a process may merge before it is killed; few enough that all kills together leave enough to do."""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_thirty_kills_cost_nothing(topic: Topic, bigtable_host: str, tmp_path: Path) -> None:
    """However often a worker is killed amid its work, at last every count is exact and no message is left."""
    chance = random.Random(20_261)
    events = [event(chance.randrange(10**9), pages=50) for _ in range(MESSAGES)]
    topic.publish(*payloads(events))
    table = emulators.new_table(bigtable_host)
    uri = f"bigtable://{emulators.PROJECT}/{emulators.INSTANCE}/{table}"
    log, letters = tmp_path / "log", tmp_path / "letters.jsonl"
    argv = [f"--subscription={topic.subscription}", f"--store={uri}", f"--dead_letters={letters}", *COUNT]
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
        # Longer than Pub/Sub waits for those that were killed.
        with running(log, *argv, "--until_idle=12s") as process:
            assert process.wait(2 * TIMEOUT_S) == 0, log.read_text()
        assert watch.state() == by_hand(events)
    assert topic.left() == []
    assert letters.read_bytes() == b""
    assert f"{total - before:,} merged / " in log.read_text()
