"""The contract of every store, as a base class for pytest: a new store's test only defines how to open it."""

from __future__ import annotations

from murmur_beam.testing.stores.concurrency import ConcurrencyTests
from murmur_beam.testing.stores.lifetime import LifetimeTests
from murmur_beam.testing.stores.merging import MergingTests
from murmur_beam.testing.stores.schemas import SchemaTests


class StoreContract(MergingTests, LifetimeTests, ConcurrencyTests, SchemaTests):
    """The contract of a store. Name the subclass ``Test...``, and define how to make a spec::

        class TestMyStore(StoreContract):
            def spec(self, clock: FakeClock) -> StoreSpec:
                return MySpec(..., clock=clock)

    Each test uses a new store; all stores that a test opens share their state.

    Attributes:
        appends: set it to True for a store that appends. It answers `Outcome.RECORDED` where other stores answer
            `Outcome.MERGED` or `Outcome.DUPLICATE`; its aggregates must be the same.
    """
