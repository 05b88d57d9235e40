"""The checker of the house's rules: `.ci/house.py` finds planted faults, and its table of imports has no cycles."""

from __future__ import annotations

from graphlib import TopologicalSorter

import pytest

from tests.support import script

house = script(".ci/house.py")
MAY_IMPORT, full_name, imports_of, violations = house.MAY_IMPORT, house.full_name, house.imports_of, house.violations
SOURCES = house.sources()
MODULES = {full_name(file) for file in SOURCES}


@pytest.mark.parametrize("file", sorted(SOURCES))
def test_imports_point_down(file: str) -> None:
    """Each file imports only what its row allows."""
    assert violations(file, SOURCES[file], MODULES) == []


OPENS = ("murmur_beam.state.bigtable.spec", "murmur_beam.state.bigtable.store")
"""A spec imports its store when it opens one; the store is made of the spec. This is the only arrow back."""


def test_imports_have_no_cycles() -> None:
    """Modules can be sorted so that each comes after all that it imports."""
    graph = {
        full_name(file): {module for module, _ in imports_of(source, file, MODULES)} & MODULES - {full_name(file)}
        for file, source in SOURCES.items()
    }
    graph[OPENS[0]].remove(OPENS[1])
    assert set(TopologicalSorter(graph).static_order()) >= MODULES


def test_the_table_itself_has_no_cycles() -> None:
    """No two rows allow each other, so that "down" is well defined."""
    graph = {row: set(allowed.split()) - {row} for row, allowed in MAY_IMPORT.items()}
    assert list(TopologicalSorter(graph).static_order())


class TestTheChecker:
    """A checker that accepts everything would be useless."""

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
                "only state.bigtable.* pubsub.* programs.* may",
            ),
            ("murmur_beam/state/memory.py", "import grpc.aio", "'state.memory' may not import 'grpc.aio'"),
            ("murmur_beam/monoids/min.py", "from murmur_beam.monoids.sum import Sum", "may not import 'monoids.sum'"),
            ("murmur_beam/monoids/min.py", "from murmur_beam.state.base import Store", "may not import 'state.base'"),
            ("murmur_beam/processor.py", "from murmur_beam.state.memory import MemoryStore", "'state.memory'"),
            ("murmur_beam/processor.py", "from murmur_beam.testing import FakeClock", "'testing'"),
            ("murmur_beam/processor.py", "def f():\n    import apache_beam", ".py:2: 'processor' may not import"),
            (
                "murmur_beam/reader.py",
                "from apache_beam.io import x",
                "only transforms beam_metrics fold_stage quiet_beam",
            ),
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
            ("murmur_beam/newcomer.py", "", "no row in MAY_IMPORT in .ci/house.py speaks of 'newcomer'"),
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
            (
                "murmur_beam/programs/demo.py",
                "import apache_beam as beam\nfrom murmur_beam.transforms import MergeRecords",
            ),
        ],
    )
    def test_it_accepts(self, file: str, source: str) -> None:
        """A new store or monoid is one new file, and needs no new row."""
        assert violations(file, source, MODULES) == []


class TestWords:
    """Unclear English. Underscores stand for spaces here, or the checker would find the phrases in this file too."""

    @pytest.mark.parametrize(
        "source",
        [
            '"""Whoever_reads_it."""',
            "x_=_1__#_so_many_rows",
            'raise_ValueError(f"{name}_is_no_date")',
            '"""Is anything known?"""',
            'def f():\n    """Do it.\n\n    Attributes:\n        done: is nothing left to be done?\n    """',
        ],
    )
    def test_it_finds(self, source: str) -> None:
        """One complaint for each phrase."""
        (found,) = house.unclear_words("murmur_beam/model.py", source.replace("_", " "))
        assert found.startswith("murmur_beam/model.py:")

    def test_names_of_tests_are_read_too(self) -> None:
        """As sentences."""
        assert list(house.unclear_words("tests/test_x.py", "def\ttest_nobody_knows():pass"))
        assert not list(house.unclear_words("murmur_beam/x.py", "def\tnobody_knows():pass"))

    @pytest.mark.parametrize("source", ["x='nobody'", '"""It is not a date. As long as it lasts."""', "for_ever = 1"])
    def test_it_accepts(self, source: str) -> None:
        """Data, and clear words."""
        assert list(house.unclear_words("murmur_beam/model.py", source)) == []


def test_lengths() -> None:
    """A function is counted from its def to its end, a module by its lines."""
    body = "    pass\n" * 60
    assert list(house.long_functions("x.py", f"def f():\n{body}"))
    assert not list(house.long_functions("x.py", f"def f():\n{body[:-9]}"))
    assert list(house.long_module("x.py", "\n" * 501))
    assert not list(house.long_module("tests/x.py", "\n" * 501))
