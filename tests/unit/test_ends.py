"""Compressed files: read completely or not at all, and written as their names say."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.errors import MurmurError
from murmur_beam.files.compressed import CODECS, Damaged, inflate, kind_of, split_name
from murmur_beam.files.matching import opened
from murmur_beam.programs import merge_files, replay

COUNT = ("--key=page", "--monoid=count", "--event_id=id", "--store=sqlite:///c.db", "--max_dead_letters=100%")
LINES = b"".join(json.dumps({"id": f"e{i}", "page": "p"}).encode() + b"\n" for i in range(3_000))

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".deflate": zlib.compress,
}
ENDINGS = sorted(COMPRESS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, empty at first."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(ending: str, data: bytes) -> bytes:
    """Read a file that holds these bytes."""
    name = f"a.jsonl{ending}"
    Path(name).write_bytes(data)
    with opened(name) as file:
        return file.read()


def refusal(ending: str, data: bytes) -> str:
    """Say why a file that holds these bytes is not read."""
    with pytest.raises(MurmurError) as caught:
        content(ending, data)
    assert f"a.jsonl{ending}: cannot be read to its end: " in str(caught.value)
    return str(caught.value)


def test_each_suffix_is_tested() -> None:
    """``.zstd`` means the same as ``.zst``."""
    assert CODECS.keys() == COMPRESS.keys() | {".zstd"}


@pytest.mark.parametrize("ending", ENDINGS)
class TestReading:
    def test_whole_files_are_read(self, ending: str) -> None:
        """Also empty ones, ones of several members, and ones named in capitals."""
        compress = COMPRESS[ending]
        assert content(ending, compress(LINES)) == LINES
        assert content(ending, compress(b"")) == b""
        assert content(ending, compress(LINES) + compress(b"") + compress(b"end\n")) == LINES + b"end\n"
        assert content(ending.upper(), compress(LINES)) == LINES
        assert content(ending, CODECS[ending].compress(LINES)) == LINES

    @pytest.mark.parametrize("left", [1, 5, 11, 0.3, 0.5, 0.9, -1, -4, -8])
    def test_a_truncated_file_is_an_error(self, ending: str, left: float) -> None:
        """Wherever it is cut: in its header, its data or its checksum."""
        data = COMPRESS[ending](LINES)
        refusal(ending, data[: int(len(data) * left) if isinstance(left, float) else int(left)])

    def test_a_truncated_second_member_is_an_error(self, ending: str) -> None:
        """The first member alone is not the whole file."""
        compress = COMPRESS[ending]
        for cut in (2, -3):
            refusal(ending, compress(LINES) + compress(LINES)[:cut])

    @pytest.mark.parametrize("garbage", [b"x", b"\n", b"garbage behind the end", b"\0x"])
    def test_anything_else_after_the_data_is_an_error(self, ending: str, garbage: bytes) -> None:
        """It may be the rest of a member."""
        refusal(ending, COMPRESS[ending](LINES) + garbage)

    @pytest.mark.parametrize("at", [0, 3, 0.5, -6])
    def test_a_damaged_file_is_an_error(self, ending: str, at: float) -> None:
        """One byte has another value."""
        data = bytearray(COMPRESS[ending](LINES))
        i = int(len(data) * at) if isinstance(at, float) else int(at)
        data[i] ^= 0xFF
        try:
            found = content(ending, bytes(data))
        except MurmurError:
            return
        assert found == LINES, "damage that is not found must not change anything"

    def test_an_empty_file_is_truncated(self, ending: str) -> None:
        """No compressor writes an empty file."""
        assert "it is empty" in refusal(ending, b"")

    def test_content_that_contradicts_the_name_is_an_error(self, ending: str) -> None:
        """Plain text, another compression, and this compression without its suffix."""
        refusal(ending, LINES)
        other = ".gz" if ending != ".gz" else ".bz2"
        refusal(ending, COMPRESS[other](LINES))
        assert "but its name lacks that ending" in refusal("", COMPRESS[ending](LINES))
        assert "but its name lacks that ending" in refusal(other, COMPRESS[other](COMPRESS[ending](LINES)))

    def test_a_run_that_meets_a_damaged_file_ends_with_2(self, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
        """With one line of error after the lines that say how far the run came."""
        Path(f"cut.jsonl{ending}").write_bytes(COMPRESS[ending](LINES)[:-5])
        assert merge_files.main([f"--input=cut.jsonl{ending}", *COUNT]) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith(f"merge_files: error: {os.getcwd()}/cut.jsonl{ending}: cannot be read to its end: ")

    def test_dead_letters_are_compressed_as_their_name_says(self, ending: str) -> None:
        """And a replay reads them."""
        Path("a.jsonl").write_bytes(b"bad\n" * 3)
        assert merge_files.main(["--input=a.jsonl", *COUNT, f"--dead_letters=dead.jsonl{ending}"]) == 0
        letters = content(ending, Path(f"dead.jsonl{ending}").read_bytes()).splitlines()
        assert [json.loads(letter)["payload"] for letter in letters] == ["bad"] * 3
        assert replay.main([f"--input=dead.jsonl{ending}", *COUNT, f"--dead_letters=still{ending}"]) == 0
        assert len(content(ending, Path(f"still{ending}").read_bytes()).splitlines()) == 3


@pytest.mark.parametrize("zeros", [1, 512, 100_000])
def test_padding_of_gzip_is_accepted(zeros: int) -> None:
    """Tapes pad with zeros, and gunzip accepts them; also between members."""
    data = gzip.compress(b"a\n") + b"\0" * zeros
    assert content(".gz", data) == b"a\n"
    assert content(".gz", data + gzip.compress(b"b\n")) == b"a\nb\n"


@pytest.mark.parametrize(
    ("name", "rest", "codecs"),
    [
        ("A.JSONL.GZ", "a.jsonl", ["gzip"]),
        ("a.csv.zst", "a.csv", ["zstd"]),
        ("a.csv", "a.csv", []),
        ("a.gz.csv", "a.gz.csv", []),
        ("a.csv.xz.gz", "a.csv", ["gzip", "xz"]),
    ],
)
def test_a_name_says_how_a_file_is_compressed(name: str, rest: str, codecs: list[str]) -> None:
    """The outermost compression comes first."""
    assert split_name(name) == (rest, [next(c for c in CODECS.values() if c.name == codec) for codec in codecs])


@given(st.text(max_size=20))
def test_text_is_not_mistaken_for_compressed_data(text: str) -> None:
    """Lines may begin with any characters."""
    assert kind_of(text.encode("utf-8", "surrogatepass") + b"\n") is None


@given(st.binary(max_size=300), st.sampled_from(ENDINGS))
def test_any_bytes_are_read_or_refused(data: bytes, ending: str) -> None:
    """No input makes a decompressor fail in another way."""
    with suppress(Damaged):
        inflate(io.BytesIO(data), [CODECS[ending]]).read()


def test_one_line_of_600_mb_in_a_small_file_needs_little_memory(tmp_path: Path) -> None:
    """It is one dead letter, and the records around it are merged."""
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"id":"1","page":"p"}\n')
        for _ in range(600):
            file.write(b" " * 1_000_000)
        file.write(b'\n{"id":"2","page":"p"}\n')
    code = (
        "import resource, sys\n"
        "from murmur_beam.programs import merge_files\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert merge_files.main(sys.argv[1:]) == 0\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code, "--input=bomb.jsonl.gz", *COUNT],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "2 merged / 0 duplicate / 1 dead-lettered"
    assert int(lines[-1]) < 200, "MB"
    (letter,) = [json.loads(line) for line in Path("dead-letters.jsonl").read_text().splitlines()]
    assert letter["payload_type"] == "repr"
    assert "line 2 of" in letter["error_message"]
    assert "600,000,000 bytes, more than --max_record_bytes 16,777,216" in letter["error_message"]
