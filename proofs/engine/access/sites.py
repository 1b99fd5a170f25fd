"""Where a kernel touches memory, as conditions that a solver refutes when the access can happen at all.

It is not trusted: the guards against hollow proofs ask these conditions. An error here can hide a hollow proof, but cannot
make a false theorem.
"""

from __future__ import annotations

from ..base.conditions import Condition, distinct, reachable
from ..contract.hypotheses import Hypotheses
from .trace import Access, Trace


def sites(trace: Trace, hypotheses: Hypotheses) -> tuple[Condition, ...]:
    """Return for each access of a trace the condition that is refuted when the access can happen."""
    return distinct(can_happen(a, hypotheses) for a in trace.accesses)


def can_happen(access: Access, hypotheses: Hypotheses) -> Condition:
    """Return the condition that is refuted when the access can happen."""
    return reachable(str(access), (*hypotheses.facts, *access.context.path), access.context.site)
