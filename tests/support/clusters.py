"""Two clusters of one instance, simulated before one emulator; what is written in one arrives late in the other.

Each cluster is a table of the emulator. A request goes to the cluster that its app profile is routed to, and what it
has changed there waits until a test lets it arrive in the other cluster. What arrives are mutations, not cells: sums of
both clusters are added. A cell is as its last write or deletion left it, by the time at which that was made: so a cell
whose deletion has arrived first does not come back. The service documents that the last write of a cell wins. It does
not document in which order the changes of a row arrive, or whether one write arrives all at once: tests try others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import grpc
from google.cloud.bigtable_v2.types import (
    CheckAndMutateRowRequest,
    CheckAndMutateRowResponse,
    MutateRowsRequest,
    MutateRowsResponse,
    ReadRowsRequest,
    SampleRowKeysRequest,
)

from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, tables
from murmur_beam.state.bigtable.admin import Admin
from murmur_beam.state.bigtable.keys import SCHEMA_ROW
from tests.support import emulators
from tests.support.fault_proxy import _SERVICE, CHECK_AND_MUTATE, MUTATE_ROWS, READ_ROWS, FaultProxy, Refusal

A, B = "a", "b"
OTHER = {A: B, B: A}
NO_TRANSACTIONS = Refusal(
    grpc.StatusCode.FAILED_PRECONDITION, "Single-row transactions are not allowed by this app profile"
)

_REQUESTS: dict[str, Any] = {
    CHECK_AND_MUTATE: CheckAndMutateRowRequest.pb(),
    MUTATE_ROWS: MutateRowsRequest.pb(),
    READ_ROWS: ReadRowsRequest.pb(),
    "SampleRowKeys": SampleRowKeysRequest.pb(),
}


def profile_of(method: str, request: bytes) -> str:
    """The app profile of a request; empty for the default."""
    profile: str = _REQUESTS[method].FromString(request).app_profile_id
    return profile


def refusing_transactions(*allowed: str) -> Callable[[str, bytes], Refusal | None]:
    """For `FaultProxy.live`: only these app profiles allow single-row transactions."""

    def live(method: str, request: bytes) -> Refusal | None:
        return NO_TRANSACTIONS if method == CHECK_AND_MUTATE and profile_of(method, request) not in allowed else None

    return live


class Change(NamedTuple):
    """What one write has changed in one row.

    Attributes:
        row: its key.
        mutations: with the time of each, by which the last write of a cell wins.
    """

    row: bytes
    mutations: tuple[tuple[tuple[int, int], Any], ...]

    def split(self, first: Callable[[str], bool]) -> tuple[Change, Change]:
        """The mutations of the kinds that are wanted first, such as ``add_to_cell``, and the others."""
        both = [
            tuple(each for each in self.mutations if first(each[1].WhichOneof("mutation")) is wanted)
            for wanted in (True, False)
        ]
        return self._replace(mutations=both[0]), self._replace(mutations=both[1])

    @property
    def kinds(self) -> set[str]:
        """Kinds of its mutations and their families, such as ``add_to_cell agg``."""
        return {
            f"{kind} {getattr(mutation, kind).family_name}"
            for _, mutation in self.mutations
            for kind in [mutation.WhichOneof("mutation")]
        }


class Clusters(FaultProxy):
    """A proxy that is the whole instance for its clients.

    Args:
        upstream: ``host:port`` of the emulator.

    Attributes:
        routes: the cluster of each app profile, or a function that returns one for each request, given its method.
            ``a`` and ``b`` route to one cluster without transactions, ``folds-a`` and ``folds-b`` with them, and
            ``any`` as the test likes.
        late: changes that have not arrived in a cluster yet, in the order in which they were made.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.routes: dict[str, str | Callable[[str], str]] = {A: A, B: B, "folds-a": A, "folds-b": B, "any": A}
        self.late: dict[str, list[Change]] = {A: [], B: []}
        self.live = refusing_transactions("folds-a", "folds-b")
        self._time = 0
        self._last: dict[tuple[str, bytes, str, bytes], tuple[int, int]] = {}

    def spec(self, app_profile: str = "any", fold_profile: str = "folds-a", **arguments: Any) -> BigtableSpec:
        """The spec of the table."""
        return BigtableSpec(
            emulators.PROJECT,
            emulators.INSTANCE,
            self._table,
            app_profile=app_profile,
            fold_profile=fold_profile,
            **arguments,
        )

    def make_table(self, monoid: str = "sum") -> None:
        """Make a table that is appended to, which is the same in both clusters."""
        self._table = emulators.new_table(self._upstream)
        meta = tables.table_meta(Schema(monoid, None))
        with Admin(BigtableSpec(emulators.PROJECT, _instance(B), self._table), self._upstream) as admin:
            admin.create(tables.gc_rules(meta))
        tables.create(self.spec(), meta, write="append")
        self.arrive(B)

    def arrive(self, cluster: str, some: Sequence[Change] | None = None) -> None:
        """Let late changes arrive in a cluster, in this order.

        Args:
            cluster: where.
            some: of its late changes, or parts of them; None: all.
        """
        for change in list(self.late[cluster]) if some is None else some:
            self._run(self._apply(cluster, change))

    def settle(self) -> None:
        """Let all changes arrive: replication has caught up."""
        for cluster in (A, B):
            self.arrive(cluster)

    def divide(self, cluster: str, change: Change, first: Callable[[str], bool]) -> Change:
        """Divide a late change into two, of which each may arrive first; the one with the wanted kinds."""
        i = self.late[cluster].index(change)
        self.late[cluster][i : i + 1] = both = change.split(first)
        return both[0]

    def cells(self, cluster: str, family: str) -> list[bytes]:
        """Columns of a family in all rows of a cluster."""
        with closing(self.spec(cluster).connect()) as connection:
            read = ReadRowsRequest.pb()(table_name=connection.name, app_profile_id=cluster)
            read.filter.family_name_regex_filter = family
            return [cell.qualifier for row in connection.run(connection.read(read)) for cell in row.cells]

    async def _send_now(self, path: str, request: bytes) -> list[bytes]:
        method = path.removeprefix(_SERVICE)
        if method not in _REQUESTS:
            return await super()._send_now(path, request)
        sent = _REQUESTS[method].FromString(request)
        route = self.routes[sent.app_profile_id]
        cluster = route(method) if callable(route) else route
        sent.table_name = self._name_in(cluster, sent.table_name)
        answers = await super()._send_now(path, sent.SerializeToString())
        for row, mutations in _changed(method, sent, answers):
            self._time += 1
            change = Change(row, tuple(((self._time, i), mutation) for i, mutation in enumerate(mutations)))
            for stamp, mutation in change.mutations:
                if (column := _column(row, mutation)) is not None:
                    self._last[(cluster, row, *column)] = stamp
            self.late[OTHER[cluster]].append(change)
        return answers

    async def _apply(self, cluster: str, change: Change) -> None:
        self.late[cluster].remove(change)
        bulk = MutateRowsRequest.pb()(
            table_name=f"projects/{emulators.PROJECT}/instances/{_instance(cluster)}/tables/{self._table}"
        )
        entry = bulk.entries.add(row_key=change.row)
        for stamp, mutation in change.mutations:
            column = _column(change.row, mutation)
            if column is None:
                if mutation.WhichOneof("mutation") == "add_to_cell":
                    entry.mutations.append(mutation)
            elif stamp > self._last.get((cluster, change.row, *column), (0, 0)):
                self._last[(cluster, change.row, *column)] = stamp
                entry.mutations.append(mutation)
        if entry.mutations:
            for answer in await super()._send_now(_SERVICE + MUTATE_ROWS, bulk.SerializeToString()):
                for one in MutateRowsResponse.pb().FromString(answer).entries:
                    assert not one.status.code, one

    def _name_in(self, cluster: str, name: str) -> str:
        return name.replace(f"/instances/{emulators.INSTANCE}/", f"/instances/{_instance(cluster)}/")


def _instance(cluster: str) -> str:
    """The emulator's instance that stands for a cluster."""
    return emulators.INSTANCE if cluster == A else f"{emulators.INSTANCE}-{cluster}"


def _changed(method: str, sent: Any, answers: Sequence[bytes]) -> Iterator[tuple[bytes, Sequence[Any]]]:
    """The rows that a request has changed, and the mutations of each."""
    if method == CHECK_AND_MUTATE:
        met = CheckAndMutateRowResponse.pb().FromString(answers[0]).predicate_matched
        if mutations := sent.true_mutations if met else sent.false_mutations:
            yield sent.row_key, mutations
    elif method == MUTATE_ROWS:
        for answer in answers:
            for entry in MutateRowsResponse.pb().FromString(answer).entries:
                if not entry.status.code:
                    yield sent.entries[entry.index].row_key, sent.entries[entry.index].mutations


def _column(row: bytes, mutation: Any) -> tuple[str, bytes] | None:
    """The column that a mutation sets or deletes; None of one that adds, since sums are added in any order."""
    kind = mutation.WhichOneof("mutation")
    if kind in ("set_cell", "delete_from_column"):
        changed = getattr(mutation, kind)
        return changed.family_name, changed.column_qualifier
    # Families of the record's row are deleted only to ask whether they exist.
    assert kind == "add_to_cell" or (kind == "delete_from_family" and row == SCHEMA_ROW), kind
    return None
