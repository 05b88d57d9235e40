"""Tests of expiry, closing and deletion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from murmur_beam.errors import MurmurError
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Sum
from murmur_beam.state.adapted import open_store
from murmur_beam.state.base import Store
from murmur_beam.testing.stores.base import DAY, A, B, C, StoreTests

AGE_IS_THE_BUCKETS = "rows of a store that appends expire with their bucket, whatever an update's ttl"


class LifetimeTests(StoreTests):
    """A store keeps rows and markers for as long as it must, and deletes them together."""

    def test_an_expired_row_is_gone(self) -> None:
        """After its time to live a row is neither read nor scanned; other rows stay."""
        if self.appends:
            pytest.skip(AGE_IS_THE_BUCKETS)
        store = self.open()
        store.merge_updates([Update(A, 1, "1", DAY), Update(B, 1, "1", 3 * DAY), Update(C, 1, "1")])
        self.clock.time += DAY.total_seconds() + 1
        assert store.get_many([A, B, C]) == [None, 1, 1]
        assert [key for key, _ in store.scan()] == [B, C]

    def test_each_write_renews_the_time_to_live(self) -> None:
        """A row's time to live starts again with its last write."""
        store = self.open()
        store.merge_update(A, 1, event_id="1", ttl=DAY)
        self.clock.time += DAY.total_seconds() / 2
        store.merge_update(A, 1, event_id="2", ttl=DAY)
        self.clock.time += DAY.total_seconds() * 0.75
        assert store.get(A) == 2

    def test_a_time_to_live_is_never_shortened(self) -> None:
        """A pipeline with a shorter time to live does not shorten a row's life; one with a longer one extends it."""
        store = self.open()
        store.merge_updates([Update(A, 1, "1"), Update(B, 1, "1", 9 * DAY), Update(C, 1, "1", DAY)])
        store.merge_updates([Update(A, 1, "2", DAY), Update(B, 1, "2", DAY), Update(C, 1, "2")])
        self.clock.time += 5 * DAY.total_seconds()
        assert store.get_many([A, B, C]) == [2, 2, 2]
        assert store.merge_updates([Update(A, 1, "1"), Update(C, 1, "1")]) == [self.duplicate] * 2
        assert store.get_many([A, B, C]) == [2, 2, 2]

    def test_a_live_row_keeps_its_markers(self) -> None:
        """The collection of expired rows deletes no marker of a live row."""
        store = self.open()
        store.merge_updates([Update(Key(f"old{i}"), 1, "1", DAY) for i in range(100)])
        store.merge_updates([Update(A, 1, "1", 100 * DAY), Update(B, 1, "1")])
        for day in range(1, 50):
            self.clock.time += DAY.total_seconds()
            store.merge_update(Key("other"), 1, event_id=str(day))
        assert store.merge_updates([Update(A, 1, "1", 51 * DAY), Update(B, 1, "1")]) == [self.duplicate] * 2
        assert store.get_many([A, B]) == [1, 1]

    def test_two_stores_on_one_state_see_each_other(self) -> None:
        """An event merged through one store is immediately known to the other."""
        one, other = self.open(), self.open()
        assert one.merge_update(A, 1, event_id="1") is self.merged
        assert other.merge_update(A, 1, event_id="1") is self.duplicate
        assert other.merge_update(A, 1, event_id="2") is self.merged
        assert one.get(A) == 2

    def test_state_outlives_the_store(self) -> None:
        """Values and markers are kept when a store is closed and opened again."""
        spec = self.spec(self.clock)
        with closing(open_store(spec, Sum())) as store:
            store.merge_update(A, 1, event_id="1")
        with closing(open_store(spec, Sum())) as store:
            assert store.merge_update(A, 1, event_id="1") is self.duplicate
            assert store.get(A) == 1

    def test_a_second_close_does_nothing(self) -> None:
        """Closing twice is harmless."""
        store = self.open()
        store.close()
        store.close()

    @pytest.mark.parametrize(
        "use",
        [
            lambda store: store.merge_update(A, 1, event_id="2"),
            lambda store: store.merge_update(B, 1),
            lambda store: store.get(A),
            lambda store: list(store.scan()),
            lambda store: store.delete("a"),
        ],
    )
    def test_a_closed_store_says_so(self, use: Callable[[Store[Any]], object]) -> None:
        """Each method of a closed store raises a MurmurError; another store of the same state stays open."""
        store, other = self.open(), self.open()
        store.merge_update(A, 1, event_id="1")
        store.close()
        with pytest.raises(MurmurError, match="closed"):
            use(store)
        assert other.merge_update(A, 1, event_id="1") is self.duplicate
        assert other.get(A) == 1

    def test_a_deletion_takes_the_markers(self) -> None:
        """All buckets of an entity are deleted with their markers; entities with a longer name stay."""
        store, other = self.open(), self.open()
        gone, kept = [A, Key("a", -1), Key("a", 7)], [Key("a\x00"), Key("ab"), Key("a/"), B]
        updates = [Update(key, 1, event_id) for key in (*gone, *kept) for event_id in ("1", "2")]
        store.merge_updates(updates)
        assert other.delete("a") == 3
        assert list(store.scan()) == [(key, 2) for key in sorted(kept)]
        merged, duplicate = self.merged, self.duplicate
        assert other.merge_updates(updates) == [merged] * 6 + [duplicate] * 8
        assert dict(store.scan()) == dict.fromkeys([*gone, *kept], 2)

    def test_deleting_by_prefix_and_bucket(self) -> None:
        """A deletion can be limited to a prefix of entities, and to a range of buckets, ends included."""
        store = self.open()
        keys = [Key(entity, bucket) for entity in ("a", "ab", "b", "é", "\U0001f600") for bucket in (-2, -1, 0, 1, 10)]
        store.merge_updates([Update(key, 1, "1") for key in keys])
        assert store.delete("a", -1, 1, prefix=True) == 6
        assert store.delete("a", 10) == 1
        assert store.delete("ab", last=-2) == 1
        assert store.delete("nobody") == store.delete("x", prefix=True) == store.delete("a", 3, 9) == 0
        left = [Key("a", -2), Key("ab", 10), *keys[10:]]
        assert [key for key, _ in store.scan()] == left
        assert store.delete("", prefix=True) == len(left)
        assert list(store.scan()) == []

    def test_expired_rows_are_deleted_too(self) -> None:
        """An expired row cannot be read, but is still stored until it is collected."""
        if self.appends:
            pytest.skip(AGE_IS_THE_BUCKETS)
        store = self.open()
        store.merge_updates([Update(A, 1, "1", DAY), Update(B, 1, "1", DAY)])
        self.clock.time += DAY.total_seconds() + 1
        assert store.get(A) is None
        assert store.delete("a") == 1
        assert store.merge_update(A, 1, event_id="1", ttl=DAY) is self.merged

    def test_any_number_of_rows_is_deleted(self) -> None:
        """A deletion covers many pages of rows."""
        store = self.open()
        store.merge_updates([Update(Key(f"k{i:05d}"), 1, "1") for i in range(2_500)])
        store.merge_updates([Update(A, 1, "1"), Update(Key("l"), 1, "1")])
        assert store.delete("k", prefix=True) == 2_500
        assert [key for key, _ in store.scan()] == [A, Key("l")]
