"""Where a kernel touches memory, as conditions that a solver refutes when the access can happen at all."""

from __future__ import annotations

from collections.abc import Iterable

from ..base.conditions import Condition, reachable
from ..contract.hypotheses import Hypotheses
from .trace import Access, Trace


def sites(trace: Trace, hypotheses: Hypotheses) -> tuple[Condition, ...]:
    """Return for each access of a trace the condition that is refuted when the access can happen."""
    return distinct(can_happen(a, hypotheses) for a in trace.accesses)


def can_happen(access: Access, hypotheses: Hypotheses) -> Condition:
    """Return the condition that is refuted when the access can happen."""
    return reachable(str(access), (*hypotheses.facts, *access.context.path), access.context.site)


def distinct(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return the conditions without repetitions of the same sequent at the same site."""
    found: dict[tuple[object, ...], Condition] = {}
    for c in conditions:
        found.setdefault((c.kind, c.site, c.goal.get_id(), *(h.get_id() for h in c.hypotheses)), c)
    return tuple(found.values())
