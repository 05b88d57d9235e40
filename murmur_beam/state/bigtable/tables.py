"""What a table must be like, and how to make it so, or find out what it lacks.

The cells of a bucket carry the bucket's start as their time, so that garbage collection by age takes whole buckets. It
may do so only when a bucket takes no more events: by then the aggregate and what is known of its events go together.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, TypeVar

import grpc
from google.auth.exceptions import GoogleAuthError

from murmur_beam.durations import format_duration, spell_duration
from murmur_beam.errors import ConfigurationError, PermanentError, SchemaMismatch, StoreUnavailable, TransientError
from murmur_beam.state.base import Schema, bucket_lifetime
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.admin import NO_PROFILES, Admin, Family, Rule
from murmur_beam.state.bigtable.connection import Connection, is_creating
from murmur_beam.state.bigtable.meta import APPEND, COMMIT, WAYS, Meta, amend_meta, read_meta, write_meta
from murmur_beam.state.bigtable.probe import require_core
from murmur_beam.state.bigtable.refusals import commit_nothing
from murmur_beam.state.bigtable.settings import Settings
from murmur_beam.state.bigtable.sizes import LOOK_S, WARN_ROW_BYTES, look, size_text

_LONGEST_AGE = timedelta(seconds=315_576_000_000)
"""What a rule of garbage collection can say: 10,000 years."""

_LAST_S = 253_402_300_799.0
"""The last second of the year 9999."""

_CREATING_S = 300.0
"""How long to wait for the service to create a table."""

OK, WRONG, WARNING, NOT_CHECKED = "ok", "wrong", "warning", "not checked"

T = TypeVar("T")


class Step(NamedTuple):
    """One change to a table.

    Attributes:
        action: ``create``, ``add``, ``change`` or ``record``.
        subject: what is changed.
        text: to what.
        deletes: does garbage collection then take what is kept now?
    """

    action: str
    subject: str
    text: str
    deletes: bool = False


class Finding(NamedTuple):
    """One thing that `check` looked at.

    Attributes:
        subject: what.
        status: ``ok``, ``wrong``, ``warning`` or ``not checked``.
        text: what is wrong with it, or what it is.
        remedy: a command that mends it; empty if there is none.
    """

    subject: str
    status: str
    text: str = ""
    remedy: str = ""


class _Found(NamedTuple):
    """A table as it is; None for the families of a table that is missing."""

    families: dict[str, Family] | None
    meta: Meta | None


def table_meta(schema: Schema, retention: timedelta | None = None, dedup_retention: timedelta | None = None) -> Meta:
    """What a table is for.

    Args:
        schema: what its values are.
        retention: of the window; None keeps every bucket.
        dedup_retention: for how long an event that was merged is known; None: as long as its bucket takes events.

    Raises:
        ConfigurationError: these do not fit together.
    """
    for name, value in (("retention", retention), ("dedup_retention", dedup_retention)):
        if value is not None and value <= timedelta(0):
            raise ConfigurationError(name, "must be positive, such as 90d")
        if value is not None and bucket_lifetime(schema.granularity or timedelta(0), value) > _LONGEST_AGE:
            raise ConfigurationError(name, f"{value} is longer than Bigtable keeps ages; leave it out to keep all")
    if retention is None:
        return Meta(schema, marker_age=dedup_retention, forgets=dedup_retention is not None)
    if schema.granularity is None:
        raise ConfigurationError("retention", "needs a window: counts over all time are kept for ever")
    if dedup_retention is not None:
        raise ConfigurationError(
            "dedup_retention",
            "leave it out: with a retention, an event is known until its bucket takes no more events; were it "
            "forgotten sooner, it would count again when it is delivered again",
        )
    lifetime = bucket_lifetime(schema.granularity, retention)
    return Meta(schema, lifetime, lifetime)


def gc_rules(meta: Meta) -> dict[str, Rule]:
    """Garbage collection of each family of a table for this purpose."""
    made = {
        wire.AGG: Rule(meta.bucket_age),
        wire.DEDUP: Rule(meta.marker_age),
        wire.STATE: Rule(meta.bucket_age, 1),
        wire.META: Rule(None, 1),
        wire.PENDING: Rule(meta.bucket_age),
    }
    if meta.layout.number > 1:
        # This takes nothing, since no column ever has two cells. But `check` of release 0.1.0 finds a rule that is not
        # its own, and says so.
        made[wire.DEDUP] = Rule(meta.marker_age, 1)
    return {name: made[name] for name in meta.layout.families}


def create_command(where: Settings, meta: Meta, recorded: Meta | None = None) -> str:
    """The command line that makes a table for this purpose, or what is there fit for it.

    Args:
        where: which table.
        meta: what for.
        recorded: what it is for so far; None: nothing yet.
    """
    table = replace(where, shards=meta.shards if meta.shards > 1 else None)
    words = ["murmur", "create-table", str(table), "--monoid", meta.schema.monoid]
    if meta.schema.granularity is not None:
        words += ["--window", format_duration(meta.schema.granularity)]
        if meta.bucket_age is not None:
            retention = meta.bucket_age - bucket_lifetime(meta.schema.granularity, timedelta(0))
            words += ["--retention", format_duration(retention)]
    if meta.dedup_retention is not None:
        words += ["--dedup-retention", format_duration(meta.dedup_retention)]
    if meta.write != COMMIT or (recorded is not None and recorded.write != COMMIT):
        words += ["--write", meta.write]
    return shlex.join(words)


def plan_changes(where: Settings, meta: Meta, *, write: str | None = None) -> list[Step]:
    """What `create` would do; nothing is changed.

    Raises:
        See `create`.
    """
    with Admin(where) as admin:
        found = _look(where, admin)
        return _steps(where, found, _filled(where, found, meta, write))


def create(
    where: Settings,
    meta: Meta,
    *,
    write: str | None = None,
    yes: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Step]:
    """Make the table, or make one that is there fit for this purpose; a second call finds nothing to do.

    What commits rest on is tried on a table that was made.

    Args:
        where: which table.
        meta: what for; see `table_meta`.
        write: `meta.COMMIT` or `meta.APPEND`; None: as is recorded, and as ``meta`` says where nothing is.
        yes: may garbage collection take what it keeps now, and clusters differ for a while in what they keep?
        say: is told what takes long, and what to know of the table.

    Returns:
        What was done.

    Raises:
        ConfigurationError: something would be deleted, or the service warns, and there is no ``yes``; or the table
            cannot be written in that way. Nothing was done.
        SchemaMismatch: the table holds something else.
        StoreUnavailable: a family has a type that cannot be changed, or who asks may not do it; or the table is made,
            but commits would not be exact there.
        TransientError: the service does not answer, or the table is still being created after five minutes.
    """

    def created(work: Callable[[], T]) -> T:
        return _once_created(where, work, say)

    with Admin(where) as admin:
        found = created(lambda: _look(where, admin))
        meta = _filled(where, found, meta, write)
        steps = _steps(where, found, meta)
        if not yes and any(step.deletes for step in steps):
            changed = ", ".join(step.subject for step in steps if step.deletes)
            raise ConfigurationError(
                "yes",
                f"is needed, since garbage collection will take what it keeps now ({changed}; --dry-run shows more); "
                "first stop the pipelines that run with a longer one: they would merge into buckets that are gone",
            )

        def shape() -> None:
            if found.families is None:
                admin.create(_missing({}, meta))
            else:
                admin.modify(_missing(found.families, meta), _changed(found.families, meta), force=yes)

        # At no moment may the table keep less than is recorded, which is what pipelines go by.
        if found.meta is not None and _keeps_less(meta, found.meta):
            created(lambda: _record(where, meta))
            created(shape)
        elif steps:
            created(shape)
            created(lambda: _record(where, meta))
        if found.families is None:
            created(lambda: require_core(where))
        if len(clusters := admin.clusters()) > 1:
            say(f"{where} is on {_failover_text(clusters)}")
    return steps


def check(
    where: Settings,
    monoid: str | None = None,
    granularity: timedelta | None = None,
    retention: timedelta | None = None,
    dedup_retention: timedelta | None = None,
    write: str | None = None,
) -> list[Finding]:
    """Look at a table, its app profile, and whether both can be used; nothing is written.

    Args:
        where: which table.
        monoid, granularity, retention, dedup_retention, write: what the table is wanted for, each None for what is
            recorded.

    Raises:
        ConfigurationError: these do not fit together, or not to what is recorded.
        TransientError: the service does not answer.
    """
    with Admin(where) as admin:
        found, findings = _Found(None, None), []
        try:
            found = _look(where, admin)
        except PermanentError as err:
            findings.append(Finding("table", WRONG, str(err)))
        recorded = found.meta or Meta(Schema("sum", None))
        schema = recorded.schema if monoid is None else Schema(monoid, recorded.schema.granularity)
        schema = schema._replace(granularity=granularity or schema.granularity)
        if retention is None and dedup_retention is None:
            wanted = recorded._replace(schema=schema)
        else:
            wanted = table_meta(schema, retention, dedup_retention)
        wanted = _filled(where, found, wanted, write)
        if not findings:
            _require_way(where, found.meta, wanted)
            findings += _check_table(where, found, wanted, said=monoid is not None or granularity is not None)
            if found.families is not None and len(clusters := admin.clusters()) > 1:
                findings.append(Finding("clusters", WARNING, _failover_text(clusters)))
            if found.families is not None and wire.META in found.families:
                findings.append(_check_access(where))
                findings += _check_sizes(where, recorded)
        return [*findings, _check_app_profile(where, admin)]


def _once_created(where: Settings, work: Callable[[], T], say: Callable[[str], None]) -> T:
    """Do it, and again for as long as the service says that it is still creating the table.

    Raises:
        TransientError: it has said so for too long.
    """
    clock = where.clock
    began_s = clock.monotonic()
    wait_s = 0.5
    while True:
        try:
            return work()
        except TransientError as err:
            so_far_s = clock.monotonic() - began_s
            if not is_creating(err.__cause__):
                raise
            if so_far_s >= _CREATING_S:
                raise TransientError(f"{where} is still being created after {so_far_s:.0f} s; run this again") from err
            say(f"{where} is being created; waiting, {so_far_s:.0f} of at most {_CREATING_S:.0f} s so far")
        clock.wait(wait_s)
        wait_s = min(2 * wait_s, 10.0)


def _failover_text(clusters: list[str]) -> str:
    return (
        f"{len(clusters)} clusters ({', '.join(clusters)}): commits go to one of them; if another takes over before it "
        "has them all, events that are delivered again count twice, and stay so: let replication catch up first "
        "(docs/operations.md)"
    )


# ---- what is there, and what is to be done ----


def _look(where: Settings, admin: Admin) -> _Found:
    families = admin.families()
    if not families or wire.META not in families:
        return _Found(families, None)
    with _data(where) as connection:
        return _Found(families, connection.run(read_meta(connection)))


def _steps(where: Settings, found: _Found, meta: Meta) -> list[Step]:
    if found.meta is not None:
        _require(where, found.meta, meta)
    _require_way(where, found.meta, meta)
    families = found.families or {}
    for name, family in families.items():
        if problem := _wrong_type(name, family):
            raise StoreUnavailable(f"{where}: family {name} {problem}; {_no_other_way(where)}")
    steps = [] if found.families is not None else [Step("create", "table", f"for {meta.schema}")]
    for name, rule in _missing(families, meta).items():
        what = "sums of 64-bit integers" if name == wire.AGG else "cells"
        steps.append(Step("add", f"family {name}", f"{what}; garbage collection takes {rule}"))
    for name, rule in _changed(families, meta).items():
        family = families[name]
        text = f"garbage collection takes {rule}, instead of {family.text}"
        steps.append(Step("change", f"family {name}", text, deletes=_takes_more(rule, family.rule)))
    if found.meta is not None and found.meta.write != meta.write:
        steps.append(Step("change", "way of writing", _way_text(meta.write)))
    if found.meta != meta:
        steps.append(Step("record", "purpose", _purpose_text(meta)))
    return steps


def _filled(where: Settings, found: _Found, meta: Meta, write: str | None) -> Meta:
    """With what only the table knows, where it fits: layout, field, what it ever was; and with the shards of the URI,
    and the way of writing that was asked for, or else as recorded.
    """
    if write not in (None, *WAYS):
        raise ConfigurationError("write", f"expected {' or '.join(WAYS)}, got {write!r:.80}")
    if found.meta is None:
        write = write or meta.write
        return meta._replace(shards=where.shards or 1, write=write, appended=write == APPEND)
    recorded = found.meta
    write = write or recorded.write
    return meta._replace(
        schema=recorded.schema if recorded.schema.accepts(meta.schema) else meta.schema,
        shards=where.shards or recorded.shards,
        layout=recorded.layout,
        write=write,
        appended=recorded.appended or write == APPEND,
        forgets=recorded.layout.number > 1 and (recorded.forgets or meta.forgets),
    )


def _require_way(where: Settings, recorded: Meta | None, wanted: Meta) -> None:
    """Can the table be written in the way that is wanted?

    Args:
        where: which table.
        recorded: what it is for so far; None: nothing yet.
        wanted: what it is to be for.

    Raises:
        ConfigurationError: no; the text says why, and what to do.
    """
    if wanted.write == APPEND:
        if wanted.layout.number == 1:
            raise ConfigurationError(
                "write",
                f"append takes layout 2, and {where} is of layout 1; a table keeps its layout: make another table",
            )
        if recorded is not None and (recorded.forgets or recorded.dedup_retention is not None):
            raise ConfigurationError(
                "write",
                f"append is not for {where}, which has or had a dedup retention: an event that is pending for longer "
                "than it is known would count again; make another table",
            )
    if wanted.appended and wanted.dedup_retention is not None:
        written = "is written by appending (--write append)" if wanted.write == APPEND else "was written by appending"
        raise ConfigurationError(
            "dedup_retention",
            f"leave it out: {where} {written}, and an event that is pending for longer than it is known would count "
            "again",
        )


def _require(where: Settings, recorded: Meta, wanted: Meta) -> None:
    recorded.schema.require(wanted.schema, str(where))
    if recorded.shards != wanted.shards:
        raise SchemaMismatch(
            f"{where} was made with shards={recorded.shards}, not shards={wanted.shards}, which cannot be changed: "
            "leave it out, or use another table"
        )


def _missing(families: dict[str, Family], meta: Meta) -> dict[str, Rule]:
    return {name: rule for name, rule in gc_rules(meta).items() if name not in families}


def _changed(families: dict[str, Family], meta: Meta) -> dict[str, Rule]:
    """Rules of the families that are there with another one."""
    return {name: rule for name, rule in gc_rules(meta).items() if name in families and families[name].rule != rule}


def _record(where: Settings, meta: Meta) -> None:
    with _data(where) as connection:

        async def record() -> None:
            await write_meta(connection, meta)
            found = await read_meta(connection)
            assert found is not None  # it was just written
            _require(where, found, meta)  # another pipeline may have been the first
            if found._replace(schema=meta.schema) != meta:
                await amend_meta(connection, found, meta)
                found = await read_meta(connection)
                if found is None or found._replace(schema=meta.schema) != meta:
                    raise TransientError(f"{where}: somebody else is changing what it is for; run this again")

        connection.run(record())


def _takes_more(new: Rule, old: Rule | None) -> bool:
    return old is None or any(_less(n, o) for n, o in zip(new, old, strict=True))


def _keeps_less(new: Meta, old: Meta) -> bool:
    return _less(new.bucket_age, old.bucket_age) or _less(new.marker_age, old.marker_age)


def _less(new: Any, old: Any) -> bool:
    """Tell whether a limit is lower, where None is no limit."""
    return new is not None and (old is None or new < old)


def _wrong_type(name: str, family: Family) -> str:
    if name == wire.AGG and not family.sums:
        return "is no aggregate of sums of 64-bit integers"
    if name in (wire.DEDUP, wire.STATE, wire.META, wire.PENDING) and not family.cells:
        return "has a type of its own, where plain cells are needed"
    return ""


def _no_other_way(where: Settings) -> str:
    return (
        "a family's type cannot be changed: make another table, or, if nothing in this one is needed, delete it with "
        f"cbt -project {where.project} -instance {where.instance} deletetable {where.table}"
    )


def _purpose_text(meta: Meta) -> str:
    values = "values are kept for ever"
    if meta.bucket_age is not None:
        values = f"a bucket is kept for {spell_duration(meta.bucket_age)} from its start"
    events = "events are known for ever"
    if meta.marker_age is not None:
        events = f"an event is known for {spell_duration(meta.marker_age)}"
    shards = f"; {meta.shards} shards" if meta.shards > 1 else ""
    written = "by appending" if meta.write == APPEND else "by commits"
    return f"{meta.schema}; {values}, {events}{shards}; layout {meta.layout.number}, written {written}"


def _way_text(write: str) -> str:
    changed = "by appending, instead of by commits" if write == APPEND else "by commits, instead of by appending"
    return (
        f"{changed}; pipelines that run go on as before until they are started again; both ways may be mixed, since "
        "readers unite both"
    )


# ---- checks ----


def _check_table(where: Settings, found: _Found, wanted: Meta, said: bool) -> Iterator[Finding]:
    remedy = create_command(where, wanted, found.meta)
    if found.families is None:
        if not said:
            # What it is for, only the pipeline knows; a table for something else would be refused by it.
            remedy = f"{create_command(where, wanted._replace(schema=Schema('MONOID', None)))} [--window WINDOW] ..."
        yield Finding("table", WRONG, "is missing", remedy)
        return
    yield Finding("table", OK)
    if found.meta is None:
        yield Finding("purpose", WRONG, "is not recorded, so no pipeline can see whether the table fits", remedy)
    elif (found.meta.schema, found.meta.shards) != (wanted.schema, wanted.shards):
        text = f"it is for {_purpose_text(found.meta)}; wanted is: {_purpose_text(wanted)}; use another table"
        yield Finding("purpose", WRONG, text)
        return
    elif found.meta != wanted:
        yield Finding("purpose", WRONG, f"recorded is: {_purpose_text(found.meta)}", remedy)
    else:
        yield Finding("purpose", OK, _purpose_text(found.meta))
    changed = _changed(found.families, wanted)
    for name, rule in gc_rules(wanted).items():
        subject = f"family {name}"
        family = found.families.get(name)
        if family is None:
            yield Finding(subject, WRONG, "is missing", remedy)
        elif problem := _wrong_type(name, family):
            yield Finding(subject, WRONG, f"{problem}; {_no_other_way(where)}")
        elif name in changed:
            text = f"garbage collection takes {family.text}; it should take {rule}"
            yield Finding(subject, WRONG, text, remedy)
        else:
            yield Finding(subject, OK, f"garbage collection takes {rule}")


def _check_access(where: Settings) -> Finding:
    try:
        with _data(where) as connection:
            connection.run(commit_nothing(connection))
    except PermanentError as err:
        return Finding("writing", WRONG, str(err))
    return Finding("writing", OK)


def _check_sizes(where: Settings, recorded: Meta) -> Iterator[Finding]:
    try:
        with _data(where) as connection:
            sizes = connection.run(look(connection))
    except PermanentError as err:
        yield Finding("rows", WARNING, f"they cannot be read: {err}")
        return
    total, largest = sizes.total, sizes.largest
    if not sizes.rows:
        yield Finding("rows", OK, "none")
        return
    part = "" if sizes.whole else f" in the first {LOOK_S:g} s of reading"
    too_large = largest.size > WARN_ROW_BYTES
    yield Finding(
        "rows",
        WARNING if too_large else OK,
        f"{sizes.rows:,}, {size_text(total.size)}{part}; the largest, {size_text(largest.size)}: {largest}"
        + (
            "; rows beyond 100 MB get slow, and beyond 256 MB cannot be read: use shards or shorter buckets" * too_large
        ),
    )
    if sizes.events:
        most = sizes.most_markers
        text = f"of {sizes.events:,} events, {size_text(total.markers)}; the most, {size_text(most.markers)}: {most}"
        yield Finding("markers", OK, text)
    if total.cells:
        most = sizes.most_pending
        oldest = datetime.fromtimestamp(min((total.oldest_us or 0) / 1e6, _LAST_S), timezone.utc)
        yield Finding(
            "pending",
            OK if recorded.write == APPEND else WARNING,
            f"{total.cells:,} cells are yet to be folded, {size_text(total.pending)}, the oldest since "
            f"{oldest:%Y-%m-%d %H:%M} UTC; the most, {size_text(most.pending)}: {most}",
            "" if recorded.write == APPEND else shlex.join(["murmur", "fold", str(where)]),
        )


def _check_app_profile(where: Settings, admin: Admin) -> Finding:
    subject = f"app profile {where.app_profile or 'default'}"
    remedy = shlex.join(
        [
            *("gcloud", "bigtable", "app-profiles", "create", "murmur", f"--project={where.project}"),
            *(f"--instance={where.instance}", "--route-to=CLUSTER", "--transactional-writes"),
        ]
    )
    try:
        profile = admin.app_profile()
    except PermanentError as err:
        return Finding(subject, WRONG, str(err))
    if profile is None:
        return Finding(subject, WRONG, "is missing; make one and write ?app_profile=murmur into the URI", remedy)
    if profile is NO_PROFILES:
        return Finding("app profile", NOT_CHECKED, "an emulator has none")
    routing = profile.single_cluster_routing
    if "single_cluster_routing" not in profile:
        problem = "routes to several clusters, where two commits of a row can be made without knowing of each other"
    elif not routing.allow_transactional_writes:
        problem = "does not allow single-row transactions, which every commit is"
    else:
        return Finding(subject, OK, f"routes to {routing.cluster_id}, with single-row transactions")
    return Finding(subject, WRONG, f"{problem}; make another and write ?app_profile=murmur into the URI", remedy)


@contextmanager
def _data(where: Settings) -> Iterator[Connection]:
    """A client of the table's data, whose errors do not lead to the command that shows them."""
    try:
        with closing(where.connect()) as connection:
            yield connection
    except StoreUnavailable as err:
        cause = err.__cause__ or err
        said = cause.details() if isinstance(cause, grpc.aio.AioRpcError) else str(cause)
        raise StoreUnavailable(f"{where}: {said}; it takes a role such as roles/bigtable.user") from err
    except GoogleAuthError as err:
        raise StoreUnavailable(f"{where}: {err}") from err
