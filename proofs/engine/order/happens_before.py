"""Layer 1, races, where the warps of a block have several roles and meet at mbarriers.

If the least weight of the paths (phases.py) that order all threads is v from an access a to an access b, and w back, then
b in iteration j and a in iteration i are unordered just where -w < j - i < v: there they must be of one thread, or of
different bytes. The first iteration follows what comes before the loop; what comes after it follows iteration i of a if
there is an iteration i + v.

An asynchronous copy lasts until its thread's arrival at the next mbarrier that counts copies, a product until the wait
that covers its group (products.py). What is written otherwise is seen by a product only beyond a proxy fence, which must
be on the path.

Trusted: that mbarriers are initialised by one thread, that shared memory begins at a multiple of 1024 bytes, and that nvcc
keeps the order of accesses and barriers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import z3

from ..access.instances import equal, sequent
from ..access.intrinsics import COPIED, COPY, MEET, ORDERING
from ..access.trace import Access, Instruction, Trace, Variable
from ..base.conditions import Analysis, Condition, disjunction, reachable
from ..base.errors import Unsupported
from ..contract.hypotheses import Hypotheses
from .asynchrony import READERS_FENCE
from .conflicts import conflict, overlap, same_execution
from .phases import Order, Step
from .products import PRODUCTS, certain, covering, reads, registers
from .timeline import AFTER, BEFORE, INSIDE, Roles

MODELLED = frozenset({*ORDERING, COPY, "tl.ptx_fence_barrier_init"}) - {MEET}


@dataclass(frozen=True)
class Use:
    """An access to shared memory.

    Args:
        access: the access.
        step: where it begins, and is over.
        lasts: whether it goes on after its statement.
        product: whether it is made by the tensor cores, through the asynchronous proxy.
    """

    access: Access
    step: Step
    lasts: bool = False
    product: bool = False


def within_roles(trace: Trace, found: Roles, hypotheses: Hypotheses) -> Analysis:
    """The conditions of race freedom in shared memory and registers; for kinds of pairs, that their hypotheses hold of some.

    Raises:
        Unsupported: the kernel uses something that is not modelled.
    """
    for item in found.prelude:
        if isinstance(item, Access) and item.region.shared and item.region.scope != "shared.barrier":
            raise Unsupported(f"shared memory before the roles: {item.context.site.text}")
    written = {a.region.allocation for a in trace.accesses if a.mode == "write"}
    for access in trace.accesses:
        if access.intrinsic == COPY and access.mode == "read" and access.region.allocation in written:
            raise Unsupported(f"a copy of what the kernel writes: {access.context.site.text}")
    for role in found.roles:
        certain(role, found.threads)
    order = Order(found)
    pairs = _Pairs(found, hypotheses, order)
    conditions = [*order.conditions(hypotheses), *pairs.conditions()]
    for role in found.roles:
        conditions += registers(role, hypotheses)
    copied = any(isinstance(s.item, Access) and s.item.intrinsic == COPY for s in order.steps)
    assumed = frozenset({READERS_FENCE} if copied else ())  # those who copy cannot fence what has not arrived
    return Analysis(tuple(conditions), assumed, tuple(pairs.possible.values()), MODELLED)


def _uses(found: Roles, order: Order) -> Iterator[Use]:
    """The accesses to shared memory, but for mbarriers."""
    of_events = {id(a) for s in order.steps if isinstance(s.item, Instruction) for a in s.item.accesses}
    for step in order.steps:
        item, items = step.item, step.role.parts[step.part]
        if isinstance(item, Instruction):
            if item.name in PRODUCTS:
                until = _until(order, step, covering(item, items))
                yield from (Use(access, until, lasts=True, product=True) for access in reads(item, items))
        elif id(item) in of_events:
            continue
        elif item.intrinsic == COPY:
            yield Use(item, _until(order, step, _copied(found, step)), lasts=True)
        elif item.intrinsic or item.region.scope == "shared.barrier":
            raise Unsupported(f"shared memory that is given to {item.intrinsic}: {item.context.site.text}")
        else:
            yield Use(item, step)


def _until(order: Order, step: Step, end: Instruction | None) -> Step:
    """The step, over where the event is."""
    return replace(step, done=next((s.done for s in order.steps if s.item is end), None))


def _copied(found: Roles, step: Step) -> Instruction | None:
    """The arrival that follows the copies of a thread so far."""
    items = iter(step.role.parts[step.part])
    next(item for item in items if item is step.item)
    arrivals = (i for i in items if isinstance(i, Instruction) and i.name == COPIED)
    return next((a for a in arrivals if not found.threads.others(a.context, step.role)), None)


class _Pairs:
    """Pairs of accesses that conflict."""

    def __init__(self, found: Roles, hypotheses: Hypotheses, order: Order) -> None:
        self.possible: dict[tuple[object, ...], Condition] = {}
        self._found, self._hypotheses, self._order = found, hypotheses, order
        self._renaming = found.renaming(hypotheses)
        self._uses = sorted(_uses(found, order), key=lambda use: use.step.part)
        self._second: dict[int, Access] = {}  # of a pair, by the identity of the access

    def conditions(self) -> Iterator[Condition]:
        """One for each pair that is not ordered in all iterations."""
        for a, b in itertools.combinations_with_replacement(self._uses, 2):
            writes = "write" in (a.access.mode, b.access.mode)
            if writes and a.access.region.allocation == b.access.region.allocation:
                yield from self._pair(a, b)

    def _pair(self, a: Use, b: Use) -> Iterator[Condition]:
        ahead, behind = self._least(a, b), self._least(b, a) if a.step.part == b.step.part else None
        unordered = self._unordered(a, b, ahead, behind)
        if unordered is None:
            return
        first, second = a.access, self._primed(b.access)
        goal = z3.Not(overlap(first, second))
        if not (a.lasts or b.lasts or first.collective or second.collective):
            goal = z3.Or(same_execution(first.context, second.context, {"thread"}), goal)
        elif a is b:
            loop = a.step.role.loop if ahead == behind == 1 else None  # both are in one iteration
            here, there = (c.variables for c in (first.context, second.context))
            places = [n for n, v in enumerate(here) if v.kind != "block" and (loop is None or v.name != loop.name)]
            goal = z3.Or(equal([here[n] for n in places], [there[n] for n in places]), goal)
        given = (*self._hypotheses.facts, *first.context.path, *second.context.path, *unordered)
        yield sequent("race", conflict(first, second), given, goal, first.context.site)
        threads = self._found.threads
        theirs = map(self._renaming.term, threads.plainly(b.access.context, b.step.role))
        plain = (*threads.plainly(first.context, a.step.role), *theirs)
        kind = (min(a.step.role.threads), a.step.part, min(b.step.role.threads), b.step.part, ahead, behind)
        given = (*self._hypotheses.facts, *plain, *unordered)
        self.possible[kind] = reachable(f"that {conflict(first, second)}", given, first.context.site)

    def _primed(self, access: Access) -> Access:
        if id(access) not in self._second:
            self._second[id(access)] = self._renaming.access(access)
        return self._second[id(access)]

    def _least(self, a: Use, b: Use, looping: bool = True) -> int | None:
        fenced, shown = b.product and not a.product, a.access.mode == "write"
        return self._order.least(a.step, b.step, fenced=fenced, shown=shown, looping=looping)

    def _unordered(self, a: Use, b: Use, ahead: int | None, behind: int | None) -> list[z3.BoolRef] | None:
        """In which iterations the two are not ordered; None if in none."""
        parts = a.step.part, b.step.part
        if parts in ((BEFORE, BEFORE), (AFTER, AFTER)):
            return [] if ahead is behind is None else None
        if parts == (BEFORE, AFTER):
            if self._least(a, b, looping=False) is not None:
                return None
            counts = [role.loop.count for role in self._found.roles if role.loop is not None]
            return [] if ahead is None or not counts else [counts[0] <= ahead]
        if parts == (BEFORE, INSIDE):
            loop = self._renaming.variable(_loop(b))
            return [] if ahead is None else [loop.term - loop.low < ahead] if ahead else None
        if parts == (INSIDE, AFTER):
            loop = _loop(a)
            return [] if ahead is None else [loop.term + ahead >= loop.low + loop.count] if ahead else None
        if ahead is not None and behind is not None and ahead + behind <= 1:
            return None
        here, there = _loop(a), self._renaming.variable(_loop(b))
        if ahead is not None and behind is not None and here.low.eq(there.low):  # as equations, which never overflow
            return [disjunction(*(there.term == here.term + apart for apart in range(1 - behind, ahead)))]
        later = (there.term - there.low) - (here.term - here.low)
        return [*([later < ahead] if ahead is not None else []), *([-later < behind] if behind is not None else [])]


def _loop(use: Use) -> Variable:
    assert use.step.role.loop is not None
    return use.step.role.loop
