"""Relative links of Markdown pages: where they lead, and in how many clicks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

LINK = re.compile(r"\]\((?!\w+:)([^)\s#]*)(#[^)\s]+)?\)")


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file and the anchor of each relative link on a page; code is no link."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for path, anchor in LINK.findall(text):
        yield (page.parent / path).resolve() if path else page.resolve(), anchor.removeprefix("#")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere."""
    found = []
    for file, anchor in links(page):
        if not file.exists():
            found.append(str(file))
        elif anchor and anchor not in anchors(file):
            found.append(f"{file}#{anchor}")
    return found


def clicks(page: Path) -> dict[Path, int]:
    """Return the fewest clicks from a page to each file that it leads to, by way of Markdown pages."""
    found = {page.resolve(): 0}
    pending = [page.resolve()]
    for at in pending:  # grows while it is walked
        if at.suffix == ".md" and at.exists():
            new = [file for file, _ in links(at) if file not in found]
            found |= dict.fromkeys(new, found[at] + 1)
            pending += new
    return found
