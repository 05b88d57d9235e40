"""The evidence on malformed records: it finds no fault in correct code, and finds each planted fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import conserving, hostile, malformed
from benchmarks.conserving import Figures, line_of, through_file, through_runner
from benchmarks.malformed import CSV, FORMATS, HEADER, JSON, Format, large
from murmur_beam.extract import Extractor
from murmur_beam.merger import Merger
from murmur_beam.model import DeadLetter

SMALL = Figures("json", 10, 3, 10, 1, 9, 1, 0, {}, 0, 100.0, 120.0, 5.0)


# ---- the records ----


@pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)
def test_every_kind_is_made_by_the_smallest_number_of_records(made: Format) -> None:
    """The number of records that `smallest` returns holds each kind, of which there are at least 48."""
    assert {record.kind for record in made.records(0, made.smallest())} == {*made.bad, *made.good}
    assert made.kinds >= 48


@pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)
def test_records_are_the_same_each_time_and_from_any_number_on(made: Format) -> None:
    """The records of a bundle must not depend on the bundles before it."""
    assert list(made.records(0, 300)) == [*made.records(0, 100), *made.records(100, 300)]


@pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)
def test_a_few_records_are_good_and_some_of_these_are_repeated(made: Format) -> None:
    """One in thirty-two counts, and one in four of these repeats the one before it."""
    counted = [record.counted for record in made.records(0, 3200) if record.counted]
    assert (len(counted), len(set(counted))) == (100, 75)


def test_large_records_have_the_requested_size() -> None:
    """Bad and good ones."""
    sizes = {len(record.data) for record in large(10_000).records(0, 64)}
    assert min(sizes) > 9_900
    assert max(sizes) < 13_000


@pytest.mark.parametrize(
    ("decode", "data", "line"),
    [
        ("json", b'{"id": 1}', b'{"id": 1}'),
        ("json", b"", None),
        ("json", b" \t", None),
        ("json", b"{}\n{}", None),
        ("json", b"{}\r", None),
        ("csv", HEADER + b"\n1,p", b"1,p"),
        ("csv", HEADER + b'\n1,"p\nq"', b'1,"p\nq"'),
        ("csv", HEADER + b'\n1,"p', None),
        ("csv", HEADER + b"\n1,p\n2,p", None),
        ("csv", HEADER + b"\n", None),
        ("csv", b"id\n1", None),
    ],
)
def test_a_file_holds_only_elements_that_are_one_record_there(decode: str, data: bytes, line: bytes | None) -> None:
    """Anything else would be no record of the file, several, or part of the next one."""
    assert line_of(decode, data) == line


# ---- the parts ----


@pytest.mark.parametrize("decode", FORMATS)
def test_the_runner_conserves_every_kind(decode: str, tmp_path: Path) -> None:
    """A thousand records in two bundles: each kind is output once and unchanged."""
    found = through_runner(decode, 1_000, str(tmp_path), bundle=600)
    assert hostile.faults(found) == []
    assert (found.records, found.kinds, found.replayed) == (1_000, FORMATS[decode].kinds, 10)


@pytest.mark.parametrize("decode", FORMATS)
def test_files_conserve_every_kind_that_they_can_hold(decode: str, tmp_path: Path) -> None:
    """The letters in the file have the content of the input file."""
    found = through_file(decode, 800, str(tmp_path))
    assert hostile.faults(found) == []
    assert found.kinds > 25


def test_large_records_are_processed_alike(tmp_path: Path) -> None:
    """Only their size differs."""
    found = through_runner("json", 40, str(tmp_path), size=50_000)
    assert hostile.faults(found) == []
    assert (found.part, found.merged) == ("json, 0.05 MB each", 2)


# ---- planted faults ----


def test_a_letter_with_another_payload_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte more at the end of each empty record's letter: as many faults as there are empty records, and replayed
    ones."""
    whole = Merger._letter
    monkeypatch.setattr(Merger, "_letter", lambda *a: _with_payload(whole(*a)))
    found = through_runner("csv", 1_000, str(tmp_path))
    empty = sum(record.data == b"" for record in CSV.records(0, 1_000))
    assert found.lost["empty"] == empty
    assert found.unequal >= empty
    assert "records did not come out as they should: empty" in "; ".join(hostile.faults(found))


def _with_payload(letter: DeadLetter) -> DeadLetter:
    return letter if letter.payload else letter._replace(payload=b" ")


def test_a_letter_that_is_not_read_back_from_json_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The letters are right, but their JSON is not."""
    read = DeadLetter.from_json
    monkeypatch.setattr(DeadLetter, "from_json", lambda line: read(line)._replace(attempts=7))
    assert through_runner("csv", 640, str(tmp_path)).unequal >= 620


def test_a_bad_record_that_is_merged_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record without an id gets one: the output is not a letter, and the state holds a row too many."""
    record = Extractor.record

    def lenient(self: Any, element: bytes, *more: Any) -> Any:
        return record(self, element.replace(b'{"page"', b'{"id": "made up", "page"'), *more)

    monkeypatch.setattr(Extractor, "record", lenient)
    found = through_runner("json", JSON.smallest(), str(tmp_path))
    assert "no id" in found.lost
    assert found.rows_wrong == 1


def test_a_record_without_an_output_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The letters of empty records are dropped."""
    flush = Merger.flush
    monkeypatch.setattr(Merger, "flush", lambda self: (pair for pair in flush(self) if _holds_something(pair[1])))
    found = through_runner("csv", 640, str(tmp_path))
    empty = sum(record.data == b"" for record in CSV.records(0, 640))
    assert (found.outputs, found.lost["empty"]) == (640 - empty, empty)
    assert any(f"640 records made {640 - empty} outputs" in fault for fault in hostile.faults(found))


def _holds_something(result: Any) -> bool:
    return not isinstance(result, DeadLetter) or result.payload != b""


# ---- output ----


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"outputs": 9}, "json: 10 records made 9 outputs"),
        ({"lost": {"null": 1, "empty": 2}}, "json: 3 records did not come out as they should: empty, null"),
        ({"unequal": 4}, "json: 4 records did not come out as they should: their letters do not come back from JSON"),
        ({"rows_wrong": 3}, "json: 3 aggregates differ from the recount"),
        ({"after_mb": 201.0}, "json: 101 MB of memory, and the bound is 100 MB"),
        (
            {"part": "json, 10 MB each", "after_mb": 401.0},
            "json, 10 MB each: 301 MB of memory, and the bound is 300 MB",
        ),
    ],
)
def test_each_fault_is_reported(changed: dict[str, Any], fault: str) -> None:
    """One at a time."""
    assert hostile.faults(SMALL) == []
    assert hostile.faults(SMALL._replace(**changed)) == [fault]


def test_the_program_prints_a_table_and_ends_with_0(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A row for each part, and a last line that reports success."""
    monkeypatch.setattr(hostile, "in_own_process", lambda *call: SMALL._replace(records=call[2], outputs=call[2]))
    assert hostile.main(["--records", "1000", "--large", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[3:8]] == ["700", "300", "20", "20", "7"]
    assert lines[-1].startswith("each record came out once")


def test_the_program_ends_with_1_if_any_part_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """And reports the fault, also in JSON."""
    monkeypatch.setattr(hostile, "in_own_process", lambda *_: SMALL._replace(rows_wrong=1))
    assert hostile.main(["--json", "--large", "0"]) == 1
    assert json.loads(capsys.readouterr().out)["wrong"] == ["json: 1 aggregates differ from the recount"] * 4


def test_an_invalid_number_of_records_is_refused(capsys: Any) -> None:
    """The error names the flag."""
    assert hostile.main(["--records", "3"]) == 2
    assert "--records" in capsys.readouterr().err
    assert hostile.main(["--large", "-1"]) == 2
    assert "--large" in capsys.readouterr().err


def test_the_help_has_the_number_of_kinds() -> None:
    """The first line of the module counts them."""
    kinds = sum(made.kinds for made in malformed.FORMATS.values())
    assert f"of {kinds} kinds" in (hostile.__doc__ or "")
    assert f"bundles of {conserving.BUNDLE:,}" in (hostile.__doc__ or "")
