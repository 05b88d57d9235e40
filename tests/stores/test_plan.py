"""``murmur plan``: its formulas against brute force and a real run on the emulator, its texts, refusals and JSON."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from murmur_beam.cli import main as cli
from murmur_beam.cli import plan as cli_plan
from murmur_beam.cli.plan import Load, key_shares, rates, row_rates, touched
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids import Count
from murmur_beam.state.base import GRACE_S

if TYPE_CHECKING:
    from tests.support.fault_proxy import FaultProxy

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
        fold_s=60.0,
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
    """A single key, folded each minute: a commit and a delete, two reads; an hourly row gets a version once."""
    made = plan(load(keys=1, skew=0, append=True))
    assert made.rows_read == made.conflicts == 0
    assert made.fold_rows_written == pytest.approx(2 / 60 + 1 / 3_600)
    assert made.fold_rows_read == pytest.approx(2 / 60)
    assert (made.rows_written, made.write_requests) == (1, 1)


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
    from murmur_beam.state.bigtable import appender, fingerprints, folder, row_cache

    assert cli_plan.MARKER_BYTES == fingerprints.FINGERPRINT_BYTES
    assert (cli_plan.PACK_AT, cli_plan.PACKED) == (row_cache.PACK_AT, row_cache.PACKED)
    assert (cli_plan.ROWS_PER_APPEND, cli_plan.EVENTS_PER_FOLD) == (
        appender._ROWS_PER_REQUEST,
        folder._EVENTS_PER_COMMIT,
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


@pytest.mark.parametrize("more", ["--workers 2", "--write append", "--write append --fold_every 5m --shards 4"])
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
    assert (code, err, found["fits"], found["problems"]) == (0, "", True, [])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "--keys 1 --bucket 1d --events_per_s 1000 --write append",
            r"\(16 million events\) cannot be read.*shorter bu",
        ),
        ("--keys 1 --events_per_s 1 --write append", r"16 million events in all its life\).*after 185d .*--bucket or"),
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


@pytest.mark.parametrize("arguments", ["", "--write append", "--write append --retention 1d"])
def test_a_counter_of_few_events_fits_for_all_time(capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    """Ten years are its life, unless another one is given."""
    assert told(capsys, f"--keys 1000 --events_per_s 10 {arguments}")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--shards 257", "--shards: must be from 1 to 256, got 257"),
        ("--bucket 0s", "--bucket: must be more than 0"),
        ("--fold_every 0s", "--fold_every: must be more than 0"),
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


def test_the_example_of_the_page_does_not_fit_by_commits(capsys: pytest.CaptureFixture[str]) -> None:
    """The example in docs/scaling.md, by commits: the exit code and the reason that the page names."""
    (command,) = re.findall(r"```console\n\$ murmur plan (.*)\n", PAGE)
    code, _, err = told(capsys, command.replace("--write append", "--write commit"))
    assert code == 1
    assert "no number of workers is enough: each reads what the others commit" in err


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


# ---- a real run ----


class Requests:
    """Counts what a proxy's clients write and read, as the emulator answers it."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.counts: Counter[str] = Counter()
        proxy.told = self._told

    def _told(self, method: str, request: bytes, answers: list[bytes]) -> list[bytes]:
        from google.cloud.bigtable_v2 import types

        if method == "CheckAndMutateRow":
            commit = types.CheckAndMutateRowRequest.pb().FromString(request)
            met = types.CheckAndMutateRowResponse.pb().FromString(answers[0]).predicate_matched
            wrote = bool(commit.true_mutations if met else commit.false_mutations)
            self.counts.update(requests=1, written=wrote, conflicts=not wrote)
        elif method == "MutateRows":
            self.counts.update(requests=1, written=len(types.MutateRowsRequest.pb().FromString(request).entries))
        elif method == "ReadRows":
            chunks = itertools.chain(*(types.ReadRowsResponse.pb().FromString(answer).chunks for answer in answers))
            self.counts["read"] += sum(chunk.commit_row for chunk in chunks)
        return answers

    def taken(self) -> Counter[str]:
        """What was counted since the last time."""
        taken, self.counts = self.counts, Counter()
        return taken


def drawn(keys: int, skew: float) -> Iterator[Update]:
    """Events with Zipf keys, each with an id of its own."""
    weights = list(itertools.accumulate(rank**-skew for rank in range(1, keys + 1)))
    chance = random.Random(7)
    for number in itertools.count():
        (rank,) = chance.choices(range(keys), cum_weights=weights)
        yield Update(Key(f"key-{rank}"), 1, f"event-{number}")


@pytest.mark.parametrize(
    ("append", "skew", "keys", "writers", "bundle", "flushes"),
    [
        (False, 0.0, 180, 3, 180, 9),
        (False, 1.3, 500, 4, 100, 24),
        (False, 1.0, 12, 2, 20, 60),
        (True, 0.0, 400, 3, 100, 12),
        (True, 1.3, 500, 4, 150, 16),
    ],
)
def test_rows_and_requests_are_those_of_a_real_run(
    bigtable_host: str,
    proxy: FaultProxy,
    append: bool,
    skew: float,
    keys: int,
    writers: int,
    bundle: int,
    flushes: int,
) -> None:
    """Writers in turns, on one emulator: each count is within 15 % of the plan for this load, and the sum is exact."""
    from tests.support.emulators import appended_spec, new_spec

    spec = (appended_spec if append else new_spec)(bigtable_host)
    total = flushes * bundle
    made = plan(
        load(
            events_per_s=1.0,
            keys=keys,
            skew=skew,
            life_s=float(total),
            append=append,
            workers=writers,
            bundle=bundle,
            fold_s=total / 2,
        )
    )
    requests, events = Requests(proxy), drawn(keys, skew)
    with ExitStack() as stack:
        stores = [stack.enter_context(closing(spec.open(Count()))) for _ in range(writers)]
        requests.taken()
        written: Counter[str] = Counter()
        folded: Counter[str] = Counter()
        for number in range(flushes):
            results = stores[number % writers].merge_updates(list(itertools.islice(events, bundle)))
            assert set(results) == {Outcome.RECORDED if append else Outcome.MERGED}
            written += requests.taken()
            if append and (number + 1) % (flushes // 2) == 0:
                stores[0].fold()
                folded += requests.taken()
        assert sum(count for _, count in stores[0].scan()) == total
    planned = {
        "rows written": (made.rows_written, written["written"]),
        "rows read": (made.rows_read, written["read"]),
        "conflicts": (made.conflicts, written["conflicts"]),
        "requests": (made.write_requests, written["requests"]),
        "rows that folds write": (made.fold_rows_written, folded["written"]),
        "rows that folds read": (made.fold_rows_read, folded["read"]),
    }
    for name, (rate, counted) in planned.items():
        print(f"{name}: planned {rate * total:,.1f}, counted {counted:,}")
    for name, (rate, counted) in planned.items():
        assert rate * total == pytest.approx(counted, rel=0.15), name
