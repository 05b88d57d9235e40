"""README and the pages of docs/: their fenced blocks, the commands in these, their headings and links."""

from __future__ import annotations

import re
import shlex
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import NamedTuple

from tests.support import ROOT

PAGES = sorted(["README.md", *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))])
"""Paths from the root, of all pages that may hold code."""

REPOSITORY = "https://github.com/murmur-beam/murmur_beam/blob/main/"
"""The address of a file in the root; README's links begin with it, so that they work on the package index."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PROMPT = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
_EXEMPT = re.compile(r"<!-- not run: (\S.*) -->\n\Z")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: path of the page, from the root.
        line: number of its first line of code.
        language: the word after the fence.
        code: its text.
        output: text of the ``text`` block that follows with nothing in between; None without one.
        exempt: why it is not run, from the comment before it; None if it is to be run.
    """

    page: str
    line: int
    language: str
    code: str
    output: str | None
    exempt: str | None


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return parsed(page, (ROOT / page).read_text("utf-8"))


def parsed(page: str, text: str) -> list[Block]:
    """The fenced blocks of a text, in order."""
    found = list(_FENCE.finditer(text))
    blocks = []
    for block, following in zip_longest(found, found[1:]):
        after = following is not None and following[1] == "text" and not text[block.end() : following.start()].strip()
        exempt = _EXEMPT.search(text[: block.start()])
        blocks.append(
            Block(
                page,
                text.count("\n", 0, block.start(2)) + 1,
                block[1],
                block[2],
                following[2] if following is not None and after else None,
                exempt and exempt[1],
            )
        )
    return blocks


def prompts(console: str) -> list[tuple[str, str]]:
    """Each command of a ``console`` block, after its ``$``, with the output below it."""
    return _PROMPT.findall(console)


def commands_of(page: str) -> list[list[str]]:
    """All commands of a page, as a shell would parse them, with the page's own exports filled in.

    Raises:
        KeyError: the page uses a variable before it exports it.
    """
    variables: dict[str, str] = {}
    return [
        command
        for block in blocks_of(page)
        if block.language in ("sh", "console")
        for command in commands_in(block, variables)
    ]


def commands_in(block: Block, variables: dict[str, str]) -> list[list[str]]:
    """The commands of a block, each as its words; what it exports is added to the variables."""
    code = block.code if block.language == "sh" else "".join(f"{command}\n" for command, _ in prompts(block.code))
    code = re.sub(r"<<'(\w+)'.*?^\1$", "", code, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    found = []
    for line in code.splitlines():
        for command in re.split(r" && | &$", line):
            words = shlex.split(command, comments=True)
            if words[:1] == ["export"]:
                for word in words[1:]:
                    name, _, value = word.partition("=")
                    variables[name] = filled(value, variables)
            elif words:
                found.append([filled(word, variables) for word in words])
    return found


def filled(word: str, variables: dict[str, str]) -> str:
    """A word with its variables; ``$(command)`` and ``$PATH`` stay."""
    return Template(word.replace("$(", "$$(")).substitute({"PATH": "$PATH", **variables})


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def links(path: Path) -> list[str]:
    """Targets of a page's links and pictures, without those in code."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", path.read_text("utf-8")))
    found = re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    return [inline or defined for inline, defined in found]
