"""README names one command for each main job, and the package has the names that README uses."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support import ROOT

README = (ROOT / "README.md").read_text("utf-8")


def test_the_commands_are_one_line_each_and_make_their_own_environment() -> None:
    """A new user copies one line for the main job, and one for the tests."""
    commands = re.findall(r"^python3 -m venv \.venv && (.*)$", README, re.MULTILINE)
    assert [command.rpartition(" && ")[2].split()[:3] for command in commands] == [
        [".venv/bin/python", "-m", "pipelines.flights"],
        [".venv/bin/python", "-m", "pytest"],
    ]


def test_every_label_has_an_address_and_every_address_a_label() -> None:
    """Labels stand in brackets; their addresses are at the end of the page, where they do not break the lines."""
    defined = set(re.findall(r"^\[([^\]]+)\]: https://\S+$", README, re.MULTILINE))
    text = re.sub(r"^(```.*?^```|\[[^\]]+\]: [^\n]*)$", "", README, flags=re.DOTALL | re.MULTILINE)
    used = re.findall(r"\[([^\]]+)\](?:\[([^\]]+)\])?(?!\()", re.sub(r"`[^`\n]*`", "", text))
    assert {label or shown for shown, label in used} == defined
    assert len(defined) > 10


def test_the_package_exports_what_it_lists() -> None:
    """Each public name exists; importing the package alone does not load Beam."""
    code = (
        "import murmur_beam, sys; assert not any(m.split('.')[0] == 'apache_beam' for m in sys.modules);"
        "print(all(getattr(murmur_beam, name) is not None for name in murmur_beam.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
