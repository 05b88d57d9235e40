"""Reads event times in these forms, as microseconds since the Unix epoch.

2013-01-01T05:15:00Z          RFC 3339; also with an offset, a blank for the T, a comma, without seconds
2013-01-01 05:15:00.45 UTC    BigQuery's form; GMT as well
2013-01-01 05:15:00+00        PostgreSQL's form
2013-01-01                    a day: its midnight in UTC, or in ``assume_zone``
2013-01-01T05:15:00           without a zone: refused unless ``assume_zone`` is given
1357017300                    Unix time, as number or text; seconds, milli-, micro- or nanoseconds
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any, Literal
from zoneinfo import ZoneInfo

from murmur_beam.errors import ConfigurationError, InvalidRecord
from murmur_beam.model import from_us, is_representable, plain, to_us

Unit = Literal["s", "ms", "us", "ns"]
UNITS: dict[str, int] = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
"""Nanoseconds in each unit of Unix time."""

# By the digits before the point. Each entry covers the years 1973 (or 2001) to 2286. A number of any other length could
# also be a date without dashes, such as 20130101051500.
_UNIT_OF_DIGITS = {9: "s", 10: "s", 11: "s", 13: "ms", 16: "us", 19: "ns"}
_MAX_DIGITS = 30
_EXACT = Context(prec=2_000, rounding=ROUND_FLOOR)

_NAIVE_EPOCH = datetime(1970, 1, 1)
_TEXT = re.compile(
    r"(\d{4,6})-(\d\d)-(\d\d)"
    r"(?:[T ]([01]\d|2[0-3]):(\d\d)(?::(\d\d)(?:[.,](\d{1,18}))?)?"
    r" ?(Z|UTC|GMT|[+-]\d\d(?::?\d\d(?::?\d\d)?)?)?)?",
    re.ASCII | re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?(\d+)(\.\d*)?(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)?:?(\d\d)?", re.ASCII)


@dataclass(frozen=True)
class TimeFormat:
    """Unit and zone that are assumed for times that do not state them.

    Args:
        unit: of Unix time: s, ms, us or ns. None: inferred from the number of digits.
        zone: of a text or datetime without one: UTC, an offset such as +01:00, or a name such as Europe/Paris. None:
            a day begins in UTC, and a time of day is refused.

    Raises:
        ConfigurationError: the unit or the zone is unknown.
    """

    unit: str | None = None
    zone: str | None = None

    def __post_init__(self) -> None:
        if self.unit is not None and self.unit not in UNITS:
            raise ConfigurationError("time_unit", f"expected {', '.join(UNITS)}, got {self.unit!r:.80}")
        _zone_of(self.zone)

    def reader(self) -> Callable[[Any], int]:
        """The function that reads a time: microseconds since the Unix epoch. Finer digits are cut off; a float, which
        is seldom exact, is rounded.

        The function raises InvalidRecord for a value that is not a time, has no zone, or lies outside the years 1 to
        9999.
        """
        unit, zone = self.unit, _zone_of(self.zone)
        if unit is None and zone is None:
            return event_time_us
        return lambda value: _read(value, unit, zone)[0]

    def nanoseconds(self, value: Any) -> int:
        """The nanoseconds that `reader` cuts off, 0 to 999, to order events within one microsecond.

        Raises:
            InvalidRecord: as in `reader`.
        """
        return _read(value, self.unit, _zone_of(self.zone))[1]


def event_time_us(value: Any) -> int:
    """Read a time without assumptions; see `TimeFormat.reader`.

    Raises:
        InvalidRecord: the value is not a time, has no zone, or lies outside the years 1 to 9999.
    """
    # Python reads the common forms ten times as fast as the rest of this module.
    if type(value) is datetime:
        return to_us(value)
    if type(value) is str and len(value) in (20, 24, 27) and value[10] == "T" and value[-1] == "Z":
        try:
            since = datetime.fromisoformat(value[:-1]) - _NAIVE_EPOCH
        except (ValueError, TypeError):
            pass
        else:
            # Versions of Python differ in the other forms that they read, such as weeks and hour 24.
            if value[4:8:3] == "--" and value[11:13] != "24":
                return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return _read(value, None, None)[0]


def parse_rfc3339(text: str) -> datetime:
    """Read a time of day with a zone, in the text forms of this module; the result is in UTC, to the microsecond.

    Raises:
        InvalidRecord: the text is something else, or has no zone.
    """
    match = _TEXT.fullmatch(text)
    if match is None or match[4] is None:
        raise _not_a_time(text)
    if match[8] is None:
        raise InvalidRecord("event_time", f"{text!r:.80} has no time zone; add Z or an offset such as +01:00")
    return from_us(_read_text(text, None, None)[0])


def _read(value: Any, unit: str | None, zone: tzinfo | None) -> tuple[int, int]:
    """Microseconds, and the nanoseconds beyond them."""
    if isinstance(value, str):
        return _read_text(value, unit, zone)
    if isinstance(value, datetime):
        if value != value:  # pandas' NaT
            raise InvalidRecord("event_time", f"expected a time, got {value!r:.80}")
        # The datetime classes of pandas and Google's clients hold nanoseconds too.
        finer = getattr(value, "nanosecond", 0)
        if value.utcoffset() is None and zone is not None:
            value = value.replace(tzinfo=zone)
        return to_us(value), finer % 1_000
    if isinstance(value, date):
        return to_us(datetime(value.year, value.month, value.day, tzinfo=zone or timezone.utc)), 0
    if getattr(getattr(value, "dtype", None), "kind", None) == "M":
        return _read_text(str(value), unit, zone)
    number = plain(value)
    if isinstance(number, (int, float, Decimal)) and not isinstance(number, bool):
        return _in_years(_unix_ns(number, unit), number)
    if isinstance(micros := getattr(value, "micros", None), int):  # Beam
        return _in_years(micros * 1_000, value)
    seconds, nanos = getattr(value, "seconds", None), getattr(value, "nanos", None)
    if isinstance(seconds, int) and isinstance(nanos, int):  # protobuf
        return _in_years(seconds * 1_000_000_000 + nanos, value)
    raise InvalidRecord(
        "event_time", f"expected a datetime, RFC 3339 text or Unix time, got {type(value).__name__}: {value!r:.80}"
    )


def _read_text(text: str, unit: str | None, zone: tzinfo | None) -> tuple[int, int]:
    text = text.strip(" ")
    match = _TEXT.fullmatch(text)
    if match is None:
        return _read_number(text, unit)
    year, month, day, hour, minute, second, fraction, written = match.groups()
    if written is not None:
        zone = _offset(written, text)
    elif hour is None:
        zone = zone or timezone.utc
    elif zone is None:
        raise InvalidRecord(
            "event_time",
            f"{text!r:.80} has no time zone; add Z or an offset such as +01:00, or set the zone with "
            "assume_zone (--assume_zone)",
        )
    ns = int(f"{fraction or '0':0<9}"[:9])
    leap = second == "60"
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), 59 if leap else int(second or 0),
            tzinfo=zone,
        )  # fmt: skip
        time_us = to_us(moment) + ns // 1_000
    except (ValueError, OverflowError) as err:
        if not 1 <= int(year) <= 9999:
            raise InvalidRecord("event_time", f"{text!r:.80} lies outside the years 1 to 9999") from None
        raise InvalidRecord("event_time", f"{text!r:.80}: {err}") from None
    if leap:
        # A leap second is the last of its day in UTC; it stays in that day, hour and minute.
        if (time_us // 1_000_000 + 1) % 86_400:
            raise InvalidRecord("event_time", f"{text!r:.80}: second 60 exists only before midnight in UTC")
        return time_us - ns // 1_000 + 999_999, 999
    return time_us, ns % 1_000


def _read_number(text: str, unit: str | None) -> tuple[int, int]:
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > _MAX_DIGITS:
        raise _not_a_time(text)
    number = Decimal(text)
    if unit is None and number.adjusted() < 8:
        raise InvalidRecord(
            "event_time", f"{text!r:.80} may be a date or Unix time; set the unit with time_unit (--time_unit s)"
        )
    return _in_years(_unix_ns(number, unit), text)


def _unix_ns(number: int | float | Decimal, unit: str | None) -> int:
    """Unix time in nanoseconds. A float is rounded to the microsecond, since it seldom holds one exactly."""
    exact = Decimal(number) if not isinstance(number, int) or number.bit_length() < 256 else Decimal("Infinity")
    if not exact.is_finite():
        shown = number if not isinstance(number, int) else "an integer of thousands of digits"
        raise InvalidRecord("event_time", f"expected a finite number of seconds, got {shown}")
    digits = max(exact.adjusted() + 1, 1) if exact else 1
    if digits > _MAX_DIGITS:
        raise InvalidRecord("event_time", f"{number!s:.80} lies outside the years 1 to 9999 in UTC")
    if unit is None:
        unit = "s" if digits < 9 else _UNIT_OF_DIGITS.get(digits)
        if unit is None:
            raise InvalidRecord(
                "event_time",
                f"{number!s:.80} is not clearly Unix time: it has {digits} digits, where seconds have up to 11, "
                "milliseconds 13, microseconds 16 and nanoseconds 19; set the unit with time_unit (--time_unit ms)",
            )
    if isinstance(number, float):
        return round(number * (UNITS[unit] / 1_000)) * 1_000
    return int(_EXACT.to_integral_value(_EXACT.multiply(exact, Decimal(UNITS[unit]))))


def _in_years(time_ns: int, shown: Any) -> tuple[int, int]:
    time_us, finer = divmod(time_ns, 1_000)
    if not is_representable(time_us):
        raise InvalidRecord("event_time", f"{shown!r:.80} lies outside the years 1 to 9999 in UTC")
    return time_us, finer


def _not_a_time(text: str) -> InvalidRecord:
    return InvalidRecord("event_time", f"{text!r:.80} is not an RFC 3339 time, such as 2013-01-01T05:15:00Z")


def _zone_of(zone: str | None) -> tzinfo | None:
    if zone is None:
        return None
    try:
        if _OFFSET.fullmatch(zone) or zone.upper() in ("UTC", "GMT", "Z"):
            return _offset(zone, zone)
        return ZoneInfo(zone)
    except Exception:  # a TypeError, ValueError, KeyError or OSError, depending on the fault of the name
        raise ConfigurationError(
            "assume_zone",
            f"unknown time zone {zone!r:.80}; write UTC, an offset such as +01:00 or a name such as "
            "Europe/Paris (names need the operating system's time zone data, or: pip install tzdata)",
        ) from None


def _offset(written: str, text: str) -> tzinfo:
    match = _OFFSET.fullmatch(written)
    if match is None:  # Z, UTC, GMT
        return timezone.utc
    sign, hours, minutes, seconds = match.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes or 0), seconds=int(seconds or 0))
    if offset >= timedelta(days=1) or int(minutes or 0) > 59 or int(seconds or 0) > 59:
        raise InvalidRecord("event_time", f"{text!r:.80}: {written} is not an offset")
    return timezone(-offset if sign == "-" else offset)
