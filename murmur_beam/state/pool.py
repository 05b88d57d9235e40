"""One open store for each spec and process, however many users it has: clients and files are opened once.

A child of a fork has its own copy of the shares, each as good as it was: what stands behind a store is opened anew
there, or refused, by the store itself.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

from murmur_beam import forks
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.base import Schema, Store, StoreSpec


class _Use(NamedTuple):
    store: Store[Any]
    users: int


_lock = forks.Lock()
_in_use: dict[tuple[StoreSpec, Schema], _Use] = {}


class Lease:
    """A share in an open store; the last one to be released closes it.

    Raises:
        MurmurError: the store cannot be opened.
    """

    def __init__(self, spec: StoreSpec, monoid: Monoid[Any], granularity: timedelta | None) -> None:
        self._key = (spec, Schema.of(monoid, granularity))
        self._released = False
        with _lock:
            use = _in_use.get(self._key) or _Use(spec.open(monoid, granularity), 0)
            _in_use[self._key] = use._replace(users=use.users + 1)
        self.store = use.store

    def release(self) -> None:
        """Give the share back; a second call does nothing."""
        with _lock:
            if self._released:
                return
            self._released = True
            use = _in_use[self._key]
            if use.users > 1:
                _in_use[self._key] = use._replace(users=use.users - 1)
                return
            del _in_use[self._key]
        use.store.close()
