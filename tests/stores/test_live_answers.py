"""Answers of the live service that the emulator does not give, as far as they are known: which update fails, and which
limits hold.

The real store and the real `MergeRecords`, the real emulator, and between them a proxy that gives these answers.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import apache_beam as beam
import grpc
import pytest
from google.cloud.bigtable_v2.types import (
    CheckAndMutateRowRequest,
    MutateRowsRequest,
    MutateRowsResponse,
    ReadRowsRequest,
)
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.clock import Clock
from murmur_beam.errors import PermanentError, StoreUnavailable, TransientError
from murmur_beam.model import DeadLetter, Key, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.processor import AtomicDedup, Config, NoDedup
from murmur_beam.runs.beam_runs import beam_options, run
from murmur_beam.state.bigtable import BigtableSpec, encode_row_key, wire
from murmur_beam.state.bigtable.keys import SCHEMA_ROW
from murmur_beam.testing import FakeClock
from murmur_beam.transforms import MergeRecords
from tests.support import emulators
from tests.support.fault_proxy import CHECK_AND_MUTATE, MUTATE_ROWS, READ_ROWS, Fault, FaultProxy, Plan, Refusal

PRECONDITION, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
NO_TRANSACTIONS = "Single-row transactions are not allowed by this app profile"
CREATING = "Table currently being created"
TYPE_MISMATCH = "Error in field 'Mutations list' : Error in element #0 : Column family type mismatch"
NO_FAMILY = "Requested column family not found."
MOST_BYTES = 524_288
"""The service refuses larger ReadRows requests."""

N = 200
RECORDS: list[dict[str, Any]] = [{"id": str(i), "k": f"k{i % 40}"} for i in range(N)]
ONCE, PLAIN = Config(dedup=AtomicDedup()), Config(dedup=NoDedup())


def new_spec(host: str, **arguments: Any) -> BigtableSpec:
    """A table that was made for sums, through an app profile."""
    spec = emulators.new_spec(host, app_profile="counters", **arguments)
    spec.open(Sum()).close()  # records that
    return spec


def rows_of(method: str, request: bytes) -> list[bytes]:
    """The row keys that a request names."""
    if method == CHECK_AND_MUTATE:
        return [CheckAndMutateRowRequest.deserialize(request).row_key]
    if method == MUTATE_ROWS:
        return [entry.row_key for entry in MutateRowsRequest.deserialize(request).entries]
    return list(ReadRowsRequest.deserialize(request).rows.row_keys)


def refusing(code: grpc.StatusCode, text: str, *methods: str, part: bytes = b"") -> Callable[[str, bytes], Any]:
    """Make requests of these methods fail that name a row whose key contains ``part``."""

    def live(method: str, request: bytes) -> Refusal | None:
        refused = method in methods and any(part in row for row in rows_of(method, request))
        return Refusal(code, text) if refused else None

    return live


def spoiling(code: grpc.StatusCode, text: str, part: bytes = b"") -> Callable[[str, bytes], Any]:
    """Make all entries of a MutateRows fail, unwritten, if one row's key contains ``part``."""

    def live(method: str, request: bytes) -> bytes | None:
        rows = rows_of(method, request) if method == MUTATE_ROWS else []
        if not any(part in row for row in rows):
            return None
        status = {"code": code.value[0], "message": text}
        entries = [{"index": i, "status": status} for i in range(len(rows))]
        return MutateRowsResponse.serialize(MutateRowsResponse(entries=entries))

    return live


def for_a_while(n: int, live: Callable[[str, bytes], Any]) -> Callable[[str, bytes], Any]:
    """Give the answer only to the first ``n`` matching requests."""
    left = list(range(n))

    def passing(method: str, request: bytes) -> Any:
        said = live(method, request) if left else None
        if said is not None:
            left.pop()
        return said

    return passing


_letters: list[DeadLetter] = []


def _keep(letter: DeadLetter) -> None:
    _letters.append(letter)


def _one(record: dict[str, Any]) -> int:
    return 1


def merge(spec: BigtableSpec, config: Config, records: Sequence[dict[str, Any]] = RECORDS) -> Counter[str]:
    """Run a pipeline of one `MergeRecords`; its counters. Dead letters are collected in ``_letters``."""
    _letters.clear()
    pipeline = beam.Pipeline(options=beam_options([]))
    event_id = {} if config is PLAIN else {"event_id": "id"}
    outputs = (
        pipeline
        | beam.Create(records, reshuffle=False)
        | MergeRecords("test", key="k", value=_one, store=spec, config=config, **event_id)
    )
    _ = outputs.dead_letter | beam.Map(_keep)
    return Counter(run(pipeline))


def total(host: str, spec: BigtableSpec, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """All sums, read without the proxy."""
    with monkeypatch.context() as patch:
        patch.setenv("BIGTABLE_EMULATOR_HOST", host)
        with closing(spec.open(Sum())) as store:
            return {key.entity: value for key, value in store.scan()}


class TestTheTableIsAtFault:
    @pytest.mark.parametrize(
        ("config", "live", "says"),
        [
            pytest.param(
                ONCE,
                refusing(PRECONDITION, NO_TRANSACTIONS, CHECK_AND_MUTATE),
                "by this app profile (counters): a commit needs one that routes to a single cluster",
                id="app-profile",
            ),
            pytest.param(
                ONCE,
                refusing(PRECONDITION, "Table is being deleted", CHECK_AND_MUTATE),
                "Table is being deleted; so it says of a request that changes nothing (app profile counters)",
                id="deleted",
            ),
            pytest.param(
                ONCE,
                refusing(INVALID, "Words of a later service", CHECK_AND_MUTATE),
                "Words of a later service; so it says of",
                id="unknown-words",
            ),
            pytest.param(
                ONCE,
                refusing(grpc.StatusCode.OUT_OF_RANGE, "Timestamp", CHECK_AND_MUTATE),
                "OUT_OF_RANGE: Timestamp; so it says of",
                id="another-code",
            ),
            pytest.param(
                ONCE, refusing(INVALID, TYPE_MISMATCH, CHECK_AND_MUTATE), "a column family is missing", id="type"
            ),
            pytest.param(
                ONCE,
                refusing(grpc.StatusCode.NOT_FOUND, NO_FAMILY, CHECK_AND_MUTATE),
                "a column family is missing",
                id="family-not-found",
            ),
            pytest.param(
                ONCE, refusing(INVALID, NO_FAMILY, CHECK_AND_MUTATE), "a column family is missing", id="family-invalid"
            ),
            pytest.param(PLAIN, spoiling(INVALID, TYPE_MISMATCH), "a column family is missing", id="bulk-type"),
            pytest.param(PLAIN, spoiling(INVALID, "Words"), "INVALID_ARGUMENT: Words; so it says", id="bulk-unknown"),
            pytest.param(
                PLAIN,
                refusing(PRECONDITION, "Table is being deleted", MUTATE_ROWS),
                "Table is being deleted; so it says",
                id="bulk-deleted",
            ),
        ],
    )
    def test_the_bundle_fails_without_dead_letters(
        self,
        bigtable_host: str,
        proxy: FaultProxy,
        monkeypatch: pytest.MonkeyPatch,
        config: Config,
        live: Callable[[str, bytes], Any],
        says: str,
    ) -> None:
        """An answer that every record gets is not a record's fault; the message has the command that shows more."""
        spec = new_spec(bigtable_host)
        proxy.live = live
        with pytest.raises(Exception, match="bigtable://") as caught:
            merge(spec, config)
        assert says in str(caught.value)
        assert f"see: murmur check '{spec}'" in str(caught.value)
        assert _letters == []
        assert total(bigtable_host, spec, monkeypatch) == {}
        # Once it is mended, all of them merge.
        proxy.live = lambda method, request: None
        assert merge(spec, config)["test:record_merged"] == N

    @pytest.mark.parametrize("code", [PRECONDITION, INVALID, grpc.StatusCode.OUT_OF_RANGE], ids=lambda code: code.name)
    def test_failed_reads_too(self, bigtable_host: str, proxy: FaultProxy, code: grpc.StatusCode) -> None:
        """A new worker must read rows that others have written."""
        spec = new_spec(bigtable_host)
        assert merge(spec, ONCE)["test:record_merged"] == N
        with closing(spec.open(Sum())) as store:
            proxy.live = refusing(code, "Nothing is read today", READ_ROWS)
            results = store.merge_updates([Update(Key(r["k"]), 1, f"new {r['id']}") for r in RECORDS])
            assert {type(result) for result in results} == {StoreUnavailable}
            results = store.merge_updates([Update(Key(f"new {r['k']}"), 1) for r in RECORDS])
            assert {type(result) for result in results} == {StoreUnavailable}

    @pytest.mark.parametrize(
        ("config", "method"),
        [(ONCE, CHECK_AND_MUTATE), (ONCE, READ_ROWS), (PLAIN, MUTATE_ROWS), (PLAIN, READ_ROWS)],
        ids=["commits", "opening", "bulk", "bulk-reads"],
    )
    def test_a_table_that_is_being_created_is_waited_for(
        self, bigtable_host: str, proxy: FaultProxy, config: Config, method: str
    ) -> None:
        """More often than a record is tried."""
        spec = new_spec(bigtable_host)
        proxy.live = for_a_while(5, refusing(PRECONDITION, CREATING, method))
        assert merge(spec, config)["test:record_merged"] == N
        assert _letters == []
        assert proxy.counts[method].refused == 5

    @pytest.mark.parametrize("event_id", ["1", None], ids=["commit", "bulk"])
    @pytest.mark.parametrize("clock", [FakeClock(), Clock()], ids=["its-clock", "its-task"])
    def test_a_table_whose_creation_never_ends(
        self, bigtable_host: str, proxy: FaultProxy, clock: Clock, event_id: str | None
    ) -> None:
        """The flush fails when patience ends, however it ends, and even then no record is blamed."""
        patience_s = 10.0 if isinstance(clock, FakeClock) else 0.3
        spec = new_spec(bigtable_host, patience_s=patience_s, clock=clock)
        with closing(spec.open(Sum())) as store:
            proxy.live = refusing(PRECONDITION, CREATING, CHECK_AND_MUTATE, MUTATE_ROWS)
            (result,) = store.merge_updates([Update(Key("a"), 1, event_id)])
        assert isinstance(result, StoreUnavailable)
        assert f"still being created after {patience_s:g} s" in str(result)

    def test_while_the_cause_is_unknown_the_flush_is_tried_again(self, bigtable_host: str, proxy: FaultProxy) -> None:
        """While the service does not say whether the table or a row is at fault, no record becomes a dead letter."""
        spec = new_spec(bigtable_host)

        def live(method: str, request: bytes) -> Refusal | None:
            if method != CHECK_AND_MUTATE:
                return None
            down = SCHEMA_ROW in rows_of(method, request)
            return Refusal(grpc.StatusCode.UNAVAILABLE, "down") if down else Refusal(PRECONDITION, "Words")

        with closing(spec.open(Sum())) as store:
            proxy.live = live
            (result,) = store.merge_updates([Update(Key("a"), 1, "1")])
            assert isinstance(result, TransientError)
            proxy.live = lambda method, request: None
            assert store.merge_updates([Update(Key("a"), 1, "1")]) == [Outcome.MERGED]


class TestARowIsAtFault:
    @pytest.mark.parametrize(
        "live",
        [
            pytest.param(refusing(PRECONDITION, "Row is too large", CHECK_AND_MUTATE, part=b"k7"), id="too-large"),
            pytest.param(refusing(INVALID, "Row is odd", CHECK_AND_MUTATE, part=b"k7"), id="invalid"),
            pytest.param(
                refusing(grpc.StatusCode.OUT_OF_RANGE, "Row is far", CHECK_AND_MUTATE, part=b"k7"), id="out-of-range"
            ),
        ],
    )
    def test_only_its_records_are_dead_letters(
        self, bigtable_host: str, proxy: FaultProxy, live: Callable[[str, bytes], Any]
    ) -> None:
        """The table accepts other rows like it; this is asked once."""
        spec = new_spec(bigtable_host)
        asked = []

        def watched(method: str, request: bytes) -> Any:
            asked.append(method == CHECK_AND_MUTATE and rows_of(method, request) == [SCHEMA_ROW])
            return live(method, request)

        proxy.live = watched
        assert merge(spec, ONCE)["test:record_merged"] == N - 5
        assert [letter.error_message.rpartition(": ")[2][:6] for letter in _letters] == ["Row is"] * 5
        assert {tuple(letter.failed_keys) for letter in _letters} == {("k7",)}
        assert sum(asked) == 1

    def test_a_row_that_is_too_large_to_read(self, bigtable_host: str, proxy: FaultProxy) -> None:
        """The service refuses every read of it; other rows of the same read merge."""
        spec = new_spec(bigtable_host)
        assert merge(spec, ONCE)["test:record_merged"] == N
        proxy.live = refusing(PRECONDITION, "Read returned 347MiB from row", READ_ROWS, part=b"k7")
        for updates in (
            [Update(Key(f"k{i}"), 1, "new") for i in range(40)],
            [Update(Key(f"k{i}"), 1) for i in range(40)],
        ):
            with closing(spec.open(Sum())) as store:
                results = store.merge_updates(updates)
            assert [i for i, result in enumerate(results) if result is not Outcome.MERGED] == [7]
            assert type(results[7]) is PermanentError

    def test_a_short_fault_fails_no_record(self, bigtable_host: str, proxy: FaultProxy) -> None:
        """A commit that is refused before the table was asked, and accepted after it, is merged."""
        spec = new_spec(bigtable_host)
        for n in (1, 2, 5):
            with closing(spec.open(Sum())) as store:
                proxy.live = for_a_while(n, refusing(PRECONDITION, "Words", CHECK_AND_MUTATE, part=b"k"))
                updates = [Update(Key(f"k{i}"), 1, str(n)) for i in range(5)]
                assert store.merge_updates(updates) == [Outcome.MERGED] * 5


class TestNeighbours:
    """One bad entry of a MutateRows fails all of it on the live service."""

    @pytest.mark.parametrize(
        ("n", "bad"),
        [(1, {0}), (2, {1}), (300, {299}), (300, {3, 4, 150}), (16, set(range(16)))],
        ids=["alone", "of-two", "last", "three", "all"],
    )
    def test_only_rows_that_are_refused_alone_fail(
        self, bigtable_host: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, n: int, bad: set[int]
    ) -> None:
        """All others count once; in at most two requests a row."""
        spec = new_spec(bigtable_host)
        updates = [Update(Key(f"{'bad' if i in bad else 'good'} {i}"), i + 1) for i in range(n)]
        with closing(spec.open(Sum())) as store:
            proxy.live = spoiling(INVALID, "Row is odd", part=b"bad")
            results = store.merge_updates(updates)
        assert {i for i, result in enumerate(results) if result is not Outcome.MERGED} == bad
        assert {type(results[i]) for i in bad} == {PermanentError}
        assert proxy.counts[MUTATE_ROWS].requests <= 2 * len(bad) * (n.bit_length() + 1) + 2
        assert total(bigtable_host, spec, monkeypatch) == {f"good {i}": i + 1 for i in range(n) if i not in bad}

    @pytest.mark.parametrize("names", [("good", "bad", "slow"), ("good 1", "good 2", "bad", "slow"), ("bad", "good")])
    def test_written_entries_count_though_patience_ends(
        self, bigtable_host: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]
    ) -> None:
        """While the last parts have no answer, earlier parts have their results, so that they are not tried again."""
        spec = new_spec(bigtable_host, patience_s=1.0)
        late = Plan({Fault.DELAY: 1.0}, methods=[MUTATE_ROWS], late_s=30.0)
        spoil = spoiling(INVALID, "Row is odd", part=b"bad")

        def live(method: str, request: bytes) -> Any:
            said = spoil(method, request)
            if method == MUTATE_ROWS and said is None:
                proxy.plan = late if b"slow" in request else None
            return said

        with closing(spec.open(Sum())) as store:
            proxy.live = live
            results = store.merge_updates([Update(Key(name), 1) for name in names])
        for name, result in zip(names, results, strict=True):
            assert (result is Outcome.MERGED) == name.startswith("good")
        proxy.plan = None
        assert total(bigtable_host, spec, monkeypatch) == {name: 1 for name in names if name[0] == "g"}

    def test_parts_that_are_not_known_to_have_failed_are_not_sent_again(
        self, bigtable_host: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A part whose answer is lost may count twice, when its record is tried again; no other part is."""
        spec = new_spec(bigtable_host)
        spoil, lose = (
            spoiling(INVALID, "Row is odd", part=b"bad"),
            refusing(grpc.StatusCode.UNAVAILABLE, "lost", MUTATE_ROWS, part=b"lost"),
        )
        proxy.live = lambda method, request: spoil(method, request) or lose(method, request)
        updates = [Update(Key(name), 1) for name in ("bad", "good 1", "good 2", "lost")]
        with closing(spec.open(Sum())) as store:
            results = store.merge_updates(updates)
        assert [type(result) for result in results] == [PermanentError, Outcome, TransientError, TransientError]
        assert total(bigtable_host, spec, monkeypatch) == {"good 1": 1}


class TestAnOnlyDelivery:
    """An event that is delivered once is merged, and never a duplicate, whatever happened to the commit's answer."""

    @pytest.mark.parametrize(
        "chances",
        [
            pytest.param({Fault.EXHAUST_AFTER: 0.4}, id="exhausted"),
            pytest.param({Fault.TWICE: 0.5}, id="twice"),
            pytest.param({Fault.EXHAUST_AFTER: 0.2, Fault.TWICE: 0.2, Fault.LOSE: 0.1, Fault.EXHAUST: 0.1}, id="all"),
        ],
    )
    @pytest.mark.parametrize("writers", [1, 3])
    def test_merged_is_reported_once_for_each_event(
        self, bigtable_host: str, proxy: FaultProxy, chances: dict[Fault, float], writers: int
    ) -> None:
        """Also where several write the same rows, with events of their own and shared ones."""
        # Few commits a row: once another writer has packed a column, its author is unknown.
        spec = new_spec(bigtable_host, clock=FakeClock())
        proxy.plan = Plan(chances, seed=7, methods=[CHECK_AND_MUTATE])
        outcomes: Counter[Any] = Counter()
        chance = random.Random(1)
        shares = [[f"e{i}" for i in range(3000) if i % writers == w or i % 10 == 0] for w in range(writers)]
        lock = threading.Lock()

        def write(events: list[str]) -> None:
            with closing(spec.open(Sum())) as store:
                for start in range(0, len(events), 300):
                    pending = [Update(Key(f"k{hash_of(e) % 150}"), 1, e) for e in events[start : start + 300]]
                    while pending:
                        results = store.merge_updates(pending)
                        with lock:
                            outcomes.update(r for r in results if isinstance(r, Outcome))
                        pending = [u for u, r in zip(pending, results, strict=True) if isinstance(r, Exception)]

        for events in shares:
            chance.shuffle(events)
        threads = [threading.Thread(target=write, args=(events,)) for events in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        assert not any(thread.is_alive() for thread in threads)
        deliveries = sum(map(len, shares))
        assert outcomes == Counter({Outcome.MERGED: 3000, Outcome.DUPLICATE: deliveries - 3000})
        proxy.plan = None
        with closing(spec.open(Sum())) as store:
            assert sum(value for _, value in store.scan()) == 3000

    def test_a_conflict_is_not_a_lost_answer(self, bigtable_host: str) -> None:
        """It is not counted as one."""
        spec = new_spec(bigtable_host)
        with closing(spec.open(Sum())) as store, closing(spec.open(Sum())) as other:
            for i in range(3):
                store.merge_update(Key("a"), 1, event_id=f"mine {i}")
                other.merge_update(Key("a"), 1, event_id=f"other {i}")
            flushed: Any = store.merge_updates([Update(Key("a"), 1, "last")])
        assert flushed == [Outcome.MERGED]
        assert flushed.counts["rows_read"] == 1
        assert "ambiguous_resolved" not in +Counter(flushed.counts)


def hash_of(event: str) -> int:
    """The same in every process and thread."""
    return int(event[1:])


class TestLimits:
    @pytest.mark.parametrize(("n", "size"), [(1000, 600), (300, 4_000)])
    def test_reads_keep_the_limit_of_the_service(
        self, bigtable_host: str, proxy: FaultProxy, n: int, size: int
    ) -> None:
        """However long the keys, for each kind of read: readers, sums, and commits on rows of other writers."""
        largest = [0]

        def live(method: str, request: bytes) -> Refusal | None:
            if method != READ_ROWS:
                return None
            largest.append(len(request))
            return Refusal(INVALID, "Request too large") if len(request) > MOST_BYTES else None

        spec = new_spec(bigtable_host)
        keys = [Key(f"{i:05}".ljust(size, "x")) for i in range(n)]
        proxy.live = live
        for ids in ([None] * n, ["1"] * n, ["2"] * n):
            with closing(spec.open(Sum())) as store:
                store.merge_updates([Update(key, 1, "0") for key in keys[:64]])  # so that it expects to find rows
                updates = [Update(key, 1, event_id) for key, event_id in zip(keys, ids, strict=True)]
                assert list(store.merge_updates(updates)) == [Outcome.MERGED] * n
                assert sum(store.get_many(keys)) >= n
        assert proxy.counts[READ_ROWS].refused == 0
        assert max(largest) <= 500 * 1024 + 300
        if n * size > MOST_BYTES:
            assert max(largest) > 400 * 1024, "as few reads as possible"

    @given(sizes=st.lists(st.integers(1, 4_096), max_size=400), most=st.integers(1, 200), repeat=st.integers(1, 4))
    def test_keys_are_split_in_their_order(self, sizes: list[int], most: int, repeat: int) -> None:
        """None is lost or repeated, and no batch exceeds the limit, or is smaller than necessary."""
        keys = [b"%04d" % i + b"x" * size for i, size in enumerate(sizes * repeat)]
        batches = [list(batch) for batch in wire.batches(keys, most)]
        assert [key for batch in batches for key in batch] == keys
        weights = [sum(len(key) + 3 for key in batch) for batch in batches]
        assert all(0 < len(batch) <= most for batch in batches)
        assert all(weight <= wire.MAX_READ_BYTES for weight in weights)
        for (batch, weight), after in zip(zip(batches, weights, strict=True), batches[1:], strict=False):
            assert len(batch) == most or weight + len(after[0]) + 3 > wire.MAX_READ_BYTES

    @pytest.mark.parametrize(("max_in_flight", "channels"), [(1, 1), (64, 1), (65, 2), (300, 5)])
    def test_connections_suffice(
        self, bigtable_host: str, proxy: FaultProxy, max_in_flight: int, channels: int
    ) -> None:
        """Each carries at most 100 requests at a time; all are used."""
        spec = new_spec(bigtable_host, max_in_flight=max_in_flight)
        with closing(spec.open(Sum())) as store:
            updates = [Update(Key(f"k{i}"), 1, "1") for i in range(400)]
            assert set(store.merge_updates(updates)) == {Outcome.MERGED}
            assert set(store.get_many([update.key for update in updates])) == {1}
            deadline = time.monotonic() + 10
            while proxy.connections != channels:  # those of an earlier store end a moment later
                assert time.monotonic() < deadline, proxy.connections
                time.sleep(0.01)


def test_the_longest_row_keys_are_valid() -> None:
    """Bigtable accepts the keys of the tests above."""
    assert len(encode_row_key(Key("x" * 4_000))) <= 4_096
