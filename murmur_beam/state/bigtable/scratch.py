"""Scratch rows for tests on a table. Their keys belong to no entity, and readers ignore them."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from murmur_beam.errors import TransientError
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.keys import successor
from murmur_beam.state.bigtable.meta import APPEND, Meta
from murmur_beam.state.bigtable.spec import BigtableSpec

PREFIX = b"\x00\x00probe\x00"
"""Prefix of the keys of all scratch rows; it sorts before the rows of all entities."""

_REMOVALS = 3
_AGAIN_S = 0.1
_EVENT = bytes(range(16))

Cells = dict[tuple[str, bytes, int], bytes]
"""Values by family, column and timestamp."""


def on_emulator() -> bool:
    """Return whether the clients of this process connect to an emulator."""
    return bool(os.environ.get("BIGTABLE_EMULATOR_HOST"))


class Scratch:
    """Scratch rows of one table.

    Args:
        where: the table.
        connection: to the table.
        meta: the table's purpose.

    Attributes:
        layout: of the table.
        emulator: whether the table is in an emulator.
        at_us: timestamp of values and versions, which garbage collection does not take.
        now_us: timestamp of markers.
        poison: mutations that must not be applied.
        keys: of all rows so far.
        requests: number of requests sent.
    """

    def __init__(self, where: BigtableSpec, connection: Connection, meta: Meta) -> None:
        self.connection = connection
        self.clock = where.clock
        self.layout = meta.layout
        self.emulator = on_emulator()
        self.now_us = time.time_ns() // 1_000_000 * 1_000  # not by our clock: the server collects garbage by real time
        self.at_us = 0 if meta.bucket_age is None else self.now_us
        self.poison = [wire.add(wire.VALUE, self.at_us, 1_000)]
        self.keys: list[bytes] = []
        self.requests = 0
        self._where = f"{where}: "
        self._folds = meta.write == APPEND
        self._prefix = PREFIX + secrets.token_hex(8).encode() + b" "

    def row(self, name: str) -> bytes:
        """Choose the key of a new row."""
        self.keys.append(self._prefix + name.encode())
        return self.keys[-1]

    async def begun(self, name: str) -> tuple[bytes, int]:
        """Write a new row with a first commit of 5; its key and version."""
        key, version = self.row(name), secrets.randbits(40) + 1
        await self.put(key, *self.change(0, version, 5))
        return key, version

    def change(self, before: int, after: int, delta: int) -> list[bytes]:
        """The mutations of a commit from one version to another, with one marker."""
        return [
            self.layout.raised(self.at_us, before, after),
            wire.add(wire.VALUE, self.at_us, delta),
            wire.put(wire.DEDUP, marker(after), self.now_us, _EVENT),
        ]

    def cells_at(self, version: int, total: int, *commits: int) -> Cells:
        """The cells of a row with this version and sum, and with the markers of these commits."""
        return {
            (self.layout.version_family, wire.VERSION, self.at_us): int64(version),
            (wire.AGG, wire.VALUE, self.at_us): int64(total),
            **{(wire.DEDUP, marker(each), self.now_us): _EVENT for each in commits},
        }

    async def commit(
        self, key: bytes, predicate: bytes, *, if_met: Sequence[bytes] = (), if_not: Sequence[bytes] = ()
    ) -> bool:
        """Write conditionally, see `wire.commit`; return whether the condition was met."""
        self.requests += 1
        return await self.connection.commit(wire.commit(self.connection, key, predicate, if_met=if_met, if_not=if_not))

    async def write(self, *entries: tuple[bytes, Sequence[bytes]], token: bytes = b"") -> dict[int, Exception]:
        """Write to rows unconditionally; the errors of the entries that failed, by position."""
        self.requests += 1
        return await self.connection.mutate(wire.bulk(self.connection, entries, token=token), len(entries))

    async def put(self, key: bytes, *mutations: bytes, token: bytes = b"") -> None:
        """Write to one row unconditionally."""
        for error in (await self.write((key, mutations), token=token)).values():
            raise error

    async def cells(self, key: bytes, narrow: Callable[[Any], Any] = lambda request: request) -> Cells:
        """Read the cells of a row that a filter lets pass."""
        self.requests += 1
        rows = await self.connection.read(narrow(wire.read_rows(self.connection, [key])), persist=False)
        return {cell[:3]: cell.value for row in rows for cell in row.cells}

    async def refusal(self, writing: Awaitable[Any]) -> str:
        """The service's text when it refuses a write; empty if it accepts the write."""
        try:
            await writing
        except Exception as err:
            if isinstance(self.connection.translated(err), TransientError):
                raise
            return self.words(err).partition("; ")[0]
        return ""

    def words(self, err: Exception) -> str:
        """The text of an error, without the advice to check the table."""
        return (
            str(self.connection.translated(err, folds=self._folds))
            .removeprefix(self._where)
            .partition("; see: murmur check")[0]
        )

    async def remove(self) -> list[bytes]:
        """Delete all scratch rows; the keys of rows that are still there.

        Raises:
            Exception: the last try failed.
        """
        left = self.keys
        for attempt in range(_REMOVALS if self.keys else 0):
            if attempt:
                await self.clock.sleep(_AGAIN_S)  # a write of an interrupted step may still arrive
            try:
                for error in (await self.write(*[(key, [wire.DELETE_ROW]) for key in self.keys])).values():
                    raise error
                self.requests += 1
                there = wire.read_range(self.connection, self._prefix, successor(self._prefix), len(self.keys))
                left = [row.key for row in await self.connection.read(wire.only_keys(there))]
            except Exception:
                if attempt == _REMOVALS - 1:
                    raise
            else:
                if not left:
                    break
        return left


def marker(version: int) -> bytes:
    """The column of a commit's markers."""
    return version.to_bytes(8, "big") + b"probe"


def int64(n: int) -> bytes:
    """A number, encoded as in the cells of sums and versions."""
    return n.to_bytes(8, "big", signed=True)


def difference(seen: Cells, wanted: Cells) -> str:
    """Describe the first cell that differs; empty if none differs."""
    differing = [cell for cell in sorted({*seen, *wanted}) if seen.get(cell) != wanted.get(cell)]
    if not differing:
        return ""
    family, column, at_us = first = differing[0]
    name = column.decode() if column.isalnum() else column.hex()
    more = f"; {len(differing) - 1} more cells differ" if differing[1:] else ""
    return f"{family}:{name} at {at_us} us is {_text(seen.get(first))}, not {_text(wanted.get(first))}{more}"


def _text(value: bytes | None) -> str:
    if value is None:
        return "absent"
    return str(int.from_bytes(value, "big", signed=True)) if len(value) == 8 else f"{len(value)} bytes"
