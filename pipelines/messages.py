"""What every Pub/Sub message can say of its event: by what it is known, and when it happened."""

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
    "projects/P/topics/T, which the messages come from: it stands before a message's id where events are known by "
    "that; not needed if the subscription may be looked at"
)


def merge_arguments(flags: object) -> dict[str, Any]:
    """The arguments of the merge that the flags give, with the message's own id and time where they are needed and
    no flag names better ones. A warning on stderr says what the message's id cannot do.

    Args:
        flags: as `murmur_beam.spec.from_flags` takes them.

    Raises:
        ConfigurationError: a flag that is wrong, or one that is missing.
    """
    arguments = from_flags(flags)
    spec = resolve({"event_id": MESSAGE_ID, **arguments})
    if "event_time" not in arguments and (spec.window is not None or spec.monoid.needs_event_time):
        arguments["event_time"] = PUBLISH_TIME
    if "event_id" not in arguments and needs_event_id(spec.config, spec.monoid):
        arguments["event_id"] = MESSAGE_ID
        print(
            "warning: without --event_id an event is known by its message's id, and a publisher that tries again gives "
            "it a new one, which counts twice; name a field of the event, or attribute:NAME",
            file=sys.stderr,
        )
    return arguments


def needs_source(arguments: Mapping[str, Any]) -> bool:
    """Is an event known by its message's id, which is unique within one topic only, and no flag says what comes before
    it?

    Args:
        arguments: from `merge_arguments`.
    """
    event_id = arguments.get("event_id")
    known_by_message = isinstance(event_id, str) and MESSAGE_ID in event_id
    return known_by_message and "source" not in arguments and arguments.get("id_format") != "plain"


def with_source(arguments: Mapping[str, Any], topic: str | None, subscription: str) -> dict[str, Any]:
    """The arguments with the topic before the message's id, where that is needed.

    Args:
        arguments: from `merge_arguments`.
        topic: as ``projects/P/topics/T``; None if it is not known.
        subscription: whose messages these are.

    Raises:
        ConfigurationError: the topic is needed, and not known.
    """
    if not needs_source(arguments):
        return dict(arguments)
    if topic is None:
        raise ConfigurationError(
            "--topic",
            f"is missing: a message's id is unique within its topic only, and {subscription} does not say which that "
            "is; write --topic projects/P/topics/T, or --id_format plain for the id alone, or name an --event_id",
        )
    return {**arguments, "source": topic}


def check_not_read(dead_letter_topic: str | None, *topics: str | None) -> None:
    """Letters must not go to a topic that is read.

    Raises:
        ConfigurationError: they would.
    """
    if dead_letter_topic is not None and dead_letter_topic in topics:
        raise ConfigurationError(
            "--dead_letter_topic", "is the topic that is read; each dead letter would come back for ever"
        )
