"""``murmur check --probe``: on the emulator, on what is known of the live service, and with each assumption broken by a
proxy."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.cloud.bigtable_v2.types import (
    CheckAndMutateRowRequest,
    CheckAndMutateRowResponse,
    MutateRowsRequest,
    MutateRowsResponse,
    ReadRowsRequest,
)

from murmur_beam.cli import main as cli
from murmur_beam.errors import StoreUnavailable, TransientError
from murmur_beam.model import Key
from murmur_beam.monoids import Count
from murmur_beam.state.base import Schema
from murmur_beam.state.bigtable import BigtableSpec, assumptions, probe, scratch, tables, wire
from murmur_beam.state.bigtable.assumptions import CORE, STEPS, Step
from murmur_beam.state.bigtable.keys import AFTER_SCHEMA, SCHEMA_ROW
from murmur_beam.state.bigtable.layouts import LAYOUTS, NEWEST
from murmur_beam.testing import FakeClock
from tests.support import ROOT, emulators
from tests.support.fault_proxy import CHECK_AND_MUTATE, MUTATE_ROWS, READ_ROWS, Fault, FaultProxy, Plan, Refusal

DAY = timedelta(days=1)
COUNTS = tables.table_meta(Schema("count", DAY))
NINETY_DAYS = tables.table_meta(Schema("count", DAY), 90 * DAY)
NOT_ON_EMULATORS = [
    "refused mutation",
    "refused neighbour",
    "idempotency token",
    "unaligned timestamp",
    "set cell of sums",
]
OPERATIONS = (ROOT / "docs/operations.md").read_text("utf-8")

KINDS: dict[str, Any] = {
    CHECK_AND_MUTATE: CheckAndMutateRowRequest.pb(),
    MUTATE_ROWS: MutateRowsRequest.pb(),
    READ_ROWS: ReadRowsRequest.pb(),
}
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NO_TRANSACTIONS = "Single-row transactions are not allowed by this app profile"

_names = itertools.count()


def new_where(**arguments: Any) -> BigtableSpec:
    """A table that does not exist yet."""
    return BigtableSpec(emulators.PROJECT, emulators.INSTANCE, f"probed-{os.getpid()}-{next(_names)}", **arguments)


@pytest.fixture(scope="module")
def where(bigtable_host: str) -> BigtableSpec:
    """A table for counts, the same for all tests: a probe leaves nothing there."""
    spec = new_where()
    tables.create(spec, COUNTS)
    return spec


@pytest.fixture
def leaves_nothing(where: BigtableSpec, bigtable_host: str) -> Iterator[None]:
    """After the test, the table has no row except its record."""
    yield
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGTABLE_EMULATOR_HOST", bigtable_host)
        assert rows_of(where) == [SCHEMA_ROW]


def rows_of(where: BigtableSpec) -> list[bytes]:
    """All row keys of a table."""
    with closing(where.connect()) as connection:
        return [row.key for row in connection.run(connection.read(wire.read_range(connection, b"\x00", None, 0)))]


def remove(where: BigtableSpec, keys: list[bytes]) -> None:
    """Delete some rows."""
    with closing(where.connect()) as connection:
        request = wire.bulk(connection, [(key, [wire.DELETE_ROW]) for key in keys])
        assert connection.run(connection.mutate(request, len(keys))) == {}


def status(report: probe.Report) -> dict[str, str]:
    """The status of each step."""
    return {result.name: result.status for result in report.results}


# ---- what the proxy does ----


def names_of(message: Any) -> set[bytes]:
    """Of the scratch rows that a request names."""
    if hasattr(message, "row_key"):
        keys = [message.row_key]
    else:
        keys = message.rows.row_keys if hasattr(message, "rows") else [entry.row_key for entry in message.entries]
    return {key.removeprefix(scratch.PREFIX).partition(b" ")[2] for key in keys if key.startswith(scratch.PREFIX)}


def mutations_of(message: Any) -> list[Any]:
    """The lists of mutations in a request."""
    if hasattr(message, "row_key"):
        return [message.true_mutations, message.false_mutations]
    return [entry.mutations for entry in getattr(message, "entries", ())]


def about(name: str, method: str, request: bytes) -> Any:
    """The request as a message, if it names the scratch row of this name alone; several names are joined by +."""
    kind = KINDS.get(method)
    message = kind.FromString(request) if kind else None
    return message if message is not None and names_of(message) == {*name.encode().split(b" + ")} else None


def asked(name: str, change: Callable[[Any], object]) -> dict[str, Any]:
    """Change requests for this scratch row."""

    def changed(method: str, request: bytes) -> bytes:
        message = about(name, method, request)
        if message is None:
            return request
        change(message)
        return bytes(message.SerializeToString())

    return {"asked": changed}


def told(name: str, change: Callable[[Any], object], method: str = CHECK_AND_MUTATE) -> dict[str, Any]:
    """Change the answers to writes of this scratch row."""
    kind: Any = CheckAndMutateRowResponse if method == CHECK_AND_MUTATE else MutateRowsResponse

    def changed(asked: str, request: bytes, answers: list[bytes]) -> list[bytes]:
        if asked != method or about(name, method, request) is None:
            return answers
        messages = [kind.pb().FromString(answer) for answer in answers]
        for message in messages:
            change(message)
        return [message.SerializeToString() for message in messages]

    return {"told": changed}


def ignored(name: str, mutation: str) -> dict[str, Any]:
    """Acknowledge writes of one such mutation to this scratch row without making them."""

    def live(method: str, request: bytes) -> bytes | None:
        message = about(name, method, request)
        if method != MUTATE_ROWS or message is None or not message.entries[0].mutations[0].HasField(mutation):
            return None
        return taken(1)

    return {"live": live}


def taken(n: int) -> bytes:
    """The answer to a write of this many rows that reports success."""
    return bytes(MutateRowsResponse.serialize(MutateRowsResponse(entries=[{"index": i} for i in range(n)])))


def refused(code: grpc.StatusCode, text: str, *methods: str, name: str = "") -> dict[str, Any]:
    """Make requests of these methods fail, for this scratch row or for all."""

    def live(method: str, request: bytes) -> Refusal | None:
        hit = method in methods and scratch.PREFIX in request and (not name or about(name, method, request))
        return Refusal(code, text) if hit else None

    return {"live": live}


def no_mutations(message: Any) -> None:
    """Make a commit write nothing where its condition is not met."""
    if hasattr(message, "row_key"):
        del message.false_mutations[:]


def always(met: bool) -> Callable[[Any], None]:
    """Make a condition that every row meets."""

    def change(message: Any) -> None:
        if hasattr(message, "row_key"):
            message.predicate_filter.Clear()
            setattr(message.predicate_filter, "pass_all_filter" if met else "block_all_filter", True)

    return change


def whole_range(message: Any) -> None:
    """Make a range of columns begin at the first."""
    if hasattr(message, "rows"):
        message.filter.interleave.filters[1].column_range_filter.ClearField("start_qualifier_closed")


def two_cells(message: Any) -> None:
    """Make the limit of cells per column another one."""
    if hasattr(message, "rows") and message.filter.HasField("interleave"):
        message.filter.interleave.filters[0].chain.filters[1].cells_per_column_limit_filter = 2


def without(mutation: str) -> Callable[[Any], None]:
    """Drop mutations of this kind."""

    def change(message: Any) -> None:
        for some in mutations_of(message):
            kept = [each for each in some if not each.HasField(mutation)]
            del some[:]
            some.extend(kept)

    return change


def retimed(field: str, time: Callable[[int], int]) -> Callable[[Any], None]:
    """Write cells at other times."""

    def change(message: Any) -> None:
        for each in itertools.chain.from_iterable(mutations_of(message)):
            if field == "set_cell" and each.HasField(field):
                each.set_cell.timestamp_micros = time(each.set_cell.timestamp_micros)
            elif field == "add_to_cell" and each.HasField(field):
                add = each.add_to_cell.timestamp
                add.raw_timestamp_micros = time(add.raw_timestamp_micros)

    return change


def whole_family(message: Any) -> None:
    """Make the deletion of a column delete its family."""
    for each in itertools.chain.from_iterable(mutations_of(message)):
        if each.HasField("delete_from_column"):
            each.delete_from_family.family_name = each.delete_from_column.family_name


def met(message: Any) -> None:
    """Report that the condition was met."""
    message.predicate_matched = True


def first_failed(message: Any) -> None:
    """Report that the first entry has failed."""
    for entry in message.entries:
        if entry.index == 0:
            entry.status.code, entry.status.message = INVALID.value[0], "as its neighbour"


def answer_missing(message: Any) -> None:
    """Omit the answer of one entry."""
    del message.entries[0]


ticks = itertools.count(1)


class TestOnTheEmulator:
    @pytest.mark.parametrize("layout", [1, 2])
    @pytest.mark.parametrize("meta", [COUNTS, NINETY_DAYS], ids=["for-ever", "retention"])
    def test_all_required_steps_pass(
        self, bigtable_host: str, proxy: FaultProxy, meta: tables.Meta, layout: int
    ) -> None:
        """In both layouts, in fewer than 300 requests; the known differences are reported as such."""
        where = new_where()
        tables.create(where, meta._replace(layout=LAYOUTS[layout]))
        proxy.counts.clear()
        report = probe.run(where)
        assert report.wrong == []
        assert (report.layout, report.emulator) == (layout, True)
        differences = [result.name for result in report.results if "known difference" in result.advice]
        assert differences == NOT_ON_EMULATORS
        sent = sum(proxy.counts[method].requests for method in KINDS)
        assert sent == report.requests < 300
        assert [result.name for result in report.results] == [*(step.name for step in STEPS), "scratch rows"]
        assert rows_of(where) == [SCHEMA_ROW]

    def test_existing_rows_do_not_change(self, bigtable_host: str) -> None:
        """A table in use can be probed."""
        where = new_where()
        tables.create(where, COUNTS)
        with closing(where.open(Count(), DAY)) as store:
            store.merge_update(Key("a", 20_000), 3, event_id="1")
            probe.run(where)
            assert list(store.scan()) == [(Key("a", 20_000), 3)]


class TestAsTheLiveServiceIs:
    """Recorded answers of the live service, given by a proxy; the environment does not name an emulator."""

    @pytest.fixture(autouse=True)
    def _no_emulator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scratch, "on_emulator", lambda: False)

    @pytest.mark.usefixtures("leaves_nothing")
    def test_all_steps_pass_there(self, where: BigtableSpec, proxy: FaultProxy) -> None:
        """The only notes are latencies and features of the service."""
        tokens = set()

        def live(method: str, request: bytes) -> Refusal | bytes | None:
            message = KINDS[method].FromString(request)
            bad = any(
                each.set_cell.family_name in (wire.AGG, "murmur_no_such_family")
                or each.add_to_cell.timestamp.raw_timestamp_micros % 1_000
                for each in itertools.chain.from_iterable(mutations_of(message))
            )
            if bad and method == CHECK_AND_MUTATE:
                return Refusal(INVALID, "Requested column family not found.")
            token = message.entries[0].idempotency.token if method == MUTATE_ROWS else b""
            if bad or token in tokens:
                status = {"code": INVALID.value[0] if bad else 0, "message": "Error in field 'Mutations list'"}
                entries = [{"index": i, "status": status} for i in range(len(message.entries))]
                return MutateRowsResponse.serialize(MutateRowsResponse(entries=entries))
            tokens.update({token} - {b""})
            return None

        proxy.live = live
        report = probe.run(where)
        assert [result for result in report.results if result.advice] == []
        seen = {result.name: (result.status, result.seen) for result in report.results}
        assert seen["refused neighbour"][0] == "ok"
        assert seen["refused neighbour"][1].endswith("its neighbour is refused with it, and not written")
        assert seen["refused mutation"][1].startswith("refused (INVALID_ARGUMENT: Requested column family not found.")
        assert seen["idempotency token"] == ("note", "honoured: two adds with one token count once")
        assert seen["set cell of sums"] == ("note", "refused (INVALID_ARGUMENT: Error in field 'Mutations list')")

    @pytest.mark.usefixtures("leaves_nothing")
    def test_differences_tolerated_in_an_emulator_fail_there(self, where: BigtableSpec) -> None:
        """A refused commit that leaves a trace would count."""
        report = probe.run(where)
        (result,) = report.wrong
        assert (result.name, result.advice[:30]) == ("refused mutation", "A failed commit could still co")
        assert result.seen.endswith("but the add before it stays")
        notes = {result.name for result in report.results if result.status == "note" and result.advice}
        assert notes == {"idempotency token", "unaligned timestamp", "set cell of sums"}


BROKEN = [
    ("sums", ignored("sums", "add_to_cell"), r"agg:v at 0 us is absent, not -2"),
    ("sums", asked("sums", retimed("add_to_cell", lambda at: at + next(ticks) * 1_000)), r"agg:v at 0 us is absent"),
    ("first commit", asked("first commit", no_mutations), r"is absent, not .*; \d more cells differ"),
    ("first commit", asked("first commit", without("set_cell")), r"is absent, not"),
    ("first commit", told("first commit", met), r"a row that does not exist was reported to have a version"),
    ("commit", asked("commit", always(False)), r"a row at version \d+ was reported to be at another"),
    ("commit", asked("commit", without("add_to_cell")), r"agg:v at 0 us is absent, not 8"),
    ("stale commit", asked("stale commit", always(True)), r"was reported to be at \d+, and was written to"),
    ("stale commit", asked("stale commit", always(False)), r"a row with a version was reported to have none"),
    (
        "one winner",
        asked("one winner", always(True)),
        r"16 of 16 commits at one version were reported as",
    ),
    ("one winner", told("one winner", met), r"16 of 16 commits"),
    ("one winner", asked("one winner", always(False)), r"0 of 16 commits"),
    ("news", asked("news", whole_range), r"dedup:\w+ at \d+ us is 16 bytes, not absent"),
    ("packing", asked("packing", without("delete_from_column")), r"is 16 bytes, not absent"),
    ("packing", asked("packing", always(False)), r"the commit was not applied"),
    ("made again", ignored("made again", "delete_from_row"), r"a deleted row was reported to have a version"),
    ("two timestamps", asked("two timestamps", two_cells), r"agg:v at 0 us is 5, not absent"),
    ("two timestamps", asked("two timestamps", retimed("add_to_cell", lambda at: 0)), r"agg:v at 0 us is 12, not 5"),
    ("far timestamp", asked("far timestamp", retimed("set_cell", lambda at: at // 2**9 // 1000 * 1000)), r"state:x at"),
    ("far timestamp", refused(INVALID, "Timestamp too far", MUTATE_ROWS, name="far timestamp"), r"Timestamp too far"),
    ("refused mutation", asked("refused mutation", without("set_cell")), r"is not refused"),
    (
        "refused neighbour",
        told("neighbour + refused row", first_failed, MUTATE_ROWS),
        r"its neighbour was reported as refused, but was not",
    ),
    ("refused neighbour", told("neighbour + refused row", answer_missing, MUTATE_ROWS), r"1 of 2 writes were answered"),
    (
        "repeated append",
        asked("repeated append", retimed("set_cell", lambda at: at + next(ticks) * 1_000)),
        r"is (absent, not 6 bytes|6 bytes, not absent)",
    ),
    ("delete by name", ignored("delete by name", "delete_from_column"), r"folded at 0 us is 6 bytes, not absent"),
    ("delete by name", asked("delete by name", whole_family), r"later at 0 us is absent, not 6 bytes"),
    ("one winner", refused(grpc.StatusCode.ABORTED, "Busy", CHECK_AND_MUTATE, name="one winner"), r"ABORTED: Busy"),
]


class TestBroken:
    @pytest.fixture(autouse=True)
    def _few_are_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(assumptions, "_TIMED", 2)

    @pytest.mark.parametrize(
        ("name", "fault", "words"), BROKEN, ids=[f"{case[0]}-{i}" for i, case in enumerate(BROKEN)]
    )
    @pytest.mark.usefixtures("leaves_nothing")
    def test_its_step_fails(
        self, where: BigtableSpec, proxy: FaultProxy, name: str, fault: dict[str, Any], words: str
    ) -> None:
        """And no other: it reports what was seen, what that means and what to do; nothing is left."""
        for attribute, change in fault.items():
            setattr(proxy, attribute, change)
        report = probe.run(where)
        (result,) = report.wrong
        assert result.name == name
        assert re.search(words, result.seen), result.seen
        (step,) = [step for step in STEPS if step.name == name]
        unanswered = re.search("ABORTED|answered", words)
        assert result.advice == (
            "The service did not answer, so the result is unknown. Run the probe again." if unanswered else step.advice
        )
        assert len(report.results) == len(STEPS) + 1

    def test_every_required_step_is_broken_here(self) -> None:
        """So that no step always passes."""
        assert {name for name, _, _ in BROKEN} == {step.name for step in STEPS if step.matters}

    @pytest.mark.usefixtures("leaves_nothing")
    def test_an_app_profile_without_transactions(self, where: BigtableSpec, proxy: FaultProxy) -> None:
        """The service's code and text, with the profile's name; steps without transactions still run."""
        proxy.live = refused(grpc.StatusCode.FAILED_PRECONDITION, NO_TRANSACTIONS, CHECK_AND_MUTATE)["live"]
        report = probe.run(where)
        assert [result.name for result in report.wrong] == [
            *("first commit", "commit", "stale commit", "one winner", "packing", "made again")
        ]
        for result in report.wrong:
            assert result.seen.startswith(f"FAILED_PRECONDITION: {NO_TRANSACTIONS} (default): a commit needs one that")
            assert "murmur check" not in result.seen
        assert {status(report)[name] for name in ("sums", "news", "repeated append", "delete by name")} == {"ok"}

    @pytest.mark.usefixtures("leaves_nothing")
    def test_no_answer_in_time(self, where: BigtableSpec, proxy: FaultProxy) -> None:
        """One request has a deadline; an unknown result is not reported as a fault."""
        late = Plan({Fault.DELAY: 1.0}, late_s=30.0)

        def live(method: str, request: bytes) -> None:
            proxy.plan = late if about("far timestamp", method, request) else None

        proxy.live = live
        spec = BigtableSpec(where.project, where.instance, where.table, timeout_s=0.5)
        (result,) = probe.run(spec).wrong
        assert (result.name, result.seen[:17]) == ("far timestamp", "DEADLINE_EXCEEDED")
        assert result.advice == "The service did not answer, so the result is unknown. Run the probe again."

    @pytest.mark.usefixtures("leaves_nothing")
    def test_the_time_of_the_probe_is_limited(self, where: BigtableSpec, proxy: FaultProxy) -> None:
        """Steps that have not run by then are reported as such, and the rows are removed nevertheless."""
        proxy.plan = Plan({Fault.DELAY: 1.0}, late_s=0.1)
        report = probe.run(where, limit_s=1.0)
        done = [result for result in report.results[:-1] if result.status == "ok"]
        rest = report.results[len(done) : -1]
        assert {result.seen for result in rest} == {"not done within the time limit of the whole probe"}
        assert len(done) >= 1
        assert (len(report.results), report.results[-1].status) == (len(STEPS) + 1, "ok")
        assert report.seconds < 5


class TestScratchRows:
    """They are removed whatever happens."""

    @pytest.mark.usefixtures("leaves_nothing")
    def test_a_step_that_raises(self, where: BigtableSpec) -> None:
        """For example by a bug of this library."""

        async def broken(rows: scratch.Scratch) -> str:
            await rows.begun("broken")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            probe.run(where, [*CORE, Step("broken", broken, "")])

    @pytest.mark.usefixtures("leaves_nothing")
    def test_ctrl_c(self, where: BigtableSpec, proxy: FaultProxy) -> None:
        """In the middle of a request."""
        interrupt_at("one winner", proxy)
        with pytest.raises(KeyboardInterrupt):
            probe.run(where)

    @pytest.mark.parametrize("interrupted", [False, True], ids=["done", "interrupted"])
    @pytest.mark.usefixtures("leaves_nothing")
    def test_rows_that_cannot_be_removed_are_named(
        self, where: BigtableSpec, proxy: FaultProxy, bigtable_host: str, interrupted: bool
    ) -> None:
        """With the service's text, how to remove them, and exit code 1, or an error."""
        removing = refused(grpc.StatusCode.PERMISSION_DENIED, "No deleting", MUTATE_ROWS)["live"]
        if interrupted:
            interrupt_at("one winner", proxy)
        first = proxy.live

        def live(method: str, request: bytes) -> Any:
            return removing(method, request) if method == MUTATE_ROWS and many(request) else first(method, request)

        proxy.live = live
        if interrupted:
            with pytest.raises(StoreUnavailable) as caught:
                probe.run(where)
            text = str(caught.value)
            assert text.startswith(f"{where}: scratch rows not removed")
        else:
            (result,) = probe.run(where).wrong
            assert result.name == "scratch rows"
            text = f"{result.seen}. {result.advice}"
        assert "PERMISSION_DENIED: No deleting" in text
        assert "drop_by_prefix(b'\\x00\\x00probe\\x00')" in text
        proxy.live = lambda method, request: None
        left = [key for key in rows_of(where) if key != SCHEMA_ROW]
        assert left
        assert all(repr(key) in text for key in left)
        remove(where, left)

    @pytest.mark.usefixtures("leaves_nothing")
    def test_deletes_that_do_nothing(self, where: BigtableSpec, proxy: FaultProxy) -> None:
        """Rows that still exist are named as well."""
        proxy.live = lambda method, request: taken(many(request)) if method == MUTATE_ROWS and many(request) else None
        (result,) = probe.run(where, CORE).wrong
        assert result.seen.startswith(r"not removed: b'\x00\x00probe")
        assert result.seen.count("probe") == len(CORE)
        proxy.live = lambda method, request: None
        remove(where, [key for key in rows_of(where) if key < AFTER_SCHEMA and key != SCHEMA_ROW])

    @pytest.mark.usefixtures("leaves_nothing")
    def test_deletes_are_tried_again(self, where: BigtableSpec, proxy: FaultProxy) -> None:
        """After an error, and where rows still exist: a late write may have made them again."""
        answers: list[Any] = [Refusal(grpc.StatusCode.UNAVAILABLE, "down"), taken(len(CORE))]

        def live(method: str, request: bytes) -> Any:
            return answers.pop(0) if answers and method == MUTATE_ROWS and many(request) else None

        proxy.live = live
        assert probe.run(where, CORE).wrong == []
        assert answers == []


def many(request: bytes) -> int:
    """The number of rows that a MutateRows deletes; 0 for a single one, which a step does."""
    entries = MutateRowsRequest.deserialize(request).entries
    deletes = all("delete_from_row" in mutation for entry in entries for mutation in entry.mutations)
    return len(entries) if deletes and len(entries) > 1 else 0


def interrupt_at(name: str, proxy: FaultProxy) -> None:
    """Interrupt once, as Ctrl-C does, when a request for this scratch row comes."""
    main = threading.main_thread().ident
    assert main is not None
    left = [main]

    def live(method: str, request: bytes) -> None:
        if left and method == CHECK_AND_MUTATE and about(name, method, request):
            signal.pthread_kill(left.pop(), signal.SIGINT)

    proxy.live = live


class TestCommand:
    def test_its_output_is_that_of_the_docs(self, bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Except for numbers and the table's name; no line is too long to be pasted."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        assert cli.main(["check", str(where), "--probe"]) == 0
        out = capsys.readouterr().out
        assert all(len(line) <= 100 for line in out.splitlines())
        (sample,) = re.findall(r"```text\n(murmur_beam .*?)```", OPERATIONS, re.DOTALL)
        assert words(sample) == words(out)

    def test_json(self, where: BigtableSpec, capsys: pytest.CaptureFixture[str]) -> None:
        """The same for programs, in addition to the findings of `check` without it."""
        assert cli.main(["check", str(where), "--json"]) == 0
        plain = json.loads(capsys.readouterr().out)
        assert cli.main(["check", str(where), "--json", "--probe"]) == 0
        document = json.loads(capsys.readouterr().out)
        report, origin = document.pop("probe"), document.pop("origin")
        assert document == plain
        assert origin["app_profile"] == "default"
        versions = {"murmur_beam", "google-cloud-bigtable", "grpcio", "python"}
        assert {*origin} == {*versions, "time", "app_profile", "emulator"}
        assert (report["layout"], report["emulator"]) == (NEWEST, True)
        assert report["results"][0] == {
            "name": "sums",
            "status": "ok",
            "seen": "5 and -7 make -2, read as 8 bytes at the timestamp of the adds",
            "advice": "",
        }

    def test_a_failed_step_has_its_meaning(
        self, where: BigtableSpec, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """On separate lines, below what was seen; exit code 1, also with --json."""
        proxy.asked = asked("one winner", always(True))["asked"]
        assert cli.main(["check", str(where), "--probe"]) == 1
        out = capsys.readouterr().out
        assert all(len(line) <= 100 for line in out.splitlines())
        assert re.search(r"\n  one winner +wrong +16 of 16 commits .*\n +Two workers could commit at once, and ", out)
        assert re.search(r"\nprobe: 12 ok, 1 wrong, 7 notes; layout \d, \d+ requests in \d+\.\d s\n", out)
        assert cli.main(["check", str(where), "--probe", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["ok"] is False

    def test_a_table_with_faults_is_not_probed(self, bigtable_host: str, capsys: pytest.CaptureFixture[str]) -> None:
        """They have to be mended first."""
        uri = f"bigtable://{emulators.PROJECT}/{emulators.INSTANCE}/not-there"
        assert cli.main(["check", uri, "--probe"]) == 1
        assert capsys.readouterr().out.endswith("\nprobe: not run, since the table is not as it should be\n")
        assert cli.main(["check", uri, "--probe", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["probe"] is None
        with pytest.raises(StoreUnavailable, match="NOT_FOUND"):
            probe.run(BigtableSpec(emulators.PROJECT, emulators.INSTANCE, "not-there"))

    def test_a_table_without_a_record(self, bigtable_host: str) -> None:
        """It has no layout yet."""
        where = emulators.new_spec(bigtable_host)
        with pytest.raises(StoreUnavailable, match="is not recorded; run murmur create-table first"):
            probe.run(where)
        assert rows_of(where) == []

    def test_other_stores_have_nothing_to_probe(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The command says so."""
        assert cli.main(["check", "memory://counts", "--probe"]) == 0
        assert "needs no table; the first" in capsys.readouterr().out


def words(text: str) -> list[str]:
    """Lines without numbers, versions and the table's name."""
    text = re.sub(r"bigtable://\S+?(?=:)", "URI", text)
    return re.sub(r"\d[\w.,:-]*", "N", text).split()


class TestCreateTable:
    def test_a_new_table_is_probed(self, proxy: FaultProxy) -> None:
        """In few requests, and no row is left; an existing table is not probed."""
        where = new_where()
        tables.create(where, NINETY_DAYS)
        assert 30 < sum(proxy.counts[method].requests for method in KINDS) < 60
        assert rows_of(where) == [SCHEMA_ROW]
        proxy.counts.clear()
        tables.create(where, tables.table_meta(Schema("count", DAY), 120 * DAY))
        assert sum(proxy.counts[method].requests for method in KINDS) < 10

    @pytest.mark.parametrize("name", [step.name for step in CORE])
    def test_an_unfit_service(
        self, proxy: FaultProxy, capsys: pytest.CaptureFixture[str], bigtable_host: str, name: str
    ) -> None:
        """An error names the assumption and what to do; the table stays."""
        where = new_where()
        _, fault, found = next(case for case in BROKEN if case[0] == name)
        for attribute, change in fault.items():
            setattr(proxy, attribute, change)
        assert cli.main(["create-table", str(where), "--monoid", "count"]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        (step,) = [step for step in CORE if step.name == name]
        assert re.search(
            rf"murmur: error: {where}: the table is created, but is not fit for commits: {name}: .*{found}.*\. "
            rf"{re.escape(step.advice)} For details run: murmur check --probe '{where}'\n",
            err,
        )
        assert rows_of(where) == [SCHEMA_ROW]
        assert cli.main(["check", str(where)]) == 0

    @pytest.mark.parametrize("n", [1, 4, 8])
    def test_a_table_that_is_still_being_created_is_waited_for(self, proxy: FaultProxy, n: int) -> None:
        """Also where a scratch row gets that answer first, and so cannot be removed either."""
        clock = FakeClock()
        where = new_where(clock=clock)
        left = list(range(n))

        def live(method: str, request: bytes) -> Refusal | None:
            if scratch.PREFIX not in request or not left:
                return None
            left.pop()
            return Refusal(grpc.StatusCode.FAILED_PRECONDITION, "Table currently being created")

        proxy.live = live
        said: list[str] = []
        tables.create(where, tables.table_meta(Schema("count", None)), say=said.append)
        assert len(said) == -(-n // 4)
        assert rows_of(where) == [SCHEMA_ROW]

    def test_without_an_answer(self, proxy: FaultProxy) -> None:
        """The error says that the result is unknown."""
        proxy.live = refused(grpc.StatusCode.UNAVAILABLE, "down", CHECK_AND_MUTATE)["live"]
        with pytest.raises(
            (StoreUnavailable, TransientError), match=r"first commit: UNAVAILABLE: down\. The service did not answer"
        ):
            tables.create(new_where(), NINETY_DAYS)
