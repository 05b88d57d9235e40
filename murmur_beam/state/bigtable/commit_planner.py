"""Plans commits: which updates of a row are new, and what the row is worth with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from murmur_beam.errors import PermanentError
from murmur_beam.model import Outcome
from murmur_beam.state.base import Result, fold_row
from murmur_beam.state.bigtable.attempt import CommitPlan
from murmur_beam.state.bigtable.batch import RowUpdates, WriteBatch
from murmur_beam.state.bigtable.codec import RowCodec
from murmur_beam.state.bigtable.row_cache import CachedRow

V = TypeVar("V")

MAX_VALUE_BYTES = 100 * 2**20
"""Bigtable's limit of a cell."""

_MERGED, _DUPLICATE = Outcome.MERGED, Outcome.DUPLICATE  # looked up once: a lookup takes as long as knowing an event


class CommitPlanner(Generic[V]):
    """Plans commits to rows as they are known.

    Args:
        codec: of the table's rows.
    """

    def __init__(self, codec: RowCodec[V]) -> None:
        self._codec = codec

    def plan(self, batch: WriteBatch, updates: RowUpdates, row: CachedRow) -> CommitPlan:
        """What a commit of these updates does.

        Raises:
            PermanentError: the new value could not be read again, so that nothing is written.
        """
        positions, fingerprints = updates.positions, batch.fingerprints
        found = _known(row, map(fingerprints.__getitem__, positions))
        if len(found) == len(positions):  # as of a redelivered bundle
            return _nothing(row, [_DUPLICATE] * len(positions))
        known = {*found}
        deltas: list[V] = [] if row.value is None else [row.value]
        results: list[Result] | None = None
        claimed: dict[bytes, None] = {}
        for n, i in enumerate(positions):
            fingerprint = fingerprints[i]
            if fingerprint is not None:
                if fingerprint in claimed or fingerprint in known:
                    if results is None:
                        results = [_MERGED] * len(positions)
                    results[n] = _DUPLICATE
                    continue
                claimed[fingerprint] = None
            deltas.append(batch.updates[i].delta)
        merges = len(deltas) > (row.value is not None)
        if not merges:
            return _nothing(row, results)
        try:
            stored = self._codec.encoded(self._codec.monoid.fold(deltas))
        except Exception:  # a user's combine may raise anything; one by one the update at fault raises it again
            stored, results, claimed = self._one_by_one(batch, updates, row)
            merges = _MERGED in results
        if (size := self._codec.cells.size(stored)) > MAX_VALUE_BYTES:
            error = too_large(self._codec, size)
            return _nothing(row, [error if r is _MERGED else r for r in results or [_MERGED] * len(positions)])
        value = self._codec.decoded(updates.row_key, stored)  # as a reader will; if that fails, nothing is written
        expires_us = self._codec.expires_us(row.version > 0, row.expires_us, batch.updates[positions[-1]].ttl)
        changes = stored != row.stored or expires_us != row.expires_us
        return CommitPlan(
            results, b"".join(claimed), value, stored, expires_us, writes=bool(claimed) or (changes and merges)
        )

    def _one_by_one(
        self, batch: WriteBatch, updates: RowUpdates, row: CachedRow
    ) -> tuple[Any, list[Result], dict[bytes, None]]:
        """Value, results and fingerprints without the updates that cannot be folded."""
        some = [batch.updates[i] for i in updates.positions]
        fingerprints = {
            batch.updates[i].event_id: fingerprint
            for i in updates.positions
            if (fingerprint := batch.fingerprints[i]) is not None
        }
        known = {*_known(row, fingerprints.values())}
        claimed: dict[bytes, None] = {}

        def claim(event_id: str) -> bool:
            fingerprint = fingerprints[event_id]
            if fingerprint in claimed or fingerprint in known:
                return False
            claimed[fingerprint] = None
            return True

        def unclaim(event_id: str) -> None:
            claimed.pop(fingerprints[event_id])

        stored, results = fold_row(self._codec.monoid, row.value, some, claim, unclaim, self._codec.encoded)
        return stored, results, claimed


def _known(row: CachedRow, fingerprints: Iterable[bytes | None]) -> list[bytes]:
    """The fingerprints of which the row has a marker."""
    return row.known([*filter(None, fingerprints)]) if row.events else []


def too_large(codec: RowCodec[Any], size: int) -> PermanentError:
    """The error of updates that would make a value larger than a cell may be."""
    return PermanentError(
        f"value: the {codec.monoid.name} would take {size:,} bytes, at most {MAX_VALUE_BYTES:,} are allowed"
    )


def _nothing(row: CachedRow, results: list[Result] | None) -> CommitPlan:
    """A plan that leaves the row as it is."""
    return CommitPlan(results, b"", row.value, row.stored, row.expires_us, writes=False)
