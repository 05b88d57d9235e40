"""Pipelines run by their own ``main(argv)``, and the records that they merge."""

from __future__ import annotations

import csv
import itertools
import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from murmur_beam.model import DeadLetter
from murmur_beam.monoids import Sum
from murmur_beam.reader import Reader
from murmur_beam.state.sqlite import SqliteSpec

State = dict[tuple[str, int], int]

MILLISECOND = ["--backoff_base=0s", "--backoff_max=0s"]
"""Flags for retries without waits."""


class Ran(NamedTuple):
    """The result of a run."""

    code: int
    out: str
    err: str

    @property
    def outcomes(self) -> str:
        """The summary line of a run of merge_files or replay."""
        (line,) = [line for line in self.out.splitlines() if " merged / " in line]
        return line

    @property
    def mistake(self) -> str:
        """The only line on stderr of a run that a user's mistake ended."""
        (line,) = self.err.splitlines()
        assert self.code == 2
        assert self.out == ""
        return line


Run = Callable[..., Ran]


def state_of(path: Path, window: timedelta | None = None) -> State:
    """All aggregates in a SQLite file of sums, by entity and bucket."""
    store = SqliteSpec(str(path)).open(Sum(), window)
    try:
        return {tuple(key): total for key, total in store.scan()}
    finally:
        store.close()


DAY = timedelta(days=1)


CLICKS = [
    {"id": "1", "page": "a", "n": 1, "t": "2026-11-14T10:00:00Z"},
    {"id": "2", "page": "b", "n": 2, "t": "2026-11-14T11:00:00Z"},
    {"id": "3", "page": "a", "n": 3, "t": "2026-11-15T10:00:00+01:00"},
]
FLAGS = ["--store=sqlite:///counts.db", "--key=page/{page}", "--key==all", "--value=n", "--event_id=id", *MILLISECOND]


def first_flights(path: Path, n: int) -> Path:
    """Write the header and the first rows of the shipped file of flights."""
    from murmur_beam.programs import flights  # loads Beam

    with zipfile.ZipFile(flights.shipped_data()) as archive, archive.open(archive.namelist()[0]) as member:
        path.write_bytes(b"".join(itertools.islice(member, n + 1)))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def flights_by_hand(rows: Iterable[dict[str, str]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The expected results of flights by key and day, from plain lists."""
    flown: dict[tuple[str, int], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        day = (date(int(row["year"]), int(row["month"]), int(row["day"])) - date(1970, 1, 1)).days
        route = f"route/{row['origin']}-{row['dest']}"
        for key in (route, f"origin/{row['origin']}", f"carrier/{row['carrier']}", "all"):
            flown[key, day].append(row)
    return {key: _results(some) for key, some in flown.items()}


def _results(flown: list[dict[str, str]]) -> dict[str, Any]:
    delays = sorted(int(row["dep_delay"]) for row in flown if row["dep_delay"] != "NA")
    planes = len({row["tailnum"] for row in flown} - {"NA"})
    counts = Counter(row["dest"] for row in flown)
    return {
        "flights": len(flown),
        "delay": float(Fraction(sum(delays), len(delays))) if delays else None,
        "p95": pytest.approx(delays[19 * (len(delays) - 1) // 20], rel=0.01) if delays else None,
        "planes": planes if planes <= 384 else pytest.approx(planes, rel=0.05),
        "destinations": [(dest, counts[dest], counts[dest]) for dest in sorted(counts, key=lambda d: (-counts[d], d))][
            :10
        ],
    }


def flights_in(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The results of flights in a SQLite file, as `flights_by_hand` has them."""
    with Reader.open(f"sqlite:///{path}") as reader:
        results = {tuple(key): reader.monoid.present(state) for key, state in reader.store.scan()}
    for result in results.values():
        result["p95"] = result.pop("delays")[0.95]
    return results


def jsonl(*records: object) -> bytes:
    """One line each."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def by_hand(records: Iterable[dict[str, Any]], daily: bool = False) -> State:
    """The expected state of clicks, by `FLAGS`."""
    state: Counter[tuple[str, int]] = Counter()
    for click in records:
        day = (date.fromisoformat(click["t"][:10]) - date(1970, 1, 1)).days if daily else 0
        state[f"page/{click['page']}", day] += click["n"]
        state["all", day] += click["n"]
    return dict(state)


def letters_in(path: str | Path) -> list[DeadLetter]:
    """The dead letters of a file."""
    return [DeadLetter.from_json(line) for line in Path(path).read_bytes().splitlines()]
