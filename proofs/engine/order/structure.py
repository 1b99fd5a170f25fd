"""The tree of what threads do: its nodes, without what does not matter to order, and as the threads of a role see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import z3

from ..access.trace import Access, Branch, Context, Event, Loop, Node, Segment


def inside(node: Node) -> Iterator[Node]:
    """Yield the node and all nodes in it, in program order."""
    yield node
    bodies = node.arms if isinstance(node, Branch) else [node.body] if isinstance(node, Loop) else []
    for child in (child for body in bodies for child in body):
        yield from inside(child)


def segments(nodes: Sequence[Node]) -> Iterator[Segment]:
    """Yield all segments in some nodes, in program order."""
    yield from (n for node in nodes for n in inside(node) if isinstance(n, Segment))


def accesses(nodes: Sequence[Node]) -> Iterator[Access]:
    """Yield all accesses in some nodes, in program order."""
    yield from (a for segment in segments(nodes) for a in segment.accesses)


def events(nodes: Sequence[Node]) -> Iterator[Event]:
    """Yield all events in some nodes, in program order."""
    yield from (n for node in nodes for n in inside(node) if isinstance(n, Event))


def coarse(nodes: Sequence[Node], kept: Callable[[Event], bool]) -> list[Node]:
    """Return the nodes without the loops and branches that hold no event kept; the accesses in these then have no order."""
    result: list[Node] = []
    for node in nodes:
        if isinstance(node, (Loop, Branch)) and any(map(kept, events([node]))):
            result.append(_changed(node, partial(coarse, kept=kept)))
        elif isinstance(node, Event):
            result += [node] if kept(node) else []
        elif result and isinstance(last := result[-1], Segment):
            last.accesses.extend(accesses([node]))
        else:
            result.append(Segment([*accesses([node])]))
    return result


def projected(nodes: Sequence[Node], decides: Callable[[z3.BoolRef], bool | None]) -> list[Node]:
    """Return the nodes without the arms that some threads never take.

    Args:
        nodes: the nodes.
        decides: whether they all take the first arm at a condition, or all the second one; None if it depends.
    """
    result: list[Node] = []
    for node in nodes:
        taken = decides(node.condition) if isinstance(node, Branch) else None
        if isinstance(node, Branch) and taken is not None:
            result += projected(node.arms[0 if taken else 1], decides)
        else:
            result.append(_changed(node, partial(projected, decides=decides)))
    return result


def unrolled(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes, with loops of constant length in which waits leave varying numbers of groups as iterations."""
    result: list[Node] = []
    for node in (_changed(node, unrolled) for node in nodes):
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
            numbers = tuple(None if n is None else known(n) for n in node.numbers)
            result.append(replace(node, numbers=numbers, context=here(node.context)))
        else:
            changed = _changed(node, partial(_at, variable=variable, value=value))
            result.append(replace(changed, condition=known(node.condition)) if isinstance(node, Branch) else changed)
    return result


def times(loop: Loop) -> int | None:
    """Return how often a loop goes round, if that is constant."""
    extent = None if loop.variable.extent is None else z3.simplify(loop.variable.extent)
    return max(extent.as_long(), 0) if extent is not None and z3.is_int_value(extent) else None


def pending(event: Event) -> int | None:
    """Return how many groups a wait leaves under way, 0 for what is no wait; None if the number varies."""
    if event.does not in ("await", "finish"):
        return 0
    number = z3.simplify(event.numbers[0])
    return number.as_long() if z3.is_int_value(number) else None


def _changed(node: Node, change: Callable[[Sequence[Node]], list[Node]]) -> Node:
    """Return the node with its body, or both its arms, changed."""
    if isinstance(node, Loop):
        return replace(node, body=change(node.body))
    return replace(node, arms=(change(node.arms[0]), change(node.arms[1]))) if isinstance(node, Branch) else node
