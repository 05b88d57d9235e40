"""Release 0.1.0 and this one on the same tables: features of both stay exact; 0.1.0 refuses what it does not know."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")

from murmur_beam.cli import main as cli
from murmur_beam.state import spec_from_uri
from tests.support import storage
from tests.support.emulators import INSTANCE, PROJECT
from tests.support.released import COMMIT, ROOT, Refused, Release, built, merge_all

PLACE = PROJECT, INSTANCE
Event = tuple[str, str, int]
KEYS = 25
_names = itertools.count()


class Releases:
    """Processes of both releases, each started when it is first used.

    Args:
        path_010: packages of 0.1.0.
    """

    def __init__(self, path_010: Path) -> None:
        self._paths = {"0.1.0": path_010, "this": ROOT}
        self._started: dict[tuple[str, int], Release] = {}

    def __call__(self, name: str, n: int = 0) -> Release:
        """One of them: the ``n``-th of "0.1.0" or of "this"."""
        if (name, n) not in self._started:
            release = self._started[name, n] = Release(self._paths[name])
            version, file = release("whereabouts")
            assert Path(file).is_relative_to(self._paths[name])
            assert (version == "0.1.0") or name == "this"
        return self._started[name, n]

    def end(self) -> None:
        """End all of them."""
        for release in self._started.values():
            release.end()


@pytest.fixture(scope="module")
def releases(run_folder: Path, bigtable_host: str) -> Iterator[Releases]:
    """Both releases, for all tests here; skipped where the history of the project is not available."""
    both = Releases(built(run_folder))
    yield both
    both.end()


def new_prefix() -> str:
    """A prefix that no other table has."""
    return f"mixed-{os.getpid()}-{next(_names)}"


def new_uri() -> str:
    """The URI of a table that does not exist yet."""
    return f"bigtable://{PROJECT}/{INSTANCE}/{new_prefix()}"


def events(start: int, stop: int) -> list[Event]:
    """Some of the events that there are."""
    return [(f"e{i}", f"key {i % KEYS}", i % 11 - 3) for i in range(start, stop)]


def sums(merged: Sequence[Event]) -> dict[str, int]:
    """The sums of these events, each counted once."""
    total: Counter[str] = Counter()
    for _, key, delta in dict.fromkeys(merged):
        total[key] += delta
    return dict(total)


def in_turns(releases: Releases, uri: str, monoid: str = "sum") -> None:
    """0.1.0 begins, this release continues, then 0.1.0 again; each gets some events that the previous one has
    merged."""
    for name, (start, stop), new in (
        ("0.1.0", (0, 3_000), 3_000),
        ("this", (1_000, 5_000), 2_000),
        ("0.1.0", (2_000, 6_000), 1_000),
        ("this", (0, 6_000), 0),
    ):
        [told] = merge_all([(releases(name), (uri, monoid, events(start, stop)))])
        expected = {"merged": new, "duplicate": stop - start - new}
        assert told["outcomes"] == {outcome: n for outcome, n in expected.items() if n}
        assert releases("this")("values", uri, monoid) == sums(events(0, max(stop, 3_000)))
        assert releases("0.1.0")("values", uri, "sum") == sums(events(0, max(stop, 3_000)))


def at_the_same_time(releases: Releases, uri: str) -> None:
    """20,000 deliveries: each of 4 processes has 2,000 events of its own, and 3,000 that the other release has too."""
    shared = events(0, 3_000), events(3_000, 6_000)
    own = [events(start, start + 2_000) for start in range(6_000, 14_000, 2_000)]
    given = [mixed(own[0], shared[0]), mixed(own[1], shared[1]), mixed(own[2], shared[0]), mixed(own[3], shared[1])]
    processes = [releases(name, n) for name in ("0.1.0", "this") for n in (0, 1)]
    told = merge_all([(process, (uri, "sum", some)) for process, some in zip(processes, given, strict=True)])
    assert max(one["began_s"] for one in told) < min(one["ended_s"] for one in told), "they did not overlap"
    outcomes: Counter[str] = Counter()
    for one in told:
        outcomes.update(one["outcomes"])
    assert outcomes == {"merged": 14_000, "duplicate": 6_000}
    for name in ("0.1.0", "this"):
        assert releases(name)("values", uri, "sum") == sums(events(0, 14_000))


def mixed(own: list[Event], shared: list[Event]) -> list[Event]:
    """Processes of both releases, in an order that is always the same."""
    return sorted(own + shared, key=lambda event: event[0][::-1])


# ---- Bigtable, layout 1 ----


def make_with_010(releases: Releases, uri: str, monoid: str = "sum") -> dict[str, Any]:
    """A table that 0.1.0 made: families and record."""
    assert releases("0.1.0")("program", "murmur_beam.cli", ["create-table", uri, "--monoid", monoid])[0] == 0
    return made(uri)


def made(uri: str) -> dict[str, Any]:
    """Families and record of a table."""
    table = storage.table_of(spec_from_uri(uri))
    return {name: table[name] for name in ("families", "record")}


@pytest.mark.parametrize("monoid", ["sum", "count"])
def test_a_table_of_010_can_be_upgraded_and_rolled_back(releases: Releases, monoid: str) -> None:
    """Each event counts once, and the table stays as it was; 0.1.0 called a count a sum."""
    uri = new_uri()
    before = make_with_010(releases, uri, monoid)
    in_turns(releases, uri, monoid)
    assert cli.main(["create-table", uri, "--monoid", monoid]) == 0
    assert made(uri) == before
    for name, command in (("0.1.0", "murmur_beam.cli"), ("this", "murmur_beam.cli.main")):
        assert releases(name)("program", command, ["check", uri])[0] == 0


def test_both_at_once_on_a_table_of_010(releases: Releases) -> None:
    """As a fleet during an upgrade."""
    uri = new_uri()
    before = make_with_010(releases, uri)
    at_the_same_time(releases, uri)
    assert made(uri) == before


def test_010_writes_the_golden_file(releases: Releases) -> None:
    """The file of layout 1 was written by that release."""
    prefix = new_prefix()
    releases("0.1.0")("golden_bigtable", PLACE, prefix)
    assert storage.differences(storage.read("bigtable-layout-1.json"), storage.read_bigtable(PLACE, prefix)) == []


# ---- Bigtable, layout 2 ----


@pytest.fixture(scope="module", params=["commit", "append"])
def layout_2(releases: Releases, request: pytest.FixtureRequest) -> Iterator[str]:
    """A table of layout 2 with some events, written in each way, which must have the same cells after all tests that
    use it."""
    uri = new_uri()
    assert cli.main(["create-table", uri, "--write", request.param]) == 0
    assert made(uri)["record"]["meta:write"] == {"0": request.param}
    merge_all([(releases("this"), (uri, "sum", events(0, 100)))])
    before = storage.table_of(spec_from_uri(uri))
    yield uri
    assert storage.table_of(spec_from_uri(uri)) == before


def unchanged(uri: str, work: Callable[[], Any]) -> Any:
    """The result of the work; afterwards all cells and families of the table must be the same."""
    before = storage.table_of(spec_from_uri(uri))
    found = work()
    assert storage.differences(before, storage.table_of(spec_from_uri(uri))) == []
    return found


MISMATCH = "holds values of monoid 'sum/2'"
WRITTEN = "was written with 'sum/2', which is"
UNKNOWN = "unknown monoid 'sum/2'"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("get URI key", WRITTEN),
        ("get URI key --monoid sum", MISMATCH),
        ("list URI", WRITTEN),
        ("list URI --monoid sum", MISMATCH),
        ("top URI", WRITTEN),
        ("top URI --monoid count", MISMATCH),
        ("create-table URI", MISMATCH),
        ("create-table URI --monoid count --yes", MISMATCH),
        ("create-table URI --monoid sum/2", UNKNOWN),
        ("create-table URI --window 1d --retention 7d --yes", MISMATCH),
    ],
)
def test_010_neither_reads_nor_changes_a_table_of_layout_2(
    releases: Releases, layout_2: str, words: str, said: str
) -> None:
    """Each command ends with 2 and says why; the table stays as it is."""
    argv = words.replace("URI", layout_2).split()
    code, _, err = unchanged(layout_2, lambda: releases("0.1.0")("program", "murmur_beam.cli", argv))
    assert (code, said in err) == (2, True), err


def test_check_of_010_reports_a_table_of_layout_2(releases: Releases, layout_2: str) -> None:
    """Exit code 1: it finds a rule of garbage collection that it did not make. The command that it advises is
    refused."""
    argv = ["check", layout_2, "--json"]
    code, out, _ = unchanged(layout_2, lambda: releases("0.1.0")("program", "murmur_beam.cli", argv))
    wrong = [finding for finding in json.loads(out)["findings"] if finding["status"] == "wrong"]
    assert (code, [finding["subject"] for finding in wrong]) == (1, ["family dedup"])
    remedy = wrong[0]["remedy"].split()[1:]
    assert "sum/2" in remedy
    code, _, err = unchanged(layout_2, lambda: releases("0.1.0")("program", "murmur_beam.cli", remedy))
    assert (code, UNKNOWN in err) == (2, True)


@pytest.mark.parametrize("monoid", ["sum", "count", "max"])
def test_a_store_of_010_does_not_open_a_table_of_layout_2(releases: Releases, layout_2: str, monoid: str) -> None:
    """So no driver merges through it."""

    def merge() -> None:
        with pytest.raises(Refused, match=MISMATCH):
            releases("0.1.0").prepare(layout_2, monoid, events(0, 10))

    unchanged(layout_2, merge)


def test_a_pipeline_of_010_does_not_start_on_a_table_of_layout_2(
    releases: Releases, layout_2: str, tmp_path: Path
) -> None:
    """A forgotten job ends with an error when it is built, before it reads."""
    (tmp_path / "events.jsonl").write_text('{"id": "e1", "k": "key 1", "n": 1}\n')
    argv = ["--input", str(tmp_path / "events.jsonl"), "--store", layout_2, "--key", "k", "--event_id", "id"]
    argv += ["--value", "n", "--monoid", "sum", "--dead_letters", str(tmp_path / "letters.jsonl")]
    code, _, err = unchanged(layout_2, lambda: releases("0.1.0")("program", "pipelines.merge_files", argv))
    assert (code, MISMATCH in err) == (2, True), err


def test_a_rollback_cannot_read_nanoseconds(releases: Releases) -> None:
    """In layout 1 too: First and Last store them since 0.1.0, which refuses such a value and does not change it."""
    uri = new_uri()
    make_with_010(releases, uri, "last")
    merge_all([(releases("this"), (uri, "last", [("e1", "fine", ("x", 1, 5)), ("e2", "plain", ("y", 1, 0))]))])
    later = [("e3", "fine", ("z", 2, 0)), ("e4", "plain", ("z", 2, 0))]
    [told] = merge_all([(releases("0.1.0"), (uri, "last", later))])
    assert told["outcomes"].pop("merged") == 1
    assert "no last" in next(iter(told["outcomes"]))
    found = releases("this")("values", uri, "last")
    assert {key: last.value for key, last in found.items()} == {"fine": "x", "plain": "z"}


# ---- SQLite ----


def test_a_file_of_010_can_be_upgraded_and_rolled_back(releases: Releases, tmp_path: Path) -> None:
    """Each event counts once."""
    in_turns(releases, f"sqlite:///{tmp_path / 'counts.db'}")


def test_both_at_once_on_a_file(releases: Releases, tmp_path: Path) -> None:
    """Whichever release makes it."""
    at_the_same_time(releases, f"sqlite:///{tmp_path / 'counts.db'}")


def test_a_count_in_a_file_can_be_upgraded_but_not_rolled_back(releases: Releases, tmp_path: Path) -> None:
    """This release records a count as such, which 0.1.0 refuses; in a file of 0.1.0 it is still counted."""
    old, new = (f"sqlite:///{tmp_path / name}" for name in ("old.db", "new.db"))
    in_turns(releases, old, "count")
    merge_all([(releases("this"), (new, "count", events(0, 10)))])
    with pytest.raises(Refused, match="holds values of monoid 'count'"):
        releases("0.1.0").prepare(new, "count", events(0, 10))


def test_010_writes_the_golden_file_of_sqlite(releases: Releases, tmp_path: Path) -> None:
    """Except for later additions: facts and triggers; and it called a count a sum."""
    releases("0.1.0")("golden_sqlite", str(tmp_path / "counts.db"))
    golden = storage.read("sqlite.json")
    golden["schema"] = {
        name: sql for name, sql in golden["schema"].items() if name != "murmur_facts" and "TRIGGER" not in sql
    }
    del golden["rows"]["murmur_facts"]
    for row in golden["rows"]["murmur_schema"]:
        row[2] = "sum" if row[2] == "count" else row[2]
    assert storage.differences(golden, storage.read_sqlite(tmp_path / "counts.db")) == []


def test_a_missing_history_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an archive of the sources, or a clone without old commits."""
    monkeypatch.setattr("tests.support.released.CHECKOUT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(pytest.skip.Exception, match=r"the commit of release 0\.1\.0 is not in .*not a git repository"):
        built(tmp_path)


def test_the_page_names_the_commit() -> None:
    """docs/storage.md says which commit 0.1.0 is."""
    assert COMMIT in (ROOT / "docs/storage.md").read_text("utf-8")
