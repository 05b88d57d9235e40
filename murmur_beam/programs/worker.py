"""Fold the messages of a Pub/Sub subscription into state, in one process and without Beam.

    murmur worker --subscription projects/P/subscriptions/S --store bigtable://P/INSTANCE/TABLE \\
        --key 'page/{page}' --monoid count --event_id id --window daily --dead_letters dead-letters.jsonl

A message is acknowledged after its commit, or after its dead letter is stored durably. So each event counts exactly
once, however often the worker is killed and restarted, on one machine or on several with the same subscription. Without
dedup it counts at least once. SIGTERM and SIGINT end the worker after the current batch.

With ``--fold``, the worker folds the busy rows of a table that it appends to. Several workers share that work: one of
them at a time folds a row, and if it ends, another goes on.

With ``--dead_letter_topic``, a letter that is too large for a message is written to the file of ``--dead_letters``,
from which `murmur replay` can merge it. The file is created with the first such letter.
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
from murmur_beam.files.letter_files import LetterFile, filled
from murmur_beam.options import add_flags
from murmur_beam.pubsub.client import full_name, one_line, topic_of
from murmur_beam.pubsub.letters import Letters, LetterTopic
from murmur_beam.pubsub.messages import TOPIC_HELP, check_not_read, merge_options, with_source
from murmur_beam.pubsub.overflow import OverflowFile, why_not
from murmur_beam.pubsub.puller import MAX_BYTES
from murmur_beam.pubsub.subscriber import Subscriber
from murmur_beam.runs import endings
from murmur_beam.runs.console import Parser, one_line_errors
from murmur_beam.spec import resolve

DEAD_LETTERS = "dead-letters.jsonl"


def add_subscription_flags(parser: argparse._ActionsContainer, until_idle: str | None) -> None:
    """Add the flags that control pulling.

    Args:
        parser: to add the flags to.
        until_idle: default of ``--until_idle``.
    """
    parser.add_argument("--project", help="project of names that are not written as projects/P/...")
    parser.add_argument(
        "--until_idle",
        default=until_idle,
        metavar="DURATION",
        help=f"end after this time without a message, such as 30s ({until_idle or 'never'})",
    )
    parser.add_argument(
        "--max_outstanding",
        type=int,
        default=5_000,
        metavar="N",
        help="maximum number of unacknowledged messages (%(default)s)",
    )
    parser.add_argument(
        "--max_outstanding_bytes",
        type=int,
        default=MAX_BYTES,
        metavar="N",
        help="bytes of unacknowledged messages at which no more are requested (%(default)s)",
    )


class Pulling(NamedTuple):
    """Values of the flags of `add_subscription_flags`.

    Attributes:
        max_outstanding: maximum number of unacknowledged messages.
        max_outstanding_bytes: maximum bytes of their data and attributes.
        until_idle: time without a message after which to end; None: never.
    """

    max_outstanding: int
    max_outstanding_bytes: int
    until_idle: timedelta | None


def pulling(args: argparse.Namespace) -> Pulling:
    """Read the flags of `add_subscription_flags`.

    Raises:
        ConfigurationError: a flag is invalid.
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
    """Let SIGTERM and SIGINT call ``stop``; a second signal ends the process."""

    def handle(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        # Not print: the signal may have interrupted another print.
        os.write(2, b"\nstopping after the current batch; a second signal ends it at once\n")
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(subscriber: Subscriber, letters: Letters, until_idle: timedelta | None) -> None:
    """Run a subscriber until it ends or a signal comes, and print the outcomes of the messages.

    Args:
        subscriber: to run; the caller closes it.
        letters: for dead letters; closed here.
        until_idle: time without a message after which to end.
    """
    try:
        with closing(letters), stopping(subscriber.stop):
            subscriber.run(letters, until_idle)
    finally:
        print(subscriber.outcomes)
        if subscriber.returned:
            print(f"{subscriber.returned:,} {subscriber.what} were returned to the subscription")


@one_line_errors("worker")
def main(argv: Sequence[str] | None = None) -> int:
    """Merge messages until a signal ends it."""
    parser = Parser(
        "worker",
        description="Fold the messages of a Pub/Sub subscription into state, each event exactly once.",
        epilog="A FIELD is a name, a path such as user.country, attribute:NAME, message:id, message:publish_time, or "
        "'=TEXT' for a constant text.",
    )
    add_flags(parser.add_argument_group("what to merge"))
    parser.add_argument("--subscription", required=True, metavar="NAME", help="projects/P/subscriptions/S")
    parser.add_argument("--topic", metavar="NAME", help=TOPIC_HELP)
    add_subscription_flags(parser, until_idle=None)
    parser.add_argument(
        "--dead_letters",
        metavar="FILE",
        help="file to which dead letters are appended; with --dead_letter_topic, only those too large for a message "
        f"({DEAD_LETTERS})",
    )
    parser.add_argument(
        "--dead_letter_topic", metavar="NAME", help="topic to which dead letters are published, projects/P/topics/T"
    )
    parser.add_argument(endings.FLAG, metavar="N|P%", help=endings.HELP)
    args = parser.parse_args(argv)
    allowance = endings.Allowance.parse(args.max_dead_letters)
    args.dead_letters = args.dead_letters and filled(args.dead_letters)
    subscription = full_name("--subscription", args.subscription, args.project)
    how = pulling(args)
    merge = merge_options(args)
    resolve(merge).check_stores()
    topic = args.topic and full_name("--topic", args.topic, args.project)
    dead_topic = args.dead_letter_topic and full_name("--dead_letter_topic", args.dead_letter_topic, args.project)
    found = topic_of(subscription)
    check_not_read(dead_topic, topic, found)
    spec = resolve(with_source(merge, topic or found, subscription))
    subscriber = Subscriber(spec, subscription, how.max_outstanding, "worker", how.max_outstanding_bytes)
    with closing(subscriber):
        letters = _letters(dead_topic, args.dead_letters)
        print(f"worker: listening to {subscription}, writing to {spec.store}", file=sys.stderr)
        work(subscriber, letters, how.until_idle)
    if subscriber.folded is not None:
        print(f"folded {subscriber.folded.events:,} events, in {subscriber.folded.folded:,} folds of a row")
    if subscriber.outcomes.dead_letter:
        print(f"dead letters are in {_places(letters, dead_topic, args.dead_letters or DEAD_LETTERS)}")
    return subscriber.end(allowance)


def _letters(topic: str | None, path: str | None) -> Letters:
    if topic is None:
        return LetterFile(path or DEAD_LETTERS)
    overflow = OverflowFile(path or DEAD_LETTERS)
    if problem := why_not(overflow.path):
        if path is not None:
            raise ConfigurationError("--dead_letters", f"{path} cannot be written to: {problem}")
        # Not an error: most topics never get such a letter, and a container may have no writable folder.
        print(
            f"worker: warning: {overflow.path} cannot be written to: {problem}; a dead letter too large for {topic} "
            "would be redelivered forever, so name a writable file with --dead_letters",
            file=sys.stderr,
        )

    def report(err: Exception) -> None:
        print(
            f"worker: dead letters that {topic} refuses are written to {overflow.path}: {one_line(err)}",
            file=sys.stderr,
        )

    return LetterTopic(topic, overflow, report)


def _places(letters: Letters, topic: str | None, path: str) -> str:
    if not isinstance(letters, LetterTopic):
        return path
    return f"{topic}, and {letters.overflowed:,} that it refused in {path}" if letters.overflowed else f"{topic}"
