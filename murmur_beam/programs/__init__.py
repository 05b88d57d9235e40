"""Programs that merge: each module has a ``main(argv)`` and runs as ``murmur NAME``. A new file is a new program."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import tokenize
from collections.abc import Sequence
from importlib.util import find_spec

from murmur_beam.gc_tuning import declare_worker_process


def names() -> list[str]:
    """Names of the programs, which are those of the modules."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def command(name: str) -> str:
    """The command that runs a program: ``merge-files``."""
    return name.replace("_", "-")


def summary(name: str) -> str:
    """First line of a program's docstring, which is read without importing it: most programs import Beam."""
    spec = find_spec(f"{__name__}.{name}")
    if spec is None or spec.origin is None:
        return ""
    # Only its first text, since each run of ``murmur`` reads all programs: parsing them took 37 ms.
    with open(spec.origin, encoding="utf-8") as source:
        tokens = tokenize.generate_tokens(source.readline)
        first = next((token for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)), None)
    is_text = first is not None and first.type == tokenize.STRING
    return str(ast.literal_eval(first.string)).partition("\n")[0] if first is not None and is_text else ""


def run(name: str, argv: Sequence[str]) -> int:
    """Run a program as this process's only task, and return its exit code.

    Raises:
        SystemExit: after --help, and with code 2 for invalid arguments.
    """
    declare_worker_process()
    code: int = importlib.import_module(f"{__name__}.{name}").main(argv)
    return code
