"""Google's Pub/Sub client, with errors and names reported as mistakes in flags. Needs no Beam."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from murmur_beam.errors import ConfigurationError, MurmurError

ANSWER_S = 10.0
"""Deadline of a look-up at the start."""


_DELETED = "_deleted-topic_"
"""Topic of a subscription whose topic was deleted."""


def client_library() -> Any:
    """The module ``google.cloud.pubsub_v1``.

    Raises:
        MurmurError: google-cloud-pubsub is not installed.
    """
    try:
        from google.cloud import pubsub_v1  # type: ignore[attr-defined] # has no types
    except ImportError as err:
        raise MurmurError("google-cloud-pubsub is not installed; run: pip install 'murmur-beam[gcp]'") from err
    return pubsub_v1


def subscriber_client() -> Any:
    """A client of subscriptions that accepts answers of any size.

    Google's client accepts at most 4 MB from an emulator, which 84 messages of 50 kB exceed.

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
    """The topic of a subscription; None if the caller may not describe the subscription, or its topic was deleted.

    Args:
        subscription: as ``projects/P/subscriptions/S``.

    Raises:
        ConfigurationError: the subscription does not exist, or Pub/Sub cannot be reached.
        MurmurError: google-cloud-pubsub is not installed.
    """
    client_library()
    with asking("--subscription", subscription), subscriber_client() as client:
        topic: str = client.get_subscription(subscription=subscription, retry=None, timeout=ANSWER_S).topic
        return None if topic == _DELETED else topic
    return None


def full_name(flag: str, name: str, project: str | None) -> str:
    """The full name ``projects/P/subscriptions/S`` of a full name, or of ``S`` and the project; topics likewise.

    Args:
        flag: of the name, such as ``--subscription``; a flag that contains ``topic`` names a topic.
        name: as given.
        project: for short names.

    Raises:
        ConfigurationError: the name is invalid, or short without a project.
    """
    kind = "topics" if "topic" in flag else "subscriptions"
    if re.fullmatch(rf"projects/[^/]+/{kind}/[^/]+", name):
        return name
    if "/" in name or not name:
        raise ConfigurationError(flag, f"{name!r} is not a valid name; write projects/PROJECT/{kind}/NAME")
    if not project:
        raise ConfigurationError(
            flag, f"{name!r} lacks a project; write projects/PROJECT/{kind}/{name}, or add --project"
        )
    return f"projects/{project}/{kind}/{name}"


@contextmanager
def asking(flag: str, name: str) -> Iterator[None]:
    """Report Pub/Sub's errors about a name as mistakes in the flag.

    A caller without permission to describe the name is let through: it may still be allowed to use it.

    Raises:
        ConfigurationError: the name does not exist, or Pub/Sub cannot be reached.
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
        raise ConfigurationError(flag, f"cannot look up {name}: {one_line(err)}") from err


def cured_by_waiting() -> tuple[type[Exception], ...]:
    """Errors of Pub/Sub that a retry may avoid."""
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
    """A policy that retries the errors of `cured_by_waiting` for a time. The client's default is ten minutes."""
    from google.api_core.retry import Retry, if_exception_type

    return Retry(predicate=if_exception_type(*cured_by_waiting()), initial=0.1, maximum=5.0, timeout=seconds)


def one_line(err: BaseException) -> str:
    """The text of an error on one line, or its type if it has no text."""
    return " ".join(str(err).split()) or type(err).__name__
