"""A Bigtable store's connection that fails on command."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from murmur_beam.monoids import Max
from murmur_beam.state.bigtable import BigtableStore


class Line:
    """A store's connection that counts requests, and fails on command.

    Args:
        store: whose connection it replaces.

    Attributes:
        commits, bulks, reads: requests so far.
        refuse: errors of the next commits, which do not happen; None lets one through.
        lose: errors of the next commits that do happen.
        unread: errors of the next reads.
    """

    def __init__(self, store: BigtableStore[Any]) -> None:
        self.real = store._connection
        self.commits = self.bulks = self.reads = 0
        self.refuse: list[grpc.StatusCode | None] = []
        self.lose: list[grpc.StatusCode | None] = []
        self.unread: list[grpc.StatusCode | None] = []
        for holder in (store._committer, store._committer._refresher, store._adder):
            holder.connection = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    @staticmethod
    def fail(codes: list[grpc.StatusCode | None]) -> None:
        """Raise the next error, if it is one."""
        if codes and (code := codes.pop(0)) is not None:
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "as told")

    def commit(self, request: bytes, burst: Any = None) -> asyncio.Future[bool]:
        return asyncio.ensure_future(self._commit(request))

    async def _commit(self, request: bytes) -> bool:
        self.commits += 1
        self.fail(self.refuse)
        met = await self.real.commit(request)
        self.fail(self.lose)
        return met

    async def mutate(self, request: bytes, n: int) -> dict[int, Exception]:
        self.bulks += 1
        self.fail(self.refuse)
        return await self.real.mutate(request, n)

    async def read(self, query: Any, *, persist: bool = True) -> list[Any]:
        self.reads += 1
        self.fail(self.unread)
        return await self.real.read(query, persist=persist)


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Unreadable(Max):
    """A monoid that encodes 13, but cannot decode it."""

    name = "unreadable"

    def decode(self, data: bytes) -> Any:
        """See `Monoid.decode`."""
        value = super().decode(data)
        if value == 13:
            raise ValueError("13")
        return value
