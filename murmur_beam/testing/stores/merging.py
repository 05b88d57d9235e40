"""Tests of merging, reading and scanning."""

from __future__ import annotations

from typing import Any

import pytest

from murmur_beam.errors import PermanentError
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Max, Monoid, SetUnion
from murmur_beam.monoids.sum import INT64_MAX
from murmur_beam.testing.stores.base import A, B, C, StoreTests


class MergingTests(StoreTests):
    """A store folds each event once per key, and reads back its aggregates."""

    def test_a_new_store_is_empty(self) -> None:
        """A key without a merge has no value."""
        store = self.open()
        assert store.get(A) is None
        assert store.get_many([A, B]) == [None, None]
        assert list(store.scan()) == []

    def test_it_says_whether_it_appends(self) -> None:
        """The processor gives updates without an event id a random one if the store appends."""
        assert self.open().appends is self.appends

    def test_deltas_add_up(self) -> None:
        """The aggregate of two events is the sum of their deltas."""
        store = self.open()
        assert store.merge_update(A, 2, event_id="1") is self.merged
        assert store.merge_update(A, 3, event_id="2") is self.merged
        assert store.get(A) == 5

    def test_a_duplicate_is_a_no_op(self) -> None:
        """An event id merges once into a key, in one flush or in several, whatever its delta."""
        store = self.open()
        assert store.merge_updates([Update(A, 2, "1"), Update(A, 2, "1")]) == [self.merged, self.duplicate]
        assert store.merge_update(A, 7, event_id="1") is self.duplicate
        assert store.get(A) == 2

    def test_event_ids_are_known_per_key(self) -> None:
        """An event merges once into each of several keys; the buckets of one entity are different keys."""
        store = self.open()
        keys = [A, B, Key("a", 1), Key("a", -1)]
        assert store.merge_updates([Update(key, 1, "1") for key in keys]) == [self.merged] * 4
        assert store.get_many(keys) == [1, 1, 1, 1]

    def test_without_an_event_id_each_delivery_counts(self) -> None:
        """Updates without an event id are not deduplicated."""
        store = self.open()
        assert store.merge_updates([Update(A, 1), Update(A, 1)]) == [self.merged] * 2
        assert store.merge_update(A, 1) is self.merged
        assert store.get(A) == 3

    def test_results_come_in_the_order_of_the_updates(self) -> None:
        """Results and values are in the caller's order, whatever the order of writes."""
        store = self.open()
        store.merge_update(B, 1, event_id="1")
        updates = [Update(A, 1, "1"), Update(B, 1, "1"), Update(A, 1, "2"), Update(B, 1, "2"), Update(A, 1, "1")]
        merged, duplicate = self.merged, self.duplicate
        assert store.merge_updates(updates) == [merged, duplicate, merged, merged, duplicate]
        assert store.get_many([B, C, A]) == [2, None, 2]

    def test_an_empty_flush_does_nothing(self) -> None:
        """Without updates there are also no results."""
        assert self.open().merge_updates([]) == []

    def test_an_overflow_affects_its_update_only(self) -> None:
        """An overflow is the result of one update, leaves no marker, and can be merged once the sum has room."""
        if self.appends:
            pytest.skip("a store that appends does not know the sum")
        store = self.open()
        store.merge_update(A, INT64_MAX - 1, event_id="0")
        fits, overflow, other = store.merge_updates([Update(A, 1, "1"), Update(A, 1, "2"), Update(B, 1, "2")])
        assert [fits, other] == [self.merged] * 2
        assert isinstance(overflow, PermanentError)
        assert store.get_many([A, B]) == [INT64_MAX, 1]
        assert store.merge_updates([Update(A, -5, "3"), Update(A, 1, "2")]) == [self.merged] * 2
        assert store.get(A) == INT64_MAX - 4

    def test_a_key_whose_only_update_fails_stays_empty(self) -> None:
        """A failed first update leaves no row behind."""
        store = self.open()
        (result,) = store.merge_updates([Update(A, "not a number", "1")])
        assert isinstance(result, PermanentError)
        assert "not a number" in str(result)
        assert store.get(A) is None
        assert list(store.scan()) == []

    def test_merge_update_raises_what_failed(self) -> None:
        """A single update raises instead of returning its error."""
        store = self.open()
        store.merge_update(A, INT64_MAX, event_id="1")
        # A store that appends detects errors of the delta itself only.
        delta, reason = ("not a number", "not a number") if self.appends else (1, "64-bit")
        with pytest.raises(PermanentError, match=reason):
            store.merge_update(A, delta, event_id="2")
        assert store.get(A) == INT64_MAX

    def test_the_whole_range_of_64_bits_is_kept(self) -> None:
        """The smallest and the largest integer are read back unchanged."""
        store = self.open()
        store.merge_updates([Update(A, INT64_MAX, "1"), Update(B, -INT64_MAX - 1, "1")])
        assert store.get_many([A, B]) == [INT64_MAX, -INT64_MAX - 1]

    def test_a_sum_of_zero_is_a_value(self) -> None:
        """Events whose deltas cancel out leave a value."""
        store = self.open()
        store.merge_updates([Update(A, 1, "1"), Update(A, -1, "2")])
        assert store.get(A) == 0
        assert list(store.scan()) == [(A, 0)]

    @pytest.mark.parametrize("monoid", [Max(), SetUnion()])
    def test_other_monoids_fold(self, monoid: Monoid[Any]) -> None:
        """A monoid that is not a sum is folded by its combine, and a redelivered event changes nothing."""
        store = self.open(monoid)
        deltas = [monoid.lift(value, 0) for value in (3, 8, 5, 8)]
        assert store.merge_updates([Update(A, d, str(i)) for i, d in enumerate(deltas[:2])]) == [self.merged] * 2
        for delta in deltas[2:]:
            store.merge_update(A, delta, event_id="again")
            store.merge_update(A, delta, event_id="again")
        assert store.get(A) == monoid.fold(deltas)

    def test_any_text_is_an_entity(self) -> None:
        """Unicode, separators, quotes, NUL and prefixes of each other are different entities, kept unchanged."""
        store = self.open()
        names = [
            "a",
            "ab",
            "a/",
            "a\x00",
            "a\x00b",
            "a#1",
            "'; --",
            "%_*",
            "é",
            "e\u0301",
            "日本",
            "\U0001f600",
            " ",
            "A",
        ]
        keys = [Key(name, bucket) for name in names for bucket in (-1, 0, 10)]
        assert store.merge_updates([Update(key, i, "1") for i, key in enumerate(keys)]) == [self.merged] * len(keys)
        assert store.get_many(keys) == list(range(len(keys)))
        assert list(store.scan()) == sorted(zip(keys, range(len(keys)), strict=True))

    def test_any_text_is_an_event_id(self) -> None:
        """Event ids that differ in any character are different, and they may be long."""
        store = self.open()
        ids = ["1", "01", "1 ", "\x00", "\x00\x00", "é", "e\u0301", "x" * 5000, "x" * 5001]
        assert store.merge_updates([Update(A, 1, event_id) for event_id in ids]) == [self.merged] * len(ids)
        assert store.merge_updates([Update(A, 1, event_id) for event_id in ids]) == [self.duplicate] * len(ids)
        assert store.get(A) == len(ids)

    def test_scan_is_ordered_and_filtered(self) -> None:
        """A scan is ordered by entity and bucket, and limited to a prefix and to a range of buckets, ends included."""
        store = self.open()
        keys = [Key(entity, bucket) for entity in ("a", "ab", "b") for bucket in (-2, -1, 0, 1, 10)]
        store.merge_updates([Update(key, 1, "1") for key in reversed(keys)])
        assert [key for key, _ in store.scan()] == keys
        assert [key for key, _ in store.scan("a")] == keys[:10]
        assert [key for key, _ in store.scan("ab", -1, 1)] == keys[6:9]
        assert [key for key, _ in store.scan(first=10)] == [Key("a", 10), Key("ab", 10), Key("b", 10)]
        assert [key for key, _ in store.scan("b", last=-2)] == [Key("b", -2)]
        assert list(store.scan("abc")) == []

    def test_scan_reads_any_number_of_rows(self) -> None:
        """A scan of many pages returns each row once, also during other writes."""
        store = self.open()
        keys = [Key(f"k{i:05d}") for i in range(2_500)]
        store.merge_updates([Update(key, 1, "1") for key in keys])
        seen = []
        for key, _ in store.scan():
            if key == keys[100]:
                store.merge_update(Key("0"), 1, event_id="1")
            seen.append(key)
        assert seen == keys
