"""Helpers of the tests; none of these modules holds a test."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
"""Folder of the checkout."""


def script(path: str) -> ModuleType:
    """A file outside of packages, such as ``.ci/house.py``, as a module of its own.

    Args:
        path: of the file, from the root.
    """
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(**more: str) -> dict[str, str]:
    """Environment variables of a process that imports this checkout.

    Old Google clients warn of Python versions that they will not support some day: these warnings are off.
    """
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::FutureWarning", **more}
