"""A model of one row that is appended to, committed to, folded, read and deleted, step by step.

A step is one request that the server executes at once, or the loss of its answer. Any of the actors may be next, and
each may stop permanently at any step, which is a crash. A request that was given up may still arrive: so an append and
a deletion of cells may be executed once more at any time, and a conditional write later than its actor thinks.

After every step the row's value is compared with the events that have arrived since it was last deleted. An append
that was first sent before a deletion and arrives again after it is both old and new: its events may count or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

Events = frozenset[int]
"""Events are small numbers; each adds a one in a decimal place of its own, so that a doubled or lost event shows."""

_START = 1_000
"""Versions of a row begin at multiples of it: rows that were deleted and made anew have no version in common."""


class Row(NamedTuple):
    """The cells of the row.

    Attributes:
        version: 0: no version.
        value: the aggregate.
        markers: for each commit or fold the version that it made, and its events.
        pending: by name.
    """

    version: int = 0
    value: int = 0
    markers: tuple[tuple[int, Events], ...] = ()
    pending: tuple[tuple[int, Events], ...] = ()

    @property
    def marked(self) -> Events:
        """The events that have a marker."""
        return frozenset().union(*(events for _, events in self.markers))


class World(NamedTuple):
    """The state of the whole model.

    Attributes:
        arrived: events that must be counted.
        old: events that may be counted.
        starts: how many rows have begun.
        deletions: of the row.
        actors: the state of each actor.
    """

    row: Row
    arrived: Events
    old: Events
    starts: int
    deletions: int
    actors: tuple[Any, ...]


class Broken(AssertionError):
    """The rule is violated; the text says how."""


def total(events: Events) -> int:
    """The sum of these events."""
    return sum(10**event for event in events)


def worth(row: Row, marked: Events) -> int:
    """The value that a reader sees, given the events that have a marker."""
    return row.value + total(frozenset().union(*(events for _, events in row.pending)) - marked)


def check(world: World, marked: Events) -> None:
    """Compare the value that a reader sees with the events that have arrived.

    Raises:
        Broken: an event is lost, doubled, or counted though it was deleted.
    """
    found = worth(world.row, marked)
    digits = [int(digit) for digit in reversed(str(found))]
    counted = frozenset(event for event, digit in enumerate(digits) if digit)
    if max(digits) > 1 or not world.arrived <= counted <= world.arrived | world.old:
        raise Broken(f"worth {found}, not {total(world.arrived)}: {world}")


# ---- requests ----


def _written(world: World, version: int, events: Events) -> World | None:
    """Commit or fold these events on the condition that the row is at this version; None: the condition is not met."""
    row = world.row
    if row.version != version:
        return None
    starts = world.starts + (version == 0)
    after = version + 1 if version else starts * _START
    markers = (*row.markers, (after, events)) if events else row.markers
    return world._replace(
        row=row._replace(version=after, value=row.value + total(events), markers=markers), starts=starts
    )


def _put(world: World, name: int, events: Events, deletions: int) -> World:
    pending = dict(world.row.pending)
    pending[name] = events
    row = world.row._replace(pending=tuple(sorted(pending.items())))
    if deletions < world.deletions:
        return world._replace(row=row, old=world.old | events)
    return world._replace(row=row, arrived=world.arrived | events)


def _without(world: World, names: Sequence[int]) -> World:
    return world._replace(
        row=world.row._replace(pending=tuple(cell for cell in world.row.pending if cell[0] not in names))
    )


# ---- actors: each returns the possible next steps from its state ----

Next = Iterator[tuple[World, Any]]
"""The world after a step, and the actor's state then; None: it has ended."""


class Appender(NamedTuple):
    """Writes one cell of events, and perhaps the same again, at any time."""

    name: int
    events: Events
    sends: int = 2

    def begin(self) -> Any:
        return self.sends, None  # remaining sends, and deletions before the first

    def steps(self, world: World, local: Any) -> Next:
        left, first = local
        deletions = world.deletions if first is None else first
        yield _put(world, self.name, self.events, deletions), (left - 1, deletions) if left > 1 else None


class Committer(NamedTuple):
    """Commits events on the condition that the row is unchanged, and otherwise reads the new events."""

    events: Events
    tries: int = 3

    def begin(self) -> Any:
        return 0, frozenset(), self.tries, None  # the known version and events, tries, requests in progress

    def steps(self, world: World, local: Any) -> Next:
        version, known, tries, late = local
        if late is not None:
            yield self._done(world, *late) or world, (version, known, tries, None)
        new = self.events - known
        if not new or not tries:
            return
        done = self._done(world, version, new)
        if done is not None:
            yield done, None
        news = self._read(world, version)
        yield done or world, (*news(done or world), tries - 1, late)  # refused, or the answer is lost
        if late is None:
            yield world, (*news(world), tries - 1, (version, new))  # given up before it has arrived

    def _done(self, world: World, version: int, new: Events) -> World | None:
        done = _written(world, version, new)
        return done and done._replace(arrived=done.arrived | new)

    def _read(self, world: World, version: int) -> Callable[[World], tuple[int, Events]]:
        def read(then: World) -> tuple[int, Events]:
            row = then.row
            news = [column for column, _ in row.markers if column > version]
            if version and row.version // _START == version // _START and row.version - version != len(news):
                raise Broken(f"a cache at version {version} forgets a row that was not deleted: {then}")
            return row.version, row.marked

        return read


class Folder(NamedTuple):
    """Folds some or all cells, on the condition that the row is unchanged; then deletes them by name.

    Cells are read when version and markers are known. If the cells hold no new events, the version is read once more:
    the
    row may have been deleted and made anew before the cells were read.

    Attributes:
        rounds: how often it reads.
        claims, by_name, skips_empty, verifies: its rules; each may be broken on purpose.
    """

    rounds: int = 2
    claims: bool = True
    by_name: bool = True
    skips_empty: bool = True
    verifies: bool = True

    def begin(self) -> Any:
        return "markers", self.rounds, ()

    def steps(self, world: World, local: Any) -> Next:
        phase, rounds, held = local
        row = world.row
        if phase == "markers":
            if rounds:
                next_ = "claim" if row.version == 0 and self.claims else "cells"
                yield world, (next_, rounds - 1, (row.version, row.marked))
        elif phase == "claim":
            yield from self._claim(world, rounds)
        elif phase == "cells":
            for n in range(1, len(row.pending) + 1):
                yield world, ("fold", rounds, (*held, row.pending[:n]))
        elif phase == "fold":
            yield from self._fold(world, rounds, *held)
        elif phase == "verify":
            version, names = held
            same = row.version == version or not self.verifies
            yield world, ("delete", rounds, names) if same else ("markers", rounds, ())
        else:
            deleted = _without(world, held if self.by_name else [name for name, _ in row.pending])
            yield deleted, ("delete", 0, held) if phase == "delete" and rounds else None
            yield deleted, ("markers", rounds, ())

    def _claim(self, world: World, rounds: int) -> Next:
        if world.row.version:
            yield world, ("markers", rounds, ())
        elif world.row.pending:
            starts = world.starts + 1
            claimed = world._replace(row=world.row._replace(version=starts * _START), starts=starts)
            none: Events = frozenset()
            yield claimed, ("cells", rounds, (claimed.row.version, none))
            yield claimed, ("markers", rounds, ())  # the answer is lost

    def _fold(self, world: World, rounds: int, version: int, marked: Events, cells: Any) -> Next:
        new = frozenset().union(*(events for _, events in cells)) - marked
        names = tuple(name for name, _ in cells)
        if not new and self.skips_empty:
            yield world, ("verify", rounds, (version, names))
            return
        done = _written(world, version, new)
        if done is not None:
            yield done, ("delete", rounds, names)
        yield done or world, ("markers", rounds, ())  # refused, or the answer is lost


class Reader(NamedTuple):
    """Reads the markers, and later value and cells; its result must equal the events that have arrived by then.

    Attributes:
        one_version: whether it compares cells only with markers of the same version.
        fresh: whether it reads fresh. Otherwise it returns the state of the last fold, which must be some of the
            arrived
            events, each once.
        by_value: whether it detects a fold by the value, and not by the version.
    """

    one_version: bool = True
    fresh: bool = True
    by_value: bool = True

    def begin(self) -> Any:
        return ()

    def steps(self, world: World, local: Any) -> Next:
        row = world.row
        if not self.fresh:
            # A row without a value was never folded or committed to, so it has no markers.
            folded = row.value if self.by_value else row.version
            said = row.value if folded else worth(row, frozenset())
            digits = [int(digit) for digit in reversed(str(said))]
            counted = frozenset(event for event, digit in enumerate(digits) if digit)
            late = not row.value and counted < world.arrived
            if max(digits) > 1 or not counted <= world.arrived | world.old or late:
                raise Broken(f"{said} at the last fold, of {total(world.arrived)}: {world}")
            yield world, None
            return
        if not local:
            yield world, (row.version, row.marked)
            return
        version, marked = local
        if self.one_version and version != row.version:
            yield world, ()
            return
        check(world, marked)
        yield world, None


class Deleter(NamedTuple):
    """Deletes the row."""

    def begin(self) -> Any:
        return 1

    def steps(self, world: World, local: Any) -> Next:
        none: Events = frozenset()
        yield world._replace(row=Row(), arrived=none, old=none, deletions=world.deletions + 1), None


Actor = Appender | Committer | Folder | Reader | Deleter


def begin(actors: Sequence[Actor]) -> World:
    """An empty row, and actors that have not started."""
    return World(Row(), frozenset(), frozenset(), 0, 0, tuple(actor.begin() for actor in actors))


def following(actors: Sequence[Actor], world: World) -> Iterator[World]:
    """The possible next worlds, each checked.

    Raises:
        Broken: the rule is violated in one of them.
    """
    for i, actor in enumerate(actors):
        if world.actors[i] is None:
            continue
        for then, local in actor.steps(world, world.actors[i]):
            after = then._replace(actors=(*world.actors[:i], local, *world.actors[i + 1 :]))
            check(after, after.row.marked)
            yield after


def explore(actors: Sequence[Actor]) -> int:
    """Go through every order of the actors' steps; the number of worlds.

    Raises:
        Broken: the rule is violated.
    """
    first = begin(actors)
    seen, waiting = {first}, [first]
    while waiting:
        for world in following(actors, waiting.pop()):
            if world not in seen:
                seen.add(world)
                waiting.append(world)
    return len(seen)
