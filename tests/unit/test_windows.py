"""Buckets of event time: examples that a person can check, and properties for any time, zone and length."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from murmur_beam.durations import parse_duration
from murmur_beam.errors import InvalidRecord
from murmur_beam.windows import WindowConfig, daily, hourly, minute, parse_window

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)

TIMES = st.datetimes(timezones=st.just(UTC))
ZONED = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.timezones())
GRANULARITIES = st.sampled_from(
    [timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), DAY, timedelta(weeks=1)]
) | st.timedeltas(timedelta(milliseconds=1), timedelta(days=400))


def exact_seconds(duration: timedelta) -> Fraction:
    """The Unix time without the rounding of a float."""
    return Fraction(duration.days) * 86_400 + Fraction(duration.seconds) + Fraction(duration.microseconds, 1_000_000)


class TestBucketId:
    @pytest.mark.parametrize(
        ("window", "time", "bucket"),
        [
            (daily(), EPOCH, 0),
            (daily(), EPOCH + DAY - MICROSECOND, 0),
            (daily(), EPOCH + DAY, 1),
            (daily(), EPOCH - MICROSECOND, -1),
            (daily(), EPOCH - DAY, -1),
            (daily(), EPOCH - DAY - MICROSECOND, -2),
            (daily(), datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), 19_675),
            (hourly(), datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), 472_222),
            (minute(), datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), 28_333_333),
            (daily(), datetime(1, 1, 1, tzinfo=UTC), -719_162),
            (daily(), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), 2_932_896),
            (WindowConfig(timedelta(days=7)), datetime(1970, 1, 7, 23, tzinfo=UTC), 0),
            (WindowConfig(timedelta(days=7)), datetime(1970, 1, 8, tzinfo=UTC), 1),
            (WindowConfig(timedelta(hours=7)), datetime(1970, 1, 2, 4, tzinfo=UTC), 4),
            (WindowConfig(MICROSECOND), EPOCH + MICROSECOND, 1),
            (WindowConfig(timedelta.max), EPOCH - MICROSECOND, -1),
        ],
    )
    def test_by_example(self, window: WindowConfig, time: datetime, bucket: int) -> None:
        """Before 1970, exactly on an edge, far away, and with lengths that do not divide a day."""
        assert window.bucket_id(time) == bucket

    @given(TIMES, GRANULARITIES)
    def test_it_is_the_floor_of_unix_time_over_granularity(self, time: datetime, granularity: timedelta) -> None:
        """Computed a second time with fractions."""
        exact = math.floor(exact_seconds(time - EPOCH) / exact_seconds(granularity))
        assert WindowConfig(granularity).bucket_id(time) == exact

    @given(ZONED, GRANULARITIES)
    def test_the_zone_of_a_time_does_not_matter(self, time: datetime, granularity: timedelta) -> None:
        """Tokyo, New York in summer, a skipped or repeated hour: the instant decides."""
        window = WindowConfig(granularity)
        assert window.bucket_id(time) == window.bucket_id(time.astimezone(UTC))

    def test_the_repeated_hour_of_a_clock_change_falls_into_two_buckets(self) -> None:
        """02:30 on 29 October 2023 came twice in Berlin, one hour apart."""
        first = datetime(2023, 10, 29, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
        assert hourly().bucket_id(first.replace(fold=1)) == hourly().bucket_id(first) + 1

    def test_a_local_day_is_not_a_utc_day(self) -> None:
        """Midnight in Tokyo lies in the afternoon of the UTC day before."""
        midnight = datetime(2023, 11, 15, tzinfo=ZoneInfo("Asia/Tokyo"))
        assert daily().bucket_start(daily().bucket_id(midnight)) == datetime(2023, 11, 14, tzinfo=UTC)

    def test_a_naive_time_is_refused(self) -> None:
        """It would fall into another bucket on each machine."""
        with pytest.raises(InvalidRecord, match="no time zone"):
            daily().bucket_id(datetime(2023, 11, 14))


class TestBucketStart:
    @given(TIMES, GRANULARITIES)
    def test_a_bucket_covers_its_start_but_not_its_end(self, time: datetime, granularity: timedelta) -> None:
        """``start <= t < start + granularity``, and the start is in the bucket, the instant before is not."""
        window = WindowConfig(granularity)
        bucket = window.bucket_id(time)
        try:
            start = window.bucket_start(bucket)
        except OverflowError:
            assume(False)
        assert timedelta(0) <= time - start < granularity
        assert window.bucket_id(start) == bucket
        assume(start > datetime.min.replace(tzinfo=UTC))
        assert window.bucket_id(start - MICROSECOND) == bucket - 1

    @given(st.integers(-700_000, 2_900_000))
    def test_it_is_the_inverse_of_bucket_id(self, bucket: int) -> None:
        """For every day of the calendar."""
        assert daily().bucket_id(daily().bucket_start(bucket)) == bucket
        assert daily().bucket_start(bucket) == EPOCH + bucket * DAY

    @pytest.mark.parametrize("bucket", [-719_163, 2_932_897, 10**12])
    def test_a_bucket_outside_the_calendar_has_no_start(self, bucket: int) -> None:
        """The years 0 and 10000 have no datetimes."""
        with pytest.raises(OverflowError):
            daily().bucket_start(bucket)


class TestLastN:
    NOW = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("window", "d", "n"),
        [
            (daily(), timedelta(days=7), 7),
            (daily(), timedelta(days=7, microseconds=1), 8),
            (daily(), timedelta(days=7) - MICROSECOND, 7),
            (daily(), MICROSECOND, 1),
            (hourly(), timedelta(minutes=90), 2),
            (minute(), timedelta(hours=1), 60),
            (WindowConfig(timedelta(hours=7)), DAY, 4),
        ],
    )
    def test_it_covers_the_span_rounded_up_and_ends_with_now(self, window: WindowConfig, d: timedelta, n: int) -> None:
        """Seven days are seven buckets, today's among them; anything more starts an eighth."""
        buckets = window.last_n(self.NOW, d)
        assert len(buckets) == n
        assert buckets[-1] == window.bucket_id(self.NOW)

    @given(TIMES, GRANULARITIES, st.integers(0, 500), st.floats(0, 1))
    def test_they_are_consecutive_for_any_span(
        self, now: datetime, granularity: timedelta, whole: int, part: float
    ) -> None:
        """``ceil(d / granularity)`` of them, oldest first."""
        d = whole * granularity + part * granularity
        assume(d > timedelta(0))
        window = WindowConfig(granularity)
        last = window.bucket_id(now)
        n = math.ceil(exact_seconds(d) / exact_seconds(granularity))
        assert window.last_n(now, d) == [last - n + 1 + i for i in range(n)]

    @pytest.mark.parametrize("d", [timedelta(0), -DAY, -MICROSECOND])
    def test_a_span_that_is_not_positive_is_refused(self, d: timedelta) -> None:
        """A range of no buckets is never intended."""
        with pytest.raises(ValueError, match="must be positive"):
            daily().last_n(self.NOW, d)


class TestBucketRange:
    @pytest.mark.parametrize(
        ("start", "end", "buckets"),
        [
            (EPOCH, EPOCH, [0]),
            (EPOCH, EPOCH + DAY - MICROSECOND, [0]),
            (EPOCH, EPOCH + DAY, [0, 1]),
            (EPOCH - MICROSECOND, EPOCH, [-1, 0]),
            (EPOCH - 2 * DAY, EPOCH + DAY, [-2, -1, 0, 1]),
            (EPOCH + DAY, EPOCH, []),
        ],
    )
    def test_both_ends_are_included(self, start: datetime, end: datetime, buckets: list[int]) -> None:
        """Even if only their first instant is touched; an end before the start gives none."""
        assert daily().bucket_range(start, end) == buckets

    @given(ZONED, st.timedeltas(-5 * DAY, 5 * DAY), st.timedeltas(timedelta(minutes=10), 3 * DAY))
    def test_it_holds_exactly_the_buckets_of_the_instants_between(
        self, start: datetime, span: timedelta, granularity: timedelta
    ) -> None:
        """Its ends are the buckets of start and end, in any zone."""
        window = WindowConfig(granularity)
        start = start.astimezone(UTC)
        buckets = window.bucket_range(start, start + span)
        if span < timedelta(0):
            assert buckets in ([], [window.bucket_id(start)])
        else:
            assert (buckets[0], buckets[-1]) == (window.bucket_id(start), window.bucket_id(start + span))
            assert window.bucket_id(start + span / 2) in buckets
            assert buckets == sorted(set(buckets))


class TestRetention:
    @given(TIMES, GRANULARITIES, st.timedeltas(MICROSECOND, 1000 * DAY), TIMES)
    def test_no_event_that_still_counts_finds_its_bucket_expired(
        self, time: datetime, granularity: timedelta, retention: timedelta, now: datetime
    ) -> None:
        """An event that is accepted at some moment belongs to a bucket that expires later."""
        window = WindowConfig(granularity, retention)
        time_us, now_us = (time - EPOCH) // MICROSECOND, (now - EPOCH) // MICROSECOND
        cutoff_us, expires_us = window.cutoff_us(now_us), window.expires_us(window.bucket_id(time))
        assert cutoff_us is not None
        assert expires_us is not None
        if time_us >= cutoff_us:
            assert expires_us > now_us

    def test_by_example(self) -> None:
        """A day kept for two: its events count until their own age, its bucket until the end of the third day."""
        window = daily(2 * DAY)
        day_us = 86_400_000_000
        assert window.expires_us(0) == 3 * day_us
        assert window.cutoff_us(10 * day_us) == 8 * day_us

    def test_without_retention_nothing_expires(self) -> None:
        """Neither buckets nor events."""
        assert daily().expires_us(0) is None
        assert daily().cutoff_us(0) is None


class TestConstruction:
    def test_the_named_ones(self) -> None:
        """Their lengths, and the retention passed on."""
        assert daily(DAY) == WindowConfig(DAY, DAY)
        assert hourly(DAY) == WindowConfig(timedelta(hours=1), DAY)
        assert minute(DAY) == WindowConfig(timedelta(minutes=1), DAY)
        assert daily() == WindowConfig(DAY, None)

    @pytest.mark.parametrize("length", [timedelta(0), -MICROSECOND, -DAY])
    def test_lengths_must_be_positive(self, length: timedelta) -> None:
        """The message names which."""
        with pytest.raises(ValueError, match="granularity must be positive"):
            WindowConfig(length)
        with pytest.raises(ValueError, match=r"retention must be positive.*None keeps buckets forever"):
            WindowConfig(DAY, length)

    def test_granularity_in_microseconds(self) -> None:
        """Exact."""
        assert WindowConfig(timedelta(days=3, microseconds=7)).granularity_us == 3 * 86_400_000_000 + 7


class TestParseDuration:
    @pytest.mark.parametrize(
        ("text", "duration"),
        [
            ("90d", timedelta(days=90)),
            ("12h", timedelta(hours=12)),
            ("15m", timedelta(minutes=15)),
            ("30s", timedelta(seconds=30)),
            ("500ms", timedelta(milliseconds=500)),
            ("2w", timedelta(weeks=2)),
            (" 1d\n", timedelta(days=1)),
            ("0s", timedelta(0)),
            ("007s", timedelta(seconds=7)),
        ],
    )
    def test_by_example(self, text: str, duration: timedelta) -> None:
        """A number and a unit; blanks around it do not matter."""
        assert parse_duration(text) == duration

    @pytest.mark.parametrize("text", ["", "d", "90", "90 d", "-1d", "+1d", "1.5h", "1d12h", "1D", "1y", "1 day", "1ds"])
    def test_anything_else_is_refused_with_an_example(self, text: str) -> None:
        """The message shows what was written and what to write."""
        with pytest.raises(ValueError, match="is not a duration; write a number and a unit, such as 90d") as failed:
            parse_duration(text)
        assert repr(text) in str(failed.value)

    @pytest.mark.parametrize("text", ["1000000000d", f"{10**30}s", f"{10**400}ms"])
    def test_a_duration_that_no_timedelta_holds_is_refused(self, text: str) -> None:
        """As a ValueError like the others."""
        with pytest.raises(ValueError, match="is too long a duration"):
            parse_duration(text)

    @given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h", "d", "w"]))
    def test_units_in_milliseconds(self, n: int, unit: str) -> None:
        """Each unit has its usual length."""
        ms = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}[unit]
        assert parse_duration(f"{n}{unit}") == timedelta(milliseconds=n * ms)


class TestParseWindow:
    @pytest.mark.parametrize(
        ("text", "window"),
        [
            ("daily", daily(DAY)),
            ("hourly", hourly(DAY)),
            ("minute", minute(DAY)),
            ("15m", WindowConfig(timedelta(minutes=15), DAY)),
        ],
    )
    def test_by_example(self, text: str, window: WindowConfig) -> None:
        """A name or a duration, with the given retention."""
        assert parse_window(text, DAY) == window
        assert parse_window(text) == WindowConfig(window.granularity)

    @pytest.mark.parametrize("text", ["", "weekly", "Daily", "1.5h"])
    def test_anything_else_is_refused(self, text: str) -> None:
        """The message offers both ways to write one."""
        with pytest.raises(ValueError, match=r"is not a duration.*or write daily, hourly or minute"):
            parse_window(text)

    @pytest.mark.parametrize("text", ["daily", "15m"])
    def test_a_wrong_retention_is_named_as_retention(self, text: str) -> None:
        """And not as a wrong window."""
        with pytest.raises(ValueError, match=r"None keeps buckets forever$"):
            parse_window(text, timedelta(0))

    def test_an_empty_window_is_refused(self) -> None:
        """A duration, but not a length of a bucket."""
        with pytest.raises(ValueError, match="granularity must be positive"):
            parse_window("0s")
