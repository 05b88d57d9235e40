"""Checks a table, its app profiles and the caller's access to all of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from murmur_beam.errors import PermanentError
from murmur_beam.sizes import size_text
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.admin import NO_PROFILES, Admin
from murmur_beam.state.bigtable.connection import Connection
from murmur_beam.state.bigtable.meta import APPEND, Meta
from murmur_beam.state.bigtable.refusals import append_nothing, commit_nothing
from murmur_beam.state.bigtable.sizes import LOOK_S, WARN_ROW_BYTES, Sizes, look_at_sizes
from murmur_beam.state.bigtable.spec import BigtableSpec
from murmur_beam.state.bigtable.table_purpose import (
    changed_rules,
    completed,
    create_command,
    gc_rules,
    purpose_text,
    require_way,
    table_meta,
    type_advice,
    wrong_type,
)
from murmur_beam.state.bigtable.table_state import TableState, clusters_text, data, look

_LAST_S = 253_402_300_799.0
"""The last second of the year 9999."""

OK, WRONG, WARNING, NOT_CHECKED = "ok", "wrong", "warning", "not checked"


class Finding(NamedTuple):
    """One result of `check`.

    Attributes:
        subject: the part that was checked.
        status: ``ok``, ``wrong``, ``warning`` or ``not checked``.
        text: the fault, or the state of the part.
        remedy: a command that repairs the fault; empty if none does.
    """

    subject: str
    status: str
    text: str = ""
    remedy: str = ""


def check(
    where: BigtableSpec,
    monoid: str | None = None,
    granularity: timedelta | None = None,
    retention: timedelta | None = None,
    dedup_retention: timedelta | None = None,
    write: str | None = None,
) -> list[Finding]:
    """Check a table, its app profiles, and the access to all of them; nothing is written.

    Args:
        where: the table.
        monoid, granularity, retention, dedup_retention, write: the wanted purpose; each None for the recorded value.

    Raises:
        ConfigurationError: the arguments do not fit together, or do not fit the record.
        TransientError: the service does not answer.
    """
    with Admin(where) as admin:
        found, findings = TableState(None, None), []
        try:
            found = look(where, admin)
        except PermanentError as err:
            findings.append(Finding("table", WRONG, str(err)))
        recorded = found.meta or Meta(Schema("sum", None))
        schema = recorded.schema if monoid is None else Schema(monoid, recorded.schema.granularity)
        schema = schema._replace(granularity=granularity or schema.granularity)
        if retention is None and dedup_retention is None:
            wanted = recorded._replace(schema=schema)
        else:
            wanted = table_meta(schema, retention, dedup_retention)
        wanted = completed(where, found.meta, wanted, write)
        appends = wanted.write == APPEND
        if not findings:
            require_way(where, found.meta, wanted)
            findings += _check_table(where, found, wanted, has_purpose=monoid is not None or granularity is not None)
            if found.families is not None and len(clusters := admin.clusters()) > 1:
                findings.append(Finding("clusters", WARNING, clusters_text(clusters, appends=appends)))
            if found.families is not None and wire.META in found.families:
                findings += _check_access(where, appends=appends)
                findings += _check_sizes(where, recorded)
        return [*findings, *_check_profiles(where, admin, appends=appends)]


def _check_table(where: BigtableSpec, found: TableState, wanted: Meta, has_purpose: bool) -> Iterator[Finding]:
    remedy = create_command(where, wanted, found.meta)
    if found.families is None:
        if not has_purpose:
            # Only the pipeline knows the purpose; it would refuse a table for another one.
            remedy = f"{create_command(where, wanted._replace(schema=Schema('MONOID', None)))} [--window WINDOW] ..."
        yield Finding("table", WRONG, "is missing", remedy)
        return
    yield Finding("table", OK)
    if found.meta is None:
        yield Finding("purpose", WRONG, "is not recorded, so pipelines cannot see whether the table fits", remedy)
    elif (found.meta.schema, found.meta.shards) != (wanted.schema, wanted.shards):
        text = f"recorded: {purpose_text(found.meta)}; wanted: {purpose_text(wanted)}; use another table"
        yield Finding("purpose", WRONG, text)
        return
    elif found.meta != wanted:
        yield Finding("purpose", WRONG, f"recorded: {purpose_text(found.meta)}", remedy)
    else:
        yield Finding("purpose", OK, purpose_text(found.meta))
    changed = changed_rules(found.families, wanted)
    for name, rule in gc_rules(wanted).items():
        subject = f"family {name}"
        family = found.families.get(name)
        if family is None:
            yield Finding(subject, WRONG, "is missing", remedy)
        elif problem := wrong_type(name, family):
            yield Finding(subject, WRONG, f"{problem}; {type_advice(where)}")
        elif name in changed:
            text = f"garbage collection takes {family.text}; it should take {rule}"
            yield Finding(subject, WRONG, text, remedy)
        else:
            yield Finding(subject, OK, f"garbage collection takes {rule}")


def _check_access(where: BigtableSpec, *, appends: bool) -> Iterator[Finding]:
    yield _asked("writing", where, append_nothing if appends else commit_nothing)
    if appends or where.fold_profile is not None:
        yield _asked("folding", where, commit_nothing, folds=True)


def _asked(subject: str, where: BigtableSpec, ask: Callable[[Connection], Any], *, folds: bool = False) -> Finding:
    try:
        with data(where, folds=folds) as connection:
            connection.run(ask(connection), folds=folds)
    except PermanentError as err:
        return Finding(subject, WRONG, str(err))
    return Finding(subject, OK)


def _check_sizes(where: BigtableSpec, recorded: Meta) -> Iterator[Finding]:
    try:
        with data(where, folds=True) as connection:
            sizes = connection.run(look_at_sizes(connection))
    except PermanentError as err:
        yield Finding("rows", WARNING, f"they cannot be read: {err}")
        return
    total, largest = sizes.total, sizes.largest
    if not sizes.rows:
        yield Finding("rows", OK, "none")
        return
    part = "" if sizes.whole else f" in the first {LOOK_S:g} s of reading"
    too_large = largest.size > WARN_ROW_BYTES
    advice = "; rows beyond 100 MB get slow, and beyond 256 MB cannot be read: use shards or shorter buckets"
    yield Finding(
        "rows",
        WARNING if too_large else OK,
        f"{sizes.rows:,}, {size_text(total.size)}{part}; the largest, {size_text(largest.size)}: {largest}"
        + (advice if too_large else ""),
    )
    if sizes.events:
        most = sizes.most_markers
        text = f"of {sizes.events:,} events, {size_text(total.markers)}; the most, {size_text(most.markers)}: {most}"
        yield Finding("markers", OK, text)
    if total.cells:
        yield _pending_finding(where, recorded, sizes)


def _pending_finding(where: BigtableSpec, recorded: Meta, sizes: Sizes) -> Finding:
    total, most = sizes.total, sizes.most_pending
    oldest = datetime.fromtimestamp(min((total.oldest_us or 0) / 1e6, _LAST_S), timezone.utc)
    return Finding(
        "pending",
        OK if recorded.write == APPEND else WARNING,
        f"{total.cells:,} cells are not folded yet, {size_text(total.pending)}, the oldest since "
        f"{oldest:%Y-%m-%d %H:%M} UTC; the most, {size_text(most.pending)}: {most}",
        "" if recorded.write == APPEND else shlex.join(["murmur", "fold", str(where)]),
    )


def _check_profiles(where: BigtableSpec, admin: Admin, *, appends: bool) -> Iterator[Finding]:
    """Check the profile that events are written with, and the profile of folds, if they need different things."""
    finding = _check_profile(where, admin, "app", where.app_profile, transactions=not appends)
    yield finding
    if finding.status != NOT_CHECKED and (appends or where.fold_profile is not None):
        yield _check_profile(where, admin, "fold", where.profile_of_folds, transactions=True)


def _check_profile(where: BigtableSpec, admin: Admin, kind: str, name: str | None, *, transactions: bool) -> Finding:
    """Check a profile.

    Args:
        where: the table.
        admin: client of its instance.
        kind: ``app`` or ``fold``: the option of the URI that names it is called ``KIND_profile``.
        name: of the profile; None for the instance's default.
        transactions: whether it must route to one cluster and allow single-row transactions.
    """
    subject = f"{kind} profile {name or 'default'}"
    needed = ["--route-to=CLUSTER", "--transactional-writes"] if transactions else ["--route-any"]
    new = "murmur-folds" if kind == "fold" else "murmur"
    remedy = shlex.join(
        [
            *("gcloud", "bigtable", "app-profiles", "create", new, f"--project={where.project}"),
            *(f"--instance={where.instance}", *needed),
        ]
    )
    advice = f"create {{}} and add ?{kind}_profile={new} to the URI"
    try:
        profile = admin.app_profile(name)
    except PermanentError as err:
        return Finding(subject, WRONG, str(err))
    if profile is None:
        return Finding(subject, WRONG, f"is missing; {advice.format('one')}", remedy)
    if profile is NO_PROFILES:
        return Finding(f"{kind} profile", NOT_CHECKED, "an emulator has none")
    routing = profile.single_cluster_routing
    single = "single_cluster_routing" in profile
    if not transactions:
        to = routing.cluster_id if single else "several clusters"
        return Finding(subject, OK, f"routes to {to}; appends need no transactions")
    what = "fold" if kind == "fold" else "commit"
    if not single:
        problem = f"routes to several clusters, where two {what}s of a row can be made without knowing of each other"
    elif not routing.allow_transactional_writes:
        problem = f"does not allow single-row transactions, which every {what} needs"
    else:
        return Finding(subject, OK, f"routes to {routing.cluster_id}, with single-row transactions")
    return Finding(subject, WRONG, f"{problem}; {advice.format('another')}", remedy)
