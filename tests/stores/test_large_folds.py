"""Folds of rows that exceed one read: where the read stops must make no difference."""

from __future__ import annotations

from contextlib import closing

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from murmur_beam.model import Key, Update
from murmur_beam.monoids import Sum
from murmur_beam.state.bigtable import folder
from tests.support.emulators import appended_spec


@pytest.mark.parametrize("n_bytes", [1, 300, 8 << 20])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("events_per_commit", [2, 60_000])
def test_where_a_read_stops_makes_no_difference(
    bigtable_host: str, monkeypatch: pytest.MonkeyPatch, n_bytes: int, rows: int, events_per_commit: int
) -> None:
    """Within a row, after a row, and after the last of all; each event counts once, also an event in two cells."""
    monkeypatch.setattr(folder, "_READ_BYTES", n_bytes)
    monkeypatch.setattr(folder, "_EVENTS_PER_COMMIT", events_per_commit)
    spec = appended_spec(bigtable_host)
    keys = [Key(f"row-{n}") for n in range(rows)]
    with closing(spec.open(Sum())) as store:
        for round_ in range(2):
            for flush in range(4):
                # The last event of a flush is the first of the next one.
                ids = [f"{round_}/{n}" for n in range(3 * flush, 3 * flush + 4)]
                store.merge_updates([Update(key, 1, event_id) for key in keys for event_id in ids])
            with closing(spec.open(Sum())) as another:
                folded = another.fold()
            assert (folded.events, folded.duplicates) == (13 * rows, 3 * rows)
            assert (folded.cells, folded.left) == (4 * rows, 0)
            for fresh in (True, False):
                assert store.get_many(keys, fresh=fresh) == [13 * (round_ + 1)] * rows
