"""What README and docs/ do not say by hand: tables made of the source and of records, each between two markers.

``<!-- NAME -->`` and ``<!-- end of NAME -->`` enclose the text that ``GENERATED[page][NAME]()`` returns.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from test_rooms import MAY

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "proofs" / "engine"


def rooms() -> str:
    """Return the first paragraphs of the engine's rooms, from the lowest room up, with what each may import."""
    parts = []
    for room in MAY:
        words = ast.get_docstring(ast.parse((ENGINE / room / "__init__.py").read_text())) or ""
        parts.append(f"### {room}\n\n{words.replace('``', '`')}")
    return "\n\n".join(parts)


GENERATED: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "docs/engine.md": {"rooms": rooms},
}


def fill(text: str, name: str, content: str) -> str:
    """Return a page with the content between the markers of that name.

    Raises:
        ValueError: the page does not have these markers once.
    """
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    filled, count = block.subn(lambda m: f"{m[1]}\n{content}\n\n{m[2]}", text)
    if count != 1:
        raise ValueError(f"{name}: expected one pair of markers, got {count}")
    return filled
