"""The channels to a table, on an event loop of their own."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import threading
import time
import traceback
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import grpc
from google.api_core import exceptions as api_errors
from google.auth.exceptions import GoogleAuthError
from google.cloud.bigtable_v2.services.bigtable.transports import BigtableGrpcAsyncIOTransport, BigtableGrpcTransport
from grpc.experimental import ChannelOptions

from murmur_beam.errors import MurmurError, PermanentError, StoreUnavailable, TransientError
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.channels import OPTIONS, Burst, Call, Channels
from murmur_beam.state.bigtable.grpc_errors import error_of, status_of
from murmur_beam.state.bigtable.read_rows import Cell, Row, RowAssembler

T = TypeVar("T")

# "This client heeds rate_limit_info", as FeatureFlags of feature_flags.proto: mutate_rows_rate_limit and _limit2.
_FEATURES = base64.urlsafe_b64encode(b"\x18\x01\x28\x01").decode("ascii")

# For this long closing cancels tasks again that have not ended yet.
_CLOSE_S = 10.0
_ASK_AGAIN_S = 0.1

# Up to this many entries of a bulk write, the usual answer is remembered, to compare the answer with.
_FEW = 128

# The open connections; in a child of a fork those of its parent, too: freeing a channel there would block forever.
_open: set[Connection] = set()


class Hint(NamedTuple):
    """The rate of writes that the server asks for: a factor on the present rate, and for how many seconds."""

    factor: float
    period_s: float


class Connection:
    """A table's channels. `run` and `close` are for any thread; the coroutines are for `run`.

    Args:
        project, instance, table, app_profile: the table; None is the instance's default profile.
        timeout_s: deadline of each request, seconds.
        where: the table as the user names it, for messages.
        channels: number of connections that requests are spread over; each carries at most 100 at a time.

    Attributes:
        name: the table as the service names it.

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
        # The official client's channel, with its credentials, but without its methods: these cost several times as much
        # as the request, do not retry writes either, and cannot read a row of more than 4 MB from an emulator.
        emulator = os.environ.get("BIGTABLE_EMULATOR_HOST")
        self._channel = Channels(
            [
                grpc.aio.insecure_channel(emulator, options=OPTIONS)
                if emulator
                else BigtableGrpcAsyncIOTransport.create_channel(options=OPTIONS)
                for _ in range(self._n_channels)
            ]
        )
        route = f"table_name={self.name}&app_profile_id={self.app_profile}"
        self._metadata = grpc.aio.Metadata(("x-goog-request-params", route))
        self._here_metadata = (("x-goog-request-params", route), ("bigtable-features", _FEATURES))

    @property
    def inherited(self) -> bool:
        """Whether this process was forked from the one that has opened the connection."""
        return self._pid != os.getpid()

    def run(self, work: Coroutine[Any, Any, T], *, folds: bool = False) -> T:
        """Run a coroutine on the loop and wait for it; the client's errors are translated.

        Args:
            work: the coroutine.
            folds: as in `translated`.

        Raises:
            StoreUnavailable: the table is missing, or access is denied. Or the connection is closed, was closed
                meanwhile, or was opened by the process that this one was forked from.
            PermanentError: the request can never succeed.
            TransientError: any other failure of the server or the network.
        """
        running: Future[T] | None = None
        refusal = self._forked() if self.inherited else None
        if refusal is None:
            # Closing takes the same lock: it cancels what was begun before, and nothing begins afterwards.
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
            error = self.translated(err, folds=folds)
            if self._closed and not isinstance(error, MurmurError):
                error = StoreUnavailable(
                    f"{self.where}: the store was closed while it was in use; some of this may have been written: "
                    "open it again and repeat it, with the same event ids"
                )
            # An error that is kept would keep the request, and with it gRPC's threads beyond the end of the channel.
            traceback.clear_frames(err.__traceback__)
            raise error from err
        except BaseException:  # an interruption of this thread must not leave the work running
            running.cancel()
            raise
        finally:
            self._running.discard(running)

    def require_open(self) -> None:
        """Check that this process may use the connection.

        Raises:
            StoreUnavailable: as `run`.
        """
        if self.inherited:
            raise self._forked()
        if self._closed:
            raise StoreUnavailable(f"{self.where}: the store is closed; open it again")

    def mutate_here(self, request: bytes, n: int) -> tuple[dict[int, Exception], Hint | None]:
        """As `mutate`, in the calling thread, which must not be the loop's.

        Returns:
            The errors, and the rate that the server asks for, if it does.

        Raises:
            grpc.RpcError, TransientError: there was no complete answer.
        """
        failed: dict[int, Exception] = {}
        hint = None
        answered = 0
        usual = wire.all_written(n) if n <= _FEW else b""
        for data in self._here()(request, timeout=self.timeout_s, metadata=self._here_metadata):
            if data == usual:  # comparing is faster: parsing each entry takes an eighth of such a request
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
        """The method MutateRows, on a channel without threads of its own."""
        if self._mutate_here is None:
            with self._lock:
                self.require_open()
                if self._mutate_here is None:
                    options = (*OPTIONS, (ChannelOptions.SingleThreadedUnaryStream, 1))
                    emulator = os.environ.get("BIGTABLE_EMULATOR_HOST")
                    if emulator:
                        self._channel_here = grpc.insecure_channel(emulator, options=options)
                    else:
                        self._channel_here = BigtableGrpcTransport.create_channel(options=options)
                    self._mutate_here = self._channel_here.unary_stream(wire.MUTATE_ROWS)
        return self._mutate_here

    def close(self) -> None:
        """Close the channel and end the thread; work under way ends with an error. A second call does nothing.

        In a child of a fork it does nothing: the connection is the parent's.
        """
        if self.inherited:
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
            running.cancel()  # it did not end when it was cancelled
        self._loop.close()
        # With the last channel in a process gRPC ends its threads; only then may the process be forked.
        vars(self).pop("_channel", None)
        gc.collect()  # failed requests are part of reference cycles
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
        """Send a request from `wire.commit` at once; awaiting the call returns whether the predicate was met.

        Args:
            request: the commit.
            burst: the burst whose deadline it shares; None: it has a deadline of its own.
        """
        if burst is None:
            call: Call = next(self._channel.check_and_mutate)(request, timeout=self.timeout_s, metadata=self._metadata)
            return call
        call = burst.send(request, metadata=self._metadata)
        burst.add(call)
        return call

    def burst(self) -> Burst:
        """A burst of commits."""
        return Burst(self.timeout_s, next(self._channel.check_and_mutate))

    def overdue(self) -> Exception:
        """The DEADLINE_EXCEEDED error for a request that was cancelled with its burst."""
        return self._error(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {self.timeout_s:g} s")

    async def mutate(self, request: bytes, n: int) -> dict[int, Exception]:
        """Send a request of ``n`` entries from `wire.bulk`; the errors of entries that failed, by position."""
        failed: dict[int, Exception] = {}
        answered = 0
        async for answer in next(self._channel.mutate)(request, timeout=self.timeout_s, metadata=self._metadata):
            answered += self._failures(answer, failed)
        self._require_all(answered, n)
        return failed

    def _failures(self, answer: Any, failed: dict[int, Exception]) -> int:
        """Number of entries in an answer; the errors of those that failed are put into ``failed``."""
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
            persist: retry within the deadline, for callers that do not retry themselves.
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
        """Send a `wire.Read`, and stop reading after ``n_bytes`` and at least one cell.

        Returns:
            Complete rows, the first cells of the row after them, and whether there is more.
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
        """Send a `wire.Read`; yields each answer, which has some chunks of rows."""
        send = next(self._channel.read_rows)
        answers: AsyncIterator[Any] = send(request, timeout=timeout_s, metadata=self._metadata)
        return answers

    async def sample_row_keys(self) -> list[tuple[bytes, int]]:
        """Keys that divide the table into pieces of similar size, in order, each with the number of bytes before it."""
        request = wire.Sample(table_name=self.name, app_profile_id=self.app_profile)
        answers = self._channel.sample(request, timeout=self.timeout_s, metadata=self._metadata)
        return [(answer.row_key, answer.offset_bytes) async for answer in answers]

    def translated(self, err: Exception, *, folds: bool = False) -> Exception:
        """An error of the client, translated; any other error as it is.

        Args:
            err: the error.
            folds: whether the request was made for a fold or the record, and not for a commit.
        """
        if isinstance(err, GoogleAuthError):
            return StoreUnavailable(f"{self.where}: {err}")
        code = status_of(err)
        if code is None and not isinstance(err, (api_errors.GoogleAPIError, OSError)):
            return err
        text = err.details() if isinstance(err, grpc.aio.AioRpcError) else str(err)
        return self._error(code, text or type(err).__name__, folds=folds)

    def _error(self, code: grpc.StatusCode | None, text: str, *, folds: bool = False) -> Exception:
        return error_of(code, text, self.where, self.app_profile, folds=folds)
