"""The tree of what threads do, without what does not matter to order, and roles: which threads run which part of it.

A role is a set of threads that take the same arms of the branches on the thread's number, and that meet the same
mbarriers and barriers of part of the block. Where all threads meet the same ones, the block has one role. A role that
meets mbarriers has a part before its loop, the loop, whose iterations all roles run equally often, and a part after it.
All roles may do so in rounds, as often as each other; outside them they share nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import z3

from ..access.instances import Renaming, symbols
from ..access.trace import KINDS, Access, Branch, Context, Event, Loop, Node, Segment, Trace, Variable
from ..base.errors import Unsupported
from ..compiler.instructions import Does, at_mbarriers
from ..contract.hypotheses import Hypotheses

BEFORE, INSIDE, AFTER = range(3)
_CROSSING: frozenset[Does] = frozenset({"arrive", "copied", "wait"})
_GROUPED: frozenset[Does] = frozenset({"commit", "await", "batch", "finish", "close", "drain"})
_ORDERING: frozenset[Does] = _CROSSING | _GROUPED | {"barrier", "registers", "fence"}


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
            result[-1].accesses.extend(accesses(node))  # type: ignore[union-attr]  # the last is a segment
        elif not isinstance(node, Event) or node.does in what:
            result.append(changed(node, partial(coarse, what=what)))
    return result


def rewritten(nodes: Sequence[Node], each: Callable[[Node], Sequence[Node]]) -> list[Node]:
    """Return the nodes with others in the place of each, once those in it have been replaced."""
    return [new for node in nodes for new in each(changed(node, partial(rewritten, each=each)))]


def unrolled(node: Node) -> Sequence[Node]:
    """Return a node, or the iterations of a loop of constant length in which waits leave varying numbers of groups."""
    often = times(node) if isinstance(node, Loop) else None
    if not isinstance(node, Loop) or often is None or all(pending(e) is not None for e in events(node.body)):
        return [node]
    low, variable = node.variable.low, node.variable.term
    numbers = (z3.simplify(low + number) for number in range(often))
    return [n for value in numbers for n in rewritten(node.body, partial(_at, variable=variable, value=value))]


def _at(node: Node, variable: z3.ArithRef, value: z3.ArithRef) -> Sequence[Node]:
    """Return a node in one iteration of a loop around it."""

    def here(context: Context) -> Context:
        return replace(context, guards=(*context.guards, variable == value))

    def known(term: z3.ExprRef) -> z3.ExprRef:
        return z3.simplify(z3.substitute(term, (variable, value)))

    if isinstance(node, Segment):
        return [Segment([replace(a, context=here(a.context)) for a in node.accesses])]
    if isinstance(node, Event):
        numbers = tuple(None if n is None else known(n) for n in node.numbers)
        return [replace(node, numbers=numbers, context=here(node.context))]
    return [replace(node, condition=known(node.condition)) if isinstance(node, Branch) else node]


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


@dataclass(frozen=True)
class Role:
    """Some threads of a block, and what they do before, in one iteration of, and after their loop; perhaps in rounds."""

    threads: frozenset[int]
    loop: Variable | None
    parts: tuple[Sequence[Node], Sequence[Node], Sequence[Node]]
    name: str
    round: Variable | None = None  # the loop around the three parts
    aside: tuple[Sequence[Node], Sequence[Node]] = ((), ())  # what comes before the rounds, and after them

    def __str__(self) -> str:
        return self.name

    @property
    def nodes(self) -> list[Node]:
        """All that they do."""
        before, inside, after = self.parts
        nodes = [*before, *([] if self.loop is None else [Loop(self.loop, list(inside))]), *after]
        first, last = self.aside
        return nodes if self.round is None else [*first, Loop(self.round, nodes), *last]

    def events(self, *what: Does) -> Iterator[tuple[int, Event]]:
        """Yield its events that do some of these things, with the part that each is in."""
        for part, nodes in enumerate(self.parts):
            yield from ((part, e) for e in events(nodes) if e.does in what)


@dataclass(frozen=True)
class Block:
    """The roles of a block's threads."""

    roles: tuple[Role, ...]  # one of all threads, or several
    phased: bool  # whether the phases of its mbarriers are known, since all that arrives at them is
    initialised: tuple[Event, ...]  # what says how many arrivals end a phase
    threads: Threads
    blocks: frozenset[str]  # the names of the block's indices
    _renamings: dict[frozenset[str], Renaming] = field(default_factory=dict, compare=False)

    def renaming(self, hypotheses: Hypotheses, *common: str) -> Renaming:
        """Gives the second of two threads of one block names of its own, but for those that are common."""
        names = frozenset(hypotheses.sizes) | self.blocks | {*common}
        return self._renamings.setdefault(names, Renaming(names))

    def whole(self, event: Event, role: Role) -> bool:
        """Return whether a barrier is one of all threads of this role, and of no others."""
        if event.whole:
            return len(self.roles) == 1
        if event.does != "barrier":
            return False
        name, count = int(event.call.args[1]), int(event.call.args[2])
        met = [r for r in self.roles for _, e in r.events("barrier") if not e.whole and int(e.call.args[1]) == name]
        return all(other is role for other in met) and name != 0 and count == len(role.threads)


class Threads:
    """Which threads of a block a guard admits, where it speaks of the thread alone."""

    def __init__(self, trace: Trace) -> None:
        threads = (v for v in trace.launch.values() if v.kind == "thread")
        self.variables = [v for v in threads if not z3.is_true(z3.simplify(v.count == 1))]
        self._guards: dict[int, frozenset[int] | None] = {}

    def all(self) -> frozenset[int]:
        """Return all threads; Unsupported unless the block is a row of constant length."""
        if len(self.variables) != 1 or not z3.is_int_value(z3.simplify(self.variables[0].count)):
            raise Unsupported("roles in a block that is not one row of threads")
        return frozenset(range(z3.simplify(self.variables[0].count).as_long()))

    def at(self, context: Context) -> frozenset[int]:
        """Return the threads that the guards on the thread alone admit."""
        admitted = [s for g in context.guards if (s := self.of(g)) is not None]
        return self.all().intersection(*admitted)

    def others(self, context: Context, role: Role) -> tuple[z3.BoolRef, ...]:
        """Return the guards that are not true just because the thread has this role."""
        return tuple(g for g in context.guards if (s := self.of(g)) is None or not role.threads <= s)

    def plainly(self, context: Context, role: Role, kinds: Collection[str] = KINDS) -> tuple[z3.BoolRef, ...]:
        """Return what holds of every thread of the role at a place, variables of some kinds in their ranges."""
        others = self.others(context, role)
        kept = (g for g in context.guards if not any(g.eq(o) for o in others))
        return (*(v.range for v in context.variables if v.kind in kinds), *context.facts, *kept)

    def of(self, guard: z3.BoolRef) -> frozenset[int] | None:
        """Return the threads that a guard admits; None if it speaks of something else."""
        if guard.get_id() not in self._guards:
            threads, (variable,) = self.all(), self.variables
            alone = {s.name() for s in symbols([guard])} == {variable.name}  # what is read from memory is a function
            at = {t: z3.simplify(z3.substitute(guard, (variable.term, z3.IntVal(t)))) for t in threads if alone}
            admitted = frozenset(t for t, holds in at.items() if z3.is_true(holds))
            self._guards[guard.get_id()] = admitted if alone else None
        return self._guards[guard.get_id()]


def block_of(trace: Trace) -> Block:
    """Return the roles of a kernel; Unsupported if they overlap, meet barriers of the whole block, or have two such loops."""
    trace = replace(trace, nodes=rewritten(trace.nodes, unrolled))
    threads = Threads(trace)
    blocks = frozenset(v.name for v in trace.launch.values() if v.kind == "block")
    initialised = tuple(e for e in events(trace.nodes) if e.does == "init")
    if not initialised:
        for event in (e for e in events(trace.nodes) if e.does == "barrier" and not e.whole):
            raise Unsupported(f"barrier of some threads of the block: {event.context.site.text}")
        nodes = coarse(trace.nodes, _ORDERING - _CROSSING)
        one = Role(frozenset(), None, (nodes, (), ()), "the threads of a block")
        return Block((one,), not holds(trace.nodes, _CROSSING), (), threads, blocks)
    meeting = {threads.at(e.context) for e in events(trace.nodes) if _meets(e)}
    largest = [s for s in meeting if not any(s < t for t in meeting)]
    if len(largest) < 2 or frozenset().union(*largest) != threads.all():
        return _one_role(trace, initialised, threads, blocks)
    if sum(map(len, largest)) != len(threads.all()):
        raise Unsupported("a thread with two roles")
    barriers = (n for n, node in enumerate(trace.nodes) if any(e.whole for e in events([node])))  # of the whole block
    last = max(barriers, default=None)
    prelude, program = ([], []) if last is None else (trace.nodes[:last], trace.nodes[last + 1 :])
    if last is None or not isinstance(trace.nodes[last], Event) or any(_meets(e) for e in events(prelude)):
        raise Unsupported("roles that are not the last of what a block does")
    for access in (a for node in prelude for a in accesses(node)):
        if access.region.shared and access.region.scope != "shared.barrier":
            raise Unsupported(f"shared memory before the roles: {access.context.site.text}")
    roles = _in_rounds([_role(members, program, threads) for members in sorted(largest, key=min)])
    shared = (a.context for node in program for a in accesses(node) if a.region.shared)
    for place in (*(e.context for e in events(program)), *shared):
        if not any(threads.at(place) <= role.threads for role in roles):
            raise Unsupported(f"between the roles: {place.site.text}")
    return Block(roles, True, initialised, threads, blocks)


def _one_role(trace: Trace, initialised: tuple[Event, ...], threads: Threads, blocks: frozenset[str]) -> Block:
    """Return the one role of all threads. What else may arrive at its mbarriers leaves their phases unknown."""
    if any(e.does == "barrier" and not e.whole for e in events(trace.nodes)):
        raise Unsupported("barrier of some threads of the block that has mbarriers")
    known = not any(map(at_mbarriers, trace.unmodelled))
    phased = known and holds(trace.nodes, _CROSSING)
    name = "the threads of a block"
    if phased:
        roles = _in_rounds([_programmed(threads.all(), trace.nodes, name)])
    else:
        roles = (Role(threads.all(), None, (coarse(trace.nodes, _ORDERING), [], []), name),)
    return Block(roles, known, initialised, threads, blocks)


def _role(members: frozenset[int], nodes: Sequence[Node], threads: Threads) -> Role:
    """Return what some threads do, without the arms that none of them takes."""

    def taken(node: Node) -> Sequence[Node]:
        admitted = threads.of(node.condition) if isinstance(node, Branch) else None
        if not isinstance(node, Branch) or admitted is None or (members & admitted and members - admitted):
            return [node]
        return node.arms[0 if members <= admitted else 1]

    return _programmed(members, rewritten(nodes, taken), f"threads {min(members)} to {max(members)}")


def _programmed(members: frozenset[int], nodes: Sequence[Node], name: str) -> Role:
    """Return the role of some threads that do this."""
    before, loop, after = _cut(nodes)
    if loop is None:
        return Role(members, None, (coarse(before, _ORDERING), [], []), name)
    first, inner, last = _cut(loop.body)
    around = coarse(before, _ORDERING), coarse(after, _ORDERING)
    if inner is None:
        return Role(members, loop.variable, (around[0], coarse(first, _ORDERING), around[1]), name)
    body, deeper, _ = _cut(inner.body)
    if deeper is not None:
        raise Unsupported("a role with mbarriers in three loops, one in another")
    first, body, last = (coarse(part, _ORDERING) for part in (first, body, last))
    return Role(members, inner.variable, (first, body, last), name, loop.variable, around)


def _cut(nodes: Sequence[Node]) -> tuple[list[Node], Loop | None, list[Node]]:
    """Return what comes before the loop in which mbarriers are met, the loop, and what comes after it."""
    flat = _flat(nodes)
    loops = [(n, node) for n, node in enumerate(flat) if isinstance(node, Loop) and holds([node], _CROSSING)]
    if not loops:
        return flat, None, []
    if len(loops) > 1:
        raise Unsupported("a role with mbarriers in several loops")
    ((place, loop),) = loops
    _ = loop.variable.count  # a while loop has none
    return flat[:place], loop, flat[place + 1 :]


def _in_rounds(roles: Sequence[Role]) -> tuple[Role, ...]:
    """Return the roles; Unsupported if some of them are in rounds and others not, or if some share anything outside them."""
    for role in roles if any(role.round is not None for role in roles) else ():
        if role.round is None:
            raise Unsupported(f"{role} meet others in a loop that is not one of rounds")
        aside = [*role.aside[0], *role.aside[1]]
        shared = (a for node in aside for a in accesses(node) if a.region.shared and a.region.scope != "shared.barrier")
        for place in (*(e.context for e in events(aside) if _meets(e)), *(a.context for a in shared)):
            raise Unsupported(f"outside the rounds: {place.site.text}")
    return tuple(roles)


def _flat(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes, with arms that meet mbarriers in place of their branches: that these are taken is a condition."""
    result: list[Node] = []
    for node in nodes:
        if isinstance(node, Branch) and holds([node], _CROSSING):
            met = [holds(arm, _CROSSING) for arm in node.arms]
            result += [n for arm, meets in zip(node.arms, met, strict=True) if meets for n in _flat(arm)]
            then, otherwise = ([] if meets else arm for arm, meets in zip(node.arms, met, strict=True))
            result.append(Branch(node.condition, (then, otherwise)))
        else:
            result.append(node)
    return result


def _meets(event: Event) -> bool:
    return event.does in _CROSSING or (event.does == "barrier" and not event.whole)
