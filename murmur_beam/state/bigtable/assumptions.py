"""The protocol's assumptions about Bigtable: each is a step that tests it on new scratch rows.

A step returns the observed behaviour, and raises `Wrong` if the assumption does not hold. `STEPS` has the name of each
step, and the consequence of its failure.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from murmur_beam.state.bigtable import wire
from murmur_beam.state.bigtable.codec import FOREVER_US
from murmur_beam.state.bigtable.scratch import Cells, Scratch, difference, int64, marker

_WRITERS = 16
_TIMED = 40
_NO_FAMILY = "murmur_no_such_family"


class Step(NamedTuple):
    """One assumption.

    Attributes:
        name: of the assumption.
        run: tests the assumption, and returns the observed behaviour.
        advice: consequence of a failure for the user, and what to do.
        matters: whether anything depends on the assumption.
    """

    name: str
    run: Callable[[Scratch], Awaitable[str]]
    advice: str
    matters: bool = True


class Wrong(Exception):
    """An assumption does not hold.

    Args:
        seen: observed behaviour.
        emulated: whether an emulator is known to behave like this.
    """

    def __init__(self, seen: str, *, emulated: bool = False) -> None:
        super().__init__(seen)
        self.emulated = emulated


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


def _same(seen: Cells, wanted: Cells) -> None:
    _require(seen == wanted, difference(seen, wanted))


async def _sums(scratch: Scratch) -> str:
    key = scratch.row("sums")
    for delta in (5, -7):
        await scratch.put(key, wire.add(wire.VALUE, scratch.at_us, delta))
    _same(await scratch.cells(key), {(wire.AGG, wire.VALUE, scratch.at_us): int64(-2)})
    return "5 and -7 make -2, read as 8 bytes at the timestamp of the adds"


async def _first_commit(scratch: Scratch) -> str:
    key, version, value = scratch.row("first commit"), 7, b"encoded value"
    changes = [*scratch.change(0, version, 5), wire.put(wire.STATE, wire.VALUE, scratch.at_us, value)]
    met = await scratch.commit(key, scratch.layout.exists, if_met=scratch.poison, if_not=changes)
    _require(not met, "a row that does not exist was reported to have a version")
    wanted = scratch.cells_at(version, 5, version)
    _same(await scratch.cells(key), {**wanted, (wire.STATE, wire.VALUE, scratch.at_us): value})
    return "new row: sum, version, marker and value are written at once"


async def _commit(scratch: Scratch) -> str:
    key, version = await scratch.begun("commit")
    changes = scratch.change(version, version + 1, 3)
    met = await scratch.commit(key, scratch.layout.at_version(version), if_met=changes, if_not=scratch.poison)
    _require(met, f"a row at version {version} was reported to be at another")
    _same(await scratch.cells(key), scratch.cells_at(version + 1, 8, version, version + 1))
    return "expected version: sum and version are raised, a marker is added"


async def _stale_commit(scratch: Scratch) -> str:
    key, version = await scratch.begun("stale commit")
    for other in (version - 1, version + 1):
        met = await scratch.commit(key, scratch.layout.at_version(other), if_met=scratch.poison)
        _require(not met, f"a row at version {version} was reported to be at {other}, and was written to")
    met = await scratch.commit(key, scratch.layout.exists, if_not=scratch.poison)
    _require(met, "a row with a version was reported to have none, and was written to")
    _same(await scratch.cells(key), scratch.cells_at(version, 5, version))
    return "another version, or one where none is expected: nothing is written"


async def _one_winner(scratch: Scratch) -> str:
    key, version = await scratch.begun("one winner")
    changes, wanted = scratch.change(version, version + 1, 1), scratch.layout.at_version(version)
    answers = await asyncio.gather(*[scratch.commit(key, wanted, if_met=changes) for _ in range(_WRITERS)])
    _require(sum(answers) == 1, f"{sum(answers)} of {_WRITERS} commits at one version were reported as applied, not 1")
    _same(await scratch.cells(key), scratch.cells_at(version + 1, 6, version, version + 1))
    return f"of {_WRITERS} commits at one version 1 is applied"


async def _news(scratch: Scratch) -> str:
    key, version = await scratch.begun("news")
    for each in (version, version + 1):
        await scratch.put(key, *scratch.change(each, each + 1, 1))
    seen = await scratch.cells(key, lambda request: wire.only_news(request, version))
    _same(seen, scratch.cells_at(version + 2, 7, version + 1, version + 2))
    return "a range of columns reads the markers of later commits only"


async def _packing(scratch: Scratch) -> str:
    key, version = await scratch.begun("packing")
    await scratch.put(key, *scratch.change(version, version + 1, 3))
    old, last, packed = marker(version), marker(version + 1), b"all events"
    changes = [wire.clear_column(wire.DEDUP, old), wire.clear_column(wire.DEDUP, last)]
    changes.append(wire.put(wire.DEDUP, last, scratch.now_us, packed))
    _require(
        await scratch.commit(key, scratch.layout.at_version(version + 1), if_met=changes), "the commit was not applied"
    )
    wanted = scratch.cells_at(version + 1, 8)
    _same(await scratch.cells(key), {**wanted, (wire.DEDUP, last, scratch.now_us): packed})
    return "columns are deleted, and one of them is set, in one commit"


async def _made_again(scratch: Scratch) -> str:
    key, version = await scratch.begun("made again")
    await scratch.put(key, wire.DELETE_ROW)
    again = version + secrets.randbits(40) + 1
    met = await scratch.commit(key, scratch.layout.exists, if_met=scratch.poison, if_not=scratch.change(0, again, 3))
    _require(not met, "a deleted row was reported to have a version")
    met = await scratch.commit(key, scratch.layout.at_version(version), if_met=scratch.poison)
    _require(not met, "a recreated row was reported to be at the version of the deleted one")
    _same(await scratch.cells(key), scratch.cells_at(again, 3, again))
    return "a deleted row starts empty: without the old sum, version and markers"


async def _two_timestamps(scratch: Scratch) -> str:
    key, at_us, later_us = scratch.row("two timestamps"), scratch.at_us, scratch.at_us + 1_000
    await scratch.put(key, *[wire.add(wire.VALUE, at, delta) for at, delta in ((at_us, 5), (later_us, 7))])
    newest = {(wire.AGG, wire.VALUE, later_us): int64(7)}
    _same(await scratch.cells(key), {(wire.AGG, wire.VALUE, at_us): int64(5), **newest})
    _same(await scratch.cells(key, lambda request: wire.only_news(request, 0)), newest)
    return "two cells; a read of one cell per column gets the newest"


async def _far_timestamp(scratch: Scratch) -> str:
    key = scratch.row("far timestamp")
    await scratch.put(key, wire.put(wire.STATE, wire.EXPIRY, FOREVER_US, b""))
    _same(await scratch.cells(key), {(wire.STATE, wire.EXPIRY, FOREVER_US): b""})
    return f"{FOREVER_US} us is kept unchanged"


async def _refused_mutation(scratch: Scratch) -> str:
    key, version = await scratch.begun("refused mutation")
    bad = [wire.add(wire.VALUE, scratch.at_us, 50), wire.put(_NO_FAMILY, wire.VALUE, scratch.at_us, b"")]
    words = await scratch.refusal(scratch.commit(key, scratch.layout.at_version(version), if_met=bad))
    _require(bool(words), "a commit to a family that does not exist is not refused")
    seen = await scratch.cells(key)
    if seen == scratch.cells_at(version, 55, version):
        raise Wrong(f"refused ({words}), but the add before it stays", emulated=True)
    _same(seen, scratch.cells_at(version, 5, version))
    return f"refused ({words}), and nothing of the commit stays"


async def _refused_neighbour(scratch: Scratch) -> str:
    good, bad = scratch.row("neighbour"), scratch.row("refused row")
    entries = (good, [wire.add(wire.VALUE, scratch.at_us, 5)]), (bad, [wire.put(_NO_FAMILY, wire.VALUE, 0, b"")])
    failed: dict[int, Exception] = {}

    async def write() -> None:
        failed.update(await scratch.write(*entries))
        for error in failed.values():
            raise error

    words = await scratch.refusal(write())
    _require(bool(words), "a write to a family that does not exist is not refused")
    refused, written = 0 in failed or not failed, bool(await scratch.cells(good))
    _require(refused != written, f"its neighbour was reported as {'refused' if refused else 'written'}, but was not")
    if written and scratch.emulator:
        raise Wrong(f"refused ({words}), but its neighbour is written", emulated=True)
    return f"refused ({words}); its neighbour is {'written' if written else 'refused with it, and not written'}"


async def _repeated_append(scratch: Scratch) -> str:
    key, family, name = scratch.row("repeated append"), _appended(scratch), scratch.now_us.to_bytes(8, "big")
    for _ in range(2):
        await scratch.put(key, wire.put(family, name, scratch.at_us, b"deltas"))
    _same(await scratch.cells(key), {(family, name, scratch.at_us): b"deltas"})
    return "a cell that is set twice with one name and timestamp is one cell"


async def _delete_by_name(scratch: Scratch) -> str:
    key, family = scratch.row("delete by name"), _appended(scratch)
    await scratch.put(key, *[wire.put(family, name, scratch.at_us, b"deltas") for name in (b"folded", b"later")])
    await scratch.put(key, wire.clear_column(family, b"folded"))
    _same(await scratch.cells(key), {(family, b"later", scratch.at_us): b"deltas"})
    return "the cell of that name is deleted, its neighbour is not"


def _appended(scratch: Scratch) -> str:
    return wire.PENDING if wire.PENDING in scratch.layout.families else wire.DEDUP


async def _idempotency_token(scratch: Scratch) -> str:
    key, token = scratch.row("idempotency token"), secrets.token_bytes(16)
    for _ in range(2):
        await scratch.put(key, wire.add(wire.VALUE, scratch.at_us, 5), token=token)
    if await scratch.cells(key) == {(wire.AGG, wire.VALUE, scratch.at_us): int64(10)}:
        raise Wrong("ignored: two adds with one token count twice", emulated=True)
    _same(await scratch.cells(key), {(wire.AGG, wire.VALUE, scratch.at_us): int64(5)})
    return "honoured: two adds with one token count once"


async def _unaligned_timestamp(scratch: Scratch) -> str:
    add = wire.add(wire.VALUE, scratch.at_us + 500, 5)
    words = await scratch.refusal(scratch.put(scratch.row("unaligned timestamp"), add))
    if not words:
        raise Wrong("an add at half a millisecond is accepted", emulated=True)
    return f"refused ({words})"


async def _set_sum(scratch: Scratch) -> str:
    cell = wire.put(wire.AGG, wire.VALUE, scratch.at_us, int64(5))
    words = await scratch.refusal(scratch.put(scratch.row("set cell of sums"), cell))
    if not words:
        raise Wrong("SetCell into the family of sums is accepted", emulated=True)
    return f"refused ({words})"


async def _plain_writes(scratch: Scratch) -> str:
    key = scratch.row("plain writes")
    took_s = await _timed(
        scratch, lambda n: scratch.put(key, wire.put(wire.STATE, wire.VALUE, scratch.at_us, int64(n)))
    )
    return _latency(took_s)


async def _commits_of_one_row(scratch: Scratch) -> str:
    key, version = await scratch.begun("commits")

    async def commit(n: int) -> None:
        at = version + n
        await scratch.commit(key, scratch.layout.at_version(at), if_met=scratch.change(at, at + 1, 1))

    took_s = await _timed(scratch, commit)
    return f"{_latency(took_s)}, in turn: {_TIMED / sum(took_s):,.0f} commits/s"


async def _timed(scratch: Scratch, send: Callable[[int], Awaitable[None]]) -> list[float]:
    took_s = []
    for n in range(_TIMED):
        began_s = scratch.clock.monotonic()
        await send(n)
        took_s.append(scratch.clock.monotonic() - began_s)
    return took_s


def _latency(took_s: Sequence[float]) -> str:
    p50, p95 = (1_000 * sorted(took_s)[len(took_s) * percent // 100] for percent in (50, 95))
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms of {len(took_s)}"


_REPORT = "Do not use the table; report this output."
_PROFILE = (
    "Use an app profile that routes to one cluster and allows single-row transactions (?app_profile=NAME; for a table "
    "that is appended to ?fold_profile=NAME)."
)

CORE = (
    Step("sums", _sums, "The family agg does not add 64-bit integers. Create another table with murmur create-table."),
    Step("first commit", _first_commit, f"Events of new rows would not be counted exactly once. {_PROFILE}"),
    Step("commit", _commit, f"Events of existing rows would not be counted exactly once. {_REPORT}"),
    Step("stale commit", _stale_commit, f"Workers would overwrite each other, and events would count twice. {_REPORT}"),
    Step("one winner", _one_winner, f"Two workers could commit at once, and events would count twice. {_PROFILE}"),
    Step("news", _news, f"Workers would miss each other's events, and events would count twice. {_REPORT}"),
)
"""The assumptions of every commit."""

STEPS = (
    *CORE,
    Step(
        "packing",
        _packing,
        f"Markers would be lost when many are packed into one cell, and events would count twice. {_REPORT}",
    ),
    Step("made again", _made_again, f"A deleted and recreated row would keep old events. {_REPORT}"),
    Step("two timestamps", _two_timestamps, f"Values and expiries would be read wrongly. {_REPORT}"),
    Step("far timestamp", _far_timestamp, f"Rows that never expire could not be distinguished. {_REPORT}"),
    Step("refused mutation", _refused_mutation, f"A failed commit could still count. {_REPORT}"),
    Step(
        "refused neighbour",
        _refused_neighbour,
        "Sums without event ids would count twice or not at all. Use event ids.",
    ),
    Step("repeated append", _repeated_append, f"A retried append would count twice. {_REPORT}"),
    Step("delete by name", _delete_by_name, f"A fold would keep cells that it has folded, or delete others. {_REPORT}"),
    Step("idempotency token", _idempotency_token, "Sums without event ids may count twice after a lost answer.", False),
    Step(
        "unaligned timestamp",
        _unaligned_timestamp,
        "The table accepts microseconds; murmur_beam does not write them.",
        False,
    ),
    Step("set cell of sums", _set_sum, "murmur_beam does not write such cells.", False),
    Step("plain writes", _plain_writes, "The latencies are unknown.", False),
    Step("commits of one row", _commits_of_one_row, "The latencies are unknown.", False),
)
