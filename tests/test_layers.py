"""Imports point down, as drawn in the design's "Layout"; type-only imports count too.

`MAY_IMPORT` is the whole rule. An import that it does not list is a mistake until somebody adds it here, with the
drawing in mind.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# A row: module (below murmur_beam, or in pipelines) -> modules it may import, from the bottom up. "x.*" are the modules
# in package x, unless a row of their own says otherwise; "x" is the package's own __init__.
BASICS = "errors forks model clock durations imported windows metrics monoids.base state.base"
CORE = f"{BASICS} retry processor"
LIBRARY = f"{CORE} dedicated coalescer decode fields times extract deadletter spec monoids monoids.* state state.*"

MAY_IMPORT = {
    "errors": "",
    "clock": "",
    "dedicated": "",
    "forks": "",
    "imported": "errors",
    "durations": "",
    "model": "errors",
    # Monoids know nothing but the contract. Those that share code say so in a row.
    "monoids.base": "errors model",
    "monoids.*": "errors model monoids.base",
    "monoids.count": "errors model monoids.base monoids.sum",
    "monoids.min": "errors model monoids.base monoids.extremum",
    "monoids.max": "errors model monoids.base monoids.extremum",
    "monoids.timed": "errors model monoids.base monoids.extremum",
    "monoids.first": "errors model monoids.base monoids.timed",
    "monoids.last": "errors model monoids.base monoids.timed",
    "monoids": "errors imported monoids.*",
    # Stores know the contract, and never each other.
    "state.base": "errors model durations monoids.base",
    "state.*": "errors forks model clock durations monoids.base state.base",
    "state.sqlite": "errors durations state.sqlite.*",
    "state.sqlite.*": "errors forks model clock durations monoids.base state.base state.sqlite.*",
    "state.bigtable": "errors state.bigtable.*",
    "state.bigtable.*": "errors model clock durations monoids.base state.base retry windows state.bigtable.*",
    "state": "errors model state.base",
    # The core runs without Beam.
    "retry": "errors clock",
    "windows": "errors model durations",
    "metrics": "errors forks model",
    "processor": f"{BASICS} retry",
    "coalescer": CORE,
    # From an element to a record.
    "decode": "errors",
    "fields": "errors model decode",
    "times": "errors model",
    "extract": f"{CORE} decode fields times",
    "deadletter": f"{CORE} decode extract times",
    "spec": f"{CORE} coalescer decode extract fields times monoids state state.one_meaning",
    "merger": LIBRARY,
    # What users hold in their hands.
    "transforms": f"{LIBRARY} merger",
    "reader": LIBRARY,
    "cli": f"{LIBRARY} reader __init__ cli_arguments cli_delete cli_fold cli_output cli_tables",
    "cli_arguments": LIBRARY,
    "cli_delete": f"{LIBRARY} reader",
    "cli_fold": f"{LIBRARY} reader cli_output state.bigtable.*",
    "cli_output": LIBRARY,
    "cli_tables": f"{LIBRARY} __init__ state.bigtable.*",
    "__main__": "cli",
    "__init__": f"{LIBRARY} reader transforms",
    "pipelines": "",
    "pipelines.*": f"{LIBRARY} merger reader transforms pipelines.*",
    "pipelines.end_to_end": f"{LIBRARY} state.bigtable.* reader pipelines.* testing.emulators",
    # Test helpers: nobody above imports them.
    "testing": "testing.*",
    "testing.*": f"{LIBRARY} testing.*",
}

# Another library -> the modules that may import it.
FOREIGN = {
    "apache_beam": "transforms pipelines.*",
    "google": "state.bigtable.* pipelines.*",
    "grpc": "state.bigtable.* pipelines.*",
}


class Import(NamedTuple):
    """One import: of which module, and in which line."""

    module: str
    line: int


def imports_of(source: str, file: str, modules: Collection[str]) -> Iterator[Import]:
    """Full names of the modules that a file imports, wherever in the file, resolving relative imports.

    Args:
        source: text of the file.
        file: its path from the root, such as ``murmur_beam/state/sqlite.py``.
        modules: full names of all modules of ours, to tell ``from package import module`` from other names.
    """
    package = file.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield Import(inner if inner in modules else origin, node.lineno)


def full_name(file: str) -> str:
    """``murmur_beam/state/__init__.py`` is the module ``murmur_beam.state``."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def short_name(module: str) -> str:
    """The name that the table uses for a module of ours."""
    return "__init__" if module == "murmur_beam" else module.removeprefix("murmur_beam.")


def row_for(short: str, rows: Collection[str]) -> str | None:
    """The row that speaks of a module: its own, or else its package's."""
    package, dot, _ = short.rpartition(".")
    return next((row for row in (short, f"{package}.*") if row in rows and (dot or row == short)), None)


def violations(file: str, source: str, modules: Collection[str]) -> list[str]:
    """What a file imports and may not, one line each."""
    short = short_name(full_name(file))
    row = row_for(short, MAY_IMPORT)
    if row is None:
        return [
            f"{file}: no row in MAY_IMPORT of tests/test_layers.py speaks of {short!r}. Find its place in the design's "
            "Layout (what does it need, who needs it?), add a row there, and its name to the rows of those who need it."
        ]
    allowed = MAY_IMPORT[row].split()
    found = []
    for module, line in imports_of(source, file, modules):
        top = module.partition(".")[0]
        if top in ("murmur_beam", "pipelines"):
            target = short_name(module)
            if target != short and target not in allowed and row_for(target, allowed) is None:
                only = " ".join(allowed) or "nothing of ours"
                found.append(f"{file}:{line}: {short!r} may not import {target!r}; it may import {only}")
        elif top in FOREIGN and row_for(short, FOREIGN[top].split()) is None:
            found.append(f"{file}:{line}: {short!r} may not import {module!r}; only {FOREIGN[top]} may")
    return found


def sources() -> dict[str, str]:
    """Text of every file that the rule is about, by path from the root."""
    files = [path for top in ("murmur_beam", "pipelines") for path in sorted((ROOT / top).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in files}


SOURCES = sources()
MODULES = {full_name(file) for file in SOURCES}


@pytest.mark.parametrize("file", sorted(SOURCES))
def test_imports_point_down(file: str) -> None:
    """Each file imports only what its row allows."""
    assert violations(file, SOURCES[file], MODULES) == []


def test_no_imports_go_round_in_circles() -> None:
    """Modules can be sorted so that each comes after all that it imports."""
    graph = {
        full_name(file): {module for module, _ in imports_of(source, file, MODULES)} & MODULES - {full_name(file)}
        for file, source in SOURCES.items()
    }
    assert set(TopologicalSorter(graph).static_order()) >= MODULES


def test_the_table_itself_has_no_circles() -> None:
    """No two rows allow each other, so that "down" means something."""
    graph = {row: set(allowed.split()) - {row} for row, allowed in MAY_IMPORT.items()}
    assert list(TopologicalSorter(graph).static_order())


class TestTheChecker:
    """It would be of no use if it let everything pass."""

    @pytest.mark.parametrize(
        ("file", "source", "complaint"),
        [
            ("murmur_beam/model.py", "from murmur_beam.processor import Config", "'model' may not import 'processor'"),
            ("murmur_beam/model.py", "import murmur_beam.windows", "'model' may not import 'windows'"),
            ("murmur_beam/model.py", "import os, murmur_beam.windows as w", "'model' may not import 'windows'"),
            ("murmur_beam/model.py", "from murmur_beam import windows", "'model' may not import 'windows'"),
            ("murmur_beam/model.py", "from . import windows", "'model' may not import 'windows'"),
            ("murmur_beam/model.py", "from .windows import daily", "'model' may not import 'windows'"),
            ("murmur_beam/model.py", "from murmur_beam import __version__", "'model' may not import '__init__'"),
            ("murmur_beam/state/sqlite.py", "from .memory import MemoryStore", "may not import 'state.memory'"),
            ("murmur_beam/state/sqlite.py", "from . import memory", "may not import 'state.memory'"),
            ("murmur_beam/state/sqlite.py", "from .. import retry", "may not import 'retry'"),
            ("murmur_beam/state/sqlite.py", "from ..retry import ceiling_s", "may not import 'retry'"),
            ("murmur_beam/state/sqlite.py", "from murmur_beam.state import memory", "may not import 'state.memory'"),
            ("murmur_beam/state/sqlite.py", "from murmur_beam.monoids.sum import Sum", "may not import 'monoids.sum'"),
            (
                "murmur_beam/state/memory.py",
                "from google.cloud import bigtable",
                "only state.bigtable.* pipelines.* may",
            ),
            ("murmur_beam/state/memory.py", "import grpc.aio", "'state.memory' may not import 'grpc.aio'"),
            ("murmur_beam/monoids/min.py", "from murmur_beam.monoids.sum import Sum", "may not import 'monoids.sum'"),
            ("murmur_beam/monoids/min.py", "from murmur_beam.state.base import Store", "may not import 'state.base'"),
            ("murmur_beam/processor.py", "from murmur_beam.state.memory import MemoryStore", "'state.memory'"),
            ("murmur_beam/processor.py", "from murmur_beam.testing import FakeClock", "'testing'"),
            ("murmur_beam/processor.py", "def f():\n    import apache_beam", ".py:2: 'processor' may not import"),
            ("murmur_beam/reader.py", "from apache_beam.io import x", "only transforms pipelines.* may"),
            (
                "pipelines/demo.py",
                "from murmur_beam.testing import FakeClock",
                "'pipelines.demo' may not import 'testing'",
            ),
            ("murmur_beam/transforms.py", "from pipelines import demo", "may not import 'pipelines.demo'"),
            (
                "murmur_beam/retry.py",
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from murmur_beam.model import Key",
                "murmur_beam/retry.py:3: 'retry' may not import 'model'; it may import errors clock",
            ),
            ("murmur_beam/newcomer.py", "", "no row in MAY_IMPORT of tests/test_layers.py speaks of 'newcomer'"),
            ("murmur_beam/sinks/kafka.py", "", "no row in MAY_IMPORT"),
        ],
    )
    def test_it_catches(self, file: str, source: str, complaint: str) -> None:
        """One complaint, with the place and the rule."""
        (found,) = violations(file, source, MODULES | {"pipelines.demo"})
        assert complaint in found

    @pytest.mark.parametrize(
        ("file", "source"),
        [
            ("murmur_beam/model.py", "import json\nfrom .errors import InvalidRecord"),
            ("murmur_beam/state/redis.py", "from .base import Store\nfrom murmur_beam.model import Key\nimport redis"),
            ("murmur_beam/state/bigtable/store.py", "import grpc\nfrom google.cloud import bigtable"),
            ("murmur_beam/monoids/hll.py", "import datasketches\nfrom murmur_beam.monoids.base import Monoid"),
            ("murmur_beam/monoids/count.py", "from murmur_beam.monoids.sum import Sum"),
            ("murmur_beam/state/__init__.py", "from .base import Store\nfrom murmur_beam.model import Key"),
            ("pipelines/demo.py", "import apache_beam as beam\nfrom murmur_beam.transforms import MergeRecords"),
        ],
    )
    def test_it_lets_pass(self, file: str, source: str) -> None:
        """A new store or monoid is one new file, and needs no new row."""
        assert violations(file, source, MODULES) == []
