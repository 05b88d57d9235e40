"""Merges the messages of a Pub/Sub subscription and acknowledges each once it cannot be lost. Needs no Beam.

One loop: take what has arrived, merge it with one write per touched row, hand on the dead letters, acknowledge. What
arrives meanwhile is the next batch, so batches are small and quick while little comes and large under load.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import Any

from murmur_beam import retry
from murmur_beam.errors import MergeCancelled, RetriesExhausted
from murmur_beam.merger import Merger
from murmur_beam.model import DeadLetter
from murmur_beam.spec import MergeSpec
from pipelines.console import Outcomes, Progress
from pipelines.endings import Allowance, Reasons, end
from pipelines.google_pubsub import one_line
from pipelines.letters import Letters
from pipelines.puller import MAX_BYTES, Puller, Received

_QUIET_S = 5.0


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


class Subscriber:
    """Pulls messages, merges them, hands on what cannot be merged, acknowledges.

    However it ends, what is not acknowledged is delivered again. So if it is killed

    - before the commit, the messages are merged when they come again;
    - between commit and acknowledgement, they are duplicates then, or recorded once more, and count once (without dedup
      they count twice);
    - between a dead letter and its acknowledgement, the letter is written a second time, and a replay takes that for a
      duplicate.

    A store that cannot be reached beyond all tries makes dead letters, or with ``on_exhausted="raise"`` the batch goes
    back to Pub/Sub and the next one waits a little. So does a batch whose dead letters cannot be kept, as to those.
    With ordering keys Pub/Sub hands over a key's next message after the acknowledgement of the ones before.

    Args:
        spec: what to merge.
        subscription: as ``projects/P/subscriptions/S``.
        max_outstanding: messages that may be here without an acknowledgement.
        who: the program's name, for what it says on stderr.
        max_outstanding_bytes: of those messages, as far as `Puller` can keep to it.

    Raises:
        MurmurError: a store cannot be opened, the subscription does not exist, or Pub/Sub cannot be asked.
    """

    what = "messages"
    """Plural of what is counted on the screen."""

    def __init__(
        self,
        spec: MergeSpec,
        subscription: str,
        max_outstanding: int,
        who: str,
        max_outstanding_bytes: int = MAX_BYTES,
    ) -> None:
        self.name = spec.name
        """Of the pipeline."""
        self.returned = 0
        """Messages that went back to Pub/Sub because of a failure."""
        self._config = spec.config
        self._who = who
        self._puller = Puller(subscription, max_outstanding, spec.config, who, max_outstanding_bytes)
        self._tally = Tally()
        self._cancel = threading.Event()
        try:
            self._merger: Merger[str] = Merger(spec, self._tally, cancel=self._cancel)
        except BaseException:
            self._puller.close()
            raise
        self._stopping = False
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()
        # Each message is known by what acknowledges this delivery of it.
        self._batch: list[str] = []
        self._given_up: list[tuple[str, DeadLetter]] = []
        self._troubles = 0
        self._dead_letters = 0
        self._reasons = Reasons()
        self._quiet_until_s = 0.0

    @property
    def outcomes(self) -> Outcomes:
        """What became of the messages so far."""
        return Outcomes.of(self.name, {**self._tally.counts, f"{self.name}:dead_letter": self._dead_letters})

    def end(self, allowance: Allowance) -> int:
        """Say why there are dead letters, and whether they are too many; the exit code."""
        return end(self._who, self._dead_letters, self.outcomes.total, self._reasons, allowance)

    def stop(self) -> None:
        """End after the batch at hand, of which nothing is tried again. May be called from a signal handler."""
        self._stopping = True
        self._cancel.set()
        self._stops.put(None)
        self._puller.wake()

    def run(self, letters: Letters, until_idle: timedelta | None = None) -> None:
        """Work until `stop`.

        Args:
            letters: keeps what cannot be merged.
            until_idle: end as well after so long without a message.

        Raises:
            StoreUnavailable, SchemaMismatch: the store cannot be used as configured.
            MurmurError: Pub/Sub refuses, as when the subscription was deleted.
        """
        progress = Progress(self.what)
        patience_s = None if until_idle is None else until_idle.total_seconds()
        idle_since_s = time.monotonic()
        while not self._stopping:
            left_s = None if patience_s is None else idle_since_s + patience_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                break
            received = self._puller.get(left_s)
            if received is not None:
                progress.add(self._do_batch(received, letters), self.outcomes)
                idle_since_s = time.monotonic()
        progress.end(more=self.outcomes)

    def close(self) -> None:
        """Give back to Pub/Sub what was not acknowledged; close connection and store."""
        self._puller.close()
        self._merger.close()

    def take(self, received: Received) -> bool:
        """Do with a message what there is to do before the batch is merged; True if the batch is full.

        One that is neither merged nor given up goes back at the end, and not before, or it would come again.
        """
        return self.merge(received, received.message)

    def merge(self, received: Received, element: Any) -> bool:
        """Merge what a message holds; True if the batch is full."""
        self._batch.append(received.ack_id)
        return self._merger.add(element, received.publish_time_us, received.ack_id)

    def give_up(self, received: Received, letter: DeadLetter) -> None:
        """Make a dead letter of a message without merging it."""
        self._batch.append(received.ack_id)
        self._given_up.append((received.ack_id, letter))

    def _do_batch(self, received: Received | None, letters: Letters) -> int:
        """A message and what has arrived behind it; how many these were."""
        taken = 0
        while received is not None:
            taken += 1
            received = None if self.take(received) else self._puller.get()
        trouble = self._settle(letters)
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
        except (RetriesExhausted, MergeCancelled) as err:
            return self._return(self._batch, err)
        dead = [(ack_id, result) for ack_id, result in results if isinstance(result, DeadLetter)]
        failures = letters.keep([letter for _, letter in dead]) if dead else []
        not_kept = [ack_id for (ack_id, _), failure in zip(dead, failures, strict=True) if failure is not None]
        self._dead_letters += len(dead) - len(not_kept)
        back = set(not_kept)
        for ack_id, letter in dead:
            if ack_id not in back:
                self._reasons.add(letter)
        if len(dead) > len(back):
            self._explain(dead[-1][1], len(dead) - len(back))
        self._puller.ack([ack_id for ack_id, _ in results if ack_id not in back])
        return self._return(not_kept, next(filter(None, failures))) if not_kept else ""

    def _explain(self, letter: DeadLetter, n: int) -> None:
        """Say why there are dead letters, but not for each of a flood."""
        if time.monotonic() >= self._quiet_until_s:
            self._quiet_until_s = time.monotonic() + _QUIET_S
            reason = one_line(Exception(letter.error_message))
            print(
                f"{self._who}: {n:,} {self.what} could not be merged and are dead letters, the last one since: "
                f"{letter.error_type}: {reason}",
                file=sys.stderr,
            )

    def _return(self, ack_ids: list[str], err: Exception) -> str:
        self._puller.nack(ack_ids)
        self.returned += len(ack_ids)
        return f"{len(ack_ids):,} {self.what} go back to be delivered again: {one_line(err)}"

    def _back_off(self, trouble: str) -> None:
        """Wait, unless somebody calls `stop`, as long as between the tries of a record; longer from batch to batch."""
        self._troubles += 1
        longest_s = retry.ceiling_s(self._troubles, self._config.backoff_base, self._config.backoff_max)
        print(f"{self._who}: {trouble}", file=sys.stderr)
        with suppress(queue.Empty):
            self._stops.get(timeout=self._config.clock.uniform(0.0, longest_s))
