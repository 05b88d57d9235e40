"""Fixtures of the tests of stores: the command ``murmur``, and a server before the emulator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import Murmur

if TYPE_CHECKING:
    from tests.support.tables import Before


@pytest.fixture
def murmur(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Murmur:
    """Runs the command ``murmur`` on a SQLite file of this test."""
    return Murmur(tmp_path, capsys)


@pytest.fixture
def before(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Before]:
    """A server that clients reach instead of the emulator."""
    from tests.support.tables import Before  # takes a second to import

    with closing(Before(bigtable_host)) as server:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", server.host)
        yield server
