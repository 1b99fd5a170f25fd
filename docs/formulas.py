"""A hook of MkDocs: formulas become MathML when the site is built, which browsers show without a script or a network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\(?:\(|\[)(.*?)\\(?:\)|\])</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Render each formula that arithmatex marked."""
    return FORMULA.sub(_rendered, content)


def _rendered(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    mathml = convert(html.unescape(found[2]).strip(), display=display)
    return f'<{found[1]} class="formula">{mathml}</{found[1]}>'
