"""`Reader`: its answers to each question, compared with merged events and with slow, plain sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.errors import ConfigurationError, PermanentError, SchemaMismatch, StoreUnavailable
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Custom, Max, SetUnion, Sum, Timed, by_name
from murmur_beam.monoids.base import Monoid
from murmur_beam.reader import Reader
from murmur_beam.state.memory import MemorySpec, MemoryStore
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import FaultyStore
from murmur_beam.windows import WindowConfig, daily, hourly, minute
from tests.support.mean import MONOID as MEAN
from tests.support.plain import PlainStore

DAY = timedelta(days=1)
NOON = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)


def day(n: int) -> datetime:
    """A time in the daily bucket ``n``."""
    return datetime(1970, 1, 1, 9, tzinfo=timezone.utc) + n * DAY


def filled(values: dict[Key, Any], monoid: Monoid[Any] | None = None) -> MemoryStore[Any]:
    """A store that holds these aggregates."""
    store: MemoryStore[Any] = MemoryStore(monoid or Sum())
    store.merge_updates([Update(key, delta) for key, delta in values.items()])
    return store


class Watched(MemoryStore[int]):
    """Records how it is read."""

    def __init__(self) -> None:
        super().__init__(Sum())
        self.gets: list[int] = []
        self.scanned: list[Key] = []

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[int | None]:
        self.gets.append(len(keys))
        return super().get_many(keys)

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, int]]:
        for key, value in super().scan(prefix, first, last):
            self.scanned.append(key)
            yield key, value


class Later(MemoryStore[int]):
    """Records whether it is read fresh, as a store that folds later would be."""

    def __init__(self) -> None:
        super().__init__(Sum())
        self.asked: list[bool] = []

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[int | None]:
        self.asked.append(fresh)
        return super().get_many(keys)

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, int]]:
        self.asked.append(fresh)
        return super().scan(prefix, first, last)


def questions(reader: Reader[int], **fresh: bool) -> list[Any]:
    """All questions to a reader of days, about given entities and, last, about all."""
    return [
        reader.get("a", day(0), **fresh),
        reader.get_many(["a", "b"], day(0), **fresh),
        reader.window("a", 2 * DAY, day(0), **fresh),
        reader.window("a", 20_000 * DAY, day(0), **fresh),
        reader.range("a", day(0), day(2), **fresh),
        reader.range("a", day(0), day(20_000), **fresh),
        list(reader.buckets("a", day(0), day(2), **fresh)),
        reader.series("a", day(0), day(2), **fresh),
        list(reader.list(**fresh)),
        reader.top(1, **fresh),
    ]


class TestFresh:
    def test_given_entities_are_read_fresh_and_all_are_not(self) -> None:
        """However long the range is, and however it is read."""
        store = Later()
        questions(Reader(store, daily()))
        assert store.asked == [True] * 8 + [False] * 2

    @pytest.mark.parametrize("fresh", [True, False])
    def test_the_caller_may_override_it(self, fresh: bool) -> None:
        """For each question."""
        store = Later()
        questions(Reader(store, daily()), fresh=fresh)
        assert store.asked == [fresh] * 10

    @pytest.mark.parametrize("fresh", [{}, {"fresh": True}, {"fresh": False}])
    def test_a_store_without_the_argument_is_not_asked(self, fresh: dict[str, bool]) -> None:
        """It folds at once, and may have been written before the argument existed."""
        store = PlainStore(Sum())
        store.merge_updates([Update(Key("a", 0), 3)])
        assert questions(Reader(store, daily()), **fresh) == questions(Reader(filled({Key("a", 0): 3}), daily()))

    def test_a_store_that_passes_its_arguments_on_is_asked(self) -> None:
        """Though its own signature does not name the argument."""

        class Passing(Later):
            def get_many(self, *args: Any, **more: Any) -> list[int | None]:
                return super().get_many(*args, **more)

            def scan(self, *args: Any, **more: Any) -> Iterator[tuple[Key, int]]:
                return super().scan(*args, **more)

        store = Passing()
        reader = Reader(store, daily())
        reader.get("a", day(0), fresh=False)
        reader.top(1, fresh=True)
        assert store.asked == [False, True]

    @pytest.mark.parametrize("fresh", [True, False])
    def test_a_faulty_store_passes_it_on(self, fresh: bool) -> None:
        """To the wrapped store, also in `get`; and to one that lacks the argument, nothing."""
        store = Later()
        questions(Reader(FaultyStore(store), daily()), fresh=fresh)
        assert store.asked == [fresh] * 10
        assert FaultyStore(store).get(Key("a"), fresh=fresh) is None
        assert store.asked == [fresh] * 11
        without = PlainStore(Sum())
        questions(Reader(FaultyStore(without), daily()), fresh=fresh)
        assert without.reads

    def test_stores_that_fold_at_once_answer_the_same(self, tmp_path: Path) -> None:
        """The argument makes no difference there."""
        for spec in (MemorySpec(str(tmp_path)), SqliteSpec(str(tmp_path / "c.db"))):
            with Reader(spec.open(Sum(), DAY), daily()) as reader:
                reader.store.merge_updates([Update(Key("a", n), n) for n in range(4)])
                assert questions(reader, fresh=True) == questions(reader, fresh=False) == questions(reader)
                for fresh in (True, False):
                    assert reader.store.get(Key("a", 3), fresh=fresh) == 3


class TestPresentation:
    """A mean is stored as a sum and a count: states are combined first, and presented last."""

    STATES = {Key("a", 0): (9, 2), Key("a", 2): (1, 8), Key("b", 0): (50, 50), Key("c", 1): (0, 0)}

    def test_every_method_presents(self) -> None:
        """Totals are the mean of all events, not a mean of means; what is empty is the mean of nothing."""
        reader = Reader(filled(self.STATES, MEAN), daily())
        assert reader.get("a", day(0)) == 4.5
        assert reader.get_many(["a", "b", "x"], day(0)) == [4.5, 1.0, None]
        assert reader.range("a", day(0), day(2)) == 1.0
        assert reader.window("a", 3 * DAY, day(2)) == 1.0
        assert reader.range("x", day(0), day(2)) is None
        assert [mean for _, mean in reader.buckets("a", day(0), day(2))] == [4.5, 0.125]
        assert [mean for _, mean in reader.series("a", day(0), day(2))] == [4.5, None, 0.125]
        assert [*reader.list()] == [("a", 1.0, 2), ("b", 1.0, 1), ("c", None, 1)]

    def test_top_ranks_what_is_presented(self) -> None:
        """Not the stored pairs; the mean of nothing has no rank."""
        reader = Reader(filled(self.STATES, MEAN), daily())
        assert reader.top(5, "", day(0), day(0)) == [("a", 4.5), ("b", 1.0)]
        assert reader.top(5) == [("a", 1.0), ("b", 1.0)]
        assert reader.top(1, "", day(1), day(2)) == [("a", 0.125)]

    def test_states_can_be_read(self) -> None:
        """By callers that combine them further; the rank is that of the results."""
        reader = Reader(filled(self.STATES, MEAN), daily(), states=True)
        assert reader.get("a", day(0)) == (9, 2)
        assert reader.range("a", day(0), day(2)) == (10, 10)
        assert reader.top(1, "", day(0), day(0)) == [("a", (9, 2))]
        assert [*reader.list("b")] == [("b", (50, 50), 1)]
        assert [state for _, state in reader.series("a", day(0), day(2))] == [(9, 2), (0, 0), (1, 8)]


class TestGet:
    def test_without_a_window_an_entity_has_one_aggregate(self) -> None:
        """None where nothing was merged; a merged zero is a zero."""
        reader = Reader(filled({Key("a"): 3, Key("ab"): 5, Key("zero"): 0}))
        assert reader.get("a") == 3
        assert reader.get("zero") == 0
        assert reader.get("b") is None

    def test_with_a_window_a_time_selects_the_bucket(self) -> None:
        """The bucket that the time falls into, before 1970 as well, whatever the zone."""
        reader = Reader(filled({Key("a", 0): 3, Key("a", -1): 5}), daily())
        east = timezone(timedelta(hours=10))
        assert reader.get("a", day(0)) == 3
        assert reader.get("a", day(-1)) == 5
        assert reader.get("a", datetime(1970, 1, 1, 9, tzinfo=east)) == 5
        assert reader.get("a", day(1)) is None

    def test_many_values_come_in_the_requested_order(self) -> None:
        """Repeated and unknown entities keep their places."""
        reader = Reader(filled({Key("a", 2): 3, Key("東京", 2): 5, Key("a", 3): 7}), daily())
        assert reader.get_many(["東京", "b", "a", "東京"], day(2)) == [5, None, 3, 5]
        assert reader.get_many([], day(2)) == []

    def test_a_time_is_required_only_with_buckets(self) -> None:
        """Neither is guessed."""
        with pytest.raises(ConfigurationError, match=r"^at: is required: each time bucket has a separate aggregate"):
            Reader(filled({}), daily()).get("a")
        with pytest.raises(ConfigurationError, match=r"^at: the store has no time buckets; leave it out$"):
            Reader(filled({})).get("a", NOON)

    def test_a_time_without_a_zone_is_refused(self) -> None:
        """The error names the argument."""
        reader = Reader(filled({}), daily())
        naive = datetime(2026, 11, 20)
        with pytest.raises(ConfigurationError, match=r"^at: 2026-11-20T00:00:00 has no time zone"):
            reader.get("a", naive)
        with pytest.raises(ConfigurationError, match=r"^now: "):
            reader.window("a", DAY, naive)
        with pytest.raises(ConfigurationError, match=r"^start: "):
            reader.range("a", naive, NOON)
        with pytest.raises(ConfigurationError, match=r"^end: "):
            reader.series("a", NOON, naive)


class TestWindow:
    def test_the_buckets_of_last_n_are_combined(self) -> None:
        """The current bucket is the last of them; later and earlier ones do not count."""
        reader = Reader(filled({Key("a", n): 10**n for n in range(6)}), daily())
        assert reader.window("a", 3 * DAY, day(4)) == 11_100
        assert reader.window("a", timedelta(hours=25), day(4)) == 11_000
        assert reader.window("a", timedelta(microseconds=1), day(4)) == 10_000

    def test_no_values_give_the_identity(self) -> None:
        """A sum of 0, no maximum, an empty set."""
        assert Reader(filled({Key("ab", 0): 1}), daily()).window("a", DAY, day(0)) == 0
        assert Reader(filled({}, Max()), daily()).window("a", DAY, day(0)) is None
        assert Reader(filled({}, SetUnion()), daily()).window("a", DAY, day(0)) == frozenset()

    @given(
        granularity=st.timedeltas(timedelta(microseconds=1), timedelta(days=40)),
        buckets=st.floats(0.001, 500),
        now=st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc)),
    )
    def test_the_span_is_that_of_last_n(self, granularity: timedelta, buckets: float, now: datetime) -> None:
        """From its first bucket to its last, for any length."""
        config = WindowConfig(granularity)
        last = max(granularity * buckets, timedelta(microseconds=1))
        expected = config.last_n(now, last)
        start, end = Reader(filled({}), config).span(last, now)
        assert (config.bucket_id(start), config.bucket_id(end)) == (expected[0], expected[-1])
        assert (start, end) == (config.bucket_start(expected[0]), config.bucket_start(expected[-1]))

    def test_an_invalid_span_is_refused(self) -> None:
        """Not positive, or longer than the calendar."""
        reader = Reader(filled({}), daily())
        with pytest.raises(ConfigurationError, match=r"^last: must be positive, got 0:00:00$"):
            reader.window("a", timedelta(0), NOON)
        with pytest.raises(ConfigurationError, match=r"^last: .* is before the year 1$"):
            reader.window("a", timedelta(days=999_999), NOON)


class TestRange:
    def test_both_ends_are_included(self) -> None:
        """From the start's bucket to the end's."""
        reader = Reader(filled({Key("a", n): 10 ** (n + 2) for n in range(-2, 4)}), daily())
        assert reader.range("a", day(-1), day(1)) == 1_110
        assert reader.range("a", day(1), day(1)) == 1_000
        assert reader.range("a", day(-99), day(99)) == 111_111

    def test_an_end_before_the_start_is_an_empty_range(self) -> None:
        """Its sum is 0; within one bucket it is still that bucket."""
        reader = Reader(filled({Key("a", n): 1 for n in range(9)}), daily())
        assert reader.range("a", day(5), day(4)) == 0
        assert reader.series("a", day(5), day(4)) == []
        assert list(reader.buckets("a", day(5), day(4))) == []
        assert reader.range("a", NOON, NOON - timedelta(hours=1)) == reader.range("a", NOON, NOON)

    def test_a_series_has_every_bucket(self) -> None:
        """With the time at which each begins, and the identity where it is empty."""
        reader = Reader(filled({Key("a", -1): 3, Key("a", 1): 0, Key("aa", 0): 9}), daily())
        start = datetime(1969, 12, 31, tzinfo=timezone.utc)
        assert reader.series("a", day(-1), day(2)) == [
            (start, 3),
            (start + DAY, 0),
            (start + 2 * DAY, 0),
            (day(2).replace(hour=0), 0),
        ]

    def test_buckets_are_those_with_values(self) -> None:
        """A merged 0 is a value."""
        reader = Reader(filled({Key("a", -1): 3, Key("a", 1): 0, Key("aa", 0): 9}), daily())
        assert [(start.day, value) for start, value in reader.buckets("a", day(-1), day(2))] == [(31, 3), (2, 0)]

    def test_values_are_combined_in_the_order_of_time(self) -> None:
        """This matters for a monoid that is not commutative."""
        text: Monoid[Any] = Custom("text", "", lambda a, b: a + b, commutative=False)
        reader = Reader(filled({Key("a", n): letter for n, letter in [(2, "c"), (0, "a"), (1, "b")]}, text), daily())
        assert reader.range("a", day(0), day(2)) == "abc"
        assert list(reader.list()) == [("a", "abc", 3)]

    @pytest.mark.parametrize("length", [1, 999, 1_000, 1_001, 9_999, 10_000, 10_001, 20_000])
    def test_long_and_short_ranges_agree(self, length: int) -> None:
        """However many buckets a range has, it holds those of its ends and none beyond."""
        values = {Key("a", n): 1 for n in (-1, 0, length // 2, length - 1, length)}
        reader = Reader(filled({**values, Key("ab", 0): 100, Key("A", 0): 100}), minute())
        start, end = (minute().bucket_start(n) for n in (0, length - 1))
        expected = sorted({0, length // 2, length - 1})
        assert [minute().bucket_id(t) for t, _ in reader.buckets("a", start, end)] == expected
        assert reader.range("a", start, end) == len(expected)
        assert len(reader.series("a", start, end)) == length

    def test_a_short_range_is_read_by_its_keys_alone(self) -> None:
        """At most 1,000 at once, and no other entity is read."""
        store = Watched()
        reader = Reader(store, minute())
        reader.range("a", NOON, NOON + timedelta(minutes=2_499))
        assert store.gets == [1_000, 1_000, 500]
        assert store.scanned == []

    def test_centuries_of_minutes_are_read_by_a_scan(self) -> None:
        """One scan, which stops after the entity."""
        store = Watched()
        store.merge_updates([Update(Key(entity, n), 1) for entity in ("Z", "a", "ab", "b") for n in range(3)])
        reader = Reader(store, minute())
        assert reader.range("a", datetime(1500, 1, 1, tzinfo=timezone.utc), NOON) == 3
        assert reader.window("a", timedelta(days=100_000), NOON) == 3
        assert store.gets == []
        assert store.scanned == 2 * [Key("a", 0), Key("a", 1), Key("a", 2), Key("ab", 0)]

    def test_it_requires_buckets(self) -> None:
        """A store without a window is refused."""
        reader = Reader(filled({Key("a"): 1}))
        for ask in (reader.range, reader.series, reader.buckets):
            with pytest.raises(SchemaMismatch, match=r"^the store has no time buckets: each entity has one aggregate"):
                ask("a", NOON, NOON)
        with pytest.raises(SchemaMismatch, match="no time buckets"):
            reader.window("a", DAY, NOON)


class TestList:
    def test_entities_come_in_order_with_all_their_buckets(self) -> None:
        """One line each: name, combined value, number of buckets."""
        store = filled({Key("b", 7): 1, Key("a", 1): 2, Key("ab", 1): 4, Key("a", -1): 8, Key("É", 0): 16})
        assert list(Reader(store, daily()).list()) == [("a", 10, 2), ("ab", 4, 1), ("b", 1, 1), ("É", 16, 1)]

    def test_a_prefix_selects_entities(self) -> None:
        """An entity is a prefix of itself; an unknown prefix gives nothing."""
        reader = Reader(filled({Key("a"): 1, Key("ab"): 2, Key("abc"): 4, Key("b"): 8}))
        assert list(reader.list("ab")) == [("ab", 2, 1), ("abc", 4, 1)]
        assert list(reader.list("c")) == []

    def test_it_reads_lazily(self) -> None:
        """The first entity is returned before the others are read."""
        store = Watched()
        store.merge_updates([Update(Key(f"{n:03}"), n) for n in range(100)])
        assert next(Reader(store).list()) == ("000", 0, 1)
        assert len(store.scanned) == 2

    @given(st.dictionaries(st.tuples(st.text("aé\0", min_size=1), st.integers(-3, 3)), st.integers(-9, 9)))
    def test_list_and_range_agree(self, values: dict[tuple[str, int], int]) -> None:
        """Over all buckets the totals are the same, for entities that are prefixes of one another."""
        reader = Reader(filled({Key(*key): value for key, value in values.items()}), daily())
        totals = {entity: reader.range(entity, day(-3), day(3)) for entity, _ in values}
        assert {entity: value for entity, value, _ in reader.list()} == totals
        assert sum(buckets for _, _, buckets in reader.list()) == len(values)


class TestTotals:
    @given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6))
    def test_sums_are_exact_however_large(self, values: list[int]) -> None:
        """Each bucket fits into 64 bits; their total need not."""
        reader = Reader(filled({Key("a", n): value for n, value in enumerate(values)}), daily())
        assert reader.range("a", day(0), day(9)) == sum(values)
        assert reader.window("a", 9 * DAY, day(8)) == sum(values)
        assert list(reader.list()) == [("a", sum(values), len(values))]
        assert reader.top(1) == [("a", sum(values))]

    def test_values_that_a_monoid_refuses_to_combine_name_the_key(self) -> None:
        """A user's own monoid may have limits for results, too."""

        def small(a: int, b: int) -> int:
            if a + b > 10:
                raise PermanentError("too large")
            return a + b

        reader = Reader(filled({Key("a", 0): 9, Key("a", 1): 9}, Custom("small", 0, small)), daily())
        with pytest.raises(PermanentError, match=r"^all buckets of 'a' together: too large$"):
            list(reader.list())


class TestTop:
    def test_the_largest_come_first(self) -> None:
        """By the total of all buckets; equal ones by name."""
        store = filled({Key("a", 0): 5, Key("b", 0): 4, Key("b", 1): 4, Key("d", 0): 5, Key("c", 0): -9})
        reader = Reader(store, daily())
        assert reader.top(3) == [("b", 8), ("a", 5), ("d", 5)]
        assert reader.top(99) == [("b", 8), ("a", 5), ("d", 5), ("c", -9)]
        assert reader.top(0) == []

    def test_times_and_prefix_restrict_it(self) -> None:
        """Both ends included, either may be omitted."""
        store = filled({Key(entity, n): 10**n for entity in ("a", "ab") for n in range(4)})
        reader = Reader(store, daily())
        assert reader.top(1, "ab") == [("ab", 1_111)]
        assert reader.top(1, start=day(1), end=day(2)) == [("a", 110)]
        assert reader.top(1, start=day(2)) == [("a", 1_100)]
        assert reader.top(1, end=day(0)) == [("a", 1)]
        assert reader.top(1, start=day(3), end=day(2)) == []

    def test_only_numbers_have_a_largest(self) -> None:
        """Sets and timed values compare in Python, but not in a way that anybody means."""
        with pytest.raises(SchemaMismatch, match=r"aggregates, but 'a' holds a frozenset \(monoid 'set_union'\)$"):
            Reader(filled({Key("a"): frozenset("x")}, SetUnion())).top(1)
        with pytest.raises(SchemaMismatch, match=r"numeric aggregates, but 'a' holds a Timed \(monoid 'last'\)$"):
            Reader(filled({Key("a"): Timed(0, 1)}, by_name("last"))).top(1)
        assert Reader(filled({Key("a"): 1.5, Key("b"): 2}, Max())).top(1) == [("b", 2)]

    def test_times_require_buckets(self) -> None:
        """A store without a window is refused."""
        with pytest.raises(SchemaMismatch, match="no time buckets"):
            Reader(filled({})).top(1, end=NOON)


class TestOpen:
    def test_the_recorded_schema_is_used(self, tmp_path: Path) -> None:
        """Monoid and bucket length; neither needs to be given."""
        spec = SqliteSpec(str(tmp_path / "c.db"))
        with Reader(spec.open(Max(), timedelta(hours=1)), hourly()) as writer:
            writer.store.merge_update(Key("a", hourly().bucket_id(NOON)), 3)
        with Reader.open(f"sqlite:///{tmp_path}/c.db") as reader:
            assert reader.monoid.name == "max"
            assert reader.window_config == hourly()
            assert reader.get("a", NOON) == 3
        with Reader.open(spec, Max(), hourly(retention=DAY)) as reader:
            assert reader.window("a", DAY, NOON) == 3

    def test_the_context_manager_closes_the_store(self, tmp_path: Path) -> None:
        """At the end of a `with` block."""
        spec = SqliteSpec(str(tmp_path / "c.db"))
        with closing(spec.open(Sum())) as store:
            store.merge_update(Key("b"), 1)
        with Reader.open(spec) as reader:
            assert reader.get("a") is None
        with pytest.raises(StoreUnavailable):
            reader.get("a")

    def test_another_monoid_or_window_is_refused(self, tmp_path: Path) -> None:
        """The error says what the store holds."""
        spec = SqliteSpec(str(tmp_path / "c.db"))
        with closing(spec.open(Sum(), DAY)) as store:
            store.merge_update(Key("a"), 1)
        with pytest.raises(SchemaMismatch, match="holds values of monoid 'sum'"):
            Reader.open(spec, Max())
        with pytest.raises(SchemaMismatch, match="holds values of monoid 'sum'"):
            Reader.open(spec, window=hourly())

    def test_an_unused_store_is_left_unused(self, tmp_path: Path) -> None:
        """No file, table or schema is made, even with a monoid given: pipelines decide those."""
        missing = tmp_path / "missing.db"
        with pytest.raises(StoreUnavailable, match="no such file"):
            Reader.open(f"sqlite:///{missing}", Sum())
        assert not missing.exists()

        path = tmp_path / "c.db"
        SqliteSpec(str(path)).open(Sum()).close()
        before = path.read_bytes()
        with pytest.raises(StoreUnavailable, match=r"table=other: nothing was written to it yet; check the name"):
            Reader.open(f"sqlite:///{path}?table=other", Sum())
        assert path.read_bytes() == before

        memory = MemorySpec(str(tmp_path))
        with pytest.raises(StoreUnavailable, match="nothing was written to it yet"):
            Reader.open(memory, Sum())
        assert memory.recorded_schema() is None

    @pytest.mark.parametrize("name", ["mine", "os:sep", "base"])
    def test_a_user_s_monoid_has_to_be_given(self, tmp_path: Path, name: str) -> None:
        """Its recorded name is only a name: nothing is imported because a file says so."""
        mine: Monoid[Any] = Custom(name, 0, lambda a, b: a | b, idempotent=True)
        spec = SqliteSpec(str(tmp_path / "c.db"))
        with Reader(spec.open(mine)) as writer:
            writer.store.merge_updates([Update(Key("a"), 5), Update(Key("a"), 2)])
        with pytest.raises(ConfigurationError) as caught:
            Reader.open(spec)
        assert str(caught.value).startswith(f"monoid: {spec} was written with '{name}', which is not one of count, ")
        assert str(caught.value).endswith("pass --monoid package.module:attribute (in Python: monoid=)")
        with Reader.open(spec, mine) as reader:
            assert reader.get("a") == 7

    def test_a_bad_uri_is_refused(self) -> None:
        """Saying what there is."""
        with pytest.raises(ConfigurationError, match="unknown store scheme"):
            Reader.open("counts.db")

    def test_reading_changes_nothing(self, tmp_path: Path) -> None:
        """The file has the same bytes after every question."""
        path = tmp_path / "c.db"
        with Reader(SqliteSpec(str(path)).open(Sum(), DAY), daily()) as writer:
            writer.store.merge_updates([Update(Key("a", n), n, f"e{n}") for n in range(5)])
        before = path.read_bytes()
        with Reader.open(f"sqlite:///{path}") as reader:
            assert reader.get("a", day(3)) == 3
            assert reader.window("a", 2 * DAY, day(4)) == 7
            assert reader.range("a", datetime(1, 1, 1, tzinfo=timezone.utc), NOON) == 10
            assert len(reader.series("a", day(0), day(9))) == 10
            assert list(reader.list()) == [("a", 10, 5)]
            assert reader.top(1) == [("a", 10)]
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["c.db"]
