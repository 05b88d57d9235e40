"""From an element to a record: decoding, and the fields that say what to count.

Each of key, value, event id and event time is a function of the decoded record, or a text:

    amount                the field of that name of a dict, or the attribute of an object
    user.country          a field of a field
    route/{from}-{to}     a template of fields, for keys and event ids
    =all                  the text after the equals sign, whatever the record
    attribute:NAME        an attribute of the message
    message:id            the message's id, given by Pub/Sub when it was published
    message:publish_time  when that was
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.model import Record, check_event_id, is_representable, to_us
from murmur_beam.monoids.base import Monoid
from murmur_beam.processor import make_record

T = TypeVar("T")

Field = str | Callable[[Any], Any]
"""A function of the decoded record, or a text as above."""

Getter = Callable[[Any, Any], Any]
"""What a `Field` is compiled to: a function of the decoded record and of the element."""

_MAX_UNIX_S = 10**11
"""Unix seconds beyond this (the year 5138) are milliseconds by mistake, and refused."""


def payload_of(element: Any) -> Any:
    """The data of a message (anything with ``data`` and ``attributes``), or else the element itself."""
    if hasattr(element, "attributes") and hasattr(element, "data"):
        return element.data
    return element


def decode_bytes(element: Any) -> Any:
    """Bytes and messages as JSON; anything else, text too, is taken as it is. The default.

    Raises:
        InvalidRecord: as `decode_json`.
    """
    if type(element) is dict:
        return element
    payload = payload_of(element)
    return decode_json(payload) if isinstance(payload, bytes) else payload


def decode_json(element: Any) -> dict[str, Any]:
    """A JSON object in bytes, text or a message.

    Raises:
        InvalidRecord: bytes that are not UTF-8, text that is not JSON, JSON that is no object.
    """
    try:
        record = json.loads(_text(payload_of(element)))
    except json.JSONDecodeError as err:
        raise InvalidRecord("payload", f"malformed JSON: {err}") from None
    except RecursionError:
        raise InvalidRecord("payload", "malformed JSON: nested too deeply") from None
    if not isinstance(record, dict):
        raise InvalidRecord("payload", f"expected a JSON object, got {type(record).__name__}: {record!r:.80}")
    return record


def decode_csv(element: Any) -> dict[str, str]:
    """A header line and one record of CSV, in bytes, text or a message; all values are text.

    Raises:
        InvalidRecord: bytes that are not UTF-8, quotes that do not match, or another number of fields than the
            header has.
    """
    try:
        lines = list(csv.reader(io.StringIO(_text(payload_of(element)), newline=""), strict=True))
    except csv.Error as err:
        raise InvalidRecord("payload", f"malformed CSV: {err}") from None
    if len(lines) != 2:
        raise InvalidRecord("payload", f"expected a CSV header and one record, got {len(lines)} records in all")
    header, fields = lines
    if len(header) != len(fields):
        raise InvalidRecord("payload", f"the CSV header names {len(header)} fields, the record has {len(fields)}")
    return dict(zip(header, fields, strict=True))


DECODERS: Mapping[str, Callable[[Any], Any]] = {"json": decode_json, "csv": decode_csv}


def _text(payload: Any) -> str:
    if isinstance(payload, str):
        return payload
    if not isinstance(payload, bytes):
        raise InvalidRecord("payload", f"expected bytes or text to decode, got {type(payload).__name__}")
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as err:
        raise InvalidRecord("payload", f"not UTF-8: {err.reason} at byte {err.start}") from None


@dataclass(frozen=True)
class Extraction:
    """Where the parts of a record come from. Picklable if the functions are.

    Args:
        keys: a function that returns the entities, or several fields that give one entity each.
        value: None only for a monoid that needs no value.
        event_id: None only where no id is needed.
        event_time: None takes the element's timestamp.
        decode: "json", "csv", a function of the element, or None for `decode_bytes`.

    Raises:
        ConfigurationError: naming the argument.
    """

    keys: Callable[[Any], Iterable[Any]] | tuple[Field, ...]
    value: Field | None = None
    event_id: Field | None = None
    event_time: Field | None = None
    decode: str | Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keys, tuple):
            for key in self.keys:
                compile_text("key" if len(self.keys) == 1 else "keys", key)
        elif not callable(self.keys):
            raise ConfigurationError("keys", f"expected a function or a list of fields, got {self.keys!r:.80}")
        for name in ("value", "event_id", "event_time"):
            if getattr(self, name) is not None:
                compile_field(name, getattr(self, name))
        if not (self.decode is None or callable(self.decode) or self.decode in DECODERS):
            raise ConfigurationError("decode", f"expected {', '.join(DECODERS)} or a function, got {self.decode!r:.80}")


class Known(NamedTuple):
    """What a dead letter remembers of its record, to be used instead of extracting it again; None: not known."""

    event_id: str | None
    event_time_us: int | None
    keys: tuple[str, ...] | None


_NOTHING_KNOWN = Known(None, None, None)


class Rejected(Exception):
    """An element that makes no record; the reason is the ``__cause__``.

    Attributes:
        stage: "decode" or "extract".
        known: the parts of the record that could be found.
        error: what is wrong, in terms of the argument that failed.
    """

    def __init__(self, stage: str, known: Known, error: Exception) -> None:
        super().__init__(stage, known, error)
        self.stage = stage
        self.known = known
        self.error = error


class Extractor:
    """Makes records from elements, on a worker.

    Args:
        extraction: where the parts come from.
        monoid: lifts the value.
        need_id: refuse a record without an event id.
        need_time: refuse an element whose timestamp says nothing, when that is its event time.
    """

    def __init__(self, extraction: Extraction, monoid: Monoid[Any], *, need_id: bool, need_time: bool) -> None:
        self._monoid = monoid
        self._need_id = need_id
        self._need_time = need_time
        decode = extraction.decode
        self._decode = decode_bytes if decode is None else DECODERS[decode] if isinstance(decode, str) else decode
        self._event_id = _optional("event_id", extraction.event_id)
        self._event_time = _optional("event_time", extraction.event_time)
        self._value = _optional("value", extraction.value) or _nothing
        if decode == "csv" and isinstance(extraction.value, str):
            # In CSV everything is text; a user's own function has done its own parsing.
            text = self._value
            self._value = lambda record, element: monoid.parse(text(record, element))
        self._keys = _compile_keys(extraction.keys)

    def record(self, element: Any, timestamp_us: int, known: Known = _NOTHING_KNOWN) -> Record:
        """Make the record of an element.

        Args:
            element: as it came.
            timestamp_us: the element's own, the event time unless a field says otherwise; microseconds.
            known: parts that need no extracting.

        Raises:
            Rejected: it cannot be decoded, or has no usable key, id, time or value.
        """
        part = "decode"
        try:
            decoded = self._decode(element)
            part = "event_id"
            event_id = self._event_id_of(decoded, element, known)
            part = "event_time"
            event_time_us = self._event_time_of(decoded, element, timestamp_us, known)
            part = "key"
            keys = known.keys or self._keys(decoded, element)
            part = "value"
            value = self._value(decoded, element)
            return make_record(self._monoid, event_id, event_time_us, keys, value, need_id=self._need_id)
        except Exception as err:
            error = err if isinstance(err, InvalidRecord) else _explained(part, err)
            found = self._find(element, timestamp_us, known)
            raise Rejected("decode" if part == "decode" else "extract", found, error) from err

    def _event_id_of(self, decoded: Any, element: Any, known: Known) -> Any:
        if known.event_id is not None or self._event_id is None:
            return known.event_id
        return self._event_id(decoded, element)

    def _event_time_of(self, decoded: Any, element: Any, timestamp_us: int, known: Known) -> int:
        if known.event_time_us is not None:
            return known.event_time_us
        if self._event_time is not None:
            return event_time_us(self._event_time(decoded, element))
        if self._need_time and not is_representable(timestamp_us):
            raise InvalidRecord(
                "event_time", "the element has no timestamp of its own; say where the time is with event_time="
            )
        return timestamp_us

    def _find(self, element: Any, timestamp_us: int, known: Known) -> Known:
        """As much of the record as there is, for the dead letter."""
        decoded = _or_none(lambda: self._decode(element))
        return Known(
            _or_none(lambda: check_event_id(self._event_id_of(decoded, element, known))),
            _or_none(lambda: self._event_time_of(decoded, element, timestamp_us, known)),
            _or_none(lambda: tuple(map(str, known.keys or self._keys(decoded, element)))),
        )


def _or_none(function: Callable[[], T]) -> T | None:
    try:
        return function()
    except Exception:
        return None


def _explained(part: str, err: Exception) -> InvalidRecord:
    """What a user's function raised, with the argument it was given as."""
    return InvalidRecord(part, f"{type(err).__name__}: {err}")


def compile_field(argument: str, field: Field) -> Getter:
    """Make the function that finds a field.

    Raises:
        ConfigurationError: the text makes no sense, naming ``argument``.
    """
    if callable(field):
        function = field
        return lambda record, element: function(record)
    if not isinstance(field, str) or not field:
        raise ConfigurationError(argument, f"expected a field name, a template or a function, got {field!r:.80}")
    if field.startswith("="):
        literal = field[1:]
        return lambda record, element: literal
    if "{" in field or "}" in field:
        return _template(argument, field)
    kind, _, name = field.partition(":")
    if kind == "attribute" and name:
        return lambda record, element: _attribute(argument, name, element)
    if kind == "message":
        if name not in ("id", "publish_time"):
            raise ConfigurationError(argument, f"{field!r}: write message:id or message:publish_time")
        of_message = "message_id" if name == "id" else name
        return lambda record, element: _member(argument, of_message, element)
    return _path(argument, field)


def compile_text(argument: str, field: Field) -> Getter:
    """Like `compile_field`, but a field that holds a number gives its text: a key may be a numeric id.

    Raises:
        ConfigurationError: as `compile_field`.
    """
    get = compile_field(argument, field)
    if callable(field):
        return get

    def text(record: Any, element: Any) -> str:
        value = get(record, element)
        return value if type(value) is str else _scalar_text(argument, field, value)

    return text


def _compile_keys(keys: Callable[[Any], Iterable[Any]] | tuple[Field, ...]) -> Getter:
    if isinstance(keys, tuple):
        getters = [compile_text("key" if len(keys) == 1 else "keys", key) for key in keys]
        if len(getters) == 1:
            (get,) = getters
            return lambda record, element: (get(record, element),)
        return lambda record, element: [get(record, element) for get in getters]
    function = keys

    def entities(record: Any, element: Any) -> Iterable[Any]:
        found = function(record)
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise InvalidRecord("keys", f"the function must return a list of keys, got {found!r:.80}; for one use key=")
        return found

    return entities


def _optional(argument: str, field: Field | None) -> Getter | None:
    return None if field is None else compile_field(argument, field)


def _nothing(record: Any, element: Any) -> Any:
    return None


def _template(argument: str, template: str) -> Getter:
    parts: list[tuple[str, str, Getter | None]] = []
    try:
        for literal, name, spec, conversion in string.Formatter().parse(template):
            if spec or conversion or name == "":
                raise ValueError("each pair of braces takes the name of a field, and nothing else")
            parts.append((literal, name or "", compile_field(argument, name) if name else None))
    except ValueError as err:
        raise ConfigurationError(argument, f"template {template!r}: {err}") from None

    def fill(record: Any, element: Any) -> str:
        return "".join(
            literal if get is None else literal + _scalar_text(argument, name, get(record, element))
            for literal, name, get in parts
        )

    return fill


def _scalar_text(argument: str, field: Any, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise InvalidRecord(argument, f"field {field!r} must be text or a number, got {value!r:.80}")


def _path(argument: str, path: str) -> Getter:
    first, *others = path.split(".")

    def get_first(record: Any, element: Any) -> Any:
        if type(record) is dict and first in record:
            return record[first]
        return _member(argument, first, record)

    if not others:
        return get_first

    def get(record: Any, element: Any) -> Any:
        value = get_first(record, element)
        for other in others:
            value = _member(argument, other, value)
        return value

    return get


def _member(argument: str, name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
        there = f"there are {', '.join(map(str, value))}" if value else "there are none"
        raise InvalidRecord(argument, f"field {name!r} is missing; {there:.200}")
    try:
        return getattr(value, name)
    except AttributeError:
        hint = "; text is only parsed with decode='json' or 'csv'" if isinstance(value, str) else ""
        raise InvalidRecord(argument, f"field {name!r} is missing in a {type(value).__name__}{hint}") from None


def _attribute(argument: str, name: str, element: Any) -> Any:
    attributes = getattr(element, "attributes", None)
    if attributes is None:
        raise InvalidRecord(argument, f"attribute {name!r}: a {type(element).__name__} has no attributes")
    if name not in attributes:
        raise InvalidRecord(
            argument, f"attribute {name!r} is missing; there are {', '.join(attributes) or 'none':.200}"
        )
    return attributes[name]


_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:?\d\d)?")


def event_time_us(value: Any) -> int:
    """Read a time: a datetime with a zone, a Beam or protobuf-like timestamp with ``micros``, RFC 3339 text with a
    zone, or Unix seconds.

    Returns:
        Microseconds since the Unix epoch; finer digits are cut off.

    Raises:
        InvalidRecord: none of these, or outside the years 1 to 9999.
    """
    if isinstance(value, datetime):
        return to_us(value)
    if isinstance(value, str):
        return to_us(parse_rfc3339(value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise InvalidRecord("event_time", f"expected a finite number of seconds, got {value}")
        if abs(value) > _MAX_UNIX_S:
            raise InvalidRecord(
                "event_time", f"{value} is too large for Unix seconds; divide milliseconds by 1000 in event_time="
            )
        return value * 1_000_000 if isinstance(value, int) else math.floor(value * 1_000_000)
    micros = getattr(value, "micros", None)
    if isinstance(micros, int) and is_representable(micros):
        return micros
    raise InvalidRecord(
        "event_time", f"expected a datetime, RFC 3339 text or Unix seconds, got {type(value).__name__}: {value!r:.80}"
    )


def parse_rfc3339(text: str) -> datetime:
    """Read ``2013-01-01T05:15:00Z``, with an offset instead of Z, with or without fractions of a second.

    Raises:
        InvalidRecord: anything else; a time without a zone in particular.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise InvalidRecord("event_time", f"{text!r:.80} is not an RFC 3339 time, such as 2013-01-01T05:15:00Z")
    day, clock, fraction, zone = match.groups()
    if zone is None:
        raise InvalidRecord("event_time", f"{text!r:.80} has no time zone; add Z or an offset such as +01:00")
    zone = "+00:00" if zone in "Zz" else zone if ":" in zone else f"{zone[:3]}:{zone[3:]}"
    try:
        return datetime.fromisoformat(f"{day}T{clock}.{(fraction or '0')[:6]:0<6}{zone}")
    except ValueError as err:
        raise InvalidRecord("event_time", f"{text!r:.80}: {err}") from None
