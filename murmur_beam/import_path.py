"""Loads what a user names as ``package.module:attribute``."""

from __future__ import annotations

import importlib
from typing import Any

from murmur_beam.errors import ConfigurationError


def kind_of(found: object) -> str:
    """What something is, for the message that it is not what was wanted: the name of its class, or ``class``."""
    return "class" if isinstance(found, type) else type(found).__name__


def load_attribute(name: str, what: str, argument: str) -> Any:
    """Import a module and return one of its attributes.

    Args:
        name: ``package.module:attribute``.
        what: noun for the message, such as ``monoid``.
        argument: the argument whose value this is.

    Raises:
        ConfigurationError: the module cannot be imported, or has no such attribute; names ``argument``.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as err:  # a user's module may raise anything
        raise ConfigurationError(argument, f"cannot load {what} {name!r}: {err}") from err
