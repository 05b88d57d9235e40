"""`merge_files` by its own ``main(argv)``: exit codes, what it prints, and the state and files it leaves."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.decode import decode_csv
from murmur_beam.files.framing import frame_csv
from murmur_beam.model import DeadLetter
from murmur_beam.programs import merge_files, replay
from tests.support.programs import (
    CLICKS,
    DAY,
    FLAGS,
    Run,
    by_hand,
    jsonl,
    letters_in,
    state_of,
)

pytestmark = pytest.mark.usefixtures("own_folder")


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
    """Quotes, line ends within them, a byte order mark and blank lines must be read as spreadsheets write them."""
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


def test_a_format_that_the_name_does_not_show(run: Run, tmp_path: Path) -> None:
    """``--decode`` must say it, and overrides the name."""
    Path("clicks.txt").write_bytes(jsonl(*CLICKS))
    assert run(merge_files, "--input=clicks.txt", *FLAGS, "--decode=json").outcomes.startswith("3 merged")
    Path("clicks.json").write_text("id,page,n\n4,a,1\n")
    assert run(merge_files, "--input=clicks.json", *FLAGS, "--decode=csv").outcomes.startswith("1 merged")


def test_dead_letters_of_files(run: Run, tmp_path: Path) -> None:
    """Events that cannot be merged must be in the file byte for byte, and the rest in the state."""
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
    assert ran.out.splitlines()[1] == "dead letters are in dead.jsonl; murmur replay merges them again"
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
    """Each must hold header and record as in the file, so that it can be decoded alone."""
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
    """The records before and after it must be merged."""
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
        # No time in the header: it would be part of the test's name, which must be the same in all workers.
        ("broken.jsonl.gz", gzip.compress(b"", mtime=0)[:10] + b"\x07\0\0", "cannot be read to its end: "),
        ("quote.csv", b'"id,page,n\n1,a,1\n2,a,1\n', "its header is malformed CSV: "),
    ],
)
def test_files_that_cannot_be_read(run: Run, tmp_path: Path, name: str, data: bytes, message: str) -> None:
    """Records must not be lost silently: such a file must end in one line that names it, and exit code 2."""
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
        (["--input=a.jsonl", "--monoid=median"], "--monoid: unknown monoid 'median'"),
        (["--input=a.jsonl", "--store=redis://x"], "--store: unknown store scheme in 'redis://x'"),
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
    """The error must name the missing flag."""
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
    """Whatever a spreadsheet writes must be read record by record, each with the header."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["k", 'the "v"'], *rows])
    framed = list(frame_csv(io.BufferedReader(io.BytesIO(text.getvalue().encode())), 1_000_000))
    assert [list(decode_csv(record).items()) for record in framed] == [
        [("k", key), ('the "v"', value)] for key, value in rows
    ]
