"""The purpose of a table, and what it requires: garbage collection, families, shards and the way of writing.

The cells of a bucket have the bucket's start as their timestamp, so garbage collection by age takes whole buckets. It
may take a bucket only when the bucket takes no more events; the aggregate and its markers are then deleted together.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import timedelta

from murmur_beam.durations import format_duration, spell_duration
from murmur_beam.errors import ConfigurationError, SchemaMismatch
from murmur_beam.state.base import Schema, bucket_lifetime
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.admin import Family, Rule
from murmur_beam.state.bigtable.meta import APPEND, COMMIT, WAYS, Meta
from murmur_beam.state.bigtable.spec import BigtableSpec

_LONGEST_AGE = timedelta(seconds=315_576_000_000)
"""Longest age of a garbage collection rule: 10,000 years."""


def table_meta(schema: Schema, retention: timedelta | None = None, dedup_retention: timedelta | None = None) -> Meta:
    """Make the purpose of a new table.

    Args:
        schema: of the table's values.
        retention: of the window; None keeps every bucket.
        dedup_retention: how long markers are kept; None: as long as their bucket takes events.

    Raises:
        ConfigurationError: the arguments do not fit together.
    """
    for name, value in (("retention", retention), ("dedup_retention", dedup_retention)):
        if value is not None and value <= timedelta(0):
            raise ConfigurationError(name, "must be positive, such as 90d")
        if value is not None and bucket_lifetime(schema.granularity or timedelta(0), value) > _LONGEST_AGE:
            raise ConfigurationError(name, f"{value} is longer than Bigtable can keep cells; leave it out to keep all")
    if retention is None:
        return Meta(schema, marker_age=dedup_retention, forgets=dedup_retention is not None)
    if schema.granularity is None:
        raise ConfigurationError("retention", "needs a window: counts over all time are kept forever")
    if dedup_retention is not None:
        raise ConfigurationError(
            "dedup_retention",
            "leave it out: with a retention, an event is known until its bucket takes no more events; if it were "
            "forgotten sooner, a redelivery would count again",
        )
    lifetime = bucket_lifetime(schema.granularity, retention)
    return Meta(schema, lifetime, lifetime)


def gc_rules(meta: Meta) -> dict[str, Rule]:
    """Garbage collection rule of each family of a table with this purpose."""
    rules = {
        wire.AGG: Rule(meta.bucket_age),
        wire.DEDUP: Rule(meta.marker_age),
        wire.STATE: Rule(meta.bucket_age, 1),
        wire.META: Rule(None, 1),
        wire.PENDING: Rule(meta.bucket_age),
    }
    if meta.layout.number > 1:
        # This takes nothing, since a column never has two cells. But `check` of release 0.1.0 then finds a rule that it
        # does not expect, and reports it.
        rules[wire.DEDUP] = Rule(meta.marker_age, 1)
    return {name: rules[name] for name in meta.layout.families}


def create_command(where: BigtableSpec, meta: Meta, recorded: Meta | None = None) -> str:
    """The command line that creates a table for this purpose, or updates an existing one.

    Args:
        where: the table.
        meta: the wanted purpose.
        recorded: the recorded purpose; None if nothing is recorded.
    """
    table = replace(where, shards=meta.shards if meta.shards > 1 else None)
    words = ["murmur", "create-table", str(table), "--monoid", meta.schema.monoid]
    if meta.schema.granularity is not None:
        words += ["--window", format_duration(meta.schema.granularity)]
        if meta.bucket_age is not None:
            retention = meta.bucket_age - bucket_lifetime(meta.schema.granularity, timedelta(0))
            words += ["--retention", format_duration(retention)]
    if meta.dedup_retention is not None:
        words += ["--dedup_retention", format_duration(meta.dedup_retention)]
    if meta.write != COMMIT or (recorded is not None and recorded.write != COMMIT):
        words += ["--write", meta.write]
    return shlex.join(words)


def completed(where: BigtableSpec, recorded: Meta | None, meta: Meta, write: str | None) -> Meta:
    """Complete a wanted purpose: with the layout, field and history that the table has recorded, if they fit; with the
    shards of the URI; and with the wanted or else the recorded way of writing.
    """
    if write not in (None, *WAYS):
        raise ConfigurationError("write", f"expected {' or '.join(WAYS)}, got {write!r:.80}")
    if recorded is None:
        write = write or meta.write
        return meta._replace(shards=where.shards or 1, write=write, appended=write == APPEND)
    write = write or recorded.write
    return meta._replace(
        schema=recorded.schema if recorded.schema.accepts(meta.schema) else meta.schema,
        shards=where.shards or recorded.shards,
        layout=recorded.layout,
        write=write,
        appended=recorded.appended or write == APPEND,
        forgets=recorded.layout.number > 1 and (recorded.forgets or meta.forgets),
    )


def require_way(where: BigtableSpec, recorded: Meta | None, wanted: Meta) -> None:
    """Check that the table can be written in the wanted way.

    Args:
        where: the table.
        recorded: the recorded purpose; None if nothing is recorded.
        wanted: the wanted purpose.

    Raises:
        ConfigurationError: the table cannot be written in that way.
    """
    if wanted.write == APPEND:
        if wanted.layout.number == 1:
            raise ConfigurationError(
                "write",
                f"append needs layout 2, and {where} has layout 1; a table keeps its layout: create another table",
            )
        if recorded is not None and (recorded.forgets or recorded.dedup_retention is not None):
            raise ConfigurationError(
                "write",
                f"append does not support {where}, which has or had a dedup retention: an event that is pending for "
                "longer than its id is remembered would count again; create another table",
            )
    if wanted.appended and wanted.dedup_retention is not None:
        written = "is written by appending (--write append)" if wanted.write == APPEND else "was written by appending"
        raise ConfigurationError(
            "dedup_retention",
            f"leave it out: {where} {written}, and an event that is pending for longer than its id is remembered would "
            "count again",
        )


def require_schema(where: BigtableSpec, recorded: Meta, wanted: Meta) -> None:
    """Check that the wanted schema and shards are the recorded ones.

    Raises:
        SchemaMismatch: they differ.
    """
    recorded.schema.require(wanted.schema, str(where))
    if recorded.shards != wanted.shards:
        raise SchemaMismatch(
            f"{where} was created with shards={recorded.shards}, not shards={wanted.shards}, and the number cannot be "
            "changed: leave shards out, or use another table"
        )


def missing_rules(families: dict[str, Family], meta: Meta) -> dict[str, Rule]:
    """Rules of the families that the table lacks."""
    return {name: rule for name, rule in gc_rules(meta).items() if name not in families}


def changed_rules(families: dict[str, Family], meta: Meta) -> dict[str, Rule]:
    """Rules of the families that have another rule."""
    return {name: rule for name, rule in gc_rules(meta).items() if name in families and families[name].rule != rule}


def wrong_type(name: str, family: Family) -> str:
    """What is wrong with the type of a family; empty if it is right."""
    if name == wire.AGG and not family.sums:
        return "is not an aggregate of 64-bit integer sums"
    if name in (wire.DEDUP, wire.STATE, wire.META, wire.PENDING) and not family.cells:
        return "has a value type, but must have plain cells"
    return ""


def type_advice(where: BigtableSpec) -> str:
    """What to do about a family of the wrong type."""
    return (
        "a family's type cannot be changed: create another table, or, if nothing in this one is needed, delete it with "
        f"cbt -project {where.project} -instance {where.instance} deletetable {where.table}"
    )


def purpose_text(meta: Meta) -> str:
    """The purpose, for people."""
    values = "values are kept forever"
    if meta.bucket_age is not None:
        values = f"a bucket is kept for {spell_duration(meta.bucket_age)} from its start"
    events = "events are known forever"
    if meta.marker_age is not None:
        events = f"an event is known for {spell_duration(meta.marker_age)}"
    shards = f"; {meta.shards} shards" if meta.shards > 1 else ""
    written = "by appending" if meta.write == APPEND else "by commits"
    return f"{meta.schema}; {values}, {events}{shards}; layout {meta.layout.number}, written {written}"
