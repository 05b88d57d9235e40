"""``murmur create-table`` and ``murmur check``: only stores in Bigtable have a table that must be made beforehand."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from murmur_beam.state import Schema, StoreSpec

if TYPE_CHECKING:
    from murmur_beam.state.bigtable.settings import Settings

DONE, PROBLEMS = 0, 1


def create_table(spec: StoreSpec, monoid: str | None, args: argparse.Namespace) -> int:
    """Make the table, or say what would be done.

    Args:
        spec: the store.
        monoid: name of what the table is to hold; None for sums.
        args: ``uri``, ``window``, ``retention``, ``dedup_retention``, ``dry_run``, ``yes``, ``json``.

    Returns:
        The exit code.

    Raises:
        MurmurError: it cannot be done.
    """
    where = _settings(spec, args)
    if where is None:
        return _no_table(spec, args, steps=[])
    from murmur_beam.state.bigtable import tables

    schema = Schema(monoid or "sum", args.window.granularity if args.window else None)
    meta = tables.purpose(schema, args.retention, args.dedup_retention)
    steps = tables.plan(where, meta) if args.dry_run else tables.create(where, meta, yes=args.yes, say=_say)
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
                step.text + ("; deletes data, and so needs --yes" * (step.deletes and needs_yes)),
            )
            for step in steps
        ]
    )
    return DONE


def check(spec: StoreSpec, monoid: str | None, args: argparse.Namespace) -> int:
    """Say what is wrong with the table, and what mends it.

    Args:
        spec: the store.
        monoid: name of what the table should hold; None for what is recorded.
        args: ``uri``, ``window``, ``retention``, ``dedup_retention``, ``json``.

    Returns:
        The exit code.

    Raises:
        MurmurError: it cannot be found out.
    """
    where = _settings(spec, args)
    if where is None:
        return _no_table(spec, args, ok=True, findings=[])
    from murmur_beam.state.bigtable import tables

    granularity = args.window.granularity if args.window else None
    findings = tables.check(where, monoid, granularity, args.retention, args.dedup_retention)
    wrong = [finding for finding in findings if finding.status == tables.WRONG]
    if args.json:
        _print_json(store=str(where), ok=not wrong, findings=[finding._asdict() for finding in findings])
    else:
        print(f"{where}: {'as it should be' if not wrong else 'not as it should be'}")
        _print_columns(
            [finding[:3] for finding in sorted(findings, key=lambda finding: finding.status != tables.WRONG)]
        )
        for remedy in dict.fromkeys(finding.remedy for finding in wrong if finding.remedy):
            print(f"run: {remedy}")
    return PROBLEMS if wrong else DONE


def _settings(spec: StoreSpec, args: argparse.Namespace) -> Settings | None:
    if urlsplit(args.uri).scheme != "bigtable":
        return None
    from murmur_beam.state.bigtable.settings import Settings

    assert isinstance(spec, Settings)
    return spec


def _no_table(spec: StoreSpec, args: argparse.Namespace, **document: Any) -> int:
    if args.json:
        _print_json(store=str(spec), **document)
    else:
        print(f"{args.uri}: needs no table to be made; the first write makes what it needs")
    return DONE


def _say(text: str) -> None:
    print(f"murmur: {text}", file=sys.stderr, flush=True)


def _print_json(**document: Any) -> None:
    print(json.dumps(document))


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
