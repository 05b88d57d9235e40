"""What docs/hooks.py puts into the pages of the site; building the site itself is a step of `.ci/run`."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.support import ROOT, script

TABLES = "| option | meaning |\n|---|---|\n| `key` | what to count by |\n"


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The hooks, with tables of their own."""
    options = ModuleType("murmur_beam.options")
    options.markdown = lambda: TABLES  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "murmur_beam.options", options)
    monkeypatch.setattr("murmur_beam.options", options, raising=False)
    return script("docs/hooks.py")


def shown(hooks: ModuleType, name: str, markdown: str) -> str:
    """A page as the site shows it."""
    text: str = hooks.on_page_markdown(markdown, page=SimpleNamespace(file=SimpleNamespace(src_uri=name)))
    return text


def test_the_page_of_options_holds_the_tables(hooks: ModuleType) -> None:
    """In place of the comment; the text around it stays."""
    page = (ROOT / "docs/options.md").read_text("utf-8")
    assert shown(hooks, "options.md", page) == page.replace("<!-- options -->", TABLES)


def test_a_page_of_options_without_a_place_fails_the_build(hooks: ModuleType) -> None:
    """The error names the missing line."""
    with pytest.raises(ValueError, match="<!-- options --> is missing"):
        shown(hooks, "options.md", "# Options\n")


def test_other_pages_stay(hooks: ModuleType) -> None:
    """Unchanged."""
    assert shown(hooks, "design.md", "[a](b.md)\n<!-- options -->\n") == "[a](b.md)\n<!-- options -->\n"


@pytest.mark.parametrize(("name", "file"), [("index.md", "README.md"), ("changelog.md", "CHANGELOG.md")])
def test_two_pages_show_files_of_the_root(hooks: ModuleType, name: str, file: str) -> None:
    """With their headings, and without links out of the site."""
    text = shown(hooks, name, "")
    assert text.splitlines()[0] == (ROOT / file).read_text("utf-8").splitlines()[0]
    assert "](docs/" not in text


@pytest.mark.parametrize(
    ("link", "on_the_site"),
    [
        ("[a](docs/design.md)", "[a](design.md)"),
        ("[a](docs/design.md#the-walk)", "[a](design.md#the-walk)"),
        ("[a](CHANGELOG.md)", "[a](changelog.md)"),
        ("[a](LICENSE)", "a"),
        ("[a](https://example.org/docs/a)", "[a](https://example.org/docs/a)"),
        ("[a](#use-it)", "[a](#use-it)"),
    ],
)
def test_links_of_the_root(hooks: ModuleType, link: str, on_the_site: str) -> None:
    """To pages, to addresses, to headings; the name of a file without a page is plain text."""
    assert hooks.with_links_of_the_site(link) == on_the_site


def test_short_code_is_marked(hooks: ModuleType) -> None:
    """Code in sentences, up to 32 characters."""
    assert hooks.on_page_content("<td><code>--yes</code></td>") == '<td><code class="short">--yes</code></td>'
    long = f"<code>{'a' * 33}</code>"
    assert hooks.on_page_content(long) == long


def test_bars_in_tables_lose_their_backslash(hooks: ModuleType) -> None:
    """Also in long code; text stays."""
    assert hooks.on_page_content(r"\| <code>a\|b</code>") == r'\| <code class="short">a|b</code>'


def test_code_in_blocks_stays(hooks: ModuleType) -> None:
    """A block begins with an anchor of each line."""
    block = r"<pre><code><span>a\|b</span></code></pre>"
    assert hooks.on_page_content(block) == block
