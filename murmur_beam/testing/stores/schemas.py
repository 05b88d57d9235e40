"""Tests of the recorded schema."""

from __future__ import annotations

from typing import Any

import pytest

from murmur_beam.errors import SchemaMismatch
from murmur_beam.monoids import Count, Max, Monoid, Sum
from murmur_beam.testing.stores.base import DAY, A, B, StoreTests


class SchemaTests(StoreTests):
    """A store records what it holds, and refuses to be opened for anything else."""

    def test_another_schema_is_refused(self) -> None:
        """Opening for another monoid or bucket length fails, and the error names the recorded schema."""
        self.open(Sum(), DAY).merge_update(A, 1, event_id="1")
        with pytest.raises(SchemaMismatch, match="'sum'"):
            self.open(Max(), DAY)
        with pytest.raises(SchemaMismatch, match="1d"):
            self.open(Sum(), DAY / 24)
        with pytest.raises(SchemaMismatch):
            self.open(Sum())

    def test_a_table_holds_one_aggregate(self) -> None:
        """A count is not a sum, and the sum of another field is another aggregate; a sum without a field name fits any
        field."""
        self.open(Sum().of("cents")).merge_update(A, 1, event_id="1")
        for same in (Sum().of("cents"), Sum()):
            store = self.open(same)
            assert store.merge_update(A, 1, event_id="1") is self.duplicate
            assert store.get(A) == 1
        for other in (Count(), Sum().of("items"), Max().of("cents")):
            with pytest.raises(SchemaMismatch, match=r"'cents'.*another table, such as"):
                self.open(other)

    def test_the_first_named_field_is_recorded(self) -> None:
        """The first field name is recorded, also if earlier writers gave none."""
        self.open(Sum()).merge_update(A, 1, event_id="1")
        self.open(Sum().of("cents")).merge_update(A, 1, event_id="2")
        self.open(Sum()).merge_update(A, 1, event_id="3")
        with pytest.raises(SchemaMismatch, match="'cents'"):
            self.open(Sum().of("items"))

    @pytest.mark.parametrize("other", [Sum(), Sum().of("n")])
    def test_another_aggregate_is_never_taken_for_duplicates(self, other: Monoid[Any]) -> None:
        """Of two stores for different aggregates, both opened before the first write, one fails: when it is opened, or
        when it first writes."""

        def merge_both() -> None:
            for store in [self.open(Count()), self.open(other)]:
                store.merge_update(A, 5, event_id="1")

        with pytest.raises(SchemaMismatch, match="'count'"):
            merge_both()
        assert self.open(Count()).merge_update(B, 1, event_id="1") is self.merged

    def test_the_schema_is_recorded(self) -> None:
        """The recorded schema can be read without opening the store."""
        self.open(Sum(), DAY).merge_update(A, 1, event_id="1")
        assert self.made is not None
        schema = self.made.recorded_schema()
        assert schema is not None
        assert schema[:2] == ("sum", DAY)
