"""CHANGELOG.md has the form of Keep a Changelog, and knows the version of the code."""

from __future__ import annotations

import re
from datetime import date

import murmur_beam
from tests.support import ROOT

TEXT = (ROOT / "CHANGELOG.md").read_text("utf-8")
VERSIONS = re.findall(r"^## \[([^\]]+)\](?: - (\S+))?$", TEXT, re.MULTILINE)
KINDS = ("Changed", "Added", "Deprecated", "Removed", "Fixed", "Security")


def parts(version: str) -> tuple[int, ...]:
    """The numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def test_releases_have_dates_the_newest_first() -> None:
    """What is not released stands before all of them, without a date."""
    (unreleased, none), *released = VERSIONS
    assert (unreleased, none) == ("Unreleased", "")
    assert [parts(version) for version, _ in released] == sorted(
        (parts(version) for version, _ in released), reverse=True
    )
    days = [date.fromisoformat(day) for _, day in released]
    assert days == sorted(days, reverse=True)
    assert released[-1] == ("0.1.0", "2026-11-23")


def test_the_code_is_the_newest_release_or_the_next() -> None:
    """While the version ends in dev, its changes are under Unreleased."""
    newest = parts(VERSIONS[1][0])
    if "dev" in murmur_beam.__version__:
        assert parts(murmur_beam.__version__) > newest
    else:
        assert parts(murmur_beam.__version__) == newest


def test_changes_are_sorted_by_kind() -> None:
    """Each heading is a kind of change, at most once in a version, and has a list."""
    for section in re.split(r"^## .*$", TEXT, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert set(kinds) <= {*KINDS}
        assert kinds == [kind for kind in KINDS if kind in kinds]
        assert all(re.match(r"\s*- ", text) for text in re.split(r"^### .*$", section, flags=re.MULTILINE)[1:])


def test_each_version_has_a_link() -> None:
    """To what it changed."""
    assert re.findall(r"^\[(.*)\]: https://github\.com/murmur-beam/\S+$", TEXT, re.MULTILINE) == [
        version for version, _ in VERSIONS
    ]
