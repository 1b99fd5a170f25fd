"""Every page of the documentation leads to the code that it speaks of."""

from __future__ import annotations

from pathlib import Path

import pytest

from links import links

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TABLES = {"mutants.md"}  # written whole by `lemmata prove --table`


def sources(page: Path) -> set[str]:
    """The Python files outside the documentation that a page links to."""
    outside = (file for file, _ in links(page) if file.suffix == ".py" and not file.is_relative_to(DOCS))
    return {file.relative_to(ROOT).as_posix() for file in outside}


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in TABLES], ids=lambda p: p.name)
def test_a_page_links_to_its_sources(page: Path) -> None:
    assert sources(page)


def test_a_page_without_sources_is_noticed() -> None:
    assert not sources(DOCS / "mutants.md")
    assert sources(DOCS / "topk.md") >= {"reference/topk.py", "kernels/topk.py", "bindings/topk.py", "proofs/topk.py"}
