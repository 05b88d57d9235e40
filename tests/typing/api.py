"""A user's program, which ``mypy --strict`` and pyright accept: the public names have the types that it needs.

Beam's ``|`` may return a PCollection, a tuple, a list or a dict, so pyright finds neither ``.merged`` nor
``.dead_letter`` in it, and mypy takes it for ``Any``. Write the types down, as `build` does: ``Any`` for both outputs
together, and the type of each where you take it out.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import apache_beam as beam
from apache_beam.io import ReadFromPubSub
from apache_beam.pvalue import PCollection
from hypothesis import strategies as st

from murmur_beam import (
    AtomicDedup,
    BigtableSpec,
    Config,
    ConfigurationError,
    Count,
    DeadLetter,
    FlushLimits,
    InMemory,
    MemorySpec,
    MergeRecords,
    MergeResult,
    Monoid,
    Outcome,
    Reader,
    RetriesExhausted,
    SqliteSpec,
    StoreSpec,
    daily,
    merge_one,
)
from murmur_beam.testing import FakeClock, MonoidLaws, StoreContract


class Mean(Monoid[tuple[int, int]]):
    """The mean of whole numbers: their sum and their number are stored, and the mean is shown."""

    name = "mean of integers"
    identity = (0, 0)

    def combine(self, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        """Add sums and numbers."""
        return a[0] + b[0], a[1] + b[1]

    def lift(self, value: Any, event_time_us: int) -> tuple[int, int]:
        """One number."""
        return int(value), 1

    def present(self, state: tuple[int, int]) -> float | None:
        """The mean, if there is any number."""
        total, n = state
        return total / n if n else None

    def decode(self, data: bytes) -> tuple[int, int]:
        """JSON has lists in place of tuples."""
        total, n = super().decode(data)
        return total, n


MEAN = Mean()


class TestMean(MonoidLaws):
    """The laws, for a monoid of one's own."""

    monoid = MEAN
    deltas = st.tuples(st.integers(0, 1000), st.just(1))


class TestStore(StoreContract):
    """The contract, for a store of one's own."""

    def spec(self, clock: FakeClock) -> StoreSpec:
        """A new, empty store."""
        return MemorySpec(f"contract-{id(self)}", clock)


def store_of(production: bool) -> StoreSpec:
    """Where the counts are."""
    if production:
        return BigtableSpec("my-project", "my-instance", "views", app_profile="murmur")
    return SqliteSpec("views.db", dedup_retention=timedelta(days=90))


def build(pipeline: beam.Pipeline, production: bool) -> tuple[PCollection[MergeResult], PCollection[DeadLetter]]:
    """A pipeline that counts messages, and one that takes the mean of a field by two keys."""
    messages = pipeline | ReadFromPubSub(subscription="projects/p/subscriptions/views", with_attributes=True)
    outputs: Any = messages | MergeRecords(
        "views",
        key="page/{page}",
        monoid=Count(),
        window=daily(retention=timedelta(days=90)),
        store=store_of(production),
        event_id="id",
        config=Config(max_attempts=5, dedup=AtomicDedup(), recorder=InMemory()),
        flush=FlushLimits(events=1_000),
        on_exhausted="raise",
    )
    more: Any = messages | MergeRecords(
        "latency",
        keys=["page/{page}", lambda record: f"user/{record['user']}"],
        value=lambda record: record["ms"],
        monoid=MEAN,
        window="daily",
        retention="90d",
        store="sqlite:///latency.db",
        decode="json",
    )
    merged: PCollection[MergeResult] = outputs.merged
    dead_letters: PCollection[DeadLetter] = more.dead_letter
    return merged, dead_letters


def read() -> list[tuple[str, int]]:
    """The reader, which needs no Beam."""
    now = datetime.now(timezone.utc)
    with Reader.open("sqlite:///views.db", Count(), daily()) as reader:
        today: int | None = reader.get("page/home", now)
        week: int = reader.window("page/home", timedelta(days=7), now)
        print(today, week, [entity for entity, _, _ in reader.list("page/")])
        return reader.top(10, prefix="page/")


def without_beam(messages: list[dict[str, str]]) -> None:
    """A program that merges one record at a time."""
    store = MemorySpec("views").open(Count())
    config = Config(dedup=AtomicDedup())
    try:
        for message in messages:
            outcome = merge_one(
                config,
                "views",
                message["id"],
                datetime.now(timezone.utc),
                message,
                lambda record: record["page"],
                lambda record: 1,
                store,
            )
            if outcome is Outcome.DUPLICATE:
                print("seen before", message["id"])
    except RetriesExhausted as err:
        print(err.keys, err.attempts, err.reason)
    except ConfigurationError as err:
        print(err.argument, err.problem)
    finally:
        store.close()
