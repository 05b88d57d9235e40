"""The hosted checks, hooks and templates: they parse, and name commands, files and jobs that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

yaml = pytest.importorskip("yaml", reason="reads the files; run: pip install -e '.[test]'")

WORKFLOW = ROOT / ".github/workflows/ci.yml"
METADATA = (ROOT / "pyproject.toml").read_text("utf-8")
FILES = [
    *sorted((ROOT / ".github").rglob("*.yml")),
    ROOT / ".pre-commit-config.yaml",
]


class _Strict(yaml.SafeLoader):  # type: ignore[misc,name-defined] # known when it runs
    """Refuses a key that is repeated, of which YAML keeps the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len({*keys}), f"a key is repeated: {keys}"
        return super().construct_mapping(node, deep)


def read(path: Path) -> Any:
    """The content of a YAML file. YAML 1.1 reads the key ``on`` as True."""
    return yaml.load(path.read_text("utf-8"), _Strict)


def jobs() -> dict[str, Any]:
    """The jobs of the workflow."""
    found: dict[str, Any] = read(WORKFLOW)["jobs"]
    return found


def commands(job: Any) -> str:
    """What a job runs."""
    return "\n".join(step["run"] for step in job["steps"] if "run" in step)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_parses(path: Path) -> None:
    """It is YAML, and not empty."""
    assert isinstance(read(path), dict)


class TestWorkflow:
    """`.github/workflows/ci.yml`."""

    def test_one_check_needs_all_others(self) -> None:
        """A branch is protected by the job ``all``, which also runs, and fails, if another has failed."""
        everything = jobs()
        last = everything.pop("all")
        assert sorted(last["needs"]) == sorted(everything)
        assert last["if"] == "always()"
        (step,) = last["steps"]
        assert {word for word in ("failure", "cancelled", "skipped") if f"'{word}'" in step["if"]} == {
            "failure",
            "cancelled",
            "skipped",
        }
        assert step["run"] == "exit 1"

    def test_jobs_need_jobs_that_exist(self) -> None:
        """Also in the right order: what is downloaded has been uploaded."""
        everything = jobs()
        for job in everything.values():
            needs = job.get("needs", [])
            assert {needs} if isinstance(needs, str) else set(needs) <= everything.keys()
            actions = [step.get("uses", "") for step in job["steps"]]
            assert not any("download-artifact" in action for action in actions) or needs == "packages"

    def test_every_supported_python_is_tested(self) -> None:
        """Those of the metadata, on the wheel."""
        supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', METADATA)
        assert jobs()["installed"]["strategy"]["matrix"]["python"] == supported
        assert jobs()["oldest"]["steps"][1]["with"]["python-version"] == supported[0]

    @pytest.mark.parametrize("name", ["installed", "oldest"])
    def test_the_wheel_is_what_is_tested(self, name: str) -> None:
        """The library's own source is removed, and the wheel is installed with the extra of the tests."""
        text = commands(jobs()[name])
        assert "rm -r source/murmur_beam\n" in text
        assert 'dist/*.whl)[test]"' in text
        assert "pip install -e" not in text
        tests = [step for step in jobs()[name]["steps"] if "pytest" in step.get("run", "")]
        assert [step["working-directory"] for step in tests] == ["source"]

    def test_the_oldest_beam_is_that_of_ci_run(self) -> None:
        """Both read it from the metadata, with the same command, and run the same tests."""
        (find,) = re.findall(r"oldest=\$\((grep .*?)\)\n", commands(jobs()["oldest"]))
        script = (ROOT / ".ci/run").read_text("utf-8")
        assert find.replace("source/", "") in script
        tests = re.search(r"tests/pipelines/test_transform\S+\s+tests/pipelines/\S+", commands(jobs()["oldest"]))
        assert tests is not None
        assert tests.group() in script
        assert min(re.findall(r"apache-beam>=([\d.]+)", METADATA)) == "2.65"

    def test_files_that_are_named_exist(self) -> None:
        """Scripts and folders of tests."""
        text = "\n".join(commands(job) for job in jobs().values())
        named = set(re.findall(r"(?<![\w/])(?:\.ci|tests)/[\w/.]+(?![\w*{])", text))
        assert {".ci/run", "tests/unit", "tests/unit/test_layers.py"} <= named
        missing = [name for name in named if not (ROOT / name).exists() and not [*ROOT.glob(f"{name}*")]]
        assert missing == []

    def test_scripts_are_executable(self) -> None:
        """A job runs it as a command."""
        assert (ROOT / ".ci/run").stat().st_mode & 0o100


class TestHooks:
    """`.pre-commit-config.yaml`."""

    def test_they_are_the_checks_of_ci_run(self) -> None:
        """Each hook runs a program that `.ci/run` runs, from the developer's own environment."""
        (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
        script = (ROOT / ".ci/run").read_text("utf-8")
        assert repository["repo"] == "local"
        assert [hook["id"] for hook in repository["hooks"]] == ["ruff", "ruff-format", "house", "mypy"]
        for hook in repository["hooks"]:
            assert hook["language"] == "system"
            program = hook["entry"].split(" --")[0]
            assert f".venv/bin/{program}" in script


class TestTemplates:
    """Forms of issues, and what dependabot looks at."""

    def test_a_bug_names_what_we_ask_first(self) -> None:
        """Versions, the runner, the store, and the output of ``murmur check``."""
        form = read(ROOT / ".github/ISSUE_TEMPLATE/bug.yml")
        asked = {field["id"]: field["attributes"]["label"] for field in form["body"] if "id" in field}
        assert asked.keys() == {"what", "versions", "runner", "store", "check"}
        assert "Beam" in str(form)
        assert "murmur check URI --probe" in str(form)

    def test_dependabot_s_folders_exist(self) -> None:
        """Each has a file of its kind."""
        kinds = {"pip": "pyproject.toml", "docker": "Dockerfile", "maven": "pom.xml"}
        for update in read(ROOT / ".github/dependabot.yml")["updates"]:
            if kind := kinds.get(update["package-ecosystem"]):
                assert (ROOT / update["directory"].strip("/") / kind).is_file()
