"""The emulators as the tests use them: one for a whole test run, tables and topics of its own for each test."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from google.cloud.pubsub_v1.types import PubsubMessage

from murmur_beam.testing.emulators import Emulator, EmulatorMissing, Running, stop

PROJECT, INSTANCE = "test-project", "test-instance"
_numbers = itertools.count()


@contextmanager
def shared(emulator: Emulator, folder: Path) -> Iterator[str]:
    """An emulator's ``host:port``, the same one for all processes that are in here at the same time.

    The first starts it, the last stops it. Who uses it holds a lock on a file, which ends with the process even where
    that is killed.

    Args:
        emulator: which.
        folder: where all of them look.
    """
    with open(folder / f"{emulator.program}.users", "a+") as users:
        with _alone(emulator, folder):
            if _lock(users.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB):
                users.truncate(0)
                running = emulator.start()
                users.write(json.dumps(running))
                users.flush()
            fcntl.flock(users, fcntl.LOCK_SH)
            users.seek(0)
            running = Running(*json.load(users))
        try:
            yield running.host
        finally:
            with _alone(emulator, folder):
                if _lock(users.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB):
                    stop(running.pid)


@contextmanager
def _alone(emulator: Emulator, folder: Path) -> Iterator[None]:
    """Nobody else comes or goes."""
    with open(folder / f"{emulator.program}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


def require(emulator: Emulator) -> None:
    """Skip the test that calls this if the emulator is not installed; with ``CI=true`` fail it."""
    try:
        emulator.find()
    except EmulatorMissing as err:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(err))


@contextmanager
def for_tests(emulator: Emulator, variable: str, folder: Path) -> Iterator[str]:
    """As `shared`, with the environment leading clients to it; `require` comes first.

    Args:
        emulator: which.
        variable: that clients look at.
        folder: where all workers of the test run look.
    """
    require(emulator)
    with shared(emulator, folder) as host, pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, host)
        yield host


def new_table(host: str) -> str:
    """A table of its own for a test, for whatever opens it first, which keeps all."""
    # Not above: they take a second to import, and every test run imports this module.
    from murmur_beam.state.base import Schema
    from murmur_beam.state.bigtable.admin import Admin
    from murmur_beam.state.bigtable.settings import Settings
    from murmur_beam.state.bigtable.tables import purpose, rules

    name = f"table-{os.getpid()}-{next(_numbers)}"
    with Admin(Settings(PROJECT, INSTANCE, name), host) as admin:
        admin.create(rules(purpose(Schema("sum", None))))  # the same for any purpose that keeps all
    return name


class Topic:
    """A Pub/Sub topic of its own for a test, and a subscription to it.

    Attributes:
        name: ``projects/P/topics/T``.
        subscription: ``projects/P/subscriptions/S``.
    """

    def __init__(self, kind: str = "topic") -> None:
        from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient

        self._publisher, self._subscriber = PublisherClient(), SubscriberClient()
        own = f"{kind}-{os.getpid()}-{next(_numbers)}"
        self.name = f"projects/{PROJECT}/topics/{own}"
        self.subscription = f"projects/{PROJECT}/subscriptions/{own}"
        self._publisher.create_topic(name=self.name)
        self._subscriber.create_subscription(name=self.subscription, topic=self.name)

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        """Publish data and attributes; the ids of the messages."""
        futures = [self._publisher.publish(self.name, data, **attributes) for data, attributes in messages]
        return [future.result(timeout=60) for future in futures]

    def take(self, n: int) -> list[PubsubMessage]:
        """The next ``n`` messages of the subscription, acknowledged; fewer if they do not come within a minute."""
        from google.api_core.exceptions import DeadlineExceeded

        taken: list[PubsubMessage] = []
        deadline = time.monotonic() + 60
        while len(taken) < n and time.monotonic() < deadline:
            with suppress(DeadlineExceeded):
                answer = self._subscriber.pull(
                    subscription=self.subscription, max_messages=n - len(taken), timeout=10, retry=None
                )
                taken += [received.message for received in answer.received_messages]
                ack_ids = [received.ack_id for received in answer.received_messages]
                if ack_ids:
                    self._subscriber.acknowledge(subscription=self.subscription, ack_ids=ack_ids)
        return taken

    def close(self) -> None:
        """Delete both, and leave no connection."""
        self._subscriber.delete_subscription(subscription=self.subscription)
        self._publisher.delete_topic(topic=self.name)
        self._subscriber.close()
        self._publisher.stop()
        self._publisher.transport.close()
