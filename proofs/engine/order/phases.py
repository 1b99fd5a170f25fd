"""The order that mbarriers impose on what roles do, and that nobody waits for ever.

The order is a graph. Its nodes are the statements of the roles, for all iterations at once; an edge of weight w leads from
iteration i of one to iteration i + w of the other, for every i: to the next statement, from the arrivals at an mbarrier to the
waits for their phase, and around a barrier of all threads of one role. ``docs/order.md`` shows why that is so under the
conditions here, and why then nobody waits for ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import z3

from ..access.instances import at, sequent
from ..access.trace import Event, Node, Segment, Variable
from ..base.conditions import Condition
from ..base.dtypes import number
from ..base.errors import Unsupported
from ..contract.hypotheses import Hypotheses
from ..smt.solve import unsatisfiable
from .roles import AFTER, BEFORE, INSIDE, Block, Role, inside

_STEPS = 1_000_000  # of the solver, for one question about a parity
State = tuple[int, bool, bool]  # a node; whether all threads are ordered, and a proxy fence passed, on the way there


class Edge(NamedTuple):
    """From one node to another: how many iterations on; whether it orders all threads, or proxies, and shows writes."""

    weight: int = 0
    orders: bool = False
    fences: bool = False
    shows: bool = True


class Graph:
    """Nodes in parts, and edges from a part to the same or a later one."""

    def __init__(self) -> None:
        self._parts: list[int] = []
        self._edges: list[list[tuple[int, Edge]]] = []
        self._known: dict[tuple[int, bool, bool], dict[State, int]] = {}

    def node(self, part: int) -> int:
        """Add a node, and return its number."""
        self._parts.append(part)
        self._edges.append([])
        return len(self._parts) - 1

    def edge(self, a: int, b: int, edge: Edge) -> None:
        """Add an edge, unless it leads back to an earlier part."""
        if self._parts[a] <= self._parts[b]:
            self._edges[a].append((b, edge))

    def least(
        self, a: int, b: int, *, orders: bool = True, fenced: bool = False, shown: bool = False, looping: bool = True
    ) -> int | None:
        """Return the least weight of a path from a node to another; None if there is none.

        ``orders``: only of those that order all threads; ``fenced``: only of those with a proxy fence; ``shown``: only of those
        at whose end all is seen that was written before them; ``looping``: also of those through iterations of the loops.
        """
        key = a, shown, looping
        if key not in self._known:
            self._known[key] = self._weights(a, shown, looping)
        weights, ends = self._known[key], itertools.product([b], {True, orders}, {True, fenced})
        return min((weights[s] for s in ends if s in weights), default=None)

    def _weights(self, a: int, shown: bool, looping: bool) -> dict[State, int]:
        """Return the least weight of a path to every state."""
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


@dataclass(frozen=True)
class Step:
    """Something that a role does: the part that it is in, its node, and the node where it is over."""

    role: Role
    part: int
    node: int
    done: int

    @property
    def loop(self) -> Variable:
        """The loop that it is in."""
        assert self.role.loop is not None
        return self.role.loop


@dataclass(frozen=True)
class Met(Step):
    """An arrival or a wait."""

    event: Event


@dataclass
class Mbarrier:
    """An mbarrier: how many arrivals end a phase; who arrives and who waits."""

    name: str
    count: int
    arrivals: list[Met]
    waits: list[Met]

    @property
    def looped(self) -> bool:
        """Whether it has a phase for each iteration, rather than one."""
        parts = {s.part == INSIDE for s in self.arrivals}
        if len(parts) > 1:
            raise Unsupported(f"arrivals at {self.name} in a loop and outside")
        return parts == {True}


class Phases:
    """Which statements of a block's roles are ordered by mbarriers, and by barriers of a role."""

    def __init__(self, block: Block) -> None:
        self._block, self.graph = block, Graph()
        self._steps: dict[tuple[int, int], Step] = {}  # by role and the identity of an access or an event
        self._met: list[Met] = []
        for role in block.roles:
            self._lay(role)
        self.barriers = self._initialised()
        for barrier in self.barriers:
            for arrival, wait in itertools.product(barrier.arrivals, barrier.waits):
                if (behind := _behind(barrier, wait)) is not None:
                    self.graph.edge(arrival.done, wait.node, Edge(behind, orders=True))

    def step(self, role: Role, item: object) -> Step:
        """Return where a role makes an access, or meets an event."""
        return self._steps[id(role), id(item)]

    def conditions(self, hypotheses: Hypotheses) -> Iterator[Condition]:
        """Yield what must hold for the order to be as described, and for all waits to end."""
        yield from self._equally_often(hypotheses)
        threads = self._block.threads
        for met in self._met:
            if others := threads.others(met.event.context, met.role):
                given = (*hypotheses.facts, *threads.plainly(met.event.context, met.role))
                what = f"all of {met.role} reach this, every time"
                yield sequent("phase", what, given, z3.And(*others), met.event.context.site)
        for barrier in self.barriers:
            if of := (*barrier.arrivals, *barrier.waits):
                come = sum(len(s.role.threads) for s in barrier.arrivals)
                each = "in an iteration" if barrier.looped else "at all"
                what = f"{barrier.name} counts {barrier.count} arrivals, and {come} come {each}"
                yield at(of[0].event.context, "phase", what, z3.BoolVal(come == barrier.count), hypotheses.facts)
            if barrier.looped:
                yield from self._in_phase(barrier, hypotheses)
            for wait in barrier.waits:
                reason = self._stuck(barrier, wait)
                what = f"each of {wait.role} gets past this wait at {barrier.name}, in every timing"
                what += f"; not so: {reason}" if reason else ""
                yield at(wait.event.context, "deadlock", what, z3.BoolVal(not reason), hypotheses.facts)

    # The graph.

    def _lay(self, role: Role) -> None:
        """Lay the nodes of a role, and the edges between them."""
        end = self.graph.node(AFTER)
        node, last = self._run(role, BEFORE, self.graph.node(BEFORE))
        self._follow(role, node, last, end)
        if role.loop is not None:
            head = self.graph.node(INSIDE)
            self._follow(role, node, last, head)
            node, last = self._run(role, INSIDE, head)
            self._follow(role, node, last, head, 1)
            self._follow(role, node, last, end)
        self._run(role, AFTER, end)

    def _run(self, role: Role, part: int, node: int) -> tuple[int, Node | None]:
        last: Node | None = None
        for after in role.parts[part]:
            here = done = self.graph.node(part)
            self._follow(role, node, last, here)
            if isinstance(after, Event) and after.does == "copied":  # the arrival comes when the copies are there
                done = self.graph.node(part)
                self.graph.edge(here, done, Edge(shows=False))
            step = Step(role, part, here, done)
            for each in inside(after):
                items = each.accesses if isinstance(each, Segment) else [each]
                self._steps |= {(id(role), id(item)): step for item in items}
            if isinstance(after, Event) and after.does in ("arrive", "copied", "wait"):
                self._met.append(Met(role, part, here, done, after))
            node, last = here, after
        return node, last

    def _follow(self, role: Role, node: int, last: Node | None, to: int, weight: int = 0) -> None:
        """Add an edge from a node, where something stands, to the next."""
        edge = Edge(weight)
        if isinstance(last, Event) and not self._block.threads.others(last.context, role):
            edge = Edge(weight, self._block.whole(last, role), last.does == "fence")
        self.graph.edge(node, to, edge)

    def _initialised(self) -> list[Mbarrier]:
        barriers: dict[tuple[str, int], Mbarrier] = {}
        for item in self._block.initialised:
            key, count = _key(item), item.numbers[1]
            if key in barriers or any(v.kind == "loop" for v in item.context.variables):
                raise Unsupported(f"a barrier that is initialised again: {item.context.site.text}")
            barriers[key] = Mbarrier(f"{key[0]}[{key[1]}]", int(str(count)), [], [])
        for met in self._met:
            key = _key(met.event)
            if key not in barriers:
                raise Unsupported(f"a barrier that is not initialised: {met.event.context.site.text}")
            (barriers[key].waits if met.event.does == "wait" else barriers[key].arrivals).append(met)
        return list(barriers.values())

    # Conditions.

    def _equally_often(self, hypotheses: Hypotheses) -> Iterator[Condition]:
        loops = [(role, role.loop) for role in self._block.roles if role.loop is not None]
        renaming, threads = self._block.renaming(hypotheses), self._block.threads
        for (role, loop), (other, second) in itertools.combinations_with_replacement(loops, 2):
            here, there = (next(m.event for m in self._met if m.role is r and m.part == INSIDE) for r in (role, other))
            given = [*hypotheses.facts, *threads.plainly(here.context, role, ("block", "thread"))]
            given += map(renaming.term, threads.plainly(there.context, other, ("block", "thread")))
            goal = loop.count == renaming.variable(second).count
            what = f"{role} and {other} run their loops equally often"
            yield sequent("phase", what, given, goal, here.context.site)

    def _in_phase(self, barrier: Mbarrier, hypotheses: Hypotheses) -> Iterator[Condition]:
        what = f"no thread arrives at {barrier.name} for the next iteration before all have arrived for this one"
        for a, b in itertools.product(barrier.arrivals, repeat=2):
            weight = self.graph.least(a.done, b.node)
            goal = z3.BoolVal(weight is not None and weight <= 1)
            yield at(b.event.context, "phase", what, goal, hypotheses.facts)
        for wait in barrier.waits:
            if (behind := _behind(barrier, wait)) is not None:
                goal = _parity(wait) == (wait.loop.term - wait.loop.low + behind) % 2
                phase = "the iteration before" if behind else "its iteration"
                what = f"this waits at {barrier.name} for the phase of {phase}"
                yield at(wait.event.context, "phase", what, goal, hypotheses.facts)

    def _stuck(self, barrier: Mbarrier, wait: Met) -> str:
        """Return why a wait may last for ever; nothing if it cannot."""
        behind = _behind(barrier, wait)
        if not barrier.arrivals:
            return "nobody arrives"
        if behind is None:
            return "which phase it waits for is not known"
        for arrival in barrier.arrivals:
            weight = self.graph.least(wait.node, arrival.done, orders=False)
            if arrival.part > wait.part or (behind == 0 and weight == 0):
                return f"{arrival.role} arrive only after it"
        # by paths from the wait to an arrival, of one thread if it does both
        following = (self.graph.least(wait.node, a.node, orders=wait.role is not a.role) for a in barrier.arrivals)
        if barrier.looped and not any(weight is not None and weight <= 1 - behind for weight in following):
            return "the phase after may end before it is seen that this one has"
        return ""


def _behind(barrier: Mbarrier, wait: Met) -> int | None:
    """Return how many iterations back the phase lies that a wait is for; None if nothing follows from it."""
    if not barrier.looped:
        return 0 if z3.is_true(z3.simplify(_parity(wait) == 0)) else None
    if wait.part != INSIDE:
        return None
    first = z3.simplify(z3.substitute(_parity(wait), (wait.loop.term, wait.loop.low)))
    shown = (behind for behind in (0, 1) if unsatisfiable([first != behind], _STEPS))
    return next(shown, 0)  # 0 where the condition about it is refuted


def _parity(wait: Met) -> z3.ArithRef:
    return number(wait.event.numbers[1])


def _key(event: Event) -> tuple[str, int]:
    """Return an mbarrier: its array and its number."""
    index = z3.simplify(event.accesses[0].indices[0]) if event.accesses else None
    if event.operands[0] is None or index is None or not z3.is_int_value(index):
        raise Unsupported(f"an mbarrier that is not known: {event.context.site.text}")
    return event.operands[0], index.as_long()
