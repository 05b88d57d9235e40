"""How ``murmur`` shows the results of monoids that store something else: sums of floats, means, variances."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from murmur_beam.monoids import by_name
from tests.support.commands import Murmur

AT = datetime(2026, 11, 14, tzinfo=timezone.utc)


def fill(murmur: Murmur, name: str, **values: list[Any]) -> None:
    """Merge the values of each entity."""
    murmur.fill([(entity, AT, value) for entity, some in values.items() for value in some], by_name(name))


def test_sums_of_floats_are_floats(murmur: Murmur) -> None:
    """One beyond their range is infinite, and has no bar; JSON has no infinity."""
    fill(murmur, "float_sum", a=[0.1] * 10, b=["1e100", -0.5, "-1e100"], c=[1.7e308, 1.7e308])
    rows = [line.split() for line in murmur("top").out.splitlines()]
    assert rows == [["entity", "value"], ["c", "inf"], ["a", "1.0", "#" * 30], ["b", "-0.5", "-" * 15]]
    assert [murmur.json("get", entity)["value"] for entity in "abc"] == [1.0, -0.5, {"text": "inf"}]


def test_means_are_ranked(murmur: Murmur) -> None:
    """By the mean and not by what is stored."""
    fill(murmur, "mean", a=[0.1, 0.2, 0.3], b=[-5, 15])
    assert murmur.json("top") == [{"entity": "b", "value": 5.0}, {"entity": "a", "value": 0.2}]
    assert murmur("get", "a").out == "0.2\n"


def test_variances_have_names(murmur: Murmur) -> None:
    """An object in JSON, and the same in a table; a missing number is null."""
    fill(murmur, "variance", a=[2, 4, 4, 4, 5, 5, 7, 9], b=[0.5])
    expected = {"n": 8, "mean": 5.0, "variance": 32 / 7, "stddev": (32 / 7) ** 0.5}
    assert murmur.json("get", "a")["value"] == expected
    assert murmur("get", "b").out == '{"mean":0.5,"n":1,"stddev":null,"variance":null}\n'
    refused = murmur("top")
    assert refused.code == 2
    assert refused.err.startswith("murmur: error: top needs numeric aggregates, but 'a' holds a Moments")
