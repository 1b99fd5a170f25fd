"""Two accesses by two threads, or by one in two iterations: that they touch different bytes."""

from __future__ import annotations

from collections.abc import Sequence

import z3

from ..access.instances import Renaming, equal, sequent
from ..access.trace import Trace
from ..base.conditions import Condition, conjunction, disjunction
from ..contract.hypotheses import Hypotheses
from ..smt.bitvectors import permutes_bits, without_products
from .conflicts import overlap, same_execution
from .intervals import Unordered


def renaming(hypotheses: Hypotheses, *common: str) -> Renaming:
    """What tells the second of two executions from the first: all but the sizes and the names given."""
    return Renaming(frozenset(hypotheses.sizes) | frozenset(common))


def within_block(pair: Unordered, trace: Trace, hypotheses: Hypotheses, *common: str) -> Renaming:
    """The same for two accesses within a block, which have the loops around a run in common."""
    blocks = [v.name for v in trace.launch.values() if v.kind == "block"]
    return renaming(hypotheses, *blocks, *common, *(v.name for v in pair.common))


def apart(
    kind: str,
    statement: str,
    runs: Sequence[Unordered],
    renaming: Renaming,
    hypotheses: Hypotheses,
    by_one: bool = True,
) -> Condition:
    """The condition that two accesses share no byte; or are by one thread, where ``by_one`` makes that harmless.

    Args:
        kind: of the condition.
        statement: the same in words.
        runs: from one access to the other, all of the same two, with the same loops in common.
        renaming: tells the second from the first.
        hypotheses: the contract.
        by_one: see above.
    """
    before, after = runs[0].first.access, runs[0].second.access
    first, second = before, renaming.access(after)
    relations = [run.relation(renaming) for run in runs]
    either = relations[0] if len(runs) == 1 else [disjunction(*(conjunction(*facts) for facts in relations))]
    given = [*hypotheses.facts, *first.context.path, *second.context.path, *either]
    goal = z3.Not(overlap(first, second))
    if by_one and not (first.collective or second.collective):
        goal = z3.Or(same_execution(first.context, second.context, {"thread"}), goal)
    elif before is after:  # one and the same thread may stand for two, but not at once
        goal = z3.Or(equal(first.context.variables, second.context.variables), goal)
    if kind == "async" and permutes_bits([goal]):  # sizes matter only as far as they decide a stage
        (*given, goal), signs = without_products([*given, goal])
        given += signs
    return sequent(kind, statement, given, goal, first.context.site)
