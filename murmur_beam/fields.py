"""Finds fields of a record by names, paths and templates, and a message's attributes and metadata.

    amount                the field of that name of a dict, or the attribute of an object
    user.country          a field of a field
    route/{from}-{to}     a template of fields, for keys and event ids; {{ and }} are braces
    =all                  the text after the equals sign, for every record
    attribute:NAME        an attribute of the message
    message:id            the message's id, set by Pub/Sub when it was published
    message:publish_time  the publish time that Pub/Sub set
    field:NAME            the field of exactly this name, whatever characters it contains

If the record has a field whose name is the whole text, the text means that field, so a column ``Sepal.Length`` needs no
escape. For messages, ``attribute:`` and ``message:`` never mean a field, so that a payload cannot replace them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from murmur_beam.decode import is_message
from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.model import ABSENT, NOT_NUMBERS, plain

Field = str | Callable[[Any], Any]
"""A function of the decoded record, or a text in one of the forms above."""

Getter = Callable[[Any, Any], Any]
"""A compiled `Field`: a function of the decoded record and of the element."""

MESSAGE_ID = "message:id"
"""Pub/Sub's own id of a message."""

PLAIN, ESCAPED = "plain", "escaped"
ID_FORMATS = (ESCAPED, PLAIN)
"""Formats of event ids from templates; see `compile_id`."""

_MISSING = object()
# Types without fields; their attributes are methods and properties.
_SCALARS = (str, bytes, bytearray, int, float, complex, list, set, frozenset, type(None))
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PREFIX = re.compile(r"(attribute|message|field):(.*)", re.DOTALL)


def compile_field(argument: str, field: Field, source: str | None = None) -> Getter:
    """Make the function that finds a field.

    Args:
        argument: the user's argument, for errors.
        field: a function, or a text in one of the forms of this module.
        source: prefix of message ids, which become SOURCE/ID.

    Raises:
        ConfigurationError: the text is invalid; the error names ``argument``.
    """
    if callable(field):
        function = field
        return lambda record, element: function(record)
    if not isinstance(field, str) or not field:
        raise ConfigurationError(argument, f"expected a field name, a template or a function, got {field!r:.80}")
    if field.startswith("="):
        literal = field[1:]
        return _or_named(field, lambda record, element: literal)
    if match := _PREFIX.fullmatch(field):
        return _prefixed(argument, field, match[1], match[2], source)
    if "{" in field or "}" in field:
        return _template(argument, field, source)
    return _path(argument, field)


def compile_text(argument: str, field: Field) -> Getter:
    """Make the function that finds a field as text: a number becomes its text, since a key may be a numeric id.

    Raises:
        ConfigurationError: see `compile_field`.
    """
    get = compile_field(argument, field)
    if callable(field):
        return lambda record, element: plain(get(record, element))

    def text(record: Any, element: Any) -> str:
        value = get(record, element)
        return value if type(value) is str else _scalar_text(argument, field, value)

    return text


def compile_keys(keys: Callable[[Any], Iterable[Any]] | tuple[Field, ...]) -> Getter:
    """Make the function that finds a record's keys.

    Args:
        keys: a function that returns the keys, or fields that give one key each.

    Raises:
        ConfigurationError: see `compile_field`.
    """
    if isinstance(keys, tuple):
        getters = [compile_text(argument_of(keys), key) for key in keys]
        if len(getters) == 1:
            (get,) = getters
            return lambda record, element: (get(record, element),)
        return lambda record, element: [get(record, element) for get in getters]
    function = keys

    def entities(record: Any, element: Any) -> Iterable[Any]:
        found = function(record)
        if isinstance(found, (str, bytes)) or not isinstance(found, Iterable):
            raise InvalidRecord("keys", f"the function must return a list of keys, got {found!r:.80}; for one use key=")
        # Run a generator here, so that its error is attributed to it.
        return found if isinstance(found, (list, tuple)) else list(found)

    return entities


def argument_of(keys: Callable[[Any], Iterable[Any]] | tuple[Field, ...]) -> str:
    """Name of the argument that the user gave the keys by: "key" or "keys"."""
    return "key" if isinstance(keys, tuple) and len(keys) == 1 else "keys"


def compile_id(field: Field, id_format: str, source: str | None) -> Getter:
    """Make the function that finds an event id.

    The format "escaped" keeps the parts of a template distinct: ``{a}-{b}`` makes ``x%2Dy-z`` of "x-y" and "z", and
    ``x-y-z`` of "x" and "y-z". In each part but the last, the character that follows the part and ``%`` are escaped as
    in a URL; two parts without text between them are joined by ``%.``. The format "plain" joins the parts unchanged,
    and omits the source from a message's id, as 0.1.0 did.

    Args:
        field: a function, or a text as in `compile_field`.
        id_format: one of `ID_FORMATS`.
        source: origin of the messages, such as a topic; message ids are unique within one source only.

    Raises:
        ConfigurationError: the field or the format is invalid; see `compile_field`.
    """
    if id_format not in ID_FORMATS:
        raise ConfigurationError("id_format", f"expected {' or '.join(ID_FORMATS)}, got {id_format!r:.80}")
    if id_format == PLAIN:
        return compile_field("event_id", field)
    if isinstance(field, str) and not field.startswith("=") and not _PREFIX.fullmatch(field) and "{" in field:
        return _template("event_id", field, source, kept_apart=True)
    return compile_field("event_id", field, source)


class ValueField(NamedTuple):
    """Where the value of one of several aggregates is.

    Attributes:
        name: of the aggregate, for errors.
        field: None if it needs no value.
        optional: whether a record without the field, or with None there, skips the aggregate.
    """

    name: str
    field: Field | None
    optional: bool


def compile_values(fields: tuple[ValueField, ...]) -> Getter:
    """Make the function that finds the values of several aggregates, as a tuple.

    Raises:
        ConfigurationError: see `compile_field`; names the aggregate.
    """
    getters = [_compile_value(*each) for each in fields]
    return lambda record, element: tuple([get(record, element) for get in getters])


def _compile_value(name: str, field: Field | None, optional: bool) -> Getter:
    if field is None:
        return lambda record, element: None
    get = compile_field(name, field)
    if not optional:
        return get

    def find(record: Any, element: Any) -> Any:
        try:
            value = get(record, element)
        except InvalidRecord:  # the field is missing
            return ABSENT
        return ABSENT if value is None else value

    return find


# ---- names and paths ----


def _lookup(value: Any, name: str) -> Any:
    """A member of a mapping or object, or _MISSING. A method does not count as a member."""
    if isinstance(value, Mapping):
        # Not get(): a defaultdict would invent the member, and `_WithRepeatedNames` raises an error for it.
        return value[name] if name in value else _MISSING  # noqa: SIM401
    if isinstance(value, _SCALARS) or (name.startswith("__") and name.endswith("__")):
        return _MISSING
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", ())
        if name in fields:
            return getattr(value, name)
        if not isinstance(getattr(type(value), name, None), property):
            return _MISSING
    found = getattr(value, name, _MISSING)
    return _MISSING if callable(found) else found


def _member(argument: str, name: str, value: Any) -> Any:
    found = _lookup(value, name)
    if found is not _MISSING:
        return found
    if isinstance(value, Mapping):
        there = f"the record has {', '.join(map(str, value))}" if value else "the record has no fields"
        raise InvalidRecord(argument, f"field {name!r} is missing; {there:.200}")
    hint = "; text is only parsed with decode='json' or 'csv'" if isinstance(value, str) else ""
    raise InvalidRecord(argument, f"field {name!r} is missing in a {type(value).__name__}{hint}")


def _or_named(name: str, get: Getter) -> Getter:
    """Find the record's field of exactly this name; if it has none, the result of ``get``."""

    def find(record: Any, element: Any) -> Any:
        if type(record) is dict:
            return record[name] if name in record else get(record, element)
        found = _lookup(record, name)
        return get(record, element) if found is _MISSING else found

    return find


def _path(argument: str, path: str) -> Getter:
    first, *others = path.split(".")

    def get_first(record: Any, element: Any) -> Any:
        if type(record) is dict and first in record:
            return record[first]
        return _member(argument, first, record)

    if not others:
        return get_first
    if not all((first, *others)):
        raise ConfigurationError(
            argument,
            f"{path!r} has a dot too many: a path is names joined by single dots; for a field of exactly this name "
            f"write field:{path}",
        )

    def get(record: Any, element: Any) -> Any:
        value = get_first(record, element)
        for other in others:
            value = _member(argument, other, value)
        return value

    return _or_named(path, get)


# ---- prefixes ----


def _prefixed(argument: str, field: str, kind: str, name: str, source: str | None) -> Getter:
    if kind == "field":
        if not name:
            raise ConfigurationError(argument, f"{field!r}: write field:NAME")
        return lambda record, element: _member(argument, name, record)
    if kind == "attribute":
        if not name:
            raise ConfigurationError(argument, f"{field!r}: write attribute:NAME")
        get: Getter = lambda record, element: _attribute(argument, name, element)  # noqa: E731
    elif name == "id":
        get = _message_id(argument, source)
    elif name == "publish_time":
        get = lambda record, element: _of_message(argument, name, element)  # noqa: E731
    else:
        raise ConfigurationError(argument, f"{field!r}: write message:id or message:publish_time")
    named = _or_named(field, get)
    return lambda record, element: get(record, element) if is_message(element) else named(record, element)


def _attribute(argument: str, name: str, element: Any) -> Any:
    attributes = element.attributes if is_message(element) else None
    if attributes is None:
        raise InvalidRecord(argument, f"attribute {name!r}: a {type(element).__name__} has no attributes")
    if name not in attributes:
        raise InvalidRecord(
            argument, f"attribute {name!r} is missing; the message has {', '.join(attributes) or 'no attributes':.200}"
        )
    return attributes[name]


def _message_id(argument: str, source: str | None) -> Getter:
    def get(record: Any, element: Any) -> Any:
        found = _of_message(argument, "message_id", element)
        return found if source is None else f"{source}/{found}"

    return get


def _of_message(argument: str, name: str, element: Any) -> Any:
    found = getattr(element, name, None) if is_message(element) else None
    if found is None or found == "":
        raise InvalidRecord(argument, f"field {name!r} is missing in a {type(element).__name__}")
    return found


# ---- templates ----

Part = tuple[str, str, Getter]
"""One part of a template: the literal text before a field, the field's name and its getter."""


def _template(argument: str, template: str, source: str | None, *, kept_apart: bool = False) -> Getter:
    """Find the record's field whose name is the template; if it has none, fill in the template."""
    parts, tail = _parts(argument, template, source)
    fields = [(*part, *escape) for part, escape in zip(parts, _escapes(parts, kept_apart), strict=True)]
    is_id = argument == "event_id"

    def get(record: Any, element: Any) -> Any:
        if type(record) is dict:
            if template in record:
                return record[template]
        elif (found := _lookup(record, template)) is not _MISSING:
            return found
        pieces = []
        for literal, name, find, escape, ends_with, table in fields:
            text = find(record, element)
            if type(text) is not str or (is_id and text in NOT_NUMBERS):
                text = _scalar_text(argument, name, text)
            if not text:
                # Otherwise events without this field would share one event id, or one key.
                raise InvalidRecord(argument, f"field {name!r} is empty")
            if table is not None and (escape in text or (ends_with and ends_with in text)):
                text = text.translate(table)
            pieces.append(literal)
            pieces.append(text)
        pieces.append(tail)
        return "".join(pieces)

    return get


def _parts(argument: str, template: str, source: str | None) -> tuple[list[Part], str]:
    """The parts of a template, and the literal text after the last one."""
    parts: list[Part] = []
    literal = ""
    end = 0
    for token in _TOKEN.finditer(template):
        literal += template[end : token.start()]
        end = token.end()
        if token[0] in ("{{", "}}"):
            literal += token[0][0]
        elif token[1] is None:
            raise ConfigurationError(
                argument, f"template {template!r}: a single {token[0]!r}; double it if it does not enclose a field"
            )
        elif not token[1] or (re.search(r"[:!]", token[1]) and not _PREFIX.fullmatch(token[1])):
            raise ConfigurationError(
                argument,
                f"template {template!r}: each pair of braces must hold the name of a field only; write a name that "
                "contains a colon or exclamation mark as {field:NAME}",
            )
        else:
            parts.append((literal, token[1], compile_field(argument, token[1], source)))
            literal = ""
    return parts, literal + template[end:]


def _escapes(parts: list[Part], kept_apart: bool) -> list[tuple[str, str, dict[int, str] | None]]:
    """For each part: the escape character, the character that ends the part, and the table that escapes both.

    Different parts therefore never make the same text: from left to right, each part ends at the first character of
    the literal that follows. The last part needs no escape. A literal between adjacent parts is added to ``parts``.
    """
    escapes: list[tuple[str, str, dict[int, str] | None]] = []
    for i in range(len(parts) - 1) if kept_apart else ():
        literal, name, find = parts[i + 1]
        # If the literal that follows begins with the escape character, use another one.
        escape = "~" if literal.startswith("%") else "%"
        escapes.append((escape, literal[:1], {ord(c): _escaped(c, escape) for c in (escape, *literal[:1])}))
        parts[i + 1] = (literal or f"{escape}.", name, find)
    return [*escapes, *[("", "", None)] * (len(parts) - len(escapes))]


def _escaped(character: str, escape: str) -> str:
    return "".join(f"{escape}{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _scalar_text(argument: str, field: Any, value: Any) -> str:
    if type(value) is not str:
        value = plain(value)
    if isinstance(value, str):
        if argument == "event_id" and value in NOT_NUMBERS:
            raise InvalidRecord(argument, f"field {field!r} is {value!r}, which stands for a missing value")
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRecord(argument, f"field {field!r} is {value}; a key or id needs a finite number")
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise InvalidRecord(argument, f"field {field!r} must be text or a number, got {value!r:.80}")
