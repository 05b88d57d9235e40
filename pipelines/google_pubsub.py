"""Google's client of Pub/Sub, with its errors and the names that it takes told as a user's mistakes. Needs no Beam."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from murmur_beam.errors import ConfigurationError, MurmurError

ANSWER_S = 10.0
"""How long a question at the start may take."""


_DELETED = "_deleted-topic_"
"""What a subscription says of its topic when that is gone."""


def client_library() -> Any:
    """The module ``google.cloud.pubsub_v1``.

    Raises:
        MurmurError: it is not installed.
    """
    try:
        from google.cloud import pubsub_v1
    except ImportError as err:
        raise MurmurError("google-cloud-pubsub is not installed; run: pip install 'murmur-beam[gcp]'") from err
    return pubsub_v1


def subscriber_client() -> Any:
    """A client of subscriptions, which takes answers of any size.

    Google's own takes at most 4 MB from an emulator, of which 84 messages of 50 kB are too many.

    Raises:
        MurmurError: google-cloud-pubsub is not installed.
    """
    kind = client_library().SubscriberClient
    host = os.environ.get("PUBSUB_EMULATOR_HOST")
    if not host:
        return kind()
    import grpc

    channel = grpc.insecure_channel(host, options=[("grpc.max_receive_message_length", -1)])
    return kind(transport=kind.get_transport_class("grpc")(host=host, channel=channel))


def topic_of(subscription: str) -> str | None:
    """Where the messages of a subscription come from; None if it may not be looked at, or its topic was deleted.

    Args:
        subscription: as ``projects/P/subscriptions/S``.

    Raises:
        ConfigurationError: it does not exist, or Pub/Sub cannot be asked.
        MurmurError: google-cloud-pubsub is not installed.
    """
    client_library()
    with asking("--subscription", subscription), subscriber_client() as client:
        topic: str = client.get_subscription(subscription=subscription, retry=None, timeout=ANSWER_S).topic
        return None if topic == _DELETED else topic
    return None


def full_name(flag: str, name: str, project: str | None) -> str:
    """``projects/P/subscriptions/S`` from itself, or from ``S`` and the project; topics likewise.

    Args:
        flag: that the name was given with, such as ``--subscription``; one with ``topic`` in it names a topic.
        name: as it was given.
        project: for short names.

    Raises:
        ConfigurationError: it is no such name, or a short one without a project.
    """
    kind = "topics" if "topic" in flag else "subscriptions"
    if re.fullmatch(rf"projects/[^/]+/{kind}/[^/]+", name):
        return name
    if "/" in name or not name:
        raise ConfigurationError(flag, f"{name!r} is no such name; write projects/PROJECT/{kind}/NAME")
    if not project:
        raise ConfigurationError(flag, f"{name!r} names no project; write projects/PROJECT/{kind}/{name}, or --project")
    return f"projects/{project}/{kind}/{name}"


@contextmanager
def asking(flag: str, name: str) -> Iterator[None]:
    """Turns what Pub/Sub says of a name into a mistake in the flag.

    Whoever may not look at it is let through, since he may still be allowed to use it.

    Raises:
        ConfigurationError: it does not exist, or Pub/Sub cannot be asked.
    """
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except exceptions.PermissionDenied:
        pass
    except exceptions.NotFound as err:
        kind = name.split("/")[2]
        raise ConfigurationError(
            flag, f"{name} does not exist; check the name, or: gcloud pubsub {kind} create --help"
        ) from err
    except (exceptions.GoogleAPIError, GoogleAuthError) as err:
        raise ConfigurationError(flag, f"{name} cannot be asked for: {one_line(err)}") from err


def cured_by_waiting() -> tuple[type[Exception], ...]:
    """Errors of Pub/Sub that a later try may not meet again."""
    from google.api_core import exceptions

    return (
        exceptions.Aborted,
        exceptions.DeadlineExceeded,
        exceptions.InternalServerError,
        exceptions.ResourceExhausted,
        exceptions.ServiceUnavailable,
        exceptions.Unknown,
    )


def retrying(seconds: float) -> Any:
    """Tries again for so long what waiting may cure. The client's own limit is ten minutes."""
    from google.api_core.retry import Retry, if_exception_type

    return Retry(predicate=if_exception_type(*cured_by_waiting()), initial=0.1, maximum=5.0, timeout=seconds)


def one_line(err: BaseException) -> str:
    """Its text, however many lines it has, and its type where it has none."""
    return " ".join(str(err).split()) or type(err).__name__
