"""Options are described once; flags, queries of URIs, help and the docs' page follow."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Annotated, Literal
from urllib.parse import urlsplit

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from murmur_beam import options
from murmur_beam.buffer import FlushLimits
from murmur_beam.config import Config
from murmur_beam.durations import parse_duration
from murmur_beam.errors import ConfigurationError
from murmur_beam.option import (
    Option,
    add_flags,
    at_least,
    check_options,
    decimal,
    described,
    documented,
    given,
    number,
    positive_duration,
    positive_seconds,
    read_query,
    write_query,
)
from murmur_beam.options import MergeOptions, described_stores
from murmur_beam.state import spec_from_uri
from murmur_beam.state.bigtable import BigtableSpec
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.transforms import MergeRecords, MurmurOptions


@documented
@dataclass(frozen=True)
class Inner:
    """Options within options."""

    age: Annotated[timedelta, Option("how old", "DURATION", parse_duration, positive_duration)] = timedelta(seconds=1)


@documented
@dataclass(frozen=True)
class Sample:
    """A class with one option of each kind.

    Args:
        path: no option.

    Raises:
        ConfigurationError: of an option.
    """

    path: str
    rows: Annotated[int, Option("how many", "N", number, at_least(1, 9))] = 3
    wait_s: Annotated[float, Option("how long", "SECONDS", decimal, positive_seconds)] = 0.5
    color: Annotated[Literal["red", "blue"] | None, Option("which 100%", default="red")] = None
    names: Annotated[str | None, Option("several", repeated=True)] = None
    inner: Annotated[Inner | None, Option("more", prefix="in_")] = None
    python_only: Annotated[object, Option("an object", text=False, more="In Python.")] = None

    def __post_init__(self) -> None:
        check_options(self)


def parsed(*argv: str, prefix: str = "", spelt_twice: bool = False) -> dict[str, object]:
    """What a command line gives."""
    parser = argparse.ArgumentParser()
    add_flags(parser, Sample, prefix, spelt_twice=spelt_twice)
    return given(parser.parse_args(argv), Sample, prefix)


class TestFlags:
    def test_each_becomes_its_value(self) -> None:
        """Parsed, in lists where it may be repeated, within the option that it belongs to."""
        flags = ("--rows=4", "--wait_s=2", "--color=blue", "--names=a", "--names=b", "--in_age=2m")
        assert parsed(*flags) == {
            "rows": 4,
            "wait_s": 2.0,
            "color": "blue",
            "names": ["a", "b"],
            "inner": Inner(timedelta(minutes=2)),
        }
        assert parsed() == {}

    def test_hyphens(self) -> None:
        """Both spellings go to one place, also with a prefix."""
        assert parsed("--my-wait-s=2", "--my_rows=4", prefix="my_", spelt_twice=True) == {"wait_s": 2.0, "rows": 4}

    @pytest.mark.parametrize(
        ("flag", "problem"),
        [
            ("--my_rows=x", "--my_rows: 'x' is not a whole number"),
            ("--my_rows=10", "--my_rows: must be an integer from 1 to 9, got 10"),
            ("--my_wait_s=0", "--my_wait_s: must be a positive number of seconds, got 0.0"),
            ("--my_wait_s=1e3", "--my_wait_s: '1e3' is not a decimal number"),
            ("--my_in_age=0s", "--my_in_age: must be a positive timedelta"),
            ("--my_in_age=soon", "--my_in_age: 'soon' is not a duration"),
        ],
    )
    def test_errors_name_the_flag(self, flag: str, problem: str) -> None:
        """As it was written."""
        with pytest.raises(ConfigurationError) as caught:
            parsed(flag, prefix="my_")
        assert str(caught.value).startswith(problem)

    def test_help_shows_the_default(self) -> None:
        """Of the field, or as the option describes it; a percent sign does not break it."""
        parser = argparse.ArgumentParser()
        add_flags(parser, Sample)
        text = " ".join(parser.format_help().split())
        assert "--rows N how many; default: 3" in text
        assert "--color {red,blue} which 100%; default: red" in text
        assert "--in_age DURATION how old; default: 1s" in text
        assert "python_only" not in text


class TestChecks:
    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"rows": True}, "rows: must be an integer from 1 to 9, got True"),
            ({"rows": None}, "rows: must be an integer from 1 to 9, got None"),
            ({"wait_s": float("nan")}, "wait_s: must be a positive number of seconds"),
            ({"color": "green"}, "color: expected red or blue, got 'green'"),
            ({"color": []}, "color: expected red or blue, got []"),
        ],
    )
    def test_a_wrong_value_is_named(self, changes: dict[str, object], problem: str) -> None:
        """Where the instance is made."""
        with pytest.raises(ConfigurationError) as caught:
            Sample("p", **changes)  # type: ignore[arg-type]
        assert str(caught.value).startswith(problem)


class TestQueries:
    @hypothesis_given(
        rows=st.integers(1, 9),
        wait_s=st.floats(0.001, 1e6, allow_nan=False).map(lambda value: round(value, 6)),
        color=st.sampled_from([None, "red", "blue"]),
    )
    def test_what_is_written_is_read_back(self, rows: int, wait_s: float, color: str | None) -> None:
        """Whatever the values are."""
        spec = Sample("p", rows, wait_s, color)  # type: ignore[arg-type]
        assert Sample("p", **read_query(urlsplit(f"x://p{write_query(spec)}"), Sample)) == spec

    def test_defaults_are_left_out(self) -> None:
        """The shortest URI is the one that people write."""
        assert write_query(Sample("p")) == ""
        assert write_query(Sample("p", rows=4, color="blue")) == "?rows=4&color=blue"

    @pytest.mark.parametrize(
        ("query", "problem"),
        [
            ("?rowz=1", "store: unknown option rowz in 'x://p?rowz=1'; the options are rows, wait_s, color"),
            ("?rows=1&rows=2", "store: rows is in 'x://p?rows=1&rows=2' twice"),
            ("?rows=many", "store: rows: 'many' is not a whole number"),
            ("?python_only=1", "store: unknown option python_only"),
        ],
    )
    def test_wrong_queries(self, query: str, problem: str) -> None:
        """The error says what may be written."""
        with pytest.raises(ConfigurationError) as caught:
            read_query(urlsplit(f"x://p{query}"), Sample)
        assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("cls", [BigtableSpec, SqliteSpec])
def test_each_option_of_a_store_can_be_in_its_uri(cls: type) -> None:
    """And the spec's text shows it, so that a message names the store as it is."""
    base = {BigtableSpec: "bigtable://p/i/t", SqliteSpec: "sqlite:////tmp/counts.db"}[cls]
    tried = 0
    for each in described(cls):
        text = {"app_profile": "web", "shards": "8", "table": "views", "dedup_retention": "90d"}.get(each.name)
        if text is None and isinstance(each.default, (int, float)):
            text = str(each.default + 1)  # another value that is surely allowed
        if text is not None:
            tried += 1
            spec = spec_from_uri(f"{base}?{each.name}={text}")
            assert getattr(spec, each.name) == each.parse(text)
            assert f"{each.name}={text}" in str(spec)
    assert tried >= 2


class TestDescriptions:
    @pytest.mark.parametrize("cls", [MergeOptions, Config, FlushLimits, *described_stores().values()])
    def test_help_is_a_phrase(self, cls: type) -> None:
        """Without a full stop or its default, which are added; the rest is whole sentences."""
        for each in described(cls):
            assert each.option.help
            assert not each.option.help.endswith(".")
            assert "default" not in each.option.help
            assert each.option.more == "" or each.option.more.endswith(".")

    def test_every_argument_is_described(self) -> None:
        """None is forgotten by flags or docs."""
        assert [each.name for each in described(MergeOptions)] == [
            field.name for field in fields(MergeOptions) if field.name != "_"
        ]

    def test_help_of_the_transform(self) -> None:
        """`help(MergeRecords)` lists each argument with its plain type."""
        doc = inspect.getdoc(MergeRecords) or ""
        for each in described(MergeOptions):
            assert f"\n    {each.name}: {each.option.help.split()[0]}" in doc
        parameters = inspect.signature(MergeRecords).parameters
        assert [*parameters] == [each.name for each in described(MergeOptions)]
        assert "Annotated" not in str(inspect.signature(MergeRecords))
        assert inspect.signature(MergeRecords).parameters["name"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD

    def test_arguments_of_a_docstring_are_kept(self) -> None:
        """Options follow them, and errors follow the options."""
        doc = inspect.getdoc(Sample) or ""
        assert doc.index("path: no option.") < doc.index("rows: how many; default: 3.") < doc.index("Raises:")

    def test_the_page_of_options(self) -> None:
        """It has a row for each option of a merge and of each store, with the flag or the part of the URI."""
        page = options.markdown()
        for each in described(MergeOptions):
            if each.inner is None:
                flag = f"`--{each.flag} " if each.option.text else "Python only"
                assert f"| `{each.name}` | {flag}" in page
        for part in ("`--flush_age DURATION`", "`--max_attempts N` | 3", "`?shards=N`", "`?dedup_retention=DURATION`"):
            assert part in page
        rows = [line for line in page.splitlines() if line.startswith("|")]
        assert {line.replace(r"\|", "").count("|") for line in rows} == {5}

    def test_beam_s_options_have_both_spellings(self) -> None:
        """Beam's parser knows no hyphens by itself."""
        for flag in ("--murmur-event-id=id", "--murmur_event_id=id"):
            assert MurmurOptions([flag]).murmur_event_id == "id"
