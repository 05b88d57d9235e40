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
    "schemes",
    "spec_from_uri",
]

# Each module has from_uri(SplitResult) -> StoreSpec, and is imported only when its scheme is used.
_SCHEMES = {
    "bigtable": "murmur_beam.state.bigtable",
    "memory": "murmur_beam.state.memory",
    "sqlite": "murmur_beam.state.sqlite",
}


def schemes() -> list[str]:
    """Schemes of the stores of this package."""
    return [*_SCHEMES]


def spec_from_uri(uri: str, argument: str = "store") -> StoreSpec:
    """Read a store's URI, such as ``sqlite:///counts.db`` (relative), ``sqlite:////data/counts.db`` or ``memory://name``.

    Raises:
        ConfigurationError: the scheme or a part of the URI is unknown; the error names ``argument``.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as err:
        raise ConfigurationError(argument, f"{uri!r} is not a URI: {err}") from None
    if parts.scheme not in _SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ConfigurationError(argument, f"unknown store scheme in {uri!r}; use one of {known}")
    spec: StoreSpec
    try:
        spec = importlib.import_module(_SCHEMES[parts.scheme]).from_uri(parts)
    except ConfigurationError as err:
        raise ConfigurationError(argument, err.problem) from err
    except ImportError as err:
        raise ConfigurationError(
            argument,
            f"{parts.scheme}:// needs a package that is not installed ({err}); run: pip install 'murmur-beam[gcp]'",
        ) from err
    return spec


def require_lasting(store: object, argument: str) -> None:
    """Refuse a store in memory: a program that is configured by flags ends, and the events that it has acknowledged are
    not redelivered.

    Args:
        store: a URI; a store made in Python is accepted.
        argument: name of the argument, for the message.

    Raises:
        ConfigurationError: the URI is that of a store in memory.
    """
    if isinstance(store, str) and store.lower().startswith("memory:"):
        raise ConfigurationError(
            argument,
            f"{store} is lost when the program ends, with everything that was merged; write sqlite:///counts.db, say",
        )
