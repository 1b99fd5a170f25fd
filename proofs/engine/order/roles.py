"""Roles: which threads of a block run which program.

A role is a set of threads that take the same arms of the branches on the thread's number, and that meet the same
mbarriers and barriers of part of the block. Where all threads meet the same ones, the block has one role. A role that
meets mbarriers has a part before its loop, the loop, whose iterations all roles run equally often, and a part after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import z3

from ..access.instances import Renaming, symbols
from ..access.trace import Branch, Context, Event, Loop, Node, Trace, Variable
from ..base.errors import Unsupported
from ..compiler.instructions import Does, at_mbarriers
from ..contract.hypotheses import Hypotheses
from .structure import accesses, coarse, events, holds, projected, unrolled

BEFORE, INSIDE, AFTER = range(3)
_CROSSING: frozenset[Does] = frozenset({"arrive", "copied", "wait"})
_GROUPED: frozenset[Does] = frozenset({"commit", "await", "batch", "finish", "close", "drain"})
_ORDERING: frozenset[Does] = _CROSSING | _GROUPED | {"barrier", "registers", "fence"}


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
        """All that they do."""
        before, inside, after = self.parts
        return [*before, *([] if self.loop is None else [Loop(self.loop, list(inside))]), *after]

    def events(self, *what: Does) -> Iterator[tuple[int, Event]]:
        """Yield its events that do some of these things, with the part that each is in."""
        for part, nodes in enumerate(self.parts):
            yield from ((part, e) for e in events(nodes) if e.does in what)


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

    def plainly(
        self, context: Context, role: Role, kinds: Collection[str] = ("block", "thread", "loop", "lane")
    ) -> tuple[z3.BoolRef, ...]:
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
    """Return the roles of a kernel.

    Raises:
        Unsupported: the roles are not disjoint, meet barriers of the whole block, or have several loops with mbarriers.
    """
    trace = replace(trace, nodes=unrolled(trace.nodes))
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
    program = _after_the_prelude(trace.nodes)
    roles = tuple(_role(members, program, threads) for members in sorted(largest, key=min))
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
    loop, parts = _parts(trace.nodes) if phased else (None, (coarse(trace.nodes, _ORDERING), [], []))
    role = Role(threads.all(), loop, parts, "the threads of a block")
    return Block((role,), known, initialised, threads, blocks)


def _after_the_prelude(nodes: Sequence[Node]) -> Sequence[Node]:
    """Return what comes after the last barrier of the whole block, which is in no branch or loop."""
    met = [n for n, node in enumerate(nodes) if any(e.whole for e in events([node]))]
    last = met[-1] if met else -1
    if not met or not isinstance(nodes[last], Event) or any(_meets(e) for e in events(nodes[:last])):
        raise Unsupported("roles that are not the last of what a block does")
    for access in (a for node in nodes[:last] for a in accesses(node)):
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
    """Return what comes before, in and after the loop in which mbarriers are met."""
    flat = _flat(nodes)
    loops = [n for n, node in enumerate(flat) if isinstance(node, Loop) and holds([node], _CROSSING)]
    if not loops:
        return None, (coarse(flat, _ORDERING), [], [])
    loop = flat[loops[0]]
    assert isinstance(loop, Loop)
    body = _flat(loop.body)
    if len(loops) > 1 or any(isinstance(node, Loop) and holds([node], _CROSSING) for node in body):
        raise Unsupported("a role with mbarriers in several loops")
    _ = loop.variable.count  # a while loop has none
    before, after = flat[: loops[0]], flat[loops[0] + 1 :]
    return loop.variable, (coarse(before, _ORDERING), coarse(body, _ORDERING), coarse(after, _ORDERING))


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
