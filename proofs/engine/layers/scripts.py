"""Conditions written to files, as SMT-LIB.

It is not trusted: people and other solvers read the files, and no verdict depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..base.conditions import Condition
from ..smt.solve import smt2


def write(conditions: Iterable[Condition], folder: Path, layer: str) -> None:
    """Write each condition of a layer to a file of its own in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, condition in enumerate(conditions):
        (folder / f"{layer}-{number:04}-{condition.kind.replace(' ', '-')}.smt2").write_text(smt2(condition))
