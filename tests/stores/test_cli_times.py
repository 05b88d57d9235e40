"""Times on ``murmur``'s command line: dates as whole days, and the limits of the calendar."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from murmur_beam.cli import main as cli
from murmur_beam.errors import ConfigurationError
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Sum, by_name
from murmur_beam.reader import Reader
from murmur_beam.state.base import Schema
from murmur_beam.state.memory import MemoryStore
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.windows import WindowConfig, daily, hourly, parse_duration, parse_window
from tests.support.commands import Murmur

START = datetime(2026, 11, 21, tzinfo=timezone.utc)
FIRST = datetime.min.replace(tzinfo=timezone.utc)
LAST = datetime.max.replace(tzinfo=timezone.utc)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


class TestDates:
    """A plain date is the whole of that day, in UTC."""

    def test_get_combines_the_day(self, murmur: Murmur) -> None:
        """And says so; the hours around it do not count."""
        murmur.fill([("a", START + n * HOUR, n + 100) for n in range(-3, 30)], None, hourly())
        assert murmur("get", "a", "--at", "2026-11-21") == (
            0,
            "2,676  (24 buckets 2026-11-21T00:00:00Z to 2026-11-21T23:00:00Z)\n",
            "",
        )
        assert murmur.json("get", "a", "--at", "2026-11-21") == {
            "entity": "a",
            "first_bucket": "2026-11-21T00:00:00.000000Z",
            "last_bucket": "2026-11-21T23:00:00.000000Z",
            "value": 2_676,
        }

    def test_a_time_is_one_bucket(self, murmur: Murmur) -> None:
        """The bucket is printed, midnight too: a whole day is written as a date."""
        murmur.fill([("a", START + n * HOUR, n + 1) for n in range(24)], None, hourly())
        assert murmur("get", "a", "--at", "2026-11-21T00:00:00Z").out == "1  (bucket 2026-11-21T00:00:00Z)\n"
        assert murmur("get", "a", "--at", "2026-11-21T10:59:59Z").out == "11  (bucket 2026-11-21T10:00:00Z)\n"
        assert murmur.json("get", "a", "--at", "2026-11-21T10:59:59Z")["bucket"] == "2026-11-21T10:00:00.000000Z"

    def test_a_date_that_is_a_bucket_needs_no_note(self, murmur: Murmur) -> None:
        """With daily buckets; for a time the day is printed."""
        murmur.fill([("a", START, 5)], None, daily())
        assert murmur("get", "a", "--at", "2026-11-21").out == "5\n"
        assert murmur("get", "a", "--at", "2026-11-21T10:00:00Z").out == "5  (bucket 2026-11-21)\n"

    def test_a_date_within_a_longer_bucket_is_that_bucket(self, murmur: Murmur) -> None:
        """The bucket is printed, since it holds more than the day."""
        murmur.fill([("a", START, 5)], None, parse_window("1w"))
        assert murmur("get", "a", "--at", "2026-11-21").out == "5  (bucket 2026-11-19)\n"

    def test_buckets_that_do_not_divide_a_day(self, murmur: Murmur) -> None:
        """All that overlap the day, with their names."""
        window = parse_window("7h")
        murmur.fill([("a", START + n * HOUR, 1) for n in range(-48, 48)], None, window)
        first, last = (window.bucket_start(window.bucket_id(t)) for t in (START, START + 23 * HOUR))
        n = window.bucket_id(last) - window.bucket_id(first) + 1
        assert murmur("get", "a", "--at", "2026-11-21").out == (
            f"{7 * n}  ({n} buckets {first:%Y-%m-%dT%H}:00:00Z to {last:%Y-%m-%dT%H}:00:00Z)\n"
        )

    def test_values_other_than_numbers_are_combined_too(self, murmur: Murmur) -> None:
        """A set of the day."""
        murmur.fill([("a", START + n * HOUR, f"u{n % 3}") for n in range(24)], by_name("set_union"), hourly())
        assert murmur("get", "a", "--at", "2026-11-21").out.startswith("u0, u1, u2  (24 buckets ")

    def test_a_day_without_values(self, murmur: Murmur) -> None:
        """Exit code 1; JSON still names the buckets."""
        murmur.fill([("a", START, 0)], None, hourly())
        assert murmur("get", "a", "--at", "2026-11-22") == (
            1,
            "",
            "murmur: nothing found for 'a' in those buckets\n",
        )
        assert murmur.json("get", "a", "--at", "2026-11-22")["value"] is None
        assert murmur("get", "a", "--at", "2026-11-21").out.startswith("0  (24 buckets ")

    def test_now_as_a_date_is_its_end(self, murmur: Murmur) -> None:
        """So that the last day of a window is complete."""
        murmur.fill([("a", START + n * HOUR, 1) for n in range(-24, 48)], None, hourly())
        assert murmur("window", "a", "--last", "24h", "--now", "2026-11-21").out == (
            "24  (buckets 2026-11-21T00:00:00Z to 2026-11-21T23:00:00Z)\n"
        )

    def test_list_and_top_of_a_day(self, murmur: Murmur) -> None:
        """From its first bucket to its last; --from alone and --to alone leave the other end open."""
        murmur.fill([(name, START + n * HOUR, 1) for name in "ab" for n in range(-24, 48)], None, hourly())
        day = ("--from", "2026-11-21", "--to", "2026-11-21")
        assert murmur("list", *day).out == "entity  value  buckets\na          24       24\nb          24       24\n"
        assert murmur.json("top", *day) == [{"entity": "a", "value": 24}, {"entity": "b", "value": 24}]
        assert murmur("list", "--from", "2026-11-22", "--prefix", "b").out.splitlines()[1:] == [
            "b          24       24"
        ]
        assert murmur("list", "--to", "2026-11-20").out.splitlines()[1:] == [
            "a          24       24",
            "b          24       24",
        ]

    @pytest.mark.parametrize("command", ["list", "top"])
    def test_an_empty_range(self, murmur: Murmur, command: str) -> None:
        """The message names the range, and a reversed range is a mistake."""
        murmur.fill([("a", START, 1)], None, hourly())
        assert murmur(command, "--from", "2026-11-23").err == "murmur: nothing found in those buckets\n"
        assert murmur(command, "--from", "2026-11-23", "--prefix", "a").err == (
            "murmur: nothing found with prefix 'a' in those buckets\n"
        )
        assert murmur(command, "--from", "2026-11-23", "--to", "2026-11-22") == (
            2,
            "",
            "murmur: error: --to lies before --from\n",
        )

    def test_times_require_buckets(self, murmur: Murmur) -> None:
        """Without a window a range of list is refused, instead of ignored."""
        murmur.fill([("a", START, 1)])
        assert murmur("list", "--from", "2026-11-23").err.startswith("murmur: error: the store has no time buckets")
        assert murmur("get", "a", "--at", "2026-11-23").err == (
            "murmur: error: --at: the store has no time buckets; leave it out\n"
        )


OUTSIDE = ["0001-01-01T00:00:00+14:00", "0001-01-01T23:58:59+23:59", "9999-12-31T23:59:59-12:00"]
NO_TIMES = [
    "0000-01-01",
    "10000-01-01",
    "-0001-01-01",
    "0001-01-01T00:00:00+99:99",
    "9999-12-31T24:00:00Z",
    "٢٠٢٦-11-20",
]


class TestEndsOfTheCalendar:
    """A correct answer or one line, never a traceback, and no row is omitted."""

    @pytest.mark.parametrize("text", OUTSIDE)
    @pytest.mark.parametrize(
        ("command", "flag"),
        [
            (["get", "URI", "a"], "--at"),
            (["window", "URI", "a", "--last", "1d"], "--now"),
            (["list", "URI"], "--from"),
            (["top", "URI"], "--to"),
            (["range", "URI", "a", "--to", "2026-11-21"], "--from"),
        ],
    )
    def test_an_offset_that_leads_outside(
        self, capsys: pytest.CaptureFixture[str], command: list[str], flag: str, text: str
    ) -> None:
        """The error names the flag as it was typed."""
        with pytest.raises(SystemExit) as caught:
            cli.main([*command, flag, text])
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith(
            f"murmur: error: argument {flag}: {text} lies outside the years 1 to 9999 in UTC; "
        )

    @pytest.mark.parametrize("text", NO_TIMES)
    def test_an_invalid_time(self, capsys: pytest.CaptureFixture[str], text: str) -> None:
        """One line."""
        with pytest.raises(SystemExit):
            cli.main(["get", "memory://x", "a", f"--at={text}"])
        err = capsys.readouterr().err
        assert err.startswith("murmur: error: argument --at: ")
        assert err.count("\n") == 1

    def test_first_and_last_day(self, murmur: Murmur) -> None:
        """Both are ordinary days."""
        murmur.fill([("a", FIRST, 1), ("a", LAST, 2)], None, hourly())
        assert murmur("get", "a", "--at", "0001-01-01").out == (
            "1  (24 buckets 0001-01-01T00:00:00Z to 0001-01-01T23:00:00Z)\n"
        )
        assert murmur("get", "a", "--at", "9999-12-31T23:59:59.999999Z").out == "2  (bucket 9999-12-31T23:00:00Z)\n"
        assert murmur.json("top", "--from", "0001-01-01", "--to", "9999-12-31") == [{"entity": "a", "value": 3}]
        assert murmur("window", "a", "--last", "1d", "--now", "9999-12-31").out.startswith("2  (buckets 9999-12-31T00")
        assert murmur("window", "a", "--last", "24h", "--now", "0001-01-01").out.startswith("1  (buckets 0001-01-01T00")

    def test_a_bucket_that_began_before_the_year_1(self, murmur: Murmur) -> None:
        """It is named by its number, in text and in JSON."""
        week = parse_window("1w")
        number = week.bucket_id(FIRST)
        murmur.fill([("a", FIRST, 2), ("a", FIRST + 7 * DAY, 3)], None, week)
        assert murmur("get", "a", "--at", "0001-01-01").out == f"2  (bucket {number})\n"
        assert murmur.json("get", "a", "--at", "0001-01-01")["bucket"] == number
        assert murmur("range", "a", "--from", "0001-01-01", "--to", "0001-01-15").out == (
            "bucket      value\n"
            f"{number}         2  ####################\n"
            "0001-01-04      3  ##############################\n"
            "0001-01-11      0\n"
            "total           5\n"
        )
        found = murmur.json("range", "a", "--from", "0001-01-01", "--to", "9999-12-31")
        assert (found["first_bucket"], found["value"]) == (number, 5)
        assert found["series"][0] == {"bucket": number, "value": 2}
        assert murmur("window", "a", "--last", "1w", "--now", "0001-01-01").out == f"2  (bucket {number})\n"
        assert (
            murmur("window", "a", "--last", "2w", "--now", "0001-01-08").out == f"5  (buckets {number} to 0001-01-04)\n"
        )

    def test_buckets_outside_the_calendar(self, murmur: Murmur) -> None:
        """No event falls into them, but a store may hold them: they are listed and combined."""
        store = SqliteSpec(str(murmur.path)).open(Sum(), DAY)
        store.merge_updates([Update(Key("a", bucket), 1) for bucket in (-(10**9), 0, 10**9, 2**62, -(2**63))])
        store.close()
        assert murmur("list").out.splitlines()[1:] == ["a           5        5"]
        assert murmur.json("top") == [{"entity": "a", "value": 5}]
        assert murmur.json("top", "--from", "9999-12-31") == [{"entity": "a", "value": 2}]
        assert murmur.json("range", "a", "--from", "0001-01-01", "--to", "9999-12-31")["value"] == 1

    @pytest.mark.parametrize(
        ("last", "message"),
        [
            ("10000000d", "--last: 10000000 days, 0:00:00 back from 2026-11-21T12:00:00+00:00 is before the year 1"),
            ("739942d", "--last: 739942 days, 0:00:00 back from 2026-11-21T12:00:00+00:00 is before the year 1"),
        ],
    )
    def test_a_window_longer_than_the_calendar(self, murmur: Murmur, last: str, message: str) -> None:
        """It is refused; the longest possible one is answered."""
        murmur.fill([("a", START, 2), ("a", FIRST, 1)], None, daily())
        now = ("--now", "2026-11-21T12:00:00Z")
        assert murmur("window", "a", "--last", last, *now) == (2, "", f"murmur: error: {message}\n")
        assert murmur("window", "a", "--last", "739941d", *now).out == "3  (buckets 0001-01-01 to 2026-11-21)\n"

    @pytest.mark.parametrize("text", ["99999999999d", "9" * 5_000 + "d", "9" * 5_000 + "ms", "1000000000w"])
    def test_a_duration_that_is_too_long(self, capsys: pytest.CaptureFixture[str], text: str) -> None:
        """One short line, however many digits it has."""
        with pytest.raises(SystemExit):
            cli.main(["window", "memory://x", "a", "--last", text])
        err = capsys.readouterr().err
        assert err.endswith("is too long a duration (see murmur window --help)\n")
        assert len(err) < 200
        with pytest.raises(ValueError, match=r"is too long a duration$"):
            parse_duration(text)

    def test_n_has_a_limit(self, capsys: pytest.CaptureFixture[str]) -> None:
        """More digits than Python parses are one short line too."""
        with pytest.raises(SystemExit):
            cli.main(["top", "memory://x", "-n", "9" * 5_000])
        assert len(capsys.readouterr().err) < 200

    @pytest.mark.parametrize("days", [365 * 300, 365 * 9_000])
    def test_buckets_of_centuries(self, murmur: Murmur, days: int) -> None:
        """There are only a few of them, and all are listed."""
        murmur.fill([("a", time, 1) for time in (FIRST, START, LAST)], None, WindowConfig(days * DAY))
        assert murmur.json("list")["value"] == 3
        assert murmur.json("range", "a", "--from", "0001-01-01", "--to", "9999-12-31")["value"] == 3
        assert murmur("get", "a", "--at", "0001-01-01").out.startswith("1  (bucket -")

    def test_a_bucket_too_long_for_sqlite(self, murmur: Murmur) -> None:
        """It is refused when the store is opened, not at the first write."""
        with pytest.raises(ConfigurationError, match=r"^window: a bucket of 999999999 days.* is longer than SQLite"):
            SqliteSpec(str(murmur.path)).open(Sum(), timedelta.max)

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        granularity=st.timedeltas(timedelta(microseconds=1), timedelta.max),
        times=st.lists(st.datetimes(timezones=st.just(timezone.utc)), min_size=1, max_size=4),
        bounds=st.tuples(*[st.sampled_from([FIRST, START, LAST]) | st.datetimes(timezones=st.just(timezone.utc))] * 2),
    )
    def test_no_bucket_is_omitted(
        self, granularity: timedelta, times: list[datetime], bounds: tuple[datetime, datetime]
    ) -> None:
        """Whatever the bucket's length, the reader finds all buckets between two times, with a start that leads to the
        bucket."""
        window = WindowConfig(granularity)
        store: MemoryStore[int] = MemoryStore(Sum())
        store.merge_updates([Update(Key("a", window.bucket_id(time)), 1) for time in times])
        reader = Reader(store, window)
        start, end = sorted(bounds)
        low, high = window.bucket_id(start), window.bucket_id(end)
        expected = sorted({b for b in map(window.bucket_id, times) if low <= b <= high})
        found = list(reader.buckets("a", start, end))
        assert [window.bucket_id(time) for time, _ in found] == expected
        assert [reader.get("a", time) for time, _ in found] == [value for _, value in found]
        total = sum(value for _, value in found)
        assert reader.range("a", start, end) == total
        assert reader.top(1, "", start, end) == ([("a", total)] if found else [])
        assert list(reader.list("", start, end)) == ([("a", total, len(found))] if found else [])

    @pytest.mark.parametrize(
        ("granularity", "retention"), [("1h", "3652500d"), ("1h", "999999999d"), ("3000000d", "3000000d")]
    )
    def test_an_impossible_retention(
        self, capsys: pytest.CaptureFixture[str], granularity: str, retention: str
    ) -> None:
        """One line names the flag, before the server is asked; up to 10,000 years are a purpose."""
        tables = pytest.importorskip("murmur_beam.state.bigtable.tables")
        uri = ["create-table", "bigtable://p/i/t", "--dry_run", "--window", granularity]
        assert cli.main([*uri, "--retention", retention]) == 2
        err = capsys.readouterr().err
        assert err.startswith("murmur: error: --retention: ")
        assert err.endswith(" is longer than Bigtable can keep cells; leave it out to keep all\n")
        assert cli.main([*uri[:3], "--dedup_retention", "999999999d"]) == 2
        assert capsys.readouterr().err.startswith("murmur: error: --dedup_retention: ")
        assert tables.table_meta(Schema("sum", HOUR), timedelta(days=3_652_000)).bucket_age is not None
