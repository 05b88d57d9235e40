"""How ``murmur``'s commands and flags are spelt, and what is said where they are not."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
from commands import Murmur

from murmur_beam import __version__, cli

_TIME = datetime(2026, 11, 21, tzinfo=timezone.utc)


def ended(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int | str | None, str, str]:
    """Exit code, output and errors of a command line that is not run."""
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    return caught.value.code, *capsys.readouterr()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The package's, on stdout."""
    assert ended(capsys, "--version") == (0, f"murmur {__version__}\n", "")


def test_nothing_typed_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """All of it, but as an error: a script whose variable is empty must not go on."""
    code, out, err = ended(capsys)
    assert (code, out) == (2, "")
    assert ended(capsys, "--help") == (0, err, "")


def test_nothing_typed_in_a_process() -> None:
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
    message = f"murmur: error: {typed!r} is no command; did you mean {meant}? (see murmur --help)\n"
    assert ended(capsys, typed, "sqlite:///x.db") == (2, "", message)


@pytest.mark.parametrize("typed", ["xyzzy", "", " ", "42"])
def test_a_command_like_no_other(capsys: pytest.CaptureFixture[str], typed: str) -> None:
    """All there are are named."""
    code, _, err = ended(capsys, typed)
    assert code == 2
    assert err.startswith(f"murmur: error: {typed!r} is no command; there are get, window, range, list, top, ")


@pytest.mark.parametrize(
    ("args", "typed", "meant"),
    [
        (["range", "memory://x", "a"], "--form", "--from"),
        (["list", "memory://x"], "--jsno", "--json"),
        (["get", "memory://x", "a"], "--monid=max", "--monoid"),
        (["create-table", "memory://x"], "--dry-rum", "--dry-run"),
        (["create-table", "memory://x"], "--dedup_retentoin=1d", "--dedup-retention"),
    ],
)
def test_a_mistyped_flag(capsys: pytest.CaptureFixture[str], args: list[str], typed: str, meant: str) -> None:
    """The nearest one of that command is named, before anything else that is missing."""
    code, out, err = ended(capsys, *args, typed)
    assert (code, out) == (2, "")
    assert err.endswith(f" is no flag of murmur {args[0]}; did you mean {meant}? (see murmur {args[0]} --help)\n")


def test_a_flag_before_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told where it belongs."""
    assert ended(capsys, "--json", "list", "memory://x")[2] == (
        "murmur: error: --json is no flag of murmur; write it after the command (see murmur --help)\n"
    )


@pytest.mark.parametrize("dry_run", ["--dry-run", "--dry_run"])
@pytest.mark.parametrize("command", ["create-table", "create_table"])
def test_underscores_are_hyphens(capsys: pytest.CaptureFixture[str], command: str, dry_run: str) -> None:
    """In commands and in flags, with their values behind = or a blank."""
    flags = ["--dedup_retention=1d", "--dedup_retention", "2d", "--monoid=count"]
    assert cli.main([command, "memory://x_y", dry_run, *flags]) == 0
    assert capsys.readouterr().out.startswith("memory://x_y: ")


def test_values_and_keys_keep_their_underscores(murmur: Murmur) -> None:
    """Only names of flags are changed; behind -- nothing is a flag."""
    murmur.fill([("--a_b", _TIME, 1), ("--a-b", _TIME, 2), ("--c_d e", _TIME, 3)])
    assert murmur.json("list", "--prefix=--a_")["entity"] == "--a_b"
    assert murmur("get", "--", "--a_b").out == "1\n"
    assert murmur("get", "--c_d e").out == "3\n"


def test_an_abbreviation_is_no_mistake(murmur: Murmur) -> None:
    """As argparse takes them."""
    murmur.fill([("a", _TIME, 1)])
    assert murmur("list", "--pre", "a", "--js").out == '{"entity": "a", "value": 1, "buckets": 1}\n'
