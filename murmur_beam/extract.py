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
from typing import Any, NamedTuple, TypeGuard, TypeVar

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.model import SURELY_SHORT, Fields, check_entity, check_event_id, is_representable, to_us
from murmur_beam.monoids.base import Monoid
from murmur_beam.processor import make_fields

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

    A message without data is a record without fields: all it says stands in its attributes.

    Raises:
        InvalidRecord: as `decode_json`.
    """
    if type(element) is dict:
        return element
    payload = payload_of(element)
    if isinstance(payload, bytes):
        return _parse_json(payload) if payload or payload is element else {}
    return {} if payload is None and payload is not element else payload


def decode_json(element: Any) -> dict[str, Any]:
    """A JSON object in bytes, text or a message.

    Raises:
        InvalidRecord: bytes that are not UTF-8, text that is not JSON, JSON that is no object.
    """
    return _parse_json(payload_of(element))


def decode_csv(element: Any) -> dict[str, str]:
    """A header line and one record of CSV, in bytes, text or a message; all values are text. A byte order mark, as
    spreadsheets write it, is no part of the first field's name.

    Raises:
        InvalidRecord: bytes that are not UTF-8, quotes that do not match, or another number of fields than the
            header has.
    """
    try:
        text = _text(payload_of(element)).removeprefix("\ufeff")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as err:
        raise InvalidRecord("payload", f"malformed CSV: {err}") from None
    if len(lines) != 2:
        raise InvalidRecord("payload", f"expected a CSV header and one record, got {len(lines)} records in all")
    header, fields = lines
    if len(header) != len(fields):
        raise InvalidRecord("payload", f"the CSV header names {len(header)} fields, the record has {len(fields)}")
    return dict(zip(header, fields, strict=True))


DECODERS: Mapping[str, Callable[[Any], Any]] = {"json": decode_json, "csv": decode_csv}


def _parse_json(payload: Any) -> dict[str, Any]:
    try:
        record = json.loads(_text(payload))
    except ValueError as err:  # not only a JSONDecodeError: an int may have too many digits for Python
        raise InvalidRecord("payload", f"malformed JSON: {err}") from None
    except RecursionError:
        raise InvalidRecord("payload", "malformed JSON: nested too deeply") from None
    if not isinstance(record, dict):
        raise InvalidRecord("payload", f"expected a JSON object, got {type(record).__name__}")
    return record


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
    source: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keys, tuple):
            for key in self.keys:
                compile_text(_argument_of(self.keys), key)
        elif not callable(self.keys):
            raise ConfigurationError("keys", f"expected a function or a tuple of fields, got {self.keys!r:.80}")
        for name in ("value", "event_id", "event_time"):
            if getattr(self, name) is not None:
                compile_field(name, getattr(self, name))
        named = isinstance(self.decode, str) and self.decode in DECODERS
        if not (self.decode is None or callable(self.decode) or named):
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
        self._lift = monoid.lift
        self._need_id = need_id
        self._need_time = need_time
        decode = extraction.decode
        self._decode = decode_bytes if decode is None else DECODERS[decode] if isinstance(decode, str) else decode
        self._event_id = _optional("event_id", extraction.event_id)
        if extraction.event_id == "message:id" and extraction.source is not None:
            bare, source = self._event_id or _nothing, extraction.source
            self._event_id = lambda record, element: f"{source}/{bare(record, element)}"
        self._event_time = _optional("event_time", extraction.event_time)
        self._value = _optional("value", extraction.value) or _nothing
        if decode == "csv" and isinstance(extraction.value, str):
            # In CSV everything is text; a user's own function has done its own parsing.
            text = self._value
            self._value = lambda record, element: monoid.parse(text(record, element))
        self._keys = _compile_keys(extraction.keys)
        self._keys_argument = _argument_of(extraction.keys)
        self._names = None if decode == "csv" else _names(extraction)

    def record(self, element: Any, timestamp_us: int, known: Known = _NOTHING_KNOWN) -> Fields:
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
            if self._names is not None and known is _NOTHING_KNOWN and type(decoded) is dict:
                plain = self._plain(self._names, decoded, element, timestamp_us)
                if plain is not None:
                    return plain
            part = "event_id"
            event_id = self._event_id_of(decoded, element, known)
            part = "event_time"
            event_time_us = self._event_time_of(decoded, element, timestamp_us, known)
            part = self._keys_argument
            keys = known.keys or self._keys(decoded, element)
            part = "value"
            value = self._value(decoded, element)
            return make_fields(self._monoid, event_id, event_time_us, keys, value, need_id=self._need_id)
        except Exception as err:
            # In no variable: the error would hold this frame and the frame the error, and with them the element until
            # the garbage collector comes.
            raise Rejected(
                "decode" if part == "decode" else "extract",
                self._find(element, timestamp_us, known),
                err if isinstance(err, InvalidRecord) else _explained(part, err),
            ) from err

    def _plain(self, names: _Names, decoded: dict[Any, Any], element: Any, timestamp_us: int) -> Fields | None:
        """The record of a dict whose fields are all it takes; None if anything is out of the ordinary."""
        key_name, event_id_name, value_name = names
        try:
            entity, event_id = decoded[key_name], decoded[event_id_name]
            if not (type(entity) is str and 0 < len(entity) <= SURELY_SHORT and entity.isascii()):
                return None
            if not (type(event_id) is str and event_id and event_id.isascii()):
                return None
            if self._event_time is not None or self._need_time:
                timestamp_us = self._event_time_of(decoded, element, timestamp_us, _NOTHING_KNOWN)
            delta = self._lift(None if value_name is None else decoded[value_name], timestamp_us)
        except Exception:
            return None
        return event_id, timestamp_us, (entity,), delta

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
            # Only what can be one: a letter must never fail to be written for the very text that made it one.
            _or_none(lambda: tuple(e for e in known.keys or self._keys(decoded, element) if _is_entity(e))),
        )


class _Names(NamedTuple):
    """Of the fields of a dict that hold a record's parts; no value means that none is needed."""

    key: str
    event_id: str
    value: str | None


def _names(extraction: Extraction) -> _Names | None:
    """None if key, event id or value is anything but the name of a field: a function, a template, a path."""
    keys = extraction.keys
    if not (isinstance(keys, tuple) and len(keys) == 1 and _is_name(keys[0]) and _is_name(extraction.event_id)):
        return None
    if not (extraction.value is None or _is_name(extraction.value)):
        return None
    return _Names(keys[0], extraction.event_id, extraction.value)


def _is_name(field: Field | None) -> TypeGuard[str]:
    return isinstance(field, str) and field.isidentifier()


def _or_none(function: Callable[[], T]) -> T | None:
    try:
        return function()
    except Exception:
        return None


def _is_entity(entity: object) -> bool:
    return _or_none(lambda: check_entity(entity)) is not None


def _explained(part: str, err: Exception) -> InvalidRecord:
    """What a user's function raised, with the argument it was given as."""
    return InvalidRecord(part, f"{type(err).__name__}: {text_of(err)}")


def text_of(err: BaseException) -> str:
    """The text of an error, or a note that it has none: it is a user's class, and must not fail a second time."""
    try:
        return str(err)
    except Exception as second:
        return f"(its text cannot be shown: {type(second).__name__})"


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
    kind, colon, name = field.partition(":")
    if kind == "attribute" and colon:
        if not name:
            raise ConfigurationError(argument, f"{field!r}: write attribute:NAME")
        return lambda record, element: _attribute(argument, name, element)
    if kind == "message" and colon:
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
        getters = [compile_text(_argument_of(keys), key) for key in keys]
        if len(getters) == 1:
            (get,) = getters
            return lambda record, element: (get(record, element),)
        return lambda record, element: [get(record, element) for get in getters]
    function = keys

    def entities(record: Any, element: Any) -> Iterable[Any]:
        found = function(record)
        if isinstance(found, (str, bytes)) or not isinstance(found, Iterable):
            raise InvalidRecord("keys", f"the function must return a list of keys, got {found!r:.80}; for one use key=")
        # A generator runs here and not later, so that what it raises is blamed on it.
        return found if isinstance(found, (list, tuple)) else list(found)

    return entities


def _argument_of(keys: Callable[[Any], Iterable[Any]] | tuple[Field, ...]) -> str:
    """As which argument the user has given them."""
    return "key" if isinstance(keys, tuple) and len(keys) == 1 else "keys"


def _optional(argument: str, field: Field | None) -> Getter | None:
    return None if field is None else compile_field(argument, field)


def _nothing(record: Any, element: Any) -> Any:
    return None


def _template(argument: str, template: str) -> Getter:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as err:
        raise ConfigurationError(argument, f"template {template!r}: {err}") from None
    parts: list[tuple[str, str, Getter | None]] = []
    for literal, name, spec, conversion in parsed:
        if spec or conversion or name == "":
            raise ConfigurationError(
                argument, f"template {template!r}: each pair of braces takes the name of a field, and nothing else"
            )
        parts.append((literal, name or "", compile_field(argument, name) if name else None))

    def fill(record: Any, element: Any) -> str:
        texts = []
        for literal, name, get in parts:
            texts.append(literal)
            if get is not None:
                text = _scalar_text(argument, name, get(record, element))
                if not text:
                    # Events that lack the same field would pass for one event, or for one key.
                    raise InvalidRecord(argument, f"field {name!r} is empty")
                texts.append(text)
        return "".join(texts)

    return fill


def _scalar_text(argument: str, field: Any, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise InvalidRecord(argument, f"field {field!r} must be text or a number, got {value!r:.80}")


def _path(argument: str, path: str) -> Getter:
    first, *others = path.split(".")
    if not all((first, *others)):
        raise ConfigurationError(argument, f"{path!r} has a dot too many: a path is names with single dots between")

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
    if isinstance(value, str):  # whose attributes are methods, such as title, and never fields
        raise InvalidRecord(
            argument, f"field {name!r} is missing in a str; text is only parsed with decode='json' or 'csv'"
        )
    try:
        return getattr(value, name)
    except AttributeError:
        raise InvalidRecord(argument, f"field {name!r} is missing in a {type(value).__name__}") from None


def _attribute(argument: str, name: str, element: Any) -> Any:
    attributes = getattr(element, "attributes", None)
    if attributes is None:
        raise InvalidRecord(argument, f"attribute {name!r}: a {type(element).__name__} has no attributes")
    if name not in attributes:
        raise InvalidRecord(
            argument, f"attribute {name!r} is missing; there are {', '.join(attributes) or 'none':.200}"
        )
    return attributes[name]


# Hour 24 is refused here, since not every version of Python does so.
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ]((?:[01]\d|2[0-3]):\d\d:\d\d)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:?\d\d)?", re.ASCII
)


def event_time_us(value: Any) -> int:
    """Read a time: a datetime with a zone, a Beam or protobuf-like timestamp with ``micros``, RFC 3339 text with a
    zone, or Unix seconds.

    Returns:
        Microseconds since the Unix epoch. Finer digits of a text are cut off; a float, which is seldom exact, is
        rounded.

    Raises:
        InvalidRecord: none of these, or outside the years 1 to 9999.
    """
    if isinstance(value, datetime):
        return to_us(value)
    if isinstance(value, str):
        return to_us(parse_rfc3339(value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        time_us = _unix_us(value)
    elif isinstance(getattr(value, "micros", None), int):
        time_us = value.micros
    else:
        raise InvalidRecord(
            "event_time",
            f"expected a datetime, RFC 3339 text or Unix seconds, got {type(value).__name__}: {value!r:.80}",
        )
    if not is_representable(time_us):
        raise InvalidRecord("event_time", f"{value!r:.80} lies outside the years 1 to 9999 in UTC")
    return time_us


def _unix_us(seconds: int | float) -> int:
    if isinstance(seconds, float) and not math.isfinite(seconds):
        raise InvalidRecord("event_time", f"expected a finite number of seconds, got {seconds}")
    if abs(seconds) > _MAX_UNIX_S:
        raise InvalidRecord(
            "event_time", f"{seconds!r:.80} is too large for Unix seconds; divide milliseconds by 1000 in event_time="
        )
    return seconds * 1_000_000 if isinstance(seconds, int) else round(seconds * 1_000_000)


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
