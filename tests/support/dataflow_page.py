"""The commands of docs/dataflow.md, as a shell would parse them."""

from __future__ import annotations

from tests.support import ROOT
from tests.support.pages import commands_of

PAGE = ROOT / "docs/dataflow.md"


def commands() -> list[list[str]]:
    """All commands in the order of the page, each as its words."""
    return commands_of("docs/dataflow.md")


def launches() -> list[list[str]]:
    """The commands that launch a job on Dataflow, without ``murmur``."""
    return [words[1:] for words in commands() if words[0] == "murmur" and "--runner=DataflowRunner" in words]
