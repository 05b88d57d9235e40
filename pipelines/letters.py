"""Where a driver without Beam leaves its dead letters before it acknowledges their messages."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent import futures
from typing import Any, Protocol

from murmur_beam.errors import MurmurError
from murmur_beam.model import DeadLetter
from pipelines.google_pubsub import ANSWER_S, asking, client_library, retrying
from pipelines.letter_files import LetterFile

__all__ = ["LetterFile", "LetterTopic", "Letters", "attributes_of"]

_PUBLISH_S = 30.0


class Letters(Protocol):
    """A place that keeps dead letters."""

    def keep(self, letters: Sequence[DeadLetter]) -> list[Exception | None]:
        """Keep them for good; of each None once that is done, or why it could not be.

        One that could not be kept may be there all the same, and comes twice then.
        """

    def close(self) -> None:
        """Give back what was opened."""


def attributes_of(letter: DeadLetter) -> dict[str, str]:
    """Of the message that carries a letter, to filter by."""
    return {"pipeline": letter.pipeline, "stage": letter.stage, "error_type": letter.error_type}


class LetterTopic:
    """A Pub/Sub topic: the message's data is the letter's JSON, its attributes ``pipeline``, ``stage``, ``error_type``.

    Args:
        topic: as ``projects/P/topics/T``.

    Raises:
        ConfigurationError: it does not exist, or Pub/Sub cannot be asked.
    """

    def __init__(self, topic: str) -> None:
        pubsub = client_library()
        self._topic = topic
        with asking("--dead_letter_topic", topic):
            options = pubsub.types.PublisherOptions(retry=retrying(_PUBLISH_S), timeout=_PUBLISH_S)
            self._client = pubsub.PublisherClient(publisher_options=options)
        with asking("--dead_letter_topic", topic):
            self._client.get_topic(topic=topic, retry=None, timeout=ANSWER_S)

    def keep(self, letters: Sequence[DeadLetter]) -> list[Exception | None]:
        """Publish them and wait until Pub/Sub has them."""
        return [_failure(one) for one in [self._publish(letter) for letter in letters]]

    def close(self) -> None:
        """Close the connection."""
        self._client.stop()
        self._client.transport.close()

    def _publish(self, letter: DeadLetter) -> Any:
        """A future, or the error that there is at once."""
        try:
            return self._client.publish(
                self._topic,
                letter.to_json().encode("utf-8"),
                **attributes_of(letter),
            )
        except Exception as err:  # larger than a message may be
            return err


def _failure(sent: Any) -> Exception | None:
    try:
        failure: Exception | None = sent if isinstance(sent, Exception) else sent.exception(timeout=2 * _PUBLISH_S)
    except futures.TimeoutError:
        return MurmurError(f"no answer for {2 * _PUBLISH_S:.0f} s")
    return failure
