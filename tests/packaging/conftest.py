"""Fixtures of the package's tests: the packages, built once, and an environment with the wheel."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.support import installed
from tests.support.installed import Packages


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The wheel and the source package of this project."""
    for module in ("build", "setuptools"):
        pytest.importorskip(module, reason="the packages are built with it; run: pip install -e '.[test]'")
    return installed.build(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def python(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that has the wheel, all other packages of this one, and not this source."""
    return installed.environment_with(packages.wheel, tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="session")
def unpacked(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in the source package."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(packages.sdist) as archive:
        archive.extractall(folder)
    (inside,) = folder.iterdir()
    return inside
