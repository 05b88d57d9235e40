"""Fold the messages of a Pub/Sub subscription into state, in one process and without Beam.

    python -m pipelines.worker --subscription projects/P/subscriptions/S --store bigtable://P/INSTANCE/TABLE \\
        --key 'page/{page}' --monoid count --event_id id --window daily --dead_letters dead-letters.jsonl

A message is acknowledged after its commit, and a dead letter's after the letter is safe. So each event counts exactly
once however often this is killed and started again, on one machine or on several with the same subscription. Without
dedup it counts at least once. SIGTERM and SIGINT end it after the batch at hand.

With ``--dead_letter_topic`` a letter that is too large for a message goes to the file of ``--dead_letters``, from where
`pipelines.replay` merges it as from any. Both flags may be given; the file is made when the first such letter comes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import NamedTuple

from murmur_beam.durations import parse_duration
from murmur_beam.errors import ConfigurationError
from murmur_beam.spec import add_flags, resolve
from pipelines.console import Parser, one_line_errors, program
from pipelines.google_pubsub import full_name, one_line, topic_of
from pipelines.letter_files import LetterFile, filled
from pipelines.letters import Letters, LetterTopic
from pipelines.messages import TOPIC_HELP, check_not_read, merge_arguments, with_source
from pipelines.overflow import OverflowFile, why_not
from pipelines.puller import MAX_BYTES
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
    parser.add_argument(
        "--max_outstanding_bytes",
        type=int,
        default=MAX_BYTES,
        metavar="N",
        help="bytes of such messages, from which on no more are asked for (%(default)s)",
    )


class Pulling(NamedTuple):
    """What the flags of `add_subscription_flags` say.

    Attributes:
        max_outstanding: messages that may be here without an acknowledgement.
        max_outstanding_bytes: data and attributes of those.
        until_idle: end after so long without a message; None for never.
    """

    max_outstanding: int
    max_outstanding_bytes: int
    until_idle: timedelta | None


def pulling(args: argparse.Namespace) -> Pulling:
    """What the flags say.

    Raises:
        ConfigurationError: one is wrong.
    """
    for name in ("max_outstanding", "max_outstanding_bytes"):
        if getattr(args, name) < 1:
            raise ConfigurationError(f"--{name}", f"must be at least 1, got {getattr(args, name)}")
    try:
        until_idle = None if args.until_idle is None else parse_duration(args.until_idle)
    except ValueError as err:
        raise ConfigurationError("--until_idle", str(err)) from None
    return Pulling(args.max_outstanding, args.max_outstanding_bytes, until_idle)


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
    parser.add_argument("--topic", metavar="NAME", help=TOPIC_HELP)
    add_subscription_flags(parser, until_idle=None)
    parser.add_argument(
        "--dead_letters",
        metavar="FILE",
        help=f"append what cannot be merged to this file, with --dead_letter_topic what is too large for a message "
        f"({DEAD_LETTERS})",
    )
    parser.add_argument("--dead_letter_topic", metavar="NAME", help="publish it here, as projects/P/topics/T")
    args = parser.parse_args(argv)
    args.dead_letters = args.dead_letters and filled(args.dead_letters)
    subscription = full_name("--subscription", args.subscription, args.project)
    how = pulling(args)
    merge = merge_arguments(args)
    resolve(merge).check_stores()
    topic = args.topic and full_name("--topic", args.topic, args.project)
    dead_topic = args.dead_letter_topic and full_name("--dead_letter_topic", args.dead_letter_topic, args.project)
    found = topic_of(subscription)
    check_not_read(dead_topic, topic, found)
    spec = resolve(with_source(merge, topic or found, subscription))
    subscriber = Subscriber(spec, subscription, how.max_outstanding, "worker", how.max_outstanding_bytes)
    with closing(subscriber):
        letters = _letters(dead_topic, args.dead_letters)
        work(subscriber, letters, how.until_idle)
    if subscriber.outcomes.dead_letter:
        print(f"dead letters are in {_places(letters, dead_topic, args.dead_letters or DEAD_LETTERS)}")
    return 0


def _letters(topic: str | None, path: str | None) -> Letters:
    if topic is None:
        return LetterFile(path or DEAD_LETTERS)
    overflow = OverflowFile(path or DEAD_LETTERS)
    if problem := why_not(overflow.path):
        if path is not None:
            raise ConfigurationError("--dead_letters", f"{path} cannot be written to: {problem}")
        # Not an error: most topics never meet such a letter, and a container may have no place for files at all.
        print(
            f"worker: warning: {overflow.path} cannot be written to: {problem}; a dead letter too large for {topic} "
            "would come back for ever, so name a file that can be, with --dead_letters",
            file=sys.stderr,
        )

    def told(err: Exception) -> None:
        print(
            f"worker: dead letters that {topic} does not take go to {overflow.path}: {one_line(err)}", file=sys.stderr
        )

    return LetterTopic(topic, overflow, told)


def _places(letters: Letters, topic: str | None, path: str) -> str:
    if not isinstance(letters, LetterTopic):
        return path
    return f"{topic}, and {letters.overflowed:,} that it does not take in {path}" if letters.overflowed else f"{topic}"


if __name__ == "__main__":
    program(main)
