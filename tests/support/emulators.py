"""The emulators as the tests use them: one for a whole test run, with tables and topics for each test."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from murmur_beam.testing.emulators import EmulatorMissing, Running, Server, stop

if TYPE_CHECKING:
    from murmur_beam.state.bigtable import BigtableSpec

PROJECT, INSTANCE = "test-project", "test-instance"
_numbers = itertools.count()


def listens(host: str) -> bool:
    """Whether a process accepts connections there."""
    address, _, port = host.partition(":")
    with suppress(OSError), socket.create_connection((address, int(port)), timeout=5):
        return True
    return False


@contextmanager
def shared(emulator: Server, folder: Path) -> Iterator[str]:
    """An emulator's ``host:port``, the same one for all processes that are in this block at the same time.

    The first starts it, the last stops it. Each user holds a lock on a file, which is released even if its process is
    killed.

    Args:
        emulator: which.
        folder: shared by all of them.
    """
    with open(folder / f"{emulator.program}.users", "a+") as users:
        with _alone(emulator, folder):
            if _lock(users.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB):
                users.truncate(0)
                running = emulator.start()
                users.write(json.dumps(running))
                users.flush()
            fcntl.flock(users, fcntl.LOCK_SH)
            users.seek(0)
            running = Running(*json.load(users))
        try:
            yield running.host
        finally:
            with _alone(emulator, folder):
                if _lock(users.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB):
                    stop(running.pid)


@contextmanager
def _alone(emulator: Server, folder: Path) -> Iterator[None]:
    """No other process starts or stops it meanwhile."""
    with open(folder / f"{emulator.program}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


def require(emulator: Server) -> None:
    """Skip the test that calls this if the emulator is not installed; with ``CI=true`` fail it."""
    try:
        emulator.find()
    except EmulatorMissing as err:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(err))


@contextmanager
def for_tests(emulator: Server, variable: str, folder: Path) -> Iterator[str]:
    """As `shared`, with the environment leading clients to it; `require` comes first.

    Args:
        emulator: which.
        variable: the environment variable of its clients.
        folder: shared by all workers of the test run.
    """
    require(emulator)
    with shared(emulator, folder) as host, pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, host)
        yield host


def new_table(host: str, layout: int | None = None) -> str:
    """A new table without a recorded purpose, which collects no garbage.

    Args:
        host: of the emulator.
        layout: of its cells; None: the newest.
    """
    # Not at the top: they need a second to import, and every test run imports this module.
    from murmur_beam.state.base import Schema
    from murmur_beam.state.bigtable import BigtableSpec
    from murmur_beam.state.bigtable.admin import Admin
    from murmur_beam.state.bigtable.layouts import LAYOUTS, NEWEST
    from murmur_beam.state.bigtable.tables import gc_rules, table_meta

    name = f"table-{os.getpid()}-{next(_numbers)}"
    with Admin(BigtableSpec(PROJECT, INSTANCE, name), host) as admin:
        # The same for any purpose that keeps all.
        admin.create(gc_rules(table_meta(Schema("sum", None))._replace(layout=LAYOUTS[layout or NEWEST])))
    return name


def new_uri(host: str, layout: int | None = None) -> str:
    """The URI of a new table; see `new_table`."""
    return f"bigtable://{PROJECT}/{INSTANCE}/{new_table(host, layout)}"


def new_spec(host: str, **arguments: Any) -> BigtableSpec:
    """The spec of a new table."""
    from murmur_beam.state.bigtable import BigtableSpec

    return BigtableSpec(PROJECT, INSTANCE, new_table(host), **arguments)


def appended_spec(host: str, **arguments: Any) -> BigtableSpec:
    """The spec of a new table that is appended to."""
    from tests.support.appended import AppendedSpec

    return AppendedSpec(PROJECT, INSTANCE, new_table(host), **arguments)


def folded_spec(host: str, **arguments: Any) -> BigtableSpec:
    """The spec of a new table that is appended to and folded after each flush."""
    from tests.support.appended import FoldedSpec

    return FoldedSpec(PROJECT, INSTANCE, new_table(host), **arguments)


def first_layout_spec(host: str, **arguments: Any) -> BigtableSpec:
    """The spec of a new table of layout 1: opening it first records that layout, as in release 0.1.0."""
    from tests.support.first_layout import FirstLayoutSpec

    return FirstLayoutSpec(PROJECT, INSTANCE, new_table(host, 1), **arguments)
