"""Records, dead letters and times: valid records, letters that lose nothing, exact times."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import (
    MAX_ENTITY_BYTES,
    DeadLetter,
    Key,
    Outcome,
    check_entity,
    check_event_id,
    from_us,
    is_representable,
    rfc3339,
    to_us,
)
from tests.support.records import Record

UTC = timezone.utc
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

# Half a surrogate pair is a valid str, as json.loads('"\\ud800"') shows, but has no UTF-8 form. Two halves side by side
# are left out: no JSON text can distinguish them from the character that they make.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(["\ud800", "\udbff"]))
LETTERS = st.builds(
    DeadLetter,
    payload=st.binary() | st.text().map(str.encode),
    payload_type=st.sampled_from(["bytes", "pubsub", "text", "json", "pickle", "repr"]),
    attributes=st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3),
    message_id=st.none() | ANY_TEXT,
    publish_time=st.none() | ANY_TEXT,
    ordering_key=st.none() | ANY_TEXT,
    pipeline=ANY_TEXT,
    stage=st.sampled_from(["decode", "extract", "merge"]),
    event_id=st.none() | ANY_TEXT,
    event_time=st.none() | ANY_TEXT,
    keys=st.lists(ANY_TEXT, max_size=3),
    failed_keys=st.lists(ANY_TEXT, max_size=3),
    error_type=ANY_TEXT,
    error_message=ANY_TEXT,
    attempts=st.integers(0, 100),
    failed_at=ANY_TEXT,
)
LETTER = DeadLetter(
    payload=b'{"user": "u1"}',
    payload_type="pubsub",
    attributes={"event_id": "e1"},
    message_id="77",
    publish_time="2023-11-14T22:13:20.000000Z",
    ordering_key=None,
    pipeline="orders",
    stage="merge",
    event_id="e1",
    event_time="2023-11-14T22:13:19.000000Z",
    keys=["u1", "all"],
    failed_keys=["all"],
    error_type="TransientError",
    error_message="busy",
    attempts=3,
    failed_at="2023-11-14T22:13:21.000000Z",
)


class TestRecord:
    def test_it_keeps_its_arguments(self) -> None:
        """Id, time, entities and delta; entities as a tuple, in order."""
        assert Record.of("e1", -5, iter(["b", "a"]), 7) == Record("e1", -5, ("b", "a"), 7)

    def test_repeated_entities_are_dropped(self) -> None:
        """The first of them keeps its place."""
        assert Record.of("e1", 0, ["b", "a", "b", "a"], 7).entities == ("b", "a")

    def test_no_entities_and_no_event_id_are_allowed(self) -> None:
        """Such a record touches no row, or may be counted again."""
        assert Record.of(None, 0, [], 1) == Record(None, 0, (), 1)

    @pytest.mark.parametrize("entities", ["abc", "a", ""])
    def test_one_string_is_not_a_list_of_its_characters(self, entities: str) -> None:
        """Python would split it; three counters called a, b and c are never intended."""
        with pytest.raises(InvalidRecord, match="key: expected a list of strings, got one string"):
            Record.of("e1", 0, entities, 1)

    @pytest.mark.parametrize(
        ("entity", "problem"),
        [
            ("", "is empty"),
            (None, "expected a string, got NoneType"),
            (7, "expected a string, got int: 7"),
            (b"a", "expected a string, got bytes"),
            (True, "expected a string, got bool"),
            ("a\ud800b", "has no UTF-8 form"),
            ("x" * (MAX_ENTITY_BYTES + 1), f"{MAX_ENTITY_BYTES + 1} bytes long, at most {MAX_ENTITY_BYTES}"),
            ("x" * 5120, "5120 bytes long"),
            ("\N{SNOWMAN}" * (MAX_ENTITY_BYTES // 3 + 1), "bytes long"),
        ],
    )
    def test_an_unusable_entity_is_refused(self, entity: object, problem: str) -> None:
        """The error names the field and the problem, in a line that fits a log."""
        with pytest.raises(InvalidRecord) as failed:
            Record.of("e1", 0, ["fine", entity], 1)
        assert failed.value.field == "key"
        assert problem in str(failed.value)
        assert len(str(failed.value)) < 200

    @pytest.mark.parametrize("entity", ["a", " ", "\0", "a#b/c", "x" * 4000, "\N{SNOWMAN}" * 1333, "\U0001f600" * 1000])
    def test_any_other_text_is_an_entity(self, entity: str) -> None:
        """Up to the limit in UTF-8 bytes, whatever the characters."""
        assert check_entity(entity) is entity

    @pytest.mark.parametrize(
        ("event_id", "text"), [("e1", "e1"), (7, "7"), (0, "0"), (-3, "-3"), (2**70, str(2**70)), (" ", " ")]
    )
    def test_an_event_id_is_text_or_an_integer(self, event_id: object, text: str) -> None:
        """An integer stands for its decimal text."""
        assert check_event_id(event_id) == Record.of(event_id, 0, [], 1).event_id == text

    @pytest.mark.parametrize("event_id", ["", True, False, 1.0, b"e1", ["e1"], "e\udfff"])
    def test_an_unusable_event_id_is_refused(self, event_id: object) -> None:
        """A bool would be the same text for half of all events; a float has several texts."""
        with pytest.raises(InvalidRecord) as failed:
            Record.of(event_id, 0, ["a"], 1)
        assert failed.value.field == "event_id"


class TestDeadLetter:
    @given(LETTERS)
    @example(LETTER)
    @example(LETTER._replace(payload=b"\xff\x00"))
    @example(LETTER._replace(payload=b""))
    @example(LETTER._replace(keys=["\ud800"]))
    def test_json_loses_nothing(self, letter: DeadLetter) -> None:
        """Any payload, any text: one line, valid UTF-8, and an equal letter is read back from text and bytes."""
        line = letter.to_json()
        assert "\n" not in line
        assert DeadLetter.from_json(line) == letter
        assert DeadLetter.from_json(line.encode("utf-8")) == letter

    @given(LETTERS)
    def test_a_dictionary_loses_nothing(self, letter: DeadLetter) -> None:
        """It holds only JSON's own types, and does not share its lists with the letter."""
        row = letter.to_dict()
        assert DeadLetter.from_dict(row) == letter
        assert json.loads(json.dumps(row)) == row
        assert row["keys"] is not letter.keys
        assert row["attributes"] is not letter.attributes

    @given(LETTERS)
    def test_it_pickles(self, letter: DeadLetter) -> None:
        """Runners may send it to another process."""
        assert pickle.loads(pickle.dumps(letter)) == letter

    def test_readable_payloads_stay_readable(self) -> None:
        """UTF-8 is text, anything else base64 under another name; never both."""
        assert LETTER.to_dict()["payload"] == '{"user": "u1"}'
        assert "payload_base64" not in LETTER.to_dict()
        binary = LETTER._replace(payload=b"\xff\x00").to_dict()
        assert binary["payload_base64"] == "/wA="
        assert "payload" not in binary
        assert "Zo\xeb" in LETTER._replace(error_message="Zo\xeb").to_json()

    def test_tuples_and_mappings_become_lists_and_dictionaries(self) -> None:
        """So that JSON and Beam's coders agree on their types."""

        class Attributes(Mapping[str, str]):
            def __getitem__(self, name: str) -> str:
                return {"k": "v"}[name]

            def __iter__(self) -> Any:
                return iter(["k"])

            def __len__(self) -> int:
                return 1

        letter = LETTER._replace(keys=("a", "b"), failed_keys=("b",), attributes=Attributes())
        again = DeadLetter.from_json(letter.to_json())
        assert (again.keys, again.failed_keys, again.attributes) == (["a", "b"], ["b"], {"k": "v"})

    def test_a_dictionary_may_hold_the_payload_as_bytes(self) -> None:
        """As Beam's rows do."""
        assert DeadLetter.from_dict(LETTER._asdict()) == LETTER

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("", "not JSON"),
            ("{", "not JSON"),
            (b"\xff\xfe\xfd", "not JSON"),
            ("[]", "expected a JSON object, got list"),
            ("7", "expected a JSON object, got int"),
            ("{}", "it lacks attempts, attributes, error_message"),
            (json.dumps({**LETTER.to_dict(), "colour": 1}), "it has unknown colour"),
            (json.dumps({**LETTER.to_dict(), "payload": None}), "payload is a NoneType"),
            (json.dumps({**LETTER.to_dict(), "payload": 7}), "payload is a int"),
            (json.dumps({**LETTER.to_dict(), "payload_base64": "%%%"}), "payload_base64 is not base64"),
            (json.dumps({**LETTER.to_dict(), "payload_base64": 7}), "payload_base64 is not base64"),
        ],
    )
    def test_anything_else_is_refused_with_the_reason(self, line: str | bytes, problem: str) -> None:
        """A replay of the wrong file says so, and what is wrong with it."""
        with pytest.raises(ValueError, match="not a dead letter") as failed:
            DeadLetter.from_json(line)
        assert problem in str(failed.value)

    def test_missing_and_unknown_fields_are_both_named(self) -> None:
        """A misspelt field is both."""
        row = LETTER.to_dict()
        row["statge"] = row.pop("stage")
        with pytest.raises(ValueError, match="it lacks stage; it has unknown statge"):
            DeadLetter.from_dict(row)


class NoOffset(tzinfo):
    """A time zone that does not know its offset: Python calls such a time naive, too."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "?"


AWARE = st.datetimes(timezones=st.just(UTC) | st.timezones())


class TestTimes:
    @given(st.datetimes(timezones=st.just(UTC)))
    def test_to_us_is_exact_and_from_us_its_inverse(self, time: datetime) -> None:
        """Not a microsecond is lost, unlike with a float's 53 bits; checked with integers only."""
        since = time - datetime(1970, 1, 1, tzinfo=UTC)
        assert to_us(time) == (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
        assert from_us(to_us(time)) == time
        assert from_us(to_us(time)).utcoffset() == timedelta(0)

    @given(AWARE, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
    def test_the_same_instant_has_one_number_in_every_zone(self, time: datetime, offset: timedelta) -> None:
        """An offset changes the clock's face, not the instant."""
        try:
            elsewhere, utc = time.astimezone(timezone(offset)), time.astimezone(UTC)
        except OverflowError:
            return  # the first and last hours of all time do not exist in every zone
        assert to_us(elsewhere) == to_us(utc) == to_us(time)

    @pytest.mark.parametrize(
        ("time", "us"),
        [
            (datetime(1970, 1, 1, tzinfo=UTC), 0),
            (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1),
            (datetime(1970, 1, 1, tzinfo=timezone(timedelta(hours=1))), -3_600_000_000),
            (datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC), 1_700_000_000_000_001),
            (LAST, 253_402_300_799_999_999),
            (FIRST, -62_135_596_800_000_000),
        ],
    )
    def test_to_us_by_example(self, time: datetime, us: int) -> None:
        """By hand."""
        assert to_us(time) == us

    @pytest.mark.parametrize("naive", [datetime(2023, 1, 1), datetime(2023, 1, 1, tzinfo=NoOffset())])
    def test_a_time_without_a_zone_is_refused(self, naive: datetime) -> None:
        """It would mean another hour on each machine; the error says what to write."""
        with pytest.raises(InvalidRecord, match="event_time: 2023-01-01T00:00:00 has no time zone; write tzinfo"):
            to_us(naive)

    @pytest.mark.parametrize("value", [None, 0, 1.5, "2023-01-01T00:00:00Z", datetime(2023, 1, 1).date()])
    def test_anything_but_a_datetime_is_refused(self, value: Any) -> None:
        """A date or a text is not guessed."""
        with pytest.raises(InvalidRecord, match="event_time: expected a datetime"):
            to_us(value)

    @pytest.mark.parametrize(
        "outside",
        [FIRST.replace(tzinfo=timezone(timedelta(hours=1))), LAST.replace(tzinfo=timezone(-timedelta(hours=1)))],
    )
    def test_a_time_outside_the_calendar_in_utc_is_refused(self, outside: datetime) -> None:
        """`from_us` and `rfc3339` could not represent it."""
        with pytest.raises(InvalidRecord, match="outside the years 1 to 9999"):
            to_us(outside)

    @pytest.mark.parametrize(
        ("us", "text"),
        [
            (0, "1970-01-01T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (1_700_000_000_000_000, "2023-11-14T22:13:20.000000Z"),
            (to_us(FIRST), "0001-01-01T00:00:00.000000Z"),
            (to_us(LAST), "9999-12-31T23:59:59.999999Z"),
        ],
    )
    def test_rfc3339_has_a_fixed_width(self, us: int, text: str) -> None:
        """Years before 1000 included, so that the texts sort as the times do."""
        assert rfc3339(us) == text

    @given(st.integers(to_us(FIRST), to_us(LAST)))
    def test_rfc3339_is_read_back(self, us: int) -> None:
        """By Python's own parser, to the same microsecond."""
        assert to_us(datetime.fromisoformat(rfc3339(us).replace("Z", "+00:00"))) == us

    @pytest.mark.parametrize("us", [to_us(FIRST) - 1, to_us(LAST) + 1, 2**63 - 1, -(2**63)])
    def test_times_that_no_datetime_holds_are_recognised(self, us: int) -> None:
        """Beam's smallest and largest timestamps, which mean "no timestamp", can be recognised before a conversion."""
        assert not is_representable(us)
        with pytest.raises(OverflowError):
            rfc3339(us)
        with pytest.raises(OverflowError):
            from_us(us)

    def test_the_edges_can_be_represented(self) -> None:
        """Both belong to the calendar."""
        assert is_representable(to_us(FIRST))
        assert is_representable(to_us(LAST))


def test_an_outcome_is_its_text() -> None:
    """It compares, prints and serializes as "merged" and so on."""
    assert [str(outcome) for outcome in Outcome] == ["merged", "duplicate", "recorded", "expired"]
    assert Outcome.MERGED == "merged"
    assert f"{Outcome.EXPIRED}" == "expired"
    assert json.dumps(Outcome.DUPLICATE) == '"duplicate"'
    assert pickle.loads(pickle.dumps(Outcome.MERGED)) is Outcome.MERGED


def test_a_key_without_a_window_has_bucket_zero() -> None:
    """One aggregate over all time."""
    assert Key("a") == Key("a", 0) == ("a", 0)
