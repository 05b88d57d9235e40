"""Any element to the bytes of a dead letter, and back."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from murmur_beam.extract import Known, parse_rfc3339
from murmur_beam.model import DeadLetter, is_representable, rfc3339, to_us

_JSON_TYPES = (dict, list, int, float, bool, type(None))


class Failure(NamedTuple):
    """Why an element was given up.

    Attributes:
        stage: "decode", "extract" or "merge".
        error: what went wrong last.
        known: id, time and keys of the record, as far as they were found.
        failed_keys: those that could not be merged; none before the merge.
        attempts: tries made.
    """

    stage: str
    error: BaseException
    known: Known
    failed_keys: tuple[str, ...] = ()
    attempts: int = 0


def write_letter(element: Any, pipeline: str, failure: Failure, now_us: int) -> DeadLetter:
    """Make the dead letter of an element.

    An element that is a dead letter itself, fed in again, keeps its payload and its keys: the new letter tells what
    is still missing of the same event, not of the letter.
    """
    known = failure.known
    time_us = known.event_time_us
    letter = element if isinstance(element, DeadLetter) else _envelope(element)
    return letter._replace(
        pipeline=pipeline,
        stage=failure.stage,
        event_id=known.event_id,
        event_time=rfc3339(time_us) if time_us is not None and is_representable(time_us) else None,
        keys=list(letter.keys or known.keys or ()),
        failed_keys=list(failure.failed_keys or letter.failed_keys),
        error_type=type(failure.error).__name__,
        error_message=str(failure.error),
        attempts=failure.attempts,
        failed_at=rfc3339(now_us),
    )


def read_letter(letter: DeadLetter, message: Callable[[DeadLetter], Any], *, unpickle: bool) -> Any:
    """The element that a letter was written for.

    Args:
        letter: from `write_letter`, or read from JSON.
        message: makes the driver's kind of message.
        unpickle: allow payloads that were pickled; loading one runs whatever code its writer put there.

    Raises:
        ValueError: the letter cannot be read, or is pickled and that is not allowed.
    """
    kind, payload = letter.payload_type, letter.payload
    if kind == "bytes":
        return payload
    if kind == "text":
        return payload.decode("utf-8", "surrogatepass")
    if kind == "json":
        return json.loads(payload)
    if kind == "pubsub":
        return message(letter)
    if kind == "pickle":
        if not unpickle:
            raise ValueError("the element is pickled; if you trust who wrote the letter, replay it with unpickle=True")
        return pickle.loads(payload)
    raise ValueError(f"a payload of type {kind!r} cannot be turned back into an element")


def known_of(letter: DeadLetter) -> Known:
    """What the letter says of its record: only the keys that failed are merged again."""
    return Known(
        letter.event_id,
        None if letter.event_time is None else to_us(parse_rfc3339(letter.event_time)),
        tuple(letter.failed_keys) or None,
    )


def _envelope(element: Any) -> DeadLetter:
    kind, payload = _pack(element)
    publish_time = getattr(element, "publish_time", None) if kind == "pubsub" else None
    return DeadLetter(
        payload=payload,
        payload_type=kind,
        attributes=dict(element.attributes or {}) if kind == "pubsub" else {},
        message_id=getattr(element, "message_id", None) or None if kind == "pubsub" else None,
        publish_time=rfc3339(to_us(publish_time)) if isinstance(publish_time, datetime) else None,
        ordering_key=getattr(element, "ordering_key", None) or None if kind == "pubsub" else None,
        pipeline="",
        stage="",
        event_id=None,
        event_time=None,
        keys=[],
        failed_keys=[],
        error_type="",
        error_message="",
        attempts=0,
        failed_at="",
    )


def _pack(element: Any) -> tuple[str, bytes]:
    if type(element) is bytes:
        return "bytes", element
    if type(element) is str:
        return "text", element.encode("utf-8", "surrogatepass")
    if hasattr(element, "attributes") and isinstance(getattr(element, "data", None), (bytes, type(None))):
        return "pubsub", element.data or b""
    if type(element) in _JSON_TYPES:
        try:
            text = json.dumps(element, ensure_ascii=True, allow_nan=False)
            # Tuples, keys that are numbers and the like would come back as something else.
            if json.loads(text) == element:
                return "json", text.encode("ascii")
        except (TypeError, ValueError, RecursionError):
            pass
    try:
        return "pickle", pickle.dumps(element)
    except Exception:
        return "repr", repr(element).encode("utf-8", "backslashreplace")
