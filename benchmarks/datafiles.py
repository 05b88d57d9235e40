"""The records of a data file, and how a user would count them: read and recounted without this library."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

csv.field_size_limit(2**31 - 1)

Row = dict[str, Any]
"""Values by the names of their fields."""

MAX_BYTES = 20_000_000
MAX_KEYS = 1_000
_MAX_KEY_BYTES = 1_000
_LOOKED_AT = 50
_ID_FIELDS = 3
_ID_CANDIDATES = 8
_INT64 = 2**63


def _unzst(data: bytes) -> bytes:
    import zstandard  # comes with Beam

    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        return reader.read()


def _zst(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _unzst,
    ".deflate": zlib.decompress,
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _zst,
    ".deflate": zlib.compress,
}
FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}


class LeftOut(Exception):
    """The file does not hold records with fields; the text says why."""


class Held(NamedTuple):
    """The content of a file.

    Attributes:
        format: "csv" or "json".
        encoding: as Python names it.
        delimiter: of CSV; a comma for JSON.
        names: of the fields; a name that stands twice is here twice.
        rows: the records that have all fields; in JSON, all objects.
        malformed: number of other records.
        by: the parser that has read the file.
    """

    format: str
    encoding: str
    delimiter: str
    names: tuple[str, ...]
    rows: list[Row]
    malformed: int
    by: str


class Plan(NamedTuple):
    """How to count a file.

    Attributes:
        key: name of the field to count by.
        event_id: names of the fields that identify a record; empty if there are no such fields.
        value: name of a field of integers to add up; None without such a field.
    """

    key: str
    event_id: tuple[str, ...]
    value: str | None


class Recount(NamedTuple):
    """The result of a plan.

    Attributes:
        counts: by key.
        sums: by key; None without a value.
        letters: records that cannot be counted.
        sum_letters: records that cannot be added up.
    """

    counts: dict[str, int]
    sums: dict[str, int] | None
    letters: int
    sum_letters: int


def endings(name: str) -> tuple[str, str]:
    """The endings of a file's name for its format and its compression; empty if unknown."""
    name = name.lower()
    packed = next((ending for ending in DECOMPRESS if name.endswith(ending)), "")
    kind = next((ending for ending in FORMATS if name.removesuffix(packed).endswith(ending)), "")
    return kind, packed


def hold(name: str, data: bytes) -> Held:
    """Read a file.

    Args:
        name: of the file; its endings decide the format.
        data: the bytes of the file.

    Raises:
        LeftOut: the file does not hold records with fields.
    """
    kind, packed = endings(name)
    data = DECOMPRESS[packed](data) if packed else data
    if len(data) > MAX_BYTES:
        raise LeftOut(f"more than {MAX_BYTES // 10**6} MB")
    encoding = encoding_of(data)
    text = data.decode(encoding).removeprefix("\ufeff")
    return _hold_csv(text, encoding) if FORMATS[kind] == "csv" else _hold_json(text, encoding)


def encoding_of(data: bytes) -> str:
    """UTF-16 if a byte order mark says so, UTF-8 if the data is valid, else Latin-1."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def delimiter_of(text: str) -> str:
    """The delimiter by which most of the first records have as many fields as the first one, at least two; else a
    comma."""
    shares = {}
    for delimiter in ",;\t|":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [row for row in itertools.islice(reader, _LOOKED_AT) if row]
        if rows and len(rows[0]) > 1:
            shares[delimiter] = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
    return max(shares, key=shares.__getitem__, default=",")


def _hold_csv(text: str, encoding: str) -> Held:
    delimiter = delimiter_of(text)
    rows = [row for row in _strictly(text, delimiter) if row is None or row]
    if len(rows) < 2 or rows[0] is None:
        raise LeftOut("no records")
    names, records = rows[0], rows[1:]
    whole = [record for record in records if record is not None and len(record) == len(names)]
    if len(whole) < len(records) / 2 or sum(map(_is_number, names)) > len(names) / 2:
        raise LeftOut("no line of names")
    by = "csv"
    if len(whole) == len(records):
        whole, by = _by_pandas(text, delimiter), "pandas"
    made = [dict(zip(names, record, strict=True)) for record in whole]
    return Held("csv", encoding, delimiter, tuple(names), made, len(records) - len(whole), by)


def _strictly(text: str, delimiter: str) -> Iterator[list[str] | None]:
    """The records; None for a record with text behind a closing quote, or with an open quote, which parsers read
    differently."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        try:
            yield next(reader)
        except csv.Error:
            yield None
        except StopIteration:
            return


def _by_pandas(text: str, delimiter: str) -> list[list[str]]:
    """The records of a file whose records all have the same number of fields, read by another parser than Python's."""
    import pandas

    frame = pandas.read_csv(
        io.StringIO(text), sep=delimiter, header=None, index_col=False, dtype=str, na_filter=False, low_memory=False
    )
    found: list[list[str]] = frame.to_numpy(dtype=object).tolist()
    return found[1:]


def _is_number(name: str) -> bool:
    return re.fullmatch(r"[\d.e+ -]*\d[\d.e+ -]*", name) is not None


class _Twice(dict[str, Any]):
    """An object that has a name twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Twice(made)


def _hold_json(text: str, encoding: str) -> Held:
    try:
        whole = json.loads(text, object_pairs_hook=_object)
    except ValueError:
        whole = list(_lines(text))
    if isinstance(whole, dict):
        raise LeftOut("one object, no records")
    if not (isinstance(whole, list) and len(whole) > 1 and any(type(row) is dict for row in whole)):
        raise LeftOut("no objects")
    rows = [row for row in whole if type(row) is dict]
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Held("json", encoding, ",", names, rows, len(whole) - len(rows), "json")


def _lines(text: str) -> Iterator[Any]:
    for line in text.splitlines():
        if line.strip():
            try:
                yield json.loads(line, object_pairs_hook=_object)
            except ValueError:
                raise LeftOut("neither JSON nor JSON Lines") from None


# ---- the plan ----


def plan(held: Held) -> Plan:
    """How a user would count the file: by the field with the fewest values; names that are not identifiers come first.

    Raises:
        LeftOut: the file has no field to count by.
    """
    # A name that stands twice is ambiguous.
    names = [name for name, times in Counter(held.names).items() if times == 1 and _can_be_named(name)]
    columns = {name: [row.get(name) for row in held.rows] for name in names}
    if held.format == "json":
        columns = {name: values for name, values in columns.items() if _of_one_type(values)}
    kinds = {name: len(set(values)) for name, values in columns.items()}
    keys = [name for name, values in columns.items() if _can_be_keys(values, kinds[name])]
    if not keys:
        raise LeftOut("no field to count by")
    key = min(keys, key=lambda name: (kinds[name] < 2, name.isidentifier(), kinds[name]))
    values = [name for name, texts in columns.items() if name != key and _can_be_summed(texts)]
    return Plan(key, _event_id(columns, kinds), next(iter(values), None))


def _can_be_named(name: str) -> bool:
    return bool(name.strip()) and name.isprintable()


def _of_one_type(values: Sequence[Any]) -> bool:
    return {type(value) for value in values} - {type(None)} in ({str}, {int})


def _can_be_keys(values: Sequence[Any], kinds: int) -> bool:
    short = all(len(value.encode("utf-8")) <= _MAX_KEY_BYTES for value in values if isinstance(value, str))
    return kinds <= MAX_KEYS and short and any(value not in ("", None) for value in values)


def _event_id(columns: dict[str, list[Any]], kinds: dict[str, int]) -> tuple[str, ...]:
    """The smallest set of fields that identifies each record, none of them ever empty."""
    filled = [name for name, values in columns.items() if not {"", None} & set(values)]
    filled.sort(key=lambda name: -kinds[name])
    in_template = [name for name in filled[:_ID_CANDIDATES] if not re.search(r"[{}:!]", name)]
    for size in range(1, _ID_FIELDS + 1):
        for names in itertools.combinations(filled if size == 1 else in_template, size):
            if len(set(zip(*(columns[name] for name in names), strict=True))) == len(columns[names[0]]):
                return names
    return ()


def _can_be_summed(values: Sequence[Any]) -> bool:
    """Whether the values are integers, and the others cannot be taken for numbers."""
    integers = [int(value) for value in values if _is_integer(value)]
    others = [value for value in values if not _is_integer(value)]
    return bool(integers) and sum(map(abs, integers)) < _INT64 and all(map(_is_no_number, others))


def _is_no_number(value: Any) -> bool:
    return value is None or (isinstance(value, str) and re.search(r"\d|nan|inf", value, re.IGNORECASE) is None)


def _is_integer(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value) is not None)


def arguments(held: Held, made: Plan, monoid: str) -> list[str]:
    """Flags of `merge_files`, without those for input and outputs."""
    flags = [f"--decode={held.format}", f"--key={named(made.key)}", f"--monoid={monoid}"]
    if monoid == "sum":
        flags.append(f"--value={named(made.value or '')}")
    if not made.event_id:
        flags.append("--dedup=none")
    elif len(made.event_id) == 1:
        flags.append(f"--event_id={named(made.event_id[0])}")
    else:
        flags.append("--event_id=" + "/".join(f"{{{name}}}" for name in made.event_id))
    if held.encoding != "utf-8":
        flags.append(f"--encoding={held.encoding}")
    if held.delimiter != ",":
        flags.append(f"--delimiter={held.delimiter}")
    return flags


def named(name: str) -> str:
    """How a flag names a field: unchanged, unless the name would have another meaning."""
    special = name.startswith("=") or re.match(r"\w+:", name) or "{" in name or "}" in name
    return f"field:{name}" if special else name


# ---- the recount ----


def recount(held: Held, made: Plan) -> Recount:
    """The expected result."""
    records = len(held.rows) + held.malformed
    counts: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    counted = summed = 0
    for row in held.rows:
        key = row.get(made.key)
        if isinstance(row, _Twice) or key in ("", None) or any(row.get(name) in ("", None) for name in made.event_id):
            continue
        counted += 1
        counts[str(key)] += 1
        if made.value is not None and _is_integer(row.get(made.value)):
            summed += 1
            sums[str(key)] += int(row[made.value])
    return Recount(dict(counts), None if made.value is None else dict(sums), records - counted, records - summed)
