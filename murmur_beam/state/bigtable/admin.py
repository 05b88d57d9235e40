"""A client of the admin API for one table: its families with their garbage collection, and app profiles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple

import grpc
from google.api_core import exceptions as api_errors
from google.auth.exceptions import GoogleAuthError
from google.cloud.bigtable_admin_v2 import BigtableInstanceAdminClient, BigtableTableAdminClient
from google.cloud.bigtable_admin_v2.services.bigtable_instance_admin.transports import (
    BigtableInstanceAdminGrpcTransport,
)
from google.cloud.bigtable_admin_v2.services.bigtable_table_admin.transports import BigtableTableAdminGrpcTransport
from google.cloud.bigtable_admin_v2.types import (
    AppProfile,
    ColumnFamily,
    GcRule,
    GetTableRequest,
    ModifyColumnFamiliesRequest,
    Type,
)
from google.cloud.bigtable_admin_v2.types import Table as TableMessage

from murmur_beam.durations import spell_duration
from murmur_beam.errors import ConfigurationError, StoreUnavailable, TransientError
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.grpc_errors import is_creating
from murmur_beam.state.bigtable.spec import BigtableSpec

NO_PROFILES = AppProfile()
"""Returned for an emulator, which has no app profiles."""

_READ_TIMEOUT_S = 30.0
_MAKE_TIMEOUT_S = 300.0
_RELAXED = "Cannot relax"
_DENIED = (api_errors.Forbidden, api_errors.Unauthorized)
_Gc: Any = GcRule  # the only one of these messages without type information


class Rule(NamedTuple):
    """A rule of garbage collection: it takes cells older than ``max_age``, and versions of a cell beyond ``versions``.
    None stands for no limit.
    """

    max_age: timedelta | None = None
    versions: int | None = None

    def __str__(self) -> str:
        taken = []
        if self.max_age is not None:
            taken.append(f"older than {spell_duration(self.max_age)}")
        if self.versions is not None:
            taken.append(f"beyond {self.versions} version{'s' * (self.versions != 1)}")
        return f"cells {' or '.join(taken)}" if taken else "nothing"


class Family(NamedTuple):
    """A family of a table.

    Attributes:
        sums: whether the family is an aggregate of integer sums.
        cells: whether the family has plain cells.
        rule: its garbage collection; None for a rule that `Rule` cannot represent.
        text: description of the rule.
    """

    sums: bool
    cells: bool
    rule: Rule | None
    text: str


class Admin:
    """A client of the admin API for one table. Use it in a ``with`` statement.

    Args:
        where: the table.
        emulator: ``host:port``; None for the host in `BIGTABLE_EMULATOR_HOST`, or else the real service.

    Raises:
        StoreUnavailable: by any method: credentials are missing or lack a permission.
        TransientError: by any method: the service does not answer.
    """

    def __init__(self, where: BigtableSpec, emulator: str | None = None) -> None:
        self._where = where
        self._instance = f"projects/{where.project}/instances/{where.instance}"
        self._name = f"{self._instance}/tables/{where.table}"
        host = emulator or os.environ.get("BIGTABLE_EMULATOR_HOST")
        with self._explained(""):
            if host:
                channel = grpc.insecure_channel(host)
                self._tables = BigtableTableAdminClient(transport=BigtableTableAdminGrpcTransport(channel=channel))
                self._instances = BigtableInstanceAdminClient(
                    transport=BigtableInstanceAdminGrpcTransport(channel=channel)
                )
            else:
                self._tables = BigtableTableAdminClient()
                self._instances = BigtableInstanceAdminClient()

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tables.transport.close()  # type: ignore[no-untyped-call]
        self._instances.transport.close()  # type: ignore[no-untyped-call]

    def families(self) -> dict[str, Family] | None:
        """The table's families; None if the table does not exist."""
        with self._explained("roles/bigtable.user"):
            try:
                table = self._tables.get_table(name=self._name, retry=None, timeout=_READ_TIMEOUT_S)
            except api_errors.NotFound:
                return None
        return {name: _family(family) for name, family in table.column_families.items()}

    def create(self, families: dict[str, Rule]) -> None:
        """Create the table with these families."""
        with self._explained("roles/bigtable.admin"):
            self._tables.create_table(
                parent=self._instance,
                table_id=self._where.table,
                table=TableMessage(column_families={name: _message(name, rule) for name, rule in families.items()}),
                timeout=_MAKE_TIMEOUT_S,
            )

    def clusters(self) -> list[str]:
        """The clusters of the table; empty for an emulator, and for a table that does not exist."""
        view = TableMessage.View.REPLICATION_VIEW
        with self._explained("roles/bigtable.user"):
            try:
                table = self._tables.get_table(
                    request=GetTableRequest(name=self._name, view=view), retry=None, timeout=_READ_TIMEOUT_S
                )
            except api_errors.NotFound:
                return []
        return sorted(table.cluster_states)

    def modify(self, added: dict[str, Rule], changed: dict[str, Rule], *, force: bool = False) -> None:
        """Add families, and change the rules of others, in one request.

        Args:
            added, changed: rules by family.
            force: ignore the service's warnings.

        Raises:
            ConfigurationError: the service warns, and ``force`` is not set; nothing was changed.
        """
        one = ModifyColumnFamiliesRequest.Modification
        modifications = [one(id=name, create=_message(name, rule)) for name, rule in added.items()]
        modifications += [one(id=name, update=ColumnFamily(gc_rule=_gc(rule))) for name, rule in changed.items()]
        if not modifications:
            return
        request = ModifyColumnFamiliesRequest(name=self._name, modifications=modifications, ignore_warnings=force)
        with self._explained("roles/bigtable.admin"):
            try:
                self._tables.modify_column_families(request=request, timeout=_MAKE_TIMEOUT_S)
            except api_errors.FailedPrecondition as err:
                if force or _RELAXED not in err.message:
                    raise
                raise ConfigurationError(
                    "yes",
                    f"is required to keep data for longer on several clusters ({err.message}): each cluster collects "
                    "separately, so for up to a week one may still delete data that another keeps, and readers may see "
                    "either",
                ) from err

    def app_profile(self, name: str | None) -> AppProfile | None:
        """The profile of this name, or the instance's default; None if it does not exist."""
        with self._explained("roles/bigtable.user"):
            try:
                return self._instances.get_app_profile(
                    name=f"{self._instance}/appProfiles/{name or 'default'}",
                    retry=None,
                    timeout=_READ_TIMEOUT_S,
                )
            except api_errors.NotFound:
                return None
            except api_errors.MethodNotImplemented:
                return NO_PROFILES

    @contextmanager
    def _explained(self, role: str) -> Iterator[None]:
        try:
            yield
        except _DENIED as err:
            raise StoreUnavailable(f"{self._where}: {err.message}; this needs a role such as {role}") from err
        except api_errors.AlreadyExists as err:
            raise TransientError(f"{self._where}: another program is creating the table; try again") from err
        except api_errors.FailedPrecondition as err:
            kind = TransientError if is_creating(err) else StoreUnavailable
            raise kind(f"{self._where}: {err}") from err
        except (api_errors.ServerError, api_errors.TooManyRequests, api_errors.RetryError) as err:
            raise TransientError(f"{self._where}: {err.message}") from err
        except (api_errors.GoogleAPICallError, GoogleAuthError) as err:
            raise StoreUnavailable(f"{self._where}: {err}") from err


def _family(message: ColumnFamily) -> Family:
    kind = message.value_type
    aggregate = kind.aggregate_type
    sums = "aggregate_type" in kind and "sum" in aggregate and "int64_type" in aggregate.input_type
    rule = _rule(message.gc_rule)
    text = str(rule) if rule is not None else " ".join(str(message.gc_rule).split())
    return Family(sums, Type.pb(kind).WhichOneof("kind") in (None, "bytes_type"), rule, text)


def _message(name: str, rule: Rule) -> ColumnFamily:
    family = ColumnFamily(gc_rule=_gc(rule))
    if name == wire.AGG:
        encoding = Type.Int64.Encoding(big_endian_bytes=Type.Int64.Encoding.BigEndianBytes())
        integers = Type(int64_type=Type.Int64(encoding=encoding))
        family.value_type = Type(aggregate_type=Type.Aggregate(input_type=integers, sum=Type.Aggregate.Sum()))
    return family


def _gc(rule: Rule) -> GcRule:
    parts: list[GcRule] = [_Gc(**{name: value}) for name, value in _limits(rule) if value is not None]
    if len(parts) > 1:
        parts = [_Gc(union=GcRule.Union(rules=parts))]
    return (parts or [_Gc()])[0]


def _limits(rule: Rule) -> tuple[tuple[str, Any], ...]:
    return ("max_age", rule.max_age), ("max_num_versions", rule.versions)


def _rule(message: GcRule) -> Rule | None:
    """Read a rule that takes cells by age, by versions, or by either; None for any other rule."""
    if "intersection" in message:
        return None
    if "union" not in message:
        return Rule(
            message.max_age if "max_age" in message else None,
            message.max_num_versions if "max_num_versions" in message else None,
        )
    parts = [_rule(part) for part in message.union.rules]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Rule(
        min((part.max_age for part in known if part.max_age is not None), default=None),
        min((part.versions for part in known if part.versions is not None), default=None),
    )
