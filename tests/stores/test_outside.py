"""Stores and monoids of another package: named as ``package.module:attribute`` wherever a shipped one can be named, and
tested by the contracts that the shipped ones keep. `tests.support.json_file` and `tests.support.mean` are such a
package's modules."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from murmur_beam import state
from murmur_beam.cli import main as cli
from murmur_beam.errors import ConfigurationError
from murmur_beam.merger import Merger
from murmur_beam.metrics import InMemory
from murmur_beam.monoids import Sum
from murmur_beam.options import MergeOptions, from_flags
from murmur_beam.spec import resolve
from murmur_beam.state import StoreSpec, require_lasting, schemes, spec_from_uri
from murmur_beam.state.memory import MemorySpec
from murmur_beam.state.sqlite import SqliteSpec
from tests.support.json_file import JsonFileSpec
from tests.support.plain import PlainSpec

JSON_FILE = "tests.support.json_file:from_uri"
MEAN = "tests.support.mean:MONOID"
HERE = __name__

MADE = SqliteSpec("made.db")
PLAIN = PlainSpec(Sum())
FORGETFUL = MemorySpec("test_outside")
UNHASHABLE: Any = type("Unhashable", (PlainSpec,), {"__hash__": None})(Sum())


class WithFromUri:
    """A class whose ``from_uri`` makes a spec."""

    @staticmethod
    def from_uri(parts: Any) -> StoreSpec:
        return JsonFileSpec(f"{parts.scheme} {parts.netloc} {parts.path} {parts.query}")


def fails(parts: Any) -> StoreSpec:
    raise ValueError("no such bucket")


def complains(parts: Any) -> StoreSpec:
    raise ConfigurationError("whatever", "shards: must be positive")


def makes_nothing(parts: Any) -> None:
    pass


class TestNames:
    @pytest.mark.parametrize(
        ("uri", "spec"),
        [
            (f"{HERE}:MADE", MADE),
            (f"{JSON_FILE}:////data/counts.json", JsonFileSpec("/data/counts.json")),
            (f"{HERE}:WithFromUri://host/a_b?c=1", JsonFileSpec(f"{HERE}:WithFromUri host /a_b c=1")),
            ("SQLITE:////data/counts.db", SqliteSpec("/data/counts.db")),
        ],
    )
    def test_a_name_makes_a_spec(self, uri: str, spec: StoreSpec) -> None:
        """A spec that a module has made, a function or a class that makes one of the parts of the URI."""
        assert spec_from_uri(uri) == spec
        assert resolve(MergeOptions(key="k", monoid="count", event_id="id", store=uri)).store == spec

    @pytest.mark.parametrize(
        ("uri", "problem"),
        [
            ("no_such_module:SPEC", "cannot load store 'no_such_module:SPEC': No module named 'no_such_module'"),
            (f"{HERE}:NO_SUCH", f"cannot load store '{HERE}:NO_SUCH': "),
            (f"{HERE}:fails", f"'{HERE}:fails' is a function, not a store spec; write {HERE}:fails://..., which calls"),
            (f"{HERE}:HERE", f"'{HERE}:HERE' is a str, not a store spec"),
            (
                f"{HERE}:MADE://x",
                f"'{HERE}:MADE' is a SqliteSpec, not a function of a URI; write ",
            ),
            (f"{HERE}:JsonFileSpec", f"'{HERE}:JsonFileSpec' is a class, not a store spec; write "),
            (f"{HERE}:fails://x", f"'{HERE}:fails://x': ValueError: no such bucket"),
            (f"{HERE}:complains://x", "shards: must be positive"),
            (f"{HERE}:makes_nothing://x", f"'{HERE}:makes_nothing' returns a NoneType, not a store spec"),
            (f"{HERE}:fails://[", f"'{HERE}:fails://[' is not a URI: "),
            (f"{HERE}:UNHASHABLE", "unhashable type: 'Unhashable'; workers find their open stores by their specs"),
            ("sqlite:counts.db", "'sqlite:counts.db': a URI has // after sqlite:, as in sqlite:///counts.db or "),
            ("SQLite:counts", "'SQLite:counts': a URI has // after sqlite:, as in sqlite:///counts.db or "),
            (r"C:\counts.db", r"unknown store scheme in 'C:\\counts.db'; use one of "),
            ("localhost:6379", "unknown store scheme in 'localhost:6379'; use one of "),
            ("base://x", "unknown store scheme in 'base://x'; use one of "),
            ("pool://", "unknown store scheme in 'pool://'; use one of "),
            ("adapted://x", "unknown store scheme in 'adapted://x'; use one of "),
        ],
    )
    def test_a_wrong_name_is_refused(self, uri: str, problem: str) -> None:
        """The error names the argument, and says what was found."""
        with pytest.raises(ConfigurationError) as caught:
            spec_from_uri(uri, "cache")
        assert caught.value.argument == "cache"
        assert caught.value.problem.startswith(problem)

    def test_an_unknown_scheme_lists_the_others(self) -> None:
        """Those that exist, and how to name a store of another package."""
        with pytest.raises(ConfigurationError, match=r"use one of .*sqlite://.* or write package\.module:attribute$"):
            spec_from_uri("redis://x")

    def test_a_store_in_memory_is_refused_by_flags(self) -> None:
        """Under any name, since a program that ends would lose what it has acknowledged; a wrong name is left to the
        parser of the store."""
        for name in ("memory://x", "MEMORY://x", f"{HERE}:FORGETFUL"):
            with pytest.raises(ConfigurationError, match=r"--store: .* is lost when the program ends"):
                require_lasting(name, "--store")
        for other in (f"{HERE}:MADE", f"{HERE}:PLAIN", f"{JSON_FILE}:///x.json", "redis://x", FORGETFUL):
            require_lasting(other, "--store")


class TestFiles:
    """A file in the package's folder is a store: the tests add a folder."""

    @pytest.fixture
    def add(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
        """Add a file."""
        monkeypatch.setattr(state, "__path__", [*state.__path__, str(tmp_path)])

        def add(name: str, text: str) -> None:
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, f"murmur_beam.state.{name}", raising=False)

        return add

    def test_a_new_file_is_found_by_its_scheme(self, add: Callable[[str, str], None]) -> None:
        """Also with an underscore, which other schemes have not."""
        add("json_lines", "from tests.support.json_file import from_uri")
        assert spec_from_uri("json_lines:////data/x") == JsonFileSpec("/data/x")
        assert "json_lines" in schemes()

    def test_a_file_is_imported_when_its_scheme_is_used(self, add: Callable[[str, str], None]) -> None:
        """Not before, and a file without ``from_uri`` is a helper."""
        add("helper", "")
        add("broken_one", "raise RuntimeError('imported')")
        assert spec_from_uri("sqlite:////data/x.db") == SqliteSpec("/data/x.db")
        with pytest.raises(RuntimeError, match="imported"):
            spec_from_uri("broken_one://x")

    def test_a_store_names_the_extra_that_it_needs(self, add: Callable[[str, str], None]) -> None:
        """Its own, not another store's; without one, the package that is missing."""
        missing = (
            "try:\n    import no_such_client\nexcept ImportError as err:\n    raise MissingExtra('redis', err) from err"
        )
        add("redis_like", f"from murmur_beam.errors import MissingExtra\n{missing}\ndef from_uri(parts): ...")
        add("plain_import", "import no_such_client\ndef from_uri(parts): ...")
        why = "needs a package that is not installed (No module named 'no_such_client')"
        for name, cure in (("redis_like", "; run: pip install 'murmur-beam[redis]'"), ("plain_import", "")):
            with pytest.raises(ConfigurationError) as caught:
                spec_from_uri(f"{name}://x")
            assert caught.value.problem == f"{name}:// {why}{cure}"
        assert {"redis_like", "plain_import"} <= {*schemes()}

    def test_schemes_are_the_files_that_make_specs(self) -> None:
        """All of them, and no helper."""
        folder = Path(state.__file__).parent
        sources = {path.stem: path.read_text("utf-8") for path in folder.glob("*.py")}
        sources |= {path.parent.name: path.read_text("utf-8") for path in folder.glob("*/__init__.py")}
        assert schemes() == sorted(name for name, source in sources.items() if "\ndef from_uri(" in source)
        assert {"bigtable", "memory", "sqlite"} <= {*schemes()}

    def test_only_the_store_in_use_is_imported(self) -> None:
        """A command on SQLite does not import the clients of another store."""
        program = (
            "import sys; from murmur_beam.state import spec_from_uri; spec_from_uri('sqlite:///x.db'); "
            "print([name for name in sys.modules if 'bigtable' in name])"
        )
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert ran.stdout == "[]\n"


class TestTheWholeWay:
    """From elements to the commands, with a store and a monoid of another package."""

    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        """A JSON file with the means of two pages; "b" has the larger sum, but the smaller mean."""
        uri = f"{JSON_FILE}:///{tmp_path}/means.json"
        flags = {"store": uri, "monoid": MEAN, "key": ["page"], "value": "ms", "event_id": "id", "window": "daily"}
        options = from_flags(_Flags({**flags, "event_time": "at"}))
        spec = pickle.loads(pickle.dumps(resolve(options)))
        spec.check_stores()
        merger: Merger[int] = Merger(spec, _Counter())
        values = [("a", 4, 14), ("a", 5, 14), ("b", 1, 14), ("b", 2, 15), ("b", 0, 15)] + [("b", 2, 16)] * 6
        for i, (page, ms, day) in enumerate(values):
            merger.add({"page": page, "ms": ms, "id": str(i), "at": f"2026-11-{day}T12:00:00Z"}, 0, i)
        assert len([*merger.flush()]) == len(values)
        merger.close()
        return uri

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        capsys.readouterr()
        command, uri, *rest = arguments
        assert cli.main([command, uri, *rest, *(["--monoid", MEAN] if command != "check" else [])]) == 0
        return capsys.readouterr().out

    def test_readers_show_and_rank_means(self, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
        """The mean of all events of the buckets."""
        assert self.run(capsys, "get", uri, "a", "--at", "2026-11-14") == "4.5\n"
        top = [line.split() for line in self.run(capsys, "top", uri).splitlines()]
        assert top == [["entity", "value"], ["a", "4.5", "#" * 30], ["b", str(15 / 9), "#" * 11]]
        listed = [line.split() for line in self.run(capsys, "list", uri).splitlines()]
        assert listed == [["entity", "value", "buckets"], ["a", "4.5", "1"], ["b", str(15 / 9), "3"]]
        last = self.run(capsys, "window", uri, "b", "--last", "2d", "--now", "2026-11-15")
        assert last == "1.0  (buckets 2026-11-14 to 2026-11-15)\n"
        span = self.run(capsys, "range", uri, "a", "--from", "2026-11-14", "--to", "2026-11-15")
        assert [line.split()[:2] for line in span.splitlines()[1:]] == [
            ["2026-11-14", "4.5"],
            ["2026-11-15", "-"],
            ["total", "4.5"],
        ]

    def test_json_has_the_means(self, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
        """As numbers."""
        assert json.loads(self.run(capsys, "get", uri, "a", "--at", "2026-11-14", "--json"))["value"] == 4.5
        top = json.loads(self.run(capsys, "top", uri, "--json", "-n", "1"))
        assert top == [{"entity": "a", "value": 4.5}]
        span = json.loads(self.run(capsys, "range", uri, "b", "--from", "2026-11-14", "--to", "2026-11-15", "--json"))
        assert (span["value"], [bucket["value"] for bucket in span["series"]]) == (1.0, [1.0, 1.0])
        listed = [json.loads(line) for line in self.run(capsys, "list", uri, "--json").splitlines()]
        assert [row["value"] for row in listed] == [4.5, 15 / 9]

    def test_the_other_commands_take_the_name(self, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
        """It needs no table and no fold, and rows can be deleted."""
        assert self.run(capsys, "check", uri) == f"{uri}: needs no table; the first write creates everything\n"
        assert "needs no fold" in self.run(capsys, "fold", uri)
        assert "1 row of 'a' deleted" in self.run(capsys, "delete", uri, "a", "--yes")


class _Flags:
    """Parsed flags: those that are not given are None."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given

    def __getattr__(self, name: str) -> Any:
        return self._given.get(name)


class _Counter(InMemory):
    def count(self, name: str, n: int) -> None:
        """Count nothing."""


def test_the_example_is_a_spec_of_its_own() -> None:
    """It has what `StoreSpec` gives, and its text is its name."""
    spec = JsonFileSpec("/x.json")
    assert (spec.place, spec.lasting) == (spec, True)
    assert spec_from_uri(str(spec)) == spec
