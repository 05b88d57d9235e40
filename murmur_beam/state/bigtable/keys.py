"""Row keys: unique for any text, none a prefix of another, the buckets of an entity adjacent and in order."""

from __future__ import annotations

import struct

from murmur_beam.errors import InvalidRecord
from murmur_beam.model import Key

MAX_ROW_KEY_BYTES = 4096

_END = struct.Struct(">QB")

# Row keys of entities never begin with two NULs, and all sort after the second of these.
SCHEMA_ROW = b"\x00\x00schema"
AFTER_SCHEMA = b"\x00\x01"


def encode_row_key(key: Key, shard: int = 0) -> bytes:
    """The row of a key; row keys sort as entity, bucket and shard do.

    Raises:
        InvalidRecord: the row key would be longer than Bigtable's 4 KB.
    """
    encoded = entity_prefix(key.entity) + b"\x00\x01" + _END.pack(key.bucket + 2**63, shard)
    if len(encoded) > MAX_ROW_KEY_BYTES:
        raise InvalidRecord("key", f"makes a row key of {len(encoded)} bytes, at most {MAX_ROW_KEY_BYTES} are allowed")
    return encoded


def shard_of(fingerprint: bytes, shards: int) -> int:
    """The shard of an event, of a table whose keys have this many: always the same one."""
    return fingerprint[0] % shards


def entity_prefix(entity: str) -> bytes:
    """The prefix of the row keys of all entities that begin with this text."""
    return entity.encode("utf-8").replace(b"\x00", b"\x00\xff")


def parse_row_key(encoded: bytes) -> tuple[Key, int]:
    """Inverse of `encode_row_key`: key and shard."""
    bucket, shard = _END.unpack(encoded[-9:])
    return Key(encoded[:-11].replace(b"\x00\xff", b"\x00").decode("utf-8"), bucket - 2**63), shard


def successor(prefix: bytes) -> bytes | None:
    """The first key after all keys with the prefix; None if they have no upper bound."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
