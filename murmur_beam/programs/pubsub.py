"""Fold the messages of a Pub/Sub subscription into state, for as long as it runs.

    murmur pubsub --subscription projects/P/subscriptions/S --store bigtable://P/INSTANCE/TABLE \\
        --key 'page/{page}' --monoid count --event_id id --window daily --dead_letter_topic projects/P/topics/T

A streaming pipeline for runners such as Dataflow. Beam's local runner acknowledges messages before it processes them,
and so may lose some; on one machine use `murmur worker`, which loses none.

A dead letter that is too large for ``--dead_letter_topic`` is written to the folder of ``--dead_letters``, from which
`murmur replay` can merge it.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

from murmur_beam.quiet_beam import beam  # isort: split

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions
from apache_beam.pvalue import TaggedOutput

from murmur_beam.errors import ConfigurationError
from murmur_beam.model import DeadLetter
from murmur_beam.option import naming
from murmur_beam.options import MergeOptions
from murmur_beam.programs.merge_files import parser
from murmur_beam.pubsub.client import ANSWER_S, asking, client_library, full_name, topic_of
from murmur_beam.pubsub.letters import message_of
from murmur_beam.pubsub.messages import TOPIC_HELP, check_not_read, merge_options, needs_source, with_source
from murmur_beam.runs.beam_runs import (
    IN_PROCESS_RUNNER,
    beam_options,
    check_dataflow,
    new_pipeline,
    on_dataflow,
    quiet,
    tell_job,
)
from murmur_beam.runs.console import Parser, command_of, one_line_errors
from murmur_beam.transforms import MergeRecords

LOCAL_RUNNER = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
"""The only runner in this process that reads Pub/Sub. Newer versions of ``DirectRunner`` use it too, after trying to
download another one that cannot."""


DEAD_LETTERS = "dead-letters"
"""Folder for letters too large for their topic: in the current folder, or on Dataflow below ``--temp_location``."""

MAX_SINK_BYTES = 6_900_000
"""Largest message that Beam writes. Pub/Sub accepts 10 MB, but Dataflow's writer refuses more than 7 MB, and retries
the bundle forever."""

_TOO_LARGE = "too_large"
_FILE_BYTES = 64 * 1024 * 1024
"""Size of a bundle's buffered letters from which they are written to a file before the bundle ends."""


class WriteLetters(beam.DoFn):
    """Writes the dead letters of each bundle to new JSON Lines files, which are complete before the bundle ends.

    Each file has about 64 MiB at most. If the bundle is retried afterwards, its letters are in two files; a replay
    takes the second ones for duplicates.

    Args:
        folder: local, or in any of Beam's file systems.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def start_bundle(self) -> None:
        """Forget the letters of a bundle that failed."""
        self._lines: list[bytes] = []
        self._bytes = 0

    def process(self, letter: DeadLetter) -> None:
        """Buffer one letter."""
        line = f"{DeadLetter.to_json(letter)}\n".encode()
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes >= _FILE_BYTES:
            self.finish_bundle()
            self.start_bundle()

    def finish_bundle(self) -> None:
        """Write the letters, under another name first, so that no reader sees half a file."""
        if self._lines:
            name = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex}.jsonl"
            path = FileSystems.join(self._folder, name)
            with FileSystems.create(f"{path}.part") as file:
                for line in self._lines:
                    file.write(line)
            FileSystems.rename([f"{path}.part"], [path])


class SplitLetters(beam.DoFn):
    """Emits data and attributes of a message for each letter; a letter that is too large for a message is emitted
    itself, tagged ``too_large``."""

    def process(self, letter: DeadLetter) -> Iterator[Any]:
        """Convert one letter."""
        message = message_of(letter, MAX_SINK_BYTES)
        yield TaggedOutput(_TOO_LARGE, letter) if message is None else message


def build(
    pipeline: beam.Pipeline,
    subscription: str,
    merge: MergeOptions,
    *,
    dead_letter_topic: str | None = None,
    dead_letters: str | None = None,
) -> None:
    """Add the steps: read, merge, and write dead letters to a topic or a folder.

    Args:
        pipeline: to add the steps to.
        subscription: as ``projects/P/subscriptions/S``.
        merge: options of `MergeRecords`.
        dead_letter_topic: as ``projects/P/topics/T``.
        dead_letters: a folder; with a topic, for letters larger than `MAX_SINK_BYTES` (default: `overflow_folder`).

    Raises:
        ConfigurationError: an argument is invalid.
    """
    # Imported here, since Beam's module prints a warning for each Google client that is not installed.
    from apache_beam.io.gcp.pubsub import ReadFromPubSub

    check_places(dead_letter_topic, dead_letters)
    folder = dead_letters or overflow_folder(pipeline.options)
    with naming("--subscription"):
        read = ReadFromPubSub(subscription=subscription, with_attributes=True)
    merged = pipeline | "ReadFromPubSub" >> read | "MergeRecords" >> MergeRecords(**merge.given())
    if dead_letter_topic is None:
        _ = merged.dead_letter | "WriteDeadLetters" >> beam.ParDo(WriteLetters(folder))
    else:
        publish(merged.dead_letter, dead_letter_topic, folder)


def publish(letters: beam.PCollection, topic: str, folder: str) -> None:
    """Write dead letters to a topic, and letters larger than `MAX_SINK_BYTES` to a folder.

    Args:
        letters: of `MergeRecords`.
        topic: as ``projects/P/topics/T``.
        folder: for `WriteLetters`.

    Raises:
        ConfigurationError: the name of the topic is invalid.
    """
    from apache_beam.io.gcp.pubsub import PubsubMessage, WriteToPubSub

    with naming("--dead_letter_topic"):
        write = WriteToPubSub(topic, with_attributes=True)
    split = letters | "SplitLetters" >> beam.ParDo(SplitLetters()).with_outputs(_TOO_LARGE, main="messages")
    split[_TOO_LARGE].element_type = DeadLetter
    convert = beam.MapTuple(lambda data, attributes: PubsubMessage(data, attributes))
    messages = split.messages | "DeadLetterToMessage" >> convert.with_output_types(PubsubMessage)
    _ = messages | "WriteDeadLetters" >> write
    _ = split[_TOO_LARGE] | "WriteLargeLetters" >> beam.ParDo(WriteLetters(folder))


def check_places(dead_letter_topic: str | None, dead_letters: str | None) -> None:
    """Check that dead letters have a destination.

    Raises:
        ConfigurationError: neither flag is given.
    """
    if not (dead_letter_topic or dead_letters):
        raise ConfigurationError("--dead_letters", "is missing, and so is --dead_letter_topic; give one of them")


def overflow_folder(options: PipelineOptions) -> str:
    """Default folder for letters too large for their topic.

    Raises:
        ConfigurationError: on Dataflow ``--temp_location`` is missing; elsewhere the folder cannot be created.
    """
    if not on_dataflow(options):
        there = os.path.exists(DEAD_LETTERS)
        if os.path.isfile(DEAD_LETTERS) or not os.access(DEAD_LETTERS if there else os.curdir, os.W_OK):
            raise ConfigurationError(
                "--dead_letters",
                f"is missing, and a folder {DEAD_LETTERS}, for letters too large for --dead_letter_topic, cannot be "
                "created here; name another folder",
            )
        return DEAD_LETTERS
    temp_location = options.view_as(GoogleCloudOptions).temp_location
    if not temp_location:
        raise ConfigurationError(
            "--dead_letters",
            "is missing, and so is --temp_location, for letters too large for --dead_letter_topic; give one of them",
        )
    return f"{temp_location.rstrip('/')}/{DEAD_LETTERS}"


def check_names(subscription: str, dead_letter_topic: str | None) -> None:
    """Look up both names: the local runner would lose the messages that it reads before it notices a mistake.

    Raises:
        ConfigurationError: a name does not exist or cannot be looked up, or the subscription would read the letters.
    """
    topic = topic_of(subscription)
    if dead_letter_topic is None:
        return
    check_not_read(dead_letter_topic, topic)
    with asking("--dead_letter_topic", dead_letter_topic), client_library().PublisherClient() as client:
        client.get_topic(topic=dead_letter_topic, retry=None, timeout=ANSWER_S)


def check_folder(folder: str) -> None:
    """Create a local folder, unless it exists, and test that files can be created in it.

    Raises:
        ConfigurationError: the folder cannot be written to. The local runner would lose dead letters without an error.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        raise ConfigurationError("--dead_letters", f"{folder} cannot be written to: {err.strerror}") from err


def run_until_stopped(pipeline: beam.Pipeline, launched: Callable[[Any], None] = lambda result: None) -> bool:
    """Run until SIGINT or SIGTERM, or until the runner ends by itself; return whether a signal came.

    Args:
        pipeline: to run.
        launched: called with the runner's result once the pipeline has started.

    Raises:
        Exception: the error of the pipeline.
    """
    # Not an Event: a signal handler that interrupts another one while it sets the event would wait forever.
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()
    failures: list[Exception] = []
    signalled: list[int] = []

    def stop(number: int, frame: object) -> None:
        signalled.append(number)
        ended.put(None)

    def wait(result: Any) -> None:
        try:
            result.wait_until_finish()
        except Exception as err:
            failures.append(err)
        ended.put(None)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        result = pipeline.run()
        launched(result)
        # Not in this thread: an interrupted local runner waits half a minute for the response to its last request.
        threading.Thread(target=wait, args=(result,), name="wait-for-pipeline", daemon=True).start()
        ended.get()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if failures and not signalled:
        raise failures[0]
    return bool(signalled)


def command_line() -> Parser:
    """The program's parser."""
    arguments = parser("pubsub", "Fold the messages of a Pub/Sub subscription into state, each event exactly once.")
    arguments.add_argument("--subscription", required=True, metavar="NAME", help="as projects/P/subscriptions/S")
    arguments.add_argument("--topic", metavar="NAME", help=TOPIC_HELP)
    arguments.add_argument("--dead_letter_topic", metavar="NAME", help="topic for dead letters: projects/P/topics/T")
    arguments.add_argument(
        "--dead_letters",
        metavar="FOLDER",
        help="folder for dead letters, in JSON Lines files; with --dead_letter_topic, for letters too large for a "
        f"message (default then: {DEAD_LETTERS}, on Dataflow below --temp_location)",
    )
    return arguments


@one_line_errors("pubsub")
def main(argv: Sequence[str] | None = None) -> int:
    """Merge messages until a signal comes."""
    args, beam_arguments = command_line().parse_known_args(argv)
    quiet()
    # It logs the error of a bundle at each try.
    logging.getLogger("apache_beam.runners.direct").setLevel(logging.CRITICAL)
    client_library()
    options = beam_options(beam_arguments)
    standard = options.view_as(StandardOptions)
    standard.streaming = True
    local = standard.runner in (IN_PROCESS_RUNNER, "DirectRunner", LOCAL_RUNNER)
    check_dataflow(options, [("--store", args.store), ("--dead_letters", args.dead_letters)], args.cache)
    check_places(args.dead_letter_topic, args.dead_letters)
    merge = merge_options(args)
    if args.dead_letters and os.path.isfile(args.dead_letters):
        raise ConfigurationError("--dead_letters", f"{args.dead_letters} is a file; name a folder")
    if args.dead_letters and "://" not in args.dead_letters:
        check_folder(args.dead_letters)

    if local:
        standard.runner = LOCAL_RUNNER
    project = options.view_as(GoogleCloudOptions).project
    subscription = full_name("--subscription", args.subscription, project)
    topic = args.topic and full_name("--topic", args.topic, project)
    dead_topic = args.dead_letter_topic and full_name("--dead_letter_topic", args.dead_letter_topic, project)
    if needs_source(merge) and topic is None:
        topic = topic_of(subscription)
    check_not_read(dead_topic, topic)
    merge = with_source(merge, topic, subscription)
    pipeline = new_pipeline(options)
    build(pipeline, subscription, merge, dead_letter_topic=dead_topic, dead_letters=args.dead_letters)
    if local:
        check_names(subscription, dead_topic)
        print(
            "pubsub: note: Beam's local runner acknowledges messages before it processes them, so a stop or a crash "
            f"loses some; {command_of('worker')} loses none",
            file=sys.stderr,
        )
    if run_until_stopped(pipeline, partial(tell_job, options)):
        print("pubsub: stopped" if local else "pubsub: the job goes on; stop it where it runs", file=sys.stderr)
    return 0
