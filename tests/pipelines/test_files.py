"""Input files: names before patterns, each file once, whatever its name; and all of it or an error."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from murmur_beam.errors import ConfigurationError, MurmurError
from murmur_beam.files import matching as files
from murmur_beam.files.matching import check_encoding, matching, opened
from murmur_beam.programs import merge_files, replay
from murmur_beam.reader import Reader

COUNT = ("--key=page", "--monoid=count", "--event_id=id", "--store=sqlite:///c.db", "--max_dead_letters=100%")

HOSTILE = (
    "events[1].jsonl", "events[!a].jsonl", "ev*nts.jsonl", "events?.jsonl", "{a,b}.jsonl", "~.jsonl", "a b.jsonl",
    "new\nline.jsonl", "-x.jsonl", "**.jsonl", "[.jsonl", "[z-a].jsonl", "$HOME.jsonl", "a\\b.jsonl", "gs:.jsonl",
    "\u00e9\u6f22.jsonl", os.fsdecode(b"caf\xe9.jsonl"), "x" * 200 + ".jsonl",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("own_folder")


def events(n: int, start: int = 0) -> bytes:
    """Lines of a file."""
    return b"".join(json.dumps({"id": f"e{i}", "page": "p"}).encode() + b"\n" for i in range(start, start + n))


def names(*patterns: str) -> list[str]:
    """The names that patterns match, in this folder."""
    return [os.path.relpath(path) for path in matching(patterns)]


def refusal(act: Callable[[], object]) -> str:
    """Why files cannot be read."""
    with pytest.raises(MurmurError) as caught:
        act()
    return str(caught.value)


def count() -> int | None:
    """The count after a run."""
    with Reader.open("sqlite:///c.db") as reader:
        found: int | None = reader.get("p")
        return found


class TestNames:
    @pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
    def test_a_name_that_exists_is_that_file(self, name: str) -> None:
        """Whatever characters it has; it does not match other files as a pattern."""
        Path(name).write_bytes(events(2))
        for other in ("events1.jsonl", "events.jsonl", "a.jsonl", "b.jsonl"):
            Path(other).write_bytes(events(5, 100))
        assert names(name) == [name]
        assert merge_files.main(["--input=" + name, "--decode=json", *COUNT]) == 0
        assert count() == 2

    @pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
    def test_a_matched_name_is_not_a_pattern_again(self, name: str) -> None:
        """It is read by its name."""
        Path("d").mkdir()
        Path("d", name).write_bytes(events(2))
        Path("d/plain.jsonl").write_bytes(events(3, 100))
        assert sorted(names("d/*.jsonl")) == sorted(["d/plain.jsonl", f"d/{name}"])
        assert merge_files.main(["--input=d/*.jsonl", *COUNT]) == 0
        assert count() == 5

    def test_letters_are_replayed_by_name_too(self) -> None:
        """And a file of letters is written to by its name."""
        Path("a.jsonl").write_bytes(events(1) + b"bad\n")
        assert merge_files.main(["--input=a.jsonl", *COUNT, "--dead_letters=dead[1].jsonl"]) == 0
        Path("dead1.jsonl").write_bytes(b"no letter\n" * 7)
        assert replay.main(["--input=dead[1].jsonl", *COUNT, "--dead_letters=still{a}*.jsonl"]) == 0
        assert len(Path("still{a}*.jsonl").read_text().splitlines()) == 1

    @pytest.mark.parametrize(
        ("patterns", "found"),
        [
            (["a.jsonl", "./a.jsonl"], ["a.jsonl"]),
            (["*.jsonl", "a.jsonl"], ["a.jsonl", "b.jsonl"]),
            (["a.jsonl", "d/../a.jsonl", "link.jsonl", "hard.jsonl"], ["a.jsonl"]),
            (["l*.jsonl", "a*"], ["link.jsonl"]),
            (["d/**", "**/c.jsonl"], ["d/c.jsonl", "d/e/c.jsonl"]),
        ],
    )
    def test_a_file_is_read_once_however_often_it_is_named(self, patterns: list[str], found: list[str]) -> None:
        """With two spellings, through links, and by several patterns."""
        Path("d/e").mkdir(parents=True)
        for name in ("a.jsonl", "b.jsonl", "d/c.jsonl", "d/e/c.jsonl"):
            Path(name).write_bytes(events(1))
        if "l" in "".join(patterns) and ("link.jsonl" in patterns or "l*.jsonl" in patterns):
            os.symlink("a.jsonl", "link.jsonl")
            os.link("a.jsonl", "hard.jsonl")
        assert sorted(names(*patterns)) == found

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("nothing.jsonl", "no file matches 'nothing.jsonl'"),
            ("*.nothing", "no file matches '*.nothing'"),
            ("folder", "folder cannot be read: it is a folder; write FOLDER/* for the files in it"),
            ("folder/", "it is a folder"),
            ("dangling.jsonl", "dangling.jsonl cannot be read: No such file or directory"),
            ("x" * 300, "File name too long"),
            ("a.jsonl/b", "a.jsonl/b"),
            ("nul\0.jsonl", "null byte"),
            ("", "it is a folder"),
        ],
        ids=lambda text: ascii(text)[:30],
    )
    def test_an_unreadable_file_is_one_line(self, name: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Before any work, naming the flag and the file."""
        Path("folder").mkdir()
        Path("a.jsonl").write_bytes(events(1))
        os.symlink("gone", "dangling.jsonl")
        assert reason in refusal(lambda: matching([name]))
        if "\0" not in name:
            assert merge_files.main([f"--input={name}", "--decode=json", *COUNT]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("merge_files: error: --input: ")

    def test_a_name_that_is_not_utf_8_can_be_printed(self, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
        """Escaped, as are names that would move the cursor."""
        Path(os.fsdecode(b"caf\xe9\x1b[2J.jsonl.gz")).write_bytes(b"no gzip")
        assert merge_files.main(["--input=caf*", *COUNT]) == 2
        (line,) = capsysbinary.readouterr().err.splitlines()
        assert rb"/caf\xe9\x1b[2J.jsonl.gz: cannot be read to its end: " in line


class TestGone:
    def test_a_file_that_is_removed_after_it_was_listed_is_an_error(self) -> None:
        """Its records would be missing without notice."""
        Path("a.jsonl").write_bytes(events(1))
        (path,) = matching(["a.jsonl"])
        os.remove("a.jsonl")
        with pytest.raises(MurmurError, match=r"/a.jsonl: cannot be read to its end: No such file"), opened(path):
            pass

    def test_a_file_that_is_truncated_while_it_is_read_is_an_error(self) -> None:
        """As a log that is rotated by copying and truncating."""
        Path("a.jsonl").write_bytes(events(50_000))

        def cut_while_reading() -> None:
            with opened("a.jsonl") as content:
                content.read(1_000)
                os.truncate("a.jsonl", 10)
                content.read()

        assert "it became shorter while it was read" in refusal(cut_while_reading)

    def test_a_folder_that_takes_its_place_is_an_error(self) -> None:
        """It is checked again when it is opened."""
        Path("a.jsonl").mkdir()
        with pytest.raises(MurmurError, match="it is a folder"), opened("a.jsonl"):
            pass


class TestPipes:
    def test_a_pipe_is_read_to_its_end(self) -> None:
        """For example of a shell's process substitution."""
        os.mkfifo("pipe.jsonl")

        def write() -> None:
            Path("pipe.jsonl").write_bytes(events(1_000))

        writer = threading.Thread(target=write)
        writer.start()
        with opened("pipe.jsonl") as content:
            assert content.read() == events(1_000)
        writer.join()

    def test_a_pipe_without_a_writer_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a deadline."""
        monkeypatch.setattr(files, "_WRITER_S", 0.05)
        os.mkfifo("pipe.jsonl")
        with pytest.raises(MurmurError, match="no program has written to this pipe"), opened("pipe.jsonl") as content:
            content.read()


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "UTF_8"])
    def test_a_file_is_converted_to_utf_8(self, encoding: str) -> None:
        """Whatever its encoding, with or without a byte order mark."""
        text = '{"id":"1","page":"caf\u00e9"}\n' * 3
        Path("a.jsonl").write_bytes(text.encode(encoding))
        with opened("a.jsonl", encoding) as content:
            assert content.read().decode("utf-8").removeprefix("\ufeff") == text

    def test_bytes_without_a_character_spoil_their_own_record(self) -> None:
        """It becomes a dead letter that keeps them."""
        Path("a.csv").write_bytes(b"id,page\n1,caf\xe9\n2,\x81\n3,p\n")
        assert merge_files.main(["--input=a.csv", "--encoding=cp1252", *COUNT]) == 0
        with Reader.open("sqlite:///c.db") as reader:
            assert {entity: n for entity, n, _ in reader.list()} == {"caf\u00e9": 1, "p": 1}
        (letter,) = [json.loads(line) for line in Path("dead-letters.jsonl").read_text().splitlines()]
        assert "payload_base64" in letter

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
    def test_a_file_in_utf_16_needs_the_flag(self, encoding: str) -> None:
        """Otherwise each line of it would be a dead letter."""
        mark = "\ufeff" if encoding == "utf-16-be" else ""
        Path("a.jsonl").write_bytes(f'{mark}{{"id":"1"}}\n'.encode(encoding))
        with pytest.raises(MurmurError, match="add --encoding utf-16"), opened("a.jsonl"):
            pass

    def test_a_file_that_ends_within_a_character_is_an_error(self) -> None:
        """The rest of it is not a character."""
        Path("a.jsonl").write_bytes("ab\n".encode("utf-16")[:-1])
        with pytest.raises(MurmurError, match="cannot be read to its end"), opened("a.jsonl", "utf-16") as content:
            content.read()

    @pytest.mark.parametrize("encoding", ["klingon", "", "hex", "rot13", "utf-8\n\0"])
    def test_an_unknown_encoding_is_refused(self, encoding: str) -> None:
        """Before anything is read."""
        with pytest.raises(ConfigurationError, match=r"^--encoding: unknown encoding"):
            check_encoding(encoding)
