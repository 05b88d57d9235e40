"""Merges the messages of a Pub/Sub subscription and acknowledges each once it cannot be lost. Needs no Beam.

One loop: take what has arrived, merge it with one write per touched row, hand on the dead letters, acknowledge. What
arrives meanwhile is the next batch, so batches are small and quick while little comes and large under load.
"""

from __future__ import annotations

import queue
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from murmur_beam import retry
from murmur_beam.errors import MurmurError, RetriesExhausted
from murmur_beam.merger import Merger, Message
from murmur_beam.model import DeadLetter, to_us
from murmur_beam.spec import MergeSpec
from pipelines.console import Outcomes, Progress
from pipelines.google_pubsub import ANSWER_S, asking, client_library, one_line
from pipelines.letters import Letters

_CLOSE_S = 30.0


class Received(Protocol):
    """A message as Google's client hands it over."""

    data: bytes
    attributes: Mapping[str, str]
    message_id: str
    publish_time: datetime
    ordering_key: str

    def ack(self) -> None:
        """Never deliver it again."""

    def nack(self) -> None:
        """Deliver it again, at once."""


class Subscription(NamedTuple):
    """What to pull, and how.

    Attributes:
        name: as ``projects/P/subscriptions/S``.
        max_outstanding: messages that may be here without an acknowledgement.
        ack_deadline: how long those of a killed process stay with it before Pub/Sub delivers them again. While the
            process lives it asks for more time as long as it needs.
        until_idle: end after so long without a message; None: never.
    """

    name: str
    max_outstanding: int
    ack_deadline: timedelta
    until_idle: timedelta | None


class Tally:
    """Counts by name; what `Merger` reports to."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def record_event(self, pipeline: str) -> None:
        """Count one event."""
        self.counts[pipeline] += 1

    def record_error(self, pipeline: str, err: BaseException) -> None:
        """Count one error."""
        self.counts[f"{pipeline}:error"] += 1

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None:
        """Nobody asks for it."""

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        """Nobody asks for it."""

    def count(self, name: str, n: int) -> None:
        """Count whole records."""
        self.counts[name] += n


class Inbox:
    """What has arrived. It stands in for the client's pool of threads, since all they would do is to put it in here."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Any] = queue.Queue()
        """What the client wants to be told, such as acknowledgements; its own thread takes it from there."""
        # Unlike other queues, one that a signal handler may put into.
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False

    def get(self, timeout_s: float | None = 0.0) -> Received | None:
        """The next message; None if there is none within this time (None: for ever), or somebody calls `wake`."""
        try:
            return self._messages.get(timeout=timeout_s) if timeout_s != 0.0 else self._messages.get_nowait()
        except queue.Empty:
            return None

    def wake(self) -> None:
        """End one `get`."""
        self._messages.put(None)

    def schedule(self, callback: object, message: Received) -> None:
        """Called by the client's threads, for each message."""
        if self._closed:
            message.nack()
        else:
            self._messages.put(message)

    def shutdown(self, await_msg_callbacks: bool = False) -> list[Received]:
        """Called by the client when the stream ends; it nacks what comes back."""
        self._closed = True
        left = []
        with suppress(queue.Empty):
            while True:
                left.append(self._messages.get_nowait())
        return [message for message in left if message is not None]


class Subscriber:
    """Pulls messages, merges them, hands on what cannot be merged, acknowledges.

    However it ends, what is not acknowledged is delivered again. So if it is killed

    - before the commit, the messages are merged when they come again;
    - between commit and acknowledgement, they are duplicates then (without dedup they count twice);
    - between a dead letter and its acknowledgement, the letter is written a second time, and a replay takes that for a
      duplicate.

    A store that cannot be reached beyond all tries makes dead letters, or with ``on_exhausted="raise"`` the batch goes
    back to Pub/Sub and the next one waits a little. So does a batch whose dead letters cannot be kept, as to those.
    With ordering keys the client hands over a key's next message after the acknowledgement of the one before.

    Args:
        spec: what to merge.
        subscription: what to pull.
        who: the program's name, for what it says on stderr.

    Raises:
        MurmurError: a store cannot be opened, the subscription does not exist, or Pub/Sub cannot be asked.
    """

    what = "messages"
    """Plural of what is counted on the screen."""

    def __init__(self, spec: MergeSpec, subscription: Subscription, who: str) -> None:
        self.name = spec.name
        """Of the pipeline."""
        self._spec = spec
        self._subscription = subscription
        self._who = who
        self._pubsub = client_library()
        with asking("--subscription", subscription.name):
            self._client = self._pubsub.SubscriberClient()
        self.topic: str | None = None
        """Where the messages come from, if we may know."""
        try:
            with asking("--subscription", subscription.name):
                self.topic = self._client.get_subscription(
                    subscription=subscription.name, retry=None, timeout=ANSWER_S
                ).topic
            self._tally = Tally()
            self._merger: Merger[Received] = Merger(spec, self._tally)
        except BaseException:
            self._client.close()
            raise
        self._inbox = Inbox()
        self._stopping = False
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._batch: list[Received] = []
        self._given_up: list[tuple[Received, DeadLetter]] = []
        self._held: list[Received] = []
        self._troubles = 0
        self._dead_letters = 0
        self.returned = 0
        """Messages that went back to Pub/Sub because of a failure."""

    @property
    def outcomes(self) -> Outcomes:
        """What became of the messages so far."""
        return Outcomes.of(self.name, {**self._tally.counts, f"{self.name}:dead_letter": self._dead_letters})

    def stop(self) -> None:
        """End after the batch at hand. May be called from a signal handler."""
        self._stopping = True
        self._stops.put(None)
        self._inbox.wake()

    def run(self, letters: Letters) -> None:
        """Work until `stop`, or until nothing has come for long enough.

        Args:
            letters: keeps what cannot be merged.

        Raises:
            StoreUnavailable, SchemaMismatch: the store cannot be used as configured.
            MurmurError: Pub/Sub has ended the stream, as when the subscription was deleted.
        """
        progress = Progress(self.what)
        with self._stream() as stream:
            self._loop(stream, letters, progress)
        progress.end(more=self.outcomes)

    def close(self) -> None:
        """Close store and connection."""
        self._merger.close()
        self._client.close()

    def take(self, message: Received) -> bool:
        """Do with a message what there is to do before the batch is merged; True if the batch is full."""
        plain = Message(
            message.data,
            dict(message.attributes),
            message.message_id,
            message.publish_time,
            message.ordering_key or None,
        )
        return self.merge(message, plain)

    def merge(self, message: Received, element: Any) -> bool:
        """Merge what a message holds; True if the batch is full."""
        self._batch.append(message)
        return self._merger.add(element, to_us(message.publish_time), message)

    def give_up(self, message: Received, letter: DeadLetter) -> None:
        """Make a dead letter of a message without merging it."""
        self._batch.append(message)
        self._given_up.append((message, letter))

    def hold(self, message: Received) -> None:
        """Leave a message in the subscription: it goes back when this ends, and not before, or it would come again."""
        self._held.append(message)

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        """The open stream. At its end acknowledgements are sent, and what was not taken goes back."""
        deadline_s = int(self._subscription.ack_deadline.total_seconds())
        stream = self._client.subscribe(
            self._subscription.name,
            callback=_never_called,
            flow_control=self._pubsub.types.FlowControl(
                max_messages=self._subscription.max_outstanding,
                min_duration_per_lease_extension=deadline_s,
                max_duration_per_lease_extension=deadline_s,
            ),
            scheduler=self._inbox,
        )
        stream.add_done_callback(lambda _: self._inbox.wake())
        try:
            yield stream
        finally:
            _nack(self._held)
            stream.cancel()
            try:
                stream.result(timeout=_CLOSE_S)
            except futures.TimeoutError:
                print(f"{self._who}: Pub/Sub does not answer; what it was not told comes again", file=sys.stderr)
            except Exception as err:
                raise MurmurError(f"{self._subscription.name}: {one_line(err)}") from err

    def _loop(self, stream: Any, letters: Letters, progress: Progress) -> None:
        until_idle = self._subscription.until_idle
        patience_s = None if until_idle is None else until_idle.total_seconds()
        idle_since_s = time.monotonic()
        while not self._stopping and not stream.done():
            left_s = None if patience_s is None else idle_since_s + patience_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                break
            message = self._inbox.get(left_s)
            if message is None:
                continue
            progress.add(self._do_batch(message, letters), self.outcomes)
            idle_since_s = time.monotonic()

    def _do_batch(self, message: Received | None, letters: Letters) -> int:
        """A message and what has arrived behind it; how many these were."""
        taken = 0
        try:
            while message is not None:
                taken += 1
                message = None if self.take(message) else self._inbox.get()
            trouble = self._settle(letters)
        except BaseException:
            _nack(self._batch)
            raise
        finally:
            self._batch, self._given_up = [], []
        if trouble:
            self._back_off(trouble)
        else:
            self._troubles = 0
        return taken

    def _settle(self, letters: Letters) -> str:
        """Merge the batch, hand on its dead letters, then acknowledge; what went wrong, if anything did."""
        try:
            results = [*self._given_up, *self._merger.flush()]
        except RetriesExhausted as err:
            return self._return(self._batch, err)
        dead = [(message, result) for message, result in results if isinstance(result, DeadLetter)]
        failures = letters.keep([letter for _, letter in dead]) if dead else []
        not_kept = [message for (message, _), failure in zip(dead, failures, strict=True) if failure is not None]
        self._dead_letters += len(dead) - len(not_kept)
        # A message is known by itself: two deliveries of one may be in a batch.
        back = {id(message) for message in not_kept}
        for message, _ in results:
            if id(message) not in back:
                message.ack()
        return self._return(not_kept, next(filter(None, failures))) if not_kept else ""

    def _return(self, messages: list[Received], err: Exception) -> str:
        _nack(messages)
        self.returned += len(messages)
        return f"{len(messages):,} {self.what} go back to be delivered again: {one_line(err)}"

    def _back_off(self, trouble: str) -> None:
        """Wait, unless somebody calls `stop`, as long as between the tries of a record; longer from batch to batch."""
        self._troubles += 1
        config = self._spec.config
        longest_s = retry.ceiling_s(self._troubles, config.backoff_base, config.backoff_max)
        print(f"{self._who}: {trouble}", file=sys.stderr)
        with suppress(queue.Empty):
            self._stops.get(timeout=config.clock.uniform(0.0, longest_s))


def _nack(messages: list[Received]) -> None:
    for message in messages:
        message.nack()


def _never_called(message: Received) -> None:
    raise AssertionError("the inbox takes messages itself")
