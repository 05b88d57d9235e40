"""Options described once, beside their type and default: flags, URI queries, checks and docs are made of this.

A class with options is a dataclass, each of whose options is one annotated field::

    shards: Annotated[int | None, Option("rows of each key", "N", number, at_least(1, 256))] = None
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from datetime import timedelta
from functools import cache
from textwrap import wrap
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import SplitResult, parse_qsl, urlencode

from murmur_beam.durations import format_duration
from murmur_beam.errors import ConfigurationError

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """What an option is.

    Args:
        help: one sentence or less, without a full stop; for ``--help`` and the docs.
        metavar: what stands for its value in ``--help``. By its metavar a Flex template knows the form of a value.
        parse: makes a value of text; raises ValueError.
        check: raises ValueError or ConfigurationError for a value that cannot be used; its result is ignored.
        default: what holds if the option is None, as text.
        more: further sentences, for the docs only.
        choices: texts that a flag accepts, if the type is not a Literal.
        repeated: whether its flag may be given several times.
        text: whether it can be given as text, in a flag or a URI.
        prefix: before the flags of the options of its value, which is a class with options.
        flag: its name as a flag, if that is not the field's, such as the singular.
    """

    help: str
    metavar: str = "TEXT"
    parse: Callable[[str], Any] = str
    check: Callable[[Any], object] | None = None
    default: str = ""
    more: str = ""
    choices: Sequence[str] = ()
    repeated: bool = False
    text: bool = True
    prefix: str | None = None
    flag: str | None = None


class Described(NamedTuple):
    """An option of a class.

    Attributes:
        name: of the field.
        option: its description.
        default: of the field.
        inner: the class of its value, if that has options of its own; see `Option.prefix`.
        choices: the values that it accepts; none: not limited to some.
    """

    name: str
    option: Option
    default: Any
    inner: type | None
    choices: tuple[str, ...]

    def check(self, value: Any) -> None:
        """Check a value; None counts as not given if it is the default.

        Raises:
            ConfigurationError: the value cannot be used; names the option.
        """
        if value is None and self.default is None:
            return
        with naming(self.name):
            if self.choices and not self.option.choices and value not in self.choices:
                raise ValueError(f"expected {_either(self.choices)}, got {value!r:.80}")
            if self.option.check is not None:
                self.option.check(value)

    def parse(self, text: str) -> Any:
        """The value that a text stands for; not checked.

        Raises:
            ConfigurationError: it stands for none; names the option.
        """
        with naming(self.name):
            return self.option.parse(text)

    @property
    def flag(self) -> str:
        """Its name as a flag."""
        return self.option.flag or self.name

    @property
    def default_text(self) -> str:
        """The default as text; empty without one."""
        return self.option.default if self.default in (None, MISSING) else text_of(self.default)


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Let errors name this argument.

    Raises:
        ConfigurationError: in place of a ValueError, or of a ConfigurationError that names another argument.
    """
    try:
        yield
    except ConfigurationError as err:
        raise ConfigurationError(argument, err.problem) from (err.__cause__ or err)
    except ValueError as err:
        raise ConfigurationError(argument, str(err)) from None


@cache
def described(cls: type) -> tuple[Described, ...]:
    """The options of a class, in the order of its fields."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for field in fields(cls):
        hint = hints[field.name]
        if get_origin(hint) is Annotated:
            kind, option = hint.__origin__, hint.__metadata__[0]
            kinds = get_args(kind) or (kind,)
            literals = tuple(
                value for each in (kind, *kinds) if get_origin(each) is Literal for value in get_args(each)
            )
            inner = None if option.prefix is None else next(each for each in kinds if each is not type(None))
            found.append(Described(field.name, option, field.default, inner, (*option.choices, *literals)))
    return tuple(found)


def check_options(instance: Any, argument: str | None = None) -> None:
    """Check the values of all options of an instance.

    Args:
        instance: of a class with options.
        argument: what errors name, if the instance as a whole is the value of an argument.

    Raises:
        ConfigurationError: the first that cannot be used; names it.
    """
    for each in described(type(instance)):  # type: ignore[arg-type] # mypy takes type[Any] for not hashable
        try:
            each.check(getattr(instance, each.name))
        except ConfigurationError as err:
            raise (
                err if argument is None else ConfigurationError(argument, f"{each.name} {err.problem}")
            ) from err.__cause__


def documented(cls: type[T]) -> type[T]:
    """A decorator: add the options of a class to the arguments in its docstring, and show their plain types in its
    signature; for ``help()``.
    """
    lines = []
    for each in described(cls):  # type: ignore[arg-type] # see check_options
        default = f"; default: {each.default_text}" if each.default_text else ""
        text = f"{each.name}: {each.option.help}{default}. {each.option.more}".strip()
        lines += wrap(text, 112, initial_indent=" " * 8, subsequent_indent=" " * 12)
    text, raises, after = (cls.__doc__ or "").partition("    Raises:")
    arguments = "" if "    Args:\n" in text else "    Args:\n"
    cls.__doc__ = text.rstrip() + ("\n\n" if arguments else "\n") + arguments + "\n".join([*lines, "", raises]) + after
    plain = get_type_hints(cls)
    annotations = cls.__init__.__annotations__
    annotations |= {name: plain[name] for name in annotations.keys() & plain.keys()}
    return cls


# ---- flags ----


def add_flags(parser: Any, cls: type, prefix: str = "", *, spelt_twice: bool = False) -> None:
    """Add a flag for each option of a class, and of the classes within, that can be given as text; all are optional.

    Args:
        parser: an `argparse` parser or group.
        cls: the class.
        prefix: before each name, such as ``murmur_``.
        spelt_twice: also add each flag with hyphens, for parsers that do not accept these by themselves.
    """
    for each in described(cls):
        if each.inner is not None:
            add_flags(parser, each.inner, f"{prefix}{each.option.prefix}", spelt_twice=spelt_twice)
        elif each.option.text:
            add_flag(parser, each, prefix, spelt_twice=spelt_twice)


def add_flag(
    parser: Any,
    each: Described,
    prefix: str = "",
    default: str = "",
    *,
    type: Callable[[str], Any] | None = None,
    spelt_twice: bool = False,
) -> None:
    """Add the flag of one option; `given` reads its value.

    Args:
        parser: an `argparse` parser or group.
        each: the option.
        prefix: before the name.
        default: how ``--help`` shows the default, if not as it is.
        type: makes the value of text, as argparse's does; `given` then needs to do nothing.
        spelt_twice: see `add_flags`.
    """
    flag = f"--{prefix}{each.flag}"
    spellings = dict.fromkeys((flag, f"--{flag[2:].replace('_', '-')}" if spelt_twice else flag))
    shown = default or each.default_text
    parser.add_argument(
        *spellings,
        dest=flag[2:],
        default=None,
        **({"type": type} if type else {}),
        help=(each.option.help + (f"; default: {shown}" if shown else "")).replace("%", "%%"),
        action="append" if each.option.repeated else "store",
        **({"choices": each.choices} if each.choices else {"metavar": each.option.metavar}),
    )


def given(flags: object, cls: type, prefix: str = "") -> dict[str, Any]:
    """The values that flags give to the options of a class; those without a flag are left out.

    Args:
        flags: an `argparse.Namespace`, or another object with an attribute for each flag. A value that is not text is
            taken as it is, since Beam's options may be made in Python.
        cls: the class.
        prefix: as given to `add_flags`.

    Raises:
        ConfigurationError: a value that cannot be used; names the flag.
    """
    values = {}
    for each in described(cls):
        if each.inner is not None:
            inside = f"{prefix}{each.option.prefix}"
            if options := given(flags, each.inner, inside):
                with _naming_flag(inside):
                    values[each.name] = each.inner(**options)
        elif each.option.text and (value := getattr(flags, f"{prefix}{each.flag}")) is not None:
            with naming(f"--{prefix}{each.flag}"):
                values[each.name] = each.parse(value) if isinstance(value, str) else value
                each.check(values[each.name])
    return values


@contextmanager
def _naming_flag(prefix: str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as err:
        raise ConfigurationError(f"--{prefix}{err.argument}", err.problem) from (err.__cause__ or err)


# ---- queries of URIs ----


def read_query(uri: SplitResult, cls: type) -> dict[str, Any]:
    """The options that the query of a store's URI gives to a class, such as those of ``?shards=8&app_profile=web``.

    Raises:
        ConfigurationError: an option that the class does not have, or that cannot be used, or is given twice.
    """
    options = {each.name: each for each in described(cls) if each.option.text}
    values: dict[str, Any] = {}
    for name, text in parse_qsl(uri.query, keep_blank_values=True):
        if name not in options:
            raise ConfigurationError(
                "store",
                f"unknown option {name} in {uri.geturl()!r}; "
                + (f"the options are {', '.join(options)}" if options else "it takes no options"),
            )
        if name in values:
            raise ConfigurationError("store", f"{name} is in {uri.geturl()!r} twice")
        try:
            values[name] = options[name].parse(text)
        except ConfigurationError as err:
            raise ConfigurationError("store", f"{name}: {err.problem}") from None
    return values


def write_query(spec: Any) -> str:
    """The query that `read_query` reads back: ``?`` and the options that are not as by default, or nothing."""
    options = [(each.name, getattr(spec, each.name), each) for each in described(spec.__class__) if each.option.text]
    query = urlencode({name: text_of(value) for name, value, each in options if value != each.default})
    return f"?{query}" if query else ""


def text_of(value: Any) -> str:
    """The text of an option's value, which its parser reads."""
    return format_duration(value) if isinstance(value, timedelta) else str(value)


# ---- parsers and checks ----


def number(text: str) -> int:
    """Read a whole number.

    Raises:
        ValueError: the text is something else.
    """
    if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        raise ValueError(f"{text!r:.40} is not a whole number")
    return int(text)


def decimal(text: str) -> float:
    """Read a decimal number, such as 0.5.

    Raises:
        ValueError: the text is something else.
    """
    if not re.fullmatch(r"-?\d{1,18}(\.\d{1,18})?", text, re.ASCII):
        raise ValueError(f"{text!r:.40} is not a decimal number")
    return float(text)


def at_least(least: int, most: int | None = None) -> Callable[[Any], object]:
    """A check for whole numbers from ``least``, to ``most`` if there is one."""
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"

    def check(value: Any) -> None:
        if type(value) is not int or value < least or (most is not None and value > most):
            raise ValueError(f"must be an integer {allowed}, got {value!r:.80}")

    return check


def positive_duration(value: Any) -> None:
    """A check for positive timedeltas."""
    if not isinstance(value, timedelta) or value <= timedelta(0):
        raise ValueError(f"must be a positive timedelta, got {value!r:.80}")


def positive_seconds(value: Any) -> None:
    """A check for positive numbers of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"must be a positive number of seconds, got {value!r:.80}")


def a_text(value: Any) -> None:
    """A check for texts that are not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a text that is not empty, got {value!r:.80}")


def _either(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"
