"""README's examples are run, and print the output that README shows; named files and commands exist."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from murmur_beam import Count, MergeRecords
from murmur_beam.programs import merge_files
from murmur_beam.runs.beam_runs import IN_PROCESS_RUNNER
from tests.support import ROOT

README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)


def test_every_python_example_has_its_output_beside_it() -> None:
    """An example without an expected output would not be checked."""
    assert len(EXAMPLES) == README.count("```python\n") >= 2


def test_all_examples_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From top to bottom, as a user pastes them: each example prints the output under it, and no two of them use one
    store differently."""
    monkeypatch.chdir(tmp_path)
    # The examples name no runner, and Beam's default would look for a binary on the network.
    monkeypatch.setattr(StandardOptions, "DEFAULT_RUNNER", IN_PROCESS_RUNNER)
    events = [{"id": f"e{n}", "page": "ab"[n % 2]} for n in range(10)]
    (one_line,) = re.findall(r"^```\nevents \| (MergeRecords\(.*\))\n```", README, re.MULTILINE)
    (flags,) = re.findall(r"^(--murmur_.*)$", README, re.MULTILINE)
    (of_files,) = re.findall(r"python -m pipelines\.merge_files ([^`]*)`", README)

    with beam.Pipeline() as p:
        _ = p | beam.Create(events) | eval(one_line, {"MergeRecords": MergeRecords, "Count": Count})
    for code, output in EXAMPLES:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
        assert capsys.readouterr().out == output
    with beam.Pipeline(options=PipelineOptions(shlex.split(flags))) as p:
        _ = p | beam.Create(events) | MergeRecords()
    with gzip.open("events-1.jsonl.gz", "wt") as file:
        file.writelines(f"{json.dumps(event)}\n" for event in events)
    assert merge_files.main(shlex.split(of_files)) == 0
    assert "0 merged / 10 duplicate / 0 dead-lettered" in capsys.readouterr().out, "the third time that they come"


def test_the_commands_are_one_line_each_and_make_their_own_environment() -> None:
    """A new user copies one line for the main job, and one for the tests."""
    commands = re.findall(r"^python3 -m venv \.venv && (.*)$", README, re.MULTILINE)
    assert [command.rpartition(" && ")[2].split()[:3] for command in commands] == [
        [".venv/bin/python", "-m", "pipelines.flights"],
        [".venv/bin/python", "-m", "pytest"],
    ]


@pytest.mark.parametrize(
    "module", sorted({*re.findall(r"python -m ((?:pipelines|benchmarks)\.\w+)", README), "murmur_beam"})
)
def test_named_commands_exist(module: str) -> None:
    """Each command that README names answers --help."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_to_files_and_headings(page: str) -> None:
    """Each link between pages of the project names a file that exists, and a heading of it."""
    for link in re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / page).read_text("utf-8")):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_the_readme_links_every_page() -> None:
    """The list of pages in README is complete."""
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"\]\(([^)#]+)\)", README))


def test_the_package_exports_what_it_lists() -> None:
    """Each public name exists; importing the package alone does not load Beam."""
    code = (
        "import murmur_beam, sys; assert not any(m.split('.')[0] == 'apache_beam' for m in sys.modules);"
        "print(all(getattr(murmur_beam, name) is not None for name in murmur_beam.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
