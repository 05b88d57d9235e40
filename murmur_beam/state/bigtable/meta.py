"""The record of a table's purpose, in the row before all others. Each field is a cell of the family ``meta``.

    monoid, granularity_us, shards, bucket_age_us, marker_age_us     both layouts; an empty text stands for None
    field, typed                                                     layout 1, by releases after 0.1.0
    layout, write, appended, forgets, monoid:, field:                layout 2

In layout 2, ``monoid`` holds a value that release 0.1.0 takes for another aggregate, so that it refuses the table;
``monoid:`` holds the monoid's name. An unknown field or value was written by a later release. The table is then
refused: two releases that interpret one table differently would count twice.
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
_TYPED = b"typed"  # missing in records of release 0.1.0, which called a count a sum, and recorded no field
_SHARED = {b"monoid", b"granularity_us", b"shards", b"bucket_age_us", b"marker_age_us"}
_KNOWN = {
    1: {*_SHARED, b"field", _TYPED},
    2: {*_SHARED, b"layout", b"write", b"appended", b"forgets", b"monoid:", b"field:"},
}
COMMIT, APPEND = "commit", "append"
WAYS = (COMMIT, APPEND)
"""Ways of writing: to the aggregate at once, conditionally; or as pending deltas, unconditionally."""
_NEVER_WITH = {b"appended": b"forgets", b"forgets": b"appended"}
_SHARDS = {str(n) for n in range(1, 257)}


class Meta(NamedTuple):
    """The purpose of a table, recorded when it was created or first written to.

    Attributes:
        schema: of the table's values.
        bucket_age: time after a bucket's start when garbage collection takes it; None: never.
        marker_age: time after an event's merge when garbage collection takes its marker; None: never.
        shards: rows that each key is spread over.
        layout: of the cells.
        write: `COMMIT`, or `APPEND`, which needs layout 2.
        appended: whether the table is or was written by appending.
        forgets: whether the table has or had a dedup retention, in layout 2. Neither this nor ``appended`` is ever
            reset, and a table never has both: an event that is pending for longer than its marker is kept would count
            again.
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
        """How long markers are kept, if not as long as their bucket."""
        return self.marker_age if self.bucket_age is None else None


async def write_meta(connection: Connection, meta: Meta) -> None:
    """Record a table's purpose, unless one is recorded already; that one then stays.

    Fails if the table lacks a family, or has one of the wrong type.
    """
    # These mutations change nothing, but fail if a family is missing or the sums are not sums.
    plain = [wire.clear(name) for name in meta.layout.families if name not in (wire.AGG, wire.META)]
    cells = [wire.put(wire.META, qualifier, 0, value) for qualifier, value in cells_of(meta).items()]
    changes = [wire.add(wire.VALUE, 0, 0), *plain, *cells]
    await connection.commit(wire.commit(connection, SCHEMA_ROW, wire.has_family(wire.META), if_not=changes))


async def amend_meta(connection: Connection, before: Meta, meta: Meta) -> None:
    """Record other ages and another way of writing; all other fields stay. Writes nothing if the table would then be
    both ``appended`` and ``forgets``.

    Args:
        connection: to the table.
        before: the recorded purpose. If its way of writing is the wanted one, it is not written: another program may
            just have changed it.
        meta: the new purpose.
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
    """Record the name of the folded field, unless one is recorded already; that one then stays."""
    column = _field_column(layout)
    cell = wire.put(wire.META, column, 0, field.encode("utf-8"))
    await connection.commit(wire.commit(connection, SCHEMA_ROW, wire.has_column(wire.META, column), if_not=[cell]))


async def rename_monoid(connection: Connection, before: Meta, name: str) -> bool:
    """Record another name of the monoid, of a table of layout 2; False if another program has just done so."""
    known = wire.has_value(wire.META, b"monoid:", before.schema.monoid.encode("utf-8"))
    cell = wire.put(wire.META, b"monoid:", 0, name.encode("utf-8"))
    return await connection.commit(wire.commit(connection, SCHEMA_ROW, known, if_met=[cell]))


async def read_meta(connection: Connection) -> Meta | None:
    """Read the recorded purpose; None if nothing is recorded.

    Raises:
        SchemaMismatch: a later release made the record.
    """
    rows = await connection.read(wire.only_meta(wire.read_rows(connection, [SCHEMA_ROW])), persist=False)
    if not rows:
        return None
    return meta_of({cell.qualifier: cell.value for cell in rows[0].cells}, connection.where)


def meta_of(cells: dict[bytes, bytes], where: str) -> Meta:
    """Read a table's purpose from the cells of its record.

    Args:
        cells: values by qualifier.
        where: the table, for the message.

    Raises:
        SchemaMismatch: a cell is unknown to this release, or missing.
    """
    record = _Record(cells, where)
    number = record.checked_layout()
    layout = LAYOUTS[number]
    field = _field_column(layout)
    return Meta(
        Schema(
            record.text(b"monoid" if number == 1 else b"monoid:"),
            record.duration(b"granularity_us"),
            record.text(field) if field in cells else None,
            vague=number == 1 and _TYPED not in cells,
        ),
        record.duration(b"bucket_age_us"),
        record.duration(b"marker_age_us"),
        int(record.text(b"shards")),
        layout,
        COMMIT if number == 1 else record.text(b"write"),
        b"appended" in cells,
        b"forgets" in cells,
    )


class _Record(NamedTuple):
    """The cells of a record, for `meta_of`."""

    cells: dict[bytes, bytes]
    where: str

    def checked_layout(self) -> int:
        """Number of the layout; checks that this release knows all fields and values."""
        number = 1
        if b"layout" in self.cells:
            number = {str(n).encode(): n for n in LAYOUTS}.get(self.cells[b"layout"], 0)
            if number == 0:
                raise self._unknown(b"layout")
        for qualifier in sorted(self.cells):
            if qualifier not in _KNOWN[number]:
                raise self._unknown(qualifier)
        if number > 1 and self.text(b"write") not in WAYS:
            raise self._unknown(b"write")
        for qualifier in sorted(_NEVER_WITH):
            if self.cells.get(qualifier, b"1") != b"1":
                raise self._unknown(qualifier)
        if self.text(b"shards") not in _SHARDS:
            raise self._unknown(b"shards")
        return number

    def text(self, qualifier: bytes) -> str:
        if qualifier not in self.cells:
            raise SchemaMismatch(
                f"{self.where}: its record lacks the field {qualifier.decode()!r}: the record is damaged, or not "
                "murmur_beam's; use another table"
            )
        try:
            return self.cells[qualifier].decode("utf-8")
        except UnicodeDecodeError:
            raise self._unknown(qualifier) from None

    def duration(self, qualifier: bytes) -> timedelta | None:
        found = self.cells.get(qualifier, b"")
        if not found:
            return None
        try:
            return timedelta(microseconds=_count(found))
        except (ValueError, OverflowError):
            raise self._unknown(qualifier) from None

    def _unknown(self, qualifier: bytes) -> SchemaMismatch:
        name, value = (data.decode("utf-8", "backslashreplace") for data in (qualifier, self.cells[qualifier]))
        found = f"{name}={value}"
        return SchemaMismatch(
            f"{self.where}: its record says {found!r:.100}, which this release of murmur_beam does not know: a later "
            "release created or changed the table; upgrade this one"
        )


def cells_of(meta: Meta) -> dict[bytes, bytes]:
    """The cells of a table's record, by qualifier."""
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
