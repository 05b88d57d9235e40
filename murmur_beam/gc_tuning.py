"""Tunes Python's garbage collector in processes that only run pipelines.

A bundle holds ten thousands of objects, so full collections are frequent, and each visits the 200,000 objects that Beam
and its dependencies made when they were imported. Without the tuning a merge takes 85 % more of a client's CPU time
(`python -m benchmarks.overhead`). In a process that only runs pipelines, the objects that are alive when the first
pipeline begins are frozen. In any other process that is the user's decision, since a frozen object that becomes part of
a garbage cycle is never collected.
"""

from __future__ import annotations

import gc
import sys

_BEAM_WORKER = "apache_beam.runners.worker.sdk_worker_main"

# By default Python visits new objects after every 700. A full buffer of 10,000 records has 60,000, and none is garbage.
_YOUNG = 100_000

_declared = False
_frozen = False


def declare_worker_process() -> None:
    """Declare that this process only runs pipelines; for main programs. Beam's own workers are recognized."""
    global _declared
    _declared = True


def freeze_startup_objects() -> None:
    """Freeze the objects that are alive now, if this process only runs pipelines; a second call does nothing."""
    global _frozen
    if not _frozen and (_declared or _is_beam_worker()):
        _frozen = True
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])


def _is_beam_worker() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None) == _BEAM_WORKER
