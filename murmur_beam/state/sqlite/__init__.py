"""Aggregates in one SQLite file: the embedded default. Durable, and safe with several threads and processes.

A flush is one transaction: the values of its rows and the markers of the events folded into them become visible
together or not at all, so a process that is killed neither loses an event nor counts it twice. Two tables:

    NAME       id, entity, bucket, value, expires_at        one row for each aggregate
    NAME_seen  row, event, at                               one marker for each event in a row

A sum is stored as an INTEGER, so that any SQLite tool can read it; values of other monoids are stored as their bytes.
If any tool deletes a row, its markers are deleted too. Two more tables, murmur_schema and murmur_facts, record what the
tables hold. The module `store` merges and reads, `records` keeps these records, and `file` watches over the file.
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
        ConfigurationError: a part of the URI is invalid.
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
            "store", f"unknown option {', '.join(options)} in {uri.geturl()!r}; the options are table, dedup_retention"
        )
    return SqliteSpec(unquote(uri.path.removeprefix("/")), table, retention)
