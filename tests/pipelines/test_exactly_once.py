"""Exactly once into Bigtable while requests fail, answers are lost, writers compete and the server goes away.

The real `MergeRecords` on Beam's in-process runner, the real emulator, and between them the fault proxy.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import grpc
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage

from murmur_beam.buffer import FlushLimits
from murmur_beam.errors import TransientError
from murmur_beam.model import DeadLetter, Key, MergeResult, Outcome, Update
from murmur_beam.monoids import Sum
from murmur_beam.monoids.sum import INT64_MAX
from murmur_beam.options import MergeOptions
from murmur_beam.processor import make_record, merge_records
from murmur_beam.programs import replay
from murmur_beam.runs.beam_runs import beam_options, hold_letters, run, write_dead_letters
from murmur_beam.spec import resolve
from murmur_beam.state import spec_from_uri
from murmur_beam.state.base import Store
from murmur_beam.state.pool import Lease
from murmur_beam.transforms import MergeRecords
from tests.support import emulators
from tests.support.fault_proxy import CHECK_AND_MUTATE, READ_ROWS, Fault, FaultProxy, Plan
from tests.support.merging import PATIENT, Event, Merge, do_all, several

A_FIFTH_FAILS = {
    Fault.REFUSE: 0.06,
    Fault.EXHAUST: 0.029,
    # Each of these ends all other requests in progress on the connection.
    Fault.CUT: 0.001,
    Fault.LOSE: 0.05,
    Fault.EXPIRE: 0.039,
    Fault.CUT_AFTER: 0.001,
    Fault.STRAGGLE: 0.02,
    Fault.DELAY: 0.01,
}
"""20 %, half of them before anything is written, and 1 % that is only late."""

BRIEF = replace(PATIENT, max_attempts=2)
FIELDS: dict[str, Any] = {"name": "test", "key": "k", "value": "v", "event_id": "id"}
FLAGS = ["--name=test", "--key=k", "--value=v", "--event_id=id"]


@pytest.fixture
def uri(bigtable_host: str) -> str:
    """A store in an empty table."""
    return emulators.new_uri(bigtable_host)


def state(uri: str) -> dict[str, int]:
    """All sums."""
    with closing(spec_from_uri(uri).open(Sum())) as store:
        return {key.entity: total for key, total in store.scan()}


def wait_until_it_answers(uri: str) -> None:
    """After a failure gRPC waits a second before it connects again, also for a new client in the same process."""
    deadline = time.monotonic() + 30
    while True:
        try:
            state(uri)
        except TransientError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


class Ran(NamedTuple):
    """The outputs of a pipeline.

    Attributes:
        results: how often each event had each outcome.
        letters: the dead letters.
        counters: Beam's.
    """

    results: Counter[tuple[str, str]]
    letters: list[DeadLetter]
    counters: dict[str, int]

    def outcomes(self) -> Counter[str]:
        """The number of elements with each outcome, by the counters; they must agree with the outputs."""
        counted = Counter({str(o): n for o in Outcome if (n := self.counters.get(f"test:record_{o}", 0))})
        came: Counter[str] = Counter()
        for (outcome, _), n in self.results.items():
            came[outcome] += n
        assert came == counted
        assert len(self.letters) == self.counters.get("test:dead_letter", 0)
        if self.letters:
            counted["dead_letter"] = len(self.letters)
        return counted


_tallies: dict[str, Ran] = {}


class Tally(beam.DoFn):
    """Counts the outputs in this process: 200,000 results are too many to keep.

    Args:
        name: in `_tallies`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def process(self, element: Any) -> None:
        tally = _tallies[self._name]
        if element._fields == MergeResult._fields:
            tally.results[str(element.outcome), element.event_id] += 1
        else:
            tally.letters.append(DeadLetter(*element))


def merge(
    elements: Sequence[Any], built: Callable[[], None] = lambda: None, letters: Path | None = None, **arguments: Any
) -> Ran:
    """Run a pipeline of one `MergeRecords`.

    Args:
        elements: its input.
        built: called when it is built, before it runs.
        letters: file for the dead letters.
        arguments: of `MergeRecords`.
    """
    name = uuid.uuid4().hex
    pipeline = beam.Pipeline(options=beam_options([]))
    held = None
    outputs = pipeline | beam.Create(elements, reshuffle=False) | MergeRecords(**arguments)
    if letters is not None:
        held = hold_letters(str(letters))
        write_dead_letters([outputs.dead_letter], held)
    _ = (outputs.merged, outputs.dead_letter) | beam.Flatten() | beam.ParDo(Tally(name))
    built()
    _tallies[name] = Ran(Counter(), [], {})
    try:
        counters = run(pipeline)
        return _tallies[name]._replace(counters=counters)
    finally:
        del _tallies[name]
        if held is not None:
            held.close()


def replayed(letters: Path, uri: str, capsys: pytest.CaptureFixture[str], flags: Sequence[str] = FLAGS) -> str:
    """Run `murmur replay` on a file; the first line of its output."""
    still_dead = letters.with_suffix(".again")
    capsys.readouterr()
    assert replay.main([f"--input={letters}", f"--store={uri}", f"--dead_letters={still_dead}", *flags]) == 0
    assert not still_dead.exists()
    return capsys.readouterr().out.splitlines()[0]


def test_an_overloaded_server_that_has_written_makes_no_duplicates(proxy: FaultProxy, uri: str) -> None:
    """RESOURCE_EXHAUSTED after a fifth of the commits: exactly as many events are merged as there are."""
    n = 3_000
    events = [{"id": f"e{i}", "k": f"k{i % 300}", "v": 1} for i in range(n)]
    deliveries = events * 2
    random.Random(20_262).shuffle(deliveries)
    proxy.plan = Plan({Fault.EXHAUST_AFTER: 0.2}, seed=5, methods=[CHECK_AND_MUTATE])
    ran = merge(deliveries, **FIELDS, store=uri, config=PATIENT, flush=FlushLimits(events=1_000))
    proxy.plan = None
    assert ran.outcomes() == {"merged": n, "duplicate": n}
    assert set(ran.results.values()) == {1}
    assert sum(state(uri).values()) == n
    assert proxy.counts[CHECK_AND_MUTATE].committed > 200


def test_a_fifth_of_the_requests_fail_and_every_count_is_exact(bigtable_host: str, proxy: FaultProxy, uri: str) -> None:
    """30,000 events on Zipf keys, each delivered twice in any order, must be merged once and be a duplicate once."""
    n, keys = 30_000, 700
    chance = random.Random(20_261)
    ranks = chance.choices(range(keys), [1 / rank**1.1 for rank in range(1, keys + 1)], k=n)
    events = [{"id": f"e{i}", "k": f"k{rank}", "v": chance.randint(-3, 9)} for i, rank in enumerate(ranks)]
    expected: Counter[str] = Counter()
    for event in events:
        expected[event["k"]] += event["v"]
    deliveries = events * 2
    chance.shuffle(deliveries)

    proxy.plan = Plan(A_FIFTH_FAILS, seed=3)
    limits = FlushLimits(events=6_000, age=timedelta(minutes=5))
    ran = merge(deliveries, **FIELDS, store=uri, config=PATIENT, flush=limits)
    proxy.plan = None
    proxy.drain()

    assert state(uri) == dict(expected)
    assert ran.outcomes() == {"merged": n, "duplicate": n}
    assert set(ran.results.values()) == {1}
    writes, reads = proxy.counts[CHECK_AND_MUTATE], proxy.counts[READ_ROWS]
    print(f"writes: {writes}; reads: {reads}; by the counters: {ran.counters}")
    # The plan has really taken effect.
    assert writes.requests > 2_000
    assert 0.15 < writes.failed / writes.requests < 0.25
    assert 0.15 < reads.failed / reads.requests < 0.25
    assert 0.4 < (writes.committed + writes.straggled_committed) / writes.failed < 0.6
    assert writes.broken > 0
    assert writes.straggled_committed > 0


def test_eight_processes_count_the_same_events_once(bigtable_host: str) -> None:
    """Eight processes that merge overlapping sets of the same events into the same 50 keys at once must be exact: into
    one row a key, into eight, and while requests fail."""
    n, processes = 1_200, 8
    chance = random.Random(8)
    events = [Event(f"e{i}", f"k{i % 50}", chance.randint(-3, 9)) for i in range(n)]
    expected: Counter[str] = Counter()
    for event in events:
        expected[event.key] += event.value
    # Each leaves out another quarter of the events.
    shares = [[event for i, event in enumerate(events) if (i + p) % processes > 1] for p in range(processes)]
    for share in shares:
        chance.shuffle(share)
    delivered = sum(map(len, shares))

    with several(processes) as all_of_them, FaultProxy(bigtable_host, Plan(A_FIFTH_FAILS, seed=5)) as proxy:
        for what, host, query in (
            ("one row a key", bigtable_host, ""),
            ("eight rows a key", bigtable_host, "?shards=8"),
            ("with faults", proxy.address, ""),
        ):
            uri = emulators.new_uri(bigtable_host) + query
            outcomes: Counter[str] = Counter()
            for one in do_all(all_of_them, [Merge(host, uri, share) for share in shares]):
                outcomes += one
            proxy.drain()
            assert state(uri) == dict(expected), what
            assert outcomes == {"merged": n, "duplicate": delivered - n}, what
        writes = proxy.counts[CHECK_AND_MUTATE]
        print(f"with faults: {writes}")
        assert 0.15 < writes.failed / writes.requests < 0.25
        assert writes.committed > 20


def test_a_row_of_many_small_commits_knows_every_event(proxy: FaultProxy, uri: str) -> None:
    """Several writers extend a row's journal while requests fail: no event may be forgotten, neither by them nor by
    later readers of the row."""
    n, writers = 600, 3
    proxy.plan = Plan(A_FIFTH_FAILS, seed=7, late_s=0.005)
    outcomes: Counter[str] = Counter()

    def deliver(store: Store[int], events: Sequence[int]) -> None:
        for start in range(0, len(events), 2):
            records = [make_record(Sum(), f"e{i}", 0, ["k"], i, need_id=True) for i in events[start : start + 2]]
            results = merge_records(PATIENT, "test", records, store)
            with counting:
                outcomes.update(str(result.outcome or repr(result.error)) for result in results)

    counting = threading.Lock()
    with ExitStack() as stack:
        threads = []
        for writer in range(writers):
            store = stack.enter_context(closing(spec_from_uri(uri).open(Sum())))
            events = random.Random(writer).sample(range(n), n)
            threads.append(threading.Thread(target=deliver, args=(store, events)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    proxy.plan = None
    proxy.drain()
    assert state(uri) == {"k": sum(range(n))}
    # A commit without an answer whose columns others have packed before its writer could look is reported as a
    # duplicate.
    assert outcomes.keys() == {"merged", "duplicate"}
    assert outcomes.total() == writers * n
    assert 0.95 * n <= outcomes["merged"] <= n
    outcomes.clear()
    with closing(spec_from_uri(uri).open(Sum())) as store:
        deliver(store, range(n + 1))
    assert outcomes == {"merged": 1, "duplicate": n}


@pytest.mark.parametrize("goes_down", ["before it is built", "before it runs"])
def test_records_during_an_outage_are_replayed(
    proxy: FaultProxy, uri: str, goes_down: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every record must be a dead letter with its payload byte for byte, and count once when the store is back and they
    are replayed, however often."""
    n = 1_000
    payloads = [
        # As publishers write it: with spaces, letters beyond ASCII and unused fields.
        f'{{ "id":"é{i}",  "k": "k{i % 40}",\t"v": {i % 7}, "note": "naïve \\u20ac {i}" }}\n'.encode()
        for i in range(n)
    ]
    # Half of them as messages with attributes.
    elements = [PubsubMessage(p, {"n": str(i)}) if i % 2 else p for i, p in enumerate(payloads)]
    expected: Counter[str] = Counter()
    for payload in payloads:
        event = json.loads(payload)
        expected[event["k"]] += event["v"]
    letters = tmp_path / "letters.jsonl"
    if goes_down == "before it is built":
        proxy.down()

    ran = merge(elements, proxy.down, letters, **FIELDS, store=uri, config=BRIEF)

    assert ran.outcomes() == {"dead_letter": n}
    written = [DeadLetter.from_json(line) for line in letters.read_bytes().splitlines()]
    for from_output in (ran.letters, written):
        assert sorted(letter.payload for letter in from_output) == sorted(payloads)
        assert {(letter.stage, letter.attempts, letter.error_type) for letter in from_output} == {
            ("merge", 2, "TransientError")
        }
        attributes = {letter.payload: dict(letter.attributes) for letter in from_output}
        assert attributes == {p: {"n": str(i)} if i % 2 else {} for i, p in enumerate(payloads)}
    proxy.up()
    wait_until_it_answers(uri)
    assert replayed(letters, uri, capsys) == f"{n:,} merged / 0 duplicate / 0 dead-lettered"
    assert state(uri) == dict(expected)
    assert replayed(letters, uri, capsys) == f"0 merged / {n:,} duplicate / 0 dead-lettered"
    assert state(uri) == dict(expected)


ROLLUP: dict[str, Any] = {"name": "test", "keys": ["page/{p}", "bad/{p}", "=all"], "value": "v", "event_id": "id"}
ROLLUP_FLAGS = ["--name=test", "--key=page/{p}", "--key=bad/{p}", "--key==all", "--value=v", "--event_id=id"]


def rollups(n: int) -> tuple[list[dict[str, Any]], Counter[str]]:
    """This many events of three keys each, and their sums."""
    events = [{"id": f"e{i}", "p": f"p{i % 5}", "v": i % 4 + 1} for i in range(n)]
    expected: Counter[str] = Counter()
    for event in events:
        for key in (f"page/{event['p']}", f"bad/{event['p']}", "all"):
            expected[key] += event["v"]
    return events, expected


def only_bad_failed(ran: Ran, events: Sequence[dict[str, Any]]) -> None:
    """Each event is a dead letter that names its second key alone, with a reason that no retry cures."""
    assert ran.outcomes() == {"dead_letter": len(events)}
    pages = {event["id"]: event["p"] for event in events}
    for letter in ran.letters:
        page = pages.pop(str(letter.event_id))
        assert list(letter.keys) == [f"page/{page}", f"bad/{page}", "all"]
        assert list(letter.failed_keys) == [f"bad/{page}"]
        assert letter.attempts == 1


def test_a_key_that_may_not_be_written_fails_alone(
    proxy: FaultProxy, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of records whose second row is refused, the other keys must count at once and that key alone when replayed."""
    events, expected = rollups(60)
    letters = tmp_path / "letters.jsonl"
    proxy.refused_rows = {b"bad": grpc.StatusCode.INVALID_ARGUMENT}
    ran = merge(events, letters=letters, **ROLLUP, store=uri, config=PATIENT)
    only_bad_failed(ran, events)
    assert all("INVALID_ARGUMENT" in letter.error_message for letter in ran.letters)
    assert state(uri) == {key: total for key, total in expected.items() if "bad" not in key}

    # No other row may be written now.
    proxy.refused_rows = dict.fromkeys([b"page", b"all"], grpc.StatusCode.INVALID_ARGUMENT)
    assert replayed(letters, uri, capsys, ROLLUP_FLAGS) == "60 merged / 0 duplicate / 0 dead-lettered"
    assert state(uri) == dict(expected)
    assert replayed(letters, uri, capsys, ROLLUP_FLAGS) == "0 merged / 60 duplicate / 0 dead-lettered"
    assert state(uri) == dict(expected)


def test_a_key_that_overflows_fails_alone(
    bigtable_host: str, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the second key of a record is full, the other keys must count at once; when another writer has lowered its
    sum, that key alone must count, also in a process that had found it full."""
    events, expected = rollups(60)
    letters = tmp_path / "letters.jsonl"

    def add(deltas: dict[str, int], name: str) -> None:
        with closing(spec_from_uri(uri).open(Sum())) as store:
            results = store.merge_updates([Update(Key(key), n, name) for key, n in deltas.items()])
            assert set(results) == {Outcome.MERGED}

    bad = {key: total for key, total in expected.items() if "bad" in key}
    add(dict.fromkeys(bad, INT64_MAX), "fill")
    spec = resolve(MergeOptions(**{**ROLLUP, "store": uri}))
    # The process keeps its cached rows as long as the store is in use.
    lease = Lease(spec.store, spec.monoid, spec.granularity)
    try:
        only_bad_failed(merge(events, letters=letters, **ROLLUP, store=uri, config=PATIENT), events)
        assert state(uri) == {**expected, **dict.fromkeys(bad, INT64_MAX)}

        add(dict.fromkeys(bad, -INT64_MAX), "make room")
        assert replayed(letters, uri, capsys, ROLLUP_FLAGS) == "60 merged / 0 duplicate / 0 dead-lettered"
        assert state(uri) == dict(expected)
        assert replayed(letters, uri, capsys, ROLLUP_FLAGS) == "0 merged / 60 duplicate / 0 dead-lettered"
        assert state(uri) == dict(expected)
    finally:
        lease.release()
