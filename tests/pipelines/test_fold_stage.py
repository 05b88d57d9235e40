"""The fold stage behind `MergeRecords`, on real engines and the Bigtable emulator: every number equals the recount, and
busy rows do not stay pending."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.prism_runner import PrismRunner
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.utils.timestamp import Timestamp

from murmur_beam import FlushLimits, MergeRecords
from murmur_beam.monoids import Count, Sum
from murmur_beam.reader import Reader
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, tables
from tests.support import emulators
from tests.support.appended import AppendedSpec
from tests.support.engines import PRISM

HOUR = timedelta(hours=1)


@pytest.fixture
def table(bigtable_host: str) -> BigtableSpec:
    """A new table that is appended to."""
    spec = emulators.new_spec(bigtable_host)
    AppendedSpec(*spec.place[1:]).open(Count()).close()
    return spec


def events(n: int, busy: int, seed: int = 1) -> list[dict[str, str]]:
    """Events of some busy keys, each twice and in random order, among keys of one event."""
    chance = random.Random(seed)
    some = [{"id": str(i), "k": f"busy{chance.randrange(busy)}"} for i in range(n)]
    some += [{"id": f"once{i}", "k": f"once{i}"} for i in range(n // 10)]
    both = some * 2
    chance.shuffle(both)
    return both


def recount(some: list[dict[str, str]]) -> Counter[str]:
    """Number of different events of each key."""
    return Counter(key for key, _ in {(event["k"], event["id"]) for event in some})


def totals(table: BigtableSpec, *, fresh: bool) -> Counter[str]:
    """What a reader finds, with pending events or as of the last fold."""
    with Reader.open(table) as reader:
        return Counter({entity: total for entity, total, _ in reader.list(fresh=fresh) if total})


def merge(table: BigtableSpec, **more: Any) -> MergeRecords:
    """The transform of these tests."""
    return MergeRecords("test", key="k", event_id="id", monoid="count", store=table, **more)


def counters(result: Any) -> Counter[str]:
    """Beam's counters."""
    found = result.metrics().query(MetricsFilter())["counters"]
    return Counter({each.key.metric.name: each.result or 0 for each in found})


def check(table: BigtableSpec, some: list[dict[str, str]], found: Counter[str]) -> None:
    """Every number is right, the busy rows are folded to the last event, and the others are left alone."""
    right = recount(some)
    assert totals(table, fresh=True) == right
    folded = totals(table, fresh=False)
    assert {key: n for key, n in folded.items() if key.startswith("busy")} == {
        key: n for key, n in right.items() if key.startswith("busy")
    }
    assert found["test:record_recorded"] == len(some)
    busy = sum(n for key, n in right.items() if key.startswith("busy"))
    assert found["test:fold_events"] < busy + len(right) / 2
    assert found["test:fold_unfoldable"] == 0


@pytest.mark.parametrize("shards", [1, 4])
def test_a_pipeline_that_ends_leaves_busy_rows_folded(bigtable_host: str, shards: int) -> None:
    """On a batch runner too, although the interval is longer than the run."""
    spec = emulators.new_spec(bigtable_host)
    table = BigtableSpec(*spec.place[1:], shards=shards)
    AppendedSpec(*table.place[1:], shards=shards).open(Count()).close()
    some = events(4_000, 5)
    pipeline = beam.Pipeline(IN_PROCESS_RUNNER)
    _ = pipeline | beam.Create(some) | merge(table, fold=HOUR, flush=FlushLimits(events=50))
    result = pipeline.run()
    result.wait_until_finish()
    found = counters(result)
    check(table, some, found)
    assert found["test:fold_events"] >= 4_000


def test_windows_upstream_do_not_matter(table: BigtableSpec) -> None:
    """A row belongs to no window of the pipeline."""
    some = events(2_000, 3)
    pipeline = beam.Pipeline(IN_PROCESS_RUNNER)
    timed = (
        pipeline
        | beam.Create(some)
        | beam.Map(lambda event: beam.window.TimestampedValue(event, hash(event["id"]) % 900))
    )
    _ = timed | beam.WindowInto(beam.window.SlidingWindows(300, 100)) | merge(table, fold="1h")
    result = pipeline.run()
    result.wait_until_finish()
    assert totals(table, fresh=True) == recount(some)
    right = {key: n for key, n in recount(some).items() if key.startswith("busy")}
    assert {key: n for key, n in totals(table, fresh=False).items() if key in right} == right


@pytest.fixture
def prism(run_folder: Path) -> Iterator[list[str]]:
    """The flags of the test run's Prism."""
    emulators.require(PRISM)
    with emulators.shared(PRISM, run_folder) as host:
        yield ["--streaming", f"--job_endpoint={host}"]


def test_streaming_on_prism(table: BigtableSpec, prism: list[str]) -> None:
    """Timers fold while events still arrive: a reader of the last fold is not far behind."""
    some = events(3_000, 4)
    parts = 12
    start = Timestamp.now().micros / 1e6
    pipeline = beam.Pipeline(runner=PrismRunner(), options=PipelineOptions(prism))
    ticks = pipeline | PeriodicImpulse(start, start + parts * 0.5, 0.5)
    _ = ticks | beam.FlatMap(lambda time: some[round((float(time) - start) * 2) :: parts]) | merge(table, fold="1s")
    result = pipeline.run()
    result.wait_until_finish()
    found = counters(result)
    check(table, some, found)
    assert found["test:fold_folded"] > 4 * 2, "rows were folded once only: at the end"


def test_nothing_is_named_where_commits_count(bigtable_host: str) -> None:
    """A table may be switched to appending while the pipeline runs; until then the stage has nothing to do."""
    table = emulators.new_spec(bigtable_host)
    some = events(300, 2)
    pipeline = beam.Pipeline(IN_PROCESS_RUNNER)
    _ = pipeline | beam.Create(some) | merge(table, fold="1s")
    result = pipeline.run()
    result.wait_until_finish()
    assert totals(table, fresh=False) == recount(some)
    assert counters(result)["test:fold_events"] == 0


@pytest.mark.parametrize(("age", "folds"), [("1h", True), ("5h", False)])
def test_a_row_that_expires_first_is_not_folded(bigtable_host: str, age: str, folds: bool) -> None:
    """Garbage collection takes it with its pending events before these would be old."""
    table = emulators.new_spec(bigtable_host)
    tables.create(table, tables.table_meta(Schema("count", HOUR), 2 * HOUR), write="append", yes=True)
    some = events(1_000, 2)
    now = datetime.now(timezone.utc).isoformat()
    pipeline = beam.Pipeline(IN_PROCESS_RUNNER)
    timed = pipeline | beam.Create(some) | beam.Map(lambda event: {**event, "at": now})
    _ = timed | merge(table, fold="10s", fold_age=age, window="hourly", retention="2h", event_time="at")
    result = pipeline.run()
    result.wait_until_finish()
    found = counters(result)
    assert found["test:record_recorded"] == len(some)
    assert bool(found["test:fold_events"]) is folds
    assert totals(table, fresh=True) == recount(some)


def test_events_that_cannot_be_folded_are_named(bigtable_host: str, caplog: pytest.LogCaptureFixture) -> None:
    """They stay pending, and are counted; the rest of the row is folded."""
    plain = emulators.new_spec(bigtable_host)
    AppendedSpec(*plain.place[1:]).open(Sum()).close()
    some = [{"id": str(i), "k": "a", "v": 2**62 if i < 3 else 1} for i in range(400)]
    caplog.set_level(logging.WARNING)
    pipeline = beam.Pipeline(IN_PROCESS_RUNNER)
    merged = MergeRecords("test", key="k", event_id="id", value="v", store=plain, fold="10s")
    _ = pipeline | beam.Create(some) | merged
    result = pipeline.run()
    result.wait_until_finish()
    found = counters(result)
    assert found["test:fold_unfoldable"] == 2
    assert found["test:fold_events"] == 398
    (line,) = [record.getMessage() for record in caplog.records if "cannot be folded" in record.getMessage()]
    assert line.startswith("test: 2 events cannot be folded, and stay pending: 'a', bucket 0: ")
    with Reader.open(plain) as reader:
        assert reader.get("a") == 3 * 2**62 + 397
        assert reader.get("a", fresh=False) == 2**62 + 397
