"""What every Pub/Sub message can say of its event: by what it is known, and when it happened."""

from __future__ import annotations

import sys
from typing import Any

from murmur_beam.processor import needs_event_id
from murmur_beam.spec import from_flags, resolve

MESSAGE_ID = "message:id"
PUBLISH_TIME = "message:publish_time"


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
