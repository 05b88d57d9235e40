"""The package's own names: all in `help`, light to import, and clear about what is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import murmur_beam
from murmur_beam import errors
from tests.support import environment

CATCHABLE = [
    name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, errors.MurmurError)
]

BLOCK_GOOGLE = """\
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("google.cloud."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def python(code: str) -> str:
    """What a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestNames:
    """`murmur_beam.__all__`."""

    def test_each_exists_and_is_listed_by_dir(self) -> None:
        """Also those that are imported on first use."""
        assert sorted(murmur_beam.__all__) == murmur_beam.__all__
        assert set(murmur_beam.__all__) <= set(dir(murmur_beam))
        assert [name for name in murmur_beam.__all__ if getattr(murmur_beam, name) is None] == []

    def test_they_are_what_a_user_derives_from_opens_and_catches(self) -> None:
        """The contracts, the specs of stores, and every error of the library."""
        wanted = {"Monoid", "Store", "StoreSpec", "BigtableSpec", "MemorySpec", "SqliteSpec", "Recorder", "InMemory"}
        assert wanted | set(CATCHABLE) <= set(murmur_beam.__all__)
        assert "ConfigurationError" in CATCHABLE

    def test_another_name_is_an_error_of_the_attribute(self) -> None:
        """As for any module."""
        with pytest.raises(AttributeError, match="module 'murmur_beam' has no attribute 'MergeRecord'"):
            _ = murmur_beam.MergeRecord

    def test_star_imports_all(self) -> None:
        """``from murmur_beam import *`` brings the names that are imported on first use, too."""
        found: dict[str, object] = {}
        exec("from murmur_beam import *", found)
        assert set(murmur_beam.__all__) <= found.keys()


class TestImporting:
    """``import murmur_beam``, in a new process."""

    def test_it_loads_neither_beam_nor_a_client_of_google_nor_a_store(self) -> None:
        """A driver without Beam starts fast; the rest is loaded on first use."""
        loaded = json.loads(python("import murmur_beam, json, sys; print(json.dumps([*sys.modules]))"))
        heavy = {"apache_beam", "google", "grpc", "pandas", "numpy", "pytest", "sqlite3"}
        assert {name.partition(".")[0] for name in loaded} & heavy == set()
        stores = {f"murmur_beam.state.{name}" for name in ("bigtable", "memory", "sqlite")}
        assert stores & {*loaded} == set()

    def test_without_google_s_clients(self) -> None:
        """Everything but Bigtable works; that is not listed, and the error names what to install."""
        code = f"""{BLOCK_GOOGLE}
import murmur_beam
print("BigtableSpec" in dir(murmur_beam), "SqliteSpec" in dir(murmur_beam))
murmur_beam.SqliteSpec("x.db")
try:
    from murmur_beam import BigtableSpec
except ImportError as err:
    print(err)
"""
        listed, error = python(code).splitlines()
        assert listed == "False True"
        assert "No module named 'google.cloud." in error
        assert error.endswith("run: pip install 'murmur-beam[gcp]'")


class TestHelp:
    """``help(murmur_beam)``."""

    def test_it_shows_every_name_with_its_text(self) -> None:
        """Classes and functions with their docstrings, first of all the transform."""
        text = python("import pydoc, murmur_beam; print(pydoc.plain(pydoc.render_doc(murmur_beam)))")
        for name in murmur_beam.__all__:
            assert f"class {name}(" in text or f"class {name}\n" in text or f"\n    {name}(" in text, name
            (first, *_) = (getattr(murmur_beam, name).__doc__ or "").splitlines()
            assert first in text, name
        assert "Fold each element into keyed aggregates" in text

    def test_it_works_without_google_s_clients(self) -> None:
        """The transform is shown, and Bigtable is not."""
        code = f"{BLOCK_GOOGLE}import pydoc, murmur_beam; print(pydoc.plain(pydoc.render_doc(murmur_beam)))"
        text = python(code)
        assert "class MergeRecords(" in text
        assert "class BigtableSpec" not in text
