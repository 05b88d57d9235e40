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

from urllib.parse import SplitResult, unquote

from murmur_beam.errors import ConfigurationError
from murmur_beam.option import read_query
from murmur_beam.state.sqlite.spec import SqliteSpec
from murmur_beam.state.sqlite.store import SqliteStore

__all__ = ["SqliteSpec", "SqliteStore", "from_uri"]


def from_uri(uri: SplitResult) -> SqliteSpec:
    """Read ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, with options of `SqliteSpec` such as
    ``?table=NAME``.

    Raises:
        ConfigurationError: a part of the URI is invalid.
    """
    if uri.netloc or uri.fragment:
        raise ConfigurationError(
            "store", f"{uri.geturl()!r}: write sqlite:///counts.db (relative) or sqlite:////data/counts.db (absolute)"
        )
    return SqliteSpec(unquote(uri.path.removeprefix("/")), **read_query(uri, SqliteSpec))
