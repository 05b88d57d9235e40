"""Decodes elements to records in which fields are looked up: messages, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Hashable, Mapping
from functools import cache, partial
from typing import Any

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.model import WrittenFloat

BOM = "\ufeff"
"""The byte order mark, which some writers put before a text; it does not belong to the text."""

_MESSAGE_MODULES = ("apache_beam.io.gcp.pubsub", "google.cloud.pubsub", "google.pubsub", "murmur_beam.model")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

# The csv module limits a field to 128 KB, to protect readers of long files. A record here is in memory already.
csv.field_size_limit(2**31 - 1)


def is_message(element: Any) -> bool:
    """Return whether an element is a Pub/Sub message: of Beam, of Google's clients, or a `murmur_beam.model.Message`.

    The class decides. A row with the columns ``data`` and ``attributes`` is an ordinary record.
    """
    return _is_message_class(type(element))  # type: ignore[arg-type]  # mypy takes type[Any] for not hashable


@cache
def _is_message_class(cls: Hashable) -> bool:
    assert isinstance(cls, type)
    if getattr(getattr(cls, "DESCRIPTOR", None), "full_name", None) == "google.pubsub.v1.PubsubMessage":
        return True  # this class names no module
    return any(
        base.__name__ in ("PubsubMessage", "Message") and str(base.__module__).startswith(_MESSAGE_MODULES)
        for base in cls.__mro__
    )


def payload_of(element: Any) -> Any:
    """The data of a message; any other element itself."""
    return element.data if is_message(element) else element


def decode_bytes(element: Any, *, exact: bool = False) -> Any:
    """Decode bytes and messages as JSON, and return any other element, text too, unchanged. The default decoder.

    A message without data is a record without fields: its content is in its attributes.

    Args:
        element: as it came.
        exact: see `decode_json`.

    Raises:
        InvalidRecord: see `decode_json`.
    """
    if type(element) is dict:
        return element
    payload = payload_of(element)
    if isinstance(payload, bytes):
        return _parse_json(payload, exact) if payload or payload is element else {}
    return {} if payload is None and payload is not element else payload


def decode_json(element: Any, *, exact: bool = False) -> dict[str, Any]:
    """Decode a JSON object in bytes, text or a message.

    Args:
        element: as it came.
        exact: make each number with a fraction or an exponent a `WrittenFloat`, which keeps its text.

    Raises:
        InvalidRecord: the bytes are not UTF-8, the text is not JSON, the JSON is not an object, or the object names a
            field twice (JSON readers differ in which of the two they use).
    """
    return _parse_json(payload_of(element), exact)


def decode_csv(element: Any, delimiter: str = ",") -> dict[str, str]:
    """Decode a header line and one record of CSV, in bytes, text or a message; all values are text.

    A field whose name is in the header twice cannot be looked up; the others can.

    Raises:
        InvalidRecord: the bytes are not UTF-8, quotes do not match, or header and record have different numbers of
            fields.
    """
    try:
        text = _text(payload_of(element))
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter))
    except csv.Error as err:
        raise InvalidRecord("payload", f"malformed CSV: {err}") from None
    if len(lines) != 2:
        raise InvalidRecord("payload", f"expected a CSV header and one record, got {len(lines)} records in all")
    header, fields = lines
    if len(header) != len(fields):
        raise InvalidRecord("payload", f"the CSV header names {len(header)} fields, the record has {len(fields)}")
    record = dict(zip(header, fields, strict=True))
    return record if len(record) == len(header) else _WithRepeatedNames(header, fields)


class _WithRepeatedNames(dict[str, str]):
    """A CSV record whose header repeats names; a lookup of a repeated name is an error."""

    def __init__(self, header: list[str], fields: list[str]) -> None:
        super().__init__((n, f) for n, f in zip(header, fields, strict=True) if header.count(n) == 1)
        self._header = header

    def __contains__(self, name: object) -> bool:
        return name in self._header

    def __missing__(self, name: str) -> str:
        if name in self._header:
            raise InvalidRecord("payload", f"the CSV header names {name!r} {self._header.count(name)} times")
        raise KeyError(name)


DECODERS: Mapping[str, Callable[[Any], Any]] = {"json": decode_json, "csv": decode_csv}

_DELIMITERS = {"tab": "\t", "\\t": "\t"}


def decoder_of(
    decode: str | Callable[[Any], Any] | None, delimiter: str | None, *, exact: bool = False
) -> Callable[[Any], Any]:
    """The function that the arguments ``decode`` and ``delimiter`` name.

    Args:
        decode: "json", "csv", a function of the element, or None for `decode_bytes`.
        delimiter: between the fields of CSV: one character, or "tab"; None for a comma.
        exact: keep the text of numbers in JSON, as `decode_json` does.

    Raises:
        ConfigurationError: the name is unknown, or the delimiter is invalid.
    """
    if delimiter is not None and decode != "csv":
        raise ConfigurationError("delimiter", "applies to CSV only; add decode='csv' (--decode csv)")
    if callable(decode):
        return decode
    if decode is None:
        return partial(decode_bytes, exact=True) if exact else decode_bytes
    if not isinstance(decode, str) or decode not in DECODERS:
        raise ConfigurationError("decode", f"expected {', '.join(DECODERS)} or a function, got {decode!r:.80}")
    if decode == "json" and exact:
        return partial(decode_json, exact=True)
    return DECODERS[decode] if delimiter is None else partial(decode_csv, delimiter=delimiter_of(delimiter))


def delimiter_of(text: str) -> str:
    r"""The delimiter that a text names: the character itself, or a tab as ``tab`` or ``\t``.

    Raises:
        ConfigurationError: the text is not one character, or a character with another meaning in CSV.
    """
    character = _DELIMITERS.get(text, text)
    if not isinstance(character, str) or len(character) != 1 or character in '"\r\n ' + BOM:
        raise ConfigurationError(
            "delimiter",
            f"expected one character, such as ; or tab, but not a quote, blank or line end; got {text!r:.80}",
        )
    return character


def _without_repeats(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) != len(members):
        names = [name for name, _ in members]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidRecord("payload", f"the JSON object names {repeated!r:.80} {names.count(repeated)} times")
    return found


# `json.loads` with a hook would make a decoder for each call.
_decode_json = json.JSONDecoder(object_pairs_hook=_without_repeats).decode
_decode_exactly = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_float=WrittenFloat).decode


def _parse_json(payload: Any, exact: bool) -> dict[str, Any]:
    try:
        record = _decode_exactly(_text(payload)) if exact else _decode_json(_text(payload))
    except InvalidRecord:
        raise
    except ValueError as err:  # not JSONDecodeError only: an int may have too many digits for Python
        raise InvalidRecord("payload", f"malformed JSON: {err}") from None
    except RecursionError:
        raise InvalidRecord("payload", "malformed JSON: nested too deeply") from None
    if not isinstance(record, dict):
        raise InvalidRecord("payload", f"expected a JSON object, got {type(record).__name__}")
    return record


def _text(payload: Any) -> str:
    """Return a text, or decode bytes, without a byte order mark."""
    if isinstance(payload, str):
        return payload.removeprefix(BOM)
    if not isinstance(payload, bytes):
        raise InvalidRecord("payload", f"expected bytes or text to decode, got {type(payload).__name__}")
    try:
        return payload.decode("utf-8").removeprefix(BOM)
    except UnicodeDecodeError as err:
        hint = "; it begins with the byte order mark of UTF-16" if payload.startswith(_UTF16_MARKS) else ""
        raise InvalidRecord("payload", f"not UTF-8: {err.reason} at byte {err.start}{hint}") from None
