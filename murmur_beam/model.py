"""The data types: `Record` goes in, a store gets `Update`, and `Outcome`, `MergeResult` and `DeadLetter` come out.

All are plain tuples: they are made once per event, and Beam derives schemas from the two that a transform emits.
"""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from murmur_beam.errors import InvalidRecord

MAX_ENTITY_BYTES = 4000
"""Longest entity in UTF-8 bytes; leaves room for bucket and shard in Bigtable's row key limit of 4 KB."""

SURELY_SHORT = MAX_ENTITY_BYTES // 4
"""Characters that are never too many for an entity, since a character has at most four bytes."""

NOT_NUMBERS = frozenset(
    sign + text
    for text in ("nan", "NaN", "NAN", "NaT", "<NA>", "inf", "Inf", "INF", "infinity", "Infinity", "INFINITY")
    for sign in ("", "-", "+")
)
"""Texts that writers use for a missing or invalid number. They are refused as event ids."""

_ALWAYS_READABLE = 64 * 1024
"""Size in bytes up to which a payload in UTF-8 is always text in a letter's JSON, for people to read."""

ABSENT = object()
"""Stands for the value of an aggregate whose record lacks it."""

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


class Outcome(str, enum.Enum):
    """The outcome of one event for one key, or of a whole record."""

    MERGED = "merged"
    """The event was folded into the aggregate now."""
    DUPLICATE = "duplicate"
    """The aggregate held this event already; nothing changed."""
    RECORDED = "recorded"
    """The event is in the row, once, in a table that is appended to; it may have been there before."""
    EXPIRED = "expired"
    """The event is older than its window's retention; nothing was written."""

    def __str__(self) -> str:
        return self.value


class Key(NamedTuple):
    """Names one aggregate: what is counted, and its time bucket (0 without a window)."""

    entity: str
    bucket: int = 0


class Update(NamedTuple):
    """One event's delta for one key.

    With an ``event_id`` a store folds the delta at most once per (key, event id). ``ttl`` is how much longer the key's
    bucket takes events; after that the store may delete the row with its markers.
    """

    key: Key
    delta: Any
    event_id: str | None = None
    ttl: timedelta | None = None


Record = tuple[str | None, int, tuple[str, ...], Any]
"""A valid record, ready to merge: event id, event time in microseconds, keys, delta.

Records are held by the thousand. Python's garbage collector soon stops visiting plain tuples of plain values, but never
instances of a NamedTuple, which take 16 % more of a client's CPU time (`python -m benchmarks.overhead`).
"""


def check_record(event_id: object, event_time_us: int, entities: Iterable[object], delta: Any) -> Record:
    """Check id and keys, drop repeated keys.

    Raises:
        InvalidRecord: an empty event id or key, one that is not a text, is too long, or has no UTF-8 form; or one
            string in place of several keys.
    """
    if isinstance(entities, str):
        raise InvalidRecord("key", f"expected a list of strings, got one string: {entities!r:.80}")
    if event_id is not None and not (type(event_id) is str and is_plain_id(event_id)):
        event_id = check_event_id(event_id)
    checked = tuple([e if type(e) is str and is_plain_key(e) else check_entity(e) for e in entities])
    return event_id, event_time_us, checked if len(checked) < 2 else tuple(dict.fromkeys(checked)), delta


class MergeResult(NamedTuple):
    """One input element that is now in the state, on the main output of `MergeRecords`.

    Attributes:
        element: the input element itself, for the steps that follow.
        outcome: "merged", "duplicate", "recorded" or "expired" (an `Outcome` compares equal to these). A store that
            appends reports "recorded" in place of the first two: the event counts once, whether it is new or not.
        event_id: None if the element has none.
        keys: all entities of the record.
        merged_keys: entities folded or recorded now; the record's other entities were duplicates.
        bucket: time bucket of the record, 0 without a window.
    """

    element: Any
    outcome: str
    event_id: str | None
    keys: Sequence[str]
    merged_keys: Sequence[str]
    bucket: int


class DeadLetter(NamedTuple):
    """An element that could not be merged, with everything that is needed to find the cause and to replay it.

    Attributes:
        payload: the element's bytes, unchanged.
        payload_type: encoding of the element in ``payload``: "bytes", "pubsub" (a message; the payload is its data),
            "text" (UTF-8), "json", "pickle", or "repr" (for reading only: the element could not be serialized).
        attributes: the message's attributes, unchanged; empty for other elements.
        message_id, publish_time, ordering_key: of the message, if it had them.
        pipeline: name of the `MergeRecords` that gave up on it.
        stage: "decode", "extract" or "merge".
        event_id: None if the element failed before its id was found.
        event_time: RFC 3339, UTC, microseconds; None if the element failed before its time was found.
        keys: all entities of the record, as far as they were found.
        failed_keys: entities that could not be merged; the others are in the state.
        error_type: name of the exception's class.
        error_message: text of the exception.
        attempts: number of tries; 0 for failures before the merge.
        failed_at: time when the element was given up, RFC 3339, UTC.
    """

    payload: bytes
    payload_type: str
    attributes: Mapping[str, str]
    message_id: str | None
    publish_time: str | None
    ordering_key: str | None
    pipeline: str
    stage: str
    event_id: str | None
    event_time: str | None
    keys: Sequence[str]
    failed_keys: Sequence[str]
    error_type: str
    error_message: str
    attempts: int
    failed_at: str

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, in which ``payload`` is text, or ``payload_base64`` replaces it.

        Base64 is used for payloads that are not UTF-8, and above 64 KiB also where JSON text would be longer: it needs
        six bytes for a control character.
        """
        row = self._asdict()
        row["attributes"] = dict(self.attributes)
        row["keys"] = list(self.keys)
        row["failed_keys"] = list(self.failed_keys)
        text = _readable(self.payload)
        if text is not None:
            row["payload"] = text
        else:
            del row["payload"]
            row["payload_base64"] = base64.b64encode(self.payload).decode("ascii")
        return row

    def to_json(self) -> str:
        """One line of JSON, from which `from_json` makes an equal dead letter. UTF-8 can always represent it."""
        # Not self.to_dict(): a worker that decodes letters gets a generated type, with the fields of the schema only.
        row = DeadLetter.to_dict(self)
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        try:
            line.encode("utf-8")
        except UnicodeEncodeError:
            # A lone surrogate in a text, perhaps the very cause of the failure: only an escape can represent it.
            line = json.dumps(row, separators=(",", ":"))
        return line

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> DeadLetter:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a field is missing or unknown, or the payload is not text, bytes or base64.
        """
        fields = dict(row)
        if "payload_base64" in fields:
            try:
                fields["payload"] = base64.b64decode(fields.pop("payload_base64"), validate=True)
            except (TypeError, ValueError) as err:
                raise ValueError(f"not a dead letter: payload_base64 is not base64: {err}") from None
        elif isinstance(fields.get("payload"), str):
            fields["payload"] = fields["payload"].encode("utf-8")
        elif not isinstance(fields.get("payload", b""), bytes):
            raise ValueError(f"not a dead letter: payload is a {type(fields['payload']).__name__}, not text")
        missing = set(cls._fields) - fields.keys()
        unknown = fields.keys() - set(cls._fields)
        if missing or unknown:
            raise ValueError(
                "not a dead letter: "
                + "; ".join(
                    f"{what} {', '.join(sorted(names))}"
                    for what, names in (("it lacks", missing), ("it has unknown", unknown))
                    if names
                )
            )
        return cls(**fields)

    @classmethod
    def from_json(cls, line: str | bytes) -> DeadLetter:
        """Inverse of `to_json`.

        Raises:
            ValueError: the line is not JSON, or not a dead letter.
        """
        try:
            row = json.loads(line)
        except ValueError as err:
            raise ValueError(f"not a dead letter: not JSON: {err}") from None
        if not isinstance(row, dict):
            raise ValueError(f"not a dead letter: expected a JSON object, got {type(row).__name__}")
        return cls.from_dict(row)


class Message(NamedTuple):
    """A Pub/Sub message, for drivers without a message class."""

    data: bytes
    attributes: Mapping[str, str]
    message_id: str | None
    publish_time: datetime | None
    ordering_key: str | None


class WrittenFloat(float):
    """A float with the text that it was written as, such as "12.30", for sums that must not round it.

    Attributes:
        text: a decimal number.
    """

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        made = super().__new__(cls, text)
        made.text = text
        return made


def plain(value: Any) -> Any:
    """The Python value of a numpy scalar, which rows of pandas and Arrow contain; any other value unchanged."""
    if getattr(value, "shape", None) == () and hasattr(value, "dtype"):
        return value.item()
    return value


def _readable(payload: bytes) -> str | None:
    """The payload as text for JSON; None if base64 is better."""
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if len(payload) <= _ALWAYS_READABLE:
        return text
    return text if len(json.dumps(text, ensure_ascii=False).encode("utf-8")) <= -(-len(payload) // 3) * 4 else None


def is_plain_id(event_id: str) -> bool:
    """Whether an event id is good for certain; nearly all are, and need no further check."""
    return bool(event_id) and event_id.isascii() and event_id not in NOT_NUMBERS


def is_plain_key(key: str) -> bool:
    """Whether a key is good for certain; nearly all are, and need no further check."""
    return 0 < len(key) <= SURELY_SHORT and key.isascii()


def check_event_id(event_id: object) -> str:
    """Return the id as text: a non-empty str, or an int in decimal.

    Raises:
        InvalidRecord: the id is something else, or a text that stands for a missing number: all such events would be
            taken for one.
    """
    event_id = plain(event_id)
    if type(event_id) is int:
        return str(event_id)
    text = _check_text("event_id", event_id)
    if text in NOT_NUMBERS:
        raise InvalidRecord("event_id", f"{text!r} stands for a missing value")
    return text


def check_entity(entity: object) -> str:
    """Return the entity if it is a non-empty str of at most `MAX_ENTITY_BYTES` in UTF-8.

    Raises:
        InvalidRecord: the entity is something else.
    """
    text = _check_text("key", entity)
    if len(text) > SURELY_SHORT and (size := len(text.encode("utf-8"))) > MAX_ENTITY_BYTES:
        raise InvalidRecord("key", f"{size} bytes long, at most {MAX_ENTITY_BYTES} are allowed: {text[:40]!r}...")
    return text


def _check_text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRecord(field, f"expected a string, got {type(value).__name__}: {value!r:.80}")
    if not value:
        raise InvalidRecord(field, "is empty")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as err:
            raise InvalidRecord(field, f"has no UTF-8 form ({err.reason}): {value!r:.80}") from None
    return value


def to_us(time: datetime) -> int:
    """Microseconds since the Unix epoch.

    Raises:
        InvalidRecord: ``time`` is not a datetime, has no time zone, or lies outside the years 1 to 9999 in UTC.
    """
    if not isinstance(time, datetime):
        raise InvalidRecord("event_time", f"expected a datetime, got {type(time).__name__}: {time!r:.80}")
    if time.utcoffset() is None:
        raise InvalidRecord(
            "event_time", f"{time.isoformat()} has no time zone; write tzinfo=timezone.utc or an offset"
        )
    time_us = (time - EPOCH) // _MICROSECOND
    if not _MIN_US <= time_us <= _MAX_US:
        raise InvalidRecord("event_time", f"{time.isoformat()} lies outside the years 1 to 9999 in UTC")
    return time_us


def from_us(time_us: int) -> datetime:
    """Inverse of `to_us`, in UTC.

    Raises:
        OverflowError: the time lies outside the years 1 to 9999.
    """
    return EPOCH + timedelta(microseconds=time_us)


def is_representable(time_us: int) -> bool:
    """Return whether the time lies in the years 1 to 9999. Beam's minimum and maximum, which mean "none", do not."""
    return _MIN_US <= time_us <= _MAX_US


def rfc3339(time_us: int) -> str:
    """A fixed-width RFC 3339 text in UTC with microseconds, which BigQuery's TIMESTAMP accepts.

    Raises:
        OverflowError: the time lies outside the years 1 to 9999.
    """
    time = from_us(time_us)
    # Not strftime: it does not pad the year on every platform.
    return f"{time.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


_MIN_US = (datetime.min.replace(tzinfo=timezone.utc) - EPOCH) // _MICROSECOND
_MAX_US = (datetime.max.replace(tzinfo=timezone.utc) - EPOCH) // _MICROSECOND
