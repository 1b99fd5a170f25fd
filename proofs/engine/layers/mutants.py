"""The layers tried on the mutants of a kernel.

No error here can make a false theorem: it can only hide that a mutant survives, which hints at a hollow proof.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..base.failures import unexplained
from ..base.report import Report
from ..guards.mutation import Trial, mutation_fates
from ..guards.same_code import same_code
from .problem import Problem
from .verdicts import layer

_CHEAPEST_FIRST = ("run", "L2", "range", "L0", "L1")  # the first three need no lowering


def with_mutants(
    report: Report,
    problem: Problem,
    layers: Sequence[str],
    every: int,
    equivalents: Mapping[str, str],
    share: tuple[int, int] | None,
) -> Report:
    """Return the report with the fates of every ``every``-th mutant of the kernel under some layers.

    Of a share (i, n) these are every n-th of them from number i on, one after the other.
    """
    order = [name for name in _CHEAPEST_FIRST if name in layers]
    number, count = share or (0, 1)

    def tried(mutant: Any) -> Iterator[Trial]:
        changed = replace(problem, kernel=mutant, smt=None, brief=True)
        for name in order:
            yield Trial(name, partial(layer, changed, name))

    same = partial(same_code, problem.kernel, pass_configs=problem.pass_configs, arch=problem.arch)
    chosen = slice(number * every, None, count * every)
    fates = mutation_fates(problem.kernel, tried, chosen, equivalents, same, 1 if share else None)
    return replace(report, mutations=fates, unexplained=unexplained(fates))
