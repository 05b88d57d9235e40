"""docs/recipes.md has a recipe for each everyday job, and its example of a test passes. `test_code` runs its code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, environment
from tests.support.pages import blocks_of, headings

PAGE = "docs/recipes.md"
JOBS = {
    "views-per-page-and-hour": "murmur merge-files",
    "views-per-user-and-day": "murmur merge-files",
    "unique-visitors": "--monoid distinct",
    "top-ten-products": "--monoid 'top_k(k=10)'",
    "revenue-in-a-decimal-currency": "--monoid 'sum(places=2)'",
    "average-and-p95-latency": "quantiles:ms",
    "all-of-these-at-once": "--aggregate",
    "hourly-and-daily-at-once": "?table=days",
    "backfill-from-files-then-live-from-pubsub": "murmur worker",
    "correct-a-count": "-12.30",
    "add-an-aggregate-to-a-live-table": "murmur alter-table",
    "test-your-pipeline": "FakeClock",
}
"""The heading of each recipe, and a word of its code."""


def test_each_job_has_a_recipe() -> None:
    """In the order of the list at the top; with code, and what to watch for."""
    text = (ROOT / PAGE).read_text("utf-8")
    assert {*JOBS} <= headings(ROOT / PAGE)
    assert re.findall(r"^- \[.*\]\(#([\w-]+)\)$", text, re.MULTILINE) == [*JOBS]
    recipes = re.split(r"^## ", text, flags=re.MULTILINE)[2:]
    assert len(recipes) == len(JOBS)
    for recipe, word in zip(recipes, JOBS.values(), strict=True):
        assert word in recipe
        assert "```python\n" in recipe or "```sh\n" in recipe
        assert recipe.count("\n**Mind:** ") == 1


def test_the_example_of_a_test_passes(bigtable_host: str, tmp_path: Path) -> None:
    """With pytest, in memory and on the emulator; it fails if the pipeline counts something else."""
    (block,) = [block for block in blocks_of(PAGE) if "def test_in_memory" in block.code]
    code = f"from datetime import datetime, timedelta, timezone\n\n{block.code}"
    (tmp_path / "test_right.py").write_text(code)
    assert "2 passed" in pytest_in(tmp_path, "test_right.py")
    (tmp_path / "test_wrong.py").write_text(code.replace('key="page"', 'key="id"'))
    assert "1 failed" in pytest_in(tmp_path, "test_wrong.py::test_in_memory")


def pytest_in(folder: Path, test: str) -> str:
    """What pytest prints of a test."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("word", ["unique visitors", "top ten", "p95", "revenue", "backfill"])
def test_words_that_are_searched_for(word: str) -> None:
    """They are in the page."""
    assert word in (ROOT / PAGE).read_text("utf-8").lower()
