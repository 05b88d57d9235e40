"""Fixtures that all tests share: a clock that never sleeps, and the emulators."""

from __future__ import annotations

import gc
import logging
import multiprocessing.util
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from murmur_beam.testing import FakeClock
from murmur_beam.testing.emulators import BIGTABLE, PUBSUB

# Failed assertions of helpers show the values compared, as those of tests do; the helpers are imported after it.
pytest.register_assert_rewrite("tests.support")

from tests.support import emulators  # noqa: E402

if TYPE_CHECKING:
    from tests.support.fault_proxy import FaultProxy

# No deadline: the tests do not measure speed, and a busy machine must not fail them.
settings.register_profile("murmur_beam", deadline=None)
settings.load_profile("murmur_beam")


def pytest_configure() -> None:
    """Let SIGINT interrupt, which some tests send: shells start commands in the background with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Exempt modules and collected tests from garbage collection.

    They are 400,000 objects: a full collection takes half a second, and each close of a Bigtable store makes one.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Delete at the end what the tests and their processes leave: Beam leaves a folder for each pipeline."""
    # The folders of pytest and of multiprocessing, which are deleted later, must not be in this one.
    tmp_path_factory.getbasetemp()
    multiprocessing.util.get_temp_dir()
    # Not in pytest's folder: the path of a socket has about 100 characters.
    with (
        tempfile.TemporaryDirectory(prefix="murmur-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Restore log levels, which pipelines and benchmarks change for the whole process."""
    disabled = logging.root.manager.disable
    names = (None, "apache_beam", "apache_beam.runners.common", "apache_beam.runners.direct")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    logging.disable(disabled)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands at 2023-11-14T22:13:20Z and only moves when something waits."""
    return FakeClock()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole test run, shared by all workers."""
    mine = tmp_path_factory.getbasetemp()
    return mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine


@pytest.fixture(scope="session")
def bigtable_host(run_folder: Path) -> Iterator[str]:
    """``host:port`` of the test run's Bigtable emulator; the environment leads clients to it."""
    with emulators.for_tests(BIGTABLE, "BIGTABLE_EMULATOR_HOST", run_folder) as host:
        yield host


@pytest.fixture
def proxy(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the Bigtable emulator, for clients of this process. Without a plan it passes everything on."""
    from tests.support.fault_proxy import FaultProxy  # takes a second to import

    with FaultProxy(bigtable_host) as running:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", running.address)
        yield running


@pytest.fixture(scope="session")
def pubsub_host(run_folder: Path) -> Iterator[str]:
    """``host:port`` of the test run's Pub/Sub emulator; the environment leads clients to it."""
    with emulators.for_tests(PUBSUB, "PUBSUB_EMULATOR_HOST", run_folder) as host:
        yield host
