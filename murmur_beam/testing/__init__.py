"""Helpers for tests: a clock that never sleeps, a store that fails on command, and the contracts of monoids and stores
as base classes for pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from murmur_beam.testing.fakes import FakeClock, FaultyStore
from murmur_beam.testing.monoids import MonoidLaws

if TYPE_CHECKING:
    from murmur_beam.testing.stores import StoreContract

__all__ = ["FakeClock", "FaultyStore", "MonoidLaws", "StoreContract"]


if not TYPE_CHECKING:  # or else a type checker would accept any name

    def __getattr__(name: str) -> Any:
        # Only StoreContract needs pytest at import, and its assertions must be registered for pytest to explain them.
        if name != "StoreContract":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            importlib.import_module("pytest").register_assert_rewrite(f"{__name__}.stores")
        except ImportError as err:
            raise ImportError("StoreContract needs pytest: pip install 'murmur-beam[test]'") from err
        return importlib.import_module(f"{__name__}.stores").StoreContract
