"""Fold JSON Lines or CSV files into state, by the names of their fields.

    murmur merge-files --input 'events-*.jsonl.gz' --store sqlite:///counts.db \\
        --key 'page/{page}' --key '=all' --monoid count --event_id id --window daily --event_time time

After further runs, over the same files or over more of them, each event still counts once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

from murmur_beam.quiet_beam import beam  # isort: split

from apache_beam.metrics import Metrics
from apache_beam.pvalue import DoOutputsTuple, TaggedOutput

from murmur_beam.beam_metrics import METRICS_NAMESPACE
from murmur_beam.deadletter import Failure, write_letter
from murmur_beam.decode import DECODERS, delimiter_of
from murmur_beam.errors import ConfigurationError, InvalidRecord, MurmurError
from murmur_beam.extract import RecordHints
from murmur_beam.files.compressed import split_name
from murmur_beam.files.framing import MAX_RECORD_BYTES, TooLong, Unframed, frame_csv, frame_json
from murmur_beam.files.letter_files import filled
from murmur_beam.files.matching import check_encoding, matching, opened
from murmur_beam.files.names import shown
from murmur_beam.model import DeadLetter
from murmur_beam.options import DEFAULT_NAME, add_flags, from_flags
from murmur_beam.runs import endings
from murmur_beam.runs.beam_runs import (
    ShowProgress,
    beam_options,
    check_dataflow,
    hold_letters,
    new_pipeline,
    on_dataflow,
    only_built,
    quiet,
    reasons_of,
    run,
    write_dead_letters,
)
from murmur_beam.runs.console import DEAD_LETTERS_HELP, Outcomes, Parser, command_of, one_line_errors
from murmur_beam.transforms import MergeRecords

TOO_LONG = "too_long"
_FORMATS = {"json": (".json", ".jsonl", ".ndjson"), "csv": (".csv", ".tsv")}


class ReadRecords(beam.DoFn):
    """Emits each record of a file as bytes, and a dead letter, tagged ``too_long``, for a record that is too long.

    Args:
        reading: how to read the files.
        name: of the pipeline.
    """

    def __init__(self, reading: Reading, name: str) -> None:
        super().__init__()
        self._reading = reading
        self._name = name
        self._dead = Metrics.counter(METRICS_NAMESPACE, f"{name}:dead_letter")

    def process(self, file: bytes) -> Iterator[bytes | TaggedOutput]:
        """Read a file, given as its name in bytes."""
        path = os.fsdecode(file)
        reading = self._reading
        with opened(path, reading.encoding) as content:
            frame = partial(frame_csv, delimiter=reading.delimiter) if reading.decode == "csv" else frame_json
            try:
                for record in frame(content, reading.max_record_bytes):
                    if isinstance(record, bytes):
                        yield record
                    else:
                        self._dead.inc()
                        yield TaggedOutput(TOO_LONG, self._letter(path, record))
            except Unframed as err:
                raise MurmurError(f"{shown(path)}: {err}") from err

    def _letter(self, path: str, record: TooLong) -> DeadLetter:
        problem = (
            f"line {record.line:,} of {shown(path)} is a record of {record.size:,} bytes, more than --max_record_bytes "
            f"{self._reading.max_record_bytes:,}; this letter holds its first {len(record.head):,} bytes"
        )
        failure = Failure("decode", InvalidRecord("payload", problem), RecordHints(None, None, None))
        letter = write_letter(record.head, self._name, failure, time.time_ns() // 1_000)
        return letter._replace(payload_type="repr")  # not to be replayed


def format_of(paths: Sequence[str]) -> str:
    """The format that the endings of the files' names stand for.

    Raises:
        ConfigurationError: a file's format cannot be inferred, or the files have several formats.
    """
    found = set()
    for path in paths:
        name, _ = split_name(path)
        formats = [decode for decode, endings in _FORMATS.items() if name.endswith(endings)]
        if not formats:
            raise ConfigurationError(
                "--decode", f"cannot infer the format of {shown(path)}; pass --decode {' or '.join(DECODERS)}"
            )
        found.add(formats[0])
    if len(found) > 1:
        raise ConfigurationError(
            "--decode", f"the input mixes formats: {', '.join(sorted(found))}; run once per format"
        )
    return found.pop()


class Reading(NamedTuple):
    """How files are read.

    Attributes:
        decode: "csv", or any other value for JSON.
        delimiter: between the fields of CSV.
        encoding: of the text.
        max_record_bytes: longest record.
    """

    decode: str = "json"
    delimiter: str = ","
    encoding: str = "utf-8"
    max_record_bytes: int = MAX_RECORD_BYTES


def read(pipeline: beam.Pipeline, paths: Sequence[str], reading: Reading, name: str) -> DoOutputsTuple:
    """The outputs ``read``, records as bytes, and ``too_long``, dead letters of records that are too long."""
    names = [os.fsencode(path) for path in paths]
    read = beam.ParDo(ReadRecords(reading, name)).with_outputs(TOO_LONG, main="read")
    outputs = pipeline | "Paths" >> beam.Create(names) | "Read" >> read
    outputs[TOO_LONG].element_type = DeadLetter
    return outputs


def add_reading_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags of `reading_of`."""
    parser.add_argument("--encoding", default="utf-8", help="of the files, such as latin-1 or utf-16 (%(default)s)")
    parser.add_argument(
        "--max_record_bytes",
        type=int,
        default=MAX_RECORD_BYTES,
        metavar="N",
        help="longest record; a longer one becomes a dead letter with its first bytes (%(default)s)",
    )


def reading_of(args: argparse.Namespace, decode: str) -> Reading:
    """Read the flags of `add_reading_flags`.

    Raises:
        ConfigurationError: a flag is invalid.
    """
    check_encoding(args.encoding)
    if args.max_record_bytes < 1:
        raise ConfigurationError("--max_record_bytes", f"must be at least 1, got {args.max_record_bytes}")
    delimiter = delimiter_of(args.delimiter) if args.delimiter is not None and decode == "csv" else ","
    return Reading(decode, delimiter, args.encoding, args.max_record_bytes)


def parser(module: str, description: str) -> Parser:
    """A parser with the flags of `MergeRecords`."""
    made = Parser(
        module,
        description=description,
        epilog="A FIELD is a name, a path such as user.country, or '=TEXT' for a constant text. "
        "Other options are Beam's, such as --runner.",
    )
    add_flags(made.add_argument_group("what to merge"))
    return made


def command_line() -> Parser:
    """The program's parser."""
    arguments = parser("merge_files", "Fold JSON Lines or CSV files into state, each event exactly once.")
    arguments.add_argument("--input", action="append", required=True, metavar="GLOB", help="files; may be repeated")
    arguments.add_argument("--dead_letters", default="dead-letters.jsonl", help=DEAD_LETTERS_HELP)
    arguments.add_argument(endings.FLAG, metavar="N|P%", help=endings.HELP)
    add_reading_flags(arguments)
    return arguments


@one_line_errors("merge_files")
def main(argv: Sequence[str] | None = None) -> int:
    """Merge the files and report the outcomes of their records."""
    args, beam_arguments = command_line().parse_known_args(argv)
    quiet()
    allowance = endings.Allowance.parse(args.max_dead_letters)
    options = beam_options(beam_arguments)
    places = [("--store", args.store), ("--dead_letters", args.dead_letters)]
    check_dataflow(options, [*places, *(("--input", pattern) for pattern in args.input)], args.cache)
    args.dead_letters = filled(args.dead_letters)
    paths = matching(args.input)
    args.decode = args.decode or format_of(paths)
    if args.decode == "csv" and args.delimiter is None and all(split_name(path)[0].endswith(".tsv") for path in paths):
        args.delimiter = "tab"
    if args.window and not args.event_time:
        raise ConfigurationError("--event_time", "is required with a window: records in files have no other time")
    merge = from_flags(args)
    name = args.name or DEFAULT_NAME
    with closing(hold_letters(args.dead_letters, tried=not on_dataflow(options))) as letters:
        pipeline = new_pipeline(options)
        records = read(pipeline, paths, reading_of(args, args.decode), name)
        merged = records.read | "MergeRecords" >> MergeRecords(**merge.given())
        write_dead_letters([merged.dead_letter, records[TOO_LONG]], letters)
        if not on_dataflow(options):
            _ = records.read | beam.ParDo(ShowProgress("records"))
        counters = run(pipeline)
    outcomes = Outcomes.of(name, counters)
    if only_built(options):
        return 0
    print(outcomes)
    if outcomes.dead_letter:
        # Replay cannot infer the format of the letters' payloads from the name of the file of letters.
        flags = "".join(
            f" --{flag} {shlex.quote(getattr(args, flag))}"
            for flag, default in (("decode", "json"), ("delimiter", None))
            if getattr(args, flag) != default
        )
        print(f"dead letters are in {shown(args.dead_letters)}; {command_of('replay')}{flags} merges them again")
    return endings.end("merge_files", outcomes.dead_letter, outcomes.total, reasons_of(counters), allowance)
