"""`benchmarks.append_writers`, run with few processes: each line has its figures, the bars decide the exit code."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from benchmarks import append_crowd, append_writers, harness
from benchmarks.append_crowd import Answer, Answers, Flush, Fold, Work, Written

pytestmark = pytest.mark.usefixtures("bigtable_host")  # skipped without an emulator

SMALL = "--small", "--rounds=1"


@pytest.fixture(autouse=True)
def _one_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_writers, "on_bigtable", nullcontext)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and output."""
    return append_writers.main([*SMALL, *arguments]), *capsys.readouterr()


def test_each_line_has_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """Rates and slowest flushes of all runs; ratios, and what the reader of the large row has seen."""
    code, out, _ = run(capsys, "--json")
    found = json.loads(out)
    runs = found["runs"]
    ratios = {name for name in runs if "2 process" in name and "fold" not in name}
    assert len(ratios) == len({name for name in runs if "1 process" in name}) == 4
    for figures in (figures for some in runs.values() for figures in some):
        assert figures["rate"] > 0
        assert figures["slowest_s"] > 0
        assert figures["cpu_s"] > 0
    bars = {bar["text"]: bar for bar in found["bars"]}
    assert {f"{name} / 1" for name in ratios} <= bars.keys()
    by_bar = {bar["bar"]: bar["value"] for bar in found["bars"] if bar["bar"] is not None}
    assert [*by_bar] == [0.8, 5.0, 30.0, 3.0]
    assert 0 < by_bar[5.0] <= by_bar[30.0]
    assert 0 < by_bar[3.0] < append_writers.SMALL.reading_s
    assert code == int(any(bar["holds"] is False for bar in found["bars"]))


@pytest.mark.parametrize(("bar", "code", "verdict"), [(0.0, 0, "holds"), (1e9, 1, "MISSED")])
def test_a_missed_bar_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bar: float, code: int, verdict: str
) -> None:
    """The table says so, in aligned columns; only the requested runs are in it."""
    monkeypatch.setattr(append_writers, "BARS", {(append_crowd.ONE, 2): bar})
    got, out, _ = run(capsys, "--only", append_crowd.ONE)
    assert got == code
    assert re.search(rf"^one row, an event a flush: 2 processes / 1 +\d+\.\d\d .* +{verdict}$", out, re.MULTILINE)
    assert re.search(r"^one row, an event a flush: 1 process +[0-9,]+ +\d+\.\d +\d\.\d\d s$", out, re.MULTILINE)
    assert "rows:" not in out


@pytest.mark.parametrize("keys", [append_crowd.ROWS, append_crowd.ZIPF])
def test_a_wrong_count_has_no_figure(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    """Each row is compared with what all writers wrote to it."""
    together = append_crowd._together

    def lost(*args: Any) -> list[Any]:
        one, *others = together(*args)
        one.counts[min(one.counts)] += 1
        return [one, *others]

    monkeypatch.setattr(append_crowd, "_together", lost)
    with pytest.raises(harness.Inexact, match=r"(row-0|page-\d+) is \d+, and should be \d+"):
        append_crowd.write_rows(2, Work(keys, 20, 0.05))


def test_a_folder_folds_beside_the_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It folds what they append; rows are compared afterwards as without it."""
    together = append_crowd._together
    folds: list[Fold] = []

    def seen(*args: Any) -> list[Any]:
        results = together(*args)
        folds.extend(results[-1])
        return results

    monkeypatch.setattr(append_crowd, "_together", seen)
    append_crowd.write_rows(2, Work(append_crowd.ROWS, 50, 0.4), fold_every_s=0.15)
    assert len(folds) == 3
    assert all(fold.events for fold in folds[1:])


# ---- figures ----


def test_the_rate_is_that_of_the_time_in_which_all_write() -> None:
    """A flush counts by its part in it; the slowest one may be outside."""
    flushes = [Flush(0.0, 2.0), Flush(2.0, 4.0)], [Flush(1.0, 2.0), Flush(2.0, 3.0), Flush(3.0, 6.0)]
    written = [Written(some, Counter(), 1.0) for some in flushes]
    made = append_crowd.crowd(written, Work("rows", 30, 4.0))
    assert made == append_crowd.Crowd(
        pytest.approx(30 * (0.5 + 1 + 1 + 1 + 1 / 3) / 3), 3.0, pytest.approx(2.0 / (5 * 30))
    )
    skipped = append_crowd.crowd(written, Work("rows", 30, 4.0, skip_s=2.0))
    assert skipped.rate == pytest.approx(30 * (0.5 + 1 / 3) / 1)


FLUSHES = [Flush(float(n), n + 0.5) for n in range(10)]
FOLDS = [Fold(5, -1.0, -0.5), Fold(20, 2.9, 3.2), Fold(30, 5.9, 6.2)]
"""A row of 100, whose first fold has brought in 5 of the 10 events from before the flushes of 10."""


def large_row(*fresh: Answer, folded: tuple[Answer, ...] = (Answer(105, 0.0, 0.1),)) -> append_crowd.LargeRow:
    """The figures of these answers."""
    return append_crowd.large_row(Answers([*fresh], [*folded]), FLUSHES, FOLDS, 100, 110, 10)


def test_the_age_of_an_answer_is_since_the_row_was_worth_more() -> None:
    """An answer has no age while nothing more is recorded."""
    made = large_row(
        Answer(110, 0.0, 0.004),
        Answer(140, 3.0, 3.002),
        folded=(Answer(105, 0.0, 0.1), Answer(125, 3.2, 4.0), Answer(155, 6.0, 6.1)),
    )
    assert made.took_ms == pytest.approx([2.0, 4.0])
    # Of 105 or 125, the flushes from the first or second on are missing; of 155, those from the fifth on.
    assert made.ages_s == pytest.approx([0.0, 6.1 - 4.5, 4.0 - 1.5])
    assert (made.rate, made.torn) == (pytest.approx(100 / 9.5), 0.0)


def test_an_answer_that_lacks_what_was_not_folded_is_torn() -> None:
    """The emulator makes such answers."""
    assert large_row(Answer(110, 0.0, 0.1), Answer(125, 3.3, 3.4)).torn == 0.5


@pytest.mark.parametrize(
    ("value", "fresh"),
    [(124, True), (160, True), (124, False), (126, False)],
    ids=["less than folded", "more than sent", "less than folded before", "more than folded until then"],
)
def test_a_wrong_answer_has_no_figure(value: int, fresh: bool) -> None:
    """Events that were folded are missing, or there are events that were never sent."""
    answer = Answer(value, 3.3, 3.4)
    right = Answer(125, 3.3, 3.4)
    large_row(right, folded=(right,))
    with pytest.raises(harness.Inexact, match=rf"the row is {value}, and should be "):
        large_row(answer if fresh else right, folded=(right if fresh else answer,))


# ---- mistakes ----


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the option."""
    code, out, err = run(capsys, "--rounds=0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("append_writers: error: --rounds: ")
