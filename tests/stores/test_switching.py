"""A table is switched to appending and back while writers run, as docs/operations.md says: each event counts once."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest

from murmur_beam.cli import main as cli
from murmur_beam.model import Key, Update
from murmur_beam.monoids import Count
from tests.support import emulators

if TYPE_CHECKING:
    from tests.support.fault_proxy import FaultProxy

KEYS, EVENTS, FLUSH = 7, 1_200, 40
PURPOSE = ["--monoid", "count"]


class Writer(threading.Thread):
    """Delivers all events, in an order of its own, and stops in the middle until `go_on` is set.

    Attributes:
        outcomes: of each event; in two parts, before and after the stop.
        stopped: set when it has stopped.
        go_on: to be set.
    """

    def __init__(self, store: Any, seed: int) -> None:
        super().__init__()
        self._store = store
        self._events = [Update(Key(f"k{n % KEYS}"), 1, f"e{n}") for n in range(EVENTS)]
        random.Random(seed).shuffle(self._events)
        self.outcomes: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self.stopped, self.go_on = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        """Deliver the events."""
        for start in range(0, EVENTS, FLUSH):
            if start == EVENTS // 2:
                self.stopped.set()
                self.go_on.wait(60)
            results = self._store.merge_updates(self._events[start : start + FLUSH])
            self.outcomes[start >= EVENTS // 2].update(map(str, results))


def command(spec: Any, name: str, *arguments: str) -> int:
    """The exit code of ``murmur NAME URI ARGUMENTS``."""
    return cli.main([name, str(spec), *arguments])


def test_a_table_is_switched_while_writers_run(
    bigtable_host: str, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two writers commit, two append and two commit again, at the same time, the same events; folds go on. A running
    writer keeps its way until it is opened again."""
    from murmur_beam.state.bigtable import BigtableSpec
    from tests.support.fault_proxy import Plan

    proxy.plan = Plan({}, whole_reads=True)
    spec = BigtableSpec(emulators.PROJECT, emulators.INSTANCE, f"switched-{random.SystemRandom().getrandbits(40):x}")
    assert command(spec, "create-table", *PURPOSE) == 0
    with ExitStack() as stack:
        reader = stack.enter_context(closing(spec.open(Count())))
        writers: list[Writer] = []

        def begin() -> Sequence[Writer]:
            """Start two writers, as after a restart, and wait until they are half through."""
            new = [Writer(stack.enter_context(closing(spec.open(Count()))), len(writers) + n) for n in range(2)]
            writers.extend(new)
            for writer in new:
                assert writer.stopped.wait(60)
            return new

        old = begin()
        assert command(spec, "create-table", *PURPOSE, "--write", "append") == 0
        appending = begin()
        assert command(spec, "fold") == 0
        old[0].go_on.set()
        appending[0].go_on.set()
        assert command(spec, "fold") == 0
        assert command(spec, "create-table", *PURPOSE, "--write", "commit") == 0
        new = begin()
        for writer in writers:
            writer.go_on.set()
        assert command(spec, "fold") == 0
        for writer in writers:
            writer.join(60)
        right = Counter(f"k{n % KEYS}" for n in range(EVENTS))
        counts = reader.get_many([Key(key) for key in right])
        assert dict(zip(right, counts, strict=True)) == right, "a reader that was opened before the first switch"
        capsys.readouterr()
        assert command(spec, "fold") == 0
        assert {key.entity: count for key, count in reader.scan()} == right
        assert command(spec, "check") == 0
    assert "written by commits" in capsys.readouterr().out
    for writer in (*old, *new):
        for outcomes in writer.outcomes:
            assert outcomes.keys() <= {"merged", "duplicate"}
    for writer in appending:
        assert [outcomes.keys() for outcomes in writer.outcomes] == [{"recorded"}, {"recorded"}]


def test_pending_events_are_named_after_the_way_back(bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`murmur check` prints the command that folds them, until it was run."""
    spec = emulators.new_spec(bigtable_host)
    for way in ("commit", "append", "commit"):
        assert command(spec, "create-table", *PURPOSE, "--write", way) == 0
        with closing(spec.open(Count())) as store:
            store.merge_update(Key("a"), 1, event_id=way)
    assert command(spec, "check") == 0
    assert f"murmur fold {spec}" in capsys.readouterr().out
    assert command(spec, "fold") == 0
    capsys.readouterr()
    assert command(spec, "check") == 0
    assert f"murmur fold {spec}" not in capsys.readouterr().out
