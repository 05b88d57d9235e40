"""Starts the Bigtable and Pub/Sub emulators as processes on free ports of this machine.

Clients find them by ``BIGTABLE_EMULATOR_HOST`` and ``PUBSUB_EMULATOR_HOST``, which the caller must set::

    with emulators.bigtable() as host:
        os.environ["BIGTABLE_EMULATOR_HOST"] = host
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from murmur_beam.errors import MurmurError

_START_S = 60.0
_STARTS = 3
# The start of every HTTP/2 connection: the preface and an empty SETTINGS frame. A server answers with SETTINGS.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4


class EmulatorMissing(MurmurError):
    """A server, or the Java that it needs, is not installed; the message says how to install it."""


class EmulatorFailed(MurmurError):
    """A server does not start; the message ends with its output."""


class Running(NamedTuple):
    """A server that is ready.

    Attributes:
        host: ``127.0.0.1:PORT``.
        pid: of the process, which leads a new process group; for `stop`.
    """

    host: str
    pid: int


@dataclass(frozen=True)
class Server(ABC):
    """A gRPC server that is started as a process on a free port of this machine.

    Attributes:
        title: name for messages.
        program: name of the program on the PATH.
    """

    title: str
    program: str

    @abstractmethod
    def find(self) -> str:
        """Path of the program.

        Raises:
            EmulatorMissing: the program is not installed.
        """

    @abstractmethod
    def command(self, program: str, port: int) -> list[str]:
        """The command line that starts the server.

        Args:
            program: from `find`.
            port: to listen on.
        """

    def environment(self) -> dict[str, str]:
        """Environment variables of the server."""
        return dict(os.environ)

    def start(self, log: Path | None = None) -> Running:
        """Start the server on a free port and wait until it is ready; the caller must call `stop`.

        Args:
            log: file for the server's output.

        Raises:
            EmulatorMissing: the program is not installed.
            EmulatorFailed: the server ends at once, or does not answer.
        """
        program = self.find()
        problem = printed = ""
        for start in range(_STARTS):
            port = _free_port()
            with log.open("w+b") if log else tempfile.TemporaryFile() as output:
                pid = self._spawn(self.command(program, port), output.fileno())
                try:
                    problem = _wait(port, pid)
                except BaseException:
                    stop(pid)
                    raise
                if not problem:
                    return Running(f"127.0.0.1:{port}", pid)
                stop(pid)
                output.seek(0)
                printed = output.read().decode("utf-8", "replace").strip()
            # Another program may take the port first.
            if "in use" not in printed or start == _STARTS - 1:
                break
        raise EmulatorFailed(f"{self.title} ({program}) {problem}; it printed: {printed[-2000:] or 'nothing'}")

    def _spawn(self, command: list[str], output: int) -> int:
        return os.posix_spawn(
            command[0],
            command,
            self.environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setpgroup=0,
        )


@dataclass(frozen=True)
class Emulator(Server):
    """One of Google's emulators: where to find it, and how to start it.

    Attributes:
        folder: of the program, below the Google Cloud CLI's folder.
        component: name for ``gcloud components install``.
        package: name for ``apt-get install``.
        java: whether the emulator needs Java.
    """

    folder: str
    component: str
    package: str
    java: bool = False

    def find(self) -> str:
        """Path of the program: on the PATH, or in the Google Cloud CLI's folder.

        Raises:
            EmulatorMissing: the program or Java is not installed.
        """
        found = shutil.which(self.program)
        gcloud = shutil.which("gcloud")
        if found is None and gcloud is not None:
            found = shutil.which(self.program, path=Path(gcloud).resolve().parent.parent / self.folder)
        if found is None:
            raise EmulatorMissing(
                f"{self.title} ({self.program}) is neither on the PATH nor in the Google Cloud CLI's "
                f"folder; run: gcloud components install {self.component} (or apt-get install {self.package})"
            )
        if self.java and not os.environ.get("JAVA_HOME") and shutil.which("java") is None:
            raise EmulatorMissing(
                f"{self.title} needs Java, and java is not on the PATH; install Java 11 or newer "
                "(such as apt-get install default-jre-headless)"
            )
        return found

    def command(self, program: str, port: int) -> list[str]:
        """The command line that starts the emulator."""
        return [program, "--host=127.0.0.1", f"--port={port}"]

    def environment(self) -> dict[str, str]:
        """Environment variables of the emulator."""
        # After SIGKILL it cannot remove the file that Java keeps for its monitoring tools.
        return {**os.environ, "JAVA_OPTS": f"{os.environ.get('JAVA_OPTS', '')} -XX:-UsePerfData"}


BIGTABLE = Emulator(
    "the Bigtable emulator",
    "cbtemulator",
    "platform/bigtable-emulator",
    "bigtable",
    "google-cloud-cli-bigtable-emulator",
)
PUBSUB = Emulator(
    "the Pub/Sub emulator",
    "cloud-pubsub-emulator",
    "platform/pubsub-emulator/bin",
    "pubsub-emulator",
    "google-cloud-cli-pubsub-emulator",
    java=True,
)


def stop(pid: int) -> None:
    """Kill a server with its process group; it keeps nothing on disk.

    Args:
        pid: from `Server.start`, possibly called in another process.
    """
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # another process's child, or already waited for
        os.waitpid(pid, 0)


@contextmanager
def bigtable() -> Iterator[str]:
    """Run a new, empty Bigtable emulator; yields its ``127.0.0.1:PORT``.

    Raises:
        EmulatorMissing: the emulator is not installed.
        EmulatorFailed: the emulator does not start.
    """
    with _running(BIGTABLE) as host:
        yield host


@contextmanager
def pubsub() -> Iterator[str]:
    """Run a new, empty Pub/Sub emulator; yields its ``127.0.0.1:PORT``.

    Raises:
        EmulatorMissing: the emulator or Java is not installed.
        EmulatorFailed: the emulator does not start.
    """
    with _running(PUBSUB) as host:
        yield host


@contextmanager
def _running(server: Server) -> Iterator[str]:
    running = server.start()
    try:
        yield running.host
    finally:
        stop(running.pid)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(port: int, pid: int) -> str:
    """Wait until a server answers; return the problem if it does not, else an empty text."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return "ended at once"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(_HELLO)
            frame = connection.recv(4)
            if frame[3:] == bytes([_SETTINGS]):
                return ""
        time.sleep(0.05)
    return f"does not answer on port {port} within {_START_S:.0f} s"
