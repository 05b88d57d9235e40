"""``murmur delete`` and ``murmur reset``: take aggregates out of a store, and what it knows of their events."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from murmur_beam.errors import ConfigurationError, SchemaMismatch
from murmur_beam.reader import Reader

DELETE = "Delete the aggregates of an entity, or of all that begin alike, and what is known of their events."
RESET = "Delete all aggregates of a table, and what is known of their events; what the table is for stays recorded."
EPILOG = """\
First stop whatever sends events of these keys, or may send them again: one that is delivered after the deletion counts
anew, as if it had never been seen, and a program that runs meanwhile may go on calling it a duplicate. Other keys, and
pipelines that write to them, are not touched.

times:
  as for the other commands; --from and --to are the first and the last bucket.

exit codes:
  0  deleted
  1  nothing is there, or you said no; nothing was deleted
  2  an error, told in one line on stderr
"""

DELETED, NOTHING = 0, 1


def add_delete(
    delete: argparse.ArgumentParser,
    entity: Callable[[str], str],
    start: Callable[[str], datetime],
    end: Callable[[str], datetime],
) -> None:
    """Add the arguments of ``murmur delete``; given are the parsers of their texts."""
    delete.add_argument("entity", metavar="KEY", nargs="?", type=entity, help="the entity, with all its buckets")
    delete.add_argument("--prefix", type=entity, help="instead of KEY: all entities that start with this")
    delete.add_argument("--from", dest="start", metavar="TIME", type=start, help="only from this bucket on")
    delete.add_argument("--to", dest="end", metavar="TIME", type=end, help="only to this bucket")
    add_yes(delete)


def add_yes(sub: argparse.ArgumentParser) -> None:
    """Add what both commands have."""
    sub.add_argument("--yes", action="store_true", help="do not ask")


def delete(reader: Reader[Any], args: argparse.Namespace) -> int:
    """Delete an entity's aggregates.

    Args:
        reader: of the store.
        args: ``entity`` or ``prefix``, ``start``, ``end``, ``yes``, ``json``.

    Returns:
        The exit code.

    Raises:
        MurmurError: it cannot be done.
    """
    if (args.entity is None) == (args.prefix is None):
        raise ConfigurationError("KEY", "write either one KEY or --prefix; for a whole table there is murmur reset")
    first, last = _buckets(reader, args.start, args.end)
    what = f"of {args.entity!r}" if args.prefix is None else f"of entities that start with {args.prefix!r}"
    if first is not None or last is not None:
        what += " in these buckets"
    return _delete(reader, args, what, args.entity or args.prefix, first, last, args.prefix is not None)


def reset(reader: Reader[Any], args: argparse.Namespace) -> int:
    """Delete all aggregates of a table.

    Args:
        reader: of the store.
        args: ``yes``, ``json``.

    Returns:
        The exit code.

    Raises:
        MurmurError: it cannot be done.
    """
    return _delete(reader, args, "of the whole table", "", None, None, True)


def _delete(
    reader: Reader[Any],
    args: argparse.Namespace,
    what: str,
    entity: str,
    first: int | None,
    last: int | None,
    prefix: bool,
) -> int:
    delete = getattr(reader.store, "delete", None)
    if delete is None:
        raise ConfigurationError("URI", f"{args.uri} is a store that cannot delete")
    rows = 0
    for key, _ in reader.store.scan(entity, first, last):
        if not prefix and key.entity != entity:  # the entity itself comes first of all that begin with its name
            break
        rows += 1
    if not args.yes and not _asked(f"{args.uri}: {rows:,} row{'s' * (rows != 1)} {what}, and any that have expired"):
        print("nothing was deleted", file=sys.stderr)
        return NOTHING
    deleted = delete(entity, first, last, prefix=prefix)
    if args.json:
        print(json.dumps({"store": args.uri, "deleted": deleted}))
    elif deleted:
        print(f"{deleted:,} row{'s' * (deleted != 1)} {what} deleted, with what was known of their events")
    if not deleted:
        print(f"murmur: nothing is there {what}", file=sys.stderr)
    return DELETED if deleted else NOTHING


def _asked(what: str) -> bool:
    """Ask the user on the terminal.

    Raises:
        ConfigurationError: there is no terminal.
    """
    said = f"{what}, will be deleted for good. Stop what sends their events first: one that comes again counts anew"
    if not sys.stdin.isatty():
        raise ConfigurationError("yes", f"is needed where nobody can be asked. {said}")
    print(f"{said}.\ndelete them? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return False


def _buckets(reader: Reader[Any], start: datetime | None, end: datetime | None) -> tuple[int | None, int | None]:
    if start is None and end is None:
        return None, None
    config = reader.window_config
    if config is None:
        raise SchemaMismatch("the store has no time buckets; leave out --from and --to")
    if start is not None and end is not None and end < start:
        raise ConfigurationError("--to", "lies before --from")
    first, last = (None if time is None else config.bucket_id(time) for time in (start, end))
    return first, last
