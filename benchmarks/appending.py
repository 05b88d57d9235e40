"""Millions of deliveries by appends, with faults and SIGKILLs: no event is lost, none counts twice.

    python -m benchmarks.appending [--deliveries 2000000] [--kills 200] [--seed N] [--json]

On the Bigtable emulator, through a proxy that loses requests and answers, repeats and delays requests, and resets
connections. Processes append, fold and read at the same time, and are killed and restarted. Rows are deleted and made
again. Now and then the table is switched to commits and back, while old processes continue.

Every read is compared with what had been acknowledged when it began, and what had been sent when it ended; the sum of
most rows shows which events they count. At the end every row must count each event once: by a fresh read, after a last
fold that leaves nothing pending, and after old appends have arrived again. The exit code is 1 if anything was wrong.
``--plant`` plants a fault, which must be found.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.append_book import COUNTERS, EVENTS, ONCE, Book, Shape, n_deliveries, wrong
from benchmarks.harness import environment, machine, needing_extra, on_bigtable, print_table, say
from murmur_beam.errors import ConfigurationError, TransientError
from murmur_beam.model import Key
from murmur_beam.monoids import Sum
from murmur_beam.runs.command_line import OneLineErrorParser
from murmur_beam.runs.console import one_line_errors
from murmur_beam.state.base import Schema

SWITCHED = 0.25, 0.32, 0.6, 0.66
"""Parts of the run after which the table is switched to commits, and back to appends."""
STALLED_S = 120.0
ENOUGH_FAULTS = 20
_LOOK_S = 0.02
_KILLED = ("appender", "appender", "folder", "folder", "reader")
_LAST_FOLDS = 50
_KEYS_PER_READ = 2_000
_FEW = 200
"""Deliveries of one flush in a small run, at most."""


class Proved(NamedTuple):
    """The result of a run.

    Attributes:
        deliveries, events: their numbers.
        counters: what the processes counted.
        kills: by role.
        switches: between commits and appends.
        faults: of the proxy, by kind.
        replayed: requests that were repeated much later.
        failed: by method, the number of requests and of those that failed.
        lost, doubled: events that do not count at the end, or count twice; of hot rows, the rows that are wrong.
        wrong: what is wrong.
        seconds: that it took.
    """

    deliveries: int
    events: int
    counters: dict[str, int]
    kills: dict[str, int]
    switches: int
    faults: dict[str, int]
    replayed: int
    failed: dict[str, tuple[int, int]]
    lost: int
    doubled: int
    wrong: list[str]
    seconds: float


def shaped(deliveries: int, seed: int, *, large: bool) -> Shape:
    """The shape of a run with at least this many deliveries."""
    shape = Shape(seed, 1, 100, 8, 12_000, 4, 3, 2, 3_000) if large else Shape(seed, 1, 18, 3, 400, 2, 2, 1, _FEW)
    return shape._replace(waves=max(3, -(-deliveries // n_deliveries(shape))))


def _context(shape: Shape) -> Any:
    """A context whose processes start quickly: they are forks of a server that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    beam = ["murmur_beam.quiet_beam", "murmur_beam.transforms"] if shape.appenders > 2 else []
    context.set_forkserver_preload([*beam, "benchmarks.append_actors", "benchmarks.append_proxy"])
    return context


class _Process:
    """An actor in its own process, which can be killed and restarted."""

    def __init__(self, place: Any, role: str, number: int, process: int) -> None:
        self.role = role
        self._args = place, role, number, process
        self._context = _context(place.shape)
        self._starts = 0
        self.start()

    def start(self) -> None:
        """Start the process, or restart it after its end."""
        from benchmarks.append_actors import act

        self._process = self._context.Process(target=act, args=(*self._args, self._starts), daemon=True)
        self._process.start()
        self._starts += 1

    @property
    def code(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._process.exitcode

    def kill(self) -> bool:
        """Send SIGKILL and wait for the end; False if the process had ended before."""
        runs = self.code is None
        self._process.kill()
        self._process.join()
        return runs

    def wait(self, seconds: float) -> int | None:
        """The exit code, if the process ends within this time."""
        self._process.join(seconds)
        return self.code


@contextmanager
def _proxy(upstream: str, shape: Shape) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Run the proxy; its address, and a function that sends it a command."""
    from benchmarks.append_proxy import serve_proxy

    context = _context(shape)
    pipe, theirs = context.Pipe()
    replay_s = 0.5 if shape.most > _FEW else 0.05
    process = context.Process(target=serve_proxy, args=(theirs, upstream, shape.seed, replay_s), daemon=True)
    process.start()
    theirs.close()

    def tell(command: str) -> Any:
        pipe.send(command)
        return pipe.recv()

    try:
        yield pipe.recv(), tell
    finally:
        process.kill()
        process.join()


class _Run:
    """One run.

    Args:
        place: what the processes need to know.
        kills: the number of SIGKILLs.
        tell: sends the proxy a command.
    """

    def __init__(self, place: Any, kills: int, tell: Callable[[str], Any]) -> None:
        self._place = place
        self._shape: Shape = place.shape
        self._book = place.open_book()
        self._tell = tell
        self._chance = random.Random(f"{self._shape.seed}/kills")
        self._kill_at = [(n + self._chance.random()) / (kills + 1) * 0.97 for n in range(kills)]
        self._switch_at = list(SWITCHED)
        self._merged = 0
        self.kills: Counter[str] = Counter()
        self.switches = 0
        self.lost = self.doubled = 0

    def go(self) -> None:
        """Run all processes to the end, and check the table."""
        processes = []
        try:
            for role, n in actors(self._shape):
                processes.append(_Process(self._place, role, n, len(processes)))
            if self._watch(processes):
                self._book.stop_deleting()
                for process in processes:
                    if process.role == "deleter" and process.wait(STALLED_S) != 0:
                        self._book.note(f"the deleter ended with {process.code}")
                finisher = _Process(self._place, "finisher", 0, len(processes))
                processes.append(finisher)
                if finisher.wait(STALLED_S) != 0:
                    self._book.note(f"the last deliveries ended with {finisher.code}")
        finally:
            self._book.stop()
            for process in processes:
                if process.role == "appender" or process.wait(STALLED_S) is None:
                    process.kill()
        if not self._book.faults():
            self._settle()

    # ---- while it runs ----

    def _watch(self, processes: Sequence[_Process]) -> bool:
        """Kill and switch until all is delivered; False after a fault."""
        planned = n_deliveries(self._shape)
        last, since = -1, time.monotonic()
        while any(process.role == "appender" and process.code != 0 for process in processes):
            time.sleep(_LOOK_S)
            delivered = self._book.counted("deliveries")
            done = delivered / planned
            say(f"{delivered:,} of about {planned:,} deliveries, {self.kills.total()} kills")
            if len(self._book.faults()) >= (1 if self._place.planted else ENOUGH_FAULTS):
                return False
            if delivered != last:
                last, since = delivered, time.monotonic()
            elif time.monotonic() - since > STALLED_S:
                self._book.note(f"no delivery for {STALLED_S:g} s, after {delivered:,}")
                return False
            while self._kill_at and self._kill_at[0] <= done:
                self._kill_at.pop(0)
                self._kill_one(processes, self._chance.choice(_KILLED))
            # Not back before an appender has committed.
            if self._switch_at and self._switch_at[0] <= done and self._book.counted("merged") >= self._merged:
                self._switch_at.pop(0)
                self._switch(processes)
            for process in processes:
                if process.code is not None and (process.code != 0 or process.role != "appender"):
                    self._book.note(f"a {process.role} ended with {process.code}")
                    return False
        return True

    def _kill_one(self, processes: Sequence[_Process], role: str) -> None:
        some = [process for process in processes if process.role == role and process.code is None]
        if some:
            process = self._chance.choice(some)
            # At a random moment: within a request, or between two.
            time.sleep(self._chance.uniform(0.0, 0.01))
            if process.kill():
                self.kills[role] += 1
            process.start()

    def _switch(self, processes: Sequence[_Process]) -> None:
        """Switch the table to the other way of writing. An appender that is restarted uses it."""
        from murmur_beam.state.bigtable import tables

        self.switches += 1
        commits = self.switches % 2
        self._merged = self._book.counted("merged") + commits
        tables.create(self._place.spec(), _purpose(), write="commit" if commits else "append")
        self._kill_one(processes, "appender")

    # ---- at the end ----

    def _settle(self) -> None:
        self._tell("calm")
        # The proxy makes no more faults, and keeps reads and writes apart.
        with environment(BIGTABLE_EMULATOR_HOST=self._place.host), closing(self._open()) as store:
            for when in ("when all was delivered", "when appends had come once more after their fold"):
                self._check(store, when, fresh=True)
                self._tell("replay")
                self._check(store, f"{when}, and old appends again", fresh=True)
                for _ in range(_LAST_FOLDS):
                    folded = store.fold()
                    if folded.unfoldable:
                        self._book.note(f"{folded.unfoldable} events cannot be folded: {folded.named}")
                    if not folded.rows:
                        break
                else:
                    self._book.note(f"{folded.rows} rows still have something pending after {_LAST_FOLDS} folds")
                self._check(store, f"{when}, and folded", fresh=False)
                self._check(store, f"{when}, and folded", fresh=True)

    def _open(self) -> Any:
        while True:
            try:
                return self._place.spec().open(Sum())
            except TransientError:
                time.sleep(0.1)

    def _check(self, store: Any, when: str, *, fresh: bool) -> None:
        """Compare all rows with the values that they must have."""
        say(f"checking all rows {when}")
        found = {key.entity: value for key, value in store.scan(fresh=fresh)}
        expected: dict[str, int] = {self._shape.key(row): ONCE for row in range(self._shape.n_rows)}
        expected |= {f"hot/{i:02}": total for i, total in enumerate(self._shape.hot_sums(self._shape.waves))}
        keys = list(expected)
        read: list[Any] = []
        for start in range(0, len(keys), _KEYS_PER_READ):
            read += store.get_many([Key(key) for key in keys[start : start + _KEYS_PER_READ]], fresh=fresh)
        lost = doubled = 0
        for key, value in zip(keys, read, strict=True):
            if value != found.get(key):
                self._book.note(f"{when}: {key} is {value} by itself and {found.get(key)} in a scan, fresh={fresh}")
            if value == expected[key]:
                continue
            if key.startswith("hot/"):
                lost += (value or 0) < expected[key]
                doubled += (value or 0) > expected[key]
            else:
                lost += sum((value or 0) >> 2 * i & 3 == 0 for i in range(EVENTS))
                doubled += sum((value or 0) >> 2 * i & 3 > 1 for i in range(EVENTS))
            problem = "the sum is another" if key.startswith("hot/") else wrong(value, ONCE, ONCE)
            self._book.note(f"{when}: {key} is {value}, not {expected[key]}, fresh={fresh}: {problem}")
        self.lost, self.doubled = max(self.lost, lost), max(self.doubled, doubled)
        if more := [key for key in found if key not in expected and not key.startswith("buried/")]:
            self._book.note(f"{when}: rows that were never written: {more[:5]}")


def actors(shape: Shape) -> list[tuple[str, int]]:
    """Role and number of each process of a run."""
    numbers = {"appender": shape.appenders, "folder": shape.folders, "reader": shape.readers, "deleter": 1, "burier": 1}
    return [(role, n) for role, many in numbers.items() for n in range(many)]


def _purpose() -> Any:
    from murmur_beam.state.bigtable import tables

    return tables.table_meta(Schema(Sum().name, None))


def prove(shape: Shape, kills: int, folder: str, planted: str = "") -> Proved:
    """Run the proof on the emulator that `BIGTABLE_EMULATOR_HOST` names.

    Args:
        shape: the size of the run.
        kills: the number of SIGKILLs.
        folder: an empty folder for the book.
        planted: the fault to plant; empty for none.
    """
    from benchmarks.append_base import Place
    from murmur_beam.state.bigtable import tables

    began_s = time.monotonic()
    upstream = os.environ["BIGTABLE_EMULATOR_HOST"]
    with _proxy(upstream, shape) as (host, tell):
        processes = len(actors(shape)) + 1
        path = str(Path(folder, "book"))
        place = Place(shape, path, processes, host, f"appending-{uuid.uuid4().hex[:8]}", planted)
        tables.create(place.spec(), _purpose(), write="append")
        run = _Run(place, kills, tell)
        run.go()
        counts, faults = tell("counts")
    book = Book(shape, path, processes)
    return Proved(
        deliveries=book.counted("deliveries"),
        events=shape.n_events,
        counters={name: book.counted(name) for name in COUNTERS},
        kills=dict(run.kills),
        switches=run.switches,
        faults={fault.name: n for fault, n in sorted(faults.items(), key=lambda item: item[0].value)},
        replayed=sum(count.replayed for count in counts.values()),
        failed={name: (count.requests, count.failed) for name, count in sorted(counts.items()) if count.failed},
        lost=run.lost,
        doubled=run.doubled,
        wrong=book.faults(),
        seconds=time.monotonic() - began_s,
    )


def table(proved: Proved) -> list[list[str]]:
    """Rows to print; the first has the titles."""
    rows: list[tuple[str, object]] = [
        ("deliveries", proved.deliveries),
        ("events", proved.events),
        ("events lost", proved.lost),
        ("events doubled", proved.doubled),
    ]
    rows += [(f"kills: {role}", n) for role, n in proved.kills.items()]
    rows.append(("switches between append and commit", proved.switches))
    rows += [(name, proved.counters[name]) for name in COUNTERS[1:]]
    rows += [(f"{name} requests, failed", f"{all_:,}, {failed:,}") for name, (all_, failed) in proved.failed.items()]
    rows += [(f"fault: {name}", n) for name, n in proved.faults.items()]
    rows.append(("requests done again much later", proved.replayed))
    return [["what", "how many"], *([what, n if isinstance(n, str) else f"{n:,}"] for what, n in rows)]


@one_line_errors("appending")
def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; 1 if an event is lost or counts twice, or a read was wrong."""
    with needing_extra():
        from benchmarks.append_planted import PLANTED
    parser = OneLineErrorParser(prog="python -m benchmarks.appending", description=__doc__.split("\n")[0])
    parser.add_argument("--deliveries", type=int, default=2_000_000, metavar="N", help="at least (%(default)s)")
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="SIGKILLs (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all random numbers (%(default)s)")
    parser.add_argument("--small", action="store_true", help="fewer rows and processes, as in the tests")
    parser.add_argument("--plant", choices=sorted(PLANTED), default="", help="plant this fault; it must be found")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    for name in ("deliveries", "kills"):
        if getattr(args, name) < 0:
            raise ConfigurationError(f"--{name}", f"must not be negative, got {getattr(args, name)}")
    what = machine()
    shape = shaped(args.deliveries, args.seed, large=not args.small)
    with on_bigtable(), tempfile.TemporaryDirectory(prefix="murmur-appending-") as folder:
        proved = prove(shape, args.kills, folder, args.plant)
    say("")
    if args.json:
        print(json.dumps({"machine": what, **proved._asdict()}, indent=2))
    else:
        print(f"{proved.seconds:,.0f} s; {what}; seed {args.seed}\n")
        print_table(table(proved))
        print()
        print("\n".join(proved.wrong[:ENOUGH_FAULTS]) or "each event counts once, and every read was right")
    return 1 if proved.wrong or proved.lost or proved.doubled else 0


if __name__ == "__main__":
    sys.exit(main())
