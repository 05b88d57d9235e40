"""`benchmarks.layouts`, run with few events: its figures are there, its bars decide the exit code."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from benchmarks import layouts

pytestmark = pytest.mark.usefixtures("bigtable_host")  # skipped without an emulator


@pytest.mark.parametrize(("bar", "code"), [(1_000.0, 0), (0.0, 1)])
def test_both_layouts_have_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bar: float, code: int
) -> None:
    """For each kind of work, and a ratio of each."""
    monkeypatch.setattr(layouts, "BAR", bar)
    assert layouts.main(["--events=400", "--rounds=1", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert [(run["work"], run["layout"]) for run in found["runs"]] == [
        (name, layout) for name in layouts.WORK for layout in (1, 2)
    ]
    assert all(run["events_per_s"] > 0 and run["cpu_us_per_event"] > 0 for run in found["runs"])
    assert [one["holds"] for one in found["bars"]] == [code == 0] * len(layouts.WORK)


@pytest.mark.parametrize("argument", ["--events=0", "--rounds=0"])
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    """It names the option."""
    assert layouts.main([argument]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"layouts: error: {argument.partition('=')[0]}: ")
