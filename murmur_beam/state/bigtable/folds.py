"""Folds as a store makes them: with the app profile of folds, over a connection of its own if that is another profile.

Then the cache of rows is its own, too: whatever is remembered of a row was read with the profile that commits to it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, NamedTuple, TypeVar

from murmur_beam.state.bigtable.codec import RowCodec
from murmur_beam.state.bigtable.committer import RowCommitter
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.dispatcher import Dispatcher
from murmur_beam.state.bigtable.folder import Folder
from murmur_beam.state.bigtable.grpc_errors import lacks_transactions
from murmur_beam.state.bigtable.refusals import commit_nothing
from murmur_beam.state.bigtable.spec import BigtableSpec

T = TypeVar("T")
V = TypeVar("V")


class _Parts(NamedTuple):
    """What a `Folder` needs."""

    connection: Connection
    dispatcher: Dispatcher
    committer: RowCommitter[Any]


class Folds(Generic[V]):
    """Runs folds of a store, and changes of its table's record. Its methods are for any thread.

    Args:
        spec: which table, and the app profile of folds.
        connection, dispatcher, codec, committer: of the store.
    """

    def __init__(
        self,
        spec: BigtableSpec,
        connection: Connection,
        dispatcher: Dispatcher,
        codec: RowCodec[V],
        committer: RowCommitter[V],
    ) -> None:
        self._spec = spec
        self._connection = connection
        self._codec = codec
        self._lock = threading.Lock()
        self._shares = spec.profile_of_folds == spec.app_profile
        self._parts = _Parts(connection, dispatcher, committer) if self._shares else None

    def run(self, work: Callable[[Folder[V]], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine of a folder and wait for it; see `Connection.run`."""
        connection, dispatcher, committer = self._opened()
        folder = Folder(self._spec, connection, dispatcher, self._codec, committer)
        return connection.run(work(folder), folds=True)

    async def change_record(self, work: Callable[[Connection], Coroutine[Any, Any, T]], *, appends: bool) -> T:
        """Run a coroutine that writes the table's record on a condition; to be awaited on the store's own loop.

        Args:
            work: makes the coroutine.
            appends: whether the table is appended to, so that only folds need transactions.

        Raises:
            StoreUnavailable: the app profile of folds does not take it.
            Exception: another error of the client, or of this library.
        """
        if not self._shares:
            return await asyncio.to_thread(self._run_apart, work)
        try:
            return await work(self._connection)
        except Exception as err:
            if appends and lacks_transactions(err):
                raise self._connection.translated(err, folds=True) from err
            raise

    def check(self) -> None:
        """Ask for everything that the commit of a fold needs, without writing.

        Raises:
            PermanentError, TransientError: see `Connection.run`.
        """
        connection = self._opened().connection
        connection.run(commit_nothing(connection), folds=True)

    def close(self) -> None:
        """Close the connection of folds, if it is another one; the store's own must be closed before."""
        if self._shares or self._connection.inherited:  # in a child another thread may hold the lock forever
            return
        with self._lock:
            if self._parts is not None:
                self._parts.connection.close()

    def _run_apart(self, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        connection = self._opened().connection
        return connection.run(work(connection), folds=True)

    def _opened(self) -> _Parts:
        if self._shares:
            assert self._parts is not None
            return self._parts
        self._connection.require_open()  # before the lock, which in a child another thread may hold forever
        with self._lock:
            if self._parts is None:
                self._connection.require_open()
                connection, dispatcher = self._spec.connect(folds=True), Dispatcher(self._spec)
                self._parts = _Parts(
                    connection, dispatcher, RowCommitter(self._spec, connection, dispatcher, self._codec)
                )
            return self._parts
