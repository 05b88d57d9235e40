"""A gRPC proxy before the Bigtable emulator, which loses, refuses, delays and cuts clients' requests, by a seeded plan.

Clients find it by ``BIGTABLE_EMULATOR_HOST``. It passes bytes on unchanged. It has two parts, on an event loop in a
thread of their own: `_Relay` accepts the TCP connections, so that one of them can really be reset, and the port really
refuse; behind it is a gRPC server that sees single requests.
"""

from __future__ import annotations

import asyncio
import enum
import random
import socket
import threading
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import grpc
from google.cloud.bigtable_v2.types import (
    CheckAndMutateRowRequest,
    CheckAndMutateRowResponse,
    MutateRowsRequest,
    MutateRowsResponse,
)

T = TypeVar("T")

_SERVICE = "/google.bigtable.v2.Bigtable/"
CHECK_AND_MUTATE = "CheckAndMutateRow"
MUTATE_ROWS = "MutateRows"
READ_ROWS = "ReadRows"
METHODS = (CHECK_AND_MUTATE, MUTATE_ROWS, READ_ROWS)

# Reading a large row exceeds gRPC's 4 MB.
_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


class Fault(enum.Enum):
    """What may happen to a request."""

    REFUSE = enum.auto()
    """UNAVAILABLE, and nothing is written."""
    EXHAUST = enum.auto()
    """RESOURCE_EXHAUSTED, and nothing is written."""
    CUT = enum.auto()
    """The connection is reset, and nothing is written. All other requests in progress on it fail too, before or
    after."""
    LOSE = enum.auto()
    """UNAVAILABLE, after it was written. Of a stream of answers the last is missing."""
    EXPIRE = enum.auto()
    """DEADLINE_EXCEEDED, after it was written. Of a stream of answers the last is missing."""
    EXHAUST_AFTER = enum.auto()
    """RESOURCE_EXHAUSTED, after it was written. Of a stream of answers the last is missing."""
    TWICE = enum.auto()
    """Executed twice, as by a proxy that tries again; the second answer is returned."""
    CUT_AFTER = enum.auto()
    """The connection is reset, after it was written."""
    STRAGGLE = enum.auto()
    """DEADLINE_EXCEEDED at once; it is written only later, when the client has perhaps tried again."""
    DELAY = enum.auto()
    """The answer is right, but late."""


BEFORE = frozenset({Fault.REFUSE, Fault.EXHAUST, Fault.CUT})
AFTER = frozenset({Fault.LOSE, Fault.EXPIRE, Fault.EXHAUST_AFTER, Fault.CUT_AFTER})

_CODES = {
    Fault.REFUSE: grpc.StatusCode.UNAVAILABLE,
    Fault.EXHAUST: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Fault.CUT: grpc.StatusCode.UNAVAILABLE,
    Fault.LOSE: grpc.StatusCode.UNAVAILABLE,
    Fault.EXPIRE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Fault.EXHAUST_AFTER: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Fault.CUT_AFTER: grpc.StatusCode.UNAVAILABLE,
    Fault.STRAGGLE: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Plan:
    """Decides what happens to which request, by chance: the same seed gives the same decisions, in the order of the
    requests.

    Args:
        chances: of each fault, from 0 to 1, together at most 1.
        seed: of the random numbers.
        methods: that it affects; the others pass.
        late_s: delay of an answer or a write, in seconds.
        whole_reads: never let reads and writes reach the emulator at the same time. Its reads of one row are torn while
            other requests add or delete columns in it: a cell is missing, or comes twice. The service reads a row as it
            is at one moment.
    """

    def __init__(
        self,
        chances: Mapping[Fault, float],
        seed: int = 0,
        methods: Collection[str] = METHODS,
        late_s: float = 0.02,
        *,
        whole_reads: bool = False,
    ) -> None:
        assert sum(chances.values()) <= 1
        self.methods = frozenset(methods)
        self.late_s = late_s
        self.whole_reads = whole_reads
        self._faults: list[Fault | None] = [*chances, None]
        self._weights = [*chances.values(), 1 - sum(chances.values())]
        self._chance = random.Random(seed)

    def draw(self, method: str) -> Fault | None:
        """The fault of the next request; None: it passes."""
        if method not in self.methods:
            return None
        (fault,) = self._chance.choices(self._faults, self._weights)
        return fault


@dataclass
class Counts:
    """The numbers of requests of one method.

    Attributes:
        requests: all that came.
        before: failed by the plan, and not passed on.
        after: failed by the plan, but passed on first.
        committed: of those, the ones that have written something.
        straggled: failed by the plan, and passed on late.
        straggled_committed: of those, the ones that have written something.
        delayed: answered late.
        twice: executed twice.
        refused: writes to rows that may not be written, and those answered by `FaultProxy.live`.
        broken: given up by the client or ended with their connection, so that their results are unknown.
        replayed: executed once more by `FaultProxy.replay`.
    """

    requests: int = 0
    before: int = 0
    after: int = 0
    committed: int = 0
    straggled: int = 0
    straggled_committed: int = 0
    delayed: int = 0
    twice: int = 0
    refused: int = 0
    broken: int = 0
    replayed: int = 0

    @property
    def failed(self) -> int:
        """The number that the plan has made fail."""
        return self.before + self.after + self.straggled


class Refusal(NamedTuple):
    """How a request fails."""

    code: grpc.StatusCode
    text: str


class FaultProxy:
    """A context manager; within it clients may connect to `address`.

    ``plan``, ``refused_rows`` and ``live`` may be changed at any time.

    Args:
        upstream: ``host:port`` of the emulator.
        plan: decides about the requests; None passes all.
        keeps: how many of the MutateRows requests that were passed on are kept, for `replay`.

    Attributes:
        address: ``host:port`` for clients, always the same.
        counts: by method, such as ``CheckAndMutateRow``.
        faults: how often the plan has chosen each.
        spared: whether a request, given its method and bytes, passes whatever the plan decides, and is not kept.
        refused_rows: writes to row keys that contain one of these fail with the code, each time.
        live: the service's answer to a request, given its method and bytes, where the emulator's differs; None passes
            the
            request on.
        asked: the request that arrives at the emulator, given its method and bytes.
        told: the answers that arrive at the client, given the method, the bytes as passed on, and the emulator's
            answers.
    """

    def __init__(self, upstream: str, plan: Plan | None = None, *, keeps: int = 0) -> None:
        self.plan = plan
        self.counts: defaultdict[str, Counts] = defaultdict(Counts)
        self.faults: Counter[Fault] = Counter()
        self.spared: Callable[[str, bytes], bool] = lambda method, request: False
        self.refused_rows: Mapping[bytes, grpc.StatusCode] = {}
        self.live: Callable[[str, bytes], Refusal | bytes | None] = lambda method, request: None
        self.asked: Callable[[str, bytes], bytes] = lambda method, request: request
        self.told: Callable[[str, bytes, list[bytes]], list[bytes]] = lambda method, request, answers: answers
        self._upstream = upstream
        self._keeps = keeps
        self._kept: list[bytes] = []
        self._chance = random.Random(keeps)
        self._apart = _Apart()
        self._relay = _Relay()
        self.address = f"127.0.0.1:{self._relay.port}"

    def __enter__(self) -> FaultProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"fault proxy {self.address}", daemon=True)
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, *error: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def down(self) -> None:
        """Reset all connections and refuse new ones."""
        self._run(self._relay.down())

    def up(self) -> None:
        """Accept connections again, on the same port."""
        self._run(self._relay.up(self._inner_port))

    def half_open(self) -> None:
        """From now on existing connections transfer nothing, and neither end is notified."""
        self._run(self._relay.half_open())

    def black_hole(self) -> None:
        """As `half_open`; new connections are accepted, and transfer nothing either. It ends with `down`."""
        self._run(self._relay.half_open(new_ones=True))

    def drain(self) -> None:
        """Wait for the late writes."""
        self._run(self._drain())

    def replay(self, n: int | None = None) -> int:
        """Execute some of the kept MutateRows requests once more, in any order, as if they had been very late.

        Args:
            n: at most this many; None: all.

        Returns:
            How many.
        """
        return self._run(self._replay(n))

    def total(self) -> Counts:
        """The numbers of the writes, of both methods."""
        one, other = self.counts[CHECK_AND_MUTATE], self.counts[MUTATE_ROWS]
        return Counts(**{name: vars(one)[name] + vars(other)[name] for name in vars(one)})

    @property
    def connections(self) -> int:
        """The number of connections that clients have now."""
        return self._relay.connections

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        self._late: set[asyncio.Task[Any]] = set()
        self._channel = grpc.aio.insecure_channel(self._upstream, _OPTIONS)
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((_Handlers(self._handle),))
        self._inner_port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        await self._relay.up(self._inner_port)

    async def _stop(self) -> None:
        await self._relay.close()
        await self._server.stop(None)
        await self._drain()
        await self._channel.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        # gRPC's own thread ends with the last of its objects.
        del self._server, self._channel

    async def _drain(self) -> None:
        while self._late:
            await asyncio.gather(*self._late, return_exceptions=True)

    async def _handle(self, path: str, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """The answers of one request."""
        method = path.removeprefix(_SERVICE)
        count = self.counts[method]
        count.requests += 1
        said = self.live(method, request)
        if said is not None:
            count.refused += 1
            if isinstance(said, Refusal):
                await context.abort(*said)
            yield said
            return
        request = self.asked(method, request)
        plan = self.plan
        fault = None if plan is None else plan.draw(method)
        if self.spared(method, request):
            fault = None
        elif self._keeps and method == MUTATE_ROWS:
            self._keep(request)
        if fault is not None:
            self.faults[fault] += 1
        if fault in BEFORE:
            count.before += 1
            await self._fail(fault, context)
        elif plan is not None and fault is Fault.STRAGGLE:
            count.straggled += 1
            task = asyncio.create_task(self._pass_on_late(path, request, plan.late_s))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            await self._fail(fault, context)
        try:
            if plan is not None and fault is Fault.DELAY:
                count.delayed += 1
                await asyncio.sleep(plan.late_s)
            if fault is Fault.TWICE:
                count.twice += 1
                await self._pass_unless_refused(path, request, context)
            answers = await self._pass_unless_refused(path, request, context)
        except asyncio.CancelledError:
            count.broken += 1
            raise
        if fault in AFTER:
            count.after += 1
            count.committed += _wrote(method, request, answers)
            del answers[-1:]  # a read that finds nothing has none
        for answer in self.told(method, request, answers):
            yield answer
        if fault in AFTER:
            await self._fail(fault, context)

    async def _fail(self, fault: Fault | None, context: Any) -> None:
        assert fault is not None
        if fault in (Fault.CUT, Fault.CUT_AFTER):
            self._relay.cut(context.peer())
        await context.abort(_CODES[fault], f"fault proxy: {fault.name}")

    async def _pass_unless_refused(self, path: str, request: bytes, context: Any) -> list[bytes]:
        method = path.removeprefix(_SERVICE)
        if not self.refused_rows or method not in (CHECK_AND_MUTATE, MUTATE_ROWS):
            return await self._pass_on(path, request, context)
        if method == CHECK_AND_MUTATE:
            code = self._refused(CheckAndMutateRowRequest.pb().FromString(request).row_key)
            if code is not None:
                self.counts[method].refused += 1
                await context.abort(code, "fault proxy: this row may not be written")
            return await self._pass_on(path, request, context)
        bulk = MutateRowsRequest.pb().FromString(request)
        codes = {i: code for i, entry in enumerate(bulk.entries) if (code := self._refused(entry.row_key))}
        allowed = [i for i in range(len(bulk.entries)) if i not in codes]
        answer = MutateRowsResponse.pb()()
        for i, code in codes.items():
            self.counts[method].refused += 1
            entry = answer.entries.add(index=i)
            entry.status.code, entry.status.message = code.value[0], "fault proxy: this row may not be written"
        if allowed:
            entries = [bulk.entries[i] for i in allowed]
            del bulk.entries[:]
            bulk.entries.extend(entries)
            for data in await self._pass_on(path, bulk.SerializeToString(), context):
                for entry in MutateRowsResponse.pb().FromString(data).entries:
                    entry.index = allowed[entry.index]
                    answer.entries.append(entry)
        return [answer.SerializeToString()]

    def _refused(self, row_key: bytes) -> grpc.StatusCode | None:
        return next((code for part, code in self.refused_rows.items() if part in row_key), None)

    async def _pass_on(self, path: str, request: bytes, context: Any) -> list[bytes]:
        """The emulator's answers; its errors are passed back."""
        try:
            return await self._send(path, request)
        except grpc.aio.AioRpcError as err:
            await context.abort(err.code(), err.details() or "")
            raise  # abort has raised already

    async def _pass_on_late(self, path: str, request: bytes, late_s: float) -> None:
        await asyncio.sleep(late_s)
        method = path.removeprefix(_SERVICE)
        # The client no longer waits for the answer.
        with suppress(grpc.aio.AioRpcError):
            self.counts[method].straggled_committed += _wrote(method, request, await self._send(path, request))

    def _keep(self, request: bytes) -> None:
        """Old ones as well as new ones."""
        if len(self._kept) < self._keeps:
            self._kept.append(request)
        else:
            self._kept[self._chance.randrange(self._keeps)] = request

    async def _replay(self, n: int | None) -> int:
        some = self._chance.sample(self._kept, len(self._kept) if n is None else min(n, len(self._kept)))
        for request in some:
            # The client no longer waits for the answer.
            with suppress(grpc.aio.AioRpcError):
                await self._send(_SERVICE + MUTATE_ROWS, request)
            self.counts[MUTATE_ROWS].replayed += 1
        return len(some)

    async def _send(self, path: str, request: bytes) -> list[bytes]:
        method = path.removeprefix(_SERVICE)
        if self.plan is None or not self.plan.whole_reads or method not in METHODS:
            return await self._send_now(path, request)

        async def send() -> list[bytes]:
            async with self._apart.either(reads=method == READ_ROWS):
                return await self._send_now(path, request)

        # To its end, although the client may be gone: a write would continue in the emulator, and overlap with a read.
        task = asyncio.create_task(send())
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return await asyncio.shield(task)

    async def _send_now(self, path: str, request: bytes) -> list[bytes]:
        if path == _SERVICE + CHECK_AND_MUTATE:
            return [await self._channel.unary_unary(path)(request)]
        return [answer async for answer in self._channel.unary_stream(path)(request)]


def _wrote(method: str, request: bytes, answers: list[bytes]) -> bool:
    """Whether the emulator has changed anything."""
    if method == CHECK_AND_MUTATE:
        sent = CheckAndMutateRowRequest.pb().FromString(request)
        met = CheckAndMutateRowResponse.pb().FromString(answers[0]).predicate_matched
        return bool(sent.true_mutations if met else sent.false_mutations)
    if method == MUTATE_ROWS:
        parts = [MutateRowsResponse.pb().FromString(answer) for answer in answers]
        return any(not entry.status.code for part in parts for entry in part.entries)
    return False


class _Apart:
    """Lets reads in or writes, many at a time, and never both."""

    def __init__(self) -> None:
        self._reads = False
        self._inside = 0
        self._waiting: deque[tuple[bool, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def either(self, *, reads: bool) -> AsyncIterator[None]:
        """A read, or a write."""
        if self._waiting or (self._inside and self._reads != reads):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((reads, turn))
            await turn
        else:
            self._reads = reads
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside and self._waiting:
                self._let_in()

    def _let_in(self) -> None:
        """All waiting requests of the same kind as the first."""
        self._reads = self._waiting[0][0]
        others = deque(other for other in self._waiting if other[0] != self._reads)
        for reads, turn in self._waiting:
            if reads == self._reads:
                self._inside += 1
                turn.set_result(None)
        self._waiting = others


class _Handlers(grpc.GenericRpcHandler):
    """Accepts every method. On the wire a single answer is a stream of one."""

    def __init__(self, handle: Callable[[str, bytes, Any], AsyncIterator[bytes]]) -> None:
        self._handle = handle

    def service(self, handler_call_details: Any) -> Any:
        path, handle = handler_call_details.method, self._handle

        async def several(request: bytes, context: Any) -> AsyncIterator[bytes]:
            async for answer in handle(path, request, context):
                yield answer

        async def single(request: bytes, context: Any) -> bytes:
            # The same, but it costs less, and most requests are of this kind.
            (answer,) = [answer async for answer in handle(path, request, context)]
            return answer

        if path == _SERVICE + CHECK_AND_MUTATE:
            return grpc.unary_unary_rpc_method_handler(single)
        return grpc.unary_stream_rpc_method_handler(several)


class Outage:
    """A context manager: a TCP port before a server, which can be gone for a while without the server's knowledge.

    Args:
        upstream: ``127.0.0.1:port`` of the server.

    Attributes:
        address: ``host:port`` for clients, always the same.
    """

    def __init__(self, upstream: str) -> None:
        self._port = int(upstream.rpartition(":")[2])
        self._relay = _Relay()
        self.address = f"127.0.0.1:{self._relay.port}"

    def __enter__(self) -> Outage:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"outage {self.address}", daemon=True)
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *error: object) -> None:
        self._run(self._relay.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def down(self) -> None:
        """Reset all connections and refuse new ones."""
        self._run(self._relay.down())

    def up(self) -> None:
        """Accept connections again."""
        self._run(self._relay.up(self._port))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Relay:
    """Passes bytes between clients and the gRPC server, which cannot end a single connection."""

    def __init__(self) -> None:
        # Bound for its whole life but never listening: while it is down, no other process gets the port.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port: int = self._held.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._clients: dict[str, _End] = {}
        self._loses = False

    async def up(self, inner_port: int) -> None:
        if self._server is None:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _End(self._clients, inner_port, loses=self._loses), "127.0.0.1", self.port, reuse_port=True
            )

    async def down(self) -> None:
        self._loses = False
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in list(self._clients.values()):
            client.reset()

    async def half_open(self, *, new_ones: bool = False) -> None:
        self._loses = new_ones
        for client in self._clients.values():
            client.half_open()

    async def close(self) -> None:
        await self.down()
        self._held.close()

    @property
    def connections(self) -> int:
        return len(self._clients)

    def cut(self, peer: str) -> None:
        """Reset the client whose requests have the peer ``ipv4:127.0.0.1:PORT`` in the gRPC server."""
        client = self._clients.get(peer)
        if client is not None:
            client.reset()


class _End(asyncio.Protocol):
    """One end of a connection: its input is the output of the other end.

    Args:
        clients: clients' ends by their names in the gRPC server.
        inner_port: where to connect to, for the end of a client; None for the other end.
        other: the end of the client, for the other end.
        loses: whether its input is lost.
    """

    def __init__(
        self, clients: dict[str, _End], inner_port: int | None, other: _End | None = None, *, loses: bool = False
    ) -> None:
        self._clients = clients
        self._inner_port = inner_port
        self._name = ""
        self.other = other
        self.transport: Any = None
        self._loses = loses

    def half_open(self) -> None:
        """Lose the input of both ends."""
        self._loses = True
        if self.other is not None:
            self.other._loses = True

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self._inner_port is not None:
            transport.pause_reading()
            # asyncio keeps only weak references to tasks.
            self._connecting = asyncio.ensure_future(self._connect(self._inner_port))

    async def _connect(self, inner_port: int) -> None:
        def other_end() -> _End:
            return _End(self._clients, None, self, loses=self._loses)

        try:
            inner, self.other = await asyncio.get_running_loop().create_connection(other_end, "127.0.0.1", inner_port)
        except OSError:
            self.transport.abort()
            return
        host, port = inner.get_extra_info("sockname")
        self._name = f"ipv4:{host}:{port}"
        self._clients[self._name] = self
        if self.transport.is_closing():
            self.connection_lost(None)
        else:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        if not self._loses:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.pop(self._name, None)
        if self.other is not None:
            self.other.transport.close()

    def reset(self) -> None:
        """End the connection with RST, losing what is still to be sent."""
        connection: socket.socket = self.transport.get_extra_info("socket")
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()
        if self.other is not None:
            self.other.transport.abort()


_AT_ONCE = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
