"""Creates tables, and brings existing ones up to date with their purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from murmur_beam.errors import ConfigurationError, StoreUnavailable, TransientError
from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.admin import Admin, Rule
from murmur_beam.state.bigtable.grpc_errors import is_creating
from murmur_beam.state.bigtable.meta import APPEND, Meta, amend_meta, read_meta, write_meta
from murmur_beam.state.bigtable.probe import require_core
from murmur_beam.state.bigtable.spec import BigtableSpec
from murmur_beam.state.bigtable.table_checks import NOT_CHECKED, OK, WARNING, WRONG, Finding, check
from murmur_beam.state.bigtable.table_purpose import (
    changed_rules,
    completed,
    create_command,
    gc_rules,
    missing_rules,
    purpose_text,
    require_schema,
    require_way,
    table_meta,
    type_advice,
    wrong_type,
)
from murmur_beam.state.bigtable.table_state import TableState, clusters_text, data, look

__all__ = [
    "NOT_CHECKED",
    "OK",
    "WARNING",
    "WRONG",
    "Finding",
    "Meta",
    "Step",
    "check",
    "create",
    "create_command",
    "gc_rules",
    "plan_changes",
    "table_meta",
]

_CREATING_S = 300.0
"""Longest wait for the service to create a table."""

T = TypeVar("T")


class Step(NamedTuple):
    """One change to a table.

    Attributes:
        action: ``create``, ``add``, ``change`` or ``record``.
        subject: the part that is changed.
        text: the new state.
        deletes: whether garbage collection then takes cells that it keeps now.
    """

    action: str
    subject: str
    text: str
    deletes: bool = False


def plan_changes(where: BigtableSpec, meta: Meta, *, write: str | None = None) -> list[Step]:
    """The steps of `create`, without making them.

    Raises:
        See `create`.
    """
    with Admin(where) as admin:
        found = look(where, admin)
        return _steps(where, found, completed(where, found.meta, meta, write))


def create(
    where: BigtableSpec,
    meta: Meta,
    *,
    write: str | None = None,
    yes: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Step]:
    """Create the table, or bring an existing one up to date with its purpose; a second call changes nothing.

    On a new table, the behaviour that commits need is tested. The record is written with the app profile of
    folds.

    Args:
        where: the table.
        meta: the purpose; see `table_meta`.
        write: `meta.COMMIT` or `meta.APPEND`; None: as recorded, or as in ``meta`` if nothing is recorded.
        yes: accept that garbage collection takes cells that it keeps now, and that clusters may differ for a while in
            what they keep.
        say: called with reports of progress and with warnings.

    Returns:
        The steps that were made.

    Raises:
        ConfigurationError: data would be deleted, or the service warns, and ``yes`` is not set; or the table cannot be
            written in that way. Nothing was changed.
        SchemaMismatch: the table holds something else.
        StoreUnavailable: a family has a type that cannot be changed, or the caller lacks a permission; or the table is
            created, but commits would not be exact there.
        TransientError: the service does not answer, or the table is still being created after five minutes.
    """

    def created(work: Callable[[], T]) -> T:
        return _once_created(where, work, say)

    with Admin(where) as admin:
        found = created(lambda: look(where, admin))
        meta = completed(where, found.meta, meta, write)
        steps = _steps(where, found, meta)
        if not yes:
            _require_no_deletion(steps)
        # The table must never keep less than is recorded, since pipelines rely on the record.
        if found.meta is not None and _keeps_less(meta, found.meta):
            created(lambda: _record(where, meta))
            created(lambda: _shape(admin, found, meta, force=yes))
        elif steps:
            created(lambda: _shape(admin, found, meta, force=yes))
            created(lambda: _record(where, meta))
        if found.families is None:
            created(lambda: require_core(where))
        if len(clusters := admin.clusters()) > 1:
            say(f"{where} is on {clusters_text(clusters, appends=meta.write == APPEND)}")
    return steps


def _once_created(where: BigtableSpec, work: Callable[[], T], say: Callable[[str], None]) -> T:
    """Call a function, and again for as long as the service answers that it is still creating the table.

    Raises:
        TransientError: the table is not created in time.
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


def _steps(where: BigtableSpec, found: TableState, meta: Meta) -> list[Step]:
    if found.meta is not None:
        require_schema(where, found.meta, meta)
    require_way(where, found.meta, meta)
    families = found.families or {}
    for name, family in families.items():
        if problem := wrong_type(name, family):
            raise StoreUnavailable(f"{where}: family {name} {problem}; {type_advice(where)}")
    steps = [] if found.families is not None else [Step("create", "table", f"for {meta.schema}")]
    for name, rule in missing_rules(families, meta).items():
        what = "sums of 64-bit integers" if name == wire.AGG else "cells"
        steps.append(Step("add", f"family {name}", f"{what}; garbage collection takes {rule}"))
    for name, rule in changed_rules(families, meta).items():
        family = families[name]
        text = f"garbage collection takes {rule}, instead of {family.text}"
        steps.append(Step("change", f"family {name}", text, deletes=_takes_more(rule, family.rule)))
    if found.meta is not None and found.meta.write != meta.write:
        steps.append(Step("change", "way of writing", _way_text(meta.write)))
    if found.meta != meta:
        steps.append(Step("record", "purpose", purpose_text(meta)))
    return steps


def _require_no_deletion(steps: list[Step]) -> None:
    if changed := ", ".join(step.subject for step in steps if step.deletes):
        raise ConfigurationError(
            "yes",
            f"is required, since garbage collection will take cells that it keeps now ({changed}; --dry_run shows "
            "more); first stop the pipelines with a longer retention: they would merge into deleted buckets",
        )


def _shape(admin: Admin, found: TableState, meta: Meta, *, force: bool) -> None:
    """Give the table its families and their rules."""
    if found.families is None:
        admin.create(missing_rules({}, meta))
    else:
        admin.modify(missing_rules(found.families, meta), changed_rules(found.families, meta), force=force)


def _record(where: BigtableSpec, meta: Meta) -> None:
    with data(where, folds=True) as connection:

        async def record() -> None:
            await write_meta(connection, meta)
            found = await read_meta(connection)
            assert found is not None  # it was just written
            require_schema(where, found, meta)  # another pipeline may have been the first
            if found._replace(schema=meta.schema) != meta:
                await amend_meta(connection, found, meta)
                found = await read_meta(connection)
                if found is None or found._replace(schema=meta.schema) != meta:
                    raise TransientError(f"{where}: another program is changing the table's record; run this again")

        connection.run(record(), folds=meta.write == APPEND or where.fold_profile is not None)


def _takes_more(new: Rule, old: Rule | None) -> bool:
    return old is None or any(_less(n, o) for n, o in zip(new, old, strict=True))


def _keeps_less(new: Meta, old: Meta) -> bool:
    return _less(new.bucket_age, old.bucket_age) or _less(new.marker_age, old.marker_age)


def _less(new: Any, old: Any) -> bool:
    """Return whether a limit is lower than another; None stands for no limit."""
    return new is not None and (old is None or new < old)


def _way_text(write: str) -> str:
    changed = "by appending, instead of by commits" if write == APPEND else "by commits, instead of by appending"
    return (
        f"{changed}; running pipelines go on as before until they are restarted; both ways may be mixed, since readers "
        "combine them"
    )
