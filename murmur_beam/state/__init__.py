"""Stores: one file each. `spec_from_uri` finds them by the scheme of a URI."""

from __future__ import annotations

import importlib
from urllib.parse import urlsplit

from murmur_beam.errors import ConfigurationError
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.state.base import Cache, Result, Schema, Store, StoreSpec

__all__ = [
    "Cache",
    "Key",
    "Outcome",
    "Result",
    "Schema",
    "Store",
    "StoreSpec",
    "Update",
    "require_lasting",
    "spec_from_uri",
]

# Each module has from_uri(SplitResult) -> StoreSpec, and is imported only when its scheme is used.
_SCHEMES = {
    "bigtable": "murmur_beam.state.bigtable",
    "memory": "murmur_beam.state.memory",
    "sqlite": "murmur_beam.state.sqlite",
}


def spec_from_uri(uri: str, argument: str = "store") -> StoreSpec:
    """Read a store's URI, such as ``sqlite:///counts.db`` (relative), ``sqlite:////data/counts.db`` or ``memory://name``.

    Raises:
        ConfigurationError: no such scheme, or a part that the scheme does not know, naming ``argument``.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as err:
        raise ConfigurationError(argument, f"{uri!r} is not a URI: {err}") from None
    if parts.scheme not in _SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ConfigurationError(argument, f"{uri!r} starts with no known scheme; write one of {known}")
    spec: StoreSpec
    try:
        spec = importlib.import_module(_SCHEMES[parts.scheme]).from_uri(parts)
    except ConfigurationError as err:
        raise ConfigurationError(argument, err.problem) from err
    except ImportError as err:
        raise ConfigurationError(
            argument, f"{parts.scheme}:// takes a package that is not here ({err}); pip install 'murmur-beam[gcp]'"
        ) from err
    return spec


def require_lasting(store: object, argument: str) -> None:
    """Refuse what ends with the program: programs that are configured by flags do end, and what they have acknowledged
    does not come again.

    Args:
        store: a URI; anything else was made in Python, and is taken.
        argument: as which it was given.

    Raises:
        ConfigurationError: the URI of a store in memory.
    """
    if isinstance(store, str) and store.lower().startswith("memory:"):
        raise ConfigurationError(
            argument, f"{store} ends with the program, and all that was merged with it; write sqlite:///counts.db, say"
        )
