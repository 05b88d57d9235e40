"""The bytes that stores write: a fixed sequence of merges, and tables and files in a form that can be compared.

Release 0.1.0 runs this file as well (`released`), so it imports only what both releases have.
"""

from __future__ import annotations

import json
import operator
import random
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from murmur_beam import monoids
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Count, Custom, Max, SetUnion, Sum
from murmur_beam.state.base import Schema
from murmur_beam.state.sqlite import SqliteSpec
from murmur_beam.testing import FakeClock

GOLDEN = Path(__file__).parent / "golden"
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
NOW_S = 2_000_000_000  # in 2033: the emulator collects by its own clock, and must find nothing old
TODAY = NOW_S // 86_400
RETENTION = 30 * DAY

Flush = list[tuple[str, int, Any, "str | None"]]


class Table(NamedTuple):
    """A table, and the events that are merged into it.

    Attributes:
        name: of the table.
        monoid: of its values.
        flushes: entity, bucket, delta and event id of each update; a second lies between two flushes.
        granularity, retention, dedup_retention: its purpose.
        shards: rows of each key.
    """

    name: str
    monoid: Any
    flushes: Sequence[Flush]
    granularity: timedelta | None = None
    retention: timedelta | None = None
    dedup_retention: timedelta | None = None
    shards: int = 1

    def updates(self) -> Iterator[tuple[float, list[Update]]]:
        """The time and the updates of each flush."""
        for now_s, flush in enumerate(self.flushes, NOW_S):
            yield (
                now_s,
                [Update(Key(entity, bucket), *rest, self._ttl(bucket, now_s)) for entity, bucket, *rest in flush],
            )

    def _ttl(self, bucket: int, now_s: float) -> timedelta | None:
        if self.granularity is None or self.retention is None:
            return None
        return (bucket + 1) * self.granularity + self.retention - timedelta(seconds=now_s)


def _sum_of(field: str) -> Any:
    return Sum().of(field) if hasattr(Sum, "of") else Sum()  # 0.1.0 records no field


def _several(**parts: Any) -> Any:
    return monoids.Struct(parts) if hasattr(monoids, "Struct") else Sum()  # not in 0.1.0


SHOP = Table(
    "shop",
    _several(views=Count(), revenue=Sum(), most=Max()),
    [
        [("page/1", TODAY, (1, 5, 9), "e1"), ("page/1", TODAY, (1, -7, 3), "e2")],
        [("page/1", TODAY, (1, 5, 9), "e1"), ("page/1", TODAY, (1, 0, 4), "e3")],
    ],
    DAY,
    RETENTION,
)
"""A table of several aggregates; not for 0.1.0."""

TABLES = (
    Table(
        "views",
        Sum(),
        [
            [("page/1", TODAY, 5, "e1"), ("page/1", TODAY, -7, "e2")],
            [("page/1", TODAY, 5, "e1"), ("page/1", TODAY, 2**40, "e3")],
            [("page/1", TODAY - 1, 1, "e1"), ("page/1", TODAY + 2, 1, "e4")],
            [("page/1", TODAY, 100, None)],
            [("page/1", TODAY, 1, "e5")],
        ],
        DAY,
        RETENTION,
    ),
    Table("packed", Sum(), [[("a", 0, 1, f"e{i}")] for i in range(50)], dedup_retention=7 * DAY),
    Table(
        "names",
        _sum_of("bytes"),
        [
            [(entity, bucket, 1, f"e{n}")]
            for entity in ("a\0b", "\u00e9", "page/1")
            for bucket in (-1, 0, 1)
            for n in (1, 2)
        ],
        HOUR,
        shards=2,
    ),
    Table("total", Count(), [[("all", 0, 1, "e1")]]),
    Table("tags", SetUnion(), [[("a", 0, frozenset({"x", 7}), "e1")], [("a", 0, frozenset({"y", 7}), "e2")]]),
    Table("flags", Custom("xor", 0, operator.xor), [[("a", 0, 5, "e1")], [("a", 0, 3, "e2"), ("a", 0, 5, "e1")]]),
)
NAMES = tuple(table.name for table in TABLES)
APPENDED = (
    Table(
        "clicks",
        Sum(),
        [
            [("page/1", TODAY, 5, "e1"), ("page/1", TODAY, -7, "e2"), ("page/2", TODAY, 1, "e1")],
            [("page/1", TODAY, 1, "e3"), ("page/1", TODAY - 1, 2**40, "e4"), ("page/1", TODAY, 1, "e5")],
            [("page/1", TODAY, 5, "e1"), ("page/1", TODAY, 9, "e6")],
        ],
        DAY,
        RETENTION,
    ),
    Table("tags", SetUnion(), [[("a", 0, frozenset({"x", 7}), "e1")], [("a", 0, frozenset({"y", 7}), "e2")]]),
    Table("flags", Custom("xor", 0, operator.xor), [[("a", 0, 5, "e1")], [("a", 0, 3, "e2"), ("a", 0, 5, "e1")]]),
    SHOP,
    Table(
        "sales",
        _several(views=Count(), revenue=Sum()),
        [[("a", 0, (1, 5), "e1"), ("a", 0, (1, -7), "e2")], [("a", 0, (1, 5), "e1")]],
    ),
)
"""Tables that are appended to; not for 0.1.0."""


# ---- text and bytes ----


def shown(data: bytes) -> str:
    """Bytes as text: unchanged where they are printable ASCII, otherwise in hexadecimal digits after ``0x``."""
    if data.isascii() and data.decode("ascii").isprintable() and not data.startswith(b"0x"):
        return data.decode("ascii")
    return f"0x{data.hex()}"


def hidden(text: str) -> bytes:
    """Inverse of `shown`."""
    return bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode("ascii")


def read(name: str) -> Any:
    """A golden file."""
    return json.loads((GOLDEN / name).read_text("utf-8"))


def text_of(document: Any) -> str:
    """A golden document in the format of its file: whatever fits into a line is written in one."""
    text = json.dumps(document, indent=1)
    for leaf in (r"\{\s+([^{}\[\]]*?)\s+\}", r"\[\s+([^\[\]]*?)\s+\]"):
        text = re.sub(leaf, lambda found: found[0][0] + re.sub(r"\n\s*", " ", found[1]) + found[0][-1], text)
    return text + "\n"


def lines(rows: dict[str, Any]) -> list[str]:
    """Rows of a golden file of Bigtable, a line a cell, as docs/storage.md shows them."""
    found = []
    for row, columns in rows.items():
        found.append(row)
        found += [f"  {name} @{at} {value}".rstrip() for name, cells in columns.items() for at, value in cells.items()]
    return found


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """The places where two golden documents differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            text
            for name in sorted({*one, *other})
            for text in (
                differences(one[name], other[name], f"{where}/{name}")
                if name in one and name in other
                else [f"{where}/{name}: only in one of them"]
            )
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            text for i, pair in enumerate(zip(one, other, strict=True)) for text in differences(*pair, f"{where}/{i}")
        ]
    return [] if (type(one), one) == (type(other), other) else [f"{where}: {one!r:.80} and {other!r:.80}"]


# ---- Bigtable ----


def spec_of(table: Table, place: tuple[str, str], prefix: str) -> Any:
    """The spec of the table, with a clock that stands still.

    Args:
        table: which.
        place: project and instance.
        prefix: of the names of the tables.
    """
    from murmur_beam.state.bigtable import BigtableSpec

    shards = table.shards if table.shards > 1 else None
    return BigtableSpec(*place, f"{prefix}-{table.name}", shards=shards, clock=FakeClock(NOW_S))


def make_bigtable(place: tuple[str, str], prefix: str, which: Sequence[Table] = TABLES, **more: Any) -> None:
    """Make tables, as ``murmur create-table`` does."""
    from murmur_beam.state.bigtable import tables

    table_meta = getattr(tables, "table_meta", None) or tables.purpose  # its name in release 0.1.0
    for table in which:
        schema = Schema(table.monoid.name, table.granularity)
        meta = table_meta(schema, table.retention, table.dedup_retention)
        tables.create(spec_of(table, place, prefix), meta, **more)


def write_bigtable(place: tuple[str, str], prefix: str, which: Sequence[Table] = TABLES) -> None:
    """Merge into tables, which must exist, with random numbers that are always the same."""
    for table in which:
        with closing(opened(table, place, prefix)) as store:
            write(table, store)


def opened(table: Table, place: tuple[str, str], prefix: str) -> Any:
    """A store without random numbers: the first version of a row and the writer's id are fixed."""
    store = spec_of(table, place, prefix).open(table.monoid, table.granularity)
    committer = getattr(store, "_committer", None) or store._commits  # its name in release 0.1.0
    committer._chance = random.Random(table.name)
    committer._writer = b"writer-1"
    if hasattr(store, "_appender"):  # not in 0.1.0
        store._appender._names._writer = b"write"
    return store


def write(table: Table, store: Any) -> None:
    """Merge the table's events, each flush at its time."""
    for now_s, updates in table.updates():
        store._clock.time = now_s
        store.merge_updates(updates)


def append_and_fold(place: tuple[str, str], prefix: str) -> dict[str, Any]:
    """Tables that are made, appended to, and then folded, as a golden document: rows before and after."""
    found = {}
    make_bigtable(place, prefix, APPENDED, write="append")
    for table in APPENDED:
        with closing(opened(table, place, prefix)) as store:
            write(table, store)
            before = table_of(spec_of(table, place, prefix))
            store.fold()
        found[table.name] = {**before, "folded": table_of(spec_of(table, place, prefix))["rows"]}
    return {"tables": found}


def read_bigtable(place: tuple[str, str], prefix: str, names: Sequence[str] = NAMES) -> dict[str, Any]:
    """Tables as a golden document."""
    return {"tables": {t.name: table_of(spec_of(t, place, prefix)) for t in (*TABLES, SHOP) if t.name in names}}


def table_of(spec: Any) -> dict[str, Any]:
    """A table: its families, the row with its record, and its other rows."""
    from murmur_beam.state.bigtable.admin import Admin
    from murmur_beam.state.bigtable.keys import SCHEMA_ROW

    with Admin(spec) as admin:
        families = {
            name: {
                "type": "int64 sum" if family.sums else "bytes",
                "max_age_s": family.rule.max_age and int(family.rule.max_age.total_seconds()),
                "max_versions": family.rule.versions,
            }
            for name, family in sorted((admin.families() or {}).items())
        }
    rows = raw_rows(spec)
    record = rows.pop(shown(SCHEMA_ROW), {})
    # Another cell exists until garbage collection deletes it: a sum of zero, which shows that the family is one of
    # sums.
    record = {name: cells for name, cells in record.items() if name.startswith("meta:")}
    return {"families": families, "record": record, "rows": rows}


def raw_rows(spec: Any) -> dict[str, Any]:
    """Each cell of the table: values by row, column, and timestamp in microseconds."""
    from murmur_beam.state.bigtable import wire

    found: dict[str, Any] = {}
    with closing(spec.connect()) as connection:
        for row in connection.run(connection.read(wire.read_range(connection, b"\0", None, 10_000))):
            columns = found[shown(row.key)] = {}
            for family, qualifier, at_us, value in sorted(row.cells):  # the emulator returns families in any order
                columns.setdefault(f"{family}:{shown(qualifier)}", {})[str(at_us)] = shown(value)
    return found


def put_bigtable(
    place: tuple[str, str], prefix: str, document: Any, *, rows: bool = True, which: Sequence[Table] = TABLES
) -> None:
    """Make tables exactly as in a golden document, cell by cell.

    Args:
        place: project and instance.
        prefix: of the names of the tables.
        document: the golden document.
        rows: also those of aggregates, not only the records.
        which: of these tables.
    """
    from murmur_beam.state.bigtable import wire
    from murmur_beam.state.bigtable.admin import Admin, Rule
    from murmur_beam.state.bigtable.keys import SCHEMA_ROW

    for table in which:
        if table.name not in document["tables"]:
            continue
        spec, wanted = spec_of(table, place, prefix), document["tables"][table.name]
        with Admin(spec) as admin:
            admin.create(
                {
                    name: Rule(
                        None if family["max_age_s"] is None else timedelta(seconds=family["max_age_s"]),
                        family["max_versions"],
                    )
                    for name, family in wanted["families"].items()
                }
            )
        entries = [
            (hidden(row), list(_mutations(columns)))
            for row, columns in [(shown(SCHEMA_ROW), wanted["record"]), *(wanted["rows"].items() if rows else ())]
        ]
        with closing(spec.connect()) as connection:
            assert connection.run(connection.mutate(wire.bulk(connection, entries), len(entries))) == {}


def _mutations(columns: Any) -> Iterator[bytes]:
    from murmur_beam.state.bigtable import wire

    for name, cells in columns.items():
        family, _, qualifier = name.partition(":")
        for at_us, value in cells.items():
            if family == wire.AGG:
                yield wire.add(hidden(qualifier), int(at_us), int.from_bytes(hidden(value), "big", signed=True))
            else:
                yield wire.put(family, hidden(qualifier), int(at_us), hidden(value))


# ---- SQLite ----


def sqlite_spec(table: Table, path: Path) -> SqliteSpec:
    """The spec of the table, with a clock that stands still."""
    return SqliteSpec(str(path), table.name, dedup_retention=table.dedup_retention, clock=FakeClock(NOW_S))


def write_sqlite(path: Path) -> None:
    """Merge into all tables of the file."""
    for table in TABLES:
        spec = sqlite_spec(table, path)
        with closing(spec.open(table.monoid, table.granularity)) as store:
            if hasattr(store, "settle_retention"):  # not in 0.1.0
                store.settle_retention(table.retention)
            for now_s, updates in table.updates():
                spec.clock.time = now_s
                store.merge_updates(updates)


def read_sqlite(path: Path) -> dict[str, Any]:
    """The file as a golden document: the statements that make each table, index and trigger, and the rows of each
    table."""
    with closing(sqlite3.connect(path)) as db:
        made = db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        return {
            "journal_mode": db.execute("PRAGMA journal_mode").fetchone()[0],
            "schema": {name: sql for _, name, sql in made},
            "rows": {
                name: [list(map(_plain, row)) for row in _all(db, name)] for kind, name, _ in made if kind == "table"
            },
        }


def _all(db: sqlite3.Connection, name: str) -> Iterable[Any]:
    return db.execute(f'SELECT * FROM "{name}" ORDER BY 1, 2').fetchall()


def _plain(value: Any) -> Any:
    return {"blob": shown(value)} if isinstance(value, bytes) else value


def put_sqlite(path: Path, document: Any) -> None:
    """Make a file exactly as in a golden document."""
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode={document['journal_mode']}")
        for sql in sorted(document["schema"].values(), key=lambda sql: not sql.startswith("CREATE TABLE")):
            db.execute(sql)
        for name, rows in document["rows"].items():
            for row in rows:
                values = [hidden(value["blob"]) if isinstance(value, dict) else value for value in row]
                db.execute(f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(row))})', values)
        db.commit()
