"""Which rows ``murmur fold --share --age`` folds, and what it reads of the others."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import timedelta

import pytest

from murmur_beam.cli import main as cli
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Count
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, tables
from murmur_beam.state.bigtable.due_rows import DueRows
from tests.support import emulators
from tests.support.appended import AppendedSpec
from tests.support.fault_proxy import FaultProxy

HOUR_US = 3_600_000_000
NOW_US = 1_800_000_000_000_000
ROW = b"row"


def due_rows(share: float = 0.1) -> DueRows:
    """With an age of an hour."""
    return DueRows(share, timedelta(hours=1), lambda: NOW_US / 1e6)


class TestDecisions:
    def test_a_share_of_the_markers(self) -> None:
        """A tenth of them, and a row without markers at once."""
        assert due_rows().is_due(ROW, 0, 1, 1, NOW_US)
        assert due_rows().is_due(ROW, 100, 5, 10, NOW_US)
        assert not due_rows().is_due(ROW, 100, 5, 9, NOW_US)

    @pytest.mark.parametrize(("age_us", "is_due"), [(HOUR_US, True), (HOUR_US - 1_000_000, False)])
    def test_old_events(self, age_us: int, is_due: bool) -> None:
        """However few they are."""
        rows = due_rows()
        assert rows.is_due(ROW, 1_000, 1, 1, NOW_US - age_us) is is_due
        assert rows.may_be_due(ROW, 1, NOW_US - age_us, None) is is_due

    def test_many_cells(self) -> None:
        """They make every fresh read slow."""
        rows = due_rows()
        assert rows.is_due(ROW, 10**6, 256, 256, NOW_US)
        assert not rows.is_due(ROW, 10**6, 255, 255, NOW_US)
        assert rows.may_be_due(ROW, 256, NOW_US, None)

    def test_a_row_that_expires_first(self) -> None:
        """Garbage collection takes it."""
        assert not due_rows().may_be_due(ROW, 256, 0, NOW_US + HOUR_US)
        assert due_rows().may_be_due(ROW, 1, NOW_US, NOW_US + HOUR_US + 1_000_000)

    def test_what_was_seen_is_not_read_again(self) -> None:
        """Until there are cells enough, by the events in each of those that were read."""
        rows = due_rows()
        assert rows.may_be_due(ROW, 1, NOW_US, None), "nothing is known of it"
        assert not rows.is_due(ROW, 1_000, 2, 20, NOW_US)
        assert not rows.may_be_due(ROW, 9, NOW_US, None)
        assert rows.may_be_due(ROW, 10, NOW_US, None)
        assert rows.is_due(ROW, 1_000, 10, 100, NOW_US)
        assert not rows.may_be_due(ROW, 10, NOW_US, None), "a tenth of 1,100 is more"

    def test_it_remembers_a_limited_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The rows that were read longest ago are read again."""
        monkeypatch.setattr("murmur_beam.state.bigtable.due_rows._MOST_ROWS", 2)
        rows = due_rows()
        for row in (b"a", b"b", b"a", b"c"):
            rows.is_due(row, 1_000, 1, 1, NOW_US)
        assert [rows.may_be_due(row, 1, NOW_US, None) for row in (b"a", b"b", b"c")] == [False, True, False]


def append(spec: BigtableSpec, first: int, last: int) -> None:
    """Append events of one key, in one cell."""
    with closing(spec.open(Count())) as store:
        store.merge_updates([Update(Key("k"), 1, str(i)) for i in range(first, last)])


@pytest.fixture
def table(bigtable_host: str) -> BigtableSpec:
    """A table with a row of 1,000 folded events."""
    spec = emulators.new_spec(bigtable_host)
    AppendedSpec(*spec.place[1:]).open(Count()).close()
    append(spec, 0, 1_000)
    assert cli.main(["fold", str(spec)]) == 0
    return spec


def folded(spec: BigtableSpec) -> int | None:
    """The number of folded events."""
    with closing(spec.open(Count())) as store:
        return store.get(Key("k"), fresh=False)


def test_the_command(table: BigtableSpec, capsys: pytest.CaptureFixture[str]) -> None:
    """Few events wait, and a tenth is folded; all without --share."""
    append(table, 1_000, 1_050)
    assert cli.main(["fold", str(table), "--share", "0.1"]) == 0
    assert folded(table) == 1_000
    append(table, 1_050, 1_100)
    assert cli.main(["fold", str(table), "--age", "1h"]) == 0
    assert folded(table) == 1_100
    append(table, 1_100, 1_101)
    assert cli.main(["fold", str(table), "--share", "0.1", "--age", "1ms"]) == 0
    assert folded(table) == 1_101
    append(table, 1_101, 1_102)
    assert cli.main(["fold", str(table)]) == 0
    assert folded(table) == 1_102
    capsys.readouterr()
    assert cli.main(["fold", str(table), "--share", "1.5"]) == 2
    assert "--share: must be a number from 0 to 1, got 1.5" in capsys.readouterr().err


def test_rounds_read_only_names(table: BigtableSpec, proxy: FaultProxy) -> None:
    """A row that is not due is read once; each later round only lists it."""
    with closing(table.open(Count())) as store:
        store.merge_updates([Update(Key("k"), 1, f"more{i}") for i in range(10)])
        due = DueRows(0.1, timedelta(hours=1), time.time)
        reads = []
        for _ in range(3):
            before = proxy.counts["ReadRows"].requests
            assert store.fold(due=due).events == 0
            reads.append(proxy.counts["ReadRows"].requests - before)
        assert reads[0] > 1
        assert reads[1:] == [1, 1]


@pytest.mark.parametrize(("age", "events"), [(timedelta(hours=5), 0), (timedelta(hours=1), 10)])
def test_a_row_that_expires_is_left(bigtable_host: str, age: timedelta, events: int) -> None:
    """If it expires before its events are old."""
    spec = emulators.new_spec(bigtable_host)
    hour = timedelta(hours=1)
    tables.create(spec, tables.table_meta(Schema("count", hour), 2 * hour), write="append", yes=True)
    bucket = int(time.time() // 3_600)
    with closing(spec.open(Count(), hour)) as store:
        store.merge_updates([Update(Key("k", bucket), 1, str(i), 2 * hour) for i in range(10)])
        assert store.fold(due=DueRows(0.0, age, time.time)).events == events
