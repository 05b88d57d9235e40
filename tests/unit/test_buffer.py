"""When the buffer is full, what a flush writes, and what stays in it afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from murmur_beam.buffer import Buffer, FlushLimits
from murmur_beam.errors import ConfigurationError, PermanentError, TransientError
from murmur_beam.metrics import InMemory
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.processor import AtomicDedup, Config, RecordResult, merge_records
from murmur_beam.state.base import Result
from murmur_beam.state.memory import MemoryStore
from murmur_beam.testing import FakeClock, FaultyStore
from murmur_beam.windows import WindowConfig, daily
from tests.support.records import Record

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
NOW_US = 1_700_000_000 * SECOND_US
"""Where the fake clock stands."""
FOREVER = timedelta(days=1)
NO_LIMIT = FlushLimits(10**9, 10**9, FOREVER)


class Rows(Sum):
    """A sum that counts its folds: a store folds once for each row that it writes."""

    def __init__(self) -> None:
        self.folds = 0

    def fold(self, values: Iterable[int]) -> int:
        self.folds += 1
        return super().fold(values)


class Spy(FaultyStore[int]):
    """A store that remembers the updates of each call."""

    def __init__(self, clock: FakeClock, monoid: Sum | None = None, **faults: Any) -> None:
        super().__init__(MemoryStore(monoid or Sum(), clock), **faults)
        self.calls: list[list[Update]] = []

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        self.calls.append(list(updates))
        return super().merge_updates(updates)


def record(event_id: str | None = None, *entities: str, delta: int = 1, time_us: int = NOW_US) -> Record:
    """An event, by default of the key "a"."""
    return Record(event_id, time_us, entities or ("a",), delta)


class Merging:
    """A buffer whose records are merged exactly once, under the name "p"."""

    def __init__(
        self,
        clock: FakeClock,
        limits: FlushLimits = NO_LIMIT,
        window: WindowConfig | None = None,
        store: Spy | None = None,
        recorder: InMemory | None = None,
        cache: MemoryStore[int] | None = None,
    ) -> None:
        self.config = Config(recorder or InMemory(), dedup=AtomicDedup(), clock=clock)
        self.store, self.cache, self.window = store or Spy(clock), cache, window
        self.buffer: Buffer[Any] = Buffer(limits, window.granularity_us if window else 0, clock.monotonic)

    def add(self, record: Record, token: Any) -> bool:
        """Add a record whose element has no size."""
        return self.buffer.add(None, token, record, 0)

    def flush(self) -> list[tuple[Any, Record, RecordResult]]:
        """Take all and merge it: token, record and result of each."""
        batch = self.buffer.take()
        results = merge_records(self.config, "p", batch.records, self.store, self.cache, self.window)
        return list(zip(batch.tokens, batch.records, results, strict=True))


def full_after(pending: Merging, records: Iterable[Record]) -> list[bool]:
    """What each ``add`` says."""
    return [pending.add(each, None) for each in records]


class TestLimits:
    def test_it_is_full_at_the_limit_of_events(self, clock: FakeClock) -> None:
        """With the last event and not earlier, even if the events touch few rows."""
        pending = Merging(clock, FlushLimits(3, 10**9, FOREVER))
        assert full_after(pending, [record(), record(), record()]) == [False, False, True]

    def test_it_stays_full_until_it_is_flushed(self, clock: FakeClock) -> None:
        """A driver that cannot flush at once gets the same answer at the next record."""
        pending = Merging(clock, FlushLimits(2, 10**9, FOREVER))
        assert full_after(pending, [record()] * 4) == [False, True, True, True]
        pending.flush()
        assert full_after(pending, [record()] * 2) == [False, True]

    def test_a_limit_of_one_event_flushes_each(self, clock: FakeClock) -> None:
        """The smallest limit."""
        assert full_after(Merging(clock, FlushLimits(1, 10**9, FOREVER)), [record()]) == [True]

    def test_it_is_full_at_the_limit_of_rows(self, clock: FakeClock) -> None:
        """Without a window each key is a row; a repeated key is the same row."""
        pending = Merging(clock, FlushLimits(10**9, 3, FOREVER))
        records = [record("1", "a"), record("2", "a", "b"), record("3", "b", "a"), record("4", "c"), record("5", "a")]
        assert full_after(pending, records) == [False, False, False, True, True]

    def test_one_record_may_fill_it(self, clock: FakeClock) -> None:
        """A record with many keys may exceed the limit."""
        assert full_after(Merging(clock, FlushLimits(10**9, 3, FOREVER)), [record("1", *"abcde")]) == [True]

    def test_a_record_without_keys_touches_no_row(self, clock: FakeClock) -> None:
        """It counts as an event."""
        empty = Record("1", NOW_US, (), 1)
        assert full_after(Merging(clock, FlushLimits(2, 1, FOREVER)), [empty, empty]) == [False, True]

    def test_without_a_window_the_time_does_not_make_rows(self, clock: FakeClock) -> None:
        """One aggregate over all time is one row."""
        pending = Merging(clock, FlushLimits(10**9, 2, FOREVER))
        records = [record(time_us=day * DAY_US) for day in (-3, 0, 1, 20_000)]
        assert full_after(pending, records) == [False] * 4

    def test_with_a_window_each_bucket_is_a_row(self, clock: FakeClock) -> None:
        """The same entity on two days is two rows; so are the two sides of the epoch."""
        pending = Merging(clock, FlushLimits(10**9, 3, FOREVER), daily())
        times_us = [0, DAY_US - 1, -1, -DAY_US, DAY_US]
        assert full_after(pending, [record(time_us=t) for t in times_us]) == [False, False, False, False, True]

    def test_it_is_full_when_its_first_record_has_waited_for_the_age(self, clock: FakeClock) -> None:
        """The age is that of the first record, and is checked when a record is added."""
        pending = Merging(clock, FlushLimits(age=timedelta(seconds=10)))
        clock.time += 1000
        assert not pending.add(record(), None)
        clock.time += 9
        assert not pending.add(record(), None)
        clock.time += 1
        assert pending.add(record(), None)

    def test_the_clock_starts_anew_with_the_next_first_record(self, clock: FakeClock) -> None:
        """What has been written or forgotten does not age any more."""
        pending = Merging(clock, FlushLimits(age=timedelta(seconds=10)))
        pending.add(record(), None)
        clock.time += 60
        pending.buffer.take()
        assert not pending.add(record(), None)

    def test_events_and_rows_are_counted_anew_too(self, clock: FakeClock) -> None:
        """A flush, or a bundle that failed, leaves nothing behind."""
        for limits in (FlushLimits(2, 10**9, FOREVER), FlushLimits(10**9, 2, FOREVER)):
            pending = Merging(clock, limits)
            for entity in ("a", "b", "c"):
                assert not pending.add(record(None, entity), None)
                pending.buffer.take()

    def test_without_limits_it_has_the_default_ones(self, clock: FakeClock) -> None:
        """Events, rows and age; all three are bounded."""
        events = FlushLimits().events
        pending = Merging(clock, FlushLimits())
        assert full_after(pending, [record()] * events) == [False] * (events - 1) + [True]
        pending.buffer.take()
        rows = FlushLimits().rows
        assert full_after(pending, [record(None, *map(str, range(rows)))]) == [True]
        pending.buffer.take()
        pending.add(record(), None)
        clock.time += FlushLimits().age.total_seconds()
        assert pending.add(record(), None)

    @settings(deadline=None)
    @given(
        st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=3, unique=True), max_size=40),
        st.integers(1, 9),
        st.sampled_from([None, daily()]),
    )
    def test_rows_are_counted_to_the_last_one(
        self, keys: list[list[str]], rows: int, window: WindowConfig | None
    ) -> None:
        """It is full with the very record that touches the last row, and not before."""
        pending = Merging(FakeClock(), FlushLimits(10**9, rows, FOREVER), window)
        for _ in ("and again, with", "nothing left behind"):
            touched: set[tuple[str, int]] = set()
            for i, entities in enumerate(keys):
                touched |= {(entity, i % 2 if window else 0) for entity in entities}
                full = pending.add(Record(str(i), i % 2 * DAY_US, tuple(entities), 1), None)
                assert full == (len(touched) >= rows)
            pending.buffer.take()


class TestFlushLimits:
    @pytest.mark.parametrize("name", ["events", "rows"])
    @pytest.mark.parametrize("limit", [0, -1, 1.5, "5", True, None])
    def test_a_count_must_be_a_positive_integer(self, name: str, limit: Any) -> None:
        """Refused with its name, when it is made and not on a worker."""
        with pytest.raises(ConfigurationError) as caught:
            FlushLimits(**{name: limit})
        assert str(caught.value) == f"{name}: must be an integer of at least 1, got {limit!r}"

    @pytest.mark.parametrize("age", [timedelta(0), timedelta(seconds=-1), 5, "5s", None])
    def test_an_age_must_be_a_positive_timedelta(self, age: Any) -> None:
        """A bare number has no unit."""
        with pytest.raises(ConfigurationError) as caught:
            FlushLimits(age=age)
        assert str(caught.value) == f"age: must be a positive timedelta, got {age!r}"

    def test_the_least_of_each_is_fine(self) -> None:
        """One event, one row, one microsecond."""
        limits = FlushLimits(1, 1, timedelta(microseconds=1))
        assert (limits.events, limits.rows, limits.age) == (1, 1, timedelta(microseconds=1))

    def test_they_cannot_be_changed(self) -> None:
        """They are part of a spec that was checked."""
        with pytest.raises(AttributeError):
            FlushLimits().events = 0  # type: ignore[misc]


class TestFlush:
    def test_results_come_in_order_with_token_and_record(self, clock: FakeClock) -> None:
        """Each result stands beside what was added with it, however rows were put together."""
        pending = Merging(clock)
        records = [record("1", "a"), record("2", "b"), record("1", "a"), record("3", "a", "b"), record("2", "b", "c")]
        for i, each in enumerate(records):
            pending.add(each, f"token {i}")
        assert pending.flush() == [
            ("token 0", records[0], RecordResult(Outcome.MERGED)),
            ("token 1", records[1], RecordResult(Outcome.MERGED)),
            ("token 2", records[2], RecordResult(Outcome.DUPLICATE)),
            ("token 3", records[3], RecordResult(Outcome.MERGED)),
            ("token 4", records[4], RecordResult(Outcome.MERGED, ("b",))),
        ]

    def test_tokens_are_not_looked_at(self, clock: FakeClock) -> None:
        """Equal ones, and such as cannot be compared or hashed, come back as they are."""
        pending = Merging(clock)
        tokens = [[], [], object(), None]
        for i, token in enumerate(tokens):
            pending.add(record(str(i)), token)
        assert all(got is token for (got, _, _), token in zip(pending.flush(), tokens, strict=True))

    def test_a_row_is_written_once_however_many_events_touch_it(self, clock: FakeClock) -> None:
        """One call to the store, one fold for each row."""
        monoid = Rows()
        spy = Spy(clock, monoid)
        pending = Merging(clock, store=spy)
        for i in range(1000):
            pending.add(record(str(i), "all", "even" if i % 2 == 0 else "odd", delta=i), None)
        pending.flush()
        assert len(spy.calls) == 1
        assert len(spy.calls[0]) == 2000
        assert monoid.folds == 3
        assert spy.get_many([Key("all"), Key("even"), Key("odd")]) == [499_500, 249_500, 250_000]

    def test_a_window_puts_each_record_into_its_bucket(self, clock: FakeClock) -> None:
        """Rows are counted as they are written: by entity and bucket."""
        spy = Spy(clock)
        pending = Merging(clock, window=daily(), store=spy)
        for i, day in enumerate((19_675, 19_674, 19_675)):
            pending.add(record(str(i), time_us=day * DAY_US + 5), None)
        pending.flush()
        assert list(spy.scan()) == [(Key("a", 19_674), 1), (Key("a", 19_675), 2)]

    def test_an_expired_record_comes_back_as_such(self, clock: FakeClock) -> None:
        """In its place among the others."""
        pending = Merging(clock, window=daily(timedelta(days=1)))
        pending.add(record("1", time_us=NOW_US - 2 * DAY_US), 1)
        pending.add(record("2"), 2)
        assert [(token, result.outcome) for token, _, result in pending.flush()] == [
            (1, Outcome.EXPIRED),
            (2, Outcome.MERGED),
        ]

    def test_a_row_that_fails_hurts_only_its_records(self, clock: FakeClock) -> None:
        """The others merge; the failure comes back with its cause and the tries it took."""
        bad = PermanentError("no")
        faults = {"bad": bad, "busy": TransientError("busy")}
        spy = Spy(clock, fault=lambda update: faults.get(update.key.entity))
        pending = Merging(clock, store=spy)
        for i, entity in enumerate(("good", "bad", "busy")):
            pending.add(record(str(i), entity), entity)
        good, failed, busy = (result for _, _, result in pending.flush())
        assert good == RecordResult(Outcome.MERGED)
        assert failed == RecordResult(None, (), ("bad",), bad, 1)
        assert busy == RecordResult(None, (), ("busy",), faults["busy"], 3)

    def test_the_cache_gets_what_has_merged(self, clock: FakeClock) -> None:
        """A duplicate is not counted there again."""
        cache = MemoryStore(Sum(), clock)
        pending = Merging(clock, cache=cache)
        for event_id in ("1", "2", "1"):
            pending.add(record(event_id), None)
        pending.flush()
        assert cache.get(Key("a")) == 2

    def test_what_was_flushed_is_not_flushed_again(self, clock: FakeClock) -> None:
        """The next flush holds only what came after."""
        spy = Spy(clock)
        pending = Merging(clock, store=spy)
        pending.add(record("1", delta=5), 1)
        first = pending.flush()
        pending.add(record("2", delta=7), 2)
        assert [token for token, _, _ in pending.flush()] == [2]
        assert [token for token, _, _ in first] == [1]
        assert [[update.delta for update in call] for call in spy.calls] == [[5], [7]]

    def test_a_flush_that_breaks_leaves_nothing_to_be_flushed_by_accident(self, clock: FakeClock) -> None:
        """Its bundle fails and will come again whole."""
        spy = Spy(clock, fault=lambda update: (_ for _ in ()).throw(KeyboardInterrupt))
        pending = Merging(clock, store=spy)
        pending.add(record(), None)
        with pytest.raises(KeyboardInterrupt):
            pending.flush()
        assert pending.flush() == []
        assert len(spy.calls) == 1


class TestClear:
    def test_what_is_cleared_is_never_written(self, clock: FakeClock) -> None:
        """A bundle that failed is delivered again: its leftovers would count twice."""
        spy = Spy(clock)
        pending = Merging(clock, store=spy)
        pending.add(record("1"), None)
        pending.buffer.take()
        assert pending.flush() == []
        assert spy.calls == []

    def test_what_comes_after_is_written(self, clock: FakeClock) -> None:
        """Records and tokens stay together."""
        pending = Merging(clock)
        pending.add(record("1", delta=5), "old")
        pending.buffer.take()
        pending.add(record("2", delta=7), "new")
        assert pending.flush() == [("new", record("2", delta=7), RecordResult(Outcome.MERGED))]

    def test_results_handed_out_are_left_alone(self, clock: FakeClock) -> None:
        """They are a driver's own."""
        pending = Merging(clock)
        pending.add(record("1"), "token")
        flushed = pending.flush()
        pending.buffer.take()
        assert len(flushed) == 1


class TestAnyStream:
    @settings(deadline=None)
    @given(
        st.lists(
            st.builds(
                Record,
                st.sampled_from([f"e{i}" for i in range(5)]),
                st.integers(-2 * DAY_US, 2 * DAY_US),
                st.lists(st.sampled_from("abc"), max_size=3, unique=True).map(tuple),
                st.integers(-9, 9),
            )
        ),
        st.integers(1, 5),
        st.integers(1, 5),
        st.sampled_from([None, daily()]),
    )
    def test_flushing_when_told_to_is_the_same_as_one_flush_of_all(
        self, records: list[Record], events: int, rows: int, window: WindowConfig | None
    ) -> None:
        """Every record comes back once and in order, limits are kept, and the state does not depend on them."""
        clock = FakeClock()
        spy, at_once = Spy(clock), Spy(clock)
        pending = Merging(clock, FlushLimits(events, rows, FOREVER), window, spy)
        whole = Merging(clock, NO_LIMIT, window, at_once)
        flushed = []
        for i, each in enumerate(records):
            whole.add(each, i)
            if pending.add(each, i):
                flushed += pending.flush()
        flushed += pending.flush()
        expected = whole.flush()
        assert [(token, each) for token, each, _ in flushed] == list(enumerate(records))
        assert [result for _, _, result in flushed] == [result for _, _, result in expected]
        assert list(spy.scan()) == list(at_once.scan())
        for call in spy.calls:
            # The last record may overshoot, by at most its own three keys.
            assert len({update.key for update in call}) < rows + 3
