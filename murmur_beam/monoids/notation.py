"""Names of monoids with parameters: ``sum(places=2)``, ``map_of(sum, max_keys=100)``."""

from __future__ import annotations

import re
from typing import NamedTuple

from murmur_beam.errors import ConfigurationError
from murmur_beam.monoids.struct_name import outside_parentheses

_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
_PARAMETER = re.compile(r"([a-z_]\w*) *= *(.*)", re.IGNORECASE | re.DOTALL)


class Call(NamedTuple):
    """A name and its parameters.

    Attributes:
        name: of a monoid, before the parentheses.
        monoids: names of other monoids, in parentheses; they may have parameters, too.
        parameters: numbers by name.
    """

    name: str
    monoids: list[str]
    parameters: dict[str, int | float]


def written(name: str, *monoids: str, **parameters: int | float) -> str:
    """The name with its parameters, in the one form that stores record."""
    return f"{name}({', '.join([*monoids, *(f'{key}={value}' for key, value in parameters.items())])})"


def parse(text: str, argument: str) -> Call | None:
    """The parts of a name with parameters; None if it has no parentheses.

    Raises:
        ConfigurationError: it cannot be read; the error names ``argument``.
    """
    name, opened, rest = text.partition("(")
    if not opened:
        return None
    if not rest.endswith(")"):
        raise ConfigurationError(argument, f"{text!r:.80}: expected one pair of parentheses, closed at the end")
    call = Call(name.strip(" "), [], {})
    for part in _parts(rest[:-1], text, argument) if rest.strip(" ") != ")" else ():
        match = _PARAMETER.fullmatch(part)
        if match is None and _NUMBER.fullmatch(part) is None and part:
            call.monoids.append(part)
        elif match is None or _NUMBER.fullmatch(match[2]) is None or match[1] in call.parameters:
            raise ConfigurationError(
                argument, f"{text!r:.80}: expected NAME=NUMBER, each name once, or a monoid's name; got {part!r:.40}"
            )
        else:
            number = match[2]
            call.parameters[match[1]] = float(number) if "." in number else int(number)
    return call


def _parts(text: str, whole: str, argument: str) -> list[str]:
    """The parts between the commas that are not in parentheses themselves."""
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
    if depth:
        raise ConfigurationError(argument, f"{whole!r:.80}: parentheses do not match")
    return [part.strip(" ") for part in outside_parentheses(text)]
