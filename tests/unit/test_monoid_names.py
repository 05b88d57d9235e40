"""Names of monoids with parameters, as they are typed and as stores record them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from murmur_beam.errors import ConfigurationError
from murmur_beam.monoids import Sum, by_name, names, recorded
from murmur_beam.monoids.notation import Call, parse, written


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("sum", None),
        ("sum()", Call("sum", [], {})),
        ("sum( )", Call("sum", [], {})),
        ("sum(places=2)", Call("sum", [], {"places": 2})),
        (" sum ( places = -2 , x=0.5 )", Call("sum", [], {"places": -2, "x": 0.5})),
        ("map_of(sum(places=2), max_keys=9)", Call("map_of", ["sum(places=2)"], {"max_keys": 9})),
        ("a(b(c(d)),e)", Call("a", ["b(c(d))", "e"], {})),
        ("map_of(my.module:MONOID)", Call("map_of", ["my.module:MONOID"], {})),
    ],
)
def test_parts_of_a_name(text: str, call: Call | None) -> None:
    """Monoids, and numbers by name; blanks do not matter."""
    assert parse(text, "monoid") == call


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sum(", "'sum(': expected one pair of parentheses, closed at the end"),
        ("sum(places=2) ", "'sum(places=2) ': expected one pair of parentheses, closed at the end"),
        ("sum(a))", "'sum(a))': parentheses do not match"),
        ("sum(a)(b)", "'sum(a)(b)': parentheses do not match"),
        ("sum((a)", "'sum((a)': parentheses do not match"),
        ("sum(2)", "'sum(2)': expected NAME=NUMBER, each name once, or a monoid's name; got '2'"),
        ("sum(a,)", "'sum(a,)': expected NAME=NUMBER, each name once, or a monoid's name; got ''"),
        ("sum(places=two)", "'sum(places=two)': expected NAME=NUMBER, each name once, or a monoid's name; got "),
        ("sum(places=1e3)", "'sum(places=1e3)': expected NAME=NUMBER, each name once, or a monoid's name; got "),
        ("sum(x=1, x=1)", "'sum(x=1, x=1)': expected NAME=NUMBER, each name once, or a monoid's name; got 'x=1'"),
    ],
)
def test_a_name_that_cannot_be_read(text: str, problem: str) -> None:
    """The error names the argument, and shows the part that is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "--monoid")
    assert caught.value.argument == "--monoid"
    assert caught.value.problem.startswith(problem)


def test_the_form_that_stores_record() -> None:
    """It is parsed to its parts."""
    assert written("map_of", "sum(places=2)", max_keys=9, share=0.5) == "map_of(sum(places=2), max_keys=9, share=0.5)"
    assert parse(written("a", "b", c=1), "monoid") == Call("a", ["b"], {"c": 1})


def test_a_name_with_parameters_is_of_the_class() -> None:
    """In one form, whatever blanks were typed."""
    found = by_name("sum( places = 2 )")
    assert (type(found), found.name) == (Sum, "sum(places=2)")
    assert by_name("sum()").name == "sum"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("sum(places=19)", "'sum(places=19)': places: expected an integer from 0 to 18, got 19"),
        ("sum(places=2.0)", "'sum(places=2.0)': places: expected an integer from 0 to 18, got 2.0"),
        ("sum(digits=2)", "'sum(digits=2)': Sum.__init__() got an unexpected keyword argument 'digits'"),
        ("count(places=2)", "'count(places=2)': Count.__init__() got an unexpected keyword argument 'places'"),
        ("min(places=2)", "'min(places=2)': Min() takes no arguments"),
        ("median(places=2)", "unknown monoid 'median'; choose "),
        ("(places=2)", "unknown monoid ''; choose "),
        ("max(median)", "unknown monoid 'median'; choose "),
    ],
)
def test_parameters_that_a_monoid_does_not_have(name: str, problem: str) -> None:
    """The whole name is shown."""
    with pytest.raises(ConfigurationError) as caught:
        by_name(name, "--monoid")
    assert caught.value.argument == "--monoid"
    assert caught.value.problem.startswith(problem)


def test_each_shipped_monoid_is_found_by_what_a_store_records() -> None:
    """So that readers need no name."""
    for name in names():
        monoid = by_name(name)
        found = recorded(monoid.name)
        assert (type(found), found and found.name) == (type(monoid), monoid.name)
    found = recorded("sum(places=2)")
    assert isinstance(found, Sum)
    assert found.places == 2


@pytest.mark.parametrize("name", ["median", "sum(places=99)", "sum( places=2)", "sum(", "json:loads", "", "max(x:Y)"])
def test_another_recorded_name_is_not_a_shipped_monoid(name: str) -> None:
    """Neither one that is unknown or cannot be read, nor one in another form than stores record, nor a user's."""
    assert recorded(name) is None


@pytest.mark.parametrize("name", ["planted:MONOID", "max(planted:MONOID)"])
def test_no_module_is_imported_because_a_store_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can write to a table cannot run code where it is read."""
    (tmp_path / "planted.py").write_text("MONOID = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert recorded(name) is None
    assert "planted" not in sys.modules
