"""Tables for the Bigtable store: what `check` finds, on the emulator and where the live service differs from it."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import grpc
import pytest
from google.cloud.bigtable_admin_v2.types import (
    AppProfile,
    ColumnFamily,
    GcRule,
    ModifyColumnFamiliesRequest,
)

from murmur_beam.errors import ConfigurationError, StoreUnavailable, TransientError
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Sum
from murmur_beam.state.bigtable import encode_row_key, table_checks, tables, wire
from murmur_beam.state.bigtable import sizes as sizes_of
from murmur_beam.state.bigtable.meta import APPEND, Meta
from murmur_beam.testing import FakeClock
from tests.support.tables import (
    ALL_TIME,
    DAILY,
    DAY,
    HOUR,
    KEPT_90,
    NINETY_DAYS,
    Before,
    collected,
    make,
    message,
    modify,
    new_where,
    recorded,
    remedies,
    replicated,
    sums,
    wrong,
)

pytestmark = pytest.mark.usefixtures("bigtable_host")


class TestCheck:
    def test_a_correct_table(self) -> None:
        """Everything is checked, and an emulator's app profile is reported as unchecked."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        findings = tables.check(where, "sum", DAY, 90 * DAY)
        families = [f"family {name}" for name in ("agg", "dedup", "state", "meta", "pending")]
        assert [(finding.subject, finding.status) for finding in findings] == [
            *((subject, "ok") for subject in ("table", "purpose", *families, "writing", "rows")),
            ("app profile", "not checked"),
        ]
        assert findings[-1].text == "an emulator has none"
        assert findings[-2].text == "none"

    def test_sizes_of_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Their total, and the largest, with its markers and pending events."""
        where = new_where()
        tables.create(where, tables.table_meta(ALL_TIME))
        with closing(where.open(Sum())) as store, closing(where.connect()) as connection:
            store.merge_updates([Update(Key("home"), 1, f"e{n}") for n in range(1_000)])
            store.merge_updates([Update(Key(f"k{n}"), 1, "e") for n in range(9)])
            name = (1_800_000_000_000_000).to_bytes(8, "big") + b"writer.."
            cells = [wire.put(wire.PENDING, name, 0, b"x" * 100), wire.put(wire.PENDING, b"late", 0, b"")]
            request = wire.bulk(connection, [(encode_row_key(Key("k1")), cells)])
            assert connection.run(connection.mutate(request, 1)) == {}
            # key, version (column and 8 bytes), sum (the same), 24 bytes of a marker's column, and markers
            sizes = connection.run(sizes_of.look_at_sizes(connection))
        assert sizes.whole
        assert sizes.largest.size == len(encode_row_key(Key("home"))) + 9 + 9 + 24 + 16_000
        found = {finding.subject: finding[1:3] for finding in tables.check(where)}
        assert found["rows"] == ("ok", "10, 16.82 kB; the largest, 16.06 kB: 'home', bucket 0")
        assert found["markers"] == ("ok", "of 1,009 events, 16.14 kB; the most, 16 kB: 'home', bucket 0")
        status, text = found["pending"]
        assert status == "warning"
        assert text.startswith("2 cells are not folded yet, 120 B, the oldest since 1970-01-01 00:30 UTC; the most")
        [pending] = [finding for finding in tables.check(where) if finding.subject == "pending"]
        assert pending.remedy == f"murmur fold {where}"
        tables.create(where, tables.table_meta(ALL_TIME), write=APPEND)
        [normal] = [finding for finding in tables.check(where) if finding.subject == "pending"]
        assert normal == pending._replace(status="ok", remedy="")
        monkeypatch.setattr(table_checks, "WARN_ROW_BYTES", 16_000)
        assert {finding.subject: finding.status for finding in tables.check(where)}["rows"] == "warning"

    def test_a_slow_read_of_the_sizes_is_incomplete(self) -> None:
        """The sizes of the rows that were read are reported."""
        where = new_where()
        tables.create(where, tables.table_meta(ALL_TIME))
        with closing(where.connect()) as connection:
            assert connection.run(sizes_of.look_at_sizes(connection, 0.0)).whole is False

    def test_nothing_is_written(self) -> None:
        """Not even a missing purpose."""
        where = new_where()
        make(where, agg=sums(), dedup=ColumnFamily(), state=ColumnFamily(), meta=ColumnFamily())
        before = message(where)
        tables.check(where, "max", DAY, 90 * DAY)
        assert recorded(where) is None
        assert message(where) == before

    def test_a_missing_table(self) -> None:
        """The advised command makes the table for the requested purpose."""
        where = new_where(app_profile="one", shards=8)
        findings = tables.check(where, "max", DAY, 90 * DAY)
        assert wrong(findings) == {"table": "is missing"}
        assert remedies(findings) == {f"murmur create-table '{where}' --monoid max --window 1d --retention 90d"}
        # Without a purpose it advises none: the purpose of a table cannot be changed.
        assert remedies(tables.check(where)) == {f"murmur create-table '{where}' --monoid MONOID [--window WINDOW] ..."}

    def test_a_missing_family(self) -> None:
        """Each one is reported."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        modify(where, id="state", drop=True)
        modify(where, id="agg", drop=True)
        findings = tables.check(where)
        assert wrong(findings) == {"family agg": "is missing", "family state": "is missing"}
        assert remedies(findings) == {f"murmur create-table {where} --monoid sum --window 1d --retention 90d"}

    @pytest.mark.parametrize(
        ("rule", "text"),
        [
            pytest.param(GcRule(max_age=DAY), "takes cells older than 1d; it", id="shorter"),
            pytest.param(GcRule(max_age=100 * DAY), "takes cells older than 100d; it", id="longer"),
            pytest.param(GcRule(), "takes nothing; it", id="none"),
            pytest.param(GcRule(max_num_versions=3), "takes cells beyond 3 versions; it", id="versions"),
        ],
    )
    def test_a_rule_that_differs_from_the_record(self, rule: GcRule, text: str) -> None:
        """Changed by hand, for example."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        modify(where, id="agg", update=ColumnFamily(gc_rule=rule))
        findings = tables.check(where)
        assert set(wrong(findings)) == {"family agg"}
        assert f"{text} should take cells older than 91d 1h" in wrong(findings)["family agg"]
        tables.create(where, NINETY_DAYS, yes=True)
        assert wrong(tables.check(where)) == {}

    def test_the_remedy_of_a_dedup_retention(self) -> None:
        """It restores the former table."""
        where, meta = new_where(), tables.table_meta(ALL_TIME, None, 7 * DAY)
        tables.create(where, meta)
        modify(where, id="dedup", update=ColumnFamily(gc_rule=GcRule()))
        assert remedies(tables.check(where)) == {f"murmur create-table {where} --monoid sum --dedup_retention 1w"}

    @pytest.mark.parametrize(
        ("wanted", "text"),
        [
            pytest.param(("max",), "wanted: monoid 'max' and buckets of 1d", id="monoid"),
            pytest.param((None, HOUR), "wanted: monoid 'sum' and buckets of 1h", id="window"),
        ],
    )
    def test_a_table_for_something_else(self, wanted: tuple[Any, ...], text: str) -> None:
        """No command mends that."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        findings = tables.check(where, *wanted)
        assert set(wrong(findings)) == {"purpose"}
        assert text in wrong(findings)["purpose"]
        assert remedies(findings) == {""}

    def test_another_retention_than_requested(self) -> None:
        """Rules and record are wrong for it, and one command mends them all."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        findings = tables.check(where, retention=365 * DAY)
        assert set(wrong(findings)) == {"purpose", "family agg", "family dedup", "family state", "family pending"}
        assert remedies(findings) == {f"murmur create-table {where} --monoid sum --window 1d --retention 365d"}

    def test_a_retention_without_a_window_is_a_mistake(self) -> None:
        """The table has no window, so it can have no retention."""
        where = new_where()
        tables.create(where, tables.table_meta(ALL_TIME))
        with pytest.raises(ConfigurationError, match="retention: needs a window"):
            tables.check(where, retention=DAY)

    @pytest.mark.parametrize(
        ("method", "subject", "role"),
        [
            pytest.param("GetTable", "table", "roles/bigtable.user", id="looking"),
            pytest.param("ReadRows", "table", "roles/bigtable.user", id="reading"),
            pytest.param("CheckAndMutateRow", "writing", "roles/bigtable.user", id="writing"),
            pytest.param("GetAppProfile", "app profile default", "roles/bigtable.user", id="app-profile"),
        ],
    )
    def test_a_missing_permission(self, before: Before, method: str, subject: str, role: str) -> None:
        """It is reported with a role that has it, and not with the advice to run this very command."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        before.answers[method] = grpc.StatusCode.PERMISSION_DENIED
        (text,) = (findings := wrong(tables.check(where))).values()
        assert [*findings] == [subject]
        assert "as the test wants it" in text
        assert role in text
        assert "murmur check" not in text

    def test_making_a_table_may_not_be_permitted(self, before: Before) -> None:
        """One readable error with the required role."""
        before.answers["CreateTable"] = grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(
            StoreUnavailable, match=r"as the test wants it; this needs a role such as roles/bigtable.admin"
        ):
            tables.create(new_where(), NINETY_DAYS)

    @pytest.mark.parametrize("method", ["GetTable", "ReadRows", "CheckAndMutateRow", "GetAppProfile"])
    def test_a_service_that_does_not_answer_is_not_a_finding(self, before: Before, method: str) -> None:
        """It says nothing about the table."""
        where = new_where(timeout_s=1.0)
        tables.create(where, NINETY_DAYS)
        before.answers[method] = grpc.StatusCode.UNAVAILABLE
        with pytest.raises(TransientError):
            tables.check(where)

    SINGLE = AppProfile.SingleClusterRouting

    @pytest.mark.parametrize(
        ("profile", "status", "text"),
        [
            pytest.param(
                AppProfile(single_cluster_routing=SINGLE(cluster_id="c1", allow_transactional_writes=True)),
                "ok",
                "routes to c1, with single-row transactions",
                id="fit",
            ),
            pytest.param(
                AppProfile(single_cluster_routing=SINGLE(cluster_id="c1")),
                "wrong",
                "does not allow single-row transactions",
                id="no-transactions",
            ),
            pytest.param(
                AppProfile(multi_cluster_routing_use_any=AppProfile.MultiClusterRoutingUseAny()),
                "wrong",
                "routes to several clusters",
                id="several-clusters",
            ),
        ],
    )
    def test_the_app_profile_must_fit(self, before: Before, profile: AppProfile, status: str, text: str) -> None:
        """One cluster, and single-row transactions; otherwise the finding says how to make one."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        before.answers["GetAppProfile"] = AppProfile.serialize(profile)
        finding = tables.check(where)[-1]
        assert (finding.subject, finding.status) == ("app profile default", status)
        assert finding.text.startswith(text)
        assert finding.remedy.startswith("gcloud bigtable app-profiles create" if status == "wrong" else "")

    def test_a_missing_app_profile(self, before: Before) -> None:
        """The one that the URI names."""
        where = new_where(app_profile="counters")
        tables.create(where, NINETY_DAYS)
        before.answers["GetAppProfile"] = grpc.StatusCode.NOT_FOUND
        assert wrong(tables.check(where))["app profile counters"].startswith("is missing")


class TestTheLiveService:
    """Answers about tables that the emulator does not give."""

    CREATING = grpc.StatusCode.FAILED_PRECONDITION, "Table currently being created"
    RELAXED = (
        grpc.StatusCode.FAILED_PRECONDITION,
        "Cannot relax pure age-based GC for a replicated family (agg). Use ignore_warnings.",
    )

    @pytest.mark.parametrize("method", ["CheckAndMutateRow", "ReadRows", "ModifyColumnFamilies"])
    @pytest.mark.parametrize("n", [1, 4])
    def test_a_table_that_is_being_created_is_waited_for(self, before: Before, method: str, n: int) -> None:
        """Each wait is reported."""
        clock = FakeClock()
        where = new_where(clock=clock)
        if method == "ModifyColumnFamilies":
            make(where, agg=ColumnFamily(value_type=sums().value_type, gc_rule=GcRule(max_age=KEPT_90)))
        left = [self.CREATING] * n
        before.answers[method] = lambda request: left.pop() if left else None
        said: list[str] = []
        tables.create(where, NINETY_DAYS, say=said.append)
        assert recorded(where) == NINETY_DAYS
        assert set(collected(where)) == {"agg", "dedup", "state", "meta", "pending"}
        assert clock.waits == [0.5, 1.0, 2.0, 4.0][:n]
        assert said[0] == f"{where} is being created; waiting, 0 of at most 300 s so far"
        assert len(said) == n

    def test_a_second_call_waits_too(self, before: Before) -> None:
        """The table exists, and cannot be read yet."""
        where = new_where(clock=FakeClock())
        tables.create(where, NINETY_DAYS)
        left = [self.CREATING] * 3
        before.answers["ReadRows"] = lambda request: left.pop() if left else None
        assert tables.create(where, NINETY_DAYS) == []
        assert left == []

    def test_waiting_is_limited(self, before: Before) -> None:
        """The message says how to continue."""
        clock = FakeClock()
        before.answers["CheckAndMutateRow"] = self.CREATING
        with pytest.raises(TransientError, match=r"still being created after 3\d\d s; run this again"):
            tables.create(where := new_where(clock=clock), NINETY_DAYS)
        assert 300 <= sum(clock.waits) < 320
        del before.answers["CheckAndMutateRow"]
        tables.create(where, NINETY_DAYS)
        assert wrong(tables.check(where)) == {}

    @pytest.mark.parametrize(
        ("had", "gets"),
        [
            pytest.param(tables.table_meta(DAILY, 30 * DAY), NINETY_DAYS, id="longer"),
            pytest.param(NINETY_DAYS, tables.table_meta(DAILY), id="for-ever"),
            pytest.param(
                tables.table_meta(ALL_TIME, None, 7 * DAY),
                tables.table_meta(ALL_TIME, None, 8 * DAY),
                id="dedup-retention",
            ),
        ],
    )
    def test_a_longer_retention_on_several_clusters_must_be_allowed(
        self, before: Before, had: Meta, gets: Meta
    ) -> None:
        """Otherwise nothing is done, with the reason; if it is allowed, the request says so to the service."""
        where = new_where()
        tables.create(where, had)
        asked: list[bool] = []

        def modify_families(request: bytes) -> Any:
            asked.append(ModifyColumnFamiliesRequest.deserialize(request).ignore_warnings)
            return None if asked[-1] else self.RELAXED

        before.answers["ModifyColumnFamilies"] = modify_families
        with pytest.raises(ConfigurationError, match=r"^yes: is required to keep data .*Cannot relax pure age"):
            tables.create(where, gets)
        assert recorded(where) == had
        assert tables.create(where, gets, yes=True)
        assert (recorded(where), asked) == (gets, [False, True])
        assert wrong(tables.check(where)) == {}

    def test_another_refusal_cannot_be_overridden(self, before: Before) -> None:
        """A request that is refused for another reason is refused with --yes, too."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        before.answers["ModifyColumnFamilies"] = grpc.StatusCode.FAILED_PRECONDITION, "Too many families"
        for yes in (False, True):
            with pytest.raises(StoreUnavailable, match="Too many families"):
                tables.create(where, tables.table_meta(DAILY, 120 * DAY), yes=yes)

    @pytest.mark.parametrize(
        ("clusters", "text"),
        [([], ""), (["c1"], ""), (["c2", "c1"], "2 clusters (c1, c2)"), (["a", "b", "c"], "3 clusters (a, b, c)")],
        ids=["emulator", "one", "two", "three"],
    )
    def test_several_clusters_are_a_warning(self, before: Before, clusters: list[str], text: str) -> None:
        """They are valid, but a failover may count events twice."""
        before.answers["GetTable"] = replicated(*clusters)
        where = new_where()
        said: list[str] = []
        tables.create(where, NINETY_DAYS, say=said.append)
        warnings = [f for f in tables.check(where) if f.status == tables.WARNING]
        assert wrong(tables.check(where)) == {}
        assert [f.subject for f in warnings] == ["clusters"] * bool(text)
        for told in (*said, *(f.text for f in warnings)):
            assert text in told
            assert "count twice" in told
        assert len(said) == bool(text)
