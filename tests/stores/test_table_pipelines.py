"""Tables for the Bigtable store: pipelines merge into them, and none starts on a table that would forget too early."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from google.cloud.bigtable_admin_v2.types import (
    ColumnFamily,
)

from murmur_beam import Count, MergeRecords
from murmur_beam.durations import spell_duration
from murmur_beam.errors import ConfigurationError, StoreUnavailable
from murmur_beam.model import Key
from murmur_beam.monoids import Max, Sum
from murmur_beam.options import MergeOptions
from murmur_beam.spec import resolve
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, tables
from murmur_beam.state.bigtable.meta import APPEND, Meta
from murmur_beam.windows import WindowConfig, daily, hourly, minute
from tests.support.tables import (
    ALL_TIME,
    DAILY,
    DAY,
    HOUR,
    KEPT_90,
    NINETY_DAYS,
    make,
    new_where,
)

pytestmark = pytest.mark.usefixtures("bigtable_host")


def merge_spec(where: BigtableSpec, window: WindowConfig | None, **arguments: Any) -> Any:
    """All arguments of a merge into the table."""
    return resolve(
        MergeOptions(**{"store": where, "key": "k", "event_id": "id", "value": "n", "window": window, **arguments})
    )


class TestPipelines:
    def test_a_table_that_was_made_can_be_merged_into(self) -> None:
        """Each event once."""
        where = new_where()
        tables.create(where, tables.table_meta(Schema("count", DAY), 90 * DAY))
        now = datetime.now(timezone.utc).isoformat()
        events = [{"id": i, "k": k, "at": now} for i, k in (("1", "a"), ("2", "a"), ("2", "a"), ("3", "b"))]
        with beam.Pipeline() as pipeline:
            result = (
                pipeline
                | beam.Create(events)
                | MergeRecords(
                    key="k", event_id="id", event_time="at", monoid=Count(), window=daily(90 * DAY), store=str(where)
                )
            )
            assert_that(result.dead_letter, equal_to([]))
        bucket = daily().bucket_id(datetime.now(timezone.utc))
        with closing(where.open(Count(), DAY)) as store:
            counts = {key.entity: count for key, count in store.scan()}
            assert all(key.bucket in (bucket, bucket - 1) for key, _ in store.scan())
        assert counts == {"a": 2, "b": 1}

    @pytest.mark.parametrize("monoid", [Sum(), Max()], ids=["sum", "max"])
    def test_every_kind_of_value_is_supported(self, monoid: Any) -> None:
        """Sums and states alike."""
        where = new_where()
        tables.create(where, tables.table_meta(Schema(monoid.name, None)))
        with closing(where.open(monoid)) as store:
            store.merge_update(Key("a"), 5, event_id="1")
            store.merge_update(Key("a"), 5, event_id="1")
            assert store.get(Key("a")) == 5

    def test_a_table_for_another_window_is_refused(self) -> None:
        """While the pipeline is built."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        with pytest.raises(ConfigurationError, match="holds values of monoid 'sum' and buckets of 1d"):
            merge_spec(where, hourly()).check_stores()

    @pytest.mark.parametrize(
        ("made_for", "window"),
        [
            pytest.param(NINETY_DAYS, daily(90 * DAY), id="the-same"),
            pytest.param(NINETY_DAYS, daily(30 * DAY), id="shorter"),
            pytest.param(NINETY_DAYS, daily(), id="as-the-table"),
            pytest.param(tables.table_meta(DAILY), daily(90 * DAY), id="table-keeps-all"),
            pytest.param(tables.table_meta(DAILY), daily(), id="both-keep-all"),
            pytest.param(tables.table_meta(DAILY, None, 7 * DAY), daily(), id="forgets-as-it-was-told"),
            pytest.param(tables.table_meta(ALL_TIME, None, 7 * DAY), None, id="all-time-forgets-as-it-was-told"),
        ],
    )
    def test_a_table_that_keeps_long_enough_is_accepted(self, made_for: Meta, window: WindowConfig | None) -> None:
        """As long as the window accepts events."""
        where = new_where()
        tables.create(where, made_for)
        merge_spec(where, window).check_stores()

    @pytest.mark.parametrize(
        ("made_for", "window", "complaint", "flags"),
        [
            pytest.param(
                NINETY_DAYS,
                daily(91 * DAY),
                "keeps its buckets for 91d 1h, but this window needs that for 92d 1h",
                "--window 1d --retention 13w",
                id="longer",
            ),
            pytest.param(
                tables.table_meta(DAILY, None, 7 * DAY),
                daily(30 * DAY),
                "keeps what it knows of events for 7d, but this window needs that for 31d 1h",
                "--window 1d --retention 30d",
                id="events",
            ),
            pytest.param(
                tables.table_meta(Schema("sum", timedelta(minutes=1)), HOUR),
                minute(HOUR + timedelta(milliseconds=1)),
                "keeps its buckets for 2h 1m, but this window needs that for 2h 1m 1ms",
                "--window 1m --retention 3600001ms",
                id="by-a-hair",
            ),
        ],
    )
    def test_a_table_that_forgets_too_early_is_refused(
        self, made_for: Meta, window: WindowConfig, complaint: str, flags: str
    ) -> None:
        """While the pipeline is built, naming both durations and a command that mends the table."""
        where = new_where()
        tables.create(where, made_for)
        with pytest.raises(ConfigurationError) as caught:
            merge_spec(where, window).check_stores()
        assert caught.value.argument == "retention"
        assert complaint in caught.value.problem
        assert caught.value.problem.endswith(f"run: murmur create-table {where} --monoid sum {flags}")
        tables.create(where, tables.table_meta(made_for.schema, window.retention), yes=True)
        merge_spec(where, window).check_stores()

    def test_a_table_that_is_appended_to(self, caplog: pytest.LogCaptureFixture) -> None:
        """A cache is refused, and a warning is logged where nothing is ever collected; the remedy of a retention keeps
        the way of writing."""
        caplog.set_level(logging.WARNING)  # programs that another test has run may have left it higher
        where = new_where()
        tables.create(where, tables.table_meta(DAILY), write=APPEND)
        with pytest.raises(ConfigurationError, match=f"^cache: {where} is written by appending"):
            merge_spec(where, daily(), cache="memory://test_appended").check_stores()
        merge_spec(where, daily()).check_stores()
        assert [record.getMessage() for record in caplog.records] == [
            f"murmur: {where} is written by appending and has no retention; fold it, with fold= or murmur fold {where} "
            "--every DURATION, or pending deltas grow without end"
        ]
        caplog.clear()
        tables.create(where, NINETY_DAYS, yes=True)
        merge_spec(where, daily()).check_stores()
        assert caplog.records == []
        with pytest.raises(ConfigurationError, match=r"--retention 17w --write append$"):
            merge_spec(where, daily(119 * DAY)).check_stores()


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (KEPT_90, "91d 1h"),
        (timedelta(minutes=61, seconds=2, milliseconds=3), "1h 1m 2s 3ms"),
        (7 * DAY, "7d"),
        (timedelta(0), "0s"),
    ],
)
def test_durations_are_written_in_full(duration: timedelta, text: str) -> None:
    """With all their units, and only those."""
    assert spell_duration(duration) == text


def test_nothing_is_left_open() -> None:
    """Neither threads nor sockets, whether it succeeds, or fails in the middle."""
    good, odd = new_where(), new_where()
    tables.create(good, NINETY_DAYS)
    make(odd, agg=ColumnFamily())

    def use() -> None:
        tables.check(good)
        tables.check(odd)
        with pytest.raises(StoreUnavailable):
            tables.create(odd, NINETY_DAYS)
        with pytest.raises(ConfigurationError):
            tables.create(good, tables.table_meta(DAILY, DAY))

    def in_use() -> tuple[int, int]:
        gc.collect()
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    use()  # what is opened once a process
    first = in_use()
    for _ in range(10):
        use()
    deadline = time.monotonic() + 30
    while any(now > before for now, before in zip(in_use(), first, strict=True)):  # sockets close a moment later
        assert time.monotonic() < deadline, (first, in_use())
        time.sleep(0.05)
