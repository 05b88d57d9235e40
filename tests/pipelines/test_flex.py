"""The Flex Templates: their parameters are the pipelines' own flags, and the files of the image exist."""

from __future__ import annotations

import argparse
import importlib
import posixpath
import re
import sys
from collections.abc import Callable

import pytest

from murmur_beam.errors import ConfigurationError
from murmur_beam.monoids import names
from murmur_beam.options import MergeOptions, from_flags
from murmur_beam.programs import pubsub
from murmur_beam.pubsub import messages
from murmur_beam.spec import resolve
from tests.support import ROOT, templates
from tests.support.parsing import parse
from tests.support.templates import FLEX, accepts, metadata, parameters

PIPELINES = ("pubsub", "merge_files")
LEFT_OUT = templates.metadata_script().LEFT_OUT
DOCKERFILE = re.sub(r"\\\n", " ", (FLEX / "Dockerfile").read_text("utf-8"))

EXAMPLES: dict[str, tuple[list[str], list[str]]] = {
    "subscription": (["projects/p/subscriptions/s"], ["s", "projects/p/topics/s"]),
    "dead_letter_topic": (["projects/p/topics/t"], ["t", "projects/p/subscriptions/t"]),
    "topic": (["projects/p/topics/t"], ["t", "projects/p/subscriptions/t"]),
    "input": (["gs://b/x*.csv", "gs://b/1.json|gs://b/2.json"], ["x.csv", "gs://b/x|y", "/x"]),
    "dead_letters": (["gs://b/dead.jsonl"], ["dead.jsonl", "gs://b/", "gs://b/dead/"]),
    "store": (["bigtable://p/i/t", "bigtable://p/i/t?app_profile=a&shards=8"], ["sqlite:///x.db", "bigtable://p/i"]),
    "monoid": (
        [*names(), "sum(places=2)", "map_of(sum(places=2), max_keys=5)"],
        ["", "my monoid", "my.module:", "sum(", "sum)"],
    ),
    "window": (["daily", "hourly", "minute", "15m", "2w"], ["weekly", "15"]),
    "retention": (["90d", "2w"], ["90", "d"]),
    "decode": (["json", "csv", "json:loads"], ["xml", "my.module:"]),
    "time_unit": (["s", "ms", "us", "ns"], ["m", "seconds"]),
    "id_format": (["escaped", "plain"], ["json", "text"]),
    "delimiter": ([";", "|", "tab", "\\t"], ["", ";;", '"', " "]),
    "dedup": (["exact", "none"], ["yes"]),
    "on_exhausted": (["dead_letter", "raise"], ["ignore"]),
    "max_attempts": (["1", "30"], ["0", "-1", "x"]),
    "max_record_bytes": (["1", "1000000"], ["0", "16MB"]),
    "max_dead_letters": (["0", "100", "1%", "0.5%"], ["few", "-1"]),
    "flush_events": (["1", "1000"], ["0", "x"]),
    "flush_rows": (["1", "1000"], ["0", "x"]),
    "flush_bytes": (["1", "1000000"], ["0", "64MB"]),
    "flush_age": (["5s", "500ms"], ["5"]),
    "fold": (["10s"], ["10"]),
    "fold_share": (["0", "0.25", "1"], ["25%", "2", "-0.1"]),
    "fold_age": (["1h"], ["1"]),
    "backoff_base": (["50ms", "1s"], ["fast"]),
    "backoff_max": (["5s"], ["5 s"]),
}
"""For each parameter with a rule: values that it accepts, and values that it refuses."""


def argv_of(values: dict[str, str]) -> list[str]:
    """The command line that the launcher makes of these parameters."""
    return [f"--{name}={value}" for name, value in values.items()]


def actions(pipeline: str) -> list[argparse.Action]:
    """All flags of a pipeline."""
    return parse(f"murmur_beam.programs.{pipeline}", argv_of(required(pipeline))).parser._actions


def usable(pipeline: str, values: dict[str, str]) -> bool:
    """Whether the pipeline can be built with these flags, as far as that is known without a store."""
    try:
        flags = parse(f"murmur_beam.programs.{pipeline}", argv_of(values)).flags
        if pipeline == "pubsub":
            pubsub.check_places(flags.dead_letter_topic, flags.dead_letters)
            messages.merge_options(flags)
        else:
            resolve(MergeOptions(**{"event_id": "id", **from_flags(flags).given()}))
    except (ConfigurationError, SystemExit):
        return False
    return True


def required(pipeline: str) -> dict[str, str]:
    """An example of each required parameter."""
    needed = [name for name, parameter in parameters(pipeline).items() if not parameter["isOptional"]]
    return {name: EXAMPLES[name][0][0] if name in EXAMPLES else "page" for name in needed} | {"monoid": "count"}


@pytest.mark.parametrize("pipeline", PIPELINES)
class TestParameters:
    """Of both templates, compared with the pipelines' own parsers."""

    def test_each_is_a_flag_and_no_flag_is_missing(self, pipeline: str) -> None:
        """Parameters and flags are the same, except for those that the list excludes with a reason."""
        flags = {action.dest for action in actions(pipeline)}
        assert set(parameters(pipeline)) == flags - LEFT_OUT.keys()
        assert LEFT_OUT.keys() <= flags

    def test_the_required_ones_are_required(self, pipeline: str) -> None:
        """With all of them the pipeline can be built; without any one of them it cannot."""
        given = required(pipeline)
        assert usable(pipeline, given)
        for name in given.keys() - {"monoid"} - ({"dead_letters"} if pipeline == "merge_files" else set()):
            assert not usable(pipeline, {key: value for key, value in given.items() if key != name}), name

    def test_rules_accept_the_same_values_as_the_pipeline(self, pipeline: str) -> None:
        """Valid values pass, here and in the pipeline; others are refused before a job starts."""
        for name, parameter in parameters(pipeline).items():
            assert (name in EXAMPLES) == ("regexes" in parameter), name
            good, bad = EXAMPLES.get(name, ([], []))
            more = {"event_time": "at"} if name in ("window", "retention") else {}
            more |= {"decode": "csv"} if name == "delimiter" else {}
            more |= {"value": "n"} if name == "monoid" else {}
            more |= {"fold": "10s"} if name.startswith("fold_") else {}
            more |= {"window": "daily", "event_time": "at"} if name == "retention" else {}
            for value in good:
                assert accepts(parameter, value), (name, value)
                assert usable(pipeline, {**required(pipeline), **more, name: value}), (name, value)
            assert [value for value in bad if accepts(parameter, value)] == [], name

    def test_they_are_made_of_the_flags(self, pipeline: str) -> None:
        """The file is as the script writes it; if not, run: python flex/metadata.py."""
        assert (FLEX / f"{pipeline}.metadata.json").read_text("utf-8") == templates.metadata_script().text_of(pipeline)

    def test_each_is_described(self, pipeline: str) -> None:
        """It has a label and a text, and says whether it is optional."""
        for parameter in metadata(pipeline)["parameters"]:
            assert parameter["label"]
            assert parameter["helpText"].endswith(".")
            assert isinstance(parameter["isOptional"], bool)

    def test_dataflow_knows_the_format(self, pipeline: str) -> None:
        """The file has the fields and the kinds of parameters of Dataflow's own type."""
        dataflow = pytest.importorskip("google.cloud.dataflow_v1beta3", reason="needs the extra 'dataflow'")
        text = (FLEX / f"{pipeline}.metadata.json").read_text("utf-8")
        read = dataflow.TemplateMetadata.from_json(text, ignore_unknown_fields=False)
        assert [parameter.name for parameter in read.parameters] == list(parameters(pipeline))
        assert read.streaming is (pipeline == "pubsub")

    def test_both_streaming_modes_may_be_chosen(self, pipeline: str) -> None:
        """The streaming template accepts either, exactly once by default."""
        modes = {key: value for key, value in metadata(pipeline).items() if "Once" in key or "Mode" in key}
        both = {"supportsAtLeastOnce": True, "supportsExactlyOnce": True, "defaultStreamingMode": "EXACTLY_ONCE"}
        assert modes == (both if pipeline == "pubsub" else {})


class TestLaunch:
    """The step between a template's launcher and the pipeline."""

    @pytest.fixture
    def flags(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], list[str]]:
        """`launch.flags`, found as the image finds it."""
        monkeypatch.syspath_prepend(str(FLEX))
        monkeypatch.delitem(sys.modules, "launch", raising=False)
        found: Callable[[list[str]], list[str]] = importlib.import_module("launch").flags
        return found

    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (["--key=a|b", "--store=x"], ["--key=a", "--key=b", "--store=x"]),
            (["--key==all"], ["--key==all"]),
            (["--input=gs://b/1|gs://b/2"], ["--input=gs://b/1", "--input=gs://b/2"]),
            (["--value=a|b", "--runner=DataflowRunner"], ["--value=a|b", "--runner=DataflowRunner"]),
            (["--key", "a|b"], ["--key", "a|b"]),
        ],
    )
    def test_several_values_in_one(
        self, flags: Callable[[list[str]], list[str]], argv: list[str], expected: list[str]
    ) -> None:
        """Only flags that may be repeated are split."""
        assert flags(argv) == expected

    def test_only_flags_that_may_be_repeated_are(self) -> None:
        """These are the pipelines' own flags that add to a list."""
        repeated = {
            option
            for pipeline in PIPELINES
            for action in actions(pipeline)
            if type(action).__name__ == "_AppendAction"
            for option in action.option_strings
        }
        source = (FLEX / "launch.py").read_text("utf-8")
        assert set(re.findall(r'"(--\w+)"', source)) == repeated


class TestTheImage:
    """The Dockerfile, as far as it can be checked without building it."""

    def copied(self) -> dict[str, str]:
        """The place in the image of each file and folder of this project."""
        (folder,) = re.findall(r"^WORKDIR (.*)$", DOCKERFILE, re.MULTILINE)
        found = {}
        for line in DOCKERFILE.splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                *sources, target = line.split()[1:]
                for source in sources:
                    found[source] = posixpath.normpath(
                        posixpath.join(folder, target, source if target.endswith("/") else "")
                    )
        return found

    def test_what_is_copied_exists(self) -> None:
        """Each file and folder that is copied is in the project."""
        assert self.copied()
        assert [source for source in self.copied() if not (ROOT / source).exists()] == []

    def test_the_build_finds_all_that_it_reads(self) -> None:
        """The package can be built from the copied files: its metadata, the files that they name, and its sources."""
        metadata = (ROOT / "pyproject.toml").read_text("utf-8")
        named = re.findall(r'^(?:readme|license-files) = \[?"([\w.]+)"', metadata, re.MULTILINE)
        assert len(named) == 2
        for name in (*named, "setup.py", "pyproject.toml", "murmur_beam/__init__.py"):
            assert any(name == source or name.startswith(f"{source}/") for source in self.copied()), name

    @pytest.mark.parametrize("pipeline", PIPELINES)
    def test_its_entry_points_exist(self, pipeline: str) -> None:
        """The files that the launcher runs and packages are where they are copied to."""
        variables = dict(re.findall(r"^ENV (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
        assert set(variables) == {"FLEX_TEMPLATE_PYTHON_PY_FILE", "FLEX_TEMPLATE_PYTHON_SETUP_FILE"}
        for path in variables.values():
            inside = path.replace("${PIPELINE}", pipeline)
            here = [
                ROOT / source / posixpath.relpath(inside, target)
                for source, target in self.copied().items()
                if f"{inside}/".startswith(f"{target}/")
            ]
            assert [file.is_file() for file in here] == [True], path

    def test_its_beam_is_supported_by_the_launch(self) -> None:
        """The image's Beam is a release that the extra "dataflow" allows, for a supported Python."""
        ((python, beam),) = re.findall(r"^FROM apache/beam_python([\d.]+)_sdk:([\d.]+)$", DOCKERFILE, re.MULTILINE)
        metadata = (ROOT / "pyproject.toml").read_text("utf-8")
        (oldest,) = re.findall(r'"apache-beam>=([\d.]+)"', metadata)
        assert [int(part) for part in beam.split(".")] >= [int(part) for part in oldest.split(".")]
        assert f"Python :: {python}" in metadata
        assert f"python{python.replace('.', '')}-template-launcher-base" in DOCKERFILE

    def test_the_build_passes_all_arguments(self) -> None:
        """Cloud Build passes each argument of the Dockerfile, and the Dockerfile is at the given path."""
        build = (FLEX / "cloudbuild.yaml").read_text("utf-8")
        assert set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)) == set(re.findall(r'build-arg, "(\w+)=', build))
        (file,) = re.findall(r"--file, ([\w/]+)", build)
        assert (ROOT / file).is_file()
