"""The soak of the fold stage, for some seconds on Prism: with the stage the bounds hold, without it they are missed."""

from __future__ import annotations

import re

import pytest

from tests.support import emulators
from tests.support.engines import PRISM

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from benchmarks import fold_soak
from benchmarks.soak_pipeline import AGAIN_TICKS, Shape, deliveries, key_of, recount
from murmur_beam.testing.emulators import BIGTABLE

SHORT = [
    "--engine=prism",
    "--minutes=0.1",
    "--rate=400",
    "--interval=0.5",
    "--age=1",
    "--look_every=2",
    "--kill_every=0",
]


def verdicts(printed: str) -> dict[str, str]:
    """The verdict on each figure with a bar."""
    return {
        text.strip(): verdict for text, verdict in re.findall(r"^(\D+?)  .* (holds|MISSED)$", printed, re.MULTILINE)
    }


def test_the_bounds_hold(capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure, and the exit code says so."""
    emulators.require(BIGTABLE)
    emulators.require(PRISM)
    code = fold_soak.main([*SHORT, "--late=10"])
    printed = capsys.readouterr().out
    assert (code, {*verdicts(printed).values()}) == (0, {"holds"}), printed
    assert len(verdicts(printed)) == 5


def test_without_the_stage_they_are_missed(capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers are right, but the hot rows have more pending than they may."""
    emulators.require(BIGTABLE)
    emulators.require(PRISM)
    code = fold_soak.main([*SHORT, "--late=1", "--no_fold"])
    found = verdicts(printed := capsys.readouterr().out)
    assert code == 1, printed
    assert {text for text, verdict in found.items() if verdict == "MISSED"} == {
        "pending of a hot row / its bound, the largest",
        "pending events of a hot row at the end",
    }


def test_the_recount_is_of_what_is_delivered() -> None:
    """Each event at least once, one of ten twice, in the stated shares."""
    shape = Shape(400, 40, 10.0, 0.1, 60.0, 1.0)
    delivered = [event for tick in range(shape.ticks) for event in deliveries(tick, shape)]
    assert {*delivered} == {*range(shape.events)}
    assert len(delivered) == shape.events + (shape.ticks - AGAIN_TICKS) * shape.per_tick / 10
    totals = recount(shape)
    assert totals.total() == shape.events
    shares = dict.fromkeys(("hot", "burst", "once"), 0)
    for event in range(shape.events):
        shares[key_of(event).partition("/")[0]] += 1
    assert shares == {"hot": shape.events * 0.6, "burst": shape.events * 0.35, "once": shape.events * 0.05}
    hot = [n for key, n in totals.items() if key.startswith("hot/")]
    assert len(hot) == 16
    assert max(hot) - min(hot) <= 12
    assert max(n for key, n in totals.items() if key.startswith("burst/")) == 128
