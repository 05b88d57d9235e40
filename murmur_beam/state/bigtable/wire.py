"""Requests, built as plain protocol buffers: the client's wrappers around them cost more than sending them."""

from __future__ import annotations

from typing import Any

from google.cloud.bigtable.data import row_filters as filters
from google.cloud.bigtable_v2.types import (
    CheckAndMutateRowRequest,
    CheckAndMutateRowResponse,
    MutateRowsRequest,
    MutateRowsResponse,
)

Commit: Any = CheckAndMutateRowRequest.pb()
CommitResponse: Any = CheckAndMutateRowResponse.pb()
Bulk: Any = MutateRowsRequest.pb()
BulkResponse: Any = MutateRowsResponse.pb()
CHECK_AND_MUTATE = "/google.bigtable.v2.Bigtable/CheckAndMutateRow"
MUTATE_ROWS = "/google.bigtable.v2.Bigtable/MutateRows"

AGG, DEDUP, STATE, META = "agg", "dedup", "state", "meta"
VALUE, VERSION, EXPIRY = b"v", b"n", b"x"

VALUES = filters.RowFilterChain([filters.FamilyNameRegexFilter(f"{AGG}|{STATE}"), filters.CellsColumnLimitFilter(1)])
"""The aggregate and what belongs to it, without the events."""


def news(version: int) -> filters.RowFilter:
    """The aggregate, and the events of all commits after this version."""
    first = (version + 1).to_bytes(8, "big")
    events = filters.RowFilterChain(
        [filters.FamilyNameRegexFilter(DEDUP), filters.ColumnRangeFilter(DEDUP, start_qualifier=first)]
    )
    return filters.RowFilterUnion([VALUES, events])


def require_version(request: Any, version: int) -> Any:
    """Add the predicate "the row is at this version", 0 being no row at all; where its mutations go."""
    if version == 0:
        column = request.predicate_filter.column_range_filter
        mutations = request.false_mutations
    else:
        chain = request.predicate_filter.chain.filters
        column = chain.add().column_range_filter
        cell = chain.add().value_range_filter
        cell.start_value_closed = cell.end_value_closed = version.to_bytes(8, "big")
        mutations = request.true_mutations
    # Not by regular expressions: the emulator compiles those anew for every cell of the row.
    column.family_name = AGG
    column.start_qualifier_closed = column.end_qualifier_closed = VERSION
    return mutations


def add(mutations: Any, qualifier: bytes, at_us: int, delta: int) -> None:
    """Add to a sum."""
    cell = mutations.add().add_to_cell
    cell.family_name = AGG
    cell.column_qualifier.raw_value = qualifier
    cell.timestamp.raw_timestamp_micros = at_us
    cell.input.int_value = delta


def put(mutations: Any, family: str, qualifier: bytes, at_us: int, value: bytes) -> None:
    """Set a cell."""
    cell = mutations.add().set_cell
    cell.family_name = family
    cell.column_qualifier = qualifier
    cell.timestamp_micros = at_us
    cell.value = value


def clear(mutations: Any, family: str) -> None:
    """Delete all cells of a family."""
    mutations.add().delete_from_family.family_name = family


def clear_column(mutations: Any, family: str, qualifier: bytes) -> None:
    """Delete all cells of a column."""
    column = mutations.add().delete_from_column
    column.family_name, column.column_qualifier = family, qualifier
