"""Keyed aggregates for Apache Beam, each event counted exactly once.

In a pipeline, `MergeRecords` folds each element into aggregates in a store. `Reader` reads them, and needs no Beam; nor
does `merge_one`, which merges one record. The aggregates are `Count`, `Sum`, `FloatSum`, `Mean`, `Variance`, `Min`,
`Max`, `First`, `Last`, `SetUnion`, `MapOf` another, the estimates `Distinct`, `TopK` and `Quantiles`, or your own
`Monoid`. The stores are `BigtableSpec`, `SqliteSpec` and `MemorySpec`, or their URIs, such as
``sqlite:///counts.db``. `murmur_beam.testing` has helpers for your tests.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from murmur_beam.buffer import FlushLimits
from murmur_beam.errors import (
    ConfigurationError,
    InvalidRecord,
    MergeCancelled,
    MurmurError,
    PermanentError,
    RetriesExhausted,
    SchemaMismatch,
    StoreUnavailable,
    TransientError,
)
from murmur_beam.metrics import InMemory, Recorder
from murmur_beam.model import DeadLetter, Key, MergeResult, Outcome
from murmur_beam.monoids import (
    Count,
    Custom,
    Distinct,
    First,
    FloatSum,
    Last,
    MapOf,
    Max,
    Mean,
    Min,
    Moments,
    Monoid,
    Quantiles,
    SetUnion,
    Sum,
    TopK,
    Variance,
)
from murmur_beam.processor import AtomicDedup, Config, NoDedup, merge_many, merge_one
from murmur_beam.reader import Reader
from murmur_beam.state import Store, StoreSpec
from murmur_beam.windows import WindowConfig, daily, hourly, minute

if TYPE_CHECKING:
    from murmur_beam.state.bigtable import BigtableSpec
    from murmur_beam.state.memory import MemorySpec
    from murmur_beam.state.sqlite import SqliteSpec
    from murmur_beam.transforms import MergeDoFn, MergeRecords, MurmurOptions

__version__ = "0.2.0.dev0"

__all__ = [
    "AtomicDedup",
    "BigtableSpec",
    "Config",
    "ConfigurationError",
    "Count",
    "Custom",
    "DeadLetter",
    "Distinct",
    "First",
    "FloatSum",
    "FlushLimits",
    "InMemory",
    "InvalidRecord",
    "Key",
    "Last",
    "MapOf",
    "Max",
    "Mean",
    "MemorySpec",
    "MergeCancelled",
    "MergeDoFn",
    "MergeRecords",
    "MergeResult",
    "Min",
    "Moments",
    "Monoid",
    "MurmurError",
    "MurmurOptions",
    "NoDedup",
    "Outcome",
    "PermanentError",
    "Quantiles",
    "Reader",
    "Recorder",
    "RetriesExhausted",
    "SchemaMismatch",
    "SetUnion",
    "SqliteSpec",
    "Store",
    "StoreSpec",
    "StoreUnavailable",
    "Sum",
    "TopK",
    "TransientError",
    "Variance",
    "WindowConfig",
    "daily",
    "hourly",
    "merge_many",
    "merge_one",
    "minute",
]

# Imported on first use, so that drivers without Beam, and stores without Google's clients, can use the rest.
_LAZY = {
    "BigtableSpec": "murmur_beam.state.bigtable",
    "MemorySpec": "murmur_beam.state.memory",
    "MergeDoFn": "murmur_beam.transforms",
    "MergeRecords": "murmur_beam.transforms",
    "MurmurOptions": "murmur_beam.transforms",
    "SqliteSpec": "murmur_beam.state.sqlite",
}


if not TYPE_CHECKING:  # or else a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - (set() if _has_bigtable() else {"BigtableSpec"}))


def _has_bigtable() -> bool:
    try:
        return find_spec("google.cloud.bigtable") is not None
    except ModuleNotFoundError:  # not even google.cloud
        return False
