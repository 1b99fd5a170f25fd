"""The order that mbarriers impose on what roles do, and that nobody waits for ever.

The order is a graph. Its nodes are the statements of the roles, for all iterations at once; an edge of weight w leads from
iteration i of one to iteration i + w of the other, for every i: to the next statement, from the arrivals at an mbarrier to the
waits for their phase, and around a barrier of all threads of one role. Of rounds it holds two. Iterations are then counted
through all rounds, as far as it is about two of them. ``docs/order.md`` shows why that is so under the conditions here, and
why then nobody waits for ever.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import z3

from ..access.trace import Event, Node, Segment, Variable
from ..base.dtypes import number
from ..base.errors import Unsupported
from ..smt.solve import unsatisfiable
from .graph import Edge, Graph
from .roles import AFTER, BEFORE, INSIDE, Block, Role, inside

_STEPS = 1_000_000  # of the solver, for one question about a parity


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

    @property
    def round(self) -> Variable:
        """The loop of its rounds."""
        assert self.role.round is not None
        return self.role.round


@dataclass(frozen=True)
class Met(Step):
    """An arrival or a wait."""

    event: Event


Pace = Literal["iteration", "round", "block"]


@dataclass
class Mbarrier:
    """An mbarrier: how many arrivals end a phase; who arrives and who waits."""

    name: str
    count: int
    arrivals: list[Met]
    waits: list[Met]

    @property
    def pace(self) -> Pace:
        """For what it has a phase each."""
        parts = {s.part == INSIDE for s in self.arrivals}
        if len(parts) > 1:
            raise Unsupported(f"arrivals at {self.name} in a loop and outside")
        rounds = any(s.role.round is not None for s in self.arrivals)
        return "iteration" if parts == {True} else "round" if rounds else "block"


class Phases:
    """Which statements of a block's roles are ordered by mbarriers, and by barriers of a role."""

    def __init__(self, block: Block) -> None:
        self.block, self.graph = block, Graph()
        self._steps: dict[tuple[int, int], Step] = {}  # by role and the identity of an access or an event
        self.met: list[Met] = []
        ends = [(role, *self._lay(role)) for role in block.roles]
        if any(role.round is not None for role in block.roles):
            self.graph.repeat()
            for role, begin, node, last in ends:
                self._follow(role, node, last, begin + self.graph.span)
        self.barriers = self._initialised()
        for barrier in self.barriers:
            for arrival, wait in itertools.product(barrier.arrivals, barrier.waits):
                self._ends(barrier, arrival, wait)

    def step(self, role: Role, item: object) -> Step:
        """Return where a role makes an access, or meets an event."""
        return self._steps[id(role), id(item)]

    # The graph.

    def _lay(self, role: Role) -> tuple[int, int, Node | None]:
        """Lay the nodes of a role, and the edges between them; return the first, and the last with what stands there."""
        begin, end = self.graph.node(BEFORE), self.graph.node(AFTER)
        node, last = self._run(role, BEFORE, begin)
        self._follow(role, node, last, end)
        if role.loop is not None:
            head = self.graph.node(INSIDE)
            self._follow(role, node, last, head)
            node, last = self._run(role, INSIDE, head)
            self._follow(role, node, last, head, 1)
            self._follow(role, node, last, end)
        return begin, *self._run(role, AFTER, end)

    def _run(self, role: Role, part: int, node: int) -> tuple[int, Node | None]:
        last: Node | None = None
        for after in role.parts[part]:
            here = done = self.graph.node(part)
            self._follow(role, node, last, here)
            what = after.does if isinstance(after, Event) else None
            if what in ("copied", "wait"):  # the arrival comes when the copies are there; a wait ends when it is passed
                done = self.graph.node(part)
                self.graph.edge(here, done, Edge(shows=what == "wait"))
            step = Step(role, part, here, done)
            for each in inside(after):
                items = each.accesses if isinstance(each, Segment) else [each]
                self._steps |= {(id(role), id(item)): step for item in items}
            if isinstance(after, Event) and what in ("arrive", "copied", "wait"):
                self.met.append(Met(role, part, here, done, after))
            node, last = done if what == "wait" else here, after
        return node, last

    def _ends(self, barrier: Mbarrier, arrival: Met, wait: Met) -> None:
        """Add the edges from an arrival to the end of a wait for its phase, or for a later one."""
        if (later := behind(barrier, wait)) is None:
            return
        span = self.graph.span
        if barrier.pace != "round" or later == 0:
            edge = Edge(later if wait.part == INSIDE else 0, orders=True)
            for shift in sorted({0, span}):
                self.graph.edge(arrival.done + shift, wait.done + shift, edge)
        if span:
            self.graph.edge(arrival.done, wait.done + span, Edge(orders=True))

    def _follow(self, role: Role, node: int, last: Node | None, to: int, weight: int = 0) -> None:
        """Add an edge from a node, where something stands, to the next."""
        edge = Edge(weight)
        if isinstance(last, Event) and not self.block.threads.others(last.context, role):
            edge = Edge(weight, self.block.whole(last, role), last.does == "fence")
        self.graph.edge(node, to, edge)

    def _initialised(self) -> list[Mbarrier]:
        barriers: dict[tuple[str, int], Mbarrier] = {}
        for item in self.block.initialised:
            key, count = _key(item), item.numbers[1]
            if key in barriers or any(v.kind == "loop" for v in item.context.variables):
                raise Unsupported(f"a barrier that is initialised again: {item.context.site.text}")
            barriers[key] = Mbarrier(f"{key[0]}[{key[1]}]", int(str(count)), [], [])
        for met in self.met:
            key = _key(met.event)
            if key not in barriers:
                raise Unsupported(f"a barrier that is not initialised: {met.event.context.site.text}")
            (barriers[key].waits if met.event.does == "wait" else barriers[key].arrivals).append(met)
        return list(barriers.values())


def behind(barrier: Mbarrier, wait: Met) -> int | None:
    """Return how many phases before the one that is counted at a wait it is for; None if nothing follows from it."""
    if barrier.pace == "block":
        return 0 if z3.is_true(z3.simplify(parity(wait) == 0)) else None
    if barrier.pace == "iteration" and wait.part != INSIDE:
        return None if wait.role.loop is None else 1
    if barrier.pace == "round" and wait.part == INSIDE:
        return None
    first = parity(wait)
    for loop in (loop for loop in (wait.role.loop, wait.role.round) if loop is not None):
        first = z3.simplify(z3.substitute(first, (loop.term, loop.low)))
    shown = (later for later in (0, 1) if unsatisfiable([first != later], _STEPS))
    return next(shown, 0)  # 0 where the condition about it is refuted


def counted(barrier: Mbarrier, wait: Met) -> z3.ArithRef:
    """Return the number of the phase in which a wait is, or of the first one after it."""
    begun = z3.IntVal(0) if wait.role.round is None else wait.round.term - wait.round.low
    if barrier.pace != "iteration":
        return begun
    done = z3.IntVal(0) if wait.role.round is None else begun * wait.loop.count
    since = {BEFORE: z3.IntVal(0), INSIDE: wait.loop.term - wait.loop.low, AFTER: wait.loop.count}
    return done + since[wait.part]


def parity(wait: Met) -> z3.ArithRef:
    """Return the parity that a wait names."""
    return number(wait.event.numbers[1])


def _key(event: Event) -> tuple[str, int]:
    """Return an mbarrier: its array and its number."""
    index = z3.simplify(event.accesses[0].indices[0]) if event.accesses else None
    if event.operands[0] is None or index is None or not z3.is_int_value(index):
        raise Unsupported(f"an mbarrier that is not known: {event.context.site.text}")
    return event.operands[0], index.as_long()
