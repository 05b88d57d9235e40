"""What MkDocs puts into pages when it builds the site: README, the changelog, and the tables of options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from murmur_beam import options

ROOT = Path(__file__).parent.parent
SHOWN = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site, and the files of the project's root that they show."""

REPOSITORY = "https://github.com/murmur-beam/murmur_beam/blob/main/"
"""The address of a file in the root: links of README work on the package index, too."""

PLACE_OF_OPTIONS = "<!-- options -->"
LONGEST_SHORT = 32


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page, with what is put into it; MkDocs calls this for each page.

    Raises:
        ValueError: the page of options has no place for them.
    """
    name = page.file.src_uri
    if name in SHOWN:
        return with_links_of_the_site((ROOT / SHOWN[name]).read_text("utf-8"))
    if name == "options.md":
        before, place, after = markdown.partition(f"\n{PLACE_OF_OPTIONS}\n")
        if not place:
            raise ValueError(f"docs/options.md: the line {PLACE_OF_OPTIONS} is missing")
        return f"{before}\n{options.markdown()}\n{after}"
    return markdown


def with_links_of_the_site(text: str) -> str:
    """Lead the links of a file in the root to pages of the site; a link to a file that is not a page becomes text."""
    pages = {file: page for page, file in SHOWN.items()}

    def link(match: re.Match[str]) -> str:
        label, file, anchor = match.groups()
        page = file.removeprefix("docs/") if file.startswith("docs/") else pages.get(file)
        return label if page is None else f"[{label}]({page}{anchor or ''})"

    def address(match: re.Match[str]) -> str:
        file = match[1]
        return file.removeprefix("docs/") if file.startswith("docs/") else pages.get(file, match[0])

    text = re.sub(r"\[([^\]]*)\]\((?!\w+:|#)([^)#]+)(#[^)]*)?\)", link, text)
    return re.sub(rf"{re.escape(REPOSITORY)}([\w./-]+)", address, text)


def on_page_content(html: str, **_: Any) -> str:
    """Repair code in sentences and tables.

    Short code gets a class that site.css keeps in one line, where browsers would break ``--yes``. In tables, GitHub
    takes ``\\|`` for a bar also in code; MkDocs would show the backslash.
    """

    def code(match: re.Match[str]) -> str:
        text = match[1].replace("\\|", "|")
        return f'<code class="short">{text}</code>' if len(text) <= LONGEST_SHORT else f"<code>{text}</code>"

    return re.sub(r"<code>([^<]+)</code>", code, html)
