"""The question: are two accesses of a block ordered on every run, for which distances of iterations, and else of which bytes.

Two accesses of one role are ordered by the runs between them (runs.py), or else by other roles (phases.py); two of two roles
by phases alone, for the distances of iterations that ``docs/order.md`` gives. The first iteration follows what comes before
the loop; what comes after it follows iteration i of an access if there is an iteration that is as many further on.

A path begins where an access is over. A copy is over, for whoever waits there, at its thread's arrival at the next mbarrier
that counts copies; a copy and a product are over at the first event at which they have ended on every run. What is written
otherwise than by a product is seen by one only beyond a proxy fence, which must be on the path.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import z3

from ..access.instances import Renaming, agree, sequent
from ..access.trace import Access, Context, Event, Segment
from ..base.conditions import Condition, conjunction, disjunction
from ..base.errors import Unsupported
from ..compiler.instructions import does
from ..contract.hypotheses import Hypotheses
from ..smt.bitvectors import permutes_bits, without_products
from .distances import Distances, Use
from .phases import Phases
from .progress import BEGIN, FENCED, Lack, Progress, Steps, conflict, kind
from .roles import AFTER, BEFORE, INSIDE, Block, Role, inside
from .runs import Mark, Runs, Way, share_a_loop
from .words import lacking, unmet

_PLAIN = ("load", "store", "atomic")


class Meeting(NamedTuple):
    """Two accesses of one role that a run leads to, one from the other, with what is missing between them."""

    first: Access
    second: Access
    mark: Mark
    lack: Lack


class Ordered:
    """The accesses of a block, whose sizes are known as hypotheses say, and which of them are ordered."""

    def __init__(self, block: Block, hypotheses: Hypotheses) -> None:
        self.block, self._hypotheses = block, hypotheses
        self.phases = Phases(block) if block.phased and block.initialised else None
        self.unordered: dict[object, tuple[Use, Use, Renaming, list[z3.BoolRef]]] = {}  # a pair for each way to be so
        uniform = {*hypotheses.sizes, *block.blocks}
        self._ways: dict[int, list[Way]] = {}
        for role in block.roles:
            steps = Steps(role.nodes, lambda e, role=role: block.whole(e, role))  # type: ignore[misc]
            self._ways[id(role)] = Runs(role.nodes, steps, uniform, settle=self.phases is None).ways()
        self._distances = Distances(self.phases) if self.phases else None
        self._uses = {id(role): list(self._of_role(role)) for role in block.roles} if self.phases else {}

    # Within a role.

    def meetings(self, role: Role) -> Iterator[Meeting]:
        """Yield the pairs of its accesses between which something is missing on some run."""
        for way in self._ways[id(role)]:
            for segment, mark in way.segments.values():
                for first, second in _pairs(way, segment, mark):
                    if lack := mark.progress.lacks(kind(second)):
                        yield Meeting(first, second, mark, lack)

    def within(self, role: Role, meetings: list[Meeting]) -> Iterator[Condition]:
        """Yield, for each two accesses of a role that are not ordered on every run, that their bytes differ."""
        uses = {id(use.access): use for use in self._uses.get(id(role), [])}
        found: dict[object, list[tuple[Meeting, list[z3.BoolRef]]]] = {}
        for m in meetings:
            renaming = self._renaming(m)
            if (elsewhere := self._elsewhere(uses, m, renaming)) is not None:
                key = id(m.first), id(m.second), m.mark.common, m.lack[1], m.mark.forgets
                found.setdefault(key, []).append((m, [*_relation(m.mark, renaming), *elsewhere]))
        for runs in found.values():
            m, missing = runs[0][0], [each.lack[0] for each, _ in runs]
            second = self._renaming(m).access(m.second)
            met = Unordered(m.first, second, m.first is m.second, [facts for _, facts in runs])
            plain = kind(m.first) in _PLAIN and kind(m.second) in _PLAIN
            words = unmet(m.first, m.second) if plain else lacking(m.first, m.second, missing)
            yield apart("race" if plain else "async", words, met, self._hypotheses, m.lack[1])

    def _renaming(self, m: Meeting) -> Renaming:
        """Return what tells the second from the first: no loop around a run, nor the thread, of its own registers."""
        local = [] if m.first.region.shared else [v.name for v in m.first.context.variables if v.kind == "thread"]
        return self.block.renaming(self._hypotheses, *(v.name for v in m.mark.common), *local)

    def _elsewhere(self, uses: dict[int, Use], m: Meeting, renaming: Renaming) -> list[z3.BoolRef] | None:
        """Return what is known of the iterations in which other roles do not order the two; None if they always do."""
        if id(m.first) not in uses or id(m.second) not in uses:
            return []
        assert self._distances is not None
        return self._distances.later(uses[id(m.first)], uses[id(m.second)], m.mark, renaming)

    def relies_on_readers(self, role: Role) -> bool:
        """Return whether a product or TMA may read only because of a fence by those who read, or who waited for copies."""
        for way in self._ways[id(role)]:
            for segment, mark in way.segments.values():
                late = mark.progress.fence == "after"
                read = {k for k in FENCED if late and mark.progress.lacks(k) is None}
                if read and any(kind(b) in read and conflict(a, b) for a, b in _pairs(way, segment, mark)):
                    return True
        return self.phases is not None and any(kind(u.access) == "copy" for u in self._uses[id(role)])

    def unfenced(self, role: Role, product: Access) -> bool:
        """Return whether some run from the beginning meets a product before any fence of registers."""
        entry = next(way for way in self._ways[id(role)] if way.source is None)
        met = (segment.accesses for segment, mark in entry.segments.values() if mark.progress.lacks("result"))
        return any(a is product for accesses in met for a in accesses)

    def unread(self, role: Role) -> Iterator[Access]:
        """Yield the stores by TMA that some run leaves reading at the end of the program."""
        for way in self._ways[id(role)]:
            if way.source and way.begin.what == "bulk" and any(m.progress.groups is not None for m in way.ends):
                yield from (a for a in way.source.accesses if kind(a) == "bulk")

    # Among roles.

    def among(self) -> Iterator[Condition]:
        """Yield, for each two accesses of two roles that are not ordered in all iterations, that their bytes differ."""
        assert self._distances is not None
        for one, other in itertools.combinations(self.block.roles, 2):
            uses = sorted([*self._uses[id(one)], *self._uses[id(other)]], key=lambda use: use.step.part)
            for a, b in itertools.combinations(uses, 2):
                if a.step.role is b.step.role or not conflict(a.access, b.access):
                    continue
                renaming = self.block.renaming(self._hypotheses)
                if ways := self._distances.unordered(a, b, renaming):
                    met = Unordered(a.access, renaming.access(b.access), a.access is b.access, list(ways.values()))
                    yield apart("race", unmet(a.access, b.access), met, self._hypotheses, alone=False)
                for way, facts in ways.items():
                    roles = a.step.role.threads, a.step.part, b.step.role.threads, b.step.part
                    self.unordered[*roles, way] = a, b, renaming, facts

    def _of_role(self, role: Role) -> Iterator[Use]:
        """Yield the accesses of a role to shared memory, but for mbarriers."""
        assert self.phases is not None
        ways: dict[tuple[int, Progress], Way] = {}
        for way in self._ways[id(role)]:
            ways.setdefault((id(way.source), way.begin), way)
        over = {key: self._over(role, way) for key, way in ways.items() if way.source and way.begin.groups is not None}
        for segment in (n for node in role.nodes for n in inside(node) if isinstance(n, Segment)):
            for access in (a for a in segment.accesses if a.region.shared and a.region.scope != "shared.barrier"):
                step = self.phases.step(role, access)
                if kind(access) != "none":
                    yield Use(access, step, over.get((id(segment), BEGIN[kind(access)]), ((step.done, 0),)))
                elif access.intrinsic and len(self.block.roles) > 1 and does(access.intrinsic) != "describe":
                    raise Unsupported(f"shared memory that is given to {access.intrinsic}: {access.context.site.text}")

    def _over(self, role: Role, way: Way) -> tuple[tuple[int, int], ...]:
        """Return the nodes at which the copies or products of a segment are over, with how many iterations later."""
        assert self.phases is not None
        assert way.source is not None
        begun = self.phases.step(role, way.source.accesses[0]).part
        met: dict[tuple[int, int, int], tuple[Event, list[Mark]]] = {}
        for part in range(begun, AFTER + 1):
            for place, node in enumerate(role.parts[part]):
                for mark in way.events.get(id(node), ()) if isinstance(node, Event) else ():
                    if (times := _times(mark, role, begun, part)) is not None:
                        met.setdefault((part, times, place), (node, []))[1].append(mark)  # type: ignore[arg-type]
        found: list[tuple[int, int]] = []
        for (_, times, _), (event, marks) in sorted(met.items(), key=lambda item: item[0]):
            step = self.phases.step(role, event)
            counts = way.begin.what == "copy" and event.does == "copied" and not found
            if counts and not self.block.threads.others(event.context, role):
                found.append((step.done, times))
            if times:  # that may be in the next round
                marks += [mark for mark in way.events[id(event)] if not mark.within(role.round)]
            if all(mark.progress.groups is None for mark in marks):
                return (*found, (step.node, times))
        return tuple(found)


def _times(mark: Mark, role: Role, begun: int, part: int) -> int | None:
    """Return how many iterations after an operation a run meets an event in the same round; None if that is not known."""
    carried = mark.carried
    if not mark.within(role.round):
        return None
    if part == AFTER or begun == part == BEFORE or carried is None:
        return 0 if part in (begun, AFTER) else None
    return carried.times if begun == INSIDE and carried.exactly and carried.variable is role.loop else None


def _pairs(way: Way, segment: Segment, mark: Mark) -> Iterator[tuple[Access, Access]]:
    """Yield the accesses that begin with the way's progress, each with those of a segment that it conflicts with."""
    if way.source is None:
        return
    same = segment is way.source and mark.carried is None and mark.progress == way.begin
    for number, first in enumerate(way.source.accesses):
        if BEGIN.get(kind(first)) != way.begin:
            continue
        for place, second in ((n, a) for n, a in enumerate(segment.accesses) if conflict(first, a)):
            if same and place < number:
                plain = kind(first) in _PLAIN and kind(second) in _PLAIN
                if plain or not share_a_loop(first, second, mark.common):
                    continue
            yield first, second


def _relation(mark: Mark, renaming: Renaming) -> list[z3.BoolRef]:
    """Return what a run says of the iterations of two accesses."""
    first, second = (sorted(facts, key=lambda f: str(f.sexpr())) for facts in (mark.first, mark.second))
    facts = [*first, *map(renaming.term, second)]
    if mark.carried:
        before, times = mark.carried.variable, mark.carried.times
        after = renaming.variable(before).term
        facts.append(after == before.term + times if mark.carried.exactly else after >= before.term + times)
    return facts


class Unordered(NamedTuple):
    """Two accesses that may meet, in some iterations."""

    first: Access
    second: Access  # renamed
    itself: bool  # whether the two are one statement
    facts: Sequence[Sequence[z3.BoolRef]]  # what is known of the iterations, in each of the ways to meet


def apart(kind: str, statement: str, met: Unordered, hypotheses: Hypotheses, alone: bool) -> Condition:
    """Return that two accesses share no byte; or are by one thread, where ``alone`` makes that harmless."""
    first, second = met.first, met.second
    either = met.facts[0] if len(met.facts) == 1 else [disjunction(*(conjunction(*f) for f in met.facts))]
    given = [*hypotheses.facts, *first.context.path, *second.context.path, *either]
    goal = z3.Not(overlap(first, second))
    if met.itself and not z3.is_false(same := agree(first, second, hypotheses.sizes)):
        goal = z3.Or(same, goal)
    if alone and not (first.collective or second.collective):
        goal = z3.Or(same_execution(first.context, second.context, {"thread"}), goal)
    elif met.itself:  # one and the same thread may stand for two, but not at once
        pairs = zip(first.context.variables, second.context.variables, strict=True)
        goal = z3.Or(conjunction(*(v.term == w.term for v, w in pairs if v.name != w.name)), goal)
    if kind == "async" and any(met.facts) and permutes_bits([goal]):  # sizes matter only as far as they decide a stage
        (*given, goal), signs = without_products([*given, goal])
        given += signs
    return sequent(kind, statement, given, goal, first.context.site)


def same_execution(a: Context, b: Context, kinds: set[str]) -> z3.BoolRef:
    """Return that the same thread, or block, executes both."""
    ours, theirs = ([v.term for v in c.variables if v.kind in kinds] for c in (a, b))
    if len(ours) != len(theirs):
        raise Unsupported("accesses under different launch axes")
    return conjunction(*(x == y for x, y in zip(ours, theirs, strict=True)))


def overlap(a: Access, b: Access) -> z3.BoolRef:
    """Return that the two elements share a byte."""
    if (a.region.offset, a.region.bits) == (b.region.offset, b.region.bits):
        return flat(a) == flat(b)
    (ours, size), (theirs, other) = _bytes(a), _bytes(b)
    return z3.And(ours < theirs + other, theirs < ours + size)


def flat(a: Access, strides: Sequence[z3.ArithRef] | None = None) -> z3.ArithRef:
    """Return the position in the buffer, in elements; one index is a position already."""
    if strides and len(a.indices) == len(strides):
        return z3.Sum([i * s for i, s in zip(a.indices, strides, strict=True)])
    position = a.indices[0]
    for index, extent in zip(a.indices[1:], a.region.shape[1:], strict=True):
        position = position * extent + index
    return position


def _bytes(a: Access) -> tuple[z3.ArithRef, int]:
    """Return where the element begins in its allocation, in bytes, and how many it has."""
    if a.region.bits % 8:
        raise Unsupported(f"elements of {a.region.bits} bits in shared memory")
    return a.region.offset + flat(a) * (a.region.bits // 8), a.region.bits // 8
