"""CONTRIBUTING.md: its examples work as they stand, and the folders that it names exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, installed

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the examples in their places."""
    folder = installed.copy_sources(tmp_path_factory.mktemp("contributing") / "clone")
    for file, source in EXAMPLES.items():
        assert not (ROOT / file).exists(), file
        (folder / file).write_text(source, "utf-8")
    return folder


def run(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy."""
    environment = {**os.environ, "PYTHONPATH": str(clone), "PYTHONWARNINGS": "ignore::FutureWarning"}
    return subprocess.run(
        [sys.executable, *words], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )


def test_every_example_says_its_file() -> None:
    """Half of them are tests."""
    assert len(EXAMPLES) == TEXT.count("```python\n") >= 4
    assert sum(file.startswith("tests/") for file in EXAMPLES) * 2 == len(EXAMPLES)


def test_the_examples_pass_their_own_tests(clone: Path) -> None:
    """A contributor who copies both files has a green test."""
    done = run(clone, "-m", "pytest", "-q", *(file for file in EXAMPLES if file.startswith("tests/")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_keep_the_house_s_rules(clone: Path) -> None:
    """Four zeros, and no further row for a monoid or a program."""
    done = run(clone, ".ci/house.py", *EXAMPLES)
    assert done.returncode == 0, done.stdout
    assert re.findall(r"\d+$", done.stdout, re.MULTILINE) == ["0"] * 4


def test_the_examples_are_found_by_name(clone: Path) -> None:
    """One file each: the monoid is a flag's value, and the program is a command of ``murmur``."""
    done = run(clone, "-c", "from murmur_beam.monoids import by_name; print(by_name('bit_or').combine(1, 6))")
    assert done.stdout == "7\n", done.stderr
    done = run(clone, "-m", "murmur_beam", "--help")
    assert "show-keys" in done.stdout
    assert "Print the keys of a store, one a line." in re.sub(r"\s+", " ", done.stdout)


def test_the_table_names_folders_that_exist() -> None:
    """And the files in the recipes exist, except for those that a contributor makes."""
    (table,) = re.findall(r"^\| folder \|.*?\n\n", TEXT, re.DOTALL | re.MULTILINE)
    for row in table.strip().splitlines()[2:]:
        first, *others = re.findall(r"`([\w./]+)`", row.split("|")[1])
        parent = (ROOT / first).parent
        assert (ROOT / first).exists(), first
        assert [name for name in others if not (parent / name).is_dir()] == []
    named = set(re.findall(r"`((?:tests|docs|flex|state|\.ci|\.venv/bin/python \.ci)/[\w./]+)`", TEXT))
    for name in named - {"state/SCHEME.py"}:
        place = name.removeprefix(".venv/bin/python ")
        assert (ROOT / place).exists() or (ROOT / "murmur_beam" / place).exists(), name
