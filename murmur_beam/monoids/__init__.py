"""Monoids: one file each. `by_name` finds them, so a new monoid needs only a new file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from murmur_beam.errors import ConfigurationError
from murmur_beam.import_path import kind_of, load_attribute
from murmur_beam.monoids import notation
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.count import Count
from murmur_beam.monoids.custom import Custom
from murmur_beam.monoids.first import First
from murmur_beam.monoids.float_sum import FloatSum
from murmur_beam.monoids.last import Last
from murmur_beam.monoids.map_of import MapOf
from murmur_beam.monoids.max import Max
from murmur_beam.monoids.mean import Mean
from murmur_beam.monoids.min import Min
from murmur_beam.monoids.set_union import SetUnion
from murmur_beam.monoids.sum import Overflow, Sum
from murmur_beam.monoids.timed import Timed
from murmur_beam.monoids.variance import Moments, Variance

__all__ = [
    "Count",
    "Custom",
    "First",
    "FloatSum",
    "Last",
    "MapOf",
    "Max",
    "Mean",
    "Min",
    "Moments",
    "Monoid",
    "Overflow",
    "SetUnion",
    "Sum",
    "Timed",
    "Variance",
    "by_name",
    "names",
    "recorded",
]


def names() -> list[str]:
    """Names that `by_name` knows: the modules of this package that define a ``MONOID``."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in modules if hasattr(importlib.import_module(f"{__name__}.{name}"), "MONOID")]


def by_name(name: str, argument: str = "monoid") -> Monoid[Any]:
    """The shipped monoid called ``name``, or a user's monoid named as ``package.module:attribute``. Parameters in
    parentheses, such as ``sum(places=2)``, are those of its class.

    Raises:
        ConfigurationError: the name is unknown or not a monoid's, or the monoid does not have such parameters; the
            error names ``argument``.
    """
    call = notation.parse(name, argument)
    if call is None:
        return _named(name, argument)
    kind = type(_named(call.name, argument))
    inner = [by_name(each, argument) for each in call.monoids]
    try:
        return kind(*inner, **call.parameters)
    except (TypeError, ConfigurationError) as err:
        raise ConfigurationError(argument, f"{name!r:.80}: {err}") from None


def recorded(name: str) -> Monoid[Any] | None:
    """The shipped monoid that a store has recorded under this name; None if no shipped monoid has it.

    It imports nothing of other packages: a store's content must not decide which Python module is imported.
    """
    try:
        found = None if ":" in name else by_name(name)
    except ConfigurationError:
        return None
    return found if found is not None and found.name == name else None


def _named(name: str, argument: str) -> Monoid[Any]:
    if ":" in name:
        found = load_attribute(name, "monoid", argument)
    elif name in names():
        found = importlib.import_module(f"{__name__}.{name}").MONOID
    else:
        raise ConfigurationError(
            argument, f"unknown monoid {name!r}; choose {', '.join(names())} or write package.module:attribute"
        )
    if not isinstance(found, Monoid):
        raise ConfigurationError(argument, f"{name!r} is a {kind_of(found)}, not a Monoid")
    return found
