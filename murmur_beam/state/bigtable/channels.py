"""The channels to a table, the requests that are sent together on one of them, and what the server asks for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import grpc

from murmur_beam.state.bigtable import wire

# As the official client sets them: only the service limits sizes, and a dead connection is noticed. After a long outage
# gRPC would wait for up to two minutes before it connects again; records would fail meanwhile.
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # this one ends the connection, by default after a minute (grpcio 1.85)
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Otherwise all channels of a process to one address share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)


class Call(Protocol):
    """A request under way; awaiting it returns whether the predicate was met."""

    def __await__(self) -> Generator[Any, None, bool]: ...

    def cancel(self) -> bool:
        """Stop waiting for it; it may be applied all the same."""


class Burst:
    """Commits that are sent together and share a deadline: a timer of gRPC for each commit takes a tenth of its time.

    Use it in a ``with`` statement on the loop; if an exception leaves the statement, commits under way are cancelled.

    Args:
        timeout_s: the deadline, seconds from the beginning of the statement.
        send: sends a commit, on the same channel for all of them, so that the server is woken up once.

    Attributes:
        overdue: whether the deadline has passed; all commits without an answer were cancelled then.
        heard: whether any commit had an answer.
        broken: whether any commit failed as `is_unavailable` says.
    """

    def __init__(self, timeout_s: float, send: Callable[..., Call]) -> None:
        self.overdue = self.heard = self.broken = False
        self.timeout_s = timeout_s
        self.send = send
        self._calls: list[Call] = []

    def add(self, call: Call) -> None:
        """Add a commit under way."""
        self._calls.append(call)

    def __enter__(self) -> Burst:
        self._timer = asyncio.get_running_loop().call_later(self.timeout_s, self._give_up)
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        if error[0] is not None:
            self._cancel()

    @property
    def answered(self) -> bool | None:
        """Whether the server answers; None if that is not known."""
        return True if self.heard else False if self.overdue else None

    def _give_up(self) -> None:
        self.overdue = True
        self._cancel()

    def _cancel(self) -> None:
        for call in self._calls:
            call.cancel()


class Channels:
    """Several channels to the same address, each a connection of its own, used in turn.

    Args:
        channels: at least one.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = channels
        self.check_and_mutate = itertools.cycle(
            [each.unary_unary(wire.CHECK_AND_MUTATE, response_deserializer=wire.was_met) for each in channels]
        )
        self.mutate = itertools.cycle(
            [
                each.unary_stream(wire.MUTATE_ROWS, response_deserializer=wire.BulkResponse.FromString)
                for each in channels
            ]
        )
        self.read_rows = itertools.cycle(
            [
                each.unary_stream(
                    wire.READ_ROWS,
                    request_serializer=wire.Read.SerializeToString,
                    response_deserializer=wire.ReadResponse.FromString,
                )
                for each in channels
            ]
        )
        self.sample = channels[0].unary_stream(
            wire.SAMPLE_ROW_KEYS,
            request_serializer=wire.Sample.SerializeToString,
            response_deserializer=wire.SampleResponse.FromString,
        )

    async def close(self) -> None:
        """Close all channels."""
        for each in self._channels:
            await each.close()
