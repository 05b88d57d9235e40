"""`replay` of files by its own ``main(argv)``: exit codes, what it prints, and the state and files it leaves."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from murmur_beam.errors import TransientError
from murmur_beam.model import DeadLetter, Update
from murmur_beam.monoids.sum import INT64_MAX
from murmur_beam.programs import merge_files, replay
from murmur_beam.state.base import Result
from murmur_beam.state.sqlite import SqliteStore
from tests.support import recording
from tests.support.programs import (
    CLICKS,
    DAY,
    FLAGS,
    Run,
    by_hand,
    jsonl,
    letters_in,
    state_of,
)

pytestmark = pytest.mark.usefixtures("own_folder")


class Down:
    """Makes every SQLite store of this process fail at some updates, until it is mended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: Callable[[Update], bool] = lambda update: False
        write = SqliteStore.merge_updates

        def merge_updates(store: SqliteStore[Any], updates: Sequence[Update]) -> list[Result]:
            written = iter(write(store, [update for update in updates if not self.fails(update)]))
            return [TransientError("down") if self.fails(update) else next(written) for update in updates]

        monkeypatch.setattr(SqliteStore, "merge_updates", merge_updates)


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> Down:
    """Set ``fails`` to have it do so."""
    return Down(monkeypatch)


def test_an_outage_of_the_store(run: Run, down: Down, tmp_path: Path) -> None:
    """After it all its dead letters must merge, and a second replay find nothing but duplicates."""
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS))
    flags = [*FLAGS, "--window=daily", "--event_time=t"]
    down.fails = lambda update: True
    ran = run(merge_files, "--input=clicks.jsonl", *flags)
    assert (ran.code, ran.outcomes) == (4, "0 merged / 0 duplicate / 3 dead-lettered")
    assert {(letter.stage, letter.attempts) for letter in letters_in("dead-letters.jsonl")} == {("merge", 3)}
    assert state_of(tmp_path / "counts.db", DAY) == {}

    ran = run(replay, "--input=dead-letters.jsonl", *flags)
    assert (ran.code, ran.outcomes) == (4, "0 merged / 0 duplicate / 3 dead-lettered")
    assert ran.out.splitlines()[-1] == "letters that could not be merged are in still-dead-letters.jsonl"
    assert len(letters_in("still-dead-letters.jsonl")) == 3
    Path("still-dead-letters.jsonl").unlink()

    down.fails = lambda update: False
    before = Path("dead-letters.jsonl").read_bytes()
    ran = run(replay, "--input=dead-letters.jsonl", *flags)
    assert (ran.code, ran.out) == (0, "3 merged / 0 duplicate / 0 dead-lettered\n")
    assert state_of(tmp_path / "counts.db", DAY) == by_hand(CLICKS, daily=True)
    assert not Path("still-dead-letters.jsonl").exists()
    assert Path("dead-letters.jsonl").read_bytes() == before, "the file stays as it is"
    ran = run(merge_files, "--input=clicks.jsonl", *flags)
    assert (ran.code, ran.out) == (2, ""), "the letters of the first run must not be lost to those of a second"
    assert "--dead_letters: dead-letters.jsonl holds dead letters of an earlier run" in ran.err
    assert Path("dead-letters.jsonl").read_bytes() == before
    others = "--dead_letters=others.jsonl"
    Path("others.jsonl").touch()  # an empty one, such as a worker leaves, holds nothing
    for pipeline, path in ((replay, "dead-letters.jsonl"), (merge_files, "clicks.jsonl")):
        assert run(pipeline, f"--input={path}", *flags, others).outcomes == "0 merged / 3 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db", DAY) == by_hand(CLICKS, daily=True)
    assert Path("others.jsonl").read_bytes() == b"", "no letters, and the file is not ours to remove"


def test_a_table_that_is_appended_to(run: Run, down: Down, tmp_path: Path) -> None:
    """Files and the letters of files are recorded: the summary says so, and repeated events count once."""
    flags = [f"--store={recording.SCHEME}:///counts.db", *FLAGS[1:]]
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS))
    assert run(merge_files, "--input=clicks.jsonl", *flags).out == "3 recorded / 0 dead-lettered\n"
    down.fails = lambda update: update.key.entity == "all"
    ran = run(merge_files, "--input=clicks.jsonl", *flags)
    assert (ran.code, ran.outcomes) == (4, "0 merged / 0 duplicate / 3 dead-lettered")
    down.fails = lambda update: False
    ran = run(replay, "--input=dead-letters.jsonl", *flags)
    assert (ran.code, ran.out) == (0, "3 recorded / 0 dead-lettered\n")
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS)


def test_records_that_failed_in_part(run: Run, down: Down, tmp_path: Path) -> None:
    """The replay must merge only their failed keys."""
    Path("clicks.jsonl").write_bytes(jsonl(*CLICKS))
    down.fails = lambda update: update.key.entity == "all"
    assert run(merge_files, "--input=clicks.jsonl", *FLAGS).outcomes == "0 merged / 0 duplicate / 3 dead-lettered"
    expected = by_hand(CLICKS)
    assert state_of(tmp_path / "counts.db") == {key: n for key, n in expected.items() if key[0] != "all"}
    assert {tuple(letter.failed_keys) for letter in letters_in("dead-letters.jsonl")} == {("all",)}
    down.fails = lambda update: update.key.entity != "all"
    assert run(replay, "--input=dead-letters.jsonl", *FLAGS).outcomes == "3 merged / 0 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db") == expected


def test_letters_of_csv_files(run: Run, down: Down, tmp_path: Path) -> None:
    """The hint of merge_files must name the format, which replay cannot detect."""
    Path("clicks.csv").write_bytes(b"id,page,n\r\n1,a,1\r\n")
    down.fails = lambda update: True
    ran = run(merge_files, "--input=clicks.csv", *FLAGS)
    hint = "dead letters are in dead-letters.jsonl; murmur replay --decode csv merges them again"
    assert ran.out.splitlines()[1] == hint
    down.fails = lambda update: False
    ran = run(replay, "--input=dead-letters.jsonl", *FLAGS, "--decode", "csv")
    assert ran.outcomes == "1 merged / 0 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db") == {("page/a", 0): 1, ("all", 0): 1}


def test_a_bad_value_that_was_mended(run: Run, tmp_path: Path) -> None:
    """A payload that was corrected in the file must be merged; payloads that are still bad must be in the new file."""
    Path("clicks.jsonl").write_bytes(jsonl(CLICKS[0], {**CLICKS[1], "n": "two"}, {**CLICKS[2], "n": None}))
    assert run(merge_files, "--input=clicks.jsonl", *FLAGS).outcomes == "1 merged / 0 duplicate / 2 dead-lettered"
    file = Path("dead-letters.jsonl")
    file.write_text(file.read_text("utf-8").replace(r"\"two\"", "2"), "utf-8")
    ran = run(replay, "--input=dead-letters.jsonl", *FLAGS, "--dead_letters=rest.jsonl")
    assert (ran.code, ran.outcomes) == (3, "1 merged / 0 duplicate / 1 dead-lettered")
    (letter,) = letters_in("rest.jsonl")
    assert letter.payload == jsonl({**CLICKS[2], "n": None}).rstrip()
    assert state_of(tmp_path / "counts.db") == by_hand(CLICKS[:2])


def test_an_overflow_stays_a_dead_letter(run: Run, tmp_path: Path) -> None:
    """An error that no retry cures must be tried once, and be a letter again after each replay."""
    records = [{**CLICKS[0], "n": INT64_MAX}, {**CLICKS[0], "id": "2", "n": 1}]
    Path("clicks.jsonl").write_bytes(jsonl(*records))
    assert run(merge_files, "--input=clicks.jsonl", *FLAGS).outcomes == "1 merged / 0 duplicate / 1 dead-lettered"
    (letter,) = letters_in("dead-letters.jsonl")
    assert (letter.error_type, letter.attempts, letter.failed_keys) == ("Overflow", 1, ["page/a", "all"])
    assert run(replay, "--input=dead-letters.jsonl", *FLAGS).outcomes == "0 merged / 0 duplicate / 1 dead-lettered"
    (again,) = letters_in("still-dead-letters.jsonl")
    assert again._replace(failed_at="") == letter._replace(failed_at="")
    assert state_of(tmp_path / "counts.db") == by_hand(records[:1])


def letter(**changes: object) -> dict[str, Any]:
    """A dead letter of a click, as a line of JSON holds it."""
    return {
        "payload": jsonl(CLICKS[0]).decode().rstrip(),
        "payload_type": "bytes",
        "attributes": {},
        "message_id": None,
        "publish_time": None,
        "ordering_key": None,
        "pipeline": "murmur",
        "stage": "merge",
        "event_id": "1",
        "event_time": None,
        "keys": ["page/a", "all"],
        "failed_keys": ["page/a"],
        "error_type": "TransientError",
        "error_message": "down",
        "attempts": 3,
        "failed_at": "2026-11-14T10:00:00.000000Z",
        **changes,
    }


def test_letters_of_other_pipelines_are_left_alone(run: Run, tmp_path: Path) -> None:
    """They must be counted, not merged, and not be written anywhere."""
    Path("dead-letters.jsonl").write_bytes(jsonl(letter(), letter(pipeline="other"), letter(pipeline="other")))
    ran = run(replay, "--input=dead-letters.jsonl", *FLAGS)
    assert (ran.code, ran.out.splitlines()) == (
        0,
        [
            "1 merged / 0 duplicate / 0 dead-lettered",
            "2 letters of pipelines other than 'murmur' were skipped; see --name",
        ],
    )
    assert state_of(tmp_path / "counts.db") == {("page/a", 0): 1}
    assert not Path("still-dead-letters.jsonl").exists()
    assert run(replay, "--input=dead-letters.jsonl", *FLAGS, "--name=other").outcomes.startswith("0 merged / 2 dup")


def test_lines_that_are_not_letters(run: Run, tmp_path: Path) -> None:
    """They must be counted, and kept unchanged in the new file, each with the reason."""
    bad = [b"no JSON", b"[1]", b'{"payload": "x"}', b"\xff", jsonl({**letter(), "more": 1}).rstrip()]
    Path("dead-letters.jsonl").write_bytes(b"\n".join([*bad, jsonl(letter())]))
    ran = run(replay, "--input=dead-letters.jsonl", *FLAGS)
    assert (ran.code, ran.out.splitlines()) == (
        3,
        [
            "1 merged / 0 duplicate / 0 dead-lettered",
            "5 lines are not dead letters",
            "letters that could not be merged are in still-dead-letters.jsonl",
        ],
    )
    kept = letters_in("still-dead-letters.jsonl")
    assert sorted(each.payload for each in kept) == sorted(bad)
    for each in kept:
        assert each.error_message.startswith("payload: not a dead letter: ")
        assert (each.stage, each.pipeline) == ("decode", "murmur")


def test_pickled_letters(run: Run, tmp_path: Path) -> None:
    """They must be refused, with the flag that allows them, and merge with ``--unpickle``."""
    pickled = DeadLetter.from_dict(letter(payload_type="pickle"))._replace(payload=pickle.dumps(CLICKS[0]))
    Path("dead-letters.jsonl").write_text(pickled.to_json())
    ran = run(replay, "--input=dead-letters.jsonl", *FLAGS)
    assert ran.outcomes == "0 merged / 0 duplicate / 1 dead-lettered"
    (refused,) = letters_in("still-dead-letters.jsonl")
    assert "unpickle" in refused.error_message
    ran = run(replay, "--input=still-dead-letters.jsonl", *FLAGS, "--unpickle", "--dead_letters=others.jsonl")
    assert ran.outcomes == "1 merged / 0 duplicate / 0 dead-lettered"
    assert state_of(tmp_path / "counts.db") == {("page/a", 0): 1}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--input=nowhere.jsonl"], "--input: no file matches 'nowhere.jsonl'"),
        (["--input=dead-letters.jsonl", "--colour=red"], "--colour: is neither an option of this pipeline nor of Beam"),
    ],
)
def test_replay_mistakes(run: Run, argv: Sequence[str], message: str) -> None:
    """A user's mistake must end in one line that names it, and exit code 2."""
    Path("dead-letters.jsonl").write_bytes(jsonl(letter()))
    assert run(replay, *FLAGS, *argv).mistake.startswith(f"replay: error: {message}")
