"""The order that mbarriers and barriers of part of a block impose on the statements of roles.

The order is a graph. Its nodes are the accesses and events of the roles, for all iterations at once; an edge of weight w
leads from iteration i of one to iteration i + w of the other, for every i. There are edges

* from a statement of a role to the next, and from the end of its loop to the beginning, of weight 1;
* from the arrivals at an mbarrier to the waits for their phase. If as many threads arrive in an iteration as the barrier
  counts, and none arrives for the next iteration before all have arrived for this one, then phase i ends when all have
  arrived in iteration i (by induction over time: the paths that show it consist of waits that ended before). A wait for
  parity (i + k) % 2 in iteration i ends only when phase i - k is over, since the same thread waited so for the phase
  before; hence an edge of weight k, 0 or 1. A barrier that is arrived at once has one phase, of parity 0;
* around a barrier of all threads of one role.

An arrival that waits for a thread's copies comes when they are there. It tells that what the thread read before was read,
but shows nobody what the thread wrote before, save the copies.

A path with an edge of the second or third kind orders every thread of one role with every thread of another. That no role
waits for ever is not shown, nor needed: what never happens does not race.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import z3

from ..access.instances import sequent
from ..access.intrinsics import ARRIVE, COPIED, FENCE, INIT, MEET, WAIT
from ..access.trace import Access, Instruction, Variable
from ..base.conditions import Condition
from ..base.errors import Unsupported
from ..contract.hypotheses import Hypotheses
from .timeline import AFTER, BEFORE, INSIDE, Role, Roles

_MEETING = (ARRIVE, COPIED, WAIT, MEET)


@dataclass(frozen=True)
class Step:
    """An event or an access of a role: its node, and the node where it is over, if there is one."""

    role: Role
    part: int
    item: Access | Instruction
    node: int
    done: int | None


@dataclass
class _Barrier:
    """An mbarrier: how many arrivals end a phase; who arrives and who waits."""

    name: str
    count: int
    arrivals: list[Step]
    waits: list[Step]

    @property
    def looped(self) -> bool:
        """Whether it has a phase for each iteration, rather than one."""
        parts = {s.part == INSIDE for s in self.arrivals}
        if len(parts) > 1:
            raise Unsupported(f"arrivals at {self.name} in a loop and outside")
        return parts == {True}


class Order:
    """Which accesses and events of a block's roles are ordered.

    Attributes:
        steps: all of them, but for accesses to memory that is not shared.
    """

    def __init__(self, found: Roles) -> None:
        self.steps: list[Step] = []
        self._roles, self._graph = found, _Graph()
        met = [(_named(e)[0], role) for role in found.roles for _, e in role.events(MEET)]
        self._meeting = {name: [r for n, r in met if n == name] for name, _ in met}
        for role in found.roles:
            self._lay(role)
        self._barriers = self._initialised()
        for barrier in self._barriers:
            for arrival, wait in itertools.product(barrier.arrivals, barrier.waits):
                behind = _behind(barrier, wait)
                if behind is not None and arrival.done is not None:
                    self._graph.edge(arrival.done, wait.node, Edge(behind, orders=True))

    def least(self, a: Step, b: Step, *, fenced: bool = False, shown: bool = False, looping: bool = True) -> int | None:
        """The least weight of a path from the end of ``a`` to ``b`` that orders all threads; None if there is none.

        With ``fenced`` only paths with a proxy fence count, with ``shown`` only those at whose end all is seen that was
        written before them, without ``looping`` only those through no iteration of the loops.
        """
        return None if a.done is None else self._graph.least(a.done, b.node, fenced, shown, looping)

    def conditions(self, hypotheses: Hypotheses) -> Iterator[Condition]:
        """What must hold for the order to be as described."""
        yield from self._equally_often(hypotheses)
        yield from self._met(hypotheses)
        for barrier in self._barriers:
            if barrier.arrivals or barrier.waits:
                yield self._counted(barrier, hypotheses)
            if barrier.looped:
                yield from self._in_phase(barrier, hypotheses)

    # The graph.

    def _lay(self, role: Role) -> None:
        """The nodes of a role, and the edges between them."""
        end = self._graph.node(AFTER)
        node, item = self._run(role, BEFORE, self._graph.node(BEFORE), None)
        self._follow(role, node, item, end)
        if role.loop is not None:
            head = self._graph.node(INSIDE)
            self._follow(role, node, item, head)
            node, item = self._run(role, INSIDE, head, None)
            self._follow(role, node, item, head, 1)
            self._follow(role, node, item, end)
        self._run(role, AFTER, end, None)

    def _run(
        self, role: Role, part: int, node: int, item: Access | Instruction | None
    ) -> tuple[int, Access | Instruction | None]:
        for after in role.parts[part]:
            if isinstance(after, Access) and not after.region.shared:
                continue
            here = self._graph.node(part)
            self._follow(role, node, item, here)
            done = here
            if isinstance(after, Instruction) and after.name == COPIED:  # the arrival comes when the copies are there
                done = self._graph.node(part)
                self._graph.edge(here, done, Edge(shows=False))
            self.steps.append(Step(role, part, after, here, done))
            node, item = here, after
        return node, item

    def _follow(self, role: Role, node: int, item: Access | Instruction | None, to: int, weight: int = 0) -> None:
        """An edge from a node, where an item stands, to the next."""
        certain = isinstance(item, Instruction) and not self._roles.threads.others(item.context, role)
        meets = certain and isinstance(item, Instruction) and item.name == MEET and self._whole(item, role)
        fences = certain and isinstance(item, Instruction) and item.name == FENCE
        self._graph.edge(node, to, Edge(weight, meets, fences))

    def _whole(self, event: Instruction, role: Role) -> bool:
        """Whether a barrier is one of all threads of this role, and of no others."""
        name, count = _named(event)
        alone = all(other is role for other in self._meeting[name])
        return alone and name != 0 and count == len(role.threads)

    def _initialised(self) -> list[_Barrier]:
        barriers: dict[tuple[str, int], _Barrier] = {}
        for item in self._roles.prelude:
            if isinstance(item, Instruction) and item.name == INIT:
                key, count = _key(item), item.numbers[1]
                if key in barriers or any(v.kind == "loop" for v in item.context.variables):
                    raise Unsupported(f"a barrier that is initialised again: {item.context.site.text}")
                barriers[key] = _Barrier(f"{key[0]}[{key[1]}]", int(str(count)), [], [])
        for step in self.steps:
            if isinstance(step.item, Instruction) and step.item.name in (ARRIVE, COPIED, WAIT):
                key = _key(step.item)
                if key not in barriers:
                    raise Unsupported(f"a barrier that is not initialised: {step.item.context.site.text}")
                (barriers[key].waits if step.item.name == WAIT else barriers[key].arrivals).append(step)
        return list(barriers.values())

    # Conditions.

    def _equally_often(self, hypotheses: Hypotheses) -> Iterator[Condition]:
        loops = [(role, role.loop) for role in self._roles.roles if role.loop is not None]
        renaming = self._roles.renaming(hypotheses)
        for (role, loop), (other, second) in itertools.combinations_with_replacement(loops, 2):
            here, there = (next(e for part, e in r.events(*_MEETING) if part == INSIDE) for r in (role, other))
            given = [*hypotheses.facts, *self._roles.threads.plainly(here.context, role, ("block", "thread"))]
            given += map(renaming.term, self._roles.threads.plainly(there.context, other, ("block", "thread")))
            goal = loop.count == renaming.variable(second).count
            what = f"{role} and {other} run their loops equally often"
            yield sequent("phase", what, given, goal, here.context.site)

    def _met(self, hypotheses: Hypotheses) -> Iterator[Condition]:
        """Every thread of a role reaches its barriers, in every iteration; those of part of a block are of one role."""
        for step in self.steps:
            if isinstance(step.item, Instruction) and step.item.name in _MEETING:
                event, threads = step.item, self._roles.threads
                if others := threads.others(event.context, step.role):
                    given = (*hypotheses.facts, *threads.plainly(event.context, step.role))
                    what = f"all of {step.role} reach this, every time"
                    yield sequent("phase", what, given, z3.And(*others), event.context.site)
                if event.name == MEET:
                    goal = z3.BoolVal(self._whole(event, step.role))
                    yield _of(step, "barrier", f"this barrier is of {step.role} and no others", goal, hypotheses)

    def _counted(self, barrier: _Barrier, hypotheses: Hypotheses) -> Condition:
        number = sum(len(s.role.threads) for s in barrier.arrivals)
        each = "in an iteration" if barrier.looped else "at all"
        what = f"{barrier.name} counts {barrier.count} arrivals, and {number} come {each}"
        step = (*barrier.arrivals, *barrier.waits)[0]
        return _of(step, "phase", what, z3.BoolVal(number == barrier.count), hypotheses)

    def _in_phase(self, barrier: _Barrier, hypotheses: Hypotheses) -> Iterator[Condition]:
        what = f"no thread arrives at {barrier.name} for the next iteration before all have arrived for this one"
        for a, b in itertools.product(barrier.arrivals, repeat=2):
            weight = self.least(a, b)
            yield _of(b, "phase", what, z3.BoolVal(weight is not None and weight <= 1), hypotheses)
        for wait in barrier.waits:
            behind = _behind(barrier, wait)
            if behind is not None:
                loop = _loop(wait)
                goal = _parity(wait) == (loop.term - loop.low + behind) % 2
                phase = "the iteration before" if behind else "its iteration"
                yield _of(wait, "phase", f"this waits at {barrier.name} for the phase of {phase}", goal, hypotheses)


def _of(step: Step, kind: str, what: str, goal: z3.BoolRef, hypotheses: Hypotheses) -> Condition:
    context = step.item.context
    return sequent(kind, what, (*hypotheses.facts, *context.path), goal, context.site)


def _behind(barrier: _Barrier, wait: Step) -> int | None:
    """Of how many iterations ago a wait is for the phase; None if nothing follows from it."""
    if not barrier.looped:
        return 0 if z3.is_true(z3.simplify(_parity(wait) == 0)) else None
    if wait.part != INSIDE:
        return None
    loop = _loop(wait)
    first = z3.simplify(z3.substitute(_parity(wait), (loop.term, loop.low)))
    for behind in (0, 1):
        solver = z3.Solver()
        solver.set("rlimit", 1_000_000)
        solver.add(first != behind)
        if solver.check() == z3.unsat:
            return behind
    return 0  # which the condition about it refutes


def _parity(wait: Step) -> z3.ArithRef:
    assert isinstance(wait.item, Instruction)
    parity = wait.item.numbers[1]
    return z3.If(parity, z3.IntVal(1), z3.IntVal(0)) if z3.is_bool(parity) else parity


def _loop(step: Step) -> Variable:
    assert step.role.loop is not None
    return step.role.loop


def _key(event: Instruction) -> tuple[str, int]:
    """An mbarrier: its array and its number."""
    index = z3.simplify(event.accesses[0].indices[0]) if event.accesses else None
    if event.operands[0] is None or index is None or not z3.is_int_value(index):
        raise Unsupported(f"an mbarrier that is not known: {event.context.site.text}")
    return event.operands[0], index.as_long()


def _named(event: Instruction) -> tuple[int, int]:
    """The number of a barrier of part of a block, and of how many threads it is."""
    return int(event.call.args[1]), int(event.call.args[2])


State = tuple[int, bool, bool]  # a node; whether all threads are ordered, and a proxy fence passed, on the way there


@dataclass(frozen=True)
class Edge:
    """From one node to another: how many iterations on; whether it orders all threads, or proxies, and shows writes."""

    weight: int = 0
    orders: bool = False
    fences: bool = False
    shows: bool = True


class _Graph:
    """Nodes in parts, and edges from a part to the same or a later one."""

    def __init__(self) -> None:
        self._parts: list[int] = []
        self._edges: list[list[tuple[int, Edge]]] = []
        self._known: dict[tuple[int, bool, bool], dict[State, int]] = {}

    def node(self, part: int) -> int:
        """A new node."""
        self._parts.append(part)
        self._edges.append([])
        return len(self._parts) - 1

    def edge(self, a: int, b: int, edge: Edge) -> None:
        """A new edge, unless it leads back to an earlier part."""
        if self._parts[a] <= self._parts[b]:
            self._edges[a].append((b, edge))

    def least(self, a: int, b: int, fenced: bool, shown: bool, looping: bool) -> int | None:
        """The least weight of a path that orders all threads."""
        if (a, shown, looping) not in self._known:
            self._known[a, shown, looping] = self._weights(a, shown, looping)
        weights = self._known[a, shown, looping]
        ends: Sequence[State] = ((b, True, True),) if fenced else ((b, True, True), (b, True, False))
        return min((weights[s] for s in ends if s in weights), default=None)

    def _weights(self, a: int, shown: bool, looping: bool) -> dict[State, int]:
        """The least weight of a path to every state."""
        weights: dict[State, int] = {(a, False, False): 0}
        layers: list[list[State]] = [[(a, False, False)], []]
        weight = 0
        while layers[weight]:
            for node, ordered, fenced in layers[weight]:  # which grows
                for b, edge in self._edges[node]:
                    after, total = (b, ordered or edge.orders, fenced or edge.fences), weight + edge.weight
                    through = (looping or self._parts[b] != INSIDE) and (edge.shows or not shown)
                    if through and weights.get(after, total + 1) > total:
                        weights[after] = total
                        layers[total].append(after)
            weight += 1
            layers.append([])
        return weights
