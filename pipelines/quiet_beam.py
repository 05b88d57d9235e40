"""Beam, imported without its noise: ``from pipelines.quiet_beam import beam``, before anything else that imports it."""

from __future__ import annotations

import importlib
import logging

# While it is imported Beam warns about each client of Google's clouds that is not installed, before a pipeline can say
# that it needs none.
_root = logging.getLogger()
_level = _root.level
_root.setLevel(logging.ERROR)
try:
    beam = importlib.import_module("apache_beam")
finally:
    _root.setLevel(_level)
