"""The channels to a table, on an event loop of their own."""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import os
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeVar

import grpc
from google.api_core import exceptions as api_errors
from google.auth.exceptions import GoogleAuthError
from google.cloud.bigtable_v2.services.bigtable.transports import BigtableGrpcAsyncIOTransport, BigtableGrpcTransport
from grpc.experimental import ChannelOptions

from murmur_beam.errors import MurmurError, PermanentError, StoreUnavailable, TransientError
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.reading import Cell, Row, RowAssembler

T = TypeVar("T")

# As the client's own channel has them: no limit but the service's, and a connection that is found out when it is dead.
# After a long outage gRPC would wait for up to two minutes before it looks again; records would fail meanwhile.
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # which alone ends the connection, after a minute by default (grpcio 1.85)
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Else all channels of a process to one address share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)

# "This client heeds rate_limit_info", as FeatureFlags of feature_flags.proto: mutate_rows_rate_limit and _limit2.
_FEATURES = base64.urlsafe_b64encode(b"\x18\x01\x28\x01").decode("ascii")

# What the whole table, or who may use it, is to blame for, and what a single request is.
_UNUSABLE = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}
_REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
}
# What is wrong with a family is wrong with the table, whatever code it has: the emulator's, and the service's.
_FAMILY_TEXTS = ("unknown family", "non-aggregate cell", "column family type mismatch", "column family not found")
_CREATING = "currently being created"
_NO_TRANSACTIONS = "not allowed by this app profile"

# How long closing asks tasks to end again that go on when they are cancelled.
_CLOSE_S = 10.0
_ASK_AGAIN_S = 0.1

# Entries of a bulk write whose usual answer is kept to be compared with.
_FEW = 128

# All that are open, and in a child those that were when it was forked: to give up a channel there would wait for ever.
_open: set[Connection] = set()


class _Metadata(grpc.aio.Metadata):  # type: ignore[misc]
    """The same for every request, so that it need not be taken apart and put together for each."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        super().__init__(*pairs)
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)


class Hint(NamedTuple):
    """How fast the server asks to be written to: so many times as fast as now, for so many seconds."""

    factor: float
    period_s: float


class Call(Protocol):
    """A request under way; awaiting it tells whether the predicate was met."""

    def __await__(self) -> Generator[Any, None, bool]: ...

    def cancel(self) -> bool:
        """Do not wait for it any more; it may happen all the same."""


class Burst:
    """Commits that are sent together and share a deadline: a timer of gRPC's own for each takes a tenth of its time.

    To be used in a ``with`` statement on the loop; if an exception leaves it, what is under way is cancelled.

    Args:
        timeout_s: the deadline, seconds from the beginning of the statement.
        send: sends one, on the channel that all of them take: so the server is woken up once.

    Attributes:
        overdue: has it passed? Then all have been cancelled that had no answer.
        heard: has any of them had an answer?
        broken: has any of them failed as `is_unavailable` says?
    """

    def __init__(self, timeout_s: float, send: Callable[..., Call]) -> None:
        self.overdue = self.heard = self.broken = False
        self.timeout_s = timeout_s
        self.send = send
        self._calls: list[Call] = []

    def add(self, call: Call) -> None:
        """One more."""
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
        """Does the server answer? None: that is not known."""
        return True if self.heard else False if self.overdue else None

    def _give_up(self) -> None:
        self.overdue = True
        self._cancel()

    def _cancel(self) -> None:
        for call in self._calls:
            call.cancel()


class _Channels:
    """Some channels to the same place, each a connection of its own; its methods by turns.

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
        """Close them all."""
        for each in self._channels:
            await each.close()


class Connection:
    """A table's channels. `run` and `close` are for any thread; all else is for coroutines that are run.

    Args:
        project, instance, table, app_profile: where; None is the instance's default profile.
        timeout_s: deadline of each request, seconds.
        where: the table as the user calls it, for messages.
        channels: how many connections requests are spread over; each carries at most 100 at a time.

    Attributes:
        name: the table as the service calls it.

    Raises:
        StoreUnavailable: this process was forked from one that had a connection open, so that gRPC does not work here.
    """

    def __init__(
        self,
        project: str,
        instance: str,
        table: str,
        app_profile: str | None,
        timeout_s: float,
        where: str,
        channels: int = 1,
    ) -> None:
        self.name = f"projects/{project}/instances/{instance}/tables/{table}"
        self.app_profile = app_profile or ""
        self.where = where
        self._n_channels = channels
        self.timeout_s = timeout_s
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._running: set[Future[Any]] = set()
        self._channel_here: grpc.Channel | None = None
        self._mutate_here: Any = None
        if any(other._pid != self._pid for other in list(_open)):
            raise self._forked()
        _open.add(self)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"murmur {self.where}", daemon=True)
        self._thread.start()
        try:
            self.run(self._connect())
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> None:
        # The official client's channel, with its credentials, but none of its methods: these cost several times as much
        # as the request, do not retry writes either, and cannot read a row beyond 4 MB from an emulator.
        emulator = os.environ.get("BIGTABLE_EMULATOR_HOST")
        self._channel = _Channels(
            [
                grpc.aio.insecure_channel(emulator, options=_OPTIONS)
                if emulator
                else BigtableGrpcAsyncIOTransport.create_channel(options=_OPTIONS)
                for _ in range(self._n_channels)
            ]
        )
        route = f"table_name={self.name}&app_profile_id={self.app_profile}"
        self._metadata = _Metadata(("x-goog-request-params", route))
        self._here_metadata = (("x-goog-request-params", route), ("bigtable-features", _FEATURES))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the loop and wait; the client's errors come out as ours.

        Raises:
            StoreUnavailable: the table cannot be used: it is missing, or not ours to use. Or the connection is closed,
                was closed meanwhile, or was opened by the process that this one was forked from.
            PermanentError: the request is one that can never succeed.
            TransientError: any other failure of the server or the network.
        """
        running: Future[T] | None = None
        refusal = self._forked() if self._pid != os.getpid() else None
        if refusal is None:
            # Whatever is begun under the lock before closing begins is cancelled by it, and nothing is begun after it.
            with self._lock:
                if not self._closed:
                    running = asyncio.run_coroutine_threadsafe(work, self._loop)
                    self._running.add(running)
        if running is None:
            work.close()
            raise refusal or StoreUnavailable(f"{self.where}: the store is closed; open it again")
        try:
            return running.result()
        except Exception as err:
            error = self.translated(err)
            if self._closed and not isinstance(error, MurmurError):
                error = StoreUnavailable(
                    f"{self.where}: the store was closed while it was in use; some of this may have been written: "
                    "open it again and repeat it, with the same event ids"
                )
            # Whoever keeps the error would keep the request, and with it gRPC's threads beyond the end of the channel.
            traceback.clear_frames(err.__traceback__)
            raise error from err
        except BaseException:  # an interruption of this thread must not leave the work going on
            running.cancel()
            raise
        finally:
            self._running.discard(running)

    def require_open(self) -> None:
        """Check that it can be used by this thread.

        Raises:
            StoreUnavailable: as `run`.
        """
        if self._pid != os.getpid():
            raise self._forked()
        if self._closed:
            raise StoreUnavailable(f"{self.where}: the store is closed; open it again")

    def mutate_here(self, request: bytes, n: int) -> tuple[dict[int, Exception], Hint | None]:
        """As `mutate`, in the thread that calls, which must not be the loop's.

        Returns:
            The errors, and how fast the server asks to be written to, if it does.

        Raises:
            grpc.RpcError, TransientError: it was not answered.
        """
        failed: dict[int, Exception] = {}
        hint = None
        answered = 0
        usual = wire.all_written(n) if n <= _FEW else b""
        for data in self._here()(request, timeout=self.timeout_s, metadata=self._here_metadata):
            if data == usual:  # to look at each entry takes an eighth of such a request
                answered += n
                continue
            answer = wire.BulkResponse.FromString(data)
            answered += self._failures(answer, failed)
            if answer.HasField("rate_limit_info"):
                info = answer.rate_limit_info
                hint = Hint(info.factor, info.period.seconds + info.period.nanos / 1e9)
        self._require_all(answered, n)
        return failed, hint

    def _here(self) -> Any:
        """The method MutateRows, on a channel that works without threads of its own."""
        if self._mutate_here is None:
            with self._lock:
                self.require_open()
                if self._mutate_here is None:
                    options = (*_OPTIONS, (ChannelOptions.SingleThreadedUnaryStream, 1))
                    emulator = os.environ.get("BIGTABLE_EMULATOR_HOST")
                    if emulator:
                        self._channel_here = grpc.insecure_channel(emulator, options=options)
                    else:
                        self._channel_here = BigtableGrpcTransport.create_channel(options=options)
                    self._mutate_here = self._channel_here.unary_stream(wire.MUTATE_ROWS)
        return self._mutate_here

    def close(self) -> None:
        """Close the channel, end the thread; whatever is under way ends with an error. A second call does nothing.

        In a child of a fork it does nothing at all: what was open before is the parent's.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._channel_here is not None:
            self._channel_here.close()
            self._channel_here = self._mutate_here = None
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for running in list(self._running):
            running.cancel()  # it went on although it was cancelled
        self._loop.close()
        # With the last channel in a process gRPC ends its threads; only then may the process be forked.
        vars(self).pop("_channel", None)
        gc.collect()  # requests that have failed are in cycles
        _open.discard(self)

    async def _shut_down(self) -> None:
        deadline = self._loop.time() + _CLOSE_S
        while (others := asyncio.all_tasks() - {asyncio.current_task()}) and self._loop.time() < deadline:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=_ASK_AGAIN_S)
        if hasattr(self, "_channel"):
            await self._channel.close()

    def _forked(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self.where}: cannot be used in this process, which was forked from one that had Bigtable open: gRPC "
            "does not work after that. Close all Bigtable stores before the fork and open them in the children, or "
            "start processes with spawn or forkserver (multiprocessing), or without --preload (gunicorn)"
        )

    def commit(self, request: bytes, burst: Burst | None = None) -> Call:
        """Send a request from `wire.commit`, at once; the call tells whether the predicate was met.

        Args:
            request: what to write.
            burst: whose deadline it has; None: one of its own.
        """
        if burst is None:
            call: Call = next(self._channel.check_and_mutate)(request, timeout=self.timeout_s, metadata=self._metadata)
            return call
        call = burst.send(request, metadata=self._metadata)
        burst.add(call)
        return call

    def burst(self) -> Burst:
        """For commits that are sent together."""
        return Burst(self.timeout_s, next(self._channel.check_and_mutate))

    def overdue(self) -> Exception:
        """That a deadline has passed, as it is said of a request with one of its own."""
        return self._error(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {self.timeout_s:g} s")

    async def mutate(self, request: bytes, n: int) -> dict[int, Exception]:
        """Send a request of ``n`` entries from `wire.bulk`; the errors of those that failed, by their positions."""
        failed: dict[int, Exception] = {}
        answered = 0
        async for answer in next(self._channel.mutate)(request, timeout=self.timeout_s, metadata=self._metadata):
            answered += self._failures(answer, failed)
        self._require_all(answered, n)
        return failed

    def _failures(self, answer: Any, failed: dict[int, Exception]) -> int:
        """How many entries an answer is about; the errors of those that failed go to ``failed``."""
        for entry in answer.entries:
            if entry.status.code:
                code = next(code for code in grpc.StatusCode if code.value[0] == entry.status.code)
                failed[entry.index] = self._error(code, entry.status.message)
        return len(answer.entries)

    def _require_all(self, answered: int, n: int) -> None:
        if answered < n:
            raise TransientError(f"{self.where}: {answered} of {n} writes were answered")

    async def read(self, request: Any, *, persist: bool = True) -> list[Row]:
        """Send a `wire.Read`; rows in the order of their keys.

        Args:
            request: which rows.
            persist: try again within the deadline, where nobody else would.
        """
        deadline = time.monotonic() + self.timeout_s
        wait_s = 0.05
        while True:
            assembler = RowAssembler()
            try:
                left_s = max(deadline - time.monotonic(), 0.0)
                async for answer in self.answers(request, left_s):
                    assembler.take(answer.chunks)
                return assembler.rows
            except grpc.aio.AioRpcError as err:
                if not persist or isinstance(self.translated(err), PermanentError):
                    raise
                if time.monotonic() + wait_s > deadline:
                    raise
            await asyncio.sleep(wait_s)
            wait_s *= 2

    async def read_some(self, request: Any, n_bytes: int) -> tuple[list[Row], list[Cell], bool]:
        """Send a `wire.Read`, and stop reading once it has brought so much, and a cell at least.

        Returns:
            Rows that are whole, the first cells of the one after them, and whether there is more.
        """
        assembler = RowAssembler()
        size = 0
        answers = self.answers(request, self.timeout_s)
        async for answer in answers:
            assembler.take(answer.chunks)
            size += answer.ByteSize()
            if size >= n_bytes and (assembler.rows or assembler.begun):
                answers.cancel()  # type: ignore[attr-defined]
                return assembler.rows, assembler.begun, True
        return assembler.rows, [], False

    def answers(self, request: Any, timeout_s: float) -> AsyncIterator[Any]:
        """Send a `wire.Read`; each answer as it comes, with some chunks of rows."""
        send = next(self._channel.read_rows)
        answers: AsyncIterator[Any] = send(request, timeout=timeout_s, metadata=self._metadata)
        return answers

    async def sample_row_keys(self) -> list[tuple[bytes, int]]:
        """Keys that divide the table into pieces of like size, in order, each with how many bytes come before it."""
        request = wire.Sample(table_name=self.name, app_profile_id=self.app_profile)
        answers = self._channel.sample(request, timeout=self.timeout_s, metadata=self._metadata)
        return [(answer.row_key, answer.offset_bytes) async for answer in answers]

    def translated(self, err: Exception) -> Exception:
        """An error of the client as one of ours; another one as it is."""
        if isinstance(err, GoogleAuthError):
            return StoreUnavailable(f"{self.where}: {err}")
        code = status_of(err)
        if code is None and not isinstance(err, (api_errors.GoogleAPIError, OSError)):
            return err
        text = err.details() if isinstance(err, grpc.aio.AioRpcError) else str(err)
        return self._error(code, text or type(err).__name__)

    def _error(self, code: grpc.StatusCode | None, text: str) -> Exception:
        message = f"{self.where}: {getattr(code, 'name', 'error')}: {text}"
        advice = f"; see: murmur check '{self.where}'"
        vague = code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
        if any(clear in text.lower() for clear in _FAMILY_TEXTS) and (code in _UNUSABLE or code in _REFUSED or vague):
            return StoreUnavailable(f"{message}; a column family is missing, or is not of the type it must be{advice}")
        if code in _UNUSABLE:
            return StoreUnavailable(message + ("" if code is grpc.StatusCode.NOT_FOUND else advice))
        if code is grpc.StatusCode.FAILED_PRECONDITION and _NO_TRANSACTIONS in text:
            return StoreUnavailable(
                f"{message} ({self.app_profile or 'default'}): a commit takes one that routes to a single cluster and "
                f"allows single-row transactions; name it in the URI, ?app_profile=NAME{advice}"
            )
        if code is grpc.StatusCode.FAILED_PRECONDITION and _CREATING in text:
            return TransientError(message)
        return PermanentError(message) if code in _REFUSED else TransientError(message)


def status_of(err: BaseException | None) -> grpc.StatusCode | None:
    """What gRPC said, whichever layer of the client raised it."""
    if isinstance(err, (grpc.aio.AioRpcError, grpc.Call)):
        code: grpc.StatusCode | None = err.code()
        return code
    return getattr(err, "grpc_status_code", None)


def is_creating(err: BaseException | None) -> bool:
    """Tell whether the service says that the table is still being created."""
    return status_of(err) is grpc.StatusCode.FAILED_PRECONDITION and _CREATING in str(err)


def is_unavailable(err: BaseException | None) -> bool:
    """Tell whether there was no connection, or it broke. A server that has too much to do may say the same, so this is
    no sign that it answers, nor that it does not."""
    return status_of(err) is grpc.StatusCode.UNAVAILABLE


def is_refusal(err: Exception) -> bool:
    """Tell whether an error from `Connection.translated` blames the request itself."""
    return type(err) is PermanentError
