"""Merge dead letters again, once their cause is corrected.

    murmur replay --input dead-letters.jsonl --store sqlite:///counts.db ...
    murmur replay --subscription projects/P/subscriptions/DEAD --store bigtable://P/INSTANCE/TABLE ...

Use the flags of the pipeline that wrote the letters, and ``--decode csv`` if it read CSV files. Of a record with
several keys only the failed ones are merged. An event that was merged meanwhile is a duplicate, or is recorded once
more in a table that is appended to, and counts once.

Files are not changed. Letters from a subscription are acknowledged once they are merged, or written to the file for
letters that fail again. The replay ends when no more letters arrive, and then returns letters of other pipelines to the
subscription.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from murmur_beam.quiet_beam import beam  # isort: split

from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from murmur_beam.beam_metrics import METRICS_NAMESPACE
from murmur_beam.deadletter import Failure, write_letter
from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.extract import RecordHints
from murmur_beam.files.letter_files import LetterFile, filled
from murmur_beam.files.matching import matching
from murmur_beam.merger import size_of
from murmur_beam.model import DeadLetter
from murmur_beam.options import DEFAULT_NAME, MergeOptions
from murmur_beam.programs.merge_files import TOO_LONG, add_reading_flags, parser, read, reading_of
from murmur_beam.programs.worker import add_subscription_flags, pulling, work
from murmur_beam.pubsub.client import ANSWER_S, asking, client_library, full_name
from murmur_beam.pubsub.messages import merge_options
from murmur_beam.pubsub.puller import Received
from murmur_beam.pubsub.subscriber import Subscriber
from murmur_beam.runs import endings
from murmur_beam.runs.beam_runs import (
    ShowProgress,
    beam_options,
    hold_letters,
    quiet,
    reasons_of,
    run,
    write_dead_letters,
)
from murmur_beam.runs.console import DEAD_LETTERS_HELP, Outcomes, one_line_errors
from murmur_beam.spec import resolve
from murmur_beam.transforms import MergeRecords

UNREADABLE = "unreadable"
OTHERS = "others"


def unreadable(data: bytes, name: str, err: ValueError) -> DeadLetter:
    """A new letter for data that is not a dead letter."""
    failure = Failure("decode", InvalidRecord("payload", str(err)), RecordHints(None, None, None))
    return write_letter(data, name, failure, time.time_ns() // 1000)


class ParseLetters(beam.DoFn):
    """Parses lines to the dead letters of one pipeline.

    Letters of other pipelines are counted and skipped: they have other fields and keys. A line that is not a dead
    letter becomes one, tagged ``unreadable``.

    Args:
        name: of the pipeline.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._others = Metrics.counter(METRICS_NAMESPACE, OTHERS)
        self._unreadable = Metrics.counter(METRICS_NAMESPACE, UNREADABLE)

    def process(self, line: bytes) -> Iterator[DeadLetter | TaggedOutput]:
        """Read one line."""
        try:
            letter = DeadLetter.from_json(line)
        except ValueError as err:
            self._unreadable.inc()
            yield TaggedOutput(UNREADABLE, unreadable(line, self._name, err))
            return
        if letter.pipeline == self._name:
            yield letter
        else:
            self._others.inc()


class Replayer(Subscriber):
    """Merges the dead letters of one pipeline from a subscription.

    Letters of other pipelines are counted, and returned at the end. A message that is not a dead letter becomes one.
    """

    what = "letters"
    others = 0
    """Number of letters of other pipelines."""
    others_bytes = 0
    """Bytes of the messages of these letters."""
    unreadable = 0
    """Number of messages that are not dead letters."""

    def take(self, received: Received) -> bool:
        """Read a letter and add it to the batch; return whether the batch is full."""
        data = received.message.data
        try:
            letter = DeadLetter.from_json(data)
        except ValueError as err:
            self.unreadable += 1
            self.give_up(received, unreadable(data, self.name, err))
            return False
        if letter.pipeline != self.name:
            self.others += 1
            self.others_bytes += size_of(received.message)
            return False
        return self.merge(received, letter)


def replay_subscription(args: argparse.Namespace, merge: MergeOptions) -> int:
    """Merge the letters of a subscription and report their outcomes."""
    if args.topic is None:
        name = full_name("--subscription", args.subscription, args.project)
    else:
        name = only_subscription(full_name("--topic", args.topic, args.project))
    how = pulling(args)
    spec = resolve(merge)
    spec.check_stores()
    with closing(Replayer(spec, name, how.max_outstanding, "replay", how.max_outstanding_bytes)) as replayer:
        work(replayer, LetterFile(args.dead_letters), how.until_idle)
    _report(args, spec.name, replayer.outcomes.dead_letter, replayer.others, replayer.unreadable)
    full = [
        flag
        for flag, here, limit in (
            ("--max_outstanding", replayer.others, how.max_outstanding),
            ("--max_outstanding_bytes", replayer.others_bytes, how.max_outstanding_bytes),
        )
        if here >= limit
    ]
    if full:
        print(
            f"these letters reach the limit of {full[0]}, so letters of {spec.name!r} may be left behind them; raise "
            f'the limit, or read a subscription with the filter attributes.pipeline = "{spec.name}"'
        )
    return replayer.end(endings.Allowance.parse(args.max_dead_letters))


def only_subscription(topic: str) -> str:
    """The only subscription of a topic.

    Args:
        topic: as ``projects/P/topics/T``.

    Raises:
        ConfigurationError: the topic has no subscription, or several.
    """
    names: list[str] = []
    pubsub = client_library()
    with asking("--topic", topic), pubsub.PublisherClient() as client:
        with asking("--topic", topic):
            client.get_topic(topic=topic, retry=None, timeout=ANSWER_S)
        names = list(client.list_topic_subscriptions(topic=topic, retry=None, timeout=ANSWER_S))
    if not names:
        raise ConfigurationError(
            "--topic",
            f"{topic} has no visible subscription, and a topic keeps no messages without one; before letters arrive, "
            f"run: gcloud pubsub subscriptions create NAME --topic={topic}",
        )
    if len(names) > 1:
        raise ConfigurationError(
            "--topic",
            f"{topic} has {len(names)} subscriptions; name one with --subscription: {', '.join(sorted(names))}",
        )
    return names[0]


def replay_files(args: argparse.Namespace, merge: MergeOptions, beam_arguments: Sequence[str]) -> int:
    """Merge the letters in files and report their outcomes."""
    name = args.name or DEFAULT_NAME
    paths = matching(args.input)
    with closing(hold_letters(args.dead_letters)) as file:
        pipeline = beam.Pipeline(options=beam_options(beam_arguments))
        lines = read(pipeline, paths, reading_of(args, "json"), name)
        letters = lines.read | beam.ParDo(ParseLetters(name)).with_outputs(UNREADABLE, main="read")
        merged = letters.read | "MergeRecords" >> MergeRecords(**merge.given())
        write_dead_letters([merged.dead_letter, letters[UNREADABLE], lines[TOO_LONG]], file)
        _ = lines.read | beam.ParDo(ShowProgress("letters"))
        counters = run(pipeline)
    outcomes = Outcomes.of(name, counters)
    print(outcomes)
    unreadable = counters.get(UNREADABLE, 0)
    _report(args, name, outcomes.dead_letter, counters.get(OTHERS, 0), unreadable)
    dead, total = outcomes.dead_letter + unreadable, outcomes.total + unreadable
    return endings.end("replay", dead, total, reasons_of(counters), endings.Allowance.parse(args.max_dead_letters))


def _report(args: argparse.Namespace, name: str, dead: int, others: int, unreadable: int) -> None:
    """Print letters that were skipped or failed again."""
    if others:
        print(f"{others:,} letters of pipelines other than {name!r} were skipped; see --name")
    if unreadable:
        print(f"{unreadable:,} {'lines' if args.input else 'messages'} are not dead letters")
    if dead or unreadable:
        print(f"letters that could not be merged are in {args.dead_letters}")


@one_line_errors("replay")
def main(argv: Sequence[str] | None = None) -> int:
    """Merge the dead letters and report their outcomes."""
    arguments = parser("replay", "Merge dead letters again, with the flags of the pipeline that wrote them.")
    source = arguments.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", action="append", metavar="GLOB", help="files; may be repeated")
    source.add_argument("--subscription", metavar="NAME", help="projects/P/subscriptions/S with the letters")
    source.add_argument("--topic", metavar="NAME", help="projects/P/topics/T, whose only subscription has the letters")
    add_subscription_flags(arguments.add_argument_group("with --subscription or --topic"), until_idle="30s")
    arguments.add_argument(
        "--dead_letters",
        default="still-dead-letters.jsonl",
        help=f"{DEAD_LETTERS_HELP}; letters from a subscription are appended",
    )
    arguments.add_argument(endings.FLAG, metavar="N|P%", help=endings.HELP)
    add_reading_flags(arguments.add_argument_group("with --input"))
    arguments.add_argument(
        "--unpickle",
        action="store_true",
        help="load pickled elements; this runs any code that the writer of the letters put there",
    )
    args, others = arguments.parse_known_args(argv)
    quiet()
    endings.Allowance.parse(args.max_dead_letters)
    args.dead_letters = filled(args.dead_letters)
    merge = replace(merge_options(args), unpickle=args.unpickle)
    if args.input:
        return replay_files(args, merge, others)
    if others:
        raise ConfigurationError(
            others[0].partition("=")[0], "is not an option with --subscription or --topic; see --help"
        )
    return replay_subscription(args, merge)
