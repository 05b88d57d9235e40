"""What a table is for: its record, in the row before all others. Each field is a cell of the family ``meta``.

    monoid, granularity_us, shards, bucket_age_us, marker_age_us     of both layouts; an empty text is None
    field, typed                                                     of layout 1, by releases after 0.1.0
    layout, write, appended, forgets, monoid:, field:                of layout 2

In layout 2 ``monoid`` is what 0.1.0 takes for another aggregate, so that it refuses the table; the aggregate stands in
``monoid:`` as it was typed. A field or a value that is not known here was written by a later release. Then the table is
refused: two releases that understand one table differently would count twice.
"""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from murmur_beam.errors import SchemaMismatch
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.keys import SCHEMA_ROW
from murmur_beam.state.bigtable.layouts import LAYOUTS, NEWEST, Layout

_MICROSECOND = timedelta(microseconds=1)
_TYPED = b"typed"  # not there where release 0.1.0 made the record: it called a count a sum, and noted no field
_SHARED = {b"monoid", b"granularity_us", b"shards", b"bucket_age_us", b"marker_age_us"}
_KNOWN = {
    1: {*_SHARED, b"field", _TYPED},
    2: {*_SHARED, b"layout", b"write", b"appended", b"forgets", b"monoid:", b"field:"},
}
COMMIT, APPEND = "commit", "append"
WAYS = (COMMIT, APPEND)
"""How events come into a table: into the aggregate at once, on a condition; or as pending deltas, without one."""
_NEVER_WITH = {b"appended": b"forgets", b"forgets": b"appended"}
_SHARDS = {str(n) for n in range(1, 257)}


class Meta(NamedTuple):
    """What was recorded when the table was made, or first written to.

    Attributes:
        schema: what its values are.
        bucket_age: garbage collection takes a bucket when its start is so long ago; None: never.
        marker_age: it takes what is known of an event so long after the event was merged; None: never.
        shards: rows that each key is spread over.
        layout: of its cells.
        write: `COMMIT` or `APPEND`, which takes layout 2.
        appended: is it, or was it, written by appending?
        forgets: has it, or had it, a dedup retention, in layout 2? Neither this nor ``appended`` is ever taken back,
            and a table is never both: an event that is pending for longer than it is known would count again.
    """

    schema: Schema
    bucket_age: timedelta | None = None
    marker_age: timedelta | None = None
    shards: int = 1
    layout: Layout = LAYOUTS[NEWEST]
    write: str = COMMIT
    appended: bool = False
    forgets: bool = False

    @property
    def dedup_retention(self) -> timedelta | None:
        """For how long an event is known, where that is not as long as its bucket."""
        return self.marker_age if self.bucket_age is None else None


async def write_meta(connection: Connection, meta: Meta) -> None:
    """Record what the table is for, unless that has been done: then what stands there stays.

    Fails where the table is not made as it should be.
    """
    # Nothing but a test of whether the families are there, and the sums are sums.
    plain = [wire.clear(name) for name in meta.layout.families if name not in (wire.AGG, wire.META)]
    cells = [wire.put(wire.META, qualifier, 0, value) for qualifier, value in cells_of(meta).items()]
    changes = [wire.add(wire.VALUE, 0, 0), *plain, *cells]
    await connection.commit(wire.commit(connection, SCHEMA_ROW, wire.has_family(wire.META), if_not=changes))


async def amend_meta(connection: Connection, before: Meta, meta: Meta) -> None:
    """Record other ages and another way of writing; all else stays. Nothing is written where it would make a table both
    of what it is never together.

    Args:
        connection: of the table.
        before: what is recorded. A way of writing that is the same is left alone: somebody else may just have changed
            it.
        meta: what is to be recorded.
    """
    cells = cells_of(meta)
    names = [b"bucket_age_us", b"marker_age_us", *([b"write"] if meta.write != before.write else [])]
    kinds = [name for name in _NEVER_WITH if name in cells]
    changes = [wire.put(wire.META, name, 0, cells[name]) for name in (*names, *kinds)]
    if kinds:
        other = wire.has_column(wire.META, _NEVER_WITH[kinds[0]])
        request = wire.commit(connection, SCHEMA_ROW, other, if_not=changes)
    else:
        request = wire.commit(connection, SCHEMA_ROW, wire.has_family(wire.META), if_met=changes)
    await connection.commit(request)


async def name_field(connection: Connection, layout: Layout, field: str) -> None:
    """Record which field is folded, unless that has been done: then what stands there stays."""
    column = _field_column(layout)
    cell = wire.put(wire.META, column, 0, field.encode("utf-8"))
    await connection.commit(wire.commit(connection, SCHEMA_ROW, wire.has_column(wire.META, column), if_not=[cell]))


async def read_meta(connection: Connection) -> Meta | None:
    """What is recorded; None: nothing yet.

    Raises:
        SchemaMismatch: a later release has made the record.
    """
    rows = await connection.read(wire.only_meta(wire.read_rows(connection, [SCHEMA_ROW])), persist=False)
    if not rows:
        return None
    return meta_of({cell.qualifier: cell.value for cell in rows[0].cells}, connection.where)


def meta_of(cells: dict[bytes, bytes], where: str) -> Meta:
    """What these cells say.

    Args:
        cells: values by qualifier.
        where: the table, for the message.

    Raises:
        SchemaMismatch: something in them is not known here.
    """

    def unknown(qualifier: bytes) -> SchemaMismatch:
        found = (
            f"{qualifier.decode('utf-8', 'backslashreplace')}={cells[qualifier].decode('utf-8', 'backslashreplace')}"
        )
        return SchemaMismatch(
            f"{where}: its record says {found!r:.100}, which this release of murmur_beam does not know: a later one "
            "made or changed the table; upgrade this one"
        )

    def text(qualifier: bytes) -> str:
        if qualifier not in cells:
            raise SchemaMismatch(
                f"{where}: its record has no field {qualifier.decode()!r}: it is damaged, or not murmur_beam's; "
                "use another table"
            )
        try:
            return cells[qualifier].decode("utf-8")
        except UnicodeDecodeError:
            raise unknown(qualifier) from None

    def duration(qualifier: bytes) -> timedelta | None:
        found = cells.get(qualifier, b"")
        if not found:
            return None
        try:
            return timedelta(microseconds=_count(found))
        except (ValueError, OverflowError):
            raise unknown(qualifier) from None

    number = 1
    if b"layout" in cells:
        number = {str(n).encode(): n for n in LAYOUTS}.get(cells[b"layout"], 0)
        if number == 0:
            raise unknown(b"layout")
    for qualifier in sorted(cells):
        if qualifier not in _KNOWN[number]:
            raise unknown(qualifier)
    if number > 1 and text(b"write") not in WAYS:
        raise unknown(b"write")
    for qualifier in sorted(_NEVER_WITH):
        if cells.get(qualifier, b"1") != b"1":
            raise unknown(qualifier)
    if text(b"shards") not in _SHARDS:
        raise unknown(b"shards")
    layout = LAYOUTS[number]
    field = _field_column(layout)
    return Meta(
        Schema(
            text(b"monoid" if number == 1 else b"monoid:"),
            duration(b"granularity_us"),
            text(field) if field in cells else None,
            vague=number == 1 and _TYPED not in cells,
        ),
        duration(b"bucket_age_us"),
        duration(b"marker_age_us"),
        int(text(b"shards")),
        layout,
        COMMIT if number == 1 else text(b"write"),
        b"appended" in cells,
        b"forgets" in cells,
    )


def cells_of(meta: Meta) -> dict[bytes, bytes]:
    """What is written for it, by qualifier."""
    schema = meta.schema
    monoid = schema.monoid.encode("utf-8")
    named = {} if schema.field is None else {_field_column(meta.layout): schema.field.encode("utf-8")}
    if meta.layout.number == 1:
        own = {b"monoid": monoid, **({} if schema.vague else {_TYPED: b"1"})}
    else:
        number = str(meta.layout.number).encode("ascii")
        write = meta.write.encode("ascii")
        own = {b"layout": number, b"write": write, b"monoid": monoid + b"/" + number, b"monoid:": monoid}
        if meta.appended or meta.write == APPEND:
            own[b"appended"] = b"1"
        if meta.forgets or meta.dedup_retention is not None:
            own[b"forgets"] = b"1"
    return {
        **own,
        **named,
        b"granularity_us": _text(schema.granularity),
        b"shards": str(meta.shards).encode("ascii"),
        b"bucket_age_us": _text(meta.bucket_age),
        b"marker_age_us": _text(meta.marker_age),
    }


def _field_column(layout: Layout) -> bytes:
    return b"field" if layout.number == 1 else b"field:"


def _text(duration: timedelta | None) -> bytes:
    return b"" if duration is None else str(duration // _MICROSECOND).encode("ascii")


def _count(text: bytes) -> int:
    if not text.isdigit():
        raise ValueError(text)
    return int(text)
