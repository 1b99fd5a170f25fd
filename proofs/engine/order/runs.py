"""What an operation meets on every run of the kernel that goes on from it.

A run is followed from an access, through straight code, both arms of a branch, and round loops until nothing new comes.
What has become of the operation on the way, such as whether it has been waited for, is its *progress*; where runs meet,
each progress that is possible is kept. A condition that all threads of a block decide alike is remembered where its arms
lead to different progress. All that is left out makes more runs possible, never fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import z3

from ..access.instances import constants
from ..access.trace import Access, Barrier, Branch, Event, Loop, Node, Segment, Variable
from .intervals import Placed, Unordered, accesses


class Progress(Protocol):
    """What has become of an operation."""

    def step(self, node: Barrier | Event) -> Progress:
        """After a barrier or an event."""

    def lacks(self, later: Access) -> Lack | None:
        """What the operation still needs before a later access to the same bytes."""


Lack = tuple[str, bool]  # what is missing, and whether the access is harmless if it is by the same thread
Facts = frozenset[z3.BoolRef]
NONE: Facts = frozenset()


@dataclass(frozen=True)
class Mark:
    """A point on a run from an operation.

    Args:
        progress: of the operation.
        common: the loops around both that are still in the operation's own iteration.
        carried: a loop around both that has gone round since, and whether more than once.
        first: what the run says of the iterations that the operation is in.
        second: what it says of those that the point is in.
    """

    progress: Progress
    common: tuple[Variable, ...]
    carried: tuple[Variable, bool] | None = None
    first: Facts = NONE
    second: Facts = NONE

    def knowing(self, *facts: z3.BoolRef) -> Mark:
        """With facts about the iterations that the point is in."""
        return replace(self, second=self.second | {*facts})

    def without(self, variable: Variable) -> Mark:
        """Outside the iteration of a loop, or in another one."""
        return replace(self, second=frozenset(f for f in self.second if variable.name not in _names(f)))

    def leaving(self, loop: Loop) -> Mark:
        """Out of a loop around the operation, whose last iteration is that of the operation if it has not gone round."""
        outer = _outside(self.common, loop)
        if self.carried is None:
            last = [] if loop.variable.extent is None else [loop.variable.term == _last(loop)]
            return Mark(self.progress, outer, None, self.first | self.second | {*last}, NONE)
        return Mark(self.progress, outer, None, self.first, NONE)

    def round(self, loop: Loop) -> Mark:
        """In the next iteration of a loop around the operation."""
        outer = _outside(self.common, loop)
        if self.carried is None:
            return Mark(self.progress, outer, (loop.variable, False), self.first | self.second, NONE)
        return Mark(self.progress, outer, (loop.variable, True), self.first, NONE)


@dataclass(frozen=True)
class Meeting:
    """An operation and an access that a run leads to from it, with what has become of the operation by then."""

    first: Access
    second: Access
    mark: Mark

    @property
    def pair(self) -> Unordered:
        """The two accesses, and what the run says of the iterations they are in."""
        first = Placed(self.first, _sorted(self.mark.first))
        second = Placed(self.second, _sorted(self.mark.second))
        return Unordered(first, second, self.mark.common, self.mark.carried)


class Runs:
    """The runs from each operation of a kernel.

    Args:
        nodes: the kernel.
        begin: the progress that an access starts with, None if it is of no interest.
        matters: whether an operation and a later access are of interest, one to the other.
        uniform: names of constants that have one value in a block.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        begin: Callable[[Access], Progress | None],
        matters: Callable[[Access, Access], bool],
        uniform: Iterable[str],
    ) -> None:
        self._nodes, self._begin, self._matters = nodes, begin, matters
        loops = (n.variable.name for node in nodes for n in _all(node) if isinstance(n, Loop))
        self._uniform = frozenset({*uniform, *loops})
        self._first: Access
        self._found: dict[tuple[int, int, Mark], Meeting] = {}

    def meetings(self) -> list[Meeting]:
        """All of them."""
        self._visit(self._nodes, (), lambda marks: None)
        return list(self._found.values())

    def _visit(self, nodes: Sequence[Node], around: tuple[Loop, ...], rest: Callable[[set[Mark]], None]) -> None:
        """The runs from every operation in the nodes; ``rest`` goes on where they end."""
        for number, node in enumerate(nodes):
            after = nodes[number + 1 :]

            def onward(marks: set[Mark], after: Sequence[Node] = after) -> None:
                rest(self._through(after, marks))

            if isinstance(node, Segment):
                self._segment(node, around, onward)
            elif isinstance(node, Loop):
                self._visit(node.body, (*around, node), lambda marks, node=node: onward(self._around(node, marks)))  # type: ignore[misc]
            elif isinstance(node, Branch):
                for arm, other in (node.arms, node.arms[::-1]):
                    self._visit(arm, around, onward)
                    if not any(isinstance(n, Barrier) for n in _all(node)):
                        self._beside(arm, other, around)

    def _segment(self, node: Segment, around: tuple[Loop, ...], onward: Callable[[set[Mark]], None]) -> None:
        names = {loop.variable.name for loop in around}
        for number, first in enumerate(node.accesses):
            mark = self._start(first, around)
            if mark is None:
                continue
            self._meet(mark, node.accesses[number:])
            self._meet(mark, [a for a in node.accesses[:number] if _share_a_loop(a, first, names)])
            onward({mark})

    def _beside(self, arm: Sequence[Node], other: Sequence[Node], around: tuple[Loop, ...]) -> None:
        """Of two threads one may be in one arm while the other is in the other."""
        for first in (a for node in arm for a in accesses(node)):
            if mark := self._start(first, around):
                for node in other:
                    self._meet(mark, list(accesses(node)))

    def _start(self, first: Access, around: tuple[Loop, ...]) -> Mark | None:
        self._first, progress = first, self._begin(first)
        return None if progress is None else Mark(progress, tuple(loop.variable for loop in around))

    def _meet(self, mark: Mark, later: Iterable[Access]) -> None:
        for access in later:
            if self._matters(self._first, access):
                self._found.setdefault((id(self._first), id(access), mark), Meeting(self._first, access, mark))

    def _through(self, nodes: Sequence[Node], marks: set[Mark]) -> set[Mark]:
        """The marks at the end of runs through the nodes."""
        for node in nodes:
            if isinstance(node, Segment):
                for mark in marks:
                    self._meet(mark, node.accesses)
            elif isinstance(node, Loop):
                marks = self._loop(node, marks)
            elif isinstance(node, Branch):
                marks = {after for mark in marks for after in self._branch(node, mark)}
            else:
                marks = {replace(mark, progress=mark.progress.step(node)) for mark in marks}
        return marks

    def _branch(self, node: Branch, mark: Mark) -> set[Mark]:
        then, otherwise = (self._through(arm, {mark}) for arm in node.arms)
        if not self._decided_alike(node.condition):
            return then | otherwise
        both, negated = then & otherwise, z3.Not(node.condition)
        return both | {m.knowing(node.condition) for m in then - both} | {m.knowing(negated) for m in otherwise - both}

    def _loop(self, loop: Loop, marks: set[Mark]) -> set[Mark]:
        """Through a loop that the operation is not in: not at all, or any number of times."""
        v = loop.variable
        ends = {m.knowing(*self._never(loop)) for m in marks}
        todo, done = {m.knowing(v.term == v.low) for m in marks}, set()
        while todo:
            done |= todo
            after = {m.without(v) for m in self._through(loop.body, todo)}
            ends |= after
            todo = {m.knowing(v.term > v.low) for m in after} - done
        return ends

    def _around(self, loop: Loop, marks: set[Mark]) -> set[Mark]:
        """On from the end of the operation's own iteration of a loop."""
        ends = {m.leaving(loop) for m in marks}
        todo, done = {m.round(loop) for m in marks}, set()
        while todo:
            done |= todo
            after = self._through(loop.body, todo)
            ends |= {m.leaving(loop) for m in after}
            todo = {m.round(loop) for m in after} - done
        return ends

    def _never(self, loop: Loop) -> list[z3.BoolRef]:
        if loop.variable.extent is None:
            return []
        never = z3.simplify(loop.variable.count <= 0)
        return [never] if self._decided_alike(never) else []

    def _decided_alike(self, condition: z3.BoolRef) -> bool:
        """Whether all threads of a block that are in one iteration find the same."""
        return _names(condition) <= self._uniform


def _sorted(facts: Facts) -> tuple[z3.BoolRef, ...]:
    return tuple(sorted(facts, key=lambda f: str(f.sexpr())))


def _all(node: Node) -> Iterator[Node]:
    yield node
    children = (
        node.body
        if isinstance(node, Loop)
        else [n for arm in node.arms for n in arm]
        if isinstance(node, Branch)
        else []
    )
    for child in children:
        yield from _all(child)


def _names(term: z3.BoolRef) -> set[str]:
    return {c.decl().name() for c in constants([term])}


def _last(loop: Loop) -> z3.ArithRef:
    return loop.variable.low + loop.variable.count - 1


def _outside(common: tuple[Variable, ...], loop: Loop) -> tuple[Variable, ...]:
    names = [v.name for v in common]
    return common[: names.index(loop.variable.name)] if loop.variable.name in names else common


def _share_a_loop(a: Access, b: Access, outer: set[str]) -> bool:
    """Whether a loop within the segment goes round both, so that either may come first."""
    ours, theirs = ({v.name for v in x.context.variables if v.kind == "loop"} - outer for x in (a, b))
    return bool(ours & theirs)
