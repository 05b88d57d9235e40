"""The end of runs: each exit code, and what stderr says about dead letters."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.deadletter import Failure, write_letter
from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError, TransientError
from murmur_beam.extract import RecordHints
from murmur_beam.model import DeadLetter
from murmur_beam.monoids import Overflow
from murmur_beam.programs import merge_files
from murmur_beam.runs import endings
from murmur_beam.runs.endings import Allowance, Reasons, reason_of

COUNT = ("--key=page", "--monoid=count", "--event_id=id")


pytestmark = pytest.mark.usefixtures("own_folder")


def letter(error: Exception, stage: str = "extract") -> DeadLetter:
    """A letter with this reason."""
    return write_letter(b"x", "murmur", Failure(stage, error, RecordHints(None, None, None)), 0)


def write(good: int, bad: int) -> None:
    """A file with this many good lines and this many bad ones."""
    lines = [json.dumps({"id": f"e{i}", "page": "p"}) for i in range(good)] + [f'{{"id": "b{i}"}}' for i in range(bad)]
    Path("a.jsonl").write_text("".join(f"{line}\n" for line in lines))


def merge(*flags: str) -> int:
    """Merge that file."""
    return merge_files.main(["--input=a.jsonl", *COUNT, "--store=sqlite:///c.db", *flags])


class TestAllowance:
    @pytest.mark.parametrize(
        ("text", "dead", "total", "allowed"),
        [
            (None, 0, 0, True),
            (None, 10, 100, True),
            (None, 11, 100, False),
            (None, 1, 1, False),
            ("0", 0, 5, True),
            ("0", 1, 5_000, False),
            ("5", 5, 5, True),
            ("5", 6, 5_000, False),
            ("1%", 10, 1_000, True),
            ("1%", 11, 1_000, False),
            ("0.1%", 1, 1_000, True),
            ("100%", 7, 7, True),
            ("0%", 1, 1_000, False),
        ],
    )
    def test_a_number_or_a_share_is_allowed(self, text: str | None, dead: int, total: int, allowed: bool) -> None:
        """Ten percent by default, and never all of them."""
        assert Allowance.parse(text).allows(dead, total) is allowed

    @pytest.mark.parametrize("text", ["", "-1", "101%", "1.5", "few", "1 %%", "%", "1e2"])
    def test_anything_else_is_refused(self, text: str) -> None:
        """By the name of the flag, before the work."""
        with pytest.raises(ConfigurationError, match=r"^--max_dead_letters: expected a number or a percentage"):
            Allowance.parse(text)

    @given(st.integers(0, 1_000), st.integers(0, 1_000))
    def test_fewer_letters_are_never_worse(self, dead: int, good: int) -> None:
        """Whatever is allowed."""
        for text in (None, "7", "3%"):
            allowance = Allowance.parse(text)
            if allowance.allows(dead + 1, dead + 1 + good):
                assert allowance.allows(dead, dead + good + 1)


class TestReasons:
    def test_reasons_omit_the_values_of_a_record(self) -> None:
        """So that a million letters have few reasons; names of fields stay."""
        reasons = Reasons()
        for i in range(1_000):
            reasons.add(letter(InvalidRecord("value", f"'{i} EUR' is not an integer")))
            reasons.add(letter(InvalidRecord("key", f"field 'page' is missing; the record has id{i}")))
            reasons.add(letter(InvalidRecord("payload", f"not UTF-8: invalid start byte at byte {i}")))
        assert reasons.counts == {
            "value: ... is not an integer": 1_000,
            "key: field 'page' is missing": 1_000,
            "payload: not UTF-8: invalid start byte at byte ...": 1_000,
        }

    def test_their_number_is_bounded(self) -> None:
        """Whatever a user's functions raise."""
        reasons = Reasons()
        for i in range(10_000):
            reasons.add(letter(InvalidRecord("value", f"bad {'x' * (i % 500)}y{'z' * (i % 7)}")))
        assert len(reasons.counts) <= 201
        assert sum(reasons.counts.values()) == 10_000

    @pytest.mark.parametrize(
        ("error", "stage", "of_the_store"),
        [
            (TransientError("disk I/O error"), "merge", True),
            (OSError("gone"), "merge", True),
            (Overflow("too large"), "merge", False),
            (PermanentError("no"), "merge", False),
            (InvalidRecord("key", "bad"), "merge", False),
            (TransientError("bad"), "decode", False),
        ],
    )
    def test_the_store_is_blamed_only_for_its_own_failures(
        self, error: Exception, stage: str, of_the_store: bool
    ) -> None:
        """And not for a record that it could not accept."""
        assert reason_of(letter(error, stage)).startswith("store: ") is of_the_store


class TestCodes:
    def test_0_without_dead_letters(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Merged, duplicate or expired; nothing is printed on stderr."""
        write(5, 0)
        assert (merge(), merge()) == (0, 0)
        assert capsys.readouterr().err == ""

    def test_0_with_few_dead_letters(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Their reasons are still printed."""
        write(18, 2)
        assert merge() == 0
        assert capsys.readouterr().err.splitlines() == [
            "merge_files: 2 dead letters; the most common reasons:",
            "  2  key: field 'page' is missing",
        ]

    @pytest.mark.parametrize(
        ("good", "bad", "flags"),
        [(17, 2, ()), (0, 1, ()), (99, 1, ("--max_dead_letters=0",)), (98, 2, ("--max_dead_letters", "1%"))],
    )
    def test_3_too_many(self, good: int, bad: int, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
        """A run that merges next to nothing is a failure."""
        write(good, bad)
        assert merge(*flags) == 3
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(
            f"merge_files: error: {bad} of {good + bad} records became dead letters: --max_dead_letters allows "
        )

    @pytest.mark.parametrize(
        "flags", [("--max_dead_letters=some",), ("--kee=x",), ("--window=daily",), ("--input=gone.jsonl",)]
    )
    def test_2_a_mistake(self, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
        """Before any work."""
        write(1, 0)
        try:
            code = merge(*flags)
        except SystemExit as err:
            code = int(str(err.code))
        assert code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert not os.path.exists("c.db")

    def test_4_the_store_failed_in_the_middle(self) -> None:
        """Its letters say so; here the disk was full."""
        write(30_000, 0)
        code = (
            "import resource, signal, sys\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
            "from murmur_beam.programs import merge_files\n"
            "sys.exit(merge_files.main(sys.argv[1:]))\n"
        )
        done = run(code, "--dead_letters=/dev/null")
        assert done.returncode == 4, done.stderr
        assert done.stderr.splitlines()[-1].endswith("records became dead letters: the store failed")
        assert "Traceback" not in done.stderr

    def test_4_the_store_failed_with_its_bundle(self) -> None:
        """With --on_exhausted raise the bundle makes no letters."""
        write(30_000, 0)
        code = (
            "import resource, signal, sys\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
            "from murmur_beam.programs import merge_files\n"
            "sys.exit(merge_files.main(sys.argv[1:]))\n"
        )
        done = run(code, "--on_exhausted=raise")
        assert done.returncode == 4, done.stderr
        *_, line = done.stderr.splitlines()
        assert "Traceback" not in done.stderr
        assert line.startswith("merge_files: error: ")

    def test_130_interrupted(self) -> None:
        """In one line; the next run continues."""
        write(300_000, 0)
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.merge_files", "--input=a.jsonl", *COUNT, "--store=sqlite:///c.db"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        end = time.monotonic() + 60
        while not os.path.exists("c.db") and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err.splitlines()[-1] == "merge_files: interrupted; run it again to go on"
        assert "Traceback" not in err


def run(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    command: list[Any] = [sys.executable, "-c", code, "--input=a.jsonl", *COUNT, "--store=sqlite:///c.db", *flags]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)


def test_the_table_in_the_module_has_all_constants() -> None:
    """Each code is documented."""
    for code in (endings.SETTLED, endings.MISTAKE, endings.TOO_MANY, endings.STORE_FAILED, endings.INTERRUPTED):
        assert re.search(rf"^ *{code} ", endings.__doc__ or "", re.MULTILINE)
