"""Whether every path through PTX is a path through the skeleton that it was made of.

nvcc unrolls loops, turns them round, copies code into branches and drops branches that cannot be taken. So the two are not
compared node by node. The skeleton is read as an automaton, in which a branch may go either way and a loop any number of
times, but for loops that nvcc is asked to unroll, which go as often as they say. The PTX is followed along all its
branches, at each step with all places of the skeleton at which it can be. Where none is left, it strays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from .ptx import UNKNOWN, Step
from .skeleton import Apply, Branch, Event, Loop, Node, Skeleton, Term, text


def strays(skeleton: Skeleton, flow: Sequence[Step]) -> str | None:
    """Return in one line where the PTX leaves the skeleton, or what it never does of it; None if neither."""
    automaton = _Automaton(skeleton.body)
    met: set[int] = set()
    todo = [(0, automaton.closure({0}))]
    seen = set(todo)
    while todo:
        at, places = todo.pop()
        step = flow[at]
        due = [move for place in places for move in automaton.moves[place]]
        taken = [move for move in due if step.event and _same(move[0], step.event)]
        if (step.event and not taken) or not (step.follows or automaton.end in places):
            expected = " or ".join(sorted({text(event) for event, _, _ in due})) or "nothing more"
            found = text(step.event) if step.event else "the end"
            return f"PTX, line {at + 1}: {found}, where the skeleton has {expected}"
        if step.event:
            met.update(number for _, _, number in taken)
            places = automaton.closure({end for _, end, _ in taken})
        fresh = {(follows, places) for follows in step.follows} - seen
        seen |= fresh
        todo += fresh
    never = [event for number, event in enumerate(automaton.events) if number not in met]
    return f"PTX without {text(never[0])}, which the skeleton has" if never else None


def _same(due: Event, found: Event) -> bool:
    """Return whether an event of the PTX is the one that is due, with all operands that are known before the kernel runs.

    A parity may be in a register of which it is not known what it holds, also where it is constant.
    """
    if due.kind != found.kind or len(due.operands) != len(found.operands):
        return False
    pairs = enumerate(zip(due.operands, found.operands, strict=True))
    return all(a in (b, UNKNOWN) or (b == UNKNOWN and (due.kind, at) == ("mbarrier.wait", 1)) for at, (a, b) in pairs)


class _Automaton:
    """A skeleton as places and moves between them, each with an event and the number of the one in the skeleton."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.moves: list[list[tuple[Event, int, int]]] = []
        self.events: list[Event] = []
        self._silent: list[set[int]] = []
        self._numbers: dict[int, int] = {}
        self.end = self._block(nodes, self._place())

    def closure(self, places: Iterable[int]) -> frozenset[int]:
        """Return the places and those that are reached from them without an event."""
        todo, found = list(places), set(places)
        while todo:
            fresh = self._silent[todo.pop()] - found
            found |= fresh
            todo += fresh
        return frozenset(found)

    def _place(self) -> int:
        """Add a place."""
        self.moves.append([])
        self._silent.append(set())
        return len(self.moves) - 1

    def _block(self, nodes: Sequence[Node], at: int) -> int:
        """Add some nodes, one after another."""
        for node in nodes:
            at = self._node(node, at)
        return at

    def _node(self, node: Node, at: int) -> int:
        """Add a node that begins at a place, and return the place at which it ends."""
        match node:
            case Loop(_, int(begin), int(end), body, True):
                for _ in range(begin, end):
                    at = self._block(body, at)
                return at
            case Loop():
                head = self._place()
                self._silent[at].add(head)
                self._silent[self._block(node.body, head)].add(head)
                return head
            case Branch():
                join = self._place()
                for arm in node.arms:
                    self._silent[self._block(arm, at)].add(join)
                return join
        if id(node) not in self._numbers:  # a loop that is unrolled comes to the same node again
            self._numbers[id(node)] = len(self.events)
            self.events.append(node)
        for event in _expanded(node):
            end = self._place()
            self.moves[at].append((event, end, self._numbers[id(node)]))
            if event.kind.startswith("shfl"):  # a number of 64 bits is exchanged in two halves
                self.moves[end].append(self.moves[at][-1])
            at = end
        return at


def _expanded(event: Event) -> Iterator[Event]:
    """Yield an event as PTX has it: a reduction as the barriers and shuffles that it is made of."""
    reduction = re.fullmatch(r"tl::AllReduce<tl::\w+, (\d+), (\d+), \d+, tl::NamedBarrier<(\d+)>>::run", event.kind)
    if not reduction:
        yield Event(event.kind, tuple(map(_known, event.operands)))
        return
    threads, scale, block = map(int, reduction.groups())
    while threads > scale:
        threads //= 2
        if threads >= 32:
            yield from (Event("bar.sync", (1, block)), Event("bar.sync", (2, block)))
        else:
            yield Event("shfl.bfly")


def _known(term: Term) -> Term:
    """Return a number, or the element of an array at a number; anything else is known when the kernel runs."""
    match term:
        case int() | Apply("[]", (_, int())):
            return term
    return UNKNOWN
