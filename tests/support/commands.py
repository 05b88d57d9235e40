"""The ``murmur`` command as the tests run it: in this process, on a file of the test."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from murmur_beam.cli import main as cli
from murmur_beam.monoids import Sum
from murmur_beam.monoids.base import Monoid
from murmur_beam.processor import defaults, merge_many
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.windows import WindowConfig


class Ran(NamedTuple):
    """The result of a run."""

    code: int
    out: str
    err: str


class Command:
    """Runs the command in this process, by default on one table.

    Attributes:
        uri: the table's.
    """

    def __init__(self, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.uri = uri
        self._capsys = capsys

    def __call__(self, command: str, *args: str, uri: str | None = None) -> Ran:
        """Run it in this process."""
        self._capsys.readouterr()
        return Ran(cli.main([command, uri or self.uri, *args]), *self._capsys.readouterr())

    def json(self, command: str, *args: str) -> Any:
        """The output with --json."""
        return json.loads(self(command, *args, "--json").out)


class Murmur(Command):
    """Runs the command on a file of its own; its URI is that of the file's default table."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = folder / "counts.db"
        super().__init__(f"sqlite:///{self.path}", capsys)

    def fill(
        self,
        records: Iterable[tuple[str, datetime, Any]],
        monoid: Monoid[Any] | None = None,
        window: WindowConfig | None = None,
    ) -> None:
        """Merge (entity, time, value) into the file."""
        store = SqliteSpec(str(self.path)).open(monoid or Sum(), window.granularity if window else None)
        for entity, time, value in records:
            merge_many(defaults(), "test", None, time, [entity], value, store, None, window)
        store.close()
