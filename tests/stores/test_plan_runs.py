"""``murmur plan`` against real runs on the emulator: writers that commit; and the page's plans for appending, made
small, with folds by the rules of the fold stage."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import re
import shlex
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from murmur_beam import fold_policy
from murmur_beam.cli import main as cli
from murmur_beam.cli import plan as cli_plan
from murmur_beam.cli.plan import Load, load_of
from murmur_beam.cli.plan_folds import FoldRules
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count
from murmur_beam.spec import FoldPlan
from tests.support import ROOT

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

if TYPE_CHECKING:
    from murmur_beam.state.bigtable import BigtableSpec
    from tests.support.fault_proxy import FaultProxy

_LATE_S = 0.001
"""How late a timer is."""
PAGE = (ROOT / "docs" / "scaling.md").read_text("utf-8")


class Requests:
    """Counts what a proxy's clients write and read, as the emulator answers it."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.counts: Counter[str] = Counter()
        proxy.told = self._told

    def _told(self, method: str, request: bytes, answers: list[bytes]) -> list[bytes]:
        from google.cloud.bigtable_v2 import types

        if method == "CheckAndMutateRow":
            commit = types.CheckAndMutateRowRequest.pb().FromString(request)
            met = types.CheckAndMutateRowResponse.pb().FromString(answers[0]).predicate_matched
            wrote = bool(commit.true_mutations if met else commit.false_mutations)
            self.counts.update(requests=1, written=wrote, conflicts=not wrote)
        elif method == "MutateRows":
            entries = types.MutateRowsRequest.pb().FromString(request).entries
            cells = [mutation.set_cell for entry in entries for mutation in entry.mutations]
            n_bytes = sum(len(cell.column_qualifier) + len(cell.value) for cell in cells)
            self.counts.update(requests=1, written=len(entries), bytes_written=n_bytes)
        elif method == "ReadRows":
            for answer in answers:
                for chunk in types.ReadRowsResponse.pb().FromString(answer).chunks:
                    n_bytes = len(chunk.qualifier.value) + len(chunk.value)
                    self.counts.update(read=chunk.commit_row, bytes_read=n_bytes)
        return answers

    def taken(self) -> Counter[str]:
        """What was counted since the last time."""
        taken, self.counts = self.counts, Counter()
        return taken


class Stage:
    """The fold stage, with a clock that is turned by hand: names rows, and folds them when they are due.

    Args:
        folders: stores; each folds rows of its own.
        rules: when.
    """

    def __init__(self, folders: Sequence[Any], rules: FoldRules) -> None:
        self._folders = folders
        self._plan = FoldPlan(timedelta(seconds=rules.every_s), rules.share, timedelta(seconds=rules.age_s))
        self._sampler = fold_policy.RowSampler(random.Random(3).uniform)
        self._named: defaultdict[bytes, Any] = defaultdict(fold_policy.Named)
        self._due_s: dict[bytes, float] = {}
        self._timers: list[tuple[float, bytes]] = []
        self.events = 0

    def see(self, updates: Sequence[Update], now_s: float) -> None:
        """Name the rows of some of the events that were appended."""
        for update in updates:
            if self._sampler.picks():
                for row in self._folders[0].row_keys([update.key], update.event_id):
                    self._apply(row, fold_policy.when_named(self._named[row], now_s, self._plan))

    def turn(self, now_s: float) -> None:
        """Fold what is due until then; rows that are due together are folded together."""
        rows: list[bytes] = []
        while self._timers and self._timers[0][0] <= now_s:
            due_s, row = heapq.heappop(self._timers)
            if self._due_s.get(row) != due_s:
                continue
            decision = fold_policy.when_due(self._named[row], due_s + _LATE_S, self._plan)
            rows += [row] * decision.folds
            self._apply(row, decision)
        for n, folder in enumerate(self._folders):
            if mine := [row for row in rows if zlib.crc32(row) % len(self._folders) == n]:
                self.events += folder.fold_rows(mine).events

    def _apply(self, row: bytes, decision: Any) -> None:
        if decision.named is None:
            del self._named[row]
            del self._due_s[row]
            return
        self._named[row] = decision.named
        if decision.due_s is not None:
            self._due_s[row] = decision.due_s
            heapq.heappush(self._timers, (decision.due_s, row))


def drawn(keys: int, skew: float) -> Iterator[Update]:
    """Events with Zipf keys, each with an id of its own."""
    weights = list(itertools.accumulate(rank**-skew for rank in range(1, keys + 1)))
    chance = random.Random(7)
    for number in itertools.count():
        (rank,) = chance.choices(range(keys), cum_weights=weights)
        yield Update(Key(f"key-{rank}"), 1, f"event-{number}")


def commands() -> list[str]:
    """The arguments of the plans on the page."""
    return re.findall(r"^\$ murmur plan (.*)$", PAGE, re.MULTILINE)


def kept(spec: BigtableSpec) -> dict[bytes, int]:
    """Bytes of what is pending, with its names, and of markers, by the key of the row."""
    from murmur_beam.state.bigtable import wire

    with closing(spec.connect()) as connection:
        rows = connection.run(connection.read(wire.read_range(connection, b"\x01", None, 0)))
    sizes = {}
    for row in rows:
        pending = sum(len(cell.qualifier) + len(cell.value) for cell in row.cells if cell.family == wire.PENDING)
        sizes[row.key] = pending + sum(len(cell.value) for cell in row.cells if cell.family == wire.DEDUP)
    return sizes


def compare(seconds: float, **both: tuple[float, float]) -> None:
    """Print what was planned, a second, and what was counted; fail where they differ by more than 15 %."""
    for name, (rate, counted) in both.items():
        print(f"{name}: planned {rate * seconds:,.1f}, counted {counted:,}")
    for name, (rate, counted) in both.items():
        assert rate * seconds == pytest.approx(counted, rel=0.15), name


@pytest.mark.parametrize(
    ("skew", "keys", "writers", "bundle", "flushes"),
    [(0.0, 180, 3, 180, 9), (1.3, 500, 4, 100, 24), (1.0, 12, 2, 20, 60)],
)
def test_commits_are_those_of_a_real_run(
    bigtable_host: str, proxy: FaultProxy, skew: float, keys: int, writers: int, bundle: int, flushes: int
) -> None:
    """Writers in turns, on one emulator: each count is within 15 % of the plan for this load, and the sum is exact."""
    from tests.support.emulators import new_spec

    total, rules = flushes * bundle, FoldRules(60.0, 0.1, 3_600.0)
    made = cli_plan.plan(Load(1.0, keys, skew, float(total), None, False, writers, bundle, 1, rules))
    requests, events, spec = Requests(proxy), drawn(keys, skew), new_spec(bigtable_host)
    with ExitStack() as stack:
        stores = [stack.enter_context(closing(spec.open(Count()))) for _ in range(writers)]
        requests.taken()
        for number in range(flushes):
            results = stores[number % writers].merge_updates(list(itertools.islice(events, bundle)))
            assert set(results) == {Outcome.MERGED}
        counted = requests.taken()
        assert sum(count for _, count in stores[0].scan()) == total
    compare(
        total,
        rows_written=(made["rows_written"], counted["written"]),
        rows_read=(made["rows_read"], counted["read"]),
        conflicts=(made["conflicts"], counted["conflicts"]),
        write_requests=(made["write_requests"], counted["requests"]),
    )


class Scaled(NamedTuple):
    """A plan of the page, made small. Shards, skew and share stay, and so does the ratio of the bucket to the times of
    the rules of folding.

    Attributes:
        bucket: the plan's, as its command says.
        keys, events, bundle: fewer keys, events in all and events of a flush, so that rows of all sizes are there: some
            get a few events, some hundreds.
        remembers: whether the folders keep the markers of what they fold. The plan's folders do not: rows get many more
            events than a process keeps.
    """

    bucket: str
    keys: int
    events: int
    bundle: int
    remembers: bool = False

    def load(self) -> Load:
        """The load, with a bucket of a minute."""
        (command,) = [command for command in commands() if f"--bucket {self.bucket} " in command]
        planned = load_of(cli._parser().read(["plan", *shlex.split(command)]))
        every_s, share, age_s = planned.fold
        life_s = 60.0
        return planned._replace(
            events_per_s=self.events / life_s,
            keys=self.keys,
            bundle=self.bundle,
            life_s=life_s,
            retention_s=None,
            fold=FoldRules(every_s / planned.life_s * life_s, share, age_s / planned.life_s * life_s),
        )


@pytest.mark.parametrize(
    "scaled",
    [
        pytest.param(Scaled("1h", 150, 20_000, 100), id="1M/s"),
        pytest.param(Scaled("1h", 70, 10_000, 100, remembers=True), id="1M/s-remembered"),
        pytest.param(Scaled("1m", 300, 24_000, 150), id="10M/s"),
    ],
)
def test_the_page_s_plans_scaled_down_are_those_of_a_real_run(
    bigtable_host: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, scaled: Scaled
) -> None:
    """Three writers append in turns, and two folders fold by the rules of the fold stage: each number of rows,
    requests, events and bytes is within 15 % of the plan for this load, and the sum is exact."""
    from tests.support.emulators import appended_spec

    load, cached = scaled.load(), 2_000_000 * scaled.remembers
    monkeypatch.setattr(cli_plan, "CACHED", cached)
    made = cli_plan.plan(load)
    requests, events = Requests(proxy), drawn(load.keys, load.skew)
    spec = appended_spec(bigtable_host, shards=load.shards, max_cached_events=cached)
    written: Counter[str] = Counter()
    folded: Counter[str] = Counter()
    with ExitStack() as stack:
        stores = [stack.enter_context(closing(spec.open(Count()))) for _ in range(5)]
        writers, stage = stores[:3], Stage(stores[3:], load.fold)
        requests.taken()
        for number in range(scaled.events // load.bundle):
            some, now_s = list(itertools.islice(events, load.bundle)), (number + 1) * load.bundle / load.events_per_s
            stage.turn(now_s)
            folded += requests.taken()
            assert set(writers[number % 3].merge_updates(some)) == {Outcome.RECORDED}
            written += requests.taken()
            stage.see(some, now_s)
        stage.turn(math.inf)
        folded += requests.taken()
        sizes = kept(spec)
        hottest = sum(size for row, size in sizes.items() if row.startswith(b"key-0\x00"))
        assert sum(count for _, count in stores[0].scan(fresh=True)) == scaled.events
    compare(
        load.life_s,
        rows_written=(made["rows_written"], written["written"]),
        write_requests=(made["write_requests"], written["requests"]),
        append_bytes=(made["append_bytes"], written["bytes_written"]),
        fold_events=(made["fold_events"], stage.events),
        fold_rows_written=(made["fold_rows_written"], folded["written"]),
        fold_rows_read=(made["fold_rows_read"], folded["read"]),
        fold_bytes_read=(made["fold_bytes_read"], folded["bytes_read"]),
        stored_bytes=(made["stored_bytes"] / load.life_s, sum(sizes.values()) + len(sizes) * cli_plan.BASE_BYTES),
        hottest_key_bytes=(made["hot_row_events"] * cli_plan.MARKER_BYTES / load.life_s * load.shards, hottest),
    )
