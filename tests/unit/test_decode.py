"""Decoders: what they accept, what they refuse, and what counts as a message."""

from __future__ import annotations

import csv
import io
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from apache_beam import Row
from apache_beam.io.gcp.pubsub import PubsubMessage
from google.pubsub_v1 import types
from hypothesis import assume, given
from hypothesis import strategies as st

from murmur_beam.decode import DECODERS, decode_bytes, decode_csv, decode_json, decoder_of, is_message, payload_of
from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.model import Message
from tests.support.records import UNTIMED, Order, attempt, message


class TestDecodeBytes:
    def test_bytes_and_messages_are_json(self) -> None:
        """The default for elements from a queue or a file."""
        assert decode_bytes(b'{"a": 1}') == {"a": 1}
        assert decode_bytes(message(b'{"a": 1}')) == {"a": 1}

    @pytest.mark.parametrize("element", [{"a": 1}, "text", '{"a": 1}', 5, None, ("a",), Order("e1", 5, "c7")])
    def test_anything_else_is_returned_unchanged(self, element: Any) -> None:
        """A pipeline that has already parsed its elements needs no decoding."""
        assert decode_bytes(element) is element
        assert decode_bytes(message(element if element is not None else "x")) == (element or "x")

    def test_empty_bytes_are_not_json(self) -> None:
        """An empty line is a mistake, unlike a message without data."""
        with pytest.raises(InvalidRecord, match="payload: malformed JSON"):
            decode_bytes(b"")


class Raw(NamedTuple):
    """A row of a table of raw events, with the columns that a message has."""

    id: str
    data: bytes
    attributes: dict[str, str]
    message_id: str
    publish_time: str


RAW = ("e1", b'{"id": "other"}', {"id": "another"}, "m1", "2026-01-01T00:00:00Z")


@dataclass
class RawObject:
    """The same columns as attributes of an object."""

    id: str
    data: bytes
    attributes: dict[str, str]
    message_id: str = "m1"
    publish_time: str = ""
    ordering_key: str = ""


class OwnMessage(Message):
    """A user's class of messages."""


class TestMessages:
    @pytest.mark.parametrize(
        "element",
        [
            message(b"x"),
            PubsubMessage(b"x", {}, "m1"),
            types.PubsubMessage(data=b"x"),
            types.PubsubMessage.pb(types.PubsubMessage(data=b"x")),
            OwnMessage(b"x", {}, None, None, None),
        ],
        ids=lambda element: f"{type(element).__module__}.{type(element).__qualname__}",
    )
    def test_messages_of_beam_google_and_this_library_are_messages(self, element: Any) -> None:
        """Their data is the payload."""
        assert is_message(element)
        assert payload_of(element) == b"x"

    @pytest.mark.parametrize(
        "element",
        [
            Raw(*RAW),
            RawObject(*RAW[:3]),
            SimpleNamespace(data=b"x", attributes={}),
            SimpleNamespace(data=b"x", attributes={}, message_id="m1", publish_time=None, ordering_key=""),
            Row(data=b"x", attributes={}, message_id="m1"),
            {"data": b"x", "attributes": {}},
            OrderedDict(data=b"x", attributes={}),
        ],
        ids=lambda element: type(element).__name__,
    )
    def test_a_row_with_the_columns_of_a_message_is_a_record(self, element: Any) -> None:
        """A row of raw events has data and attributes too; its own fields count."""
        assert not is_message(element)
        assert payload_of(element) is element
        assert decode_bytes(element) is element


class TestDecodeJson:
    @pytest.mark.parametrize(
        ("element", "record"),
        [
            (b'{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
            ('{"a": "\\u00eb"}', {"a": "ë"}),
            (message('{"a": "ë"}'.encode()), {"a": "ë"}),
            (b' \r\n{"a": 1}\n', {"a": 1}),
            (b"{}", {}),
            (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
            ('\ufeff{"a": 1}', {"a": 1}),
            (message(b'\xef\xbb\xbf \n{"a": 1}'), {"a": 1}),
            (b'{"a": {"b": 1}, "c": {"b": 2}}', {"a": {"b": 1}, "c": {"b": 2}}),
        ],
    )
    def test_an_object_is_read(self, element: Any, record: Any) -> None:
        """From bytes, text or a message, also after a byte order mark."""
        assert decode_json(element) == record

    @pytest.mark.parametrize(
        ("element", "reason"),
        [
            (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
            (b'{"a": "\xc3', "not UTF-8: unexpected end of data at byte 7"),
            (
                '{"a": 1}'.encode("utf-16"),
                "not UTF-8: invalid start byte at byte 0; it begins with the byte",
            ),
            ('{"a": 1}'.encode("utf-16-le"), "malformed JSON"),
            (b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}', "malformed JSON: Expecting value"),
            (b'{"a": 1, "a": 2}', "the JSON object names 'a' 2 times"),
            (b'{"a": 1, "b": 2, "a": 1}', "the JSON object names 'a' 2 times"),
            (b'{"a": [{"b": 1, "\\u0062": 2}]}', "the JSON object names 'b' 2 times"),
            (b"", "malformed JSON: Expecting value"),
            (b"{", "malformed JSON: Expecting property name"),
            (b'{"a": 1} {"a": 2}', "malformed JSON: Extra data"),
            (b'{"a": 1,}', "malformed JSON"),
            (b"{'a': 1}", "malformed JSON"),
            (b'{"a": 01}', "malformed JSON"),
            (b'{"a": "\n"}', "malformed JSON: Invalid control character"),
            (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed JSON: nested too deeply"),
            (b"[" * 100_000, "malformed JSON: nested too deeply"),
            (b'{"a": ' + b"1" * 5000 + b"}", "malformed JSON: Exceeds the limit"),
            (b'[{"a": 1}]', "expected a JSON object, got list"),
            (b"null", "expected a JSON object, got NoneType"),
            (b'"text"', "expected a JSON object, got str"),
            (b"7", "expected a JSON object, got int"),
            (None, "expected bytes or text to decode, got NoneType"),
            ({"a": 1}, "expected bytes or text to decode, got dict"),
            (message(None), "expected bytes or text to decode, got NoneType"),
            (bytearray(b"{}"), "expected bytes or text to decode, got bytearray"),
        ],
    )
    def test_anything_but_a_json_object_is_refused_with_the_reason(self, element: Any, reason: str) -> None:
        """Always with an InvalidRecord that names the payload, whatever a source sends."""
        with pytest.raises(InvalidRecord) as caught:
            decode_json(element)
        assert caught.value.field == "payload"
        assert caught.value.problem.startswith(reason)
        assert len(str(caught.value)) < 250

    @UNTIMED
    @given(st.binary())
    def test_any_bytes_are_a_record_or_an_invalid_one(self, data: bytes) -> None:
        """No input makes a decoder fail in another way."""
        for decode in (decode_bytes, *DECODERS.values()):
            record = attempt(decode, InvalidRecord, data)
            assert record.field == "payload" if isinstance(record, InvalidRecord) else isinstance(record, dict)


class TestDecodeCsv:
    @pytest.mark.parametrize(
        ("element", "record"),
        [
            (b"a,b\n1,2", {"a": "1", "b": "2"}),
            (b"a,b\r\n1,2\r\n", {"a": "1", "b": "2"}),
            (b"a,b\r1,2", {"a": "1", "b": "2"}),
            ("a\n1", {"a": "1"}),
            (message(b"a\n1"), {"a": "1"}),
            (b"a,b\n,", {"a": "", "b": ""}),
            (b'a,b\n"x, y","say ""hi"""', {"a": "x, y", "b": 'say "hi"'}),
            (b'a,b\n"line 1\r\nline 2",2', {"a": "line 1\r\nline 2", "b": "2"}),
            (b'"a\nb",c\n1,2', {"a\nb": "1", "c": "2"}),
            (b"a, b\n1, 2", {"a": "1", " b": " 2"}),
            (b'a\nx"y', {"a": 'x"y'}),
            (b"\xef\xbb\xbfa,b\n1,2", {"a": "1", "b": "2"}),
            ("a\nZoë".encode(), {"a": "Zoë"}),
            ("\ufeffa,b\n1,2", {"a": "1", "b": "2"}),
            (message(b"\xef\xbb\xbfa,b\n1,2"), {"a": "1", "b": "2"}),
            (b'a\n"' + b"x" * 200_000 + b'"', {"a": "x" * 200_000}),
        ],
    )
    def test_a_header_and_a_record_are_read(self, element: Any, record: Any) -> None:
        """Quoted fields may hold commas, quotes and line ends; blanks belong to the text, a BOM does not."""
        assert decode_csv(element) == record

    @pytest.mark.parametrize(
        ("element", "reason"),
        [
            (b"", "expected a CSV header and one record, got 0 records in all"),
            (b"a,b", "expected a CSV header and one record, got 1 records in all"),
            (b"a,b\n", "expected a CSV header and one record, got 1 records in all"),
            (b"a,b\n1,2\n3,4", "expected a CSV header and one record, got 3 records in all"),
            (b"a,b\n1,2\n\n", "expected a CSV header and one record, got 3 records in all"),
            (b"a,b\n1", "the CSV header names 2 fields, the record has 1"),
            (b"a,b\n1,2,3", "the CSV header names 2 fields, the record has 3"),
            (b"a\n\n", "the CSV header names 1 fields, the record has 0"),
            (b'a,b\n"1,2', "malformed CSV: unexpected end of data"),
            (b'a,b\n"1"x,2', "malformed CSV: "),
            (b"a\n\xff", "not UTF-8: invalid start byte at byte 2"),
            ("a\n1".encode("utf-16"), "not UTF-8: invalid start byte at byte 0"),
            (5, "expected bytes or text to decode, got int"),
        ],
    )
    def test_malformed_csv_is_refused_with_the_reason(self, element: Any, reason: str) -> None:
        """A record is never padded, cut or guessed."""
        with pytest.raises(InvalidRecord) as caught:
            decode_csv(element)
        assert caught.value.field == "payload"
        assert caught.value.problem.startswith(reason)

    @UNTIMED
    @given(st.dictionaries(st.text(), st.text(), min_size=1))
    def test_what_the_csv_module_writes_is_read_back(self, record: dict[str, str]) -> None:
        """Whatever the names and values, except NUL, which Python 3.10 refuses."""
        assume("\0" not in "".join([*record, *record.values()]))
        assume(not next(iter(record)).startswith("\ufeff"))
        out = io.StringIO()
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows([record.keys(), record.values()])
        assert decode_csv(out.getvalue()) == record

    @pytest.mark.parametrize("name", ["b", "", "a b"])
    def test_a_duplicate_name_in_the_header_is_not_guessed(self, name: str) -> None:
        """The other fields are available; the duplicate one raises with the reason, also in a user's function."""
        record = decode_csv(f"a,{name},{name}\n1,2,3")
        assert record["a"] == "1"
        assert dict(record) == {"a": "1"}
        with pytest.raises(InvalidRecord, match=f"the CSV header names '{name}' 2 times"):
            record[name]
        with pytest.raises(KeyError):
            record["c"]

    @pytest.mark.parametrize(
        ("delimiter", "element"),
        [
            (";", b"a;b\n1,5;2"),
            ("tab", b"a\tb\n1,5\t2"),
            ("\\t", b"a\tb\n1,5\t2"),
            ("|", b'a|b\n"1,5"|2'),
            ("\u00b7", "a\u00b7b\n1,5\u00b72".encode()),
        ],
    )
    def test_fields_may_have_another_delimiter(self, delimiter: str, element: bytes) -> None:
        """One character, or the name of the tab."""
        assert decoder_of("csv", delimiter)(element) == {"a": "1,5", "b": "2"}

    @pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n", "\r", " ", "semicolon", 5])
    def test_an_impossible_delimiter_is_refused(self, delimiter: Any) -> None:
        """When the pipeline is built."""
        with pytest.raises(ConfigurationError, match=r"^delimiter: expected one character"):
            decoder_of("csv", delimiter)

    @pytest.mark.parametrize("decode", [None, "json", decode_csv])
    def test_a_delimiter_is_for_csv(self, decode: Any) -> None:
        """Beside anything else it would be without effect."""
        with pytest.raises(ConfigurationError, match=r"^delimiter: applies to CSV"):
            decoder_of(decode, ";")
