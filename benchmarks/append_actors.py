"""The processes of `benchmarks.appending`: they append to one table, fold, read and delete, and keep the book.

Each process runs until the book says stop, or until it is killed. A restarted process continues behind
what is acknowledged.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

from benchmarks.append_base import BURIED, LATE_S, SLEEP_S, Actor, Place, until_done
from benchmarks.append_book import DELETIONS, EVENTS, MORTAL_EVERY, Bounds, Delivery, deliveries, wrong
from benchmarks.append_planted import plant
from murmur_beam.buffer import FlushLimits
from murmur_beam.errors import TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.processor import AtomicDedup, Config, make_record, merge_records

PATIENT = Config(
    dedup=AtomicDedup(),
    max_attempts=20,
    backoff_base=timedelta(milliseconds=1),
    backoff_max=timedelta(milliseconds=50),
)
TRIES = 400
"""Tries of one flush, before it counts as stuck."""
COMMITTED = 60
"""Deliveries of one flush by commits, at most: each row needs a request."""
_BURIED_ROWS = 12


# ---- appending ----


class Appender(Actor):
    """Delivers its share, wave by wave, in flushes of random size."""

    def run(self, number: int) -> None:
        """Continue behind what is acknowledged: by the store alone, by the core, or by the transform."""
        make = (self._by_store, self._by_core, self._by_transform)[number % 3]
        with ExitStack() as stack:
            merge = make(stack)
            wave, offset = self.book.position(number)
            most = COMMITTED
            while wave < self.shape.waves + 2:
                share = deliveries(self.shape, wave, number)
                while offset < len(share):
                    size = min(most, int(self.shape.most ** self.chance.random()))
                    some = share[offset : offset + size]
                    lives = self.book.sending(number, wave, some)
                    outcomes = self._deliver(merge, some)
                    offset += len(some)
                    self.book.go_on(number, wave, offset)
                    self._acknowledge(number, some, lives, outcomes)
                    most = self.shape.most if Outcome.RECORDED in outcomes else COMMITTED
                wave, offset = wave + 1, 0
                self.book.go_on(number, wave, offset)

    def finish(self) -> None:
        """Deliver again the events of all rows that were deleted."""
        number = self.shape.appenders
        with ExitStack() as stack:
            merge = self._by_store(stack)
            rows = [row for row in range(0, self.shape.n_rows, MORTAL_EVERY) if self.book.life(row)]
            some = [self.shape.event(row, i) for row in rows for i in range(EVENTS)]
            for start in range(0, len(some), self.shape.most):
                part = some[start : start + self.shape.most]
                lives = self.book.sending(number, 0, part)
                self._acknowledge(number, part, lives, self._deliver(merge, part))

    def _acknowledge(
        self, number: int, some: Sequence[Delivery], lives: Sequence[int], outcomes: Sequence[Outcome]
    ) -> None:
        # A committer still remembers the events of a row that another process has deleted: it reports duplicates.
        kept = [
            (one, life)
            for one, life, outcome in zip(some, lives, outcomes, strict=True)
            if outcome is not Outcome.DUPLICATE or one.row < 0 or not self.shape.is_mortal(one.row)
        ]
        self.book.acknowledged(number, [one for one, _ in kept], [life for _, life in kept])
        self.count("deliveries", len(some))
        self.count("flushes")
        for outcome in (Outcome.RECORDED, Outcome.MERGED, Outcome.DUPLICATE):
            self.count(str(outcome), outcomes.count(outcome))

    def _deliver(self, merge: Callable[[Sequence[Delivery]], Sequence[Any]], some: Sequence[Delivery]) -> list[Outcome]:
        """Deliver until all are acknowledged, in random order and groups; the outcome of each."""
        outcomes: dict[int, Outcome] = {}
        left = list(range(len(some)))
        for _ in range(TRIES):
            for i, result in zip(left, merge([some[i] for i in left]), strict=True):
                if isinstance(result, Outcome):
                    outcomes[i] = result
                elif not isinstance(result, TransientError):
                    self.book.note(f"{some[i].event_id} was not taken: {result!r}")
                    raise SystemExit(1)
            left = [i for i in left if i not in outcomes]
            if not left:
                return [outcomes[i] for i in range(len(some))]
            self.count("sent again", len(left))
            self.chance.shuffle(left)
        self.book.note(f"{len(left)} deliveries were not taken in {TRIES} tries")
        raise SystemExit(1)

    def _by_store(self, stack: ExitStack) -> Callable[[Sequence[Delivery]], Sequence[Any]]:
        store = stack.enter_context(closing(self.open()))

        def merge(some: Sequence[Delivery]) -> Sequence[Any]:
            try:
                return list(store.merge_updates([Update(Key(one.key), one.delta, one.event_id) for one in some]))
            except TransientError as err:
                return [err] * len(some)

        return merge

    def _by_core(self, stack: ExitStack) -> Callable[[Sequence[Delivery]], Sequence[Any]]:
        store = stack.enter_context(closing(self.open()))

        def merge(some: Sequence[Delivery]) -> Sequence[Any]:
            records = [make_record(Sum(), one.event_id, 0, [one.key], one.delta, need_id=True) for one in some]
            return [result.outcome or _cause(result.error) for result in merge_records(PATIENT, "p", records, store)]

        return merge

    def _by_transform(self, stack: ExitStack) -> Callable[[Sequence[Delivery]], Sequence[Any]]:
        from murmur_beam.quiet_beam import beam  # isort: split

        from apache_beam.transforms.window import GlobalWindow
        from apache_beam.utils.timestamp import Timestamp
        from apache_beam.utils.windowed_value import WindowedValue

        from murmur_beam.options import MergeOptions
        from murmur_beam.spec import resolve
        from murmur_beam.transforms import MergeDoFn

        arguments: dict[str, Any] = {"name": "p", "key": "k", "value": "v", "event_id": "id", "monoid": "sum"}
        limits = FlushLimits(events=self.chance.choice((50, 300, 5_000)))
        fn = MergeDoFn(resolve(MergeOptions(**arguments, store=self.place.spec(), config=PATIENT, flush=limits)))
        fn.setup()
        stack.callback(fn.teardown)

        def merge(some: Sequence[Delivery]) -> Sequence[Any]:
            # An event may be among them twice, as in any bundle.
            fn.start_bundle()
            outputs: list[Any] = []
            for n, one in enumerate(some):
                element = {"id": one.event_id, "k": one.key, "v": one.delta, "n": n}
                windowed = WindowedValue(element, Timestamp(0), [GlobalWindow()])
                outputs += fn.process(element, windowed)
            outputs += fn.finish_bundle()
            results: dict[int, Any] = {}
            for output in outputs:
                if isinstance(output, beam.pvalue.TaggedOutput):
                    letter = output.value.value
                    kind = TransientError if letter.error_type in ("TransientError", "RetriesExhausted") else ValueError
                    results[json.loads(letter.payload)["n"]] = kind(letter.error_message)
                else:
                    results[output.value.element["n"]] = Outcome(output.value.outcome)
            return [results[n] for n in range(len(some))]

        return merge


def _cause(error: BaseException | None) -> Any:
    return error.__cause__ if isinstance(error, Exception) and isinstance(error.__cause__, TransientError) else error


# ---- folding ----


class Folder(Actor):
    """Folds random parts of the table, with a store that remembers rows."""

    def run(self, number: int) -> None:
        """Work until the run ends."""
        while not self.book.stopped:
            with closing(self.open()) as store:
                for _ in range(self.chance.randint(5, 200)):
                    if self.book.stopped:
                        break
                    self.fold(store, self._part(), self.chance.choice((1, 1, 2, 8)))
                    time.sleep(self.chance.uniform(0.0, SLEEP_S))

    def _part(self) -> str:
        first, last = self.book.waves()
        draw = self.chance.random()
        if draw < 0.3:
            return BURIED
        if draw < 0.5:
            return "hot/"
        if draw < 0.51:
            return ""
        return f"{self.chance.randint(max(0, first - 2), last):05}/"

    def fold(self, store: Any, prefix: str, least: int = 1) -> Any:
        """Fold once; what was done, or None after a transient error."""
        try:
            folded = store.fold(prefix, min_cells=least)
        except TransientError:
            self.count("folds failed")
            return None
        except Exception as err:
            self.book.note(f"fold: {err!r}")
            raise SystemExit(1) from err
        names = {
            "rows folded": folded.folded,
            "cells deleted": folded.cells,
            "events folded": folded.events,
            "found counted": folded.duplicates,
            "conflicts": folded.conflicts,
            "rows left": folded.left,
        }
        self.count("folds")
        for name, n in names.items():
            self.count(name, n)
        if folded.unfoldable:
            self.book.note(f"fold: {folded.unfoldable} events cannot be folded: {folded.named}")
        return folded


# ---- reading ----


class Reader(Actor):
    """Reads rows in all ways, and compares each with the book."""

    def run(self, number: int) -> None:
        """Work until the run ends."""
        self._shown: dict[int, int] = {}
        self._hot = [0] * self.shape.hot
        while not self.book.stopped:
            with closing(self.open()) as store:
                for _ in range(self.chance.randint(5, 300)):
                    if self.book.stopped:
                        break
                    try:
                        self._read(store)
                    except TransientError:
                        self.count("reads failed")
                    except Exception as err:
                        self.book.note(f"read: {err!r}")
                        raise SystemExit(1) from err
                    time.sleep(self.chance.uniform(0.0, SLEEP_S))

    def _read(self, store: Any) -> None:
        draw, fresh = self.chance.random(), self.chance.random() < 0.8
        if draw < 0.15:
            self._read_hot(store, fresh)
            return
        first, last = self.book.waves()
        old = self.chance.random() < 0.1
        wave = self.chance.randint(0 if old else max(0, first - 1), last)
        rows: Sequence[int] = range(wave * self.shape.rows, (wave + 1) * self.shape.rows)
        if draw > 0.25:
            rows = self.chance.sample(rows, min(len(rows), self.chance.choice((1, 1, 3, 30))))
        before = {row: self.book.bounds(row) for row in rows}
        if draw > 0.25:
            keys = [Key(self.shape.key(row)) for row in rows]
            found = dict(zip(rows, store.get_many(keys, fresh=fresh), strict=True))
        else:
            found = {self.shape.row_of(key.entity): value for key, value in store.scan(f"{wave:05}/", fresh=fresh)}
        for row, bounds in before.items():
            self.check(row, found.get(row), bounds, fresh=fresh)

    def check(self, row: int, value: int | None, before: Bounds, *, fresh: bool) -> None:
        """Compare a row of powers with the book.

        Args:
            row: which.
            value: that was read.
            before: what the book said when the read began.
            fresh: whether the read must show all that was acknowledged.
        """
        most = self.book.most(row)
        same_life = before.life % 2 == 0 and self.book.life(row) == before.life
        least = before.least if fresh and same_life else 0
        problem = wrong(value, least, most)
        if not problem and fresh and self.book.life(row) == 0:
            # In later lives, an append of an earlier life may bring an event back, which may be deleted again.
            problem = wrong(value, self._shown.get(row, 0), most)
            problem = problem and f"an earlier read showed more: {problem}"
            self._shown[row] = value or 0
        if problem:
            how = "a fresh read" if fresh else "a read as of the last fold"
            self.book.note(f"row {self.shape.key(row)}, life {before.life}, {how} of {value}: {problem}")
        self.count("rows read" if fresh else "rows read as of last fold")

    def _read_hot(self, store: Any, fresh: bool) -> None:
        least = self.book.hot_least()
        if self.chance.random() < 0.5:
            keys = [Key(f"hot/{i:02}") for i in range(self.shape.hot)]
            found = store.get_many(keys, fresh=fresh)
        else:
            by_key = {key.entity: value for key, value in store.scan("hot/", fresh=fresh)}
            found = [by_key.get(f"hot/{i:02}") for i in range(self.shape.hot)]
        most = self.book.hot_most()
        for i, value in enumerate(found):
            low = max(least[i], self._hot[i]) if fresh else 0
            if not low <= (value or 0) <= most[i]:
                self.book.note(f"hot/{i:02}: {value} is not from {low} to {most[i]}, fresh={fresh}")
            if fresh:
                self._hot[i] = max(self._hot[i], value or 0)
        self.count("hot rows read", len(found))


# ---- deleting ----


class Deleter(Actor):
    """Deletes rows while other processes append to them, fold and read them."""

    def run(self, number: int) -> None:
        """Work until the last deliveries; no row is half deleted then."""
        with closing(self.open()) as store:
            while self.book.deleting:
                time.sleep(self.chance.uniform(0.0, 4 * SLEEP_S))
                first, last = self.book.waves()
                wave = self.chance.randint(max(0, first - 2), last)
                row = wave * self.shape.rows + self.chance.randrange(self.shape.rows)
                row -= row % MORTAL_EVERY
                if self.book.life(row) >= 2 * DELETIONS:
                    continue
                self.book.next_life(row)
                until_done(lambda row=row: store.delete(self.shape.key(row)))
                self.book.next_life(row)
                self.count("rows deleted")


class Burier(Actor):
    """Appends to rows that only it writes, deletes them and makes them again, while other processes fold them.

    The proxy delays none of these appends. So the content of such a row is known exactly: what was appended since the
    row was deleted, and nothing from before.
    """

    def run(self, number: int) -> None:
        """Work until the run ends."""
        with closing(self.open(timeout_s=60.0, patience_s=90.0)) as store, closing(self.open()) as other:
            self._before: list[list[int]] = [[0] for _ in range(_BURIED_ROWS)]
            while not self.book.stopped:
                self._live(store, other)

    def _live(self, store: Any, other: Any) -> None:
        keys = [f"{BURIED}{n:02}" for n in range(_BURIED_ROWS)]
        events = [self._events(before) for before in self._before]
        there = [0] * len(keys)
        while any(events) and self.chance.random() < 0.9:
            updates = []
            for n, key in enumerate(keys):
                some = [events[n].pop() for _ in range(min(len(events[n]), self.chance.randint(0, 4)))]
                updates += [Update(Key(key), 4**i, f"{key}/{i}") for i in some]
                there[n] |= sum(4**i for i in some)
            while any(isinstance(result, Exception) for result in store.merge_updates(updates)):
                self.count("sent again", len(updates))
            self._check(self.chance.choice((store, other)), keys, there)
            self._rest()
        self._rest()
        self._check(other, keys, there)
        until_done(lambda: store.delete(BURIED, prefix=True))
        self._check(self.chance.choice((store, other)), keys, [0] * len(keys))
        self.count("rows made anew", len(keys))

    def _events(self, before: list[int]) -> list[int]:
        """Events of a row's next life: some of the earlier ones, or random ones; ``before`` is replaced by them.

        A fold must not take the same events for those that were deleted, and must not bring other ones back.
        """
        if self.chance.random() < 0.5:
            events = self.chance.sample(before, self.chance.randint(1, len(before)))
        else:
            events = self.chance.sample(range(EVENTS), self.chance.randint(1, 12))
        before[:] = before if set(events) < set(before) and self.chance.random() < 0.5 else events
        return list(events)

    def _rest(self) -> None:
        time.sleep(self.chance.choice((0.0, 0.01, LATE_S)) * self.chance.random())

    def _check(self, store: Any, keys: Sequence[str], there: Sequence[int]) -> None:
        found = until_done(lambda: store.get_many([Key(key) for key in keys]))
        for key, value, events in zip(keys, found, there, strict=True):
            if problem := wrong(value, events, events):
                self.book.note(f"row {key}, made anew: a fresh read of {value}: {problem}")
        self.count("rows read", len(keys))


# ---- processes ----

ROLES: dict[str, type[Any]] = {
    "appender": Appender,
    "folder": Folder,
    "reader": Reader,
    "deleter": Deleter,
    "burier": Burier,
}


def act(place: Place, role: str, number: int, process: int, start: int) -> None:
    """Run an actor, in a process of its own.

    Args:
        place: what the process needs to know.
        role: one of `ROLES`, or ``finisher``.
        number: which of its kind.
        process: its number in the book.
        start: how often it has been started before.
    """
    logging.getLogger().setLevel(logging.ERROR)
    os.environ["BIGTABLE_EMULATOR_HOST"] = place.host
    plant(place.planted)
    seed = f"{place.shape.seed}/{role}/{number}/{start}"
    if role == "finisher":
        Appender(place, process, seed).finish()
    else:
        ROLES[role](place, process, seed).run(number)
