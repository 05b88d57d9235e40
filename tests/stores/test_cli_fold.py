"""``murmur fold``: what it prints, how it ends, and that it can be killed, raced and run again. All on the emulator."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from murmur_beam.cli import arguments as cli_arguments
from murmur_beam.cli import fold as cli_fold
from murmur_beam.cli import main as cli
from murmur_beam.errors import StoreUnavailable, TransientError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count, Custom, Sum
from murmur_beam.monoids.base import Monoid
from murmur_beam.state import Schema
from murmur_beam.state.bigtable import BigtableSpec, tables
from murmur_beam.state.bigtable.store import BigtableStore
from murmur_beam.state.folding import Folded
from murmur_beam.testing import FakeClock
from tests.support import emulators, environment
from tests.support.commands import Ran
from tests.support.fault_proxy import CHECK_AND_MUTATE, MUTATE_ROWS, FaultProxy, Refusal
from tests.support.first_layout import FirstLayoutSpec

TIMEOUT_S = 60.0
DAY = timedelta(days=1)
NO = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no")
_names = itertools.count()


class Table:
    """A table that is appended to.

    Attributes:
        spec, uri: where it is.
        monoid: the monoid of its values.
    """

    def __init__(
        self,
        monoid: Monoid[Any],
        capsys: pytest.CaptureFixture[str],
        granularity: timedelta | None = None,
        retention: timedelta | None = None,
    ) -> None:
        self.spec = BigtableSpec(emulators.PROJECT, emulators.INSTANCE, f"fold-{os.getpid()}-{next(_names)}")
        self.uri = str(self.spec)
        self.monoid = monoid
        self._granularity = granularity
        self._retention = retention
        self._capsys = capsys
        tables.create(self.spec, tables.table_meta(Schema(monoid.name, granularity), retention), write="append")

    def open(self, clock: FakeClock | None = None) -> BigtableStore[Any]:
        """Another store of the table, with another clock if one is given."""
        spec = self.spec if clock is None else BigtableSpec(*self.spec.place[1:], clock=clock)
        return spec.open(self.monoid, self._granularity)

    def append(self, *events: tuple[str, Any, str], clock: FakeClock | None = None, bucket: int = 0) -> None:
        """Append (entity, delta, event id); each call makes one cell in a row."""
        with closing(self.open(clock)) as store:
            done = store.merge_updates(
                [Update(Key(entity, bucket), delta, id_, self._retention) for entity, delta, id_ in events]
            )
        assert set(done) == {Outcome.RECORDED}

    def values(self, *, fresh: bool) -> dict[str, Any]:
        """What readers see, by entity."""
        with closing(self.open()) as store:
            return {key.entity: value for key, value in store.scan(fresh=fresh)}

    def murmur(self, command: str, *args: str) -> Ran:
        """Run the command in this process."""
        self._capsys.readouterr()
        return Ran(cli.main([command, self.uri, *args]), *self._capsys.readouterr())

    def fold(self, *args: str) -> Ran:
        """Fold it in this process."""
        return self.murmur("fold", *args)

    def folded(self, *args: str) -> dict[str, Any]:
        """The output of a fold with --json."""
        document: dict[str, Any] = json.loads(self.fold("--json", *args).out)
        return document

    @contextmanager
    def folding(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        """Fold it in a process of its own, which is killed at the end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "murmur_beam", "fold", self.uri, "--json", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        with process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def counts(bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> Table:
    """A table of sums without a window."""
    return Table(Sum(), capsys)


def many(rows: int, events: int = 3) -> list[tuple[str, int, str]]:
    """The same number of events for each of these rows."""
    return [(f"k{row:04}", 1, f"{row}-{event}") for row in range(rows) for event in range(events)]


def concatenated(name: str, **more: Any) -> Monoid[str]:
    """Letters in alphabetical order, whatever the order of events; combining one of them raises."""

    def combine(a: str, b: str) -> str:
        if "x" in (a, b) and a and b:
            raise KeyError("x is\nnot a letter")
        return "".join(sorted(a + b))

    return Custom(name, "", combine, **more)


class TestOnce:
    """Without --every."""

    def test_appended_events_are_folded_into_the_aggregates(self, counts: Table) -> None:
        """One line reports it. Fresh reads are exact before and after, other reads after it."""
        counts.append(*many(20))
        counts.append(*many(10))
        counts.append(("k0000", 100, "late"))
        expected = {f"k{row:04}": 3 for row in range(20)} | {"k0000": 103}
        assert counts.values(fresh=True) == expected
        code, out, err = counts.fold()
        assert (code, err) == (0, "")
        header, line = out.splitlines()
        assert header.split() == [*cli_fold._COLUMNS]
        assert len(header) == len(line)
        rows, events, duplicates, cells, size, unit, age, *rest = line.split()
        assert (rows, events, duplicates, cells, rest) == ("20", "61", "30", "31", ["0", "0", "0"])
        # Each cell has a name, a header and three fingerprints; a cell of one event also its delta.
        assert (size, unit) == (f"{(30 * (16 + 6 + 48) + 16 + 6 + 16 + 8) / 1_000:.4g}", "kB")
        assert re.fullmatch(r"\d+s", age)
        assert counts.values(fresh=False) == counts.values(fresh=True) == expected

    def test_without_pending_events_nothing_is_done(self, counts: Table) -> None:
        """A line of zeros, and no age."""
        counts.append(*many(2))
        assert counts.fold()[0] == 0
        code, out, err = counts.fold()
        assert (code, out.splitlines()[1].split(), err) == (0, ["0", "0", "0", "0", "0", "B", "-", "0", "0", "0"], "")

    def test_json_has_every_field(self, counts: Table) -> None:
        """Also where and when, and how long it took."""
        before_us = int(time.time() * 1e6)
        counts.append(*many(20))
        document = counts.folded()
        told = Folded._make(document.pop(name) for name in Folded._fields)
        assert told.oldest_us is not None
        assert before_us <= told.oldest_us <= time.time() * 1e6
        assert told == Folded(20, 20, 20, 20 * 70, 60, named=[], oldest_us=told.oldest_us)  # type: ignore[arg-type]
        assert 0 < document.pop("seconds") < TIMEOUT_S
        assert document["began"] > "2026"
        del document["began"]
        assert document == {"store": counts.uri, "whole": True}

    def test_a_row_of_several_commits_is_one_row(self, counts: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        """Though it is folded in parts."""
        monkeypatch.setattr("murmur_beam.state.bigtable.folder._EVENTS_PER_COMMIT", 2)
        for i in range(5):
            counts.append(("home", 1, f"{i}"), ("home", 1, f"{i}+"))
        document = counts.folded()
        assert (document["rows"], document["folded"], document["events"]) == (1, 1, 10)

    def test_only_the_selected_rows_are_folded(self, counts: Table) -> None:
        """Entities with the given prefix, and rows with at least this many cells."""
        counts.append(("a/1", 1, "1"), ("a/2", 1, "1"), ("b/1", 1, "1"))
        counts.append(("a/1", 1, "2"), ("b/1", 1, "2"))
        counts.append(("b/1", 1, "3"))
        assert counts.folded("--prefix", "a/", "--min_cells", "2")["events"] == 2
        assert counts.folded("--prefix", "b/", "--min_cells", "4")["rows"] == 0
        assert counts.folded("--min_cells", "3")["events"] == 3
        assert counts.folded("--prefix", "b/")["rows"] == 0
        assert counts.folded()["events"] == 1
        assert counts.values(fresh=False) == {"a/1": 2, "a/2": 1, "b/1": 3}

    def test_a_table_that_is_written_by_commits_again(self, counts: Table) -> None:
        """Pending events from before are folded, and commits count in addition."""
        counts.append(*many(3))
        tables.create(counts.spec, tables.table_meta(Schema("sum", None)), write="commit")
        with closing(counts.open()) as store:
            assert (
                store.merge_updates([Update(Key("k0000"), 5, "new"), Update(Key("k0001"), 1, "1-0")])
                == [Outcome.MERGED] * 2
            )
        document = counts.folded()
        assert (document["events"], document["duplicates"]) == (8, 1)
        assert counts.values(fresh=False) == {"k0000": 8, "k0001": 3, "k0002": 3}

    def test_an_expired_row_is_left_to_garbage_collection(
        self, bigtable_host: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is read, and nothing of it is written or deleted; an unexpired row of the same entity is folded."""
        hour, week = timedelta(hours=1), 7 * DAY
        table = Table(Count(), capsys, hour, week)
        now_s = time.time()
        # An event could still come until less than an hour ago, so that the emulator does not collect it yet.
        expired = int((now_s - week.total_seconds()) // 3_600) - 1
        table.append(("home", 1, "1"), clock=FakeClock(expired * 3_600.0), bucket=expired)
        table.append(("home", 1, "2"), bucket=int(now_s // 3_600))
        document = table.folded()
        assert (document["rows"], document["folded"], document["cells"]) == (2, 1, 1)
        assert table.folded()["rows"] == 1
        assert table.values(fresh=True) == {"home": 1}


class TestUnfoldable:
    """Events that no fold can add."""

    def test_a_sum_that_overflows(self, counts: Table) -> None:
        """It is named, with an exit code; other events of its row are folded; reads are exact. An event cures it."""
        counts.append(("big", 2**62, "1"), ("big", 3, "2"), ("small", 1, "1"))
        counts.append(("big", 2**62, "3"), ("big", 4, "4"))
        code, out, err = counts.fold()
        assert code == 1
        assert out.splitlines()[1].split()[:4] == ["2", "4", "0", "3"]
        assert out.split()[-1] == "1"
        first, reason, advice = err.splitlines()
        assert first == "murmur: 1 event cannot be folded, and stays pending:"
        assert reason.startswith("  'big', bucket 0: value: the sum would be 9223372036854775812, which does not fit")
        assert advice.startswith("murmur: they are not lost: ")
        assert counts.values(fresh=True) == {"big": 2**63 + 7, "small": 1}
        assert counts.values(fresh=False) == {"big": 2**62 + 7, "small": 1}
        assert counts.folded("--prefix", "big")["unfoldable"] == 1
        counts.append(("big", -(2**62), "correction"))
        assert counts.fold()[0] == 0
        assert counts.values(fresh=False) == counts.values(fresh=True) == {"big": 2**62 + 7, "small": 1}

    @pytest.mark.parametrize("idempotent", [False, True])
    def test_a_combine_that_raises(
        self,
        idempotent: bool,
        bigtable_host: str,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Of a user's own monoid, which has to be named. The reason is one line; the other events are folded."""
        module = f"letters{next(_names)}"
        monoid = concatenated(module, idempotent=idempotent)
        monkeypatch.setitem(sys.modules, module, type("Module", (), {"monoid": monoid})())  # type: ignore[arg-type]
        table = Table(monoid, capsys)
        for letter in "axb":
            table.append(("home", letter, letter))
        code, _, err = table.fold()
        assert (code, err.count("\n")) == (2, 1)
        assert f"was written with {module!r}, which is not one of" in err
        code, out, err = table.fold("--monoid", f"{module}:monoid")
        assert (code, out.splitlines()[1].split()[1]) == (1, "2")
        assert err.splitlines()[1] == "  'home', bucket 0: KeyError: 'x is\\nnot a letter'"
        assert table.values(fresh=True) == table.values(fresh=False) == {"home": "ab"}

    def test_many(self, counts: Table) -> None:
        """Twenty of them are named."""
        counts.append(*[(f"k{i}", 2**62, id_) for i in range(30) for id_ in "ab"])
        code, _, err = counts.fold()
        assert code == 1
        assert err.startswith("murmur: 30 events cannot be folded, and stay pending; some of their rows:\n")
        assert len(err.splitlines()) == 22


class TestForEver:
    """With --every."""

    def test_sigterm_ends_it(self, counts: Table) -> None:
        """Rounds start by themselves and fold new events; exit code 0."""
        counts.append(*many(3))
        with counts.folding("--every", "100ms") as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["events"] == 9
            counts.append(("k0000", 5, "more"))
            while not (document := json.loads(process.stdout.readline()))["events"]:
                assert document["whole"]
            assert document["events"] == 1
            assert counts.values(fresh=False)["k0000"] == 8
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, err) == (
            0,
            "murmur: ending after the rows in progress; a second SIGTERM ends it at once\n",
        )

    def test_sigint_interrupts_it(self, counts: Table) -> None:
        """At once, between rounds that are an hour apart; exit code 130."""
        with counts.folding("--every", "1h") as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["rows"] == 0
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, err) == (130, "murmur: interrupted\n")

    def test_sigterm_in_the_middle_of_a_round(
        self, bigtable_host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows in progress are finished, no others are started; the line reports the finished ones."""

        def combine(a: str, b: str) -> str:
            if "!" in (a, b) and a and b:
                os.kill(os.getpid(), signal.SIGTERM)
            return max(a, b)

        module = f"deadly{next(_names)}"
        monoid = Custom(module, "", combine)
        monkeypatch.setitem(sys.modules, module, type("Module", (), {"monoid": monoid})())  # type: ignore[arg-type]
        table = Table(monoid, capsys)
        table.append(*[(f"k{i:04}", letter, letter) for i in range(600) for letter in "ab"])
        table.append(("k0300", "!", "deadly"))
        before = signal.getsignal(signal.SIGTERM)
        code, out, err = table.fold("--every", "1ms", "--json", "--monoid", f"{module}:monoid")
        document = json.loads(out)
        assert (code, document["whole"], document["rows"], document["events"]) == (0, False, 512, 1_025)
        assert err == "murmur: ended before all rows were folded; the next fold resumes\n"
        assert signal.getsignal(signal.SIGTERM) is before
        monkeypatch.undo()
        with closing(table.open()) as store:
            assert store.fold().events == 1_200 + 1 - 1_025

    def test_failures(self, counts: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        """A failure that a later round may not meet is reported, and the next round starts; any other failure ends the
        run."""
        clock = FakeClock()
        ends = iter([TransientError("busy"), Folded(events=7), StoreUnavailable("gone")])

        def fold(*args: Any, **more: Any) -> Folded:
            end = next(ends)
            clock.time += 25  # the duration of a round
            if isinstance(end, Folded):
                clock.time += 3_600
                return end
            raise end

        monkeypatch.setattr(BigtableStore, "fold", fold)
        monkeypatch.setattr(
            cli_arguments, "spec_from_uri", lambda uri, what: BigtableSpec(*counts.spec.place[1:], clock=clock)
        )
        code, out, err = counts.fold("--every", "1m")
        told = "murmur: this round failed: busy; the next one begins 1m after its start"
        assert (code, err.splitlines()) == (2, [told, "murmur: error: gone"])
        header, line = out.splitlines()
        assert header.split()[:2] == ["began", "rows"]
        # A round starts this long after the start of the last one, or at once if that time is over.
        assert line.split()[:3] == ["2023-11-14T22:14:20Z", "0", "7"]
        assert round(sum(clock.waits)) == 35

    def test_a_table_that_does_not_answer_yet(self, counts: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is opened in the first round that can."""
        answers = iter([TransientError("not yet")])
        recorded = BigtableSpec.recorded_schema

        def recorded_schema(self: BigtableSpec) -> Schema | None:
            for answer in answers:
                raise answer
            return recorded(self)

        monkeypatch.setattr(BigtableSpec, "recorded_schema", recorded_schema)
        monkeypatch.setattr(BigtableStore, "fold", lambda *args, **more: (_ for _ in ()).throw(KeyboardInterrupt))
        code, _, err = counts.fold("--every", "1ms")
        assert code == 130
        assert err.splitlines() == [
            "murmur: this round failed: not yet; the next one begins 1ms after its start",
            "murmur: interrupted",
        ]

    def test_unfoldable_events_are_named_once(self, counts: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not again in each round in which they are the same."""
        bad = Folded(unfoldable=1, named=("'big', bucket 0: too big",))
        ends = iter([bad, bad, Folded(left=1), bad, StoreUnavailable("gone")])

        def fold(*args: Any, **more: Any) -> Folded:
            end = next(ends)
            if isinstance(end, Folded):
                return end
            raise end

        monkeypatch.setattr(BigtableStore, "fold", fold)
        code, _, err = counts.fold("--every", "1ms")
        assert code == 2
        assert err.count("too big") == 2
        assert "murmur: 1 row was not folded because of concurrent writes; the next round tries again\n" in err


class TestKilledAndRaced:
    """Kills at any time, and other folders and writers at the same time."""

    @pytest.mark.parametrize(("method", "nth"), [(CHECK_AND_MUTATE, 1), (CHECK_AND_MUTATE, 100), (MUTATE_ROWS, 1)])
    def test_killed_and_run_again(self, method: str, nth: int, counts: Table, proxy: FaultProxy) -> None:
        """Before any commit, between commits, and between commits and deletion: each read is exact, and so is the final
        state."""
        counts.append(*many(100))
        expected = {f"k{row:04}": 3 for row in range(100)}
        first = proxy.counts[method].requests
        with counts.folding() as process:

            def live(asked: str, request: bytes) -> Refusal | None:
                if asked != method or proxy.counts[method].requests < first + nth:
                    return None
                process.kill()
                return NO

            proxy.live = live
            out, _ = process.communicate(timeout=TIMEOUT_S)
            assert (process.returncode, out) == (-signal.SIGKILL, "")
        proxy.live = lambda asked, request: None
        assert counts.values(fresh=True) == expected
        counts.append(*many(50, 4))
        document = counts.folded()
        # 150 more are deliveries of the same events.
        assert document["events"] + document["duplicates"] in (500, 500 - 3 * 64)
        assert document["duplicates"] >= 150 + (method == MUTATE_ROWS)
        assert counts.values(fresh=False) == expected | {f"k{row:04}": 4 for row in range(50)}
        assert counts.folded()["rows"] == 0

    def test_another_folder_is_first(
        self, bigtable_host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It folds everything between this one's reads and commits: those meet a conflict, and count nothing."""
        others: list[Folded] = []

        def combine(a: str, b: str) -> str:
            if not others and a and b:
                others.append(Folded())
                with closing(table.open()) as store:
                    others[0] = store.fold()
            return max(a, b)

        module = f"raced{next(_names)}"
        monoid = Custom(module, "", combine)
        monkeypatch.setitem(sys.modules, module, type("Module", (), {"monoid": monoid})())  # type: ignore[arg-type]
        table = Table(monoid, capsys)
        table.append(*[(f"k{i}", letter, letter) for i in range(5) for letter in "ab"])
        document = table.folded("--monoid", f"{module}:monoid")
        assert (others[0].events, others[0].conflicts) == (10, 0)
        assert (document["conflicts"], document["events"], document["cells"]) == (5, 0, 0)
        assert table.values(fresh=False) == {f"k{i}": "b" for i in range(5)}

    def test_two_processes_beside_a_writer(self, counts: Table) -> None:
        """Each event counts once, whichever process folds it; reads in between are exact."""
        counts.append(*many(60))
        with counts.folding("--every", "50ms") as one, counts.folding("--every", "50ms") as other:
            for process in (one, other):
                assert process.stdout is not None
                process.stdout.readline()
            for n in range(5):
                counts.append(*[(f"k{row:04}", 1, f"{row}+{n}") for row in range(60)])
                assert counts.values(fresh=True) == {f"k{row:04}": 4 + n for row in range(60)}
            outs = []
            for process in (one, other):
                process.send_signal(signal.SIGTERM)
                outs.append(process.communicate(timeout=TIMEOUT_S)[0])
                assert process.returncode == 0
        counts.folded()
        assert counts.values(fresh=False) == {f"k{row:04}": 8 for row in range(60)}
        assert all(json.loads(line)["unfoldable"] == 0 for out in outs for line in out.splitlines())


class TestWhereThereIsNothingToFold:
    """Stores and tables that do not append."""

    @pytest.mark.parametrize("args", [[], ["--every", "1ms"]])
    def test_outside_bigtable(self, args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """With --every and without it the command says so, and makes no file."""
        uri = f"sqlite:///{tmp_path}/c.db"
        assert cli.main(["fold", uri, *args]) == 0
        assert capsys.readouterr() == (
            f"{uri}: needs no fold: stores outside Bigtable fold each event when it is merged\n",
            "",
        )
        assert list(tmp_path.iterdir()) == []
        assert cli.main(["fold", uri, "--json", *args]) == 0
        assert json.loads(capsys.readouterr().out) == {"store": uri, "needs_fold": False}

    @pytest.mark.parametrize("args", [[], ["--every", "1ms"]])
    def test_a_table_of_layout_1(self, args: list[str], bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> None:
        """The same; in Python a fold does nothing there."""
        spec: FirstLayoutSpec = emulators.first_layout_spec(bigtable_host)  # type: ignore[assignment]
        with closing(spec.open(Sum())) as store:
            store.merge_updates([Update(Key("home"), 1, "1")])
            assert store.fold() == Folded()
        assert cli.main(["fold", str(spec), *args]) == 0
        text = f"{spec}: needs no fold: a table of layout 1 never has pending events\n"
        assert capsys.readouterr() == (text, "")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--every", "0s"], "--every: must be positive, such as 1m"),
        (["--every", "often"], "'often' is not a duration"),
        (["--min_cells", "0"], "'0' is not a positive whole number"),
        (["--prefix", "k" * 5_000], "argument --prefix: 5000 bytes long"),
        (["--evry", "1m"], "--evry is not a flag of murmur fold; did you mean --every?"),
    ],
)
def test_invalid_arguments(args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the flag; exit code 2."""
    try:
        code: Any = cli.main(["fold", "bigtable://p/i/t", *args])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert complaint in err


def test_a_missing_table(bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An error, also with --every: no round can make the table."""
    for args in ([], ["--every", "1ms"]):
        assert cli.main(["fold", f"bigtable://{emulators.PROJECT}/{emulators.INSTANCE}/no-such-table", *args]) == 2
        assert "NOT_FOUND" in capsys.readouterr().err


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: FakeClock) -> None:
    """A line every ten seconds; on a terminal one line that is updated, and removed at the end."""
    progress = cli_fold._Progress(clock)
    for _ in range(25):
        clock.time += 1
        progress.show(Folded(rows=1_000, events=20_000, cells=3_000))
    progress.end()
    line = "murmur: 1,000 rows so far, 20,000 events, 3,000 cells, "
    assert capsys.readouterr().err == f"{line}2,000 events/s\n{line}1,000 events/s\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = cli_fold._Progress(clock)
    for n in (100, 1):
        clock.time += 1
        progress.show(Folded(rows=n))
        progress.show(Folded(rows=n + 5))  # too soon
    progress.end()
    first = "\r100 rows so far, 0 events, 0 cells, 0 events/s"
    second = "\r1 rows so far, 0 events, 0 cells, 0 events/s  "
    assert capsys.readouterr().err == f"{first}{second}\r{' ' * len(second.strip())}\r"


def test_check_reports_pending_cells(counts: Table) -> None:
    """Their number and bytes, since when, and the row with most; with --json too. After a fold: zero."""
    counts.append(("home", 7, "1"), *many(3, 1))
    counts.append(*[("home", 7, f"{i}") for i in range(10)])
    code, out, _ = counts.murmur("check")
    assert code == 0
    # Names and headers of cells; fingerprints; deltas where they are not 1.
    size, most = 5 * 22 + 14 * 16 + 11 * 8, 2 * 22 + 11 * 24
    [line] = [line for line in out.splitlines() if line.startswith("  pending")]
    since = time.strftime("%Y-%m-%d %H:", time.gmtime())
    pattern = rf"  pending +ok +5 cells are not folded yet, {size} B, the oldest since {since}\d\d UTC; the most, "
    assert re.fullmatch(rf"{pattern}{most} B: 'home', bucket 0", line)
    document = json.loads(counts.murmur("check", "--json").out)
    [finding] = [finding for finding in document["findings"] if finding["subject"] == "pending"]
    assert (finding["status"], finding["remedy"]) == ("ok", "")
    assert finding["text"] in line
    assert counts.fold()[0] == 0
    out = counts.murmur("check").out
    assert "\n  pending" not in out
    assert re.search(r"  markers +ok +of 13 events, 208 B; the most, 160 B: 'home', bucket 0\n", out)
