"""The commands of docs/dataflow.md, as a shell would parse them."""

from __future__ import annotations

import re
import shlex
from string import Template

from tests.support import ROOT

PAGE = ROOT / "docs/dataflow.md"


def commands() -> list[list[str]]:
    """All commands in the order of the page, each as its words, with the page's own exports filled in.

    Raises:
        KeyError: the page uses a variable before it exports it.
    """
    text = PAGE.read_text("utf-8")
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    variables: dict[str, str] = {}
    found = []
    for line in lines.splitlines():
        for command in line.split(" && "):
            words = shlex.split(command)
            if words[:1] == ["export"]:
                for word in words[1:]:
                    name, _, value = word.partition("=")
                    variables[name] = Template(value).substitute(variables)
            elif words:
                found.append([Template(word).substitute(variables) for word in words])
    return found


def launches() -> list[list[str]]:
    """The commands that launch a job on Dataflow, without ``murmur``."""
    return [words[1:] for words in commands() if words[0] == "murmur" and "--runner=DataflowRunner" in words]
