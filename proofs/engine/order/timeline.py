"""Warps of several roles: which threads have which role, and what a role does, in order.

A role is a set of threads that take the same arms of the branches on the thread's number, and that meet the same
mbarriers and barriers of part of the block. It has a part before its loop, the loop, whose iterations all roles run
equally often, and a part after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import z3

from ..access.instances import Renaming, constants
from ..access.intrinsics import ARRIVE, COPIED, INIT, MEET, WAIT
from ..access.trace import Access, Barrier, Context, Instruction, Segment, Trace, Variable
from ..base.errors import Unsupported
from ..contract.hypotheses import Hypotheses
from .intervals import coarse

BEFORE, INSIDE, AFTER = range(3)
_SYNCHRONISING = {ARRIVE, COPIED, WAIT, MEET}


@dataclass(frozen=True)
class Role:
    """Some threads of a block, and the parts of what they do: before, in one iteration of, and after their loop."""

    threads: frozenset[int]
    loop: Variable | None
    parts: tuple[tuple[Access | Instruction, ...], ...]

    def __str__(self) -> str:
        return f"threads {min(self.threads)} to {max(self.threads)}"

    def events(self, *names: str) -> Iterator[tuple[int, Instruction]]:
        """Its events of these names, with the part that each is in."""
        for part, items in enumerate(self.parts):
            yield from ((part, item) for item in items if isinstance(item, Instruction) and item.name in names)


@dataclass(frozen=True)
class Roles:
    """The roles of a block's threads, and what comes before them, up to a barrier of the whole block."""

    prelude: tuple[Access | Instruction | Barrier, ...]
    roles: tuple[Role, ...]
    threads: Threads
    blocks: frozenset[str]

    def renaming(self, hypotheses: Hypotheses) -> Renaming:
        """Gives the second of two threads of one block names of its own."""
        return Renaming(frozenset(hypotheses.sizes) | self.blocks)


class Threads:
    """Which threads of a block a guard admits, where it speaks of the thread alone."""

    def __init__(self, trace: Trace) -> None:
        self.variables = [v for v in trace.launch.values() if v.kind == "thread" and not _is(v.count, 1)]
        self._guards: dict[int, frozenset[int] | None] = {}

    def all(self) -> frozenset[int]:
        """All threads.

        Raises:
            Unsupported: the block is not a row of constant length.
        """
        if len(self.variables) != 1 or not z3.is_int_value(z3.simplify(self.variables[0].count)):
            raise Unsupported("roles in a block that is not one row of threads")
        return frozenset(range(z3.simplify(self.variables[0].count).as_long()))

    def at(self, context: Context) -> frozenset[int]:
        """The threads that the guards on the thread alone admit."""
        admitted = [s for g in context.guards if (s := self._of(g)) is not None]
        return self.all().intersection(*admitted)

    def others(self, context: Context, role: Role) -> tuple[z3.BoolRef, ...]:
        """The guards that are not true just because the thread has this role."""
        return tuple(g for g in context.guards if (s := self._of(g)) is None or not role.threads <= s)

    def plainly(
        self, context: Context, role: Role, kinds: Collection[str] = ("block", "thread", "loop", "lane")
    ) -> tuple[z3.BoolRef, ...]:
        """What holds of every thread of the role at a place, variables of some kinds in their ranges."""
        others = self.others(context, role)
        kept = (g for g in context.guards if not any(g.eq(o) for o in others))
        return (*(v.range for v in context.variables if v.kind in kinds), *context.facts, *kept)

    def _of(self, guard: z3.BoolRef) -> frozenset[int] | None:
        if guard.get_id() not in self._guards:
            self._guards[guard.get_id()] = self._evaluate(guard)
        return self._guards[guard.get_id()]

    def _evaluate(self, guard: z3.BoolRef) -> frozenset[int] | None:
        threads, (variable,) = self.all(), self.variables
        if {c.decl().name() for c in constants([guard])} != {variable.name}:
            return None
        return frozenset(
            t for t in threads if z3.is_true(z3.simplify(z3.substitute(guard, (variable.term, z3.IntVal(t)))))
        )


def roles(trace: Trace) -> Roles | None:
    """The roles of a kernel; None if all threads of its blocks meet the same barriers.

    Raises:
        Unsupported: the roles are not disjoint, meet barriers of the whole block, or have several loops with barriers.
    """
    if not any(isinstance(item, Instruction) and item.name == INIT for item in trace.program):
        return None
    threads = Threads(trace)
    barriers = [n for n, item in enumerate(trace.program) if isinstance(item, Barrier)]
    begin = barriers[-1] + 1 if barriers else 0
    prelude, program = trace.program[:begin], trace.program[begin:]
    found = {threads.at(item.context) for item in program if _synchronises(item)}
    largest = [s for s in found if not any(s < t for t in found)]
    if len(largest) < 2 or frozenset().union(*largest) != threads.all():
        return None
    if sum(map(len, largest)) != len(threads.all()):
        raise Unsupported("a thread with two roles")
    if any(_synchronises(item) for item in prelude) or not _straight(trace):
        raise Unsupported("roles that are not the last of what a block does")
    result = tuple(_role(members, threads, program) for members in sorted(largest, key=min))
    kept = {id(item) for role in result for items in role.parts for item in items}
    for item in program:
        if id(item) not in kept and (isinstance(item, Instruction) or _shared(item)):
            raise Unsupported(f"between the roles: {item.context.site.text}")
    blocks = frozenset(v.name for v in trace.launch.values() if v.kind == "block")
    return Roles(prelude, result, threads, blocks)


def _straight(trace: Trace) -> bool:
    """Whether what follows the last barrier of the whole block is in no branch or loop with such a barrier."""
    skeleton = coarse(trace.skeleton, (Barrier,))
    return len(skeleton) > 1 and isinstance(skeleton[-1], Segment) and isinstance(skeleton[-2], Barrier)


def _role(members: frozenset[int], threads: Threads, program: Iterable[Access | Instruction | Barrier]) -> Role:
    items = [i for i in program if not isinstance(i, Barrier) and threads.at(i.context) <= members]
    loops = {v.name: v for i in items if _synchronises(i) for v in i.context.variables if v.kind == "loop"}
    if len(loops) > 1:
        raise Unsupported(f"a role with barriers in several loops: {', '.join(loops)}")
    parts: tuple[list[Access | Instruction], ...] = ([], [], [])
    for item in items:
        inside = any(v.name in loops for v in item.context.variables)
        parts[INSIDE if inside else AFTER if parts[INSIDE] else BEFORE].append(item)
    loop = next(iter(loops.values()), None)
    if loop is not None:
        _ = loop.count  # a while loop has none
    return Role(members, loop, tuple(map(tuple, parts)))


def _synchronises(item: Access | Instruction | Barrier) -> bool:
    return isinstance(item, Instruction) and item.name in _SYNCHRONISING


def _shared(item: Access | Instruction | Barrier) -> bool:
    return isinstance(item, Access) and item.region.shared


def _is(term: z3.ArithRef, value: int) -> bool:
    return bool(z3.is_true(z3.simplify(term == value)))
