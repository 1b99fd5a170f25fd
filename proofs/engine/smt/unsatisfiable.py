"""One small question to Z3, for a proof that asks many: the terms stay in the context of who asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import z3


def unsatisfiable(terms: Iterable[Any], steps: int) -> bool:
    """Return whether Z3 finds, in at most so many steps, that the terms cannot hold together."""
    solver = z3.Solver()
    solver.set("rlimit", steps)
    solver.add(*terms)
    return bool(solver.check() == z3.unsat)
