"""The benchmarks: each runs by its own command with tiny numbers, and a contender that counts wrong has no figure."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.testing.emulators import BIGTABLE, PUBSUB
from tests.support import ROOT, emulators

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from benchmarks import contenders, growing, growth, harness, latency, throughput, workloads
from murmur_beam.state.bigtable.codec import RowCodec


def command(module: str, *arguments: str) -> list[str]:
    """A benchmark's own command line."""
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


def printed(module: str, *arguments: str, code: int = 0) -> str:
    """The output of a benchmark; stderr may only hold errors of this library."""
    done = subprocess.run(command(module, *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr if code == 0 else "") == (code, ""), done.stderr
    return done.stdout if code == 0 else done.stderr


# ---- each by its own command ----


def test_throughput_measures_every_contender() -> None:
    """Every contender must have a figure in the JSON document, and every ratio with a bar must be there."""
    emulators.require(BIGTABLE)
    found = json.loads(printed("throughput", "--events=200", "--rounds=1", "--flush=50", "--json"))
    names = {figure["name"] for figure in found["figures"]}
    assert set(contenders.CONTENDERS) <= names
    assert names - set(contenders.CONTENDERS) == {"own-again", "zipf1.1-again", "zipf1.3-again", "hot-again"}
    assert found["failed"] == {}
    assert all(figure["events_per_s"] > 0 and figure["peak_mb"] > 10 for figure in found["figures"])
    by_name = {figure["name"]: figure for figure in found["figures"]}
    # A flush of 50 of one hot key is one request; of a cell of 16 bytes an event.
    assert by_name["hot"]["writes_per_row_and_flush"] == 1.0
    assert by_name["commits-32"]["dedup_bytes_per_event"] == pytest.approx(16 + (24 + 8) * 7 / 200)
    assert len(found["bars"]) == len(throughput.RATIOS) + 2
    assert [bar["text"] for bar in found["bars"] if bar["bar"] is not None and bar["holds"] is None] == []


def test_throughput_prints_a_table() -> None:
    """Without --json there must be a line for each requested contender, and one for each of its ratios."""
    emulators.require(BIGTABLE)
    text = printed("throughput", "--events=50", "--rounds=2", "--only", "limit", "hot")
    assert re.search(r"^limit +bare stubs.* [\d,]+ +\d+\.\d\d ", text, re.MULTILINE)
    assert re.search(r"^hot +MergeRecords: one hot key .* 1\.00 +\d+\.\d\d$", text, re.MULTILINE)
    assert re.search(r"^one hot key / limit .* >= 5 +(holds|MISSED)$", text, re.MULTILINE)
    assert "WriteToBigTable" not in text


def test_latency_measures_every_message() -> None:
    """Every percentile must be there and in order, from arrival not above that from publishing."""
    emulators.require(BIGTABLE)
    emulators.require(PUBSUB)
    found = json.loads(printed("latency", "--rate=200", "--seconds=1", "--rounds=1", "--json"))
    bars = {bar["text"]: bar for bar in found["bars"]}
    for start in ("arrival in worker", "publishing"):
        values = [bars[f"{name} from {start} to readable"]["value"] for name in latency.PERCENTILES]
        assert 0 < values[0] <= values[1] <= values[2] <= values[3]
    assert bars["p50 from arrival in worker to readable"]["value"] < bars["p50 from publishing to readable"]["value"]
    assert [bar["bar"] for bar in found["bars"] if bar["bar"]] == [latency.BAR_MS]


def test_growth_measures_rows_and_runs(tmp_path: Path) -> None:
    """There must be a cost for each row and each run, and a picture."""
    emulators.require(BIGTABLE)
    pytest.importorskip("matplotlib", reason="pip install 'murmur-beam[bench]'")
    picture = tmp_path / "growth.png"
    sizes = ["--rows", "0", "64", "--lengths", "100", "300", "--turns=2", "--rounds=2"]
    found = json.loads(printed("growth", *sizes, f"--plot={picture}", "--json"))
    assert list(found["us_per_event_by_events_in_row"]) == ["0", "64"]
    assert all(cost > 0 for cost in found["us_per_event_by_events_in_row"].values())
    assert [run["events"] for run in found["runs"]] == [100, 300]
    assert all(run["us_per_event"] > 0 and run["peak_mb"] > 10 for run in found["runs"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_growth_prints_tables() -> None:
    """Without --json there must be a line for each size."""
    emulators.require(BIGTABLE)
    text = printed("growth", "--rows", "0", "--lengths", "50", "--turns=1", "--rounds=1")
    assert re.search(r"^events in the row +us/event", text, re.MULTILINE)
    assert re.search(r"^0 +\d+\.\d +", text, re.MULTILINE)
    assert re.search(r"^50 +\d+\.\d +\d+$", text, re.MULTILINE)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("throughput", ["--events=0"]),
        ("throughput", ["--only", "nobody"]),
        ("latency", ["--rate=0"]),
        ("growth", ["--rows", "-1"]),
    ],
)
def test_a_mistake_is_one_line(module: str, arguments: list[str]) -> None:
    """A wrong argument must be one line on stderr that names it, and exit code 2."""
    text = printed(module, *arguments, code=2)
    assert text.startswith(f"{module}: error: ")
    assert text.count("\n") == 1
    assert arguments[0].split("=")[0] in text


def test_a_plot_without_matplotlib_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is measured one line must name the package to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert growth.main(["--plot=growth.png"]) == 2
    assert "pip install 'murmur-beam[bench]'" in capsys.readouterr().err


def test_sigterm_leaves_nothing_running() -> None:
    """A benchmark that is ended must end its emulator and its processes at once."""
    emulators.require(BIGTABLE)
    running = subprocess.Popen(
        command("growth", "--rows", "10000000", "--rounds=1"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    family: list[int] = []
    try:
        # The emulator, the server that forks, the process that measures, and Python's own tracker.
        _wait_for(lambda: len(_children(running.pid)) >= 3 and len(_descendants(running.pid)) >= 4)
        family = _descendants(running.pid)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()
    try:
        assert running.returncode == 130, said
        _wait_for(lambda: not any(_alive(pid) for pid in family))
    finally:
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return [child for child, parent in pairs if parent == pid]


def _descendants(pid: int) -> list[int]:
    children = _children(pid)
    return children + [far for child in children for far in _descendants(child)]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---- exactness ----


@pytest.fixture
def job(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> contenders.Job:
    """A tiny job, for contenders in this process, with a table of its own."""
    monkeypatch.setattr(contenders, "TABLE", f"bench-{os.getpid()}-{time.monotonic_ns()}")
    return contenders.Job(bigtable_host, 60, 20)


@pytest.mark.parametrize("name", ["hot", "max", "set_union", "no-dedup", "bundles-10", "memory", "claim"])
def test_a_wrong_count_has_no_figure(job: contenders.Job, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every contender that counts must be refused if one count differs from the events."""
    right = contenders.expected
    pages = contenders.pages

    def one_more(kind: str, n: int, monoid: str = "sum") -> dict[str, Any]:
        counts = right(kind, n, monoid)
        del counts[max(counts)]
        return counts

    monkeypatch.setattr(contenders, "expected", one_more)
    if name == "claim":
        monkeypatch.setattr(contenders, "pages", lambda kind, n: pages(kind, n + 1))
    with pytest.raises(harness.Inexact):
        contenders.CONTENDERS[name].run(job)


def test_a_store_that_counts_wrong_has_no_figure(job: contenders.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that adds one too many must be detected, though it reports every event as merged."""
    changes = RowCodec.changes

    def too_much(cells: RowCodec[int], at_us: int, before: Any, after: int, *expiry: Any) -> list[bytes]:
        return changes(cells, at_us, before, after + 1, *expiry)

    monkeypatch.setattr(RowCodec, "changes", too_much)
    with pytest.raises(harness.Inexact, match=r"page-0 is 63, and should be 60"):
        contenders.CONTENDERS["hot"].run(job)


def test_a_run_that_counts_wrong_has_no_figure(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of the growth benchmark must compare their counts with the events as well."""
    monkeypatch.setattr(growing, "Counter", lambda pages: {"page-0": 1})
    monkeypatch.setattr(growing, "TABLE", f"growth-{os.getpid()}-{time.monotonic_ns()}")
    with pytest.raises(harness.Inexact, match="wrong after 50 events"):
        growing.run(bigtable_host, 50)


def test_a_contender_that_fails_once_is_left_out() -> None:
    """A contender that counts wrong in any round must have no figure and no ratio; the others must have theirs."""
    asked: list[tuple[str, bool]] = []

    def run(name: str, counted: bool) -> list[contenders.Pass]:
        asked.append((name, counted))
        if name == "zipf1.3" and len(asked) == 8:
            raise harness.Inexact("page-3 is 4, and should be 5")
        names = [name, "zipf1.3-again"] if name == "zipf1.3" else [name]
        seconds, writes = 2.0 if name == "limit" else 0.25, 3.0 if name == "zipf1.3" else 1.0
        return [contenders.Pass(each, 100, seconds, 0.1, 80.0, writes, 16.0) for each in names]

    found = throughput.measure_all(["limit", "zipf1.3", "hot"], 3, run)
    assert found.failed == {"zipf1.3": "page-3 is 4, and should be 5"}
    assert [figure["name"] for figure in throughput.figures(found)] == ["limit", "hot"]
    everybody = ["limit", "zipf1.3", "hot"]
    assert [name for name, _ in asked] == [*everybody * 3, "limit", "hot"]
    assert [counted for _, counted in asked] == [True] * 3 + [False] * 8
    ratios = {bar.text: bar.values for bar in throughput.bars(found)}
    assert ratios.pop("one hot key / limit") == [8.0, 8.0, 8.0]
    assert ratios == {"write requests for each touched row and flush": [1.0]}


# ---- figures ----


@pytest.mark.parametrize(
    ("values", "bar", "at_least", "holds"),
    [
        ([0.7, 0.8, 5.0], 0.8, True, True),
        ([0.7, 0.79, 5.0], 0.8, True, False),
        ([0.7, 1.15, 5.0], 1.15, False, True),
        ([0.7, 1.16, 5.0], 1.15, False, False),
        ([1.0], None, True, None),
    ],
)
def test_the_median_is_compared_with_the_bar(
    values: Sequence[float], bar: float | None, at_least: bool, holds: bool | None
) -> None:
    """A bar is met where the median of the rounds reaches it, and not by one lucky round."""
    assert harness.Bar("x", values, bar, at_least).holds is holds


@pytest.mark.parametrize(
    ("percent", "value"), [(50.0, 50), (95.0, 95), (99.0, 99), (99.5, 100), (100.0, 100), (0.0, 1)]
)
def test_percentile_is_the_nearest_rank(percent: float, value: int) -> None:
    """It must be the smallest value that the given share of values does not exceed."""
    assert harness.percentile(range(1, 101), percent) == value
    assert harness.percentile([7], percent) == 7


def test_a_process_that_dies_is_an_error() -> None:
    """It must not be waited for forever."""
    with pytest.raises(harness.MurmurError, match="the process of _exit died with exit code 3"):
        harness.in_own_process(os._exit, 3)


def test_pages_are_the_same_each_time() -> None:
    """Every contender, and every run, must get the same events; long streams are those of the lists."""
    workloads.zipf_pages.cache_clear()
    first = workloads.pages("zipf1.3", 25_000)
    workloads.zipf_pages.cache_clear()
    assert workloads.pages("zipf1.3", 25_000) == first == list(workloads.zipf_stream(25_000, 1.3))
    assert len(set(workloads.pages("own", 100))) == 100
    assert set(workloads.pages("hot", 100)) == {"page-0"}


@pytest.mark.parametrize(
    ("main", "missing"),
    [
        (throughput.main, "benchmarks.contenders"),
        (growth.main, "benchmarks.growing"),
        (latency.main, "google.cloud.pubsub"),
    ],
)
def test_a_missing_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Any, missing: str
) -> None:
    """Without the extra a benchmark says how to get it, instead of a traceback."""
    package, _, module = missing.rpartition(".")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delattr(importlib.import_module(package), module, raising=False)
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert missing in line
    assert line.endswith("run: pip install 'murmur-beam[bench]'")
