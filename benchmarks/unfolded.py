"""Reads and folds of rows with pending deltas, for `benchmarks.append_speed`.

Each function is called in its own process, with an emulator that `BIGTABLE_EMULATOR_HOST` names.
"""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from benchmarks.harness import Inexact, Usage, Watch, needing_extra, say
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.state.base import Schema, fingerprint_of

with needing_extra():
    from murmur_beam.state.bigtable import BigtableSpec, pending, tables, wire
    from murmur_beam.state.bigtable.keys import encode_row_key
    from murmur_beam.state.bigtable.meta import APPEND, COMMIT

CELLS = 20
"""Cells of one event, in each row that has many."""
_ROW = Key("row")
_REQUEST = 2_000
"""Cells of one request, at most."""
_TIMEOUT_S, _PATIENCE_S = 60.0, 120.0
"""Long, so that a busy machine shows in the figures, and does not end the run."""
_NEWS, _FOLD_EVERY = 10, 20
"""Events that are appended before each read, and reads before each fold."""


class _Table(NamedTuple):
    """A table for one measurement."""

    spec: Any

    @classmethod
    def new(cls, write: str) -> _Table:
        """Make an empty table that is written in this way."""
        spec = BigtableSpec(
            "benchmark", "instance", f"unfolded-{uuid.uuid4().hex[:8]}", timeout_s=_TIMEOUT_S, patience_s=_PATIENCE_S
        )
        tables.create(spec, tables.table_meta(Schema(Sum().name, None)), write=write)
        return cls(spec)

    def open(self) -> Any:
        """A new store, as a context manager that closes it."""
        return closing(self.spec.open(Sum()))


def _merge(store: Any, updates: Sequence[Update]) -> None:
    wanted = Outcome.RECORDED if store.appends else Outcome.MERGED
    if any(outcome is not wanted for outcome in store.merge_updates(updates)):
        raise Inexact(f"not all of {len(updates):,} events was {wanted}")


# ---- many rows ----


def read_rows(rows: int, rounds: int) -> dict[str, list[Usage]]:
    """Read many rows, committed and pending ones in turns; the usage of each round, by way of reading and kind of rows.

    Raises:
        Inexact: an answer is wrong.
    """
    keys = [Key(f"row-{n:06}") for n in range(rows)]

    def filled(write: str, events: int, flushes: int, fold: bool = False) -> _Table:
        table = _Table.new(write)
        each = events // flushes
        with table.open() as store:
            for flush in range(flushes):
                ids = range(flush * each, flush * each + each)
                _merge(store, [Update(key, 1, f"{key.entity}/{n}") for key in keys for n in ids])
        if fold:
            with table.open() as store:
                if (folded := store.fold()).events != events * rows:
                    raise Inexact(f"{folded.events:,} events were folded of {events * rows:,}")
        return table

    say("rows to read: writing them")
    many = CELLS
    made = {
        "committed-1": (filled(COMMIT, 1, 1), 1),
        "pending-1": (filled(APPEND, 1, 1), 1),
        "committed-many": (filled(COMMIT, many, 1), many),
        "pending-many": (filled(APPEND, many, many), many),
        "folded-many": (filled(APPEND, many, many, fold=True), many),
    }
    took: dict[str, list[Usage]] = {}
    with ExitStack() as stack:
        stores = {name: (stack.enter_context(table.open()), events) for name, (table, events) in made.items()}
        for n in range(rounds):
            say(f"round {n + 1} of {rounds}: reading rows")
            for name, (store, events) in stores.items():
                wanted = dict.fromkeys(keys, events)
                how: dict[str, Callable[[Any], Any]] = {
                    "get_many": lambda store: dict(zip(keys, store.get_many(keys, fresh=True), strict=True)),
                    "scan": lambda store: dict(store.scan(fresh=True)),
                }
                for way, read in how.items():
                    watch = Watch()
                    watch.start()
                    found = read(store)
                    took.setdefault(f"{way}-{name}", []).append(watch.stop())
                    if found != wanted:
                        raise Inexact(f"{way} of {name} rows: wrong answers, {len(found):,} of {len(wanted):,} rows")
    return took


# ---- one row ----


def _append(table: _Table, events: int, per_cell: int) -> None:
    """Append events to the row in cells of this size, many cells a request; single requests would need minutes."""
    monoid = Sum()
    names = pending.Names(table.spec.clock)
    cells = []
    for start in range(0, events, per_cell):
        prints = [fingerprint_of(f"event-{n}") for n in range(start, min(events, start + per_cell))]
        cells += [
            (names(), value) for value in pending.encoded(monoid, pending.Events(b"".join(prints), [1] * len(prints)))
        ]
    with closing(table.spec.connect()) as connection:
        for some in _parts(cells):
            entry = wire.entry(encode_row_key(_ROW), *[wire.put(wire.PENDING, name, 0, value) for name, value in some])
            failed, _ = connection.mutate_here(wire.bulk_of(connection, [entry]), 1)
            for error in failed.values():
                raise error


def _parts(cells: Sequence[tuple[bytes, bytes]]) -> list[Sequence[tuple[bytes, bytes]]]:
    size = max(1, min(_REQUEST, (4 << 20) // len(cells[0][1])))
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def _fold(store: Any, events: int) -> Usage:
    watch = Watch()
    watch.start()
    folded = store.fold()
    usage = watch.stop()
    if (folded.events, folded.duplicates, folded.left) != (events, 0, 0):
        raise Inexact(f"a fold of {events:,} events: {folded}")
    return usage


def fold_row(events: int, per_cell: int) -> Usage:
    """Fold a row with pending events, by a folder that does not remember the row.

    Raises:
        Inexact: a count is wrong.
    """
    table = _Table.new(APPEND)
    _append(table, events, per_cell)
    with table.open() as store:
        usage = _fold(store, events)
    with table.open() as store:
        found = [store.get(_ROW, fresh=fresh) for fresh in (True, False)]
    if found != [events, events]:
        raise Inexact(f"a row of {events:,} events, folded, is {found}")
    return usage


class Gets(NamedTuple):
    """Median usage of reads of a large row, and of a row with one event."""

    large: Usage
    small: Usage


def get_known(markers: int, gets: int, rounds: int) -> list[Gets]:
    """Read in turns a row whose many markers the reader remembers, and a committed row of one event.

    Between reads another store appends to the large row, so each read has pending events to look up. Now and then a
    third store folds the row, so there are new markers to read.

    Raises:
        Inexact: an answer is wrong.
    """
    say("a row of many markers: making it")
    large, small = _Table.new(APPEND), _Table.new(COMMIT)
    _append(large, markers, pending.EVENTS_PER_CELL)
    with ExitStack() as stack:
        appender, folder, reader = (stack.enter_context(large.open()) for _ in range(3))
        other = stack.enter_context(small.open())
        _merge(other, [Update(_ROW, 1, "only")])
        _fold(folder, markers)
        total = markers
        made = []
        for round_ in range(rounds):
            say(f"round {round_ + 1} of {rounds}: a row of many markers")
            took: tuple[list[Usage], list[Usage]] = [], []
            for n in range(gets + 1):
                if n and n % _FOLD_EVERY == 0:
                    folder.fold()
                ids = range(total, total + _NEWS)
                _merge(appender, [Update(_ROW, 1, f"event-{i}") for i in ids])
                total += _NEWS
                for store, wanted, usages in ((reader, total, took[0]), (other, 1, took[1])):
                    watch = Watch()
                    watch.start()
                    found = store.get(_ROW)
                    usages.append(watch.stop())
                    if found != wanted:
                        raise Inexact(f"a row of {wanted:,} events is {found}")
            # The first read of a round may be the one that learns all markers.
            made.append(Gets(*(_median(usages[1:]) for usages in took)))
    return made


def _median(usages: Sequence[Usage]) -> Usage:
    return Usage(*(statistics.median(values) for values in zip(*usages, strict=True)))
