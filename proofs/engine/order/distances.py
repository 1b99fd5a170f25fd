"""In which iterations, and in which rounds, mbarriers leave two accesses of a block unordered.

A path of weight w from an access to another shows that the one in iteration i comes before the other in iteration i + w and
those after it. The first iteration follows what comes before the loop; what comes after it follows iteration i if there is an
iteration that is as many further on. Two rounds are asked for one after the other: what comes before something in the next
round does so in those after that, too. Of two accesses in loops of rounds, iterations are counted through all rounds.
``docs/order.md`` is the argument.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import z3

from ..access.instances import Renaming
from ..access.trace import Access, Variable
from ..base.conditions import disjunction
from .phases import Phases, Step
from .progress import FENCED, kind
from .roles import AFTER, BEFORE, INSIDE
from .runs import Mark

Weights = tuple[int | None, int | None]  # by how many iterations each of two must follow the other
Facts = list[z3.BoolRef]
Names = tuple[Renaming | None, Renaming | None]  # of two executions


class Use(NamedTuple):
    """An access of a role to shared memory: where it begins, and the nodes at which it is over, so many iterations later."""

    access: Access
    step: Step
    over: tuple[tuple[int, int], ...]

    @property
    def looped(self) -> bool:
        """Whether it is in the loop of its role."""
        return self.step.part == INSIDE


class Distances:
    """The distances of two accesses at which phases do not order them."""

    def __init__(self, phases: Phases) -> None:
        self._graph = phases.graph
        self._counts = [role.loop.count for role in phases.block.roles if role.loop is not None]

    def unordered(self, a: Use, b: Use, renaming: Renaming) -> dict[object, Facts]:
        """Return in which iterations an access and one of another role, in no earlier part, are not ordered, in several ways.

        The second is renamed.
        """
        weights = self._least(a, b), self._least(b, a) if a.step.part == b.step.part else None
        near = self._near(a, b, weights, renaming)
        if not self._graph.span:
            return {} if near is None else {weights: near}
        ours, theirs = _round(a, None), _round(b, renaming)
        ways: dict[object, Facts] = {} if near is None else {("same round", *weights): [ours == theirs, *near]}
        after, before = weights if a.looped and b.looped else (None, None)
        if (far := self._far(a, b, after, (None, renaming))) is not None:
            ways["later round", after] = [theirs > ours, *far]
        if (far := self._far(b, a, before, (renaming, None))) is not None:
            ways["round before", before] = [ours > theirs, *far]
        return ways

    def later(self, a: Use, b: Use, mark: Mark, renaming: Renaming) -> Facts | None:
        """Return in which iterations one access is not ordered after another one of its role, to which a run leads from it.

        None if in none. The second is renamed, but for loops of which the run stays in one iteration.
        """
        ahead = self._least(a, b)
        if not mark.within(a.step.role.round):
            return self._far(a, b, ahead if a.looped and b.looped else None, (None, renaming))
        if not (a.looped and b.looped):
            return self._near(a, b, (ahead, None), renaming)
        if ahead is None:
            return []
        times = mark.carried.times if mark.carried and mark.carried.variable is a.step.role.loop else 0
        if ahead <= times:
            return None
        return [renaming.variable(b.step.loop).term - a.step.loop.term < ahead] if times else []

    def _least(self, a: Use, b: Use, rounds: int = 0, looping: bool = True) -> int | None:
        """Return by how many iterations ``b`` must follow ``a`` for mbarriers to order them; None if none suffice."""
        fenced = kind(b.access) in FENCED and kind(a.access) not in FENCED
        least = partial(self._graph.least, fenced=fenced, shown=a.access.mode == "write", looping=looping)
        found = ((least(node, b.step.node + rounds * self._graph.span), later) for node, later in a.over)
        return min((weight + later for weight, later in found if weight is not None), default=None)

    def _near(self, a: Use, b: Use, weights: Weights, renaming: Renaming) -> Facts | None:
        """Return in which iterations of one round, or if there are none, the two are not ordered; None if in none."""
        (ahead, behind), parts = weights, (a.step.part, b.step.part)
        if parts in ((BEFORE, BEFORE), (AFTER, AFTER)):
            return [] if ahead is behind is None else None
        if parts == (BEFORE, AFTER):
            if self._least(a, b, looping=bool(self._graph.span)) is not None:
                return None
            return [] if ahead is None or not self._counts else [self._counts[0] <= ahead]
        if not (a.looped and b.looped):
            return _unless_passed(a, b, ahead, (None, renaming))
        if ahead is not None and behind is not None and ahead + behind <= 1:
            return None
        here, there = a.step.loop, renaming.variable(b.step.loop)
        if ahead is not None and behind is not None and here.low.eq(there.low):  # as equations, which never overflow
            return [disjunction(*(there.term == here.term + apart for apart in range(1 - behind, ahead)))]
        later = (there.term - there.low) - (here.term - here.low)
        return [*([later < ahead] if ahead is not None else []), *([-later < behind] if behind is not None else [])]

    def _far(self, a: Use, b: Use, ahead: int | None, names: Names) -> Facts | None:
        """Return in which iterations of a round and of a later one the two are not ordered; None if in none.

        Counted through all rounds, the second must be ``ahead`` iterations later; each round between them has at least one.
        """
        facts = _unless_passed(a, b, self._least(a, b, rounds=1), names)
        if facts is None or ahead is None:
            return facts
        if ahead <= 1:
            return None
        here, there = _loop(a, names[0]), _loop(b, names[1])
        left, begun = here.low + here.count - here.term, there.term - there.low
        between = _round(b, names[1]) - _round(a, names[0]) - 1
        return [*facts, left + begun + between < ahead]


def _unless_passed(a: Use, b: Use, weight: int | None, names: Names) -> Facts | None:
    """Return in which iterations two accesses in different parts are not ordered by a path of some weight; None if in none."""
    if weight is None:
        return []
    if weight == 0:
        return None
    loop = _loop(a, names[0]) if a.looped else _loop(b, names[1])
    return [loop.term + weight >= loop.low + loop.count if a.looped else loop.term - loop.low < weight]


def _loop(use: Use, renaming: Renaming | None) -> Variable:
    return use.step.loop if renaming is None else renaming.variable(use.step.loop)


def _round(use: Use, renaming: Renaming | None) -> z3.ArithRef:
    """Return the number of the round that an access is in."""
    variable = use.step.round if renaming is None else renaming.variable(use.step.round)
    return variable.term - variable.low
