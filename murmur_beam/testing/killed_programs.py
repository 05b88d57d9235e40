"""Programs that `murmur end-to-end` starts and kills: the worker, and the folder beside it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from murmur_beam.errors import MurmurError

PROJECT = "end-to-end"
SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/flights"
DEAD_TOPIC = f"projects/{PROJECT}/topics/dead-letters"
UNTIL_IDLE_S = 12
"""Longer than Pub/Sub waits before it redelivers the messages of a killed worker."""
LOOK_S = 0.2

_MAX_OUTSTANDING = 1_000
"""Small enough that a killed worker had only a part of the messages."""
_FOLD_EVERY_S = 1

T = TypeVar("T")


class _Program:
    """A program in a separate process.

    Args:
        what: noun for messages, such as "the worker".
        argv: a module, and its arguments.
        out: gets the program's output.
        log: gets the program's stderr.
    """

    def __init__(self, what: str, argv: Sequence[str], out: IO[bytes], log: IO[bytes]) -> None:
        self._what = what
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", *argv], cwd=Path(__file__).parents[1], stdout=out, stderr=log
        )

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End the program by SIGKILL, so that it can neither print nor save anything."""
        self._process.kill()
        self._process.wait()

    def ended(self) -> bool:
        """Return whether the program has ended by itself, with its work done.

        Raises:
            MurmurError: the program has failed.
        """
        return self._checked(self._process.poll())

    def wait(self) -> None:
        """Wait until the program has ended.

        Raises:
            MurmurError: the program has failed.
        """
        self._checked(self._process.wait())

    def _checked(self, code: int | None) -> bool:
        if code:
            self._log.seek(0)
            printed = self._log.read().decode("utf-8", "replace").strip()
            raise MurmurError(f"{self._what} ended with exit code {code}; it printed: {printed[-2_000:]}")
        return code == 0


class Worker(_Program):
    """`murmur worker`.

    Args:
        store: URI of the store to count in.
        keys: what to count by.
        log: gets the worker's output.
    """

    def __init__(self, store: str, keys: Sequence[str], log: IO[bytes]) -> None:
        flags = [f"--key={key}" for key in keys]
        argv = [
            *("murmur_beam", "worker", "--name=flights", f"--store={store}"),
            *(f"--subscription={SUBSCRIPTION}", f"--dead_letter_topic={DEAD_TOPIC}", *flags),
            *("--monoid=count", "--window=daily", "--event_id=attribute:id", "--event_time=departure"),
            *(f"--until_idle={UNTIL_IDLE_S}s", f"--max_outstanding={_MAX_OUTSTANDING}"),
        ]
        super().__init__("the worker", argv, log, log)


class Folder(_Program):
    """`murmur fold`.

    Args:
        store: URI of the table to fold.
        log: gets the folder's stderr.
        more: further arguments.
    """

    def __init__(self, store: str, log: IO[bytes], *more: str) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the program is killed
        super().__init__("the folder", ["murmur_beam", "fold", store, "--json", *more], self._out, log)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._out.close()

    def rounds(self) -> list[Any]:
        """The folder's reports of its rounds so far."""
        # Not read(), which would move the position at which the process writes.
        printed = os.pread(self._out.fileno(), os.fstat(self._out.fileno()).st_size, 0)
        return [json.loads(line) for line in printed.splitlines(keepends=True) if line.endswith(b"\n")]

    def end(self) -> None:
        """End the folder by SIGTERM, after the rows in progress.

        Raises:
            MurmurError: the folder has failed.
        """
        self._process.terminate()
        self.wait()


class FolderTotals(NamedTuple):
    """Totals over the rounds that the folders reported; a folder does not report the round in which it is killed.

    Attributes:
        kills: of folders.
        rounds: number of rounds that ended.
        events: number of events folded.
        duplicates: number of duplicates found.
    """

    kills: int = 0
    rounds: int = 0
    events: int = 0
    duplicates: int = 0


class Folders:
    """Folders, one after another: each is killed soon after its first round, except the last one.

    Args:
        store: URI of the table to fold.
        kills: number of folders to kill.
        seed: of the times of the kills.
        log: gets the folders' stderr.
        say: called with a line about each kill.

    Attributes:
        totals: over all folders so far.
    """

    def __init__(self, store: str, kills: int, seed: int, log: IO[bytes], say: Any) -> None:
        self.totals = FolderTotals()
        self._store = store
        self._kills = kills
        self._chance = random.Random(seed)
        self._log = log
        self._say = say
        self._folder = self._next()
        self._kill_at_s: float | None = None

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.__exit__()

    def _next(self) -> Folder:
        return Folder(self._store, self._log, f"--every={_FOLD_EVERY_S}s")

    def look(self) -> None:
        """Kill the folder, if it is time.

        Raises:
            MurmurError: the folder has failed.
        """
        if self._folder.ended():
            raise MurmurError("the folder ended by itself, but should fold until it is stopped")
        if self.totals.kills == self._kills:
            return
        now_s = time.monotonic()
        if self._kill_at_s is None and self._folder.rounds():
            self._kill_at_s = now_s + self._chance.uniform(0, 2 * _FOLD_EVERY_S)
        if self._kill_at_s is not None and now_s >= self._kill_at_s:
            self._folder.kill()
            self._add(self._folder, kills=1)
            self._folder.__exit__()
            self._say(f"SIGKILL {self.totals.kills} of {self._kills}: the folder dies, another one starts")
            self._folder, self._kill_at_s = self._next(), None

    def finish(self) -> None:
        """Make the remaining kills, and end the last folder.

        Raises:
            MurmurError: a folder has failed.
        """
        while self.totals.kills < self._kills or not self._folder.rounds():
            time.sleep(LOOK_S)
            self.look()
        self._folder.end()
        self._add(self._folder)

    def fold(self) -> None:
        """Fold once.

        Raises:
            MurmurError: the folder has failed.
        """
        with Folder(self._store, self._log) as folder:
            folder.wait()
            self._add(folder)

    def _add(self, folder: Folder, kills: int = 0) -> None:
        rounds = folder.rounds()
        totals = self.totals
        self.totals = FolderTotals(
            totals.kills + kills,
            totals.rounds + len(rounds),
            totals.events + sum(each["events"] for each in rounds),
            totals.duplicates + sum(each["duplicates"] for each in rounds),
        )
