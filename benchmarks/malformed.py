"""Malformed records, by the kind of their fault, with some good records among them.

A record counts ``n`` for a ``page`` on the day of ``at``, once for each ``id``. Everything is made from the record's
number, so neither the records nor the expected counts need to be kept.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
GOOD_EVERY = 32
"""One record of this many is good."""
AGAIN_EVERY = 4
"""One good record of this many repeats the one before it."""

_FIRST_DAY = date(2024, 1, 1)
_DAYS = 60
_PAGES = (*(f"page/{i}" for i in range(90)), "página", "ページ", "страница", "page 😀", "a,b", 'say "page"', "0")
_AT = "2024-01-02T03:04:05Z"

Make = Callable[[int], bytes]


class Counted(NamedTuple):
    """What a good record counts.

    Attributes:
        event_id: its id.
        page: the page that it counts for.
        day: of its time.
        n: the number that it adds.
    """

    event_id: str
    page: str
    day: date
    n: int


class Made(NamedTuple):
    """One record.

    Attributes:
        kind: its name.
        data: the bytes that are delivered.
        counted: None for a bad record.
    """

    kind: str
    data: bytes
    counted: Counted | None


class Format(NamedTuple):
    """The kinds of one format.

    Attributes:
        decode: the argument of `MergeRecords`.
        bad: by the name of the kind, a function that makes a record from its number.
        good: by the name of the kind, a function that makes a record from its count.
    """

    decode: str
    bad: Mapping[str, Make]
    good: Mapping[str, Callable[[Counted], bytes]]

    @property
    def kinds(self) -> int:
        """Number of kinds, good and bad."""
        return len(self.bad) + len(self.good)

    def records(self, first: int, last: int) -> Iterator[Made]:
        """The records of these numbers, without the last."""
        bad, good = list(self.bad.items()), list(self.good.items())
        for i in range(first, last):
            number, rest = divmod(i, GOOD_EVERY)
            if rest == 0:
                number -= number % AGAIN_EVERY == AGAIN_EVERY - 1
                counted = _counted(self.decode, number)
                kind, write = good[number % len(good)]
                yield Made(kind, write(counted), counted)
            else:
                # The bad records are numbered consecutively.
                kind, make = bad[(i - number - 1) % len(bad)]
                yield Made(kind, make(i), None)

    def smallest(self) -> int:
        """Number of records that have each kind at least once."""
        return GOOD_EVERY * max(len(self.good) * AGAIN_EVERY, len(self.bad) // (GOOD_EVERY - 1) + 1)


def _counted(decode: str, number: int) -> Counted:
    day = _FIRST_DAY + timedelta(days=number % _DAYS)
    return Counted(f"{decode}-{number}", _PAGES[number % len(_PAGES)], day, number % 1000 - 300)


# ---- JSON ----


def _json(i: int, **changed: str | None) -> bytes:
    """A record in which some fields have another JSON text, or are left out."""
    fields: dict[str, str | None] = {"id": f'"bad-{i}"', "page": '"trap"', "n": "1", "at": f'"{_AT}"'}
    fields.update(changed)
    members = [f'"{name}": {text}' for name, text in fields.items() if text is not None]
    return ("{" + ", ".join(members) + "}").encode("utf-8")


def _changed(name: str, text: str | None) -> Make:
    return lambda i: _json(i, **{name: text})


def _cut(behind: bytes, more: int = 0) -> Make:
    """The record up to where ``behind`` begins, and ``more`` bytes of it."""

    def make(i: int) -> bytes:
        whole = _json(i, page='"tr\\u00e4p é"')
        return whole[: whole.index(behind) + more]

    return make


def _in_page(data: bytes) -> Make:
    return lambda i: _json(i).replace(b"trap", b"tr" + data + b"ap")


def _noise(i: int) -> bytes:
    # The first byte is neither JSON nor UTF-8.
    return b"\xff" + random.Random(i).randbytes(200)


_BAD_JSON: dict[str, Make] = {
    "empty": lambda i: b"",
    "blank": lambda i: b" \t" * (i % 7 + 1),
    "noise": _noise,
    "compressed": lambda i: gzip.compress(_json(i), 1, mtime=0),
    "NULs": lambda i: bytes(i % 50 + 1),
    "not UTF-8: Latin-1": _in_page(b"\xe9"),
    "not UTF-8: a byte that continues nothing": _in_page(b"\x80"),
    "not UTF-8: an overlong form": _in_page(b"\xc0\xaf"),
    "not UTF-8: half a surrogate pair": _in_page(b"\xed\xa0\x80"),
    "not UTF-8: above the last code point": _in_page(b"\xf5\x80\x80\x80"),
    "UTF-16 with a mark": lambda i: _json(i).decode().encode("utf-16"),
    "UTF-16 without a mark": lambda i: _json(i).decode().encode("utf-16-be"),
    "UTF-32": lambda i: _json(i).decode().encode("utf-32-le"),
    "cut in a name": _cut(b'"page"', 3),
    "cut behind a name": _cut(b'"page"', 6),
    "cut behind a colon": _cut(b'"page":', 7),
    "cut in a text": _cut(b'"tr', 2),
    "cut in an escape": _cut(b"\\u00e4", 4),
    "cut in a character": _cut("é".encode(), 1),
    "cut behind a comma": _cut(b', "at"', 1),
    "cut before the last brace": lambda i: _json(i)[:-1],
    "cut anywhere": lambda i: _json(i)[: 1 + i % 60],
    "the first half is missing": lambda i: _json(i)[i % 40 + 2 :],
    "arrays nested too deeply": lambda i: b"[" * 5_000 + b"]" * 5_000,
    "objects nested too deeply": lambda i: _json(i, n='{"a":' * 3_000 + "1" + "}" * 3_000),
    "nested deeply and never closed": lambda i: b'{"id":' * 3_000,
    "a mark behind the first brace": lambda i: b"{" + BOM + _json(i)[1:],
    "a mark before a value": _changed("n", "\ufeff1"),
    "a mark at the end": lambda i: _json(i) + BOM,
    "an array": lambda i: b"[" + _json(i) + b"]",
    "a text": lambda i: json.dumps(_json(i).decode()).encode(),
    "a number": lambda i: str(i).encode(),
    "null": lambda i: b"null",
    "true": lambda i: b"true",
    "NaN alone": lambda i: b"NaN",
    "two objects": lambda i: _json(i) + _json(i),
    "two objects in two lines": lambda i: _json(i) + b"\n" + _json(i),
    "a comma too many": lambda i: _json(i)[:-1] + b",}",
    "a comma missing": lambda i: _json(i).replace(b", ", b" ", 1),
    "single quotes": lambda i: _json(i).replace(b'"', b"'"),
    "names without quotes": lambda i: _json(i).replace(b'"page"', b"page"),
    "a comment": lambda i: _json(i) + b" // not JSON",
    "a control character in a text": _in_page(b"\x01"),
    "a line end in a text": _in_page(b"\n"),
    "an unknown escape": _in_page(b"\\x41"),
    "an escape of too few digits": _in_page(b"\\u12"),
    "a number with a leading zero": _changed("n", "007"),
    "a number with a plus": _changed("n", "+7"),
    "a hexadecimal number": _changed("n", "0x7"),
    "a name twice": lambda i: _json(i)[:-1] + b', "page": "other"}',
    "half a surrogate pair in the key": _changed("page", '"\\ud800"'),
    "half a surrogate pair in the id": _changed("id", '"\\udfff x"'),
    "no id": _changed("id", None),
    "an empty id": _changed("id", '""'),
    "id is null": _changed("id", "null"),
    "id is true": _changed("id", "true"),
    "id is NaN": _changed("id", "NaN"),
    "id is an array": _changed("id", "[1]"),
    "id in other letters": lambda i: _json(i).replace(b'"id"', b'"ID"'),
    "no key": _changed("page", None),
    "an empty key": _changed("page", '""'),
    "key is null": _changed("page", "null"),
    "key is NaN": _changed("page", "NaN"),
    "key is an object": _changed("page", '{"page": "trap"}'),
    "key too long": lambda i: _json(i, page=f'"{"x" * 4_001}"'),
    "key too long in bytes": lambda i: _json(i, page=f'"{"é" * 2_001}"'),
    "no value": _changed("n", None),
    "value is null": _changed("n", "null"),
    "value is true": _changed("n", "true"),
    "value is an array": _changed("n", "[1]"),
    "value is a fraction": _changed("n", "1.5"),
    "value is NaN": _changed("n", "NaN"),
    "value is infinite": _changed("n", "-Infinity"),
    "value is infinite by its exponent": _changed("n", "1e999"),
    "value of 65 bits": _changed("n", str(2**63)),
    "value of 5,000 digits": _changed("n", "9" * 5_000),
    "value is a word": _changed("n", '"many"'),
    "value is an empty text": _changed("n", '""'),
    "value with a thousands separator": _changed("n", '"1,000"'),
    "value with an underscore": _changed("n", '"1_000"'),
    "value in Arabic digits": _changed("n", '"\u0663"'),
    "no time": _changed("at", None),
    "an empty time": _changed("at", '""'),
    "time is null": _changed("at", "null"),
    "time is an object": _changed("at", "{}"),
    "time is a word": _changed("at", '"yesterday"'),
    "time without a zone": _changed("at", '"2024-01-02T03:04:05"'),
    "month 13": _changed("at", '"2024-13-02T03:04:05Z"'),
    "30 February": _changed("at", '"2024-02-30T03:04:05Z"'),
    "hour 25": _changed("at", '"2024-01-02T25:04:05Z"'),
    "year 0": _changed("at", '"0000-01-02T03:04:05Z"'),
    "year 10000": _changed("at", '"10000-01-02T03:04:05Z"'),
    "before year 1 by its zone": _changed("at", '"0001-01-01T00:00:00+10:00"'),
    "time is NaN": _changed("at", "NaN"),
    "time is infinite": _changed("at", "Infinity"),
    "time of fourteen digits": _changed("at", "20240102030405"),
    "Unix time of 400 digits": _changed("at", "1" + "0" * 400),
}


def _unix_ns(day: date) -> int:
    return ((day - date(1970, 1, 1)).days * 86_400 + 43_200) * 10**9


def _good_json(counted: Counted, **changed: object) -> bytes:
    event_id, page, day, n = counted
    row = {"id": event_id, "page": page, "n": n, "at": f"{day}T12:00:00Z", **changed}
    return json.dumps(row, ensure_ascii=False).encode("utf-8")


JSON = Format(
    "json",
    _BAD_JSON,
    {
        "good": _good_json,
        "good, with a mark first": lambda counted: BOM + _good_json(counted),
        "good, with blanks around": lambda counted: b" \t" + _good_json(counted) + b" \n",
        "good, its value as text": lambda counted: _good_json(counted, n=str(counted.n)),
        "good, its time in Unix nanoseconds": lambda counted: _good_json(counted, at=_unix_ns(counted.day)),
        "good, all in escapes": lambda counted: json.dumps(json.loads(_good_json(counted))).encode("ascii"),
        "good, with fields of no use": lambda counted: _good_json(counted, other=[None, {"page": "trap"}], ID="trap"),
    },
)

# ---- CSV ----

HEADER = b"id,page,n,at"


def _csv(i: int, *, header: bytes = HEADER, **changed: str) -> bytes:
    fields = {"id": f"bad-{i}", "page": "trap", "n": "1", "at": _AT, **changed}
    return header + b"\n" + ",".join(fields.values()).encode("utf-8")


def _cell(name: str, text: str) -> Make:
    return lambda i: _csv(i, **{name: text})


def _headed(header: bytes) -> Make:
    return lambda i: _csv(i, header=header)


_BAD_CSV: dict[str, Make] = {
    "empty": lambda i: b"",
    "blank": lambda i: b" \n" * (i % 7 + 1),
    "noise": _noise,
    "a header and no record": lambda i: HEADER + b"\n",
    "a header alone": lambda i: HEADER,
    "two records": lambda i: _csv(i) + b"\n" + _csv(i).split(b"\n")[1],
    "three records": lambda i: _csv(i) + b"\nbad-x,trap,1," + _AT.encode() + b"\nbad-y,trap,1," + _AT.encode(),
    "too few fields": lambda i: _csv(i).rpartition(b",")[0],
    "one field": lambda i: HEADER + b"\nbad-" + str(i).encode(),
    "too many fields": lambda i: _csv(i) + b",more",
    "an open quote": _cell("page", '"trap'),
    "an open quote at the end": lambda i: _csv(i) + b',"',
    "an open quote in the header": _headed(b'id,"page,n,at'),
    "text behind a quote": _cell("page", '"tr"ap'),
    "quotes escaped by a backslash": _cell("page", '"tr\\"ap"'),
    "a NUL in a number": _cell("n", "1\x00"),
    "NULs": lambda i: bytes(i % 50 + 1),
    "line ends that CSV does not have": lambda i: _csv(i).replace(b"\n", "\u2028".encode()),
    "a form feed for a line end": lambda i: _csv(i).replace(b"\n", b"\x0c"),
    "semicolons": lambda i: _csv(i).replace(b",", b";"),
    "tabs": lambda i: _csv(i).replace(b",", b"\t"),
    "not UTF-8: Latin-1": lambda i: _csv(i).replace(b"trap", b"tr\xe9ap"),
    "not UTF-8: in the header": _headed(b"id,page,n,at\xff"),
    "UTF-16 with a mark": lambda i: _csv(i).decode().encode("utf-16"),
    "UTF-16 without a mark": lambda i: _csv(i).decode().encode("utf-16-le"),
    "a mark in the header": _headed(b"id," + BOM + b"page,n,at"),
    "a header without the id": _headed(b"no,page,n,at"),
    "a header without the key": _headed(b"id,Page,n,at"),
    "a header without the value": _headed(b"id,page,N,at"),
    "a header without the time": _headed(b"id,page,n, at"),
    "a header that names a field twice": lambda i: _csv(i, header=HEADER + b",page") + b",other",
    "an empty header": _headed(b""),
    "an empty id": _cell("id", ""),
    "an empty key": _cell("page", ""),
    "an empty key in quotes": _cell("page", '""'),
    "key too long": _cell("page", "x" * 4_001),
    "an empty value": _cell("n", ""),
    "value is a word": _cell("n", "many"),
    "value is a fraction": _cell("n", "1.5"),
    "value with a thousands separator": _cell("n", '"1,000"'),
    "value with an underscore": _cell("n", "1_000"),
    "value in Arabic digits": _cell("n", "\u0663"),
    "value is NaN": _cell("n", "NaN"),
    "value of 65 bits": _cell("n", str(2**63)),
    "value of 5,000 digits": _cell("n", "9" * 5_000),
    "an empty time": _cell("at", ""),
    "time is a word": _cell("at", "yesterday"),
    "time without a zone": _cell("at", "2024-01-02 03:04:05"),
    "month 13": _cell("at", "2024-13-02T03:04:05Z"),
    "year 0": _cell("at", "0000-01-02T03:04:05Z"),
    "time is NaN": _cell("at", "nan"),
    "time of fourteen digits": _cell("at", "20240102030405"),
}


def _good_csv(
    counted: Counted, *, header: bytes = HEADER, end: bytes = b"\n", quote: bool = False, at: str | None = None
) -> bytes:
    event_id, page, day, n = counted
    fields = (event_id, page, str(n), at or f"{day}T12:00:00Z")
    return header + end + ",".join(_quoted(field, quote) for field in fields).encode("utf-8")


def _quoted(text: str, always: bool) -> str:
    return '"' + text.replace('"', '""') + '"' if always or '"' in text or "," in text else text


CSV = Format(
    "csv",
    _BAD_CSV,
    {
        "good": _good_csv,
        "good, with a mark first": lambda counted: BOM + _good_csv(counted),
        "good, its time in Unix nanoseconds": lambda counted: _good_csv(counted, at=str(_unix_ns(counted.day))),
        "good, all in quotes": lambda counted: _good_csv(counted, quote=True),
        "good, with line ends of two characters": lambda counted: _good_csv(counted, end=b"\r\n") + b"\r\n",
        "good, with a field of three lines": lambda counted: (
            _good_csv(counted, header=HEADER + b",text") + b',"one\ntwo,\r\n""three"""'
        ),
    },
)

FORMATS = {made.decode: made for made in (JSON, CSV)}


def large(size: int) -> Format:
    """A format of JSON records of about ``size`` bytes."""

    def pad(text: str) -> str:
        return text * (size // len(text.encode("utf-8")))

    x = "x" * size
    return Format(
        "json",
        {
            "not UTF-8 at the end": lambda i: _json(i, more=f'"{x}"')[:-2] + b'\xe9"}',
            "cut before the last brace": lambda i: _json(i, more=f'"{x}"')[:-1],
            "no id": lambda i: _json(i, id=None, more=f'"{x}"'),
            "a text": lambda i: f'"{x}{i}"'.encode(),
            "control characters": lambda i: _json(i, more='"' + pad("xxxxxxxxxxxx\x01") + '"'),
            "key too long": lambda i: _json(i, page=f'"{x}"'),
            "value is a text": lambda i: _json(i, n=f'"{x}"'),
            "id is an array": lambda i: _json(i, id=f'["{x}"]'),
            "random bytes": lambda i: b"\xff" + random.Random(i).randbytes(size),
            "in another alphabet, cut": lambda i: f'{{"id": "bad-{i}", "more": "{pad("ж")}'.encode(),
        },
        {"good": lambda counted: _good_json(counted, more=x)},
    )
