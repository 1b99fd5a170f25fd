"""What can be wrong with a built site.

Formulas that stand raw, broken rows, names that do not break, dead links, names without an entry, a network.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from breaks import LONG

RAW = re.compile(r"\\[(\[]|\$\$|\\(?:frac|sum|text|bar|le|ge)\b|\w[_^]\{")
"""What begins a formula in LaTeX."""
CELL = re.compile(r"<td\b[^>]*>(.*?)</td>", re.DOTALL)
MARKUP = re.compile(r"<[^>]*>")


@dataclass
class Page(HTMLParser):
    """What a page links to, loads, is linked by, and says outside of code."""

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    text: str = ""
    _code: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._code += tag in ("code", "pre", "script")
        self.ids |= {value for key, value in attrs if key in ("id", "name") and value}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        elif tag in ("img", "script", "link", "iframe", "source"):
            self.loads += [value for key, value in attrs if key in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("code", "pre", "script")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._code else data


def read(path: Path) -> Page:
    """Return a page of the site, parsed."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def faults(site: Path) -> Iterator[str]:
    """Yield what is wrong with the pages of a site, a line each."""
    pages = {path.resolve(): read(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        if raw := RAW.search(page.text):
            yield f"{name}: a formula stands raw: {page.text[raw.start() : raw.start() + 30]!r}"
        yield from (f"{name}: loads {url}" for url in page.loads if urlsplit(url).netloc)
        if path.name != "404.html":  # which is shown at any depth
            yield from (f"{name}: dead link {link}" for link in page.links if not _alive(link, path, pages))
        yield from (f"{name}: {rows} rows of Returns" for rows in _returns(path) if rows != 1)
        yield from (f"{name}: a table is as wide as {word}" for word in _unbroken(path))
        if "sources" not in name.parts and "``" in path.read_text(encoding="utf-8"):
            yield f"{name}: marks of code stand raw"


def _alive(link: str, page: Path, pages: dict[Path, Page]) -> bool:
    url = urlsplit(link)
    if url.scheme or url.netloc:
        return True
    target = (page.parent / unquote(url.path)).resolve() if url.path else page
    target = target / "index.html" if target.is_dir() else target
    return target.exists() and (not url.fragment or target not in pages or unquote(url.fragment) in pages[target].ids)


def _returns(path: Path) -> Iterator[int]:
    """Yield how many rows each list of results has: a function has one result, if of several parts."""
    text = path.read_text(encoding="utf-8")
    for section in text.split('<span class="doc-section-title">Returns:</span>')[1:]:
        yield section.partition("</ul>")[0].count('class="doc-section-item')


def _unbroken(path: Path) -> Iterator[str]:
    """Yield the long names in tables that no telephone has room for and that may break nowhere."""
    for cell in CELL.findall(path.read_text(encoding="utf-8")):
        yield from (word for text in MARKUP.split(cell) for word in LONG.findall(text) if "_" in word)


def inventory(site: Path) -> set[str]:
    """Return the names in the site's ``objects.inv``."""
    content = (site / "objects.inv").read_bytes()
    start = content.index(b"zlib.\n") + len(b"zlib.\n")
    return {line.split()[0] for line in zlib.decompress(content[start:]).decode().splitlines() if line}
