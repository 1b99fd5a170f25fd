"""The races of an interpreted block: accesses of two threads to one element with no barrier between them.

Reads do not conflict with reads, nor atomic additions with one another. Everything else does, also two equal writes.
Only what happens on the given inputs is found.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..semantics.algebra import Memory

Access = Literal["read", "write", "add"]
_CONFLICTS: dict[Access, tuple[Access, ...]] = {
    "read": ("write", "add"),
    "write": ("read", "write", "add"),
    "add": ("read", "write"),
}
_NONE, _MANY = -1, -2


class Ordering:
    """Which threads made which accesses since the last barrier."""

    def __init__(self) -> None:
        self._by: dict[tuple[Memory[Tensor], Access], Tensor] = {}  # for each element: a thread, none, or many

    def barrier(self) -> None:
        """Forget the accesses so far: they are ordered before those that come."""
        self._by.clear()

    def access(self, kind: Access, memory: Memory[Tensor], size: int, element: Tensor, thread: Tensor) -> Tensor:
        """Record what some threads do at once, and return for each whether it conflicts with what another one did."""
        clash = torch.zeros(element.shape, dtype=torch.bool)
        own = self._record(kind, memory, size, element, thread)
        for other in _CONFLICTS[kind]:
            by = own if other == kind else self._by.get((memory, other))
            if by is not None:
                clash |= (by[element] != _NONE) & (by[element] != thread)
        return clash

    def _record(self, kind: Access, memory: Memory[Tensor], size: int, element: Tensor, thread: Tensor) -> Tensor:
        by = self._by.setdefault((memory, kind), torch.full((size,), _NONE))
        before = by[element]
        by[element] = thread
        several = (by[element] != thread) | ((before != _NONE) & (before != thread))
        by[element[several]] = _MANY
        return by
