"""The documentation's figures are those of the source, and it builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from lemmata.operators import OPERATORS
from test_rooms import MAY

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "proofs" / "engine"
BLOCK = re.compile(r"(<!-- sizes -->\n).*?(<!-- end of sizes -->)", re.DOTALL)

FINDS = (
    *("compiler/rewrite", "compiler/source_lines", "smt/witness"),
    *("forms/choices", "forms/refutation", "forms/pretty", "semantics/algebra", "execution/invariants"),
    *("layers/examples", "layers/mutants", "layers/row_major", "layers/tiling"),
)
"""Modules in which no error can make a false theorem, each of which says why: they find what others check, print or declare."""
NOT_TRUSTED = ("guards", "interpreter")
"""Errors there can hide a hollow proof or miss a mutant, but cannot make a false theorem."""


def lines(files: Iterable[Path]) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


def sizes() -> str:
    """The table of the engine's rooms by lines: those trusted, and the others apart."""
    finding = {ENGINE / f"{name}.py" for name in FINDS}
    rooms = {room: [f for f in (ENGINE / room).glob("*.py") if f not in finding] for room in MAY}
    rooms["the door"] = list(ENGINE.glob("*.py"))
    trusted = {room: lines(files) for room, files in rooms.items() if room not in NOT_TRUSTED}
    rows = [f"| {room} | {count} |" for room, count in trusted.items()]
    others = [f"| {room}: not trusted | {lines(rooms[room])} |" for room in NOT_TRUSTED]
    total = f"| **trusted, together** | **{sum(trusted.values())}** |"
    found = f"| what only finds a proof, prints or declares: not trusted | {lines(finding)} |"
    return "\n".join(["| room of the engine | lines |", "|---|---|", *rows, total, found, *others])


def test_the_sizes_of_what_is_trusted() -> None:
    page = ROOT / "docs" / "proofs.md"
    expected = BLOCK.sub(lambda m: f"{m[1]}\n{sizes()}\n\n{m[2]}", page.read_text())
    if "LEMMATA_UPDATE" in os.environ:
        page.write_text(expected)
    assert page.read_text() == expected, "run this test with LEMMATA_UPDATE=1"


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Sinkhorn" in (tmp_path / "sinkhorn" / "index.html").read_text()
    first = (tmp_path / "index.html").read_text()
    assert all(f'href="{operator.name}/"' in first for operator in OPERATORS.values()), "a page that no menu names"
