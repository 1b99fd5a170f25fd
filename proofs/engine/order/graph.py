"""A graph of statements, for all iterations at once, and the least weights of paths in it.

A path of weight w from one statement to another leads from iteration i of the first to iteration i + w of the second. What
comes before the loop counts as iteration -1, what comes after it as the one after the last. So an edge to a later part
weighs one more. A path from before the loop to after it weighs 1 beside the loop, and 2 or more through it: such a path is
there only if the loop goes round.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

State = tuple[int, bool, bool]  # a node; whether all threads are ordered, and a proxy fence passed, on the way there


@dataclass(frozen=True)
class Edge:
    """To a node, so many iterations on; whether it orders all threads, or proxies, and shows writes."""

    to: int
    weight: int
    orders: bool
    fences: bool
    shows: bool


class Graph:
    """Nodes in parts, and edges from a part to the same or a later one."""

    def __init__(self) -> None:
        self._parts: list[int] = []
        self._edges: list[list[Edge]] = []
        self._known: dict[tuple[int, bool], dict[State, int]] = {}

    def node(self, part: int) -> int:
        """Add a node."""
        self._parts.append(part)
        self._edges.append([])
        return len(self._parts) - 1

    def edge(
        self, a: int, b: int, weight: int = 0, *, orders: bool = False, fences: bool = False, shows: bool = True
    ) -> None:
        """Add an edge, unless it leads back to an earlier part."""
        if self._parts[a] <= self._parts[b]:
            later = self._parts[a] < self._parts[b]
            self._edges[a].append(Edge(b, weight + later, orders, fences, shows))

    def least(self, a: int, b: int, *, orders: bool = True, fenced: bool = False, shown: bool = False) -> int | None:
        """Return the least weight of a path; None if there is none.

        Args:
            a: where it begins.
            b: where it ends.
            orders: only paths that order all threads count.
            fenced: only paths with a proxy fence count.
            shown: only paths count at whose end all is seen that was written before them.
        """
        if (a, shown) not in self._known:
            self._known[a, shown] = self._weights(a, shown)
        weights = self._known[a, shown]
        ends = ((b, *flags) for flags in itertools.product({True, orders}, {True, fenced}))
        return min((weights[end] for end in ends if end in weights), default=None)

    def _weights(self, a: int, shown: bool) -> dict[State, int]:
        """Return the least weight of a path to each state that can be reached."""
        weights: dict[State, int] = {}
        queue: list[tuple[int, State]] = [(0, (a, False, False))]
        while queue:
            weight, state = heapq.heappop(queue)
            if state not in weights:
                weights[state] = weight
                _, ordered, fenced = state
                for e in self._edges[state[0]]:
                    if e.shows or not shown:
                        after = (e.to, ordered or e.orders, fenced or e.fences)
                        heapq.heappush(queue, (weight + e.weight, after))
        return weights
