"""An app profile of folds: only it needs single-row transactions on a table that is appended to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import apache_beam as beam
import pytest
from google.cloud.bigtable_admin_v2.types import AppProfile, GetAppProfileRequest

from murmur_beam import MergeRecords
from murmur_beam.errors import ConfigurationError, StoreUnavailable
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count, Sum
from murmur_beam.options import MergeOptions
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER, run
from murmur_beam.spec import resolve
from murmur_beam.state import spec_from_uri
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, probe, tables
from tests.support import emulators
from tests.support.clusters import profile_of, refusing_transactions
from tests.support.commands import Command
from tests.support.fault_proxy import CHECK_AND_MUTATE, MUTATE_ROWS, READ_ROWS, FaultProxy
from tests.support.tables import ALL_TIME, Before, new_where, recorded, remedies, replicated, wrong

K = Key("k")
RECORDED = Outcome.RECORDED
SUMS = tables.table_meta(ALL_TIME)


class Watched(FaultProxy):
    """Allows transactions with the profile ``folds`` only.

    Attributes:
        profiles: those that requests came with since the last `clear`, by method.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.profiles: dict[str, set[str]] = {}
        refused = refusing_transactions("folds")

        def live(method: str, request: bytes) -> Any:
            if method in (CHECK_AND_MUTATE, MUTATE_ROWS, READ_ROWS):
                self.profiles.setdefault(method, set()).add(profile_of(method, request))
            return refused(method, request)

        self.live = live


@pytest.fixture
def proxy(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Between the stores and the emulator."""
    with Watched(bigtable_host) as running:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", running.address)
        yield running


@pytest.fixture
def spec(proxy: Watched) -> BigtableSpec:
    """A new table that is appended to, with a profile of folds."""
    spec = emulators.new_spec(proxy.address, app_profile="any", fold_profile="folds")
    tables.create(spec, SUMS, write="append")
    proxy.profiles.clear()
    return spec


def without(spec: BigtableSpec) -> BigtableSpec:
    """The same table without a profile of folds."""
    return BigtableSpec(spec.project, spec.instance, spec.table, app_profile="any")


def threads(spec: BigtableSpec) -> int:
    """Number of connections to the table."""
    return sum(thread.name == f"murmur {spec}" for thread in threading.enumerate())


# ---- the store ----


def test_it_is_an_option_of_the_uri() -> None:
    """Which defaults to the app profile."""
    spec = BigtableSpec("p", "i", "t", app_profile="any", fold_profile="folds")
    assert spec_from_uri("bigtable://p/i/t?app_profile=any&fold_profile=folds") == spec
    assert str(spec) == "bigtable://p/i/t?app_profile=any&fold_profile=folds"
    assert (spec.profile_of_folds, BigtableSpec("p", "i", "t", app_profile="any").profile_of_folds) == ("folds", "any")


def test_appends_and_reads_need_no_transactions(proxy: Watched, spec: BigtableSpec) -> None:
    """Folds read and write with their own profile, everything else with the other."""
    with closing(spec.open(Sum())) as store:
        for i in range(3):
            assert store.merge_updates([Update(K, 1, f"e{i}"), Update(K, 1, "twice")]) == [RECORDED] * 2
            assert store.get(K) == i + 2
            assert list(store.scan(fresh=True)) == [(K, i + 2)]
        assert proxy.profiles == {MUTATE_ROWS: {"any"}, READ_ROWS: {"any"}}
        assert threads(spec) == 1, "the connection of folds is opened when it is first needed"
        proxy.profiles.clear()
        assert store.fold().events == 4
        store.merge_update(K, 1, event_id="twice")
        store.merge_update(K, 1, event_id="new")
        proxy.profiles.clear()
        folded = store.fold_rows(store.row_keys([K], None))
        assert (folded.events, folded.duplicates) == (1, 1)
        assert proxy.profiles == {method: {"folds"} for method in (CHECK_AND_MUTATE, MUTATE_ROWS, READ_ROWS)} | {
            READ_ROWS: {"folds"}
        }
        assert (store.get(K), store.get_many([K], fresh=False)) == (5, [5])
        assert store.delete("k") == 1
        store.merge_update(K, 1, event_id="twice")
        assert store.fold().events == 1
        assert store.get(K) == 1


def test_without_it_a_fold_names_the_parameter(proxy: Watched, spec: BigtableSpec) -> None:
    """The events stay pending; a folder with the right profile folds them."""
    plain = without(spec)
    with closing(plain.open(Sum())) as store:
        store.merge_update(K, 1, event_id="e")
        for fold in (store.fold, lambda: store.fold_rows(store.row_keys([K], None)), store.require_folds):
            with pytest.raises(StoreUnavailable) as caught:
                fold()
            assert str(caught.value).endswith(
                "Single-row transactions are not allowed by this app profile (any): folds and the table's record need "
                "one that routes to a single cluster and allows single-row transactions; name it in the URI, "
                f"?fold_profile=NAME; see: murmur check '{plain}'"
            )
        assert store.get(K) == 1
        assert threads(plain) == 1
    with closing(spec.open(Sum())) as store:
        store.require_folds()
        assert store.fold().events == 1


def test_a_wrong_one_is_named(proxy: Watched, spec: BigtableSpec) -> None:
    """Not the app profile, which is right."""
    other = BigtableSpec(spec.project, spec.instance, spec.table, app_profile="folds", fold_profile="any")
    with closing(other.open(Sum())) as store:
        store.merge_update(K, 1, event_id="e")
        with pytest.raises(StoreUnavailable, match=r"profile \(any\): folds .* \?fold_profile=NAME"):
            store.fold()


def test_commits_are_still_refused_without_transactions(proxy: Watched) -> None:
    """On a table of commits the profile of folds does not help."""
    spec = emulators.new_spec(proxy.address, app_profile="any", fold_profile="folds")
    with closing(spec.open(Sum())) as store:
        (result,) = store.merge_updates([Update(K, 1, "e")])
    assert isinstance(result, StoreUnavailable)
    assert "(any): a commit needs one that routes to a single cluster" in str(result)
    assert "?app_profile=NAME" in str(result)


def test_the_connection_of_folds_ends_with_the_store(spec: BigtableSpec) -> None:
    """Threads that fold first at once open one; a closed store opens none."""
    store = spec.open(Sum())
    store.merge_updates([Update(Key(f"k{i}"), 1, "e") for i in range(50)])
    folds = [threading.Thread(target=store.fold) for _ in range(5)]
    for thread in folds:
        thread.start()
    for thread in folds:
        thread.join()
    assert threads(spec) == 2
    store.close()
    assert threads(spec) == 0
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        store.fold()
    assert threads(spec) == 0


# ---- the record ----


def test_only_create_table_records_a_table_that_is_appended_to(proxy: Watched) -> None:
    """An appender does not make a table of commits out of one whose record is missing; with the profile of folds the
    record is written, and found."""
    spec = emulators.new_spec(proxy.address, app_profile="any", fold_profile="folds")
    plain = without(spec)
    with pytest.raises(StoreUnavailable, match=r"profile \(any\): a commit needs one that .* see: murmur check"):
        plain.open(Sum())
    with pytest.raises(StoreUnavailable, match=r"profile \(any\): folds and the table's record .*\?fold_profile="):
        tables.create(plain, SUMS, write="append")
    assert recorded(plain) is None
    tables.create(spec, SUMS, write="append")
    with closing(plain.open(Sum())) as store:
        assert store.merge_update(K, 1, event_id="e") is RECORDED


def test_the_name_of_the_field_is_recorded_once(spec: BigtableSpec) -> None:
    """With the profile of folds, by the first pipeline that names one."""
    monoid = Sum().of("amount")
    with pytest.raises(StoreUnavailable, match=r"^the field 'amount' cannot be recorded: .* \?fold_profile=NAME"):
        without(spec).open(monoid)
    spec.open(monoid).close()
    assert recorded(spec) == SUMS._replace(schema=Schema("sum", None, "amount"), write="append", appended=True)
    with closing(without(spec).open(monoid)) as store:
        assert store.merge_update(K, 1, event_id="e") is RECORDED


# ---- pipelines ----


def test_a_pipeline_merges_and_folds(proxy: Watched, bigtable_host: str) -> None:
    """The merge stage needs no transactions; the fold stage behind it has its own profile."""
    spec = emulators.new_spec(proxy.address, app_profile="any", fold_profile="folds")
    tables.create(spec, tables.table_meta(Schema("count", None)), write="append")
    events = [{"id": str(i), "k": f"k{i % 3}"} for i in range(600)] * 2
    pipeline = beam.Pipeline(IN_PROCESS_RUNNER)
    _ = (
        pipeline
        | beam.Create(events)
        | MergeRecords("test", key="k", event_id="id", monoid="count", store=spec, fold="1h")
    )
    counters = run(pipeline)
    assert counters["test:record_recorded"] == 1_200
    assert counters["test:fold_events"] == 600
    with closing(without(spec).open(Count())) as store:
        assert store.get_many([Key(f"k{i}") for i in range(3)], fresh=False) == [200] * 3


def test_a_pipeline_that_could_not_fold_is_refused(spec: BigtableSpec) -> None:
    """When it is built; without a fold stage it needs no transactions."""
    options = {"key": "k", "event_id": "id", "value": lambda record: 1}
    resolve(MergeOptions(**options, store=without(spec))).check_stores()
    resolve(MergeOptions(**options, store=spec, fold="1m")).check_stores()
    with pytest.raises(ConfigurationError) as caught:
        resolve(MergeOptions(**options, store=without(spec), fold="1m")).check_stores()
    assert caught.value.argument == "fold"
    assert "name it in the URI, ?fold_profile=NAME" in caught.value.problem


def test_murmur_fold(spec: BigtableSpec, capsys: pytest.CaptureFixture[str]) -> None:
    """The parameter belongs to its URI, too."""
    with closing(spec.open(Sum())) as store:
        store.merge_update(K, 1, event_id="e")
    failed = Command(str(without(spec)), capsys)("fold")
    assert failed.code == 2
    assert "?fold_profile=NAME" in failed.err
    assert Command(str(spec), capsys)("fold").code == 0


# ---- murmur check, and the probe ----

SINGLE = AppProfile.SingleClusterRouting
PROFILES = {
    "folds": AppProfile(single_cluster_routing=SINGLE(cluster_id="c1", allow_transactional_writes=True)),
    "plain": AppProfile(single_cluster_routing=SINGLE(cluster_id="c2")),
    "any": AppProfile(multi_cluster_routing_use_any=AppProfile.MultiClusterRoutingUseAny()),
}


def profiles(request: bytes) -> Any:
    """The server's answer about an app profile."""
    return AppProfile.serialize(PROFILES[GetAppProfileRequest.deserialize(request).name.rpartition("/")[2]])


@pytest.mark.parametrize(
    ("write", "app", "folds", "found"),
    [
        ("append", "any", "folds", {"app profile any": "routes to several clusters; appends need no transactions"}),
        ("append", "plain", "folds", {"fold profile folds": "routes to c1, with single-row transactions"}),
        ("append", "folds", None, {"app profile folds": "routes to c1; appends need no transactions"}),
        ("append", "any", None, {"fold profile any": "wrong: routes to several clusters, where two folds of a row"}),
        ("append", "any", "plain", {"fold profile plain": "wrong: does not allow single-row transactions"}),
        ("commit", "folds", None, {"app profile folds": "routes to c1, with single-row transactions"}),
        (
            "commit",
            "any",
            "folds",
            {"app profile any": "wrong: routes to several clusters, where two commits of a row"},
        ),
        ("commit", "folds", "any", {"fold profile any": "wrong: routes to several clusters, where two folds of a row"}),
    ],
)
def test_each_profile_is_checked_for_its_own_needs(
    before: Before, write: str, app: str, folds: str | None, found: dict[str, str]
) -> None:
    """And the command that makes another names the right routing and parameter."""
    where = new_where(app_profile=app, fold_profile=folds)
    tables.create(where, SUMS, write=write)
    before.answers["GetAppProfile"] = profiles
    findings = tables.check(where)
    texts = {finding.subject: finding for finding in findings}
    for subject, text in found.items():
        status, _, rest = text.rpartition("wrong: ")
        assert texts[subject].text.startswith(rest or status)
        assert texts[subject].status == ("wrong" if text.startswith("wrong") else "ok")
    assert {*wrong(findings)} == {subject for subject, text in found.items() if text.startswith("wrong")}
    assert ("folding" in texts) == (write == "append" or folds is not None)
    for remedy in remedies(findings):
        assert remedy.endswith("--route-to=CLUSTER --transactional-writes")
        new = "murmur-folds" if "fold profile" in str(wrong(findings)) else "murmur"
        assert f" create {new} " in remedy
        assert f"?{'fold' if 'folds' in new else 'app'}_profile={new} " in str(wrong(findings)) + " "


def test_writing_is_tried_with_both(proxy: Watched, spec: BigtableSpec) -> None:
    """Appends with one profile, and the commits of folds with the other."""
    assert wrong(tables.check(spec)) == {}
    assert proxy.profiles[CHECK_AND_MUTATE] == {"folds"}
    assert proxy.profiles[MUTATE_ROWS] == {"any"}
    found = wrong(tables.check(without(spec)))
    assert {*found} == {"folding"}
    assert found["folding"].endswith("name it in the URI, ?fold_profile=NAME")


def test_the_probe_commits_as_the_table_does(proxy: Watched, spec: BigtableSpec) -> None:
    """With the profile of folds, which its advice names."""
    assert probe.run(spec).wrong == []
    assert proxy.profiles[CHECK_AND_MUTATE] == {"folds"}
    result, *_ = probe.run(without(spec)).wrong
    assert "?fold_profile=NAME" in result.seen


@pytest.mark.parametrize(
    ("write", "text"), [("append", "folds run in one of them"), ("commit", "commits go to one of")]
)
def test_the_warning_of_several_clusters(before: Before, write: str, text: str) -> None:
    """What must not move early depends on the way of writing."""
    where = new_where()
    said: list[str] = []
    tables.create(where, SUMS, write=write)
    before.answers["GetTable"] = replicated("c1", "c2")
    tables.create(where, SUMS, write=write, say=said.append)
    (warning,) = [finding for finding in tables.check(where) if finding.subject == "clusters"]
    assert text in warning.text
    assert text in said[0]
