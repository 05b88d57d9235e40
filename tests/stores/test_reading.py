"""Reads: rows are assembled from the chunks of a read, however the server has cut them."""

from __future__ import annotations

import random
from contextlib import closing
from itertools import groupby
from typing import Any

import pytest
from google.cloud.bigtable_v2.types import ReadRowsResponse
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.model import Key, Update
from murmur_beam.monoids import SetUnion
from murmur_beam.state.bigtable.read_rows import Cell, Row, RowAssembler
from tests.support import emulators

Chunk: Any = ReadRowsResponse.CellChunk.pb()

CELLS = st.builds(
    Cell, st.sampled_from(["agg", "dedup"]), st.binary(max_size=2), st.integers(0, 3), st.binary(max_size=6)
)
ROWS = st.dictionaries(st.binary(min_size=1, max_size=3), st.lists(CELLS, min_size=1, max_size=4), max_size=4)


def chunks_of(row: Row, chance: random.Random) -> list[Any]:
    """A row as a server may send it: long values in pieces, and unchanged fields omitted, or not."""
    chunks: list[Any] = []
    family, qualifier = None, None
    for i, cell in enumerate(row.cells):
        inside = range(1, len(cell.value))
        cuts = sorted(chance.sample(inside, chance.randint(0, min(2, len(inside)))))
        for start, end in zip([0, *cuts], [*cuts, len(cell.value)], strict=True):
            chunk = Chunk(value=cell.value[start:end])
            chunks.append(chunk)
            chunk.value_size = len(cell.value) if end < len(cell.value) else 0
            if start:
                continue
            if i == 0 or chance.random() < 0.3:
                chunk.row_key = row.key
            chunk.timestamp_micros = cell.at_us
            if cell.family != family or chance.random() < 0.3:
                chunk.family_name.value = family = cell.family
                qualifier = None
            if cell.qualifier != qualifier or chance.random() < 0.3:
                chunk.qualifier.value = qualifier = cell.qualifier
    chunks[-1].commit_row = True
    return chunks


@given(rows=ROWS, chance=st.randoms(use_true_random=False))
def test_rows_are_assembled_unchanged(rows: dict[bytes, list[Cell]], chance: random.Random) -> None:
    """Whatever the cuts, over any number of responses, and also where a server starts a row again."""
    expected = [Row(key, cells) for key, cells in sorted(rows.items())]
    sent: list[Any] = []
    for row in expected:
        if chance.random() < 0.3:
            given_up = chunks_of(row, chance)[:-1]
            sent += [*given_up, Chunk(reset_row=True)] if given_up else []
        sent += chunks_of(row, chance)
    assembler = RowAssembler()
    for _, response in groupby(sent, lambda chunk: chance.random() < 0.5):
        assembler.take(response)
    assert assembler.rows == expected


def test_a_row_of_many_megabytes_can_be_read(bigtable_host: str) -> None:
    """Also from an emulator, which sends a row in one piece, beyond gRPC's default limit."""
    spec = emulators.new_spec(bigtable_host)
    value = frozenset({"x" * 6_000_000})
    with closing(spec.open(SetUnion())) as store:
        store.merge_updates([Update(Key("a"), value), Update(Key("b"), frozenset({"y"}))])
    with closing(spec.open(SetUnion())) as store:
        assert store.get(Key("a")) == value
        store.merge_update(Key("a"), frozenset({"z"}))
        assert dict(store.scan()) == {Key("a"): value | {"z"}, Key("b"): {"y"}}


@pytest.mark.parametrize("piece", [b"", b"ab"])
def test_half_a_row_is_dropped(piece: bytes) -> None:
    """A row that the server has not committed has not been read."""
    assembler = RowAssembler()
    chunk = Chunk(row_key=b"k", value=piece)
    chunk.family_name.value = "agg"
    chunk.qualifier.value = b"v"
    assembler.take([chunk])
    assert assembler.rows == []
