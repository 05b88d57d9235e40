"""The engines of `benchmarks.fold_soak`, with workers that can be killed."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import murmur_beam.quiet_beam  # noqa: F401 - the next imports load Beam

# isort: split

from benchmarks.harness import Call, environment
from benchmarks.soak_looks import memory_mb
from benchmarks.soak_pipeline import TICK_S, Job, run
from murmur_beam.testing.emulators import stop
from tests.support.engines import PRISM, Flink, FlinkJobServer, flink
from tests.support.ticks import FLINK_SUBTASKS

ENGINES = "flink", "prism"
REPLAY_S = 30.0
"""A job that is started again on Prism begins with the events of this long before."""
_CHECKPOINT = re.compile(r"Completed checkpoint \d+ for job \w+ \((\d+) bytes")
_FLINK = ["--checkpointing_interval=5000", "--unaligned_checkpoint_enabled"]


class Engine(ABC):
    """An engine that runs the job.

    Args:
        job: what to run.
        pid: of the engine.

    Attributes:
        kills: workers that were killed.
    """

    def __init__(self, job: Job, pid: int) -> None:
        self._job = job
        self._pid = pid
        self._call = Call(run, job)
        self._ended = False
        self.kills = 0

    @abstractmethod
    def workers(self) -> list[int]:
        """Process ids of the workers."""

    @abstractmethod
    def kill_one(self) -> bool:
        """Kill a worker, and go on with another one; False if it cannot be killed now."""

    def check(self) -> None:
        """Raise the error of a job that has failed."""
        if not self._ended and self._call.done():
            self._call.result()
            self._ended = True

    def memory_mb(self) -> tuple[float, float]:
        """Resident memory of the workers, and of the engine."""
        return memory_mb(self.workers()), memory_mb([self._pid])

    def state_kb(self) -> float:
        """The size of the last checkpoint; 0 where there are none."""
        return 0.0

    def close(self) -> None:
        """End the job."""
        self._call.kill()


class PrismEngine(Engine):
    """Prism, whose worker is the process of the job.

    A job does not go on after its worker was killed, and Prism keeps what it knows of it. So each kill is followed by a
    new Prism, and a new job that begins with the events of the last seconds.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self._log = folder / "prism.log"
        super().__init__(*self._on_new_prism(job))

    def _on_new_prism(self, job: Job) -> tuple[Job, int]:
        server = PRISM.start(self._log)
        # Waiting for the end takes longer than Beam lets its client wait.
        flags = ["--runner=PrismRunner", f"--job_endpoint={server.host}", "--job_server_timeout=86400"]
        return job._replace(flags=flags), server.pid

    def workers(self) -> list[int]:
        """See `Engine.workers`."""
        return [self._call.pid]

    def kill_one(self) -> bool:
        """See `Engine.kill_one`."""
        job = self._job
        again = round(max(0.0, time.time() - job.start_s - REPLAY_S) / TICK_S)
        job = job._replace(first=job.first + again, start_s=job.start_s + again * TICK_S)
        next_job, next_pid = self._on_new_prism(job)
        self.close()
        self.kills += 1
        self._job, self._pid = next_job, next_pid
        self._call = Call(run, next_job)
        return True

    def close(self) -> None:
        """See `Engine.close`."""
        super().close()
        stop(self._pid)


class FlinkEngine(Engine):
    """Flink with two workers in processes of their own, which restores its last checkpoint after a kill."""

    def __init__(self, job: Job, engine: Flink) -> None:
        self._engine = engine
        self._checkpoints = 0
        super().__init__(job._replace(flags=[*engine.flags, *_FLINK]), engine.pid)

    def workers(self) -> list[int]:
        """See `Engine.workers`."""
        return list(self._engine.pool.workers())

    def kill_one(self) -> bool:
        """See `Engine.kill_one`; only after two checkpoints: Flink would wait for a worker that is killed too early."""
        checkpoints = self._engine.logged("Completed checkpoint ")
        workers = self.workers()
        if checkpoints < self._checkpoints + 2 or len(workers) < FLINK_SUBTASKS:
            return False
        os.kill(random.choice(workers), signal.SIGKILL)
        self.kills += 1
        self._checkpoints = checkpoints
        return True

    def state_kb(self) -> float:
        """See `Engine.state_kb`."""
        sizes = _CHECKPOINT.findall(self._engine.log.read_text("utf-8", "replace"))
        return int(sizes[-1]) / 1e3 if sizes else 0.0


@contextmanager
def running(name: str, job: Job, folder: Path) -> Iterator[Engine]:
    """Run the job on an engine; both end with the block."""
    with ExitStack() as stack:
        if name == "flink":
            FlinkJobServer("Beam's Flink job server", "java", folder).find()
            with environment(BIGTABLE_EMULATOR_HOST=job.host):  # of the workers
                started = stack.enter_context(flink(folder))
            engine: Engine = FlinkEngine(job, started)
        else:
            engine = PrismEngine(job, folder)
        stack.callback(engine.close)
        yield engine
