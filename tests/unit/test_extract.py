"""Extraction: what an element's record consists of, and what is known of an element that fails."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from murmur_beam.decode import decode_bytes, decode_csv
from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError
from murmur_beam.extract import Extraction, Extractor, RecordHints, Rejected, text_of
from murmur_beam.model import MAX_ENTITY_BYTES
from murmur_beam.monoids import Count, First, Last, Max, Monoid, SetUnion, Sum, Timed
from tests.support.records import BEAM_MAX_US, BEAM_MIN_US, UNTIMED, WHEN_US, Record, attempt, message


class Unspeakable(Exception):
    """An error whose text raises another."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def refusal(make: Callable[[], object], argument: str) -> str:
    """Say why an argument is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.argument == argument
    return caught.value.problem


class Records(Extractor):
    """An `Extractor` whose records have named parts."""

    def record(self, *arguments: Any) -> Record:
        return Record(*super().record(*arguments))


def extractor(
    monoid: Monoid[Any] | None = None, need_id: bool = True, need_time: bool = False, **parts: Any
) -> Records:
    """An extractor of orders, unless the arguments say otherwise."""
    given_parts = {"keys": ("customer",), "value": "amount", "event_id": "id", **parts}
    return Records(Extraction(**given_parts), monoid or Sum(), need_id=need_id, need_time=need_time)


ORDER = {"id": "e1", "amount": 5, "customer": "c7", "at": "2013-01-01T05:15:00Z"}


def rejected(by: Extractor, element: Any = ORDER, timestamp_us: int = 0, *known: RecordHints) -> Rejected:
    """The rejection of an element."""
    with pytest.raises(Rejected) as caught:
        by.record(element, timestamp_us, *known)
    return caught.value


def raiser(error: BaseException) -> Callable[[Any], Any]:
    """A user's function with a bug."""

    def function(record: Any) -> Any:
        raise error

    return function


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
    def test_an_invalid_part_names_its_argument(self, parts: dict[str, Any], argument: str, reason: str) -> None:
        """All parts are checked when the extraction is made, before any worker starts."""
        text = refusal(lambda: Extraction(**{"keys": ("a",), **parts}), argument)
        assert reason in text

    def test_it_cannot_be_changed(self) -> None:
        """What was checked stays checked."""
        with pytest.raises(AttributeError):
            Extraction(("a",)).value = ""  # type: ignore[misc]

    def test_it_is_a_value(self) -> None:
        """Two of the same parts are equal, and an unpickled one is equal to the original."""
        parts: dict[str, Any] = {"keys": ("a", "b-{c}"), "value": "v", "event_time": "t", "decode": decode_csv}
        extraction = Extraction(**parts)
        assert extraction == Extraction(**parts) == pickle.loads(pickle.dumps(extraction))
        assert extraction != Extraction(**{**parts, "value": "w"})


class Odd(dict[str, Any]):
    """A subclass of dict."""


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
def test_the_fast_path_for_plain_dicts_gives_the_same_as_the_slow_one(
    spoilt: dict[str, Any],
    missing: str,
    parts: dict[str, Any],
    monoid: Monoid[Any],
    need_id: bool,
    need_time: bool,
    timestamp_us: int,
) -> None:
    """The same record, or the same message for the same fault."""
    by = extractor(monoid, need_id, need_time, **parts)

    def outcome(element: dict[str, Any]) -> Any:
        found = attempt(by.record, Rejected, element, timestamp_us)
        return (found.stage, found.hints, str(found.error)) if isinstance(found, Rejected) else found

    element = {**ORDER, **spoilt}
    element.pop(missing, None)
    assert outcome(element) == outcome(Odd(element))


class TestRecord:
    @pytest.mark.parametrize(
        "element",
        [
            ORDER,
            json.dumps(ORDER).encode(),
            message(json.dumps(ORDER).encode()),
            SimpleNamespace(**ORDER),
        ],
        ids=lambda element: type(element).__name__,
    )
    def test_a_record_consists_of_its_parts(self, element: Any) -> None:
        """The same from a dict, bytes, a message or an object."""
        assert extractor(event_time="at").record(element, 7) == Record("e1", WHEN_US, ("c7",), 5)

    def test_the_timestamp_of_an_element_is_its_event_time_unless_a_field_is_given(self) -> None:
        """In microseconds, to the digit."""
        assert extractor().record(ORDER, 7).event_time_us == 7
        assert extractor(need_time=True).record(ORDER, -7).event_time_us == -7

    @pytest.mark.parametrize("timestamp_us", [BEAM_MIN_US, BEAM_MAX_US])
    def test_an_element_without_a_timestamp_is_refused_where_it_needs_one(self, timestamp_us: int) -> None:
        """Beam's value for "no timestamp" lies in no window; without a window it is not looked at."""
        error = rejected(extractor(need_time=True), ORDER, timestamp_us).error
        assert str(error) == (
            "event_time: the element has no timestamp of its own; say where the time is with event_time="
        )
        assert extractor(need_time=False).record(ORDER, timestamp_us).event_time_us == timestamp_us
        assert extractor(need_time=True, event_time="at").record(ORDER, timestamp_us).event_time_us == WHEN_US

    def test_a_record_without_an_id_is_refused_where_one_is_needed(self) -> None:
        """A null counts as missing, whether or not a field is named; where no id is needed, none is required."""
        element = {**ORDER, "id": None}
        for by in (extractor(), extractor(event_id=None)):
            error = rejected(by, element).error
            assert str(error).startswith("event_id: is missing, but without it a redelivery")
        for by in (extractor(need_id=False), extractor(need_id=False, event_id=None)):
            assert by.record(element, 0).event_id is None

    def test_an_integer_is_an_event_id_and_other_types_are_not(self) -> None:
        """A database's row number is common; a float or a bool is a mistake."""
        assert extractor().record({**ORDER, "id": 17}, 0).event_id == "17"
        for bad in (1.0, True, ["e1"], ""):
            assert str(rejected(extractor(), {**ORDER, "id": bad}).error).startswith("event_id: ")

    def test_several_fields_give_one_key_each(self) -> None:
        """In their order, numbers as text, equal keys once."""
        by = extractor(keys=("customer", "amount", "=all", "{customer}", "{customer}/{amount}"))
        assert by.record(ORDER, 0).entities == ("c7", "5", "all", "c7/5")

    def test_a_key_that_is_null_is_refused(self) -> None:
        """The error names the argument as the user wrote it: key for one, keys for several."""
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
    def test_a_function_may_return_the_keys_as_any_iterable(
        self, function: Callable[[Any], Iterable[Any]], entities: tuple[str, ...]
    ) -> None:
        """Lists, tuples, generators and dicts; repeated keys count once; no keys at all are not an error."""
        assert extractor(keys=function).record(ORDER, 0).entities == entities

    @pytest.mark.parametrize("found", ["abc", b"abc", None, 5, True])
    def test_a_function_that_returns_no_iterable_of_keys_is_refused(self, found: Any) -> None:
        """A string would be read as a list of letters, and None as no keys: both are mistakes."""
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
    def test_a_function_that_returns_an_invalid_key_is_refused(self, bad: Any, reason: str) -> None:
        """The dead letter keeps the other keys; the invalid one could not be written into it."""
        rejection = rejected(extractor(keys=lambda record: ["good", bad]))
        assert str(rejection.error).startswith(reason)
        assert rejection.hints.keys == ("good",)

    def test_a_value_of_the_wrong_type_is_refused_by_the_monoid(self) -> None:
        """The monoid's own message is reported."""
        assert str(rejected(extractor(), {**ORDER, "amount": "five"}).error) == "value: 'five' is not an integer"
        assert str(rejected(extractor(), {**ORDER, "amount": None}).error).startswith("value: expected an integer")

    def test_a_monoid_that_needs_no_value_needs_no_field(self) -> None:
        """A count adds one, whatever the record."""
        assert extractor(Count(), value=None).record(ORDER, 0).delta == 1

    def test_the_monoid_gets_the_event_time(self) -> None:
        """For monoids whose deltas hold the time."""
        assert extractor(First(), event_time="at").record(ORDER, 0).delta == Timed(WHEN_US, 5)

    def test_the_monoid_gets_the_nanoseconds_too(self) -> None:
        """So that events of one microsecond keep their order; a replayed letter gives the same."""
        by = extractor(Last(), event_time="at")
        element = {**ORDER, "at": "2013-01-01T05:15:00.000000123Z"}
        assert by.record(element, 0).delta == Timed(WHEN_US, 5, 123)
        assert by.record(element, 0, RecordHints("e1", WHEN_US, ("c7",))).delta == Timed(WHEN_US, 5, 123)
        assert by.record(element, 0, RecordHints("e1", WHEN_US - 1, ("c7",))).delta == Timed(WHEN_US - 1, 5)
        assert extractor(Last()).record(element, 7).delta == Timed(7, 5)

    def test_a_decode_function_gets_the_element_itself(self) -> None:
        """The whole message; the function's result is the record."""
        by = extractor(decode=lambda message: {**message.attributes, "amount": len(message.data)})
        record = by.record(message(b"abc", {"id": "e1", "customer": "c7"}), 0)
        assert record == Record("e1", 0, ("c7",), 3)


class TestNumbersAsText:
    CSV = b"id,amount,customer,at\ne1,5,c7,2013-01-01T05:15:00Z"

    def test_numbers_in_csv_are_read(self) -> None:
        """Everything in CSV is text; keys, ids and times are text anyway."""
        by = extractor(decode="csv", event_time="at")
        assert by.record(self.CSV, 0) == Record("e1", WHEN_US, ("c7",), 5)
        assert extractor(Max(), decode="csv").record(self.CSV.replace(b",5,", b",2.5,"), 0).delta == 2.5

    @pytest.mark.parametrize(
        ("spec", "delta"),
        [("=12", 12), ("{amount}0", 50), ("attribute:n", 9), (lambda row: row["amount"], 5)],
    )
    def test_numbers_in_text_of_any_origin_are_read(self, spec: Any, delta: int) -> None:
        """A literal, a template, an attribute and a function's result may be text as well."""
        assert extractor(decode="csv", value=spec).record(message(self.CSV, {"n": "9"}), 0).delta == delta

    @pytest.mark.parametrize("decode", [None, "json", lambda data: json.loads(data)])
    def test_json_s_64_bit_integers_are_text(self, decode: Any) -> None:
        """BigQuery and protobuf write them this way."""
        element = b'{"id": "e1", "amount": "9007199254740993", "customer": "c7"}'
        assert extractor(decode=decode).record(element, 0).delta == 2**53 + 1

    def test_a_text_that_is_not_a_number_names_the_value(self) -> None:
        """As a wrong value does in JSON."""
        element = self.CSV.replace(b",5,", b",five,")
        assert str(rejected(extractor(decode="csv"), element).error) == "value: 'five' is not an integer"

    def test_text_stays_text_for_a_monoid_of_texts(self) -> None:
        """Only the monoid knows how to read its values."""
        assert extractor(SetUnion(), decode="csv").record(self.CSV, 0).delta == SetUnion().lift("5", 0)

    @pytest.mark.parametrize("value", ["amount", "missing", "a.b", raiser(KeyError("x"))])
    @pytest.mark.parametrize("decode", ["csv", None])
    def test_a_count_never_reads_a_value(self, decode: Any, value: Any) -> None:
        """Whether or not there is one."""
        element = self.CSV.replace(b",5,", b",five,") if decode else {**ORDER, "amount": object()}
        assert extractor(Count(), decode=decode, value=value).record(element, 0).delta == 1


class TestIds:
    @pytest.mark.parametrize(
        "bad",
        [
            float("nan"), float("inf"), float("-inf"), "NaN", "nan", "Infinity", "-inf", "NaT", "<NA>",
            np.float64("nan"), np.float32("inf"), Decimal("NaN"), np.datetime64("NaT"),
        ],
        ids=repr,
    )  # fmt: skip
    @pytest.mark.parametrize("event_id", ["id", "{id}", "order-{id}", "{customer}/{id}/x", lambda record: record["id"]])
    def test_nan_is_not_an_event_id(self, event_id: Any, bad: Any) -> None:
        """Events that lack their ids would all be one event, and all but one would be lost."""
        for monoid in (Sum(), Last()):
            rejection = rejected(extractor(monoid, event_id=event_id), {**ORDER, "id": bad})
            assert rejection.error.field == "event_id"
            assert rejection.hints.event_id is None

    @pytest.mark.parametrize("text", [b'{"id": NaN', b'{"id": Infinity', b'{"id": -Infinity', b'{"id": 1e400'])
    def test_nan_in_json_is_not_an_event_id(self, text: bytes) -> None:
        """Python's parser accepts it."""
        element = text + b', "amount": 5, "customer": "c7"}'
        assert rejected(extractor(event_id="order-{id}"), element).error.field == "event_id"

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float64("-inf")])
    @pytest.mark.parametrize("key", ["customer", "{customer}", "user/{customer}"])
    def test_nan_is_not_a_key(self, key: str, bad: Any) -> None:
        """Such a key is a mistake."""
        assert rejected(extractor(keys=(key,)), {**ORDER, "customer": bad}).error.field == "key"

    @pytest.mark.parametrize(("value", "event_id"), [(7, "7"), (np.int64(7), "7"), ("7", "7"), (np.str_("a"), "a")])
    def test_an_id_is_a_text_or_a_whole_number(self, value: Any, event_id: str) -> None:
        """The number 7 and the text "7" are one id: JSON of BigQuery and protobuf, CSV and attributes write the same
        number as text, and an event that is sent both ways is one event."""
        assert extractor().record({**ORDER, "id": value}, 0).event_id == event_id
        assert extractor(event_id=lambda record: record["id"]).record({**ORDER, "id": value}, 0).event_id == event_id

    @pytest.mark.parametrize("value", [7.0, True, None, [7], b"7"])
    def test_anything_else_is_refused(self, value: Any) -> None:
        """A float by itself is not an id: one writer's 7 is another writer's 7.0."""
        assert rejected(extractor(), {**ORDER, "id": value}).error.field == "event_id"

    def test_the_source_is_put_before_the_id_of_a_message(self) -> None:
        """Pub/Sub's ids are unique within one topic only."""
        parts = {"keys": ("=all",), "value": "=1", "event_id": "message:id"}
        for source, id_format, event_id in (
            ("projects/p/topics/a", "escaped", "projects/p/topics/a/m1"),
            ("projects/p/topics/a", "plain", "m1"),
            (None, "escaped", "m1"),
        ):
            by = extractor(**parts, source=source, id_format=id_format)
            assert by.record(message(), 0).event_id == event_id

    def test_ids_of_0_1_0_can_be_made_again(self) -> None:
        """For tables that hold them."""
        record = {**ORDER, "a": "x-y", "b": "z"}
        assert extractor(event_id="{a}-{b}").record(record, 0).event_id == "x%2Dy-z"
        assert extractor(event_id="{a}-{b}", id_format="plain").record(record, 0).event_id == "x-y-z"


class TestRejected:
    def test_an_element_that_cannot_be_decoded_has_the_stage_decode(self) -> None:
        """With all that is known without the payload: the timestamp, and parts from the message."""
        by = extractor(event_id="attribute:id", keys=("attribute:user", "=all"))
        rejection = rejected(by, message(b"{", {"id": "e1", "user": "c7"}), 7)
        assert rejection.stage == "decode"
        assert str(rejection.error).startswith("payload: malformed JSON")
        assert rejection.hints == RecordHints("e1", 7, ("c7", "all"))
        assert rejection.__cause__ is rejection.error

    def test_nothing_is_invented_for_what_is_in_the_payload(self) -> None:
        """An unreadable element has no id, time or keys."""
        assert rejected(extractor(event_time="at"), b"{", 7).hints == RecordHints(None, None, None)

    @pytest.mark.parametrize(
        ("changes", "error", "known"),
        [
            ({"id": None}, "event_id: is missing", RecordHints(None, WHEN_US, ("c7",))),
            ({"id": "\ud800"}, "event_id: has no UTF-8 form", RecordHints(None, WHEN_US, ("c7",))),
            ({"at": {}}, "event_time: expected a datetime", RecordHints("e1", None, ("c7",))),
            ({"at": "yesterday"}, "event_time: 'yesterday' is not", RecordHints("e1", None, ("c7",))),
            ({"customer": ""}, "key: is empty", RecordHints("e1", WHEN_US, ())),
            ({"customer": None}, "key: field 'customer'", RecordHints("e1", WHEN_US, None)),
            ({"amount": 0.5}, "value: expected an integer", RecordHints("e1", WHEN_US, ("c7",))),
            ({"amount": 2**63}, "value: ", RecordHints("e1", WHEN_US, ("c7",))),
        ],
    )
    def test_the_other_parts_of_a_bad_record_are_extracted(
        self, changes: dict[str, Any], error: str, known: RecordHints
    ) -> None:
        """One bad part does not hide the others, whichever came first."""
        rejection = rejected(extractor(event_time="at"), {**ORDER, **changes}, 7)
        assert rejection.stage == "extract"
        assert str(rejection.error).startswith(error)
        assert rejection.hints == known

    @pytest.mark.parametrize(
        ("name", "argument"), [("id", "event_id"), ("at", "event_time"), ("customer", "key"), ("amount", "value")]
    )
    def test_a_missing_field_names_its_argument(self, name: str, argument: str) -> None:
        """Not only the field, which may serve several arguments."""
        element = {field: value for field, value in ORDER.items() if field != name}
        error = rejected(extractor(event_time="at"), element).error
        assert str(error).startswith(f"{argument}: field {name!r} is missing; the record has ")

    def test_a_record_with_only_bad_parts_names_the_first(self) -> None:
        """Nothing is known of it."""
        rejection = rejected(extractor(event_time="at"), {}, 7)
        assert str(rejection.error) == "event_id: field 'id' is missing; the record has no fields"
        assert rejection.hints == RecordHints(None, None, None)

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
    def test_any_error_of_a_user_s_function_names_its_argument(
        self, part: str, argument: str, stage: str, error: Exception
    ) -> None:
        """It ends in a dead letter that names the function, and never in another exception."""
        function = raiser(error)
        parts = {"keys": (function,)} if part == "key" else {part: function}
        rejection = rejected(extractor(**parts))
        assert rejection.stage == stage
        assert isinstance(rejection.error, InvalidRecord)
        assert rejection.error.field == argument
        assert rejection.error.problem == f"{type(error).__name__}: {text_of(error)}"
        assert rejection.__cause__ is error

    def test_runaway_recursion_is_one_bad_record(self) -> None:
        """With a real recursion, not only its exception."""

        def forever(record: Any) -> Any:
            return forever(record)

        assert str(rejected(extractor(value=forever)).error).startswith("value: RecursionError: ")

    def test_an_invalid_record_raised_by_a_user_s_function_is_kept(self) -> None:
        """A user's own check may name the user's own field."""
        error = InvalidRecord("vat", "is negative")
        assert rejected(extractor(value=raiser(error))).error is error

    def test_a_generator_of_keys_that_fails_is_reported_as_keys(self) -> None:
        """Though its body runs only when the keys are read from it."""

        def keys(record: Any) -> Iterator[str]:
            yield "a"
            raise KeyError("tags")

        rejection = rejected(extractor(keys=keys))
        assert str(rejection.error) == "keys: KeyError: 'tags'"
        assert rejection.hints == RecordHints("e1", 0, None)

    def test_a_user_s_monoid_that_fails_is_reported_as_the_value(self) -> None:
        """Even if it breaks the rule to raise nothing but InvalidRecord."""

        class Broken(Sum):
            def lift(self, value: Any, event_time_us: int) -> int:
                raise LookupError("no such unit")

        assert str(rejected(extractor(Broken())).error) == "value: LookupError: no such unit"

    def test_exceptions_that_end_the_process_are_not_bad_records(self) -> None:
        """An interrupt or an exit is passed on."""
        for signal in (KeyboardInterrupt(), SystemExit(1)):
            with pytest.raises(type(signal)):
                extractor(value=raiser(signal)).record(ORDER, 0)

    def test_a_rejection_can_be_pickled(self) -> None:
        """A runner may send it to another process."""
        rejection = rejected(extractor(), {**ORDER, "id": None}, 7)
        copy = pickle.loads(pickle.dumps(rejection))
        assert (copy.stage, copy.hints, str(copy.error)) == ("extract", rejection.hints, str(rejection.error))

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
        """And all that is known of a rejected one can be written in UTF-8."""
        record = attempt(extractor(event_time="at", decode=decode).record, Rejected, element, 0)
        if isinstance(record, Rejected):
            assert record.stage in ("decode", "extract")
            known = record.hints
            assert "".join([known.event_id or "", *(known.keys or ())]).encode("utf-8") is not None
        else:
            assert isinstance(record, Record)


class TestWhatDecodersLeave:
    @pytest.mark.parametrize("data", [b"", None])
    def test_a_message_without_data_has_no_fields(self, data: Any) -> None:
        """Its attributes may hold everything, so it is not malformed JSON; None and b"" (as replayed) mean the same."""
        element = message(data, {"id": "e1", "user": "c7"})
        assert decode_bytes(element) == {}
        record = extractor(Count(), keys=("attribute:user",), value=None, event_id="attribute:id").record(element, 5)
        assert record == Record("e1", 5, ("c7",), 1)
        assert str(rejected(extractor(), element).error) == "event_id: field 'id' is missing; the record has no fields"

    @pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_nan_fails_only_where_it_is_used(self, literal: str) -> None:
        """Python's writers produce NaN, so such a record is read; but NaN cannot be folded, nor be a time."""
        element = f'{{"id": "e1", "amount": 5, "customer": "c7", "bad": {literal}}}'.encode()
        assert extractor().record(element, 0).delta == 5
        for parts in ({"value": "bad"}, {"event_time": "bad"}):
            assert rejected(extractor(Max(), **parts), element).stage == "extract"


class TestTextOf:
    def test_it_is_the_error_s_text(self) -> None:
        """As `str` returns it."""
        assert text_of(KeyError("a")) == "'a'"
        assert text_of(ValueError()) == ""

    def test_an_error_without_a_text_is_described_as_such(self) -> None:
        """Reporting an error must not raise another one."""
        assert text_of(Unspeakable()) == "(its text cannot be shown: RuntimeError)"


class TestKnown:
    def test_known_parts_are_not_extracted_again(self) -> None:
        """A dead letter's id, time and keys override the record's; only the value is read."""
        by = extractor(event_id=raiser(KeyError()), event_time=raiser(KeyError()), keys=raiser(KeyError()))
        assert by.record(ORDER, 7, RecordHints("e9", 11, ("a", "b"))) == Record("e9", 11, ("a", "b"), 5)

    def test_the_epoch_is_a_known_time(self) -> None:
        """Zero microseconds do not mean "unknown"."""
        assert extractor(event_time="at").record(ORDER, 7, RecordHints(None, 0, None)).event_time_us == 0

    def test_unknown_parts_are_extracted(self) -> None:
        """Each part by itself; an empty list of keys counts as unknown."""
        by = extractor(event_time="at")
        assert by.record(ORDER, 7, RecordHints(None, None, None)) == Record("e1", WHEN_US, ("c7",), 5)
        assert by.record(ORDER, 7, RecordHints("e9", None, ())) == Record("e9", WHEN_US, ("c7",), 5)

    def test_a_known_id_serves_where_no_field_is_given(self) -> None:
        """The letter keeps an id that the pipeline does not look for."""
        assert extractor(event_id=None, need_id=False).record(ORDER, 7, RecordHints("e9", None, None)).event_id == "e9"

    def test_a_known_time_serves_an_element_without_a_timestamp(self) -> None:
        """A letter read from a file has no timestamp."""
        assert extractor(need_time=True).record(ORDER, BEAM_MIN_US, RecordHints(None, 11, None)).event_time_us == 11

    def test_a_rejected_element_keeps_the_known_parts(self) -> None:
        """So that the next letter says no less than the one before."""
        known = RecordHints("e9", 11, ("a", "b"))
        assert rejected(extractor(), b"{", 7, known).hints == known
        assert rejected(extractor(), {**ORDER, "amount": "x"}, 7, known).hints == known
