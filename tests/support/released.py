"""Release 0.1.0 beside the tested code: built from its commit, and run in processes of its own."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

COMMIT = "e164534d5817261fbd8cf9cf00c48f6e212ce4a5"
CHECKOUT = Path(os.environ.get("MURMUR_CHECKOUT", ROOT))
_TIMEOUT_S = 120.0


class Refused(Exception):
    """The error of a function in the other process: its name and its text."""


class Release:
    """A process of one release.

    Args:
        path: where its packages are.
    """

    def __init__(self, path: Path) -> None:
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.mixed_worker", str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])},
            cwd=path,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The result of a function of `mixed_worker`.

        Raises:
            Refused: it has raised an error.
        """
        self._pipe.send((name, arguments))
        return self._take("result")

    def prepare(self, *arguments: Any) -> None:
        """Let it open the store for ``mixed_worker.merge``."""
        self._pipe.send(("merge", arguments))
        self._take("ready")

    def go(self) -> None:
        """Let it merge."""
        self._pipe.send("go")

    def result(self) -> Any:
        """Wait for the result of the merge."""
        return self._take("result")

    def end(self) -> None:
        """End the process, whatever its state."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def _take(self, what: str) -> Any:
        assert self._pipe.poll(_TIMEOUT_S), f"no {what} within {_TIMEOUT_S:g} s"
        kind, value = self._pipe.recv()
        if kind == "error":
            raise Refused(*value)
        assert kind == what, value
        return value


def merge_all(jobs: Sequence[tuple[Release, tuple[Any, ...]]]) -> list[Any]:
    """Let processes merge at the same time."""
    for release, arguments in jobs:
        release.prepare(*arguments)
    for release, _ in jobs:
        release.go()
    return [release.result() for release, _ in jobs]


def built(folder: Path) -> Path:
    """The packages of release 0.1.0, which the first caller builds for the whole test run; otherwise the test is
    skipped.

    Args:
        folder: shared by all workers of the test run.
    """
    source, packages = folder / "release-0.1.0", folder / "release-0.1.0-built"
    with open(folder / "release-0.1.0.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not packages.exists():
            source.mkdir(exist_ok=True)
            _check_out(source)
            _build(source, packages)
    return packages


def _check_out(source: Path) -> None:
    try:
        archive = subprocess.run(["git", "-C", str(CHECKOUT), "archive", COMMIT], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as err:
        said = getattr(err, "stderr", b"").decode("utf-8", "replace").strip() or err
        pytest.skip(f"the commit of release 0.1.0 is not in {CHECKOUT}: {said}")
    subprocess.run(["tar", "x", "-C", str(source)], input=archive.stdout, check=True)


def _build(source: Path, packages: Path) -> None:
    """Make the content of the wheel. With an installed setuptools that needs two seconds; pip has to download it, which
    needs twenty."""
    unfinished = packages.with_name(f"{packages.name}-unfinished")
    python = [sys.executable, "-W", "ignore"]
    if find_spec("setuptools"):
        _run([*python, "setup.py", "-q", "build", "--build-lib", str(unfinished)], source)
    else:
        _run([*python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(source / "wheels"), "."], source)
        (wheel,) = (source / "wheels").glob("*.whl")
        zipfile.ZipFile(wheel).extractall(unfinished)
    unfinished.rename(packages)


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
