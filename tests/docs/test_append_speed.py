"""`benchmarks.append_speed`, run with few events: each line has its figure, the bars decide the exit code."""

from __future__ import annotations

import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from benchmarks import append_speed, contenders, contention, harness, unfolded, workloads
from murmur_beam.state.bigtable.appender import Appender

pytestmark = pytest.mark.usefixtures("bigtable_host")  # skipped without an emulator

FEW = "--events=160", "--rounds=1", "--rows=8", "--pending=70", "--markers=60"


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything in this process, since starting processes and emulators needs most of the time; pipelines are
    still measured."""
    monkeypatch.setattr(append_speed, "GETS", 3)
    monkeypatch.setattr(contention, "_READY_S", 0.0)
    monkeypatch.setattr(append_speed, "on_bigtable", nullcontext)

    def call(function: Any, *args: Any) -> Any:
        return (in_own_process if function is contenders.measure else lambda f, *args: f(*args))(function, *args)

    in_own_process = harness.in_own_process
    monkeypatch.setattr(append_speed, "in_own_process", call)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and output."""
    return append_speed.main([*FEW, *arguments]), *capsys.readouterr()


@pytest.mark.parametrize(
    "lines",
    [
        ["memory"],
        ["threads-own", "threads-shared"],
        ["writers"],
        [f"{rows}-{way}" for rows in ("pending-1", "pending-many", "folded-many") for way in ("get_many", "scan")],
        ["fold-2000", "fold-32", "fold-1", "known"],
    ],
    ids=lambda lines: lines[0],
)
def test_each_line_has_its_figure(capsys: pytest.CaptureFixture[str], lines: Sequence[str]) -> None:
    """The requested ones, and no others; by the client's processor too, where that is meaningful."""
    code, out, _ = run(capsys, "--json", "--only", *lines)
    found = json.loads(out)
    shown = found["bars"]
    assert list(dict.fromkeys(bar["line"] for bar in shown)) == lines
    for line, bar in zip([line for line in append_speed.LINES if line.name in lines], shown, strict=True):
        assert bar["bar"] == line.bar
        if line.reads:
            assert (bar["value"], bar["holds"]) == (0, True)
        else:
            assert bar["value"] > 0
            assert (bar["by_cpu"] is not None) == line.by_cpu
    assert {"Beam", "grpcio", "emulator"} <= set(found["machine"].split())
    assert code == int(any(bar["holds"] is False for bar in shown))


@pytest.mark.parametrize("name", ["append-own", "append-bundles-10-own"])
def test_contenders_that_append_are_exact(bigtable_host: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each in this process, with a table of its own; one event too few is detected."""
    for lost in (0, 1):
        monkeypatch.setattr(contenders, "TABLE", f"bench-{os.getpid()}-{time.monotonic_ns()}")
        expected = workloads.expected("own" if "own" in name else name.rpartition("-")[2], 60)
        expected[min(expected)] += lost
        monkeypatch.setattr(contenders, "expected", lambda *args, expected=expected: expected)
        job = contenders.Job(bigtable_host, 60, 20)
        if lost:
            with pytest.raises(harness.Inexact, match="and should be"):
                contenders.APPENDING[name].run(job)
        else:
            (made,) = contenders.APPENDING[name].run(job)
            assert (made.name, made.events) == (name, 60)


@pytest.mark.parametrize(("bar", "code", "verdict"), [(0.0, 0, "holds"), (1e9, 1, "MISSED")])
def test_a_missed_bar_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bar: float, code: int, verdict: str
) -> None:
    """The table says so, in aligned columns."""
    lines = [line._replace(bar=bar) if line.name == "fold-32" else line for line in append_speed.LINES]
    monkeypatch.setattr(append_speed, "LINES", lines)
    assert (got := run(capsys, "--only", "fold-32"))[0] == code
    assert re.search(rf"^folding a row, cells of 32: events +[0-9.]+ k/s .* +{verdict}$", got[1], re.MULTILINE)


def test_every_run_of_a_line_has_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown run would only be noticed after all others were measured."""
    asked: set[str] = set()
    monkeypatch.setattr(append_speed, "_in_turns", lambda rounds, runs, around=None: asked.update(runs) or {})
    monkeypatch.setattr(append_speed, "in_own_process", lambda *args: defaultdict(list))
    wanted = {run for line in append_speed.LINES for run in (line.one, line.other) if run is not None}
    sizes = append_speed.Sizes(160, 1, 1, 1, 1, 1)
    for group in append_speed.GROUPS[:-1]:
        asked |= set(group(sizes, wanted))
    assert wanted - asked == {"known", "known-other"}


# ---- ratios ----


def test_ratios_are_taken_within_a_round() -> None:
    """Of rates, or of times where less is better; the other contenders may seem faster than they are."""
    costs = {
        "one": [append_speed.Cost(1e-6, 2e-6), append_speed.Cost(2e-6, 2e-6)],
        "other": [append_speed.Cost(4e-6, 4e-6), append_speed.Cost(2e-6, 2e-6)],
    }
    line = append_speed.Line("x", "x", "one", "other", 1.5)
    (rates,) = append_speed.bars([line], costs)
    assert (rates.values, rates.by_cpu, rates.holds) == ([4.0, 1.0], [2.0, 1.0], True)
    (faster,) = append_speed.bars([line._replace(times=2.0, by_cpu=False)], costs)
    assert (faster.values, faster.by_cpu, faster.holds) == ([2.0, 0.5], [], False)
    (times,) = append_speed.bars([line._replace(slower=True)], costs)
    assert (times.values, times.by_cpu, times.holds) == ([0.25, 1.0], [0.5, 1.0], True)
    (alone,) = append_speed.bars([line._replace(other=None, bar=500.0)], costs)
    assert (alone.values, alone.unit, alone.holds) == (pytest.approx([1000.0, 500.0]), " k/s", True)


# ---- exactness ----


def test_wrong_rows_have_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles of many threads, and rows of many writers, are compared key by key."""
    entries = Appender._entries

    def lost(self: Any, flush: Any, groups: Any) -> Any:
        return entries(self, flush, groups[1:] if len(groups) > 1 else groups)

    monkeypatch.setattr(Appender, "_entries", lost)
    with pytest.raises(harness.Inexact, match=r"k\d+ is (None|\d+), and should be \d+"):
        contention.merge_bundles(contention.new_table("append"), 60, 2, 10, 5)


def test_a_fold_that_loses_events_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared with the appended events, and so is what is read afterwards."""
    append = unfolded._append
    monkeypatch.setattr(unfolded, "_append", lambda table, events, cell: append(table, events - 1, cell))
    with pytest.raises(harness.Inexact, match="a fold of 50 events"):
        unfolded.fold_row(50, 8)


# ---- mistakes ----


@pytest.mark.parametrize("argument", ["--events=159", "--rounds=0", "--rows=0", "--pending=0", "--markers=0"])
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    """It names the option."""
    assert append_speed.main([argument]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("append_speed: error: ")
    assert argument.partition("=")[0] in err
