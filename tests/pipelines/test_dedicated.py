"""The garbage collector in processes that only run pipelines, and in others."""

from __future__ import annotations

import subprocess
import sys

import pytest

STATE = "print(gc.get_freeze_count() > 0, gc.get_threshold() != default)"


def state_after(*lines: str) -> str:
    """The state of the collector in a new process after these lines."""
    code = "\n".join(["import gc", "default = gc.get_threshold()", "from murmur_beam import dedicated", *lines, STATE])
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("lines", "put_aside"),
    [
        pytest.param(["dedicated.dedicate()", "dedicated.put_aside()"], True, id="a program"),
        pytest.param(["dedicated.put_aside()"], False, id="another program's process"),
        pytest.param(["dedicated.dedicate()"], False, id="before the first merge"),
        pytest.param(
            [
                "import sys, types, importlib.machinery as machinery",
                "main = 'apache_beam.runners.worker.sdk_worker_main'",
                "sys.modules['__main__'].__spec__ = machinery.ModuleSpec(main, None)",
                "dedicated.put_aside()",
            ],
            True,
            id="Beam's worker",
        ),
    ],
)
def test_only_a_dedicated_process_is_changed(lines: list[str], put_aside: bool) -> None:
    """Existing objects are frozen only where the process belongs to a pipeline."""
    assert state_after(*lines) == ("True True" if put_aside else "False False")


def test_it_is_done_once() -> None:
    """Objects made after the first merge are collected as usual."""
    counts = state_after(
        "dedicated.dedicate()",
        "dedicated.put_aside()",
        "before = gc.get_freeze_count()",
        "more = [[] for _ in range(1000)]",
        "dedicated.put_aside()",
        "print(gc.get_freeze_count() - before)",
    )
    assert counts.split()[0] == "0"
