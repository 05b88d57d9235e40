"""CONTRIBUTING.md: its examples work as they stand, and the folders that it names exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, installed

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.DOTALL))
(OPTION,) = re.findall(r"```\n( {4}\w+: Annotated.*?)```", TEXT, re.DOTALL)
STORE = "murmur_beam/state/json_file.py"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the examples in their places."""
    folder = installed.copy_sources(tmp_path_factory.mktemp("contributing") / "clone")
    for file, source in EXAMPLES.items():
        assert not (ROOT / file).exists(), file
        (folder / file).write_text(source, "utf-8")
    shutil.copy(folder / "tests/support/json_file.py", folder / STORE)
    spec = folder / "murmur_beam/state/bigtable/spec.py"
    text = spec.read_text("utf-8")
    assert text.count("    clock: Clock") == 1
    spec.write_text(text.replace("    clock: Clock", f"{OPTION}    clock: Clock"), "utf-8")
    return folder


def run(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy."""
    environment = {**os.environ, "PYTHONPATH": str(clone), "PYTHONWARNINGS": "ignore::FutureWarning"}
    return subprocess.run(
        [sys.executable, *words], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )


def test_every_example_says_its_file() -> None:
    """A monoid and a program, each with its test, and the test of a store."""
    assert len(EXAMPLES) == TEXT.count("```python\n") == 5
    assert sum(file.startswith("tests/") for file in EXAMPLES) == 3


def test_the_examples_pass_their_own_tests(clone: Path) -> None:
    """A contributor who copies them has green tests."""
    done = run(clone, "-m", "pytest", "-q", *(file for file in EXAMPLES if file.startswith("tests/")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_keep_the_house_s_rules(clone: Path) -> None:
    """Four zeros, and no further row for a monoid, a store or a program."""
    done = run(clone, ".ci/house.py", *EXAMPLES, STORE, "murmur_beam/state/bigtable/spec.py")
    assert done.returncode == 0, done.stdout
    assert re.findall(r"\d+$", done.stdout, re.MULTILINE) == ["0"] * 4


def test_nothing_else_goes_red(clone: Path) -> None:
    """Neither the tests of what lists monoids, stores, options and programs, nor the pages and the templates."""
    some = [
        *("tests/unit/test_monoids.py", "tests/unit/test_option.py", "tests/unit/test_spec.py"),
        *("tests/unit/test_layers.py", "tests/unit/test_facade.py", "tests/stores/test_cli_words.py"),
        *("tests/docs/test_design.py", "tests/docs/test_site.py", "tests/pipelines/test_flex.py"),
    ]
    done = run(clone, "-m", "pytest", "-q", *some)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_are_found_by_name(clone: Path) -> None:
    """The monoid is a flag's value, the store a scheme, the option a part of a URI, the program a command."""
    done = run(clone, "-c", "from murmur_beam.monoids import by_name; print(by_name('span').present((2, 9)))")
    assert done.stdout == "7\n", done.stderr
    done = run(clone, "-c", "from murmur_beam.state import spec_from_uri as s; print(s('json_file:///c.json').path)")
    assert done.stdout.endswith("/c.json\n"), done.stderr
    uri = "bigtable://p/i/t?keepalive_s=30"
    done = run(
        clone, "-c", f"from murmur_beam.state import spec_from_uri as s; print(s({uri!r}).keepalive_s, s({uri!r}))"
    )
    assert done.stdout == f"30 {uri}\n", done.stderr
    done = run(clone, "-m", "murmur_beam.options")
    assert "| `keepalive_s` | `?keepalive_s=N` | 60 |" in done.stdout
    done = run(clone, "-m", "murmur_beam", "--help")
    assert "merge-parquet" in done.stdout
    assert "Fold the rows of Parquet files into state, by the names of their columns." in re.sub(
        r"\s+", " ", done.stdout
    )


def test_the_table_names_folders_that_exist() -> None:
    """And the files in the recipes exist, except for those that a contributor makes."""
    (table,) = re.findall(r"^\| folder \|.*?\n\n", TEXT, re.DOTALL | re.MULTILINE)
    for row in table.strip().splitlines()[2:]:
        first, *others = re.findall(r"`([\w./]+)`", row.split("|")[1])
        parent = (ROOT / first).parent
        assert (ROOT / first).exists(), first
        assert [name for name in others if not (parent / name).is_dir()] == []
    named = set(re.findall(r"`((?:tests|docs|flex|state|\.ci|\.venv/bin/python \.ci)/[\w./]+)`", TEXT))
    for name in named - {"state/SCHEME.py", "state/json_file.py"}:
        place = name.removeprefix(".venv/bin/python ")
        assert (ROOT / place).exists() or (ROOT / "murmur_beam" / place).exists(), name
