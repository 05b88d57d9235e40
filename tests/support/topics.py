"""Topics and subscriptions of the Pub/Sub emulator, for one test each."""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from google.cloud import pubsub_v1

from murmur_beam.pubsub.client import subscriber_client
from tests.support import emulators

TIMEOUT_S = 60.0
_names = itertools.count()


class Topic(NamedTuple):
    """A topic of a test, with one subscription."""

    name: str
    subscription: str

    def publish(self, *payloads: bytes, **attributes: str) -> list[str]:
        """Publish messages that all have the same attributes; their ids."""
        return self.send([(payload, attributes) for payload in payloads])

    def send(self, messages: Iterable[tuple[bytes, Mapping[str, str]]]) -> list[str]:
        """Publish data and attributes, many in one request; the ids of the messages."""
        settings = pubsub_v1.types.BatchSettings(max_messages=1000, max_latency=0.05)
        ordering = pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
        with pubsub_v1.PublisherClient(settings, ordering) as client:
            sent = [client.publish(self.name, payload, **attributes) for payload, attributes in messages]
            return [one.result(timeout=TIMEOUT_S) for one in sent]

    def left(self, expected: int = 0) -> list[Any]:
        """The remaining messages; they are acknowledged.

        Args:
            expected: wait for this many: returned messages may first be assigned to a request that has ended.
        """
        messages: list[Any] = []
        deadline = time.monotonic() + TIMEOUT_S
        with subscriber_client() as client:  # which accepts answers of any size
            while True:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # of return_immediately, which is intended here
                    received = client.pull(
                        subscription=self.subscription, max_messages=1000, return_immediately=True, timeout=10
                    ).received_messages
                if received:
                    messages += [each.message for each in received]
                    ids = [each.ack_id for each in received]
                    client.acknowledge(subscription=self.subscription, ack_ids=ids)
                elif len(messages) >= expected or time.monotonic() > deadline:
                    return messages
                else:
                    time.sleep(0.1)


def new_topic(**more: Any) -> Topic:
    """A topic with an empty subscription; ``more`` are arguments of the subscription."""
    unique = f"topic-{os.getpid()}-{next(_names)}"
    topic, subscription = (f"projects/{emulators.PROJECT}/{kind}/{unique}" for kind in ("topics", "subscriptions"))
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=topic)
        subscriber.create_subscription(
            request={"name": subscription, "topic": topic, "ack_deadline_seconds": 10, **more}
        )
    return Topic(topic, subscription)
