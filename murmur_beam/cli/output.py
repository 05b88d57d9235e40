"""Output of the ``murmur`` command: aligned tables for people, lossless JSON for programs."""

from __future__ import annotations

import base64
import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple
from unicodedata import category, east_asian_width

from murmur_beam.model import is_representable, rfc3339
from murmur_beam.monoids.base import Monoid, canonical_json
from murmur_beam.monoids.structs import Struct
from murmur_beam.monoids.timed import Timed

_MAX_TEXT = 60
"""Longest value, in characters, that tables show in full."""
_BAR, _LEAST_BAR = 30, 10
"""Longest bar, in characters, and the length to which bars shrink before texts are cut."""
_LEAST_TEXT = 12
"""Columns that a text keeps on any terminal, however narrow."""
_BLOCK = 1_000
"""Rows of a table that are read before the first is printed, to find the widths of its columns."""
_GAP = "  "
_CUT = "..."


# ---- for programs ----


def print_json(**document: Any) -> None:
    """Print a JSON document on one line."""
    print(json.dumps(document))


def json_value(monoid: Monoid[Any], state: Any) -> Any:
    """A lossless JSON value of what a monoid presents of an aggregate.

    An aggregate that is presented as it is: its stored bytes as JSON if they are JSON, and as base64 otherwise. Any
    other result: see `json_of`.
    """
    if state is None:
        return None
    if isinstance(monoid, Struct):
        return {name: json_value(part, each) for (name, part), each in zip(monoid.parts.items(), state, strict=True)}
    result = monoid.present(state)
    if isinstance(result, Timed):
        return {name: part for name, part in result._asdict().items() if name != "ns" or part}
    if result is not state:
        return json_of(result)
    data = monoid.encode(state)
    with suppress(ValueError):
        document = json.loads(data)
        if canonical_json(document).encode("utf-8") == data:
            return document
    return {"base64": base64.b64encode(data).decode("ascii")}


def json_of(result: Any) -> Any:
    """A lossless JSON value of a Python value: itself if JSON has it; the digits of a decimal as text; an object for a
    named tuple; a list for another tuple or a set, in order; bytes as base64; and for anything else its text, such as
    ``{"text": "1/3"}`` for a fraction."""
    if result is None or isinstance(result, (bool, int, str)) or (isinstance(result, float) and math.isfinite(result)):
        return result
    if isinstance(result, Decimal) and result.is_finite():
        return str(result)
    if isinstance(result, tuple) and hasattr(result, "_asdict"):
        result = result._asdict()
    if isinstance(result, (list, tuple)):
        return [json_of(item) for item in result]
    if isinstance(result, (set, frozenset)):
        return sorted(map(json_of, result), key=canonical_json)
    if isinstance(result, dict) and all(isinstance(key, (str, float)) for key in result):
        return {str(key): json_of(value) for key, value in result.items()}
    if isinstance(result, bytes):
        return {"base64": base64.b64encode(result).decode("ascii")}
    return {"text": str(result)}


# ---- for people ----


def human(value: Any) -> str:
    """A value on one line; a long set or text is cut short."""
    if value is None:
        return "-"
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, (set, frozenset)):
        return _joined(sorted(value, key=lambda item: (type(item).__name__, item)))
    if isinstance(value, list) and value and all(hasattr(item, "_asdict") for item in value):
        return _joined(value)
    if isinstance(value, dict) and value and not any(isinstance(key, str) for key in value):
        return ", ".join(f"{key}: {human(item)}" for key, item in value.items())
    if isinstance(value, Timed):
        us = value.event_time_us
        when = rfc3339(us) if is_representable(us) else f"{us:,} us"
        when = when.replace("Z", f"{value.ns:03}Z") if value.ns else when.replace(".000000Z", "Z")
        return f"{'null' if value.value is None else _short(value.value)} at {when}"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        if type(value).__str__ is not tuple.__str__:
            return _printable(str(value))
        value = value._asdict()
    try:
        text = canonical_json(value)
    except (TypeError, ValueError):
        text = canonical_json(json_of(value)) if isinstance(value, (dict, list, tuple)) else str(value)
    return _printable(text)


def _joined(items: Sequence[Any]) -> str:
    if not items:
        return "(empty)"
    shown: list[str] = []
    length = 0
    for item in map(_short, items):
        length += len(item) + 2
        if length > _MAX_TEXT and shown:
            return f"{', '.join(shown)}, ... ({len(items):,} items)"
        shown.append(item)
    return ", ".join(shown)


def _short(value: Any) -> str:
    text = human(value)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text):,} characters)"


def _printable(text: str) -> str:
    """Escape control characters, and characters that the terminal cannot show: a name in the data must not move the
    cursor or clear the screen.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class Bar(NamedTuple):
    """A bar of a diagram.

    Attributes:
        share: length as a part of the longest bar's, from -1 to 1.
    """

    share: float

    def drawn(self, longest: int) -> str:
        """Draw the bar: at least one character unless it is zero, if there is room; minus signs if it is negative."""
        if not (self.share and longest):
            return ""
        return ("-" if self.share < 0 else "#") * max(1, round(longest * abs(self.share)))


def bars(values: Sequence[Any]) -> list[Bar]:
    """A bar for each number; an empty one for an infinite one, and for a single one, which has nothing to be compared
    with."""
    numbers = [value if len(values) > 1 and _is_finite(value) else 0 for value in values]
    largest = max(map(abs, numbers), default=0) or 1
    return [Bar(float(number / largest)) for number in numbers]


def _is_finite(value: Any) -> bool:
    # Not math.isfinite, which cannot take an int beyond the range of a float.
    return isinstance(value, (int, float, Decimal)) and abs(value) != math.inf


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print aligned columns, numbers to the right; block by block, so that a long list begins to appear at once.

    Lines fit the terminal's width: bars shrink first, then texts are cut, numbers never. Output that goes to a file or
    pipe is not cut.
    """
    rows = iter(rows)
    titles = [[*header]]
    natural = [0] * len(header)
    limit = columns()
    while block := list(islice(rows, _BLOCK)):
        is_number, is_bar = (
            [any(isinstance(cell, kinds) for cell in cells) for cells in zip(*block, strict=True)]
            for kinds in ((int, float, Decimal), Bar)
        )
        lines = [*titles, *([_cell(cell) for cell in row] for row in block)]
        titles = []
        natural = [max(w, *map(_width, cells)) for w, cells in zip(natural, zip(*lines, strict=True), strict=True)]
        widths = natural if limit is None else _fitting(natural, is_number, is_bar, limit)
        for n, line in enumerate(lines, len(block) - len(lines)):
            padded = []
            for i, (text, width) in enumerate(zip(line, widths, strict=True)):
                if n >= 0 and isinstance(block[n][i], Bar):
                    text = block[n][i].drawn(width)
                elif not is_number[i]:
                    text = _cut(text, width)
                blanks = " " * (width - _width(text))
                padded.append(blanks + text if is_number[i] else text + blanks)
            print(_GAP.join(padded).rstrip())


def columns() -> int | None:
    """Width of the terminal that output goes to; None if it goes to a file or pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _cell(value: Any) -> str:
    return value.drawn(_BAR) if isinstance(value, Bar) else human(value)


def _fitting(natural: Sequence[int], is_number: Sequence[bool], is_bar: Sequence[bool], limit: int) -> list[int]:
    """Widths of the columns of a table that is at most ``limit`` wide."""
    widths = [*natural]
    bars = [i for i, bar in enumerate(is_bar) if bar]
    texts = [i for i, other in enumerate(map(max, is_number, is_bar)) if not other]
    over = sum(widths) + len(_GAP) * (len(widths) - 1) - limit
    # The widest column that can still shrink loses one; bars shrink before texts.
    for some, least in ((bars, _LEAST_BAR), (texts, _LEAST_TEXT), (bars, 0)):
        while over > 0 and some and max(widths[i] for i in some) > least:
            widths[max(some, key=widths.__getitem__)] -= 1
            over -= 1
    return widths


def _cut(text: str, width: int) -> str:
    """Cut the middle out of a text that is too wide: keys that begin alike often end differently."""
    if _width(text) <= width:
        return text
    room = width - len(_CUT)
    left, right = 0, len(text)
    while left < right and _width(text[: left + 1]) <= room - room // 2:
        left += 1
    while right > left and _width(text[right - 1 :]) <= room // 2:
        right -= 1
    while right < len(text) and not _width(text[right]):  # a mark without its letter
        right += 1
    return text[:left] + _CUT + text[right:]


def _width(text: str) -> int:
    """Columns that a text occupies on a terminal: two for a wide East Asian character, none for a combining mark."""
    if text.isascii():
        return len(text)
    return sum(0 if category(c) in ("Mn", "Me", "Cf") else 2 if east_asian_width(c) in "WF" else 1 for c in text)
