"""Helpers of the tests; none of these modules holds a test."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Folder of the checkout."""


def environment(**more: str) -> dict[str, str]:
    """Environment variables of a process that imports this checkout.

    Old Google clients warn of Python versions that they will not support some day: these warnings are off.
    """
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::FutureWarning", **more}
