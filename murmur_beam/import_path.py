"""What a user names on a command line as ``package.module:attribute``."""

from __future__ import annotations

import importlib
from typing import Any

from murmur_beam.errors import ConfigurationError


def load(name: str, what: str, argument: str) -> Any:
    """The attribute of a module, which is imported.

    Args:
        name: ``package.module:attribute``.
        what: it is, for the message.
        argument: that the user gave it as.

    Raises:
        ConfigurationError: there is none, or the module cannot be imported, naming ``argument``.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as err:  # a user's module may raise anything
        raise ConfigurationError(argument, f"cannot load {what} {name!r}: {err}") from err
