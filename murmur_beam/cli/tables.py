"""``murmur create-table`` and ``murmur check``: only Bigtable stores have a table that must be created beforehand."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from murmur_beam import __version__
from murmur_beam.cli.arguments import bigtable_spec
from murmur_beam.errors import ConfigurationError
from murmur_beam.model import rfc3339
from murmur_beam.monoids import Struct, aggregate_of
from murmur_beam.monoids.base import Monoid
from murmur_beam.option import naming
from murmur_beam.state import Schema, StoreSpec

if TYPE_CHECKING:
    from murmur_beam.state.bigtable.probe import Report
    from murmur_beam.state.bigtable.spec import BigtableSpec

DONE, PROBLEMS = 0, 1

_ISSUE_COLUMNS = 100
"""Longest line of output that is pasted into an issue; a single longer word is not broken."""
_ASIDE = "app profile", "fold profile", "writing", "folding"
"""Findings that do not prevent a probe, since it shows more about them."""


def create_table(spec: StoreSpec, monoid: Monoid[Any] | None, args: argparse.Namespace) -> int:
    """Create or update the table, or show the changes only.

    Args:
        spec: the store.
        monoid: of the table's values; None for sums.
        args: ``uri``, ``window``, ``retention``, ``dedup_retention``, ``write``, ``dry_run``, ``yes``, ``json``.

    Returns:
        The exit code.

    Raises:
        MurmurError: the arguments are invalid, or the table cannot be created or changed.
    """
    where = bigtable_spec(spec)
    if where is None:
        return _no_table(spec, args, steps=[])
    from murmur_beam.state.bigtable import tables

    _require_any_order(monoid, args.write)
    schema = Schema(monoid.name if monoid else "sum", args.window.granularity if args.window else None)
    meta = tables.table_meta(schema, args.retention, args.dedup_retention)
    if args.dry_run:
        steps = tables.plan_changes(where, meta, write=args.write)
    else:
        steps = tables.create(where, meta, write=args.write, yes=args.yes, say=_say)
    if args.json:
        _print_json(store=str(where), dry_run=args.dry_run, steps=[step._asdict() for step in steps])
        return DONE
    print(f"{where}: " + ("nothing to do" if not steps else "would be done:" if args.dry_run else "done:"))
    needs_yes = args.dry_run and not args.yes
    _print_columns(
        [
            (
                step.action,
                step.subject,
                step.text + ("; deletes data, so it needs --yes" * (step.deletes and needs_yes)),
            )
            for step in steps
        ]
    )
    return DONE


def check(spec: StoreSpec, monoid: Monoid[Any] | None, args: argparse.Namespace) -> int:
    """Report what is wrong with the table, and the commands that repair it.

    Args:
        spec: the store.
        monoid: that the table's values should have; None for the recorded one.
        args: ``uri``, ``window``, ``retention``, ``dedup_retention``, ``write``, ``probe``, ``json``.

    Returns:
        The exit code.

    Raises:
        MurmurError: the arguments are invalid, or the table cannot be examined.
    """
    where = bigtable_spec(spec)
    if where is None:
        return _no_table(spec, args, ok=True, findings=[])
    from murmur_beam.state.bigtable import probe, tables

    _require_any_order(monoid, args.write)
    granularity = args.window.granularity if args.window else None
    name = monoid.name if monoid else None
    findings = tables.check(where, name, granularity, args.retention, args.dedup_retention, args.write)
    wrong = [finding for finding in findings if finding.status == tables.WRONG]
    report = None
    if args.probe and all(finding.subject.startswith(_ASIDE) for finding in wrong):
        report = probe.run(where)
    fine = not wrong and not (report and report.wrong)
    if args.json:
        document = {"store": str(where), "ok": fine, "findings": [finding._asdict() for finding in findings]}
        probed = {"origin": _origin(where), "probe": report and _document(report)} if args.probe else {}
        _print_json(**document, **probed)
        return DONE if fine else PROBLEMS
    if args.probe:
        _print_origin(_origin(where))
    print(f"{where}: {'as it should be' if not wrong else 'not as it should be'}")
    _print_columns(
        [finding[:3] for finding in sorted(findings, key=lambda finding: finding.status != tables.WRONG)],
        _ISSUE_COLUMNS if args.probe else None,
    )
    for remedy in dict.fromkeys(finding.remedy for finding in findings if finding.remedy):
        print(f"run: {remedy}")
    if report is not None:
        _print_report(report)
    elif args.probe:
        print("probe: not run, since the table is not as it should be")
    return DONE if fine else PROBLEMS


def alter_table(spec: StoreSpec, monoid: Monoid[Any] | None, args: argparse.Namespace) -> int:
    """Add an aggregate to a table of several, or show whether it can be added.

    Args:
        spec: the store.
        monoid: None.
        args: ``uri``, ``add``, ``dry_run``, ``json``.

    Returns:
        The exit code.

    Raises:
        MurmurError: the table cannot have the aggregate, or cannot be changed.
    """
    where = bigtable_spec(spec)
    if where is None:
        raise ConfigurationError("uri", f"{spec} cannot be altered; only tables in Bigtable can")
    from murmur_beam.state.bigtable.table_aggregates import add_aggregate

    with naming("add"):
        name, added = aggregate_of(args.add)
        Struct({name: added})  # checks the name
    since = add_aggregate(where, name, added, dry_run=args.dry_run)
    if args.json:
        _print_json(store=str(where), dry_run=args.dry_run, added=name if since else None, since=since)
    elif since is None:
        print(f"{where}: nothing to do; it has {name}")
    elif args.dry_run:
        print(f"{where}: would add {name}={added.name}")
    else:
        print(f"{where}: added {name}={added.name}; it counts since {since}, in programs that are started with it")
    return DONE


def _require_any_order(monoid: Monoid[Any] | None, write: str | None) -> None:
    if write == "append" and monoid is not None and not monoid.commutative:
        raise ConfigurationError(
            "write",
            f"append does not support monoid {monoid.name!r}, which depends on the order of events: pending events are "
            "folded in any order; leave it out",
        )


def _origin(where: BigtableSpec) -> dict[str, Any]:
    """Versions and environment, for output that is pasted into an issue."""
    from murmur_beam.state.bigtable.scratch import on_emulator

    return {
        "murmur_beam": __version__,
        **{name: version(name) for name in ("google-cloud-bigtable", "grpcio")},
        "python": platform.python_version(),
        "time": rfc3339(int(where.clock.now()) * 1_000_000).replace(".000000Z", "Z"),
        "app_profile": where.app_profile or "default",
        **({} if where.fold_profile is None else {"fold_profile": where.fold_profile}),
        "emulator": on_emulator(),
    }


def _print_origin(origin: dict[str, Any]) -> None:
    names = "murmur_beam", "google-cloud-bigtable", "grpcio", "python"
    print(", ".join(f"{name} {origin[name]}" for name in names))
    host = "an emulator (BIGTABLE_EMULATOR_HOST is set)" if origin["emulator"] else "the live service"
    folds = f", fold profile {origin['fold_profile']}" if "fold_profile" in origin else ""
    print(f"{origin['time']}, app profile {origin['app_profile']}{folds}, {host}")


def _document(report: Report) -> dict[str, Any]:
    return {**report._asdict(), "results": [result._asdict() for result in report.results]}


def _print_report(report: Report) -> None:
    statuses = Counter(result.status for result in report.results)
    summary = f"{statuses['ok']} ok, {statuses['wrong']} wrong, {statuses['note']} notes"
    print(f"probe: {summary}; layout {report.layout}, {report.requests} requests in {report.seconds:.1f} s")
    rows = []
    for name, status, *texts in report.results:
        rows += [(name, status, texts[0]), *(("", "", text) for text in texts[1:] if text)]
    _print_columns(rows, _ISSUE_COLUMNS)


def _no_table(spec: StoreSpec, args: argparse.Namespace, **document: Any) -> int:
    if args.json:
        _print_json(store=str(spec), **document)
    else:
        print(f"{args.uri}: needs no table; the first write creates everything")
    return DONE


def _say(text: str) -> None:
    print(f"murmur: {text}", file=sys.stderr, flush=True)


def _print_json(**document: Any) -> None:
    print(json.dumps(document))


def _print_columns(rows: Sequence[Sequence[str]], limit: int | None = None) -> None:
    """Print aligned columns; if a limit is given, the last column is wrapped to fit it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *cells, last in rows:
        before = "  " + "".join(cell.ljust(width + 2) for cell, width in zip(cells, widths, strict=True))
        room = limit - len(before) if limit else sys.maxsize
        first, *more = textwrap.wrap(last, room, break_long_words=False, break_on_hyphens=False) or [""]
        print((before + first).rstrip())
        for line in more:
            print(" " * len(before) + line)
