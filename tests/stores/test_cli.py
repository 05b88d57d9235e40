"""The ``murmur`` command: output, exit codes and messages, through `main` and, where needed, a process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import types
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.cli import arguments as cli_arguments
from murmur_beam.cli import main as cli
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Custom, Sum, Timed, by_name
from murmur_beam.monoids.base import Monoid, canonical_json
from murmur_beam.state import schemes
from murmur_beam.state.memory import MemorySpec
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.windows import daily, hourly, minute
from tests.support.commands import Murmur

START = datetime(2026, 11, 14, tzinfo=timezone.utc)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def environment() -> dict[str, str]:
    """For a process that imports the package under test from its location, and writes as Python does by default."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return inherited | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}


def shown_for(value: Any, monoid: Monoid[Any], name: str, *options: str) -> str:
    """What ``get`` prints where a memory store holds ``value``."""
    spec = MemorySpec(f"test-cli-{name}")
    spec.drop()
    spec.open(monoid).merge_update(Key("a"), value)
    module = types.SimpleNamespace(MONOID=monoid)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setitem(sys.modules, "monoid_of_test_cli", module)
        assert cli.main(["get", str(spec), "a", "--monoid", "monoid_of_test_cli:MONOID", *options]) == 0
    return out.getvalue().removesuffix("\n")


def printed_for(value: Any, monoid: Monoid[Any], name: str) -> Any:
    """The value that ``get --json`` prints."""
    return json.loads(shown_for(value, monoid, name, "--json"))["value"]


FRACTIONS: Monoid[Any] = Custom(
    "fractions", Fraction(0), max, encode=lambda v: str(v).encode(), decode=lambda data: Fraction(data.decode())
)
DECIMALS: Monoid[Any] = Custom(
    "decimals", Decimal(0), max, encode=lambda v: str(v).encode(), decode=lambda data: Decimal(data.decode())
)


class TestGet:
    def test_it_prints_the_value(self, murmur: Murmur) -> None:
        """One line, with separators for thousands; "a" is not "ab"."""
        murmur.fill([("a", START, 1_234_567), ("ab", START, -5_000)])
        assert murmur("get", "a") == (0, "1,234,567\n", "")
        assert murmur("get", "ab") == (0, "-5,000\n", "")
        assert murmur.json("get", "a") == {"entity": "a", "bucket": None, "value": 1_234_567}

    def test_at_selects_the_bucket(self, murmur: Murmur) -> None:
        """A time stands for its bucket, which is printed; before 1970 works too."""
        murmur.fill(
            [("a", START + 23 * HOUR, 1), ("a", datetime(1969, 12, 31, 23, tzinfo=timezone.utc), 7)], None, hourly()
        )
        assert murmur("get", "a", "--at", "1969-12-31T23:59:59.999Z").out == "7  (bucket 1969-12-31T23:00:00Z)\n"
        assert murmur("get", "a", "--at", "2026-11-15T00:30:00+01:00").out == "1  (bucket 2026-11-14T23:00:00Z)\n"
        assert murmur("get", "a", "--at", "2026-11-14T00:00:00Z").code == 1
        assert murmur.json("get", "a", "--at", "1969-12-31t23:12:00z") == {
            "entity": "a",
            "bucket": "1969-12-31T23:00:00.000000Z",
            "value": 7,
        }

    def test_a_missing_aggregate_is_exit_code_1(self, murmur: Murmur) -> None:
        """The message goes to stderr, so that a script's variable stays empty; a merged 0 is not missing."""
        murmur.fill([("ab", START, 1), ("zero", START, 0)], None, daily())
        assert murmur("get", "a", "--at", "2026-11-14") == (1, "", "murmur: nothing found for 'a' in that bucket\n")
        assert murmur("get", "zero", "--at", "2026-11-14") == (0, "0\n", "")
        assert murmur("get", "a", "--at", "2026-11-14", "--json") == (
            1,
            '{"entity": "a", "bucket": "2026-11-14T00:00:00.000000Z", "value": null}\n',
            "murmur: nothing found for 'a' in that bucket\n",
        )

    def test_a_missing_aggregate_without_a_window(self, murmur: Murmur) -> None:
        """The message names no bucket."""
        murmur.fill([("ab", START, 1)])
        assert murmur("get", "a") == (1, "", "murmur: nothing found for 'a'\n")

    def test_at_is_required_only_with_buckets(self, murmur: Murmur) -> None:
        """The error names the option."""
        murmur.fill([("a", START, 1)], None, daily())
        assert murmur("get", "a") == (
            2,
            "",
            "murmur: error: --at: is required: each time bucket has a separate aggregate "
            "(window and range combine several)\n",
        )

    def test_at_is_refused_without_buckets(self, murmur: Murmur) -> None:
        """Rather than ignored."""
        murmur.fill([("a", START, 1)])
        assert murmur("get", "a", "--at", "2026-11-14") == (
            2,
            "",
            "murmur: error: --at: the store has no time buckets; leave it out\n",
        )


class TestWindow:
    def test_it_prints_total_and_buckets(self, murmur: Murmur) -> None:
        """The buckets that --last covers, including the current one."""
        murmur.fill([("a", START + n * DAY, 10**n) for n in range(7)], None, daily())
        assert murmur("window", "a", "--last", "3d", "--now", "2026-11-19T23:00:00Z") == (
            0,
            "111,000  (buckets 2026-11-17 to 2026-11-19)\n",
            "",
        )
        assert murmur("window", "a", "--last", "12h", "--now", "2026-11-14").out == "1  (bucket 2026-11-14)\n"
        assert murmur.json("window", "a", "--last", "2w", "--now", "2026-11-15") == {
            "entity": "a",
            "first_bucket": "2026-11-02T00:00:00.000000Z",
            "last_bucket": "2026-11-15T00:00:00.000000Z",
            "value": 11,
        }

    def test_now_is_the_default(self, murmur: Murmur) -> None:
        """Two days are accepted, in case midnight passes while this runs."""
        murmur.fill([("a", datetime.now(timezone.utc), 3)], None, daily())
        assert murmur("window", "a", "--last", "2d").out.startswith("3  (buckets ")

    def test_a_missing_aggregate(self, murmur: Murmur) -> None:
        """Exit code 1; but a sum of 0 is not missing."""
        murmur.fill([("a", START, 5), ("a", START, -5)], None, daily())
        assert murmur("window", "a", "--last", "1d", "--now", "2026-11-14").out == "0  (bucket 2026-11-14)\n"
        assert murmur("window", "a", "--last", "1d", "--now", "2026-11-15") == (
            1,
            "",
            "murmur: nothing found for 'a' in those buckets\n",
        )
        assert murmur.json("window", "a", "--last", "1d", "--now", "2026-11-15")["value"] is None

    @pytest.mark.parametrize(
        ("last", "message"),
        [
            ("0d", "--last: must be positive, got 0:00:00"),
            ("999999d", "--last: 999999 days, 0:00:00 back from 2026-11-15T12:00:00+00:00 is before the year 1"),
        ],
    )
    def test_an_invalid_span(self, murmur: Murmur, last: str, message: str) -> None:
        """One line that names the option."""
        murmur.fill([("a", START, 5)], None, daily())
        assert murmur("window", "a", "--last", last, "--now", "2026-11-15T12:00:00Z") == (
            2,
            "",
            f"murmur: error: {message}\n",
        )


class TestRange:
    def test_it_draws_the_buckets(self, murmur: Murmur) -> None:
        """Aligned, with bars relative to the largest: at least one sign for anything but zero, a minus for negative
        values."""
        values = [60_000, 0, 30_000, -20_000, 1]
        murmur.fill(
            [("a", START + n * DAY, value) for n, value in enumerate(values)] + [("ab", START, 9)], None, daily()
        )
        assert murmur("range", "a", "--from", "2026-11-13", "--to", "2026-11-18") == (
            0,
            "bucket        value\n"
            "2026-11-13        0\n"
            "2026-11-14   60,000  ##############################\n"
            "2026-11-15        0\n"
            "2026-11-16   30,000  ###############\n"
            "2026-11-17  -20,000  ----------\n"
            "2026-11-18        1  #\n"
            "total        70,001\n",
            "",
        )

    def test_zeros_have_no_bars(self, murmur: Murmur) -> None:
        """Not even when all values are zero."""
        murmur.fill([("a", START, 0), ("a", START + DAY, 0)], None, daily())
        assert "#" not in murmur("range", "a", "--from", "2026-11-14", "--to", "2026-11-15").out

    def test_one_bucket_has_no_bar(self, murmur: Murmur) -> None:
        """It cannot be compared with another bucket."""
        murmur.fill([("a", START, 7)], None, daily())
        assert murmur("range", "a", "--from", "2026-11-14", "--to", "2026-11-14").out == (
            "bucket      value\n2026-11-14      7\ntotal           7\n"
        )

    def test_a_date_as_the_end_is_the_whole_day(self, murmur: Murmur) -> None:
        """To its last hour; a time is only its own bucket."""
        murmur.fill([("a", START + n * HOUR, 1) for n in range(-30, 60)], None, hourly())
        assert murmur.json("range", "a", "--from", "2026-11-14", "--to", "2026-11-14")["value"] == 24
        assert murmur.json("range", "a", "--from", "2026-11-14", "--to", "2026-11-14T00:00:00Z")["value"] == 1

    def test_buckets_within_a_day_are_named_by_the_time(self, murmur: Murmur) -> None:
        """In the form that --at accepts, midnight too."""
        murmur.fill([("a", START + HOUR, 7)], None, hourly())
        assert murmur("range", "a", "--from", "2026-11-14", "--to", "2026-11-14T01:59:00Z").out == (
            "bucket                value\n"
            "2026-11-14T00:00:00Z      0\n"
            "2026-11-14T01:00:00Z      7  ##############################\n"
            "total                     7\n"
        )

    def test_a_long_range_omits_empty_buckets(self, murmur: Murmur) -> None:
        """And says so; 200 buckets are shown in full."""
        murmur.fill([("a", START, 2), ("a", START + 9_999 * timedelta(minutes=1), 1)], None, minute())
        assert murmur("range", "a", "--from", "2026-11-14", "--to", "2026-11-30").out == (
            "bucket                value\n"
            "2026-11-14T00:00:00Z      2  ##############################\n"
            "2026-11-20T22:39:00Z      1  ###############\n"
            "total                     3\n"
            "(24,480 buckets; the 24,478 empty ones are left out)\n"
        )
        assert len(murmur("range", "a", "--from", "2026-11-14", "--to", "2026-11-14T03:19:00Z").out.splitlines()) == 202
        assert len(murmur("range", "a", "--from", "2026-11-14", "--to", "2026-11-14T03:20:00Z").out.splitlines()) == 4

    def test_json_has_the_buckets_with_values(self, murmur: Murmur) -> None:
        """However long the range is."""
        murmur.fill([("a", START, 2), ("a", START + DAY, -2)], None, daily())
        assert murmur.json("range", "a", "--from", "0001-01-01", "--to", "9999-12-31") == {
            "entity": "a",
            "first_bucket": "0001-01-01T00:00:00.000000Z",
            "last_bucket": "9999-12-31T00:00:00.000000Z",
            "value": 0,
            "series": [
                {"bucket": "2026-11-14T00:00:00.000000Z", "value": 2},
                {"bucket": "2026-11-15T00:00:00.000000Z", "value": -2},
            ],
        }

    def test_an_empty_range(self, murmur: Murmur) -> None:
        """Exit code 1, with an empty series in JSON."""
        murmur.fill([("ab", START, 2)], None, daily())
        times = ("--from", "2026-11-14", "--to", "2026-11-15")
        assert murmur("range", "a", *times) == (1, "", "murmur: nothing found for 'a' in those buckets\n")
        found = murmur.json("range", "a", *times)
        assert (found["value"], found["series"]) == (None, [])

    @pytest.mark.parametrize("command", [("range", "a"), ("top",)])
    def test_an_end_before_the_start_is_a_mistake(self, murmur: Murmur, command: tuple[str, ...]) -> None:
        """The user has swapped them; an answer of 0 would hide the mistake."""
        murmur.fill([("a", START, 2)], None, daily())
        ran = murmur(*command, "--from", "2026-11-15", "--to", "2026-11-14")
        assert ran == (2, "", "murmur: error: --to lies before --from\n")

    def test_it_requires_buckets(self, murmur: Murmur) -> None:
        """A store without a window is refused."""
        murmur.fill([("a", START, 2)])
        assert murmur("range", "a", "--from", "2026-11-15", "--to", "2026-11-16") == (
            2,
            "",
            "murmur: error: the store has no time buckets: each entity has one aggregate over all time\n",
        )


class TestTotals:
    def test_totals_are_exact_however_large(self, murmur: Murmur) -> None:
        """Also where they exceed the 64 bits of a bucket."""
        most, total = 2**63 - 1, 3 * (2**63 - 1)
        murmur.fill([("a", START + n * HOUR, most) for n in range(3)], None, hourly())
        assert murmur("get", "a", "--at", "2026-11-14").out.startswith(f"{total:,}  (")
        assert murmur("window", "a", "--last", "3h", "--now", "2026-11-14T02:00:00Z").out.startswith(f"{total:,}  (")
        for command in (
            ("get", "a", "--at", "2026-11-14"),
            ("window", "a", "--last", "3h", "--now", "2026-11-14T02:00:00Z"),
            ("range", "a", "--from", "2026-11-14", "--to", "2026-11-14"),
            ("list",),
        ):
            assert murmur.json(*command)["value"] == total
        assert murmur.json("top") == [{"entity": "a", "value": total}]
        shown = murmur("range", "a", "--from", "2026-11-14", "--to", "2026-11-14").out
        assert shown.splitlines()[-1].split() == ["total", f"{total:,}"]
        assert f"{total:,}" in murmur("list").out
        assert f"{total:,}" in murmur("top").out


class TestList:
    def test_columns_are_aligned(self, murmur: Murmur) -> None:
        """Also for characters that take two columns, or zero; control characters cannot reach the terminal."""
        names = ["a", "ab", "東京", "e\u0301", "\x1b[2J"]
        murmur.fill([(name, START, 10**n) for n, name in enumerate(names)], None, daily())
        assert murmur("list") == (
            0,
            "entity    value  buckets\n"
            "\\x1b[2J  10,000        1\n"
            "a             1        1\n"
            "ab           10        1\n"
            "e\u0301         1,000        1\n"
            "東京        100        1\n",
            "",
        )

    def test_without_a_window_the_column_of_buckets_is_omitted(self, murmur: Murmur) -> None:
        """It would say 1 in each line."""
        murmur.fill([("a", START, 2), ("b", START, 30)])
        assert murmur("list").out == "entity  value\na           2\nb          30\n"

    def test_a_prefix_selects_entities(self, murmur: Murmur) -> None:
        """An entity is a prefix of itself."""
        murmur.fill([("a", START, 1), ("ab", START, 1), ("abc", START, 1), ("é", START, 1)])
        assert murmur("list", "--prefix", "ab").out == "entity  value\nab          1\nabc         1\n"
        assert murmur("list", "--prefix", "é").out == "entity  value\né           1\n"

    def test_json_is_one_line_each(self, murmur: Murmur) -> None:
        """In plain ASCII, which every terminal and pipe supports."""
        murmur.fill([("é", START, 1), ("é", START + DAY, 2), ("a\n", START, 1)], None, daily())
        assert murmur("list", "--json").out == (
            '{"entity": "a\\n", "value": 1, "buckets": 1}\n{"entity": "\\u00e9", "value": 3, "buckets": 2}\n'
        )

    def test_a_long_list_is_complete(self, murmur: Murmur) -> None:
        """Beyond the rows that are read before the first is printed, with one header."""
        store = SqliteSpec(str(murmur.path)).open(Sum())
        store.merge_updates([Update(Key(f"{n:04}"), n) for n in range(2_500)])
        store.close()
        lines = murmur("list").out.splitlines()
        assert lines[0].split() == ["entity", "value"]
        assert [line.split() for line in lines[1:]] == [[f"{n:04}", f"{n:,}"] for n in range(2_500)]

    def test_an_empty_list(self, murmur: Murmur) -> None:
        """A store without rows, or a prefix without entities."""
        murmur.fill([])
        ran = murmur("list")
        assert (ran[0], ran[1]) == (2, "")
        assert "nothing was written to it yet" in ran[2]
        murmur.fill([("a", START, 1)])
        assert murmur("list", "--prefix", "x", "--json") == (1, "", "murmur: nothing found with prefix 'x'\n")


class TestTop:
    def test_the_largest_come_first(self, murmur: Murmur) -> None:
        """Ten by default, with bars."""
        murmur.fill([(f"e{n:02}", START, n * 100) for n in range(1, 13)])
        lines = murmur("top").out.splitlines()
        assert [line.split()[0] for line in lines] == ["entity", *(f"e{n:02}" for n in range(12, 2, -1))]
        assert murmur("top", "-n", "2", "--prefix", "e0").out == (
            "entity  value\ne09       900  ##############################\ne08       800  ###########################\n"
        )

    def test_times_restrict_it(self, murmur: Murmur) -> None:
        """A date as the end is the whole day; either end may be omitted."""
        murmur.fill([("a", START + n * HOUR, 1) for n in range(30)] + [("b", START, 3)], None, hourly())
        assert murmur.json("top", "--from", "2026-11-14", "--to", "2026-11-14") == [
            {"entity": "a", "value": 24},
            {"entity": "b", "value": 3},
        ]
        assert murmur.json("top", "--to", "2026-11-14T01:00:00Z", "-n", "1") == [{"entity": "b", "value": 3}]
        assert murmur.json("top", "--from", "2026-11-15") == [{"entity": "a", "value": 6}]

    def test_an_empty_top(self, murmur: Murmur) -> None:
        """Exit code 1, and an empty JSON list."""
        murmur.fill([("a", START, 1)])
        assert murmur("top", "--prefix", "x") == (1, "", "murmur: nothing found with prefix 'x'\n")
        assert murmur("top", "--prefix", "x", "--json").out == "[]\n"

    def test_only_numbers_can_be_ranked(self, murmur: Murmur) -> None:
        """One line names the aggregate that is not a number."""
        murmur.fill([("a", START, "x")], by_name("set_union"))
        assert murmur("top") == (
            2,
            "",
            "murmur: error: top needs numeric aggregates, but 'a' holds a frozenset (monoid 'set_union')\n",
        )


class TestValues:
    """Aggregates other than integers, as people and programs see them."""

    def test_sets_are_their_sorted_items(self, murmur: Murmur) -> None:
        """Long ones are cut, with the number of items."""
        murmur.fill(
            [("a", START, ["b", "a\n", "é", 10, 2]), ("long", START, [f"item-{n:04}" for n in range(1_500)])],
            by_name("set_union"),
        )
        assert murmur("list").out == (
            "entity  value\n"
            "a       2, 10, a\\n, b, é\n"
            "long    item-0000, item-0001, item-0002, item-0003, item-0004, ... (1,500 items)\n"
        )
        assert murmur.json("get", "a")["value"] == [2, 10, "a\n", "b", "é"]
        assert murmur.json("get", "long")["value"] == [f"item-{n:04}" for n in range(1_500)]

    def test_a_set_of_one_long_item(self, murmur: Murmur) -> None:
        """It is cut as well."""
        murmur.fill([("a", START, "x" * 1_000)], by_name("set_union"))
        assert murmur("get", "a").out == f"{'x' * 60}... (1,000 characters)\n"

    def test_timed_values_are_value_and_time(self, murmur: Murmur) -> None:
        """Numbers, texts and all other JSON values; times without unnecessary zeros."""
        values = {"a": 12_345, "b": "text\x07", "c": {"k": [1, None, True]}, "d": None, "e": True, "f": "x" * 61}
        murmur.fill(
            [
                (entity, START + timedelta(microseconds=500_000 * (entity == "b")), value)
                for entity, value in values.items()
            ],
            by_name("last"),
        )
        assert murmur("list").out == (
            "entity  value\n"
            "a       12,345 at 2026-11-14T00:00:00Z\n"
            "b       text\\x07 at 2026-11-14T00:00:00.500000Z\n"
            'c       {"k":[1,null,true]} at 2026-11-14T00:00:00Z\n'
            "d       null at 2026-11-14T00:00:00Z\n"
            "e       true at 2026-11-14T00:00:00Z\n"
            f"f       {'x' * 60}... (61 characters) at 2026-11-14T00:00:00Z\n"
        )
        for entity, value in values.items():
            us = 1_794_614_400_000_000 + 500_000 * (entity == "b")
            assert murmur.json("get", entity)["value"] == {"event_time_us": us, "value": value}

    def test_a_time_outside_the_calendar(self, tmp_path: Path, murmur: Murmur) -> None:
        """Beam's "no timestamp" is shown as a number."""
        last = by_name("last")
        store = SqliteSpec(str(murmur.path)).open(last)
        store.merge_update(Key("a"), last.lift(1, -(2**63) // 1_000_000 * 1_000_000))
        store.close()
        assert murmur("get", "a").out == "1 at -9,223,372,036,855,000,000 us\n"

    def test_an_empty_bucket_has_no_maximum(self, murmur: Murmur) -> None:
        """A dash; fractions keep their digits."""
        murmur.fill([("a", START, 0.1), ("a", START + 2 * DAY, 1_234.5)], by_name("max"), daily())
        assert murmur("range", "a", "--from", "2026-11-14", "--to", "2026-11-16").out == (
            "bucket        value\n"
            "2026-11-14      0.1  #\n"
            "2026-11-15        -\n"
            "2026-11-16  1,234.5  ##############################\n"
            "total       1,234.5\n"
        )

    @pytest.mark.parametrize("name", ["count", "first", "last", "max", "min", "set_union", "sum"])
    @given(data=st.data())
    def test_json_loses_nothing(self, name: str, data: st.DataObject) -> None:
        """The stored bytes can be made again from the output of a value that is shown as it is stored."""
        monoid = by_name(name)
        integers = st.integers(-(2**63), 2**63 - 1)
        numbers = integers | st.floats(allow_nan=False, allow_infinity=False)
        json_values = st.recursive(st.none() | st.booleans() | numbers | st.text(), st.lists)
        kinds = {
            "set_union": st.lists(integers | st.text()),
            "first": json_values,
            "last": json_values,
            "sum": integers,
        }
        value = monoid.lift(data.draw(kinds.get(name, numbers)), data.draw(st.integers(-(2**60), 2**60)))
        document = printed_for(value, monoid, f"loses-nothing-{name}")
        if isinstance(value, Timed):
            document = [document.pop("event_time_us"), document.pop("value")]
        assert canonical_json(document).encode("utf-8") == monoid.encode(value)

    @pytest.mark.parametrize(
        ("value", "document"),
        [
            (Fraction(3), 3),
            (Fraction(1, 3), {"base64": "MS8z"}),  # b"1/3", not JSON
            (Fraction(3, 1000), {"base64": "My8xMDAw"}),
        ],
    )
    def test_values_that_json_cannot_represent_are_printed_as_bytes(self, value: Fraction, document: Any) -> None:
        """In base64."""
        assert printed_for(value, FRACTIONS, "base64") == document

    def test_values_that_json_would_change_are_printed_as_bytes(self) -> None:
        """1.50 and 1.5 are different texts, but JSON parsers read the same number."""
        exact: Monoid[Any] = Custom("exact", "0", max, encode=str.encode, decode=bytes.decode)
        assert printed_for("1.5", exact, "digits") == 1.5
        assert printed_for("1.50", exact, "digits") == {"base64": "MS41MA=="}
        assert printed_for("NaN", exact, "digits") == {"base64": "TmFO"}

    def test_values_of_a_user_s_monoid(self, murmur: Murmur) -> None:
        """As JSON, or else in Python's notation."""
        assert (
            shown_for({"b": [1], "a": "\x07"}, Custom("d", {}, lambda a, b: {**a, **b}), "own")
            == '{"a":"\\u0007","b":[1]}'
        )
        assert shown_for("x" * 100, Custom("s", "", lambda a, b: a + b), "own") == "x" * 100
        assert shown_for(Fraction(1, 3), FRACTIONS, "own") == "1/3"
        assert shown_for(Decimal("1234.50"), DECIMALS, "own") == "1,234.50"


class TestMistakes:
    """Each mistake is one line on stderr and exit code 2; no traceback or file is left."""

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (
                ["--json"],
                "--json is not a flag of murmur; write it after the command (see murmur --help)",
            ),
            (["get"], "the following arguments are required: URI, ENTITY (see murmur get --help)"),
            (["window", "memory://x", "a"], "the following arguments are required: --last (see murmur window --help)"),
            (
                ["get", "memory://x", "a", "--at", "2026"],
                "argument --at: '2026' is not an RFC 3339 time, such as 2013-01-01T05:15:00Z; or write a plain date, "
                "such as 2026-11-20 (see murmur get --help)",
            ),
            (
                ["get", "memory://x", "a", "--at", "2026-11-14T00:00:00"],
                "argument --at: '2026-11-14T00:00:00' has no time zone; add Z or an offset such as +01:00; "
                "or write a plain date, such as 2026-11-20 (see murmur get --help)",
            ),
            (
                ["range", "memory://x", "a", "--from", "2026-11-14", "--to", "2026-11-31"],
                "argument --to: '2026-11-31' is not a date of the calendar (see murmur range --help)",
            ),
            (
                ["window", "memory://x", "a", "--last", "7"],
                "argument --last: '7' is not a duration; write a number and a unit, such as 90d, 12h, 15m or 30s "
                "(see murmur window --help)",
            ),
            (
                ["list", "memory://x", "--window", "weekly"],
                "argument --window: 'weekly' is not a duration; write a number and a unit, such as 90d, 12h, 15m or "
                "30s; or write daily, hourly or minute (see murmur list --help)",
            ),
            (
                ["top", "memory://x", "-n", "0"],
                "argument -n: '0' is not a positive whole number (see murmur top --help)",
            ),
            (
                ["top", "memory://x", "-n", "x"],
                "argument -n: 'x' is not a positive whole number (see murmur top --help)",
            ),
            (["get", "memory://x", ""], "argument ENTITY: is empty (see murmur get --help)"),
            (
                ["list", "memory://x", "--prefix", "\udcff"],
                "argument --prefix: has no UTF-8 form (surrogates not allowed): '\\udcff' (see murmur list --help)",
            ),
        ],
    )
    def test_invalid_arguments(self, args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        """The message names the argument and what to write."""
        with pytest.raises(SystemExit) as caught:
            cli.main(args)
        assert caught.value.code == 2
        assert capsys.readouterr() == ("", f"murmur: error: {message}\n")

    def test_a_missing_file_is_not_made(self, murmur: Murmur) -> None:
        """Whatever the command."""
        times = ("--from", "2026-11-14", "--to", "2026-11-15")
        for args in (("get", "a"), ("window", "a", "--last", "1d"), ("range", "a", *times), ("list",), ("top",)):
            for more in ((), ("--monoid", "sum", "--window", "daily"), ("--json",)):
                assert murmur(*args, *more) == (
                    2,
                    "",
                    f"murmur: error: sqlite {murmur.path}: no such file; check the path, or run its pipeline first\n",
                )
        assert not murmur.path.exists()

    def test_a_missing_table_is_not_made(self, murmur: Murmur) -> None:
        """Even with a monoid given."""
        murmur.fill([("a", START, 1)])
        before = murmur.path.read_bytes()
        ran = murmur("get", "a", "--monoid", "sum", uri=f"{murmur.uri}?table=other")
        assert ran == (
            2,
            "",
            f"murmur: error: {murmur.uri}?table=other: nothing was written to it yet; "
            "check the name, or run its pipeline first\n",
        )
        assert murmur.path.read_bytes() == before

    def test_a_file_that_is_not_a_database(self, murmur: Murmur) -> None:
        """It is not changed."""
        murmur.path.write_text("a,b\n1,2\n" * 100)
        ran = murmur("get", "a")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == (
            f"murmur: error: sqlite {murmur.path}: file is not a database; name another file, or restore this one "
            "from a backup\n"
        )
        assert murmur.path.read_text() == "a,b\n1,2\n" * 100

    def test_an_invalid_uri(self, murmur: Murmur) -> None:
        """The error uses the name in the usage."""
        assert murmur("get", "a", uri="counts.db") == (
            2,
            "",
            "murmur: error: URI: unknown store scheme in 'counts.db'; use one of "
            f"{', '.join(f'{scheme}://' for scheme in schemes())} or write package.module:attribute\n",
        )

    def test_another_monoid_or_window(self, murmur: Murmur) -> None:
        """The error says what the store holds."""
        murmur.fill([("a", START, 1)], None, daily())
        for option in (("--monoid", "max"), ("--monoid", "count"), ("--window", "15m")):
            ran = murmur("get", "a", "--at", "2026-11-14", *option)
            assert (ran.code, ran.out) == (2, "")
            assert ran.err.startswith(
                f"murmur: error: table 'murmur' of {murmur.path} holds values of monoid 'sum' and"
            )
        assert murmur("get", "a", "--at", "2026-11-14", "--monoid", "sum", "--window", "24h").out == "1\n"

    @pytest.mark.parametrize("name", ["nope", "nope:X", ":x", "json:dumps"])
    def test_an_invalid_monoid(self, murmur: Murmur, name: str) -> None:
        """The error names the option."""
        murmur.fill([("a", START, 1)])
        ran = murmur("get", "a", "--monoid", name)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith("murmur: error: --monoid: ")
        assert ran.err.count("\n") == 1


class TestProcess:
    """What can only be tested in a process of its own, or depends on the environment."""

    def test_a_monoid_from_the_current_folder(
        self, murmur: Murmur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The console script finds it as `python -m` does; the store alone cannot locate it."""
        flags = Custom("flags", 0, lambda a, b: a | b, idempotent=True)
        murmur.fill([("a", START, 4), ("a", START, 1)], flags)
        (tmp_path / "own_flags.py").write_text(
            "import operator\nfrom murmur_beam.monoids import Custom\n"
            "FLAGS = Custom('flags', 0, operator.or_, idempotent=True)\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
        ran = murmur("get", "a")
        assert ran.code == 2
        assert "was written with 'flags', which is not one of count," in ran.err
        assert ran.err.endswith("pass --monoid package.module:attribute (in Python: monoid=)\n")
        assert murmur("get", "a", "--monoid", "own_flags:FLAGS") == (0, "5\n", "")

    def test_reading_changes_nothing(self, murmur: Murmur, tmp_path: Path) -> None:
        """The file keeps its bytes, and no other file appears beside it."""
        murmur.fill([("a", START, 4), ("b", START, 1)], None, daily())
        before = murmur.path.read_bytes()
        times = ("--from", "2026-11-14", "--to", "2026-11-15")
        for args in (("get", "a", "--at", "2026-11-14"), ("range", "a", *times), ("list",), ("top", *times)):
            assert murmur(*args).code == 0
        assert murmur.path.read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["counts.db"]

    def test_python_m(self, murmur: Murmur, tmp_path: Path) -> None:
        """`python -m murmur_beam` is the command; characters that its output cannot encode are escaped."""
        murmur.fill([("Zürich", START, 4_000)])
        ran = subprocess.run(
            [sys.executable, "-m", "murmur_beam", "list", "sqlite:///counts.db"],
            cwd=tmp_path,
            env=environment() | {"PYTHONIOENCODING": "ascii"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == "entity     value\nZ\\xfcrich  4,000\n"

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_a_closed_pipe_is_not_an_error(self, murmur: Murmur, unbuffered: str) -> None:
        """As after `| head`: no message, neither at once nor at exit."""
        murmur.fill([("a", START, 4)])
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing) as closed:
            ran = subprocess.run(
                [sys.executable, "-m", "murmur_beam", "list", murmur.uri],
                env=environment() | {"PYTHONUNBUFFERED": unbuffered},
                stdout=closed,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert (ran.returncode, ran.stderr) == (0, b"")

    @pytest.mark.parametrize(
        "args", [["--help"], *([name, "--help"] for name in ("get", "window", "range", "list", "top"))]
    )
    def test_help_explains_times_and_exit_codes(self, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """With every command."""
        with pytest.raises(SystemExit) as caught:
            cli.main(args)
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert "midnight in UTC" in text
        assert "1  nothing found" in text


def test_an_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And exit code 130, as in a shell."""

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_arguments, "spec_from_uri", interrupt)
    assert cli.main(["get", "sqlite:///counts.db", "a"]) == 130
    assert capsys.readouterr() == ("", "murmur: interrupted\n")
