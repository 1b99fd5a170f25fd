"""The early launch: a kernel that may start while those before it still run waits for them before it touches memory.

TileLang launches a kernel early as soon as it holds one wait for the kernels before it, wherever that stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import z3

from ..access.trace import Access, Branch, Event, Loop, Node, Segment, Trace
from ..base.conditions import Condition, conjunction, disjunction
from ..contract.hypotheses import Hypotheses
from .structure import events


def launch(trace: Trace, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield for each access to global memory that its thread has waited for the kernels launched before this one."""
    if any(e.does == "grids" for e in events(trace.nodes)):
        for access, waited in _touched(trace.nodes, []):
            what = f"the kernels launched before have ended at this {access}"
            given = (*hypotheses.facts, *access.context.path)
            yield Condition("launch", what, given, disjunction(*waited), access.context.site)


def _touched(nodes: Sequence[Node], waited: list[z3.BoolRef]) -> Iterator[tuple[Access, tuple[z3.BoolRef, ...]]]:
    """Yield the accesses to global memory, each with the conditions under any of which a wait came before it."""
    for node in nodes:
        match node:
            case Segment():
                yield from ((a, tuple(waited)) for a in node.accesses if a.region.scope == "global")
            case Event() if node.does == "grids":
                waited.append(conjunction(*node.context.guards))
            case Branch():
                for arm in node.arms:
                    yield from _touched(arm, waited)
            case Loop():  # which may end before its first iteration
                yield from _touched(node.body, list(waited))
