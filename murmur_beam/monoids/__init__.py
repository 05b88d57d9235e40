"""Monoids: one file each. `by_name` finds them, so a new monoid needs only a new file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from murmur_beam.errors import ConfigurationError
from murmur_beam.import_path import kind_of, load_attribute
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.count import Count
from murmur_beam.monoids.custom import Custom
from murmur_beam.monoids.first import First
from murmur_beam.monoids.last import Last
from murmur_beam.monoids.max import Max
from murmur_beam.monoids.min import Min
from murmur_beam.monoids.set_union import SetUnion
from murmur_beam.monoids.struct_name import parts_of
from murmur_beam.monoids.structs import Struct
from murmur_beam.monoids.sum import Overflow, Sum
from murmur_beam.monoids.timed import Timed

__all__ = [
    "Count",
    "Custom",
    "First",
    "Last",
    "Max",
    "Min",
    "Monoid",
    "Overflow",
    "SetUnion",
    "Struct",
    "Sum",
    "Timed",
    "aggregate_of",
    "by_name",
    "names",
]


def names() -> list[str]:
    """Names that `by_name` knows: the modules of this package that define a ``MONOID``."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in modules if hasattr(importlib.import_module(f"{__name__}.{name}"), "MONOID")]


def by_name(name: str, argument: str = "monoid") -> Monoid[Any]:
    """The shipped monoid called ``name``, or a user's monoid named as ``package.module:attribute``.

    Raises:
        ConfigurationError: the name is unknown or not a monoid's; the error names ``argument``.
    """
    if (parts := parts_of(name)) is not None:
        return Struct({part: by_name(monoid, argument) for part, (monoid, _) in parts.items()})
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


def aggregate_of(text: str) -> tuple[str, Monoid[Any]]:
    """The name and the monoid of an aggregate, written as ``NAME=MONOID`` or ``NAME=MONOID:FIELD``; a ``?`` behind the
    field makes it optional, see `Monoid.of`.

    Raises:
        ConfigurationError: the text has another form, or the monoid is unknown.
    """
    name, equals, rest = text.partition("=")
    monoid, colon, field = rest.partition(":")
    if "." in monoid.partition("(")[0]:
        # A monoid of the user's, package.module:attribute.
        attribute, colon, field = field.partition(":")
        monoid = f"{monoid}:{attribute}"
    if not (equals and name and monoid) or (colon and not field.rstrip("?")):
        raise ConfigurationError(
            "aggregate", f"{text!r:.80}: write NAME=MONOID:FIELD, such as revenue=sum:amount, or views=count"
        )
    found = by_name(monoid, "aggregate")
    return name, found.of(field.removesuffix("?"), optional=field.endswith("?")) if field else found
