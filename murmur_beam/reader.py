"""Reads aggregates: one bucket, a sliding window, a range of time, all entities, or the largest. Never writes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import groupby
from numbers import Number
from types import TracebackType
from typing import Any, Generic, TypeVar

from murmur_beam.errors import ConfigurationError, InvalidRecord, PermanentError, SchemaMismatch, StoreUnavailable
from murmur_beam.model import Key
from murmur_beam.monoids import Monoid, by_name, names
from murmur_beam.state import Store, StoreSpec, spec_from_uri
from murmur_beam.state.base import freshness
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

    Args:
        store: of the aggregates. `close` closes it.
        window: of the aggregates (only the granularity matters here); None without a window.
    """

    def __init__(self, store: Store[V], window: WindowConfig | None = None) -> None:
        self.store = store
        self.monoid = store.monoid
        self.window_config = window

    @classmethod
    def open(
        cls,
        store: str | StoreSpec,
        monoid: Monoid[Any] | None = None,
        window: WindowConfig | None = None,
    ) -> Reader[Any]:
        """Open an existing store with its recorded schema; use the reader in a ``with`` statement.

        Args:
            store: a URI such as ``sqlite:///counts.db``, or a spec.
            monoid: None for the shipped monoid that the store has recorded.
            window: None for the buckets that the store has recorded.

        Raises:
            StoreUnavailable: the store does not exist, or nothing was ever written to it. (Opening it would record a
                schema, which may differ from the one that its pipeline is going to write.)
            ConfigurationError: the URI is invalid, or the recorded monoid is not a shipped one.
            SchemaMismatch: ``monoid`` or ``window`` is not what the store was written with.
        """
        spec = spec_from_uri(store) if isinstance(store, str) else store
        schema = spec.recorded_schema()
        if schema is None:
            raise StoreUnavailable(f"{spec}: nothing was written to it yet; check the name, or run its pipeline first")
        if monoid is None:
            # Not by_name alone: a store's content must not decide which Python module is imported.
            if schema.monoid not in names():
                raise ConfigurationError(
                    "monoid",
                    f"{spec} was written with {schema.monoid!r}, which is not one of {', '.join(names())}; "
                    "pass --monoid package.module:attribute (in Python: monoid=)",
                )
            monoid = by_name(schema.monoid)
        if window is None and schema.granularity is not None:
            window = WindowConfig(schema.granularity)
        return cls(spec.open(monoid, window.granularity if window else None), window)

    def __enter__(self) -> Reader[V]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def get(self, entity: str, at: datetime | None = None, *, fresh: bool = True) -> V | None:
        """The aggregate of an entity, None if nothing was merged.

        Args:
            entity: to read.
            at: any time in the bucket to read; required with a window, not allowed without one.
            fresh: include pending events.

        Raises:
            ConfigurationError: ``at`` is missing, not allowed, has no time zone, or lies outside the years 1 to 9999.
        """
        return self.get_many([entity], at, fresh=fresh)[0]

    def get_many(self, entities: Sequence[str], at: datetime | None = None, *, fresh: bool = True) -> list[V | None]:
        """The aggregates of many entities, in their order; see `get`."""
        if self.window_config is None and at is not None:
            raise ConfigurationError("at", "the store has no time buckets; leave it out")
        if self.window_config is not None and at is None:
            raise ConfigurationError(
                "at", "is required: each time bucket has a separate aggregate (window and range combine several)"
            )
        bucket = 0 if at is None else self._bucket("at", at)
        return _get_many(self.store, [Key(entity, bucket) for entity in entities], fresh)

    def window(self, entity: str, last: timedelta, now: datetime, *, fresh: bool = True) -> V:
        """The total of the ``ceil(last / granularity)`` buckets that end with now's. The identity if all are empty.
        ``fresh``: include pending events.

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

    def range(self, entity: str, start: datetime, end: datetime, *, fresh: bool = True) -> V:
        """The total of the buckets from start's to end's, both included. The identity if all are empty, or if ``end``
        is before ``start``. ``fresh``: include pending events.

        Raises:
            ConfigurationError: a time has no time zone, or lies outside the years 1 to 9999 in UTC.
            SchemaMismatch: the store has no time buckets.
        """
        return self.monoid.total(value for _, value in self.buckets(entity, start, end, fresh=fresh))

    def buckets(
        self, entity: str, start: datetime, end: datetime, *, fresh: bool = True
    ) -> Iterator[tuple[datetime, V]]:
        """The non-empty buckets of `range`, oldest first: the start of each, and its aggregate.

        A bucket that starts before the year 1 is given the start of that year.
        """
        first, last = self._bucket("start", start), self._bucket("end", end)
        return ((self._start(bucket), value) for bucket, value in self._stored(entity, first, last, fresh))

    def series(self, entity: str, start: datetime, end: datetime, *, fresh: bool = True) -> list[tuple[datetime, V]]:
        """All buckets of `range`: those of `buckets`, and the identity for each empty one."""
        found = dict(self.buckets(entity, start, end, fresh=fresh))
        return [(time, found.get(time, self.monoid.identity)) for time in self.starts(start, end)]

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
    ) -> list[tuple[str, V]]:
        """The ``n`` entities with the largest aggregates, largest first; equal ones in the order of their names.

        Args:
            n: maximum number of entities.
            prefix: only entities that start with it.
            start: combine only the buckets from this time's on; None: from the first.
            end: combine only the buckets up to this time's; None: to the last.
            fresh: include pending events.

        Raises:
            SchemaMismatch: the aggregates are not numbers, or times are given but the store has no time buckets.
            ConfigurationError: a time has no time zone, or lies outside the years 1 to 9999 in UTC.
        """
        totals = (
            (entity, self._number(entity, value)) for entity, value, _ in self.list(prefix, start, end, fresh=fresh)
        )
        largest: Any = heapq.nlargest(n, totals, key=lambda item: item[1])
        return list(largest)

    # Last in the class: below it, `list` in an annotation would mean this method.
    def list(
        self, prefix: str = "", start: datetime | None = None, end: datetime | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[str, V, int]]:
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
        first = None if start is None else self._bucket("start", start)
        last = None if end is None else self._bucket("end", end)
        return self._totals(prefix, first, last, fresh)

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
                values = _get_many(self.store, [Key(entity, bucket) for bucket in chunk], fresh)
                yield from ((bucket, value) for bucket, value in zip(chunk, values, strict=True) if value is not None)
            return
        for key, value in _scan(self.store, entity, first, last, fresh):
            if key.entity != entity:  # the entity itself sorts first of all entities with this prefix
                return
            yield key.bucket, value

    def _totals(self, prefix: str, first: int | None, last: int | None, fresh: bool) -> Iterator[tuple[str, V, int]]:
        for entity, rows in groupby(_scan(self.store, prefix, first, last, fresh), key=lambda row: row[0].entity):
            values = [value for _, value in rows]
            try:
                total = self.monoid.total(values)
            except PermanentError as err:
                raise PermanentError(f"all buckets of {entity!r} together: {err}") from err
            yield entity, total, len(values)

    def _number(self, entity: str, value: V) -> V:
        # Sets and tuples compare too, but not by a size that a user would expect.
        if not isinstance(value, Number):
            raise SchemaMismatch(
                f"top needs numeric aggregates, but {entity!r} holds a {type(value).__name__} "
                f"(monoid {self.monoid.name!r})"
            )
        return value


def _get_many(store: Store[V], keys: Sequence[Key], fresh: bool) -> list[V | None]:
    return store.get_many(keys, **freshness(store.get_many, fresh, by_default=True))


def _scan(store: Store[V], prefix: str, first: int | None, last: int | None, fresh: bool) -> Iterator[tuple[Key, V]]:
    return store.scan(prefix, first, last, **freshness(store.scan, fresh, by_default=False))
