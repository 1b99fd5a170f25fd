"""What an operation meets on every run of a program that goes on from it.

A program is what the threads of one role do. A run is followed from a segment of accesses, through straight code, both
arms of a branch, and round loops until nothing new comes. What all threads of a block decide alike is remembered for as long
as the number of its iteration is known. ``docs/order.md`` shows why no run is left out that threads may take, and why two
accesses are ordered if every run from one to the other has what progress.py demands.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import z3

from ..access.instances import names
from ..access.tma import elections
from ..access.trace import Access, Branch, Event, Loop, Node, Segment, Variable, value_of
from .progress import BEGIN, Progress, Steps, kind
from .roles import inside, times

Term = TypeVar("Term", bound=z3.ExprRef)
Facts = frozenset[z3.BoolRef]
NONE: Facts = frozenset()
FORGOTTEN = z3.Bool(value_of("what is decided in an iteration that is not counted"))
"""Says of a run that it may not exist. It may be true or false, so that no proof can hang on it."""

_MOST = 32  # marks of one progress; they may double with each decision


@dataclass(frozen=True)
class Carried:
    """A loop that has gone round: so often, or at least so often."""

    variable: Variable
    times: int
    exactly: bool = True

    def again(self, far: int) -> Carried:
        """Return the loop gone round once more; counted up to ``far``."""
        return replace(self, times=min(self.times + 1, far), exactly=self.exactly and self.times + 1 < far)


@dataclass(frozen=True)
class Mark:
    """A point on a run from an operation."""

    progress: Progress  # of the operation
    common: tuple[Variable, ...] = ()  # the loops around both that are still in the operation's own iteration
    carried: Carried | None = None  # a loop around both that has gone round since
    first: Facts = NONE  # what the run says of the iterations that the operation is in
    second: Facts = NONE  # what it says of those that the point is in

    @property
    def forgets(self) -> bool:
        """Whether it is left open that there is such a run."""
        return FORGOTTEN in self.first | self.second

    def within(self, loop: Variable | None) -> bool:
        """Return whether the point is in the operation's own iteration of a loop around both; of none there is but one."""
        return loop is None or any(v.name == loop.name for v in self.common)

    def knowing(self, *facts: z3.BoolRef) -> Mark:
        """Return the mark with facts about the iterations that the point is in."""
        return replace(self, second=self.second | {*facts})

    def leaving(self, loop: Loop) -> Mark:
        """Return the mark out of a loop around the operation, whose own iteration is the last unless it has gone round."""
        times, exactly = (self.carried.times, self.carried.exactly) if self.carried else (0, True)
        begun = loop.variable.term + times
        last = [] if loop.variable.extent is None else [begun == _last(loop) if exactly else begun <= _last(loop)]
        return Mark(self.progress, _outside(self.common, loop), None, self._over(loop) | {*last}, NONE)

    def round(self, loop: Loop, far: int) -> Mark:
        """Return the mark in the next iteration of a loop around the operation."""
        carried = self.carried.again(far) if self.carried else Carried(loop.variable, 1)
        skipped = NONE if carried.exactly else _decides(loop)
        return Mark(self.progress, _outside(self.common, loop), carried, self._over(loop) | skipped, NONE)

    def _over(self, loop: Loop) -> Facts:
        """Return what is said of the operation's iterations once an iteration of a loop around it is over."""
        if self.carried is None:
            return self.first | self.second
        number = loop.variable.term + self.carried.times if self.carried.exactly else None
        return self.first | _over(self.second, loop.variable, number)

    def without(self, variable: Variable, number: z3.ArithRef | None, here: z3.BoolRef) -> Mark:
        """Return the mark outside an iteration of a loop, of which ``here`` says what its number is, if it is known."""
        return replace(self, second=_over(self.second - {here}, variable, number))


@dataclass
class Way:
    """Runs from a segment, of operations that begin with one progress: where they lead, and what is over by then."""

    source: Segment | None  # None for the beginning of the program
    begin: Progress
    segments: dict[tuple[int, Mark], tuple[Segment, Mark]] = field(default_factory=dict)
    events: dict[int, dict[Mark, None]] = field(default_factory=dict)  # just after them
    ends: set[Mark] = field(default_factory=set)  # of the program
    elected: tuple[z3.BoolRef, ...] = ()  # true of the thread that issues the operations, and always the same


class Runs:
    """The runs through a program, of which ``steps`` says what its events do.

    ``uniform`` names the constants that have one value in a block. With ``settle``, an operation that lacks nothing is not
    followed any further.
    """

    def __init__(self, nodes: Sequence[Node], steps: Steps, uniform: Iterable[str], settle: bool = True) -> None:
        self._nodes, self._steps, self._settle, self._far = nodes, steps, settle, steps.deepest + 2
        loops = (n.variable.name for node in nodes for n in inside(node) if isinstance(n, Loop))
        self._uniform = frozenset({*uniform, *loops})
        self._way: Way
        self._ways: list[Way] = []

    def ways(self) -> list[Way]:
        """Return the runs from each segment, and from the beginning, where no registers are fenced."""
        self._way = Way(None, BEGIN["register"])
        self._ways = [self._way]
        self._through(self._nodes, {Mark(self._way.begin)})
        self._visit(self._nodes, (), lambda marks: self._way.ends.update(marks))
        return self._ways

    def _visit(self, nodes: Sequence[Node], around: tuple[Loop, ...], rest: Callable[[set[Mark]], None]) -> None:
        """Follow the runs from every operation in the nodes; ``rest`` goes on where they end."""
        for number, node in enumerate(nodes):
            after = nodes[number + 1 :]

            def onward(marks: set[Mark], after: Sequence[Node] = after) -> None:
                rest(self._through(after, marks))

            if isinstance(node, Segment):
                for mark in self._starts(node, node.accesses, around):
                    self._arrive(node, {mark})
                    onward({mark})
            elif isinstance(node, Loop):
                self._visit(node.body, (*around, node), lambda marks, node=node: onward(self._around(node, marks)))  # type: ignore[misc]
            elif isinstance(node, Branch):
                for arm, other in (node.arms, node.arms[::-1]):
                    self._visit(arm, around, onward)
                    if any(isinstance(n, Event) and n.whole for n in inside(node)):
                        continue
                    # operations of one arm meet those of the other, since two threads may be in different arms
                    sources, met = ([s for n in a for s in inside(n) if isinstance(s, Segment)] for a in (arm, other))
                    for mark in (m for source in sources for m in self._starts(source, source.accesses, around)):
                        for segment in met:
                            self._arrive(segment, {mark})

    def _starts(self, source: Segment, operations: Sequence[Access], around: tuple[Loop, ...]) -> Iterator[Mark]:
        """Yield the marks of the operations of a segment as they are issued, each on a way of its own."""
        begins = {k: BEGIN[k] for k in map(kind, operations) if k in BEGIN}
        for begin in dict.fromkeys(begins.values()):
            issued = [a.context for a in operations if BEGIN.get(kind(a)) == begin]
            self._way = Way(source, begin, elected=elections(issued))
            self._ways.append(self._way)
            yield Mark(begin, tuple(loop.variable for loop in around))

    def _arrive(self, segment: Segment, marks: set[Mark]) -> None:
        for mark in marks:
            self._way.segments[id(segment), mark] = segment, mark

    def _through(self, nodes: Sequence[Node], marks: set[Mark]) -> set[Mark]:
        """Return the marks at the end of runs through the nodes."""
        for node in nodes:
            if isinstance(node, Segment):
                self._arrive(node, marks)
            elif isinstance(node, Loop):
                marks = self._loop(node, marks)
            elif isinstance(node, Branch):
                marks = {after for mark in marks for after in self._branch(node, mark)}
            else:
                marks = {replace(mark, progress=self._steps.after(mark.progress, node)) for mark in marks}
                self._way.events.setdefault(id(node), {}).update(dict.fromkeys(marks))
                marks = {m for m in marks if not (self._settle and self._steps.settled(m.progress))}
        return marks

    def _branch(self, node: Branch, mark: Mark) -> set[Mark]:
        then, otherwise = (self._through(arm, {mark}) for arm in node.arms)
        if mark.progress.groups is not None and any(node.condition.eq(c) for c in self._way.elected):
            return then  # the thread that closes and awaits the group
        if self._alike(node.condition) is None:
            return then | otherwise
        both, negated = then & otherwise, z3.Not(node.condition)
        return both | {m.knowing(node.condition) for m in then - both} | {m.knowing(negated) for m in otherwise - both}

    def _loop(self, loop: Loop, marks: set[Mark]) -> set[Mark]:
        """Return the marks after a loop that the operation is not in, run not at all, or any number of times."""
        v, often = loop.variable, times(loop)
        ends: dict[Mark, set[int]] = {m: {0} for m in marks} if not often else {}
        here, low = v.term == v.low, self._alike(v.low)
        todo, done = ({m.knowing(here) for m in marks} if often != 0 else set()), set()
        for number in itertools.count(1):
            done |= todo
            passed = self._through(loop.body, todo)
            counted = low + (number - 1) if low is not None and number <= self._far else None
            if often is None or number >= min(often, self._far + 1):
                last = counted if counted is not None or v.extent is None else self._alike(_last(loop))
                for mark in _possible(m.without(v, last, here) for m in passed):
                    ends.setdefault(mark, set()).add(min(number, self._far + 1))
            after = _possible(m.without(v, counted, here) for m in passed)
            far = number >= self._far
            here = v.term >= v.low + self._far if far else v.term == v.low + number
            todo = {m.knowing(here, *(_decides(loop) if far or low is None else NONE)) for m in after} - done
            if not todo or number == often:
                return {m for end, numbers in ends.items() for m in self._gone_round(loop, end, numbers)}
        raise AssertionError

    def _gone_round(self, loop: Loop, mark: Mark, numbers: set[int]) -> Iterator[Mark]:
        """Yield a mark after so many iterations, or so many others; it knows which, unless any number leads to it."""
        if times(loop) is not None or loop.variable.extent is None or len(numbers) > self._far + 1:
            yield mark
            return
        count = loop.variable.count
        for number in sorted(numbers):
            term = count <= 0 if number == 0 else count == number if number <= self._far else count >= number
            fact = z3.simplify(term)
            yield mark if self._alike(fact) is None else mark.knowing(fact)

    def _around(self, loop: Loop, marks: set[Mark]) -> set[Mark]:
        """Return the marks after a loop, from the end of the operation's own iteration on."""
        ends = {m.leaving(loop) for m in marks}
        todo, done = {m.round(loop, self._far) for m in marks}, set()
        while todo:
            done |= todo
            after = self._through(loop.body, todo)
            ends |= _possible(m.leaving(loop) for m in after)
            todo = _possible(m.round(loop, self._far) for m in after) - done
        return ends

    def _alike(self, term: Term) -> Term | None:
        """Return a term if all threads of a block that are in one iteration find the same."""
        return term if names([term]) <= self._uniform else None


def share_a_loop(a: Access, b: Access, outer: Sequence[Variable]) -> bool:
    """Return whether a loop within a segment goes round both, so that either may come first."""
    around = {v.name for v in outer}
    ours, theirs = ({v.name for v in x.context.variables if v.kind == "loop"} - around for x in (a, b))
    return bool(ours & theirs)


def _over(facts: Facts, variable: Variable, number: z3.ArithRef | None) -> Facts:
    """Return what is still known once an iteration of a loop is over, of which this is the number, or None if unknown."""
    of = frozenset(f for f in facts if variable.name in names([f]))
    said = () if number is None else (z3.simplify(z3.substitute(f, (variable.term, number))) for f in of)
    return facts - of | {f for f in said if not z3.is_true(f)}


def _decides(loop: Loop) -> Facts:
    """Return that something is forgotten in iterations that are not counted, if the number decides anything in a loop."""
    branches = (n for node in loop.body for n in inside(node) if isinstance(n, Branch))
    return frozenset({FORGOTTEN}) if any(loop.variable.name in names([b.condition]) for b in branches) else NONE


def _possible(marks: Iterable[Mark]) -> set[Mark]:
    """Return the marks but for those of runs that have decided what is plainly false; too many are told apart no more."""
    found: dict[Mark, set[Mark]] = {}
    for m in marks:
        if not any(map(z3.is_false, m.first | m.second)):
            found.setdefault(replace(m, first=frozenset({FORGOTTEN}), second=NONE), set()).add(m)
    return {m for alike, of in found.items() for m in (of if len(of) <= _MOST else {alike})}


def _last(loop: Loop) -> z3.ArithRef:
    return loop.variable.low + loop.variable.count - 1


def _outside(common: tuple[Variable, ...], loop: Loop) -> tuple[Variable, ...]:
    each = [v.name for v in common]
    return common[: each.index(loop.variable.name)] if loop.variable.name in each else common
