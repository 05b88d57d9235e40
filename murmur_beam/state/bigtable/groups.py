"""A flush: its updates, row by row, and what has become of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.state.base import Flushed, fingerprint
from murmur_beam.state.bigtable.keys import row_key

_new = tuple.__new__  # of a NamedTuple: half the time of calling the class


class Group(NamedTuple):
    """The updates of one row, by their positions in the flush."""

    encoded: bytes
    bucket: int
    positions: Sequence[int]


class Flush:
    """One call of `merge_updates`.

    Args:
        updates: in any order.
        shards: rows of each key; an event belongs to one of them for ever.
        marks: do updates with an event id leave a fingerprint?

    Attributes:
        results: of the updates; merged, unless something else is put there.
        prints: fingerprints of the updates; None for one that leaves none.
        all_marked: does every update leave one?
        groups: one for each row; updates whose key makes no row are in none, and have their result.
    """

    def __init__(self, updates: Sequence[Update], shards: int, marks: bool) -> None:
        self.updates = updates
        self.results = Flushed([Outcome.MERGED] * len(updates))
        self.prints: list[bytes | None] = []
        self.all_marked = marks
        self.groups: list[Group] = []
        prints: dict[str, bytes] = {}
        # Positions by shard and key.
        rows: list[dict[Key, list[int]]] = [{} for _ in range(shards)]
        its_rows = rows[0]
        for i, update in enumerate(updates):
            event_id = update.event_id
            print_ = None
            if event_id is None:
                self.all_marked = False
            elif marks or shards > 1:
                print_ = prints.get(event_id)
                if print_ is None:
                    print_ = prints[event_id] = fingerprint(event_id)
            self.prints.append(print_ if marks else None)
            if shards > 1:
                its_rows = rows[0 if print_ is None else print_[0] % shards]
            positions = its_rows.get(update.key)
            if positions is None:
                its_rows[update.key] = [i]
            else:
                positions.append(i)
        for shard, its_rows in enumerate(rows):
            for key, positions in its_rows.items():
                try:
                    encoded = row_key(key, shard)
                except InvalidRecord as err:
                    self.results.put(positions, [err] * len(positions))
                else:
                    self.groups.append(_new(Group, (encoded, key.bucket, positions)))

    def marked(self, group: Group) -> bool:
        """Does any of the updates leave a fingerprint?"""
        return self.all_marked or any(self.prints[i] is not None for i in group.positions)


def pieces(groups: Iterable[Group], size: int) -> Iterator[Group]:
    """The groups; several in the place of one that has more updates than ``size``."""
    for group in groups:
        if len(group.positions) <= size:
            yield group
            continue
        for start in range(0, len(group.positions), size):
            yield group._replace(positions=group.positions[start : start + size])
