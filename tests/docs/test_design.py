"""docs/design.md follows data through the code: each file and function that it names must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STEPS = re.findall(r"^\| \d+ \| `([^`]+)` \| (.+?) \|", (ROOT / "docs/design.md").read_text("utf-8"), re.MULTILINE)


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
