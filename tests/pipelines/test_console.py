"""The output of pipelines: mistakes, interruptions, summaries and progress, in this process and as users see them."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.errors import ConfigurationError
from murmur_beam.programs import flights, merge_files, replay
from murmur_beam.runs import beam_runs, console
from tests.support import ROOT, environment
from tests.support.programs import (
    CLICKS,
    FLAGS,
    Run,
    by_hand,
    jsonl,
    state_of,
)

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize(
    ("pipeline", "argv", "message"),
    [
        (
            merge_files,
            [],
            "merge_files: error: the following arguments are required: --input (see murmur merge-files --help)",
        ),
        (merge_files, ["--input=x", "--dedup=bogus"], "merge_files: error: argument --dedup: invalid choice: 'bogus'"),
        (replay, ["--input=x", "--max_attempts=x"], "replay: error: --max_attempts: 'x' is not a whole number"),
        (
            flights,
            ["--input"],
            "flights: error: argument --input: expected one argument (see murmur flights --help)",
        ),
    ],
)
def test_wrong_flags_are_one_line(run: Run, pipeline: Any, argv: list[str], message: str) -> None:
    """Not the whole usage."""
    assert run(pipeline, *argv).mistake.startswith(message)


def test_an_interruption_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, twin: Path) -> None:
    """Whether it occurs in this library's code or in a step of Beam; merged events stay merged."""
    for error in (KeyboardInterrupt(), RuntimeError("KeyboardInterrupt [while running 'Read']")):

        def interrupted(pipeline: Any, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(flights, "run", interrupted)
        ran = run(flights, "--input", twin)
        assert (ran.code, ran.err) == (130, "\nflights: interrupted; run it again to go on\n")


def test_a_closed_pipe_is_not_an_error(twin: Path) -> None:
    """``flights | head -1`` ends without a message on stderr."""
    command = [sys.executable, "-m", "pipelines.flights", "--input", str(twin)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert "rror" not in errors
    assert "WARNING" not in errors, "nor about clouds that are not used"


@pytest.mark.parametrize(
    ("counters", "total", "text"),
    [
        ({}, 0, "0 merged / 0 duplicate / 0 dead-lettered"),
        ({"record_merged": 1_000, "record_duplicate": 2}, 1_002, "1,000 merged / 2 duplicate / 0 dead-lettered"),
        ({"record_merged": 1, "record_expired": 2}, 3, "1 merged / 0 duplicate / 2 expired / 0 dead-lettered"),
        ({"record_recorded": 1_000, "dead_letter": 3}, 1_003, "1,000 recorded / 3 dead-lettered"),
        ({"record_recorded": 1, "record_expired": 2}, 3, "1 recorded / 2 expired / 0 dead-lettered"),
        (
            {"record_recorded": 1, "record_duplicate": 2, "record_expired": 3, "dead_letter": 4},
            10,
            "0 merged / 2 duplicate / 1 recorded / 3 expired / 4 dead-lettered",
        ),
    ],
)
def test_the_summary(counters: dict[str, int], total: int, text: str) -> None:
    """All elements, by outcome; outcomes that a table never has are omitted."""
    outcomes = console.Outcomes.of("p", {f"p:{name}": n for name, n in counters.items()} | {"q:record_merged": 9})
    assert (outcomes.total, str(outcomes)) == (total, text)


def test_options_of_other_runners_are_not_checked() -> None:
    """A runner's own flags are unknown here; without a runner an unknown flag must be refused."""
    options = beam_runs.beam_options(["--runner=OtherRunner", "--colour=red"])
    assert options.get_all_options(retain_unknown_options=True)["colour"] == "red"
    assert beam_runs.beam_options([]).get_all_options()["runner"] == beam_runs.IN_PROCESS_RUNNER
    with pytest.raises(ConfigurationError, match="--colour"):
        beam_runs.beam_options(["--colour=red"])


@pytest.mark.parametrize("mistake", [FileNotFoundError("no such file: x"), ConfigurationError("--x", "is wrong")])
def test_a_mistake_becomes_one_line(capsys: pytest.CaptureFixture[str], mistake: Exception) -> None:
    """Every error that has advice for the user, a missing file included, must be one line."""

    def main(argv: Sequence[str] | None = None) -> int:
        raise mistake

    assert console.one_line_errors("x")(main)([]) == 2
    assert capsys.readouterr() == ("", f"x: error: {mistake}\n")


def test_a_bug_keeps_its_traceback() -> None:
    """Only errors with advice for the user may be shortened to one line."""

    def main(argv: Sequence[str] | None = None) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        console.one_line_errors("x")(main)([])


class Terminal(io.StringIO):
    """A terminal, or a file."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("total", [None, 600])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, total: int | None) -> None:
    """On a terminal one line must be updated and end with the total; in a file separate lines must be written."""
    screen = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    progress = beam_runs.ShowProgress("flights", total)
    progress.setup()
    for element in range(600):
        progress.process(element)
    progress.finish_bundle()
    text = screen.getvalue()
    assert text.count("\n") == 1
    assert ("256 of 600 ( 43%) flights, " if total else "256 flights, ") in text
    assert text.count("\r") == (2 if is_terminal else 0)
    assert ("600 of 600 (100%) flights, " in text) == bool(is_terminal and total)


def in_a_process(module: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a pipeline as its users do."""
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{module}", *argv],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(PYTHONIOENCODING="utf-8"),
        check=False,
    )


def test_a_mistake_in_a_process_is_one_line() -> None:
    """Exit code 2, one line on stderr, nothing on stdout."""
    ran = in_a_process("merge_files", "--input=*.nothing", *FLAGS)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == ["merge_files: error: --input: no file matches '*.nothing'"]


def test_an_unreadable_file_in_a_process_is_one_line(tmp_path: Path) -> None:
    """Although it is only found in the middle of a run, where Beam would print tracebacks."""
    Path("cut.jsonl.gz").write_bytes(gzip.compress(jsonl(*CLICKS))[:-4])
    ran = in_a_process("merge_files", "--input=cut.jsonl.gz", *FLAGS)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"merge_files: error: {tmp_path}/cut.jsonl.gz: cannot be read to its end: ")


def test_a_successful_run_in_a_process_is_one_line(tmp_path: Path) -> None:
    """It must print its outcomes and nothing else."""
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS))
    ran = in_a_process("merge_files", "--input=clicks.jsonl", *FLAGS)
    assert (ran.returncode, ran.stdout) == (0, "3 merged / 0 duplicate / 0 dead-lettered\n")
    assert ran.stderr.splitlines() == []
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS)


@pytest.mark.parametrize("module", ["runs.console", "programs.worker", "cli.main"])
def test_modules_that_need_no_beam_do_not_load_it(module: str) -> None:
    """Importing one in a new process must not load Beam: that needs seconds, and a worker does not use it."""
    program = f"import murmur_beam.{module}, sys; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_flags_may_be_spelt_with_hyphens(run: Run, tmp_path: Path) -> None:
    """The program's own and Beam's; an abbreviation is one too, and a value is never changed."""
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS))
    hyphens = [f"{flag.partition('=')[0].replace('_', '-')}={flag.partition('=')[2]}" for flag in FLAGS]
    assert any("-" in flag[2:].partition("=")[0] for flag in hyphens)
    ran = run(merge_files, "--input=clicks.jsonl", *hyphens, "--dead-let=dead_1-2.jsonl", "--temp-location=x")
    assert ran.outcomes == "3 merged / 0 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS)


@pytest.mark.parametrize("flag", ["--temp-location", "--temp_location", "--job-server-timeout", "--flush-size"])
def test_beam_s_flags_may_be_spelt_with_hyphens(flag: str) -> None:
    """Whatever spelling Beam itself knows."""
    if flag == "--flush-size":
        with pytest.raises(ConfigurationError, match="--flush_size"):
            beam_runs.beam_options([flag + "=1"])
    else:
        shown = beam_runs.beam_options([f"{flag}=30"]).get_all_options(drop_default=True)
        assert shown[flag[2:].replace("-", "_")] in (30, "30")
