"""README's examples are run, and print what README says they print; what it names exists."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import StandardOptions

from pipelines.common import IN_PROCESS_RUNNER

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)


def test_every_python_example_has_its_output_beside_it() -> None:
    """An example without an expected output would not be checked."""
    assert len(EXAMPLES) == README.count("```python\n") >= 2


@pytest.mark.parametrize(("code", "output"), EXAMPLES)
def test_example(code: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example prints what stands under it."""
    monkeypatch.chdir(tmp_path)
    # The examples name no runner, and Beam's default would look for a binary on the network.
    monkeypatch.setattr(StandardOptions, "DEFAULT_RUNNER", IN_PROCESS_RUNNER)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert printed.getvalue() == output


def test_the_commands_are_one_line_each_and_make_their_own_environment() -> None:
    """A new user copies one line to see the main job, and one to run the tests."""
    commands = re.findall(r"^python3 -m venv \.venv && (.*)$", README, re.MULTILINE)
    assert [command.rpartition(" && ")[2].split()[:3] for command in commands] == [
        [".venv/bin/python", "-m", "pipelines.flights"],
        [".venv/bin/python", "-m", "pytest"],
    ]


@pytest.mark.parametrize(
    "module", sorted({*re.findall(r"python -m ((?:pipelines|benchmarks)\.\w+)", README), "murmur_beam"})
)
def test_named_commands_exist(module: str) -> None:
    """Each command that README names answers --help."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")


def test_linked_files_exist() -> None:
    """Each link to a file of the project leads somewhere."""
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_package_exports_what_it_lists() -> None:
    """Each public name is there; importing the package alone loads no Beam."""
    code = (
        "import murmur_beam, sys; assert not any(m.split('.')[0] == 'apache_beam' for m in sys.modules);"
        "print(all(getattr(murmur_beam, name) is not None for name in murmur_beam.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
