"""All arguments of a merge in one immutable, checked, picklable object, made from Python arguments or from flags.

`MergeRecords`, its options and the pipelines share this list of arguments.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from murmur_beam.buffer import FlushLimits
from murmur_beam.config import AtomicDedup, Config, NoDedup, needs_event_id
from murmur_beam.decode import DECODERS
from murmur_beam.durations import format_duration, parse_duration, spell_duration
from murmur_beam.errors import ConfigurationError, MurmurError, SchemaMismatch
from murmur_beam.extract import Extraction
from murmur_beam.fields import ESCAPED, ID_FORMATS, Field
from murmur_beam.import_path import load_attribute
from murmur_beam.monoids import Monoid, by_name
from murmur_beam.state import Schema, StoreSpec, require_lasting, spec_from_uri
from murmur_beam.state.base import bucket_lifetime
from murmur_beam.state.one_meaning import require_one_meaning
from murmur_beam.times import UNITS, TimeFormat
from murmur_beam.windows import WindowConfig, parse_window

T = TypeVar("T")

_log = logging.getLogger(__name__)

DEFAULT_NAME = "murmur"
ON_EXHAUSTED = ("dead_letter", "raise")

_ARGUMENTS = (
    "name",
    "key",
    "keys",
    "value",
    "monoid",
    "window",
    "retention",
    "store",
    "cache",
    "event_id",
    "event_time",
    "time_unit",
    "assume_zone",
    "decode",
    "delimiter",
    "source",
    "id_format",
    "config",
    "flush",
    "on_exhausted",
    "unpickle",
)


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
                    store = spec.open(self.aggregate, self.granularity)
                except MurmurError as err:
                    raise ConfigurationError(argument, str(err)) from err
                except Exception as err:  # a user's own store may raise anything
                    raise ConfigurationError(argument, f"{spec} fails to open: {type(err).__name__}: {err}") from err
                store.close()
                if argument == "store":
                    self._check_lifetime(store)
                    self._check_appending(store)
                if argument == "cache" and not hasattr(store, "repopulate"):
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

    def _check_lifetime(self, store: object) -> None:
        """A table may collect buckets, and what it knows of their events, by a rule of its own."""
        flags = []
        needed = None
        if self.window is not None and self.window.retention is not None:
            needed = bucket_lifetime(self.window.granularity, self.window.retention)
            flags = ["--retention", format_duration(self.window.retention)]
        if self.granularity is not None:
            flags = ["--window", format_duration(self.granularity), *flags]
        buckets: timedelta | None = getattr(store, "bucket_age", None)
        events: timedelta | None = getattr(store, "marker_age", None)
        # Without a retention here, the one that was chosen for the table holds.
        lost = buckets is not None and needed is not None and needed > buckets
        forgotten = events is not None and needed is not None and needed > events
        for what, kept, too_short in (("its buckets", buckets, lost), ("what it knows of events", events, forgotten)):
            if kept is not None and needed is not None and too_short:
                if getattr(store, "appends", False):
                    flags = [*flags, "--write", "append"]
                run = shlex.join(["murmur", "create-table", str(self.store), "--monoid", self.monoid.name, *flags])
                raise ConfigurationError(
                    "retention",
                    f"{self.store} keeps {what} for {spell_duration(kept)}, but this window needs that for "
                    f"{spell_duration(needed)}, or events are lost or count twice; use the retention that the table "
                    f"was made for, or run: {run}",
                )

    def _check_appending(self, store: object) -> None:
        """Refuse what a table that is appended to cannot have: only a fold finds out which events are new."""
        if not getattr(store, "appends", False):
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
        if getattr(store, "bucket_age", None) is None:
            _log.warning(
                "%s: %s is written by appending and has no retention; fold it, with: %s --every DURATION, or pending "
                "deltas grow without end",
                self.name,
                self.store,
                shlex.join(["murmur", "fold", str(self.store)]),
            )


def resolve(arguments: Mapping[str, Any]) -> MergeSpec:
    """Check the arguments of `MergeRecords` and fill in the defaults; an argument that is None counts as not given.

    Raises:
        ConfigurationError: naming the argument.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in given:
        if name not in _ARGUMENTS:
            raise ConfigurationError(name, f"there is no such argument; there are {', '.join(_ARGUMENTS)}")
    monoid = _monoid(given.get("monoid", "sum"))
    config = _instance("config", given.get("config", Config()), Config)
    if config.dedup is None:
        config = config.with_dedup(AtomicDedup())
    on_exhausted = given.get("on_exhausted", ON_EXHAUSTED[0])
    if on_exhausted not in ON_EXHAUSTED:
        raise ConfigurationError("on_exhausted", f"expected {' or '.join(ON_EXHAUSTED)}, got {on_exhausted!r:.80}")
    name = given.get("name", DEFAULT_NAME)
    if not isinstance(name, str) or not name:
        raise ConfigurationError("name", f"expected a text that is not empty, got {name!r:.80}")
    unpickle = given.get("unpickle", False)
    if not isinstance(unpickle, bool):
        raise ConfigurationError("unpickle", f"expected True or False, got {unpickle!r:.80}")
    if "store" not in given:
        raise ConfigurationError("store", "is missing; write a URI such as sqlite:///counts.db")
    store = _store("store", given["store"])
    cache = _store("cache", given["cache"]) if "cache" in given else None
    if cache == store:
        raise ConfigurationError("cache", f"{cache} is the store itself, where each event would count twice")
    if "value" not in given and monoid.needs_value:
        raise ConfigurationError("value", f"monoid {monoid.name!r} needs one: a field name or a function")
    if "event_id" not in given and needs_event_id(config, monoid):
        raise ConfigurationError(
            "event_id",
            f"is missing, but without it a redelivery would count twice in a {monoid.name!r}; name a field or a "
            "function, or turn dedup off by name to count at least once: Config(dedup=NoDedup()), --dedup none",
        )
    return MergeSpec(
        name=name,
        extraction=_extraction(given),
        monoid=monoid,
        window=_window(given.get("window"), given.get("retention")),
        store=store,
        cache=cache,
        config=config,
        flush=_instance("flush", given.get("flush", FlushLimits()), FlushLimits),
        on_exhausted=on_exhausted,
        unpickle=unpickle,
    )


def _extraction(given: Mapping[str, Any]) -> Extraction:
    return Extraction(
        keys=_keys(given.get("key"), given.get("keys")),
        value=given.get("value"),
        event_id=given.get("event_id"),
        event_time=given.get("event_time"),
        decode=given.get("decode"),
        delimiter=given.get("delimiter"),
        times=TimeFormat(given.get("time_unit"), given.get("assume_zone")),
        source=given.get("source"),
        id_format=given.get("id_format", ESCAPED),
    )


def _instance(argument: str, value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        article = "" if kind is FlushLimits else "a "
        raise ConfigurationError(argument, f"expected {article}{kind.__name__}, got {value!r:.80}")
    return value


def _keys(key: Any, keys: Any) -> Callable[[Any], Iterable[Any]] | tuple[Field, ...]:
    if key is not None and keys is not None:
        raise ConfigurationError("key", "give either key or keys, not both")
    if key is not None:
        return (key,)
    if keys is None:
        raise ConfigurationError("key", "is missing; say what to count by, with key= for one or keys= for several")
    if callable(keys):
        function: Callable[[Any], Iterable[Any]] = keys
        return function
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise ConfigurationError("keys", f"expected a list or a function, got {keys!r:.80}; for one key use key=")
    several = tuple(keys)
    if not several:
        raise ConfigurationError("keys", "is empty; say what to count by")
    return several


def _monoid(monoid: Any) -> Monoid[Any]:
    if isinstance(monoid, str):
        return by_name(monoid)
    if isinstance(monoid, Monoid):
        return monoid
    hint = "; write its parentheses" if isinstance(monoid, type) and issubclass(monoid, Monoid) else ""
    raise ConfigurationError("monoid", f"expected a Monoid or a name, got {monoid!r:.80}{hint}")


def _window(window: Any, retention: Any) -> WindowConfig | None:
    kept = _retention(retention)
    if window is None:
        if kept is not None:
            raise ConfigurationError("retention", "needs a window")
        return None
    if isinstance(window, WindowConfig):
        if kept is not None:
            raise ConfigurationError(
                "retention", "belongs into the WindowConfig; beside it only a window in text takes one"
            )
        return window
    if isinstance(window, str):
        try:
            return parse_window(window, kept)
        except ValueError as err:
            raise ConfigurationError("window", str(err)) from None
    raise ConfigurationError("window", f"expected a WindowConfig or a text such as daily or 15m, got {window!r:.80}")


def _retention(retention: Any) -> timedelta | None:
    if isinstance(retention, str):
        try:
            retention = parse_duration(retention)
        except ValueError as err:
            raise ConfigurationError("retention", str(err)) from None
    if not (retention is None or (isinstance(retention, timedelta) and retention > timedelta(0))):
        raise ConfigurationError("retention", f"expected a positive duration such as 90d, got {retention!r:.80}")
    return retention


def _store(argument: str, store: Any) -> StoreSpec:
    if isinstance(store, str):
        return spec_from_uri(store, argument)
    opens = callable(getattr(store, "open", None)) and callable(getattr(store, "recorded_schema", None))
    if opens and not isinstance(store, type):
        spec: StoreSpec = store
        try:
            hash(spec)
        except TypeError as err:
            raise ConfigurationError(argument, f"{err}; workers find their open stores by their specs") from None
        return spec
    hint = "; write its parentheses" if opens else ""
    raise ConfigurationError(argument, f"expected a URI or a store spec such as SqliteSpec, got {store!r:.80}{hint}")


def add_flags(parser: Any, prefix: str = "") -> list[str]:
    """Add one flag for each argument that can be written as text, all optional.

    Args:
        parser: an `argparse` parser or group.
        prefix: before each name, such as ``murmur_``.

    Returns:
        The names under which the parser stores the values.
    """
    names = []

    def add(name: str, help: str, **more: Any) -> None:
        names.append(f"{prefix}{name}")
        parser.add_argument(f"--{prefix}{name}", dest=names[-1], default=None, help=help, **more)

    add("name", f"name of the metrics (default {DEFAULT_NAME})", metavar="NAME")
    add("store", "where the counts are kept, such as sqlite:///counts.db", metavar="URI")
    add("cache", "a copy to keep up to date", metavar="URI")
    add(
        "key",
        "what to count by: a field, or a template such as 'route/{from}-{to}'; repeat it for several keys",
        action="append",
        metavar="FIELD",
    )
    add("value", "field of the number to fold; not needed to count", metavar="FIELD")
    add("monoid", "how to fold: sum (default), count, min, max, ... or package.module:attribute", metavar="NAME")
    add("window", "length of a time bucket: daily, hourly, minute or such as 15m; without it one count over all time")
    add("retention", "skip events older than this, such as 90d", metavar="DURATION")
    add("event_id", "field or template that is the same when an event is delivered again", metavar="FIELD")
    add("event_time", "field of the event's time; without it the element's timestamp", metavar="FIELD")
    add(
        "decode",
        f"format of the elements: {', '.join(DECODERS)} (bytes are JSON unless said), or a function of an element, as "
        "package.module:attribute",
        metavar="FORMAT",
    )
    add("time_unit", "of Unix times: s, ms, us, ns (default: as their digits tell)", choices=(*UNITS,))
    add(
        "assume_zone",
        "zone of times that name none: UTC, +01:00, Europe/Paris (default: days begin in UTC, other times are refused)",
        metavar="ZONE",
    )
    add("delimiter", "between the fields of CSV: one character, or tab (default ,)", metavar="CHAR")
    add("source", "where messages come from, such as projects/P/topics/T: put before their own ids", metavar="TEXT")
    add(
        "id_format",
        "escaped (default): the parts of a template of ids are kept apart; plain: ids as 0.1.0 wrote them",
        choices=ID_FORMATS,
    )
    add("dedup", "exact (default): each event once; none: each delivery counts", choices=("exact", "none"))
    add("max_attempts", "tries for each key (default 3)", type=int, metavar="N")
    add("backoff_base", "first wait between tries (default 50ms)", metavar="DURATION")
    add("backoff_max", "longest wait between tries (default 5s)", metavar="DURATION")
    add("flush_events", "write after this many records", type=int, metavar="N")
    add("flush_rows", "write after this many touched rows", type=int, metavar="N")
    add("flush_age", "write after this long", metavar="DURATION")
    add("flush_bytes", "write after this many bytes of bytes, text and messages (64 MiB)", type=int, metavar="N")
    add("on_exhausted", "what to do with a record that cannot be merged (default dead_letter)", choices=ON_EXHAUSTED)
    return names


def from_flags(flags: object, prefix: str = "") -> dict[str, Any]:
    """The arguments for `resolve` that the flags of `add_flags` give.

    Args:
        flags: an `argparse.Namespace`, or anything with an attribute for each flag.
        prefix: as given to `add_flags`.

    Raises:
        ConfigurationError: a flag that cannot be used, with its name; also a store in memory, which ends with the
            program. In Python, `resolve` accepts it.
    """
    given = {}
    for dest in add_flags(argparse.ArgumentParser(add_help=False), prefix):
        value = getattr(flags, dest)
        if value is not None:
            given[dest.removeprefix(prefix)] = value
    require_lasting(given.get("store"), f"--{prefix}store")
    arguments = {name: given[name] for name in _ARGUMENTS if name in given and name != "key"}
    if isinstance(given.get("decode"), str):
        arguments["decode"] = _decoder(given["decode"], f"--{prefix}decode")
    if "key" in given:
        # Beam's options hold a text if they were made in Python and not from a command line.
        arguments["keys"] = [given["key"]] if isinstance(given["key"], str) else given["key"]
    config: dict[str, Any] = {name: given[name] for name in ("max_attempts",) if name in given}
    config |= _durations(prefix, given, "backoff_base", "backoff_max")
    if config or "dedup" in given:
        dedup = NoDedup() if given.get("dedup") == "none" else AtomicDedup()
        with _named_as_flag(f"--{prefix}"):
            arguments["config"] = Config(dedup=dedup, **config)
    flush: dict[str, Any] = {
        name: given[f"flush_{name}"] for name in ("events", "rows", "bytes") if f"flush_{name}" in given
    }
    flush |= {name.removeprefix("flush_"): d for name, d in _durations(prefix, given, "flush_age").items()}
    if flush:
        with _named_as_flag(f"--{prefix}flush_"):
            arguments["flush"] = FlushLimits(**flush)
    return arguments


def _decoder(name: str, flag: str) -> str | Callable[[Any], Any]:
    if name in DECODERS:
        return name
    if ":" not in name:
        raise ConfigurationError(
            flag, f"unknown format {name!r}; choose {', '.join(DECODERS)} or write package.module:attribute"
        )
    found = load_attribute(name, "decoder", flag)
    if not callable(found):
        raise ConfigurationError(flag, f"{name!r} is a {type(found).__name__}, not a function of an element")
    decoder: Callable[[Any], Any] = found
    return decoder


@contextmanager
def _named_as_flag(prefix: str) -> Iterator[None]:
    """Make errors name the flag that the user wrote, not the argument that it became."""
    try:
        yield
    except ConfigurationError as err:
        raise ConfigurationError(f"{prefix}{err.argument}", err.problem) from None


def _durations(prefix: str, given: Mapping[str, Any], *names: str) -> dict[str, timedelta]:
    durations = {}
    for name in names:
        if name in given:
            try:
                durations[name] = parse_duration(given[name])
            except ValueError as err:
                raise ConfigurationError(f"--{prefix}{name}", str(err)) from None
    return durations
