"""The ``murmur`` command: reads a store from a terminal or a script, creates its table, and runs the programs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from murmur_beam import __version__, programs
from murmur_beam.cli import delete, fold, plan, tables
from murmur_beam.cli.arguments import (
    MERGE,
    AddCommand,
    Parser,
    add_json,
    add_monoid,
    add_reading,
    add_window,
    on_reader,
    on_table,
    parse_amount,
    parse_end,
    parse_entity,
    parse_n,
    parse_prefix,
    parse_start,
)
from murmur_beam.cli.readers import ERROR, FOUND, add_readers
from murmur_beam.errors import ConfigurationError, MurmurError
from murmur_beam.option import add_flag
from murmur_beam.runs.command_line import complain, discard_output, parsed
from murmur_beam.windows import parse_duration

INTERRUPTED = 130

_FLAGS = {"start": "from", "end": "to"}
"""The reader's arguments whose flags have another name."""

_DESCRIPTION = """\
Read the aggregates in a store, such as sqlite:///counts.db; create and check its table if the store is in Bigtable.
Only create-table and alter-table change a table and the record of its purpose. Only delete and reset remove aggregates.
Only fold writes aggregates: it folds the events that pipelines have appended."""
_CREATE_TABLE = """\
Create a Bigtable table, or bring an existing one up to date. A second run changes nothing. With a retention Bigtable
deletes each bucket that long after its end."""
_ALTER_TABLE = """\
Add an aggregate to a Bigtable table that was made with --aggregate, while pipelines write to it. It counts from then
on, for programs that are started with it; those of before go on without it."""
_CHECK = """\
Check a Bigtable table and print the commands that repair it. Writes nothing, except with --probe: scratch rows, which
are removed."""
_EPILOG = """\
times:
  2026-11-20T10:30:00Z or 2026-11-20T10:30:00+01:00 (RFC 3339, with a zone), or a plain date such as 2026-11-20: the
  whole day, from midnight in UTC. --from takes the beginning of the day, --to and --now its end. A time stands for the
  bucket that contains it; the answer shows that bucket.

exit codes:
  0  found
  1  nothing found
  2  error; a one-line message on stderr

--json is lossless: a set is a sorted list, the first or last value is {"event_time_us": ..., "value": ...}, and a
value that JSON cannot represent is {"base64": ...} of the stored bytes. What a monoid presents of a value, such as a
mean, is {"text": ...} if JSON cannot represent it; a sum of decimal places is its digits as text, "12.30". Times in it
are the starts of buckets. A bucket that starts outside the years 1 to 9999 is shown by its number, in every output. On
a terminal, tables are cut to its width, in the middle of long keys; --json, files and pipes get whole keys.
"""
_TABLES_EPILOG = """\
Stores outside Bigtable need no table: there is nothing to create or check.

exit codes:
  0  done, or nothing to do; the table is as it should be
  1  the table is not as it should be
  2  error; a one-line message on stderr
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``murmur --help``.

    Returns:
        The exit code: 0 found or fine, 1 nothing there or not fine, 2 error, 130 interrupted; of a program, its own.

    Raises:
        SystemExit: after --help and --version; with code 2 for invalid or missing arguments.
    """
    words = sys.argv[1:] if argv is None else argv
    with suppress(OSError):  # the working folder may have been removed
        # A console script does not look for modules there, and `package.module:attribute` may name one. Last, so that
        # none of them hides a library.
        sys.path += {os.getcwd()} - {*sys.path}
    program = words[0].replace("-", "_") if words else ""
    if program in programs.names():
        return programs.run(program, words[1:])
    args = _parser().read(words)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except ConfigurationError as err:
        argument = f"--{_FLAGS.get(err.argument, err.argument)}" if err.argument in args else err.argument
        return complain(f"error: {argument}: {err.problem}", ERROR)
    except MurmurError as err:
        return complain(f"error: {err}", ERROR)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        discard_output()  # the reader of our output has closed it, as head does
        return FOUND


def _parser() -> Parser:
    as_is = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="murmur", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=as_is)
    parser.add_argument("--version", action="version", version=f"murmur {__version__}")
    add_parser = parser.add_commands()

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int],
        description: str,
        epilog: str = _EPILOG,
        *,
        on_store: bool = True,
    ) -> Parser:
        sub = add_parser(name, help=description, description=description, epilog=epilog, formatter_class=as_is)
        sub.set_defaults(run=run)
        if on_store:
            uri = "the store, such as sqlite:///counts.db or bigtable://project/instance/table"
            sub.add_argument("uri", metavar="URI", help=uri)
        return sub

    add_readers(command)
    _add_deleters(command)
    _add_table_commands(command)
    for name in programs.names():
        add_parser(programs.command(name), help=programs.summary(name), add_help=False)
    return parser


def _add_deleters(command: AddCommand) -> None:
    """Add delete and reset."""
    one = command("delete", on_reader(delete.delete), delete.DELETE, delete.EPILOG)
    delete.add_delete(one, parsed(parse_entity), parsed(parse_start), parsed(parse_end))
    whole = command("reset", on_reader(delete.reset), delete.RESET, delete.EPILOG)
    delete.add_yes(whole)
    for sub in (one, whole):
        add_reading(sub)


def _add_table_commands(command: AddCommand) -> None:
    """Add create-table, check, fold and plan."""
    create = command("create-table", on_table(tables.create_table), _CREATE_TABLE, _TABLES_EPILOG)
    create.add_argument("--dry_run", action="store_true", help="show what would be done, and change nothing")
    yes = "go on even if a shorter retention deletes data, or a longer one lets clusters differ for a while"
    create.add_argument("--yes", action="store_true", help=yes)
    _add_purpose(create, "sum", "no window", "never", "forever", "what the table recorded, or commit")
    alter = command("alter-table", on_table(tables.alter_table), _ALTER_TABLE, _TABLES_EPILOG)
    alter.add_argument("--dry_run", action="store_true", help="show what would be done, and change nothing")
    alter.add_argument(
        "--add", metavar="NAME=MONOID", required=True, help="the aggregate to add, such as visitors=set_union"
    )
    add_json(alter, "one JSON document")
    alter.set_defaults(monoid=None, aggregate=None)
    check = command("check", on_table(tables.check), _CHECK, _TABLES_EPILOG)
    probe = "also test Bigtable's behaviour on scratch rows; paste the output into an issue (docs/operations.md)"
    check.add_argument("--probe", action="store_true", help=probe)
    _add_purpose(check, *["what the table recorded"] * 5)

    fold.add_fold(
        command("fold", on_table(fold.fold), fold.FOLD, fold.EPILOG),
        parsed(parse_prefix),
        parsed(parse_duration),
        parsed(parse_n),
        parsed(parse_amount),
    )
    plan.add_plan(command("plan", plan.run, plan.PLAN, plan.EPILOG, on_store=False))


def _add_purpose(sub: Parser, monoid: str, window: str, retention: str, dedup_retention: str, write: str) -> None:
    """Add the flags of a table's purpose, as in its pipeline; the arguments are the defaults that the help shows."""
    add_json(sub, "one JSON document")
    add_monoid(sub, monoid)
    add_window(sub, window)
    add_flag(sub, MERGE["retention"], default=retention, type=parsed(parse_duration))
    sub.add_argument(
        "--dedup_retention",
        metavar="DURATION",
        type=parsed(parse_duration),
        help="how long event ids are remembered if no --retention is given; a later redelivery counts again; "
        f"default: {dedup_retention}",
    )
    sub.add_argument(
        "--write",
        choices=("commit", "append"),
        help="commit: write each flush to the aggregates, conditionally; append: write it as pending deltas, "
        f"unconditionally, to be folded later (docs/operations.md); default: {write}",
    )
