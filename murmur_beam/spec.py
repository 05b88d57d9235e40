"""All that a merge needs in one immutable, checked, picklable object, made of its options."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from murmur_beam.buffer import FlushLimits
from murmur_beam.config import AtomicDedup, Config, NoDedup, needs_event_id
from murmur_beam.durations import format_duration, spell_duration
from murmur_beam.errors import ConfigurationError, MurmurError, SchemaMismatch, TransientError
from murmur_beam.extract import Extraction
from murmur_beam.fields import ESCAPED, Field, ValueField
from murmur_beam.monoids import Monoid, Struct
from murmur_beam.option import check_options, naming
from murmur_beam.options import (
    DEFAULT_NAME,
    FOLD_AGE,
    FOLD_SHARE,
    MergeOptions,
    as_aggregates,
    as_decoder,
    as_duration,
    as_monoid,
    as_store,
    as_window,
)
from murmur_beam.state import Cache, Schema, Store, StoreSpec
from murmur_beam.state.adapted import open_store
from murmur_beam.state.base import bucket_lifetime
from murmur_beam.state.folding import FoldingStore
from murmur_beam.state.one_meaning import require_one_meaning
from murmur_beam.times import TimeFormat
from murmur_beam.windows import WindowConfig

_log = logging.getLogger(__name__)


class FoldPlan(NamedTuple):
    """When rows that were appended to are folded.

    Attributes:
        every: how long after a row was written.
        share: not before its pending events are this share of those folded before.
        age: unless they are this old.
    """

    every: timedelta
    share: float
    age: timedelta


@dataclass(frozen=True)
class MergeSpec:
    """What to merge and how; `resolve` makes one.

    Attributes:
        name: of the metrics, and in dead letters.
        extraction: how to make records from elements.
        monoid: how to fold.
        window: time buckets; None for one aggregate over all time.
        store: the source of truth.
        cache: a copy that is kept up to date, or None.
        config: retries, dedup, recorder.
        flush: when to write.
        fold: when to fold, in a stage of its own; None: not here.
        on_exhausted: "dead_letter", or "raise" to make the runner retry the whole bundle.
        unpickle: whether a replayed dead letter may be unpickled.
    """

    name: str
    extraction: Extraction
    monoid: Monoid[Any]
    window: WindowConfig | None
    store: StoreSpec
    cache: StoreSpec | None
    config: Config
    flush: FlushLimits
    fold: FoldPlan | None
    on_exhausted: str
    unpickle: bool

    @property
    def granularity(self) -> timedelta | None:
        """Length of a time bucket, None without a window."""
        return None if self.window is None else self.window.granularity

    @property
    def aggregate(self) -> Monoid[Any]:
        """The monoid with the name of the field that it folds, as a table records it."""
        return self.monoid.of(self.extraction.value) if isinstance(self.extraction.value, str) else self.monoid

    def check_stores(self) -> None:
        """Open and close the stores, so that a wrong one fails here and not on a worker.

        Raises:
            ConfigurationError: one cannot be opened, or does not go with the other arguments.
        """
        for argument, spec in (("store", self.store), ("cache", self.cache)):
            if spec is not None:
                try:
                    store = open_store(spec, self.aggregate, self.granularity)
                except MurmurError as err:
                    raise ConfigurationError(argument, str(err)) from err
                except Exception as err:  # a user's own store may raise anything
                    raise ConfigurationError(argument, f"{spec} fails to open: {type(err).__name__}: {err}") from err
                try:
                    if argument == "store":
                        self._check_folds(store)
                finally:
                    store.close()
                if argument == "store":
                    self._check_lifetime(store)
                    self._check_appending(store)
                if argument == "cache" and not isinstance(store, Cache):
                    raise ConfigurationError(argument, f"{spec} cannot serve as a cache; use memory://NAME")

    def check_beside(self, pipeline: object) -> None:
        """Check that no other step of a pipeline writes something else to the same table.

        Raises:
            ConfigurationError: one does.
        """
        try:
            require_one_meaning(pipeline, self.store, Schema.of(self.aggregate, self.granularity))
        except SchemaMismatch as err:
            raise ConfigurationError("store", str(err)) from err

    def _check_lifetime(self, store: Store[Any]) -> None:
        """A table may collect buckets, and what it knows of their events, by a rule of its own."""
        flags = []
        needed = None
        if self.window is not None and self.window.retention is not None:
            needed = bucket_lifetime(self.window.granularity, self.window.retention)
            flags = ["--retention", format_duration(self.window.retention)]
        if self.granularity is not None:
            flags = ["--window", format_duration(self.granularity), *flags]
        buckets, events = store.bucket_age, store.marker_age
        # Without a retention here, the one that was chosen for the table holds.
        lost = buckets is not None and needed is not None and needed > buckets
        forgotten = events is not None and needed is not None and needed > events
        for what, kept, too_short in (("its buckets", buckets, lost), ("what it knows of events", events, forgotten)):
            if kept is not None and needed is not None and too_short:
                if store.appends:
                    flags = [*flags, "--write", "append"]
                run = shlex.join(["murmur", "create-table", str(self.store), "--monoid", self.monoid.name, *flags])
                raise ConfigurationError(
                    "retention",
                    f"{self.store} keeps {what} for {spell_duration(kept)}, but this window needs that for "
                    f"{spell_duration(needed)}, or events are lost or count twice; use the retention that the table "
                    f"was made for, or run: {run}",
                )

    def _check_folds(self, store: Store[Any]) -> None:
        """Folds may need more than appends do."""
        if self.fold is None or not store.appends or not isinstance(store, FoldingStore):
            return
        try:
            store.require_folds()
        except TransientError as err:
            _log.warning("%s; whether it can be folded will show when it answers", err)
        except MurmurError as err:
            raise ConfigurationError("fold", str(err)) from err

    def _check_appending(self, store: Store[Any]) -> None:
        """Refuse what a table that is appended to cannot have: only a fold finds out which events are new."""
        if self.fold is not None and not isinstance(store, FoldingStore):
            raise ConfigurationError(
                "fold", f"{self.store} folds each event when it is merged, and needs no fold of its own; leave it out"
            )
        if not store.appends:
            return
        refused = [
            (
                "cache",
                self.cache is not None,
                "a cache takes what is new only, and what is new shows when it is folded; leave it out",
            ),
            (
                "monoid",
                not self.monoid.commutative,
                f"{self.monoid.name!r} depends on the order of events, and what is pending is folded in any order; use "
                "a table that is written by commits",
            ),
            (
                "dedup",
                not isinstance(self.config.dedup, (AtomicDedup, NoDedup, type(None))),
                "the table drops duplicates itself, and a Deduper that claims them first can lose events; use "
                "AtomicDedup()",
            ),
        ]
        for argument, is_given, problem in refused:
            if is_given:
                raise ConfigurationError(argument, f"{self.store} is written by appending: {problem}")
        if store.bucket_age is None and self.fold is None:
            _log.warning(
                "%s: %s is written by appending and has no retention; fold it, with fold= or %s --every DURATION, or "
                "pending deltas grow without end",
                self.name,
                self.store,
                shlex.join(["murmur", "fold", str(self.store)]),
            )


def resolve(options: MergeOptions) -> MergeSpec:
    """Check the options and fill in the defaults.

    Raises:
        ConfigurationError: naming the option.
    """
    check_options(options)
    monoid = _monoid(options)
    config = Config() if options.config is None else options.config
    if config.dedup is None:
        config = config.with_dedup(AtomicDedup())
    if options.store is None:
        raise ConfigurationError("store", "is missing; write a URI such as sqlite:///counts.db")
    store = as_store(options.store)
    with naming("cache"):
        cache = None if options.cache is None else as_store(options.cache)
    if cache == store:
        raise ConfigurationError("cache", f"{cache} is the store itself, where each event would count twice")
    value = _value(options, monoid)
    if options.event_id is None and needs_event_id(config, monoid):
        raise ConfigurationError(
            "event_id",
            f"is missing, but without it a redelivery would count twice in a {monoid.name!r}; name a field or a "
            "function, or turn dedup off by name to count at least once: Config(dedup=NoDedup()), --dedup none",
        )
    return MergeSpec(
        name=DEFAULT_NAME if options.name is None else options.name,
        extraction=_extraction(options, value),
        monoid=monoid,
        window=_window(options),
        store=store,
        cache=cache,
        config=config,
        flush=FlushLimits() if options.flush is None else options.flush,
        fold=_fold(options),
        on_exhausted=options.on_exhausted or "dead_letter",
        unpickle=bool(options.unpickle),
    )


def _fold(options: MergeOptions) -> FoldPlan | None:
    if options.fold is None:
        for name in ("fold_share", "fold_age"):
            if getattr(options, name) is not None:
                raise ConfigurationError(name, "needs fold, which says how long after a write rows are folded")
        return None
    share = FOLD_SHARE if options.fold_share is None else options.fold_share
    age = FOLD_AGE if options.fold_age is None else as_duration(options.fold_age)
    return FoldPlan(as_duration(options.fold), share, age)


def _monoid(options: MergeOptions) -> Monoid[Any]:
    if options.aggregates is None:
        return as_monoid("sum" if options.monoid is None else options.monoid)
    for name in ("monoid", "value"):
        if getattr(options, name) is not None:
            raise ConfigurationError(name, "is for one aggregate; with aggregates= each has its own")
    return as_aggregates(options.aggregates)


def _value(options: MergeOptions, monoid: Monoid[Any]) -> Field | tuple[ValueField, ...] | None:
    """Where the value is, or the value of each of several aggregates."""
    if isinstance(monoid, Struct):
        for name, part in monoid.parts.items():
            if part.needs_value and part.field is None:
                raise ConfigurationError("aggregates", f"{name}: {part.name!r} needs a field: write .of(FIELD)")
        return tuple(
            ValueField(name, part.field if part.needs_value else None, part.optional)
            for name, part in monoid.parts.items()
        )
    value = monoid.field if options.value is None else options.value
    if value is None and monoid.needs_value:
        raise ConfigurationError("value", f"monoid {monoid.name!r} needs one: a field name or a function")
    return value


def _extraction(options: MergeOptions, value: Field | tuple[ValueField, ...] | None) -> Extraction:
    return Extraction(
        keys=_keys(options),
        value=value,
        event_id=options.event_id,
        event_time=options.event_time,
        decode=None if options.decode is None else as_decoder(options.decode),
        delimiter=options.delimiter,
        times=TimeFormat(options.time_unit, options.assume_zone),
        source=options.source,
        id_format=options.id_format or ESCAPED,
    )


def _keys(options: MergeOptions) -> Callable[[Any], Iterable[Any]] | tuple[Field, ...]:
    key, keys = options.key, options.keys
    if key is not None and keys is not None:
        raise ConfigurationError("key", "give either key or keys, not both")
    if key is not None:
        return (key,)
    if keys is None:
        raise ConfigurationError("key", "is missing; say what to count by, with key= for one or keys= for several")
    if callable(keys):
        return keys
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise ConfigurationError("keys", f"expected a list or a function, got {keys!r:.80}; for one key use key=")
    several = tuple(keys)
    if not several:
        raise ConfigurationError("keys", "is empty; say what to count by")
    return several


def _window(options: MergeOptions) -> WindowConfig | None:
    window, retention = options.window, options.retention
    if retention is None:
        return None if window is None else as_window(window)
    if window is None:
        raise ConfigurationError("retention", "needs a window")
    if isinstance(window, WindowConfig):
        raise ConfigurationError(
            "retention", "belongs into the WindowConfig; beside it only a window in text takes one"
        )
    return as_window(window, as_duration(retention))
