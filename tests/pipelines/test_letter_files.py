"""Files for dead letters: opened before the work, private, and no foreign file is touched."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from murmur_beam.deadletter import Failure, write_letter
from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.extract import RecordHints
from murmur_beam.files.letter_files import LetterFile, filled
from murmur_beam.model import DeadLetter
from murmur_beam.programs import flights, merge_files, replay

COUNT = ("--key=page", "--monoid=count", "--event_id=id", "--store=sqlite:///c.db")
ANY = "--max_dead_letters=100%"
AS_ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def folder(own_folder: Path) -> Path:
    """The working folder of a test, with a file of one good line and two bad ones."""
    Path("a.jsonl").write_bytes(b'{"id":"1","page":"p"}\nbad\nworse\n')
    return own_folder


def letter(payload: bytes = b"x") -> DeadLetter:
    """A letter."""
    return write_letter(
        payload, "murmur", Failure("decode", InvalidRecord("payload", "bad"), RecordHints(None, None, None)), 0
    )


def payloads(path: str) -> list[str]:
    """The payloads of the letters in a file."""
    return [json.loads(line)["payload"] for line in Path(path).read_text().splitlines()]


def refusal(act: Callable[[], object]) -> str:
    """Why a file is not written to; the error names the flag."""
    with pytest.raises(ConfigurationError) as caught:
        act()
    assert caught.value.argument == "--dead_letters"
    return caught.value.problem


def merge(*flags: str) -> int:
    """Merge the files of this folder."""
    return merge_files.main(["--input=a.jsonl", *COUNT, ANY, *flags])


def process(*flags: str, code: str = "pass") -> subprocess.Popen[str]:
    """The same in a process of its own."""
    run = f"import sys; {code}; from murmur_beam.programs import merge_files; sys.exit(merge_files.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", run, *COUNT, ANY, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


class TestHolding:
    def test_a_new_file_is_private_to_its_owner(self) -> None:
        """Letters hold the sent data."""
        assert merge() == 0
        assert payloads("dead-letters.jsonl") == ["bad", "worse"]
        assert stat.S_IMODE(os.stat("dead-letters.jsonl").st_mode) == 0o600
        for new in (True, False):
            LetterFile(f"{new}.jsonl", new=new).keep([letter()])
            assert stat.S_IMODE(os.stat(f"{new}.jsonl").st_mode) == 0o600

    def test_a_run_without_letters_leaves_no_file(self) -> None:
        """Unless it existed before."""
        Path("a.jsonl").write_bytes(b'{"id":"1","page":"p"}\n')
        Path("empty.jsonl").touch()
        assert merge() == merge("--dead_letters=empty.jsonl") == 0
        assert not os.path.exists("dead-letters.jsonl")
        assert os.path.exists("empty.jsonl")

    @pytest.mark.parametrize("name", ["dead.jsonl", "dead[1].jsonl", "d*d.jsonl", "dead?.jsonl.gz"])
    def test_letters_of_an_earlier_run_stay(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """They may be the only copy of its failed events."""
        assert merge(f"--dead_letters={name}") == 0
        before = Path(name).read_bytes()
        assert merge(f"--dead_letters={name}") == 2
        assert Path(name).read_bytes() == before
        assert "holds dead letters of an earlier run; replay and remove it" in capsys.readouterr().err

    def test_an_empty_file_is_used_and_not_replaced(self) -> None:
        """It keeps its inode, its owner and its mode."""
        Path("dead-letters.jsonl").touch(0o640)
        before = os.stat("dead-letters.jsonl")
        assert merge() == 0
        after = os.stat("dead-letters.jsonl")
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
        assert payloads("dead-letters.jsonl") == ["bad", "worse"]

    def test_two_runs_at_once_never_share_a_file(self) -> None:
        """The second is refused before it has done anything."""
        held = LetterFile("dead.jsonl", new=True)
        assert "another run is writing to it" in refusal(lambda: LetterFile("dead.jsonl", new=True))
        assert "another run is writing to it" in refusal(lambda: LetterFile("dead.jsonl"))
        held.close()
        assert not os.path.exists("dead.jsonl")

    def test_two_processes_at_once_never_share_a_file(self) -> None:
        """Every letter of those that end with 0 is in the file."""
        for name in "bcd":
            Path(f"{name}.jsonl").write_text("".join(f"{name}{i}\n" for i in range(2_000)))
        runs = {name: process(f"--input={name}.jsonl", f"--store=sqlite:///{name}.db") for name in "bcd"}
        codes = {}
        for name, run in runs.items():
            run.communicate(timeout=120)
            codes[name] = run.returncode
        assert set(codes.values()) <= {0, 2}
        kept = set(payloads("dead-letters.jsonl"))
        good = [name for name, code in codes.items() if code == 0]
        assert good
        assert kept == {f"{name}{i}" for name in good[:1] for i in range(2_000)} or len(good) > 1

    def test_several_workers_may_append_to_one_file(self) -> None:
        """Line by line; but not to one that a run holds exclusively."""
        one, other = LetterFile("dead.jsonl"), LetterFile("dead.jsonl")
        one.keep([letter(b"1")])
        other.keep([letter(b"2"), letter(b"3")])
        assert "another run is writing to it" in refusal(lambda: LetterFile("dead.jsonl", new=True))
        one.close()
        other.close()
        assert payloads("dead.jsonl") == ["1", "2", "3"]

    def test_the_line_after_a_truncated_one_is_complete(self) -> None:
        """The next letter begins on a line of its own."""
        Path("dead.jsonl").write_bytes(b'{"payload":"ha')
        file = LetterFile("dead.jsonl")
        file.keep([letter(b"1")])
        file.close()
        assert Path("dead.jsonl").read_text().splitlines()[0] == '{"payload":"ha'
        assert json.loads(Path("dead.jsonl").read_text().splitlines()[1])["payload"] == "1"

    def test_each_run_may_have_its_own_file(self) -> None:
        """Without a script around it."""
        assert re.fullmatch(r"dead-\d{4}-\d\d-\d\d-\d{6}\.jsonl", filled("dead-{date}-{time}.jsonl"))
        assert filled("{a}.jsonl") == "{a}.jsonl"
        assert merge("--dead_letters=dead-{date}T{time}.jsonl") == 0
        (name,) = [name for name in os.listdir() if name.startswith("dead")]
        assert payloads(name) == ["bad", "worse"]

    @pytest.mark.parametrize("new", [True, False])
    def test_a_file_that_is_removed_meanwhile_is_noticed(self, new: bool) -> None:
        """Letters would be lost."""
        file = LetterFile("dead.jsonl", new=new)
        os.remove("dead.jsonl")
        Path("dead.jsonl").write_text("another")
        with pytest.raises(OSError, match="removed or replaced"):
            LetterFile.again("dead.jsonl", file.identity)
        file.close()
        assert Path("dead.jsonl").read_text() == "another"


class TestNoFile:
    """A path that is not a plain file is written to as it is, or refused; and never removed."""

    @pytest.mark.skipif(not AS_ROOT, reason="devices are made by root")
    @pytest.mark.parametrize("program", [merge_files, replay, flights], ids=lambda program: program.__name__)
    def test_a_device_stays_one(self, program: object) -> None:
        """With letters and without."""
        os.mknod("null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        assert merge("--dead_letters=null") == 0
        flags: Sequence[str] = ("--input=a.jsonl", *COUNT, ANY)
        if program is flights:
            Path("f.csv").write_text(
                "year,month,day,hour,minute,origin,dest,carrier,flight,time_hour,dep_delay,tailnum\n"
                "2013,1,1,5,15,EWR,IAH,UA,1545,2013-01-01T05:00:00Z,NA,NA\n"
            )
            flags = ("--input=f.csv",)
        assert program.main([*flags, "--dead_letters=null"]) == 0  # type: ignore[attr-defined]
        assert stat.S_ISCHR(os.stat("null").st_mode)

    def test_dev_null_accepts_letters(self) -> None:
        """As do /dev/stdout and other devices."""
        assert merge("--dead_letters=/dev/null") == 0

    def test_a_link_is_written_through(self) -> None:
        """It stays a link, also where its target is created."""
        os.symlink("target.jsonl", "link.jsonl")
        assert merge("--dead_letters=link.jsonl") == 0
        assert os.path.islink("link.jsonl")
        assert payloads("target.jsonl") == ["bad", "worse"]

    def test_a_link_without_letters_stays(self) -> None:
        """Whatever happens to its target."""
        Path("a.jsonl").write_bytes(b'{"id":"1","page":"p"}\n')
        Path("target.jsonl").touch()
        os.symlink("target.jsonl", "link.jsonl")
        assert merge("--dead_letters=link.jsonl") == 0
        assert os.path.islink("link.jsonl")
        assert os.path.exists("target.jsonl")

    def test_a_pipe_gets_the_letters(self) -> None:
        """If a process reads it."""
        os.mkfifo("pipe")
        reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
        assert merge("--dead_letters=pipe") == 0
        read = os.read(reader, 65_536).splitlines()
        os.close(reader)
        assert [json.loads(line)["payload"] for line in read] == ["bad", "worse"]
        assert stat.S_ISFIFO(os.stat("pipe").st_mode)

    def test_a_pipe_without_a_reader_is_refused(self) -> None:
        """Without waiting for one."""
        os.mkfifo("pipe")
        for new in (True, False):
            assert "a pipe without a reader" in refusal(lambda new=new: LetterFile("pipe", new=new))

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("folder", "Is a directory"),
            ("no/such/folder.jsonl", "No such file or directory"),
            ("x" * 300, "File name too long"),
            ("a.jsonl/b", "Not a directory"),
            ("loop", "Too many levels of symbolic links"),
            ("nul\0", "null byte"),
            ("dead.jsonl.gz.xz", "several endings of compressions"),
        ],
        ids=lambda text: ascii(text)[:20],
    )
    def test_an_unwritable_path_is_refused_before_the_work(self, path: str, reason: str) -> None:
        """In a line that names it; nothing is merged."""
        os.mkdir("folder")
        os.symlink("loop", "loop")
        assert reason in refusal(lambda: LetterFile(path, new=True))
        if "\0" not in path:
            assert merge(f"--dead_letters={path}") == 2
            assert not os.path.exists("c.db")

    def test_a_worker_s_file_is_not_compressed(self) -> None:
        """It is appended to letter by letter, and may be truncated at any."""
        for ending in ("gz", "bz2", "xz", "zst", "deflate"):
            assert "leave out .gz" in refusal(lambda ending=ending: LetterFile(f"dead.jsonl.{ending}"))
            assert not os.path.exists(f"dead.jsonl.{ending}")


class TestFullDisk:
    LIMIT = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
    )

    @pytest.mark.parametrize("name", ["dead.jsonl", "dead.jsonl.gz"])
    def test_a_full_disk_is_one_line(self, name: str) -> None:
        """It names the file, with exit code 2; no incomplete file lies beside it."""
        Path("bad.jsonl").write_text("".join(f"bad {os.urandom(40).hex()}\n" for _ in range(5_000)))
        run = process("--input=bad.jsonl", f"--dead_letters={name}", code=self.LIMIT.format(200_000))
        out, err = run.communicate(timeout=120)
        assert run.returncode == 2
        *_, line = err.splitlines()
        assert line == f"merge_files: error: --dead_letters: {os.getcwd()}/{name}: File too large"
        assert sorted(name for name in os.listdir() if name.startswith("dead")) == [name]
        assert out == ""
        if name.endswith("jsonl"):
            assert Path(name).read_text().endswith("}\n"), "no half line stays"

    def test_a_worker_returns_the_letters(self) -> None:
        """Each with the reason, and it continues once there is space."""
        file = LetterFile("/dev/full")
        (failure,) = file.keep([letter()])
        assert isinstance(failure, OSError)
        file.close()
