"""Two clusters: appends go to both, folds run in one, and each change arrives late in the other.

When all has arrived, every number in both clusters equals the recount.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from murmur_beam.errors import TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Custom, Sum
from murmur_beam.monoids.base import Monoid
from tests.support.clusters import OTHER, A, B, Clusters
from tests.support.fault_proxy import MUTATE_ROWS, Fault, Plan

K = Key("k")
EVENTS = 30
"""Event i adds 4**i, so that a lost and a doubled event show."""


@pytest.fixture
def clusters(bigtable_host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clusters]:
    """Two clusters with a table of sums that is appended to."""
    with Clusters(bigtable_host) as running:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", running.address)
        running.make_table()
        yield running


class First(Plan):
    """Gives the first write of pending deltas a fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__({}, methods=[MUTATE_ROWS])
        self._left = [fault]

    def draw(self, method: str) -> Fault | None:
        return self._left.pop() if self._left and method in self.methods else None


def total(*events: int) -> int:
    """The sum of these events."""
    return sum(4**i for i in events)


def append(clusters: Clusters, profile: str, *events: int) -> None:
    """Append these events with an app profile."""
    with closing(clusters.spec(profile).open(Sum())) as store:
        updates = [Update(K, 4**i, f"e{i}") for i in events]
        assert store.merge_updates(updates) == [Outcome.RECORDED] * len(events)


def fold(clusters: Clusters, cluster: str) -> Any:
    """Fold in a cluster; the totals."""
    with closing(clusters.spec(cluster, f"folds-{cluster}").open(Sum())) as store:
        return store.fold()


def read(clusters: Clusters, cluster: str, *, fresh: bool = True) -> int | None:
    """What a new reader finds in a cluster."""
    with closing(clusters.spec(cluster).open(Sum())) as store:
        return store.get_many([K], fresh=fresh)[0]


def check(clusters: Clusters, *events: int) -> None:
    """All has arrived, and both clusters have these events, each once and folded; nothing is pending."""
    clusters.settle()
    for cluster in (A, B):
        assert read(clusters, cluster) == total(*events), cluster
        assert read(clusters, cluster, fresh=False) == total(*events), cluster
        assert clusters.cells(cluster, "pending") == [], cluster


# ---- appends to both, folds in one ----


def test_appends_to_both_clusters_are_folded_in_one(clusters: Clusters) -> None:
    """Events that were redelivered to the other cluster count once."""
    append(clusters, A, 0, 1)
    append(clusters, B, 1, 2)
    append(clusters, A, 2, 3)
    assert (read(clusters, A), read(clusters, B)) == (total(0, 1, 2, 3), total(1, 2))
    assert fold(clusters, A).events == 4
    clusters.arrive(A)
    assert fold(clusters, A).duplicates == 2
    append(clusters, B, 0, 4)
    clusters.settle()
    assert fold(clusters, A).events == 1
    check(clusters, 0, 1, 2, 3, 4)


def test_a_retry_reaches_both_clusters(clusters: Clusters) -> None:
    """Whether the client retries or the service itself: it is the same cell."""
    for i, fault in enumerate((Fault.EXHAUST_AFTER, Fault.TWICE, Fault.LOSE)):
        some = iter([A, B])
        clusters.routes["any"] = lambda method, some=some: next(some) if method == MUTATE_ROWS else A
        with closing(clusters.spec("any").open(Sum())) as store:
            clusters.plan = First(fault)
            assert store.merge_updates([Update(K, 4**i, f"e{i}")]) == [Outcome.RECORDED]
        clusters.plan = None
        assert read(clusters, A) == read(clusters, B) == total(*range(i + 1)), fault
    assert {*clusters.cells(A, "pending")} == {*clusters.cells(B, "pending")}
    fold(clusters, A)
    check(clusters, 0, 1, 2)


def test_the_cluster_of_folds_may_be_gone_for_a_while(clusters: Clusters) -> None:
    """Appends and reads go on in the other; no fold is needed for exact reads."""
    append(clusters, "any", 0, 1)
    assert fold(clusters, A).events == 2
    clusters.arrive(B)
    clusters.routes["any"] = B
    append(clusters, "any", 2)
    append(clusters, "any", 1)
    assert read(clusters, "any") == total(0, 1, 2)
    clusters.routes["any"] = A
    append(clusters, "any", 3, 2)
    fold(clusters, A)
    clusters.settle()
    fold(clusters, A)
    check(clusters, 0, 1, 2, 3)


def test_a_deleted_cell_does_not_come_back(clusters: Clusters) -> None:
    """Its deletion may arrive before it. A late retry brings it back, for no effect and only until the next fold."""
    append(clusters, A, 0)
    with closing(clusters.spec("any").open(Sum())) as store:
        clusters.routes["any"] = A
        clusters.plan = Plan({Fault.STRAGGLE: 1.0}, methods=[MUTATE_ROWS], late_s=0.0)
        store.merge_updates([Update(K, 4, "e1")])  # its answer is lost
        clusters.drain()
        clusters.plan = None
    assert fold(clusters, A).cells >= 2
    sets = [change for change in clusters.late[B] if change.kinds == {"set_cell pending"}]
    rest = [change for change in clusters.late[B] if change not in sets]
    assert len(sets) >= 2
    clusters.arrive(B, rest)
    clusters.arrive(B, sets)
    assert clusters.cells(B, "pending") == []
    append(clusters, B, 0, 1)
    clusters.settle()
    assert read(clusters, A) == read(clusters, B) == total(0, 1)
    assert fold(clusters, A).duplicates == 2
    check(clusters, 0, 1)


# ---- reading where not everything has arrived ----


def test_changes_that_arrive_whole_and_in_order_are_read_exactly(clusters: Clusters) -> None:
    """After each of them: with the commits of a fold and without, before its deletions and after; also by a reader that
    remembers the row."""
    append(clusters, A, 0, 1)
    append(clusters, B, 2)
    clusters.settle()
    with closing(clusters.spec(B).open(Sum())) as reader:
        for events in ((3,), (4, 5), (0, 5, 6)):
            append(clusters, A, *events)
            clusters.arrive(B)
            fold(clusters, A)
            right = read(clusters, A)
            assert len(clusters.late[B]) >= 2
            while clusters.late[B]:
                assert read(clusters, B) == reader.get(K) == right
                clusters.arrive(B, clusters.late[B][:1])
            assert read(clusters, B) == reader.get(K) == right
    check(clusters, 0, 1, 2, 3, 4, 5, 6)


def test_changes_that_arrive_in_parts_or_another_order_are_read_exactly_at_last(clusters: Clusters) -> None:
    """Until then, a sum without its markers counts events twice, and a deletion without its sum hides them. The cluster
    of the folds reads exactly all the while."""
    append(clusters, A, 0, 1)
    clusters.settle()
    fold(clusters, A)
    (commit,) = [change for change in clusters.late[B] if "set_cell dedup" in change.kinds]
    clusters.arrive(B, [clusters.divide(B, commit, lambda kind: kind == "add_to_cell")])
    assert read(clusters, B) == 2 * total(0, 1)
    assert read(clusters, A) == total(0, 1)
    clusters.settle()
    assert read(clusters, B) == total(0, 1)

    append(clusters, A, 2)
    clusters.settle()
    fold(clusters, A)
    (deletion,) = [change for change in clusters.late[B] if "delete_from_column pending" in change.kinds]
    clusters.arrive(B, [deletion])
    assert read(clusters, B) == total(0, 1)
    assert read(clusters, A) == total(0, 1, 2)
    check(clusters, 0, 1, 2)


def test_a_reader_that_has_read_between_commits_in_another_order(clusters: Clusters) -> None:
    """It remembers the row at its last version, without the markers that arrived later. A redelivery of their events
    counts again for this reader, until it is folded."""
    append(clusters, A, 0)
    clusters.settle()
    fold(clusters, A)
    early = list(clusters.late[B])
    (commit,) = [change for change in early if "set_cell dedup" in change.kinds]
    (version,) = [change for change in early if change.kinds == {"set_cell state"}]
    append(clusters, A, 1)
    fold(clusters, A)
    (last,) = [change for change in clusters.late[B] if change not in early and "set_cell dedup" in change.kinds]
    with closing(clusters.spec(B).open(Sum())) as reader:
        clusters.arrive(B, [version, last])
        assert reader.get(K) == total(0, 1)
        clusters.arrive(B, [commit])
        clusters.settle()
        assert reader.get(K) == read(clusters, B) == total(0, 1)
        append(clusters, B, 0)
        assert (reader.get(K), read(clusters, B)) == (total(0, 0, 1), total(0, 1))
        clusters.settle()
        fold(clusters, A)
        clusters.settle()
        assert reader.get(K) == total(0, 1)
    check(clusters, 0, 1)


# ---- folds move ----


@pytest.mark.parametrize("deletions", ["late", "arrived"])
def test_folds_move_when_their_commits_have_arrived(clusters: Clusters, deletions: str) -> None:
    """Deletions may still be late: the cells hold nothing new."""
    append(clusters, A, 0, 1)
    append(clusters, B, 2)
    clusters.settle()
    fold(clusters, A)
    late = [change for change in clusters.late[B] if "delete_from_column pending" in change.kinds]
    assert late
    clusters.arrive(B, [change for change in clusters.late[B] if deletions == "arrived" or change not in late])
    append(clusters, A, 3)
    append(clusters, B, 1, 4)
    assert fold(clusters, B).events == 1
    clusters.settle()
    fold(clusters, B)
    check(clusters, 0, 1, 2, 3, 4)


def test_folds_that_move_too_early_count_twice(clusters: Clusters) -> None:
    """Both clusters have folded the same events, and the sums of both are added. Nothing mends that."""
    append(clusters, A, 0, 1)
    clusters.settle()
    fold(clusters, A)
    assert fold(clusters, B).events == 2, "the other cluster has the cells, and not yet the markers"
    assert read(clusters, A) == read(clusters, B) == total(0, 1)
    clusters.settle()
    assert read(clusters, A) == read(clusters, B) == 2 * total(0, 1)
    append(clusters, A, 2)
    fold(clusters, A)
    clusters.settle()
    assert read(clusters, A) == read(clusters, B) == 2 * total(0, 1) + total(2)


def test_a_store_moves_with_its_profile(clusters: Clusters) -> None:
    """A folder that goes on after its app profile was routed to the other cluster remembers rows of the first one; if
    all had arrived before, that is still right."""
    with closing(clusters.spec("any", "folds-a").open(Sum())) as store:
        append(clusters, A, 0, 1)
        assert store.fold().events == 2
        clusters.settle()
        clusters.routes["folds-a"] = B
        append(clusters, B, 1, 2)
        assert store.fold().events == 1
    check(clusters, 0, 1, 2)


# ---- any schedule ----


def added(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    """The events of both, and how often each."""
    return {event: a.get(event, 0) + b.get(event, 0) for event in {*a, *b}}


TALLY: Monoid[Any] = Custom("tally", {}, added)
"""How often each event counts: a value that the server cannot add, so that the last write wins."""


class Schedule:
    """Appends, folds, reads, arrivals and moves in random order, the same for the same seed.

    Args:
        clusters: with a new table.
        seed: of everything; an odd one lets changes arrive in any order, an even one in the order in which they were
            made.
    """

    def __init__(self, clusters: Clusters, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clusters = clusters
        self.in_order = seed % 2 == 0
        self.sums = seed % 4 < 2
        self.folding = A
        self.acknowledged: dict[Key, set[int]] = {}
        self.sent: dict[Key, set[int]] = {}
        clusters.routes["any"] = lambda method: self.chance.choice([A, B])
        clusters.routes["folds-a"] = lambda method: self.folding

    def run(self, steps: int) -> None:
        """The whole schedule, and what must hold at its end."""
        self.clusters.make_table("sum" if self.sums else "tally")
        monoid: Any = Sum() if self.sums else TALLY
        # Each store goes on through all moves, with what it remembers.
        stores = [self.clusters.spec(profile).open(monoid) for profile in ("any", A, B)]
        self.any, self.readers = stores[0], dict(zip((A, B), stores[1:], strict=True))
        try:
            for _ in range(steps):
                self.chance.choices([self.append, self.fold, self.arrive, self.read, self.move], [8, 3, 8, 4, 1])[0]()
            self.clusters.settle()
            self.any.fold()
            self.clusters.settle()
            for key, events in self.acknowledged.items():
                for cluster, reader in self.readers.items():
                    for fresh in (True, False):
                        self.require(key, reader.get_many([key], fresh=fresh)[0], least=events, where=cluster)
            assert [self.clusters.cells(cluster, "pending") for cluster in (A, B)] == [[], []]
        finally:
            for store in stores:
                store.close()

    def append(self) -> None:
        """Some events, new or not; requests fail before and after they are written, and retries go anywhere."""
        chance = self.chance
        updates = [
            Update(Key(f"k{chance.randrange(3)}"), 4**i if self.sums else {str(i): 1}, str(i))
            for i in chance.choices(range(EVENTS), k=chance.randint(1, 4))
        ]
        for update in updates:
            self.sent.setdefault(update.key, set()).add(int(update.event_id or ""))
        faults = {Fault.EXHAUST: 0.1, Fault.EXHAUST_AFTER: 0.1, Fault.TWICE: 0.1, Fault.LOSE: 0.1}
        self.clusters.plan = Plan(faults, seed=chance.randrange(2**32), methods=[MUTATE_ROWS])
        results = self.any.merge_updates(updates)
        self.clusters.plan = None
        for update, result in zip(updates, results, strict=True):
            if result is Outcome.RECORDED:
                self.acknowledged.setdefault(update.key, set()).add(int(update.event_id or ""))

    def fold(self) -> None:
        """In one cluster; it may be killed before it deletes."""
        if self.chance.random() < 0.3:
            self.clusters.plan = Plan({Fault.REFUSE: 1.0}, methods=[MUTATE_ROWS])
        try:
            self.any.fold()
        except TransientError:
            pass
        finally:
            self.clusters.plan = None

    def arrive(self) -> None:
        """Some changes, in one cluster: of each row those that were made first, or any."""
        cluster = self.chance.choice([A, B])
        late = self.clusters.late[cluster]
        if self.in_order:
            upto = {change.row: self.chance.random() for change in late}
            some = [change for i, change in enumerate(late) if i < upto[change.row] * (len(late) + 1)]
        else:
            some = self.chance.sample(late, self.chance.randint(0, len(late)))
            if cluster != self.folding and some and len(some[0].mutations) > 1:
                kind = some[0].mutations[0][1].WhichOneof("mutation")
                some[0] = self.clusters.divide(cluster, some[0], lambda each: each == kind)
        self.clusters.arrive(cluster, some)

    def read(self) -> None:
        """No event counts twice: where there are folds never, elsewhere if changes arrive whole and in order."""
        for cluster, reader in self.readers.items():
            if cluster == self.folding or self.in_order:
                for key in self.acknowledged:
                    self.require(key, reader.get(key), where=cluster)

    def move(self) -> None:
        """Folds move after everything has arrived."""
        self.clusters.settle()
        self.folding = OTHER[self.folding]

    def require(self, key: Key, found: Any, *, least: Sequence[int] | set[int] = (), where: str) -> None:
        """Check that a value has each event at most once, at least these, and none that was never sent."""
        if self.sums:
            counts = {i: (found or 0) // 4**i % 4 for i in range(EVENTS)}
        else:
            counts = {i: (found or {}).get(str(i), 0) for i in range(EVENTS)}
        counted = {i for i, n in counts.items() if n}
        assert max(counts.values()) <= 1, (key, where, counts)
        assert {*least} <= counted <= self.sent[key], (key, where, counts)


@pytest.mark.parametrize("seed", range(8))
def test_any_schedule_ends_with_the_recount(bigtable_host: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """In both clusters, and nothing stays pending."""
    with Clusters(bigtable_host) as clusters:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", clusters.address)
        Schedule(clusters, seed).run(120)
