"""What every store must keep, as a base class for pytest: a new store's test is this and how to open it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import pytest

from murmur_beam.errors import MurmurError, PermanentError, SchemaMismatch, StoreUnavailable
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count, Max, Monoid, SetUnion, Sum
from murmur_beam.monoids.sum import INT64_MAX
from murmur_beam.state.base import Store, StoreSpec
from murmur_beam.testing.fakes import FakeClock

DAY = timedelta(days=1)
A, B, C = Key("a"), Key("b"), Key("c")
_DEADLINE_S = 60.0
_AGE = "rows of a store that appends end with their bucket, and not when an update says"


def _answers(appends: bool) -> tuple[Outcome, Outcome]:
    """To a new event, and to one that is there already."""
    return (Outcome.RECORDED, Outcome.RECORDED) if appends else (Outcome.MERGED, Outcome.DUPLICATE)


class StoreContract:
    """Subclass it, name the class ``Test...``, and say how to make a spec::

        class TestMyStore(StoreContract):
            def spec(self, clock: FakeClock) -> StoreSpec:
                return MySpec(..., clock=clock)

    Each test gets a store that nobody else uses; stores opened from the spec of one test share their state.

    Attributes:
        appends: set it to True for a store that appends. Its answer is `Outcome.RECORDED` wherever that of others is
            `Outcome.MERGED` or `Outcome.DUPLICATE`; the aggregates must be the same, and so whatever shows an event to
            be known shows it in them as well.
    """

    appends: ClassVar[bool] = False

    @property
    def merged(self) -> Outcome:
        """The answer to a new event."""
        return _answers(self.appends)[0]

    @property
    def duplicate(self) -> Outcome:
        """The answer to an event that is there already."""
        return _answers(self.appends)[1]

    def spec(self, clock: FakeClock) -> StoreSpec:
        """A spec of an empty store that runs by ``clock``, a new one in each test."""
        raise AssertionError(f"{type(self).__name__} must define spec(self, clock)")

    @pytest.fixture(autouse=True)
    def _open(self) -> Iterator[None]:
        self.clock = FakeClock()
        self.made: StoreSpec | None = None
        self.opened: list[Store[Any]] = []
        yield
        for store in self.opened:
            store.close()

    def open(self, monoid: Monoid[Any] | None = None, granularity: timedelta | None = None) -> Store[Any]:
        """One more store of this test's spec, closed at the end of the test."""
        if self.made is None:
            self.made = self.spec(self.clock)
        self.opened.append(self.made.open(monoid or Sum(), granularity))
        return self.opened[-1]

    def test_nothing_is_there_at_first(self) -> None:
        """A key that nothing was merged into has no value."""
        store = self.open()
        assert store.get(A) is None
        assert store.get_many([A, B]) == [None, None]
        assert list(store.scan()) == []

    def test_it_says_whether_it_appends(self) -> None:
        """Those above a store give each update an id where they are told that it appends."""
        assert getattr(self.open(), "appends", False) is self.appends

    def test_deltas_add_up(self) -> None:
        """Two events make the sum of their deltas."""
        store = self.open()
        assert store.merge_update(A, 2, event_id="1") is self.merged
        assert store.merge_update(A, 3, event_id="2") is self.merged
        assert store.get(A) == 5

    def test_a_duplicate_is_a_no_op(self) -> None:
        """The same event id merges once into a key, in one flush or in several, whatever its delta says."""
        store = self.open()
        assert store.merge_updates([Update(A, 2, "1"), Update(A, 2, "1")]) == [self.merged, self.duplicate]
        assert store.merge_update(A, 7, event_id="1") is self.duplicate
        assert store.get(A) == 2

    def test_event_ids_are_known_per_key(self) -> None:
        """The same event merges once into each of several keys, and buckets of one entity are several keys."""
        store = self.open()
        keys = [A, B, Key("a", 1), Key("a", -1)]
        assert store.merge_updates([Update(key, 1, "1") for key in keys]) == [self.merged] * 4
        assert store.get_many(keys) == [1, 1, 1, 1]

    def test_without_an_event_id_each_delivery_counts(self) -> None:
        """No id, no dedup."""
        store = self.open()
        assert store.merge_updates([Update(A, 1), Update(A, 1)]) == [self.merged] * 2
        assert store.merge_update(A, 1) is self.merged
        assert store.get(A) == 3

    def test_results_come_in_the_order_of_the_updates(self) -> None:
        """Rows may be written in any order, but results and values are asked for in the caller's."""
        store = self.open()
        store.merge_update(B, 1, event_id="1")
        updates = [Update(A, 1, "1"), Update(B, 1, "1"), Update(A, 1, "2"), Update(B, 1, "2"), Update(A, 1, "1")]
        merged, duplicate = self.merged, self.duplicate
        assert store.merge_updates(updates) == [merged, duplicate, merged, merged, duplicate]
        assert store.get_many([B, C, A]) == [2, None, 2]

    def test_an_empty_flush_does_nothing(self) -> None:
        """No updates, no results."""
        assert self.open().merge_updates([]) == []

    def test_what_cannot_be_folded_hurts_nobody_else(self) -> None:
        """An overflow is the result of its own update alone, leaves no marker, and can be merged when there is room."""
        if self.appends:
            pytest.skip("a store that appends does not know the sum that an event does not fit into")
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
        # A store that appends sees only what is wrong with the delta itself.
        delta, reason = ("not a number", "not a number") if self.appends else (1, "64-bit")
        with pytest.raises(PermanentError, match=reason):
            store.merge_update(A, delta, event_id="2")
        assert store.get(A) == INT64_MAX

    def test_the_whole_range_of_64_bits_is_kept(self) -> None:
        """The smallest and the largest integer come back as they went in."""
        store = self.open()
        store.merge_updates([Update(A, INT64_MAX, "1"), Update(B, -INT64_MAX - 1, "1")])
        assert store.get_many([A, B]) == [INT64_MAX, -INT64_MAX - 1]

    def test_a_sum_of_zero_is_a_value(self) -> None:
        """Events that cancel out are not the same as no event."""
        store = self.open()
        store.merge_updates([Update(A, 1, "1"), Update(A, -1, "2")])
        assert store.get(A) == 0
        assert list(store.scan()) == [(A, 0)]

    @pytest.mark.parametrize("monoid", [Max(), SetUnion()])
    def test_other_monoids_fold(self, monoid: Monoid[Any]) -> None:
        """A monoid that is no sum is folded by its own combine, and an event folded twice changes nothing."""
        store = self.open(monoid)
        deltas = [monoid.lift(value, 0) for value in (3, 8, 5, 8)]
        assert store.merge_updates([Update(A, d, str(i)) for i, d in enumerate(deltas[:2])]) == [self.merged] * 2
        for delta in deltas[2:]:
            store.merge_update(A, delta, event_id="again")
            store.merge_update(A, delta, event_id="again")
        assert store.get(A) == monoid.fold(deltas)

    def test_any_text_is_an_entity(self) -> None:
        """Unicode, separators, quotes, NUL and prefixes of one another are different keys, kept as they are."""
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
        """Ids differ by any character, and may be long."""
        store = self.open()
        ids = ["1", "01", "1 ", "\x00", "\x00\x00", "é", "e\u0301", "x" * 5000, "x" * 5001]
        assert store.merge_updates([Update(A, 1, event_id) for event_id in ids]) == [self.merged] * len(ids)
        assert store.merge_updates([Update(A, 1, event_id) for event_id in ids]) == [self.duplicate] * len(ids)
        assert store.get(A) == len(ids)

    def test_scan_is_ordered_and_filtered(self) -> None:
        """By entity and bucket; only entities with the prefix; only buckets in the range, its ends included."""
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
        """More rows than any page holds come back once each, also while others are written."""
        store = self.open()
        keys = [Key(f"k{i:05d}") for i in range(2_500)]
        store.merge_updates([Update(key, 1, "1") for key in keys])
        seen = []
        for key, _ in store.scan():
            if key == keys[100]:
                store.merge_update(Key("0"), 1, event_id="1")
            seen.append(key)
        assert seen == keys

    def test_an_expired_row_is_gone(self) -> None:
        """After its time to live a row is not read any more, nor found by a scan; others stay."""
        if self.appends:
            pytest.skip(_AGE)
        store = self.open()
        store.merge_updates([Update(A, 1, "1", DAY), Update(B, 1, "1", 3 * DAY), Update(C, 1, "1")])
        self.clock.time += DAY.total_seconds() + 1
        assert store.get_many([A, B, C]) == [None, 1, 1]
        assert [key for key, _ in store.scan()] == [B, C]

    def test_a_row_lives_as_long_as_its_last_time_to_live_says(self) -> None:
        """Each write says anew how long the row lives."""
        store = self.open()
        store.merge_update(A, 1, event_id="1", ttl=DAY)
        self.clock.time += DAY.total_seconds() / 2
        store.merge_update(A, 1, event_id="2", ttl=DAY)
        self.clock.time += DAY.total_seconds() * 0.75
        assert store.get(A) == 2

    def test_a_row_that_shall_stay_is_not_given_an_end(self) -> None:
        """A second pipeline with a shorter time to live takes nothing from the first; a longer one adds to it."""
        store = self.open()
        store.merge_updates([Update(A, 1, "1"), Update(B, 1, "1", 9 * DAY), Update(C, 1, "1", DAY)])
        store.merge_updates([Update(A, 1, "2", DAY), Update(B, 1, "2", DAY), Update(C, 1, "2")])
        self.clock.time += 5 * DAY.total_seconds()
        assert store.get_many([A, B, C]) == [2, 2, 2]
        assert store.merge_updates([Update(A, 1, "1"), Update(C, 1, "1")]) == [self.duplicate] * 2
        assert store.get_many([A, B, C]) == [2, 2, 2]

    def test_a_live_row_knows_its_events_whatever_is_collected(self) -> None:
        """Collecting what has expired takes no marker of a row that lives."""
        store = self.open()
        store.merge_updates([Update(Key(f"old{i}"), 1, "1", DAY) for i in range(100)])
        store.merge_updates([Update(A, 1, "1", 100 * DAY), Update(B, 1, "1")])
        for day in range(1, 50):
            self.clock.time += DAY.total_seconds()
            store.merge_update(Key("other"), 1, event_id=str(day))
        assert store.merge_updates([Update(A, 1, "1", 51 * DAY), Update(B, 1, "1")]) == [self.duplicate] * 2
        assert store.get_many([A, B]) == [1, 1]

    def test_two_stores_on_one_state_see_each_other(self) -> None:
        """What one has merged is known to the other, at once."""
        one, other = self.open(), self.open()
        assert one.merge_update(A, 1, event_id="1") is self.merged
        assert other.merge_update(A, 1, event_id="1") is self.duplicate
        assert other.merge_update(A, 1, event_id="2") is self.merged
        assert one.get(A) == 2

    def test_state_outlives_the_store(self) -> None:
        """Closed and opened again, values and markers are there."""
        spec = self.spec(self.clock)
        with closing(spec.open(Sum())) as store:
            store.merge_update(A, 1, event_id="1")
        with closing(spec.open(Sum())) as store:
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
        """Whatever is asked of it, in words of ours; another one of the same state is not closed with it."""
        store, other = self.open(), self.open()
        store.merge_update(A, 1, event_id="1")
        store.close()
        with pytest.raises(MurmurError, match="closed"):
            use(store)
        assert other.merge_update(A, 1, event_id="1") is self.duplicate
        assert other.get(A) == 1

    def test_closing_a_store_that_others_merge_through(self) -> None:
        """Each of them ends, with results or an error of ours; merged again, all is counted once."""
        tried: list[Update] = []
        problems: list[BaseException] = []

        def merge(store: Store[Any], name: str, merged: threading.Semaphore) -> None:
            for n in range(1_000_000):
                updates = [Update(Key(name), 1, f"{name}/{n}/{i}") for i in range(3)]
                tried.extend(updates)
                try:
                    errors = [result for result in store.merge_updates(updates) if isinstance(result, Exception)]
                    if errors:
                        raise errors[0]
                except MurmurError:
                    return
                except BaseException as err:
                    problems.append(err)
                    return
                finally:
                    merged.release()

        for turn in range(20):
            store, merged = self.open(), threading.Semaphore(0)
            threads = [
                # Daemons, so that one that waits for ever fails this test and does not hold up those after it.
                threading.Thread(target=merge, args=(store, f"{turn}/{i}", merged), daemon=True)
                for i in range(32)
            ]
            for thread in threads:
                thread.start()
            for _ in range(3 * turn):
                assert merged.acquire(timeout=_DEADLINE_S)
            store.close()
            deadline = time.monotonic() + _DEADLINE_S
            for thread in threads:
                thread.join(max(deadline - time.monotonic(), 0.0))
            assert [thread.name for thread in threads if thread.is_alive()] == []
        assert problems == []
        store = self.open()
        assert all(isinstance(result, Outcome) for result in store.merge_updates(tried))
        assert sum(value for _, value in store.scan()) == len(tried)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
    @pytest.mark.parametrize("situation", ["opened", "used", "merging", "closed"])
    def test_a_fork(self, situation: str) -> None:
        """A child opens anew what its parent had open, or says that it cannot; the parent does not notice."""
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        parent = context.Process(target=_fork_and_merge, args=(self.spec(self.clock), situation, theirs))
        parent.start()
        theirs.close()
        try:
            assert mine.poll(_DEADLINE_S), "the child or its parent hangs"
            problem = mine.recv()
            parent.join(_DEADLINE_S)
            assert (problem, parent.exitcode) == ("", 0)
        finally:
            parent.kill()
            parent.join()
            mine.close()

    def test_several_threads_count_exactly(self) -> None:
        """Threads that merge overlapping sets of the same events, through one store and through their own."""
        shared = self.open()
        stores = [shared, shared, self.open(), self.open()]
        problems: list[BaseException] = []

        def merge(store: Store[Any], first: int) -> None:
            try:
                for start in range(first, first + 300, 30):
                    updates = [Update(Key(f"k{i % 5}"), 1, str(i)) for i in range(start, start + 60)]
                    assert all(isinstance(result, Outcome) for result in store.merge_updates(updates))
            except BaseException as err:
                problems.append(err)

        threads = [threading.Thread(target=merge, args=(store, 50 * i)) for i, store in enumerate(stores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        # Events 0 .. 479, each in one of five keys.
        assert shared.get_many([Key(f"k{i}") for i in range(5)]) == [96] * 5

    def test_a_store_of_another_kind_is_noticed(self) -> None:
        """Opened for another monoid or another length of bucket, it fails and says how it was written."""
        self.open(Sum(), DAY).merge_update(A, 1, event_id="1")
        with pytest.raises(SchemaMismatch, match="'sum'"):
            self.open(Max(), DAY)
        with pytest.raises(SchemaMismatch, match="1d"):
            self.open(Sum(), DAY / 24)
        with pytest.raises(SchemaMismatch):
            self.open(Sum())

    def test_a_table_holds_one_aggregate(self) -> None:
        """A count is no sum, and the sum of another field is another aggregate; where no field is named, it may be
        any."""
        self.open(Sum().of("cents")).merge_update(A, 1, event_id="1")
        for same in (Sum().of("cents"), Sum()):
            store = self.open(same)
            assert store.merge_update(A, 1, event_id="1") is self.duplicate
            assert store.get(A) == 1
        for other in (Count(), Sum().of("items"), Max().of("cents")):
            with pytest.raises(SchemaMismatch, match=r"'cents'.*another table, such as"):
                self.open(other)

    def test_the_first_field_that_is_named_is_recorded(self) -> None:
        """Also where others have written before, without one."""
        self.open(Sum()).merge_update(A, 1, event_id="1")
        self.open(Sum().of("cents")).merge_update(A, 1, event_id="2")
        self.open(Sum()).merge_update(A, 1, event_id="3")
        with pytest.raises(SchemaMismatch, match="'cents'"):
            self.open(Sum().of("items"))

    @pytest.mark.parametrize("other", [Sum(), Sum().of("n")])
    def test_another_aggregate_is_never_taken_for_duplicates(self, other: Monoid[Any]) -> None:
        """Not even where both were opened before either wrote: one of them fails, when it is opened or first writes."""

        def merge_both() -> None:
            for store in [self.open(Count()), self.open(other)]:
                store.merge_update(A, 5, event_id="1")

        with pytest.raises(SchemaMismatch, match="'count'"):
            merge_both()
        assert self.open(Count()).merge_update(B, 1, event_id="1") is self.merged

    def test_what_is_deleted_is_gone_with_its_events(self) -> None:
        """All buckets of an entity, and what is known of their events; not those of one whose name begins like it."""
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
        """Entities that start with a text, buckets of a range with both its ends."""
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

    def test_what_has_expired_is_deleted_too(self) -> None:
        """It cannot be read any more, and is still there."""
        if self.appends:
            pytest.skip(_AGE)
        store = self.open()
        store.merge_updates([Update(A, 1, "1", DAY), Update(B, 1, "1", DAY)])
        self.clock.time += DAY.total_seconds() + 1
        assert store.get(A) is None
        assert store.delete("a") == 1
        assert store.merge_update(A, 1, event_id="1", ttl=DAY) is self.merged

    def test_any_number_of_rows_is_deleted(self) -> None:
        """More than any page holds."""
        store = self.open()
        store.merge_updates([Update(Key(f"k{i:05d}"), 1, "1") for i in range(2_500)])
        store.merge_updates([Update(A, 1, "1"), Update(Key("l"), 1, "1")])
        assert store.delete("k", prefix=True) == 2_500
        assert [key for key, _ in store.scan()] == [A, Key("l")]

    def test_deleting_beside_a_writer(self) -> None:
        """Whatever is deleted while others write: the rest is exact, its events stay known, and what was deleted counts
        anew."""
        writer, eraser = self.open(), self.open()
        events = [[Update(Key(f"{kind}/{i % 3}", i % 2), 1, str(i)) for kind in ("gone", "kept")] for i in range(400)]
        results: list[Any] = []
        started, done = threading.Event(), threading.Event()

        def write() -> None:
            for i in range(0, len(events), 10):
                results.extend(writer.merge_updates([u for pair in events[i : i + 10] for u in pair]))
                started.set()
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        started.wait()
        while not done.is_set():
            eraser.delete("gone/", prefix=True)
        thread.join()
        eraser.delete("gone/", prefix=True)
        assert results == [self.merged] * 800
        model: dict[Key, int] = {}
        for _, update in events:
            model[update.key] = model.get(update.key, 0) + 1
        assert dict(writer.scan()) == model
        again = [eraser.merge_updates(pair) for pair in events]
        assert again == [[self.merged, self.duplicate]] * 400
        assert dict(writer.scan()) == model | {Key(f"gone{key.entity[4:]}", key.bucket): n for key, n in model.items()}

    def test_the_schema_is_recorded(self) -> None:
        """What was written can be asked for without opening the store."""
        self.open(Sum(), DAY).merge_update(A, 1, event_id="1")
        assert self.made is not None
        schema = self.made.recorded_schema()
        assert schema is not None
        assert schema[:2] == ("sum", DAY)


def _fork_and_merge(spec: StoreSpec, situation: str, answer: Connection) -> None:
    """Be a process that uses a store and forks; answer with what goes wrong, which may be nothing."""
    try:
        _check_fork(spec, situation)
        answer.send("")
    except BaseException as err:
        answer.send(repr(err))


def _check_fork(spec: StoreSpec, situation: str) -> None:
    store: Store[Any] = spec.open(Sum())
    merged, duplicate = _answers(getattr(store, "appends", False))
    done = threading.Event()
    n_merged = 0

    def merge() -> None:
        nonlocal n_merged
        while not done.is_set():
            assert store.merge_update(B, 1, event_id=str(n_merged)) is merged
            n_merged += 1

    thread = threading.Thread(target=merge, daemon=True)
    if situation != "opened":
        assert store.merge_update(A, 1, event_id="parent") is merged
    if situation == "closed":
        store.close()
    if situation == "merging":
        thread.start()
    children = [_child(spec, store, situation, i) for i in range(5 if situation == "merging" else 1)]
    for child in children:
        _wait_for(child)
    if situation == "closed":
        store = spec.open(Sum())
    expected = merged if situation == "opened" else duplicate
    assert store.merge_update(A, 1, event_id="parent") is expected
    assert store.merge_update(A, 1, event_id="parent again") is merged
    done.set()
    if situation == "merging":
        thread.join(_DEADLINE_S)
        assert not thread.is_alive()
    assert store.get(B) == (n_merged or None)
    # What children merge is seen where the state is not that of a process.
    assert store.get(A) in {2, 2 + len(children)}
    store.close()


def _child(spec: StoreSpec, store: Store[Any], situation: str, number: int) -> int:
    """A child that merges, by the store that it has inherited and by one of its own, or is refused; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    merged, duplicate = _answers(getattr(store, "appends", False))
    try:
        refused = 0
        try:
            own = spec.open(Sum())
            assert own.merge_update(A, 1, event_id=f"child {number}") is merged
            if situation != "opened":
                assert own.merge_update(A, 1, event_id="parent") is duplicate
            own.close()
        except StoreUnavailable:
            refused += 1
        try:
            assert store.merge_update(A, 1, event_id=f"child {number}") is duplicate
        except StoreUnavailable:
            refused += 1
        # By one where the other is: but for a store that was closed, and is.
        assert refused == 1 if situation == "closed" else refused in (0, 2)
        store.close()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait_for(pid: int) -> None:
    deadline = time.monotonic() + _DEADLINE_S / 2
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")
