"""docs/design.md follows data through the code: each file and function that it names must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT

PAGE = (ROOT / "docs/design.md").read_text("utf-8")
STEPS = re.findall(r"^\| \d+ \| `([^`]+)` \| (.+?) \|", PAGE, re.MULTILINE)


def definitions(path: Path) -> set[str]:
    """Names of functions and classes of a file, methods as ``Class.method`` and ``method``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{part.name}"
                for part in node.body
                if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
    return found


def test_there_are_three_walks() -> None:
    """An element, an event id and a window take several steps each."""
    assert len(STEPS) > 30


@pytest.mark.parametrize(("file", "functions"), STEPS, ids=[f"{file}-{n}" for n, (file, _) in enumerate(STEPS)])
def test_each_step_exists(file: str, functions: str) -> None:
    """The file defines each function of the step."""
    path = ROOT / "murmur_beam" / file.replace("bt/", "state/bigtable/")
    names = re.findall(r"`([A-Za-z_.]+)", functions)
    assert names
    assert [name for name in names if name not in definitions(path)] == []


def test_the_parts_are_all_modules() -> None:
    """The list of parts names each module and package of the library, and no other."""
    (parts,) = re.findall(r"^```text\nmurmur_beam/\n(.*?)^pipelines/ ", PAGE, re.DOTALL | re.MULTILINE)
    # Names come first in a line; two spaces are between them and what they hold.
    named = {
        name for line in parts.splitlines() for name in re.match(r"  ((?:[\w/.]+ )*[\w/.]+)(?:  |$)", line)[1].split()
    }
    there = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / "murmur_beam").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert named == there - {"__init__.py", "__main__.py"}


def test_files_of_the_worker_exist() -> None:
    """Each file that the page names in the section on the worker is in its package."""
    (section,) = re.findall(r"^## The worker\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`(\w+\.py)`", section))
    assert named
    assert named <= {path.name for path in (ROOT / "murmur_beam/pubsub").iterdir()}
