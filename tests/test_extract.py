"""What a field spec finds, what a decoder takes, which times are times, and what is left of an element that fails."""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError
from murmur_beam.extract import (
    DECODERS,
    Extraction,
    Extractor,
    Known,
    Rejected,
    compile_field,
    compile_text,
    decode_bytes,
    decode_csv,
    decode_json,
    event_time_us,
    parse_rfc3339,
    payload_of,
    text_of,
)
from murmur_beam.model import EPOCH, MAX_ENTITY_BYTES, Record, to_us
from murmur_beam.monoids import Count, First, Max, Monoid, SetUnion, Sum

UNTIMED = settings(deadline=None)
"""For properties: a busy machine is no failure."""

UTC = timezone.utc
WHEN = datetime(2013, 1, 1, 5, 15, tzinfo=UTC)
WHEN_US = 1_357_017_300_000_000
SECOND_US = 1_000_000
BEAM_MIN_US, BEAM_MAX_US = -9_223_372_036_854_775_000, 9_223_372_036_854_775_000
"""The timestamps by which Beam says "none", in microseconds."""
FIRST_US, LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The first and the last microsecond of the years 1 to 9999."""


@dataclass
class Message:
    """What Pub/Sub's messages look like, to whoever does not import Beam."""

    data: Any = b"{}"
    attributes: Any = field(default_factory=dict)
    message_id: Any = "m1"
    publish_time: Any = WHEN


class Micros(NamedTuple):
    """What Beam's Timestamp looks like."""

    micros: Any


class Order(NamedTuple):
    """A record that is no dict."""

    id: str
    amount: int
    customer: Any


class Unspeakable(Exception):
    """An error whose text raises another."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def find(spec: Any, record: Any = None, element: Any = None, argument: str = "value") -> Any:
    """What a field spec finds."""
    return compile_field(argument, spec)(record, element)


def problem(spec: Any, record: Any = None, element: Any = None) -> str:
    """Why it finds nothing; the argument is named."""
    with pytest.raises(InvalidRecord) as caught:
        find(spec, record, element)
    assert caught.value.field == "value"
    return caught.value.problem


def refusal(make: Callable[[], object], argument: str) -> str:
    """Why an argument is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.argument == argument
    return caught.value.problem


def attempt(function: Callable[..., Any], error: type[Exception], *arguments: Any) -> Any:
    """What a function returns, or the one error it may raise."""
    try:
        return function(*arguments)
    except error as err:
        return err


class Records(Extractor):
    """One whose records can be asked for their parts by name."""

    def record(self, *arguments: Any) -> Record:
        return Record(*super().record(*arguments))


def extractor(
    monoid: Monoid[Any] | None = None, need_id: bool = True, need_time: bool = False, **parts: Any
) -> Records:
    """An extractor of orders, unless told otherwise."""
    given_parts = {"keys": ("customer",), "value": "amount", "event_id": "id", **parts}
    return Records(Extraction(**given_parts), monoid or Sum(), need_id=need_id, need_time=need_time)


ORDER = {"id": "e1", "amount": 5, "customer": "c7", "at": "2013-01-01T05:15:00Z"}


def rejected(by: Extractor, element: Any = ORDER, timestamp_us: int = 0, *known: Known) -> Rejected:
    """The rejection of an element."""
    with pytest.raises(Rejected) as caught:
        by.record(element, timestamp_us, *known)
    return caught.value


def raiser(error: BaseException) -> Callable[[Any], Any]:
    """A user's function with a bug."""

    def function(record: Any) -> Any:
        raise error

    return function


class TestNames:
    @pytest.mark.parametrize(
        "record",
        [
            {"amount": 5},
            OrderedDict(amount=5),
            defaultdict(int, amount=5),
            SimpleNamespace(amount=5),
            Order("e1", 5, "c7"),
            namedtuple("Plain", "amount")(5),
        ],
        ids=lambda record: type(record).__name__,
    )
    def test_a_name_is_a_key_of_a_mapping_or_an_attribute_of_anything_else(self, record: Any) -> None:
        """The same spec reads dicts, other mappings, objects and namedtuples."""
        assert find("amount", record) == 5

    @pytest.mark.parametrize("value", [None, 0, "", False, [], {"a": 1}])
    def test_a_field_is_handed_on_as_it_is(self, value: Any) -> None:
        """Null and other false values are found like any other: what they mean is not decided here."""
        assert find("x", {"x": value}) is value

    def test_a_missing_field_is_named_with_those_that_are_there(self) -> None:
        """A typo shows at once, also in a mapping with keys that are no text."""
        assert problem("amuont", {"amount": 5, 7: "x"}) == "field 'amuont' is missing; there are amount, 7"
        assert problem("amount", {}) == "field 'amount' is missing; there are none"

    def test_a_long_list_of_fields_is_cut(self) -> None:
        """A record of a thousand fields does not fill the log."""
        text = problem("x", {f"field{i}": i for i in range(1000)})
        assert len(text) < 250
        assert "field0, field1" in text

    def test_a_default_dict_makes_up_no_field(self) -> None:
        """Looking for a field must neither find nor add one that is not there."""
        record: Mapping[str, int] = defaultdict(int)
        assert "missing" in problem("amount", record)
        assert not record

    def test_an_attribute_that_is_missing_is_named_with_the_type(self) -> None:
        """An object does not list its fields, so its type must do."""
        assert problem("total", Order("e1", 5, "c7")) == "field 'total' is missing in a Order"
        assert problem("total", None) == "field 'total' is missing in a NoneType"

    @pytest.mark.parametrize("name", ["amount", "title", "count"])
    def test_text_has_no_fields(self, name: str) -> None:
        """Lines of text that nobody parsed say so, even where the name is that of a method of str."""
        assert (
            problem(name, "a,b")
            == f"field '{name}' is missing in a str; text is only parsed with decode='json' or 'csv'"
        )

    @pytest.mark.parametrize("name", ["message", "attribute", "foo:bar", "data:", "größe", "a b", "a[0]", "0", "-1"])
    def test_names_may_be_any_text(self, name: str) -> None:
        """Only what the module's table names has a meaning of its own; "message" alone is a field like any other."""
        assert find(name, {name: 5}) == 5

    def test_a_property_that_raises_is_not_taken_for_missing(self) -> None:
        """Its own error comes through, for the caller to explain."""

        class Broken:
            amount = property(raiser(KeyError("inner")))

        with pytest.raises(KeyError, match="inner"):
            find("amount", Broken())


class TestPaths:
    def test_a_path_goes_through_mappings_and_objects(self) -> None:
        """Dots lead from one level to the next, whatever each of them is."""
        record = {"order": Order("e1", 5, {"address": SimpleNamespace(country="NL")})}
        assert find("order.customer.address.country", record) == "NL"
        assert find("order.amount", record) == 5

    def test_a_path_names_the_level_that_is_missing(self) -> None:
        """Of a long path it tells which field is not there, and what is there instead."""
        record = {"user": {"name": "Zoë", "home": None}}
        assert problem("user.country", record) == "field 'country' is missing; there are name, home"
        assert problem("usr.country", record) == "field 'usr' is missing; there are user"
        assert problem("user.home.city", record) == "field 'city' is missing in a NoneType"
        assert "text is only parsed" in problem("user.name.title", record)

    @pytest.mark.parametrize("path", [".", "a.", ".a", "a..b", "..", "x-{a.}"])
    def test_a_path_with_a_dot_too_many_is_refused_at_once(self, path: str) -> None:
        """No record could ever have such a field."""
        assert "a dot too many" in refusal(lambda: compile_field("value", path), "value")


class TestTemplates:
    @pytest.mark.parametrize(
        ("template", "text"),
        [
            ("{from}", "AMS"),
            ("route/{from}-{to}", "route/AMS-JFK"),
            ("{from}{to}", "AMSJFK"),
            ("{from}/{from}", "AMS/AMS"),
            ("{n}|{half}|{late}", "7|0.5|true"),
            ("{plane.tail}", "N1"),
            ("{{{from}}}", "{AMS}"),
            ("{{from}}", "{from}"),
            ("}}{{", "}{"),
            ("{message}", "hi"),
        ],
    )
    def test_a_template_puts_fields_into_a_text(self, template: str, text: str) -> None:
        """Names and paths in braces become their values, double braces become single ones, the rest stays."""
        record = {
            "from": "AMS",
            "to": "JFK",
            "n": 7,
            "half": 0.5,
            "late": True,
            "plane": {"tail": "N1"},
            "message": "hi",
        }
        assert find(template, record) == text

    @UNTIMED
    @given(st.text(), st.text(), st.text(min_size=1))
    def test_any_text_survives_around_and_inside_a_template(self, before: str, after: str, value: str) -> None:
        """With its braces doubled, a text means itself; a value is never read as a template."""

        def escaped(text: str) -> str:
            return text.replace("{", "{{").replace("}", "}}")

        assume(not before.startswith("="))
        assert find(f"{escaped(before)}{{x}}{escaped(after)}", {"x": value}) == before + value + after

    def test_an_empty_field_in_a_template_is_refused(self) -> None:
        """Two events that both lack a part of their id must not pass for one and the same."""
        with pytest.raises(InvalidRecord, match=r"^event_id: field 'b' is empty$"):
            compile_field("event_id", "{a}/{b}")({"a": "x", "b": ""}, None)

    @UNTIMED
    @given(st.text(min_size=1))
    def test_any_text_is_a_spec_or_is_refused(self, spec: str) -> None:
        """No text makes the compiler itself fail: it either makes a getter or a ConfigurationError."""
        made = attempt(lambda: compile_field("value", spec), ConfigurationError)
        assert made.argument == "value" if isinstance(made, ConfigurationError) else callable(made)

    @pytest.mark.parametrize(
        ("template", "reason"),
        [
            ("a{", "Single '{'"),
            ("a}", "Single '}'"),
            ("{a", "expected '}'"),
            ("{}", "each pair of braces takes the name of a field, and nothing else"),
            ("x{}y{a}", "each pair of braces"),
            ("{a!r}", "each pair of braces"),
            ("{a:>10}", "each pair of braces"),
            ("{attribute:x}", "each pair of braces"),
            ("{a{b}}", "'{' in field name"),
        ],
    )
    def test_a_template_that_makes_no_sense_is_refused_at_once(self, template: str, reason: str) -> None:
        """The message names the argument and shows the template."""
        text = refusal(lambda: compile_field("event_id", template), "event_id")
        assert reason in text
        assert repr(template) in text

    @pytest.mark.parametrize("value", [None, [], {}, ["a"], WHEN])
    def test_only_text_and_numbers_fit_into_a_template(self, value: Any) -> None:
        """A null or a list would make keys that nobody meant."""
        assert problem("a-{x}", {"x": value}) == f"field 'x' must be text or a number, got {value!r:.80}"

    def test_a_missing_field_of_a_template_is_named(self) -> None:
        """As it is outside of a template."""
        assert problem("{x}-{y}", {"x": 1}) == "field 'y' is missing; there are x"


class TestLiterals:
    @pytest.mark.parametrize("text", ["all", "", "{x}", "a.b", "attribute:x", "=", " padded "])
    def test_what_follows_an_equals_sign_is_the_value(self, text: str) -> None:
        """Whatever it looks like, and whatever the record."""
        assert find(f"={text}", object()) == text


class TestAttributes:
    def test_an_attribute_comes_from_the_message_and_not_from_the_record(self) -> None:
        """The decoded record may hold a field of the same name."""
        message = Message(attributes={"id": "from attributes", "a:b": "c"})
        assert find("attribute:id", {"id": "from the record"}, message) == "from attributes"
        assert find("attribute:a:b", {}, message) == "c"

    @pytest.mark.parametrize(
        ("element", "text"),
        [
            (Message(attributes={"a": "1", "b": "2"}), "attribute 'id' is missing; there are a, b"),
            (Message(attributes={}), "attribute 'id' is missing; there are none"),
            (Message(attributes=None), "attribute 'id': a Message has no attributes"),
            (b"{}", "attribute 'id': a bytes has no attributes"),
            ({"attributes": {"id": "x"}}, "attribute 'id': a dict has no attributes"),
        ],
    )
    def test_a_missing_attribute_is_explained(self, element: Any, text: str) -> None:
        """It says which are there, or that the element is no message."""
        assert problem("attribute:id", {}, element) == text

    def test_an_attribute_without_a_name_is_refused_at_once(self) -> None:
        """It could never be there."""
        assert "write attribute:NAME" in refusal(lambda: compile_field("key", "attribute:"), "key")


class TestMessageFields:
    def test_id_and_publish_time_come_from_the_message(self) -> None:
        """Even where the record has fields of these names."""
        record = {"id": "no", "message_id": "no", "publish_time": "no"}
        assert find("message:id", record, Message()) == "m1"
        assert find("message:publish_time", record, Message()) == WHEN

    @pytest.mark.parametrize("spec", ["message:", "message:data", "message:message_id", "message:ID"])
    def test_there_are_no_others(self, spec: str) -> None:
        """A wrong name is refused when the pipeline is built, not on the first record."""
        text = refusal(lambda: compile_field("event_id", spec), "event_id")
        assert text == f"{spec!r}: write message:id or message:publish_time"

    def test_an_element_that_is_no_message_is_named(self) -> None:
        """Bytes that were read without attributes have no id."""
        assert problem("message:id", {}, b"{}") == "field 'message_id' is missing in a bytes"


class TestFunctions:
    def test_a_function_gets_the_decoded_record(self) -> None:
        """And its result is taken as it is, a class being as good a function as any."""
        assert find(lambda record: record["x"] * 2, {"x": 4}, "the element") == 8
        assert find(int, "7") == 7
        assert compile_text("key", lambda record: record)(7, None) == 7

    @pytest.mark.parametrize("spec", [None, "", 5, ["x"], b"x"])
    def test_what_is_neither_text_nor_function_is_refused(self, spec: Any) -> None:
        """The message shows what was given."""
        text = refusal(lambda: compile_field("value", spec), "value")
        assert text == f"expected a field name, a template or a function, got {spec!r}"


class TestTexts:
    @pytest.mark.parametrize(("value", "text"), [("a", "a"), (7, "7"), (-1, "-1"), (0.5, "0.5"), (True, "true")])
    def test_a_number_as_key_becomes_its_text(self, value: Any, text: str) -> None:
        """As JSON writes it, so that the same record gives the same key in any language."""
        got = compile_text("key", "x")({"x": value}, None)
        assert got == text
        assert type(got) is str

    @pytest.mark.parametrize("value", [None, [], {"a": 1}, b"x"])
    def test_anything_else_is_refused(self, value: Any) -> None:
        """A null is no key named "None"."""
        with pytest.raises(InvalidRecord) as caught:
            compile_text("key", "x")({"x": value}, None)
        assert str(caught.value) == f"key: field 'x' must be text or a number, got {value!r}"


class TestDecodeBytes:
    def test_bytes_and_messages_are_json(self) -> None:
        """The default for what comes from a queue or a file."""
        assert decode_bytes(b'{"a": 1}') == {"a": 1}
        assert decode_bytes(Message(b'{"a": 1}')) == {"a": 1}

    @pytest.mark.parametrize("element", [{"a": 1}, "text", '{"a": 1}', 5, None, ("a",), Order("e1", 5, "c7")])
    def test_anything_else_is_taken_as_it_is(self, element: Any) -> None:
        """A pipeline that has parsed its elements already is left alone."""
        assert decode_bytes(element) is element
        assert decode_bytes(Message(element if element is not None else "x")) == (element or "x")

    @pytest.mark.parametrize("data", [b"", None])
    def test_a_message_without_data_has_no_fields(self, data: Any) -> None:
        """Its attributes may say it all, so it is no malformed JSON; None and b"" (as replayed) are the same."""
        message = Message(data, {"id": "e1", "user": "c7"})
        assert decode_bytes(message) == {}
        record = extractor(Count(), keys=("attribute:user",), value=None, event_id="attribute:id").record(message, 5)
        assert record == Record("e1", 5, ("c7",), 1)
        assert str(rejected(extractor(), message).error) == "event_id: field 'id' is missing; there are none"

    def test_empty_bytes_are_no_json(self) -> None:
        """An empty line is a mistake, unlike a message without data."""
        with pytest.raises(InvalidRecord, match="payload: malformed JSON"):
            decode_bytes(b"")

    def test_a_message_is_what_has_data_and_attributes(self) -> None:
        """One of the two is not enough."""
        assert payload_of(Message(b"x")) == b"x"
        for element in (SimpleNamespace(data=b"x"), SimpleNamespace(attributes={})):
            assert payload_of(element) is element


class TestDecodeJson:
    @pytest.mark.parametrize(
        ("element", "record"),
        [
            (b'{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
            ('{"a": "\\u00eb"}', {"a": "ë"}),
            (Message('{"a": "ë"}'.encode()), {"a": "ë"}),
            (b' \r\n{"a": 1}\n', {"a": 1}),
            (b"{}", {}),
            (b'{"a": 1, "a": 2}', {"a": 2}),
        ],
    )
    def test_an_object_is_read(self, element: Any, record: Any) -> None:
        """From bytes, text or a message; of a name given twice the last counts."""
        assert decode_json(element) == record

    @pytest.mark.parametrize(
        ("element", "reason"),
        [
            (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
            (b'{"a": "\xc3', "not UTF-8: unexpected end of data at byte 7"),
            ('{"a": 1}'.encode("utf-16"), "not UTF-8: invalid start byte at byte 0"),
            ('{"a": 1}'.encode("utf-16-le"), "malformed JSON"),
            (b'\xef\xbb\xbf{"a": 1}', "malformed JSON: Unexpected UTF-8 BOM"),
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
            (Message(None), "expected bytes or text to decode, got NoneType"),
            (bytearray(b"{}"), "expected bytes or text to decode, got bytearray"),
        ],
    )
    def test_what_is_no_json_object_is_refused_with_the_reason(self, element: Any, reason: str) -> None:
        """Always an InvalidRecord of the payload: nothing that a source sends may end in another error."""
        with pytest.raises(InvalidRecord) as caught:
            decode_json(element)
        assert caught.value.field == "payload"
        assert caught.value.problem.startswith(reason)
        assert len(str(caught.value)) < 250

    @pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_a_number_that_json_has_not_hurts_only_where_it_is_used(self, literal: str) -> None:
        """Python's writers produce NaN, so such a record is read; but it cannot be folded, nor be a time."""
        element = f'{{"id": "e1", "amount": 5, "customer": "c7", "bad": {literal}}}'.encode()
        assert extractor().record(element, 0).delta == 5
        for parts in ({"value": "bad"}, {"event_time": "bad"}):
            assert rejected(extractor(Max(), **parts), element).stage == "extract"

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
            (Message(b"a\n1"), {"a": "1"}),
            (b"a,b\n,", {"a": "", "b": ""}),
            (b'a,b\n"x, y","say ""hi"""', {"a": "x, y", "b": 'say "hi"'}),
            (b'a,b\n"line 1\r\nline 2",2', {"a": "line 1\r\nline 2", "b": "2"}),
            (b'"a\nb",c\n1,2', {"a\nb": "1", "c": "2"}),
            (b"a, b\n1, 2", {"a": "1", " b": " 2"}),
            (b'a\nx"y', {"a": 'x"y'}),
            (b"\xef\xbb\xbfa,b\n1,2", {"a": "1", "b": "2"}),
            ("a\nZoë".encode(), {"a": "Zoë"}),
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
            (b'a\n"' + b"x" * 200_000 + b'"', "malformed CSV: field larger than field limit"),
            (b"a\n\xff", "not UTF-8: invalid start byte at byte 2"),
            ("a\n1".encode("utf-16"), "not UTF-8: invalid start byte at byte 0"),
            (5, "expected bytes or text to decode, got int"),
        ],
    )
    def test_what_is_no_csv_record_is_refused_with_the_reason(self, element: Any, reason: str) -> None:
        """A record is never filled up, cut or guessed at."""
        with pytest.raises(InvalidRecord) as caught:
            decode_csv(element)
        assert caught.value.field == "payload"
        assert caught.value.problem.startswith(reason)

    @UNTIMED
    @given(st.dictionaries(st.text(), st.text(), min_size=1))
    def test_what_the_csv_module_writes_is_read_back(self, record: dict[str, str]) -> None:
        """Whatever the names and values, but for NUL, which Python 3.10 refuses."""
        assume("\0" not in "".join([*record, *record.values()]))
        assume(not next(iter(record)).startswith("\ufeff"))
        out = io.StringIO()
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows([record.keys(), record.values()])
        assert decode_csv(out.getvalue()) == record


class TestEventTime:
    @pytest.mark.parametrize(
        ("value", "time_us"),
        [
            (WHEN, WHEN_US),
            (WHEN.astimezone(timezone(timedelta(hours=-8))), WHEN_US),
            ("2013-01-01T05:15:00Z", WHEN_US),
            ("2013-01-01t05:15:00z", WHEN_US),
            ("2013-01-01 05:15:00Z", WHEN_US),
            ("2013-01-01T06:15:00+01:00", WHEN_US),
            ("2013-01-01T06:15:00+0100", WHEN_US),
            ("2012-12-31T23:45:00-05:30", WHEN_US),
            ("2013-01-01T05:15:00-00:00", WHEN_US),
            ("2013-01-01T05:15:00.5Z", WHEN_US + 500_000),
            ("2013-01-01T05:15:00.000001Z", WHEN_US + 1),
            ("2013-01-01T05:15:00.123456789Z", WHEN_US + 123_456),
            ("2013-01-01T05:15:00.999999999+00:00", WHEN_US + 999_999),
            ("2013-01-01T00:00:00Z", WHEN_US - (5 * 3600 + 15 * 60) * SECOND_US),
            ("2013-01-01T23:59:59Z", WHEN_US + (18 * 3600 + 44 * 60 + 59) * SECOND_US),
            ("2013-01-01T19:15:00Z", WHEN_US + 14 * 3600 * SECOND_US),
            ("1969-12-31T23:59:59.9Z", -100_000),
            ("0001-01-01T00:00:00Z", FIRST_US),
            ("9999-12-31T23:59:59.999999999Z", LAST_US),
            (0, 0),
            (1_357_017_300, WHEN_US),
            (-1, -SECOND_US),
            (-1.5, -1_500_000),
            (1.001, 1_001_000),
            (1_357_017_300.123456, WHEN_US + 123_456),
            (0.0000006, 1),
            (FIRST_US // SECOND_US, FIRST_US),
            (10**11, 10**17),
            (Micros(WHEN_US), WHEN_US),
            (Micros(-1), -1),
            (Micros(FIRST_US), FIRST_US),
            (Micros(LAST_US), LAST_US),
        ],
    )
    def test_a_time_is_read(self, value: Any, time_us: int) -> None:
        """Datetimes with a zone, all forms of RFC 3339, Unix seconds, and what has ``micros``; always an int."""
        got = event_time_us(value)
        assert got == time_us
        assert type(got) is int

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (WHEN.replace(tzinfo=None), "has no time zone"),
            ("2013-01-01T05:15:00", "has no time zone; add Z or an offset such as +01:00"),
            ("2013-01-01", "is not an RFC 3339 time, such as 2013-01-01T05:15:00Z"),
            ("2013-01-01T05:15Z", "is not an RFC 3339 time"),
            ("2013-01-01T05:15:00.Z", "is not an RFC 3339 time"),
            ("2013-01-01T05:15:00.1234567890Z", "is not an RFC 3339 time"),
            ("2013-01-01T05:15:00,5Z", "is not an RFC 3339 time"),
            ("2013-01-01T05:15:00Z\n", "is not an RFC 3339 time"),
            (" 2013-01-01T05:15:00Z", "is not an RFC 3339 time"),
            ("2013-01-01T05:15:00+01", "is not an RFC 3339 time"),
            ("2013-01-01T05:15:00 +01:00", "is not an RFC 3339 time"),
            ("2013-01-01_05:15:00Z", "is not an RFC 3339 time"),
            ("20130101T051500Z", "is not an RFC 3339 time"),
            ("13-01-01T05:15:00Z", "is not an RFC 3339 time"),
            ("12013-01-01T05:15:00Z", "is not an RFC 3339 time"),
            ("\uff12\uff10\uff11\uff13-01-01T05:15:00Z", "is not an RFC 3339 time"),
            ("2013-01-01T05:15:00" + "Z" * 1000, "is not an RFC 3339 time"),
            ("1357017300", "is not an RFC 3339 time"),
            ("", "is not an RFC 3339 time"),
            ("2013-01-01T24:00:00Z", "is not an RFC 3339 time"),
            ("2013-01-01T29:00:00Z", "is not an RFC 3339 time"),
            ("2013-01-01T30:00:00Z", "is not an RFC 3339 time"),
            ("2016-12-31T23:59:60Z", "second must be in 0..59"),
            ("2013-01-01T05:60:00Z", "minute must be in 0..59"),
            ("2013-02-29T05:15:00Z", "day"),
            ("2013-13-01T05:15:00Z", "month must be in 1..12"),
            ("2013-01-01T05:15:00+24:00", "'2013-01-01T05:15:00+24:00': "),
            ("0000-01-01T00:00:00Z", "year 0 is out of range"),
            ("0001-01-01T00:00:00+00:01", "lies outside the years 1 to 9999 in UTC"),
            ("9999-12-31T23:59:59-00:01", "lies outside the years 1 to 9999 in UTC"),
            (math.nan, "expected a finite number of seconds, got nan"),
            (math.inf, "expected a finite number of seconds, got inf"),
            (-math.inf, "expected a finite number of seconds, got -inf"),
            (1_357_017_300_000, "is too large for Unix seconds; divide milliseconds by 1000"),
            (-1_357_017_300_000.0, "is too large for Unix seconds"),
            (10**11 + 1, "is too large for Unix seconds"),
            (10**400, "is too large for Unix seconds"),
            (FIRST_US // SECOND_US - 1, "lies outside the years 1 to 9999 in UTC"),
            (-(10.0**11), "lies outside the years 1 to 9999 in UTC"),
            (Micros(BEAM_MIN_US), "lies outside the years 1 to 9999 in UTC"),
            (Micros(BEAM_MAX_US), "lies outside the years 1 to 9999 in UTC"),
            (Micros(FIRST_US - 1), "lies outside the years 1 to 9999 in UTC"),
            (Micros(LAST_US + 1), "lies outside the years 1 to 9999 in UTC"),
            (Micros("5"), "expected a datetime, RFC 3339 text or Unix seconds, got Micros"),
            (True, "expected a datetime, RFC 3339 text or Unix seconds, got bool: True"),
            (None, "expected a datetime, RFC 3339 text or Unix seconds, got NoneType: None"),
            (b"2013-01-01T05:15:00Z", "expected a datetime, RFC 3339 text or Unix seconds, got bytes"),
            (WHEN.date(), "expected a datetime, RFC 3339 text or Unix seconds, got date"),
        ],
        ids=lambda value: str(value)[:40].encode("unicode_escape").decode(),
    )
    def test_what_is_no_time_is_refused_with_the_reason(self, value: Any, reason: str) -> None:
        """Always an InvalidRecord of the event time; nothing is guessed, least of all a zone."""
        with pytest.raises(InvalidRecord) as caught:
            event_time_us(value)
        assert caught.value.field == "event_time"
        assert reason in caught.value.problem
        assert len(caught.value.problem) < 250

    @UNTIMED
    @given(st.datetimes(), st.integers(-1439, 1439), st.sampled_from("Tt "), st.booleans())
    @example(datetime.min, 1, "T", True)
    @example(datetime.max, -1, "T", False)
    def test_a_datetime_and_its_text_are_the_same_time(
        self, local: datetime, offset_minutes: int, t: str, colon: bool
    ) -> None:
        """To the microsecond, over the whole calendar, with any offset."""
        time = local.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
        text = time.isoformat(t)
        if not colon:
            text = text[:-3] + text[-2:]
        expected = attempt(to_us, InvalidRecord, time)
        if isinstance(expected, InvalidRecord):
            for value in (time, text):
                with pytest.raises(InvalidRecord, match="lies outside the years 1 to 9999"):
                    event_time_us(value)
        else:
            assert event_time_us(time) == event_time_us(text) == expected
            assert parse_rfc3339(text) == time

    @UNTIMED
    @given(st.datetimes(datetime(1834, 1, 1), datetime(2106, 1, 1), timezones=st.just(UTC)))
    @example(EPOCH + timedelta(milliseconds=1001))
    def test_a_timestamp_in_float_seconds_is_exact_to_the_microsecond(self, time: datetime) -> None:
        """``datetime.timestamp()`` of any time of our age gives that time back, not one microsecond less."""
        assert event_time_us(time.timestamp()) == to_us(time)

    @UNTIMED
    @given(st.text(alphabet="0123456789TtZz:+-. "))
    def test_any_text_is_a_time_or_an_invalid_one(self, text: str) -> None:
        """No text makes the parser fail in another way."""
        time = attempt(event_time_us, InvalidRecord, text)
        assert time.field == "event_time" if isinstance(time, InvalidRecord) else FIRST_US <= time <= LAST_US


class TestExtraction:
    @pytest.mark.parametrize(
        ("parts", "argument", "reason"),
        [
            ({"keys": ("{",)}, "key", "template"),
            ({"keys": ("a", "{")}, "keys", "template"),
            ({"keys": ("",)}, "key", "expected a field name"),
            ({"keys": ("a", None)}, "keys", "expected a field name"),
            ({"keys": "a"}, "keys", "expected a function or a tuple of fields, got 'a'"),
            ({"keys": ["a"]}, "keys", "expected a function or a tuple of fields, got ['a']"),
            ({"keys": None}, "keys", "expected a function or a tuple of fields"),
            ({"value": ""}, "value", "expected a field name"),
            ({"value": "{}"}, "value", "template '{}'"),
            ({"event_id": "message:time"}, "event_id", "write message:id"),
            ({"event_time": 5}, "event_time", "expected a field name"),
            ({"decode": "xml"}, "decode", "expected json, csv or a function, got 'xml'"),
            ({"decode": ""}, "decode", "expected json, csv or a function"),
            ({"decode": []}, "decode", "expected json, csv or a function, got []"),
            ({"decode": b"json"}, "decode", "expected json, csv or a function"),
        ],
    )
    def test_a_part_that_makes_no_sense_names_its_argument(
        self, parts: dict[str, Any], argument: str, reason: str
    ) -> None:
        """All of them are looked at when it is made, before any worker is."""
        text = refusal(lambda: Extraction(**{"keys": ("a",), **parts}), argument)
        assert reason in text

    def test_it_cannot_be_changed(self) -> None:
        """What was checked stays checked."""
        with pytest.raises(AttributeError):
            Extraction(("a",)).value = ""  # type: ignore[misc]

    def test_it_is_a_value(self) -> None:
        """Two of the same parts are equal, and a pickled one comes back equal."""
        parts: dict[str, Any] = {"keys": ("a", "b-{c}"), "value": "v", "event_time": "t", "decode": decode_csv}
        extraction = Extraction(**parts)
        assert extraction == Extraction(**parts) == pickle.loads(pickle.dumps(extraction))
        assert extraction != Extraction(**{**parts, "value": "w"})


class Odd(dict[str, Any]):
    """A dict that is none of Python's own."""


@UNTIMED
@given(
    spoilt=st.dictionaries(
        st.sampled_from(["customer", "id", "amount", "at"]),
        st.sampled_from(["a", "é", "", "x" * 4001, "\ud800", 7, 0, True, None, 1.5, 2**70, ["a"]]),
        max_size=2,
    ),
    missing=st.sampled_from([None, None, None, "customer", "id", "amount", "at"]),
    parts=st.fixed_dictionaries(
        {"keys": st.sampled_from([("customer",), ("customer", "id"), ("{customer}",)])},
        optional={"value": st.just(None), "event_id": st.none(), "event_time": st.just("at")},
    ),
    monoid=st.sampled_from([Sum(), Count(), Max(), First()]),
    need_id=st.booleans(),
    need_time=st.booleans(),
    timestamp_us=st.sampled_from([0, WHEN_US, BEAM_MIN_US]),
)
@example({"customer": "\ud800"}, None, {"keys": ("customer",)}, Sum(), True, False, 0)
@example({"id": "\ud800"}, None, {"keys": ("customer",)}, Sum(), True, False, 0)
@example({"customer": "x" * 4001}, None, {"keys": ("customer",)}, Sum(), True, False, 0)
def test_the_short_way_for_plain_dicts_comes_to_the_same_as_the_long_one(
    spoilt: dict[str, Any],
    missing: str,
    parts: dict[str, Any],
    monoid: Monoid[Any],
    need_id: bool,
    need_time: bool,
    timestamp_us: int,
) -> None:
    """The same record, or the same words about the same fault."""
    by = extractor(monoid, need_id, need_time, **parts)

    def outcome(element: dict[str, Any]) -> Any:
        found = attempt(by.record, Rejected, element, timestamp_us)
        return (found.stage, found.known, str(found.error)) if isinstance(found, Rejected) else found

    element = {**ORDER, **spoilt}
    element.pop(missing, None)
    assert outcome(element) == outcome(Odd(element))


class TestRecord:
    @pytest.mark.parametrize(
        "element",
        [
            ORDER,
            json.dumps(ORDER).encode(),
            Message(json.dumps(ORDER).encode()),
            SimpleNamespace(**ORDER),
        ],
        ids=lambda element: type(element).__name__,
    )
    def test_a_record_is_made_of_its_parts(self, element: Any) -> None:
        """The same from a dict, bytes, a message or an object."""
        assert extractor(event_time="at").record(element, 7) == Record("e1", WHEN_US, ("c7",), 5)

    def test_an_element_s_timestamp_is_its_event_time_unless_a_field_says_otherwise(self) -> None:
        """In microseconds, to the digit."""
        assert extractor().record(ORDER, 7).event_time_us == 7
        assert extractor(need_time=True).record(ORDER, -7).event_time_us == -7

    @pytest.mark.parametrize("timestamp_us", [BEAM_MIN_US, BEAM_MAX_US])
    def test_an_element_without_a_timestamp_is_refused_where_it_matters(self, timestamp_us: int) -> None:
        """Beam's way of saying "none" is no time of a window; without a window nobody asks."""
        error = rejected(extractor(need_time=True), ORDER, timestamp_us).error
        assert str(error) == (
            "event_time: the element has no timestamp of its own; say where the time is with event_time="
        )
        assert extractor(need_time=False).record(ORDER, timestamp_us).event_time_us == timestamp_us
        assert extractor(need_time=True, event_time="at").record(ORDER, timestamp_us).event_time_us == WHEN_US

    def test_a_record_without_id_is_refused_where_one_is_needed(self) -> None:
        """A null counts as none, whether or not a field is named; where none is needed none is fine."""
        element = {**ORDER, "id": None}
        for by in (extractor(), extractor(event_id=None)):
            error = rejected(by, element).error
            assert str(error).startswith("event_id: is missing, but without it a redelivery")
        for by in (extractor(need_id=False), extractor(need_id=False, event_id=None)):
            assert by.record(element, 0).event_id is None

    def test_an_integer_is_an_event_id_and_other_types_are_not(self) -> None:
        """A database's row number is common; a float or a bool is an accident."""
        assert extractor().record({**ORDER, "id": 17}, 0).event_id == "17"
        for bad in (1.0, True, ["e1"], ""):
            assert str(rejected(extractor(), {**ORDER, "id": bad}).error).startswith("event_id: ")

    def test_several_fields_give_one_key_each(self) -> None:
        """In their order, numbers as text, equal ones once."""
        by = extractor(keys=("customer", "amount", "=all", "{customer}", "{customer}/{amount}"))
        assert by.record(ORDER, 0).entities == ("c7", "5", "all", "c7/5")

    def test_a_key_that_is_null_is_refused(self) -> None:
        """It names the argument as the user wrote it: key for one, keys for several."""
        element = {**ORDER, "customer": None}
        assert str(rejected(extractor(), element).error).startswith("key: field 'customer' must be text or a number")
        assert str(rejected(extractor(keys=("id", "customer")), element).error).startswith("keys: field 'customer'")

    @pytest.mark.parametrize(
        ("function", "entities"),
        [
            (lambda record: ["a", "b"], ("a", "b")),
            (lambda record: ("a",), ("a",)),
            (lambda record: (key for key in "ab"), ("a", "b")),
            (lambda record: iter(["a"]), ("a",)),
            (lambda record: ["a", "b", "a", "a"], ("a", "b")),
            (lambda record: {"a": 1, "b": 2}, ("a", "b")),
            (lambda record: [], ()),
            (lambda record: (key for key in ()), ()),
        ],
    )
    def test_a_function_may_return_the_keys_as_anything_iterable(
        self, function: Callable[[Any], Iterable[Any]], entities: tuple[str, ...]
    ) -> None:
        """Lists, tuples, generators and dicts; repeated keys count once; no keys at all are no error."""
        assert extractor(keys=function).record(ORDER, 0).entities == entities

    @pytest.mark.parametrize("found", ["abc", b"abc", None, 5, True])
    def test_a_function_that_returns_no_list_is_told_so(self, found: Any) -> None:
        """One string would be taken for a list of letters, and None for no keys: both are mistakes."""
        error = rejected(extractor(keys=lambda record: found)).error
        assert str(error) == f"keys: the function must return a list of keys, got {found!r}; for one use key="

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (None, "key: expected a string, got NoneType"),
            (5, "key: expected a string, got int"),
            ("", "key: is empty"),
            ("\ud800", "key: has no UTF-8 form"),
            ("x" * (MAX_ENTITY_BYTES + 1), f"key: {MAX_ENTITY_BYTES + 1} bytes long"),
        ],
    )
    def test_a_function_that_returns_an_impossible_key_is_told_so(self, bad: Any, reason: str) -> None:
        """The other keys are kept for the dead letter; the impossible one could not be written into it."""
        rejection = rejected(extractor(keys=lambda record: ["good", bad]))
        assert str(rejection.error).startswith(reason)
        assert rejection.known.keys == ("good",)

    def test_a_value_of_the_wrong_type_is_refused_by_the_monoid(self) -> None:
        """Its own message comes through."""
        assert str(rejected(extractor(), {**ORDER, "amount": "5"}).error) == "value: expected an integer, got str: '5'"
        assert str(rejected(extractor(), {**ORDER, "amount": None}).error).startswith("value: expected an integer")

    def test_a_monoid_that_needs_no_value_needs_no_field(self) -> None:
        """A count is one, whatever the record."""
        assert extractor(Count(), value=None).record(ORDER, 0).delta == 1

    def test_the_monoid_gets_the_event_time(self) -> None:
        """For those whose deltas carry it."""
        assert extractor(First(), event_time="at").record(ORDER, 0).delta == (WHEN_US, 5)

    def test_a_decode_function_gets_the_element_itself(self) -> None:
        """Message and all; what it returns is the record."""
        by = extractor(decode=lambda message: {**message.attributes, "amount": len(message.data)})
        record = by.record(Message(b"abc", {"id": "e1", "customer": "c7"}), 0)
        assert record == Record("e1", 0, ("c7",), 3)


class TestCsvRecords:
    CSV = b"id,amount,customer,at\ne1,5,c7,2013-01-01T05:15:00Z"

    def test_a_value_field_is_parsed_as_the_monoid_does(self) -> None:
        """Everything in CSV is text, so a number must be read first; keys, ids and times are text anyway."""
        by = extractor(decode="csv", event_time="at")
        assert by.record(self.CSV, 0) == Record("e1", WHEN_US, ("c7",), 5)
        floats = extractor(Max(), decode="csv")
        assert floats.record(b"id,amount,customer\ne1,2.5,c7", 0).delta == 2.5

    @pytest.mark.parametrize(("spec", "delta"), [("=12", 12), ("{amount}0", 50), ("attribute:n", 9)])
    def test_so_is_any_other_text_spec(self, spec: str, delta: int) -> None:
        """A literal, a template and an attribute are as much text as a field is."""
        by = extractor(decode="csv", value=spec)
        assert by.record(Message(self.CSV, {"n": "9"}), 0).delta == delta

    def test_a_text_that_is_no_number_names_the_value(self) -> None:
        """As a wrong value does in JSON."""
        element = self.CSV.replace(b",5,", b",five,")
        assert str(rejected(extractor(decode="csv"), element).error) == "value: 'five' is not an integer"

    def test_what_a_function_returns_is_not_parsed(self) -> None:
        """A user's function has done its own parsing: a set of texts stays one, a number too."""
        assert extractor(decode="csv", value=lambda row: int(row["amount"]) * 2).record(self.CSV, 0).delta == 10
        error = rejected(extractor(decode="csv", value=lambda row: row["amount"]), self.CSV).error
        assert str(error) == "value: expected an integer, got str: '5'"

    def test_text_stays_text_for_a_monoid_of_texts(self) -> None:
        """Only the monoid knows how to read its values."""
        assert extractor(SetUnion(), decode="csv").record(self.CSV, 0).delta == SetUnion().lift("5", 0)

    def test_nothing_else_is_parsed(self) -> None:
        """The texts of JSON, and of a user's own decoder, are what they are."""
        for decode in (None, "json", decode_csv):
            element = self.CSV if decode is decode_csv else b'{"id": "e1", "amount": "5", "customer": "c7"}'
            error = rejected(extractor(decode=decode), element).error
            assert str(error) == "value: expected an integer, got str: '5'"


class TestRejected:
    def test_what_cannot_be_decoded_is_of_the_decode_stage(self) -> None:
        """With what is known without the payload: the timestamp, and parts that come from the message."""
        by = extractor(event_id="attribute:id", keys=("attribute:user", "=all"))
        rejection = rejected(by, Message(b"{", {"id": "e1", "user": "c7"}), 7)
        assert rejection.stage == "decode"
        assert str(rejection.error).startswith("payload: malformed JSON")
        assert rejection.known == Known("e1", 7, ("c7", "all"))
        assert rejection.__cause__ is rejection.error

    def test_nothing_is_made_up_for_what_is_in_the_payload(self) -> None:
        """An unreadable element has neither id nor time nor keys in it."""
        assert rejected(extractor(event_time="at"), b"{", 7).known == Known(None, None, None)

    @pytest.mark.parametrize(
        ("changes", "error", "known"),
        [
            ({"id": None}, "event_id: is missing", Known(None, WHEN_US, ("c7",))),
            ({"id": "\ud800"}, "event_id: has no UTF-8 form", Known(None, WHEN_US, ("c7",))),
            ({"at": {}}, "event_time: expected a datetime", Known("e1", None, ("c7",))),
            ({"at": "yesterday"}, "event_time: 'yesterday' is not", Known("e1", None, ("c7",))),
            ({"customer": ""}, "key: is empty", Known("e1", WHEN_US, ())),
            ({"customer": None}, "key: field 'customer'", Known("e1", WHEN_US, None)),
            ({"amount": 0.5}, "value: expected an integer", Known("e1", WHEN_US, ("c7",))),
            ({"amount": 2**63}, "value: ", Known("e1", WHEN_US, ("c7",))),
        ],
    )
    def test_of_a_bad_record_the_other_parts_are_found(self, changes: dict[str, Any], error: str, known: Known) -> None:
        """One bad part does not hide the others, whichever came first."""
        rejection = rejected(extractor(event_time="at"), {**ORDER, **changes}, 7)
        assert rejection.stage == "extract"
        assert str(rejection.error).startswith(error)
        assert rejection.known == known

    @pytest.mark.parametrize(
        ("name", "argument"), [("id", "event_id"), ("at", "event_time"), ("customer", "key"), ("amount", "value")]
    )
    def test_a_missing_field_names_the_argument_it_was_for(self, name: str, argument: str) -> None:
        """Not only the field, which may serve several."""
        element = {field: value for field, value in ORDER.items() if field != name}
        error = rejected(extractor(event_time="at"), element).error
        assert str(error).startswith(f"{argument}: field {name!r} is missing; there are ")

    def test_a_record_of_which_all_is_bad_names_the_first(self) -> None:
        """And knows nothing."""
        rejection = rejected(extractor(event_time="at"), {}, 7)
        assert str(rejection.error) == "event_id: field 'id' is missing; there are none"
        assert rejection.known == Known(None, None, None)

    ERRORS = (
        KeyError("amount"),
        StopIteration("done"),
        RecursionError("too deep"),
        ZeroDivisionError(),
        PermanentError("no"),
        Unspeakable(),
        AssertionError(),
        type("Odd", (Exception,), {})(1, 2),
    )

    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize(
        ("part", "argument", "stage"),
        [
            ("value", "value", "extract"),
            ("event_id", "event_id", "extract"),
            ("event_time", "event_time", "extract"),
            ("key", "key", "extract"),
            ("keys", "keys", "extract"),
            ("decode", "decode", "decode"),
        ],
    )
    def test_whatever_a_user_s_function_raises_names_its_argument(
        self, part: str, argument: str, stage: str, error: Exception
    ) -> None:
        """It ends in a dead letter that says which function it was, and never in another exception."""
        function = raiser(error)
        parts = {"keys": (function,)} if part == "key" else {part: function}
        rejection = rejected(extractor(**parts))
        assert rejection.stage == stage
        assert isinstance(rejection.error, InvalidRecord)
        assert rejection.error.field == argument
        assert rejection.error.problem == f"{type(error).__name__}: {text_of(error)}"
        assert rejection.__cause__ is error

    def test_runaway_recursion_is_one_bad_record(self) -> None:
        """A real one, not only its exception."""

        def forever(record: Any) -> Any:
            return forever(record)

        assert str(rejected(extractor(value=forever)).error).startswith("value: RecursionError: ")

    def test_an_invalid_record_that_a_user_s_function_raises_stays_as_it_is(self) -> None:
        """A user's own check may name the user's own field."""
        error = InvalidRecord("vat", "is negative")
        assert rejected(extractor(value=raiser(error))).error is error

    def test_a_generator_of_keys_that_fails_is_blamed_as_such(self) -> None:
        """Though its body runs only when the keys are taken from it."""

        def keys(record: Any) -> Iterator[str]:
            yield "a"
            raise KeyError("tags")

        rejection = rejected(extractor(keys=keys))
        assert str(rejection.error) == "keys: KeyError: 'tags'"
        assert rejection.known == Known("e1", 0, None)

    def test_a_user_s_monoid_that_fails_is_blamed_on_the_value(self) -> None:
        """Even if it breaks the promise to raise nothing but InvalidRecord."""

        class Broken(Sum):
            def lift(self, value: Any, event_time_us: int) -> int:
                raise LookupError("no such unit")

        assert str(rejected(extractor(Broken())).error) == "value: LookupError: no such unit"

    def test_what_ends_the_process_is_not_a_bad_record(self) -> None:
        """An interrupt or an exit goes through."""
        for signal in (KeyboardInterrupt(), SystemExit(1)):
            with pytest.raises(type(signal)):
                extractor(value=raiser(signal)).record(ORDER, 0)

    def test_a_rejection_can_be_pickled(self) -> None:
        """A runner may carry it to where it is reported."""
        rejection = rejected(extractor(), {**ORDER, "id": None}, 7)
        copy = pickle.loads(pickle.dumps(rejection))
        assert (copy.stage, copy.known, str(copy.error)) == ("extract", rejection.known, str(rejection.error))

    @UNTIMED
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
            max_leaves=5,
        )
        | st.fixed_dictionaries(
            {},
            optional={
                "id": st.none() | st.text() | st.integers(),
                "amount": st.none() | st.integers() | st.floats(),
                "customer": st.none() | st.text() | st.floats(),
                "at": st.none() | st.text() | st.floats(),
            },
        ),
        st.sampled_from([None, "json", "csv"]),
    )
    def test_any_element_is_a_record_or_rejected(self, element: Any, decode: str | None) -> None:
        """And whatever is known of a rejected one can be written in UTF-8."""
        record = attempt(extractor(event_time="at", decode=decode).record, Rejected, element, 0)
        if isinstance(record, Rejected):
            assert record.stage in ("decode", "extract")
            known = record.known
            assert "".join([known.event_id or "", *(known.keys or ())]).encode("utf-8") is not None
        else:
            assert isinstance(record, Record)


class TestTextOf:
    def test_it_is_the_error_s_text(self) -> None:
        """As str gives it."""
        assert text_of(KeyError("a")) == "'a'"
        assert text_of(ValueError()) == ""

    def test_an_error_without_a_text_is_said_to_have_none(self) -> None:
        """Reporting an error must not raise the next."""
        assert text_of(Unspeakable()) == "(its text cannot be shown: RuntimeError)"


class TestKnown:
    def test_what_is_known_is_not_extracted_again(self) -> None:
        """A dead letter's id, time and keys override the record's; only the value is read."""
        by = extractor(event_id=raiser(KeyError()), event_time=raiser(KeyError()), keys=raiser(KeyError()))
        assert by.record(ORDER, 7, Known("e9", 11, ("a", "b"))) == Record("e9", 11, ("a", "b"), 5)

    def test_the_epoch_is_a_known_time(self) -> None:
        """Zero microseconds are not "not known"."""
        assert extractor(event_time="at").record(ORDER, 7, Known(None, 0, None)).event_time_us == 0

    def test_what_is_not_known_is_extracted(self) -> None:
        """Each part by itself; no keys are as good as none known."""
        by = extractor(event_time="at")
        assert by.record(ORDER, 7, Known(None, None, None)) == Record("e1", WHEN_US, ("c7",), 5)
        assert by.record(ORDER, 7, Known("e9", None, ())) == Record("e9", WHEN_US, ("c7",), 5)

    def test_a_known_id_serves_where_no_field_is_given(self) -> None:
        """The letter keeps what the pipeline does not look for."""
        assert extractor(event_id=None, need_id=False).record(ORDER, 7, Known("e9", None, None)).event_id == "e9"

    def test_a_known_time_serves_an_element_without_timestamp(self) -> None:
        """A letter read from a file has none of its own."""
        assert extractor(need_time=True).record(ORDER, BEAM_MIN_US, Known(None, 11, None)).event_time_us == 11

    def test_what_is_known_is_known_of_the_rejected_too(self) -> None:
        """So that the next letter says no less than the one before."""
        known = Known("e9", 11, ("a", "b"))
        assert rejected(extractor(), b"{", 7, known).known == known
        assert rejected(extractor(), {**ORDER, "amount": "x"}, 7, known).known == known
