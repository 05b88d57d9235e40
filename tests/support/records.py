"""Shared by tests of decoding, fields, times and records: a message, a row, and a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NamedTuple

from hypothesis import settings

from murmur_beam import model

UNTIMED = settings(deadline=None)
"""For properties: a busy machine must not fail them."""

UTC = timezone.utc
WHEN = datetime(2013, 1, 1, 5, 15, tzinfo=UTC)
WHEN_US = 1_357_017_300_000_000
BEAM_MIN_US, BEAM_MAX_US = -9_223_372_036_854_775_000, 9_223_372_036_854_775_000
"""The timestamps by which Beam means "no timestamp", in microseconds."""


def message(data: Any = b"{}", attributes: Any = (), message_id: Any = "m1", publish_time: Any = WHEN) -> model.Message:
    """A Pub/Sub message; without attributes unless they are given."""
    return model.Message(data, {} if attributes == () else attributes, message_id, publish_time, None)


class Record(NamedTuple):
    """A record, which is a plain tuple in the package, with names for its parts."""

    event_id: str | None
    event_time_us: int
    entities: tuple[str, ...]
    delta: Any

    @classmethod
    def of(cls, event_id: object, event_time_us: int, entities: Any, delta: Any) -> Record:
        """As `model.check_record` makes it."""
        return cls(*model.check_record(event_id, event_time_us, entities, delta))


class Order(NamedTuple):
    """A record that is not a dict."""

    id: str
    amount: int
    customer: Any


def attempt(function: Callable[..., Any], error: type[Exception], *arguments: Any) -> Any:
    """The result of a function, or the one error that it may raise."""
    try:
        return function(*arguments)
    except error as err:
        return err
