"""Imports Beam without its warnings: ``from pipelines.quiet_beam import beam``, before any other import of Beam."""

from __future__ import annotations

import importlib
import logging

# On import Beam warns about each of Google's clients that is not installed, also for pipelines that need none.
_root = logging.getLogger()
_level = _root.level
_root.setLevel(logging.ERROR)
try:
    beam = importlib.import_module("apache_beam")
finally:
    _root.setLevel(_level)
