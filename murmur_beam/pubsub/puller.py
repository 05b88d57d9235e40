"""Pulls messages with several unary requests in flight, and extends the leases of those received.

Unary requests instead of a stream: the unacknowledged messages are exactly those that were requested, an
acknowledgement is confirmed, and no messages wait in the buffers of a stream when its reader dies.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from murmur_beam import retry
from murmur_beam.errors import MurmurError
from murmur_beam.merger import size_of
from murmur_beam.model import Message, from_us
from murmur_beam.processor import Config
from murmur_beam.pubsub.client import (
    ANSWER_S,
    asking,
    client_library,
    cured_by_waiting,
    one_line,
    retrying,
    subscriber_client,
)
from murmur_beam.pubsub.outstanding import Outstanding

MAX_BYTES = 100_000_000
"""Default limit for the bytes of unacknowledged messages."""

_REQUESTS = 3
"""Requests in flight. Pub/Sub seldom returns as many messages as requested, so a single request would be slow."""
_MOST = 1_000
"""Messages per pull request, the maximum allowed, and per acknowledgement."""
_PULL_S = 3.0
"""Deadline of a pull; short, because `Puller.close` waits for the requests in flight: Pub/Sub may have leased messages
to them already, which other subscribers would not get until the leases expire."""
_SETTLE_S = 30.0


class Received(NamedTuple):
    """A message, with the ack id of its delivery."""

    ack_id: str
    message: Message
    publish_time_us: int


class Puller:
    """Pulls messages, and extends the leases of those that are neither acknowledged nor returned.

    Args:
        subscription: as ``projects/P/subscriptions/S``.
        max_outstanding: maximum number of unacknowledged messages.
        config: backoff after a failed request.
        who: the program's name, for messages on stderr.
        max_outstanding_bytes: maximum bytes of their data and attributes, as far as `Outstanding` can observe it.

    Raises:
        MurmurError: google-cloud-pubsub is missing, the subscription does not exist, or Pub/Sub cannot be reached.
    """

    def __init__(
        self,
        subscription: str,
        max_outstanding: int,
        config: Config,
        who: str,
        max_outstanding_bytes: int = MAX_BYTES,
    ) -> None:
        self._pubsub = client_library()
        self._subscription = subscription
        self._config = config
        self._who = who
        # The shortest possible deadline, for callers that may pull from a subscription but not describe it.
        self._ack_deadline_s = 10
        with asking("--subscription", subscription):
            self._client = subscriber_client()
        try:
            with asking("--subscription", subscription):
                found = self._client.get_subscription(subscription=subscription, retry=None, timeout=ANSWER_S)
                self._ack_deadline_s = found.ack_deadline_seconds
        except BaseException:
            self._client.close()
            raise
        # Unlike with other queues, a signal handler may put into this one.
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ready: deque[Received] = deque()
        self._requests: dict[Any, int] = {}
        self._not_before_s = 0.0
        self._troubles = 0
        self._outstanding = Outstanding(max_outstanding, max_outstanding_bytes)
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep_leases, name="keep-leases", daemon=True)
        self._keeper.start()

    def get(self, timeout_s: float | None = 0.0) -> Received | None:
        """The next message; None if none arrives within this time (None: no limit), or if `wake` is called.

        Raises:
            MurmurError: Pub/Sub refuses, such as after the subscription was deleted.
        """
        self._ask()
        if not self._ready:
            if not self._requests and self._outstanding.room(0) > 0:
                until_asking_s = max(self._not_before_s - time.monotonic(), 0.0)
                timeout_s = until_asking_s if timeout_s is None else min(timeout_s, until_asking_s)
            with suppress(queue.Empty):
                answer = self._answers.get(timeout=timeout_s) if timeout_s != 0.0 else self._answers.get_nowait()
                if answer is not None:
                    self._take(*answer)
        return self._ready.popleft() if self._ready else None

    def wake(self) -> None:
        """End one `get`. May be called from a signal handler."""
        self._answers.put(None)

    def ack(self, ack_ids: Sequence[str]) -> None:
        """Acknowledge messages. A message whose acknowledgement fails is redelivered."""
        self._settle("acknowledge", ack_ids)

    def nack(self, ack_ids: Sequence[str]) -> None:
        """Return messages, to be redelivered at once."""
        self._settle("modify_ack_deadline", ack_ids, ack_deadline_seconds=0)

    def close(self) -> None:
        """Return all unacknowledged messages, and close the connection."""
        self._closing.set()
        deadline_s = time.monotonic() + _PULL_S + 1.0
        while self._requests and (left_s := deadline_s - time.monotonic()) > 0:
            with suppress(queue.Empty):
                if (answer := self._answers.get(timeout=left_s)) is not None:
                    self._requests.pop(answer[0], None)
        for request in self._requests:
            request.cancel()
        self._keeper.join()
        self.nack(self._outstanding.older_than(0.0))
        self._client.close()

    def _ask(self) -> None:
        if time.monotonic() < self._not_before_s:
            return
        while len(self._requests) < _REQUESTS:
            n = min(self._outstanding.room(sum(self._requests.values())), _MOST)
            if n < 1:
                return
            request = self._client.transport.pull.future(
                self._pubsub.types.PullRequest(subscription=self._subscription, max_messages=n),
                timeout=_PULL_S,
                metadata=(("x-goog-request-params", f"subscription={self._subscription}"),),
            )
            self._requests[request] = n
            request.add_done_callback(self._answered)

    def _answered(self, request: Any) -> None:
        """Receive an answer, in a thread of gRPC. The leases start now, whenever the messages are processed."""
        try:
            response = request.result()
            received = [_received(each) for each in type(response).pb(response).received_messages]
            self._outstanding.add([(each.ack_id, size_of(each.message)) for each in received])
        except Exception as err:
            self._answers.put((request, [], err))
        else:
            self._answers.put((request, received, None))

    def _take(self, request: Any, received: list[Received], err: Exception | None) -> None:
        del self._requests[request]
        self._ready.extend(received)
        if err is None:
            self._troubles = 0
            return
        from google.api_core import exceptions

        error: Exception = err
        if hasattr(err, "code"):
            error = exceptions.from_grpc_error(err)  # type: ignore[no-untyped-call]
        if isinstance(error, exceptions.DeadlineExceeded):
            return  # no messages arrived for a while
        if not isinstance(error, cured_by_waiting()):
            raise MurmurError(f"{self._subscription}: {one_line(error)}") from err
        if time.monotonic() >= self._not_before_s:
            self._troubles += 1
            longest_s = retry.ceiling_s(self._troubles, self._config.backoff_base, self._config.backoff_max)
            self._not_before_s = time.monotonic() + self._config.clock.uniform(0.0, longest_s)
            print(f"{self._who}: pull failed, retrying: {one_line(error)}", file=sys.stderr)

    def _settle(self, method: str, ack_ids: Sequence[str], **more: Any) -> None:
        from google.api_core.exceptions import GoogleAPIError

        for start in range(0, len(ack_ids), _MOST):
            some = ack_ids[start : start + _MOST]
            try:
                getattr(self._client, method)(
                    request={"subscription": self._subscription, "ack_ids": some, **more},
                    retry=retrying(_SETTLE_S),
                    timeout=ANSWER_S,
                )
            except GoogleAPIError as err:
                print(f"{self._who}: {len(some):,} messages will be redelivered: {one_line(err)}", file=sys.stderr)
            self._outstanding.drop(some)

    def _keep_leases(self) -> None:
        """Extend the leases of unacknowledged messages, three times per ack deadline."""
        from google.api_core.exceptions import GoogleAPIError

        interval_s = self._ack_deadline_s / 3
        while not self._closing.wait(interval_s):
            old = self._outstanding.older_than(interval_s)
            for start in range(0, len(old), _MOST):
                # If that fails, the messages are redelivered, and are duplicates.
                with suppress(GoogleAPIError):
                    self._client.modify_ack_deadline(
                        subscription=self._subscription,
                        ack_ids=old[start : start + _MOST],
                        ack_deadline_seconds=self._ack_deadline_s,
                        retry=None,
                        timeout=interval_s,
                    )


def _received(received: Any) -> Received:
    message = received.message
    time_us = message.publish_time.seconds * 1_000_000 + message.publish_time.nanos // 1_000
    return Received(
        received.ack_id,
        Message(
            message.data,
            dict(message.attributes),
            message.message_id,
            from_us(time_us),
            message.ordering_key or None,
        ),
        time_us,
    )
