"""Defaults for Pub/Sub messages: the message's id as event id, and its publish time as event time."""

from __future__ import annotations

import sys
from dataclasses import replace

from murmur_beam.errors import ConfigurationError
from murmur_beam.fields import MESSAGE_ID
from murmur_beam.options import MergeOptions, from_flags
from murmur_beam.processor import needs_event_id
from murmur_beam.spec import resolve

PUBLISH_TIME = "message:publish_time"
TOPIC_HELP = (
    "topic of the messages, projects/P/topics/T; prefix of event ids that are message ids; not needed if the caller "
    "may describe the subscription"
)


def merge_options(flags: object) -> MergeOptions:
    """The options of the merge from the flags, with the message's id and time if these are needed and no flag names
    others. A warning on stderr explains the limits of a message's id.

    Args:
        flags: as in `murmur_beam.options.from_flags`.

    Raises:
        ConfigurationError: a flag is invalid or missing.
    """
    options = from_flags(flags)
    spec = resolve(options if options.event_id is not None else replace(options, event_id=MESSAGE_ID))
    if options.event_time is None and (spec.window is not None or spec.monoid.needs_event_time):
        options.event_time = PUBLISH_TIME
    if options.event_id is None and needs_event_id(spec.config, spec.monoid):
        options.event_id = MESSAGE_ID
        print(
            "warning: without --event_id the message's id is the event id; a publisher's retry gets a new message id, "
            "and counts twice; name a field of the event, or attribute:NAME",
            file=sys.stderr,
        )
    return options


def needs_source(options: MergeOptions) -> bool:
    """Return whether event ids are message ids, which are unique within one topic only, and lack a source.

    Args:
        options: from `merge_options`.
    """
    known_by_message = isinstance(options.event_id, str) and MESSAGE_ID in options.event_id
    return known_by_message and options.source is None and options.id_format != "plain"


def with_source(options: MergeOptions, topic: str | None, subscription: str) -> MergeOptions:
    """The options with the topic as the source of message ids, if a source is needed.

    Args:
        options: from `merge_options`.
        topic: as ``projects/P/topics/T``; None if unknown.
        subscription: of the messages.

    Raises:
        ConfigurationError: the topic is needed but unknown.
    """
    if not needs_source(options):
        return options
    if topic is None:
        raise ConfigurationError(
            "--topic",
            f"is missing: a message's id is unique within its topic only, and the topic of {subscription} is unknown; "
            "write --topic projects/P/topics/T, or --id_format plain for the id alone, or name an --event_id",
        )
    return replace(options, source=topic)


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
