"""What a reader has to take in at once: a function fits a screen, and a module of the engine can be read in one go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("proofs", "kernels", "reference", "bindings", "bench", "src/lemmata", "docs")
FUNCTION, MODULE = 60, 400


def too_long(source: str) -> Iterator[str]:
    """Yield the functions of more lines than fit a screen."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= FUNCTION:
            yield node.name


def test_a_function_fits_a_screen() -> None:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    assert {file.name: names for file in files if (names := list(too_long(file.read_text())))} == {}


def test_a_module_of_the_engine_is_read_in_one_go() -> None:
    files = list((ROOT / "proofs" / "engine").rglob("*.py"))
    assert len(files) > 100
    assert [file.name for file in files if len(file.read_text().splitlines()) > MODULE] == []


def test_a_function_of_61_lines_is_noticed() -> None:
    assert list(too_long("def long():\n" + "    pass\n" * 60)) == ["long"]
    assert not list(too_long("def short():\n" + "    pass\n" * 59))
