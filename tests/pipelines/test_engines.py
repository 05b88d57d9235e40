"""`flights` and `merge_files` on each engine that a user may name, as commands: the state is the same everywhere."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from murmur_beam.errors import StoreUnavailable
from murmur_beam.model import DeadLetter
from murmur_beam.programs import flights
from murmur_beam.reader import Reader
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER
from murmur_beam.testing.emulators import stop
from tests.support import emulators, environment
from tests.support.engines import PRISM, Flink, flink
from tests.support.programs import first_flights

TIMEOUT_S = 240.0
FEW = 3_000
MANY = 32_000
PART = MANY // 16

STREAMING = [
    "--streaming",
    "--checkpointing_interval=2000",
    "--unaligned_checkpoint_enabled",
    "--max_bundle_size=1",
    "--shutdown_sources_after_idle_ms=0",
]
"""Flags that make Flink keep checkpoints of a bounded source, one or several between two parts of the file."""


class State(NamedTuple):
    """All aggregates of a table as readers see them.

    Attributes:
        rows: how many rows there are.
        keys: how many keys there are.
        digest: of all rows, with their names and buckets.
    """

    rows: int
    keys: int
    digest: str


def state_of(uri: str) -> State:
    """The present state."""
    with Reader.open(uri) as reader:
        rows = sorted((*key, reader.monoid.encode(value).hex()) for key, value in reader.store.scan())
    return State(len(rows), len({row[0] for row in rows}), hashlib.sha256(json.dumps(rows).encode()).hexdigest())


class Run:
    """A running command."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    def wait(self) -> str:
        """Its output, after a successful end."""
        code = self.process.wait(TIMEOUT_S)
        printed = self._output.read_text("utf-8", "replace")
        assert code == 0, printed
        return printed


@contextmanager
def pipeline(name: str, folder: Path, *arguments: str) -> Iterator[Run]:
    """``python -m pipelines.NAME``, as users start it; it and all that it starts end with the block."""
    output = folder / f"{name}.out"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", f"pipelines.{name}", *arguments],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield Run(process, output)
    finally:
        stop(process.pid)


def run_flights(folder: Path, file: Path, uri: str, flags: Sequence[str] = ()) -> str:
    """Merge the flights of a file, with ``--check``; its output."""
    with pipeline("flights", folder, f"--input={file}", f"--state={uri}", "--check", *flags) as run:
        return run.wait()


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of flights."""
    return first_flights(tmp_path_factory.mktemp("few") / "flights.csv", FEW)


@pytest.fixture(scope="module")
def expected(bigtable_host: str, few: Path, tmp_path_factory: pytest.TempPathFactory) -> State:
    """The state after a run without any engine, in the pipeline's own process."""
    uri = emulators.new_uri(bigtable_host)
    run_flights(tmp_path_factory.mktemp("expected"), few, uri)
    return state_of(uri)


@pytest.mark.parametrize("total", [0, 1, 15, 16, 17, FEW])
def test_the_parts_are_the_file(few: Path, total: int) -> None:
    """All parts together must be the given number of first rows, each once and in order; and one part where one worker
    runs."""
    parts = flights.parts_of(str(few), total, "PrismRunner")
    assert len(parts) == 16
    rows = [row for part in parts for row in flights.read_flights(*part)]
    assert rows == list(itertools.islice(flights.read_flights(str(few)), total))
    assert flights.parts_of(str(few), total, IN_PROCESS_RUNNER) == [(str(few), 0, total)]


def prism_flags() -> list[str]:
    """The flags that a user types for Prism; skips the test where it is not installed."""
    emulators.require(PRISM)
    return ["--runner=PrismRunner", f"--prism_location={PRISM.find()}"]


SEVERAL_PROCESSES = ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@contextmanager
def engine(name: str, folder: Path) -> Iterator[tuple[list[str], Path]]:
    """The flags of an engine, and the text with signs of its work: its log, or the pipeline's output."""
    printed = folder / "flights.out"
    if name == "flink":
        with flink(folder) as running:
            yield running.flags, running.log
    else:
        yield prism_flags() if name == "prism" else SEVERAL_PROCESSES, printed


@pytest.mark.parametrize(
    ("name", "trace", "times"),
    [
        ("prism", "INFO:PrismRunner:pipeline done!", 1),
        ("several processes", "Python sdk harness starting.", 2),
        ("flink", "switched from state RUNNING to FINISHED.", 1),
    ],
    ids=["prism", "several processes", "flink"],
)
def test_flights_end_with_the_same_state(
    name: str, trace: str, times: int, few: Path, expected: State, bigtable_host: str, tmp_path: Path
) -> None:
    """Every number must be that of a run without an engine, and that of the file; a second run must change none."""
    uri = emulators.new_uri(bigtable_host)
    with engine(name, tmp_path) as (flags, log):
        first = run_flights(tmp_path, few, uri, flags)
        assert log.read_text("utf-8", "replace").count(trace) == times
        assert state_of(uri) == expected
        again = run_flights(tmp_path, few, uri, flags)
    assert f"flights  {FEW:,} merged / 0 duplicate / 0 dead-lettered\n" in first
    assert f"flights  0 merged / {FEW:,} duplicate / 0 dead-lettered\n" in again
    numbers = flights.NUMBERS * (expected.rows + expected.keys)
    assert f"check: {numbers:,} numbers compared with flights.csv, 0 differ\n" in first
    print(f"{expected.rows:,} rows, {numbers:,} numbers")
    assert state_of(uri) == expected


def test_files_on_prism(bigtable_host: str, tmp_path: Path) -> None:
    """Each record of several files must be merged once, and other lines must be in the file of dead
    letters."""
    flags = prism_flags()
    clicks = [{"id": str(i), "page": "abc"[i % 3]} for i in range(300)]
    for part in range(3):
        lines = [json.dumps(click) for click in clicks[part * 100 : part * 100 + 100]]
        (tmp_path / f"clicks-{part}.jsonl").write_text("\n".join([*lines, f"no record {part}"]))
    uri = emulators.new_uri(bigtable_host)
    what = ["--input=clicks-*.jsonl", f"--store={uri}", "--key=page/{page}", "--monoid=count", "--event_id=id"]
    for outcomes in ("300 merged / 0 duplicate", "0 merged / 300 duplicate"):
        with pipeline("merge_files", tmp_path, *what, *flags) as run:
            assert f"{outcomes} / 3 dead-lettered" in run.wait()
        letters = tmp_path / "dead-letters.jsonl"
        payloads = {DeadLetter.from_json(line).payload for line in letters.read_bytes().splitlines()}
        assert payloads == {b"no record 0", b"no record 1", b"no record 2"}
        letters.unlink()
        with Reader.open(uri) as reader:
            assert {entity: total for entity, total, _ in reader.list()} == {f"page/{page}": 100 for page in "abc"}
    assert [path.name for path in tmp_path.glob("*.part")] == []


# A worker that is killed.


def committed(uri: str) -> int:
    """The number of flights in the state by now."""
    try:
        with Reader.open(uri) as reader:
            return sum(total["flights"] for _, total, _ in reader.list("all"))
    except StoreUnavailable:  # nothing was written yet
        return 0


def wait_for_the_middle(run: Run, engine: Flink, uri: str) -> None:
    """Wait until Flink has kept a checkpoint, and more than a part of the file was committed after it."""
    deadline = time.monotonic() + TIMEOUT_S
    checkpoints = at_checkpoint = 0
    while time.monotonic() < deadline:
        assert run.process.poll() is None, f"it has ended before a worker could be killed: {run.wait()}"
        now = committed(uri)
        if checkpoints and now - at_checkpoint > PART:
            return
        if engine.logged("Completed checkpoint ") > checkpoints:
            checkpoints, at_checkpoint = engine.logged("Completed checkpoint "), committed(uri)
        time.sleep(0.1)
    pytest.fail(f"{checkpoints} checkpoints and {now} flights within {TIMEOUT_S} s")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers by Linux's list of processes")
def test_flink_recovers_from_a_killed_worker(bigtable_host: str, tmp_path: Path) -> None:
    """SIGKILL for a worker in the middle of its work: Flink must deliver again all elements since its last checkpoint,
    some of them committed, and every count must be right."""
    file, uri, alone = (
        first_flights(tmp_path / "flights.csv", MANY),
        emulators.new_uri(bigtable_host),
        emulators.new_uri(bigtable_host),
    )
    with flink(tmp_path) as engine:
        flags = [f"--input={file}", f"--state={uri}", "--check", *engine.flags, *STREAMING]
        with pipeline("flights", tmp_path, *flags) as run:
            wait_for_the_middle(run, engine, uri)
            assert engine.logged("to RESTARTING.") == 0, "so far nothing has failed"
            victim = engine.pool.busiest_worker()
            os.kill(victim, signal.SIGKILL)
            at_kill = committed(uri)
            assert 0 < at_kill < MANY, "killed in the middle"
            printed = run.wait()
        assert engine.logged("from state RUNNING to RESTARTING.") == 1
        assert engine.logged("Restoring job ") == 1, "from a checkpoint"
    (again,) = re.findall(r"^flights  [\d,]+ merged / ([\d,]+) duplicate / 0 dead-lettered$", printed, re.MULTILINE)
    assert again != "0", "what was committed before the kill came again"
    assert ", 0 differ\n" in printed
    run_flights(tmp_path, file, alone)
    assert state_of(uri) == state_of(alone)
    print(f"killed worker {victim} with {at_kill:,} of {MANY:,} flights committed; came again: {again}")
