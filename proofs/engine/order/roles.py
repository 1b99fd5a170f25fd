"""Roles: which threads of a block run which program.

A role is a set of threads that take the same arms of the branches on the thread's number, and that meet the same
mbarriers and barriers of part of the block. Where all threads meet the same ones, the block has one role. A role that
meets mbarriers has a part before its loop, the loop, whose iterations all roles run equally often, and a part after it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

import z3

from ..access.instances import Renaming, symbols
from ..access.trace import Branch, Context, Event, Loop, Node, Trace, Variable
from ..base.errors import Unsupported
from ..compiler.instructions import Does, at_mbarriers
from ..contract.hypotheses import Hypotheses
from .structure import accesses, coarse, events, projected, unrolled

BEFORE, INSIDE, AFTER = range(3)
_CROSSING: frozenset[Does] = frozenset({"arrive", "copied", "wait"})
_ORDERING: frozenset[Does] = _CROSSING | {"barrier", "commit", "await", "batch", "finish", "registers", "fence"}


@dataclass(frozen=True)
class Role:
    """Some threads of a block, and what they do before, in one iteration of, and after their loop."""

    threads: frozenset[int]
    loop: Variable | None
    parts: tuple[Sequence[Node], Sequence[Node], Sequence[Node]]
    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def nodes(self) -> list[Node]:
        """Return all that they do."""
        before, inside, after = self.parts
        return [*before, *([] if self.loop is None else [Loop(self.loop, list(inside))]), *after]


@dataclass(frozen=True)
class Block:
    """The roles of a block's threads.

    Args:
        roles: one of all threads, or several.
        phased: whether the phases of its mbarriers are known, since all that arrives at them is.
        initialised: what says how many arrivals end a phase.
    """

    roles: tuple[Role, ...]
    phased: bool
    initialised: tuple[Event, ...]
    threads: Threads
    blocks: frozenset[str]

    def renaming(self, hypotheses: Hypotheses, *common: str) -> Renaming:
        """Return what gives the second of two threads of one block names of its own, but for those that are common."""
        return Renaming(frozenset(hypotheses.sizes) | self.blocks | {*common})

    def whole(self, event: Event, role: Role) -> bool:
        """Return whether a barrier is one of all threads of this role, and of no others."""
        if event.whole:
            return len(self.roles) == 1
        if event.does != "barrier":
            return False
        name, count = int(event.call.args[1]), int(event.call.args[2])
        barriers = ((r, e) for r in self.roles for e in events(r.nodes) if e.does == "barrier" and not e.whole)
        alone = all(other is role for other, e in barriers if int(e.call.args[1]) == name)
        return alone and name != 0 and count == len(role.threads)


class Threads:
    """Which threads of a block a guard admits, where it speaks of the thread alone."""

    def __init__(self, trace: Trace) -> None:
        launched = (v for v in trace.launch.values() if v.kind == "thread")
        self.variables = [v for v in launched if not z3.is_true(z3.simplify(v.count == 1))]
        self.of = cache(self._of)

    def all(self) -> frozenset[int]:
        """Return all threads.

        Raises:
            Unsupported: the block is not a row of constant length.
        """
        if len(self.variables) != 1 or not z3.is_int_value(z3.simplify(self.variables[0].count)):
            raise Unsupported("roles in a block that is not one row of threads")
        return frozenset(range(z3.simplify(self.variables[0].count).as_long()))

    def at(self, context: Context) -> frozenset[int]:
        """Return the threads that the guards on the thread alone admit."""
        admitted = [s for g in context.guards if (s := self.of(g)) is not None]
        return self.all().intersection(*admitted)

    def others(self, context: Context, role: Role) -> tuple[z3.BoolRef, ...]:
        """Return the guards that are not true just because the thread has this role."""
        return tuple(g for g in context.guards if not self._admits(g, role))

    def plainly(
        self, context: Context, role: Role, kinds: Collection[str] = ("block", "thread", "loop", "lane")
    ) -> tuple[z3.BoolRef, ...]:
        """Return what holds of every thread of the role at a place, variables of some kinds in their ranges."""
        kept = (g for g in context.guards if self._admits(g, role))
        return (*(v.range for v in context.variables if v.kind in kinds), *context.facts, *kept)

    def _admits(self, guard: z3.BoolRef, role: Role) -> bool:
        """Return whether a guard is true just because the thread has this role."""
        admitted = self.of(guard)
        return admitted is not None and role.threads <= admitted

    def _of(self, guard: z3.BoolRef) -> frozenset[int] | None:
        """Return the threads that a guard admits; None if it speaks of something else."""
        threads, (variable,) = self.all(), self.variables
        if {s.name() for s in symbols([guard])} != {variable.name}:  # what is read from memory is a function
            return None
        return frozenset(
            t for t in threads if z3.is_true(z3.simplify(z3.substitute(guard, (variable.term, z3.IntVal(t)))))
        )


def block_of(trace: Trace) -> Block:
    """Return the roles of a kernel.

    Raises:
        Unsupported: the roles are not disjoint, meet barriers of the whole block, or have several loops with mbarriers.
    """
    nodes, threads = unrolled(trace.nodes), Threads(trace)
    blocks = frozenset(v.name for v in trace.launch.values() if v.kind == "block")
    initialised = tuple(e for e in events(nodes) if e.does == "init")
    meeting = {threads.at(e.context) for e in events(nodes) if _meets(e)} if initialised else set()
    largest = [s for s in meeting if not any(s < t for t in meeting)]
    if len(largest) < 2 or frozenset().union(*largest) != threads.all():
        role, phased = _one_role(nodes, trace, threads)
        return Block((role,), phased, initialised, threads, blocks)
    if sum(map(len, largest)) != len(threads.all()):
        raise Unsupported("a thread with two roles")
    program = _after_the_prelude(nodes)
    places = [e.context for e in events(program)] + [a.context for a in accesses(program) if a.region.shared]
    for place in places:
        if not any(threads.at(place) <= members for members in largest):
            raise Unsupported(f"between the roles: {place.site.text}")
    roles = tuple(_role(members, program, threads) for members in sorted(largest, key=min))
    return Block(roles, True, initialised, threads, blocks)


def _one_role(nodes: Sequence[Node], trace: Trace, threads: Threads) -> tuple[Role, bool]:
    """Return the role of all threads, and whether the phases of its mbarriers are known.

    They are not, if something else may arrive at them, or if nothing says how many arrivals end a phase.
    """
    partial = next((e for e in events(nodes) if e.does == "barrier" and not e.whole), None)
    if partial is not None:
        raise Unsupported(f"barrier of some threads of a block that has no roles: {partial.context.site.text}")
    initialised, crossed = any(e.does == "init" for e in events(nodes)), _crossed(nodes)
    known = not any(map(at_mbarriers, trace.unmodelled)) if initialised else not crossed
    loop, parts = _parts(nodes) if known and crossed else (None, (coarse(nodes, _orders), [], []))
    return Role(threads.all() if initialised else frozenset(), loop, parts, "the threads of a block"), known


def _after_the_prelude(nodes: Sequence[Node]) -> Sequence[Node]:
    """Return what comes after the last barrier of the whole block, which is in no branch or loop."""
    last = max((n for n, node in enumerate(nodes) if any(e.whole for e in events([node]))), default=-1)
    if last < 0 or not isinstance(nodes[last], Event) or any(map(_meets, events(nodes[:last]))):
        raise Unsupported("roles that are not the last of what a block does")
    for access in accesses(nodes[:last]):
        if access.region.shared and access.region.scope != "shared.barrier":
            raise Unsupported(f"shared memory before the roles: {access.context.site.text}")
    return nodes[last + 1 :]


def _role(members: frozenset[int], nodes: Sequence[Node], threads: Threads) -> Role:
    def decides(condition: z3.BoolRef) -> bool | None:
        admitted = threads.of(condition)
        if admitted is None or (members & admitted and members - admitted):
            return None
        return bool(members <= admitted)

    loop, parts = _parts(projected(nodes, decides))
    return Role(members, loop, parts, f"threads {min(members)} to {max(members)}")


def _parts(nodes: Sequence[Node]) -> tuple[Variable | None, tuple[list[Node], list[Node], list[Node]]]:
    """Return the loop in which mbarriers are met, and what comes before, in and after it."""
    flat = _flat(nodes)
    loops = [(n, node) for n, node in enumerate(flat) if isinstance(node, Loop) and _crossed([node])]
    if not loops:
        return None, (coarse(flat, _orders), [], [])
    (place, loop), *more = loops
    body = _flat(loop.body)
    if more or any(isinstance(node, Loop) and _crossed([node]) for node in body):
        raise Unsupported("a role with mbarriers in several loops")
    _ = loop.variable.count  # a while loop has none
    return loop.variable, (coarse(flat[:place], _orders), coarse(body, _orders), coarse(flat[place + 1 :], _orders))


def _flat(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes, with arms in which mbarriers are met before what is left of their branches.

    That these arms are taken is a condition.
    """
    result: list[Node] = []
    for node in nodes:
        if isinstance(node, Branch):
            then, otherwise = ((arm, []) if _crossed(arm) else ([], arm) for arm in node.arms)
            result += [*_flat(then[0]), *_flat(otherwise[0])]
            node = Branch(node.condition, (then[1], otherwise[1]))
        result.append(node)
    return result


def _crossed(nodes: Sequence[Node]) -> bool:
    return any(map(_crosses, events(nodes)))


def _meets(event: Event) -> bool:
    return event.does in _CROSSING or (event.does == "barrier" and not event.whole)


def _crosses(event: Event) -> bool:
    return event.does in _CROSSING


def _orders(event: Event) -> bool:
    return event.does in _ORDERING
