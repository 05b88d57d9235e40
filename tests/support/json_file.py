"""An example of a store: one JSON file, read and replaced under a lock. Its name is
``tests.support.json_file:from_uri:///counts.json``.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult

from murmur_beam import forks
from murmur_beam.clock import Clock
from murmur_beam.errors import ConfigurationError, StoreUnavailable
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import (
    GRACE_S,
    Result,
    Schema,
    Store,
    StoreSpec,
    fold_row,
    later_expiry,
    positions_by_key,
    undecodable,
)

V = TypeVar("V")

_threads = forks.Lock()


class JsonFileStore(Store[V]):
    """One file. It is open only while the lock is held, so threads, processes and forks may share it."""

    def __init__(self, spec: JsonFileSpec, monoid: Monoid[V], granularity: timedelta | None) -> None:
        self.monoid = monoid
        self._spec = spec
        self._schema = Schema.of(monoid, granularity)
        self._closed = False
        self._require(spec.recorded_schema())

    def get_many(self, keys: Sequence[Key], *, fresh: bool = True) -> list[V | None]:
        """See `Store.get_many`."""
        found = dict(self._live())
        return [found.get(key) for key in keys]

    def merge_updates(self, updates: Sequence[Update]) -> list[Result]:
        """See `Store.merge_updates`."""
        results: list[Result] = [Outcome.MERGED] * len(updates)
        with self._changing() as rows:
            for key, positions in positions_by_key(updates).items():
                merged = self._merge_row(rows, key, [updates[i] for i in positions])
                for i, result in zip(positions, merged, strict=True):
                    results[i] = result
        return results

    def _merge_row(self, rows: dict[Key, Any], key: Key, updates: list[Update]) -> list[Result]:
        row = rows.get(key) or {"value": None, "expires": None, "seen": []}
        try:
            current = None if row["value"] is None else self.monoid.decode(bytes.fromhex(row["value"]))
        except Exception as err:
            return [undecodable(self.monoid, key, err)] * len(updates)
        seen = dict.fromkeys(row["seen"])

        def claim(event_id: str) -> bool:
            is_new = event_id not in seen
            seen[event_id] = None
            return is_new

        value, results = fold_row(self.monoid, current, updates, claim, seen.pop, self.monoid.encode)
        if Outcome.MERGED in results:
            ttl = updates[-1].ttl
            expires = None if ttl is None else self._spec.clock.now() + ttl.total_seconds()
            if key in rows:
                expires = later_expiry(expires, row["expires"])
            rows[key] = {"value": value.hex(), "expires": expires, "seen": [*seen]}
        return results

    def scan(
        self, prefix: str = "", first: int | None = None, last: int | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Key, V]]:
        """See `Store.scan`; a snapshot at the time of the call."""
        return iter(sorted(((k, v) for k, v in self._live() if _in(k, prefix, first, last)), key=lambda item: item[0]))

    def delete(self, entity: str, first: int | None = None, last: int | None = None, *, prefix: bool = False) -> int:
        """See `Store.delete`."""
        with self._changing() as rows:
            doomed = [k for k in rows if (prefix or k.entity == entity) and _in(k, entity, first, last)]
            for key in doomed:
                del rows[key]
        return len(doomed)

    def close(self) -> None:
        """See `Store.close`."""
        self._closed = True

    def _live(self) -> list[tuple[Key, V]]:
        with self._locked():
            rows, now = _rows(self._spec.read()), self._spec.clock.now()
        live = [(k, row["value"]) for k, row in rows.items() if row["expires"] is None or row["expires"] > now]
        return [(key, self.monoid.decode(bytes.fromhex(value))) for key, value in live]

    @contextmanager
    def _changing(self) -> Iterator[dict[Key, Any]]:
        """The rows, to be changed; written at the end, with the schema and without what has long expired."""
        with self._locked():
            document = self._spec.read()
            recorded = _schema(document)
            self._require(recorded)
            schema = self._schema if recorded is None or recorded.names(self._schema) else recorded
            rows, now = _rows(document), self._spec.clock.now()
            yield rows
            kept = {k: row for k, row in rows.items() if row["expires"] is None or row["expires"] + GRACE_S > now}
            self._spec.write(
                {
                    "monoid": schema.monoid,
                    "field": schema.field,
                    "bucket_s": schema.granularity and schema.granularity.total_seconds(),
                    "rows": [[*key, row] for key, row in kept.items()],
                }
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._closed:
            raise StoreUnavailable(f"{self._spec}: the store is closed; open it again")
        # A lock of the process, which a child of a fork does not inherit; so threads need one of their own.
        with _threads, open(f"{self._spec.path}.lock", "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            yield

    def _require(self, recorded: Schema | None) -> None:
        if recorded is not None:
            recorded.require(self._schema, str(self._spec), "another file")


@dataclass(frozen=True)
class JsonFileSpec(StoreSpec):
    """The file at ``path``."""

    path: str
    clock: Clock = field(default_factory=Clock, compare=False)

    def __str__(self) -> str:
        return f"{__name__}:from_uri:///{self.path}"

    def open(self, monoid: Monoid[V], granularity: timedelta | None = None) -> JsonFileStore[V]:
        """See `StoreSpec.open`."""
        return JsonFileStore(self, monoid, granularity)

    def recorded_schema(self) -> Schema | None:
        """See `StoreSpec.recorded_schema`."""
        return _schema(self.read())

    def read(self) -> Any:
        """The file's document; None if there is no file."""
        try:
            return json.loads(Path(self.path).read_bytes())
        except FileNotFoundError:
            return None

    def write(self, document: Any) -> None:
        """Replace the file, as a whole and on the disk."""
        with open(f"{self.path}.new", "w") as new:
            json.dump(document, new)
            new.flush()
            os.fsync(new.fileno())
        os.replace(new.name, self.path)


def from_uri(uri: SplitResult) -> JsonFileSpec:
    """Read ``SCHEME:///relative.json`` or ``SCHEME:////absolute.json``.

    Raises:
        ConfigurationError: the URI names no file, or has more parts.
    """
    if uri.netloc or uri.query or uri.fragment or not uri.path[1:]:
        raise ConfigurationError("store", f"write {uri.scheme}:///counts.json (relative), or four slashes (absolute)")
    return JsonFileSpec(os.path.abspath(uri.path[1:]))


def _schema(document: Any) -> Schema | None:
    if document is None:
        return None
    bucket_s = document["bucket_s"]
    return Schema(document["monoid"], None if bucket_s is None else timedelta(seconds=bucket_s), document["field"])


def _rows(document: Any) -> dict[Key, Any]:
    return {Key(entity, bucket): row for entity, bucket, row in (document["rows"] if document else ())}


def _in(key: Key, prefix: str, first: int | None, last: int | None) -> bool:
    starts = key.entity.startswith(prefix)
    return starts and (first is None or key.bucket >= first) and (last is None or key.bucket <= last)
