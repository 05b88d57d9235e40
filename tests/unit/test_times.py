"""Times: which values are times, and what is assumed where a value names no unit or zone."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pytest
from google.protobuf import timestamp_pb2
from hypothesis import example, given
from hypothesis import strategies as st
from proto.datetime_helpers import DatetimeWithNanoseconds

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.model import EPOCH, to_us
from murmur_beam.times import TimeFormat, event_time_us, parse_rfc3339
from tests.support.records import BEAM_MAX_US, BEAM_MIN_US, UNTIMED, UTC, WHEN, WHEN_US, attempt

SECOND_US = 1_000_000
FIRST_US, LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The first and the last microsecond of the years 1 to 9999."""


class Micros(NamedTuple):
    """Has the attribute of Beam's Timestamp."""

    micros: Any


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
            (99_999_999_999, 99_999_999_999 * SECOND_US),
            (1_357_017_300_123, WHEN_US + 123_000),
            (-1_357_017_300_123, -WHEN_US - 123_000),
            (1_357_017_300_123.0, WHEN_US + 123_000),
            (1_357_017_300_123_456, WHEN_US + 123_456),
            (1_357_017_300_123_456_789, WHEN_US + 123_456),
            (Decimal("1357017300.123456789"), WHEN_US + 123_456),
            ("1357017300", WHEN_US),
            ("1357017300.5", WHEN_US + 500_000),
            ("1.3570173e9", WHEN_US),
            ("1357017300123", WHEN_US + 123_000),
            ("964982703", 964_982_703 * SECOND_US),
            (np.int64(1_357_017_300), WHEN_US),
            (np.float64(1_357_017_300.5), WHEN_US + 500_000),
            ("2013-01-01 05:15:00.45 UTC", WHEN_US + 450_000),
            ("2013-01-01 05:15:00 utc", WHEN_US),
            ("2013-01-01T05:15:00 GMT", WHEN_US),
            ("2013-01-01 05:15:00+00", WHEN_US),
            ("2013-01-01 05:15:00.123456-08", WHEN_US + 123_456 + 8 * 3600 * SECOND_US),
            ("2013-01-01 10:45:00+05:30", WHEN_US),
            ("1890-01-01 00:19:32+00:19:32", -80 * 365 * 86_400 * SECOND_US - 19 * 86_400 * SECOND_US),
            ("2013-01-01T05:15Z", WHEN_US),
            ("2013-01-01T05:15:00,5Z", WHEN_US + 500_000),
            (" 2013-01-01T05:15:00Z ", WHEN_US),
            ("2013-01-01T05:15:00.123456789012Z", WHEN_US + 123_456),
            ("2013-01-01T06:15:00 +01:00", WHEN_US),
            ("2013-01-01", WHEN_US - (5 * 3600 + 15 * 60) * SECOND_US),
            (date(2013, 1, 1), WHEN_US - (5 * 3600 + 15 * 60) * SECOND_US),
            ("0001-01-01", FIRST_US),
            ("2016-12-31T23:59:60Z", 1_483_228_800 * SECOND_US - 1),
            ("2016-12-31T23:59:60.5Z", 1_483_228_800 * SECOND_US - 1),
            ("2017-01-01 05:29:60+05:30", 1_483_228_800 * SECOND_US - 1),
            (timestamp_pb2.Timestamp(seconds=1_357_017_300, nanos=123_456_789), WHEN_US + 123_456),
            (DatetimeWithNanoseconds(2013, 1, 1, 5, 15, nanosecond=123_456_789, tzinfo=UTC), WHEN_US + 123_456),
            (Micros(WHEN_US), WHEN_US),
            (Micros(-1), -1),
            (Micros(FIRST_US), FIRST_US),
            (Micros(LAST_US), LAST_US),
        ],
    )
    def test_a_time_is_read(self, value: Any, time_us: int) -> None:
        """Datetimes with a zone, the forms of RFC 3339, BigQuery and PostgreSQL, days, Unix times, and objects with
        ``micros``; always an int."""
        got = event_time_us(value)
        assert got == time_us
        assert type(got) is int

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (WHEN.replace(tzinfo=None), "has no time zone"),
            ("2013-01-01T05:15:00", "has no time zone; add Z or an offset such as +01:00"),
            ("2013-01-01T05:15:00.Z", "is not an RFC 3339 time"),
            ("2013-01-01T05:15:00Z\n", "is not an RFC 3339 time"),
            ("2013-01-01_05:15:00Z", "is not an RFC 3339 time"),
            ("20130101T051500Z", "is not an RFC 3339 time"),
            ("13-01-01T05:15:00Z", "is not an RFC 3339 time"),
            ("\uff12\uff10\uff11\uff13-01-01T05:15:00Z", "is not an RFC 3339 time"),
            ("2013-01-01T05:15:00" + "Z" * 1000, "is not an RFC 3339 time"),
            ("", "is not an RFC 3339 time"),
            ("2013-01-01T24:00:00Z", "is not an RFC 3339 time"),
            ("2013-01-01T29:00:00Z", "is not an RFC 3339 time"),
            ("2013-01-01T30:00:00Z", "is not an RFC 3339 time"),
            ("2013-01-01T05:60:00Z", "minute must be in 0..59"),
            ("2013-02-29T05:15:00Z", "day"),
            ("2013-13-01T05:15:00Z", "month must be in 1..12"),
            ("2013-01-01T05:15:00+24:00", "'2013-01-01T05:15:00+24:00': "),
            ("2013-01-01 05:15:00", "has no time zone; add Z or an offset such as +01:00, or set the zone with"),
            ("2016-12-31T22:59:60Z", "second 60 exists only before midnight in UTC"),
            ("2016-12-31T23:59:60+01:00", "second 60 exists only before midnight in UTC"),
            ("2016-12-31T23:59:61Z", "second must be in 0..59"),
            ("2013-01-01T05:15:00 Mars", "is not an RFC 3339 time"),
            ("2013-02-30", "day"),
            ("infinity", "is not an RFC 3339 time"),
            ("NaT", "is not an RFC 3339 time"),
            (np.datetime64("NaT"), "is not an RFC 3339 time"),
            (np.datetime64("2013-01-01T05:15:00"), "has no time zone"),
            ("12013-01-01T05:15:00Z", "lies outside the years 1 to 9999"),
            ("0000-01-01T00:00:00Z", "lies outside the years 1 to 9999"),
            ("0000-12-31", "lies outside the years 1 to 9999"),
            ("2013", "may be a date or Unix time; set the unit with time_unit (--time_unit s)"),
            ("20130101", "may be a date or Unix time"),
            ("0", "may be a date or Unix time"),
            ("20130101051500", "is not clearly Unix time: it has 14 digits"),
            (20_130_101_051_500, "is not clearly Unix time: it has 14 digits"),
            (10**11, "is not clearly Unix time: it has 12 digits"),
            (10**400, "expected a finite number of seconds, got an integer of thousands of digits"),
            ("1e999", "lies outside"),
            ("9" * 400, "is not an RFC 3339 time"),
            (Decimal("NaN"), "expected a finite number of seconds, got NaN"),
            (10**29, "is not clearly Unix time: it has 30 digits"),
            ("0001-01-01T00:00:00+00:01", "lies outside the years 1 to 9999 in UTC"),
            ("9999-12-31T23:59:59-00:01", "lies outside the years 1 to 9999 in UTC"),
            (math.nan, "expected a finite number of seconds, got nan"),
            (math.inf, "expected a finite number of seconds, got inf"),
            (-math.inf, "expected a finite number of seconds, got -inf"),
            (FIRST_US // SECOND_US - 1, "lies outside the years 1 to 9999 in UTC"),
            (Micros(BEAM_MIN_US), "lies outside the years 1 to 9999 in UTC"),
            (Micros(BEAM_MAX_US), "lies outside the years 1 to 9999 in UTC"),
            (Micros(FIRST_US - 1), "lies outside the years 1 to 9999 in UTC"),
            (Micros(LAST_US + 1), "lies outside the years 1 to 9999 in UTC"),
            (Micros("5"), "expected a datetime, RFC 3339 text or Unix time, got Micros"),
            (True, "expected a datetime, RFC 3339 text or Unix time, got bool: True"),
            (None, "expected a datetime, RFC 3339 text or Unix time, got NoneType: None"),
            (b"2013-01-01T05:15:00Z", "expected a datetime, RFC 3339 text or Unix time, got bytes"),
        ],
        ids=lambda value: str(value)[:40].encode("unicode_escape").decode(),
    )
    def test_anything_else_is_refused_with_the_reason(self, value: Any, reason: str) -> None:
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
        """``datetime.timestamp()`` of any present-day time gives that time back, not one microsecond less."""
        assert event_time_us(time.timestamp()) == to_us(time)

    @UNTIMED
    @given(st.text(alphabet="0123456789TtZz:+-. eUC"))
    def test_any_text_is_a_time_or_an_invalid_one(self, text: str) -> None:
        """No text makes the parser fail in another way."""
        time = attempt(event_time_us, InvalidRecord, text)
        assert time.field == "event_time" if isinstance(time, InvalidRecord) else FIRST_US <= time <= LAST_US


class TestAssumptions:
    @pytest.mark.parametrize(
        ("unit", "value", "time_us"),
        [
            ("s", 1_357_017_300, WHEN_US),
            ("s", "5", 5 * SECOND_US),
            ("ms", 5, 5_000),
            ("ms", "-1.5", -1_500),
            ("ms", 1_357_017_300_000.5, WHEN_US + 500),
            ("us", 5, 5),
            ("us", "1357017300000000", WHEN_US),
            ("ns", 5_999, 5),
            ("ns", -1, -1),
            ("ns", "1357017300000000999", WHEN_US),
            ("ms", "2013-01-01T05:15:00Z", WHEN_US),
        ],
    )
    def test_a_named_unit_is_not_guessed(self, unit: str, value: Any, time_us: int) -> None:
        """For numbers and their texts; other texts include the unit."""
        assert TimeFormat(unit).reader()(value) == time_us

    @pytest.mark.parametrize("value", [10**18, "1" * 29, 10**40, -(10**20), 1e300])
    @pytest.mark.parametrize("unit", ["s", "ms"])
    def test_times_outside_the_calendar_are_refused_in_any_unit(self, unit: str, value: Any) -> None:
        """However large the number is."""
        with pytest.raises(InvalidRecord, match=r"years 1 to 9999|finite"):
            TimeFormat(unit).reader()(value)

    @pytest.mark.parametrize(
        ("zone", "value", "text"),
        [
            ("UTC", "2013-01-01 05:15:00", "2013-01-01T05:15:00Z"),
            ("+01:00", "2013-01-01T06:15", "2013-01-01T05:15:00Z"),
            ("-0530", datetime(2013, 1, 1), "2013-01-01T05:30:00Z"),
            ("Europe/Paris", "2013-01-01", "2012-12-31T23:00:00Z"),
            ("Europe/Paris", date(2013, 7, 1), "2013-06-30T22:00:00Z"),
            ("America/New_York", "2013-07-01 00:00:00.25", "2013-07-01T04:00:00.25Z"),
            ("Europe/Paris", np.datetime64("2013-07-01T02:00:00.000000001"), "2013-07-01T00:00:00Z"),
            ("Europe/Paris", "2013-01-01T05:15:00Z", "2013-01-01T05:15:00Z"),
            ("Europe/Paris", "2013-01-01 05:15:00+00", "2013-01-01T05:15:00Z"),
            ("Europe/Paris", WHEN, "2013-01-01T05:15:00Z"),
        ],
    )
    def test_a_zone_is_assumed_where_none_is_named(self, zone: str, value: Any, text: str) -> None:
        """For times and for days, as text or not; a named zone counts."""
        assert TimeFormat(zone=zone).reader()(value) == event_time_us(text)

    @pytest.mark.parametrize("zone", ["Mars", "", "+1", "+24:00", "../etc/passwd", 5])
    def test_an_unknown_zone_is_refused_at_once(self, zone: Any) -> None:
        """When the pipeline is built."""
        with pytest.raises(ConfigurationError, match=r"^assume_zone: unknown time zone"):
            TimeFormat(zone=zone)

    @pytest.mark.parametrize("unit", ["m", "", "seconds", 5])
    def test_an_unknown_unit_is_refused_at_once(self, unit: Any) -> None:
        """When the pipeline is built."""
        with pytest.raises(ConfigurationError, match=r"^time_unit: expected s, ms, us, ns"):
            TimeFormat(unit)

    @pytest.mark.parametrize(
        ("value", "ns"),
        [
            ("2013-01-01T05:15:00.000000123Z", 123),
            ("2013-01-01T05:15:00.1234567Z", 700),
            ("2013-01-01T05:15:00.123456Z", 0),
            ("1969-12-31T23:59:59.9999999Z", 900),
            (1_357_017_300_000_000_123, 123),
            ("1357017300.000000123", 123),
            (-1_357_017_300_000_000_001, 999),
            (1_357_017_300.5, 0),
            (timestamp_pb2.Timestamp(nanos=1_001), 1),
            (DatetimeWithNanoseconds(2013, 1, 1, nanosecond=1_001, tzinfo=UTC), 1),
            (WHEN, 0),
        ],
    )
    def test_nanoseconds_are_the_rest_below_a_microsecond(self, value: Any, ns: int) -> None:
        """Always forward in time, also before 1970."""
        assert TimeFormat().nanoseconds(value) == ns

    @UNTIMED
    @given(st.integers(FIRST_US * 1000, LAST_US * 1000 + 999))
    def test_unix_nanoseconds_are_exact(self, time_ns: int) -> None:
        """As number and as text, over the whole calendar."""
        of = TimeFormat("ns")
        for value in (time_ns, str(time_ns)):
            assert (of.reader()(value), of.nanoseconds(value)) == divmod(time_ns, 1000)
