"""Tables for the Bigtable store, on the real emulator: what `create` makes of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from functools import partial

import grpc
import pytest
from google.cloud.bigtable_admin_v2.types import (
    ColumnFamily,
    GcRule,
    Type,
)

from murmur_beam.cli import main as cli
from murmur_beam.errors import ConfigurationError, SchemaMismatch, StoreUnavailable, TransientError
from murmur_beam.monoids import Sum
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, tables, wire
from murmur_beam.state.bigtable.admin import Rule
from murmur_beam.state.bigtable.keys import SCHEMA_ROW
from murmur_beam.state.bigtable.layouts import LAYOUTS
from murmur_beam.state.bigtable.meta import APPEND, COMMIT, WAYS, Meta
from tests.support.tables import (
    AGE,
    ALL_TIME,
    DAILY,
    DAY,
    HOUR,
    HOURLY,
    KEPT_90,
    NINETY_DAYS,
    VERSIONS,
    Before,
    collected,
    exists,
    make,
    message,
    modify,
    new_where,
    recorded,
    remedies,
    sums,
    wrong,
)

pytestmark = pytest.mark.usefixtures("bigtable_host")


class TestPurpose:
    @pytest.mark.parametrize(
        ("schema", "retention", "dedup_retention", "agg", "dedup", "state"),
        [
            pytest.param(DAILY, 90 * DAY, None, Rule(KEPT_90), Rule(KEPT_90), Rule(KEPT_90, 1), id="retention"),
            pytest.param(HOURLY, 1 * DAY, None, Rule(26 * HOUR), Rule(26 * HOUR), Rule(26 * HOUR, 1), id="hourly"),
            pytest.param(DAILY, None, None, Rule(), Rule(), Rule(None, 1), id="window"),
            pytest.param(DAILY, None, 9 * DAY, Rule(), Rule(9 * DAY), Rule(None, 1), id="window-dedup"),
            pytest.param(ALL_TIME, None, None, Rule(), Rule(), Rule(None, 1), id="all-time"),
            pytest.param(ALL_TIME, None, 9 * DAY, Rule(), Rule(9 * DAY), Rule(None, 1), id="all-time-dedup"),
        ],
    )
    def test_purpose_of_garbage_collection(
        self,
        schema: Schema,
        retention: timedelta | None,
        dedup_retention: timedelta | None,
        agg: Rule,
        dedup: Rule,
        state: Rule,
    ) -> None:
        """A bucket and its events are collected together, when the bucket accepts no more; without a retention values
        are permanent."""
        meta = tables.table_meta(schema, retention, dedup_retention)
        first = {"agg": agg, "dedup": dedup, "state": state, "meta": Rule(None, 1)}
        assert tables.gc_rules(meta._replace(layout=LAYOUTS[1])) == first
        # For `check` of release 0.1.0, a table of layout 2 has a fault.
        assert tables.gc_rules(meta) == {**first, "dedup": dedup._replace(versions=1), "pending": agg}

    @pytest.mark.parametrize(
        ("schema", "retention", "dedup_retention", "argument"),
        [
            pytest.param(ALL_TIME, 90 * DAY, None, "retention", id="no-window"),
            pytest.param(DAILY, timedelta(0), None, "retention", id="no-retention"),
            pytest.param(DAILY, None, timedelta(0), "dedup_retention", id="no-dedup-retention"),
            pytest.param(DAILY, 90 * DAY, 30 * DAY, "dedup_retention", id="events-would-count-twice"),
        ],
    )
    def test_arguments_that_contradict_each_other_are_refused(
        self, schema: Schema, retention: timedelta, dedup_retention: timedelta, argument: str
    ) -> None:
        """By name."""
        with pytest.raises(ConfigurationError) as caught:
            tables.table_meta(schema, retention, dedup_retention)
        assert caught.value.argument == argument


class TestCreate:
    def test_it_makes_a_table_with_families_rules_and_purpose(self) -> None:
        """As the server reports them afterwards; the changes are listed."""
        where = new_where()
        steps = tables.create(where, NINETY_DAYS)
        assert collected(where) == {
            "agg": [(AGE, KEPT_90)],
            "dedup": [(AGE, KEPT_90), (VERSIONS, 1)],
            "state": [(AGE, KEPT_90), (VERSIONS, 1)],
            "meta": [(VERSIONS, 1)],
            "pending": [(AGE, KEPT_90)],
        }
        types = {name: family.value_type for name, family in message(where).column_families.items()}
        assert types == {"agg": sums().value_type, "dedup": Type(), "state": Type(), "meta": Type(), "pending": Type()}
        assert recorded(where) == Meta(DAILY, KEPT_90, KEPT_90)
        assert [(step.action, step.subject) for step in steps] == [
            ("create", "table"),
            *(("add", f"family {name}") for name in ("agg", "dedup", "state", "meta", "pending")),
            ("record", "purpose"),
        ]
        assert steps[3].text == "cells; garbage collection takes cells older than 91d 1h or beyond 1 version"

    @pytest.mark.parametrize(
        "meta",
        [NINETY_DAYS, tables.table_meta(ALL_TIME), tables.table_meta(Schema("max", HOUR), None, 7 * DAY)],
        ids=["retention", "all-time", "dedup"],
    )
    def test_a_second_call_changes_nothing(self, meta: Meta) -> None:
        """And lists no changes."""
        where = new_where()
        assert tables.create(where, meta)
        before, purpose = message(where), recorded(where)
        assert tables.plan_changes(where, meta) == []
        assert tables.create(where, meta) == []
        assert (message(where), recorded(where)) == (before, purpose)
        assert wrong(tables.check(where)) == {}

    def test_a_plan_changes_nothing(self) -> None:
        """Neither for a missing table, nor for an existing one; it lists exactly the changes that would be made."""
        where = new_where()
        planned = tables.plan_changes(where, NINETY_DAYS)
        assert not exists(where)
        assert tables.create(where, NINETY_DAYS) == planned
        before, purpose = message(where), recorded(where)
        planned = tables.plan_changes(where, tables.table_meta(DAILY, 30 * DAY))
        assert [step.deletes for step in planned] == [True, True, True, True, False]
        assert (message(where), recorded(where)) == (before, purpose)

    def test_missing_families_are_added(self) -> None:
        """Existing families stay, also those with other names."""
        where = new_where()
        make(where, agg=sums(), meta=ColumnFamily(gc_rule=GcRule(max_num_versions=1)), other=ColumnFamily())
        steps = tables.create(where, tables.table_meta(DAILY))
        assert [step[:2] for step in steps] == [
            ("add", "family dedup"),
            ("add", "family state"),
            ("add", "family pending"),
            ("record", "purpose"),
        ]
        assert collected(where) == {
            "agg": [],
            "dedup": [(VERSIONS, 1)],
            "state": [(VERSIONS, 1)],
            "meta": [(VERSIONS, 1)],
            "other": [],
            "pending": [],
        }
        assert wrong(tables.check(where)) == {}

    def test_a_longer_retention_changes_rules_and_purpose(self) -> None:
        """That deletes nothing, so it needs no permission."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        steps = tables.create(where, tables.table_meta(DAILY, 120 * DAY))
        assert [step[:2] for step in steps] == [
            *(("change", f"family {name}") for name in ("agg", "dedup", "state", "pending")),
            ("record", "purpose"),
        ]
        assert steps[0].text == (
            "garbage collection takes cells older than 121d 1h, instead of cells older than 91d 1h"
        )
        kept = 121 * DAY + HOUR
        assert collected(where)["state"] == [(AGE, kept), (VERSIONS, 1)]
        assert recorded(where) == Meta(DAILY, kept, kept)

    def test_keeping_everything_again_removes_the_rules(self) -> None:
        """A rule can be removed from a family."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        tables.create(where, tables.table_meta(DAILY))
        one = [(VERSIONS, 1)]
        assert collected(where) == {"agg": [], "dedup": one, "state": one, "meta": one, "pending": []}
        assert recorded(where) == Meta(DAILY)

    @pytest.mark.parametrize(
        ("had", "gets"),
        [
            pytest.param(NINETY_DAYS, tables.table_meta(DAILY, 30 * DAY), id="shorter-retention"),
            pytest.param(tables.table_meta(DAILY), NINETY_DAYS, id="first-retention"),
            pytest.param(tables.table_meta(ALL_TIME), tables.table_meta(ALL_TIME, None, 7 * DAY), id="dedup-retention"),
        ],
    )
    def test_changes_that_delete_data_must_be_allowed(self, had: Meta, gets: Meta) -> None:
        """Otherwise nothing is done."""
        where = new_where()
        tables.create(where, had)
        before = message(where)
        with pytest.raises(ConfigurationError, match=r"^yes: is required.*family dedup") as caught:
            tables.create(where, gets)
        assert ("family agg" in str(caught.value)) == (gets.bucket_age is not None)
        assert (message(where), recorded(where)) == (before, had)
        assert tables.create(where, gets, yes=True)
        assert recorded(where) == gets
        assert wrong(tables.check(where)) == {}

    def test_a_rule_of_another_kind_is_replaced_only_if_that_is_allowed(self) -> None:
        """It is unknown what such a rule keeps; the message shows it."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        both = GcRule(intersection=GcRule.Intersection(rules=[GcRule(max_age=DAY), GcRule(max_num_versions=5)]))
        modify(where, id="dedup", update=ColumnFamily(gc_rule=both))
        assert "intersection { rules { max_age" in wrong(tables.check(where))["family dedup"]
        with pytest.raises(ConfigurationError, match="family dedup"):
            tables.create(where, NINETY_DAYS)
        (step,) = tables.create(where, NINETY_DAYS, yes=True)
        assert (step.subject, step.deletes) == ("family dedup", True)
        assert collected(where)["dedup"] == [(AGE, KEPT_90), (VERSIONS, 1)]

    @pytest.mark.parametrize("other", [HOURLY, ALL_TIME, Schema("max", DAY)], ids=["hourly", "all-time", "max"])
    def test_a_table_for_something_else_is_refused(self, other: Schema) -> None:
        """It is not changed."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        before = message(where)
        with pytest.raises(SchemaMismatch, match=r"holds values of monoid 'sum' and buckets of 1d"):
            tables.create(where, tables.table_meta(other), yes=True)
        assert (message(where), recorded(where)) == (before, NINETY_DAYS)

    def test_shards_are_recorded_and_stay(self) -> None:
        """Those of the URI; without any, the recorded ones."""
        where = new_where(shards=8)
        tables.create(where, NINETY_DAYS)
        assert recorded(where) == NINETY_DAYS._replace(shards=8)
        unsaid = BigtableSpec(where.project, where.instance, where.table)
        assert tables.create(unsaid, NINETY_DAYS) == []
        assert wrong(tables.check(unsaid)) == {}
        four = BigtableSpec(where.project, where.instance, where.table, shards=4)
        with pytest.raises(SchemaMismatch, match="created with shards=8, not shards=4"):
            tables.create(four, NINETY_DAYS)
        assert "4 shards" in wrong(tables.check(four))["purpose"]

    @pytest.mark.parametrize(
        ("name", "family", "problem"),
        [
            pytest.param("agg", ColumnFamily, "family agg is not an aggregate of 64-bit", id="cells"),
            pytest.param("state", sums, "family state has a value type", id="sums"),
        ],
    )
    def test_a_family_of_a_wrong_type_cannot_be_mended(
        self, name: str, family: Callable[[], ColumnFamily], problem: str
    ) -> None:
        """Creating and checking say so, and what can be done instead."""
        where = new_where()
        make(where, **{name: family()})
        with pytest.raises(StoreUnavailable, match=rf"{problem}.*deletetable {where.table}"):
            tables.create(where, NINETY_DAYS)
        assert [*message(where).column_families] == [name]
        assert problem in f"family {name} {wrong(tables.check(where))[f'family {name}']}"

    def test_a_family_of_maxima_is_not_one_of_sums(self) -> None:
        """An aggregate family of another kind is as wrong as one of cells."""
        where = new_where()
        maximum = sums()
        maximum.value_type.aggregate_type.max_ = Type.Aggregate.Max()
        make(where, agg=maximum)
        assert "is not an aggregate of 64-bit" in wrong(tables.check(where))["family agg"]

    def test_a_pipeline_may_have_been_first(self) -> None:
        """Its record stays, and gets the retention."""
        where = new_where()
        make(
            where,
            agg=ColumnFamily(value_type=sums().value_type, gc_rule=GcRule(max_age=KEPT_90)),
            dedup=ColumnFamily(gc_rule=GcRule(max_age=KEPT_90)),
            state=ColumnFamily(),
            meta=ColumnFamily(gc_rule=GcRule(max_num_versions=1)),
            pending=ColumnFamily(gc_rule=GcRule(max_age=KEPT_90)),
        )
        where.open(Sum(), DAY).close()
        assert set(wrong(tables.check(where))) == {"family agg", "family dedup", "family state", "family pending"}
        tables.create(where, NINETY_DAYS, yes=True)
        assert recorded(where) == NINETY_DAYS
        assert wrong(tables.check(where)) == {}


def first_layout(where: BigtableSpec) -> None:
    """Make the table as release 0.1.0 does."""
    tables.create(where, NINETY_DAYS._replace(layout=LAYOUTS[1]))


def with_dedup_retention(where: BigtableSpec) -> None:
    """Make a table that forgets events before their bucket."""
    tables.create(where, tables.table_meta(DAILY, None, 7 * DAY))


def without_it_again(where: BigtableSpec) -> None:
    """Make a table that forgot events for a while."""
    with_dedup_retention(where)
    tables.create(where, NINETY_DAYS, yes=True)


def by_commits_again(where: BigtableSpec) -> None:
    """Make a table that was appended to for a while."""
    by_appending(where)
    tables.create(where, tables.table_meta(DAILY), write=COMMIT)


def by_appending(where: BigtableSpec) -> None:
    """Make a table that is appended to."""
    tables.create(where, tables.table_meta(DAILY), write=APPEND)


class TestWaysOfWriting:
    """Commits, or appending."""

    @pytest.mark.parametrize("write", [None, *WAYS])
    def test_a_new_table_is_written_as_requested(self, write: str | None) -> None:
        """By commits by default; later calls without a request keep it. An open store knows it."""
        where = new_where()
        way = write or COMMIT
        steps = tables.create(where, NINETY_DAYS, write=write)
        assert steps[-1][:2] == ("record", "purpose")
        assert steps[-1].text.endswith(f"written by {'appending' if way == APPEND else 'commits'}")
        assert recorded(where) == NINETY_DAYS._replace(write=way, appended=way == APPEND)
        assert tables.plan_changes(where, NINETY_DAYS) == tables.create(where, NINETY_DAYS) == []
        tables.create(where, tables.table_meta(DAILY, 120 * DAY))
        assert recorded(where) == tables.table_meta(DAILY, 120 * DAY)._replace(write=way, appended=way == APPEND)
        assert wrong(tables.check(where)) == wrong(tables.check(where, write=way)) == {}
        with closing(where.open(Sum(), DAY)) as store:
            assert store.appends is (way == APPEND)

    def test_it_can_be_changed_both_ways(self) -> None:
        """Without --yes; the message says what it means for running pipelines. The advice of `check` does it."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        for way, text in ((APPEND, "by appending, instead of by commits"), (COMMIT, "by commits, instead of by app")):
            findings = tables.check(where, write=way)
            assert set(wrong(findings)) == {"purpose"}
            command = f"murmur create-table {where} --monoid sum --window 1d --retention 90d --write {way}"
            assert remedies(findings) == {command}
            planned = tables.plan_changes(where, NINETY_DAYS, write=way)
            assert cli.main(command.split()[1:]) == 0
            assert recorded(where) == NINETY_DAYS._replace(write=way, appended=True)
            assert [step[:2] for step in planned] == [("change", "way of writing"), ("record", "purpose")]
            assert planned[0].text.startswith(text)
            assert "running pipelines go on as before until they are restarted" in planned[0].text
            assert "both ways may be mixed" in planned[0].text
            assert not any(step.deletes for step in planned)
            assert wrong(tables.check(where)) == {}

    def test_remedies_keep_it(self) -> None:
        """Also for a missing table: the advised command makes it as requested."""
        where = new_where()
        by_appending(where)
        modify(where, id="state", drop=True)
        assert remedies(tables.check(where)) == {f"murmur create-table {where} --monoid sum --window 1d --write append"}
        gone = new_where()
        [remedy] = remedies(tables.check(gone, "sum", write=APPEND))
        assert remedy == f"murmur create-table {gone} --monoid sum --write append"

    @pytest.mark.parametrize(
        ("had", "gets", "write", "argument", "problem"),
        [
            pytest.param(
                first_layout, NINETY_DAYS, APPEND, "write",
                "append needs layout 2, and TABLE has layout 1; a table keeps its layout: create another table",
                id="layout-1",
            ),
            pytest.param(
                None, tables.table_meta(DAILY, None, 7 * DAY), APPEND, "dedup_retention",
                "leave it out: TABLE is written by appending (--write append), and an event that is pending for longer",
                id="both",
            ),
            pytest.param(
                with_dedup_retention, tables.table_meta(DAILY), APPEND, "write",
                "append does not support TABLE, which has or had a dedup retention: ", id="has-a-dedup-retention",
            ),
            pytest.param(
                without_it_again, NINETY_DAYS, APPEND, "write",
                "append does not support TABLE, which has or had a dedup retention: ", id="had-a-dedup-retention",
            ),
            pytest.param(
                by_appending, tables.table_meta(DAILY, None, 7 * DAY), None, "dedup_retention",
                "leave it out: TABLE is written by appending", id="dedup-retention-later",
            ),
            pytest.param(
                by_appending,
                tables.table_meta(DAILY, None, 7 * DAY),
                COMMIT,
                "dedup_retention",
                "leave it out: TABLE was written by appending, and an event that is pending for longer",
                id="dedup-retention-instead",
            ),
            pytest.param(
                by_commits_again,
                tables.table_meta(DAILY, None, 7 * DAY),
                None,
                "dedup_retention",
                "leave it out: TABLE was written by appending, and an event that is pending for longer",
                id="dedup-retention-afterwards",
            ),
            pytest.param(None, NINETY_DAYS, "stream", "write", "expected commit or append, got 'stream'", id="unknown"),
        ],
    )  # fmt: skip
    def test_contradictions_to_it_are_refused(
        self, had: Callable[[BigtableSpec], None] | None, gets: Meta, write: str | None, argument: str, problem: str
    ) -> None:
        """By all that makes, plans or checks a table; it does not change, or is not made."""
        where = new_where()
        if had is not None:
            had(where)
        before = (message(where), recorded(where)) if exists(where) else None
        check = partial(tables.check, where, None, DAY, dedup_retention=gets.dedup_retention, write=write)
        create = partial(tables.create, where, gets, write=write, yes=True)
        for work in (create, partial(tables.plan_changes, where, gets, write=write), check):
            with pytest.raises(ConfigurationError) as caught:
                work()
            assert caught.value.argument == argument
            assert caught.value.problem.startswith(problem.replace("TABLE", str(where)))
        assert before == ((message(where), recorded(where)) if exists(where) else None)

    def test_that_a_table_forgot_events_stays_recorded(self) -> None:
        """Also where it gets a dedup retention later; layout 1 has no record of it, so nothing is left to do."""
        where = new_where()
        tables.create(where, tables.table_meta(DAILY))
        for retentions in ((None, 7 * DAY), (None, None), (90 * DAY, None)):
            wanted = tables.table_meta(DAILY, *retentions)
            tables.create(where, wanted, yes=True)
            assert recorded(where) == wanted._replace(forgets=True)
            assert tables.create(where, wanted) == []
        first, wanted = new_where(), tables.table_meta(DAILY, None, 7 * DAY)
        first_layout(first)
        tables.create(first, wanted, yes=True)
        assert tables.create(first, wanted) == []
        assert wrong(tables.check(first, dedup_retention=7 * DAY)) == {}

    def test_two_that_change_it_at_once(self, before: Before) -> None:
        """The second one does not undo the first one's change, and is refused."""
        where, longer = new_where(), tables.table_meta(DAILY, 120 * DAY)
        tables.create(where, NINETY_DAYS)
        asked = 0

        def commit(request: bytes) -> None:
            nonlocal asked
            asked += 1
            if asked == 2:  # to record the new setting, after the old one was read
                with closing(where.connect()) as connection:
                    append = wire.put(wire.META, b"write", 0, b"append")
                    assert connection.run(connection.mutate(wire.bulk(connection, [(SCHEMA_ROW, [append])]), 1)) == {}

        before.answers["CheckAndMutateRow"] = commit
        with pytest.raises(TransientError, match="another program is changing the table's record; run this again"):
            tables.create(where, longer)
        assert asked == 2
        assert recorded(where) == longer._replace(write=APPEND)
        tables.create(where, longer)
        assert recorded(where) == longer._replace(write=APPEND, appended=True)


class TestInterrupted:
    """Whenever it ends, no table keeps less than recorded, and the next call does the rest."""

    @pytest.mark.parametrize("days", [30, 120], ids=["shorter", "longer"])
    @pytest.mark.parametrize("method", ["ModifyColumnFamilies", "CheckAndMutateRow"])
    def test_a_table_never_keeps_less_than_recorded(self, before: Before, method: str, days: int) -> None:
        """So that a pipeline can rely on the record."""
        where, gets = new_where(), tables.table_meta(DAILY, days * DAY)
        tables.create(where, NINETY_DAYS)
        before.answers[method] = grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(StoreUnavailable, match="as the test wants it"):
            tables.create(where, gets, yes=True)
        says = recorded(where)
        assert says is not None
        assert says.bucket_age is not None
        assert says.bucket_age <= dict(collected(where)["agg"])[AGE]
        del before.answers[method]
        assert tables.create(where, gets, yes=True)
        assert recorded(where) == gets
        assert wrong(tables.check(where)) == {}

    def test_a_table_without_its_purpose_is_reported_and_completed(self, before: Before) -> None:
        """As where the process was killed after it made the table."""
        where = new_where()
        before.answers["CheckAndMutateRow"] = grpc.StatusCode.UNAVAILABLE
        with pytest.raises(TransientError):
            tables.create(where, NINETY_DAYS)
        before.answers.clear()
        findings = tables.check(where, None, DAY, 90 * DAY)
        assert set(wrong(findings)) == {"purpose"}
        assert [step.subject for step in tables.create(where, NINETY_DAYS)] == ["purpose"]
        assert wrong(tables.check(where, None, DAY, 90 * DAY)) == {}

    def test_two_that_make_it_at_once(self, before: Before) -> None:
        """One of them is asked to try again, and then succeeds."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        before.answers["GetTable"] = grpc.StatusCode.NOT_FOUND
        with pytest.raises(TransientError, match="another program is creating the table; try again"):
            tables.create(where, NINETY_DAYS)
