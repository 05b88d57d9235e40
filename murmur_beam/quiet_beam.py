"""Imports Beam without its warnings: ``from murmur_beam.quiet_beam import beam``, before other imports of Beam."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import apache_beam as beam

# On import Beam warns about each of Google's clients that is not installed, also for pipelines that need none.
_root = logging.getLogger()
__all__ = ["beam"]

_level = _root.level
_root.setLevel(logging.ERROR)
try:
    if not TYPE_CHECKING:
        beam = importlib.import_module("apache_beam")
finally:
    _root.setLevel(_level)
