"""Python's garbage collector, in processes that do nothing but run pipelines.

A bundle holds objects by the ten thousand, so that full collections are frequent; and each walks over all that Beam
and its dependencies made when they were imported, some 200,000 objects that are there to stay. That took a fifth of
the time of a pipeline whose events have a row each. In a process of its own a pipeline can do without: what is alive
when it begins is put aside. In any other process that is not ours to decide, since what is put aside and becomes
garbage in a cycle is never collected.
"""

from __future__ import annotations

import gc
import sys

_BEAM_WORKER = "apache_beam.runners.worker.sdk_worker_main"

# Python looks at new objects whenever there are 700 more of them; a buffer that fills makes that many in a millisecond,
# and none of them is garbage.
_YOUNG = 20_000

_said = False
_done = False


def declare_worker_process() -> None:
    """Say that this process does nothing but run pipelines; for main programs. Beam's own workers need not be told."""
    global _said
    _said = True


def freeze_startup_objects() -> None:
    """Put aside what is alive now, if the process is dedicated; the first call in a process does it, others nothing."""
    global _done
    if not _done and (_said or _is_beam_worker()):
        _done = True
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])


def _is_beam_worker() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None) == _BEAM_WORKER
