"""The documentation says what the source says: what is generated is fresh, what is named exists, and the site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pages import ENGINE, GENERATED, ROOT, fill
from test_rooms import MAY

FINDS = "layers/tiling layers/row_major"
"""Modules that only find a proof: what they guess is checked by what is trusted."""
NOT_TRUSTED = ("guards", "interpreter")
"""Errors there can hide a hollow proof or miss a mutant, but cannot make a false theorem."""


def lines(files: Iterable[Path]) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


def sizes() -> str:
    """The table of the engine's rooms by lines: those trusted, and the others apart."""
    finding = {ENGINE / f"{name}.py" for name in FINDS.split()}
    rooms = {room: [f for f in (ENGINE / room).glob("*.py") if f not in finding] for room in MAY}
    rooms["the door"] = list(ENGINE.glob("*.py"))
    trusted = {room: lines(files) for room, files in rooms.items() if room not in NOT_TRUSTED}
    rows = [f"| {room} | {count} |" for room, count in trusted.items()]
    others = [f"| {room}: not trusted | {lines(rooms[room])} |" for room in NOT_TRUSTED]
    total = f"| **trusted, together** | **{sum(trusted.values())}** |"
    found = f"| what only finds a proof: not trusted | {lines(finding)} |"
    return "\n".join(["| room of the engine | lines |", "|---|---|", *rows, total, found, *others])


BLOCKS = [(page, name, make) for page, blocks in GENERATED.items() for name, make in blocks.items()]
BLOCKS.append(("docs/proofs.md", "sizes", sizes))


@pytest.mark.parametrize(("page", "name", "make"), BLOCKS, ids=[f"{page}-{name}" for page, name, _ in BLOCKS])
def test_what_is_generated_is_fresh(page: str, name: str, make: Callable[[], str]) -> None:
    file = ROOT / page
    expected = fill(file.read_text(), name, make())
    if "LEMMATA_UPDATE" in os.environ:
        file.write_text(expected)
    assert file.read_text() == expected, "run this test with LEMMATA_UPDATE=1"


def test_a_stale_page_and_lost_markers_are_noticed() -> None:
    page = "<!-- a -->\nold\n<!-- end of a -->"
    assert fill(page, "a", "new") != page
    with pytest.raises(ValueError, match="expected one pair of markers, got 0"):
        fill(page, "b", "new")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = (ROOT, ENGINE, ROOT / "src" / "lemmata")


def absent(text: str) -> set[str]:
    """The Python files that a page names and that are nowhere; ``OP.py`` stands for any operator's."""
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    return {n for n in named if not n.endswith("OP.py") and not any((p / n).exists() for p in PLACES)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    assert not absent(page.read_text())


def test_a_file_that_does_not_exist_is_noticed() -> None:
    assert absent("see `kernels/csa.py`, `order/nothing.py` and `proofs/OP.py`") == {"order/nothing.py"}


def test_the_drawing_of_the_rooms_is_that_of_the_walls() -> None:
    drawn = set(re.findall(r'<line id="(\w+)-(\w+)"', (ROOT / "docs" / "rooms.svg").read_text()))
    assert drawn == {(room, below) for room in MAY for below in MAY[room].split()} | {("verify", "layers")}


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Sinkhorn" in (tmp_path / "sinkhorn" / "index.html").read_text()
