"""Stores: one file each. `spec_from_uri` finds them by the scheme of a URI, so a new store needs only a new file.

A file ``NAME.py`` (or a package) in this folder that defines ``from_uri(SplitResult) -> StoreSpec`` is the store of
``NAME://``. It is imported when its scheme is used, and raises `MissingExtra` if it needs packages that are not there.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any
from urllib.parse import SplitResult, urlsplit

from murmur_beam.errors import ConfigurationError, MissingExtra
from murmur_beam.import_path import kind_of, load_attribute
from murmur_beam.model import Key, Outcome, Update
from murmur_beam.state.adapted import as_shared_spec, is_spec
from murmur_beam.state.base import Cache, Result, Schema, SpecLike, Store, StoreLike, StoreSpec

__all__ = [
    "Cache",
    "Key",
    "Outcome",
    "Result",
    "Schema",
    "SpecLike",
    "Store",
    "StoreLike",
    "StoreSpec",
    "Update",
    "require_lasting",
    "schemes",
    "spec_from_uri",
]

_OUTSIDE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""``package.module:attribute``."""


def schemes() -> list[str]:
    """Schemes that `spec_from_uri` knows: the modules of this package that define ``from_uri``."""
    return [name for name in _modules() if _is_store(name)]


def spec_from_uri(uri: str, argument: str = "store") -> StoreSpec:
    """Make the spec that a text names.

    - ``sqlite:///counts.db`` (relative), ``sqlite:////data/counts.db`` or ``memory://name``: a store of this package.
    - ``package.module:attribute``: a spec of your own, as your module has made it.
    - ``package.module:attribute://rest?query``: a spec of your own that is made of the text. The attribute is a
      function that takes the `urllib.parse.SplitResult` of the text and returns a spec, or a class with a method
      ``from_uri`` that does.

    Args:
        uri: the text.
        argument: the argument whose value this is, for the message.

    Raises:
        ConfigurationError: the scheme or a part of the text is unknown, a package is missing, or what is named is not a
            spec; names ``argument``.
    """
    head, slashes, rest = uri.partition("://")
    start = head.partition(":")[0].lower()
    if not slashes and start in _modules():
        raise ConfigurationError(
            argument, f"{uri!r}: a URI has // after {start}:, as in sqlite:///counts.db or memory://NAME"
        )
    if _OUTSIDE.fullmatch(head):
        return _outside(uri, head, rest if slashes else None, argument)
    if slashes and head.lower() in _modules():
        try:
            module = _module(head.lower())
        except ImportError as err:
            problem = err if isinstance(err, MissingExtra) else f"needs a package that is not installed ({err})"
            raise ConfigurationError(argument, f"{head}:// {problem}") from err
        if hasattr(module, "from_uri"):
            return _made(module.from_uri, _parts(uri, head.lower(), rest, argument), argument)
    known = ", ".join(f"{scheme}://" for scheme in schemes())
    raise ConfigurationError(
        argument, f"unknown store scheme in {uri!r}; use one of {known} or write package.module:attribute"
    )


def require_lasting(store: object, argument: str) -> None:
    """Refuse a store in memory: a program that is configured by flags ends, and the events that it has acknowledged are
    not redelivered.

    Args:
        store: a text for `spec_from_uri`, which reports a wrong one; a store made in Python is accepted.
        argument: name of the argument, for the message.

    Raises:
        ConfigurationError: the text names a spec that is not ``lasting``.
    """
    if not isinstance(store, str):
        return
    try:
        lasting = spec_from_uri(store).lasting
    except ConfigurationError:
        return
    if not lasting:
        raise ConfigurationError(
            argument,
            f"{store} is lost when the program ends, with everything that was merged; write sqlite:///counts.db, say",
        )


def _modules() -> list[str]:
    """Names of this package's modules, of which some are stores."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _is_store(name: str) -> bool:
    try:
        return hasattr(_module(name), "from_uri")
    except ImportError:  # a store whose packages are not installed
        return True


def _parts(uri: str, scheme: str, rest: str, argument: str) -> SplitResult:
    """The parts of a URI. The scheme is split off before: `urlsplit` knows no underscores in schemes."""
    try:
        return urlsplit(f"store://{rest}")._replace(scheme=scheme)
    except ValueError as err:
        raise ConfigurationError(argument, f"{uri!r} is not a URI: {err}") from None


def _made(make: Callable[[SplitResult], StoreSpec], parts: SplitResult, argument: str) -> StoreSpec:
    """Call a ``from_uri`` of this package."""
    try:
        return make(parts)
    except ConfigurationError as err:
        raise ConfigurationError(argument, err.problem) from err


def _outside(uri: str, name: str, rest: str | None, argument: str) -> StoreSpec:
    """The spec that a user's module has made, or makes of the ``rest`` of a URI."""
    found = load_attribute(name, "store", argument)
    if rest is None:
        return _checked(
            found, f"{name!r} is a {kind_of(found)}", f"write {name}://..., which calls it" * callable(found), argument
        )
    make = getattr(found, "from_uri", found)
    if not callable(make):
        hint = f"; write {name} alone" * is_spec(found)
        raise ConfigurationError(argument, f"{name!r} is a {kind_of(found)}, not a function of a URI{hint}")
    try:
        made = make(_parts(uri, name, rest, argument))
    except ConfigurationError as err:
        raise ConfigurationError(argument, err.problem) from err
    except Exception as err:  # a user's function may raise anything
        raise ConfigurationError(argument, f"{uri!r}: {type(err).__name__}: {err}") from err
    return _checked(made, f"{name!r} returns a {kind_of(made)}", "", argument)


def _checked(found: Any, what: str, hint: str, argument: str) -> StoreSpec:
    """The spec that a user's module has given.

    Args:
        found: what should be one.
        what: says what it is, for the message.
        hint: what to write instead, if that is known.
        argument: as in `spec_from_uri`.
    """
    if isinstance(found, type) or not is_spec(found):
        raise ConfigurationError(argument, f"{what}, not a store spec{hint and f'; {hint}'}")
    spec: SpecLike = found
    return as_shared_spec(spec, argument)
