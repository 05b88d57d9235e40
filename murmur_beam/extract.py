"""Makes records from elements: decodes them, finds their parts, lifts the value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard, TypeVar

from murmur_beam.decode import decoder_of
from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.fields import (
    ESCAPED,
    Field,
    Getter,
    ValueField,
    argument_of,
    compile_field,
    compile_id,
    compile_keys,
    compile_values,
)
from murmur_beam.model import Record, check_entity, check_event_id, is_plain_id, is_plain_key, is_representable
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.structs import Struct
from murmur_beam.processor import make_record
from murmur_beam.times import TimeFormat

T = TypeVar("T")


@dataclass(frozen=True)
class Extraction:
    """Where the parts of a record come from. Picklable if the functions are.

    Args:
        keys: a function that returns the keys, or several fields that give one key each.
        value: None only for a monoid that needs no value; for several aggregates, where the value of each is.
        event_id: None only if no id is needed.
        event_time: None for the element's timestamp.
        decode: "json", "csv", a function of the element, or None for `decode_bytes`.
        delimiter: between the fields of CSV; None for a comma.
        times: unit and zone of event times that do not name them.
        source: where messages come from; it becomes part of Pub/Sub's ids, which are unique within one topic only.
        id_format: "escaped", or "plain" for ids as 0.1.0 made them; see `compile_id`.

    Raises:
        ConfigurationError: naming the argument.
    """

    keys: Callable[[Any], Iterable[Any]] | tuple[Field, ...]
    value: Field | tuple[ValueField, ...] | None = None
    event_id: Field | None = None
    event_time: Field | None = None
    decode: str | Callable[[Any], Any] | None = None
    delimiter: str | None = None
    times: TimeFormat = field(default_factory=TimeFormat)
    source: str | None = None
    id_format: str = ESCAPED

    def __post_init__(self) -> None:
        if not (isinstance(self.keys, tuple) or callable(self.keys)):
            raise ConfigurationError("keys", f"expected a function or a tuple of fields, got {self.keys!r:.80}")
        if not (self.source is None or (isinstance(self.source, str) and self.source)):
            raise ConfigurationError("source", f"expected a text such as projects/P/topics/T, got {self.source!r:.80}")
        _Getters(self)


class _Getters:
    """The functions that find the parts of a record; they cannot be pickled.

    Args:
        extraction: where the parts come from.
        exact: keep the text of numbers in JSON.

    Raises:
        ConfigurationError: a part that cannot be used.
    """

    def __init__(self, extraction: Extraction, *, exact: bool = False) -> None:
        self.decode = decoder_of(extraction.decode, extraction.delimiter, exact=exact)
        self.keys = compile_keys(extraction.keys)
        value = extraction.value
        self.value = compile_values(value) if isinstance(value, tuple) else _optional("value", value)
        # The format is checked even if there is no id.
        event_id = "=" if extraction.event_id is None else extraction.event_id
        self.event_id = compile_id(event_id, extraction.id_format, extraction.source)
        self.event_time = _optional("event_time", extraction.event_time)


def _optional(argument: str, field: Field | None) -> Getter | None:
    return None if field is None else compile_field(argument, field)


class RecordHints(NamedTuple):
    """Parts of a record that its dead letter holds, so that they are not extracted again; None if not known."""

    event_id: str | None
    event_time_us: int | None
    keys: tuple[str, ...] | None


_NO_HINTS = RecordHints(None, None, None)


class Rejected(Exception):
    """An element that makes no record; ``__cause__`` is the error.

    Attributes:
        stage: "decode" or "extract".
        hints: the parts of the record that could be found.
        error: the error, which names the argument that failed.
    """

    def __init__(self, stage: str, hints: RecordHints, error: Exception) -> None:
        super().__init__(stage, hints, error)
        self.stage = stage
        self.hints = hints
        self.error = error


class Extractor:
    """Makes records from elements, on a worker.

    Args:
        extraction: where the parts come from.
        monoid: lifts the value.
        need_id: refuse a record without an event id.
        need_time: refuse an element whose timestamp is needed but not set.
    """

    def __init__(self, extraction: Extraction, monoid: Monoid[Any], *, need_id: bool, need_time: bool) -> None:
        self._monoid = monoid
        self._lift = monoid.lift
        self._need_id = need_id
        self._need_time = need_time
        getters = _Getters(extraction, exact=monoid.exact_numbers)
        self._decode = getters.decode
        self._event_id = None if extraction.event_id is None else getters.event_id
        self._event_time = getters.event_time
        self._read_time = extraction.times.reader()
        self._nanoseconds = extraction.times.nanoseconds
        # A monoid that needs no value, such as a count, never looks at one.
        self._value = getters.value if monoid.needs_value else None
        self._parts = _plain_parts(extraction.value, monoid)
        self._keys = getters.keys
        self._keys_argument = argument_of(extraction.keys)
        self._finer = monoid.needs_event_time and self._event_time is not None
        self._names = None if extraction.decode == "csv" or self._finer else _names(extraction, monoid.needs_value)

    def record(self, element: Any, timestamp_us: int, hints: RecordHints = _NO_HINTS) -> Record:
        """Make the record of an element.

        Args:
            element: as it came.
            timestamp_us: the element's own, the event time unless a field holds it; microseconds.
            hints: parts that are not to be extracted.

        Raises:
            Rejected: the element cannot be decoded, or has no usable key, id, time or value.
        """
        part = "decode"
        try:
            decoded = self._decode(element)
            if self._names is not None and hints is _NO_HINTS and type(decoded) is dict:
                plain = self._plain(self._names, decoded, element, timestamp_us)
                if plain is not None:
                    return plain
            part = "event_id"
            event_id = self._event_id_of(decoded, element, hints)
            part = "event_time"
            event_time_us = self._event_time_of(decoded, element, timestamp_us, hints)
            part = self._keys_argument
            keys = hints.keys or self._keys(decoded, element)
            part = "value"
            value = None if self._value is None else self._value(decoded, element)
            ns = self._ns_of(decoded, element, event_time_us) if self._finer else 0
            return make_record(self._monoid, event_id, event_time_us, keys, value, need_id=self._need_id, ns=ns)
        except Exception as err:
            # Not kept in a variable: error and frame would refer to each other, and keep the element alive until the
            # garbage collector runs.
            raise Rejected(
                "decode" if part == "decode" else "extract",
                self._find(element, timestamp_us, hints),
                err if isinstance(err, InvalidRecord) else _explained(part, err),
            ) from err

    def _plain(self, names: _Names, decoded: dict[Any, Any], element: Any, timestamp_us: int) -> Record | None:
        """The record of a dict with plain fields, without the usual checks; None if anything is unusual.

        Without this shortcut a merge takes 13 % more of a client's CPU time (`python -m benchmarks.overhead`).
        """
        key_name, event_id_name, value_name = names
        try:
            entity, event_id = decoded[key_name], decoded[event_id_name]
            if not (type(entity) is str and is_plain_key(entity)):
                return None
            if not (type(event_id) is str and is_plain_id(event_id)):
                return None
            if self._event_time is not None or self._need_time:
                timestamp_us = self._event_time_of(decoded, element, timestamp_us, _NO_HINTS)
            if self._parts is None:
                delta = self._lift(None if value_name is None else decoded[value_name], timestamp_us)
            else:
                deltas = []  # a loop: a list comprehension would take a call more
                for name, lift in self._parts:
                    deltas.append(lift(None if name is None else decoded[name], timestamp_us))
                delta = tuple(deltas)
        except Exception:
            return None
        return event_id, timestamp_us, (entity,), delta

    def _event_id_of(self, decoded: Any, element: Any, hints: RecordHints) -> Any:
        if hints.event_id is not None or self._event_id is None:
            return hints.event_id
        return self._event_id(decoded, element)

    def _event_time_of(self, decoded: Any, element: Any, timestamp_us: int, hints: RecordHints) -> int:
        if hints.event_time_us is not None:
            return hints.event_time_us
        if self._event_time is not None:
            return self._read_time(self._event_time(decoded, element))
        if self._need_time and not is_representable(timestamp_us):
            raise InvalidRecord(
                "event_time", "the element has no timestamp of its own; say where the time is with event_time="
            )
        return timestamp_us

    def _ns_of(self, decoded: Any, element: Any, event_time_us: int) -> int:
        """Nanoseconds of the event time beyond its microsecond; 0 if the time is a dead letter's."""
        assert self._event_time is not None
        time = self._event_time(decoded, element)
        return self._nanoseconds(time) if self._read_time(time) == event_time_us else 0

    def _find(self, element: Any, timestamp_us: int, hints: RecordHints) -> RecordHints:
        """The parts of the record that can be found, for the dead letter."""
        decoded = _or_none(lambda: self._decode(element))
        return RecordHints(
            _or_none(lambda: check_event_id(self._event_id_of(decoded, element, hints))),
            _or_none(lambda: self._event_time_of(decoded, element, timestamp_us, hints)),
            # Only valid keys: an invalid one made the dead letter, and must not keep it from being written.
            _or_none(lambda: tuple(e for e in hints.keys or self._keys(decoded, element) if _is_entity(e))),
        )


class _Names(NamedTuple):
    """Names of the fields that hold a record's parts; value is None if the monoid needs none, or has several."""

    key: str
    event_id: str
    value: str | None


def _names(extraction: Extraction, needs_value: bool) -> _Names | None:
    """The names, if key, event id and value are plain fields; None for a function, a template or a path."""
    keys = extraction.keys
    if not (isinstance(keys, tuple) and len(keys) == 1 and _is_name(keys[0]) and _is_name(extraction.event_id)):
        return None
    value = extraction.value if needs_value else None
    if isinstance(value, tuple):
        is_plain = all(each.field is None or _is_name(each.field) for each in value)
        return _Names(keys[0], extraction.event_id, None) if is_plain else None
    if not (value is None or _is_name(value)):
        return None
    return _Names(keys[0], extraction.event_id, value)


def _plain_parts(
    value: Field | tuple[ValueField, ...] | None, monoid: Monoid[Any]
) -> list[tuple[Any, Callable[[Any, int], Any]]] | None:
    """Field and `Monoid.lift` of each of several aggregates; None of one."""
    if not isinstance(value, tuple):
        return None
    assert isinstance(monoid, Struct)
    return [(each.field, part.lift) for each, part in zip(value, monoid.parts.values(), strict=True)]


def _is_name(field: object) -> TypeGuard[str]:
    return isinstance(field, str) and field.isidentifier()


def _or_none(function: Callable[[], T]) -> T | None:
    try:
        return function()
    except Exception:
        return None


def _is_entity(entity: object) -> bool:
    return _or_none(lambda: check_entity(entity)) is not None


def _explained(part: str, err: Exception) -> InvalidRecord:
    """An exception of a user's function, with the name of its argument."""
    return InvalidRecord(part, f"{type(err).__name__}: {text_of(err)}")


def text_of(err: BaseException) -> str:
    """The text of an error; a note if a user's class fails to make one."""
    try:
        return str(err)
    except Exception as second:
        return f"(its text cannot be shown: {type(second).__name__})"
