"""`benchmarks.reading`, run with a tiny table: its figures are there, its bar decides the exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from benchmarks import reading
from murmur_beam.reader import Reader

pytestmark = pytest.mark.usefixtures("bigtable_host")  # skipped without an emulator


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and output."""
    return reading.main(arguments), *capsys.readouterr()


def test_a_query_of_an_hour_reads_the_rows_of_an_hour(capsys: pytest.CaptureFixture[str]) -> None:
    """Each query must have its figures: 1/24 of the rows for an hour of 24, however the table is read."""
    code, out, _ = run(capsys, "--rows=240", "--turns=1", "--json")
    found = json.loads(out)
    assert code == 0
    for question in found["questions"]:
        assert question["rows_sent"] == (10 if "one hour" in question["question"] else 240)
        assert question["bytes_sent"] > 0
        assert question["seconds"] >= 0
    assert len(found["questions"]) == 8
    assert (found["bars"][0]["bar"], found["bars"][0]["holds"]) == (0.2, True)


def test_a_missed_bar_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    """An hour of two is half of the rows; the table says so, in aligned columns."""
    code, out, _ = run(capsys, "--rows=20", "--hours=2", "--turns=1")
    assert code == 1
    assert re.search(r"^top, one hour +10 +\d+ +\d+\.\d\d ", out, re.MULTILINE)
    assert re.search(r"^rows sent, one hour / whole table +0\.50 .* <= 0\.2 +MISSED$", out, re.MULTILINE)


def test_a_wrong_answer_has_no_figure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and exit code 2."""
    monkeypatch.setattr(Reader, "top", lambda *_: [("page/000000", 1)])
    code, out, err = run(capsys, "--rows=20", "--hours=2", "--turns=1")
    assert (code, out) == (2, "")
    assert err.startswith("reading: error: top, whole table: a wrong answer, ")


@pytest.mark.parametrize("arguments", [["--rows=0"], ["--hours=0"], ["--turns=-1"], ["--rows=5", "--hours=6"]])
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
    """It names the option."""
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"reading: error: {arguments[0].partition('=')[0]}: ")
