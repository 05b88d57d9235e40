"""Requests, built as plain protocol buffers: the client's wrappers around them cost more than sending them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.cloud.bigtable_v2.types import (
    CheckAndMutateRowRequest,
    CheckAndMutateRowResponse,
    MutateRowsRequest,
    MutateRowsResponse,
    ReadRowsRequest,
    ReadRowsResponse,
)

Commit: Any = CheckAndMutateRowRequest.pb()
CommitResponse: Any = CheckAndMutateRowResponse.pb()
Bulk: Any = MutateRowsRequest.pb()
BulkResponse: Any = MutateRowsResponse.pb()
Read: Any = ReadRowsRequest.pb()
ReadResponse: Any = ReadRowsResponse.pb()
CHECK_AND_MUTATE = "/google.bigtable.v2.Bigtable/CheckAndMutateRow"
MUTATE_ROWS = "/google.bigtable.v2.Bigtable/MutateRows"
READ_ROWS = "/google.bigtable.v2.Bigtable/ReadRows"

AGG, DEDUP, STATE, META = "agg", "dedup", "state", "meta"
VALUE, VERSION, EXPIRY = b"v", b"n", b"x"


def read_rows(connection: Any, keys: Sequence[bytes]) -> Any:
    """A read of single rows, to be given a filter.

    Args:
        connection: the table's name and app profile are taken from it.
        keys: of the rows; a row that does not exist has no answer.
    """
    request = Read(table_name=connection.name, app_profile_id=connection.app_profile)
    request.rows.row_keys.extend(keys)
    return request


def read_range(connection: Any, start: bytes, end: bytes | None, limit: int) -> Any:
    """A read of the first rows from ``start`` on, before ``end`` (None: to the last row), to be given a filter."""
    request = Read(table_name=connection.name, app_profile_id=connection.app_profile, rows_limit=limit)
    rows = request.rows.row_ranges.add(start_key_closed=start)
    if end is not None:
        rows.end_key_open = end
    return request


def only_values(request: Any) -> Any:
    """Of each row the aggregate and what belongs to it, without the events."""
    _values(request.filter)
    return request


def only_news(request: Any, version: int) -> Any:
    """Of each row the aggregate, and the events of all commits after this version."""
    either = request.filter.interleave.filters
    _values(either.add())
    column = either.add().column_range_filter
    column.family_name = DEDUP
    column.start_qualifier_closed = (version + 1).to_bytes(8, "big")
    return request


def only_meta(request: Any) -> Any:
    """Of the first row what it says of the table."""
    request.filter.family_name_regex_filter = META
    return request


def _values(row_filter: Any) -> None:
    chain = row_filter.chain.filters
    chain.add().family_name_regex_filter = f"{AGG}|{STATE}"
    chain.add().cells_per_column_limit_filter = 1


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
