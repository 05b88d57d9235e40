"""Fixtures of the tests of pipelines: programs by their own ``main``, and stores for the transform."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from murmur_beam.state.memory import MemorySpec
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import FakeClock
from tests.support.programs import Ran, Run, first_flights

if TYPE_CHECKING:
    from tests.support.transform import Faulty


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which a pipeline makes its default files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a pipeline's ``main``."""

    def call(pipeline: Any, *argv: object) -> Ran:
        capsys.readouterr()
        try:
            code = pipeline.main([str(arg) for arg in argv])
        except SystemExit as exited:
            code = exited.code
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 3,000 flights of the shipped file."""
    return first_flights(tmp_path_factory.mktemp("twin") / "flights.csv", 3_000)


@pytest.fixture
def store() -> Iterator[Faulty]:
    """An empty store of sums without faults."""
    from tests.support.transform import Faulty  # loads Beam

    faulty = Faulty()
    yield faulty
    faulty.spec.drop()


@pytest.fixture
def memory() -> Iterator[MemorySpec]:
    """An empty store that URIs can name."""
    spec = MemorySpec(uuid.uuid4().hex, FakeClock())
    yield spec
    spec.drop()


@pytest.fixture
def lasting(tmp_path: Path) -> SqliteSpec:
    """An empty store that command lines can name."""
    return SqliteSpec(str(tmp_path / "lasting.db"))
