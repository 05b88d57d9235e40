"""What `MergeRecords` reports to Beam's metrics, and to a recorder of the user's own."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import ClassVar

import apache_beam as beam
import pytest

from murmur_beam import beam_metrics
from murmur_beam.buffer import FlushLimits
from murmur_beam.monoids.sum import INT64_MAX
from murmur_beam.state.memory import MemorySpec
from murmur_beam.transforms import MergeRecords
from murmur_beam.windows import daily
from tests.support.transform import (
    DAY,
    FIELDS,
    NOW_S,
    Faulty,
    Worker,
    config,
    event,
    failing,
    new_pipeline,
    run,
)


def test_counters(store: Faulty) -> None:
    """All events must be counted under the transform's name, also the last failures."""
    store.fault = failing(shaky=1, down=9)
    old = event("old", keys=["a"], t=NOW_S - 3 * 86_400)
    elements = [
        event("1", keys=["a", "b"], t=NOW_S),
        event("1", keys=["a", "b"], t=NOW_S),
        event("2", keys=["shaky"], t=NOW_S),
        event("3", keys=["a", "down"], t=NOW_S),
        event("4", keys=["a"], value="x", t=NOW_S),
        event("5", keys=["big", "big2"], value=INT64_MAX, t=NOW_S),
        event("6", keys=["big"], value=INT64_MAX, t=NOW_S),
        old,
    ]
    ran = run(
        elements,
        name="p",
        keys=lambda element: element["keys"],
        value="v",
        event_id="id",
        event_time="t",
        window=daily(2 * DAY),
        store=store.spec,
        config=config(max_attempts=3),
        flush=FlushLimits(events=100),
    )
    letters = sorted((letter.event_id, letter.stage, letter.attempts, letter.failed_keys) for letter in ran.letters)
    assert letters == [("3", "merge", 3, ["down"]), ("4", "extract", 0, []), ("6", "merge", 1, ["big"])]
    assert ran.counters == {
        "p": 6,  # a and b of 1, shaky, a of 3, both keys of 5
        "p:retry": 3,  # one for shaky, two for down
        "p:dedup_skip": 2,
        "p:expired": 1,
        "p:dead_letter": 3,
        "p:error": 5,  # one of shaky, three of down, one of big
        "p:record_merged": 3,
        "p:record_duplicate": 1,
        "p:record_expired": 1,
    }


@pytest.mark.parametrize("behind", [False, True])
def test_distributions(store: Faulty, memory: MemorySpec, behind: bool) -> None:
    """Sizes and times of flushes must be available, also of flushes in another thread."""
    store.waits_for_network = behind
    pipeline = new_pipeline()
    elements = beam.Create([event(str(i)) for i in range(5)], reshuffle=False)
    _ = pipeline | elements | MergeRecords("p", **FIELDS, store=store.spec, cache=memory, flush=FlushLimits(events=2))
    result = pipeline.run()
    result.wait_until_finish()
    found = {each.key.metric.name: each.result for each in result.metrics().query()["distributions"]}
    assert (found["p:flush_records"].count, found["p:flush_records"].sum) == (3, 5)
    for name in ("p:flush_us", "p:store_merge_us", "p:cache_merge_us"):
        assert found[name].count == 3


def test_each_bundle_is_counted_once(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next bundle must not report the counts of the previous one again."""
    counts: Counter[str] = Counter()

    class Reported:
        """In place of one of Beam's counters."""

        def __init__(self, namespace: str, name: str) -> None:
            self._name = f"{namespace} {name}"

        def inc(self, n: int) -> None:
            counts[self._name] += n

    monkeypatch.setattr(beam_metrics.Metrics, "counter", Reported)
    worker = Worker(**FIELDS, store=store.spec, name="p")
    for i in range(3):
        assert len(list(worker.bundle(event(str(i)), event("again"), event(str(i), value="x")))) == 3
    assert +counts == {
        "murmur_beam p": 4,
        "murmur_beam p:dedup_skip": 2,
        "murmur_beam p:dead_letter": 3,
        "murmur_beam p:record_merged": 4,
        "murmur_beam p:record_duplicate": 2,
    }


class Notebook:
    """A recorder that can be pickled: it counts in a dictionary of this process."""

    pages: ClassVar[dict[str, Counter[str]]] = {}

    def __init__(self, page: str) -> None:
        self._page = page

    def record_event(self, pipeline: str) -> None:
        self._note(pipeline)

    def record_error(self, pipeline: str, err: BaseException) -> None:
        self._note(f"{pipeline} {type(err).__name__}")

    def record_latency(self, pipeline: str, op: str, seconds: float) -> None:
        self._note(f"{pipeline} {op}")

    def record_batch(self, pipeline: str, mode: str, n: int, seconds: float) -> None:
        self._note(f"{pipeline} {mode} of {n}")

    def _note(self, what: str) -> None:
        self.pages.setdefault(self._page, Counter())[what] += 1


def test_a_recorder_of_the_user_s(store: Faulty) -> None:
    """The config's recorder must get all that Beam's metrics get."""
    page = uuid.uuid4().hex
    store.fault = failing(b=2)
    elements = [event("1"), event("1"), event("2", "b"), event("3", value="x")]
    ran = run(elements, name="p", **FIELDS, store=store.spec, config=config(recorder=Notebook(page)))
    notes = Notebook.pages.pop(page)
    flushes = {note: n for note, n in notes.items() if note.startswith("p flush of")}
    assert sum(int(note.split()[-1]) * n for note, n in flushes.items()) == 3
    counted = {"p": 1, "p:dedup_skip": 1, "p:retry": 1, "p:dead_letter": 2}
    assert {note: n for note, n in notes.items() if " " not in note} == counted
    assert {name: ran.counters[name] for name in counted} == counted
    assert notes["p TransientError"] == ran.counters["p:error"] == 2
    assert notes["p store_merge"] > 0
