"""One open store per spec and process, shared by all its users, so that clients and files are opened once.

A child of a fork has a copy of the shares, which stay valid: the store itself reopens its files and connections there,
or refuses its use.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

from murmur_beam import forks
from murmur_beam.monoids.base import Monoid
from murmur_beam.state.adapted import open_store
from murmur_beam.state.base import Schema, SpecLike, Store


class _Use(NamedTuple):
    store: Store[Any]
    users: int


_lock = forks.Lock()
_in_use: dict[tuple[SpecLike, Schema], _Use] = {}


class Lease:
    """A share in an open store; releasing the last share closes the store.

    Raises:
        MurmurError: the store cannot be opened.
    """

    def __init__(self, spec: SpecLike, monoid: Monoid[Any], granularity: timedelta | None) -> None:
        self._key = (spec, Schema.of(monoid, granularity))
        self._released = False
        with _lock:
            use = _in_use.get(self._key) or _Use(open_store(spec, monoid, granularity), 0)
            _in_use[self._key] = use._replace(users=use.users + 1)
        self.store = use.store

    def release(self) -> None:
        """Release the share; a second call does nothing."""
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
