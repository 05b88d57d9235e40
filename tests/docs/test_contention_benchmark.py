"""`benchmarks.contention`, run with few events: its figures are there, its bars decide the exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from benchmarks import contention

pytestmark = pytest.mark.usefixtures("bigtable_host")  # skipped without an emulator

FEW = "--events=40", "--bundled=480", "--rounds=1"


@pytest.fixture(autouse=True)
def _few_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "WRITERS", (1, 4))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and output."""
    return contention.main(arguments), *capsys.readouterr()


def test_each_run_has_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """Rates, the slowest call, and the writes of an event; one writer needs one each."""
    code, out, _ = run(capsys, *FEW, "--json")
    found = json.loads(out)
    assert [*found["runs"]] == [
        "1 writer of one row",
        "4 writers of one row",
        "1 thread, bundles of 5,000",
        "12 threads, bundles of 500",
        "12 threads, bundles of 10",
        "bare stubs, 64 in flight",
    ]
    for figures in found["runs"].values():
        assert figures["events_per_s"] > 0
        assert figures["slowest_s"] > 0
        assert figures["writes_per_event"] > 0
    assert found["runs"]["1 writer of one row"]["writes_per_event"] == 1
    assert [bar["bar"] for bar in found["bars"]] == [0.15, 5.0, 0.15, None]
    assert code == int(any(bar["holds"] is False for bar in found["bars"]))


def test_a_missed_bar_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The table says so, in aligned columns."""
    monkeypatch.setattr(contention, "ROW_BAR", 1_000.0)
    code, out, _ = run(capsys, *FEW)
    assert code == 1
    assert re.search(r"^1 writer of one row +[0-9,]+ +\d+\.\d\d s +1\.00$", out, re.MULTILINE)
    assert re.search(r"^4 writers of one row / 1 writer +\d+\.\d\d .* >= 1000 +MISSED$", out, re.MULTILINE)


@pytest.mark.parametrize("arguments", [["--events=3"], ["--bundled=11"], ["--rounds=0"]])
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
    """It names the option."""
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"contention: error: {arguments[0].partition('=')[0]}: ")
