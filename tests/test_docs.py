"""The documentation's figures are those of the source, and it builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "proofs" / "engine"
BLOCK = re.compile(r"(<!-- sizes -->\n).*?(<!-- end of sizes -->)", re.DOTALL)

TRUSTED = {
    "meaning of statements and tile operations": (
        "semantics tile_operations expressions algebra contents extended dtypes roles"
    ),
    "normal form and its laws": "ring normal_form equality equations cases constants pretty sums",
    "symbolic execution, invariants, integer facts": "symbolic invariants entailment externs",
    "meaning of torch functions, references as recurrences": "symbolic_torch pull_array cutting recurrences",
    "conditions from IR": "extract walk trace translate intrinsics state counters bounds row_major wgmma",
    "coverage": "coverage tiling instances bitvectors",
    "order: races, asynchrony, deadlock": (
        "order/__init__ order/graph order/ordered order/pairs order/phases order/progress order/questions order/roles "
        "order/runs order/structure compiler/instructions"
    ),
    "range layer": "ranges",
    "contract to hypotheses, solvers, verdicts": "hypotheses conditions solve verify report cache lemmas errors source_lines",
}
NOT_TRUSTED = {  # errors here can hide a hollow proof or miss a mutant, but not make a false theorem
    "guards against hollow proofs": "hollow",
    "mutants": "mutate mutation mutation_expressions mutation_statements rewrite source_text",
    "interpreter": "interpret lanes arithmetic warps ordering",
}


def lines(names: str) -> int:
    return sum(len((ENGINE / f"{name}.py").read_text().splitlines()) for name in names.split())


def test_the_sizes_of_what_is_trusted() -> None:
    named = [n for group in (*TRUSTED.values(), *NOT_TRUSTED.values()) for n in group.split()]
    assert sorted(named) == sorted(
        str(f.relative_to(ENGINE).with_suffix(""))
        for f in ENGINE.rglob("*.py")
        if f.parent != ENGINE or f.stem != "__init__"
    )
    rows = [f"| {part} | {lines(names)} |" for part, names in TRUSTED.items()]
    others = [f"| {part}: not trusted | {lines(names)} |" for part, names in NOT_TRUSTED.items()]
    total = f"| **trusted, together** | **{sum(lines(names) for names in TRUSTED.values())}** |"
    table = "\n".join(["| part of the engine | lines |", "|---|---|", *rows, total, *others])
    page = ROOT / "docs" / "proofs.md"
    expected = BLOCK.sub(lambda m: f"{m[1]}\n{table}\n\n{m[2]}", page.read_text())
    if "LEMMATA_UPDATE" in os.environ:
        page.write_text(expected)
    assert page.read_text() == expected, "run this test with LEMMATA_UPDATE=1"


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Sinkhorn" in (tmp_path / "sinkhorn" / "index.html").read_text()
