"""``murmur delete`` and ``murmur reset``: delete aggregates from a store, with the markers of their events."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from murmur_beam.errors import ConfigurationError, SchemaMismatch
from murmur_beam.reader import Reader

DELETE = "Delete the aggregates of an entity, or of all entities with a prefix, and the markers of their events."
RESET = "Delete all aggregates of a table and the markers of their events; the record of the table's purpose stays."
EPILOG = """\
First stop everything that sends events of these entities or may redeliver them. An event that is redelivered after the
deletion counts again, as if it were new; a program that keeps running meanwhile may still report it as a duplicate.
Other entities, and pipelines that write to them, are not affected.

times:
  as for the other commands; --from and --to are the first and the last bucket.

exit codes:
  0  deleted
  1  nothing was deleted: nothing found, or you declined
  2  error; a one-line message on stderr
"""

DELETED, NOTHING = 0, 1


def add_delete(
    delete: argparse.ArgumentParser,
    entity: Callable[[str], str],
    start: Callable[[str], datetime],
    end: Callable[[str], datetime],
) -> None:
    """Add the arguments of ``murmur delete``; ``entity``, ``start`` and ``end`` parse their texts."""
    delete.add_argument("entity", metavar="KEY", nargs="?", type=entity, help="the entity, with all its buckets")
    delete.add_argument("--prefix", type=entity, help="instead of KEY: all entities that start with this")
    delete.add_argument("--from", dest="start", metavar="TIME", type=start, help="first bucket to delete")
    delete.add_argument("--to", dest="end", metavar="TIME", type=end, help="last bucket to delete")
    add_yes(delete)


def add_yes(sub: argparse.ArgumentParser) -> None:
    """Add the flag that both commands have."""
    sub.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def delete(reader: Reader[Any], args: argparse.Namespace) -> int:
    """Delete an entity's aggregates.

    Args:
        reader: of the store.
        args: ``entity`` or ``prefix``, ``start``, ``end``, ``yes``, ``json``.

    Returns:
        The exit code.

    Raises:
        MurmurError: the arguments are invalid, or the store fails.
    """
    if (args.entity is None) == (args.prefix is None):
        raise ConfigurationError("KEY", "give either one KEY or --prefix; to delete a whole table use murmur reset")
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
        MurmurError: the store fails.
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
    rows = 0
    for key, _ in reader.store.scan(entity, first, last):
        if not prefix and key.entity != entity:  # the entity itself sorts first of all entities with this prefix
            break
        rows += 1
    if not args.yes and not _confirmed(f"{args.uri}: {rows:,} row{'s' * (rows != 1)} {what}, and any expired ones"):
        print("nothing was deleted", file=sys.stderr)
        return NOTHING
    deleted = reader.store.delete(entity, first, last, prefix=prefix)
    if args.json:
        print(json.dumps({"store": args.uri, "deleted": deleted}))
    elif deleted:
        print(f"{deleted:,} row{'s' * (deleted != 1)} {what} deleted, with the markers of their events")
    if not deleted:
        print(f"murmur: nothing found {what}", file=sys.stderr)
    return DELETED if deleted else NOTHING


def _confirmed(what: str) -> bool:
    """Ask the user on the terminal.

    Raises:
        ConfigurationError: stdin is not a terminal.
    """
    warning = f"{what}, will be deleted permanently. First stop the senders of their events: a redelivery counts again"
    if not sys.stdin.isatty():
        raise ConfigurationError("yes", f"is required when stdin is not a terminal. {warning}")
    print(f"{warning}.\ndelete them? [y/N] ", end="", file=sys.stderr, flush=True)
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
