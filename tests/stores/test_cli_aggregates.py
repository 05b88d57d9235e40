"""How the commands that read show several aggregates of one store."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from murmur_beam.model import ABSENT
from murmur_beam.monoids import Count, Last, Mean, SetUnion, Struct, Sum, TopK
from murmur_beam.windows import daily
from tests.support.commands import Murmur

DAY = datetime(2026, 11, 23, 9, 58, tzinfo=timezone.utc)
SHOP = Struct(
    {
        "users": SetUnion().of("user"),
        "views": Count(),
        "revenue": Sum(places=2).of("amount", optional=True),
        "ms": Mean().of("ms"),
    }
)
VIEWS: list[tuple[str, int, Any]] = [
    ("home", 0, ("ann", None, "12.30", 10)),
    ("home", 0, ("bob", None, ABSENT, 20)),
    ("home", 2, ("ann", None, "-0.50", 60)),
    ("help", 2, ("ann", None, "99.00", 5)),
]
HOME = {"users": ["ann", "bob"], "views": 3, "revenue": "11.80", "ms": 30.0}


@pytest.fixture
def shop(murmur: Murmur) -> Murmur:
    """A file of daily buckets."""
    murmur.fill([(page, DAY + timedelta(days=day), value) for page, day, value in VIEWS], SHOP, daily())
    return murmur


def rows(text: str) -> list[list[str]]:
    """The cells of a table."""
    return [line.replace(", ", ",").split() for line in text.splitlines()]


def test_list_has_a_column_for_each(shop: Murmur) -> None:
    """The columns keep the order of the table's record."""
    assert rows(shop("list").out) == [
        ["entity", "users", "views", "revenue", "ms", "buckets"],
        ["help", "ann", "1", "99.00", "5.0", "1"],
        ["home", "ann,bob", "3", "11.80", "30.0", "2"],
    ]


def test_top_ranks_by_the_first_number_or_another(shop: Murmur) -> None:
    """The bars are those of the aggregate that ranks."""
    assert rows(shop("top").out) == [
        ["entity", "users", "views", "revenue", "ms"],
        ["home", "ann,bob", "3", "11.80", "30.0", "#" * 30],
        ["help", "ann", "1", "99.00", "5.0", "#" * 10],
    ]
    assert rows(shop("top", "--by", "revenue").out)[1:] == [
        ["help", "ann", "1", "99.00", "5.0", "#" * 30],
        ["home", "ann,bob", "3", "11.80", "30.0", "#" * 4],
    ]


def test_get_has_a_line_for_each(shop: Murmur) -> None:
    """The bucket follows, unless the date says all."""
    assert shop("get", "home", "--at", "2026-11-25").out == (
        "aggregate  value\nusers      ann\nviews      1\nrevenue    -0.50\nms         60.0\n"
    )
    assert shop("get", "home", "--at", "2026-11-25T07:00:00Z").out.splitlines()[-1] == "(bucket 2026-11-25)"
    window = shop("window", "home", "--last", "3d", "--now", "2026-11-25")
    assert window.out.splitlines()[2:] == [
        "views      3",
        "revenue    11.80",
        "ms         30.0",
        "(buckets 2026-11-23 to 2026-11-25)",
    ]


def test_range_has_a_column_for_each_and_no_bars(shop: Murmur) -> None:
    """Results of empty buckets are those of nothing; totals are combined before they are presented."""
    shown = rows(shop("range", "home", "--from", "2026-11-23", "--to", "2026-11-25").out)
    assert shown == [
        ["bucket", "users", "views", "revenue", "ms"],
        ["2026-11-23", "ann,bob", "2", "12.30", "15.0"],
        ["2026-11-24", "(empty)", "0", "0.00", "-"],
        ["2026-11-25", "ann", "1", "-0.50", "60.0"],
        ["total", "ann,bob", "3", "11.80", "30.0"],
    ]


def test_json(shop: Murmur) -> None:
    """An object with a value for each; decimal places as text."""
    assert shop.json("get", "home", "--at", "2026-11-23")["value"] == {
        "users": ["ann", "bob"],
        "views": 2,
        "revenue": "12.30",
        "ms": 15.0,
    }
    assert [each["entity"] for each in shop.json("top", "--by", "ms")] == ["home", "help"]
    assert shop.json("top", "-n", "1") == [{"entity": "home", "value": HOME}]
    found = shop.json("range", "home", "--from", "2026-11-23", "--to", "2026-11-25")
    assert found["value"] == HOME
    assert [each["value"]["views"] for each in found["series"]] == [2, 1]
    assert shop("list", "--prefix", "home", "--json").out.startswith(
        '{"entity": "home", "value": {"users": ["ann", "bo'
    )


def test_results_that_json_lacks(murmur: Murmur) -> None:
    """Each part as its monoid alone is shown."""
    struct = Struct({"last": Last(), "items": TopK(k=1)})
    murmur.fill([("a", DAY, ({"x": None}, ["p", "p", "q"]))], struct)
    assert murmur.json("get", "a")["value"] == {
        "last": {"event_time_us": int(DAY.timestamp() * 1e6), "value": {"x": None}},
        "items": [{"item": "p", "at_least": 2, "at_most": 2}],
    }
    refused = murmur("top")
    assert (refused.code, refused.err) == (
        2,
        "murmur: error: top needs numeric aggregates, and none of last, items is a number\n",
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["top", "--by", "pages"], "error: --by: 'pages' is not one of users, views, revenue, ms"),
        (
            ["top", "--by", "users"],
            "error: top needs numeric aggregates, but 'help' holds a frozenset (monoid 'set_uni",
        ),
        (["list", "--aggregate", "views=count"], "was opened for aggregates views=count and buckets of 1d"),
        (["list", "--aggregate", "views"], "error: --aggregate: 'views': write NAME=MONOID:FIELD"),
        (["list", "--aggregate", "a=count", "--aggregate", "a=count"], "error: --aggregate: 'a' is given twice"),
        (["list", "--aggregate", "a=count", "--monoid", "sum"], "error: --monoid: is for one aggregate"),
    ],
)
def test_mistakes(shop: Murmur, words: list[str], problem: str) -> None:
    """One line, which names the flag; exit code 2."""
    ran = shop(*words)
    assert (ran.code, ran.out) == (2, "")
    assert problem in ran.err


def test_a_store_of_one_aggregate_takes_no_name(murmur: Murmur) -> None:
    """There is nothing to choose."""
    murmur.fill([("a", DAY, 1)])
    assert "error: --by: the store holds one aggregate, 'sum'; leave it out" in murmur("top", "--by", "views").err
    assert (
        "error: --add: 'x': write NAME=MONOID:FIELD" in murmur("alter-table", "--add", "x", uri="bigtable://p/i/t").err
    )
    assert "only tables in Bigtable can" in murmur("alter-table", "--add", "x=count").err
