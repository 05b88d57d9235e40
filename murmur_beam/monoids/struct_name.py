"""The name of a struct, as a table records it: ``struct(views=count,revenue=sum(places=2))``.

An aggregate that was added to a live table has the time behind it: ``visitors=distinct@2026-11-26T12:00:00Z``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_STRUCT = re.compile(r"struct\((.*)\)", re.DOTALL)
_PART = re.compile(r"(?P<name>\w+)=(?P<monoid>.+?)(@(?P<since>[0-9TZ:-]+))?", re.DOTALL | re.ASCII)


class Part(NamedTuple):
    """An aggregate of a struct: the name of its monoid, and since when it counts; None: from the beginning."""

    monoid: str
    since: str | None


def struct_name(monoids: Mapping[str, str], since: Mapping[str, str] | None = None) -> str:
    """The name of a struct of these aggregates.

    Args:
        monoids: name of the monoid of each.
        since: of those that were added later, when.
    """
    later = since or {}
    parts = [f"{name}={monoid}{'@' + later[name] if name in later else ''}" for name, monoid in monoids.items()]
    return f"struct({','.join(parts)})"


def parts_of(name: str) -> dict[str, Part] | None:
    """The aggregates of the struct with this name, in their order; None if it is not a struct's."""
    match = _STRUCT.fullmatch(name)
    if match is None:
        return None
    found = {}
    for text in outside_parentheses(match[1]):
        part = _PART.fullmatch(text)
        if part is None or part["name"] in found:
            return None
        found[part["name"]] = Part(part["monoid"], part["since"])
    return found


def outside_parentheses(text: str, separator: str = ",") -> list[str]:
    """The parts of a text between its separators, except those in parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == separator and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts
