"""The whole production path on a small scale: exact counts after SIGKILLs, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.programs import end_to_end, flights
from murmur_beam.testing.emulators import BIGTABLE, PUBSUB
from tests.support import emulators, environment
from tests.support.emulators import listens

TIMEOUT_S = 120.0
FINE = end_to_end.Result(
    published=2 * 3 + len(end_to_end.BAD),
    merged=3,
    dead={str(i): data for i, data in enumerate(end_to_end.BAD)},
    left_over=0,
    kills=1,
    compared=12,
    wrong=[],
)


@contextmanager
def running(folder: Path, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """The program as users start it, with a folder for all files that it makes; killed at the end if it still runs."""
    emulators.require(BIGTABLE)
    emulators.require(PUBSUB)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.end_to_end", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(TMPDIR=str(folder)),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def workers(hosts: list[str]) -> list[str]:
    """Processes that work with these emulators."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(f"EMULATOR_HOST={host}\0".encode() in (folder / "environ").read_bytes() for host in hosts):
                found.append(folder.name)
    return found


def test_counts_are_exact_after_kills_and_nothing_is_left(tmp_path: Path) -> None:
    """In processes of their own: every number is right, the table says so, and no process or file remains. With commits
    and by appending, at the same time, since both mostly wait."""
    folders = {write: tmp_path / write for write in ("commit", "append")}
    for folder in folders.values():
        folder.mkdir()
    with (
        running(folders["commit"], "--flights=400", "--kills=2") as commits,
        running(folders["append"], "--flights=200", "--kills=1", "--write=append") as appends,
    ):
        out, err = commits.communicate(timeout=TIMEOUT_S)
        assert commits.returncode == 0, out + err
        assert ended(folders["commit"], out) == {
            "published": 805,
            "merged": 400,
            "duplicate": 400,
            "dead letters": 5,
            "unacked": 0,
            "kills": 2,
            "numbers": numbers(400),
            "wrong": 0,
        }
        assert out.count("SIGKILL ") == 2
        out, err = appends.communicate(timeout=TIMEOUT_S)
        assert appends.returncode == 0, out + err
        rows = ended(folders["append"], out)
        # A folder prints nothing about the round in which it is killed. Each flight is folded for each key.
        assert rows.pop("rounds") > 2
        assert rows.pop("found twice") >= 0
        assert 0 <= rows.pop("folded") <= 200 * len(flights.KEYS)
        assert rows == {
            "published": 405,
            "recorded": 400,
            "counted": 200,
            "dead letters": 5,
            "unacked": 0,
            "kills": 1,
            "folder kills": 1,
            "numbers": numbers(200),
            "wrong": 0,
        }
        assert out.count("SIGKILL ") == 2


def numbers(n: int) -> int:
    """The number of values to compare for this many flights."""
    return len(end_to_end.recount(list(islice(flights.read_flights(str(flights.shipped_data())), n))))


def ended(folder: Path, out: str) -> dict[str, int]:
    """The table at the end of a run, after which nothing may be left."""
    hosts = re.findall(r"127\.0\.0\.1:\d+", out)
    assert "every number is exact, after " in out.splitlines()[-1]
    assert len(hosts) == 2
    assert not any(listens(host) for host in hosts)
    assert workers(hosts) == []
    assert list(folder.iterdir()) == []
    return {name.strip(): int(n.replace(",", "")) for name, n in re.findall(r"(?m)^([a-z ]{14}) *([\d,]+)  ", out)}


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_that_it_has_started(by: signal.Signals, tmp_path: Path) -> None:
    """In the middle of a run: one line, and no emulator, worker or file is left."""
    with running(tmp_path, "--flights=5000", "--kills=0") as process:
        assert process.stdout is not None
        hosts = re.findall(r"127\.0\.0\.1:\d+", process.stdout.readline())
        assert all(listens(host) for host in hosts)
        process.stdout.readline()
        deadline = time.monotonic() + TIMEOUT_S
        while not set(workers(hosts)) - {str(process.pid)}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(by)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "end_to_end: interrupted; run it again to go on"
    assert len(hosts) == 2
    assert not any(listens(host) for host in hosts)
    assert workers(hosts) == []
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are led to the emulators while these run, and to their former addresses afterwards, also after an
    error."""
    emulators.require(BIGTABLE)
    emulators.require(PUBSUB)
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", "before:1")
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    before = dict(os.environ)
    with suppress(KeyError), end_to_end.both_emulators() as hosts:
        assert {name: os.environ[name] for name in hosts} == hosts
        assert len(set(hosts.values())) == 2
        raise KeyError
    assert dict(os.environ) == before


def test_the_recount_equals_the_flights_pipeline(tmp_path: Path) -> None:
    """Two independent counts of the same file agree."""
    rows = list(islice(flights.read_flights(str(flights.shipped_data())), 2_000))
    path = tmp_path / "flights.csv"
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]), "utf-8")
    days = {key: flown.flights for key, flown in flights.recompute(str(path)).items() if key[1] != flights.ALL_DAYS}
    counted = end_to_end.recount(rows)
    assert {(entity, f"{date(1970, 1, 1) + timedelta(days=day)}"): n for (entity, day), n in counted.items()} == days


def test_each_wrong_number_is_reported() -> None:
    """Too large, too small, and those that only one side has."""
    found = Counter({("a", 0): 1, ("b", 1): 3, ("c", 2): 1, ("e", 4): 5})
    expected = Counter({("a", 0): 1, ("b", 1): 2, ("d", 3): 1_000, ("e", 4): 6})
    assert end_to_end.compare(found, expected) == [
        "b on 1970-01-02: the file says 2, the state 3",
        "c on 1970-01-03: the file says 0, the state 1",
        "d on 1970-01-04: the file says 1,000, the state 0",
        "e on 1970-01-05: the file says 6, the state 5",
    ]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"wrong": ["a on 1970-01-01: the file says 1, the state 2"]}, 1),
        ({"left_over": 1}, 1),
        ({"dead": {}}, 1),
        ({"dead": {**FINE.dead, "0": b"other bytes"}}, 1),
        ({"dead": {**FINE.dead, "9": b"{}"}}, 1),
    ],
)
def test_the_exit_code_reports_failures(
    change: dict[str, Any], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong numbers, messages left over, dead letters that are missing, changed or too many: each is a failure."""
    monkeypatch.setattr(end_to_end, "run", lambda flights, kills, seed, write: FINE._replace(**change))
    assert end_to_end.main(["--flights=3"]) == code
    out = capsys.readouterr().out
    assert ("every number is exact" in out) == (code == 0)
    assert ("NOT EXACT" in out) == (code == 1)
    assert all(f"wrong: {line}" in out for line in change.get("wrong", []))


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ("--flights=0", "--flights: must be at least 1, got 0"),
        ("--kills=-1", "--kills: must not be negative, got -1"),
    ],
)
def test_a_mistake_is_one_line(argv: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the flag."""
    assert end_to_end.main([argv]) == 2
    assert capsys.readouterr().err == f"end_to_end: error: {complaint}\n"


def test_a_missing_emulator_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the command that installs it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert end_to_end.main(["--flights=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run: gcloud components install bigtable" in line


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("end_to_end", []),
        ("replay", ["--topic=projects/p/topics/dead", "--store=sqlite:///x.db", "--key=k", "--value=v"]),
    ],
)
def test_without_google_s_packages(module: str, argv: list[str], tmp_path: Path) -> None:
    """One line that says what to install."""
    blocked = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith(('google.cloud', 'google.api_core', 'google.auth')):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, No())\n"
        f"from murmur_beam.programs.{module} import main\n"
        f"raise SystemExit(main({argv!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert lines == [f"{module}: error: google-cloud-pubsub is not installed; run: pip install 'murmur-beam[gcp]'"]
    assert done.returncode == 2
