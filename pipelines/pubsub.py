"""Fold the messages of a Pub/Sub subscription into state, for as long as it runs.

    python -m pipelines.pubsub --subscription projects/P/subscriptions/S --store bigtable://P/INSTANCE/TABLE \\
        --key 'page/{page}' --monoid count --event_id id --window daily --dead_letter_topic projects/P/topics/T

A streaming pipeline for runners such as Dataflow. Beam's local runner acknowledges messages before it processes them,
so on one machine `pipelines.worker` is the one that loses none.
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
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from typing import Any

from pipelines.quiet_beam import beam  # isort: split

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, StandardOptions

from murmur_beam.errors import ConfigurationError
from murmur_beam.model import DeadLetter
from murmur_beam.transforms import MergeRecords
from pipelines.common import IN_PROCESS_RUNNER, beam_options, check_dataflow, new_pipeline, quiet, tell_job
from pipelines.console import one_line_errors, program
from pipelines.google_pubsub import ANSWER_S, asking, client_library, full_name
from pipelines.letters import attributes_of
from pipelines.merge_files import parser
from pipelines.messages import merge_arguments

LOCAL_RUNNER = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
"""The one runner in this process that reads Pub/Sub. Newer versions of ``DirectRunner`` end there too, after they have
tried to download another one that cannot."""


class WriteLetters(beam.DoFn):
    """Writes the dead letters of each bundle to a JSON Lines file of their own, which is whole before the bundle ends.

    If the bundle is then tried again, its letters stand in two files; a replay takes the second for duplicates.

    Args:
        folder: where; local or any that Beam can write to.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def start_bundle(self) -> None:
        """Forget the letters of a bundle that failed."""
        self._lines: list[str] = []

    def process(self, letter: DeadLetter) -> None:
        """Keep one."""
        self._lines.append(DeadLetter.to_json(letter))

    def finish_bundle(self) -> None:
        """Write all under another name first, so that nobody reads half a file."""
        if self._lines:
            name = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex}.jsonl"
            path = FileSystems.join(self._folder, name)
            with FileSystems.create(f"{path}.part") as file:
                file.write("".join(f"{line}\n" for line in self._lines).encode("utf-8"))
            FileSystems.rename([f"{path}.part"], [path])


def build(
    pipeline: beam.Pipeline,
    subscription: str,
    merge: dict[str, Any],
    *,
    dead_letter_topic: str | None = None,
    dead_letters: str | None = None,
) -> None:
    """The steps: read, merge, and write what cannot be merged to a topic or else into a folder.

    Args:
        pipeline: to add them to.
        subscription: as ``projects/P/subscriptions/S``.
        merge: arguments of `MergeRecords`.
        dead_letter_topic: as ``projects/P/topics/T``.
        dead_letters: a folder.

    Raises:
        ConfigurationError: an argument that is wrong.
    """
    # Here, since Beam's module warns on the screen about each Google client that is not installed.
    from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub, WriteToPubSub

    def message(letter: DeadLetter) -> PubsubMessage:
        return PubsubMessage(DeadLetter.to_json(letter).encode("utf-8"), attributes_of(letter))

    with _naming("--subscription"):
        read = ReadFromPubSub(subscription=subscription, with_attributes=True)
    merged = pipeline | "ReadFromPubSub" >> read | "MergeRecords" >> MergeRecords(**merge)
    if dead_letter_topic is not None:
        with _naming("--dead_letter_topic"):
            write = WriteToPubSub(dead_letter_topic, with_attributes=True)
        messages = merged.dead_letter | "DeadLetterToMessage" >> beam.Map(message).with_output_types(PubsubMessage)
        _ = messages | "WriteDeadLetters" >> write
    elif dead_letters is not None:
        _ = merged.dead_letter | "WriteDeadLetters" >> beam.ParDo(WriteLetters(dead_letters))
    else:
        raise ConfigurationError("--dead_letters", "is missing, and so is --dead_letter_topic; say where they may go")


@contextmanager
def _naming(flag: str) -> Iterator[None]:
    try:
        yield
    except ValueError as err:
        raise ConfigurationError(flag, str(err)) from None


def check_names(subscription: str, dead_letter_topic: str | None) -> None:
    """Ask Pub/Sub for both, since the local runner would lose the messages that it reads before it meets the mistake.

    Raises:
        ConfigurationError: one does not exist, or cannot be asked for, or the letters would come back as messages.
    """
    pubsub_v1 = client_library()
    how: dict[str, Any] = {"retry": None, "timeout": ANSWER_S}
    topic = None
    with asking("--subscription", subscription), pubsub_v1.SubscriberClient() as subscriber:
        topic = subscriber.get_subscription(subscription=subscription, **how).topic
    if dead_letter_topic is None:
        return
    if dead_letter_topic == topic:
        raise ConfigurationError(
            "--dead_letter_topic", "is the topic that is read; each dead letter would come back for ever"
        )
    with asking("--dead_letter_topic", dead_letter_topic), pubsub_v1.PublisherClient() as publisher:
        publisher.get_topic(topic=dead_letter_topic, **how)


def check_folder(folder: str) -> None:
    """Make a local folder, unless it is there, and a file in it that is gone again.

    Raises:
        ConfigurationError: it cannot be done. The local runner would lose the dead letters and say nothing.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        raise ConfigurationError("--dead_letters", f"{folder} cannot be written to: {err.strerror}") from err


def run_until_stopped(pipeline: beam.Pipeline, launched: Callable[[Any], None] = lambda result: None) -> bool:
    """Run until SIGINT or SIGTERM comes, or until the runner ends by itself; did a signal come?

    Args:
        pipeline: to run.
        launched: is called with the runner's result once that has begun.

    Raises:
        Exception: what made the pipeline fail.
    """
    # Not an Event: a signal handler that interrupts another in the middle of setting it would wait for ever.
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()
    failures: list[Exception] = []
    signalled: list[int] = []

    def stop(number: int, frame: object) -> None:
        signalled.append(number)
        ended.put(None)

    def wait() -> None:
        try:
            result.wait_until_finish()
        except Exception as err:
            failures.append(err)
        ended.put(None)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        result = pipeline.run()
        launched(result)
        # Not in this thread: a local runner that is interrupted waits half a minute for the answer to its last request.
        threading.Thread(target=wait, name="wait-for-pipeline", daemon=True).start()
        ended.get()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if failures and not signalled:
        raise failures[0]
    return bool(signalled)


@one_line_errors("pubsub")
def main(argv: Sequence[str] | None = None) -> int:
    """Merge messages until it is told to stop."""
    arguments = parser("pubsub", "Fold the messages of a Pub/Sub subscription into state, each event exactly once.")
    arguments.add_argument("--subscription", required=True, metavar="NAME", help="projects/P/subscriptions/S")
    where = arguments.add_mutually_exclusive_group(required=True)
    where.add_argument("--dead_letter_topic", metavar="NAME", help="projects/P/topics/T for what cannot be merged")
    where.add_argument("--dead_letters", metavar="FOLDER", help="or a folder for it, in JSON Lines files")
    args, beam_arguments = arguments.parse_known_args(argv)
    quiet()
    # Logs whatever a bundle raises, each time it is tried.
    logging.getLogger("apache_beam.runners.direct").setLevel(logging.CRITICAL)
    client_library()
    options = beam_options(beam_arguments)
    standard = options.view_as(StandardOptions)
    standard.streaming = True
    local = standard.runner in (IN_PROCESS_RUNNER, "DirectRunner", LOCAL_RUNNER)
    check_dataflow(options, [("--store", args.store), ("--dead_letters", args.dead_letters)], args.cache)
    merge = merge_arguments(args)
    if args.dead_letters and os.path.isfile(args.dead_letters):
        raise ConfigurationError("--dead_letters", f"{args.dead_letters} is a file; name a folder")
    if args.dead_letters and "://" not in args.dead_letters:
        check_folder(args.dead_letters)

    if local:
        standard.runner = LOCAL_RUNNER
    project = options.view_as(GoogleCloudOptions).project
    subscription = full_name("--subscription", args.subscription, project)
    topic = args.dead_letter_topic and full_name("--dead_letter_topic", args.dead_letter_topic, project)
    pipeline = new_pipeline(options)
    build(pipeline, subscription, merge, dead_letter_topic=topic, dead_letters=args.dead_letters)
    if local:
        check_names(subscription, topic)
        print(
            "pubsub: note: Beam's local runner acknowledges messages before it processes them, so a stop or a crash "
            "loses those in between; python -m pipelines.worker does not",
            file=sys.stderr,
        )
    if run_until_stopped(pipeline, partial(tell_job, options)):
        print("pubsub: stopped" if local else "pubsub: the job goes on; end it where it runs", file=sys.stderr)
    return 0


if __name__ == "__main__":
    program(main)
