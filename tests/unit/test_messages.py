"""A Pub/Sub message's own id and time are used where the flags name no event id or event time."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import pytest

from murmur_beam.errors import ConfigurationError
from murmur_beam.options import add_flags
from murmur_beam.pubsub.messages import merge_options
from murmur_beam.spec import resolve

BASE = ("--store=sqlite:///test_messages.db", "--key=page")
ID = {"event_id": "message:id"}
TIME = {"event_time": "message:publish_time"}


def added(*flags: str) -> dict[str, Any]:
    """What the arguments have beyond the flags, after a check of all of them."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    options = merge_options(parser.parse_args([*BASE, *flags]))
    resolve(options)
    given = dict(flag[2:].split("=", 1) for flag in flags)
    found = {name: value for name, value in options.given().items() if name in ("event_id", "event_time")}
    assert all(found[name] == given[name] for name in found.keys() & given.keys())
    return {name: value for name, value in found.items() if name not in given}


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        (["--monoid=count"], ID),
        (["--monoid=count", "--event_id=id"], {}),
        (["--monoid=count", "--dedup=none"], {}),
        (["--monoid=count", "--dedup=exact"], ID),
        (["--monoid=count", "--window=daily"], ID | TIME),
        (["--monoid=count", "--window=daily", "--event_time=at"], ID),
        (["--monoid=count", "--window=daily", "--event_time=at", "--event_id=attribute:id"], {}),
        (["--value=n"], ID),
        (["--value=n", "--monoid=max"], {}),
        (["--value=n", "--monoid=first"], TIME),
        (["--value=n", "--monoid=last"], TIME),
        (["--value=n", "--monoid=max", "--window=1h"], TIME),
    ],
    ids=" ".join,
)
def test_missing_parts_are_taken_from_the_message(
    flags: list[str], more: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """An id only where duplicates are dropped by it, a time only where it matters; the id warns in one line."""
    assert added(*flags) == more
    out, err = capsys.readouterr()
    assert out == ""
    if "event_id" in more:
        (line,) = err.splitlines()
        assert "a publisher's retry gets a new message id" in line
        assert "attribute:NAME" in line
    else:
        assert err == ""


def test_wrong_flags_are_reported_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Before any warning about an id."""
    with pytest.raises(ConfigurationError, match=r"^--monoid: unknown monoid 'average'"):
        added("--monoid=average")
    assert capsys.readouterr().err == ""


def test_it_does_not_import_beam() -> None:
    """A subscriber without Beam uses it too."""
    code = "import sys, murmur_beam.pubsub.messages; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
