"""docs/dataflow.md: the programs accept its commands, and its names are those of the code."""

from __future__ import annotations

import json
import re

import pytest

from murmur_beam.model import Outcome
from tests.support import ROOT
from tests.support.dataflow_page import PAGE, commands, launches
from tests.support.templates import accepts, parameters

TEXT = PAGE.read_text("utf-8")
COMMANDS = commands()
MURMUR = [words for words in COMMANDS if words[0] == "murmur"]
FLEX_RUNS = [words for words in COMMANDS if words[:4] == ["gcloud", "dataflow", "flex-template", "run"]]


def test_the_page_has_commands() -> None:
    """So that the tests below test something."""
    assert [words[1] for words in MURMUR] == [
        "create-table",
        "check",
        "pubsub",
        "get",
        "merge-files",
        "pubsub",
        "replay",
    ]
    assert len(FLEX_RUNS) == 2


def test_the_update_is_the_launch_with_update() -> None:
    """It differs in --update and in the number of workers, which it changes."""
    launch, _, update = ({word for word in words if "max_num_workers" not in word} for words in launches())
    assert update - launch == {"--update"}
    assert launch - update == set()


@pytest.mark.parametrize("words", FLEX_RUNS, ids=["pubsub", "merge_files"])
def test_templates_accept_their_parameters(words: list[str]) -> None:
    """Each parameter is one of the template's, its value passes the rules, and no required one is missing."""
    (template,) = re.findall(r"/templates/(\w+)\.json", " ".join(words))
    given = dict(word.removeprefix("--parameters=").split("=", 1) for word in words if word.startswith("--parameters="))
    known = parameters(template)
    assert given.keys() <= known.keys()
    assert {name for name, parameter in known.items() if not parameter["isOptional"]} <= given.keys()
    assert [name for name, value in given.items() if not accepts(known[name], value)] == []
    assert [value for value in given.values() if "," in value] == [], "gcloud takes a comma for the next parameter"


def test_the_flex_run_equals_the_launch() -> None:
    """The template's parameters are the flags of the launch, its keys in one."""
    launch, run = launches()[0], FLEX_RUNS[0]
    flags = [word.removeprefix("--") for word in launch]
    given = [word.removeprefix("--parameters=") for word in run if word.startswith("--parameters=")]
    (together,) = (word for word in given if word.startswith("key="))
    assert [f"key={key}" for key in together.removeprefix("key=").split("|")] == [
        word for word in flags if word.startswith("key=")
    ]
    assert set(given) - {together} <= set(flags)


def test_named_files_exist() -> None:
    """The sources of the image, and the files of this project that the page names."""
    named = {
        word.partition("=")[2]
        for words in COMMANDS
        for word in words
        if re.match(r"--(config|metadata-file|setup_file)=", word)
    }
    named |= set(re.findall(r"`((?:tests|flex)/[\w./]+)`", TEXT))
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_extra_exists() -> None:
    """The page installs an extra that the package has."""
    (extra,) = re.findall(r"-e '\.\[(\w+)\]'", TEXT)
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text("utf-8")


def test_metrics_are_those_of_the_code() -> None:
    """The library counts each counter that the page says to watch."""
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "murmur_beam").rglob("*.py"))
    (table,) = re.findall(r"^\| `metric_name`.*?\n\n", TEXT, re.DOTALL | re.MULTILINE)
    names = set(re.findall(r"`murmur:(\w+)`", table))
    assert len(names) >= 14
    for name in names:
        plain = re.sub(r"_(MIN|MAX|MEAN|COUNT)$", "", name)
        if plain.startswith("record_"):
            assert plain.removeprefix("record_") in {outcome.value for outcome in Outcome}, name
        else:
            part = re.sub(r"_(us|records)$", "", plain)
            assert re.search(rf'[":]({plain}|{part})"', source), name


def test_the_versions_are_the_tested_ones() -> None:
    """The page names the Beam of the template's image."""
    dockerfile = (ROOT / "flex/Dockerfile").read_text("utf-8")
    (beam,) = re.findall(r"_sdk:(\d+\.\d+)\.\d+$", dockerfile, re.MULTILINE)
    assert f"Beam {beam}" in TEXT
    assert json.loads((ROOT / "flex/pubsub.metadata.json").read_text("utf-8"))["streaming"] is True
