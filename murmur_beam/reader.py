"""Reads aggregates: one bucket, a sliding window, a range of time, all entities, or the largest. Never writes."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import groupby
from numbers import Number
from types import TracebackType
from typing import Any, Generic, TypeVar

from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError, SchemaMismatch, StoreUnavailable
from murmur_beam.model import Key
from murmur_beam.monoids import Monoid, Struct, names, recorded
from murmur_beam.monoids.struct_name import parts_of
from murmur_beam.state import SpecLike, Store, StoreLike, spec_from_uri
from murmur_beam.state.adapted import as_spec, as_store
from murmur_beam.windows import WindowConfig

V = TypeVar("V")

_FIRST = datetime.min.replace(tzinfo=timezone.utc)
_CHUNK = 1_000
_MAX_GETS = 10_000
"""Longest range, in buckets, that is read bucket by bucket; see `Reader._stored`."""


class Reader(Generic[V]):
    """Reads the aggregates that a pipeline has merged.

    A table that is appended to keeps pending events beside the aggregate, and folds them later. With ``fresh=True`` a
    method includes them; with ``fresh=False`` it returns the state of the last fold, at a lower cost. By default the
    methods for given entities are fresh, `list` and `top` are not. Other stores have no pending events.

    All methods return results as the monoid presents them (`Monoid.present`), such as the mean of a sum and a count.
    Aggregates of several buckets or shards are combined first, and presented last.

    Args:
        store: of the aggregates. `close` closes it.
        window: of the aggregates (only the granularity matters here); None without a window.
        states: return the aggregates as they are stored, for callers that combine them further with ``monoid``, and
            present them themselves.

    Attributes:
        since: names of aggregates that were added to a table of several, and since when each counts.
    """

    def __init__(self, store: StoreLike[V], window: WindowConfig | None = None, *, states: bool = False) -> None:
        self.store: Store[V] = as_store(store)
        self.monoid = store.monoid
        self.window_config = window
        self.since: dict[str, str] = {}
        self._present: Callable[[V], Any] = _unchanged if states else self.monoid.present

    @classmethod
    def open(
        cls,
        store: str | SpecLike,
        monoid: Monoid[Any] | None = None,
        window: WindowConfig | None = None,
        *,
        states: bool = False,
    ) -> Reader[Any]:
        """Open an existing store with its recorded schema; use the reader in a ``with`` statement.

        Args:
            store: a text such as ``sqlite:///counts.db`` (see `murmur_beam.state.spec_from_uri`), or a spec.
            monoid: None for the shipped monoid that the store has recorded.
            window: None for the buckets that the store has recorded.
            states: as for `Reader`.

        Raises:
            StoreUnavailable: the store does not exist, or nothing was ever written to it. (Opening it would record a
                schema, which may differ from the one that its pipeline is going to write.)
            ConfigurationError: the URI is invalid, or the recorded monoid is not a shipped one.
            SchemaMismatch: ``monoid`` or ``window`` is not what the store was written with.
        """
        spec = spec_from_uri(store) if isinstance(store, str) else as_spec(store)
        schema = spec.recorded_schema()
        if schema is None:
            raise StoreUnavailable(f"{spec}: nothing was written to it yet; check the name, or run its pipeline first")
        if monoid is None:
            monoid = recorded(schema.monoid)
            if monoid is None:
                raise ConfigurationError(
                    "monoid",
                    f"{spec} was written with {schema.monoid!r}, which is not one of {', '.join(names())}; "
                    "pass --monoid package.module:attribute (in Python: monoid=)",
                )
        if window is None and schema.granularity is not None:
            window = WindowConfig(schema.granularity)
        reader = cls(spec.open(monoid, window.granularity if window else None), window, states=states)
        reader.since = {
            name: since for name, (_, since) in (parts_of(schema.monoid) or {}).items() if since is not None
        }
        return reader

    def __enter__(self) -> Reader[V]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def get(self, entity: str, at: datetime | None = None, *, fresh: bool = True) -> Any:
        """The result of an entity, None if nothing was merged.

        Args:
            entity: to read.
            at: any time in the bucket to read; required with a window, not allowed without one.
            fresh: include pending events.

        Raises:
            ConfigurationError: ``at`` is missing, not allowed, has no time zone, or lies outside the years 1 to 9999.
        """
        return self.get_many([entity], at, fresh=fresh)[0]

    def get_many(self, entities: Sequence[str], at: datetime | None = None, *, fresh: bool = True) -> list[Any]:
        """The results of many entities, in their order; see `get`."""
        if self.window_config is None and at is not None:
            raise ConfigurationError("at", "the store has no time buckets; leave it out")
        if self.window_config is not None and at is None:
            raise ConfigurationError(
                "at", "is required: each time bucket has a separate aggregate (window and range combine several)"
            )
        bucket = 0 if at is None else self._bucket("at", at)
        found = self.store.get_many([Key(entity, bucket) for entity in entities], fresh=fresh)
        return [None if state is None else self._present(state) for state in found]

    def window(self, entity: str, last: timedelta, now: datetime, *, fresh: bool = True) -> Any:
        """The total of the ``ceil(last / granularity)`` buckets that end with now's. That of the identity if all are
        empty. ``fresh``: include pending events.

        Raises:
            ConfigurationError: ``last`` is not positive or reaches back beyond the year 1; ``now`` has no time zone.
            SchemaMismatch: the store has no time buckets.
        """
        return self.range(entity, *self.span(last, now), fresh=fresh)

    def span(self, last: timedelta, now: datetime) -> tuple[datetime, datetime]:
        """Starts of the first and the last bucket that `window` combines."""
        config = self._config()
        end = self._bucket("now", now)
        if last <= timedelta(0):
            raise ConfigurationError("last", f"must be positive, got {last}")
        # As `WindowConfig.last_n` does, without listing what may be millions of buckets.
        start = end + 1 + (-last // config.granularity)
        if start < config.bucket_id(_FIRST):
            raise ConfigurationError("last", f"{last} back from {now.isoformat()} is before the year 1")
        return self._start(start), self._start(end)

    def range(self, entity: str, start: datetime, end: datetime, *, fresh: bool = True) -> Any:
        """The total of the buckets from start's to end's, both included. That of the identity if all are empty, or if
        ``end`` is before ``start``. ``fresh``: include pending events.

        Raises:
            ConfigurationError: a time has no time zone, or lies outside the years 1 to 9999 in UTC.
            SchemaMismatch: the store has no time buckets.
        """
        found = self._stored(entity, self._bucket("start", start), self._bucket("end", end), fresh)
        return self._present(self.monoid.total(state for _, state in found))

    def buckets(
        self, entity: str, start: datetime, end: datetime, *, fresh: bool = True
    ) -> Iterator[tuple[datetime, Any]]:
        """The non-empty buckets of `range`, oldest first: the start of each, and its result.

        A bucket that starts before the year 1 is given the start of that year.
        """
        first, last = self._bucket("start", start), self._bucket("end", end)
        return (
            (self._start(bucket), self._present(state)) for bucket, state in self._stored(entity, first, last, fresh)
        )

    def series(self, entity: str, start: datetime, end: datetime, *, fresh: bool = True) -> list[tuple[datetime, Any]]:
        """All buckets of `range`: those of `buckets`, and the result of the identity for each empty one."""
        found = dict(self.buckets(entity, start, end, fresh=fresh))
        return [
            (time, found[time] if time in found else self._present(self.monoid.identity))
            for time in self.starts(start, end)
        ]

    def starts(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """Start of each bucket from start's to end's, in order, as in `buckets`."""
        return map(self._start, range(self._bucket("start", start), self._bucket("end", end) + 1))

    def top(
        self,
        n: int,
        prefix: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        fresh: bool = False,
        by: str | None = None,
    ) -> list[tuple[str, Any]]:
        """The ``n`` entities with the largest results, largest first; equal ones in the order of their names.

        Entities are ranked by what the monoid presents, which must be numbers; None (such as the mean of nothing) is
        left out. Of several aggregates one ranks.

        Args:
            n: maximum number of entities.
            prefix: only entities that start with it.
            start: combine only the buckets from this time's on; None: from the first.
            end: combine only the buckets up to this time's; None: to the last.
            fresh: include pending events.
            by: name of the aggregate that ranks; None: see `ranking`.

        Raises:
            SchemaMismatch: the results are not numbers, or times are given but the store has no time buckets.
            ConfigurationError: ``by`` is not an aggregate of the store; or a time has no time zone, or lies outside the
                years 1 to 9999 in UTC.
        """
        first, last = self._span(start, end)
        ranking = self.ranking(by)
        ranked = (
            (number, entity, state)
            for entity, state, _ in self._totals(prefix, first, last, fresh)
            if (number := self._number(entity, self.monoid.present(state), ranking)) is not None
        )
        largest = heapq.nlargest(n, ranked, key=lambda item: item[0])
        return [(entity, self._present(state)) for _, entity, state in largest]

    def ranking(self, by: str | None = None) -> str | None:
        """Name of the aggregate by which `top` ranks; None if the store holds one aggregate.

        Args:
            by: as in `top`; None: the first aggregate whose results are numbers.

        Raises:
            ConfigurationError: ``by`` is not an aggregate of the store.
            SchemaMismatch: no aggregate has results that are numbers.
        """
        if not isinstance(self.monoid, Struct):
            if by is not None:
                raise ConfigurationError("by", f"the store holds one aggregate, {self.monoid.name!r}; leave it out")
            return None
        parts = self.monoid.parts
        if by is not None:
            if by not in parts:
                raise ConfigurationError("by", f"{by!r:.80} is not one of {', '.join(parts)}")
            return by
        # The result of nothing decides, not that of an entity, which may lack an optional aggregate.
        for name, part in parts.items():
            if isinstance(part.present(part.identity), Number | None) and not part.needs_event_time:
                return name
        raise SchemaMismatch(f"top needs numeric aggregates, and none of {', '.join(parts)} is a number")

    # Last in the class: below it, `list` in an annotation would mean this method.
    def list(
        self, prefix: str = "", start: datetime | None = None, end: datetime | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[str, Any, int]]:
        """Each entity that starts with ``prefix``, in order: its name, its total, and its number of buckets.

        Args:
            prefix: only entities that start with it.
            start: combine only the buckets from this time's on; None: from the first.
            end: combine only the buckets up to this time's; None: to the last.
            fresh: include pending events.

        Raises:
            SchemaMismatch: times are given but the store has no time buckets.
            ConfigurationError: a time has no time zone, or lies outside the years 1 to 9999 in UTC.
        """
        found = self._totals(prefix, *self._span(start, end), fresh)
        return ((entity, self._present(state), n) for entity, state, n in found)

    def _span(self, start: datetime | None, end: datetime | None) -> tuple[int | None, int | None]:
        """The first and the last bucket; None: open."""
        first = None if start is None else self._bucket("start", start)
        last = None if end is None else self._bucket("end", end)
        return first, last

    def _config(self) -> WindowConfig:
        if self.window_config is None:
            raise SchemaMismatch("the store has no time buckets: each entity has one aggregate over all time")
        return self.window_config

    def _bucket(self, argument: str, time: datetime) -> int:
        try:
            return self._config().bucket_id(time)
        except InvalidRecord as err:
            raise ConfigurationError(argument, err.problem) from None

    def _start(self, bucket: int) -> datetime:
        """Start of a bucket that contains a time of the calendar."""
        try:
            return self._config().bucket_start(bucket)
        except OverflowError:
            return _FIRST

    def _stored(self, entity: str, first: int, last: int, fresh: bool) -> Iterator[tuple[int, V]]:
        """The non-empty buckets, in order.

        Reading bucket by bucket costs as much as the range is long. A scan costs as much as is stored, but it may have
        to pass over other entities that begin with this one's name before it ends.
        """
        if last - first < _MAX_GETS:
            for start in range(first, last + 1, _CHUNK):
                chunk = range(start, min(start + _CHUNK, last + 1))
                values = self.store.get_many([Key(entity, bucket) for bucket in chunk], fresh=fresh)
                yield from ((bucket, value) for bucket, value in zip(chunk, values, strict=True) if value is not None)
            return
        for key, value in self.store.scan(entity, first, last, fresh=fresh):
            if key.entity != entity:  # the entity itself sorts first of all entities with this prefix
                return
            yield key.bucket, value

    def _totals(self, prefix: str, first: int | None, last: int | None, fresh: bool) -> Iterator[tuple[str, V, int]]:
        for entity, rows in groupby(self.store.scan(prefix, first, last, fresh=fresh), key=lambda row: row[0].entity):
            values = [value for _, value in rows]
            try:
                total = self.monoid.total(values)
            except PermanentError as err:
                raise PermanentError(f"all buckets of {entity!r} together: {err}") from err
            yield entity, total, len(values)

    def _number(self, entity: str, result: Any, ranking: str | None) -> Any:
        if ranking is not None:
            result = result[ranking]
        # Sets and tuples compare too, but not by a size that a user would expect.
        if result is not None and not isinstance(result, Number):
            monoid = self.monoid.parts[ranking] if isinstance(self.monoid, Struct) and ranking else self.monoid
            raise SchemaMismatch(
                f"top needs numeric aggregates, but {entity!r} holds a {type(result).__name__} (monoid {monoid.name!r})"
            )
        return result


def _unchanged(state: Any) -> Any:
    return state
