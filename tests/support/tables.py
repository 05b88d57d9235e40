"""Tables of the Bigtable emulator, made and read by hand, and a server before it that answers in its place."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import grpc
from google.cloud.bigtable_admin_v2 import BigtableTableAdminClient
from google.cloud.bigtable_admin_v2.services.bigtable_table_admin.transports import BigtableTableAdminGrpcTransport
from google.cloud.bigtable_admin_v2.types import (
    ColumnFamily,
    GcRule,
    GetTableRequest,
    ModifyColumnFamiliesRequest,
    Type,
)
from google.cloud.bigtable_admin_v2.types import Table as TableMessage

from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, tables
from murmur_beam.state.bigtable.meta import Meta, read_meta
from tests.support import emulators

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
DAILY, HOURLY, ALL_TIME = Schema("sum", DAY), Schema("sum", HOUR), Schema("sum", None)
NINETY_DAYS = tables.table_meta(DAILY, 90 * DAY)
KEPT_90 = 91 * DAY + HOUR  # the bucket's own day, the retention, the hour of grace
AGE, VERSIONS = "max_age", "max_num_versions"

_names = itertools.count()


def new_where(**arguments: Any) -> BigtableSpec:
    """A table that does not exist yet."""
    return BigtableSpec(emulators.PROJECT, emulators.INSTANCE, f"made-{os.getpid()}-{next(_names)}", **arguments)


@contextmanager
def by_hand(where: BigtableSpec) -> Iterator[tuple[BigtableTableAdminClient, str, str]]:
    """Google's admin client, the instance's name, and the table's."""
    instance = f"projects/{where.project}/instances/{where.instance}"
    with grpc.insecure_channel(os.environ["BIGTABLE_EMULATOR_HOST"]) as channel:
        client = BigtableTableAdminClient(transport=BigtableTableAdminGrpcTransport(channel=channel))
        yield client, instance, f"{instance}/tables/{where.table}"


def message(where: BigtableSpec) -> TableMessage:
    """The table as the server has it."""
    with by_hand(where) as (client, _, name):
        return client.get_table(name=name)


def exists(where: BigtableSpec) -> bool:
    """Whether the table exists."""
    with by_hand(where) as (client, instance, name):
        return name in {table.name for table in client.list_tables(parent=instance)}


def make(where: BigtableSpec, **families: ColumnFamily) -> None:
    """Make a table by hand."""
    with by_hand(where) as (client, instance, _):
        client.create_table(parent=instance, table_id=where.table, table=TableMessage(column_families=families))


def modify(where: BigtableSpec, **modification: Any) -> None:
    """Change a family by hand."""
    with by_hand(where) as (client, _, name):
        one = ModifyColumnFamiliesRequest.Modification(**modification)
        client.modify_column_families(name=name, modifications=[one])


def sums() -> ColumnFamily:
    """A family of sums, made by hand."""
    encoding = Type.Int64.Encoding(big_endian_bytes=Type.Int64.Encoding.BigEndianBytes())
    aggregate = Type.Aggregate(input_type=Type(int64_type=Type.Int64(encoding=encoding)), sum=Type.Aggregate.Sum())
    return ColumnFamily(value_type=Type(aggregate_type=aggregate))


def recorded(where: BigtableSpec) -> Meta | None:
    """The recorded purpose of the table."""
    with closing(where.connect()) as connection:
        return connection.run(read_meta(connection))


def limits(rule: GcRule) -> list[tuple[str, Any]]:
    """The limits of a rule that collects a cell as soon as it exceeds one of them."""
    if "union" in rule:
        return [limit for part in rule.union.rules for limit in limits(part)]
    assert "intersection" not in rule
    return [(name, getattr(rule, name)) for name in (AGE, VERSIONS) if name in rule]


def collected(where: BigtableSpec) -> dict[str, list[tuple[str, Any]]]:
    """The limits of each family, as the server returns them."""
    return {name: limits(family.gc_rule) for name, family in message(where).column_families.items()}


def wrong(findings: list[tables.Finding]) -> dict[str, str]:
    """Texts of the faults that `check` found, by subject."""
    return {finding.subject: finding.text for finding in findings if finding.status == tables.WRONG}


def remedies(findings: list[tables.Finding]) -> set[str]:
    """The commands that `check` advises."""
    return {finding.remedy for finding in findings if finding.status == tables.WRONG}


Answer = grpc.StatusCode | tuple[grpc.StatusCode, str] | bytes | None
"""A status, alone or with its text, or a message; None is the emulator's own."""


def replicated(*clusters: str) -> Callable[[bytes], bytes | None]:
    """The answer to GetTable of a table that is on these clusters."""
    table = TableMessage(cluster_states={name: {} for name in clusters})

    def get_table(request: bytes) -> bytes | None:
        wanted = GetTableRequest.deserialize(request).view
        return TableMessage.serialize(table) if wanted == TableMessage.View.REPLICATION_VIEW else None

    return get_table


class Before:
    """A server before the emulator that answers some methods itself, and passes all others on.

    Attributes:
        answers: by a method's name: a status to fail with, the message to answer, or a function that returns either for
            a request; None passes the request on.
    """

    def __init__(self, behind: str) -> None:
        self.answers: dict[str, Answer | Callable[[bytes], Answer]] = {}
        self._channel = grpc.insecure_channel(behind)
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self])
        self.host = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The handler of a call, for gRPC."""
        told = self.answers.get(details.method.rpartition("/")[2])

        def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            (request,) = requests
            answer = told(request) if callable(told) else told
            if isinstance(answer, grpc.StatusCode):
                context.abort(answer, "as the test wants it")
            if isinstance(answer, tuple):
                context.abort(*answer)
            if answer is not None:
                yield answer
                return
            try:
                yield from self._channel.stream_stream(details.method)(iter([request]))
            except grpc.RpcError as err:
                context.abort(err.code(), err.details())

        return grpc.stream_stream_rpc_method_handler(handle)
