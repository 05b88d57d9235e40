"""Rows that the server sends for reads of many keys: for one hour only the rows of that hour.

    python -m benchmarks.reading [--rows 28576] [--hours 24] [--turns 5] [--json]

A table on the Bigtable emulator has a row for each hour of each page. The questions are asked in turns, so that a busy
machine affects all of them, and each answer is checked. Rows and bytes are counted in the server's answers. "One
stream" reads the same without dividing the table. The exit code is 1 if an hour needs more than a fifth of the rows of
the whole table.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from benchmarks.harness import (
    Bar,
    Inexact,
    machine,
    missed,
    needing_extra,
    on_bigtable,
    print_figures,
    require_at_least_one,
    say,
)
from murmur_beam.errors import ConfigurationError
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Count
from murmur_beam.reader import Reader
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors
from murmur_beam.state.base import Schema
from murmur_beam.windows import hourly

BAR = 0.2
START = datetime(2026, 11, 21, tzinfo=timezone.utc)
TOP = 10
FLUSH = 5_000


class Sent(NamedTuple):
    """The figures of one question.

    Attributes:
        rows: number of rows in the server's answers.
        size: of the answers, bytes.
        seconds: from the question to the end of the answer.
    """

    rows: int
    size: int
    seconds: float


class Question(NamedTuple):
    """A question to a reader.

    Attributes:
        text: a description to print.
        ask: asks, and returns the answer.
        expected: the right answer.
        divided: whether the table is read in several pieces.
    """

    text: str
    ask: Callable[[], Any]
    expected: Any
    divided: bool = True


def questions(reader: Reader[int], rows: int, hours: int) -> list[Question]:
    """The questions about a table that `fill` has filled."""
    hour = START + timedelta(hours=hours // 2)

    def largest(totals: dict[str, int]) -> list[tuple[str, int]]:
        return sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:TOP]

    total: dict[str, int] = {}
    counts: dict[str, int] = {}
    of_hour: dict[str, int] = {}
    for page, at, delta in _cells(rows, hours):
        total[page] = total.get(page, 0) + delta
        counts[page] = counts.get(page, 0) + 1
        if at == hours // 2:
            of_hour[page] = delta
    listed = [(page, value, counts[page]) for page, value in total.items()]
    listed_hour = [(page, value, 1) for page, value in of_hour.items()]
    asked = []
    for divided in (True, False):
        asked += [
            Question("top, whole table", lambda: reader.top(TOP), largest(total), divided),
            Question("top, one hour", lambda: reader.top(TOP, "", hour, hour), largest(of_hour), divided),
            Question("list, whole table", lambda: [*reader.list()], listed, divided),
            Question("list, one hour", lambda: [*reader.list("", hour, hour)], listed_hour, divided),
        ]
    return asked


def _cells(rows: int, hours: int) -> Iterator[tuple[str, int, int]]:
    """Page, hour and count of each row, in the order of keys."""
    for i in range(rows):
        page, at = divmod(i, hours)
        yield f"page/{page:06}", at, 1 + (page * 7 + at) % 97


def fill(store: Any, rows: int, hours: int) -> None:
    """Write the rows, each with one event."""
    first = hourly().bucket_id(START)
    updates = [Update(Key(page, first + at), delta, f"{page}/{at}") for page, at, delta in _cells(rows, hours)]
    for begin in range(0, rows, FLUSH):
        say(f"{begin:,} of {rows:,} rows written")
        store.merge_updates(updates[begin : begin + FLUSH])


@contextmanager
def _one_stream() -> Iterator[None]:
    from murmur_beam.state.bigtable import scanning

    before = scanning.PIECE_BYTES
    scanning.PIECE_BYTES = sys.maxsize
    try:
        yield
    finally:
        scanning.PIECE_BYTES = before


def ask(question: Question) -> Sent:
    """Ask once, and count what the server sends.

    Raises:
        Inexact: the answer is wrong.
    """
    from murmur_beam.state.bigtable.connection import Connection

    real = Connection.answers
    rows = size = 0

    async def counting(self: Connection, *args: Any) -> AsyncIterator[Any]:
        nonlocal rows, size
        async for answer in real(self, *args):
            rows += sum(chunk.commit_row for chunk in answer.chunks)
            size += answer.ByteSize()
            yield answer

    Connection.answers = counting  # type: ignore[method-assign]
    try:
        started_s = time.perf_counter()
        if question.divided:
            answer = question.ask()
        else:
            with _one_stream():
                answer = question.ask()
        seconds = time.perf_counter() - started_s
    finally:
        Connection.answers = real  # type: ignore[method-assign]
    if answer != question.expected:
        raise Inexact(f"{question.text}: a wrong answer, {answer!r:.80} ...")
    return Sent(rows, size, seconds)


def name(question: Question) -> str:
    """The question's text, and how the table is read."""
    return question.text + ("" if question.divided else ", one stream")


def bars(sent: Mapping[str, Sequence[Sent]]) -> list[Bar]:
    """The ratio that has a bar, and the ratios that are only shown."""
    hour, whole = sent["top, one hour"], sent["top, whole table"]
    streams = [
        Bar(f"seconds, {text}, divided / one stream", _ratios(sent[text], sent[f"{text}, one stream"]), None)
        for text in ("top, whole table", "top, one hour")
    ]
    return [
        Bar(
            "rows sent, one hour / whole table", [a.rows / b.rows for a, b in zip(hour, whole, strict=True)], BAR, False
        ),
        Bar("seconds, one hour / whole table", _ratios(hour, whole), None),
        *streams,
    ]


def _ratios(some: Sequence[Sent], others: Sequence[Sent]) -> list[float]:
    return [one.seconds / other.seconds for one, other in zip(some, others, strict=True)]


@one_line_errors("reading")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the bar is missed."""
    with needing_extra():
        from murmur_beam.state import bigtable  # noqa: F401

    parser = OneLineErrorParser(prog="python -m benchmarks.reading", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=28_576, metavar="N", help="of the table (%(default)s)")
    parser.add_argument("--hours", type=int, default=24, metavar="N", help="that they are spread over (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="of all questions (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    require_at_least_one(args, "rows", "hours", "turns")
    if args.rows < args.hours:
        raise ConfigurationError("--rows", f"must be at least as many as --hours, {args.hours}, got {args.rows}")

    what = machine()
    sent = measure(args.rows, args.hours, args.turns)
    made = bars(sent)
    if args.json:
        document = {
            "rows": args.rows,
            "hours": args.hours,
            "turns": args.turns,
            "machine": what,
            "questions": [_document(text, turns) for text, turns in sent.items()],
            "bars": [bar.to_dict() for bar in made],
        }
        print(json.dumps(document, indent=2))
        return missed(made)
    print(f"{args.rows:,} rows in {args.hours} hours, medians of {args.turns} turns; {what}\n")
    rows = [["question", "rows sent", "bytes sent", "seconds", "of turns"]]
    for text, turns in sent.items():
        n, size, seconds = (statistics.median(values) for values in zip(*turns, strict=True))
        least, most = (find(one.seconds for one in turns) for find in (min, max))
        rows.append([text, f"{n:,.0f}", f"{size:,.0f}", f"{seconds:.2f}", f"{least:.2f} .. {most:.2f}"])
    print_figures(rows, made)
    return missed(made)


def measure(rows: int, hours: int, turns: int) -> dict[str, list[Sent]]:
    """Fill a table, and ask each question in turn."""
    from murmur_beam.state.bigtable import BigtableSpec, tables

    sent: dict[str, list[Sent]] = {}
    with on_bigtable():
        spec = BigtableSpec("benchmark", "instance", "reading")
        granularity = hourly().granularity
        tables.create(spec, tables.table_meta(Schema(Count().name, granularity)))
        with Reader(spec.open(Count(), granularity), hourly()) as reader:
            fill(reader.store, rows, hours)
            asked = questions(reader, rows, hours)
            for turn in range(turns):
                say(f"turn {turn + 1} of {turns}")
                for question in asked:
                    sent.setdefault(name(question), []).append(ask(question))
        say("")
    return sent


def _document(text: str, turns: Sequence[Sent]) -> dict[str, object]:
    rows, size, seconds = (statistics.median(values) for values in zip(*turns, strict=True))
    return {"question": text, "rows_sent": rows, "bytes_sent": size, "seconds": round(seconds, 4)}


if __name__ == "__main__":
    sys.exit(main())
