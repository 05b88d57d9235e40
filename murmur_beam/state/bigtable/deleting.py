"""Deleting rows, whatever is in them: unconditionally, many a request.

A commit that somebody makes meanwhile finds that the row is not at the version that it knew, reads that it is gone, and
begins it anew. A row that was made anew has a version that no row had before.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator

from murmur_beam.model import Key
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.keys import AFTER_SCHEMA, entity_prefix, parse_row_key, row_key, successor
from murmur_beam.state.bigtable.sending import Sender

_ROWS_PER_REQUEST = 1_000
_FIRST, _LAST = -(2**63), 2**63 - 1
_LAST_SHARD = 255


async def delete_rows(
    connection: Connection, sender: Sender, entity: str, first: int | None, last: int | None, prefix: bool
) -> AsyncIterator[list[bytes]]:
    """Delete as `Store.delete` says; the row keys of each request that was answered, in order.

    Raises:
        Exception: a request failed; what was deleted before stays so.
    """
    low, high = _FIRST if first is None else first, _LAST if last is None else last
    start: bytes
    end: bytes | None
    if prefix:
        start, end = entity_prefix(entity) or AFTER_SCHEMA, successor(entity_prefix(entity))
    else:
        start, end = row_key(Key(entity, low)), row_key(Key(entity, high), _LAST_SHARD) + b"\x00"
    while True:
        page = await connection.read(wire.only_keys(wire.read_range(connection, start, end, _ROWS_PER_REQUEST)))
        wanted = [row.key for row in page if low <= parse_row_key(row.key)[0].bucket <= high]
        if wanted:
            request = wire.bulk(connection, [(key, [wire.DELETE_ROW]) for key in wanted])
            send = functools.partial(connection.mutate, request, len(wanted))
            failed = await sender.send(send, sender.deadline())
            for error in failed.values():
                raise error
            yield wanted
        if len(page) < _ROWS_PER_REQUEST:
            return
        start = page[-1].key + b"\x00"
