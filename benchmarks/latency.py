"""The time from the arrival of a message in `murmur worker` until its count can be read, at a steady rate.

    python -m benchmarks.latency [--rate 1000] [--seconds 20] [--rounds 5] [--json]

Each message has its own key, which is the most work for the worker. A message has arrived when the worker has parsed
the response of Pub/Sub that contains it. It is readable when a reader, which polls all keys that it has not seen yet,
gets its count; so the time between two polls is in the figure. The time from publishing is shown as well; it includes
the publisher's batching and the emulator of Pub/Sub. Publisher, worker, reader and both emulators share one machine.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks.harness import (
    Bar,
    Call,
    Inexact,
    bars_table,
    environment,
    machine,
    needing_extra,
    percentile,
    print_table,
    say,
    tidy,
)
from murmur_beam.errors import ConfigurationError, MurmurError
from murmur_beam.model import Key
from murmur_beam.monoids import Count
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors
from murmur_beam.state.base import Schema
from murmur_beam.testing import emulators

PROJECT = "benchmark"
BATCH_S = 0.005
BAR_MS = 300.0
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
LOOK_EVERY_S = 0.01
WARM_UP = 100
PATIENCE_S = 60.0
"""Time to wait for a missing count, before the round has failed."""
WARM_UP_S = 4.0
IDLE_S = 8


class Round(NamedTuple):
    """The figures of one round, in milliseconds.

    Attributes:
        from_arrival: from a message's arrival in the worker until its count was readable; sorted.
        from_publishing: from the call of the publisher until then; sorted.
        rate: messages a second that were really published.
        looks_ms: median time between two polls of the reader.
    """

    from_arrival: list[float]
    from_publishing: list[float]
    rate: float
    looks_ms: float


# ---- in other processes ----


def publish(topic: str, n: int, rate: float, start_s: float) -> list[float]:
    """Publish some messages to warm up, then more at a steady rate.

    Args:
        topic: its full name.
        n: number of messages at the steady rate.
        rate: messages a second.
        start_s: when to begin with these, by `time.monotonic`, which all processes of a machine share.

    Returns:
        When each of these was given to the publisher.
    """
    from google.cloud import pubsub_v1

    batches = pubsub_v1.types.BatchSettings(max_messages=1_000, max_latency=BATCH_S)
    published, sent = [], []
    with pubsub_v1.PublisherClient(batches) as client:
        for number in range(WARM_UP + n):
            wait_s = start_s + (number - WARM_UP) / rate - time.monotonic()
            if number >= WARM_UP and wait_s > 0:
                time.sleep(wait_s)
            published.append(time.monotonic())
            sent.append(client.publish(topic, json.dumps({"id": str(number), "key": _key(number)}).encode()))
        for one in sent:
            one.result(timeout=PATIENCE_S)
    return published[WARM_UP:]


def work(arguments: Sequence[str], log: str) -> dict[str, float]:
    """Run `murmur worker`; the arrival time of each message, by key.

    Args:
        arguments: of its command line.
        log: file for the output.

    Raises:
        MurmurError: the worker failed.
    """
    from murmur_beam.programs import worker
    from murmur_beam.pubsub import puller

    arrived: dict[str, float] = {}
    received = puller._received

    def noting(message: Any) -> puller.Received:
        one = received(message)
        arrived.setdefault(json.loads(one.message.data)["key"], time.monotonic())
        return one

    puller._received = noting
    with open(log, "w+") as printed:
        with redirect_stdout(printed), redirect_stderr(printed):
            code = worker.main(arguments)
        printed.seek(0)
        if code:
            raise MurmurError(f"the worker ended with exit code {code}; it printed: {printed.read()[-2_000:]}")
    return arrived


# ---- a round ----


def run(number: int, rate: float, n: int, folder: str) -> Round:
    """Run one round with a new topic, table and worker, on the emulators that the environment names.

    Args:
        number: of the round.
        rate: messages a second.
        n: number of messages.
        folder: for the worker's files.

    Raises:
        Inexact: a count is not 1.
        MurmurError: the worker failed, or a count is missing.
    """
    from google.cloud import pubsub_v1

    from murmur_beam.state.bigtable import BigtableSpec, tables

    topic, subscription = (f"projects/{PROJECT}/{kind}/latency-{number}" for kind in ("topics", "subscriptions"))
    spec = BigtableSpec(PROJECT, "instance", f"latency-{number}")
    tables.create(spec, tables.table_meta(Schema(Count().name, None)))
    with pubsub_v1.PublisherClient() as client, pubsub_v1.SubscriberClient() as subscriber:
        client.create_topic(name=topic)
        subscriber.create_subscription(name=subscription, topic=topic, ack_deadline_seconds=60)
    arguments = [
        *(f"--subscription={subscription}", f"--store={spec}", "--key=key", "--monoid=count", "--event_id=id"),
        *(f"--until_idle={IDLE_S}s", f"--dead_letters={folder}/dead-letters-{number}.jsonl"),
    ]
    start_s = time.monotonic() + WARM_UP_S
    with (
        Call(work, arguments, f"{folder}/worker-{number}.log") as working,
        Call(publish, topic, n, rate, start_s) as publishing,
        closing(spec.open(Count())) as store,
    ):
        # The first messages wait until processes and connections are ready.
        _read(store, range(WARM_UP), rate, time.monotonic(), working)
        messages = range(WARM_UP, WARM_UP + n)
        readable, looks = _read(store, messages, rate, start_s, working)
        published, arrived = publishing.result(), working.result()
        counts = {key.entity: count for key, count in store.scan()}
    if counts != {_key(i): 1 for i in range(WARM_UP + n)}:
        raise Inexact(f"{sum(counts.values()):,} messages are counted of {WARM_UP + n:,}, or some twice")
    return Round(
        sorted((readable[i] - arrived[_key(i)]) * 1000 for i in messages),
        sorted((readable[i] - then) * 1000 for i, then in zip(messages, published, strict=True)),
        (n - 1) / (published[-1] - published[0]) if n > 1 else rate,
        statistics.median(after - before for before, after in pairwise(looks)) * 1000 if len(looks) > 1 else 0.0,
    )


def _read(
    store: Any, messages: range, rate: float, start_s: float, working: Call[Any]
) -> tuple[dict[int, float], list[float]]:
    """Poll the counts of messages from their publishing on; when each was readable, and the times of the polls.

    Raises:
        MurmurError: the worker failed, or a count is missing.
    """
    readable: dict[int, float] = {}
    looks: list[float] = []
    pending: list[int] = []
    to_come = list(reversed(messages))
    deadline = start_s + len(messages) / rate + PATIENCE_S
    while pending or to_come:
        now_s = time.monotonic()
        due = int((now_s - start_s) * rate) + 1
        while to_come and len(messages) - len(to_come) < due:
            pending.append(to_come.pop())
        values = store.get_many([Key(_key(i)) for i in pending])
        answer_s = time.monotonic()
        looks.append(answer_s)
        readable.update((i, answer_s) for i, value in zip(pending, values, strict=True) if value is not None)
        pending = [i for i, value in zip(pending, values, strict=True) if value is None]
        if working.done():
            working.result()
            raise MurmurError(f"the worker has ended before the counts of {len(pending) + len(to_come):,} messages")
        if answer_s > deadline:
            raise MurmurError(f"{len(pending):,} messages are not counted {PATIENCE_S:.0f} s after the last one")
        time.sleep(max(0.0, now_s + LOOK_EVERY_S - answer_s))
    return readable, looks


def _key(number: int) -> str:
    return f"message-{number:07}"


# ---- figures ----


def bars(rounds: Sequence[Round]) -> list[Bar]:
    """Percentiles of both times, for each round."""
    made = []
    for text, which in (("arrival in worker", "from_arrival"), ("publishing", "from_publishing")):
        for name, percent in PERCENTILES.items():
            values = [percentile(getattr(one, which), percent) for one in rounds]
            bar = BAR_MS if (which, name) == ("from_arrival", "p99") else None
            made.append(Bar(f"{name} from {text} to readable", values, bar, at_least=False, unit=" ms"))
    made.append(Bar("messages published", [one.rate for one in rounds], None, unit="/s"))
    made.append(Bar("between two looks of the reader", [one.looks_ms for one in rounds], None, unit=" ms"))
    return made


@one_line_errors("latency")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. The exit code is 0 even if a bar is missed."""
    with needing_extra():
        import google.cloud.bigtable
        import google.cloud.pubsub  # noqa: F401

    parser = OneLineErrorParser(prog="python -m benchmarks.latency", description=__doc__.split("\n")[0])
    parser.add_argument("--rate", type=float, default=1_000, metavar="N", help="messages a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="length of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="%(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    for name in ("rate", "seconds", "rounds"):
        if getattr(args, name) <= 0:
            raise ConfigurationError(f"--{name}", f"must be positive, got {getattr(args, name)}")
    n = max(1, round(args.rate * args.seconds))
    what = {"rate": args.rate, "messages": n, "rounds": args.rounds, "machine": machine()}
    rounds = []
    with tidy(), ExitStack() as stack:
        warnings.simplefilter("ignore", RuntimeWarning)  # of the client, about the emulator
        bigtable, pubsub = stack.enter_context(emulators.bigtable()), stack.enter_context(emulators.pubsub())
        stack.enter_context(environment(BIGTABLE_EMULATOR_HOST=bigtable, PUBSUB_EMULATOR_HOST=pubsub))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for number in range(args.rounds):
            say(f"round {number + 1} of {args.rounds}")
            rounds.append(run(number, args.rate, n, folder))
        say("")
    if args.json:
        print(json.dumps({**what, "bars": [bar.to_dict() for bar in bars(rounds)]}, indent=2))
    else:
        print(f"{n:,} messages a round, {args.rate:,.0f} a second, {args.rounds} rounds; {what['machine']}\n")
        print_table(bars_table(bars(rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
