"""Converts any element to a dead letter, and back."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from murmur_beam.decode import is_message
from murmur_beam.errors import InvalidRecord
from murmur_beam.extract import RecordHints, text_of
from murmur_beam.model import DeadLetter, is_representable, rfc3339, to_us
from murmur_beam.times import event_time_us, parse_rfc3339


class Failure(NamedTuple):
    """The reason why an element was given up.

    Attributes:
        stage: "decode", "extract" or "merge".
        error: the last error.
        hints: id, time and keys of the record, as far as they were found.
        failed_keys: keys that could not be merged; empty before the merge.
        attempts: number of tries.
    """

    stage: str
    error: BaseException
    hints: RecordHints
    failed_keys: tuple[str, ...] = ()
    attempts: int = 0


def write_letter(element: Any, pipeline: str, failure: Failure, now_us: int) -> DeadLetter:
    """Make the dead letter of an element. Never fails: otherwise the element's bundle would be retried forever.

    An element that is a replayed dead letter keeps its payload and its keys: the new letter describes what is still
    missing of the same event, not of the letter.
    """
    hints = failure.hints
    time_us = hints.event_time_us
    letter = element if isinstance(element, DeadLetter) else _envelope(element)
    return letter._replace(
        pipeline=pipeline,
        stage=failure.stage,
        event_id=hints.event_id,
        event_time=rfc3339(time_us) if time_us is not None and is_representable(time_us) else None,
        # A letter's keys are complete only after a failed merge; its replay has the failed keys alone.
        keys=list((letter.failed_keys and letter.keys) or hints.keys or letter.keys),
        failed_keys=list(failure.failed_keys or letter.failed_keys),
        error_type=type(failure.error).__name__,
        error_message=_utf8(text_of(failure.error)),
        attempts=failure.attempts,
        failed_at=rfc3339(now_us),
    )


def read_letter(letter: DeadLetter, message: Callable[[DeadLetter], Any], *, unpickle: bool) -> Any:
    """The element that a letter was written for.

    Args:
        letter: from `write_letter`, or read from JSON.
        message: makes a message of the driver's class.
        unpickle: allow pickled payloads; loading one runs any code that its writer put there.

    Raises:
        ValueError: the letter cannot be read, or is pickled without ``unpickle``.
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
            raise ValueError("the element is pickled; if you trust the letter's writer, replay it with unpickle=True")
        try:
            return pickle.loads(payload)
        except Exception as err:
            raise ValueError(f"the pickled element cannot be loaded: {type(err).__name__}: {text_of(err)}") from err
    raise ValueError(f"a payload of type {kind!r} cannot be turned back into an element")


def hints_of(letter: DeadLetter) -> RecordHints:
    """A letter's id, time and failed keys: a replay merges only the keys that failed.

    Raises:
        InvalidRecord: the letter's event time is not a time.
    """
    return RecordHints(
        letter.event_id,
        None if letter.event_time is None else to_us(parse_rfc3339(letter.event_time)),
        tuple(letter.failed_keys) or None,
    )


def _envelope(element: Any) -> DeadLetter:
    return _message_letter(element) or _letter(*_pack(element))


def _letter(kind: str, payload: bytes) -> DeadLetter:
    """A letter with a payload, and all other fields empty."""
    return DeadLetter(
        payload=payload,
        payload_type=kind,
        attributes={},
        message_id=None,
        publish_time=None,
        ordering_key=None,
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


def _message_letter(element: Any) -> DeadLetter | None:
    """The letter of a message; None for other elements, and for messages that a letter cannot represent."""
    if not is_message(element):
        return None
    try:
        data, attributes = element.data, element.attributes
        message_id, ordering_key = (getattr(element, name, None) or None for name in ("message_id", "ordering_key"))
        publish_time = getattr(element, "publish_time", None)
    except Exception:  # its properties may raise anything
        return None
    attributes = {} if attributes is None else attributes
    if not isinstance(data, (bytes, type(None))) or not isinstance(attributes, Mapping):
        return None
    texts = [text for text in (message_id, ordering_key) if text is not None]
    if not all(map(_is_text, [*texts, *attributes, *attributes.values()])):
        return None
    return _letter("pubsub", data or b"")._replace(
        attributes=dict(attributes),
        message_id=message_id,
        publish_time=_publish_time(publish_time),
        ordering_key=ordering_key,
    )


def _publish_time(time: Any) -> str | None:
    try:
        return rfc3339(event_time_us(time))
    except InvalidRecord:
        return None


def _pack(element: Any) -> tuple[str, bytes]:
    if type(element) is bytes:
        return "bytes", element
    if type(element) is str:
        return "text", element.encode("utf-8", "surrogatepass")
    try:
        if _is_json(element):
            text = json.dumps(element)
            # A pair of lone surrogates would come back as one character.
            if json.loads(text) == element:
                return "json", text.encode("ascii")
    except (ValueError, RecursionError):  # an int of too many digits, nested too deeply
        pass
    try:
        return "pickle", pickle.dumps(element)
    except Exception:
        return "repr", _repr(element).encode("utf-8", "backslashreplace")


def _is_json(value: Any) -> bool:
    """Return whether JSON preserves the value's types: it does not for tuples, enums, subclasses and non-text keys."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_json(member) for key, member in value.items())
    if kind is list:
        return all(map(_is_json, value))
    if kind is float:
        return math.isfinite(value)
    return kind in (str, int, bool, type(None))


def _repr(element: Any) -> str:
    try:
        return repr(element)
    except Exception:
        return object.__repr__(element)


def _is_text(value: Any) -> bool:
    """Return whether a value is text that UTF-8 can represent, as all texts of a letter are."""
    return isinstance(value, str) and _utf8(value) == value


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
