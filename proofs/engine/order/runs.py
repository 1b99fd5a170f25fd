"""What an operation meets on every run of a program that goes on from it.

A program is what the threads of one role do. A run is followed from a segment of accesses, through straight code, both
arms of a branch, and round loops until nothing new comes. Where runs meet, each progress that is possible is kept. A
condition that all threads of a block decide alike is remembered where its arms lead to different progress. How often a
loop has gone round is counted, as far as copies and products can be under way, then known to be at least that. All that
is left out makes more runs possible, never fewer.

Between two barriers of all its threads, two of them may be at any two places that a run without a barrier connects, in
either order, or in two arms of one branch. So two accesses are ordered if every run from one to the other has what
progress.py demands.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import z3

from ..access.instances import constants
from ..access.trace import Access, Branch, Event, Loop, Node, Segment, Variable
from .progress import BEGIN, Progress, Steps, kind
from .structure import events, inside, segments, times

Facts = frozenset[z3.BoolRef]
NONE: Facts = frozenset()


@dataclass(frozen=True)
class Carried:
    """A loop that has gone round: so often, or at least so often."""

    variable: Variable
    times: int
    exactly: bool = True

    def again(self, far: int) -> Carried:
        """Count one time more, up to ``far``."""
        return replace(self, times=min(self.times + 1, far), exactly=self.exactly and self.times + 1 < far)


@dataclass(frozen=True)
class Mark:
    """A point on a run from an operation.

    Args:
        progress: of the operation.
        common: the loops around both that are still in the operation's own iteration.
        carried: a loop around both that has gone round since.
        first: what the run says of the iterations that the operation is in.
        second: what it says of those that the point is in.
    """

    progress: Progress
    common: tuple[Variable, ...] = ()
    carried: Carried | None = None
    first: Facts = NONE
    second: Facts = NONE

    def knowing(self, *facts: z3.BoolRef) -> Mark:
        """Return the mark with facts about the iterations that the point is in."""
        return replace(self, second=self.second | {*facts})

    def without(self, variable: Variable) -> Mark:
        """Return the mark outside the iteration of a loop, or in another one."""
        return replace(self, second=frozenset(f for f in self.second if variable.name not in _names(f)))

    def leaving(self, loop: Loop) -> Mark:
        """Return the mark after a loop around the operation. If that has not gone round, its last iteration is this one."""
        outer = _outside(self.common, loop)
        times, exactly = (self.carried.times, self.carried.exactly) if self.carried else (0, True)
        v, first = loop.variable, self.first if self.carried else self.first | self.second
        if v.extent is not None:
            begun, end = v.term + times, v.low + v.extent - 1
            first |= {begun == end if exactly else begun <= end}
        return Mark(self.progress, outer, None, first, NONE)

    def round(self, loop: Loop, far: int) -> Mark:
        """Return the mark in the next iteration of a loop around the operation."""
        outer = _outside(self.common, loop)
        if self.carried is None:
            return Mark(self.progress, outer, Carried(loop.variable, 1), self.first | self.second, NONE)
        return Mark(self.progress, outer, self.carried.again(far), self.first, NONE)


@dataclass
class Way:
    """Runs from a segment, of operations that begin with one progress: where they lead.

    Args:
        source: the segment; None for the beginning of the program.
        begin: the progress.
        segments: those that they come to, with what has become of the operation by then.
        events: the same for events, just after them.
    """

    source: Segment | None
    begin: Progress
    segments: dict[tuple[int, Mark], tuple[Segment, Mark]] = field(default_factory=dict)
    events: dict[int, dict[Mark, None]] = field(default_factory=dict)


class Runs:
    """The runs through a program.

    Args:
        nodes: the program.
        steps: what its events do.
        uniform: names of constants that have one value in a block.
    """

    def __init__(self, nodes: Sequence[Node], steps: Steps, uniform: Iterable[str]) -> None:
        self._nodes, self._steps, self._far = nodes, steps, steps.deepest + 2
        loops = (n.variable.name for node in nodes for n in inside(node) if isinstance(n, Loop))
        self._uniform = frozenset({*uniform, *loops})
        self._way = Way(None, BEGIN["register"])
        self._source: Segment | None = None  # where the operation is issued, until it is
        self._outer: list[Variable] = []  # the loops around

    def ways(self) -> list[Way]:
        """Return those from the beginning, where no registers are fenced, and from each segment."""
        ways = [self._way]
        for source in segments(self._nodes):
            ways += [Way(source, b) for b in dict.fromkeys(BEGIN[k] for k in map(kind, source.accesses) if k in BEGIN)]
        for way in ways:
            self._way, self._source = way, way.source
            self._through(self._nodes, set() if way.source else {Mark(way.begin)})
        return ways

    def _through(self, nodes: Sequence[Node], marks: set[Mark]) -> set[Mark]:
        """Return the marks at the end of runs through the nodes. There are none before the operation is issued."""
        for node in nodes:
            if isinstance(node, Segment):
                if node is self._source:
                    marks, self._source = {self._issued()}, None
                self._arrive(node, marks)
            elif isinstance(node, Event):
                marks = {replace(mark, progress=self._steps.after(mark.progress, node)) for mark in marks}
                self._way.events.setdefault(id(node), {}).update(dict.fromkeys(marks))
            elif self._comes_in([node]):
                marks = self._from_within(node)
            elif isinstance(node, Loop):
                marks = self._loop(node, marks)
            else:
                marks = {after for mark in marks for after in self._branch(node, mark)}
        return marks

    def _issued(self) -> Mark:
        return Mark(self._way.begin, tuple(self._outer))

    def _arrive(self, segment: Segment, marks: set[Mark]) -> None:
        for mark in marks:
            self._way.segments[id(segment), mark] = segment, mark

    def _comes_in(self, nodes: Sequence[Node]) -> bool:
        """Return whether the operation is still to be issued, in some of the nodes."""
        return self._source is not None and any(s is self._source for s in segments(nodes))

    def _from_within(self, node: Loop | Branch) -> set[Mark]:
        """Return the marks at the end of a loop or branch in which the operation is issued."""
        if isinstance(node, Loop):
            self._outer.append(node.variable)
            marks = self._through(node.body, set())
            self._outer.pop()
            return self._around(node, marks)
        arm, other = node.arms if self._comes_in(node.arms[0]) else node.arms[::-1]
        if not any(e.whole for e in events([node])):  # then two threads may be in different arms
            for segment in segments(other):
                self._arrive(segment, {self._issued()})
        return self._through(arm, set())

    def _branch(self, node: Branch, mark: Mark) -> set[Mark]:
        then, otherwise = (self._through(arm, {mark}) for arm in node.arms)
        if not self._decided_alike(node.condition):
            return then | otherwise
        both, negated = then & otherwise, z3.Not(node.condition)
        return both | {m.knowing(node.condition) for m in then - both} | {m.knowing(negated) for m in otherwise - both}

    def _loop(self, loop: Loop, marks: set[Mark]) -> set[Mark]:
        """Return the marks after a loop that the operation is not in, run not at all or any number of times."""
        v, often = loop.variable, times(loop)
        ends: dict[Mark, set[int]] = {m: {0} for m in marks} if not often else {}
        todo, done = ({m.knowing(v.term == v.low) for m in marks} if often != 0 else set()), set()
        for number in itertools.count(1):
            done |= todo
            after = {m.without(v) for m in self._through(loop.body, todo)}
            if often is None or number >= min(often, self._far):
                for mark in after:
                    ends.setdefault(mark, set()).add(min(number, self._far))
            here = v.term == v.low + number if number < self._far else v.term >= v.low + self._far
            todo = {m.knowing(here) for m in after} - done
            if not todo or number == often:
                return {m for end, numbers in ends.items() for m in self._gone_round(loop, end, numbers)}
        raise AssertionError

    def _gone_round(self, loop: Loop, mark: Mark, numbers: set[int]) -> Iterator[Mark]:
        """Yield a mark after some numbers of iterations, which is remembered unless any number leads to it."""
        if times(loop) is not None or loop.variable.extent is None or len(numbers) > self._far:
            yield mark
            return
        count = loop.variable.count
        for number in sorted(numbers):
            term = count <= 0 if number == 0 else count == number if number < self._far else count >= number
            fact = z3.simplify(term)
            yield mark.knowing(fact) if self._decided_alike(fact) else mark

    def _around(self, loop: Loop, marks: set[Mark]) -> set[Mark]:
        """Return the marks after a loop, going on from the end of the operation's own iteration."""
        ends: set[Mark] = set()
        done: set[Mark] = set()
        while marks:
            ends |= {m.leaving(loop) for m in marks}
            todo = {m.round(loop, self._far) for m in marks} - done
            done |= todo
            marks = self._through(loop.body, todo)
        return ends

    def _decided_alike(self, condition: z3.BoolRef) -> bool:
        """Return whether all threads of a block that are in one iteration find the same."""
        return _names(condition) <= self._uniform


def share_a_loop(a: Access, b: Access, outer: Sequence[Variable]) -> bool:
    """Return whether a loop within a segment goes round both, so that either may come first."""
    names = {v.name for v in outer}
    ours, theirs = ({v.name for v in x.context.variables if v.kind == "loop"} - names for x in (a, b))
    return bool(ours & theirs)


def _names(term: z3.BoolRef) -> set[str]:
    return {c.decl().name() for c in constants([term])}


def _outside(common: tuple[Variable, ...], loop: Loop) -> tuple[Variable, ...]:
    names = [v.name for v in common]
    return common[: names.index(loop.variable.name)] if loop.variable.name in names else common
