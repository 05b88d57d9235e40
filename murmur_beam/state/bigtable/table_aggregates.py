"""Adds an aggregate to a table of several while pipelines write to it.

Nothing but the table's record changes. Programs that know the aggregate count it from then on; those that do not go on
without it, and leave its cells alone.
"""

from __future__ import annotations

from murmur_beam.errors import ConfigurationError, SchemaMismatch, StoreUnavailable, TransientError
from murmur_beam.model import rfc3339
from murmur_beam.monoids import recorded
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.struct_name import Part, parts_of, struct_name
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.meta import APPEND, read_meta, rename_monoid
from murmur_beam.state.bigtable.spec import BigtableSpec
from murmur_beam.state.bigtable.table_state import data


def add_aggregate(where: BigtableSpec, name: str, monoid: Monoid[object], *, dry_run: bool = False) -> str | None:
    """Record a further aggregate; None if the table has it already.

    Args:
        where: the table.
        name, monoid: of the aggregate.
        dry_run: only check.

    Returns:
        The time from which on it counts, in RFC 3339.

    Raises:
        ConfigurationError: the table cannot have it.
        StoreUnavailable: the table does not exist, or its purpose is not recorded.
        TransientError: the service does not answer, or another program changes the record.
    """
    with data(where) as connection:
        return connection.run(_add(where, connection, name, monoid, dry_run))


def _keeps_no_markers(parts: dict[str, Part]) -> bool:
    """Whether programs of the old definition may write events without markers; monoids of users are not known here."""
    shipped = [recorded(part.monoid) for part in parts.values()]
    return all(monoid is None or monoid.idempotent for monoid in shipped)


async def _add(
    where: BigtableSpec, connection: Connection, name: str, monoid: Monoid[object], dry_run: bool
) -> str | None:
    meta = await read_meta(connection)
    if meta is None:
        raise StoreUnavailable(f"{where}: its purpose is not recorded; make the table with murmur create-table")
    parts = parts_of(meta.schema.monoid)
    if parts is None:
        raise ConfigurationError(
            "add",
            f"{where} holds one aggregate, {meta.schema.monoid!r}; only a table that was made with --aggregate "
            "takes further ones: make another table",
        )
    if name in parts:
        if parts[name].monoid == monoid.name:
            return None
        raise ConfigurationError("add", f"{where} has {name} already, as {parts[name].monoid}; choose another name")
    if meta.write == APPEND and not monoid.commutative:
        raise ConfigurationError(
            "add", f"{monoid.name!r} depends on the order of events, which a table that is appended to does not keep"
        )
    if not monoid.idempotent and _keeps_no_markers(parts):
        raise ConfigurationError(
            "add",
            f"{monoid.name!r} needs markers of events, and {where} keeps none, since a redelivery makes no difference "
            f"to {', '.join(parts)}; make another table",
        )
    since = rfc3339(int(where.clock.now()) * 1_000_000).replace(".000000Z", "Z")
    if dry_run:
        return since
    monoids = {part: known.monoid for part, known in parts.items()} | {name: monoid.name}
    later = {part: known.since for part, known in parts.items() if known.since is not None} | {name: since}
    if not await rename_monoid(connection, meta, struct_name(monoids, later)):
        raise TransientError(f"{where}: another program is changing the table's record; run this again")
    if (now := await read_meta(connection)) is None or name not in (parts_of(now.schema.monoid) or {}):
        raise SchemaMismatch(f"{where}: its record was changed meanwhile; run murmur check")
    return since
