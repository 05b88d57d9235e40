"""The types that users get: a program of theirs passes ``mypy --strict`` and pyright, and its mistakes are found."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import ROOT, environment

API = (ROOT / "tests/typing/api.py").read_text("utf-8")

IMPORTS = """\
from datetime import timedelta
import murmur_beam
from murmur_beam import Count, MergeRecords, Reader, SqliteSpec, daily
"""
RIGHT_AND_WRONG = {
    "a class in place of an instance": ("MergeRecords(monoid=Count())", "MergeRecords(monoid=Count)"),
    "a number as the window": ("MergeRecords(window=daily())", "MergeRecords(window=3)"),
    "a word that is not a choice": ('MergeRecords(on_exhausted="raise")', 'MergeRecords(on_exhausted="explode")'),
    "an unknown argument": ('MergeRecords(event_id="id")', 'MergeRecords(event_ids="id")'),
    "a duration as the store": ('MergeRecords(store=SqliteSpec("x.db"))', "MergeRecords(store=timedelta(1))"),
    "an unknown name": ("print(murmur_beam.MergeRecords)", "print(murmur_beam.MergeRecord)"),
    "a delta of another type": ("Count().combine(1, 2)", 'Count().combine(1, "2")'),
    "an entity that is not text": ('Reader.open("sqlite:///x.db").get("a")', 'Reader.open("sqlite:///x.db").get(3)'),
}
"""Mistakes: a statement as it should be, and as a user may write it."""

Check = Callable[[Path], str]


@pytest.fixture(scope="session")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Runs ``mypy --strict`` as a user does, without this project's settings; only the first run reads Beam."""
    cache = tmp_path_factory.mktemp("mypy")

    def run(file: Path) -> str:
        options = ["--strict", "--config-file=", f"--cache-dir={cache}", "--no-error-summary", "--no-pretty"]
        return output_of([sys.executable, "-m", "mypy", *options, file.name], file.parent)

    return run


def pyright(file: Path) -> str:
    """Run pyright with its own settings."""
    return output_of([sys.executable, "-m", "pyright", "--pythonpath", sys.executable, file.name], file.parent)


def output_of(command: list[str], folder: Path) -> str:
    """What a type checker reports, with this source among the installed packages."""
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=["mypy", "pyright"])
def check(request: pytest.FixtureRequest) -> Check:
    """A type checker, as a user runs it."""
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed; run: pip install -e '.[lint]'")
    found: Check = request.getfixturevalue("mypy") if request.param == "mypy" else pyright
    return found


def errors(report: str) -> dict[int, str]:
    """The lines of the program that a type checker reports, each with the first report."""
    found: dict[int, str] = {}
    for line, text in re.findall(r"^\s*\S*program\.py:(\d+)(?::\d+)?(?: -|:) error: (.*)$", report, re.MULTILINE):
        found.setdefault(int(line), text)
    return found


def test_a_user_s_program_is_accepted(check: Check, tmp_path: Path) -> None:
    """The facade, a pipeline, both outputs, the reader, and a monoid and tests of the user's own."""
    (tmp_path / "program.py").write_text(API, "utf-8")
    report = check(tmp_path / "program.py")
    assert errors(report) == {}, report
    assert "error" not in report.replace("0 errors", ""), report


def test_mistakes_are_found(check: Check, tmp_path: Path) -> None:
    """Each mistake is reported in its own line, and the same statement without it is accepted."""
    program = tmp_path / "program.py"
    reports = []
    for statements in zip(*RIGHT_AND_WRONG.values(), strict=True):
        program.write_text(IMPORTS + "".join(f"{statement}\n" for statement in statements), "utf-8")
        reports.append(check(program))
    right, wrong = reports
    assert errors(right) == {}, right
    first = IMPORTS.count("\n") + 1
    found = errors(wrong)
    assert [mistake for line, mistake in enumerate(RIGHT_AND_WRONG, first) if line not in found] == [], wrong
