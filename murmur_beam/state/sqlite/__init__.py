"""Aggregates in one SQLite file: the embedded default. Durable, and safe with several threads and processes.

A flush is one transaction: the values of the touched rows and the markers of the events folded into them become
visible together or not at all, so that a process killed at any moment loses nothing and doubles nothing. Two tables:

    NAME       id, entity, bucket, value, expires_at        one row for each aggregate
    NAME_seen  row, event, at                               one marker for each event in a row

A sum is stored as an INTEGER, so that the file can be read with any SQLite tool; other monoids as their bytes. A row
that any tool deletes takes its markers with it. What the tables hold is said in two more, murmur_schema and
murmur_facts. `store` merges and reads, `records` keeps what a table says of itself, `file` watches over the file.
"""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, unquote

from murmur_beam.durations import parse_duration
from murmur_beam.errors import ConfigurationError
from murmur_beam.state.sqlite.spec import SqliteSpec
from murmur_beam.state.sqlite.store import SqliteStore

__all__ = ["SqliteSpec", "SqliteStore", "from_uri"]


def from_uri(uri: SplitResult) -> SqliteSpec:
    """Read ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, with ``?table=NAME&dedup_retention=90d``.

    Raises:
        ConfigurationError: a part that is not understood.
    """
    if uri.netloc or uri.fragment:
        raise ConfigurationError(
            "store", f"{uri.geturl()!r}: write sqlite:///counts.db (relative) or sqlite:////data/counts.db (absolute)"
        )
    options = dict(parse_qsl(uri.query, keep_blank_values=True))
    table = options.pop("table", "murmur")
    try:
        retention = parse_duration(options.pop("dedup_retention")) if "dedup_retention" in options else None
    except ValueError as err:
        raise ConfigurationError("store", f"dedup_retention: {err}") from None
    if options:
        raise ConfigurationError(
            "store", f"unknown option {', '.join(options)} in {uri.geturl()!r}; there are table and dedup_retention"
        )
    return SqliteSpec(unquote(uri.path.removeprefix("/")), table, retention)
