"""The first difference of two skeletons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from .skeleton import Apply, Branch, Event, Loop, Name, Node, Skeleton, Term, text


def difference(ir: Skeleton, emitted: Skeleton) -> str | None:
    """Return the first difference of two skeletons in one line, None if they are equal up to the names of variables."""
    comparison = _Comparison()
    if not comparison.all_same(ir.parameters, emitted.parameters):
        return f"parameters: the IR has {len(ir.parameters)}, what was emitted has {len(emitted.parameters)}"
    return comparison.first(ir.body, emitted.body, "kernel")


class _Comparison:
    """A comparison up to a one-to-one renaming, which is found on the way."""

    def __init__(self) -> None:
        self._names: dict[Name, Name] = {}
        self._back: dict[Name, Name] = {}

    def same(self, a: Term, b: Term) -> bool:
        """Return whether two terms are equal."""
        match a, b:
            case Name(), Name():
                return self._names.setdefault(a, b) == b and self._back.setdefault(b, a) == a
            case Apply(), Apply():
                return a.function == b.function and self.all_same(a.arguments, b.arguments)
        return a == b

    def all_same(self, a: Sequence[Term], b: Sequence[Term]) -> bool:
        """Return whether as many terms are equal, one by one."""
        return len(a) == len(b) and all(map(self.same, a, b))

    def alike(self, a: Node | None, b: Node | None) -> bool:
        """Return whether two nodes are equal but for what is in them."""
        match a, b:
            case Event(), Event():
                return a.kind == b.kind and self.all_same(a.operands, b.operands)
            case Loop(), Loop():
                return self.all_same((a.variable, a.begin, a.end), (b.variable, b.begin, b.end))
            case Branch(), Branch():
                return self.same(a.condition, b.condition)
        return False

    def first(self, a: Sequence[Node], b: Sequence[Node], where: str) -> str | None:
        """Return the first difference of two blocks."""
        for one, other in zip_longest(a, b):
            if not self.alike(one, other):
                shown = ["nothing more" if node is None else text(node) for node in (one, other)]
                return f"{where}: the IR has {shown[0]}, what was emitted has {shown[1]}"
            for (place, here), (_, there) in zip(_blocks(one), _blocks(other), strict=True):
                if found := self.first(here, there, f"{where}, {place}"):
                    return found
        return None


def _blocks(node: Node) -> Iterator[tuple[str, Sequence[Node]]]:
    """Yield the blocks in a node, each with the words for it."""
    if isinstance(node, Loop):
        yield text(node), node.body
    elif isinstance(node, Branch):
        yield text(node), node.arms[0]
        yield f"else of {text(node)}", node.arms[1]
