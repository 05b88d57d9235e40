"""Monoids: one file each. `by_name` finds them, so a new monoid needs only a new file."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable
from typing import Any

from murmur_beam.errors import ConfigurationError, MissingExtra
from murmur_beam.import_path import kind_of, load_attribute
from murmur_beam.monoids import notation
from murmur_beam.monoids.base import Monoid
from murmur_beam.monoids.count import Count
from murmur_beam.monoids.custom import Custom
from murmur_beam.monoids.distinct import Distinct
from murmur_beam.monoids.first import First
from murmur_beam.monoids.float_sum import FloatSum
from murmur_beam.monoids.last import Last
from murmur_beam.monoids.map_of import MapOf
from murmur_beam.monoids.max import Max
from murmur_beam.monoids.mean import Mean
from murmur_beam.monoids.min import Min
from murmur_beam.monoids.quantiles import Quantiles
from murmur_beam.monoids.set_union import SetUnion
from murmur_beam.monoids.struct_name import outside_parentheses, parts_of
from murmur_beam.monoids.structs import Struct
from murmur_beam.monoids.sum import Overflow, Sum
from murmur_beam.monoids.timed import Timed
from murmur_beam.monoids.top_k import Frequencies, Frequent, TopK
from murmur_beam.monoids.variance import Moments, Variance

__all__ = [
    "Count",
    "Custom",
    "Distinct",
    "First",
    "FloatSum",
    "Frequencies",
    "Frequent",
    "Last",
    "MapOf",
    "Max",
    "Mean",
    "Min",
    "Moments",
    "Monoid",
    "Overflow",
    "Quantiles",
    "SetUnion",
    "Struct",
    "Sum",
    "Timed",
    "TopK",
    "Variance",
    "aggregate_of",
    "aggregates_of",
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
        ConfigurationError: the name is unknown or not a monoid's, or the monoid does not have such parameters, or
            needs a package that is not installed; the error names ``argument``.
    """
    if (parts := parts_of(name)) is not None:
        return Struct({part: by_name(monoid, argument) for part, (monoid, _) in parts.items()})
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

    Raises:
        ConfigurationError: the monoid needs a package that is not installed.
    """
    if (parts := parts_of(name)) is not None:
        monoids = {part: recorded(monoid) for part, (monoid, _) in parts.items()}
        shipped = {part: monoid for part, monoid in monoids.items() if monoid is not None}
        return Struct(shipped) if len(shipped) == len(parts) else None
    try:
        found = None if ":" in name else by_name(name)
    except ConfigurationError as err:
        if isinstance(err.__cause__, MissingExtra):
            raise
        return None
    return found if found is not None and found.name == name else None


def _named(name: str, argument: str) -> Monoid[Any]:
    if ":" in name:
        found = load_attribute(name, "monoid", argument)
    elif name in names():
        found = importlib.import_module(f"{__name__}.{name}").MONOID
        if isinstance(found, type):
            try:
                found = found()
            except MissingExtra as err:
                raise ConfigurationError(argument, f"{name} {err}") from err
    else:
        raise ConfigurationError(
            argument, f"unknown monoid {name!r}; choose {', '.join(names())} or write package.module:attribute"
        )
    if not isinstance(found, Monoid):
        raise ConfigurationError(argument, f"{name!r} is a {kind_of(found)}, not a Monoid")
    return found


def aggregates_of(texts: Iterable[str]) -> dict[str, Monoid[Any]]:
    """The monoids of aggregates by name, from texts with one aggregate each, or several with commas between them.

    Raises:
        ConfigurationError: see `aggregate_of`; or a name is given twice.
    """
    found: dict[str, Monoid[Any]] = {}
    for text in texts:
        parts: list[str] = []
        for part in outside_parentheses(text):
            if parts and not re.match(r" *\w+=", part):  # a comma in a field
                parts[-1] += f",{part}"
            else:
                parts.append(part.strip())
        for part in parts:
            name, monoid = aggregate_of(part)
            if name in found:
                raise ConfigurationError("aggregate", f"{name!r:.80} is given twice")
            found[name] = monoid
    return found


def aggregate_of(text: str) -> tuple[str, Monoid[Any]]:
    """The name and the monoid of an aggregate, written as ``NAME=MONOID`` or ``NAME=MONOID:FIELD``; a ``?`` behind the
    field makes it optional, see `Monoid.of`.

    Raises:
        ConfigurationError: the text has another form, or the monoid is unknown.
    """
    name, equals, rest = text.partition("=")
    monoid, colon, field = _partition(rest)
    if "." in monoid.partition("(")[0]:
        # A monoid of the user's, package.module:attribute.
        attribute, colon, field = _partition(field)
        monoid = f"{monoid}:{attribute}"
    if not (equals and name and monoid) or (colon and not field.rstrip("?")):
        raise ConfigurationError(
            "aggregate", f"{text!r:.80}: write NAME=MONOID:FIELD, such as revenue=sum:amount, or views=count"
        )
    found = by_name(monoid, "aggregate")
    if field and not found.needs_value:
        raise ConfigurationError("aggregate", f"{text!r:.80}: {found.name} takes no field; write {name}={monoid}")
    return name, found.of(field.removesuffix("?"), optional=field.endswith("?")) if field else found


def _partition(text: str) -> tuple[str, str, str]:
    """Split a text at its first colon outside of parentheses, as `str.partition` does."""
    first = outside_parentheses(text, ":")[0]
    return first, text[len(first) : len(first) + 1], text[len(first) + 1 :]
