"""Merge dead letters again, once the cause is gone.

    python -m pipelines.replay --input dead-letters.jsonl --store sqlite:///counts.db ...

Takes the same flags as the pipeline that wrote them, and ``--decode csv`` if that read CSV files. Of a record with
several keys only those that had failed are merged; what has been merged meanwhile is a duplicate. The file itself stays
as it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from murmur_beam.deadletter import Failure, write_letter
from murmur_beam.errors import InvalidRecord
from murmur_beam.extract import Known
from murmur_beam.model import DeadLetter
from murmur_beam.spec import DEFAULT_NAME, from_flags
from murmur_beam.transforms import METRICS_NAMESPACE, MergeRecords
from pipelines.common import (
    DEAD_LETTERS_HELP,
    Outcomes,
    ShowProgress,
    beam_options,
    one_line_errors,
    quiet,
    run,
    write_dead_letters,
)
from pipelines.merge_files import matching, parser, read

UNREADABLE = "unreadable"
OTHERS = "others"


class ParseLetters(beam.DoFn):
    """Lines to the dead letters of one pipeline.

    Letters of other pipelines are counted and left alone: they hold other fields, for other keys. A line that is no
    dead letter comes out as one of its own, tagged ``unreadable``.

    Args:
        name: of the pipeline.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._others = Metrics.counter(METRICS_NAMESPACE, OTHERS)
        self._unreadable = Metrics.counter(METRICS_NAMESPACE, UNREADABLE)

    def process(self, line: bytes) -> Iterator[DeadLetter | TaggedOutput]:
        """Read one line."""
        try:
            letter = DeadLetter.from_json(line)
        except ValueError as err:
            self._unreadable.inc()
            failure = Failure("decode", InvalidRecord("payload", str(err)), Known(None, None, None))
            yield TaggedOutput(UNREADABLE, write_letter(line, self._name, failure, time.time_ns() // 1000))
            return
        if letter.pipeline == self._name:
            yield letter
        else:
            self._others.inc()


@one_line_errors("replay")
def main(argv: Sequence[str] | None = None) -> int:
    """Merge the dead letters and say what became of them."""
    arguments = parser("replay", "Merge dead letters again, with the flags of the pipeline that wrote them.")
    arguments.add_argument("--input", action="append", required=True, metavar="GLOB", help="files; may be repeated")
    arguments.add_argument("--dead_letters", default="still-dead-letters.jsonl", help=DEAD_LETTERS_HELP)
    arguments.add_argument(
        "--unpickle",
        action="store_true",
        help="load elements that had to be pickled; this runs whatever code the writer of the file put there",
    )
    args, beam_arguments = arguments.parse_known_args(argv)
    quiet()
    name = args.name or DEFAULT_NAME
    merge = {**from_flags(args), "unpickle": args.unpickle}

    pipeline = beam.Pipeline(options=beam_options(beam_arguments))
    letters = read(pipeline, matching(args.input), "json") | beam.ParDo(ParseLetters(name)).with_outputs(
        UNREADABLE, main="read"
    )
    merged = letters.read | "MergeRecords" >> MergeRecords(**merge)
    dead = (merged.dead_letter, letters[UNREADABLE]) | "Dead" >> beam.Flatten()
    write_dead_letters(dead, args.dead_letters)
    _ = (merged.merged, dead) | "All" >> beam.Flatten() | beam.ParDo(ShowProgress("letters"))
    counters = run(pipeline)
    outcomes = Outcomes.of(name, counters)
    print(outcomes)
    if counters.get(OTHERS):
        print(f"{counters[OTHERS]:,} letters of pipelines other than {name!r} were left alone; see --name")
    if counters.get(UNREADABLE):
        print(f"{counters[UNREADABLE]:,} lines are no dead letters")
    if outcomes.dead_letter or counters.get(UNREADABLE):
        print(f"what could not be merged is in {args.dead_letters}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
