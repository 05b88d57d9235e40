"""A flush: its updates, row by row, and what has become of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.state.base import Flushed, Result, fingerprint
from murmur_beam.state.bigtable.keys import row_key

_new = tuple.__new__  # of a NamedTuple: half the time of calling the class
EVENTS_PER_COMMIT = 50_000


class Group(NamedTuple):
    """The updates of one row, by their positions in the flush."""

    encoded: bytes
    bucket: int
    positions: Sequence[int]


class Flush:
    """What is merged at once: usually one call of `merge_updates`.

    Args:
        updates: in any order.
        prints: fingerprints of the updates; None for one that leaves none.
        all_marked: whether every update leaves one.

    Attributes:
        results: of the updates; merged, unless something else is put there.
        deadline: until when it goes on, by the monotonic clock.
        over: whether its caller has stopped waiting for the results.
        unsettled: groups whose results are not known yet, by the identity of each.
    """

    def __init__(self, updates: Sequence[Update], prints: Sequence[bytes | None], all_marked: bool) -> None:
        self.updates = updates
        self.prints = prints
        self.all_marked = all_marked
        self.results = Flushed([Outcome.MERGED] * len(updates))
        self.deadline = math.inf
        self.over = False
        self.unsettled: dict[int, Group] = {}

    def begin(self, groups: Iterable[Group]) -> None:
        """These are to be merged now."""
        self.unsettled.update({id(group): group for group in groups})

    def settle(self, group: Group, results: Sequence[Result] | None = None) -> None:
        """What became of a group's updates; None: all are merged."""
        self.unsettled.pop(id(group), None)
        if results is not None:
            self.results.put(group.positions, results)

    def fail(self, group: Group, error: Exception) -> None:
        """None of the group's updates could be merged, for the same reason."""
        self.settle(group, [error] * len(group.positions))

    def marked(self, group: Group) -> bool:
        """Tell whether any of the updates leaves a fingerprint."""
        return self.all_marked or any(self.prints[i] is not None for i in group.positions)


def joined(parts: Sequence[tuple[Flush, Group]]) -> tuple[Flush, Group]:
    """Groups of one row, of several flushes, as one group of one flush: their updates one after the other."""
    flushes = [(flush, i) for flush, group in parts for i in group.positions]
    whole = Flush(
        [flush.updates[i] for flush, i in flushes],
        [flush.prints[i] for flush, i in flushes],
        all(flush.all_marked for flush, _ in parts),
    )
    whole.deadline = parts[0][0].deadline
    return whole, parts[0][1]._replace(positions=range(len(flushes)))


def flush_of(updates: Sequence[Update], shards: int, marks: bool) -> tuple[Flush, list[Group]]:
    """A flush, and its groups: one for each row. Updates whose key makes no row are in none, and have their result.

    Args:
        updates: in any order.
        shards: rows of each key; an event belongs to one of them for ever.
        marks: do updates with an event id leave a fingerprint?
    """
    prints: list[bytes | None] = []
    all_marked = marks
    # Positions by shard and key.
    rows: list[dict[Key, list[int]]] = [{} for _ in range(shards)]
    its_rows = rows[0]
    last_id: str | None = None
    print_: bytes | None = None
    for i, (key, _, event_id, _) in enumerate(updates):
        if event_id is None:
            all_marked = False
            print_ = None
        elif event_id is not last_id and (marks or shards > 1):  # the keys of one event come one after the other
            print_ = fingerprint(event_id)
        last_id = event_id
        prints.append(print_ if marks else None)
        if shards > 1:
            its_rows = rows[0 if print_ is None else print_[0] % shards]
        positions = its_rows.get(key)
        if positions is None:
            its_rows[key] = [i]
        else:
            positions.append(i)
    flush = Flush(updates, prints, all_marked)
    groups = []
    for shard, its_rows in enumerate(rows):
        for key, positions in its_rows.items():
            try:
                encoded = row_key(key, shard)
            except InvalidRecord as err:
                flush.results.put(positions, [err] * len(positions))
            else:
                groups.append(_new(Group, (encoded, key.bucket, positions)))
    return flush, groups


def pieces(groups: Iterable[Group]) -> Iterator[Group]:
    """The groups; several in the place of one that has more updates than one commit may bring in."""
    size = EVENTS_PER_COMMIT
    for group in groups:
        if len(group.positions) <= size:
            yield group
            continue
        for start in range(0, len(group.positions), size):
            yield group._replace(positions=group.positions[start : start + size])
