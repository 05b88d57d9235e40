"""What every store keeps (the `Store` protocol), and the one place that decides what an event adds to a row."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from hashlib import blake2b as _blake2b
from typing import Any, NamedTuple, Protocol, TypeVar

from murmur_beam.durations import format_duration
from murmur_beam.errors import PermanentError, SchemaMismatch
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid

V = TypeVar("V")
W = TypeVar("W")

Result = Outcome | Exception
"""What became of one update: `Outcome.MERGED` or `Outcome.DUPLICATE`, from a store that appends `Outcome.RECORDED`, or
the error that kept it from merging."""

# To look up a member of an enum takes as long as to fold an event.
_MERGED, _DUPLICATE = Outcome.MERGED, Outcome.DUPLICATE


class Flushed(list[Result]):
    """The results of a flush, with what a store noticed while it wrote; where there is nothing, a plain list will do.

    Attributes:
        counts: how often something happened, by name.
        sizes: the largest of something, by name; bytes.
    """

    def __init__(self, results: Sequence[Result] = ()) -> None:
        super().__init__(results)
        self.counts: Counter[str] = Counter()
        self.sizes: dict[str, int] = {}

    def put(self, positions: Sequence[int], results: Sequence[Result]) -> None:
        """Fill in the results of some updates."""
        for i, result in zip(positions, results, strict=True):
            self[i] = result


GRACE_S = 3600.0
"""How long an expired row is kept, unseen, before it is collected: an event may pass the check for its age and be
written, or delivered again, some time later; its marker must still be there."""


def bucket_lifetime(granularity: timedelta, retention: timedelta) -> timedelta:
    """How long after its start a bucket must be kept: until it takes no more events, and `GRACE_S` more."""
    try:
        return granularity + retention + timedelta(seconds=GRACE_S)
    except OverflowError:
        return timedelta.max


class Store(Protocol[V]):
    """Keyed aggregates. With an event id an update folds at most once per (key, event id): value and marker are
    written together or not at all. Safe for several threads, and for a fork: in a child it opens anew what it has open,
    or is refused.

    One whose ``merge_updates`` mostly waits for others may have an attribute ``waits_for_network = True``: it is then
    called from a thread of its own while the next records are processed. One that records for how long its buckets take
    events may have a method ``settle_retention``, which is given a window's retention before each flush and returns the
    one to go by: that of the window, or, where it has none, that of the table.

    For a store that folds later: with ``fresh=True`` also what is not folded yet, with ``fresh=False`` what was there
    at the last fold. A store that folds at once answers the same either way.
    One that writes without looking at what is there has an attribute ``appends = True``, which is read at each flush.
    It answers `Outcome.RECORDED`: the event is in the row and counts once, be it new or not. Where dedup is off, each
    update comes with a random event id of its own, so that a try again does not count it twice.
    """

    @property
    def monoid(self) -> Monoid[V]:
        """How deltas are folded; deltas are what its ``lift`` returns."""

    def get(self, key: Key, *, fresh: bool = True) -> V | None:
        """The aggregate, or None where nothing was merged (or it has expired).

        Args:
            key: whose.
            fresh: also what is not folded yet, for a store that folds later.
        """

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[V | None]:
        """The aggregates, in the order of ``keys``; ``fresh`` as in `get`."""

    def merge_update(self, key: Key, delta: V, *, ttl: timedelta | None = None, event_id: str | None = None) -> Outcome:
        """Fold one delta.

        Raises:
            TransientError: it may work later. It is safe to try again with the same event id.
            PermanentError: it never will.
        """

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """Fold many, writing each touched row once; results in the order of ``updates``.

        Rows are independent: what fails for one does not keep another from merging.
        """

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, V]]:
        """All live aggregates whose entity starts with ``prefix``, and whose bucket lies in ``first`` .. ``last``
        (both included, None: open), ordered by entity and bucket; ``fresh`` as in `get`."""

    def delete(self, entity: str, first: int | None = None, last: int | None = None, *, prefix: bool = False) -> int:
        """Delete aggregates with all that is known of their events, also those that have expired.

        An event of one of them that is delivered again counts anew; others stay as they are. Whoever merges meanwhile
        may go on calling events duplicates that it has merged before.

        Args:
            entity: whose.
            first, last: only buckets from the one to the other, both included; None: open.
            prefix: of all entities that start with ``entity``.

        Returns:
            How many aggregates were deleted.

        Raises:
            TransientError, PermanentError: not all could be; again, it goes on.
        """

    def close(self) -> None:
        """Release connections; a second call does nothing.

        Calls that are under way in other threads end, with their results or a `MurmurError`; later ones are a
        `MurmurError`.
        """


class Cache(Store[V], Protocol[V]):
    """A copy to read from quickly. Never a source of truth: it may lose or lag, and is rebuilt from a store."""

    def repopulate(self, source: Store[V], keys: Sequence[Key]) -> None:
        """Overwrite these keys with what ``source`` holds."""


class Schema(NamedTuple):
    """What a store's values are; recorded with the first write so that a mismatch is noticed, not summed up.

    Attributes:
        monoid: `Monoid.name`.
        granularity: length of a bucket; None where keys have no window.
        field: `Monoid.field`, which field of a record is folded; None where no name is known, or none yet.
        vague: recorded by release 0.1.0, which called a count a sum and noted no field: it may be either, of any field.
    """

    monoid: str
    granularity: timedelta | None
    field: str | None = None
    vague: bool = False

    @classmethod
    def of(cls, monoid: Monoid[Any], granularity: timedelta | None) -> Schema:
        """That of a store which is opened for this monoid."""
        return cls(monoid.name, granularity, monoid.field)

    def __str__(self) -> str:
        field = "" if self.field is None else f" of {self.field!r}"
        buckets = f"buckets of {format_duration(self.granularity)}" if self.granularity else "no window"
        return f"monoid {self.monoid!r}{field} and {buckets}"

    def accepts(self, wanted: Schema) -> bool:
        """Tell whether a store with this schema can be used with the wanted one."""
        if self.granularity != wanted.granularity:
            return False
        if self.vague:
            return wanted.monoid == self.monoid or (self.monoid, wanted.monoid) == ("sum", "count")
        return self.monoid == wanted.monoid and (None in (self.field, wanted.field) or self.field == wanted.field)

    def require(self, wanted: Schema, where: str, example: str = "") -> None:
        """Check that a store with this schema can be used with the wanted one.

        Args:
            wanted: what it is opened for.
            where: the table, for the message.
            example: how another table is written, for the message.

        Raises:
            SchemaMismatch: it cannot.
        """
        if not self.accepts(wanted):
            raise SchemaMismatch(
                f"{where} holds values of {self}, but was opened for {wanted}; a table holds one aggregate: open it as "
                f"it was written, or use another table{example and f', such as {example}'}"
            )

    def names(self, wanted: Schema) -> bool:
        """Tell whether the wanted field, which this schema accepts, is still to be recorded."""
        return not self.vague and self.field is None and wanted.field is not None


class StoreSpec(Protocol):
    """How to open a store: small, immutable, picklable. Workers open it, the pipeline only carries it."""

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> Store[V]:
        """Open, creating what is missing.

        Raises:
            StoreUnavailable, SchemaMismatch: it cannot be used like this.
            TransientError: it can not be reached now.
        """

    def recorded_schema(self) -> Schema | None:
        """What the store holds already; None if nothing was written yet.

        Raises:
            StoreUnavailable: there is no such store, or it cannot be read.
        """


def freshness(read: Callable[..., object], fresh: bool, *, by_default: bool) -> dict[str, bool]:
    """The argument ``fresh`` for a method of a store; none where it is what the method does by default, and none for a
    store of somebody else's that does not know the word: it folds at once.

    Args:
        read: the method.
        fresh: what is wanted.
        by_default: what `Store` says the method does unasked.
    """
    if fresh == by_default:
        return {}
    try:
        inspect.signature(read).bind_partial(fresh=fresh)
    except TypeError:
        return {}
    return {"fresh": fresh}


def fingerprint(event_id: str) -> bytes:
    """16 bytes instead of an id of any length: two of a billion ids in one row meet with a chance of about 1e-21."""
    return _blake2b(event_id.encode("utf-8"), digest_size=16).digest()


def positions_by_key(updates: Sequence[Update]) -> dict[Key, list[int]]:
    """Positions of the updates of each row."""
    by_key: dict[Key, list[int]] = {}
    for i, update in enumerate(updates):
        key = update.key
        if key in by_key:
            by_key[key].append(i)
        else:
            by_key[key] = [i]
    return by_key


def fold_row(
    monoid: Monoid[V],
    current: V | None,
    updates: Sequence[Update],
    claim: Callable[[str], bool],
    unclaim: Callable[[str], object],
    encode: Callable[[V], W],
) -> tuple[W, list[Result]]:
    """Fold the updates of one row, each event id once; the caller writes value and markers in one transaction.

    Args:
        monoid: how to fold.
        current: the row's value, None if there is none.
        updates: all of the same key.
        claim: add the marker of an event id to the row; False if it was there.
        unclaim: take back a marker just claimed.
        encode: makes what the store keeps of a value.

    Returns:
        The row's new value, encoded, and the result of each update. An update whose delta cannot be folded (an
        overflow) gets its error as result and leaves neither value nor marker, without hurting the others.
    """
    claimed: list[str] = []
    fresh: list[V] = [] if current is None else [current]
    results: list[Result] = []
    marks = not monoid.idempotent
    for _, delta, event_id, _ in updates:
        if marks and event_id is not None:
            if not claim(event_id):
                results.append(_DUPLICATE)
                continue
            claimed.append(event_id)
        fresh.append(delta)
        results.append(_MERGED)
    try:
        return encode(monoid.fold(fresh)), results
    except Exception:
        # A user's combine may raise anything; one by one it will raise again, for the update to blame.
        for event_id in claimed:
            unclaim(event_id)
    return _fold_one_by_one(monoid, current, updates, claim, unclaim, encode)


def _fold_one_by_one(
    monoid: Monoid[V],
    current: V | None,
    updates: Sequence[Update],
    claim: Callable[[str], bool],
    unclaim: Callable[[str], object],
    encode: Callable[[V], W],
) -> tuple[W, list[Result]]:
    value = monoid.identity if current is None else current
    results: list[Result] = []
    for update in updates:
        event_id = None if monoid.idempotent else update.event_id
        if event_id is not None and not claim(event_id):
            results.append(_DUPLICATE)
            continue
        try:
            folded = monoid.combine(value, update.delta)
            encode(folded)
            value = folded
            results.append(_MERGED)
        except Exception as err:
            if event_id is not None:
                unclaim(event_id)
            results.append(unfoldable(monoid, update, err))
    return encode(value), results


def unfoldable(monoid: Monoid[Any], update: Update, err: Exception) -> PermanentError:
    """The error of an update whose delta made the monoid raise this."""
    if isinstance(err, PermanentError):
        return err
    wrapped = PermanentError(
        f"value: {monoid.name} cannot fold {update.delta!r:.80} into {update.key.entity!r}: {type(err).__name__}: {err}"
    )
    wrapped.__cause__ = err
    return wrapped


def undecodable(monoid: Monoid[Any], key: Key, err: Exception) -> PermanentError:
    """The error of every update of a row whose value cannot be decoded; the row stays as it is."""
    error = PermanentError(
        f"the value stored for {key.entity!r} is no {monoid.name}: {type(err).__name__}: {err}; "
        "was the monoid's codec changed under the same name?"
    )
    error.__cause__ = err
    return error


def later_expiry(one: float | None, other: float | None) -> float | None:
    """The later of two times of expiry, None being never. A row's life is never shortened: another pipeline, with a
    longer retention, may still send it events that must find their markers."""
    return None if one is None or other is None else max(one, other)


def single_outcome(results: Sequence[Result]) -> Outcome:
    """The outcome of a single update.

    Raises:
        Exception: what kept it from merging.
    """
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result
