"""The options of a merge: one description of each, from which Python's arguments, flags and docs are made.

`MergeRecords` has these as its arguments, `MurmurOptions` and the programs as flags, ``murmur create-table`` has some
of them, and the page of options in the docs lists them (``python -m murmur_beam.options`` prints it).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal, get_type_hints

from murmur_beam import option, state
from murmur_beam.buffer import FlushLimits
from murmur_beam.config import Config
from murmur_beam.decode import DECODERS, delimiter_of
from murmur_beam.durations import parse_duration
from murmur_beam.errors import ConfigurationError
from murmur_beam.fields import ESCAPED, Field
from murmur_beam.import_path import kind_of, load_attribute
from murmur_beam.monoids import Monoid, Struct, aggregates_of, by_name
from murmur_beam.option import Option, a_text, decimal, described, text_of
from murmur_beam.state import SpecLike, StoreSpec, require_lasting, spec_from_uri
from murmur_beam.state.adapted import as_shared_spec, is_spec
from murmur_beam.times import TimeFormat, Unit
from murmur_beam.windows import WindowConfig, parse_window

DEFAULT_NAME = "murmur"
FOLD_SHARE = 0.1
FOLD_AGE = timedelta(hours=1)


def as_monoid(monoid: Monoid[Any] | str) -> Monoid[Any]:
    """A monoid, or the one of this name.

    Raises:
        ConfigurationError: it is neither.
    """
    if isinstance(monoid, str):
        return by_name(monoid)
    if isinstance(monoid, Monoid):
        return monoid
    hint = "; write its parentheses" if isinstance(monoid, type) and issubclass(monoid, Monoid) else ""
    raise ConfigurationError("monoid", f"expected a Monoid or a name, got {monoid!r:.80}{hint}")


def as_aggregates(aggregates: Mapping[str, Monoid[Any]] | Sequence[str] | str) -> Struct:
    """The struct of several aggregates: a mapping, or texts as `monoids.aggregates_of` reads them.

    Raises:
        ConfigurationError: it is something else, or an aggregate cannot be used.
    """
    if isinstance(aggregates, str):
        aggregates = [aggregates]
    if isinstance(aggregates, Mapping):
        return Struct(aggregates)
    if not isinstance(aggregates, Sequence) or not all(isinstance(each, str) for each in aggregates):
        raise ConfigurationError("aggregates", f"expected a mapping from names to monoids, got {aggregates!r:.80}")
    return Struct(aggregates_of(aggregates))


def as_window(window: WindowConfig | str, retention: timedelta | None = None) -> WindowConfig:
    """A window, or the one that a text describes, with this retention.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(window, WindowConfig):
        return window
    if isinstance(window, str):
        return parse_window(window, retention)
    raise ValueError(f"expected a WindowConfig or a text such as daily or 15m, got {window!r:.80}")


def as_duration(duration: timedelta | str) -> timedelta:
    """A positive duration, or the one that a text describes.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(duration, str):
        duration = parse_duration(duration)
    if not (isinstance(duration, timedelta) and duration > timedelta(0)):
        raise ValueError(f"expected a positive duration such as 90d, got {duration!r:.80}")
    return duration


def as_store(store: SpecLike | str) -> StoreSpec:
    """A store's spec, or that of a URI or of ``package.module:attribute``.

    Raises:
        ConfigurationError: it is neither.
    """
    if isinstance(store, str):
        return spec_from_uri(store)
    opens = is_spec(store)
    if opens and not isinstance(store, type):
        return as_shared_spec(store, "store")
    hint = "; write its parentheses" if opens else ""
    raise ConfigurationError("store", f"expected a URI or a store spec such as SqliteSpec, got {store!r:.80}{hint}")


def as_decoder(decode: str | Callable[[Any], Any]) -> str | Callable[[Any], Any]:
    """A format, a function, or the function that ``package.module:attribute`` names.

    Raises:
        ConfigurationError: it is something else.
    """
    formats = ", ".join(DECODERS)
    if not isinstance(decode, str):
        if callable(decode):
            return decode
        raise ConfigurationError("decode", f"expected {formats} or a function, got {decode!r:.80}")
    if decode in DECODERS:
        return decode
    if ":" not in decode:
        raise ConfigurationError(
            "decode", f"unknown format {decode!r:.80}; choose {formats} or write package.module:attribute"
        )
    found = load_attribute(decode, "decoder", "decode")
    if not callable(found):
        raise ConfigurationError("decode", f"{decode!r} is a {kind_of(found)}, not a function of an element")
    function: Callable[[Any], Any] = found
    return function


def _instance(kind: type, article: str) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not isinstance(value, kind):
            raise ValueError(f"expected {article}{kind.__name__}, got {value!r:.80}")

    return check


def _zone(zone: str) -> None:
    TimeFormat(None, zone)


def _share(share: float) -> None:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"must be a number from 0 to 1, got {share!r:.80}")


def _boolean(value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"expected True or False, got {value!r:.80}")


@dataclass(eq=False, repr=False, kw_only=True)
class MergeOptions:
    """What to merge and how; None: not given. `murmur_beam.spec.resolve` fills in the defaults."""

    name: Annotated[
        str | None, Option("name of the metrics, also in dead letters", "NAME", check=a_text, default=DEFAULT_NAME)
    ] = field(default=None, kw_only=False)
    key: Annotated[
        Field | None,
        Option(
            "what to count by: a field, or a template such as 'route/{from}-{to}'; repeat it for several keys",
            "FIELD",
            repeated=True,
            more="In Python also a function of the record.",
        ),
    ] = None
    keys: Annotated[
        Callable[[Any], Iterable[Any]] | Iterable[Field] | None,
        Option("several keys at once: a list of fields, or a function that returns the keys", text=False),
    ] = None
    value: Annotated[Field | None, Option("field of the value to fold; not needed to count", "FIELD")] = None
    monoid: Annotated[
        Monoid[Any] | str | None,
        Option(
            "how to fold: sum, 'sum(places=2)', count, min, max, first, ... or package.module:attribute",
            "MONOID",
            check=as_monoid,
            default="sum",
        ),
    ] = None
    aggregates: Annotated[
        Mapping[str, Monoid[Any]] | Sequence[str] | None,
        Option(
            "one of several aggregates of each record, such as revenue=sum:amount or views=count; repeat it, or write "
            "commas between them",
            "NAME=MONOID:FIELD",
            check=as_aggregates,
            repeated=True,
            flag="aggregate",
            more="In Python a mapping from names to monoids, such as ``Sum().of('amount')``. A ``?`` behind the field, "
            "or ``optional=True``, skips the aggregate for records without the field; they are dead letters otherwise.",
        ),
    ] = None
    window: Annotated[
        WindowConfig | str | None,
        Option(
            "length of a time bucket: daily, hourly, minute or such as 15m",
            "WINDOW",
            check=as_window,
            default="one aggregate over all time",
        ),
    ] = None
    retention: Annotated[
        timedelta | str | None,
        Option(
            "skip events older than this, such as 90d",
            "DURATION",
            check=as_duration,
            more="It belongs to a window given as text; a `WindowConfig` has its own.",
        ),
    ] = None
    store: Annotated[
        SpecLike | str | None,
        Option(
            "where the aggregates are kept, such as sqlite:///counts.db or bigtable://project/instance/table",
            "URI",
            check=as_store,
            more="In Python also a spec, such as `SqliteSpec`.",
        ),
    ] = None
    cache: Annotated[
        SpecLike | str | None,
        Option(
            "a copy to keep up to date",
            "URI",
            check=as_store,
            more="It gets the deltas that were merged, and nothing else: fill it with `Cache.repopulate` first if the "
            "store is not empty. Its failures are counted and change nothing, and the guarantee does not cover it. A "
            "table that is appended to has no cache, since a recorded event may have been counted before.",
        ),
    ] = None
    event_id: Annotated[
        Field | None,
        Option(
            "field or template that is the same when an event is delivered again",
            "FIELD",
            more="Required, except for monoids to which a redelivery makes no difference, and for messages that "
            "`ReadFromPubSub` reads ``with_attributes``: these have Pub/Sub's own id, which does not cover a publisher "
            "that retries.",
        ),
    ] = None
    event_time: Annotated[
        Field | None,
        Option("field of the time at which the event happened", "FIELD", default="the element's timestamp"),
    ] = None
    time_unit: Annotated[
        Unit | None,
        Option("unit of Unix times", default="as the number of their digits shows"),
    ] = None
    assume_zone: Annotated[
        str | None,
        Option(
            "zone of times that name none: UTC, +01:00, Europe/Paris",
            "ZONE",
            default="days begin in UTC, and other times without a zone are refused",
            check=_zone,
        ),
    ] = None
    decode: Annotated[
        str | Callable[[Any], Any] | None,
        Option(
            "format of the elements: json, csv, or a function of an element as package.module:attribute",
            "FORMAT",
            as_decoder,
            as_decoder,
            default="bytes and messages are JSON, other elements are records",
        ),
    ] = None
    delimiter: Annotated[
        str | None, Option("between the fields of CSV: one character, or tab", "CHAR", check=delimiter_of, default=",")
    ] = None
    source: Annotated[
        str | None,
        Option(
            "where messages come from, such as projects/P/topics/T: put before their own ids",
            check=a_text,
            more="Pub/Sub's ids (``message:id``) are unique within one topic only.",
        ),
    ] = None
    id_format: Annotated[
        Literal["escaped", "plain"] | None,
        Option(
            "escaped: the parts of a template of ids are kept apart; plain: ids as 0.1.0 wrote them",
            default=ESCAPED,
            more='Escaped, ``{a}-{b}`` of "x-y" and "z" is another id than that of "x" and "y-z". Plain is for tables '
            "that hold such ids already; it also leaves out the ``source``.",
        ),
    ] = None
    config: Annotated[
        Config | None,
        Option(
            "retries, dedup and recorder",
            check=_instance(Config, "a "),
            prefix="",
            more="The recorder gets what Beam's metrics get, on the worker, as a pickled copy: an `InMemory` of the "
            "launching program stays empty.",
        ),
    ] = None
    flush: Annotated[
        FlushLimits | None,
        Option("how much to buffer before writing", check=_instance(FlushLimits, ""), prefix="flush_"),
    ] = None
    fold: Annotated[
        timedelta | str | None,
        Option(
            "fold the rows that were appended to, this long after, such as 10s",
            "DURATION",
            check=as_duration,
            default="not folded here",
            more="For tables that are appended to: a second stage behind the merge, keyed by row, then folds them. "
            "``murmur fold`` does the same from outside. Rows of a few events are not folded.",
        ),
    ] = None
    fold_share: Annotated[
        float | None,
        Option(
            "fold a row when its pending events are at least this share of those folded before",
            "SHARE",
            decimal,
            _share,
            default=text_of(FOLD_SHARE),
            more="A fold that does not remember the row reads all its markers first.",
        ),
    ] = None
    fold_age: Annotated[
        timedelta | str | None,
        Option(
            "fold a row when its pending events are this old, however few they are",
            "DURATION",
            check=as_duration,
            default=text_of(FOLD_AGE),
            more="A row that expires before is not folded.",
        ),
    ] = None
    on_exhausted: Annotated[
        Literal["dead_letter", "raise"] | None,
        Option(
            "what to do with a record whose tries are used up; raise: fail the bundle, so that the runner delivers it "
            "again",
            default="dead_letter",
            more="In both cases bad records become dead letters, and a store that cannot be used as configured "
            "(missing table or permission, another schema) fails the bundle.",
        ),
    ] = None
    unpickle: Annotated[
        bool | None,
        Option(
            "replay dead letters whose element was pickled, too",
            check=_boolean,
            text=False,
            more="Loading a pickle runs the code that its writer put there.",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The options that are given, by name."""
        values = {each.name: getattr(self, each.name) for each in described(MergeOptions)}
        return {name: value for name, value in values.items() if value is not None}


def add_flags(parser: Any, prefix: str = "", *, spelt_twice: bool = False) -> None:
    """Add one flag for each option that can be written as text, all optional.

    Args:
        parser: an `argparse` parser or group.
        prefix: before each name, such as ``murmur_``.
        spelt_twice: also add each flag with hyphens, for parsers that do not accept these by themselves.
    """
    option.add_flags(parser, MergeOptions, prefix, spelt_twice=spelt_twice)


def from_flags(flags: object, prefix: str = "") -> MergeOptions:
    """The options that the flags of `add_flags` give.

    Args:
        flags: an `argparse.Namespace`, or another object with an attribute for each flag.
        prefix: as given to `add_flags`.

    Raises:
        ConfigurationError: a flag that cannot be used, with its name; also a store in memory, which ends with the
            program. In Python, `resolve` accepts it.
    """
    require_lasting(getattr(flags, f"{prefix}store"), f"--{prefix}store")
    values = option.given(flags, MergeOptions, prefix)
    if "key" in values:
        # Beam's options hold a text if they were made in Python and not from a command line.
        key = values.pop("key")
        values["keys"] = [key] if isinstance(key, str) else key
    return MergeOptions(**values)


# ---- docs ----


def described_stores() -> dict[str, type]:
    """The class of each store's specs, by the scheme of its URIs; stores whose packages are missing are left out."""
    found = {}
    for name in state.schemes():
        with suppress(ImportError):
            from_uri = importlib.import_module(f"{state.__name__}.{name}").from_uri
            found[name] = get_type_hints(from_uri)["return"]
    return found


def markdown() -> str:
    """The options of a merge and of the stores' URIs, as tables in Markdown."""
    parts = ["## MergeRecords\n", *_table(MergeOptions, "--")]
    for each in described(MergeOptions):
        if each.inner is not None:
            parts += [f"\n## {each.inner.__name__}\n", f"The argument `{each.name}`: {each.option.help}.\n"]
            parts += _table(each.inner, f"--{each.option.prefix}")
    for scheme, spec in described_stores().items():
        parts += [f"\n## {scheme}:// URIs\n", f"They make a `{spec.__name__}`.\n", *_table(spec, "?")]
    return "\n".join(parts) + "\n"


def _table(cls: type, before: str) -> Iterator[str]:
    rows = [each for each in described(cls) if each.inner is None]
    if not rows:
        yield "They have no options."
        return
    yield from ("| argument | as text | default | meaning |", "|---|---|---|---|")
    for each in rows:
        values = "\\|".join(each.choices) or each.option.metavar
        text = f"`{before}{each.flag}{'=' if before == '?' else ' '}{values}`" if each.option.text else "Python only"
        meaning = f"{each.option.help}. {each.option.more}".strip().replace("``", "`").replace("|", "\\|")
        yield f"| `{each.name}` | {text} | {each.default_text} | {meaning} |"


if __name__ == "__main__":
    print(markdown(), end="")
