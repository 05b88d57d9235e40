"""What a table is for: the row before all others."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.keys import SCHEMA_ROW

_MICROSECOND = timedelta(microseconds=1)
_FIELD = b"field"
_TYPED = b"typed"  # not there where release 0.1.0 made the record: it called a count a sum, and noted no field


class Meta(NamedTuple):
    """What was recorded when the table was made, or first written to.

    Attributes:
        schema: what its values are.
        bucket_age: garbage collection takes a bucket when its start is so long ago; None: never.
        marker_age: it takes what is known of an event so long after the event was merged; None: never.
        shards: rows that each key is spread over.
    """

    schema: Schema
    bucket_age: timedelta | None = None
    marker_age: timedelta | None = None
    shards: int = 1


async def write_meta(connection: Connection, meta: Meta) -> None:
    """Record what the table is for, unless that has been done: then what stands there stays.

    Fails where the table is not made as it should be.
    """
    # Nothing but a test of whether the families are there, and the sums are sums.
    probes = [wire.add(wire.VERSION, 0, 0), wire.clear(wire.STATE), wire.clear(wire.DEDUP)]
    cells = [wire.put(wire.META, qualifier, 0, value) for qualifier, value in _cells(meta).items()]
    await connection.commit(wire.commit(connection, SCHEMA_ROW, wire.has_family(wire.META), if_not=[*probes, *cells]))


async def amend_meta(connection: Connection, meta: Meta) -> None:
    """Record other ages where something is recorded; the schema stays."""
    cells = _cells(meta)
    ages = [wire.put(wire.META, name, 0, cells[name]) for name in (b"bucket_age_us", b"marker_age_us")]
    await connection.commit(wire.commit(connection, SCHEMA_ROW, wire.has_family(wire.META), if_met=ages))


async def name_field(connection: Connection, field: str) -> None:
    """Record which field is folded, unless that has been done: then what stands there stays."""
    cell = wire.put(wire.META, _FIELD, 0, field.encode("utf-8"))
    await connection.commit(wire.commit(connection, SCHEMA_ROW, wire.has_column(wire.META, _FIELD), if_not=[cell]))


async def read_meta(connection: Connection) -> Meta | None:
    """What is recorded; None: nothing yet."""
    rows = await connection.read(wire.only_meta(wire.read_rows(connection, [SCHEMA_ROW])), persist=False)
    if not rows:
        return None
    cells = {cell.qualifier: cell.value for cell in rows[0].cells}
    return Meta(
        Schema(
            cells[b"monoid"].decode("utf-8"),
            _duration(cells[b"granularity_us"]),
            cells[_FIELD].decode("utf-8") if _FIELD in cells else None,
            vague=_TYPED not in cells,
        ),
        _duration(cells.get(b"bucket_age_us", b"")),
        _duration(cells.get(b"marker_age_us", b"")),
        int(cells[b"shards"]),
    )


def _cells(meta: Meta) -> dict[bytes, bytes]:
    schema = meta.schema
    named = {} if schema.field is None else {_FIELD: schema.field.encode("utf-8")}
    typed = {} if schema.vague else {_TYPED: b"1"}
    return {
        **typed,
        **named,
        b"monoid": schema.monoid.encode("utf-8"),
        b"granularity_us": _text(schema.granularity),
        b"shards": str(meta.shards).encode("ascii"),
        b"bucket_age_us": _text(meta.bucket_age),
        b"marker_age_us": _text(meta.marker_age),
    }


def _text(duration: timedelta | None) -> bytes:
    return b"" if duration is None else str(duration // _MICROSECOND).encode("ascii")


def _duration(text: bytes) -> timedelta | None:
    return timedelta(microseconds=int(text)) if text else None
