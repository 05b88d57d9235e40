"""Fold JSON Lines or CSV files into state, by the names of their fields.

    python -m pipelines.merge_files --input 'events-*.jsonl.gz' --store sqlite:///counts.db \\
        --key 'page/{page}' --key '=all' --monoid count --event_id id --window daily --event_time time

Run it again, over the same files or over more of them, and each event still counts once.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from pipelines.quiet_beam import beam  # isort: split

from apache_beam.io.fileio import MatchAll, ReadableFile, ReadMatches
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from murmur_beam.decode import DECODERS
from murmur_beam.errors import ConfigurationError, MurmurError
from murmur_beam.spec import DEFAULT_NAME, add_flags, from_flags
from murmur_beam.transforms import MergeRecords
from pipelines.common import (
    ShowProgress,
    beam_options,
    check_dataflow,
    new_pipeline,
    on_dataflow,
    only_built,
    quiet,
    run,
    write_dead_letters,
)
from pipelines.console import DEAD_LETTERS_HELP, Outcomes, Parser, one_line_errors, program

_FORMATS = {"json": (".json", ".jsonl", ".ndjson"), "csv": (".csv",)}
_COMPRESSED = (".gz", ".bz2", ".zst", ".deflate")
# Unlike Beam's own readers, these notice a file that was cut short.
_OPENERS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open}
_BOM = b"\xef\xbb\xbf"


def frame_json(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that are not blank, without their ends and without the mark that some editors put first."""
    mark = _BOM
    for line in lines:
        record = line.removeprefix(mark).rstrip(b"\r\n")
        mark = b""
        if record.strip():
            yield record


def frame_csv(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The records of a CSV file, each as two records of bytes, the header and the record as they stand in the file:
    so each can be decoded, or given up and replayed, on its own.

    Raises:
        csv.Error: the first record, which is the header, is malformed.
    """
    taken: list[bytes] = []
    source = iter(lines)

    def take() -> Iterator[str]:
        for line in source:
            taken.append(line)
            # Latin-1 keeps each byte, and the quotes and line ends that matter here are the same as in UTF-8.
            yield line.decode("latin-1")

    header = b""
    reader = csv.reader(take())
    while True:
        try:
            fields = next(reader, None)
        except csv.Error:
            # A quote that never ends: what it has swallowed is one bad record, and the file goes on behind it.
            fields, reader = ["bad"], csv.reader(take())
        record = b"".join(taken).rstrip(b"\r\n")
        taken.clear()
        if fields is None:
            return
        if not header:
            header = record.removeprefix(_BOM)
            # A quote that never ends, or line ends that are none, would make a header of the whole file.
            list(csv.reader([header.decode("latin-1")], strict=True))
        elif fields:
            yield header + b"\n" + record


class ReadRecords(beam.DoFn):
    """One element of bytes for each record of a file.

    Args:
        decode: "json" or "csv".
    """

    def __init__(self, decode: str) -> None:
        super().__init__()
        self._frame = frame_csv if decode == "csv" else frame_json

    def process(self, file: ReadableFile) -> Iterator[bytes]:
        """Read a file, decompressing it as its name says."""
        path = file.metadata.path
        opener = next((opener for ending, opener in _OPENERS.items() if path.lower().endswith(ending)), None)
        try:
            with file.open(compression_type=CompressionTypes.UNCOMPRESSED if opener else None) as opened:
                yield from self._frame(iter((opener(opened) if opener else opened).readline, b""))
        except csv.Error as err:
            raise MurmurError(f"{path}: its header is malformed CSV: {err}") from err
        except Exception as err:  # each decompressor has errors of its own
            raise MurmurError(f"{path}: cannot be read to its end: {type(err).__name__}: {err}") from err


def matching(patterns: Sequence[str]) -> list[str]:
    """The files that there are.

    Raises:
        ConfigurationError: a pattern that matches nothing.
    """
    paths = []
    for pattern in patterns:
        # Beam finds nothing by a local pattern without a folder.
        where = pattern if "://" in pattern else os.path.abspath(pattern)
        found = FileSystems.match([where])[0].metadata_list
        if not found:
            raise ConfigurationError("--input", f"no file matches {pattern!r}")
        paths += [file.path for file in found]
    return paths


def format_of(paths: Sequence[str]) -> str:
    """The format that the names of the files tell.

    Raises:
        ConfigurationError: they tell none, or several.
    """
    found = set()
    for path in paths:
        name = path.lower()
        for ending in _COMPRESSED:
            name = name.removesuffix(ending)
        formats = [decode for decode, endings in _FORMATS.items() if name.endswith(endings)]
        if not formats:
            raise ConfigurationError("--decode", f"the name of {path} tells no format; write {' or '.join(DECODERS)}")
        found.add(formats[0])
    if len(found) > 1:
        raise ConfigurationError(
            "--decode", f"the files have several formats: {', '.join(sorted(found))}; do one a run"
        )
    return found.pop()


def read(pipeline: beam.Pipeline, paths: Sequence[str], decode: str) -> beam.PCollection:
    """The records of the files, in bytes."""
    return (
        pipeline
        | "Paths" >> beam.Create(paths)
        | "Match" >> MatchAll()
        | "Open" >> ReadMatches()
        | "Read" >> beam.ParDo(ReadRecords(decode))
    )


def parser(module: str, description: str) -> Parser:
    """A parser with the flags of `MergeRecords`."""
    made = Parser(
        prog=f"python -m pipelines.{module}",
        description=description,
        epilog="A FIELD is a name, a path such as user.country, or '=TEXT' for a text that is always the same. "
        "Other options are Beam's, such as --runner.",
    )
    add_flags(made.add_argument_group("what to merge"))
    return made


@one_line_errors("merge_files")
def main(argv: Sequence[str] | None = None) -> int:
    """Merge the files and say what became of their records."""
    arguments = parser("merge_files", "Fold JSON Lines or CSV files into state, each event exactly once.")
    arguments.add_argument("--input", action="append", required=True, metavar="GLOB", help="files; may be repeated")
    arguments.add_argument("--dead_letters", default="dead-letters.jsonl", help=DEAD_LETTERS_HELP)
    args, beam_arguments = arguments.parse_known_args(argv)
    quiet()
    options = beam_options(beam_arguments)
    places = [("--store", args.store), ("--dead_letters", args.dead_letters)]
    check_dataflow(options, [*places, *(("--input", pattern) for pattern in args.input)], args.cache)
    paths = matching(args.input)
    args.decode = args.decode or format_of(paths)
    if args.window and not args.event_time:
        raise ConfigurationError("--event_time", "a window needs it: records in files carry no time of their own")
    merge: dict[str, Any] = from_flags(args)

    pipeline = new_pipeline(options)
    merged = read(pipeline, paths, args.decode) | "MergeRecords" >> MergeRecords(**merge)
    write_dead_letters(merged.dead_letter, args.dead_letters)
    if not on_dataflow(options):
        _ = (merged.merged, merged.dead_letter) | beam.Flatten() | beam.ParDo(ShowProgress("records"))
    outcomes = Outcomes.of(args.name or DEFAULT_NAME, run(pipeline))
    if only_built(options):
        return 0
    print(outcomes)
    if outcomes.dead_letter:
        # The name of the file of dead letters tells only its own format, not that of what the letters hold.
        decode = "" if args.decode == "json" else f" --decode {args.decode}"
        print(f"dead letters are in {args.dead_letters}; python -m pipelines.replay{decode} merges them again")
    return 0


if __name__ == "__main__":
    program(main)
