"""Checks the rules that keep this code readable; prints what breaks them, and four counts.

1. No function is longer than 60 lines.
2. No module is longer than 500 lines; no test file is longer than 800.
3. Imports point down, as drawn in docs/design.md; type-only imports count too.
4. No docstring, comment, message, test name or page uses a phrase of `PHRASES`.

Run ``python .ci/house.py``, with files or folders to see those only. The exit code is 1 if a rule is broken.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FUNCTION_LINES, MODULE_LINES, TEST_FILE_LINES = 60, 500, 800

PHRASES = {
    r"\b(whoever|nobody|somebody)\b": "name the reader, the other writer, the caller",
    r"\bso (many|much|long)\b(?! as\b)": "give the number, or write 'this many', 'a limit'",
    r"(?<!there )\b(is|are|was|were) no (?!longer|more|later|less|fewer|better|need|such)(?=[a-z])": "is not a ...",
    r"(?<!there )\b(is|are|was|were) (?-i:none)\b": "say what is missing",
    r"\b(is|are|was|were|be|been|being) told\b": "is reported, is given, learns",
    r"\b(tells|told|tell) (how|what|which|whether|why|that)\b": "says, shows, reports",
    r"\bin vain\b": "has no effect",
    r"\bas may be\b": "as possible",
    r"\bfor ever\b": "forever, or permanently",
    r"\b(come|comes|came) true\b": "is applied",
    r"\bthe like\b": "name the other things",
}
"""Phrases that a newcomer stumbles over, as regular expressions, and what to write instead."""

# A row: a module (below murmur_beam, or in pipelines), and the modules that it may import, from the bottom up. "x.*"
# are the modules in package x, unless a row of their own says otherwise; "x" is the package's own __init__.
BASICS = (
    "option errors forks model clock durations sizes import_path windows metrics monoids.base state.base state.adapted"
)
CORE = f"{BASICS} retry config processor"
LIBRARY = f"{CORE} gc_tuning buffer decode fields times extract deadletter options spec monoids monoids.* state state.*"

MAY_IMPORT = {
    "errors": "",
    "clock": "",
    "gc_tuning": "",
    "forks": "",
    "import_path": "errors",
    "durations": "",
    "sizes": "",
    "option": "errors durations",
    "model": "errors",
    # Monoids know nothing but the contract. Those that share code say so in a row.
    "monoids.base": "errors model",
    "monoids.notation": "errors monoids.struct_name",
    "monoids.*": "errors model monoids.base monoids.notation",
    "monoids.count": "errors model monoids.base monoids.sum",
    "monoids.exact": "errors model monoids.base",
    "monoids.float_sum": "errors model monoids.base monoids.exact",
    "monoids.map_of": "errors model monoids.base monoids.notation monoids.sum",
    "monoids.mean": "errors model monoids.base monoids.exact",
    "monoids.variance": "errors model monoids.base monoids.exact",
    "monoids.min": "errors model monoids.base monoids.extremum",
    "monoids.max": "errors model monoids.base monoids.extremum",
    "monoids.timed": "errors model monoids.base monoids.extremum",
    "monoids.first": "errors model monoids.base monoids.timed",
    "monoids.last": "errors model monoids.base monoids.timed",
    "monoids.struct_name": "",
    "monoids.structs": "errors model monoids.base monoids.struct_name",
    "monoids": "errors import_path monoids.*",
    # Stores know the contract, and never each other.
    "state.base": "errors model durations monoids.base monoids.struct_name",
    "state.adapted": "errors model monoids.base state.base",
    "state.folding": "errors model state.base",
    "state.*": "errors forks model clock durations option monoids.base state.base state.adapted",
    "state.sqlite": "errors option state.sqlite.*",
    "state.sqlite.*": "errors forks model clock durations option monoids.base state.base state.sqlite.*",
    "state.bigtable": "errors option state.bigtable.*",
    "state.bigtable.table_aggregates": "errors model monoids monoids.* state.bigtable.*",
    "state.bigtable.*": "errors model clock durations sizes option monoids.base monoids.structs "
    "monoids.struct_name state.base state.folding retry windows state.bigtable.*",
    "state": "errors model import_path state.base state.adapted state.*",
    # The core runs without Beam.
    "retry": "errors clock",
    "windows": "errors model durations",
    "metrics": "errors forks model",
    "config": f"{BASICS} retry",
    "processor": f"{BASICS} retry config",
    "buffer": "errors model durations option",
    # From an element to a record.
    "decode": "errors model",
    "fields": "errors model decode",
    "times": "errors model",
    "extract": f"{CORE} decode fields times monoids.structs",
    "deadletter": f"{CORE} decode extract times",
    "options": f"{CORE} buffer decode fields times monoids state",
    "spec": f"{CORE} options buffer extract fields times monoids state state.one_meaning state.folding",
    "fold_policy": "spec",
    "fold_thread": "spec fold_policy state.folding state.pool",
    "merger": LIBRARY,
    # What users hold in their hands.
    "beam_metrics": BASICS,
    "fold_stage": f"{LIBRARY} beam_metrics fold_policy",
    "transforms": f"{LIBRARY} merger beam_metrics fold_policy fold_stage",
    "reader": LIBRARY,
    # What runs from a command line. Programs and cli are found by name, and nothing imports them.
    "quiet_beam": "",
    "runs": "",
    "runs.command_line": "",
    "runs.endings": "errors model",
    "runs.console": "errors gc_tuning model runs.command_line runs.endings",
    "runs.beam_runs": "errors model beam_metrics quiet_beam runs.* files.*",
    "files": "",
    "files.*": "errors model decode quiet_beam files.*",
    "pubsub": "",
    "pubsub.*": f"{LIBRARY} merger fold_policy fold_thread runs.endings runs.console files.letter_files pubsub.*",
    "programs": "gc_tuning",
    "programs.*": f"{LIBRARY} quiet_beam beam_metrics merger transforms reader runs.* files.* pubsub.* programs.*",
    "programs.end_to_end": f"{LIBRARY} reader state.bigtable.* runs.* pubsub.* programs.* testing.*",
    "cli": "",
    "cli.*": f"{LIBRARY} reader runs.command_line state.bigtable.* cli.*",
    "cli.main": f"{LIBRARY} __init__ runs.command_line programs cli.*",
    "cli.tables": f"{LIBRARY} __init__ state.bigtable.* cli.*",
    "__main__": "cli.main",
    "__init__": f"{LIBRARY} reader transforms",
    "pipelines": "",
    "pipelines.*": "runs.console programs.*",
    # Test helpers: nothing above imports them, but the demonstration that starts emulators.
    "testing": "testing.*",
    "testing.*": f"{LIBRARY} testing.* testing.stores",
    "testing.stores": f"{LIBRARY} testing.stores.*",
    "testing.stores.*": f"{LIBRARY} testing.fakes testing.stores.*",
}

# Another library -> the modules that may import it.
FOREIGN = {
    "apache_beam": "transforms beam_metrics fold_stage quiet_beam runs.beam_runs files.matching programs.*",
    "google": "state.bigtable.* pubsub.* programs.*",
    "grpc": "state.bigtable.* pubsub.*",
}


class Import(NamedTuple):
    """One import: of which module, and in which line."""

    module: str
    line: int


def imports_of(source: str, file: str, modules: Collection[str]) -> Iterator[Import]:
    """Full names of the modules that a file imports, wherever in the file, resolving relative imports.

    Args:
        source: text of the file.
        file: its path from the root, such as ``murmur_beam/state/sqlite.py``.
        modules: full names of all modules of ours, to tell ``from package import module`` from other names.
    """
    package = file.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield Import(inner if inner in modules else origin, node.lineno)


def full_name(file: str) -> str:
    """``murmur_beam/state/__init__.py`` is the module ``murmur_beam.state``."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def short_name(module: str) -> str:
    """The name that the table uses for a module of ours."""
    return "__init__" if module == "murmur_beam" else module.removeprefix("murmur_beam.")


def row_for(short: str, rows: Collection[str]) -> str | None:
    """The row that speaks of a module: its own, or else its package's."""
    package, dot, _ = short.rpartition(".")
    return next((row for row in (short, f"{package}.*") if row in rows and (dot or row == short)), None)


def violations(file: str, source: str, modules: Collection[str]) -> list[str]:
    """What a file imports and may not, one line each."""
    short = short_name(full_name(file))
    row = row_for(short, MAY_IMPORT)
    if row is None:
        return [
            f"{file}: no row in MAY_IMPORT in .ci/house.py speaks of {short!r}. Find its place in "
            "docs/design.md, The parts: what it imports, and what imports it. Add a row, and its name to their rows."
        ]
    allowed = MAY_IMPORT[row].split()
    found = []
    for module, line in imports_of(source, file, modules):
        top = module.partition(".")[0]
        if top in ("murmur_beam", "pipelines"):
            target = short_name(module)
            if target != short and target not in allowed and row_for(target, allowed) is None:
                only = " ".join(allowed) or "nothing of ours"
                found.append(f"{file}:{line}: {short!r} may not import {target!r}; it may import {only}")
        elif top in FOREIGN and row_for(short, FOREIGN[top].split()) is None:
            found.append(f"{file}:{line}: {short!r} may not import {module!r}; only {FOREIGN[top]} may")
    return found


def sources() -> dict[str, str]:
    """Text of every file that the rule is about, by path from the root."""
    files = [path for top in ("murmur_beam", "pipelines") for path in sorted((ROOT / top).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in files}


def upward_imports() -> Iterator[str]:
    """Imports that the table does not allow, in the package and in pipelines."""
    texts = sources()
    modules = {full_name(file) for file in texts}
    for file, source in texts.items():
        yield from violations(file, source, modules)


def long_functions(file: str, source: str) -> Iterator[str]:
    """Functions of too many lines, from ``def`` to the last line of the body."""
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{file}:{node.lineno}: {node.name} has {lines} lines; at most {FUNCTION_LINES}"


def long_module(file: str, source: str) -> Iterator[str]:
    """The file, if it has too many lines."""
    lines = source.count("\n")
    most = TEST_FILE_LINES if file.startswith("tests/") else MODULE_LINES
    if lines > most:
        yield f"{file}: {lines} lines; at most {most}"


def texts_of(file: str, source: str) -> Iterator[tuple[int, str]]:
    """What a file says in words, each with its first line: a page's lines; comments, strings and names of tests."""
    if not file.endswith(".py"):
        yield from enumerate(source.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and file.startswith("tests/"):
            yield node.lineno, node.name.replace("_", " ")


def questions(file: str, source: str) -> Iterator[str]:
    """Docstrings with a line that ends in a question mark."""
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            for line in (ast.get_docstring(node) or "").splitlines():
                if line.rstrip().endswith("?"):
                    where = f"{file}:{getattr(node, 'lineno', 1)}"
                    yield f"{where}: a docstring asks {line.strip()!r}; write what it returns"


def unclear_words(file: str, source: str) -> Iterator[str]:
    """Phrases of `PHRASES`, and questions as docstrings."""
    for line, text in texts_of(file, source):
        for phrase, instead in PHRASES.items():
            for match in re.finditer(phrase, " ".join(text.split()), re.IGNORECASE):
                yield f"{file}:{line}: {match.group()!r}; write: {instead}"
    if file.endswith(".py"):
        yield from questions(file, source)


def files(arguments: Sequence[str]) -> Iterator[Path]:
    """The files to check: those that are named, or all sources and pages."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob(".github/*.md")]
    tops = [Path(argument) for argument in arguments] or [
        *pages,
        *(ROOT / top for top in ("docs", "murmur_beam", "pipelines", "benchmarks", "tests")),
    ]
    for top in tops:
        yield from sorted([*top.rglob("*.py"), *top.rglob("*.md")]) if top.is_dir() else [top]


def main(arguments: Sequence[str]) -> int:
    """Print what breaks the rules, and how much of each; 1 if anything does."""
    found: dict[str, list[str]] = {"long functions": [], "long modules": [], "upward imports": [], "unclear words": []}
    for path in files(arguments):
        file = path.resolve().relative_to(ROOT.resolve()).as_posix()
        source = path.read_text("utf-8")
        found["unclear words"] += unclear_words(file, source)
        if file.endswith(".py"):
            found["long functions"] += long_functions(file, source)
            found["long modules"] += long_module(file, source)
    found["upward imports"] += upward_imports()
    for faults in found.values():
        for fault in faults:
            print(fault)
    for name, faults in found.items():
        print(f"{name:<16}{len(faults):>5}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
