"""Requests encoded as bytes, read by the client's own classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("google.cloud.bigtable")

from google.cloud.bigtable_v2.types import CheckAndMutateRowRequest, CheckAndMutateRowResponse, MutateRowsRequest

from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.layouts import LAYOUTS

Commit: Any = CheckAndMutateRowRequest.pb()
Bulk: Any = MutateRowsRequest.pb()

INT64 = st.integers(-(2**63), 2**63 - 1)
TIMES = st.integers(0, 2**62)
DATA = st.binary(max_size=300) | st.integers(0, 40_000).map(bytes)
FAMILIES = st.sampled_from([wire.AGG, wire.DEDUP, wire.STATE, wire.META, wire.PENDING])
TABLES = st.builds(
    SimpleNamespace,
    name=st.sampled_from(["projects/p/instances/i/tables/t", "x" * 200]),
    app_profile=st.sampled_from(["", "murmur"]),
)


def _added(qualifier: bytes, at_us: int, delta: int) -> dict[str, Any]:
    return {
        "add_to_cell": {
            "family_name": "agg",
            "column_qualifier": {"raw_value": qualifier},
            "timestamp": {"raw_timestamp_micros": at_us},
            "input": {"int_value": delta},
        }
    }


def _put(family: str, qualifier: bytes, at_us: int, value: bytes) -> dict[str, Any]:
    cell = {"family_name": family, "column_qualifier": qualifier, "timestamp_micros": at_us, "value": value}
    return {"set_cell": cell}


# A mutation as bytes, and its expected meaning.
MUTATIONS = st.one_of(
    st.tuples(DATA, TIMES, INT64).map(lambda of: (wire.add(*of), _added(*of))),
    st.tuples(FAMILIES, DATA, TIMES, DATA).map(lambda of: (wire.put(*of), _put(*of))),
    st.just((wire.DELETE_ROW, {"delete_from_row": {}})),
    FAMILIES.map(lambda family: (wire.clear(family), {"delete_from_family": {"family_name": family}})),
    st.tuples(FAMILIES, DATA).map(
        lambda of: (
            wire.clear_column(*of),
            {"delete_from_column": {"family_name": of[0], "column_qualifier": of[1]}},
        )
    ),
)


@given(table=TABLES, key=DATA, if_met=st.lists(MUTATIONS, max_size=4), if_not=st.lists(MUTATIONS, max_size=4))
def test_a_commit_has_its_mutations(table: Any, key: bytes, if_met: list[Any], if_not: list[Any]) -> None:
    """Every mutation is in its place, in order, and complete, zeros and negatives included."""
    made = wire.commit(table, key, wire.NEVER, if_met=[m for m, _ in if_met], if_not=[m for m, _ in if_not])
    assert Commit.FromString(made) == Commit(
        table_name=table.name,
        app_profile_id=table.app_profile,
        row_key=key,
        predicate_filter={"block_all_filter": True},
        true_mutations=[said for _, said in if_met],
        false_mutations=[said for _, said in if_not],
    )


@given(table=TABLES, entries=st.lists(st.tuples(DATA, st.lists(MUTATIONS, max_size=3)), max_size=3), token=DATA)
def test_a_request_of_many_rows_has_its_entries(table: Any, entries: list[Any], token: bytes) -> None:
    """Each entry has its row, its mutations and the token, if there is one."""
    made = wire.bulk(table, [(key, [m for m, _ in mutations]) for key, mutations in entries], token=token)
    once = {"idempotency": {"token": token}} if token else {}
    assert Bulk.FromString(made) == Bulk(
        table_name=table.name,
        app_profile_id=table.app_profile,
        entries=[{"row_key": key, "mutations": [said for _, said in mutations], **once} for key, mutations in entries],
    )


@given(version=st.integers(1, 2**63 - 1))
def test_predicates_have_their_conditions(version: int) -> None:
    """On a column, on its value, on a family."""

    def column(family: str) -> dict[str, object]:
        names = {"family_name": family, "start_qualifier_closed": b"n", "end_qualifier_closed": b"n"}
        return {"column_range_filter": names}

    names = {"family_name": "meta", "start_qualifier_closed": b"field", "end_qualifier_closed": b"field"}
    field = {"column_range_filter": names}
    value = {"start_value_closed": version.to_bytes(8, "big"), "end_value_closed": version.to_bytes(8, "big")}
    for predicate, said in (
        (LAYOUTS[1].exists, column("agg")),
        (LAYOUTS[2].exists, column("state")),
        (LAYOUTS[1].at_version(version), {"chain": {"filters": [column("agg"), {"value_range_filter": value}]}}),
        (LAYOUTS[2].at_version(version), {"chain": {"filters": [column("state"), {"value_range_filter": value}]}}),
        (wire.has_family("meta"), {"family_name_regex_filter": "meta"}),
        (wire.has_column("meta", b"field"), field),
    ):
        made = wire.commit(SimpleNamespace(name="t", app_profile=""), b"key", predicate)
        assert Commit.FromString(made) == Commit(table_name="t", row_key=b"key", predicate_filter=said)


@pytest.mark.parametrize("met", [False, True])
def test_an_answer_is_read_whatever_else_it_holds(met: bool) -> None:
    """Also one with a field that did not exist when this was written."""
    answer = CheckAndMutateRowResponse.pb()(predicate_matched=met).SerializeToString()
    unknown = b"\xfa\x01\x03abc"
    assert wire.was_met(answer) is wire.was_met(answer + unknown) is wire.was_met(unknown + answer) is met


@pytest.mark.parametrize("n", [1, 2, 128, 300])
def test_the_usual_answer_to_a_bulk_write_reports_success(n: int) -> None:
    """As the client's own class reads it; and as it writes it, with omitted defaults."""
    answer = wire.BulkResponse.FromString(wire.all_written(n))
    assert [(entry.index, entry.HasField("status"), entry.status.code) for entry in answer.entries] == [
        (i, True, 0) for i in range(n)
    ]
    assert answer.SerializeToString() == wire.all_written(n)
