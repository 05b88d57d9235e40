"""murmur_beam: keyed aggregates for Apache Beam, each event counted exactly once."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from murmur_beam.buffer import FlushLimits
from murmur_beam.model import DeadLetter, Key, MergeResult, Outcome
from murmur_beam.monoids import Count, Custom, First, Last, Max, Min, SetUnion, Sum
from murmur_beam.processor import AtomicDedup, Config, NoDedup, merge_many, merge_one
from murmur_beam.reader import Reader
from murmur_beam.windows import WindowConfig, daily, hourly, minute

if TYPE_CHECKING:
    from murmur_beam.transforms import MergeDoFn, MergeRecords, MurmurOptions

__version__ = "0.2.0.dev0"

__all__ = [
    "AtomicDedup",
    "Config",
    "Count",
    "Custom",
    "DeadLetter",
    "First",
    "FlushLimits",
    "Key",
    "Last",
    "Max",
    "MergeDoFn",
    "MergeRecords",
    "MergeResult",
    "Min",
    "MurmurOptions",
    "NoDedup",
    "Outcome",
    "Reader",
    "SetUnion",
    "Sum",
    "WindowConfig",
    "daily",
    "hourly",
    "merge_many",
    "merge_one",
    "minute",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that drivers without Beam can use the rest.
    if name in ("MergeDoFn", "MergeRecords", "MurmurOptions"):
        return getattr(importlib.import_module("murmur_beam.transforms"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
