"""Engines as the tests use them: Prism, Flink behind Beam's job server, and the worker processes that run the code
there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from apache_beam.version import __version__ as beam_version

from murmur_beam.testing.emulators import EmulatorMissing, Server, stop
from tests.support.emulators import require

JAR_VARIABLE = "FLINK_JOB_SERVER_JAR"


@dataclass(frozen=True)
class Prism(Server):
    """Beam's local engine."""

    def find(self) -> str:
        """Path of the program; see `Server.find`."""
        found = shutil.which(self.program)
        if found is None:
            raise EmulatorMissing(
                f"{self.title} ({self.program}) is not on the PATH; run: "
                f"go install github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam_version}"
            )
        return found

    def command(self, program: str, port: int) -> list[str]:
        """The command line that starts it."""
        return [program, f"--job_port={port}", "--serve_http=false", "--log_level=error"]


@dataclass(frozen=True)
class FlinkJobServer(Server):
    """Beam's job server with its own Flink.

    Attributes:
        folder: for its files.
    """

    folder: Path

    def find(self) -> str:
        """Path of Java; see `Server.find`."""
        find_jar()
        found = shutil.which(self.program)
        if found is None:
            raise EmulatorMissing(f"{self.title} runs on Java, and there is no {self.program} on the PATH; install it")
        return found

    def command(self, program: str, port: int) -> list[str]:
        """The command line that starts it."""
        # It is stopped by SIGKILL: its leftovers go to the test's own folder.
        java = [program, "-XX:-UsePerfData", f"-Djava.io.tmpdir={self.folder}", "-jar", find_jar()]
        ports = [f"--job-port={port}", "--artifact-port=0", "--expansion-port=0"]
        return [*java, *ports, f"--artifacts-dir={self.folder}"]


def find_jar() -> str:
    """Path of the job server's jar.

    Raises:
        EmulatorMissing: the environment names none.
    """
    jar = os.environ.get(JAR_VARIABLE, "")
    if not Path(jar).is_file():
        raise EmulatorMissing(
            f"{JAR_VARIABLE} names no file; build one with: mvn package -f .ci/flink-job-server, and set it to "
            "target/flink-job-server.jar there"
        )
    return jar


PRISM = Prism("Prism", "prism")


@dataclass(frozen=True)
class _PoolServer(Server):
    """Starts a process of Beam's Python SDK whenever an engine asks for a worker."""

    def find(self) -> str:
        """Path of Python."""
        return sys.executable

    def command(self, program: str, port: int) -> list[str]:
        """The command line that starts it."""
        return [program, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]

    def environment(self) -> dict[str, str]:
        """Its environment variables: it starts the first ``python`` on the PATH."""
        return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


class Pool(NamedTuple):
    """A pool that starts a worker whenever an engine asks for one.

    Attributes:
        flags: of a pipeline whose workers it starts.
        pid: of the process whose children are the workers.
    """

    flags: list[str]
    pid: int

    def workers(self) -> dict[int, int]:
        """The process ids of the workers, with the processor time that each has used."""
        used: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                # After the name, which may hold anything: state, parent's id, ...; the 12th and 13th are clock ticks.
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z" and int(fields[1]) == self.pid:
                used[int(stat.parent.name)] = int(fields[11]) + int(fields[12])
        return used

    def busiest_worker(self) -> int:
        """The process id of the worker that has used the most processor time."""
        used = self.workers()
        return max(used, key=lambda pid: used[pid])


@contextmanager
def worker_pool(folder: Path) -> Iterator[Pool]:
    """A pool of workers in processes of their own; they end with the block.

    Args:
        folder: for its log.
    """
    running = _PoolServer("Beam's worker pool", "python").start(folder / "workers.log")
    try:
        yield Pool(["--environment_type=EXTERNAL", f"--environment_config={running.host}"], running.pid)
    finally:
        stop(running.pid)


class Flink(NamedTuple):
    """A job server that answers, and a pool of workers for it.

    Attributes:
        flags: of a pipeline that is to run there, with two workers.
        log: the output of the job server and Flink.
        pid: of the job server, in which Flink runs.
        pool: of the workers.
    """

    flags: list[str]
    log: Path
    pid: int
    pool: Pool

    def logged(self, text: str) -> int:
        """The number of times that a text is in the log."""
        return self.log.read_text("utf-8", "replace").count(text)


@contextmanager
def flink(folder: Path) -> Iterator[Flink]:
    """An idle Flink, with its workers in processes of their own; skips the test where it is not installed.

    Args:
        folder: for its files.
    """
    server = FlinkJobServer("Beam's Flink job server", "java", folder)
    require(server)
    log = folder / "flink.log"
    jobs = server.start(log)
    try:
        with worker_pool(folder) as pool:
            flags = ["--runner=FlinkRunner", f"--job_endpoint={jobs.host}", *pool.flags]
            yield Flink([*flags, "--parallelism=2", "--sdk_worker_parallelism=2"], log, jobs.pid, pool)
    finally:
        stop(jobs.pid)
