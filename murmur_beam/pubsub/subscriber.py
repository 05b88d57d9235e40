"""Merges the messages of a Pub/Sub subscription and acknowledges each once it cannot be lost. Needs no Beam.

One loop: take the messages that have arrived, merge them with one write per row, store the dead letters, acknowledge.
Messages that arrive meanwhile form the next batch, so batches are small and fast at low load, and large at high load.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from murmur_beam import retry
from murmur_beam.errors import MergeCancelled, RetriesExhausted
from murmur_beam.fold_policy import RowSampler
from murmur_beam.fold_thread import FoldThread
from murmur_beam.merger import Merger
from murmur_beam.model import DeadLetter, MergeResult
from murmur_beam.pubsub.client import one_line
from murmur_beam.pubsub.letters import Letters
from murmur_beam.pubsub.puller import MAX_BYTES, Puller, Received
from murmur_beam.runs.console import Outcomes, Progress
from murmur_beam.runs.endings import Allowance, Reasons, end
from murmur_beam.spec import MergeSpec
from murmur_beam.state.folding import Folded

_QUIET_S = 5.0


class Tally:
    """Counts by name; the recorder of the `Merger`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def record_event(self, pipeline: str) -> None:
        """Count one event."""
        self.counts[pipeline] += 1

    def record_error(self, pipeline: str, err: BaseException) -> None:
        """Count one error."""
        self.counts[f"{pipeline}:error"] += 1

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None:
        """Do nothing."""

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        """Do nothing."""

    def count(self, name: str, n: int) -> None:
        """Count whole records."""
        self.counts[name] += n


class Subscriber:
    """Pulls messages, merges them, stores dead letters, and acknowledges.

    However it ends, messages that are not acknowledged are redelivered. So if it is killed

    - before the commit, the messages are merged when they are redelivered;
    - between commit and acknowledgement, they are then duplicates, or are recorded once more, and count once (without
      dedup they count twice);
    - between the write of a dead letter and its acknowledgement, the letter is written a second time, and a replay
      takes the second one for a duplicate.

    If the store cannot be reached in any try, the messages become dead letters; with ``on_exhausted="raise"`` the batch
    is returned to Pub/Sub, and the next one waits a little. Messages whose dead letters cannot be stored are returned
    too. With ordering keys, Pub/Sub delivers a key's next message after the previous ones are acknowledged.

    Args:
        spec: of the merge.
        subscription: as ``projects/P/subscriptions/S``.
        max_outstanding: maximum number of unacknowledged messages.
        who: the program's name, for messages on stderr.
        max_outstanding_bytes: maximum bytes of these messages, as far as `Puller` can observe it.

    Raises:
        MurmurError: a store cannot be opened, the subscription does not exist, or Pub/Sub cannot be reached.
    """

    what = "messages"
    """Plural noun of the counted items, for output."""

    def __init__(
        self,
        spec: MergeSpec,
        subscription: str,
        max_outstanding: int,
        who: str,
        max_outstanding_bytes: int = MAX_BYTES,
    ) -> None:
        self.name = spec.name
        """Name of the pipeline."""
        self.returned = 0
        """Number of messages returned to Pub/Sub because of a failure."""
        self._config = spec.config
        self._who = who
        self._puller = Puller(subscription, max_outstanding, spec.config, who, max_outstanding_bytes)
        self._tally = Tally()
        self._cancel = threading.Event()
        self._sampler = RowSampler(spec.config.clock.uniform)
        try:
            self._merger: Merger[str] = Merger(spec, self._tally, cancel=self._cancel)
            self._folds = None if spec.fold is None else FoldThread(spec, self._warn)
        except BaseException:
            self._puller.close()
            raise
        self._stopping = False
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()
        # A message is identified by the ack id of its delivery.
        self._batch: list[str] = []
        self._given_up: list[tuple[str, DeadLetter]] = []
        self._troubles = 0
        self._dead_letters = 0
        self._reasons = Reasons()
        self._quiet_until_s = 0.0

    @property
    def outcomes(self) -> Outcomes:
        """Outcomes of the messages so far."""
        return Outcomes.of(self.name, {**self._tally.counts, f"{self.name}:dead_letter": self._dead_letters})

    @property
    def folded(self) -> Folded | None:
        """What was folded; None if this does not fold."""
        return None if self._folds is None else self._folds.total

    def end(self, allowance: Allowance) -> int:
        """Report the reasons of dead letters, and whether they are too many; return the exit code."""
        return end(self._who, self._dead_letters, self.outcomes.total, self._reasons, allowance)

    def stop(self) -> None:
        """End after the current batch, without further retries. May be called from a signal handler."""
        self._stopping = True
        self._cancel.set()
        self._stops.put(None)
        self._puller.wake()

    def run(self, letters: Letters, until_idle: timedelta | None = None) -> None:
        """Work until `stop`.

        Args:
            letters: stores dead letters.
            until_idle: time without a message after which to end.

        Raises:
            StoreUnavailable, SchemaMismatch: the store cannot be used as configured.
            MurmurError: Pub/Sub refuses, such as after the subscription was deleted.
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
        """Return unacknowledged messages to Pub/Sub; fold the rest; close connection and store."""
        self._puller.close()
        if self._folds is not None:
            self._folds.close()
        self._merger.close()

    def take(self, received: Received) -> bool:
        """Add a message to the batch; return whether the batch is full.

        A message that is neither merged nor given up is returned at the end, and not earlier, since it would be
        redelivered.
        """
        return self.merge(received, received.message)

    def merge(self, received: Received, element: Any) -> bool:
        """Add an element to merge; return whether the batch is full."""
        self._batch.append(received.ack_id)
        return self._merger.add(element, received.publish_time_us, received.ack_id)

    def give_up(self, received: Received, letter: DeadLetter) -> None:
        """Make a message a dead letter without merging it."""
        self._batch.append(received.ack_id)
        self._given_up.append((received.ack_id, letter))

    def _do_batch(self, received: Received | None, letters: Letters) -> int:
        """Process a message and those that have arrived after it; return their number."""
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
        """Merge the batch, store its dead letters, then acknowledge; return the problem, if any."""
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
        if self._folds is not None:
            self._folds.named(list(self._sampled_rows([result for _, result in results])))
        return self._return(not_kept, next(filter(None, failures))) if not_kept else ""

    def _sampled_rows(self, results: Sequence[MergeResult | DeadLetter]) -> Iterator[bytes]:
        for result in results:
            if not isinstance(result, DeadLetter) and self._sampler.picks():
                yield from self._merger.row_keys(result)

    def _explain(self, letter: DeadLetter, n: int) -> None:
        """Report why there are dead letters, at most once in `_QUIET_S`."""
        if time.monotonic() >= self._quiet_until_s:
            self._quiet_until_s = time.monotonic() + _QUIET_S
            reason = one_line(Exception(letter.error_message))
            self._warn(
                f"{n:,} {self.what} could not be merged and are dead letters, the last one because of "
                f"{letter.error_type}: {reason}"
            )

    def _return(self, ack_ids: list[str], err: Exception) -> str:
        self._puller.nack(ack_ids)
        self.returned += len(ack_ids)
        return f"{len(ack_ids):,} {self.what} are returned to the subscription: {one_line(err)}"

    def _warn(self, text: str) -> None:
        print(f"{self._who}: {text}", file=sys.stderr)

    def _back_off(self, trouble: str) -> None:
        """Wait as between the tries of a record, longer from batch to batch; `stop` ends the wait."""
        self._troubles += 1
        longest_s = retry.ceiling_s(self._troubles, self._config.backoff_base, self._config.backoff_max)
        self._warn(trouble)
        with suppress(queue.Empty):
            self._stops.get(timeout=self._config.clock.uniform(0.0, longest_s))
