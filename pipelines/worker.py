"""Fold the messages of a Pub/Sub subscription into state, in one process and without Beam.

    python -m pipelines.worker --subscription projects/P/subscriptions/S --store bigtable://P/INSTANCE/TABLE \\
        --key 'page/{page}' --monoid count --event_id id --window daily --dead_letters dead-letters.jsonl

A message is acknowledged after its commit, and a dead letter's after the letter is safe. So each event counts exactly
once however often this is killed and started again, on one machine or on several with the same subscription. Without
dedup it counts at least once. SIGTERM and SIGINT end it after the batch at hand.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta

from murmur_beam.durations import parse_duration
from murmur_beam.errors import ConfigurationError
from murmur_beam.spec import add_flags, resolve
from pipelines.console import Parser, one_line_errors, program
from pipelines.google_pubsub import full_name
from pipelines.letter_files import LetterFile, filled
from pipelines.letters import Letters, LetterTopic
from pipelines.messages import merge_arguments
from pipelines.subscriber import Subscriber

DEAD_LETTERS = "dead-letters.jsonl"


def add_subscription_flags(parser: argparse._ActionsContainer, until_idle: str | None) -> None:
    """Flags that say how to pull.

    Args:
        parser: where to add them.
        until_idle: default of that flag.
    """
    parser.add_argument("--project", help="for names that are not written as projects/P/...")
    parser.add_argument(
        "--until_idle",
        default=until_idle,
        metavar="DURATION",
        help=f"end after so long without a message, such as 30s ({until_idle or 'never'})",
    )
    parser.add_argument(
        "--max_outstanding",
        type=int,
        default=5_000,
        metavar="N",
        help="messages to take before they are acknowledged (%(default)s)",
    )


def pulling(args: argparse.Namespace) -> tuple[int, timedelta | None]:
    """What the flags ``--max_outstanding`` and ``--until_idle`` say.

    Raises:
        ConfigurationError: one is wrong.
    """
    if args.max_outstanding < 1:
        raise ConfigurationError("--max_outstanding", f"must be at least 1, got {args.max_outstanding}")
    try:
        return args.max_outstanding, None if args.until_idle is None else parse_duration(args.until_idle)
    except ValueError as err:
        raise ConfigurationError("--until_idle", str(err)) from None


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call ``stop``; the second one ends the process."""

    def handle(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        # Not print: what the signal has interrupted may be printing.
        os.write(2, b"\nstopping after what is at hand; once more ends it at once\n")
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(subscriber: Subscriber, letters: Letters, until_idle: timedelta | None) -> None:
    """Run a subscriber until it has ended or a signal ends it, and print what became of the messages.

    Args:
        subscriber: the caller's to close.
        letters: is closed here.
        until_idle: end after so long without a message.
    """
    try:
        with closing(letters), stopping(subscriber.stop):
            subscriber.run(letters, until_idle)
    finally:
        print(subscriber.outcomes)
        if subscriber.returned:
            print(f"{subscriber.returned:,} times one of the {subscriber.what} went back to be delivered again")


@one_line_errors("worker")
def main(argv: Sequence[str] | None = None) -> int:
    """Merge messages until a signal ends it."""
    parser = Parser(
        prog="python -m pipelines.worker",
        description="Fold the messages of a Pub/Sub subscription into state, each event exactly once.",
        epilog="A FIELD is a name, a path such as user.country, attribute:NAME, message:id, message:publish_time, or "
        "'=TEXT' for a text that is always the same.",
    )
    add_flags(parser.add_argument_group("what to merge"))
    parser.add_argument("--subscription", required=True, metavar="NAME", help="projects/P/subscriptions/S")
    add_subscription_flags(parser, until_idle=None)
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument(
        "--dead_letters", metavar="FILE", help=f"append what cannot be merged to this file ({DEAD_LETTERS})"
    )
    keep.add_argument("--dead_letter_topic", metavar="NAME", help="or publish it here, as projects/P/topics/T")
    args = parser.parse_args(argv)
    args.dead_letters = filled(args.dead_letters or DEAD_LETTERS)
    subscription = full_name("--subscription", args.subscription, args.project)
    max_outstanding, until_idle = pulling(args)
    spec = resolve(merge_arguments(args))
    spec.check_stores()
    topic = args.dead_letter_topic and full_name("--dead_letter_topic", args.dead_letter_topic, args.project)
    with closing(Subscriber(spec, subscription, max_outstanding, "worker")) as subscriber:
        if topic and topic == subscriber.topic:
            raise ConfigurationError(
                "--dead_letter_topic", "is the topic that is read; each dead letter would come back for ever"
            )
        work(
            subscriber,
            LetterTopic(topic) if topic else LetterFile(args.dead_letters),
            until_idle,
        )
    if subscriber.outcomes.dead_letter:
        print(f"dead letters are in {topic or args.dead_letters}")
    return 0


if __name__ == "__main__":
    program(main)
