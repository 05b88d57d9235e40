"""Many writers of a table at once, each in a process of its own, with a folder and a reader beside them.

For `benchmarks.append_writers`, with an emulator that `BIGTABLE_EMULATOR_HOST` names. The processes of a run open their
stores first, and then begin together. Times are by `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from benchmarks.contention import SHARED_ROWS, merge_all, new_table, open_table, require
from benchmarks.harness import Call, Inexact, Watch, in_own_process, needing_extra
from benchmarks.workloads import zipf_pages
from murmur_beam.gc_tuning import declare_worker_process, freeze_startup_objects
from murmur_beam.model import Key, Update

with needing_extra():
    # Here, so that the server whose forks the processes are imports it once.
    import murmur_beam.state.bigtable  # noqa: F401

ROWS, ONE, ZIPF = "rows", "one", "zipf1.1"
_ROW = Key("row")
_OPEN_S = 120.0
"""Time for all processes of a run to open their stores."""
_ZIPF_EVENTS = 20_000
"""Events of a writer, after which it begins again with the keys of the first."""
_MARKERS_PER_FLUSH = 20_000
_READ_EVERY_S = 0.023
"""Not a part of a second, since rows are folded at whole seconds."""


class Work(NamedTuple):
    """What each writer of a run does.

    Attributes:
        keys: `ROWS` (`SHARED_ROWS` in turn), `ONE`, or `ZIPF`.
        flush: events of a flush.
        seconds: duration.
        every_s: time from the beginning of a flush to the beginning of the next; 0: no pause.
        skip_s: time at the beginning that is not in the rate.
    """

    keys: str
    flush: int
    seconds: float
    every_s: float = 0.0
    skip_s: float = 0.0


class Flush(NamedTuple):
    """When a flush began, and ended."""

    began: float
    ended: float


class Written(NamedTuple):
    """What a writer did.

    Attributes:
        flushes: after the common beginning; one before it has connected the store.
        counts: events of each key, of all flushes.
        cpu_s: time of the processor.
    """

    flushes: list[Flush]
    counts: Counter[str]
    cpu_s: float


class Fold(NamedTuple):
    """How many events a fold brought into their rows, and when."""

    events: int
    began: float
    ended: float


class Answer(NamedTuple):
    """What the row was worth, and when that was asked and answered."""

    value: int
    began: float
    ended: float


class Answers(NamedTuple):
    """The answers to a reader, which asks in turn with and without what is not folded yet."""

    fresh: list[Answer]
    folded: list[Answer]


class Crowd(NamedTuple):
    """The figures of a run.

    Attributes:
        rate: events a second of all writers, while all of them wrote.
        slowest_s: duration of the slowest flush.
        cpu_s: time of the writers' processors for each event.
    """

    rate: float
    slowest_s: float
    cpu_s: float


class LargeRow(NamedTuple):
    """The figures of a row with many markers, in which writers append and a folder folds.

    Attributes:
        rate: events a second of all writers.
        took_ms: durations of reads with what is not folded, sorted.
        ages_s: of answers without what is not folded: for how long the row had been worth more, sorted.
        torn: share of the answers with what is not folded that lack cells which the emulator was deleting.
    """

    rate: float
    took_ms: list[float]
    ages_s: list[float]
    torn: float


# ---- in other processes ----


def _open_as_worker(table: str) -> Any:
    """A new store, in a process that is tuned as a pipeline's worker is."""
    store = open_table(table)
    declare_worker_process()
    freeze_startup_objects()
    return store


def write(table: str, writer: int, work: Work, begin: Any) -> Written:
    """Write flushes until the time is over."""
    cycle = _cycle(work.keys, writer)
    keys, ids = itertools.cycle(map(Key, cycle)), itertools.count()

    def flush(store: Any) -> Flush:
        updates = [Update(next(keys), 1, f"{writer}/{next(ids)}") for _ in range(work.flush)]
        began_s = time.monotonic()
        merge_all(store, updates)
        return Flush(began_s, time.monotonic())

    flushes = []
    with closing(_open_as_worker(table)) as store:
        flush(store)
        begin.wait(_OPEN_S)
        watch = Watch()
        watch.start()
        # Writers that pause do not all write at the same moment.
        start_s = time.monotonic() + work.every_s * writer / begin.parties
        while (left_s := start_s + work.seconds - time.monotonic()) > 0:
            time.sleep(max(0.0, work.every_s * len(flushes) - work.seconds + left_s))
            flushes.append(flush(store))
        cpu_s = watch.stop().cpu_s
    times, rest = divmod(next(ids), len(cycle))
    counts = Counter({key: n * times for key, n in Counter(cycle).items()})
    return Written(flushes, counts + Counter(cycle[:rest]), cpu_s)


def _cycle(keys: str, writer: int) -> list[str]:
    if keys == ZIPF:
        return zipf_pages(_ZIPF_EVENTS, float(keys.removeprefix("zipf")), seed=writer)
    return [_ROW.entity] if keys == ONE else [f"row-{n}" for n in range(SHARED_ROWS)]


def fold(table: str, keys: Sequence[Key], every_s: float, seconds: float, begin: Any) -> list[Fold]:
    """Fold rows before the common beginning, and then again and again until the time is over."""
    with closing(_open_as_worker(table)) as store:
        rows = store.row_keys(keys, None)

        def fold_all() -> Fold:
            began_s = time.monotonic()
            events = store.fold_rows(rows).events
            return Fold(events, began_s, time.monotonic())

        folds = [fold_all()]
        begin.wait(_OPEN_S)
        start_s = time.monotonic()
        for n in range(1, int(seconds / every_s) + 1):
            time.sleep(max(0.0, start_s + n * every_s - time.monotonic()))
            folds.append(fold_all())
        return folds


def read(table: str, seconds: float, begin: Any) -> Answers:
    """Ask for the row at a steady rate until the time is over."""
    answers = Answers([], [])
    with closing(open_table(table)) as store:

        def ask(fresh: bool) -> Answer:
            began_s = time.monotonic()
            value = store.get(_ROW, fresh=fresh)
            return Answer(value, began_s, time.monotonic())

        ask(fresh=True)  # learns the markers
        begin.wait(_OPEN_S)
        start_s = time.monotonic()
        for n in range(int(seconds / _READ_EVERY_S)):
            time.sleep(max(0.0, start_s + n * _READ_EVERY_S - time.monotonic()))
            answers[n % 2].append(ask(fresh=n % 2 == 0))
    return answers


def fill(table: str, markers: int) -> None:
    """Append events to the row, and fold them.

    Raises:
        Inexact: not all were folded.
    """
    with closing(open_table(table)) as store:
        for start in range(0, markers, _MARKERS_PER_FLUSH):
            ids = range(start, min(markers, start + _MARKERS_PER_FLUSH))
            merge_all(store, [Update(_ROW, 1, f"before/{n}") for n in ids])
        if (folded := store.fold()).events != markers:
            raise Inexact(f"{folded.events:,} events were folded of {markers:,}")


# ---- runs ----


def write_rows(writers: int, work: Work, *, way: str = "append", fold_every_s: float = 0.0) -> Crowd:
    """Run many writers of a new table, and check all that they have written.

    Args:
        writers: number of processes.
        work: of each.
        way: ``append`` or ``commit``.
        fold_every_s: time between folds of all rows; 0: there are no folds.

    Raises:
        Inexact: a count is wrong.
    """
    table = new_table(way)
    rows = [Key(key) for key in _cycle(work.keys, 0)]
    folding = [(fold, (table, rows, fold_every_s, work.seconds))] if fold_every_s else []
    written: list[Written] = _together(table, writers, work, *folding)[:writers]
    require(table, sum((one.counts for one in written), Counter()))
    return crowd(written, work)


def _together(table: str, writers: int, work: Work, *others: tuple[Callable[..., Any], Sequence[Any]]) -> list[Any]:
    """Run writers, and other functions beside them; the result of each."""
    begin = multiprocessing.get_context("forkserver").Barrier(writers + len(others))
    writing = [(write, (table, n, work)) for n in range(writers)]
    with ExitStack() as stack:
        calls = [stack.enter_context(Call(function, *args, begin)) for function, args in (*writing, *others)]
        return [call.result() for call in calls]


def crowd(written: Sequence[Written], work: Work) -> Crowd:
    """The figures of writers. A flush counts by its part in the interval in which all writers wrote."""
    since = max(one.flushes[0].began for one in written) + work.skip_s
    until = min(one.flushes[-1].ended for one in written)
    flushes = [flush for one in written for flush in one.flushes]
    within = sum(
        max(0.0, min(flush.ended, until) - max(flush.began, since)) / (flush.ended - flush.began) for flush in flushes
    )
    return Crowd(
        work.flush * within / (until - since),
        max(flush.ended - flush.began for flush in flushes),
        sum(one.cpu_s for one in written) / (work.flush * len(flushes)),
    )


def read_large_row(markers: int, writers: int, work: Work, fold_every_s: float) -> LargeRow:
    """Read a row of many markers while others append to it and fold it.

    Raises:
        Inexact: an answer, or what the row is worth at the end, is wrong.
    """
    table = new_table("append")
    in_own_process(fill, table, markers)
    others = (fold, (table, [_ROW], fold_every_s, work.seconds)), (read, (table, work.seconds))
    *written, folds, answers = _together(table, writers, work, *others)
    total = markers + sum(one.counts.total() for one in written)
    require(table, Counter({_ROW.entity: total}))
    flushes = [flush for one in written for flush in one.flushes]
    return large_row(answers, flushes, folds, markers, total - work.flush * len(flushes), work.flush)


def large_row(
    answers: Answers, flushes: Sequence[Flush], folds: Sequence[Fold], markers: int, before: int, events: int
) -> LargeRow:
    """The figures of a large row, and a check of each answer.

    Args:
        answers: to the reader.
        flushes: of all writers.
        folds: of the folder.
        markers: what the row was worth at first.
        before: what it was worth before these flushes.
        events: of a flush.

    Raises:
        Inexact: an answer lacks events that were folded before, or has events that were sent or folded after it.
    """
    sent, recorded = sorted(flush.began for flush in flushes), sorted(flush.ended for flush in flushes)

    def require_between(answer: Answer, least: int, most: int) -> None:
        if not least <= answer.value <= most:
            raise Inexact(f"the row is {answer.value:,}, and should be {least:,} to {most:,}")

    def folded(at: float, *, began: bool) -> int:
        return markers + sum(one.events for one in folds if (one.began if began else one.ended) <= at)

    torn = 0
    for answer in answers.folded:
        require_between(answer, folded(answer.began, began=False), folded(answer.ended, began=True))
    for answer in answers.fresh:
        most = before + events * bisect_left(sent, answer.ended)
        require_between(answer, folded(answer.began, began=False), most)
        torn += answer.value < before + events * bisect_right(recorded, answer.began)
    return LargeRow(
        events * len(flushes) / (recorded[-1] - sent[0]),
        sorted(1e3 * (answer.ended - answer.began) for answer in answers.fresh),
        sorted(_age_s(answer, (answer.value - before) // events, recorded) for answer in answers.folded),
        torn / len(answers.fresh),
    )


def _age_s(answer: Answer, flushes: int, recorded: Sequence[float]) -> float:
    """How long before an answer the next flush after those that are in it was recorded; 0 if it was not."""
    after = max(0, flushes)
    return max(0.0, answer.ended - recorded[after]) if after < len(recorded) else 0.0
