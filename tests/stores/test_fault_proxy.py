"""The fault proxy before the real emulator: each kind of fault does what it should, and the write happened or did
not."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any

import grpc
import pytest
from google.cloud.bigtable_v2.types import (
    CheckAndMutateRowRequest,
    CheckAndMutateRowResponse,
    MutateRowsRequest,
    MutateRowsResponse,
    ReadRowsRequest,
    ReadRowsResponse,
)

from tests.support import emulators
from tests.support.fault_proxy import (
    AFTER,
    BEFORE,
    CHECK_AND_MUTATE,
    MUTATE_ROWS,
    READ_ROWS,
    Counts,
    Fault,
    FaultProxy,
    Plan,
    Refusal,
)

CODES = {
    Fault.REFUSE: grpc.StatusCode.UNAVAILABLE,
    Fault.EXHAUST: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Fault.CUT: grpc.StatusCode.UNAVAILABLE,
    Fault.LOSE: grpc.StatusCode.UNAVAILABLE,
    Fault.EXPIRE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Fault.EXHAUST_AFTER: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Fault.CUT_AFTER: grpc.StatusCode.UNAVAILABLE,
}
by_name = attrgetter("name")


class Client:
    """Plain gRPC, without retries.

    Args:
        address: of the emulator, or of a proxy.
        table: an existing table.
    """

    def __init__(self, address: str, table: str) -> None:
        self._table = f"projects/{emulators.PROJECT}/instances/{emulators.INSTANCE}/tables/{table}"
        # With connections of its own.
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        methods = {
            CHECK_AND_MUTATE: (CheckAndMutateRowRequest, CheckAndMutateRowResponse, self._channel.unary_unary),
            MUTATE_ROWS: (MutateRowsRequest, MutateRowsResponse, self._channel.unary_stream),
            READ_ROWS: (ReadRowsRequest, ReadRowsResponse, self._channel.unary_stream),
        }
        self._calls = {
            name: kind(
                f"/google.bigtable.v2.Bigtable/{name}",
                request_serializer=request.serialize,
                response_deserializer=response.deserialize,
            )
            for name, (request, response, kind) in methods.items()
        }

    def close(self) -> None:
        """End its connections."""
        self._channel.close()

    def start(self, row: bytes) -> Any:
        """Begin to write a row, unless it exists; a future."""
        request = CheckAndMutateRowRequest(
            table_name=self._table, row_key=row, predicate_filter={"pass_all_filter": True}, false_mutations=[_CELL]
        )
        return self._calls[CHECK_AND_MUTATE].future(request, timeout=20)

    def write(self, method: str, *rows: bytes) -> dict[bytes, int]:
        """Write rows by this method; the status of each."""
        if method == CHECK_AND_MUTATE:
            (row,) = rows
            self.start(row).result()
            return {row: 0}
        entries = [{"row_key": row, "mutations": [_CELL]} for row in rows]
        answers = self._calls[MUTATE_ROWS](MutateRowsRequest(table_name=self._table, entries=entries), timeout=20)
        return {rows[entry.index]: entry.status.code for answer in answers for entry in answer.entries}

    def read(self) -> set[bytes]:
        """All rows."""
        answers = self._calls[READ_ROWS](ReadRowsRequest(table_name=self._table), timeout=20)
        return {chunk.row_key for answer in answers for chunk in answer.chunks}


_CELL = {"set_cell": {"family_name": "state", "column_qualifier": b"v", "timestamp_micros": 0, "value": b"x"}}


class Script(Plan):
    """A plan without chance: these faults, then none."""

    def __init__(self, *faults: Fault | None, late_s: float = 0.0) -> None:
        super().__init__({}, late_s=late_s)
        self._script = list(faults)

    def draw(self, method: str) -> Fault | None:
        return self._script.pop(0) if self._script else None


@pytest.fixture
def table(bigtable_host: str) -> str:
    """An empty table."""
    return emulators.new_table(bigtable_host)


@pytest.fixture
def direct(bigtable_host: str, table: str) -> Iterator[Client]:
    """A client without the proxy: what the table really holds."""
    client = Client(bigtable_host, table)
    yield client
    client.close()


@pytest.fixture
def proxy(bigtable_host: str) -> Iterator[FaultProxy]:
    """A proxy without a plan."""
    with FaultProxy(bigtable_host) as running:
        yield running


@pytest.fixture
def client(proxy: FaultProxy, table: str) -> Iterator[Client]:
    """A client of the proxy."""
    through = Client(proxy.address, table)
    yield through
    through.close()


def code_of(call: Any) -> grpc.StatusCode:
    """The status with which a call fails."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    code: grpc.StatusCode = raised.value.code()
    return code


def test_without_a_plan_everything_passes(proxy: FaultProxy, client: Client, direct: Client) -> None:
    """Writes and reads reach the emulator, its answers come back, and both are counted."""
    client.write(CHECK_AND_MUTATE, b"a")
    assert client.write(MUTATE_ROWS, b"b", b"c") == {b"b": 0, b"c": 0}
    assert client.read() == direct.read() == {b"a", b"b", b"c"}
    assert proxy.counts == {method: Counts(requests=1) for method in (CHECK_AND_MUTATE, MUTATE_ROWS, READ_ROWS)}
    assert proxy.total() == Counts(requests=2)


@pytest.mark.parametrize("method", [CHECK_AND_MUTATE, MUTATE_ROWS])
@pytest.mark.parametrize("fault", sorted(BEFORE, key=by_name), ids=by_name)
def test_a_fault_before_the_write(proxy: FaultProxy, client: Client, direct: Client, fault: Fault, method: str) -> None:
    """The client sees the error, the emulator nothing; the same works once the plan is removed."""
    proxy.plan = Plan({fault: 1.0})
    assert code_of(lambda: client.write(method, b"a")) is CODES[fault]
    assert direct.read() == set()
    assert proxy.counts[method] == Counts(requests=1, before=1)
    proxy.plan = None
    client.write(method, b"a")
    assert direct.read() == {b"a"}


@pytest.mark.parametrize("method", [CHECK_AND_MUTATE, MUTATE_ROWS])
@pytest.mark.parametrize("fault", sorted(AFTER, key=by_name), ids=by_name)
def test_a_fault_after_the_write(proxy: FaultProxy, client: Client, direct: Client, fault: Fault, method: str) -> None:
    """The client sees the error, and the row is written."""
    proxy.plan = Plan({fault: 1.0})
    assert code_of(lambda: client.write(method, b"a")) is CODES[fault]
    assert direct.read() == {b"a"}
    assert proxy.counts[method] == proxy.total() == Counts(requests=1, after=1, committed=1)
    assert proxy.total().failed == 1


def test_only_writes_that_happened_count_as_committed(proxy: FaultProxy, client: Client) -> None:
    """A request whose condition is not met changes nothing, and is not counted."""
    client.write(CHECK_AND_MUTATE, b"a")
    proxy.plan = Plan({Fault.LOSE: 1.0})
    code_of(lambda: client.write(CHECK_AND_MUTATE, b"a"))
    assert proxy.total() == Counts(requests=2, after=1, committed=0)


@pytest.mark.parametrize("method", [CHECK_AND_MUTATE, MUTATE_ROWS])
def test_a_straggler_is_written_after_its_error(proxy: FaultProxy, client: Client, direct: Client, method: str) -> None:
    """The client gets an error before anything is written, and then it is written nevertheless."""
    proxy.plan = Plan({Fault.STRAGGLE: 1.0}, late_s=0.3)
    assert code_of(lambda: client.write(method, b"a")) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert direct.read() == set()
    proxy.drain()
    assert direct.read() == {b"a"}
    assert proxy.total() == Counts(requests=1, straggled=1, straggled_committed=1)


def test_a_delay_changes_nothing_else(proxy: FaultProxy, client: Client, direct: Client) -> None:
    """The answer is right, and as late as planned."""
    proxy.plan = Plan({Fault.DELAY: 1.0}, late_s=0.2)
    started_s = time.monotonic()
    client.write(CHECK_AND_MUTATE, b"a")
    assert time.monotonic() - started_s >= 0.2
    assert direct.read() == {b"a"}
    assert proxy.total() == Counts(requests=1, delayed=1)


@pytest.mark.parametrize("method", [CHECK_AND_MUTATE, MUTATE_ROWS])
def test_a_request_may_be_executed_twice(proxy: FaultProxy, client: Client, direct: Client, method: str) -> None:
    """The client sees one answer; the emulator two requests, of which a condition lets only the first write."""
    proxy.plan = Plan({Fault.TWICE: 1.0})
    client.write(method, b"a")
    assert direct.read() == {b"a"}
    assert proxy.total() == Counts(requests=1, twice=1)


def test_answers_of_the_live_service_replace_the_emulator_s(proxy: FaultProxy, client: Client, direct: Client) -> None:
    """An error with its code, an answer of its own, or None to pass the request on."""
    said = {CHECK_AND_MUTATE: Refusal(grpc.StatusCode.FAILED_PRECONDITION, "no"), MUTATE_ROWS: b""}
    proxy.live = lambda method, request: said.get(method)
    assert code_of(lambda: client.write(CHECK_AND_MUTATE, b"a")) is grpc.StatusCode.FAILED_PRECONDITION
    assert client.write(MUTATE_ROWS, b"b") == {}
    assert client.read() == direct.read() == set()
    assert proxy.total() == Counts(requests=2, refused=2)


@pytest.mark.parametrize("fault", sorted(BEFORE | AFTER, key=by_name), ids=by_name)
def test_reads_fail_too(proxy: FaultProxy, client: Client, direct: Client, fault: Fault) -> None:
    """By each kind of fault, also where there is nothing to read."""
    proxy.plan = Plan({fault: 1.0})
    assert code_of(client.read) is CODES[fault]
    direct.write(CHECK_AND_MUTATE, b"a")
    assert code_of(client.read) is CODES[fault]
    after = int(fault in AFTER)
    assert proxy.counts[READ_ROWS] == Counts(requests=2, before=2 - 2 * after, after=2 * after)
    assert proxy.total() == Counts()


def test_a_stream_of_answers_breaks_off(proxy: FaultProxy, table: str, direct: Client) -> None:
    """The first of several answers are delivered, then the error."""
    for part in range(3):
        direct.write(MUTATE_ROWS, *(b"%d/%05d" % (part, i) + b"x" * 1000 for i in range(2000)))
    proxy.plan = Plan({Fault.LOSE: 1.0})
    with grpc.insecure_channel(proxy.address) as channel:
        call = channel.unary_stream("/google.bigtable.v2.Bigtable/ReadRows")
        name = f"projects/{emulators.PROJECT}/instances/{emulators.INSTANCE}/tables/{table}"
        came = until_it_fails(call(ReadRowsRequest.serialize(ReadRowsRequest(table_name=name))))
        rows = {chunk.row_key for answer in came for chunk in ReadRowsResponse.deserialize(answer).chunks}
    assert 0 < len(rows) < 6000


def test_a_cut_ends_the_whole_connection_and_no_other(
    proxy: FaultProxy, client: Client, table: str, direct: Client
) -> None:
    """Other calls on the same connection fail as well; another client notices nothing."""
    other = Client(proxy.address, table)
    try:
        proxy.plan = Script(Fault.DELAY, Fault.DELAY, Fault.CUT, late_s=1.0)
        along, apart = client.start(b"along"), other.start(b"apart")
        wait_until(lambda: proxy.counts[CHECK_AND_MUTATE].delayed == 2)
        cut = client.start(b"cut")
        assert code_of(cut.result) is code_of(along.result) is grpc.StatusCode.UNAVAILABLE
        apart.result()
        assert direct.read() == {b"apart"}
        assert proxy.total() == Counts(requests=3, before=1, delayed=2, broken=1)
        client.write(CHECK_AND_MUTATE, b"again")
    finally:
        other.close()


def test_down_means_refused_and_up_is_the_same_port(
    proxy: FaultProxy, client: Client, table: str, direct: Client
) -> None:
    """While it is down connections are reset, and the port refuses and stays reserved; then it works again."""
    host, port = proxy.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        client.write(CHECK_AND_MUTATE, b"a")
        proxy.down()
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=20)
    with socket.socket() as another, pytest.raises(OSError, match="in use"):
        another.bind((host, int(port)))
    assert code_of(lambda: client.write(CHECK_AND_MUTATE, b"b")) is grpc.StatusCode.UNAVAILABLE
    proxy.down()
    proxy.up()
    proxy.up()
    fresh = Client(proxy.address, table)
    fresh.write(CHECK_AND_MUTATE, b"c")
    fresh.close()
    assert direct.read() == {b"a", b"c"}


def test_rows_that_may_not_be_written(proxy: FaultProxy, client: Client, direct: Client) -> None:
    """They fail with their code at every try, other rows of the same request do not; reads pass."""
    proxy.refused_rows = {b"bad": grpc.StatusCode.INVALID_ARGUMENT, b"full": grpc.StatusCode.RESOURCE_EXHAUSTED}
    for _ in range(2):
        assert code_of(lambda: client.write(CHECK_AND_MUTATE, b"so bad")) is grpc.StatusCode.INVALID_ARGUMENT
    client.write(CHECK_AND_MUTATE, b"good")
    rows = [b"1 bad", b"2 good", b"3 full", b"4 good"]
    assert client.write(MUTATE_ROWS, *rows) == {b"1 bad": 3, b"2 good": 0, b"3 full": 8, b"4 good": 0}
    assert client.write(MUTATE_ROWS, b"bad") == {b"bad": 3}
    assert client.read() == direct.read() == {b"good", b"2 good", b"4 good"}
    assert proxy.counts[CHECK_AND_MUTATE] == Counts(requests=3, refused=2)
    assert proxy.counts[MUTATE_ROWS] == Counts(requests=2, refused=3)
    proxy.refused_rows = {}
    client.write(CHECK_AND_MUTATE, b"so bad")
    assert b"so bad" in direct.read()


def test_errors_of_the_emulator_pass(proxy: FaultProxy, bigtable_host: str) -> None:
    """A missing table is the same error through the proxy, for each kind of method."""
    lost = Client(proxy.address, "nowhere")
    assert code_of(lambda: lost.write(CHECK_AND_MUTATE, b"a")) is grpc.StatusCode.NOT_FOUND
    assert code_of(lost.read) is grpc.StatusCode.NOT_FOUND
    lost.close()


def test_a_plan_depends_on_its_seed_and_its_chances() -> None:
    """The same seed gives the same faults, about as many as specified; another seed gives others."""
    chances = {Fault.REFUSE: 0.1, Fault.LOSE: 0.05, Fault.DELAY: 0.05}

    def drawn(seed: int) -> list[Fault | None]:
        plan = Plan(chances, seed, methods=[CHECK_AND_MUTATE])
        assert plan.draw(READ_ROWS) is None
        return [plan.draw(CHECK_AND_MUTATE) for _ in range(10_000)]

    assert drawn(1) == drawn(1) != drawn(2)
    counted = Counter(drawn(1))
    for fault, chance in chances.items():
        assert 0.8 * chance < counted[fault] / 10_000 < 1.2 * chance
    assert counted[None] > 7_500


def test_it_leaves_nothing_behind(bigtable_host: str, table: str, direct: Client) -> None:
    """Threads and files are as before when it ends, also with requests in progress and stragglers to be written."""

    def left() -> tuple[int, int]:
        gc.collect()
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    direct.read()
    Client(bigtable_host, table).close()
    wait_until_steady(left)
    before = left()
    for i in range(3):
        with FaultProxy(bigtable_host, Script(Fault.STRAGGLE, Fault.DELAY, Fault.CUT, late_s=0.2)) as proxy:
            client = Client(proxy.address, table)
            assert code_of(client.start(b"late %d" % i).result) is grpc.StatusCode.DEADLINE_EXCEEDED
            under_way = client.start(b"under way %d" % i)
            wait_until(lambda proxy=proxy: proxy.total().delayed == 1)
        code_of(under_way.result)
        client.close()
        del client, under_way
    assert direct.read() == {b"late %d" % i for i in range(3)}
    wait_until(lambda: left() == before)


def until_it_fails(answers: Iterator[bytes]) -> list[bytes]:
    """The answers before the error."""
    came = []
    while True:
        try:
            came.append(next(answers))
        except grpc.RpcError:
            return came


def read_all(connection: socket.socket) -> None:
    """Read until it ends."""
    while connection.recv(1000):
        pass


def wait_until(holds: Any) -> None:
    """Poll, for at most 20 s."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_steady(measure: Any) -> None:
    """Until it has been the same for a while: connections that earlier tests have closed may end a little later."""
    last, since = measure(), time.monotonic()
    deadline = since + 20
    while time.monotonic() - since < 0.3 and time.monotonic() < deadline:
        time.sleep(0.02)
        now = measure()
        if now != last:
            last, since = now, time.monotonic()


# ---- complete reads, and late repetitions ----


class Meeting:
    """Makes requests slow and notes which of them are in progress at the same time.

    Args:
        proxy: whose requests it watches.
    """

    def __init__(self, proxy: FaultProxy) -> None:
        self.inside: Counter[str] = Counter()
        self.met: set[tuple[str, ...]] = set()
        self._send = proxy._send_now
        proxy._send_now = self.send  # type: ignore[method-assign]

    async def send(self, path: str, request: bytes) -> list[bytes]:
        """Send the request slowly."""
        method = path.rpartition("/")[2]
        self.inside[method] += 1
        self.met.add(tuple(sorted(self.inside.elements())))
        await asyncio.sleep(0.05)
        try:
            return await self._send(path, request)
        finally:
            self.inside[method] -= 1


@pytest.mark.parametrize("whole_reads", [False, True])
def test_reads_and_writes_do_not_overlap_if_requested(proxy: FaultProxy, client: Client, whole_reads: bool) -> None:
    """Several reads, or several writes, may be in progress at a time, but never both."""
    proxy.plan = Plan({}, whole_reads=whole_reads)
    meeting = Meeting(proxy)
    with ThreadPoolExecutor(12) as pool:
        calls = []
        for n in range(24):
            row = b"%d" % n
            calls.append(pool.submit(client.read))
            calls.append(pool.submit(client.write, (CHECK_AND_MUTATE, MUTATE_ROWS)[n % 2], row))
        for call in calls:
            call.result()
    assert client.read() == {b"%d" % n for n in range(24)}
    together = {READ_ROWS in methods and len({*methods}) > 1 for methods in meeting.met}
    assert (True in together) != whole_reads
    if whole_reads:
        assert any(methods.count(READ_ROWS) > 1 for methods in meeting.met)
        assert any(len(methods) > 1 and READ_ROWS not in methods for methods in meeting.met)


def test_a_write_continues_after_its_client_has_left(proxy: FaultProxy, client: Client, direct: Client) -> None:
    """Otherwise it would overlap with a read in the emulator, where it cannot be cancelled."""
    proxy.plan = Plan({}, whole_reads=True)
    Meeting(proxy)
    call = client.start(b"a")
    time.sleep(0.02)
    call.cancel()
    assert client.read() <= {b"a"}
    proxy.drain()
    assert direct.read() == {b"a"}


def test_kept_requests_are_executed_again(bigtable_host: str, table: str, direct: Client) -> None:
    """As if they had been very late, also the lost ones; but not spared ones, which never fail."""
    with FaultProxy(bigtable_host, Plan({Fault.REFUSE: 1.0}), keeps=2) as proxy:
        proxy.spared = lambda method, request: b"spared" in request
        client = Client(proxy.address, table)
        for row in (b"a", b"b", b"c"):
            assert code_of(lambda row=row: client.write(MUTATE_ROWS, row)) is grpc.StatusCode.UNAVAILABLE
        client.write(MUTATE_ROWS, b"spared")
        assert direct.read() == {b"spared"}
        assert proxy.faults == {Fault.REFUSE: 3}
        assert proxy.replay(1) == 1
        assert len(direct.read()) == 2
        assert proxy.replay() == 2
        assert len(direct.read()) == 3
        assert proxy.counts[MUTATE_ROWS].replayed == 3
        client.close()
