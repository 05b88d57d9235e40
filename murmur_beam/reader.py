"""Reading aggregates: one bucket, a sliding window, a range of time, all entities, the largest. Never writes."""

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
"""Longest range, in buckets, that is read key by key; see `Reader._stored`."""


class Reader(Generic[V]):
    """Answers questions about what a pipeline has merged.

    A table that is appended to keeps pending events beside the aggregate, and folds them later. A ``fresh`` answer has
    both; one that is not is as of the last fold, and costs less. Where nothing else is said, questions about given
    entities are answered fresh, and `list` and `top` are not. Stores that fold at once answer the same either way.

    Args:
        store: where the aggregates are. `close` closes it.
        window: the time buckets they were merged with (only the granularity matters here); None without a window.
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
        """Open a store that was written to before, as it was written; use it in a ``with`` statement.

        Args:
            store: a URI such as ``sqlite:///counts.db``, or a spec.
            monoid: None for the shipped one that the store has recorded.
            window: None for the buckets that the store has recorded.

        Raises:
            StoreUnavailable: there is no such store, or nothing was ever written to it (opening it would leave a
                mark: the schema, which may not be the one that its pipeline is going to write).
            ConfigurationError: a URI that cannot be read, or a recorded monoid that is not a shipped one.
            SchemaMismatch: ``monoid`` or ``window`` is not what the store was written with.
        """
        spec = spec_from_uri(store) if isinstance(store, str) else store
        schema = spec.recorded_schema()
        if schema is None:
            raise StoreUnavailable(f"{spec}: nothing was written to it yet; check the name, or run the pipeline first")
        if monoid is None:
            # Not by_name alone: what is written in a store must not decide which Python module gets imported.
            if schema.monoid not in names():
                raise ConfigurationError(
                    "monoid",
                    f"{spec} was written with {schema.monoid!r}, which is none of {', '.join(names())}; "
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
        """The aggregate of an entity, None where nothing was merged.

        Args:
            entity: whose.
            at: any time in the bucket asked for; needed with a window, and to be left out without.
            fresh: also what is not folded yet.

        Raises:
            ConfigurationError: ``at`` is missing, not expected, has no time zone, or lies outside the years 1 to 9999.
        """
        return self.get_many([entity], at, fresh=fresh)[0]

    def get_many(self, entities: Sequence[str], at: datetime | None = None, *, fresh: bool = True) -> list[V | None]:
        """As `get`, for many entities at once and in their order."""
        if self.window_config is None and at is not None:
            raise ConfigurationError("at", "the store has no time buckets; leave it out")
        if self.window_config is not None and at is None:
            raise ConfigurationError(
                "at", "is needed: each time bucket has an aggregate of its own (window and range combine several)"
            )
        bucket = 0 if at is None else self._bucket("at", at)
        return _get_many(self.store, [Key(entity, bucket) for entity in entities], fresh)

    def window(self, entity: str, last: timedelta, now: datetime, *, fresh: bool = True) -> V:
        """The ``ceil(last / granularity)`` buckets that end with now's, combined. The identity if all are empty.
        ``fresh``: with what is not folded yet.

        Raises:
            ConfigurationError: ``last`` is not positive or reaches back beyond the year 1, ``now`` has no time zone.
            SchemaMismatch: the store has no time buckets.
        """
        return self.range(entity, *self.span(last, now), fresh=fresh)

    def span(self, last: timedelta, now: datetime) -> tuple[datetime, datetime]:
        """Where the first and the last bucket that `window` combines begin."""
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
        """The buckets from start's to end's combined, both included. The identity if all are empty, or if ``end``
        lies before ``start``. ``fresh``: with what is not folded yet.

        Raises:
            ConfigurationError: a time without a time zone, or outside the years 1 to 9999 in UTC.
            SchemaMismatch: the store has no time buckets.
        """
        return self.monoid.total(value for _, value in self.buckets(entity, start, end, fresh=fresh))

    def buckets(
        self, entity: str, start: datetime, end: datetime, *, fresh: bool = True
    ) -> Iterator[tuple[datetime, V]]:
        """The buckets of `range` that something was merged into, oldest first: when each begins, and its aggregate.

        One that began before the year 1 is said to begin with it.
        """
        first, last = self._bucket("start", start), self._bucket("end", end)
        return ((self._start(bucket), value) for bucket, value in self._stored(entity, first, last, fresh))

    def series(self, entity: str, start: datetime, end: datetime, *, fresh: bool = True) -> list[tuple[datetime, V]]:
        """As `buckets`, with the identity for each empty bucket in between: a list as long as the range is."""
        found = dict(self.buckets(entity, start, end, fresh=fresh))
        return [(time, found.get(time, self.monoid.identity)) for time in self.starts(start, end)]

    def starts(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """When each bucket from start's to end's begins, in order, as `buckets` tells it."""
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
            n: how many at most.
            prefix: only entities that start with it.
            start, end: combine only the buckets from start's to end's; None: open.
            fresh: with what is not folded yet.

        Raises:
            SchemaMismatch: the aggregates are not numbers, or there are times but the store has no time buckets.
            ConfigurationError: a time without a time zone, or outside the years 1 to 9999 in UTC.
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
        """Each entity that starts with ``prefix``, in order: its name, its buckets combined, and how many.

        Args:
            prefix: only entities that start with it.
            start, end: combine only the buckets from start's to end's; None: open.
            fresh: with what is not folded yet.

        Raises:
            SchemaMismatch: there are times but the store has no time buckets.
            ConfigurationError: a time without a time zone, or outside the years 1 to 9999 in UTC.
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
        """When a bucket begins that some time of the calendar falls into."""
        try:
            return self._config().bucket_start(bucket)
        except OverflowError:
            return _FIRST

    def _stored(self, entity: str, first: int, last: int, fresh: bool) -> Iterator[tuple[int, V]]:
        """The buckets that hold something, in order.

        Key by key costs as much as the range is long. A scan costs as much as there is stored, but may go on to other
        entities that begin with this one's name, looking for one in the range, before it ends.
        """
        if last - first < _MAX_GETS:
            for start in range(first, last + 1, _CHUNK):
                chunk = range(start, min(start + _CHUNK, last + 1))
                values = _get_many(self.store, [Key(entity, bucket) for bucket in chunk], fresh)
                yield from ((bucket, value) for bucket, value in zip(chunk, values, strict=True) if value is not None)
            return
        for key, value in _scan(self.store, entity, first, last, fresh):
            if key.entity != entity:  # the entity itself comes first of all that begin with its name
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
        # Sets and tuples compare too, but what comes out larger is not what anybody means by it.
        if not isinstance(value, Number):
            raise SchemaMismatch(
                f"the largest can be told of numbers only, but {entity!r} has a {type(value).__name__} "
                f"(monoid {self.monoid.name!r})"
            )
        return value


def _get_many(store: Store[V], keys: Sequence[Key], fresh: bool) -> list[V | None]:
    return store.get_many(keys, **freshness(store.get_many, fresh, by_default=True))


def _scan(store: Store[V], prefix: str, first: int | None, last: int | None, fresh: bool) -> Iterator[tuple[Key, V]]:
    return store.scan(prefix, first, last, **freshness(store.scan, fresh, by_default=False))
