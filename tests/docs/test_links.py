"""Links between the pages lead to files and headings that exist; other links are well-formed. Nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import ROOT
from tests.support.pages import PAGES, REPOSITORY, headings, links

FILES = [*PAGES, *(name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md") if (ROOT / name).exists())]
INSERTED = {"options.md": "murmur_beam.options"}
"""Pages whose text is made when the site is built: the build checks anchors in them."""


def fault(path: Path, link: str) -> str | None:
    """What is wrong with a link of a page; None for a good one."""
    if link.startswith(REPOSITORY):
        path, link = ROOT / "README.md", link.removeprefix(REPOSITORY)
    if re.match(r"[a-z]+:", link):
        parts = urlsplit(link)
        return None if parts.scheme == "https" and "." in parts.netloc else f"{link}: not https://HOST"
    name, _, anchor = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    if not target.is_file() or ROOT not in target.parents:
        return f"{link}: no such file"
    if not anchor or target.name in INSERTED or target.parent == ROOT / "docs/api":
        return None
    shown = ROOT / "README.md" if target == ROOT / "docs/index.md" else target
    return None if anchor in headings(shown) else f"{link}: no such heading"


@pytest.mark.parametrize("page", FILES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    """Each link of the page."""
    assert [found for link in links(ROOT / page) if (found := fault(ROOT / page, link))] == []


@pytest.mark.parametrize("page", FILES)
def test_bare_addresses_are_well_formed(page: str) -> None:
    """Each address in a sentence has a host, and does not end with punctuation."""
    for address in re.findall(r"https?://[^\s)>`\"']+", re.sub(r"`[^`\n]*`", "", (ROOT / page).read_text("utf-8"))):
        assert "." in urlsplit(address.rstrip(".,;:")).netloc, address


SHOWN = {"docs/index.md", "docs/changelog.md"}
"""Pages that show a file of the root."""


def test_pages_of_docs_link_no_file_outside() -> None:
    """The site has the pages of docs/ only."""
    pages = [page for page in PAGES if page.startswith("docs/") and page not in SHOWN]
    targets = [(page, ((ROOT / page).parent / link.partition("#")[0]).resolve()) for page, link in inner_links(pages)]
    assert targets
    assert [(page, str(target)) for page, target in targets if ROOT / "docs" not in target.parents] == []


def inner_links(pages: list[str]) -> list[tuple[str, str]]:
    """Each link to another file of the project, with its page."""
    return [(page, link) for page in pages for link in links(ROOT / page) if not re.match(r"[a-z]+:|#", link)]


def test_the_readme_and_the_site_name_every_page() -> None:
    """README's list of pages is complete, and so is the navigation of the site."""
    pages = {page for page in PAGES if page.startswith("docs/")}
    plain = {page for page in pages - SHOWN if page.count("/") == 1}
    assert plain <= {link.removeprefix(REPOSITORY) for link in links(ROOT / "README.md")}
    navigation = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(f"docs/{name}" for name in navigation) == sorted(pages)


@pytest.mark.parametrize(
    "link",
    [
        "missing.md",
        "design.md#no-such-part",
        "#no-such-part",
        "http://example.org",
        "https://",
        "../../etc/passwd",
        f"{REPOSITORY}docs/missing.md",
        f"{REPOSITORY}docs/design.md#no-such-part",
    ],
)
def test_faults_are_found(link: str) -> None:
    """A broken link of each kind."""
    assert fault(ROOT / "docs/design.md", link) is not None


def test_good_links_are_not_faults() -> None:
    """A file, a heading, a heading of the same page, an address."""
    here = ("storage.md", "storage.md#row-keys", "#the-walk")
    for link in (*here, "https://example.org/a#b", f"{REPOSITORY}docs/design.md#the-walk"):
        assert fault(ROOT / "docs/design.md", link) is None
