"""The metadata of the Flex Templates."""

from __future__ import annotations

import json
import re
from types import ModuleType
from typing import Any

from tests.support import ROOT, script

FLEX = ROOT / "flex"


def metadata_script() -> ModuleType:
    """The script that writes the metadata."""
    return script("flex/metadata.py")


def metadata(pipeline: str) -> dict[str, Any]:
    """The metadata of a template."""
    found: dict[str, Any] = json.loads((FLEX / f"{pipeline}.metadata.json").read_text("utf-8"))
    return found


def parameters(pipeline: str) -> dict[str, dict[str, Any]]:
    """The parameters of a template, by name."""
    return {parameter["name"]: parameter for parameter in metadata(pipeline)["parameters"]}


def accepts(parameter: dict[str, Any], value: str) -> bool:
    """Whether Dataflow would accept this value."""
    return all(re.fullmatch(rule, value) for rule in parameter.get("regexes", []))
