"""The garbage collector, in processes that do nothing but run pipelines, and in others."""

from __future__ import annotations

import subprocess
import sys

import pytest

STATE = "print(gc.get_freeze_count() > 0, gc.get_threshold() != default)"


def state_after(*lines: str) -> str:
    """What the collector is like in a new process after these lines."""
    code = "\n".join(["import gc", "default = gc.get_threshold()", "from murmur_beam import dedicated", *lines, STATE])
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("lines", "freeze_startup_objects"),
    [
        pytest.param(
            ["gc_tuning.declare_worker_process()", "gc_tuning.freeze_startup_objects()"], True, id="a program"
        ),
        pytest.param(["gc_tuning.freeze_startup_objects()"], False, id="a user's process"),
        pytest.param(["gc_tuning.declare_worker_process()"], False, id="before the first merge"),
        pytest.param(
            [
                "import sys, types, importlib.machinery as machinery",
                "main = 'apache_beam.runners.worker.sdk_worker_main'",
                "sys.modules['__main__'].__spec__ = machinery.ModuleSpec(main, None)",
                "gc_tuning.freeze_startup_objects()",
            ],
            True,
            id="Beam's worker",
        ),
    ],
)
def test_only_a_dedicated_process_is_changed(lines: list[str], freeze_startup_objects: bool) -> None:
    """What is alive is put aside where the process is a pipeline's own, and nowhere else."""
    assert state_after(*lines) == ("True True" if freeze_startup_objects else "False False")


def test_it_is_done_once() -> None:
    """What comes to life after the first merge stays the collector's."""
    counts = state_after(
        "gc_tuning.declare_worker_process()",
        "gc_tuning.freeze_startup_objects()",
        "before = gc.get_freeze_count()",
        "more = [[] for _ in range(1000)]",
        "gc_tuning.freeze_startup_objects()",
        "print(gc.get_freeze_count() - before)",
    )
    assert counts.split()[0] == "0"
