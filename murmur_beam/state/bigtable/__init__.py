"""Aggregates in Google Cloud Bigtable: one commit of a row is one CheckAndMutateRow.

A row holds one aggregate (of one shard, where hot keys are split into several):

    agg:v         the sum, in an aggregate family: AddToCell is the increment
    state:n       the row's version: one more with each commit (agg:n in tables that release 0.1.0 made, see `layouts`)
    dedup:<n><w>  markers: fingerprints of the events of the commit that made version n; <w> is unique to the writer
    state:v       the value of a monoid that is not a sum
    state:x       its timestamp is the time at which the row expires, if it does
    pending:<q>   appended deltas that are not folded yet, with the fingerprints of their events

One more row, before all others, holds in the family ``meta`` what the table records of itself. docs/design.md lists the
modules of this package.
"""

from __future__ import annotations

from urllib.parse import SplitResult

from murmur_beam.errors import ConfigurationError, MissingExtra
from murmur_beam.option import read_query

try:
    from murmur_beam.state.bigtable.keys import encode_row_key, entity_prefix, parse_row_key
    from murmur_beam.state.bigtable.spec import BigtableSpec
    from murmur_beam.state.bigtable.store import BigtableStore
except ImportError as err:
    raise MissingExtra("gcp", err) from err

__all__ = ["BigtableSpec", "BigtableStore", "encode_row_key", "entity_prefix", "from_uri", "parse_row_key"]


def from_uri(uri: SplitResult) -> BigtableSpec:
    """Read ``bigtable://PROJECT/INSTANCE/TABLE``, with options of `BigtableSpec` such as ``?app_profile=NAME``.

    Raises:
        ConfigurationError: a part that is not understood.
    """
    parts = uri.path.strip("/").split("/")
    if len(parts) != 2:
        raise ConfigurationError("store", f"{uri.geturl()!r}: write bigtable://PROJECT/INSTANCE/TABLE")
    return BigtableSpec(uri.netloc, parts[0], parts[1], **read_query(uri, BigtableSpec))
