"""What a template's launcher is given, as a pipeline takes it."""

from __future__ import annotations

from collections.abc import Sequence

REPEATED = ("--key", "--input", "--aggregate")
"""A template takes each parameter once, so several keys, files or aggregates stand in one, with ``|`` between them."""


def flags(argv: Sequence[str]) -> list[str]:
    """The arguments, with what stands in one taken apart.

    Args:
        argv: as ``--flag=value``; other forms are left alone.
    """
    taken: list[str] = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        taken += [f"{flag}={one}" for one in value.split("|")] if equals and flag in REPEATED else [argument]
    return taken
