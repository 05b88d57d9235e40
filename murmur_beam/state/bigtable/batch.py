"""A batch of updates that is written at once: the updates of each row, and their results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.state.base import Result, UpdateResults, fingerprint_of
from murmur_beam.state.bigtable.keys import encode_row_key, shard_of

EVENTS_PER_COMMIT = 50_000


class RowUpdates(NamedTuple):
    """The updates of one row, by their positions in the batch."""

    row_key: bytes
    bucket: int
    positions: Sequence[int]


class WriteBatch:
    """Updates that are written together: usually those of one call of `merge_updates`.

    Args:
        updates: in any order.
        fingerprints: of the updates; None for an update that leaves no marker.
        all_marked: whether every update leaves a marker.

    Attributes:
        results: of the updates; merged, unless another result is put there.
        deadline: when work on it ends, by the monotonic clock.
        over: whether the caller has stopped waiting for the results.
        unsettled: rows whose results are not known yet, by the identity of each.
    """

    def __init__(self, updates: Sequence[Update], fingerprints: Sequence[bytes | None], all_marked: bool) -> None:
        self.updates = updates
        self.fingerprints = fingerprints
        self.all_marked = all_marked
        self.results = UpdateResults([Outcome.MERGED] * len(updates))
        self.deadline = math.inf
        self.over = False
        self.unsettled: dict[int, RowUpdates] = {}

    def begin(self, rows: Iterable[RowUpdates]) -> None:
        """Note that these rows are written now."""
        self.unsettled.update({id(row): row for row in rows})

    def settle(self, row: RowUpdates, results: Sequence[Result] | None = None) -> None:
        """Set the results of a row's updates; None: all are merged."""
        self.unsettled.pop(id(row), None)
        if results is not None:
            self.results.put(row.positions, results)

    def fail(self, row: RowUpdates, error: Exception) -> None:
        """Set the same error as the result of all updates of a row."""
        self.settle(row, [error] * len(row.positions))

    def marked(self, row: RowUpdates) -> bool:
        """Whether any of the updates leaves a marker."""
        return self.all_marked or any(self.fingerprints[i] is not None for i in row.positions)


def joined(parts: Sequence[tuple[WriteBatch, RowUpdates]]) -> tuple[WriteBatch, RowUpdates]:
    """One batch of one row's updates in several batches, one after the other."""
    positions = [(batch, i) for batch, row in parts for i in row.positions]
    whole = WriteBatch(
        [batch.updates[i] for batch, i in positions],
        [batch.fingerprints[i] for batch, i in positions],
        all(batch.all_marked for batch, _ in parts),
    )
    whole.deadline = parts[0][0].deadline
    return whole, parts[0][1]._replace(positions=range(len(positions)))


def batch_of(updates: Sequence[Update], shards: int, marks: bool) -> tuple[WriteBatch, list[RowUpdates]]:
    """A batch of these updates, and the updates of each row. An update whose key makes no row has its result already.

    Args:
        updates: in any order.
        shards: rows of each key; an event always belongs to the same one.
        marks: whether updates with an event id leave a marker.
    """
    fingerprints: list[bytes | None] = []
    all_marked = marks
    # Positions by shard and key.
    by_shard: list[dict[Key, list[int]]] = [{} for _ in range(shards)]
    by_key = by_shard[0]
    last_id: str | None = None
    fingerprint: bytes | None = None
    for i, (key, _, event_id, _) in enumerate(updates):
        if event_id is None:
            all_marked = False
            fingerprint = None
        elif event_id is not last_id and (marks or shards > 1):  # the keys of one event come one after the other
            fingerprint = fingerprint_of(event_id)
        last_id = event_id
        fingerprints.append(fingerprint if marks else None)
        if shards > 1:
            by_key = by_shard[0 if fingerprint is None else shard_of(fingerprint, shards)]
        positions = by_key.get(key)
        if positions is None:
            by_key[key] = [i]
        else:
            positions.append(i)
    batch = WriteBatch(updates, fingerprints, all_marked)
    rows = []
    for shard, by_key in enumerate(by_shard):
        for key, positions in by_key.items():
            try:
                row_key = encode_row_key(key, shard)
            except InvalidRecord as err:
                batch.results.put(positions, [err] * len(positions))
            else:
                rows.append(RowUpdates(row_key, key.bucket, positions))
    return batch, rows


def split_oversized(rows: Iterable[RowUpdates]) -> Iterator[RowUpdates]:
    """The rows' updates; several in the place of a row that has more of them than one commit may hold."""
    size = EVENTS_PER_COMMIT
    for row in rows:
        if len(row.positions) <= size:
            yield row
            continue
        for start in range(0, len(row.positions), size):
            yield row._replace(positions=row.positions[start : start + size])
