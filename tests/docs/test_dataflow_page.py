"""docs/dataflow.md: the programs accept its commands, and its names are those of the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from murmur_beam.cli import main as cli
from murmur_beam.model import Outcome
from murmur_beam.options import from_flags
from murmur_beam.pubsub import messages
from murmur_beam.spec import resolve
from tests.support import ROOT
from tests.support.dataflow_page import PAGE, commands, launches
from tests.support.parsing import parse
from tests.support.templates import accepts, parameters

TEXT = PAGE.read_text("utf-8")
COMMANDS = commands()
OURS = [words for words in COMMANDS if words[:2] == ["python", "-m"]]
MURMUR = [words for words in COMMANDS if words[0] == "murmur"]
FLEX_RUNS = [words for words in COMMANDS if words[:4] == ["gcloud", "dataflow", "flex-template", "run"]]


def test_the_page_has_commands() -> None:
    """So that the tests below test something."""
    assert [words[2] for words in OURS] == [
        f"pipelines.{name}" for name in ("pubsub", "merge_files", "pubsub", "replay")
    ]
    assert [words[1] for words in MURMUR] == ["create-table", "check", "get"]
    assert len(FLEX_RUNS) == 2


@pytest.mark.parametrize("words", OURS, ids=[f"{words[2]}-{number}" for number, words in enumerate(OURS)])
def test_pipelines_accept_their_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each flag is the pipeline's or Beam's, and together they describe a merge."""
    parsed = parse(words[2], words[3:])
    options = PipelineOptions(parsed.others)
    unknown = options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys()
    assert unknown == set()
    if words[2] == "murmur_beam.programs.pubsub":
        messages.merge_options(parsed.flags)
    else:
        resolve(from_flags(parsed.flags))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", MURMUR, ids=[words[1] for words in MURMUR])
def test_murmur_accepts_its_commands(words: list[str]) -> None:
    """The command line parses each of them."""
    assert cli._parser().parse_args(words[1:]).uri.startswith("bigtable://my-project/counters/views")


@pytest.mark.parametrize("module", sorted({words[2] for words in OURS}))
def test_named_programs_exist(module: str) -> None:
    """Each program that the page names answers --help."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout[:6]) == (0, "usage:"), done.stderr


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
    """The page installs an extra that setup.py has."""
    (extra,) = re.findall(r"-e '\.\[(\w+)\]'", TEXT)
    assert f'"{extra}": ' in (ROOT / "setup.py").read_text("utf-8")


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
