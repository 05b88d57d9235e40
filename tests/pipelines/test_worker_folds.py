"""`murmur worker --fold`: several workers append to the same rows, and one at a time folds each."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from murmur_beam.monoids import Count
from murmur_beam.programs import worker
from murmur_beam.reader import Reader
from murmur_beam.state.bigtable import BigtableSpec
from tests.pipelines.test_worker import running
from tests.support import emulators, programs
from tests.support.appended import AppendedSpec
from tests.support.topics import TIMEOUT_S, Topic, new_topic

PAGES = 5
FOLD = ["--key=page/{page}", "--monoid=count", "--event_id=id", "--fold=1s", "--fold_share=0"]


@pytest.fixture
def topic(pubsub_host: str) -> Topic:
    """A topic with a subscription."""
    return new_topic()


@pytest.fixture
def table(bigtable_host: str) -> BigtableSpec:
    """A new table that is appended to."""
    spec = emulators.new_spec(bigtable_host)
    AppendedSpec(*spec.place[1:]).open(Count()).close()
    return spec


def payloads(first: int, last: int) -> list[bytes]:
    """Events of a few busy pages, as messages carry them."""
    return [json.dumps({"id": f"e{n}", "page": n % PAGES}).encode() for n in range(first, last)]


def recount(last: int) -> Counter[str]:
    """The number of events of each page."""
    return Counter(f"page/{n % PAGES}" for n in range(last))


def totals(table: BigtableSpec, *, fresh: bool) -> Counter[str]:
    """What a reader finds, with pending events or as of the last fold."""
    with Reader.open(table) as reader:
        return Counter({entity: total for entity, total, _ in reader.list(fresh=fresh) if total})


def wait_for(happened: Callable[[], bool], log: Path) -> None:
    """Wait until it happens."""
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_another_worker_folds_when_one_is_killed(topic: Topic, table: BigtableSpec, tmp_path: Path) -> None:
    """Every number is right, and nearly all is folded, whichever worker had folded the rows before."""
    log = tmp_path / "log"
    letters = f"--dead_letters={tmp_path}/letters.jsonl"
    flags = [f"--subscription={topic.subscription}", f"--store={table}", letters, *FOLD]
    with ExitStack() as stack:
        workers = [stack.enter_context(running(log, *flags, "--max_outstanding=20")) for _ in range(2)]
        topic.publish(*payloads(0, 1_000))
        wait_for(lambda: totals(table, fresh=False).total() >= 900, log)
        workers[0].kill()
        topic.publish(*payloads(1_000, 2_000), *payloads(0, 100))
        wait_for(lambda: totals(table, fresh=True) == recount(2_000), log)
        workers[1].terminate()
        assert workers[1].wait(TIMEOUT_S) == 0
    assert totals(table, fresh=True) == recount(2_000)
    assert totals(table, fresh=False).total() >= 1_900, "all but what was hardly named since the last fold"
    assert re.search(r"^folded [0-9,]+ events, in [0-9,]+ folds of a row$", log.read_text(), re.MULTILINE)


def test_the_rest_is_folded_at_the_end(
    topic: Topic, table: BigtableSpec, run: Callable[..., programs.Ran], own_folder: Path
) -> None:
    """A worker that ends leaves only rows that it has hardly written."""
    topic.publish(*payloads(0, 1_000))
    flags = [f"--subscription={topic.subscription}", f"--store={table}", "--until_idle=1s", *FOLD, "--fold=1h"]
    ran = run(worker, *flags)
    assert ran.out.splitlines()[1] == f"folded 1,000 events, in {PAGES} folds of a row"
    assert totals(table, fresh=False) == recount(1_000)
