"""Keeps what is known of rows up to date: reads the news of rows that other writers have written."""

from __future__ import annotations

import functools
from collections.abc import Container, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from murmur_beam.errors import PermanentError
from murmur_beam.state.base import UpdateResults
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.attempt import RowAttempt
from murmur_beam.state.bigtable.batch import RowUpdates
from murmur_beam.state.bigtable.codec import RowCodec
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.dispatcher import Dispatcher
from murmur_beam.state.bigtable.fingerprints import split
from murmur_beam.state.bigtable.read_rows import Row
from murmur_beam.state.bigtable.refusals import Refusals, read_nothing
from murmur_beam.state.bigtable.row_cache import CachedRow, RowCache
from murmur_beam.state.bigtable.spec import BigtableSpec

V = TypeVar("V")

ROWS_PER_READ = 128
BIAS_LIMIT = 8
# The wait of a writer that meets others at a row, by the row's contention.
_CONTENTION_S, _CONTENTION_MOST_S = 0.004, 0.5


class Refresher(Generic[V]):
    """Reads rows for a `RowCommitter`.

    Args:
        spec: which table.
        connection, dispatcher: to the table.
        codec: of its rows.
        rows: what is known of them.

    Attributes:
        existing_bias: whether unknown rows have turned out to exist lately: from -`BIAS_LIMIT`, never, to `BIAS_LIMIT`,
            always.
    """

    def __init__(
        self, spec: BigtableSpec, connection: Connection, dispatcher: Dispatcher, codec: RowCodec[V], rows: RowCache
    ) -> None:
        self.existing_bias = -1
        self._clock = spec.clock
        self.connection = connection
        self._codec = codec
        self._rows = rows
        self._refusals = Refusals(spec, connection, dispatcher, read_nothing)

    def guessed(self, *, exists: bool) -> None:
        """Count an unknown row that turned out to exist, or not to."""
        self.existing_bias = max(-BIAS_LIMIT, min(self.existing_bias + (1 if exists else -1), BIAS_LIMIT))

    async def wait_and_refresh(self, attempt: RowAttempt) -> None:
        """Wait for a random time before the row is read, since writers that all try at once meet again."""
        contention = attempt.row.contention
        if contention > 1:
            longest_s = min(_CONTENTION_MOST_S, _CONTENTION_S * (2.0 ** (contention - 1) - 1))
            await self._clock.sleep(self._clock.uniform(0.0, longest_s))
        await self.refresh(attempt)

    async def refresh(self, attempt: RowAttempt) -> None:
        """Bring what is known of a row up to date.

        Raises:
            Exception: it cannot be read; what is known stays as it was.
        """
        row, row_key = attempt.row, attempt.updates.row_key
        while True:
            found = await self.read_news(attempt, row.version)
            if self.absorb(row, row_key, found[0] if found else None, attempt.batch.results):
                return

    async def read_news(self, attempt: RowAttempt, version: int) -> list[Row]:
        """The row with the markers of all commits after a version."""
        query = wire.only_news(wire.read_rows(self.connection, [attempt.updates.row_key]), version)
        read = functools.partial(self.connection.read, query, persist=False)
        found = await self._refusals.send(read, attempt.batch.deadline)
        attempt.batch.results.counts["rows_read"] += 1
        return found

    async def read_unknown(self, rows: Sequence[RowUpdates], results: UpdateResults) -> None:
        """Read the rows of which nothing is known, in as few requests as possible."""
        unknown = {each.row_key: row for each in rows if not (row := self._rows[each.row_key]).read}
        if not unknown:
            return
        found: list[Row] = []
        try:
            for some in wire.batches(list(unknown), ROWS_PER_READ):
                query = wire.only_news(wire.read_rows(self.connection, some), 0)
                found += await self.connection.read(query, persist=False)
        except Exception:
            # Each row will be tried, and read, on its own; the error shows there.
            return
        by_key = {row.key: row for row in found}
        results.counts["rows_read"] += len(unknown)
        for row_key, row in unknown.items():
            self.guessed(exists=row_key in by_key)
            # Another batch may know more by now.
            if not row.read and row.users == 1:
                # A row that cannot be decoded is read again on its own, and the error goes to its updates.
                with suppress(PermanentError):
                    self.absorb(row, row_key, by_key.get(row_key), results)

    def absorb(self, row: CachedRow, row_key: bytes, found: Row | None, results: UpdateResults) -> bool:
        """Learn what a read of the news since the known version has found; False if the whole row must be read.

        Raises:
            PermanentError: the row's value cannot be decoded.
        """
        content = self._codec.content_of(found)
        value = None if content.stored is None else self._codec.decoded(row_key, content.stored)
        if not row.absorb(content.version, content.markers, exists=found is not None):
            return False
        row.value, row.stored, row.expires_us = value, content.stored, content.expires_us
        if row.unanswered:
            resolve_unanswered(row, {qualifier for qualifier, _ in content.markers}, results)
        return True


def resolve_unanswered(row: CachedRow, found: Container[bytes], results: UpdateResults) -> None:
    """Settle unanswered commits: once the row has another version, each was applied or never will be.

    Args:
        row: whose.
        found: qualifiers of the marker columns that a read has brought.
        results: counts how many were settled.
    """
    unanswered = row.unanswered or {}
    for qualifier, (version, fingerprints, answered) in list(unanswered.items()):
        if version != row.version:
            del unanswered[qualifier]
            if not answered or qualifier in found:  # else it was the version conflict that was answered
                results.counts["ambiguous_resolved"] += 1
            if qualifier in found:
                row.unreported = (row.unreported or set()).union(split(fingerprints))
    row.unanswered = unanswered or None
