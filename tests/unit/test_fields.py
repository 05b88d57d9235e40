"""Field specs: what they find in a record, and what they say where they find nothing."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from apache_beam import Row
from hypothesis import assume, given
from hypothesis import strategies as st

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.fields import compile_field, compile_id, compile_text
from tests.support.records import UNTIMED, WHEN, Order, attempt, message


def find(spec: Any, record: Any = None, element: Any = None, argument: str = "value") -> Any:
    """The value that a field spec finds."""
    return compile_field(argument, spec)(record, element)


def problem(spec: Any, record: Any = None, element: Any = None) -> str:
    """Why a field spec finds nothing; the error names the argument."""
    with pytest.raises(InvalidRecord) as caught:
        find(spec, record, element)
    assert caught.value.field == "value"
    return caught.value.problem


def refusal(make: Callable[[], object], argument: str) -> str:
    """Say why an argument is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.argument == argument
    return caught.value.problem


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
    def test_a_field_s_value_is_returned_unchanged(self, value: Any) -> None:
        """Null and other false values are found like any other; later stages decide what they mean."""
        assert find("x", {"x": value}) is value

    def test_a_missing_field_is_named_with_those_that_are_there(self) -> None:
        """A typo shows at once, also in a mapping whose keys are not texts."""
        assert problem("amuont", {"amount": 5, 7: "x"}) == "field 'amuont' is missing; the record has amount, 7"
        assert problem("amount", {}) == "field 'amount' is missing; the record has no fields"

    def test_a_long_list_of_fields_is_cut(self) -> None:
        """A record of a thousand fields does not fill the log."""
        text = problem("x", {f"field{i}": i for i in range(1000)})
        assert len(text) < 250
        assert "field0, field1" in text

    def test_a_default_dict_invents_no_field(self) -> None:
        """Looking for a field must neither find nor add a missing one."""
        record: Mapping[str, int] = defaultdict(int)
        assert "missing" in problem("amount", record)
        assert not record

    def test_an_attribute_that_is_missing_is_named_with_the_type(self) -> None:
        """An object does not list its fields, so the error names its type."""
        assert problem("total", Order("e1", 5, "c7")) == "field 'total' is missing in a Order"
        assert problem("total", None) == "field 'total' is missing in a NoneType"

    @pytest.mark.parametrize("name", ["amount", "title", "count"])
    def test_text_has_no_fields(self, name: str) -> None:
        """Lines of text that were not parsed are reported as such, even where the name is that of a method of str."""
        assert (
            problem(name, "a,b")
            == f"field '{name}' is missing in a str; text is only parsed with decode='json' or 'csv'"
        )

    @pytest.mark.parametrize("name", ["message", "attribute", "foo:bar", "data:", "größe", "a b", "a[0]", "0", "-1"])
    def test_names_may_be_any_text(self, name: str) -> None:
        """Only the forms in the module's table have a special meaning; "message" alone is a field like any other."""
        assert find(name, {name: 5}) == 5

    def test_a_property_that_raises_is_not_reported_as_missing(self) -> None:
        """Its own error is passed on, for the caller to explain."""

        class Broken:
            @property
            def amount(self) -> int:
                raise KeyError("inner")

        with pytest.raises(KeyError, match="inner"):
            find("amount", Broken())


class TestPaths:
    def test_a_path_goes_through_mappings_and_objects(self) -> None:
        """Dots lead from one level to the next, whatever the types of the levels."""
        record = {"order": Order("e1", 5, {"address": SimpleNamespace(country="NL")})}
        assert find("order.customer.address.country", record) == "NL"
        assert find("order.amount", record) == 5

    def test_a_path_names_the_level_that_is_missing(self) -> None:
        """For a long path the error says which field is missing, and which fields exist there."""
        record = {"user": {"name": "Zoë", "home": None}}
        assert problem("user.country", record) == "field 'country' is missing; the record has name, home"
        assert problem("usr.country", record) == "field 'usr' is missing; the record has user"
        assert problem("user.home.city", record) == "field 'city' is missing in a NoneType"
        assert "text is only parsed" in problem("user.name.title", record)

    @pytest.mark.parametrize("path", [".", "a.", ".a", "a..b", "..", "x-{a.}"])
    def test_a_path_with_an_empty_name_is_refused_at_once(self, path: str) -> None:
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
        """A text with doubled braces stands for itself; a value is never read as a template."""

        def escaped(text: str) -> str:
            return text.replace("{", "{{").replace("}", "}}")

        assume(not before.startswith("="))
        assert find(f"{escaped(before)}{{x}}{escaped(after)}", {"x": value}) == before + value + after

    def test_an_empty_field_in_a_template_is_refused(self) -> None:
        """Two events that both lack a part of their id must not become one event."""
        with pytest.raises(InvalidRecord, match=r"^event_id: field 'b' is empty$"):
            compile_field("event_id", "{a}/{b}")({"a": "x", "b": ""}, None)

    @UNTIMED
    @given(st.text(min_size=1))
    def test_any_text_is_a_spec_or_is_refused(self, spec: str) -> None:
        """No text makes the compiler itself fail: it returns a getter or raises a ConfigurationError."""
        made = attempt(lambda: compile_field("value", spec), ConfigurationError)
        assert made.argument == "value" if isinstance(made, ConfigurationError) else callable(made)

    @pytest.mark.parametrize(
        ("template", "reason"),
        [
            ("a{", "a single '{'"),
            ("a}", "a single '}'"),
            ("{a", "a single '{'"),
            ("{}", "each pair of braces must hold the name of a field only"),
            ("x{}y{a}", "each pair of braces"),
            ("{a!r}", "each pair of braces"),
            ("{a:>10}", "each pair of braces"),
            ("{other:x}", "each pair of braces"),
            ("{a{b}}", "a single '{'"),
            ("{a{b}", "a single '{'"),
        ],
    )
    def test_an_invalid_template_is_refused_at_once(self, template: str, reason: str) -> None:
        """The message names the argument and shows the template."""
        text = refusal(lambda: compile_field("event_id", template), "event_id")
        assert reason in text
        assert repr(template) in text

    @pytest.mark.parametrize("value", [None, [], {}, ["a"], WHEN])
    def test_only_text_and_numbers_fit_into_a_template(self, value: Any) -> None:
        """A null or a list would make unintended keys."""
        assert problem("a-{x}", {"x": value}) == f"field 'x' must be text or a number, got {value!r:.80}"

    def test_a_missing_field_of_a_template_is_named(self) -> None:
        """As it is outside of a template."""
        assert problem("{x}-{y}", {"x": 1}) == "field 'y' is missing; the record has x"


class TestLiterals:
    @pytest.mark.parametrize("text", ["all", "", "{x}", "a.b", "attribute:x", "=", " padded "])
    def test_text_after_an_equals_sign_is_the_value(self, text: str) -> None:
        """Whatever it looks like, and whatever the record."""
        assert find(f"={text}", object()) == text


class TestAttributes:
    def test_an_attribute_comes_from_the_message_and_not_from_the_record(self) -> None:
        """The decoded record may hold a field of the same name."""
        element = message(attributes={"id": "from attributes", "a:b": "c"})
        assert find("attribute:id", {"id": "from the record"}, element) == "from attributes"
        assert find("attribute:id", {"attribute:id": "from the record"}, element) == "from attributes"
        assert find("attribute:a:b", {}, element) == "c"

    @pytest.mark.parametrize(
        ("element", "text"),
        [
            (message(attributes={"a": "1", "b": "2"}), "attribute 'id' is missing; the message has a, b"),
            (message(attributes={}), "attribute 'id' is missing; the message has no attributes"),
            (message(attributes=None), "attribute 'id': a Message has no attributes"),
            (b"{}", "attribute 'id': a bytes has no attributes"),
            ({"attributes": {"id": "x"}}, "attribute 'id': a dict has no attributes"),
        ],
    )
    def test_a_missing_attribute_is_explained(self, element: Any, text: str) -> None:
        """The error lists the existing ones, or says that the element is not a message."""
        assert problem("attribute:id", {}, element) == text

    def test_an_attribute_without_a_name_is_refused_at_once(self) -> None:
        """Such an attribute cannot exist."""
        assert "write attribute:NAME" in refusal(lambda: compile_field("key", "attribute:"), "key")


class TestMessageFields:
    def test_id_and_publish_time_come_from_the_message(self) -> None:
        """Even where the record has fields of these names."""
        record = {"id": "no", "message_id": "no", "publish_time": "no"}
        assert find("message:id", record, message()) == "m1"
        assert find("message:publish_time", record, message()) == WHEN

    @pytest.mark.parametrize("spec", ["message:", "message:data", "message:message_id", "message:ID"])
    def test_other_message_fields_are_refused(self, spec: str) -> None:
        """A wrong name is refused when the pipeline is built, not on the first record."""
        text = refusal(lambda: compile_field("event_id", spec), "event_id")
        assert text == f"{spec!r}: write message:id or message:publish_time"

    def test_an_element_that_is_not_a_message_is_named(self) -> None:
        """Bytes that were read without attributes have no id."""
        assert problem("message:id", {}, b"{}") == "field 'message_id' is missing in a bytes"


class TestFunctions:
    def test_a_function_gets_the_decoded_record(self) -> None:
        """Its result is used unchanged; a class may serve as a function."""
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
        """A null does not become a key named "None"."""
        with pytest.raises(InvalidRecord) as caught:
            compile_text("key", "x")({"x": value}, None)
        assert str(caught.value) == f"key: field 'x' must be text or a number, got {value!r}"


@dataclass
class View:
    """A record with a method beside its fields."""

    id: str

    def page(self) -> str:
        return "no field"


class TestMethods:
    @pytest.mark.parametrize(
        ("name", "record"),
        [
            ("count", namedtuple("Event", "id")("1")),
            ("index", namedtuple("Event", "id")("1")),
            ("_fields", namedtuple("Event", "id")("1")),
            ("__doc__", namedtuple("Event", "id")("1")),
            ("page", View("1")),
            ("__module__", View("1")),
            ("__class__", View("1")),
            ("as_dict", Row(id="1")),
            ("real", 7),
            ("hex", 7.5),
            ("hex", b"x"),
            ("append", [1]),
            ("keys", OrderedDict(id="1")),
        ],
    )
    def test_a_method_is_not_a_field(self, name: str, record: Any) -> None:
        """Nor is anything else that the type has and the record does not."""
        assert f"field '{name}' is missing" in problem(name, record)
        assert f"field '{name}' is missing" in problem(f"a.{name}", {"a": record})

    def test_a_field_with_the_name_of_a_method_is_a_field(self) -> None:
        """As long as the record has it."""
        assert find("count", namedtuple("Event", "count")(5)) == 5
        assert find("as_dict", Row(as_dict=5)) == 5
        assert find("keys", {"keys": 5}) == 5

    def test_a_property_is_a_field(self) -> None:
        """Of an object and of a tuple."""

        class Pair(namedtuple("Pair", "a b")):
            @property
            def total(self) -> int:
                return int(self.a + self.b)

        assert find("total", Pair(2, 3)) == 5


class TestLiteralNames:
    ODD = ("Sepal.Length", "a.", ".", "{page}", "a{", "attribute:id", "message:id", "=all", "field:x", "x:y", "a b.c")

    @pytest.mark.parametrize("name", [name for name in ODD if name not in ("a{", "a.", ".")])
    def test_a_field_of_exactly_that_name_comes_first(self, name: str) -> None:
        """Before the name is read as a path, a template or a prefix."""
        assert find(name, {name: 5, "page": "no", "x": "no"}) == (5 if name != "field:x" else "no")
        assert compile_id(name, "escaped", None)({name: "5", "x": "5"}, None) == "5"

    @pytest.mark.parametrize("name", [*ODD, "amount"])
    def test_the_field_prefix_names_any_field(self, name: str) -> None:
        """Even names that no other form allows; the prefix has no other meaning."""
        assert find(f"field:{name}", {name: 5}) == 5
        assert problem(f"field:{name}", {"z": 5}) == f"field {name!r} is missing; the record has z"

    def test_a_template_may_name_fields_in_any_form(self) -> None:
        """Literal names with dots, escaped names, and fields of a message."""
        record = {"a.b": 1, "x:y": 2}
        element = message(attributes={"tenant": "t"}, message_id="m7")
        assert find("{a.b}/{field:x:y}", record) == "1/2"
        assert find("{attribute:tenant}/{message:id}", record, element) == "t/m7"

    def test_a_name_with_a_dot_is_a_path_where_no_such_field_exists(self) -> None:
        """The dot then separates the levels of a path."""
        assert find("a.b", {"a": {"b": 5}}) == 5

    def test_a_name_that_is_missing_is_explained(self) -> None:
        """An empty escape is refused at once."""
        assert "write field:NAME" in refusal(lambda: compile_field("key", "field:"), "key")


class TestIds:
    def ids(self, template: str, *records: dict[str, Any], id_format: str = "escaped") -> list[str]:
        """The ids that a template makes of records."""
        get = compile_id(template, id_format, None)
        return [get(record, None) for record in records]

    @pytest.mark.parametrize(
        ("template", "one", "other"),
        [
            ("{a}-{b}", ("x-y", "z"), ("x", "y-z")),
            ("{a}{b}", ("xy", "z"), ("x", "yz")),
            ("{a}{b}", ("x%.", "y"), ("x", "%.y")),
            ("{a}%{b}", ("x%y", "z"), ("x", "y%z")),
            ("{a}--{b}", ("x-", "z"), ("x", "-z")),
            ("{a}2{b}", ("x%", "z"), ("x%25", "z")),
            ("{a}2{b}", ("x2", "y"), ("x", "2y")),
            ("{a}-{b}", ("x%2D", "z"), ("x-", "z")),
            ("{a}\u00b7{b}", ("x\u00b7y", "z"), ("x", "y\u00b7z")),
            ("{a}~{b}", ("~", "z"), ("%7E", "z")),
        ],
    )
    def test_parts_that_join_to_the_same_text_stay_distinct(
        self, template: str, one: tuple[str, str], other: tuple[str, str]
    ) -> None:
        """Two events are not one because their parts make the same text."""
        first, second = self.ids(template, *({"a": a, "b": b} for a, b in (one, other)))
        assert first != second

    @UNTIMED
    @given(
        st.lists(st.text("-%~.2Dab\u00b7"), min_size=2, max_size=4),
        st.data(),
    )
    def test_a_template_makes_different_ids_of_different_records(
        self, literals: list[str], data: st.DataObject
    ) -> None:
        """For any texts between the fields."""
        names = [f"f{i}" for i in range(len(literals) - 1)]
        template = literals[0] + "".join(f"{{{n}}}{text}" for n, text in zip(names, literals[1:], strict=True))
        assume(not template.startswith("="))
        texts = st.text("-%~.2Dab\u00b7", min_size=1, max_size=5)
        one, other = ({n: data.draw(texts) for n in names} for _ in range(2))
        first, second = self.ids(template, one, other)
        assert (first == second) == (one == other)

    @pytest.mark.parametrize("template", ["{a}/{b}", "{a}-{b}", "order-{a}", "{a}", "{a}/{b}/x", "a"])
    def test_unambiguous_parts_stay_unescaped(self, template: str) -> None:
        """So that nearly all ids of 0.1.0 remain the same."""
        record = {"a": "2013-01-01T05:00:00Z" if "-{" not in template else "x:y", "b": "100%-/"}
        assert self.ids(template, record) == self.ids(template, record, id_format="plain")

    def test_a_source_is_added_in_a_template_too(self) -> None:
        """Wherever a message's id stands."""
        get = compile_id("{message:id}/{n}", "escaped", "projects/p/topics/t")
        assert get({"n": 1}, message(message_id="7")) == "projects%2Fp%2Ftopics%2Ft%2F7/1"

    @pytest.mark.parametrize("id_format", ["", "json", None, 5])
    def test_other_formats_are_refused(self, id_format: Any) -> None:
        """When the pipeline is built."""
        with pytest.raises(ConfigurationError, match=r"^id_format: expected escaped or plain"):
            compile_id("a", id_format, None)

    @pytest.mark.parametrize("empty", [None, ""])
    def test_a_message_without_an_id_is_refused(self, empty: Any) -> None:
        """Also with a source: such messages would all be one event."""
        for source in (None, "projects/p/topics/t"):
            with pytest.raises(InvalidRecord, match="field 'message_id' is missing"):
                compile_id("message:id", "escaped", source)({}, message(message_id=empty))
