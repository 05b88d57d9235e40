"""Destinations for dead letters of a driver without Beam, which stores them before it acknowledges their messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Protocol

from murmur_beam.errors import MurmurError
from murmur_beam.files.letter_files import LetterFile
from murmur_beam.model import DeadLetter
from murmur_beam.pubsub.client import ANSWER_S, asking, client_library, retrying

__all__ = ["LetterFile", "LetterTopic", "Letters", "attributes_of"]

_PUBLISH_S = 30.0
MAX_MESSAGE_BYTES = 10_000_000
"""Largest request to publish a message: data, attributes and the request around them."""
_AROUND_BYTES = 1_000
"""Upper bound for the topic's name and the lengths in a request."""
_ATTRIBUTE_BYTES = 1_024
"""Longest value of an attribute that Pub/Sub accepts."""


class Letters(Protocol):
    """Stores dead letters."""

    def keep(self, letters: Sequence[DeadLetter]) -> list[Exception | None]:
        """Store letters durably. Returns, per letter, None or the error that prevented it.

        A letter with an error may have been stored nevertheless; a retry then stores it twice.
        """

    def close(self) -> None:
        """Release connections and files."""


def attributes_of(letter: DeadLetter) -> dict[str, str]:
    """Attributes of the message for a letter, for filters; cut to the length that Pub/Sub accepts."""
    values = {"pipeline": letter.pipeline, "stage": letter.stage, "error_type": letter.error_type}
    return {name: _cut(value) for name, value in values.items()}


def message_of(letter: DeadLetter, max_bytes: int) -> tuple[bytes, dict[str, str]] | None:
    """Data and attributes of the message for a letter; None if they are larger than ``max_bytes``."""
    data, attributes = DeadLetter.to_json(letter).encode("utf-8"), attributes_of(letter)
    n_bytes = len(data) + sum(len(f"{name}{value}".encode()) for name, value in attributes.items())
    return (data, attributes) if n_bytes + _AROUND_BYTES <= max_bytes else None


def _cut(value: str) -> str:
    return value.encode("utf-8", "backslashreplace")[:_ATTRIBUTE_BYTES].decode("utf-8", "ignore")


class LetterTopic:
    """A Pub/Sub topic: the message's data is the letter's JSON, its attributes ``pipeline``, ``stage``, ``error_type``.

    Args:
        topic: as ``projects/P/topics/T``.
        overflow: stores the letters that the topic never accepts: those larger than `MAX_MESSAGE_BYTES`, and those that
            Pub/Sub refuses as an invalid argument, such as for breaking the topic's schema.
        report: called with the error of the first such letter.

    Attributes:
        overflowed: number of letters that ``overflow`` has stored.

    Raises:
        ConfigurationError: the topic does not exist, or Pub/Sub cannot be reached.
    """

    def __init__(self, topic: str, overflow: Letters, report: Callable[[Exception], None]) -> None:
        pubsub = client_library()
        self.overflowed = 0
        self._topic = topic
        self._overflow = overflow
        self._report = report
        self._refusals = 0
        with asking("--dead_letter_topic", topic):
            options = pubsub.types.PublisherOptions(retry=retrying(_PUBLISH_S), timeout=_PUBLISH_S)
            self._client = pubsub.PublisherClient(publisher_options=options)
        with asking("--dead_letter_topic", topic):
            self._client.get_topic(topic=topic, retry=None, timeout=ANSWER_S)

    def keep(self, letters: Sequence[DeadLetter]) -> list[Exception | None]:
        """Publish letters and wait until Pub/Sub has them; store those that it refuses in ``overflow``."""
        failures = [_failure(one) for one in [self._publish(letter) for letter in letters]]
        refused = {i: err for i, err in enumerate(failures) if err is not None and _is_refusal(err)}
        if refused:
            if not self._refusals:
                self._report(next(iter(refused.values())))
            self._refusals += len(refused)
            for i, failure in zip(refused, self._overflow.keep([letters[i] for i in refused]), strict=True):
                failures[i] = failure
                self.overflowed += failure is None
        return failures

    def close(self) -> None:
        """Close the connection."""
        self._client.stop()
        self._client.transport.close()
        self._overflow.close()

    def _publish(self, letter: DeadLetter) -> Any:
        """Start to publish a letter; a future, or an immediate error."""
        message = message_of(letter, MAX_MESSAGE_BYTES)
        if message is None:
            return ValueError(f"larger than a message may be, {MAX_MESSAGE_BYTES:,} bytes")
        data, attributes = message
        try:
            return self._client.publish(self._topic, data, **attributes)
        except Exception as err:  # the client itself refuses some messages
            return err


def _is_refusal(err: Exception) -> bool:
    """Return whether the message is at fault, so that a retry cannot help."""
    from google.api_core.exceptions import InvalidArgument

    return isinstance(err, (ValueError, TypeError, InvalidArgument))


def _failure(sent: Any) -> Exception | None:
    try:
        failure: Exception | None = sent if isinstance(sent, Exception) else sent.exception(timeout=2 * _PUBLISH_S)
    except futures.TimeoutError:
        return MurmurError(f"no answer within {2 * _PUBLISH_S:.0f} s")
    return failure
