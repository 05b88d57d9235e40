"""Emulators: they start, answer, and end without a trace; one serves a whole test run."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from murmur_beam.testing.emulators import BIGTABLE, PUBSUB, Emulator, EmulatorFailed, EmulatorMissing, bigtable, pubsub
from tests.support import emulators
from tests.support.emulators import listens

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")

Start = Callable[[], AbstractContextManager[str]]


def processes(host: str) -> list[str]:
    """Command lines of the processes that were started for it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if f"--port={host.partition(':')[2]} " in command:
                found.append(command)
    return found


def script(folder: Path, name: str, text: str) -> None:
    """A program with this name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(stat.S_IRWXU)


@pytest.mark.parametrize(("emulator", "start"), [(BIGTABLE, bigtable), (PUBSUB, pubsub)], ids=["bigtable", "pubsub"])
def test_it_runs_and_ends(emulator: Emulator, start: Start) -> None:
    """Each answers inside its block, on a port of its own, and leaves no process, also after an error."""
    emulators.require(emulator)
    hosts = []

    def fail() -> None:
        with start() as host, start() as other:
            assert listens(host)
            assert listens(other)
            assert len(processes(host)) == 1
            hosts.extend([host, other])
            raise KeyError("an error")

    with pytest.raises(KeyError, match="an error"):
        fail()
    assert len(set(hosts)) == 2
    assert not any(listens(host) for host in hosts)
    assert [processes(host) for host in hosts] == [[], []]


@pytest.mark.parametrize(("emulator", "component"), [(BIGTABLE, "bigtable"), (PUBSUB, "pubsub-emulator")])
def test_a_missing_one_says_how_to_install_it(
    emulator: Emulator, component: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an empty PATH, or a Google Cloud CLI without the component, the message has the command to run."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for _ in range(2):
        with pytest.raises(EmulatorMissing, match=f"run: gcloud components install {component} "):
            emulator.start()
        script(tmp_path / "bin", "gcloud", "")


def test_missing_java_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Pub/Sub emulator exists, Java does not: the message says so, and not that the emulator is missing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    script(tmp_path, "cloud-pubsub-emulator", "")
    with pytest.raises(EmulatorMissing, match="java is not on the PATH; install Java"):
        PUBSUB.start()
    script(tmp_path, "java", "")
    assert PUBSUB.find() == str(tmp_path / "cloud-pubsub-emulator")


def test_the_folder_of_the_google_cloud_cli_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the ``gcloud`` on the PATH, which may be a link; a program on the PATH itself comes first."""
    script(tmp_path / "sdk" / "bin", "gcloud", "")
    script(tmp_path / "sdk" / BIGTABLE.folder, "cbtemulator", "")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gcloud").symlink_to(tmp_path / "sdk" / "bin" / "gcloud")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert BIGTABLE.find() == str(tmp_path / "sdk" / BIGTABLE.folder / "cbtemulator")
    script(tmp_path / "bin", "cbtemulator", "")
    assert BIGTABLE.find() == str(tmp_path / "bin" / "cbtemulator")


def test_an_emulator_that_cannot_start_shows_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both stdout and stderr."""
    script(tmp_path, "cbtemulator", 'echo "one word"; echo "more: $2" >&2; exit 3')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EmulatorFailed, match=r"ended at once; it printed: one word\nmore: --port=\d+$"):
        BIGTABLE.start()


def test_a_port_that_is_in_use_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ports are tried, but not forever."""
    script(tmp_path, "cbtemulator", f'echo "$2" >> {tmp_path}/ports; echo "bind: address already in use"; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EmulatorFailed, match="already in use"):
        BIGTABLE.start()
    assert len(set((tmp_path / "ports").read_text().split())) == 3


def test_one_that_does_not_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up after a while; it is ended with its children."""
    text = 'for p in "$2"; do sleep 1000 & echo $! > CHILD; echo $$ > PARENT; wait; done'
    script(tmp_path, "cbtemulator", text.replace("CHILD", f"{tmp_path}/child").replace("PARENT", f"{tmp_path}/parent"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("murmur_beam.testing.emulators._START_S", 0.5)
    with pytest.raises(EmulatorFailed, match=r"does not answer on port \d+ within"):
        BIGTABLE.start()
    for name in ("parent", "child"):
        assert ended(int((tmp_path / name).read_text()))


def ended(pid: int) -> bool:
    """Whether it has ended within 5 s; a process that was not waited for yet counts as ended."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


class User:
    """A process that uses the shared emulator, as a worker of a test run does."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._leave = context.Event()
        self.process = context.Process(target=_use, args=(folder, theirs, self._leave))
        self.process.start()
        theirs.close()
        assert ours.poll(60)
        self.host: str = ours.recv()
        ours.close()

    def leave(self) -> None:
        """Let it finish."""
        self._leave.set()
        self.process.join()
        assert self.process.exitcode == 0


def _use(folder: Path, told: Connection, leave: Event) -> None:
    with emulators.shared(BIGTABLE, folder) as host:
        told.send(host)
        leave.wait()


@contextmanager
def users(folder: Path, n: int) -> Iterator[list[User]]:
    """Processes that use the shared emulator; at the end all of them leave."""
    made: list[User] = []
    try:
        made.extend(User(folder) for _ in range(n))
        yield made
    finally:
        for user in made:
            if user.process.is_alive():
                user.leave()


def test_a_test_run_shares_one(tmp_path: Path) -> None:
    """Two processes get the same; it runs until the last one leaves, whichever started it, and then ends."""
    emulators.require(BIGTABLE)
    with users(tmp_path, 2) as (first, second):
        assert first.host == second.host
        first.leave()
        assert listens(second.host)
        with users(tmp_path, 1) as (third,):
            assert third.host == second.host
            second.leave()
            assert listens(third.host)
        assert not listens(first.host)
    assert processes(first.host) == []


def test_a_killed_user_is_not_waited_for(tmp_path: Path) -> None:
    """A worker that dies without leaving does not keep the emulator running after the others."""
    emulators.require(BIGTABLE)
    with users(tmp_path, 2) as (first, second):
        first.process.kill()
        first.process.join()
        assert listens(second.host)
        second.leave()
        assert not listens(second.host)


def test_after_the_last_user_a_new_one_starts(tmp_path: Path) -> None:
    """The file of an earlier run in the same folder leads no process to a server that has ended."""
    emulators.require(BIGTABLE)
    for _ in range(2):
        with emulators.shared(BIGTABLE, tmp_path) as host:
            assert listens(host)
        assert not listens(host)


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_tests_without_it_skip_but_fail_in_ci(
    ci: str, outcome: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both with the reason and the command to run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    # By its type afterwards: an unexpected skip would skip this test too.
    with (
        pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match="run: gcloud components install") as told,
        emulators.for_tests(BIGTABLE, "NO_SUCH_VARIABLE", tmp_path),
    ):
        pass
    assert told.type is outcome


def test_the_environment_leads_to_it_and_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable holds the address inside, and its former value afterwards."""
    emulators.require(BIGTABLE)
    monkeypatch.setenv("A_VARIABLE", "before")
    with emulators.for_tests(BIGTABLE, "A_VARIABLE", tmp_path) as host:
        assert os.environ["A_VARIABLE"] == host
    assert os.environ["A_VARIABLE"] == "before"
