"""Tables on a terminal: no line is wider than the terminal, columns stay aligned, numbers are not cut."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.cli import main as cli
from murmur_beam.cli import output as cli_output
from murmur_beam.cli.output import _cut, _width
from murmur_beam.monoids import by_name
from murmur_beam.windows import daily
from tests.support.commands import Murmur

START = datetime(2026, 11, 21, tzinfo=timezone.utc)
DAY = timedelta(days=1)
LONG = "https://example.org/shop/" + "category/" * 30 + "item?page=3"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A terminal of 80 columns."""
    monkeypatch.setattr(cli_output, "columns", lambda: 80)
    return monkeypatch


def fill(murmur: Murmur) -> None:
    """Keys of many different widths."""
    keys = {LONG: 1_234_567, LONG[:-1] + "4": 7, "short": 42, "東京" * 40: -900_000, "e\u0301" * 90: 5}
    murmur.fill([(key, START, value) for key, value in keys.items()])


def test_a_long_key_is_cut_and_the_table_stays_aligned(murmur: Murmur, terminal: pytest.MonkeyPatch) -> None:
    """In its middle, since keys that begin alike often end differently; bars are shortened first."""
    fill(murmur)
    accented = "e\u0301" * 27
    assert murmur("top").out == (
        "entity                                                         value\n"
        "https://example.org/shop/ca...tegory/category/item?page=3  1,234,567  ##########\n"
        "short                                                             42  #\n"
        "https://example.org/shop/ca...tegory/category/item?page=4          7  #\n"
        f"{accented}...{accented}          5  #\n"
        f"{'東京' * 6}東...京{'東京' * 6}     -900,000  -------\n"
    )


@pytest.mark.parametrize("width", [20, 35, 40, 80, 100, 133, 400])
@pytest.mark.parametrize("command", ["top", "list"])
def test_no_line_is_longer_than_the_terminal(
    murmur: Murmur, monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    """And numbers are complete and aligned."""
    fill(murmur)
    monkeypatch.setattr(cli_output, "columns", lambda: width)
    lines = murmur(command).out.splitlines()
    assert max(map(_width, lines)) <= max(width, 12 + 2 + 9)
    ends = set()
    for number in ("1,234,567", "42", "7", "5", "-900,000"):
        (line,) = [one for one in lines if number in one.rstrip("#- ").split()]
        ends.add(_width(line[: line.rindex(number) + len(number)]))
    assert len(ends) == 1


def test_lines_that_fit_are_not_changed(murmur: Murmur, terminal: pytest.MonkeyPatch) -> None:
    """The same as without a terminal, with bars of full length."""
    murmur.fill([("a", START, 1), ("b" * 34, START, 1_000)])
    on_terminal = murmur("top").out
    assert len(on_terminal.splitlines()[1]) < 80
    terminal.setattr(cli_output, "columns", lambda: None)
    assert murmur("top").out == on_terminal
    assert "#" * 30 in on_terminal


def test_long_texts_share_the_width(murmur: Murmur, terminal: pytest.MonkeyPatch) -> None:
    """A long value is cut as well, instead of the key alone."""
    murmur.fill([("k" * 200, START, f"v{'x' * 56}")], by_name("last"), daily())
    (line,) = murmur("list").out.splitlines()[1:]
    key, value, buckets = line.split("  ")[0], line.split("  ")[1], line.split()[-1]
    assert (len(line), buckets) == (len("entity".ljust(len(key))) + 2 + len(value) + 2 + 7, "1")
    assert abs(len(key) - len(value)) <= 1
    assert "..." in key
    assert "..." in value


def test_output_to_a_file_is_not_cut(murmur: Murmur) -> None:
    """As with ls, psql and kubectl; nor is --json on a terminal."""
    fill(murmur)
    assert LONG in murmur("top").out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_output, "columns", lambda: 80)
        assert LONG in {one["entity"] for one in murmur.json("top")}


def test_a_range_fits(murmur: Murmur, terminal: pytest.MonkeyPatch) -> None:
    """Its bars use the columns that times and values leave."""
    murmur.fill([("a", START + n * DAY, 10 ** (3 * n)) for n in range(18 // 3)], None, daily())
    lines = murmur("range", "a", "--from", "2026-11-21", "--to", "2026-11-26").out.splitlines()
    assert max(map(len, lines)) <= 80
    terminal.setattr(cli_output, "columns", lambda: 50)
    lines = murmur("range", "a", "--from", "2026-11-21", "--to", "2026-11-26").out.splitlines()
    assert max(map(len, lines)) == 50
    assert lines[-2].endswith("#" * (50 - 10 - 2 - 21 - 2))


@given(text=st.text(st.sampled_from("ab東\u0301\u200d é😀"), max_size=60), width=st.integers(5, 40))
def test_a_cut_text_fits_and_keeps_both_ends(text: str, width: int) -> None:
    """Also with characters of two columns, or zero; no combining mark loses its letter."""
    cut = _cut(text, width)
    assert _width(cut) <= width
    if _width(text) <= width:
        assert cut == text
    else:
        left, _, right = cut.partition("...")
        assert text.startswith(left)
        assert text.endswith(right)
        assert _width(cut) >= width - 2
        assert not right or _width(right[0])


def test_the_width_is_that_of_the_terminal(murmur: Murmur) -> None:
    """In a process with a terminal of 60 columns, and in one without a terminal."""
    fill(murmur)
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment = inherited | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "murmur_beam", "list", murmur.uri]
    with subprocess.Popen(command, stdout=its, env=environment) as process:
        os.close(its)
        shown = b""
        with suppress(OSError):  # Linux reports the closed other end this way
            while read := os.read(mine, 65_536):
                shown += read
        os.close(mine)
    assert process.returncode == 0
    lines = shown.decode().splitlines()
    assert len(lines) == 6
    assert max(map(_width, lines)) == 60
    piped = subprocess.run(command, capture_output=True, env=environment | {"COLUMNS": "60"}, check=True)
    assert LONG in piped.stdout.decode()
