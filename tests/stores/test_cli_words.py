"""How ``murmur``'s commands and flags are written, and what is printed for misspelt ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from murmur_beam import __version__
from murmur_beam.cli import main as cli
from murmur_beam.model import Key
from murmur_beam.monoids import Sum
from murmur_beam.state.memory import MemorySpec, MemoryStore
from tests.support.commands import Murmur

_TIME = datetime(2026, 11, 21, tzinfo=timezone.utc)


def ended(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int | str | None, str, str]:
    """Exit code, output and errors of a command line that ends in argparse."""
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    return caught.value.code, *capsys.readouterr()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The package's, on stdout."""
    assert ended(capsys, "--version") == (0, f"murmur {__version__}\n", "")


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """All of it, but as an error: a script with an empty variable must not continue."""
    code, out, err = ended(capsys)
    assert (code, out) == (2, "")
    assert ended(capsys, "--help") == (0, err, "")


def test_no_arguments_in_a_process() -> None:
    """The same with the process's own arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "murmur_beam"],
        cwd=Path(cli.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: murmur ")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("topp", "top"), ("lst", "list"), ("ranges", "range"), ("creat-table", "create-table"), ("chekc", "check")],
)
def test_a_mistyped_command(capsys: pytest.CaptureFixture[str], typed: str, meant: str) -> None:
    """The nearest one is named."""
    message = f"murmur: error: {typed!r} is not a command; did you mean {meant}? (see murmur --help)\n"
    assert ended(capsys, typed, "sqlite:///x.db") == (2, "", message)


@pytest.mark.parametrize("typed", ["xyzzy", "", " ", "42"])
def test_an_unknown_command(capsys: pytest.CaptureFixture[str], typed: str) -> None:
    """All commands are named."""
    code, _, err = ended(capsys, typed)
    assert code == 2
    assert err.startswith(f"murmur: error: {typed!r} is not a command; use one of get, window, range, list, top, ")


@pytest.mark.parametrize(
    ("args", "typed", "meant"),
    [
        (["range", "memory://x", "a"], "--form", "--from"),
        (["list", "memory://x"], "--jsno", "--json"),
        (["get", "memory://x", "a"], "--monid=max", "--monoid"),
        (["create-table", "memory://x"], "--dry-rum", "--dry_run"),
        (["create-table", "memory://x"], "--dedup_retentoin=1d", "--dedup_retention"),
    ],
)
def test_a_misspelt_flag(capsys: pytest.CaptureFixture[str], args: list[str], typed: str, meant: str) -> None:
    """The nearest flag of that command is named, before any missing one."""
    code, out, err = ended(capsys, *args, typed)
    assert (code, out) == (2, "")
    assert err.endswith(f" is not a flag of murmur {args[0]}; did you mean {meant}? (see murmur {args[0]} --help)\n")


def test_a_flag_before_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The error says where it belongs."""
    assert ended(capsys, "--json", "list", "memory://x")[2] == (
        "murmur: error: --json is not a flag of murmur; write it after the command (see murmur --help)\n"
    )


@pytest.mark.parametrize("dry_run", ["--dry_run", "--dry-run"])
@pytest.mark.parametrize("command", ["create-table", "create_table"])
def test_hyphens_are_underscores(capsys: pytest.CaptureFixture[str], command: str, dry_run: str) -> None:
    """In commands and in flags, with their values after = or a space."""
    flags = ["--dedup-retention=1d", "--dedup_retention", "2d", "--monoid=count"]
    assert cli.main([command, "memory://x_y", dry_run, *flags]) == 0
    assert capsys.readouterr().out.startswith("memory://x_y: ")


def test_values_and_keys_keep_their_underscores(murmur: Murmur) -> None:
    """Only names of known flags are changed; after -- nothing is a flag."""
    murmur.fill([("--a_b", _TIME, 1), ("--a-b", _TIME, 2), ("--c_d e", _TIME, 3)])
    assert murmur.json("list", "--prefix=--a_")["entity"] == "--a_b"
    assert murmur("get", "--", "--a_b").out == "1\n"
    assert murmur("get", "--c_d e").out == "3\n"


@pytest.mark.parametrize("flag", [None, "--fresh", "--no_fresh", "--no-fresh"])
@pytest.mark.parametrize(
    ("command", "by_default"),
    [
        ("get URI a --at 2026-11-21", True),
        ("get URI a --at 2026-11-21T00:00:00Z", True),
        ("window URI a --last 7d --now 2026-11-21", True),
        ("range URI a --from 2026-11-20 --to 2026-11-21", True),
        ("range URI a --from 2006-11-20 --to 2026-11-21", True),
        ("list URI", False),
        ("top URI", False),
    ],
)
def test_pending_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, by_default: bool, flag: str | None
) -> None:
    """Commands about one key ask for fresh values, those about all keys do not, unless a flag says otherwise."""
    asked: set[bool] = set()
    by_key, by_range = MemoryStore.get_many, MemoryStore.scan

    def get_many(store: MemoryStore[Any], keys: Sequence[Key], *, fresh: bool = True) -> list[Any]:
        asked.add(fresh)
        return by_key(store, keys)

    def scan(store: MemoryStore[Any], *which: Any, fresh: bool = False) -> Iterator[tuple[Key, Any]]:
        asked.add(fresh)
        return by_range(store, *which)

    monkeypatch.setattr(MemoryStore, "get_many", get_many)
    monkeypatch.setattr(MemoryStore, "scan", scan)
    spec = MemorySpec(tmp_path.name)
    spec.open(Sum(), timedelta(hours=1)).merge_update(Key("a", int(_TIME.timestamp()) // 3600), 1)
    words = [str(spec) if word == "URI" else word for word in command.split()]
    assert cli.main([*words, *([flag] if flag else [])]) == 0
    assert asked == {by_default if flag is None else flag == "--fresh"}


def test_an_abbreviation_is_accepted(murmur: Murmur) -> None:
    """As argparse does by default."""
    murmur.fill([("a", _TIME, 1)])
    assert murmur("list", "--pre", "a", "--js").out == '{"entity": "a", "value": 1, "buckets": 1}\n'
