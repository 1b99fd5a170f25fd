"""The tree of what threads do: its nodes, without what does not matter to order, and as the threads of a role see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import z3

from ..access.trace import Access, Branch, Context, Event, Loop, Node, Segment


def inside(node: Node) -> Iterator[Node]:
    """The node and all nodes in it, in program order."""
    yield node
    for child in _children(node):
        yield from inside(child)


def accesses(node: Node) -> Iterator[Access]:
    """All accesses in a node, in program order."""
    yield from (a for n in inside(node) if isinstance(n, Segment) for a in n.accesses)


def events(nodes: Sequence[Node]) -> Iterator[Event]:
    """All events in some nodes, in program order."""
    yield from (n for node in nodes for n in inside(node) if isinstance(n, Event))


def holds(node: Node, kept: Callable[[Event], bool]) -> bool:
    """Whether such an event is in a node."""
    return any(isinstance(n, Event) and kept(n) for n in inside(node))


def coarse(nodes: Sequence[Node], kept: Callable[[Event], bool]) -> list[Node]:
    """The nodes without the loops and branches that hold none of the events kept, whose accesses then have no order."""
    result: list[Node] = []
    for node in nodes:
        if isinstance(node, Segment) or (isinstance(node, (Loop, Branch)) and not holds(node, kept)):
            if not result or not isinstance(result[-1], Segment):
                result.append(Segment())
            result[-1].accesses.extend(accesses(node))  # type: ignore[union-attr]
        elif isinstance(node, Loop):
            result.append(Loop(node.variable, coarse(node.body, kept)))
        elif isinstance(node, Branch):
            result.append(Branch(node.condition, (coarse(node.arms[0], kept), coarse(node.arms[1], kept))))
        elif kept(node):
            result.append(node)
    return result


def projected(nodes: Sequence[Node], decides: Callable[[z3.BoolRef], bool | None]) -> list[Node]:
    """The nodes without the arms that some threads never take; ``decides`` says which they do take, None if it depends."""
    result: list[Node] = []
    for node in nodes:
        if isinstance(node, Loop):
            result.append(Loop(node.variable, projected(node.body, decides)))
        elif isinstance(node, Branch):
            taken = decides(node.condition)
            if taken is None:
                result.append(
                    Branch(node.condition, (projected(node.arms[0], decides), projected(node.arms[1], decides)))
                )
            else:
                result += projected(node.arms[0 if taken else 1], decides)
        else:
            result.append(node)
    return result


def unrolled(nodes: Sequence[Node]) -> list[Node]:
    """The nodes, with loops of constant length in which waits leave varying numbers of groups as their iterations."""
    result: list[Node] = []
    for node in nodes:
        if isinstance(node, Branch):
            result.append(Branch(node.condition, (unrolled(node.arms[0]), unrolled(node.arms[1]))))
        elif isinstance(node, Loop):
            body, often = unrolled(node.body), times(node)
            if often is None or not any(pending(e) is None for e in events(body)):
                result.append(Loop(node.variable, body))
                continue
            for number in range(often):
                result += _at(body, node.variable.term, z3.simplify(node.variable.low + number))
        else:
            result.append(node)
    return result


def _at(nodes: Sequence[Node], variable: z3.ArithRef, value: z3.ArithRef) -> list[Node]:
    """The nodes in one iteration of a loop around them."""

    def here(context: Context) -> Context:
        return replace(context, guards=(*context.guards, variable == value))

    result: list[Node] = []
    for node in nodes:
        if isinstance(node, Segment):
            result.append(Segment([replace(a, context=here(a.context)) for a in node.accesses]))
        elif isinstance(node, Branch):
            arms = _at(node.arms[0], variable, value), _at(node.arms[1], variable, value)
            result.append(Branch(z3.simplify(z3.substitute(node.condition, (variable, value))), arms))
        elif isinstance(node, Loop):
            result.append(Loop(node.variable, _at(node.body, variable, value)))
        else:
            numbers = (None if n is None else z3.simplify(z3.substitute(n, (variable, value))) for n in node.numbers)
            result.append(replace(node, numbers=tuple(numbers), context=here(node.context)))
    return result


def times(loop: Loop) -> int | None:
    """How often a loop goes round, if that is constant."""
    extent = None if loop.variable.extent is None else z3.simplify(loop.variable.extent)
    return max(extent.as_long(), 0) if extent is not None and z3.is_int_value(extent) else None


def pending(event: Event) -> int | None:
    """How many groups a wait leaves under way, 0 for what is no wait; None if the number varies."""
    if event.does not in ("await", "finish"):
        return 0
    number = z3.simplify(event.numbers[0])
    return number.as_long() if z3.is_int_value(number) else None


def _children(node: Node) -> list[Node]:
    if isinstance(node, Branch):
        return [*node.arms[0], *node.arms[1]]
    return node.body if isinstance(node, Loop) else []
