"""Which accesses may fall between the same two barriers.

All threads of a block pass the same barriers in the same order (a condition of its own, see races.py). Two accesses by
two threads are unordered exactly when a run of the kernel leads from one to the other without a barrier. Such runs are
read off the structure: within a straight piece of code, from the tail of one statement to the head of a later one, and
around a loop, from the tail of one iteration to the head of the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import z3

from ..access.instances import Renaming
from ..access.trace import Access, Barrier, Branch, Loop, Node, Segment, Variable


@dataclass(frozen=True)
class Placed:
    """An access, and what the run without a barrier says of the iterations it is in."""

    access: Access
    given: tuple[z3.BoolRef, ...] = ()

    def also(self, fact: z3.BoolRef) -> Placed:
        """The same with one more fact."""
        return Placed(self.access, (*self.given, fact))


@dataclass(frozen=True)
class Unordered:
    """Two accesses with no barrier between them.

    Args:
        first: the access that comes first on the run, or either of them.
        second: the other, whose private names are yet to be primed.
        common: the loop variables that have the same value in both.
        carried: a loop that goes round between them, and whether it may go round more than once.
    """

    first: Placed
    second: Placed
    common: tuple[Variable, ...]
    carried: tuple[Variable, bool] | None = None

    def relation(self, renaming: Renaming) -> tuple[z3.BoolRef, ...]:
        """What the run says of both, once the second is renamed."""
        facts = [*self.first.given, *(renaming.term(g) for g in self.second.given)]
        if self.carried:
            before, repeated = self.carried
            after = renaming.variable(before).term
            facts.append(after > before.term if repeated else after == before.term + 1)
        return tuple(facts)


def coarse(nodes: list[Node], kept: tuple[type[Node], ...]) -> list[Node]:
    """The nodes without the loops and branches that hold none of the nodes kept, whose accesses then have no order."""
    result: list[Node] = []
    for node in nodes:
        if isinstance(node, Segment) or (isinstance(node, (Loop, Branch)) and not _holds(node, kept)):
            if not result or not isinstance(result[-1], Segment):
                result.append(Segment())
            result[-1].accesses.extend(accesses(node))  # type: ignore[union-attr]
        elif isinstance(node, Loop):
            result.append(Loop(node.variable, coarse(node.body, kept)))
        elif isinstance(node, Branch):
            result.append(Branch(node.condition, (coarse(node.arms[0], kept), coarse(node.arms[1], kept))))
        elif isinstance(node, kept):
            result.append(node)
    return result


def accesses(node: Node) -> Iterator[Access]:
    """All accesses in a node, in program order."""
    if isinstance(node, Segment):
        yield from node.accesses
    for child in _inside(node):
        yield from accesses(child)


def _inside(node: Node) -> list[Node]:
    if isinstance(node, Branch):
        return [*node.arms[0], *node.arms[1]]
    return node.body if isinstance(node, Loop) else []


def _holds(node: Node, kept: tuple[type[Node], ...]) -> bool:
    return isinstance(node, kept) or any(_holds(child, kept) for child in _inside(node))


def unordered(nodes: list[Node], common: tuple[Variable, ...] = ()) -> Iterator[Unordered]:
    """All pairs of accesses that some run connects without a barrier."""
    for node in nodes:
        yield from _within(node, common)
    for i, earlier in enumerate(nodes):
        for later in nodes[i + 1 :]:
            for a, b in itertools.product(_tail(earlier), _head(later)):
                yield Unordered(a, b, common)
            if not _passable([later]):
                break


def _within(node: Node, common: tuple[Variable, ...]) -> Iterator[Unordered]:
    if isinstance(node, Segment):
        placed = [Placed(a) for a in node.accesses]
        for a, b in itertools.combinations_with_replacement(placed, 2):
            yield Unordered(a, b, common)
    elif isinstance(node, Branch):
        for arm in node.arms:
            yield from unordered(arm, common)
    elif isinstance(node, Loop):
        yield from unordered(node.body, (*common, node.variable))
        repeated = _passable(node.body)
        for a, b in itertools.product(_tails(node.body), _heads(node.body)):
            yield Unordered(a, b, common, (node.variable, repeated))


def _passable(nodes: list[Node]) -> bool:
    """Whether some run through the nodes meets no barrier. May err towards yes."""
    return all(_node_passable(n) for n in nodes)


def _node_passable(node: Node) -> bool:
    if isinstance(node, Loop):
        extent = z3.simplify(node.variable.count)
        runs = z3.is_int_value(extent) and extent.as_long() > 0
        return not runs or _passable(node.body)
    if isinstance(node, Branch):
        return any(_passable(arm) for arm in node.arms)
    return not isinstance(node, Barrier)


def _heads(nodes: list[Node]) -> Iterator[Placed]:
    """The accesses that a run from the start of the nodes reaches before any barrier."""
    for node in nodes:
        yield from _head(node)
        if not _passable([node]):
            return


def _tails(nodes: list[Node]) -> Iterator[Placed]:
    """The accesses from which a run reaches the end of the nodes without a barrier."""
    for node in reversed(nodes):
        yield from _tail(node)
        if not _passable([node]):
            return


def _head(node: Node) -> Iterator[Placed]:
    if isinstance(node, Segment):
        yield from (Placed(a) for a in node.accesses)
    elif isinstance(node, Branch):
        for arm in node.arms:
            yield from _heads(arm)
    elif isinstance(node, Loop):
        first = node.variable.term == node.variable.low
        for placed in _heads(node.body):
            yield placed if _passable(node.body) else placed.also(first)


def _tail(node: Node) -> Iterator[Placed]:
    if isinstance(node, Segment):
        yield from (Placed(a) for a in node.accesses)
    elif isinstance(node, Branch):
        for arm in node.arms:
            yield from _tails(arm)
    elif isinstance(node, Loop):
        last = node.variable.term == node.variable.low + node.variable.count - 1
        for placed in _tails(node.body):
            yield placed if _passable(node.body) else placed.also(last)


def barriers(nodes: list[Node]) -> Iterator[Barrier]:
    """All barriers, in program order."""
    for node in nodes:
        if isinstance(node, Barrier):
            yield node
        elif isinstance(node, Loop):
            yield from barriers(node.body)
        elif isinstance(node, Branch):
            for arm in node.arms:
                yield from barriers(arm)
