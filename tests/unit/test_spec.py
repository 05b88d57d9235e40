"""Every argument is checked where the pipeline is built, and a wrong one is refused by its name."""

from __future__ import annotations

import argparse
import functools
import logging
import operator
import pickle
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from murmur_beam.buffer import FlushLimits
from murmur_beam.decode import decode_csv
from murmur_beam.errors import ConfigurationError, StoreUnavailable
from murmur_beam.extract import Extraction
from murmur_beam.metrics import InMemory
from murmur_beam.model import Key
from murmur_beam.monoids import Count, Custom, Max, Monoid, Sum, names
from murmur_beam.options import DEFAULT_NAME, MergeOptions, add_flags, from_flags
from murmur_beam.processor import AtomicDedup, Config, NoDedup
from murmur_beam.spec import FoldPlan, MergeSpec, resolve
from murmur_beam.state.base import Schema
from murmur_beam.state.memory import MemorySpec, MemoryStore
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.times import TimeFormat
from murmur_beam.windows import WindowConfig, daily

DAY = timedelta(days=1)
ARGUMENTS: dict[str, Any] = {"key": "page", "value": "n", "event_id": "id", "store": "memory://test_spec"}
"""The arguments that a sum needs; each test changes some of them."""


class MyMonoid(Sum):
    """A user's own monoid, to be named as ``tests.unit.test_spec:MINE``."""


MINE = MyMonoid()
NOT_A_MONOID = 5


def three_keys(record: Any) -> list[str]:
    """A user's function, which can be pickled."""
    return ["a", "b", "c"]


class MySpec:
    """A user's own store."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> Any:
        if self.error is not None:
            raise self.error
        return MemoryStore(monoid)

    def recorded_schema(self) -> Schema | None:
        return None


@dataclass
class UnhashableSpec(MySpec):
    """A spec that can be changed, and so compares but has no hash."""

    path: str = "counts.db"


def made(**changes: Any) -> MergeSpec:
    """The spec of the arguments with some changes."""
    return resolve(MergeOptions(**{**ARGUMENTS, **changes}))


def refusal(argument: str, make: Callable[[], object]) -> str:
    """Why an argument is refused; the error must name it."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.argument == argument
    return caught.value.problem


class TestDefaults:
    def test_omitted_arguments_have_defaults(self) -> None:
        """A sum over all time, each event once, dead letters for failures, nothing unpickled."""
        spec = made()
        assert spec.name == DEFAULT_NAME == "murmur"
        assert spec.monoid.name == "sum"
        assert spec.window is None
        assert spec.granularity is None
        assert spec.store == MemorySpec("test_spec")
        assert spec.cache is None
        assert spec.config.dedup == AtomicDedup()
        assert spec.config.max_attempts == 3
        assert spec.flush == FlushLimits()
        assert spec.on_exhausted == "dead_letter"
        assert spec.unpickle is False
        assert spec.extraction == Extraction(keys=("page",), value="n", event_id="id")

    def test_none_counts_as_omitted(self) -> None:
        """A driver may pass on all its arguments, whether or not it received them."""
        nothing = dict.fromkeys(
            [
                *("name", "keys", "monoid", "window", "retention", "cache", "event_time", "decode", "config", "flush"),
                *("on_exhausted", "unpickle"),
            ]
        )
        spec = made(**nothing)
        assert spec.extraction == made().extraction
        assert (spec.name, spec.window, spec.unpickle) == ("murmur", None, False)

    def test_a_config_without_dedup_is_exactly_once(self) -> None:
        """Whatever else it says: only `NoDedup` turns dedup off."""
        for config in (Config(), Config(max_attempts=7), Config().with_backoff(timedelta(0), timedelta(1))):
            assert made(config=config).config == config.with_dedup(AtomicDedup())
        assert made(config=Config(dedup=NoDedup())).config.dedup == NoDedup()

    def test_given_arguments_are_kept(self) -> None:
        """Each argument ends where it belongs."""
        config, flush, window = Config(max_attempts=7, dedup=NoDedup()), FlushLimits(events=5), daily(90 * DAY)
        spec = resolve(
            MergeOptions(
                name="pages",
                keys=["page", "=all"],
                value="n",
                monoid=Max(),
                window=window,
                store=SqliteSpec("counts.db"),
                cache="memory://copy",
                event_id="message:id",
                event_time="at",
                decode="csv",
                config=config,
                flush=flush,
                on_exhausted="raise",
                unpickle=True,
            )
        )
        assert spec.extraction == Extraction(("page", "=all"), "n", "message:id", "at", "csv")
        assert (spec.name, spec.monoid.name, spec.window, spec.granularity) == ("pages", "max", window, DAY)
        assert (spec.store, spec.cache) == (SqliteSpec("counts.db"), MemorySpec("copy"))
        assert spec.config is config
        assert spec.flush is flush
        assert (spec.on_exhausted, spec.unpickle) == ("raise", True)


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("changes", "argument", "reason"),
        [
            ({"store": None}, "store", "is missing; write a URI"),
            ({"store": ""}, "store", "unknown store scheme"),
            (
                {"store": "counts.db"},
                "store",
                "unknown store scheme in 'counts.db'; use one of ",
            ),
            ({"store": "redis://localhost"}, "store", "unknown store scheme in 'redis://localhost'"),
            ({"store": "sqlite://counts.db"}, "store", "write sqlite:///counts.db (relative)"),
            ({"store": "sqlite:///"}, "store", "sqlite needs a file"),
            ({"store": "sqlite:///a.db?tabel=x"}, "store", "unknown option tabel"),
            ({"store": "sqlite:///a.db?table=a-b"}, "store", "table 'a-b': use letters, digits and underscores"),
            ({"store": "sqlite:///a.db?dedup_retention=soon"}, "store", "dedup_retention: 'soon' is not a duration"),
            ({"store": "memory://a?x=1"}, "store", "unknown option x in 'memory://a?x=1'; it takes no options"),
            ({"store": "memory://a/b"}, "store", "has more than a name"),
            (
                {"store": "bigtable://p/i/t?shards=8&shards=9"},
                "store",
                "shards is in 'bigtable://p/i/t?shards=8&shards=9' twice",
            ),
            ({"store": "bigtable://p/i/t?shards=300"}, "store", "shards must be an integer from 1 to 256, got 300"),
            ({"store": "bigtable://p/i/t?timeout_s=x"}, "store", "timeout_s: 'x' is not a decimal number"),
            ({"store": "bigtable://p/i/t?clock=x"}, "store", "unknown option clock"),
            ({"store": "memory://[::1"}, "store", "is not a URI"),
            ({"store": 5}, "store", "expected a URI or a store spec such as SqliteSpec, got 5"),
            ({"store": MemoryStore(Sum())}, "store", "expected a URI or a store spec"),
            ({"store": MemorySpec}, "store", "write its parentheses"),
            ({"store": UnhashableSpec()}, "store", "unhashable type"),
            ({"cache": "redis://localhost"}, "cache", "unknown store scheme"),
            ({"cache": "sqlite:///a.db?x=1"}, "cache", "unknown option x"),
            ({"cache": 5}, "cache", "expected a URI or a store spec"),
            ({"cache": "memory://test_spec"}, "cache", "is the store itself, where each event would count twice"),
            ({"cache": MemorySpec("test_spec")}, "cache", "is the store itself"),
            ({"key": None}, "key", "is missing; say what to count by"),
            ({"keys": ["a"]}, "key", "give either key or keys, not both"),
            ({"keys": []}, "key", "give either key or keys, not both"),
            ({"key": None, "keys": []}, "keys", "is empty; say what to count by"),
            ({"key": None, "keys": iter(())}, "keys", "is empty"),
            ({"key": None, "keys": "page"}, "keys", "expected a list or a function, got 'page'; for one key use key="),
            ({"key": None, "keys": 5}, "keys", "expected a list or a function, got 5"),
            ({"key": None, "keys": ["a", "{"]}, "keys", "template '{'"),
            ({"key": None, "keys": ["a", 5]}, "keys", "expected a field name"),
            ({"key": ""}, "key", "expected a field name"),
            ({"key": ["a"]}, "key", "expected a field name"),
            ({"key": "{}"}, "key", "template '{}'"),
            ({"value": None}, "value", "monoid 'sum' needs one: a field name or a function"),
            ({"value": ""}, "value", "expected a field name"),
            ({"value": "message:x"}, "value", "write message:id or message:publish_time"),
            ({"value": None, "monoid": Max()}, "value", "monoid 'max' needs one"),
            ({"event_id": None}, "event_id", "is missing, but without it a redelivery would count twice in a 'sum'"),
            ({"event_id": None, "monoid": "count"}, "event_id", "turn dedup off by name to count at least once"),
            ({"event_id": ""}, "event_id", "expected a field name"),
            ({"event_time": "a..b"}, "event_time", "a dot too many"),
            ({"decode": "xml"}, "decode", "unknown format 'xml'; choose json, csv or write package.module:attribute"),
            ({"decode": ["json"]}, "decode", "expected json, csv or a function, got ['json']"),
            ({"monoid": "base"}, "monoid", f"unknown monoid 'base'; choose {', '.join(names())} or "),
            ({"monoid": ""}, "monoid", "unknown monoid ''"),
            ({"monoid": Max}, "monoid", "write its parentheses"),
            ({"monoid": int}, "monoid", "expected a Monoid or a name, got <class 'int'>"),
            ({"monoid": operator.add}, "monoid", "expected a Monoid or a name"),
            ({"monoid": "no_such_module:X"}, "monoid", "cannot load monoid 'no_such_module:X'"),
            ({"monoid": f"{__name__}:NO_SUCH"}, "monoid", "cannot load monoid"),
            ({"monoid": f"{__name__}:NOT_A_MONOID"}, "monoid", "is a int, not a Monoid"),
            ({"window": "fortnightly"}, "window", "or write daily, hourly or minute"),
            ({"window": "0s"}, "window", "granularity must be positive"),
            ({"window": ""}, "window", "is not a duration"),
            ({"window": 5}, "window", "expected a WindowConfig or a text such as daily or 15m, got 5"),
            ({"window": DAY}, "window", "expected a WindowConfig or a text"),
            ({"window": daily}, "window", "expected a WindowConfig or a text"),
            ({"retention": "90d"}, "retention", "needs a window"),
            ({"retention": 90 * DAY}, "retention", "needs a window"),
            ({"window": "daily", "retention": "90"}, "retention", "'90' is not a duration"),
            ({"window": "daily", "retention": "0d"}, "retention", "expected a positive duration such as 90d, got"),
            ({"window": "daily", "retention": -DAY}, "retention", "expected a positive duration"),
            ({"window": "daily", "retention": 90}, "retention", "expected a positive duration such as 90d, got 90"),
            ({"window": daily(), "retention": "90d"}, "retention", "belongs into the WindowConfig"),
            ({"config": {"max_attempts": 3}}, "config", "expected a Config, got {'max_attempts': 3}"),
            ({"config": Config}, "config", "expected a Config"),
            ({"flush": 100}, "flush", "expected FlushLimits, got 100"),
            ({"flush": FlushLimits}, "flush", "expected FlushLimits"),
            ({"name": ""}, "name", "expected a text that is not empty, got ''"),
            ({"name": 5}, "name", "expected a text that is not empty, got 5"),
            ({"on_exhausted": "drop"}, "on_exhausted", "expected dead_letter or raise, got 'drop'"),
            ({"on_exhausted": []}, "on_exhausted", "expected dead_letter or raise, got []"),
            ({"unpickle": "no"}, "unpickle", "expected True or False, got 'no'"),
            ({"unpickle": 1}, "unpickle", "expected True or False, got 1"),
        ],
    )
    def test_a_wrong_argument_is_refused_by_name(self, changes: dict[str, Any], argument: str, reason: str) -> None:
        """The error says what is wrong and what to write instead."""
        assert reason in refusal(argument, lambda: made(**changes))

    def test_a_class_in_place_of_an_instance_is_recognised(self) -> None:
        """Parentheses are missing, but only if it is the right class; any other is just wrong."""
        hint = "; write its parentheses"
        assert refusal("store", lambda: made(store=MemorySpec)).endswith(hint)
        assert refusal("monoid", lambda: made(monoid=Max)).endswith(hint)
        assert refusal("store", lambda: made(store=int)).endswith("got <class 'int'>")
        assert refusal("monoid", lambda: made(monoid=int)).endswith("got <class 'int'>")
        assert refusal("monoid", lambda: made(monoid=5)).endswith("got 5")

    @pytest.mark.parametrize(
        "store", [Path("counts.db"), SimpleNamespace(recorded_schema=len), SimpleNamespace(open=5)]
    )
    def test_half_a_spec_is_not_a_spec(self, store: Any) -> None:
        """A path, for example, can be opened too, but does not say what it holds."""
        problem = refusal("store", lambda: made(store=store))
        assert problem == f"expected a URI or a store spec such as SqliteSpec, got {store!r:.80}"

    def test_a_long_value_is_cut(self) -> None:
        """A wrong argument may be a whole table."""
        for argument in ("config", "flush", "window", "monoid", "store", "name", "unpickle", "on_exhausted"):
            assert len(refusal(argument, lambda: made(**{argument: list(range(10_000))}))) < 250  # noqa: B023 - called at once


class TestKeys:
    def test_one_key_may_be_a_field_or_a_function(self) -> None:
        """Of the record."""
        assert made(key="page/{page}").extraction.keys == ("page/{page}",)
        assert made(key=len).extraction.keys == (len,)

    @pytest.mark.parametrize("keys", [["a", "=b"], ("a", "=b"), iter(["a", "=b"])])
    def test_several_keys_may_be_any_iterable_of_fields(self, keys: Any) -> None:
        """They become a tuple, which can be compared."""
        assert made(key=None, keys=keys).extraction.keys == ("a", "=b")

    def test_several_keys_may_come_from_one_function(self) -> None:
        """The function is called for each record."""
        assert made(key=None, keys=three_keys).extraction.keys is three_keys


class TestMonoids:
    def test_a_monoid_may_be_an_instance_or_a_name(self) -> None:
        """Shipped, or a user's own by module and attribute."""
        monoid = Sum()
        assert made(monoid=monoid).monoid is monoid
        assert type(made(monoid="max").monoid) is Max
        assert made(monoid=f"{__name__}:MINE").monoid is MINE

    def test_a_count_needs_no_value(self) -> None:
        """It adds one, whatever the record."""
        assert made(monoid="count", value=None).extraction.value is None
        assert made(monoid=Count(), value=None).extraction.value is None

    def test_an_event_id_is_not_needed_where_folding_twice_is_harmless(self) -> None:
        """The maximum of the same number is the same number."""
        assert made(monoid="max", event_id=None).extraction.event_id is None
        flags = Custom("flags", 0, operator.or_, idempotent=True)
        assert made(monoid=flags, event_id=None).extraction.event_id is None

    def test_an_event_id_is_not_needed_without_dedup(self) -> None:
        """The user has chosen at least once."""
        assert made(event_id=None, config=Config(dedup=NoDedup())).extraction.event_id is None

    def test_a_deduper_needs_the_event_id_whatever_the_monoid(self) -> None:
        """It has nothing else to claim."""
        config = Config(dedup=SimpleNamespace(mark_seen=lambda event_id: True))
        assert "is missing" in refusal("event_id", lambda: made(monoid="max", event_id=None, config=config))


class TestWindows:
    @pytest.mark.parametrize(
        ("window", "retention", "config"),
        [
            ("daily", None, daily()),
            ("daily", "90d", daily(90 * DAY)),
            ("daily", 90 * DAY, daily(90 * DAY)),
            ("15m", "12h", WindowConfig(timedelta(minutes=15), timedelta(hours=12))),
            (daily(2 * DAY), None, daily(2 * DAY)),
        ],
    )
    def test_a_window_may_be_a_text_with_a_retention_or_a_window_config(
        self, window: Any, retention: Any, config: WindowConfig
    ) -> None:
        """Both ways give the same."""
        spec = made(window=window, retention=retention)
        assert spec.window == config
        assert spec.granularity == config.granularity


class TestPickling:
    def test_a_spec_reaches_the_workers_unchanged(self) -> None:
        """Text specs, functions, windows, stores and limits; those that can be compared are equal."""
        spec = resolve(
            MergeOptions(
                name="pages",
                keys=three_keys,
                value="n",
                monoid="max",
                window="daily",
                retention="90d",
                store="sqlite:///counts.db",
                cache="memory://copy",
                event_time="at",
                decode=decode_csv,
                config=Config(max_attempts=7, dedup=AtomicDedup()),
                flush=FlushLimits(events=7),
                on_exhausted="raise",
                unpickle=True,
            )
        )
        copy: MergeSpec = pickle.loads(pickle.dumps(spec))
        for name in ("name", "extraction", "window", "store", "cache", "flush", "on_exhausted", "unpickle"):
            assert getattr(copy, name) == getattr(spec, name)
        assert copy.monoid.name == "max"
        assert (copy.config.max_attempts, copy.config.dedup) == (7, AtomicDedup())

    def test_stores_of_a_pickled_spec_are_found_by_those_of_the_first(self) -> None:
        """Each step of a worker unpickles a spec of its own, and all share one open store."""
        spec = made(store="sqlite:///counts.db", cache="memory://copy")
        copy: MergeSpec = pickle.loads(pickle.dumps(spec))
        assert {spec.store: "open"}[copy.store] == "open"
        assert {spec.cache: "open"}[copy.cache] == "open"

    def test_a_relative_path_is_that_of_the_pipeline_and_not_of_the_worker(
        self, monkeypatch: Any, tmp_path: Path
    ) -> None:
        """A worker runs in another folder."""
        monkeypatch.chdir(tmp_path)
        pickled = pickle.dumps(made(store="sqlite:///counts.db"))
        monkeypatch.chdir("/")
        assert pickle.loads(pickled).store == SqliteSpec(str(tmp_path / "counts.db"))

    def test_specs_of_the_same_arguments_are_equal(self) -> None:
        """And of different ones are not."""
        config = Config(dedup=AtomicDedup())
        assert made(config=config) == made(config=config)
        for changes in ({"name": "x"}, {"key": "x"}, {"window": "daily"}, {"unpickle": True}, {"cache": "memory://x"}):
            assert made(config=config, **changes) != made(config=config)

    def test_a_spec_cannot_be_changed(self) -> None:
        """What was checked stays checked."""
        with pytest.raises(AttributeError):
            made().name = "other"  # type: ignore[misc]


class TestCheckStores:
    def test_stores_that_can_be_opened_are_accepted(self, tmp_path: Path) -> None:
        """They are closed again, and missing tables have been made."""
        spec = made(store=f"sqlite:///{tmp_path}/counts.db", cache="memory://test_check_stores")
        spec.check_stores()
        assert spec.store.recorded_schema() is None, "that is for the first write"
        (tmp_path / "counts.db").unlink()
        assert list(tmp_path.iterdir()) == []  # closed: SQLite has tidied up its other files

    def test_a_store_in_a_folder_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        """The message shows the path."""
        spec = made(store=f"sqlite:///{tmp_path}/no/such/counts.db")
        with pytest.raises(ConfigurationError) as caught:
            spec.check_stores()
        assert caught.value.argument == "store"
        assert caught.value.problem.startswith(f"sqlite {tmp_path}/no/such/counts.db: ")
        assert "check that the folder exists and is writable" in caught.value.problem
        assert isinstance(caught.value.__cause__, StoreUnavailable)

    def test_a_folder_in_place_of_a_file_is_refused(self, tmp_path: Path) -> None:
        """It cannot be opened either."""
        assert str(tmp_path) in refusal("store", made(store=f"sqlite:///{tmp_path}").check_stores)

    def test_an_impossible_path_is_refused(self) -> None:
        """In the words of this library, not of SQLite."""
        problem = refusal("store", made(store="sqlite:////tmp/a%00b.db").check_stores)
        assert "a\x00b.db: embedded null byte; check that the folder exists" in problem

    def test_a_file_that_is_not_a_database_is_refused_and_not_changed(self, tmp_path: Path) -> None:
        """It belongs to another program."""
        path = tmp_path / "notes.txt"
        path.write_bytes(b"not a database, but long enough to be looked at " * 20)
        assert "not a database" in refusal("store", made(store=f"sqlite:///{path}").check_stores)
        assert path.read_bytes().startswith(b"not a database")

    @pytest.mark.parametrize("changes", [{"monoid": "max"}, {"window": "daily"}, {"window": "hourly"}])
    def test_a_store_made_for_other_values_is_refused(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        """Neither another monoid nor other buckets may be mixed into it; another table of the file is accepted."""
        uri = f"sqlite:///{tmp_path}/counts.db"
        with closing(made(store=uri).store.open(Sum())) as store:
            store.merge_update(Key("a"), 1)
        problem = refusal("store", made(store=uri, **changes).check_stores)
        assert "holds values of monoid 'sum' and no window, but was opened for" in problem
        made(store=f"{uri}?table=other", **changes).check_stores()
        made(store=uri).check_stores()

    def test_a_store_that_cannot_serve_as_cache_is_refused(self, tmp_path: Path) -> None:
        """It lacks the method that fills a cache; as a store it is accepted."""
        uri = f"sqlite:///{tmp_path}/copy.db"
        problem = refusal("cache", made(cache=uri).check_stores)
        assert problem.endswith("/copy.db cannot serve as a cache; use memory://NAME")
        made(store=uri).check_stores()

    def test_a_cache_that_cannot_be_opened_is_refused_as_cache(self) -> None:
        """Not as the store."""
        MemorySpec("test_other_cache").open(Max())
        spec = made(cache="memory://test_other_cache")
        assert "holds values of monoid 'max'" in refusal("cache", spec.check_stores)

    @pytest.mark.parametrize("error", [OSError("no route"), KeyError("host"), RuntimeError()])
    def test_any_error_of_a_user_s_store_is_a_refusal(self, error: Exception) -> None:
        """With the error's type, since its text alone may say nothing; the error itself is the cause."""
        spec = made(store=MySpec(error))
        with pytest.raises(ConfigurationError) as caught:
            spec.check_stores()
        assert caught.value.argument == "store"
        assert f"fails to open: {type(error).__name__}: {error}" in caught.value.problem
        assert caught.value.__cause__ is error

    def test_a_user_s_store_that_opens_is_accepted(self) -> None:
        """Any object with open and recorded_schema is a spec."""
        made(store=MySpec()).check_stores()

    def test_both_stores_are_opened_for_monoid_and_window_and_closed(self) -> None:
        """Once each."""
        log: list[Any] = []

        class Watched(MySpec):
            def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> Any:
                log.append((monoid.name, granularity))
                return SimpleNamespace(monoid=monoid, close=lambda: log.append("closed"), repopulate=None)

        made(monoid="max", window="daily", store=Watched(), cache="memory://test_watched").check_stores()
        assert log == [("max", DAY), "closed"]
        log.clear()
        made(monoid="max", window="daily", store=MySpec(), cache=Watched(KeyError())).check_stores()
        assert log == [("max", DAY), "closed"]


class AppendingSpec(MySpec):
    """A store that is appended to.

    Args:
        bucket_age: of its table.
    """

    def __init__(self, bucket_age: timedelta | None = None) -> None:
        super().__init__()
        self.bucket_age = bucket_age

    def __str__(self) -> str:
        return "the table"

    def open(self, monoid: Monoid[Any], granularity: timedelta | None = None) -> Any:
        return SimpleNamespace(monoid=monoid, close=lambda: None, appends=True, bucket_age=self.bucket_age)


class Claims:
    """A `Deduper`."""

    def mark_seen(self, event_id: str) -> bool:
        return True


JOINED: Any = Custom("joined", "", operator.add, commutative=False)


class TestCheckAppending:
    """A table that is written by appending learns only at a fold which events are new."""

    @pytest.mark.parametrize(
        ("changes", "argument", "reason"),
        [
            ({"cache": "memory://test_appending"}, "cache", "a cache takes what is new only"),
            ({"monoid": JOINED}, "monoid", "'joined' depends on the order of events"),
            ({"config": Config(dedup=Claims())}, "dedup", "the table drops duplicates itself"),
        ],
    )
    def test_arguments_that_appending_does_not_support_are_refused(
        self, changes: dict[str, Any], argument: str, reason: str
    ) -> None:
        """By name; other stores accept them."""
        problem = refusal(argument, made(store=AppendingSpec(), **changes).check_stores)
        assert problem.startswith(f"the table is written by appending: {reason}")
        made(store=MySpec(), **changes).check_stores()

    @pytest.mark.parametrize("dedup", [None, AtomicDedup(), NoDedup()])
    def test_the_store_s_own_dedup_and_no_dedup_are_accepted(self, dedup: Any) -> None:
        """The table supports both."""
        made(store=AppendingSpec(), config=Config(dedup=dedup)).check_stores()

    def test_a_table_that_keeps_all_has_to_be_folded(self, caplog: pytest.LogCaptureFixture) -> None:
        """A warning says so, once; buckets with a retention may expire unfolded."""
        caplog.set_level(logging.WARNING)  # programs that another test has run may have left it higher
        made(store=MySpec()).check_stores()
        made(store=AppendingSpec(DAY), window="hourly").check_stores()
        assert caplog.records == []
        made(name="views", store=AppendingSpec()).check_stores()
        assert [record.getMessage() for record in caplog.records] == [
            "views: the table is written by appending and has no retention; fold it, with fold= or murmur fold "
            "'the table' --every DURATION, or pending deltas grow without end"
        ]


def parsed(*argv: str, prefix: str = "") -> dict[str, Any]:
    """The options that a command line gives."""
    parser = argparse.ArgumentParser()
    add_flags(parser, prefix)
    return from_flags(parser.parse_args(argv), prefix).given()


def flags_of(parser: argparse.ArgumentParser, prefix: str) -> list[str]:
    """Names of the flags that are added to a parser."""
    before = {action.dest for action in parser._actions}
    add_flags(parser, prefix)
    return [action.dest for action in parser._actions if action.dest not in before]


def decode_numbers(element: Any) -> Any:
    """A user's own decoder."""
    return {"n": int(element)}


EVERY_FLAG: Sequence[str] = (
    *("name=pages", "store=sqlite:///counts.db", "cache=memory://copy", "key=page/{page}", "key==all", "value=n"),
    *("monoid=max", "window=15m", "retention=90d", "event_id=message:id", "event_time=at", "decode=csv", "dedup=none"),
    *("time_unit=ms", "assume_zone=+01:00", "delimiter=;", "source=projects/p/topics/t", "id_format=plain"),
    *("max_attempts=7", "backoff_base=100ms", "backoff_max=2m", "flush_events=8", "flush_rows=9", "flush_age=10s"),
    *("flush_bytes=7", "on_exhausted=raise", "fold=10s", "fold_share=0.5", "fold_age=2h"),
)


class TestFlags:
    @pytest.mark.parametrize("prefix", ["", "murmur_"])
    def test_every_flag_becomes_its_argument(self, prefix: str) -> None:
        """Whatever the prefix, for every flag."""
        arguments = parsed(*(f"--{prefix}{flag}" for flag in EVERY_FLAG), prefix=prefix)
        config = arguments.pop("config")
        assert arguments == {
            "name": "pages",
            "store": "sqlite:///counts.db",
            "cache": "memory://copy",
            "keys": ["page/{page}", "=all"],
            "value": "n",
            "monoid": "max",
            "window": "15m",
            "retention": "90d",
            "event_id": "message:id",
            "event_time": "at",
            "time_unit": "ms",
            "assume_zone": "+01:00",
            "decode": "csv",
            "delimiter": ";",
            "source": "projects/p/topics/t",
            "id_format": "plain",
            "flush": FlushLimits(8, 9, timedelta(seconds=10), 7),
            "fold": "10s",
            "fold_share": 0.5,
            "fold_age": "2h",
            "on_exhausted": "raise",
        }
        assert config.dedup == NoDedup()
        assert config.max_attempts == 7
        assert config.backoff_base == timedelta(milliseconds=100)
        assert config.backoff_max == timedelta(minutes=2)

    def test_flags_make_the_same_spec_as_arguments(self) -> None:
        """A command line and Python mean the same."""
        spec = resolve(MergeOptions(**parsed(*(f"--{flag}" for flag in EVERY_FLAG))))
        assert spec.extraction == Extraction(
            ("page/{page}", "=all"),
            "n",
            "message:id",
            "at",
            "csv",
            ";",
            TimeFormat("ms", "+01:00"),
            "projects/p/topics/t",
            "plain",
        )
        assert spec.window == WindowConfig(timedelta(minutes=15), 90 * DAY)
        assert spec.fold == FoldPlan(timedelta(seconds=10), 0.5, timedelta(hours=2))
        assert (spec.store, spec.cache) == (SqliteSpec("counts.db"), MemorySpec("copy"))
        assert (spec.name, spec.monoid.name, spec.on_exhausted) == ("pages", "max", "raise")

    def test_omitted_flags_leave_the_defaults(self) -> None:
        """No flags give no arguments, so the arguments given in Python count."""
        assert parsed() == {}
        assert parsed("--key", "page") == {"keys": ["page"]}

    def test_one_flag_of_a_group_leaves_the_others_at_their_defaults(self) -> None:
        """A flag for the retries does not turn dedup off."""
        assert parsed("--flush_rows=9") == {"flush": FlushLimits(rows=9)}
        assert parsed("--flush_age=1m") == {"flush": FlushLimits(age=timedelta(minutes=1))}
        for flag in ("--max_attempts=3", "--backoff_base=50ms", "--backoff_max=5s", "--dedup=exact"):
            config = parsed(flag)["config"]
            assert config.dedup in (None, AtomicDedup())
            assert (config.max_attempts, config.backoff_base, config.backoff_max) == (
                3,
                timedelta(milliseconds=50),
                timedelta(seconds=5),
            )
        assert parsed("--dedup=none")["config"].dedup == NoDedup()

    @pytest.mark.parametrize("prefix", ["", "murmur_"])
    @pytest.mark.parametrize(
        ("flag", "value", "reason"),
        [
            ("backoff_base", "50", "'50' is not a duration; write a number and a unit"),
            ("backoff_max", "-5s", "is not a duration"),
            ("backoff_max", "1ms", "must not be less than backoff_base"),
            ("flush_age", "soon", "'soon' is not a duration"),
            ("flush_age", "0s", "must be a positive timedelta"),
            ("flush_age", "99999999999w", "is too long a duration"),
            ("flush_events", "0", "must be an integer of at least 1, got 0"),
            ("flush_bytes", "0", "must be an integer of at least 1, got 0"),
            ("flush_rows", "-1", "must be an integer of at least 1, got -1"),
            ("max_attempts", "0", "must be an integer of at least 1, got 0"),
            ("max_attempts", "x", "'x' is not a whole number"),
            ("flush_events", "1.5", "'1.5' is not a whole number"),
            ("window", "15", "'15' is not a duration"),
            ("monoid", "median", "unknown monoid 'median'"),
            ("store", "sqlite:///a.db?tabel=x", "unknown option tabel"),
            ("cache", "redis://localhost", "unknown store scheme"),
            ("delimiter", ";;", "expected one character"),
            ("assume_zone", "Mars/Olympus", "Mars/Olympus"),
        ],
    )
    def test_a_wrong_flag_is_named_as_it_was_written(self, prefix: str, flag: str, value: str, reason: str) -> None:
        """With its prefix and dashes, not as the argument that it would have become."""
        problem = refusal(f"--{prefix}{flag}", lambda: parsed(f"--{prefix}{flag}={value}", prefix=prefix))
        assert reason in problem

    @pytest.mark.parametrize("prefix", ["", "murmur_"])
    def test_a_user_s_decoder_is_named_by_its_module(self, prefix: str) -> None:
        """As a monoid is; the spec holds the function itself."""
        arguments = parsed(f"--{prefix}decode={__name__}:decode_numbers", prefix=prefix)
        assert arguments == {"decode": decode_numbers}
        assert made(**arguments).extraction.decode is decode_numbers

    @pytest.mark.parametrize("prefix", ["", "murmur_"])
    @pytest.mark.parametrize(
        ("decode", "reason"),
        [
            ("xml", "unknown format 'xml'; choose json, csv or write package.module:attribute"),
            ("", "unknown format ''"),
            ("no_such_module:decode", "cannot load decoder 'no_such_module:decode': No module named 'no_such_module'"),
            ("math:decode", "cannot load decoder 'math:decode': module 'math' has no attribute 'decode'"),
            (f"{__name__}:", f"cannot load decoder '{__name__}:': module '{__name__}' has no attribute ''"),
            (":decode", "cannot load decoder ':decode': Empty module name"),
            (".extract:decode", "cannot load decoder '.extract:decode': "),
            ("math:pi", "'math:pi' is a float, not a function of an element"),
        ],
    )
    def test_a_wrong_decoder_is_one_readable_error(self, prefix: str, decode: str, reason: str) -> None:
        """The error names the flag as it was written, for each way in which it can be wrong."""
        problem = refusal(f"--{prefix}decode", lambda: parsed(f"--{prefix}decode={decode}", prefix=prefix))
        assert problem.startswith(reason)

    @pytest.mark.parametrize("argv", [["--dedup=maybe"], ["--on_exhausted=x"], ["--nme=x"]])
    def test_argparse_refuses_what_it_can_check(self, argv: list[str], capsys: Any) -> None:
        """In its usual way: usage and exit status 2."""
        with pytest.raises(SystemExit) as caught:
            parsed(*argv)
        assert caught.value.code == 2
        assert argv[0].partition("=")[0] in capsys.readouterr().err

    def test_help_names_every_flag(self, capsys: Any) -> None:
        """A percent sign or brace in a help text must not break it."""
        parser = argparse.ArgumentParser()
        names = flags_of(parser, "murmur_")
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(["--help"])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert "'route/{from}-{to}'" in " ".join(shown.split())
        for name in names:
            assert f"--{name}" in shown

    def test_the_names_are_those_of_the_parsed_values(self) -> None:
        """Each once, with the prefix, whatever characters it has."""
        for prefix in ("", "murmur_", "murmur-"):
            parser = argparse.ArgumentParser()
            names = flags_of(parser, prefix)
            assert len(set(names)) == len(names)
            assert set(vars(parser.parse_args([]))) == set(names)
            known = {"aggregate", *(flag.partition("=")[0] for flag in EVERY_FLAG)}
            assert {name.removeprefix(prefix) for name in names} == known

    def test_flags_may_go_into_a_group(self) -> None:
        """A program may have other flags beside them."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--input")
        add_flags(parser.add_argument_group("what to merge"))
        flags = parser.parse_args(["--input", "x", "--name", "pages"])
        assert from_flags(flags).given() == {"name": "pages"}

    def test_flags_may_be_read_from_any_object(self) -> None:
        """For example Beam's options, which hold a single key as a text where they were made in Python."""
        empty = dict.fromkeys(["aggregate", *(flag.partition("=")[0] for flag in EVERY_FLAG)])
        flags = functools.partial(SimpleNamespace, **empty)
        assert from_flags(flags(key="page")).given() == {"keys": ["page"]}
        assert from_flags(flags(key=["page", "=all"])).given() == {"keys": ["page", "=all"]}
        assert from_flags(flags(max_attempts=5)).given()["config"].max_attempts == 5
        assert from_flags(flags(decode=decode_numbers)).given() == {"decode": decode_numbers}


class TestSqliteFile:
    def test_a_table_of_another_program_is_not_taken_for_one_of_this_library(self, tmp_path: Path) -> None:
        """A database with other tables can hold this library's tables too."""
        path = tmp_path / "app.db"
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE users (name TEXT)")
        db.close()
        made(store=f"sqlite:///{path}").check_stores()


def test_the_recorder_of_a_config_is_kept() -> None:
    """It still gets all reports."""
    recorder = InMemory()
    assert made(config=Config(recorder, dedup=AtomicDedup())).config.recorder is recorder
