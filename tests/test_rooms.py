"""The walls of the proof engine: a room imports only those that DESIGN allows it, and no import leads back up.

``MAY`` is the whole architecture; ``docs/engine.md`` draws it.
"""

from __future__ import annotations

import ast
from pathlib import Path

ENGINE = Path(__file__).parent.parent / "proofs" / "engine"
MAY = {
    "base": "",
    "smt": "base",
    "compiler": "base",
    "contract": "smt",
    "forms": "smt",
    "semantics": "compiler",
    "reference": "forms",
    "execution": "semantics reference",
    "access": "compiler contract",
    "order": "access",
    "interpreter": "semantics",
    "guards": "compiler contract",
    "emitted": "compiler",
    "layers": "execution order interpreter guards",
}


def above(room: str) -> set[str]:
    """A room and all that it may import, by way of others too."""
    return {room}.union(*(above(r) for r in MAY[room].split()))


def imported(file: Path) -> set[str]:
    """The rooms that a module of the engine imports; "" for the door."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            found |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and "proofs.engine" in (node.module or ""):
            found.add("an absolute import")
    return found


def test_rooms_import_only_what_they_may() -> None:
    assert {f.name for f in ENGINE.iterdir() if f.is_dir() and f.name != "__pycache__"} == set(MAY)
    for room in MAY:
        for file in (ENGINE / room).glob("*.py"):
            assert imported(file) <= above(room), f"{file.relative_to(ENGINE)} imports {imported(file) - above(room)}"


def test_an_import_that_goes_back_up_is_noticed(tmp_path: Path) -> None:
    planted = tmp_path / "ring.py"
    planted.write_text("def late():\n    from ..execution.symbolic import execute\n")
    assert not imported(planted) <= above("forms")


def test_every_room_says_what_it_promises_and_trusts() -> None:
    for room in MAY:
        words = (ast.get_docstring(ast.parse((ENGINE / room / "__init__.py").read_text())) or "").lower()
        assert "import" in words
        assert "promise" in words or "not trusted" in words or "proves nothing" in words
