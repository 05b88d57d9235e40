"""Deletes rows with everything in them: unconditionally, many in a request.

A commit that another writer makes meanwhile has a version conflict, reads that the row is gone, and makes it again. A
row that is made again has a version that no row had before.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator

from murmur_beam.model import Key
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.dispatcher import Dispatcher
from murmur_beam.state.bigtable.keys import AFTER_SCHEMA, encode_row_key, entity_prefix, parse_row_key, successor

_ROWS_PER_REQUEST = 1_000
_FIRST, _LAST = -(2**63), 2**63 - 1
_LAST_SHARD = 255


async def delete_rows(
    connection: Connection, dispatcher: Dispatcher, entity: str, first: int | None, last: int | None, prefix: bool
) -> AsyncIterator[list[bytes]]:
    """Delete as `Store.delete` says; yields the row keys of each request after its answer, in order.

    Raises:
        Exception: a request failed; rows that were deleted before stay deleted.
    """
    low, high = _FIRST if first is None else first, _LAST if last is None else last
    start: bytes
    end: bytes | None
    if prefix:
        start, end = entity_prefix(entity) or AFTER_SCHEMA, successor(entity_prefix(entity))
    else:
        start, end = encode_row_key(Key(entity, low)), encode_row_key(Key(entity, high), _LAST_SHARD) + b"\x00"
    while True:
        page = await connection.read(wire.only_keys(wire.read_range(connection, start, end, _ROWS_PER_REQUEST)))
        wanted = [row.key for row in page if low <= parse_row_key(row.key)[0].bucket <= high]
        if wanted:
            request = wire.bulk(connection, [(key, [wire.DELETE_ROW]) for key in wanted])
            send = functools.partial(connection.mutate, request, len(wanted))
            failed = await dispatcher.send(send, dispatcher.deadline())
            for error in failed.values():
                raise error
            yield wanted
        if len(page) < _ROWS_PER_REQUEST:
            return
        start = page[-1].key + b"\x00"
