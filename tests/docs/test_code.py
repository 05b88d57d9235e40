"""The code of README and of docs/ runs and prints what the pages show; commands that need a cloud are parsed.

A comment before a block, ``<!-- not run: REASON -->``, is the only way to exempt it; its ``murmur`` commands are parsed
all the same.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from murmur_beam import Count, MergeRecords, programs
from murmur_beam.cli import main as cli
from murmur_beam.options import from_flags
from murmur_beam.pubsub import messages
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER
from murmur_beam.spec import resolve
from tests.support import ROOT, environment
from tests.support.pages import PAGES, Block, blocks_of, commands_in, commands_of, parsed, prompts
from tests.support.parsing import parse

CODE = ("python", "sh", "console")
OTHERS = ("text", "sql")
"""Output, and statements that `tests/stores/test_storage_format.py` compares with the code."""

EXEMPT = {
    "README.md": 2,
    "docs/commands.md": 2,
    "docs/dataflow.md": 11,
    "docs/engines.md": 5,
    "docs/operations.md": 1,
    "docs/quickstart.md": 1,
    "docs/speed.md": 12,
}
"""How many blocks of each page are not run."""

CLOUD = re.compile(r"bigtable://|projects/|gs://|\bURI\b")
"""Commands with one of these are only parsed."""

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [(page, words) for page in PAGES for words in commands_of(page)]
MURMUR = [(page, words) for page, words in COMMANDS if words[0].rpartition("/")[2] == "murmur"]
TEXTS = {page: (ROOT / page).read_text("utf-8") for page in PAGES}
MODULES = sorted({module for text in TEXTS.values() for module in re.findall(r"python -m (\w+\.[a-z]\w*)", text)})


class Events:
    """What README calls ``events``: ten records, merged by a pipeline when something is applied to them."""

    RECORDS = [{"id": f"e{n}", "page": "ab"[n % 2]} for n in range(10)]

    def __or__(self, transform: Any) -> None:
        with beam.Pipeline() as p:
            _ = p | beam.Create(self.RECORDS) | transform


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with ``murmur`` on the PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "murmur").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m murmur_beam "$@"\n')
    (tools / "murmur").chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    # The examples name no runner, and Beam's default would look for a binary on the network.
    monkeypatch.setattr(StandardOptions, "DEFAULT_RUNNER", IN_PROCESS_RUNNER)
    return work


def shell(command: str) -> str:
    """What bash prints, on both outputs, in the order of a terminal."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env=environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def matches(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed; a line ``...`` stands for any lines."""
    pattern = "".join(r"(?:.*\n)*?" if line == "...\n" else re.escape(line) for line in shown.splitlines(keepends=True))
    return re.fullmatch(pattern, printed) is not None


def run(block: Block, commands: list[list[str]], names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a block, or the commands in it, and compare the output with what the page shows."""
    if block.language == "python":
        capsys.readouterr()
        # The empty lines give a traceback the line numbers of the page.
        exec(compile("\n" * (block.line - 1) + block.code, block.page, "exec"), names)
        assert matches(block.output or "", capsys.readouterr().out), f"{block.page}:{block.line}"
        return
    assert all(words[0] in ("murmur", "cat") for words in commands), (
        f"{block.page}:{block.line}: only murmur and cat are run; put <!-- not run: REASON --> before the block"
    )
    if any(CLOUD.search(" ".join(words)) for words in commands):
        return
    parts = prompts(block.code) if block.language == "console" else [(block.code, block.output)]
    for command, output in parts:
        printed = shell(command)
        assert output is None or matches(output, printed), f"{block.page}:{block.line}: {command}\n{printed}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language in CODE for b in blocks_of(page))])
def test_the_blocks_of_a_page_run(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From top to bottom in one folder, as a user pastes them; Python blocks share their names."""
    names: dict[str, Any] = {"__name__": "page"}
    if page == "README.md":
        names |= {"events": Events(), "MergeRecords": MergeRecords, "Count": Count}
        with gzip.open(folder / "events-1.jsonl.gz", "wt") as file:
            file.writelines(f"{json.dumps(event)}\n" for event in Events.RECORDS)
    variables: dict[str, str] = {}
    for block in blocks_of(page):
        commands = commands_in(block, variables) if block.language in ("sh", "console") else []
        if block.language in CODE and block.exempt is None:
            run(block, commands, names, capsys)


@pytest.mark.parametrize(
    ("page", "words"), MURMUR, ids=[f"{page}-{words[1]}-{n}" for n, (page, words) in enumerate(MURMUR)]
)
def test_murmur_accepts_a_command(page: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The real parser takes it; flags of a program are its own or Beam's, and together they describe a merge."""
    program = words[1].replace("-", "_")
    if program not in programs.names():
        cli._parser().read(words[1:])
        return
    found = parse(f"murmur_beam.programs.{program}", words[2:])
    options = PipelineOptions(found.others)
    assert options.get_all_options(retain_unknown_options=True).keys() == options.get_all_options().keys()
    if program in ("pubsub", "worker"):
        messages.merge_options(found.flags)
    elif program in ("merge_files", "replay"):
        resolve(from_flags(found.flags))
    assert capsys.readouterr().err == ""


def known_commands() -> list[str]:
    """The names after ``murmur``, from its help."""
    return re.findall(r"^    ([a-z][a-z-]*)\b", cli._parser().format_help().partition("\noptions:")[0], re.MULTILINE)


def test_the_commands_are_known() -> None:
    """Those of the library and the programs."""
    assert {"get", "create-table", "plan", "merge-files", "worker"} <= set(known_commands())


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_exist(page: str) -> None:
    """Each ``murmur NAME`` that a page mentions is a command."""
    named = re.findall(r"`(?:\.venv/bin/)?murmur ([a-z][a-z-]+)", (ROOT / page).read_text("utf-8"))
    assert [name for name in named if name not in known_commands()] == []


def test_the_page_of_commands_is_complete() -> None:
    """It names every command."""
    text = (ROOT / "docs/commands.md").read_text("utf-8")
    assert [name for name in known_commands() if not re.search(rf"`(murmur )?{name}\b", text)] == []


@pytest.mark.parametrize("module", MODULES)
def test_modules_that_pages_run_exist(module: str) -> None:
    """Each ``python -m`` of a module of the project names a file."""
    package, _, name = module.partition(".")
    assert package not in ("pipelines", "benchmarks") or (ROOT / package / f"{name}.py").is_file()


def test_every_block_says_what_it_is() -> None:
    """A block without a language, with another spelling of one, or indented, would be neither run nor exempt."""
    assert [page for page, text in TEXTS.items() if text.count("```") != 2 * len(blocks_of(page))] == []
    assert [(block.page, block.line) for block in BLOCKS if block.language not in (*CODE, *OTHERS)] == []


def test_few_blocks_are_exempt(capsys: pytest.CaptureFixture[str]) -> None:
    """All Python runs; the numbers of shell blocks that do not are known, and printed."""
    exempt = [block for block in BLOCKS if block.exempt is not None]
    with capsys.disabled():
        print(f"\n{len(exempt)} of {sum(block.language in CODE for block in BLOCKS)} blocks of code are not run")
    assert [block for block in exempt if block.language == "python"] == []
    assert {page: sum(block.page == page for block in exempt) for page in {block.page for block in exempt}} == EXEMPT


PLANTED = {
    "wrong output": "```python\nprint(1)\n```\n\n```text\n2\n```\n",
    "output not shown": "```python\nprint(1)\n```\n",
    "raises": "```python\n1 / 0\n```\n",
    "wrong answer": "```console\n$ murmur --version\nmurmur 0\n```\n",
    "fails": "```sh\nmurmur get sqlite:///missing.db a\n```\n",
    "another program": "```sh\nls\n```\n",
}


@pytest.mark.parametrize("name", PLANTED)
def test_faults_are_found(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A block that prints something else, fails, or can neither be run nor is exempt, fails its test."""
    (block, *_) = parsed("page.md", PLANTED[name])
    with pytest.raises((AssertionError, ZeroDivisionError)):
        run(block, commands_in(block, {}) if block.language != "python" else [], {}, capsys)
