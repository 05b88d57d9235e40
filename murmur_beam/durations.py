"""Durations as text, for options and URIs."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """Read ``90d``, ``12h``, ``15m``, ``30s``, ``500ms`` or ``2w``.

    Raises:
        ValueError: the text is something else.
    """
    match = re.fullmatch(r"0*(\d+)(ms|[smhdw])", text.strip(), re.ASCII)
    if not match:
        raise ValueError(f"{text!r:.80} is not a duration; write a number and a unit, such as 90d, 12h, 15m or 30s")
    try:
        # Python's own error for thousands of digits is unclear; twenty digits are too long in any unit.
        return timedelta(**{_UNITS[match[2]]: int(match[1][:20])})
    except OverflowError:
        raise ValueError(f"{text!r:.80} is too long a duration") from None


def format_duration(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads back, such as ``15m``; without fractions of a millisecond."""
    milliseconds = duration // timedelta(milliseconds=1)
    for unit, name in (("w", "weeks"), ("d", "days"), ("h", "hours"), ("m", "minutes"), ("s", "seconds")):
        length = timedelta(**{name: 1}) // timedelta(milliseconds=1)
        if milliseconds and milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms"


def spell_duration(duration: timedelta) -> str:
    """The duration in full, for people, such as ``91d 1h``; without fractions of a millisecond."""
    milliseconds = duration // timedelta(milliseconds=1)
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        count, milliseconds = divmod(milliseconds, timedelta(**{_UNITS[unit]: 1}) // timedelta(milliseconds=1))
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"
