"""Defaults for Pub/Sub messages: the message's id as event id, and its publish time as event time."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from murmur_beam.errors import ConfigurationError
from murmur_beam.processor import needs_event_id
from murmur_beam.spec import from_flags, resolve

MESSAGE_ID = "message:id"
PUBLISH_TIME = "message:publish_time"
TOPIC_HELP = (
    "projects/P/topics/T of the messages; prefix of event ids that are message ids; not needed if the caller may "
    "describe the subscription"
)


def merge_arguments(flags: object) -> dict[str, Any]:
    """The arguments of the merge from the flags, with the message's id and time if these are needed and no flag names
    others. A warning on stderr explains the limits of a message's id.

    Args:
        flags: as in `murmur_beam.spec.from_flags`.

    Raises:
        ConfigurationError: a flag is invalid or missing.
    """
    arguments = from_flags(flags)
    spec = resolve({"event_id": MESSAGE_ID, **arguments})
    if "event_time" not in arguments and (spec.window is not None or spec.monoid.needs_event_time):
        arguments["event_time"] = PUBLISH_TIME
    if "event_id" not in arguments and needs_event_id(spec.config, spec.monoid):
        arguments["event_id"] = MESSAGE_ID
        print(
            "warning: without --event_id the message's id is the event id; a publisher's retry gets a new message id, "
            "and counts twice; name a field of the event, or attribute:NAME",
            file=sys.stderr,
        )
    return arguments


def needs_source(arguments: Mapping[str, Any]) -> bool:
    """Return whether event ids are message ids, which are unique within one topic only, and lack a source.

    Args:
        arguments: from `merge_arguments`.
    """
    event_id = arguments.get("event_id")
    known_by_message = isinstance(event_id, str) and MESSAGE_ID in event_id
    return known_by_message and "source" not in arguments and arguments.get("id_format") != "plain"


def with_source(arguments: Mapping[str, Any], topic: str | None, subscription: str) -> dict[str, Any]:
    """The arguments with the topic as the source of message ids, if a source is needed.

    Args:
        arguments: from `merge_arguments`.
        topic: as ``projects/P/topics/T``; None if unknown.
        subscription: of the messages.

    Raises:
        ConfigurationError: the topic is needed but unknown.
    """
    if not needs_source(arguments):
        return dict(arguments)
    if topic is None:
        raise ConfigurationError(
            "--topic",
            f"is missing: a message's id is unique within its topic only, and the topic of {subscription} is unknown; "
            "write --topic projects/P/topics/T, or --id_format plain for the id alone, or name an --event_id",
        )
    return {**arguments, "source": topic}


def check_not_read(dead_letter_topic: str | None, *topics: str | None) -> None:
    """Check that dead letters are not published to a topic that is read.

    Raises:
        ConfigurationError: the topics are the same.
    """
    if dead_letter_topic is not None and dead_letter_topic in topics:
        raise ConfigurationError(
            "--dead_letter_topic",
            "is the topic that is read: each dead letter would be read again, forever; name another topic",
        )
