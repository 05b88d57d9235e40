"""`benchmarks.aggregates`, run with few events: its figures are there, its bars decide the exit code."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")
pytest.importorskip("datasketches", reason="pip install 'murmur-beam[sketches]'")

from benchmarks import aggregates
from benchmarks.harness import Inexact
from murmur_beam.monoids import Monoid, Sum

pytestmark = pytest.mark.usefixtures("bigtable_host")  # skipped without an emulator


@pytest.mark.parametrize(("share", "code"), [(1_000.0, 0), (-1.0, 1)])
def test_each_store_has_its_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, share: float, code: int
) -> None:
    """For one aggregate and for several, and for one more event of a sketch."""
    monkeypatch.setattr(aggregates, "SHARE", share)
    monkeypatch.setattr(aggregates, "STORES", ("memory", "append"))
    monkeypatch.setattr(aggregates, "SIZES", (1, 2))
    arguments = ["--events=300", "--visitors=500", "--rounds=1", "--json"]
    assert aggregates.main(arguments) == code
    found = json.loads(capsys.readouterr().out)
    assert [(run["store"], run["aggregates"]) for run in found["runs"]] == [
        (store, k) for store in ("memory", "append") for k in (0, 1, 2)
    ]
    assert [bar["holds"] for bar in found["bars"]][:-1] == [code == 0] * 4


def test_a_wrong_number_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums are compared with the events."""
    parts: dict[str, Monoid[int]] = {"f0": Sum().of("f0"), "f1": Sum().of("f2")}
    monkeypatch.setattr(aggregates, "parts", lambda k: parts)
    with pytest.raises(Inexact, match="memory, 2 aggregates: the sums are wrong"):
        aggregates.merge("memory", 2, 100)
