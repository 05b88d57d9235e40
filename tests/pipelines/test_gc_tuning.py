"""The garbage collector in processes that only run pipelines, and in others."""

from __future__ import annotations

import subprocess
import sys

import pytest

STATE = "print(gc.get_freeze_count() > 0, gc.get_threshold() != default)"


def state_after(*lines: str) -> str:
    """The state of the collector in a new process after these lines."""
    code = "\n".join(["import gc", "default = gc.get_threshold()", "from murmur_beam import gc_tuning", *lines, STATE])
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("lines", "frozen"),
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
def test_only_a_process_of_pipelines_is_changed(lines: list[str], frozen: bool) -> None:
    """Objects are frozen in a process that only runs pipelines, and in no other."""
    assert state_after(*lines) == ("True True" if frozen else "False False")


def test_it_is_done_once() -> None:
    """Objects that are made after the first merge are not frozen."""
    counts = state_after(
        "gc_tuning.declare_worker_process()",
        "gc_tuning.freeze_startup_objects()",
        "before = gc.get_freeze_count()",
        "more = [[] for _ in range(1000)]",
        "gc_tuning.freeze_startup_objects()",
        "print(gc.get_freeze_count() - before)",
    )
    assert counts.split()[0] == "0"
