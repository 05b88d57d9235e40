"""``murmur plan``: its formulas against brute force, its texts, refusals and JSON. tests/stores/test_plan_runs.py
compares it with real runs."""

from __future__ import annotations

import heapq
import json
import math
import random
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from murmur_beam import fold_policy
from murmur_beam.cli import main as cli
from murmur_beam.cli import plan as cli_plan
from murmur_beam.cli import plan_folds
from murmur_beam.cli.plan import Load, key_shares, rates, row_rates, shard_shares, touched
from murmur_beam.cli.plan_folds import FoldRules, folds_of
from murmur_beam.clock import Clock
from murmur_beam.model import Key, Update
from murmur_beam.spec import FoldPlan
from murmur_beam.state.base import GRACE_S, fingerprint_of

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "scaling.md").read_text("utf-8")
HOURLY = "--events_per_s 10000 --keys 1000000 --skew 0.9 --bucket 1h"


def load(**changes: Any) -> Load:
    """A small load with these changes."""
    small = Load(
        events_per_s=1_000.0,
        keys=1_000,
        skew=1.0,
        life_s=3_600.0,
        retention_s=86_400.0,
        append=False,
        workers=None,
        bundle=1_000,
        shards=1,
        fold=FoldRules(60.0, 0.1, 3_600.0),
    )
    return small._replace(**changes)


def plan(load: Load) -> SimpleNamespace:
    """The figures of a plan, as attributes."""
    return SimpleNamespace(**cli_plan.plan(load))


# ---- formulas ----


@pytest.mark.parametrize("skew", [0.0, 0.9, 1.0, 1.3])
def test_shares_are_those_of_the_keys_one_by_one(skew: float) -> None:
    """Binned ranks have all events, and touch as many rows as the same ranks one by one."""
    total = math.fsum(rank**-skew for rank in range(1, 5_001))
    exact = [rank**-skew / total for rank in range(1, 5_001)]
    shares = key_shares(5_000, skew)
    assert sum(n for _, n in shares) == len(exact)
    assert math.fsum(share * n for share, n in shares) == pytest.approx(1)
    assert shares[0][0] == pytest.approx(exact[0], rel=0.001)
    for n in (1, 10, 1_000, 100_000):
        wanted = math.fsum(1 - (1 - share) ** n for share in exact)
        assert math.fsum(some * touched(share, n) for share, some in shares) == pytest.approx(wanted, rel=0.003)


def test_many_keys_are_no_more_work() -> None:
    """A plan for 10 million keys takes milliseconds."""
    started_s = time.perf_counter()
    assert plan(load(keys=10_000_000, events_per_s=1e5)).rows_written > 0
    assert time.perf_counter() - started_s < 1


def test_rows_of_a_flush_by_hand() -> None:
    """Two events of two keys touch one and a half rows; with two shards, one and three quarters."""
    assert rates(load(keys=2, skew=0, bundle=2), 1).written / 500 == pytest.approx(1.5)
    assert rates(load(keys=2, skew=0, bundle=2, shards=2), 1).written / 500 == pytest.approx(1.75)
    assert touched(1.0, 7) == 1


def test_one_writer_has_no_conflict_and_reads_to_pack_only() -> None:
    """One commit in 40 reads, where markers are put together."""
    row = row_rates(load(bundle=100), 1, 0.5)
    assert row.conflicts == row.news == 0
    assert row.read == pytest.approx(row.written / 40)
    assert row_rates(load(), 1, 0.5).read == 0, "commits of more than 256 events are not packed"


def turns(p: float, writers: int, flushes: int) -> tuple[float, float]:
    """Writes, and those that find another's write since their writer's own, of writers that take turns."""
    chance = random.Random(1)
    last: int | None = None
    writes = stale = 0
    for flush in range(flushes):
        if chance.random() < p:
            writes += 1
            stale += last not in (None, flush % writers)
            last = flush % writers
    return writes, stale


@pytest.mark.parametrize("writers", [2, 5])
@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01])
def test_conflicts_are_those_of_writers_that_take_turns(writers: int, share: float) -> None:
    """The closed form is the mean of drawn turns."""
    flushes = 200_000
    row = row_rates(load(events_per_s=1.0, life_s=flushes * 1_000.0), writers, share)
    writes, stale = turns(touched(share, 1_000), writers, flushes)
    assert row.written * flushes * 1_000 == pytest.approx(writes, rel=0.03)
    assert row.conflicts * flushes * 1_000 == pytest.approx(stale, rel=0.03)


def test_folds_by_hand() -> None:
    """A single key, folded each minute: a commit and a delete, one read; an hourly row gets a version once."""
    made = plan(load(keys=1, skew=0, append=True, fold=FoldRules(60.0, 0, 3_600.0)))
    assert made.rows_read == made.conflicts == 0
    assert made.fold_rows_written * 60 == pytest.approx(2, rel=0.02)
    assert made.fold_rows_read * 60 == pytest.approx(2, rel=0.02), "what is pending, and the markers of a large row"
    assert made.fold_events == pytest.approx(1_000)
    assert (made.rows_written, made.write_requests) == (1, 1)


def test_a_row_that_grows_is_folded_ever_more_seldom() -> None:
    """In an hour: each minute until a minute is a tenth of the time, then after 2, 3, 4, 5 and 6 minutes; and what is
    pending at the end, an hour later. The markers that are read are a few times the events, whatever their number."""
    for events in (1e5, 1e7):
        found = folds_of(events, 3_600.0, FoldRules(60.0, 0.1, 3_600.0))
        assert found.folds == pytest.approx(10 + 5 + 3.3 + 2.5 + 2 + 1.7 + 1, abs=1)
        assert found.events == pytest.approx(events, rel=0.001)
        assert found.markers / events == pytest.approx(8, abs=1)


class ByRules:
    """One row, by the rules of the fold stage themselves: events at random times, and timers that are a little late."""

    def __init__(self, rules: FoldRules) -> None:
        self._plan = FoldPlan(timedelta(seconds=rules.every_s), rules.share, timedelta(seconds=rules.age_s))

    def life(self, events: float, life_s: float, chance: random.Random) -> tuple[int, int, int, int]:
        """Folds, the first of them, events folded, and those that were folded before, at each fold after the first."""
        named, due_s = fold_policy.Named(), None
        times = [(chance.uniform(0, life_s), False) for _ in range(round(chance.gauss(events, events**0.5)))]
        heapq.heapify(times)
        n = folded = folds = before = 0
        while times:
            now_s, is_timer = heapq.heappop(times)
            if not is_timer:
                n += 1
                if chance.random() >= 1 / fold_policy.EVERY:
                    continue
                decision = fold_policy.when_named(named, now_s, self._plan)
            elif now_s != due_s:
                continue
            else:
                decision = fold_policy.when_due(named, now_s + 0.001, self._plan)
                due_s = None
            if decision.folds:
                folds, before, folded = folds + 1, before + folded, n
            named = decision.named or fold_policy.Named()
            if decision.due_s is not None:
                due_s = decision.due_s
                heapq.heappush(times, (due_s, True))
        return folds, min(folds, 1), folded, before


@pytest.mark.parametrize(
    ("events", "life_s", "rules"),
    [
        (30, 60, FoldRules(60, 0.1, 3_600)),
        (30, 3_600, FoldRules(60, 0.1, 3_600)),
        (100, 3_600, FoldRules(60, 0.1, 3_600)),
        (500, 3_600, FoldRules(60, 0.1, 3_600)),
        (20_000, 3_600, FoldRules(60, 0.1, 3_600)),
        (20_000, 3_600, FoldRules(10, 0.1, 600)),
        (3_000, 3_600, FoldRules(60, 0, 3_600)),
        (3_000, 3_600, FoldRules(60, 0.5, 600)),
        (3_000, 36_000, FoldRules(60, 0.1, 3_600)),
    ],
)
def test_folds_are_those_of_the_fold_stage(events: int, life_s: float, rules: FoldRules) -> None:
    """The closed form is the mean of rows that the stage's own rules fold."""
    chance, row, n = random.Random(1), ByRules(rules), max(10, min(800, 60_000 // events))
    means = [sum(values) / n for values in zip(*(row.life(events, life_s, chance) for _ in range(n)), strict=True)]
    found = folds_of(events, life_s, rules)
    print(found, means)
    for planned, mean in zip((found.folds, found.first, found.events, found.markers), means, strict=True):
        assert planned == pytest.approx(mean, rel=0.13)


def test_a_row_of_few_events_is_never_folded() -> None:
    """Its events stay pending, with the names of their cells, until garbage collection."""
    made = plan(load(keys=100_000_000, skew=0, append=True, events_per_s=100.0, bundle=100))
    assert made.fold_events < 1
    assert made.stored_bytes == pytest.approx(100 * (16 + 22 + 150) * (1_800 + 86_400 + 3_600 + 7 * 86_400), rel=0.01)


def test_folders_read_all_markers_of_rows_that_they_forget() -> None:
    """Rows of more events than a process remembers; else each event is read once."""
    few = plan(load(keys=10, skew=0, append=True, events_per_s=100.0))
    assert few.fold_bytes_read == pytest.approx(100 * 16 + few.rows_written * 22, rel=0.01)
    many = plan(load(keys=10, skew=0, append=True, events_per_s=10_000.0))
    assert 7 < many.fold_bytes_read / 10_000 / 16 < 11


@pytest.mark.parametrize("shards", [1, 3, 8, 86, 255, 256])
def test_shards_are_as_large_as_the_store_s(shards: int) -> None:
    """A byte of an event's fingerprint decides: unless 256 is a multiple, some rows get more."""
    parts = [part for part, rows in shard_shares(shards) for _ in range(rows)]
    dealt = Counter(byte % shards for byte in range(256))
    assert parts == sorted((n / 256 for n in dealt.values()), reverse=True)
    if shards == 3:
        found = Counter(fingerprint_of(f"e{n}")[0] % 3 for n in range(20_000))
        assert found[0] / 20_000 == pytest.approx(parts[0], rel=0.05)


def test_a_large_append_is_several_requests() -> None:
    """A request has 2,000 rows at most."""
    assert plan(load(keys=1_000_000, skew=0, bundle=5_000, append=True)).write_requests == pytest.approx(0.2 * 3)


def test_size_of_the_hottest_row() -> None:
    """16 B an event, of half of all events, and 150 B."""
    made = plan(load(keys=2, skew=0, bundle=100, workers=1))
    events = 500 * 3_600
    assert made.hot_row_events == events
    assert made.hot_row_bytes == pytest.approx(events * 16 + 150)


def test_without_an_end_a_row_has_all_that_is_kept() -> None:
    """Storage of all-time counters is that of the whole life; of buckets, until garbage collection has taken them."""
    life_s = 10 * 86_400.0
    forever = plan(load(keys=1, life_s=life_s, retention_s=None, append=True))
    assert forever.stored_bytes == pytest.approx(1_000 * 16 * life_s, rel=0.01)
    hourly = plan(load(keys=1, append=True))
    assert hourly.stored_bytes == pytest.approx(1_000 * 16 * (1_800 + 86_400 + 3_600 + 7 * 86_400), rel=0.01)


def test_workers_are_the_fewest_that_are_enough() -> None:
    """For appends their number changes nothing; commits read of each other."""
    append = plan(load(events_per_s=1e6, append=True))
    assert append.workers == append.writers == math.ceil((26e6 + append.rows_written * 2) / 1e6 / 0.7)
    commit = load(events_per_s=1e5, keys=100_000, life_s=60.0, bundle=10_000)
    fewest = plan(commit).writers
    assert plan(commit._replace(workers=fewest)).workers <= fewest
    assert plan(commit._replace(workers=fewest - 1)).workers >= fewest


def test_numbers_are_the_store_s() -> None:
    """Each constant that the store has as well is the same."""
    pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")
    from murmur_beam.state.bigtable import BigtableSpec, appender, fingerprints, folder, pending, row_cache

    assert cli_plan.MARKER_BYTES == fingerprints.FINGERPRINT_BYTES
    assert (cli_plan.PACK_AT, cli_plan.PACKED) == (row_cache.PACK_AT, row_cache.PACKED)
    assert cli_plan.ROWS_PER_APPEND == appender._ROWS_PER_REQUEST
    assert (plan_folds.EVENTS_PER_COMMIT, plan_folds.EVERY) == (folder._EVENTS_PER_COMMIT, fold_policy.EVERY)
    names = pending.Names(Clock())
    assert len(names()) + len(pending.ONE) == cli_plan.CELL_BYTES
    assert (BigtableSpec("p", "i", "t").max_cached_events, row_cache.ROW_WEIGHT) == (
        cli_plan.CACHED,
        cli_plan.CACHED_ROW,
    )
    assert cli_plan.SMALL_EVENTS == row_cache.SMALL_EVENTS
    assert cli_plan.GRACE_S == GRACE_S


def test_commits_that_a_row_takes() -> None:
    """They follow from the assumed times of a request, and of a commit's turn at its row."""
    assert pytest.approx(1 / (2 * cli_plan.REQUEST_S + 2 * cli_plan.TURN_S), rel=0.03) == cli_plan.ROW_COMMITS
    assert pytest.approx(1 / (cli_plan.REQUEST_S + cli_plan.TURN_S), rel=0.03) == cli_plan.ROW_COMMITS_ALONE


# ---- the command ----


def told(capsys: pytest.CaptureFixture[str], arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    return cli.main(["plan", *shlex.split(arguments)]), *capsys.readouterr()


@pytest.mark.parametrize("more", ["--workers 2", "--write append", "--write append --fold 5m --shards 4"])
def test_lines_are_aligned_and_fit_80_columns(capsys: pytest.CaptureFixture[str], more: str) -> None:
    """All values end in one column."""
    _, out, _ = told(capsys, f"{HOURLY} --workers 3 {more}")
    assert {len(line) for line in out.splitlines()} == {44}
    assert any(line.startswith("rows written a second ") for line in out.splitlines())
    assert any(re.match(r"fold rows written a second +[1-9]", line) for line in out.splitlines()) == ("append" in more)


def test_json_has_all_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """One document, the same as the plan's."""
    code, out, err = told(capsys, f"{HOURLY} --json")
    found = json.loads(out)
    made = plan(load(events_per_s=1e4, keys=10**6, skew=0.9, bundle=10_000, retention_s=7 * 86_400.0))
    assert {name: found[name] for name in vars(made)} == vars(made)
    assert (code, err, found["fits"], found["problems"], found["warnings"]) == (0, "", True, [], [])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "--keys 1 --bucket 1d --events_per_s 1000 --write append",
            "gets 86,400,000 events in its life, .* 16 million .*full after 4h 26m 40s. Use --bucket 4h or --shards 6$",
        ),
        ("--keys 1 --events_per_s 1 --write append", r"after 185d .* Use --bucket 1d or --shards 22$"),
        ("--keys 1 --events_per_s 1e5 --bucket 1d --shards 9 --write append", r"Use --bucket 20m$"),
        ("--keys 1 --events_per_s 1e8 --bucket 1s --write append", r"Use --shards 7$"),
        ("--keys 1 --events_per_s 1e11 --bucket 1s --write append", "more keys: neither a shorter bucket nor shards"),
        (
            "--keys 1 --bucket 1m --events_per_s 1000 --bundle 10 --workers 9",
            "about 70, of all writers .*--write append",
        ),
        ("--keys 1 --bucket 1m --events_per_s 2000 --bundle 10 --workers 1", "about 140, .*"),
        ("--keys 9999 --bucket 1h --events_per_s 100000 --write append --workers 3", "--workers 3: 4 are needed"),
        (
            "--keys 10000 --skew .9 --bucket 1h --events_per_s 1e6 --shards 64 --bundle 1000",
            "no number of workers is en",
        ),
    ],
)
def test_what_does_not_fit(capsys: pytest.CaptureFixture[str], arguments: str, text: str) -> None:
    """Exit code 1, with the limit and a way out on stderr; the figures are printed all the same."""
    code, out, err = told(capsys, arguments)
    assert (code, out.startswith("rows written a second ")) == (1, True)
    assert re.search(rf"^murmur: does not fit: .*{text}", err, re.MULTILINE), err
    assert json.loads(told(capsys, f"{arguments} --json")[1])["fits"] is False


@pytest.mark.parametrize("bucket", ["1h", "7m", None])
@pytest.mark.parametrize("shards", [1, 3, 16])
@pytest.mark.parametrize("events_per_s", [5e3, 1e5, 2e6])
def test_the_flags_that_it_names_do(
    capsys: pytest.CaptureFixture[str], bucket: str | None, shards: int, events_per_s: float
) -> None:
    """With either of them the row is small enough, and one shard less is not."""
    given = f"--write append --keys 1000 --skew 1 --events_per_s {events_per_s} --shards {shards}"
    given += f" --bucket {bucket}" if bucket else ""
    _, _, err = told(capsys, given)
    named = re.findall(r"--(bucket|shards) (\w+)", err.partition("Use ")[2])
    assert named or "does not fit: the hottest row" not in err
    for flag, value in named:
        assert "the hottest row" not in told(capsys, f"{given} --{flag} {value}")[2]
        if flag == "shards":
            assert "the hottest row" in told(capsys, f"{given} --shards {int(value) - 1}")[2]


def test_a_key_that_is_too_much_for_a_node_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """Its rows are neighbours. The load fits all the same: Bigtable may divide them."""
    given = "--write append --keys 1000000 --skew 1 --events_per_s 1e7 --bucket 1m --shards 4"
    code, _, err = told(capsys, given)
    assert (code, err.startswith("murmur: warning: the rows of the hottest key take 2")) == (0, True)
    found = json.loads(told(capsys, f"{given} --json")[1])
    assert (found["fits"], len(found["warnings"])) == (True, 1)


@pytest.mark.parametrize("arguments", ["", "--write append", "--write append --retention 1d"])
def test_a_counter_of_few_events_fits_for_all_time(capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    """Ten years are its life, unless another one is given."""
    assert told(capsys, f"--keys 1000 --events_per_s 10 {arguments}")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--shards 257", "--shards: must be from 1 to 256, got 257"),
        ("--bucket 0s", "--bucket: must be more than 0"),
        ("--fold 0s", "--fold: must be more than 0"),
        ("--fold_age 0s", "--fold_age: must be more than 0"),
        ("--fold_share 1.5", "--fold_share: must be from 0 to 1, got 1.5"),
        ("--retention 0s", "--retention: must be more than 0"),
        ("--events_per_s 0", "--events_per_s: must be more than 0"),
        ("--skew nan", "argument --skew: 'nan' is not a number from 0 on"),
        ("--write both", "argument --write: invalid choice: 'both'"),
    ],
)
def test_arguments_out_of_their_range(capsys: pytest.CaptureFixture[str], arguments: str, text: str) -> None:
    """One line, with exit code 2."""
    try:
        code, _, err = told(capsys, f"--keys 1 --events_per_s 1 {arguments}")
    except SystemExit as ended:
        code, err = int(str(ended.code)), capsys.readouterr().err
    assert code == 2
    assert text in err


def test_it_imports_neither_beam_nor_a_client() -> None:
    """In a process of its own."""
    code = (
        "import sys; from murmur_beam.cli import main; main.main(sys.argv[1:])\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('apache_beam', 'grpc', 'google')])"
    )
    command = [sys.executable, "-c", code, "plan", "--keys", "1", "--events_per_s", "1", "--write", "append"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ---- the page ----


def test_the_examples_of_the_page_do_not_fit_by_commits(capsys: pytest.CaptureFixture[str]) -> None:
    """The examples in docs/scaling.md, by commits: the exit code and the reason that the page names."""
    commands = re.findall(r"^\$ murmur plan (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        code, _, err = told(capsys, command.replace("--write append", "--write commit"))
        assert code == 1
        assert "no number of workers is enough: each reads what the others commit" in err


def test_the_tables_of_the_page_are_the_plan_s(capsys: pytest.CaptureFixture[str]) -> None:
    """Each row below an example: the same command with these flags."""
    columns = {"USD a month": "usd_a_month"}
    compared = 0
    for part in PAGE.split("$ murmur plan ")[1:]:
        command, (header, _, *rows) = part.partition("\n")[0], re.findall(r"^\|(.*)\|$", part.partition("\n#")[0], re.M)
        names = [name.strip().removesuffix(" a second") for name in header.split(" | ")][1:]
        for row in rows:
            changed, *shown = (cell.strip() for cell in row.split(" | "))
            flags = re.match("`(.*?)`", changed)
            code, out, _ = told(capsys, f"{command} --json {flags[1] if flags else ''}")
            found = json.loads(out)
            figures = [f"{found[columns.get(name, name.replace(' ', '_'))]:,.0f}" for name in names]
            assert (code, figures) == (0, [cell.removesuffix(" (warning)") for cell in shown]), changed
            assert bool(found["warnings"]) == ("(warning)" in row), changed
            compared += 1
    assert compared == 12


def test_the_recipe_of_the_page_groups_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of the store is in one group."""
    options = pytest.importorskip("apache_beam.options.pipeline_options")
    pytest.importorskip("google.cloud.bigtable", reason="pip install 'murmur-beam[gcp]'")
    from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER
    from murmur_beam.state.bigtable.batch import batch_of
    from murmur_beam.state.bigtable.keys import parse_row_key

    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    # The example names no runner, and Beam's default would look for a binary on the network.
    monkeypatch.setattr(options.StandardOptions, "DEFAULT_RUNNER", IN_PROCESS_RUNNER)
    names: dict[str, Any] = {"__name__": "scaling"}
    exec(compile(code, "docs/scaling.md", "exec"), names)
    updates = [Update(Key(event["page"]), 1, event["id"]) for event in names["events"]]
    _, found = batch_of(updates, names["SHARDS"], marks=True)
    assert len(found) > names["SHARDS"]
    for group in found:
        key, shard = parse_row_key(group.row_key)
        assert {names["with_row"](names["events"][i])[0] for i in group.positions} == {(key.entity, shard)}
