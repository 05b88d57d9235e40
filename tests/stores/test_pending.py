"""Cells of pending deltas: they are decoded to what was encoded, in pieces of limited size; damage is found, never
counted."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from murmur_beam.errors import PermanentError, SchemaMismatch
from murmur_beam.monoids import Count, Max, Sum
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.sum import INT64_MAX, INT64_MIN
from murmur_beam.state.bigtable import pending
from murmur_beam.state.bigtable.fingerprints import split
from murmur_beam.state.bigtable.pending import INTEGERS, ONES, STATES, TOGETHER, Events, decoded, encoded, united
from murmur_beam.testing import FakeClock


class Words(Monoid[dict[str, int]]):
    """Counts words; neither one of the server's sums nor idempotent."""

    name = "words"
    identity: dict[str, int] = {}

    def combine(self, a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
        """Add the counts of both."""
        return {word: a.get(word, 0) + b.get(word, 0) for word in {**a, **b}}

    def lift(self, value: Any, event_time_us: int) -> dict[str, int]:
        """Count one."""
        return {value: 1}


PRINTS = st.binary(min_size=16, max_size=16)
INTEGER = st.integers(INT64_MIN, INT64_MAX)
WORDS = st.dictionaries(st.text(max_size=8), st.integers(-9, 9), max_size=4)
HEAD = struct.Struct(">BBI")


def pairs(deltas: st.SearchStrategy[Any], least: int = 1) -> st.SearchStrategy[list[tuple[bytes, Any]]]:
    """Events, each with a fingerprint of its own."""
    return st.lists(st.tuples(PRINTS, deltas), min_size=least, max_size=60, unique_by=lambda pair: pair[0])


def events(some: Sequence[tuple[bytes, Any]]) -> Events[Any]:
    """Events as `encoded` accepts them."""
    return Events(b"".join([print_ for print_, _ in some]), [delta for _, delta in some])


def plain(cells: Sequence[Events[Any]]) -> list[tuple[bytes, Any]]:
    """All events of cells, in order."""
    return [pair for cell in cells for pair in zip(split(cell.fingerprints), cell.deltas, strict=True)]


@st.composite
def made(draw: st.DrawFn) -> tuple[Monoid[Any], bytes]:
    """A cell of any kind, and its monoid."""
    monoid = draw(st.sampled_from([Count(), Sum(), Words(), Max()]))
    if monoid.idempotent:
        some = Events(b"", draw(st.lists(INTEGER, min_size=1, max_size=5)))
    else:
        deltas = {"count": st.just(1), "sum": INTEGER, "words": WORDS}[monoid.name]
        some = events(draw(pairs(deltas)))
    (cell,) = encoded(monoid, some)
    return monoid, cell


# ---- round trip ----


@given(pairs(INTEGER), st.booleans())
def test_integers_are_decoded(some: list[tuple[bytes, int]], ones: bool) -> None:
    """Of all of 64 bits; ones need no bytes beside their fingerprints."""
    if ones:
        some = [(print_, 1) for print_, _ in some]
    (cell,) = encoded(Sum(), events(some))
    assert plain([decoded(Sum(), cell)]) == some
    all_ones = all(delta == 1 for _, delta in some)
    assert cell[1] == (ONES if all_ones else INTEGERS)
    assert len(cell) == HEAD.size + (16 if all_ones else 24) * len(some)


@given(pairs(WORDS))
def test_states_are_decoded(some: list[tuple[bytes, dict[str, int]]]) -> None:
    """As the monoid encodes them, with their events."""
    (cell,) = encoded(Words(), events(some))
    assert cell[1] == STATES
    assert plain([decoded(Words(), cell)]) == some


@given(st.lists(INTEGER, min_size=1))
def test_idempotent_deltas_become_one_state_without_events(some: list[int]) -> None:
    """They are folded when they are encoded."""
    (cell,) = encoded(Max(), Events(b"", some))
    assert cell[1] == TOGETHER
    assert decoded(Max(), cell) == Events(b"", [max(some)])


@given(print_=PRINTS, delta=INTEGER)
def test_one_event(print_: bytes, delta: int) -> None:
    """The most frequent kind of cell, which has its own fast path."""
    (cell,) = encoded(Sum(), Events(print_, [delta]))
    assert plain([decoded(Sum(), cell)]) == [(print_, delta)]
    assert (cell == pending.ONE + print_) == (delta == 1)


@pytest.mark.parametrize("delta", [INT64_MAX + 1, INT64_MIN - 1])
def test_a_delta_that_overflows_is_not_encoded(delta: int) -> None:
    """The append fails with it."""
    with pytest.raises(struct.error):
        list(encoded(Sum(), Events(bytes(16), [delta])))


# ---- pieces ----


@pytest.mark.parametrize("n", [1, 39_999, 40_000, 40_001, 80_000, 80_001])
@pytest.mark.parametrize("delta", [1, 7])
def test_no_cell_has_too_many_events(n: int, delta: int) -> None:
    """They are decoded in their order."""
    prints = [i.to_bytes(16, "big") for i in range(n)]
    cells = [decoded(Sum(), cell) for cell in encoded(Sum(), Events(b"".join(prints), [delta] * n))]
    assert [cell.n for cell in cells[:-1]] == [pending.EVENTS_PER_CELL] * (-(-n // pending.EVENTS_PER_CELL) - 1)
    assert plain(cells) == [(print_, delta) for print_ in prints]


@settings(max_examples=50)
@given(some=pairs(WORDS), most_events=st.integers(1, 10), most_bytes=st.integers(1, 400))
def test_cells_of_states_are_small_unless_of_one_event(
    some: list[tuple[bytes, dict[str, int]]], most_events: int, most_bytes: int
) -> None:
    """Bounded by number and by bytes; and not more cells than needed: no two neighbours would fit into one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending, "EVENTS_PER_CELL", most_events)
        patch.setattr(pending, "CELL_BYTES", most_bytes)
        cells = list(encoded(Words(), events(some)))
    came = [decoded(Words(), cell) for cell in cells]
    assert plain(came) == some
    for cell, data in zip(came, cells, strict=True):
        assert cell.n <= most_events
        assert cell.n == 1 or len(data) - HEAD.size <= most_bytes
    for i in range(1, len(cells)):
        (first,) = encoded(Words(), Events(came[i].fingerprints[:16], came[i].deltas[:1]))
        n_bytes = len(cells[i - 1]) + len(first) - 2 * HEAD.size
        assert came[i - 1].n == most_events or n_bytes > most_bytes


# ---- several cells ----


@given(st.lists(pairs(INTEGER), max_size=6), st.integers(1, 4))
def test_for_an_event_in_several_cells_the_first_counts(some: list[list[tuple[bytes, int]]], few: int) -> None:
    """Whatever is in the others."""
    # A small range of fingerprints, so that some are equal.
    cells = [
        list({print_[:1] * 15 + bytes([print_[0] % few]): delta for print_, delta in each}.items()) for each in some
    ]
    expected: dict[bytes, int] = {}
    for each in cells:
        for print_, delta in each:
            expected.setdefault(print_, delta)
    values = [value for each in cells if each for value in encoded(Sum(), events(each))]
    assert united(Sum(), values) == expected


# ---- damage ----


@given(made(), st.data())
def test_a_truncated_cell_is_damaged(whole: tuple[Monoid[Any], bytes], data: st.DataObject) -> None:
    """Wherever it is cut."""
    monoid, cell = whole
    cut = cell[: data.draw(st.integers(0, len(cell) - 1))]
    if monoid.idempotent and len(cut) > HEAD.size:
        return  # its number may be a shorter one
    with pytest.raises((PermanentError, ValueError)):
        decoded(monoid, cut)


@given(made(), st.binary(min_size=1, max_size=40))
def test_a_cell_with_extra_bytes_is_damaged(whole: tuple[Monoid[Any], bytes], more: bytes) -> None:
    """Also where they are shorter than a length."""
    monoid, cell = whole
    if monoid.idempotent:
        return  # its number may be a longer one
    with pytest.raises(PermanentError, match="damaged"):
        decoded(monoid, cell + more)


@given(made(), st.integers(0, 255), st.integers(0, 255))
def test_another_format_or_kind_is_never_counted(whole: tuple[Monoid[Any], bytes], version: int, kind: int) -> None:
    """It is that of a later release, or damage."""
    monoid, cell = whole
    if (version, kind) == (cell[0], cell[1]):
        return
    with pytest.raises(SchemaMismatch if version != 1 or kind > TOGETHER else PermanentError):
        decoded(monoid, bytes([version, kind]) + cell[2:])


@given(made(), st.integers(0, 2**32 - 1))
def test_another_number_of_events_is_never_counted(whole: tuple[Monoid[Any], bytes], n: int) -> None:
    """Only cells without fingerprints ignore it."""
    monoid, cell = whole
    if monoid.idempotent or n == HEAD.unpack_from(cell)[2]:
        return
    with pytest.raises(PermanentError):
        decoded(monoid, cell[:2] + n.to_bytes(4, "big") + cell[HEAD.size :])


@given(st.sampled_from([Count(), Sum(), Words(), Max()]), st.binary(max_size=120), st.integers(0, 3), st.integers(0, 5))
def test_any_bytes_are_events_or_an_error(monoid: Monoid[Any], body: bytes, kind: int, n: int) -> None:
    """What is decoded has as many deltas as fingerprints."""
    try:
        prints, deltas = decoded(monoid, HEAD.pack(1, kind, n) + body)
    except (PermanentError, ValueError):  # ValueError: from JSON
        return
    assert len(deltas) == (1 if monoid.idempotent and kind == TOGETHER else len(split(prints))) > 0
    assert len(prints) == 16 * len(split(prints))


@pytest.mark.parametrize("kind", [ONES, INTEGERS, STATES])
def test_a_cell_of_no_events_is_damaged(kind: int) -> None:
    """It is never written; a fold would take its neighbours for cells without fingerprints."""
    with pytest.raises(PermanentError, match="damaged"):
        decoded(Sum(), HEAD.pack(1, kind, 0))


@pytest.mark.parametrize(
    ("monoid", "cell"),
    [
        pytest.param(Sum(), HEAD.pack(1, TOGETHER, 1) + b"5", id="a sum without fingerprints"),
        pytest.param(Words(), HEAD.pack(1, TOGETHER, 1) + b"{}", id="words without fingerprints"),
        pytest.param(Words(), pending.ONE + bytes(16), id="one that is not a word"),
        pytest.param(Max(), pending.ONE + bytes(16), id="one that is not a maximum"),
        pytest.param(Words(), HEAD.pack(1, INTEGERS, 1) + bytes(24), id="a number that is not a word"),
    ],
)
def test_a_kind_of_another_monoid_is_never_counted(monoid: Monoid[Any], cell: bytes) -> None:
    """Though the kind exists."""
    with pytest.raises(PermanentError, match=f"damaged, or not of a {monoid.name}"):
        decoded(monoid, cell)


# ---- names ----


def test_names_are_in_the_order_of_time_and_unique() -> None:
    """Also at one time, by two writers; a cell has the time of its name."""
    clock = FakeClock()
    names, others = pending.Names(clock), pending.Names(clock)
    made = [names() for _ in range(1_000)] + [others() for _ in range(1_000)]
    assert len({*made}) == 2_000
    assert {len(name) for name in made} == {16}
    assert {pending.time_us(name) for name in made} == {int(clock.now() * 1e6)}
    clock.wait(1.0)
    assert names() > max(made)
    beside = names.beside(made[0])
    assert pending.time_us(beside) == pending.time_us(made[0])
    assert beside not in made
