"""`Struct`: the laws, the names that tables record, and the errors of ``aggregates=`` and its flags."""

from __future__ import annotations

import argparse
import operator
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError, SchemaMismatch
from murmur_beam.extract import Extractor, Rejected
from murmur_beam.model import ABSENT, Key
from murmur_beam.monoids import (
    Count,
    Custom,
    Distinct,
    First,
    FloatSum,
    Last,
    MapOf,
    Max,
    Mean,
    Min,
    Monoid,
    Overflow,
    Quantiles,
    SetUnion,
    Struct,
    Sum,
    Timed,
    TopK,
    aggregate_of,
    by_name,
    recorded,
)
from murmur_beam.monoids.struct_name import Part, parts_of, struct_name
from murmur_beam.options import MergeOptions, add_flags, from_flags
from murmur_beam.reader import Reader
from murmur_beam.spec import resolve
from murmur_beam.state.base import Schema
from murmur_beam.state.memory import MemorySpec, MemoryStore
from murmur_beam.testing import MonoidLaws
from tests.support.mean import MONOID as MEAN

AT = 1_700_000_000_000_000
NUMBERS = st.integers(-(10**6), 10**6)
TEXTS = st.text("abc", min_size=1, max_size=2)

PARTS: dict[str, tuple[Monoid[Any], Any]] = {
    "count": (Count(), st.none()),
    "sum": (Sum(), NUMBERS),
    "cents": (Sum(places=2), st.decimals(-100, 100, places=2)),
    "floats": (FloatSum(), st.floats(-1e9, 1e9)),
    "mean": (Mean(), NUMBERS),
    "min": (Min(), NUMBERS),
    "max": (Max(), NUMBERS | st.floats(-10, 10)),
    "first": (First(), TEXTS),
    "last": (Last(), NUMBERS),
    "set": (SetUnion(), TEXTS),
    "map": (MapOf(Sum()), st.dictionaries(TEXTS, NUMBERS, max_size=3)),
    "top": (TopK(), TEXTS),
    "quantiles": (Quantiles(), NUMBERS),
    "xor": (Custom("xor", 0, operator.xor), NUMBERS),
}
"""Parts for random structs, and the values that each takes."""


def values_of(names: list[str]) -> Any:
    """Strategy of a record's values for these parts, some of them absent; a count is never absent."""
    parts = [PARTS[name] for name in names]
    return st.tuples(*[value | st.just(ABSENT) if monoid.needs_value else value for monoid, value in parts])


def deltas_of(struct: Struct, *values: Any) -> Any:
    """Strategy of a struct's deltas."""
    return st.builds(struct.lift, st.tuples(*values), st.integers(0, AT))


class TestSumsLaws(MonoidLaws):
    """A struct of sums alone, whose encoding has a form of its own."""

    monoid = Struct({"views": Count(), "revenue": Sum(places=2)})
    deltas = deltas_of(monoid, st.none(), NUMBERS)


class TestMixedLaws(MonoidLaws):
    """A sketch, sums before and after it, and a value that may be absent."""

    monoid = Struct({"views": Count(), "visitors": Distinct(lg_k=4), "revenue": Sum(), "best": Max()})
    deltas = deltas_of(monoid, st.none(), TEXTS, NUMBERS, NUMBERS | st.just(ABSENT))


class TestIdempotentLaws(MonoidLaws):
    """Extrema, a set and a sketch: a redelivery changes nothing."""

    monoid = Struct({"first": First(), "users": SetUnion(), "visitors": Distinct(lg_k=4)})
    deltas = deltas_of(monoid, TEXTS, TEXTS, TEXTS)


class TestOrderedLaws(MonoidLaws):
    """One part that depends on the order."""

    monoid = Struct({"views": Count(), "words": Custom("words", "", operator.add, commutative=False)})
    deltas = deltas_of(monoid, st.none(), TEXTS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=5, unique=True).flatmap(
    lambda names: st.tuples(st.just(names), st.lists(values_of(names), max_size=6), st.integers(0, 6))
))  # fmt: skip
def test_a_random_struct_is_its_parts_side_by_side(drawn: tuple[list[str], list[Any], int]) -> None:
    """Each part has the state that its monoid alone makes, in any grouping, in any order, and after a codec."""
    names, records, cut = drawn
    struct = Struct({name: PARTS[name][0].of(name, optional=True) for name in names})
    deltas = [struct.lift(record, AT + i) for i, record in enumerate(records)]
    alone = tuple(
        part.fold([part.lift(record[n], AT + i) for i, record in enumerate(records) if record[n] is not ABSENT])
        for n, part in enumerate(struct.parts.values())
    )
    found = struct.fold(deltas)
    assert struct.encode(found) == struct.encode(alone)
    halves = struct.combine(struct.fold(deltas[:cut]), struct.fold(deltas[cut:]))
    for other in (halves, struct.fold(reversed(deltas)), struct.total(iter(deltas))):
        assert struct.encode(other) == struct.encode(found)
    assert struct.decode(struct.encode(found)) == found
    assert struct.present(found) == {
        name: part.present(state) for (name, part), state in zip(struct.parts.items(), alone, strict=True)
    }


def test_what_a_struct_says_of_itself() -> None:
    """It is what its parts have in common, and goes to workers by pickle."""
    sums = Struct({"views": Count(), "revenue": Sum(places=2).of("amount")})
    sets = Struct({"users": SetUnion().of("user"), "best": Max().of(len)})
    words = Struct({"words": Custom("words", "", operator.add, commutative=False), "last": Last()})
    told = [
        (each.commutative, each.idempotent, each.exact_numbers, each.needs_value, each.needs_event_time, each.only_sums)
        for each in (sums, sets, words, Struct({"views": Count()}))
    ]
    assert told == [
        (True, False, True, True, False, True),
        (True, True, False, True, False, False),
        (False, False, False, True, True, False),
        (True, False, False, False, False, True),
    ]
    assert (sums.field, sets.field, words.field) == ('{"revenue": "amount"}', '{"users": "user"}', None)
    copy = pickle.loads(pickle.dumps(sums))
    assert (copy.name, copy.field, copy.encode((1, 2))) == (sums.name, sums.field, sums.encode((1, 2)))


def test_an_error_of_a_value_names_its_aggregate() -> None:
    """Whether aggregates are optional or not; the other parts of the record are fine."""
    for optional in (False, True):
        struct = Struct({"views": Count(), "revenue": Sum().of("amount", optional=optional)})
        with pytest.raises(InvalidRecord, match=r"^revenue: expected an integer") as caught:
            struct.lift((None, 1.5), 0)
        assert caught.value.field == "revenue"


def test_an_overflow_of_one_refuses_the_event() -> None:
    """In a fold and in a combination; a total, which is not stored, is exact."""
    struct = Struct({"views": Count(), "revenue": Sum()})
    with pytest.raises(Overflow):
        struct.combine((1, 2**63 - 1), (1, 1))
    with pytest.raises(Overflow):
        struct.fold([(1, 2**62)] * 2)
    assert struct.total([(1, 2**62)] * 3) == (3, 3 * 2**62)
    store = MemoryStore(struct)
    store.merge_update(Key("k"), (1, 2**63 - 1), event_id="1")
    with pytest.raises(Overflow):
        store.merge_update(Key("k"), (1, 1), event_id="2")
    assert store.get(Key("k")) == (1, 2**63 - 1)


# ---- encoding ----


SHOP = Struct({"views": Count(), "revenue": Sum(), "most": Max()})


def test_bytes() -> None:
    """Sums in 8 bytes, other states behind their length."""
    assert SHOP.encode((2, -3, 9)).hex() == "0000000000000002" + "fffffffffffffffd" + "00000001" + "39"
    assert Struct({"a": Count(), "b": Sum()}).encode((1, -1)).hex() == "0000000000000001" + "f" * 16


def test_parts_that_were_added_later_are_identities() -> None:
    """In states of before; states of more parts than are known are refused."""
    one, two = Struct({"views": Count()}), Struct({"views": Count(), "most": Max()})
    assert two.decode(one.encode((5,))) == (5, None)
    assert SHOP.decode(Struct({"views": Count(), "revenue": Sum()}).encode((5, 6))) == (5, 6, None)
    for fewer, data in ((one, two.encode((5, 7))), (one, Struct({"a": Sum(), "b": Sum()}).encode((5, 6)))):
        with pytest.raises(SchemaMismatch, match="there are more aggregates than views: they were added"):
            fewer.decode(data)


@pytest.mark.parametrize("struct", [SHOP, Struct({"views": Count()}), Struct({"a": Max(), "b": Mean()})])
def test_damaged_bytes(struct: Struct) -> None:
    """An encoding that ends within a part is damaged; at the end of a part, one of fewer parts."""
    data = struct.encode(struct.identity)
    for end in range(1, len(data)):
        try:
            found = struct.decode(data[:end])
        except PermanentError as err:
            assert str(err) == f"the encoding of a {struct.name} ends early"  # noqa: PT017
        else:
            assert struct.encode(found) == data
            assert end in (8, 16)


# ---- names ----

NAMES = st.sampled_from(["a", "views", "_x1", "Z" * 64])
MONOID_NAMES = st.sampled_from(
    ["count", "sum(places=2)", "map_of(sum(places=2), max_keys=9)", "mean of integers", "a=b", "top_k(k=2, lg_size=3)"]
)
SINCE = st.none() | st.just("2026-11-26T12:00:00Z")


@given(st.dictionaries(NAMES, st.tuples(MONOID_NAMES, SINCE), min_size=1, max_size=4))
def test_a_name_is_parsed_to_its_parts(drawn: dict[str, tuple[str, str | None]]) -> None:
    """In their order, with the times since when they count."""
    monoids = {name: monoid for name, (monoid, _) in drawn.items()}
    since = {name: at for name, (_, at) in drawn.items() if at is not None}
    parts = parts_of(struct_name(monoids, since))
    assert parts == {name: Part(*each) for name, each in drawn.items()}
    assert [*parts] == [*drawn]


def test_the_name_that_a_table_records() -> None:
    """As docs/storage.md shows it."""
    monoids = {"views": "count", "revenue": "sum(places=2)", "visitors": "distinct"}
    name = "struct(views=count,revenue=sum(places=2),visitors=distinct@2026-11-26T12:00:00Z)"
    assert struct_name(monoids, {"visitors": "2026-11-26T12:00:00Z"}) == name
    for made in (recorded(name), by_name(name)):
        assert isinstance(made, Struct)
        assert {part: monoid.name for part, monoid in made.parts.items()} == monoids


@pytest.mark.parametrize("name", ["sum", "struct()", "struct(a)", "struct(a=)", "struct(a=sum,a=sum)", "struct(=sum)"])
def test_other_names_are_not_a_struct_s(name: str) -> None:
    """They are those of a monoid, or damaged."""
    assert parts_of(name) is None


def test_a_recorded_monoid_of_a_user_is_not_imported() -> None:
    """A reader needs to be given it."""
    assert recorded("struct(a=count,b=mean of integers)") is None
    assert recorded("struct(a=count,b=tests.support.mean:MONOID)") is None


@pytest.mark.parametrize("name", ["a,b=count", "p@99", "p@2026-11-26T12:00:00Z", "a)"])
def test_a_monoid_whose_name_would_be_misread_is_refused(name: str) -> None:
    """It would be taken for another one, or for several."""
    with pytest.raises(ConfigurationError, match=r"^aggregates: x: rename the monoid "):
        Struct({"x": Custom(name, 0, operator.add)})


@pytest.mark.parametrize(
    ("text", "name", "monoid", "field", "optional"),
    [
        ("views=count", "views", "count", None, False),
        ("revenue=sum(places=2):amount?", "revenue", "sum(places=2)", "amount", True),
        ("slow=quantiles(error=0.05):user.ms", "slow", "quantiles(error=0.05)", "user.ms", False),
        ("by=map_of(sum(places=2)):by", "by", "map_of(sum(places=2))", "by", False),
        ("last=last:attribute:host", "last", "last", "attribute:host", False),
        ("a=tests.support.mean:MONOID", "a", "mean of integers", None, False),
        ("a=tests.support.mean:MONOID:user.age?", "a", "mean of integers", "user.age", True),
        ("a=map_of(tests.support.mean:MONOID):x", "a", "map_of(mean of integers)", "x", False),
    ],
)
def test_an_aggregate_as_text(text: str, name: str, monoid: str, field: str | None, optional: bool) -> None:
    """Its name, monoid and field; a question mark makes it optional."""
    found, made = aggregate_of(text)
    assert (found, made.name, made.field, made.optional) == (name, monoid, field, optional)


def test_a_monoid_keeps_its_parameters_with_a_field() -> None:
    """It is a copy; the monoid itself has no field."""
    made = aggregate_of("revenue=sum(places=2):amount")[1]
    assert made.lift("0.07", 0) == 7
    assert by_name("sum(places=2)").field is None
    assert MEAN.of("age").name == MEAN.name
    assert MEAN.field is None


@pytest.mark.parametrize("text", ["views", "=count", "views=", "views=:x", "a=sum:", "a=sum:?", ""])
def test_an_aggregate_in_another_form(text: str) -> None:
    """The error shows how to write it."""
    with pytest.raises(ConfigurationError, match=r"^aggregate: .*: write NAME=MONOID:FIELD, such as revenue=sum:amou"):
        aggregate_of(text)


# ---- aggregates= ----

ARGUMENTS: dict[str, Any] = {"key": "page", "event_id": "id", "store": "memory://structs"}


@pytest.mark.parametrize(
    ("changes", "argument", "problem"),
    [
        ({"aggregates": {}}, "aggregates", "expected 1 to 64 aggregates, got 0"),
        ({"aggregates": {f"a{i}": Count() for i in range(65)}}, "aggregates", "expected 1 to 64 aggregates, got 65"),
        ({"aggregates": {"a b": Count()}}, "aggregates", "'a b' is not a name: write a letter, then letters, digits"),
        ({"aggregates": {"1a": Count()}}, "aggregates", "'1a' is not a name"),
        ({"aggregates": {"é": Count()}}, "aggregates", "'é' is not a name"),
        ({"aggregates": {"a" * 65: Count()}}, "aggregates", "is not a name"),
        ({"aggregates": {"": Count()}}, "aggregates", "'' is not a name"),
        ({"aggregates": {5: Count()}}, "aggregates", "5 is not a name"),
        ({"aggregates": {"a": Count}}, "aggregates", "a: expected a Monoid such as Count(), got <class"),
        ({"aggregates": {"a": "count"}}, "aggregates", "a: expected a Monoid such as Count(), got 'count'"),
        ({"aggregates": {"a": SHOP}}, "aggregates", "a: expected a Monoid such as Count(), got <"),
        ({"aggregates": ["a=struct(b=count)"]}, "aggregates", "a: expected a Monoid such as Count(), got <"),
        ({"aggregates": 5}, "aggregates", "expected a mapping from names to monoids, got 5"),
        ({"aggregates": [Count()]}, "aggregates", "expected a mapping from names to monoids, got ["),
        ({"aggregates": ["a=count", "a=sum:x"]}, "aggregates", "'a' is given twice"),
        ({"aggregates": ["a"]}, "aggregates", "'a': write NAME=MONOID:FIELD"),
        ({"aggregates": ["a=median:x"]}, "aggregates", "unknown monoid 'median'"),
        ({"aggregates": {"a": Sum()}}, "aggregates", "a: 'sum' needs a field: write .of(FIELD)"),
        ({"aggregates": {"a": Sum().of("x..y")}}, "a", "a dot too many"),
        ({"aggregates": {"a": Sum().of(5)}}, "a", "expected a field name, a template or a function, got 5"),  # type: ignore[arg-type]
        ({"aggregates": {"a": Count()}, "monoid": "count"}, "monoid", "with aggregates= each has its own"),
        ({"aggregates": {"a": Count()}, "monoid": Count()}, "monoid", "is for one aggregate"),
        ({"aggregates": {"a": Count()}, "value": "x"}, "value", "is for one aggregate"),
        ({"aggregates": {"a": Count()}, "event_id": None}, "event_id", "would count twice in a 'struct(a=count)'"),
    ],
)
def test_wrong_aggregates(changes: dict[str, Any], argument: str, problem: str) -> None:
    """Each mistake is refused where the pipeline is built, by its name."""
    with pytest.raises(ConfigurationError) as caught:
        resolve(MergeOptions(**{**ARGUMENTS, **changes}))
    assert problem in caught.value.problem
    assert caught.value.argument == argument


def test_aggregates_that_need_no_ids() -> None:
    """If a redelivery makes no difference to any of them."""
    spec = resolve(MergeOptions(key="page", store="memory://structs", aggregates={"users": SetUnion().of("user")}))
    assert spec.monoid.idempotent
    assert spec.extraction.event_id is None


def extracted(aggregates: Any, record: Any) -> Any:
    """The delta of a record."""
    spec = resolve(MergeOptions(**ARGUMENTS, aggregates=aggregates))
    extractor = Extractor(spec.extraction, spec.monoid, need_id=True, need_time=False)
    return extractor.record({"id": "1", "page": "home", **record}, AT)[3]


@pytest.mark.parametrize("key", ["page", "page/{page}"])
def test_fields_of_a_record(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the short way for plain fields and on the other; a record without an optional field skips the aggregate."""
    monkeypatch.setitem(ARGUMENTS, "key", key)
    some = {"views": Count(), "revenue": Sum(places=2).of("amount", optional=True), "most": Max().of("ms")}
    assert extracted(some, {"amount": "1.50", "ms": 7}) == (1, 150, 7)
    assert extracted(some, {"ms": 7}) == extracted(some, {"amount": None, "ms": 7}) == (1, 0, 7)
    for record, problem in (
        ({"amount": "x", "ms": 7}, "revenue: 'x' is not a number"),
        ({}, "most: field 'ms' is mis"),
    ):
        with pytest.raises(Rejected) as caught:
            extracted(some, record)
        assert str(caught.value.error).startswith(problem)


def test_fields_that_are_functions_paths_and_constants() -> None:
    """As for one aggregate; First and Last take the time of the record."""
    some = {
        "n": Sum().of(lambda record: len(record["user"]["name"])),
        "who": Last().of("user.name"),
        "one": Sum().of("=1"),
    }
    assert extracted(some, {"user": {"name": "ann"}}) == (3, Timed(AT, "ann"), 1)


# ---- flags ----


def parsed(*flags: str, prefix: str = "") -> MergeOptions:
    """The options that flags give."""
    parser = argparse.ArgumentParser()
    add_flags(parser, prefix)
    return from_flags(parser.parse_args(flags), prefix)


FLAGS = ["key=page", "event_id=id", "store=sqlite:///a.db", "aggregate=views=count", "aggregate=revenue=sum:amount?"]


@pytest.mark.parametrize("prefix", ["", "murmur_"])
def test_flags(prefix: str) -> None:
    """The same as in Python."""
    spec = resolve(parsed(*[f"--{prefix}{flag}" for flag in FLAGS], prefix=prefix))
    wanted = resolve(
        MergeOptions(**ARGUMENTS, aggregates={"views": Count(), "revenue": Sum().of("amount", optional=True)})
    )
    assert (spec.monoid.name, spec.extraction) == (wanted.monoid.name, wanted.extraction)
    assert Schema.of(spec.aggregate, None).field == '{"revenue": "amount"}'


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--aggregate", "views"], "--aggregate: 'views': write NAME=MONOID:FIELD"),
        (["--aggregate", "a=median:x"], "--aggregate: unknown monoid 'median'"),
        (["--aggregate", "a b=count"], "--aggregate: 'a b' is not a name"),
        (["--aggregate", "a=count", "--aggregate", "a=count"], "--aggregate: 'a' is given twice"),
    ],
)
def test_wrong_flags(flags: list[str], problem: str) -> None:
    """The error names the flag."""
    with pytest.raises(ConfigurationError) as caught:
        parsed(*flags)
    assert str(caught.value).startswith(problem)


def test_options_of_a_pipeline() -> None:
    """`MurmurOptions` has the flag; an aggregate beside a monoid of the program is refused."""
    beam = pytest.importorskip("apache_beam")
    from apache_beam.options.pipeline_options import PipelineOptions

    from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER
    from murmur_beam.transforms import MergeRecords, MurmurOptions

    flags = ["--murmur_aggregate=views=count", "--murmur-aggregate=most=max:ms"]
    options = PipelineOptions(flags)
    assert options.view_as(MurmurOptions).murmur_aggregate == ["views=count", "most=max:ms"]
    spec = MemorySpec("structs-of-options")
    records = [{"id": id_, "page": "home", "ms": ms} for id_, ms in (("1", 5), ("2", 9), ("1", 5))]
    with beam.Pipeline(IN_PROCESS_RUNNER, options=options) as p:
        _ = p | beam.Create(records) | MergeRecords(key="page", event_id="id", store=spec)
    with Reader.open(spec) as reader:
        assert reader.get("home") == {"views": 2, "most": 9}
    with pytest.raises(ConfigurationError, match=r"^monoid: is for one aggregate"):
        _ = beam.Pipeline(options=options) | beam.Create(records) | MergeRecords(key="page", monoid=Count(), store=spec)


# ---- reading ----


@pytest.fixture
def reader() -> Callable[..., Reader[Any]]:
    """Makes a reader of some parts, each entity with the values of one record or several."""

    def made(parts: dict[str, Monoid[Any]], **entities: list[Any]) -> Reader[Any]:
        store = MemoryStore(Struct(parts))
        for entity, records in entities.items():
            for i, values in enumerate(records):
                store.merge_update(Key(entity), store.monoid.lift(values, AT), event_id=str(i))
        return Reader(store)

    return made


def test_top_ranks_by_any_aggregate(reader: Callable[..., Reader[Any]]) -> None:
    """By default by the first that is a number."""
    found = reader(
        {"users": SetUnion(), "last": Last(), "views": Count(), "revenue": Sum(places=2)},
        a=[("x", 1, None, "9.50")],
        b=[("x", 1, None, 1), ("y", 2, None, 1)],
    )
    assert found.ranking() == "views"
    assert [entity for entity, _ in found.top(9)] == ["b", "a"]
    ranked = found.top(9, by="revenue")
    assert [(entity, result["revenue"]) for entity, result in ranked] == [
        ("a", Decimal("9.50")),
        ("b", Decimal("2.00")),
    ]


def test_the_default_of_top_does_not_depend_on_the_data(reader: Callable[..., Reader[Any]]) -> None:
    """Entities without the optional first aggregate are left out, also if one of them comes first."""
    parts: dict[str, Monoid[Any]] = {"latency": Mean().of("ms", optional=True), "views": Count()}
    found = reader(parts, a=[(ABSENT, None)] * 3, b=[(5, None)], c=[(7, None)])
    assert found.ranking() == "latency"
    assert [entity for entity, _ in found.top(9)] == ["c", "b"]
    assert [entity for entity, _ in found.top(9, by="views")] == ["a", "b", "c"]


def test_errors_of_top(reader: Callable[..., Reader[Any]]) -> None:
    """They name the aggregates that there are."""
    found = reader({"users": SetUnion(), "first": First()}, a=[("x", 1)])
    with pytest.raises(ConfigurationError, match=r"^by: 'views' is not one of users, first$"):
        found.top(1, by="views")
    with pytest.raises(SchemaMismatch, match=r"'a' holds a frozenset \(monoid 'set_union'\)"):
        found.top(1, by="users")
    with pytest.raises(SchemaMismatch, match=r"^top needs numeric aggregates, and none of users, first is a number"):
        found.top(1)
    with pytest.raises(ConfigurationError, match=r"^by: the store holds one aggregate, 'sum'; leave it out"):
        Reader(MemoryStore(Sum())).top(1, by="views")


# ---- tables ----


def schema(*parts: str, field: str | None = None) -> Schema:
    """A table's schema."""
    return Schema(f"struct({','.join(parts)})", None, field)


OLD, ADDED = ("views=count", "revenue=sum"), "most=max@2026-11-26T12:00:00Z"


@pytest.mark.parametrize(
    ("recorded_schema", "wanted", "accepted"),
    [
        (schema(*OLD), schema(*OLD), True),
        (schema(*OLD, ADDED), schema(*OLD), True),
        (schema(*OLD, ADDED), schema(*OLD, "most=max"), True),
        (schema(*OLD), schema("views=count"), False),
        (schema(*OLD, ADDED), schema("views=count"), False),
        (schema(*OLD), schema(*reversed(OLD)), False),
        (schema(*OLD), schema(*OLD, "most=max"), False),
        (schema(*OLD), schema("views=count", "revenue=max"), False),
        (schema(*OLD), schema("views=count", "income=sum"), False),
        (schema(*OLD), Schema("count", None), False),
        (Schema("count", None), schema("views=count"), False),
        (schema(*OLD, field='{"revenue": "amount"}'), schema(*OLD, field='{"revenue": "price"}'), False),
        (schema(*OLD, field='{"revenue": "amount"}'), schema(*OLD), True),
    ],
)
def test_which_programs_a_table_accepts(recorded_schema: Schema, wanted: Schema, accepted: bool) -> None:
    """All aggregates in the same order; fewer only if the others were added while programs were running."""
    assert recorded_schema.accepts(wanted) is accepted


def test_the_refusal_shows_what_differs() -> None:
    """Also a field, and since when an aggregate counts."""
    held = Schema(f"struct({','.join(OLD)},{ADDED})", None, '{"revenue": "amount"}')
    with pytest.raises(SchemaMismatch) as caught:
        held.require(schema(*OLD, field='{"revenue": "price"}'), "a table")
    assert "views=count, revenue=sum of 'amount', most=max since 2026-11-26T12:00:00Z and no win" in str(caught.value)
    assert "opened for aggregates views=count, revenue=sum of 'price' and no window" in str(caught.value)
