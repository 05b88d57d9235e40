"""The tests of `MergeRecords` that run a pipeline once more: on Prism, with their sums in Bigtable's emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PipelineResult
from apache_beam.runners.portability.prism_runner import PrismRunner

from murmur_beam.errors import SchemaMismatch, StoreUnavailable
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import Store
from murmur_beam.state.bigtable.store import BigtableStore
from murmur_beam.transforms import MergeRecords
from tests.pipelines import (
    test_transform_bundles,
    test_transform_conservation,
    test_transform_letters,
    test_transform_messages,
    test_transform_metrics,
    test_transforms,
)
from tests.pipelines.test_transform_letters import bad_run
from tests.support import emulators, transform
from tests.support.engines import PRISM
from tests.support.transform import FIELDS, Faulty, OnShelf, config, event, failing, run

__all__ = ["bad_run"]

RAISES = "a failed pipeline raises the error itself there, and Prism only its text; see below"
NOT_HERE = {
    "test_exhausted_records_can_fail_the_pipeline": RAISES,
    "test_a_store_that_cannot_be_used_raises": RAISES,
    "test_letters_replay_in_another_process": "has a runner of its own",
    "test_letters_become_json_in_another_process": "has a runner of its own",
    "test_recorded_records_in_another_process": "has a runner of its own",
}


def there() -> dict[str, Any]:
    """All names of the modules that test `MergeRecords`."""
    modules = (
        test_transforms,
        test_transform_bundles,
        test_transform_conservation,
        test_transform_letters,
        test_transform_messages,
        test_transform_metrics,
    )
    return {name: value for module in modules for name, value in vars(module).items()}


def of_pipelines() -> Iterator[tuple[str, Callable[..., None]]]:
    """The tests of these modules that run a pipeline."""
    for name, test in there().items():
        if name.startswith("test_") and name not in NOT_HERE:
            hypothesis = getattr(test, "hypothesis", None)
            code = (hypothesis.inner_test if hypothesis else test).__code__
            if {"run", "new_pipeline", "bad_run"} & {*code.co_names, *code.co_varnames}:
                yield name, test


PIPELINES = dict(of_pipelines())
globals().update(PIPELINES)


@pytest.fixture(scope="session")
def prism_host(run_folder: Path) -> Iterator[str]:
    """``host:port`` of the test run's Prism."""
    emulators.require(PRISM)
    with emulators.shared(PRISM, run_folder) as host:
        yield host


@pytest.fixture(scope="module", autouse=True)
def _on_prism(prism_host: str, bigtable_host: str) -> Iterator[None]:
    """Pipelines run on Prism, which calls back into this process; the tests' stores keep their sums in a table."""
    tables: list[BigtableStore[Any]] = []

    def make_pipeline(flags: Sequence[str], runner: Any = None) -> beam.Pipeline:
        assert runner is None
        return beam.Pipeline(runner=PrismRunner(), options=PipelineOptions([*flags, f"--job_endpoint={prism_host}"]))

    open_there = OnShelf.open

    def open_in_table(spec: OnShelf, monoid: Monoid[Any], granularity: timedelta | None = None) -> Store[Any]:
        opened: Any = open_there(spec, monoid, granularity)
        if type(opened) is Faulty and opened.ledger.store not in tables:
            table = emulators.new_spec(bigtable_host)
            opened.ledger.store = table.open(monoid, granularity)
            tables.append(opened.ledger.store)
        return opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform, "make_pipeline", make_pipeline)
        patch.setattr(OnShelf, "open", open_in_table)
        yield
    for each in tables:
        each.close()


def test_this_is_prism_and_bigtable(store: Faulty) -> None:
    """Otherwise the rest of this module would prove nothing new."""
    pipeline = transform.new_pipeline()
    _ = pipeline | beam.Create([event("1")]) | MergeRecords(**FIELDS, store=store.spec)
    result = pipeline.run()
    result.wait_until_finish()
    assert type(result) is PipelineResult
    assert type(pipeline.runner) is PrismRunner
    assert type(store.ledger.store) is BigtableStore
    assert store.state() == {("a", 0): 1}
    assert len(PIPELINES) > 30
    assert set(NOT_HERE) <= set(there())


def test_exhausted_records_can_fail_a_pipeline_here(store: Faulty) -> None:
    """With ``on_exhausted="raise"`` the failure must name the event and its error, and a second run merge it."""
    store.fault = failing(a=2)
    arguments = {**FIELDS, "store": store.spec, "config": config(), "on_exhausted": "raise"}
    with pytest.raises(RuntimeError, match=r"RetriesExhausted: murmur.*: event '1' failed 2 times for 'a'"):
        run([event("1"), event("2", "b")], **arguments)
    again = run([event("1"), event("2", "b")], **arguments)
    assert again.outcomes()["dead_letter"] == 0
    assert store.state() == {("a", 0): 1, ("b", 0): 1}


@pytest.mark.parametrize("error", [StoreUnavailable("no such table"), SchemaMismatch("another monoid")], ids=repr)
def test_a_store_that_cannot_be_used_fails_a_pipeline_here(store: Faulty, error: Exception) -> None:
    """The failure must have the store's own message."""
    store.fault = lambda update: error
    with pytest.raises(RuntimeError, match=f"{type(error).__name__}: {error}"):
        run([event("1", "b"), event("2")], **FIELDS, store=store.spec, config=config())
    assert store.state() == {}
