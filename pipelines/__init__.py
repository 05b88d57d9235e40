"""Runnable pipelines: each module has a ``main(argv)`` and runs as ``python -m pipelines.NAME``."""

import importlib
import logging

# While it is imported Beam warns about each client of Google's clouds that is not installed, before a pipeline can say
# that it needs none.
_root = logging.getLogger()
_level = _root.level
_root.setLevel(logging.ERROR)
try:
    importlib.import_module("apache_beam")
finally:
    _root.setLevel(_level)
