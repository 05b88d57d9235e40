"""This project as a user installs it: built from a copy of the sources, in environments without them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT

_LEFT_OUT = ("__pycache__", ".*_cache", ".hypothesis", ".git", ".venv*", "venv*", "build", "dist", "*.egg-info", "site")


def copy_sources(folder: Path, *names: str) -> Path:
    """Copy the project, since building it leaves files behind, and return the folder.

    Args:
        folder: of the copy.
        names: files and folders of the project; all by default.
    """
    if not names:
        names = tuple(path.name for path in ROOT.iterdir())
    ignore = shutil.ignore_patterns(*_LEFT_OUT)
    folder.mkdir(parents=True, exist_ok=True)
    for name in set(names) - ignore(str(ROOT), list(names)):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def environment_with(wheel: Path, folder: Path) -> Path:
    """Make an environment with a wheel and all other packages of this one, but without this source; return its Python.

    Args:
        wheel: to install.
        folder: of the environment.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    # However this project is installed where the tests run, here it is the wheel.
    command = ["-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([sys.executable, *command, str(wheel)], check=True, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    # Files like the one that makes this project importable here are not read from these folders.
    (packages / "others.pth").write_text("\n".join(others), "utf-8")
    return python


class Packages(NamedTuple):
    """What a release uploads."""

    wheel: Path
    sdist: Path


def build(folder: Path) -> Packages:
    """Build the source package from a copy of the project, and the wheel from the source package.

    No network is needed: setuptools is the installed one.

    Args:
        folder: a new one, for the copy and the packages.
    """
    source, made = copy_sources(folder / "source"), folder / "made"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(source)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = made.glob("*.whl"), made.glob("*.tar.gz")
    return Packages(wheel, sdist)
