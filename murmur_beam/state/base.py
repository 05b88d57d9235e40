"""The contract of stores: the base classes `Store` and `StoreSpec`, and `fold_row`, which decides what an event adds to
a row."""

from __future__ import annotations

import abc
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import timedelta
from hashlib import blake2b as _blake2b
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from murmur_beam.durations import format_duration
from murmur_beam.errors import PermanentError, SchemaMismatch, StoreUnavailable
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.struct_name import Part, parts_of

V = TypeVar("V")
W = TypeVar("W")

Result = Outcome | Exception
"""The result of one update: `Outcome.MERGED` or `Outcome.DUPLICATE`; `Outcome.RECORDED` from a store that appends; or
the error that prevented the merge."""

# Looking up a member of an enum is as slow as folding an event.
_MERGED, _DUPLICATE = Outcome.MERGED, Outcome.DUPLICATE


class UpdateResults(list[Result]):
    """The results of a flush, with counts and sizes that the store noticed; a store without any returns a plain list.

    Attributes:
        counts: numbers of occurrences, by name.
        sizes: largest sizes in bytes, by name.
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
"""How long an expired row is kept, hidden, before it is collected: an event may pass the check of its age and be
written or redelivered some time later, when its marker must still be there."""


def bucket_lifetime(granularity: timedelta, retention: timedelta) -> timedelta:
    """How long after its start a bucket must be kept: until it takes no more events, plus `GRACE_S`."""
    try:
        return granularity + retention + timedelta(seconds=GRACE_S)
    except OverflowError:
        return timedelta.max


class Store(abc.ABC, Generic[V]):
    """Keyed aggregates. With an event id an update folds at most once per (key, event id): value and marker are
    written together or not at all. A store is safe for several threads, and for forks: in a child it is reopened, or
    its use is refused.

    A store of your own is a subclass that defines `get_many`, `merge_updates`, `scan` and `close`, a `StoreSpec` that
    opens it, and a test that subclasses `murmur_beam.testing.StoreContract`. `fold_row` decides what its updates add.

    Five rules for the life of a row:

    1. The last update of a row in a flush decides: the row lives until its ``ttl`` from now (None: permanently). In a
       store that appends, a row lives as long as its bucket.
    2. An update never shortens a row's life: of the known and the new expiry the later one holds (`later_expiry`). So
       if two pipelines with different retentions write to a row, each still finds the markers of its events.
    3. An expired row is hidden at once, but kept with its markers for `GRACE_S` more before it is collected. An event
       may pass the check of its age just before the row expires, and be written or redelivered afterwards.
    4. A row is made by the first update that folds. An update that fails leaves neither a value nor a marker, and
       creates no row: not even an empty one that `get_many` or `scan` would show.
    5. The schema (monoid, field, bucket length) is recorded with the first write at the latest. Opening the store for
       another schema then raises `SchemaMismatch`. A pipeline that only starts, and fails, should record nothing.

    Attributes:
        monoid: folds deltas; its ``lift`` makes them.
        waits_for_network: True if ``merge_updates`` mostly waits for a server. It is then called from a separate
            thread while the next records are processed.
        appends: True if the store writes without looking for duplicates; read at each flush. Its outcomes are
            `Outcome.RECORDED`: the event is in the row and counts once, whether it is new or not. If dedup is off,
            each update has a random event id, so that a retry does not count it twice. A store that appends folds
            later: ``fresh=True`` includes pending events, ``fresh=False`` gives the state of the last fold. Any other
            store answers the same either way.
        bucket_age: how long after its start a bucket is kept, where a rule of the store deletes buckets; None:
            permanently.
        marker_age: the same for what the store knows of a bucket's events.
    """

    monoid: Monoid[V]
    waits_for_network: bool = False
    appends: bool = False
    bucket_age: timedelta | None = None
    marker_age: timedelta | None = None

    def get(self, key: Key, *, fresh: bool = True) -> V | None:
        """The aggregate, or None if nothing was merged or the row has expired.

        Args:
            key: of the aggregate.
            fresh: include pending events, in a store that appends.

        Raises:
            MurmurError: as `get_many`.
        """
        return self.get_many([key], fresh=fresh)[0]

    @abc.abstractmethod
    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[V | None]:
        """The aggregates, in the order of ``keys``; ``fresh`` as in `get`.

        Raises:
            TransientError: a later try may succeed.
            PermanentError: the store cannot be read.
        """

    def merge_update(self, key: Key, delta: V, *, ttl: timedelta | None = None, event_id: str | None = None) -> Outcome:
        """Fold one delta.

        Args:
            key: of the aggregate.
            delta: from the monoid's ``lift``.
            ttl: how long the row lives from now; None: permanently.
            event_id: what makes the event the same when it is delivered again; None: each delivery counts.

        Raises:
            TransientError: a later try may succeed. A retry with the same event id is safe.
            PermanentError: retries cannot succeed.
        """
        (result,) = self.merge_updates([Update(key, delta, event_id, ttl)])
        if isinstance(result, Exception):
            raise result
        return result

    @abc.abstractmethod
    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """Fold many deltas, writing each row once; results in the order of ``updates``.

        Rows are independent: a failure of one does not prevent the merge of another. A failure is a result, as
        described in `merge_update`; an exception that is raised counts as the result of every update.
        """

    @abc.abstractmethod
    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, V]]:
        """All live aggregates whose entity starts with ``prefix``, and whose bucket lies in ``first`` .. ``last``
        (both included, None: open), ordered by entity and bucket; ``fresh`` as in `get`.

        Raises:
            MurmurError: as `get_many`.
        """

    def delete(self, entity: str, first: int | None = None, last: int | None = None, *, prefix: bool = False) -> int:
        """Delete aggregates with their markers, including expired ones. A store need not offer it.

        A redelivered event of a deleted aggregate counts again; other aggregates are not affected. A program that
        merges meanwhile may still report events that it has merged before as duplicates.

        Args:
            entity: of the aggregates.
            first: first bucket to delete; None: from the first there is.
            last: last bucket to delete; None: to the last there is.
            prefix: delete the aggregates of all entities that start with ``entity``.

        Returns:
            Number of deleted aggregates.

        Raises:
            StoreUnavailable: the store does not offer it.
            TransientError, PermanentError: not all could be deleted; a further call resumes.
        """
        raise StoreUnavailable(f"{type(self).__name__} cannot delete: it has no delete method")

    def settle_retention(self, retention: timedelta | None) -> timedelta | None:
        """The retention to apply, from now on: the window's, or else the one that the store has recorded, if it records
        how long its buckets take events. Called before each flush with a window.

        Args:
            retention: of the window; None if it has none.
        """
        return retention

    @abc.abstractmethod
    def close(self) -> None:
        """Release connections; a second call does nothing.

        Calls in progress in other threads end with their results or a `MurmurError`; later calls raise a `MurmurError`.
        """


class Cache(Store[V]):
    """A copy for fast reads. It is never a source of truth: it may lose data or lag, and is rebuilt from a store."""

    @abc.abstractmethod
    def repopulate(self, source: StoreLike[V], keys: Sequence[Key]) -> None:
        """Overwrite these keys with the values in ``source``; drop those that it does not have."""


class StoreLike(Protocol[V]):
    """What can be passed where a store is wanted: a `Store`, or an object with these methods only. Such an object gets
    the rest from `murmur_beam.state.adapted`, and its ``get_many`` and ``scan`` may lack ``fresh``."""

    @property
    @abc.abstractmethod
    def monoid(self) -> Monoid[V]:
        """See `Store`."""

    @abc.abstractmethod
    def get_many(self, keys: Sequence[Key]) -> list[V | None]:
        """See `Store.get_many`."""

    @abc.abstractmethod
    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `Store.merge_updates`."""

    @abc.abstractmethod
    def scan(self, prefix: str = "", first: int | None = None, last: int | None = None) -> Iterator[tuple[Key, V]]:
        """See `Store.scan`."""

    @abc.abstractmethod
    def close(self) -> None:
        """See `Store.close`."""


class Schema(NamedTuple):
    """The kind of a store's values; recorded with the first write, so that a mismatch is an error.

    Attributes:
        monoid: `Monoid.name`.
        granularity: length of a bucket; None without a window.
        field: `Monoid.field`, the record's field that is folded; None if its name is unknown, or not recorded yet.
        vague: recorded by release 0.1.0, which called a count a sum and recorded no field: it may be either, of any
            field.
    """

    monoid: str
    granularity: timedelta | None
    field: str | None = None
    vague: bool = False

    @classmethod
    def of(cls, monoid: Monoid[Any], granularity: timedelta | None) -> Schema:
        """The schema of a store that is opened for this monoid."""
        return cls(monoid.name, granularity, monoid.field if isinstance(monoid.field, str) else None)

    def __str__(self) -> str:
        buckets = f"buckets of {format_duration(self.granularity)}" if self.granularity else "no window"
        if (parts := parts_of(self.monoid)) is not None:
            fields = json.loads(self.field or "{}")
            named = [
                f"{name}={monoid}"
                + (f" of {fields[name]!r}" if name in fields else "")
                + (f" since {since}" if since else "")
                for name, (monoid, since) in parts.items()
            ]
            return f"aggregates {', '.join(named)} and {buckets}"
        field = "" if self.field is None else f" of {self.field!r}"
        return f"monoid {self.monoid!r}{field} and {buckets}"

    def accepts(self, wanted: Schema) -> bool:
        """Return whether a store with this schema can be used with the wanted one."""
        if self.granularity != wanted.granularity:
            return False
        if self.vague:
            return wanted.monoid == self.monoid or (self.monoid, wanted.monoid) == ("sum", "count")
        parts, wanted_parts = parts_of(self.monoid), parts_of(wanted.monoid)
        if parts is not None and wanted_parts is not None:
            return _has_parts(parts, wanted_parts) and _agree(self.field, wanted.field)
        return self.monoid == wanted.monoid and (None in (self.field, wanted.field) or self.field == wanted.field)

    def require(self, wanted: Schema, where: str, example: str = "") -> None:
        """Check that a store with this schema can be used with the wanted one.

        Args:
            wanted: schema that the store is opened for.
            where: the table, for the message.
            example: URI of another table, for the message.

        Raises:
            SchemaMismatch: the store cannot be used with the wanted schema.
        """
        if not self.accepts(wanted):
            advice = "a table holds one aggregate: open it as it was written"
            if parts_of(self.monoid) is not None:
                advice = "open it with the same aggregates in the same order, add one with murmur alter-table"
            raise SchemaMismatch(
                f"{where} holds values of {self}, but was opened for {wanted}; {advice}, or use another "
                f"table{example and f', such as {example}'}"
            )

    def names(self, wanted: Schema) -> bool:
        """Return whether the wanted field, which this schema accepts, must still be recorded."""
        return not self.vague and self.field is None and wanted.field is not None


def _has_parts(parts: dict[str, Part], wanted: dict[str, Part]) -> bool:
    """Whether a program may use these aggregates of a table: all of them, but for the last ones if they were added
    while it was running. With fewer, its events would never count in the others, where they have a marker as well.
    """
    n = len(wanted)
    here = [(name, part.monoid) for name, part in parts.items()]
    there = [(name, part.monoid) for name, part in wanted.items()]
    return here[:n] == there and all(part.since is not None for part in [*parts.values()][n:])


def _agree(field: str | None, wanted: str | None) -> bool:
    """Whether two structs fold the same fields, as far as both know them."""
    here, there = json.loads(field or "{}"), json.loads(wanted or "{}")
    return all(here[name] == there[name] for name in here.keys() & there.keys())


class StoreSpec(abc.ABC):
    """Describes a store to open: small, immutable, hashable, picklable. The pipeline carries it, and workers open it;
    equal specs share one open store in a process. A frozen dataclass is all of that.

    Its ``str`` is the store's URI, or whatever names the store in messages.

    Attributes:
        lasting: False if the store ends with the process, so that a program must not acknowledge events to it.
    """

    lasting: bool = True

    @property
    def place(self) -> Hashable:
        """The same for all specs of one table, even if they differ in how to open it; the spec itself by default."""
        return self

    @abc.abstractmethod
    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> Store[V]:
        """Open the store, creating it if it is missing.

        Args:
            monoid: of the values.
            granularity: length of a bucket; None without a window.

        Raises:
            StoreUnavailable, SchemaMismatch: the store cannot be used like this.
            TransientError: the store cannot be reached now.
        """

    @abc.abstractmethod
    def recorded_schema(self) -> Schema | None:
        """The schema that the store has recorded; None if nothing was written yet.

        Raises:
            StoreUnavailable: the store does not exist, or cannot be read.
        """


class SpecLike(Protocol):
    """What can be passed where a spec is wanted: a `StoreSpec`, or a hashable object with these methods only."""

    @abc.abstractmethod
    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> StoreLike[V]:
        """See `StoreSpec.open`."""

    @abc.abstractmethod
    def recorded_schema(self) -> Schema | None:
        """See `StoreSpec.recorded_schema`."""


def fingerprint_of(event_id: str) -> bytes:
    """16 bytes for an id of any length: among a billion ids in a row, two are equal with a chance of about 1e-21."""
    return _blake2b(event_id.encode("utf-8"), digest_size=16).digest()


def positions_by_key(updates: Sequence[Update]) -> dict[Key, list[int]]:
    """Positions of each key's updates."""
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
        monoid: of the values.
        current: the row's value; None for a new row.
        updates: of the row's key.
        claim: adds the marker of an event id to the row; returns False if the row had it.
        unclaim: removes a marker that was just claimed.
        encode: converts a value to its stored form.

    Returns:
        The row's new value, encoded, and the result of each update. An update whose delta cannot be folded (an
        overflow) has its error as the result, and leaves neither value nor marker; the other updates are folded.
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
        # A user's combine may raise any error. Folding one by one raises it again, for the update that causes it.
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
    """The error of an update whose delta the monoid refused with ``err``."""
    if isinstance(err, PermanentError):
        return err
    wrapped = PermanentError(
        f"value: {monoid.name} cannot fold {update.delta!r:.80} into {update.key.entity!r}: {type(err).__name__}: {err}"
    )
    wrapped.__cause__ = err
    return wrapped


def undecodable(monoid: Monoid[Any], key: Key, err: Exception) -> PermanentError:
    """The error of every update of a row whose value cannot be decoded; the row is not changed."""
    error = PermanentError(
        f"the value stored for {key.entity!r} is not a {monoid.name}: {type(err).__name__}: {err}; "
        "was the monoid's codec changed under the same name?"
    )
    error.__cause__ = err
    return error


def later_expiry(one: float | None, other: float | None) -> float | None:
    """The later of two expiries; None: never. A row's life is never shortened: a pipeline with a longer retention may
    still redeliver events, and must then find their markers."""
    return None if one is None or other is None else max(one, other)
