"""Dead letters: what they keep of an element, and what is read back from them."""

from __future__ import annotations

import decimal
import math
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from murmur_beam import model
from murmur_beam.deadletter import Failure, hints_of, read_letter, write_letter
from murmur_beam.errors import InvalidRecord, RetriesExhausted
from murmur_beam.extract import Extraction, Extractor, RecordHints, Rejected
from murmur_beam.model import DeadLetter, Outcome
from murmur_beam.monoids import Sum
from tests.support.records import Record

WHEN = datetime(2013, 1, 1, 5, 15, tzinfo=timezone.utc)
WHEN_US = 1_357_017_300_000_000
NOW_US = WHEN_US + 3_600_000_001
NOTHING = RecordHints(None, None, None)


class Message(model.Message):
    """A message with defaults for all its fields; any of them can be replaced."""

    def __new__(
        cls,
        data: Any = b"{}",
        attributes: Any = None,
        message_id: Any = None,
        publish_time: Any = None,
        ordering_key: Any = "",
    ) -> Message:
        return super().__new__(cls, data, attributes, message_id, publish_time, ordering_key)


class Point(NamedTuple):
    """A tuple with a type of its own."""

    x: int
    y: Any


class Word(str):
    """A text with a type of its own."""


class Unspeakable(Exception):
    """A value whose `repr` and text both raise."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


class Touchy:
    """An object that looks like a message, but whose attributes raise."""

    data = b"x"

    @property
    def attributes(self) -> Any:
        raise LookupError("not now")


LOADED: list[str] = []


def spring() -> None:
    """The function that a `Trap` calls."""
    LOADED.append("trap")


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return spring, ()


def letter_of(element: Any, failure: Failure | None = None) -> DeadLetter:
    """The dead letter of an element, by default one that could not be decoded. It must survive JSON."""
    letter = write_letter(element, "orders", failure or Failure("decode", ValueError("bad"), NOTHING), NOW_US)
    line = letter.to_json()
    assert DeadLetter.from_json(line.encode("utf-8")) == letter
    assert "\n" not in line
    return letter


def message_of(letter: DeadLetter) -> Any:
    """The message as a driver makes it."""
    return Message(letter.payload, dict(letter.attributes), letter.message_id, letter.publish_time, letter.ordering_key)


def read(letter: DeadLetter, unpickle: bool = False) -> Any:
    """Read the element of a letter."""
    return read_letter(letter, message_of, unpickle=unpickle)


def nested(depth: int) -> Any:
    """A list in a list in a list ..."""
    element: Any = []
    for _ in range(depth):
        element = [element]
    return element


def ring() -> Any:
    """A list that holds itself."""
    element: Any = []
    element.append(element)
    return element


class TestElements:
    @pytest.mark.parametrize("element", [b"", b"\xff\x00\r\n", b'{"a": 1}', "Zoë".encode()])
    def test_bytes_stay_bytes(self, element: bytes) -> None:
        """Byte for byte, whatever they hold."""
        letter = letter_of(element)
        assert (letter.payload_type, letter.payload) == ("bytes", element)
        assert read(letter) == element

    @pytest.mark.parametrize("element", ["", "Zoë", "line\r\n", "\0", "\ud800", "a\udfff", "\ud83d\ude00", "😀"])
    def test_text_stays_text(self, element: str) -> None:
        """Also a text with half a surrogate pair, which has no UTF-8 form and may be the reason for the failure."""
        letter = letter_of(element)
        assert letter.payload_type == "text"
        assert read(letter) == element

    @pytest.mark.parametrize(
        "element",
        [
            {},
            {"a": 1, "b": [1.5, None, True, {"ë": "x"}], "": {}},
            {"z": 1, "a": 2},
            {"lone": "\ud800"},
            [1, "two"],
            [],
            7,
            -0.0,
            10**300,
            1.0,
            False,
            None,
        ],
        ids=repr,
    )
    def test_what_json_can_represent_is_kept_as_readable_json(self, element: Any) -> None:
        """With the same types and the same order of keys."""
        letter = letter_of(element)
        assert letter.payload_type == "json"
        assert letter.payload.isascii()
        back = read(letter)
        assert repr(back) == repr(element)

    @pytest.mark.parametrize(
        "element",
        [
            (1, 2),
            [(1, 2)],
            {"a": (1,)},
            Point(1, "y"),
            {"point": Point(1, 2)},
            {1: "a"},
            {None: 1},
            {True: 1},
            {"a": {2: 3}},
            math.nan,
            {"a": math.nan},
            [math.inf, -math.inf],
            {1, 2},
            {"when": WHEN},
            {"data": b"\xff"},
            decimal.Decimal("1.10"),
            Word("w"),
            {"w": Word("w")},
            {Word("w"): 1},
            Outcome.MERGED,
            {"outcome": Outcome.MERGED},
            OrderedDict(a=1),
            {"nested": OrderedDict(a=1)},
            bytearray(b"x"),
            ["\ud83d\ude00"],
        ],
        ids=repr,
    )
    def test_what_json_would_change_is_pickled(self, element: Any) -> None:
        """JSON turns tuples into lists and keys into text, drops types and has no NaN; a letter must change none of
        them."""
        letter = letter_of(element)
        assert letter.payload_type == "pickle"
        back = read(letter, unpickle=True)
        assert type(back) is type(element)
        assert repr(back) == repr(element)

    def test_an_integer_too_long_to_print_is_pickled(self) -> None:
        """Python refuses to write more than 4300 digits."""
        letter = letter_of({"n": 10**5000})
        assert letter.payload_type == "pickle"
        assert read(letter, unpickle=True) == {"n": 10**5000}

    def test_a_list_that_holds_itself_is_pickled(self) -> None:
        """JSON cannot represent it."""
        letter = letter_of(ring())
        assert letter.payload_type == "pickle"
        back = read(letter, unpickle=True)
        assert back[0] is back

    @pytest.mark.parametrize(
        "make",
        [
            lambda: lambda: None,
            threading.Lock,
            lambda: (x for x in ()),
            lambda: {"fn": lambda: None},
            lambda: nested(100_000),
            lambda: {"deep": nested(100_000)},
            Unspeakable,
            lambda: [Unspeakable()],
            lambda: type("Local", (), {"__repr__": lambda self: "half a pair: \ud800"})(),
        ],
    )
    def test_what_cannot_be_serialized_is_kept_as_a_description(self, make: Callable[[], Any]) -> None:
        """The letter is still written and describes the element, but it cannot be replayed."""
        element = make()
        letter = letter_of(element)
        assert letter.payload_type == "repr"
        assert letter.payload.decode("utf-8")
        assert letter.error_message == "bad"
        for unpickle in (False, True):
            with pytest.raises(ValueError, match="a payload of type 'repr' cannot be turned back into an element"):
                read(letter, unpickle)

    def test_the_description_is_the_repr_or_else_the_class(self) -> None:
        """The element's own `repr` where it works, otherwise its class."""
        local = type("Local", (), {"__repr__": lambda self: "half a pair: \ud800"})
        assert letter_of(local()).payload == b"half a pair: \\ud800"
        assert b"Unspeakable object at" in letter_of(Unspeakable()).payload

    @settings(deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
            lambda inner: (
                st.lists(inner)
                | st.tuples(inner, inner)
                | st.builds(Point, st.integers(), inner)
                | st.dictionaries(st.text() | st.integers() | st.none(), inner)
            ),
            max_leaves=8,
        )
    )
    def test_any_element_comes_back_with_all_its_types(self, element: Any) -> None:
        """Whichever form the letter chose."""
        back = read(letter_of(element), unpickle=True)
        assert type(back) is type(element)
        assert repr(back) == repr(element)


class TestUnpickling:
    def test_a_pickled_element_is_not_loaded_unless_that_is_allowed(self) -> None:
        """Loading a pickle runs the code in it, and a letter from a file may have any author."""
        letter = letter_of((1, 2))
        with pytest.raises(ValueError, match="replay it with unpickle=True"):
            read(letter)
        LOADED.clear()
        trap = letter._replace(payload=pickle.dumps(Trap()))
        with pytest.raises(ValueError, match="if you trust the letter's writer"):
            read(trap)
        assert LOADED == []
        read(trap, unpickle=True)
        assert LOADED == ["trap"]

    @pytest.mark.parametrize("payload", [b"", b"junk", pickle.dumps((1, 2))[:-3], b"cno_such_module\nThing\n."])
    def test_a_pickle_that_cannot_be_loaded_is_a_value_error(self, payload: bytes) -> None:
        """Whatever pickle itself raises, for example for a class that has moved since."""
        letter = letter_of((1, 2))._replace(payload=payload)
        with pytest.raises(ValueError, match="the pickled element cannot be loaded: ") as caught:
            read(letter, unpickle=True)
        assert type(caught.value.__cause__).__name__ in str(caught.value)

    @pytest.mark.parametrize(
        ("kind", "payload"), [("json", b"{"), ("json", b"\xff"), ("text", b"\xff"), ("", b""), ("avro", b"")]
    )
    def test_a_payload_that_does_not_fit_its_type_is_a_value_error(self, kind: str, payload: bytes) -> None:
        """A letter may have been edited by hand."""
        letter = letter_of({})._replace(payload_type=kind, payload=payload)
        with pytest.raises(ValueError, match=r".") as caught:
            read(letter)
        if kind in ("", "avro"):
            assert f"a payload of type {kind!r} cannot be turned back" in str(caught.value)


class TestMessages:
    def test_a_message_keeps_all_its_fields(self) -> None:
        """Data byte for byte, attributes, id, publish time and ordering key."""
        message = Message(b'\xff{"a"', {"id": "e1", "ë": ""}, "m1", WHEN, "c7")
        letter = letter_of(message)
        assert letter.payload_type == "pubsub"
        assert letter.publish_time == "2013-01-01T05:15:00.000000Z"
        assert read(letter) == Message(b'\xff{"a"', {"id": "e1", "ë": ""}, "m1", letter.publish_time, "c7")

    def test_empty_fields_of_a_message_become_none(self) -> None:
        """Pub/Sub's empty texts mean that a field is not set."""
        for message in (Message(None), Message(b"", {}, "", None, "")):
            letter = letter_of(message)
            assert letter[:6] == (b"", "pubsub", {}, None, None, None)

    def test_attributes_may_be_any_mapping(self) -> None:
        """The letter copies them into a dict, so later changes to the message do not reach it."""
        attributes = {"a": "1"}
        for given_attributes in (attributes, MappingProxyType(attributes)):
            letter = letter_of(Message(b"", given_attributes))
            assert letter.attributes == {"a": "1"}
            assert type(letter.attributes) is dict
            assert letter.attributes is not attributes

    @pytest.mark.parametrize(
        ("publish_time", "text"),
        [
            (WHEN.astimezone(timezone(timedelta(hours=-8))), "2013-01-01T05:15:00.000000Z"),
            (WHEN + timedelta(microseconds=1), "2013-01-01T05:15:00.000001Z"),
            (SimpleNamespace(micros=WHEN_US), "2013-01-01T05:15:00.000000Z"),
            (WHEN.replace(tzinfo=None), None),
            ("yesterday", None),
            (object(), None),
        ],
    )
    def test_a_publish_time_is_kept_only_if_it_is_a_time(self, publish_time: Any, text: str | None) -> None:
        """In UTC; an ambiguous time is dropped, and the letter is still written."""
        assert letter_of(Message(publish_time=publish_time)).publish_time == text

    @pytest.mark.parametrize(
        "message",
        [
            Message("text"),
            Message(7, {"a": "1"}),
            Message(b"x", ["a"]),
            Message(b"x", {"a": 1}),
            Message(b"x", {1: "a"}),
            Message(b"x", {"a": "\ud800"}),
            Message(b"x", {}, 17),
            Message(b"x", {}, "m1", None, 17),
        ],
    )
    def test_what_cannot_be_a_message_is_treated_as_any_other_element(self, message: Message) -> None:
        """A letter's attributes are texts; an object that looks like a message but holds other things is pickled."""
        letter = letter_of(message)
        assert letter.payload_type == "pickle"
        assert letter[2:6] == ({}, None, None, None)
        assert read(letter, unpickle=True) == message

    def test_an_element_that_only_looks_like_a_message_is_not_one(self) -> None:
        """A row with these columns keeps its other columns too."""
        raw = SimpleNamespace(id="e1", data=b"x", attributes={}, message_id="m1")
        for element in (SimpleNamespace(data=b"x"), SimpleNamespace(data=b"x", attributes={}), raw, Touchy()):
            assert letter_of(element).payload_type == "pickle"

    def test_a_dict_is_not_a_message(self) -> None:
        """Though its keys may have the names of a message's fields."""
        assert letter_of({"data": "x", "attributes": {}}).payload_type == "json"


class TestReport:
    def test_a_letter_has_all_that_is_known(self) -> None:
        """Of the failure and of the record."""
        error = RetriesExhausted("orders", "e1", ("b",), 3)
        failure = Failure("merge", error, RecordHints("e1", WHEN_US, ("a", "b")), ("b",), 3)
        assert letter_of({"id": "e1"}, failure) == DeadLetter(
            payload=b'{"id": "e1"}',
            payload_type="json",
            attributes={},
            message_id=None,
            publish_time=None,
            ordering_key=None,
            pipeline="orders",
            stage="merge",
            event_id="e1",
            event_time="2013-01-01T05:15:00.000000Z",
            keys=["a", "b"],
            failed_keys=["b"],
            error_type="RetriesExhausted",
            error_message="orders: event 'e1' failed 3 times for 'b'",
            attempts=3,
            failed_at="2013-01-01T06:15:00.000001Z",
        )

    def test_what_is_not_known_is_left_out(self) -> None:
        """No id, time or key is invented, and before the merge there are zero attempts."""
        letter = letter_of(b"")
        assert (letter.event_id, letter.event_time, letter.keys, letter.failed_keys) == (None, None, [], [])
        assert (letter.stage, letter.attempts) == ("decode", 0)

    @pytest.mark.parametrize(
        ("time_us", "text"),
        [
            (-9_223_372_036_854_775_000, None),
            (9_223_372_036_854_775_000, None),
            (0, "1970-01-01T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
        ],
    )
    def test_a_time_that_means_no_time_in_beam_becomes_none(self, time_us: int, text: str | None) -> None:
        """Users never write the smallest and largest timestamps of Beam; they do write the epoch."""
        failure = Failure("extract", ValueError(), RecordHints(None, time_us, None))
        assert letter_of(b"", failure).event_time == text

    @pytest.mark.parametrize(
        ("error", "kind", "text"),
        [
            (InvalidRecord("key", "is empty"), "InvalidRecord", "key: is empty"),
            (KeyError("a"), "KeyError", "'a'"),
            (ValueError(), "ValueError", ""),
            (ValueError("half a pair: \ud800"), "ValueError", "half a pair: \\ud800"),
            (Unspeakable(), "Unspeakable", "(its text cannot be shown: RuntimeError)"),
        ],
        ids=["invalid", "key", "empty", "surrogate", "unspeakable"],
    )
    def test_any_error_can_be_written(self, error: Exception, kind: str, text: str) -> None:
        """In UTF-8, which Beam's coders require."""
        letter = letter_of(b"", Failure("extract", error, NOTHING))
        assert (letter.error_type, letter.error_message) == (kind, text)


class TestLetterOfALetter:
    FIRST = write_letter(
        Message(b'{"v": 1}', {"id": "e1"}, "m1", WHEN, "c7"),
        "old name",
        Failure("merge", TimeoutError("late"), RecordHints("e1", WHEN_US, ("a", "b", "c")), ("b", "c"), 3),
        WHEN_US,
    )

    def again(self, letter: DeadLetter, *parts: Any) -> DeadLetter:
        """The letter of a letter that fails again."""
        return letter_of(letter, Failure(*parts))

    def test_it_holds_the_first_element_and_not_the_letter(self) -> None:
        """However often it fails, the payload is the element from the source."""
        second = self.again(self.FIRST, "merge", ValueError("x"), hints_of(self.FIRST), ("b", "c"), 5)
        third = self.again(second, "decode", ValueError("y"), hints_of(second))
        assert third[:6] == second[:6] == self.FIRST[:6]
        assert read(third) == read(self.FIRST)

    def test_it_reports_the_latest_failure(self) -> None:
        """Where, why and when it failed this time."""
        second = self.again(self.FIRST, "extract", KeyError("z"), hints_of(self.FIRST), (), 0)
        assert (second.pipeline, second.stage, second.error_type, second.error_message, second.attempts) == (
            "orders",
            "extract",
            "KeyError",
            "'z'",
            0,
        )
        assert second.failed_at == "2013-01-01T06:15:00.000001Z"
        assert (second.event_id, second.event_time) == ("e1", self.FIRST.event_time)

    def test_failed_keys_are_those_that_failed_again(self) -> None:
        """All keys of the event are still named, though only the failed ones were tried."""
        second = self.again(self.FIRST, "merge", ValueError("x"), RecordHints("e1", WHEN_US, ("b", "c")), ("c",), 1)
        assert (second.keys, second.failed_keys) == (["a", "b", "c"], ["c"])
        third = self.again(second, "merge", ValueError("x"), RecordHints("e1", WHEN_US, ("c",)), ("c",), 1)
        assert (third.keys, third.failed_keys) == (["a", "b", "c"], ["c"])

    def test_a_failure_before_the_merge_keeps_the_failed_keys(self) -> None:
        """A replay with the wrong decoder must not turn the failed keys into all keys."""
        for stage in ("decode", "extract"):
            second = self.again(self.FIRST, stage, ValueError("x"), hints_of(self.FIRST))
            assert (second.keys, second.failed_keys) == (["a", "b", "c"], ["b", "c"])

    def test_keys_of_a_record_that_was_never_merged_are_extracted_again(self) -> None:
        """The keys themselves may have been wrong: only the result of the mended function counts."""
        first = letter_of(b"{}", Failure("extract", ValueError("x"), RecordHints("e1", WHEN_US, ("wrong",))))
        assert hints_of(first).keys is None
        second = self.again(first, "merge", ValueError("x"), RecordHints("e1", WHEN_US, ("right", "too")), ("too",), 1)
        assert (second.keys, second.failed_keys) == (["right", "too"], ["too"])

    def test_known_keys_are_kept_if_the_next_failure_comes_earlier(self) -> None:
        """If the next failure comes before keys are extracted, those of the letter remain."""
        first = letter_of(b"{}", Failure("extract", ValueError("x"), RecordHints("e1", WHEN_US, ("a",))))
        second = self.again(first, "decode", ValueError("x"), NOTHING)
        assert (second.keys, second.failed_keys) == (["a"], [])


class TestKnownOf:
    def test_a_failed_merge_is_retried_for_the_failed_keys(self) -> None:
        """Under the same id and at the same time, to the microsecond."""
        letter = letter_of(b"", Failure("merge", ValueError(), RecordHints("e1", WHEN_US + 1, ("a", "b")), ("b",), 3))
        assert hints_of(letter) == RecordHints("e1", WHEN_US + 1, ("b",))

    def test_without_failed_keys_the_keys_are_extracted_again(self) -> None:
        """So is everything else that the letter does not hold."""
        letter = letter_of(b"", Failure("extract", ValueError(), RecordHints("e1", None, ("a",))))
        assert hints_of(letter) == RecordHints("e1", None, None)
        assert hints_of(letter_of(b"")) == NOTHING

    def test_a_letter_read_from_json_gives_the_same(self) -> None:
        """Lists instead of tuples make no difference."""
        letter = letter_of(b"", Failure("merge", ValueError(), RecordHints("e1", WHEN_US, ("a", "b")), ("b",), 3))
        assert hints_of(DeadLetter.from_json(letter.to_json())) == hints_of(letter)

    def test_an_invalid_time_is_refused(self) -> None:
        """A letter may have been edited by hand."""
        with pytest.raises(InvalidRecord, match="event_time: 'yesterday' is not an RFC 3339 time"):
            hints_of(letter_of(b"")._replace(event_time="yesterday"))

    @settings(deadline=None)
    @given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
    def test_any_time_is_read_back(self, time_us: int) -> None:
        """Over the whole calendar."""
        letter = letter_of(b"", Failure("merge", ValueError(), RecordHints(None, time_us, None)))
        assert hints_of(letter).event_time_us == time_us


class TestReplay:
    @pytest.mark.parametrize(
        "element",
        [
            b'{"id": "e1", "v": 5, "k": ["a", "b"]}',
            {"id": "e1", "v": 5, "k": ["a", "b"]},
            {"id": "e1", "v": 5, "k": ("a", "b")},
            Message(b'{"id": "e1", "v": 5, "k": ["a", "b"]}', {"x": "y"}),
            SimpleNamespace(id="e1", v=5, k=["a", "b"]),
        ],
        ids=lambda element: type(element).__name__,
    )
    def test_a_replayed_element_makes_the_same_record_for_the_failed_keys(self, element: Any) -> None:
        """From extraction to letter, to JSON and back to extraction."""
        extraction = Extraction(
            keys=lambda record: record["k"] if isinstance(record, Mapping) else record.k, value="v", event_id="id"
        )
        extractor = Extractor(extraction, Sum(), need_id=True, need_time=False)
        record = Record(*extractor.record(element, WHEN_US))
        failure = Failure(
            "merge", TimeoutError(), RecordHints(record.event_id, record.event_time_us, ("a", "b")), ("b",), 3
        )
        letter = DeadLetter.from_json(letter_of(element, failure).to_json())
        replayed = extractor.record(read(letter, unpickle=True), 0, hints_of(letter))
        assert record == Record("e1", WHEN_US, ("a", "b"), 5)
        assert replayed == Record("e1", WHEN_US, ("b",), 5)

    def test_a_message_without_data_can_be_replayed(self) -> None:
        """All its content is in its attributes, before and after."""
        extraction = Extraction(keys=("attribute:user",), value=lambda record: 1, event_id="attribute:id")
        extractor = Extractor(extraction, Sum(), need_id=True, need_time=False)
        message = Message(None, {"user": "c7", "id": "e1"})
        letter = letter_of(message)
        assert extractor.record(read(letter), 0) == extractor.record(message, 0) == Record("e1", 0, ("c7",), 1)

    def test_the_letter_of_a_rejected_element_has_all_that_was_extracted(self) -> None:
        """What the extractor knows is what the letter says."""
        extractor = Extractor(Extraction(("k",), "v", "id"), Sum(), need_id=True, need_time=False)
        with pytest.raises(Rejected) as caught:
            extractor.record(b'{"id": "e1", "v": "five", "k": "a"}', WHEN_US)
        rejection = caught.value
        letter = letter_of(b"...", Failure(rejection.stage, rejection.error, rejection.hints))
        assert (letter.stage, letter.event_id, letter.keys) == ("extract", "e1", ["a"])
        assert letter.event_time == "2013-01-01T05:15:00.000000Z"
        assert letter.error_message == "value: 'five' is not an integer"
