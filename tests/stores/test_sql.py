"""The query of docs/storage.md, "With SQL", on the rows of a table in the emulator."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from murmur_beam.model import Key, Update
from murmur_beam.monoids import Count
from tests.support import ROOT

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

if TYPE_CHECKING:
    from murmur_beam.state.bigtable import BigtableSpec

PAGE = (ROOT / "docs" / "storage.md").read_text("utf-8")
(QUERY,) = re.findall(r"```sql\n(SELECT.*?)```", PAGE, re.DOTALL)


def rows_of(spec: BigtableSpec) -> list[tuple[bytes, int]]:
    """What the external table of the page has: the key of each row with `agg:v`, and that number."""
    from murmur_beam.state.bigtable import wire

    with closing(spec.connect()) as connection:
        rows = connection.run(connection.read(wire.read_range(connection, b"", None, 0)))
    values = [(row.key, cell) for row in rows for cell in row.cells if (cell.family, cell.qualifier) == ("agg", b"v")]
    return [(key, int.from_bytes(cell.value, "big", signed=True)) for key, cell in values]


def answer(spec: BigtableSpec) -> dict[tuple[str, int], int]:
    """What the query finds. SQLite gets BigQuery's functions, and its spelling of literals and casts."""
    functions: dict[str, tuple[int, Any]] = {
        "SAFE_CONVERT_BYTES_TO_STRING": (1, lambda data: data.decode()),
        "BYTE_LENGTH": (1, len),
        "TO_HEX": (1, bytes.hex),
        "CONCAT": (2, lambda a, b: a + b),
        "STARTS_WITH": (2, lambda data, prefix: data.startswith(prefix)),
        "INT64_OF": (1, lambda text: int(text, 16)),
    }
    query = re.sub(r"CAST\((.*) AS INT64\)", r"INT64_OF(\1)", QUERY)
    query = query.replace(r"b'\x00\x00'", "x'0000'").replace("agg.v.cell.value", "value").replace("my_dataset.", "")
    with closing(sqlite3.connect(":memory:")) as sqlite:
        for name, (arguments, function) in functions.items():
            sqlite.create_function(name, arguments, function)
        sqlite.execute("CREATE TABLE views_rows (rowkey, value)")
        sqlite.executemany("INSERT INTO views_rows VALUES (?, ?)", rows_of(spec))
        return {(entity, bucket): views for entity, bucket, views in sqlite.execute(query)}


def test_the_query_finds_what_is_folded(bigtable_host: str) -> None:
    """Each key and bucket once, with the sum of its shards; nothing of what is pending, nor the record."""
    from tests.support.emulators import appended_spec

    spec = appended_spec(bigtable_host, shards=3)
    updates = [Update(Key(("home", "é")[n % 2], (0, 20_000)[n % 4 > 1]), 1, f"e{n}") for n in range(40)]
    with closing(spec.open(Count())) as store:
        store.merge_updates(updates)
        assert answer(spec) == {}
        store.fold()
        folded = {(key.entity, key.bucket): count for key, count in store.scan()}
        assert answer(spec) == folded == {(name, bucket): 10 for name in ("home", "é") for bucket in (0, 20_000)}
        store.merge_updates([*updates, Update(Key("home"), 1, "later")])
        assert store.get(Key("home")) == 11
        assert answer(spec) == folded
