"""What can happen in a block, as conditions that a solver refutes: that an operation runs, and that two run unordered.

It is not trusted: the guards against hollow proofs ask these conditions. An error here can hide a hollow proof, but cannot
make a false theorem.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..access.trace import Access, Trace
from ..base.conditions import Condition, reachable
from ..compiler.instructions import does
from ..contract.hypotheses import Hypotheses
from .ordered import Ordered, Unordered, apart
from .progress import kind
from .roles import Block, accesses
from .words import named, unmet


def operations(trace: Trace, block: Block, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield that each copy and product can happen, and what is assumed of two, in the form that the solver gets."""
    first: dict[object, Access] = {}
    for access in (a for node in trace.nodes for a in accesses(node)):
        if does(access.intrinsic or "") in ("copy", "product", "bulk"):
            yield reachable(named(access), (*hypotheses.facts, *access.context.path), access.context.site)
            first.setdefault((kind(access), access.region.name), access)
    for access in first.values():
        second = block.renaming(hypotheses).access(access)
        two = apart("async", "", Unordered(access, second, True, [[]]), hypotheses, alone=True)
        yield reachable(f"{named(access)} beside another", two.hypotheses, access.context.site)


def among_roles(ordered: Ordered, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield that two accesses of two roles can happen unordered, once for each way in which the roles are ordered."""
    threads = ordered.block.threads
    for a, b, renaming, facts in ordered.unordered.values():
        theirs = map(renaming.term, threads.plainly(b.access.context, b.step.role))
        given = (*hypotheses.facts, *threads.plainly(a.access.context, a.step.role), *theirs, *facts)
        yield reachable(f"that {unmet(a.access, b.access)}", given, a.access.context.site)
