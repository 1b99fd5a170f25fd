"""Pictures as SVG text that follows the reader's light or dark mode: by the system alone, or by the site around it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

STYLE = (Path(__file__).parent / "picture.css").read_text(encoding="utf-8")
HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path class="head" d="M0 0L8 4L0 8z"/></marker></defs>'
)


def picture(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """Return a whole picture; the title is for those who cannot see it."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" viewBox="0 0 {width} {height}" role="img" '
            f'width="{width}" height="{height}" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title><style>\n{STYLE}</style>{HEAD}",
            f'<rect class="paper" width="{width}" height="{height}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Return a line of text, its baseline at y."""
    return f'<text x="{x:g}" y="{y:g}"{_class(kind)}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "line", *, head: bool = False) -> str:
    """Return a straight line, with a head at its end if asked for."""
    marker = ' marker-end="url(#head)"' if head else ""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"{_class(kind)}{marker}/>'


def dot(x: float, y: float, radius: float, kind: str, title: str = "") -> str:
    """Return a dot, with words that a pointer above it shows."""
    words = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle cx="{x:.1f}" cy="{y:g}" r="{radius:g}"{_class(kind)}>{words}</circle>'


def bar(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> str:
    """Return a bar to the right of x, with words that a pointer above it shows."""
    words = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}"{_class(kind)}>{words}</rect>'


def box(x: float, y: float, width: float, height: float, lines: Iterable[str], kind: str = "box") -> str:
    """Return a box with lines of text in its middle, the first of them bold."""
    lines = list(lines)
    first = y + height / 2 + 4.5 - 8 * (len(lines) - 1)
    words = (
        text(x + width / 2, first + 16 * number, words, "mid small" if number else "mid bold")
        for number, words in enumerate(lines)
    )
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"{_class(kind)}/>{"".join(words)}'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
