"""The tree of what threads do: its nodes, without what does not matter to order, and as the threads of a role see it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import z3

from ..access.trace import Access, Branch, Context, Event, Loop, Node, Segment
from ..compiler.instructions import Does


def inside(node: Node) -> Iterator[Node]:
    """Yield the node and all nodes in it, in program order."""
    yield node
    blocks = node.arms if isinstance(node, Branch) else (node.body,) if isinstance(node, Loop) else ()
    for child in itertools.chain(*blocks):
        yield from inside(child)


def accesses(node: Node) -> Iterator[Access]:
    """Yield all accesses in a node, in program order."""
    yield from (a for n in inside(node) if isinstance(n, Segment) for a in n.accesses)


def events(nodes: Sequence[Node]) -> Iterator[Event]:
    """Yield all events in some nodes, in program order."""
    yield from (n for node in nodes for n in inside(node) if isinstance(n, Event))


def holds(nodes: Sequence[Node], what: Collection[Does]) -> bool:
    """Return whether an event that does some of these things is in some nodes."""
    return any(e.does in what for e in events(nodes))


def changed(node: Node, change: Callable[[Sequence[Node]], list[Node]]) -> Node:
    """Return the node with its body changed if it is a loop, with its arms if it is a branch."""
    if isinstance(node, Loop):
        return Loop(node.variable, change(node.body))
    return Branch(node.condition, (change(node.arms[0]), change(node.arms[1]))) if isinstance(node, Branch) else node


def coarse(nodes: Sequence[Node], what: Collection[Does]) -> list[Node]:
    """Return the nodes without events but those that do some of these things, and without loops and branches of none.

    Accesses between two events then have no order.
    """
    result: list[Node] = []
    for node in nodes:
        if isinstance(node, Segment) or not (isinstance(node, Event) or holds([node], what)):
            if not result or not isinstance(result[-1], Segment):
                result.append(Segment())
            result[-1].accesses.extend(accesses(node))  # type: ignore[union-attr]
        elif not isinstance(node, Event) or node.does in what:
            result.append(changed(node, partial(coarse, what=what)))
    return result


def projected(nodes: Sequence[Node], decides: Callable[[z3.BoolRef], bool | None]) -> list[Node]:
    """Return the nodes without arms that some threads never take; ``decides`` says which they take, None if it depends."""
    result: list[Node] = []
    for node in nodes:
        taken = decides(node.condition) if isinstance(node, Branch) else None
        if isinstance(node, Branch) and taken is not None:
            result += projected(node.arms[0 if taken else 1], decides)
        else:
            result.append(changed(node, partial(projected, decides=decides)))
    return result


def unrolled(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes, with loops of constant length in which waits leave varying numbers of groups unrolled."""
    result: list[Node] = []
    for node in (changed(n, unrolled) for n in nodes):
        often = times(node) if isinstance(node, Loop) else None
        if isinstance(node, Loop) and often is not None and any(pending(e) is None for e in events(node.body)):
            for number in range(often):
                result += _at(node.body, node.variable.term, z3.simplify(node.variable.low + number))
        else:
            result.append(node)
    return result


def _at(nodes: Sequence[Node], variable: z3.ArithRef, value: z3.ArithRef) -> list[Node]:
    """Return the nodes in one iteration of a loop around them."""

    def here(context: Context) -> Context:
        return replace(context, guards=(*context.guards, variable == value))

    def known(term: z3.ExprRef) -> z3.ExprRef:
        return z3.simplify(z3.substitute(term, (variable, value)))

    result: list[Node] = []
    for node in nodes:
        if isinstance(node, Segment):
            result.append(Segment([replace(a, context=here(a.context)) for a in node.accesses]))
        elif isinstance(node, Event):
            numbers = (None if n is None else known(n) for n in node.numbers)
            result.append(replace(node, numbers=tuple(numbers), context=here(node.context)))
        else:
            node = changed(node, partial(_at, variable=variable, value=value))
            result.append(replace(node, condition=known(node.condition)) if isinstance(node, Branch) else node)
    return result


def times(loop: Loop) -> int | None:
    """Return how often a loop goes round, if that is constant."""
    extent = None if loop.variable.extent is None else z3.simplify(loop.variable.extent)
    return max(extent.as_long(), 0) if extent is not None and z3.is_int_value(extent) else None


def pending(event: Event) -> int | None:
    """Return how many groups a wait leaves under way, 0 for what is no wait; None if the number varies."""
    if event.does not in ("await", "finish", "drain"):
        return 0
    number = z3.simplify(event.numbers[0])
    return number.as_long() if z3.is_int_value(number) else None
