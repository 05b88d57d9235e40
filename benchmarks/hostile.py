"""A million malformed records of 162 kinds, and some of 10 MB: each is emitted once, unchanged, in bounded memory.

    python -m benchmarks.hostile [--records 1000000] [--large 100] [--json]

JSON and CSV, with a few good records among the bad ones. `MergeRecords` merges them into a SQLite store, on Beam's own
runner, in bundles of 100,000; some are merged from a file by `murmur merge-files`. The payload of each dead letter
is compared with the input, also after `to_json` and `from_json`; some letters are replayed. The state is compared with
a recount. Each part runs in its own process, whose memory has a bound.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence

from benchmarks import conserving
from benchmarks.conserving import Figures
from benchmarks.harness import in_own_process, machine, print_table, tidy
from benchmarks.malformed import FORMATS
from murmur_beam.errors import ConfigurationError
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors

BOUND_MB = 100
"""Memory that the records may need, beyond that of the process before the first one."""
LARGE_BOUND_MB = 300
"""The same for records of 10 MB."""
CSV_SHARE = 0.3
FILE_SHARE = 0.02
"""Records in each of the two files, as a part of all."""


def bound_mb(figures: Figures) -> int:
    """The memory that a part may need."""
    return LARGE_BOUND_MB if "MB" in figures.part else BOUND_MB


def faults(figures: Figures) -> list[str]:
    """Faults of a part, a few words each."""
    found = []
    if figures.outputs != figures.records:
        found.append(f"{figures.records:,} records made {figures.outputs:,} outputs")
    if figures.changed:
        kinds = ", ".join(sorted(figures.lost)) or "their letters do not come back from JSON"
        found.append(f"{figures.changed:,} records did not come out as they should: {kinds}")
    if figures.rows_wrong:
        found.append(f"{figures.rows_wrong:,} aggregates differ from the recount")
    if figures.grown_mb > bound_mb(figures):
        found.append(f"{figures.grown_mb:,.0f} MB of memory, and the bound is {bound_mb(figures)} MB")
    return [f"{figures.part}: {fault}" for fault in found]


def table(parts: Sequence[Figures]) -> list[list[str]]:
    """Rows to print; the first has the titles."""
    rows = [
        ["part", "records", "kinds", "outputs", "merged", "letters", "replayed", "not equal", "state wrong"],
    ]
    rows[0] += ["MB before", "after", "bound", "CPU us"]
    for made in parts:
        counts = (made.records, made.kinds, made.outputs, made.merged, made.letters, made.replayed)
        wrong = (made.changed, made.rows_wrong)
        memory = (made.before_mb, made.after_mb, made.before_mb + bound_mb(made), made.cpu_us)
        rows.append([made.part, *(f"{figure:,}" for figure in (*counts, *wrong)), *(f"{mb:,.0f}" for mb in memory)])
    return rows


def measure_all(records: int, large: int) -> list[Figures]:
    """Run all parts, one after the other."""
    csv = int(records * CSV_SHARE)
    file = max(int(records * FILE_SHARE), 1)
    parts: list[tuple[Callable[..., Figures], tuple[object, ...]]] = [
        (conserving.through_runner, ("json", records - csv)),
        (conserving.through_runner, ("csv", csv)),
        (conserving.through_file, ("json", file)),
        (conserving.through_file, ("csv", file)),
        (conserving.through_runner, ("json", large, conserving.LARGE_BYTES)),
    ]
    figures = []
    for function, (decode, n, *more) in parts:
        with tempfile.TemporaryDirectory(prefix="murmur-hostile-") as folder:
            if n:
                figures.append(in_own_process(function, decode, n, folder, *more))
    return figures


@one_line_errors("hostile")
def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; 1 if a record is lost, emitted twice or changed, or a bound is exceeded."""
    parser = OneLineErrorParser(prog="python -m benchmarks.hostile", description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=1_000_000, metavar="N", help="of ordinary sizes (%(default)s)")
    parser.add_argument("--large", type=int, default=100, metavar="N", help="of 10 MB (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    if args.records < 10:
        raise ConfigurationError("--records", f"must be at least 10, got {args.records}")
    if args.large < 0:
        raise ConfigurationError("--large", f"must not be negative, got {args.large}")
    what = machine()
    with tidy():
        parts = measure_all(args.records, args.large)
    wrong = [fault for made in parts for fault in faults(made)]
    if args.json:
        print(json.dumps({"machine": what, "parts": [made._asdict() for made in parts], "wrong": wrong}, indent=2))
        return 1 if wrong else 0
    print(f"{sum(made.kinds for made in FORMATS.values())} kinds of records, bad and good; {what}\n")
    print_table(table(parts))
    print("\nNot equal: records that did not come out, or not as what they are. MB: the most memory of the process,")
    print("before its first record and after its last one. CPU: for each record, with making and checking it.\n")
    print("\n".join(wrong) or "each record came out once, as it went in; the state is exact; memory is within bounds")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
